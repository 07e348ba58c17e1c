"""What a packet of audio costs each way, part by part, beside libopus alone: microseconds of CPU.

Sessions take turns packet by packet, as they do in a server, and between two packets of one there
is libopus, which leaves nothing in the caches: that makes cheap parts several times as dear.
What is not in it: the event loop, the session, its timers and the backend; `shunt bench
transceiver` has all of that.
"""

import itertools
import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pylibsrtp import Policy

from tools.bench.calls.bots import utterance
from tools.bench.calls.speech import packets
from tools.bench.facts import machine
from tools.bench.report import Case, Report
from transceiver import stun
from transceiver.backends import PCM_24000
from transceiver.demultiplexer import Demultiplexer
from transceiver.dtls import Keys
from transceiver.ice import Credentials, IceSession
from transceiver.media import opus, rtp
from transceiver.media.receiver import AudioReceiver
from transceiver.media.sender import BITRATE, COMPLEXITY, AudioSender
from transceiver.srtp import Srtp
from transceiver.stun import Address

__all__ = ["run"]

_SESSIONS = 40
_RATE = PCM_24000.rate
_PAYLOAD_TYPE = 111
_FRAME = 0.02
_TURN = 2 * _FRAME  # each turn has two packets each way of each session
_ROUNDS, _QUICK = 15, 3
_PACKETS = 50  # of each session in a round

WHAT = {
    "in.libopus": "libopus decodes a packet",
    "in.socket": "the system call that reads it",
    "in.demultiplexer": "whose it is",
    "in.srtp": "decryption",
    "in.receiver": "RTP, order, decoding, delivery",
    "in.all": "all of that, without the system call",
    "out.libopus": "libopus encodes a frame",
    "out.sender": "queueing, encoding, RTP",
    "out.srtp": "encryption",
    "out.socket": "the system call that sends it",
    "out.all": "all of that, without the system call",
    "both.libopus": "libopus, both ways",
    "both.all": "all of it, both ways, and the system calls",
}


class _Session:
    """A client that is connected, and the server's state of it."""

    def __init__(self, number: int, demultiplexer: Demultiplexer) -> None:
        self.address: Address = ("198.18.1.1", 10000 + number)
        self.demultiplexer = demultiplexer
        self._connect()
        theirs, mine = os.urandom(16 + 12), os.urandom(16 + 12)
        profile = Policy.SRTP_PROFILE_AEAD_AES_128_GCM  # as browsers and we agree on
        self.srtp = Srtp(Keys(profile, local=mine, remote=theirs))
        self._client = Srtp(Keys(profile, local=theirs, remote=mine))
        self.receiver = AudioReceiver(
            payload_type=_PAYLOAD_TYPE, rate=_RATE, passthrough=False, deliver=_deliver
        )
        self.sender = AudioSender(
            ssrc=number,
            payload_type=_PAYLOAD_TYPE,
            rate=_RATE,
            passthrough=False,
            fec=True,
            dtx=True,
        )
        self.decoder = opus.Decoder(_RATE)
        self.encoder = opus.Encoder(
            _RATE, bitrate=BITRATE, complexity=COMPLEXITY, fec=True, dtx=True
        )
        self._sequence = itertools.count()
        # Each is somewhere else in what is said.
        self._said = itertools.cycle(_from(packets(), 37 * number))
        self._answers = itertools.cycle(_from(utterance(_RATE), 53 * number))

    def _connect(self) -> None:
        """Until media from the client's address is this session's."""
        local, remote = Credentials.fresh(), Credentials.fresh()
        ice = IceSession(local, transactions=self.demultiplexer.transactions)
        ice.set_remote(remote)
        self.demultiplexer.add(ice)
        request = stun.binding_request(
            os.urandom(12),
            username=f"{local.ufrag}:{remote.ufrag}",
            password=local.password,
            priority=1,
            use_candidate=True,
        )
        self.demultiplexer.receive(request, self.address, 0.0)
        check = stun.parse(ice.take_datagrams()[-1][0])
        answer = stun.binding_success(
            check.transaction, mapped=self.address, password=remote.password
        )
        self.demultiplexer.receive(answer, self.address, 0.0)
        assert ice.selected == self.address

    def payload(self) -> bytes:
        return next(self._said)

    def frame(self) -> bytes:
        return next(self._answers)

    def packet(self) -> bytes:
        """The client's next, encrypted."""
        sequence = next(self._sequence)
        plain = rtp.build(
            self.payload(),
            payload_type=_PAYLOAD_TYPE,
            sequence=sequence & 0xFFFF,
            timestamp=960 * sequence & 0xFFFFFFFF,
            ssrc=1,
        )
        return self._client.protect(plain)


