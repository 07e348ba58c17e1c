"""Data channels: with aiortc's own at the other end of a bad network, in virtual time; and with a
peer that means harm."""

import asyncio
import contextlib
import itertools
import random
import selectors
import struct
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiortc.rtcdatachannel import RTCDataChannel, RTCDataChannelParameters
from aiortc.rtcdtlstransport import RTCDtlsTransport
from aiortc.rtcsctptransport import (
    AbortChunk,
    Chunk,
    CookieEchoChunk,
    DataChunk,
    ForwardTsnChunk,
    HeartbeatChunk,
    InitAckChunk,
    InitChunk,
    ReconfigChunk,
    RTCSctpCapabilities,
    RTCSctpTransport,
    SackChunk,
    ShutdownChunk,
    ShutdownCompleteChunk,
    StreamResetOutgoingParam,
    parse_packet,
    serialize_packet,
)
from google_crc32c import value as crc32c
from hypothesis import given, settings
from hypothesis import strategies as st

from transceiver.datachannels import (
    CHUNKS_AT_ONCE,
    MAX_AHEAD,
    MAX_BACKLOG,
    MAX_STREAMS,
    WINDOW,
    DataChannels,
)
from transceiver.sdp.answer import MAX_MESSAGE_SIZE, SCTP_PORT

PORT = 5001
TAG = 0xC0FFEE
TSN = 1000

DCEP, STRING, BINARY, EMPTY_STRING, EMPTY_BINARY = 50, 51, 53, 56, 57
WHOLE, FIRST, MIDDLE, LAST, UNORDERED = 3, 2, 0, 1, 4


class VirtualLoop(asyncio.SelectorEventLoop):
    """A loop whose clock jumps to whatever is due next."""

    def __init__(self) -> None:
        self.now = 0.0
        loop = self

        class Selector(selectors.SelectSelector):
            def select(self, timeout: float | None = None) -> Any:
                assert timeout is not None, "everybody waits, and nothing is due"
                loop.now += timeout
                return super().select(0)

        super().__init__(Selector())

    def time(self) -> float:
        return self.now


def run(main: Callable[[], Awaitable[None]]) -> None:
    """Run *main* in virtual time, and see that it leaves neither task nor timer."""
    loop = VirtualLoop()
    errors: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: errors.append(context))
    try:
        loop.run_until_complete(main())
        loop.run_until_complete(asyncio.sleep(0))
        assert asyncio.all_tasks(loop) == set()
        assert [handle for handle in loop._scheduled if not handle.cancelled()] == []  # type: ignore[attr-defined]
        assert errors == []
    finally:
        loop.close()


class Wire(RTCDtlsTransport):
    """Under aiortc's association: a function that takes packets."""

    def __init__(self, role: str, transmit: Callable[[bytes], None]) -> None:
        self._role = role
        self.transmit = transmit

    @property
    def state(self) -> str:
        return "connected"

    def _register_data_receiver(self, receiver: object) -> None:
        pass

    def _unregister_data_receiver(self, receiver: object) -> None:
        pass

    async def _send_data(self, data: bytes) -> None:
        self.transmit(data)


class Network:
    """Ours, and aiortc's as a browser would be, with a network in between."""

    def __init__(
        self, *, loss: float = 0.0, jitter: float = 0.0, seed: int = 1, is_client: bool = True
    ) -> None:
        self.random = random.Random(seed)
        self.loss, self.jitter = loss, jitter
        self.ours = DataChannels(
            is_client=is_client,
            offer_port=PORT,
            max_message_size=MAX_MESSAGE_SIZE,
            transmit=lambda data: self.carry(data, self.to_theirs),
        )
        self.log: list[tuple[str, ...] | tuple[str, str, str | bytes]] = []
        self.ours.on_open = lambda label: self.log.append(("open", label))
        self.ours.on_message = lambda label, message: self.log.append(("message", label, message))
        self.ours.on_closed = lambda reason: self.log.append(("closed", reason))
        wire = Wire(
            "server" if is_client else "client",
            lambda data: self.carry(data, self.ours.receive),
        )
        self.theirs = RTCSctpTransport(wire, PORT)
        self.heard: list[str | bytes] = []

    def carry(self, data: bytes, to: Callable[[bytes], object]) -> None:
        if self.random.random() >= self.loss:
            delay = 0.02 + self.random.random() * self.jitter
            asyncio.get_running_loop().call_later(delay, to, data)

    def to_theirs(self, data: bytes) -> None:
        with contextlib.suppress(StopIteration):
            self.theirs._handle_data(data).send(None)

    async def start(self) -> None:
        self.ours.start()
        await self.theirs.start(RTCSctpCapabilities(MAX_MESSAGE_SIZE), SCTP_PORT)

    def open(self, label: str = "chat", **options: Any) -> RTCDataChannel:
        """Theirs."""
        channel = RTCDataChannel(self.theirs, RTCDataChannelParameters(label=label, **options))
        channel.on("message", self.heard.append)
        return channel

    def messages(self) -> list[str | bytes]:
        return [event[2] for event in self.log if len(event) == 3]

    async def stop(self) -> None:
        self.ours.close()
        await self.theirs.stop()
        await asyncio.sleep(1)