def _deliver(pcm: bytes, at: int, concealed: bool) -> None:
    """To nobody."""


def _from(values: Iterable[bytes], start: int) -> list[bytes]:
    listed = list(values)
    start %= len(listed)
    return listed[start:] + listed[:start]


class _Stopwatch:
    """CPU time of this thread, by what it was for."""

    def __init__(self) -> None:
        self.spent = dict.fromkeys(WHAT, 0.0)

    @contextmanager
    def on(self, *names: str) -> Iterator[None]:
        begun = time.thread_time()
        yield
        for name in names:
            self.spent[name] += time.thread_time() - begun


def run(_pins: Path | None, *, quick: bool, progress: Callable[[str], None]) -> Report:
    """Each part on packets of its own, in turns of one packet for each session."""
    demultiplexer = Demultiplexer()
    sessions = [_Session(number, demultiplexer) for number in range(_SESSIONS)]
    rounds: dict[str, list[float]] = {name: [] for name in WHAT}
    clock = itertools.count()
    with _loopback() as (ours, theirs):
        _turn(sessions, _Stopwatch(), next(clock) * _TURN, ours, theirs)  # warm
        for number in range(count := _QUICK if quick else _ROUNDS):
            progress(f"bench media: round {number + 1} of {count}")
            watch = _Stopwatch()
            for _ in range(_PACKETS):
                _turn(sessions, watch, next(clock) * _TURN, ours, theirs)
            for name, seconds in watch.spent.items():
                rounds[name].append(1e6 * seconds / _PACKETS / _SESSIONS)
    cases = tuple(Case(name, WHAT[name], tuple(values)) for name, values in rounds.items())
    facts = {"sessions": _SESSIONS, "libopus": opus.version(), **machine(None, None)}
    return Report("media", "µs", cases, facts)


@contextmanager
def _loopback() -> Iterator[tuple[socket.socket, socket.socket]]:
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ours,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as theirs,
    ):
        for each in (ours, theirs):
            each.bind(("127.0.0.1", 0))
            each.setblocking(False)
        yield ours, theirs


def _turn(
    sessions: list[_Session],
    watch: _Stopwatch,
    now: float,
    ours: socket.socket,
    theirs: socket.socket,
) -> None:
    """One packet of each session, through each part alone and through all of them."""
    demultiplexer = sessions[0].demultiplexer
    pairs = [(session, session.payload()) for session in sessions]
    with watch.on("in.libopus", "both.libopus"):
        for session, payload in pairs:
            session.decoder.decode(payload)

    pairs = [(session, session.packet()) for session in sessions]
    for _, packet in pairs:
        theirs.sendto(packet, ours.getsockname())
    with watch.on("in.socket", "both.all"):
        for _ in pairs:
            ours.recvfrom(2048)
    with watch.on("in.demultiplexer"):
        for session, packet in pairs:
            demultiplexer.receive(packet, session.address, now)
    with watch.on("in.srtp"):
        plain = [(session, session.srtp.unprotect(packet)) for session, packet in pairs]
    with watch.on("in.receiver"):
        for session, packet in plain:
            session.receiver.receive(packet, now)

    pairs = [(session, session.packet()) for session in sessions]
    with watch.on("in.all", "both.all"):
        for session, packet in pairs:
            demultiplexer.receive(packet, session.address, now)
            session.receiver.receive(session.srtp.unprotect(packet), now + _FRAME)

    pairs = [(session, session.frame()) for session in sessions]
    with watch.on("out.libopus", "both.libopus"):
        for session, frame in pairs:
            session.encoder.encode(frame)

    with watch.on("out.sender"):
        made = []
        for session, frame in pairs:
            session.sender.say(frame)
            made.append((session, session.sender.tick(now)))
    with watch.on("out.srtp"):
        sent = [session.srtp.protect(packet) for session, packet in made if packet]
    destination = theirs.getsockname()
    with watch.on("out.socket", "both.all"):
        for packet in sent:
            ours.sendto(packet, destination)
    for _ in sent:
        theirs.recv(2048)

    pairs = [(session, session.frame()) for session in sessions]
    with watch.on("out.all", "both.all"):
        for session, frame in pairs:
            session.sender.say(frame)
            made_packet = session.sender.tick(now + _FRAME)
            if made_packet is not None:
                session.srtp.protect(made_packet)