async def until(condition: Callable[[], object], limit: float = 300.0) -> None:
    """Virtual seconds."""
    for _ in range(int(limit / 0.05)):
        if condition():
            return
        await asyncio.sleep(0.05)
    raise AssertionError("it never came")


@pytest.mark.parametrize("is_client", [True, False])
def test_a_channel_of_the_peers_carries_messages_both_ways(is_client: bool) -> None:
    async def main() -> None:
        network = Network(is_client=is_client)
        await network.start()
        channel = network.open("chat")
        await until(lambda: channel.readyState == "open")
        channel.send("hello")
        await until(network.messages)
        assert network.ours.send("chat", "good day")
        await until(lambda: network.heard)
        assert network.log == [("open", "chat"), ("message", "chat", "hello")]
        assert network.heard == ["good day"]
        await network.stop()

    run(main)


@pytest.mark.parametrize("is_client", [True, False])
def test_a_channel_of_ours_opens(is_client: bool) -> None:
    async def main() -> None:
        network = Network(is_client=is_client)
        channels: list[RTCDataChannel] = []
        network.theirs.on("datachannel", channels.append)
        network.ours.create("events")
        assert not network.ours.send("events", "too early")
        await network.start()
        await until(lambda: network.log)
        assert network.log == [("open", "events")]
        assert network.ours.send("events", "hello")
        assert channels[0].label == "events"
        await network.stop()

    run(main)


MESSAGES: list[str | bytes] = ["", b"", "text", b"\x00\xff", "ä€😀", "x" * 5000, b"y" * 100_000]


def test_text_and_bytes_and_nothing_arrive_as_what_they_were() -> None:
    async def main() -> None:
        network = Network()
        await network.start()
        channel = network.open()
        await until(lambda: channel.readyState == "open")
        for message in MESSAGES:
            channel.send(message)
            assert network.ours.send("chat", message)
        await until(lambda: len(network.heard) == len(network.messages()) == len(MESSAGES))
        assert network.messages() == MESSAGES
        assert network.heard == MESSAGES
        await network.stop()

    run(main)


@pytest.mark.parametrize("seed", range(5))
def test_a_bad_network_changes_nothing_but_the_time_it_takes(seed: int) -> None:
    async def main() -> None:
        network = Network(loss=0.1, jitter=0.03, seed=seed)
        await network.start()
        channel = network.open()
        await until(lambda: channel.readyState == "open")
        sent: list[str | bytes] = [f"message {number} " * number for number in range(100)]
        for message in sent:
            channel.send(message)
            await until(lambda message=message: network.ours.send("chat", message))  # type: ignore[misc]
        await until(lambda: len(network.heard) == len(network.messages()) == 100)
        assert network.messages() == network.heard == sent
        await network.stop()

    run(main)


def test_a_message_that_was_lost_by_itself_comes_within_half_a_second() -> None:
    async def main() -> None:
        network = Network()
        await network.start()
        channel = network.open()
        await until(lambda: channel.readyState == "open")
        network.ours.send("chat", "the first, for the round trip")
        await until(lambda: network.heard)
        network.heard.clear()
        network.loss = 1.0
        network.ours.send("chat", "lost")
        await asyncio.sleep(0.01)
        network.loss = 0.0
        await asyncio.sleep(0.5)
        assert network.heard == ["lost"]
        await network.stop()

    run(main)


def test_a_path_that_is_gone_is_asked_less_often_but_every_three_seconds() -> None:
    async def main() -> None:
        network = Network()
        await network.start()
        channel = network.open()
        await until(lambda: channel.readyState == "open")
        network.loss = 1.0
        clock = asyncio.get_running_loop().time
        times: list[float] = []
        network.ours._transport.transmit = lambda data: times.append(clock())
        network.ours.send("chat", "anybody there?")
        await asyncio.sleep(60)
        waits = [round(later - earlier, 3) for earlier, later in itertools.pairwise(times)]
        assert waits == sorted(waits)
        assert waits[0] < 1.5
        assert waits[-1] == 3
        await network.stop()

    run(main)


def test_unordered_messages_all_arrive() -> None:
    async def main() -> None:
        network = Network(loss=0.1, jitter=0.1)
        await network.start()
        channel = network.open(ordered=False)
        await until(lambda: channel.readyState == "open")
        for number in range(100):
            channel.send(str(number))
        await until(lambda: len(network.messages()) == 100)
        assert {int(message) for message in network.messages()} == set(range(100))
        assert network.messages() != [str(number) for number in range(100)]
        await network.stop()

    run(main)


def test_messages_that_are_not_worth_repeating_are_left_out() -> None:
    async def main() -> None:
        network = Network()
        await network.start()
        channel = network.open(maxRetransmits=0)
        await until(lambda: channel.readyState == "open")
        network.loss = 0.3
        for number in range(100):
            channel.send(str(number))
            await asyncio.sleep(0.1)
        network.loss = 0
        channel.send("the last")
        await until(lambda: network.messages()[-1:] == ["the last"])
        assert 20 < len(network.messages()) < 100
        await network.stop()

    run(main)


def test_the_longest_message_goes_both_ways_and_one_byte_more_does_not() -> None:
    async def main() -> None:
        network = Network()
        await network.start()
        channel = network.open()
        await until(lambda: channel.readyState == "open")
        channel.send(bytes(MAX_MESSAGE_SIZE))
        assert not network.ours.send("chat", bytes(MAX_MESSAGE_SIZE + 1))
        assert network.ours.send("chat", bytes(MAX_MESSAGE_SIZE))
        await until(lambda: network.heard and network.messages())
        assert [len(message) for message in network.heard] == [MAX_MESSAGE_SIZE]
        assert [len(message) for message in network.messages()] == [MAX_MESSAGE_SIZE]
        await network.stop()

    run(main)


def test_what_waits_to_be_sent_is_bounded() -> None:
    async def main() -> None:
        network = Network()
        await network.start()
        channel = network.open()
        await until(lambda: channel.readyState == "open")
        sent = 0
        while network.ours.send("chat", bytes(1000)):
            sent += 1000
        assert MAX_BACKLOG / 2 < sent <= MAX_BACKLOG
        await until(lambda: network.ours.send("chat", "there is room again"))
        await until(lambda: network.heard[-1:] == ["there is room again"])
        await network.stop()

    run(main)


def test_a_peer_that_acknowledges_nothing_bounds_what_waits() -> None:
    async def main() -> None:
        network = Network()
        await network.start()
        channel = network.open()
        await until(lambda: channel.readyState == "open")
        network.loss = 1.0
        sent = 0
        for _ in range(100):
            while network.ours.send("chat", "tiny"):
                sent += 1
            await asyncio.sleep(1)
        assert sent < 3000
        await network.stop()

    run(main)


def test_half_surrogates_do_not_raise() -> None:
    async def main() -> None:
        network = Network()
        await network.start()
        channel = network.open()
        await until(lambda: channel.readyState == "open")
        assert network.ours.send("chat", "half \ud83d and whole 😀")
        await until(lambda: network.heard)
        assert network.heard == ["half � and whole 😀"]
        await network.stop()

    run(main)


def test_a_channel_that_the_peer_closes_is_gone_and_may_come_again() -> None:
    async def main() -> None:
        network = Network()
        await network.start()
        channel = network.open()
        await until(lambda: channel.readyState == "open")
        channel.close()
        await until(lambda: channel.readyState == "closed")
        assert not network.ours.send("chat", "anybody there?")
        again = network.open()
        await until(lambda: again.readyState == "open")
        assert network.ours.send("chat", "welcome back")
        await network.stop()

    run(main)


def test_the_peers_abort_is_told_once() -> None:
    async def main() -> None:
        network = Network()
        await network.start()
        channel = network.open()
        await until(lambda: channel.readyState == "open")
        await network.theirs.stop()
        await until(lambda: network.log[-1][0] == "closed")
        assert not network.ours.send("chat", "too late")
        network.ours.close()
        await asyncio.sleep(100)
        assert [event[0] for event in network.log] == ["open", "closed"]

    run(main)


def test_a_peer_that_never_answers_is_told() -> None:
    async def main() -> None:
        network = Network(loss=1.0)
        await network.start()
        await until(lambda: network.log)
        assert network.log == [("closed", "the peer does not answer")]
        await network.stop()

    run(main)


def test_close_in_the_midst_leaves_nothing_and_calls_nobody() -> None:
    async def main() -> None:
        network = Network()
        await network.start()
        channel = network.open()
        await until(lambda: channel.readyState == "open")
        before = list(network.log)
        while network.ours.send("chat", bytes(10_000)):
            pass
        channel.send("unheard")
        await asyncio.sleep(0.021)
        network.ours.close()
        network.ours.close()
        network.ours.receive(bytes(100))
        await asyncio.sleep(10)
        assert [event for event in network.log if event[0] != "message"] == before
        await network.theirs.stop()

    run(main)


def test_a_callback_may_close() -> None:
    async def main() -> None:
        network = Network()
        network.ours.on_open = lambda label: network.ours.close()
        await network.start()
        network.open("one")
        network.open("two")
        await asyncio.sleep(5)
        assert network.log == []
        await network.theirs.stop()

    run(main)


class Hostile:
    """A peer that is past the handshake and says whatever it likes."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.log: list[tuple[Any, ...]] = []
        self.ours = DataChannels(
            is_client=True,
            offer_port=PORT,
            max_message_size=MAX_MESSAGE_SIZE,
            transmit=self.sent.append,
        )
        self.ours.on_open = lambda label: self.log.append(("open", label))
        self.ours.on_message = lambda label, message: self.log.append(("message", label, message))
        self.ours.on_closed = lambda reason: self.log.append(("closed", reason))
        self.ours.start()
        init = self.chunk(InitChunk)
        assert isinstance(init, InitChunk)
        self.tag = init.initiate_tag
        self.their_tsn = init.initial_tsn
        self.tsn = TSN

    def connect(self) -> None:
        mine = InitChunk()
        mine.initiate_tag, mine.advertised_rwnd, mine.initial_tsn = TAG, 1 << 20, TSN
        mine.outbound_streams = mine.inbound_streams = 65535
        self.ours.receive(serialize_packet(PORT, SCTP_PORT, 0, mine))
        answer = self.chunk(InitAckChunk)
        assert isinstance(answer, InitAckChunk)
        echo = CookieEchoChunk(body=dict(answer.params)[7])
        self.say(echo)
        self.sent.clear()

    def chunk(self, kind: type[Chunk]) -> Chunk:
        """The last of its kind that came."""
        chunks = [chunk for packet in self.sent for chunk in parse_packet(packet)[3]]
        return [chunk for chunk in chunks if isinstance(chunk, kind)][-1]

    def say(self, *chunks: Chunk | bytes) -> None:
        self.ours.receive(packet(self.tag, b"".join(bytes(chunk) for chunk in chunks)))

    def data(
        self,
        data: bytes,
        *,
        stream: int = 1,
        sequence: int = 0,
        protocol: int = BINARY,
        flags: int = WHOLE,
        tsn: int | None = None,
    ) -> DataChunk:
        chunk = DataChunk(flags=flags)
        chunk.tsn = self.tsn if tsn is None else tsn
        if tsn is None:
            self.tsn += 1
        chunk.stream_id, chunk.stream_seq, chunk.protocol = stream, sequence, protocol
        chunk.user_data = data
        return chunk

    def open(self, label: bytes = b"chat", *, stream: int = 1) -> DataChunk:
        return self.data(opening(label), stream=stream, protocol=DCEP)

    def has_closed(self) -> bool:
        return bool(self.log) and self.log[-1][0] == "closed"

    def acknowledged(self) -> int:
        """Chunks of ours."""
        sack = self.chunk(SackChunk)
        assert isinstance(sack, SackChunk)
        return int(sack.cumulative_tsn - TSN + 1) % (1 << 32)


def opening(label: bytes, *, announced: int | None = None) -> bytes:
    size = len(label) if announced is None else announced
    return struct.pack("!BBHLHH", 3, 0, 0, 0, size, 0) + label


def packet(tag: int, chunks: bytes) -> bytes:
    header = struct.pack("!HHL", PORT, SCTP_PORT, tag)
    return header + struct.pack("<L", crc32c(header + bytes(4) + chunks)) + chunks


def chunk(kind: int, body: bytes = b"", *, flags: int = 0, size: int | None = None) -> bytes:
    size = len(body) + 4 if size is None else size
    return struct.pack("!BBH", kind, flags, size) + body + bytes(-len(body) % 4)


def hostile(attack: Callable[[Hostile], None], *, connected: bool = True) -> Hostile:
    """What is left of us after an attack."""
    peers: list[Hostile] = []

    async def main() -> None:
        peer = Hostile()
        peers.append(peer)
        if connected:
            peer.connect()
        attack(peer)
        peer.ours.close()
        await asyncio.sleep(100)

    run(main)
    return peers[0]


BREACHES: dict[str, Callable[[Hostile], bytes | Chunk]] = {
    "a parameter of no length": lambda peer: chunk(4, struct.pack("!HH", 1, 0)),
    "an INIT with one": lambda peer: chunk(1, bytes(16) + struct.pack("!HH", 1, 0)),
    "an ERROR with one": lambda peer: chunk(9, struct.pack("!HH", 1, 0)),
    "an ABORT with one": lambda peer: chunk(6, struct.pack("!HH", 1, 0)),
    "a RE-CONFIG with one": lambda peer: chunk(130, struct.pack("!HH", 13, 0)),
    "a parameter beyond its chunk": lambda peer: chunk(4, struct.pack("!HH", 1, 100)),
    "a chunk of no length": lambda peer: chunk(0, size=0),
    "a chunk beyond its packet": lambda peer: chunk(0, bytes(20), size=2000),
    "an INIT cut short": lambda peer: chunk(1, bytes(8)),
    "an INIT in company": lambda peer: bytes(InitChunk()) + bytes(peer.data(b"x")),
    "DATA cut short": lambda peer: chunk(0, bytes(8)),
    "DATA without data": lambda peer: chunk(0, struct.pack("!LHHL", TSN, 1, 0, 51), flags=3),
    "a SACK cut short": lambda peer: chunk(3, bytes(8)),
    "a SACK of gaps it does not have": lambda peer: chunk(3, struct.pack("!LLHH", 0, 0, 9, 0)),
    "a SACK of what was never sent": lambda peer: sack(peer.their_tsn + 1000),
    "gaps beyond what was sent": lambda peer: sack(peer.their_tsn - 1, (2, 65535)),
    "gaps backwards": lambda peer: sack(peer.their_tsn - 1, (65535, 1)),
    "a FORWARD TSN with half a stream": lambda peer: chunk(192, struct.pack("!LH", TSN, 1)),
    "a FORWARD TSN to nowhere": lambda peer: chunk(192),
    "a reset with half a stream": lambda peer: reconfig(13, bytes(13)),
    "a reset cut short": lambda peer: reconfig(13, bytes(4)),
    "an answer cut short": lambda peer: reconfig(16, bytes(4)),
    "a channel opened twice": lambda peer: (
        bytes(peer.open()) + bytes(peer.data(opening(b"again"), sequence=1, protocol=DCEP))
    ),
    "a label that is not UTF-8": lambda peer: peer.open(b"\xff\xfe"),
    "a label longer than its message": lambda peer: peer.data(
        opening(b"x", announced=60_000), protocol=DCEP
    ),
    "a label without end": lambda peer: peer.open(b"x" * 1100),
}


def sack(cumulative: int, *gaps: tuple[int, int]) -> bytes:
    body = struct.pack("!LLHH", cumulative & 0xFFFFFFFF, 1 << 20, len(gaps), 0)
    return chunk(3, body + b"".join(struct.pack("!HH", *gap) for gap in gaps))


def reconfig(kind: int, body: bytes) -> bytes:
    return chunk(130, struct.pack("!HH", kind, len(body) + 4) + body)


@pytest.mark.parametrize("breach", BREACHES.values(), ids=BREACHES.keys())
def test_who_breaks_the_protocol_is_aborted(
    breach: Callable[[Hostile], bytes | Chunk], caplog: pytest.LogCaptureFixture
) -> None:
    peer = hostile(lambda peer: peer.say(breach(peer)))
    assert peer.has_closed()
    assert isinstance(peer.chunk(AbortChunk), AbortChunk)
    assert caplog.records == []


def test_data_before_the_handshake_is_dropped() -> None:
    peer = hostile(
        lambda peer: peer.say(peer.data(b"x"), sack(0), chunk(192, bytes(4)), chunk(7, bytes(4))),
        connected=False,
    )
    assert peer.log == []


def test_a_wrong_tag_or_checksum_is_dropped() -> None:
    def attack(peer: Hostile) -> None:
        peer.ours.receive(packet(peer.tag ^ 1, bytes(AbortChunk())))
        damaged = bytearray(packet(peer.tag, bytes(AbortChunk())))
        damaged[8] ^= 1
        peer.ours.receive(bytes(damaged))

    assert hostile(attack).log == []


def test_nothing_comes_after_an_abort() -> None:
    def attack(peer: Hostile) -> None:
        peer.say(peer.open())
        peer.say(AbortChunk(), peer.data(b"late", sequence=1))
        peer.say(peer.data(b"later", sequence=2))
        peer.ours.receive(serialize_packet(PORT, SCTP_PORT, 0, InitChunk()))

    peer = hostile(attack)
    assert [event[0] for event in peer.log] == ["open", "closed"]


def test_a_shutdown_is_answered_and_told_at_once() -> None:
    def attack(peer: Hostile) -> None:
        peer.say(peer.open())
        shutdown = ShutdownChunk()
        shutdown.cumulative_tsn = peer.their_tsn
        peer.say(shutdown)
        assert peer.has_closed()
        assert not peer.ours.send("chat", "too late")
        peer.say(shutdown, peer.data(b"late", sequence=1))
        peer.say(ShutdownCompleteChunk())

    peer = hostile(attack)
    assert [event[0] for event in peer.log] == ["open", "closed"]
    assert any(packet[12] == 8 for packet in peer.sent)


def test_an_init_in_an_association_changes_nothing() -> None:
    def attack(peer: Hostile) -> None:
        peer.say(peer.open())
        peer.ours.receive(serialize_packet(PORT, SCTP_PORT, 0, InitChunk()))
        peer.say(peer.data(b"unmoved", sequence=1))

    assert hostile(attack).log[-1] == ("message", "chat", b"unmoved")


def test_streams_that_were_not_announced_take_no_data() -> None:
    def attack(peer: Hostile) -> None:
        forward = ForwardTsnChunk()
        forward.cumulative_tsn = TSN
        forward.streams = [(stream, 0) for stream in range(MAX_STREAMS, MAX_STREAMS + 200)]
        peer.say(forward)
        peer.tsn = TSN + 1
        for stream in range(MAX_STREAMS, 65536, 1000):
            peer.say(peer.open(stream=stream))

    peer = hostile(attack)
    assert peer.log == []
    assert peer.acknowledged() == 1


def test_a_message_without_end_is_not_kept() -> None:
    def attack(peer: Hostile) -> None:
        peer.say(peer.data(b"x" * 1000, flags=FIRST))
        for _ in range(10 * MAX_AHEAD):
            if peer.has_closed():
                return
            peer.say(peer.data(b"x" * 1000, flags=MIDDLE))

    peer = hostile(attack)
    assert peer.has_closed()
    assert WINDOW <= peer.acknowledged() * 1000 <= WINDOW + 2 * MAX_MESSAGE_SIZE


def test_a_message_in_crumbs_is_not_kept_either() -> None:
    def attack(peer: Hostile) -> None:
        peer.say(peer.data(b"x", flags=FIRST))
        for _ in range(4 * MAX_AHEAD):
            peer.say(peer.data(b"x", flags=MIDDLE))

    assert hostile(attack).acknowledged() <= 2 * MAX_AHEAD + 1


def test_a_message_longer_than_the_answer_allows_is_a_breach() -> None:
    def attack(peer: Hostile) -> None:
        peer.say(peer.open())
        left = MAX_MESSAGE_SIZE + 1
        flags = FIRST
        while left:
            size = min(1100, left)
            left -= size
            peer.say(peer.data(b"x" * size, sequence=1, flags=flags if left else LAST))
            flags = MIDDLE

    peer = hostile(attack)
    assert [event[0] for event in peer.log] == ["open", "closed"]


def test_a_hole_keeps_no_more_than_the_window() -> None:
    async def main() -> None:
        peer = Hostile()
        peer.connect()
        peer.say(peer.open())
        hole = peer.tsn
        for number in range(3 * MAX_AHEAD):
            peer.say(peer.data(b"x", flags=WHOLE | UNORDERED, tsn=hole + 1 + number))
            await asyncio.sleep(0.02)
        peer.say(peer.data(b"hole", sequence=1, tsn=hole))
        assert peer.log[-1] == ("message", "chat", b"hole")
        assert len(peer.log) == 1 + MAX_AHEAD
        assert max(len(packet) for packet in peer.sent) < 1200
        peer.ours.close()

    run(main)


def test_who_sends_too_much_is_not_heard_for_a_while() -> None:
    peers = []

    async def main() -> None:
        peer = Hostile()
        peers.append(peer)
        peer.connect()
        heartbeat = HeartbeatChunk()
        for _ in range(2 * CHUNKS_AT_ONCE):
            peer.say(heartbeat)
        assert len(peer.sent) <= CHUNKS_AT_ONCE
        peer.sent.clear()
        await asyncio.sleep(1)
        peer.say(heartbeat)
        assert len(peer.sent) == 1
        peer.ours.close()

    run(main)


def test_channels_opened_and_closed_without_end_leave_nothing() -> None:
    async def main() -> None:
        peer = Hostile()
        peer.connect()
        for request in range(50):
            for stream in range(1, MAX_STREAMS, 2):
                peer.say(peer.open(stream=stream))
            reset = StreamResetOutgoingParam(
                (TSN + request) & 0xFFFFFFFF, 0, peer.tsn - 1, list(range(1, MAX_STREAMS, 2))
            )
            peer.say(reconfig(13, bytes(reset)))
            await asyncio.sleep(1)
        peer.ours.close()

    run(main)


def test_text_that_is_not_utf_8_is_mended() -> None:
    def attack(peer: Hostile) -> None:
        peer.say(peer.open())
        peer.say(peer.data(b"a\xffb", sequence=1, protocol=STRING))

    assert hostile(attack).log[-1] == ("message", "chat", "a�b")


def test_protocols_of_data_that_nobody_knows_are_passed_over() -> None:
    def attack(peer: Hostile) -> None:
        peer.say(peer.open())
        peer.say(peer.data(b"x", sequence=1, protocol=52))
        peer.say(peer.data(b"\x00", sequence=2, protocol=EMPTY_STRING))
        peer.say(peer.data(b"\x00", sequence=3, protocol=EMPTY_BINARY))
        peer.say(peer.data(b"\x02", stream=9, protocol=DCEP), peer.data(b"\x07", protocol=DCEP))

    assert hostile(attack).log == [
        ("open", "chat"),
        ("message", "chat", ""),
        ("message", "chat", b""),
    ]


KINDS = st.sampled_from([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 14, 130, 192, 15])
BODIES = st.binary(max_size=60) | st.builds(
    lambda words: b"".join(word.to_bytes(4) for word in words),
    st.lists(
        st.sampled_from([0, 1, TSN, TSN + 1, TSN - 1, 51, 50, 0x10033, 0xFFFFFFFF, 13 << 16 | 16])
        | st.integers(0, 0xFFFFFFFF),
        max_size=16,
    ),
)
CHUNKS = st.builds(chunk, KINDS, BODIES, flags=st.integers(0, 7))


@settings(deadline=None)
@given(st.lists(st.binary(max_size=1200), max_size=10), st.booleans())
def test_any_bytes_neither_raise_nor_leave_a_thing(packets: list[bytes], connected: bool) -> None:
    def attack(peer: Hostile) -> None:
        for data in packets:
            peer.ours.receive(data)

    hostile(attack, connected=connected)


@settings(deadline=None)
@given(st.lists(st.lists(CHUNKS, min_size=1, max_size=5), max_size=10), st.booleans())
def test_any_chunks_neither_raise_nor_leave_a_thing(
    packets: list[list[bytes]], connected: bool
) -> None:
    def attack(peer: Hostile) -> None:
        if connected:
            peer.say(peer.open())
            peer.ours.send("chat", "x" * 5000)
        for chunks in packets:
            is_init = chunks[0][0] == 1
            peer.ours.receive(packet(0 if is_init else peer.tag, b"".join(chunks)))

    hostile(attack, connected=connected)


def plausible(peer: Hostile, source: random.Random) -> bytes:
    """A chunk that is well-formed, and mostly of this association."""
    sent = peer.ours._association._local_tsn - 1
    number = source.choice((TSN, peer.tsn - 1, peer.tsn, peer.tsn + 1, source.getrandbits(32)))
    pairs = [(source.randrange(130), source.randrange(4)) for _ in range(source.randrange(4))]
    match source.randrange(10):
        case 0 | 1 | 2 | 3:
            data = source.choice((b"x", b"\x02", opening(b"label"), bytes(900)))
            return bytes(
                peer.data(
                    data,
                    stream=source.choice((0, 1, 1, 3, 200)),
                    sequence=source.choice((0, 1, 2, 65535)),
                    protocol=source.choice((DCEP, STRING, BINARY, EMPTY_STRING, 52)),
                    flags=source.randrange(8),
                    tsn=source.choice((None, None, peer.tsn + source.randint(-5, 600))),
                )
            )
        case 4 | 5:
            return sack(sent - source.randrange(3))
        case 6:
            streams = b"".join(struct.pack("!HH", *pair) for pair in pairs)
            return chunk(192, struct.pack("!L", number & 0xFFFFFFFF) + streams)
        case 7:
            streams = b"".join(struct.pack("!H", stream) for stream, _ in pairs)
            numbers = [number & 0xFFFFFFFF, source.getrandbits(32), (peer.tsn - 1) & 0xFFFFFFFF]
            return reconfig(13, struct.pack("!LLL", *numbers) + streams)
        case 8:
            return reconfig(16, struct.pack("!LL", number & 0xFFFFFFFF, source.randrange(8)))
        case _:
            return chunk(source.choice((4, 5, 9, 10, 11, 14, 15)), struct.pack("!HHL", 1, 8, 0))


@pytest.mark.parametrize("seed", range(100))
def test_histories_without_sense_raise_nothing_and_leave_nothing(
    seed: int, caplog: pytest.LogCaptureFixture
) -> None:
    source = random.Random(seed)

    async def main() -> None:
        peer = Hostile()
        peer.connect()
        peer.say(peer.open())
        for _ in range(50):
            if source.random() < 0.2:
                peer.ours.send("chat", "x" * source.choice((1, 3000)))
            if source.random() < 0.1:
                await asyncio.sleep(source.choice((0, 0.5, 4)))
            peer.say(*(plausible(peer, source) for _ in range(source.randint(1, 5))))
        peer.ours.close()
        await asyncio.sleep(0)

    run(main)
    assert caplog.records == []


def test_a_reset_of_streams_that_nobody_has_is_answered() -> None:
    def attack(peer: Hostile) -> None:
        reset = StreamResetOutgoingParam(TSN, 0, TSN - 1, [1, 3, 65535])
        peer.say(reconfig(13, bytes(reset)))

    peer = hostile(attack)
    assert isinstance(peer.chunk(ReconfigChunk), ReconfigChunk)
