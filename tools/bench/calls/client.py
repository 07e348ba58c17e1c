"""One client of the bench: offers audio, checks, secures, speaks and counts what it hears. No I/O.

It does what Chromium does, and as little of everything as may be: Chromium's offer of audio, ICE in
the controlling role with one host candidate, DTLS in whichever role it is left, one SRTP packet
each 20 ms (with its audio level, if the answer has taken that), a sender report a second, a check
each 2.5 s. What it hears is decrypted, counted and thrown away.
"""

import random
import secrets
import time
from collections.abc import Sequence
from enum import StrEnum

from loader.errors import ShuntError
from transceiver import stun
from transceiver.dtls import Certificate, Dtls, DtlsState
from transceiver.ice import Credentials
from transceiver.media import rtcp, rtp
from transceiver.srtp import Srtp, SrtpError
from transceiver.stun import Address

__all__ = ["Answer", "Call", "State"]

_PAYLOAD_TYPE = 111
_FRAME_TICKS = 960
_FIRST_CHECKS = 0.05  # s between checks until one is answered, as libwebrtc has it
_LATER_CHECKS = 2.5
_PRIORITY = 126 << 24 | 65535 << 8 | 255
_REPORT_EVERY = 50  # packets
_AUDIO_LEVEL = "urn:ietf:params:rtp-hdrext:ssrc-audio-level"
_LEVEL = 0x80 | 30  # voice, -30 dBov (RFC 6464)


class State(StrEnum):
    POSTING = "posting"
    CHECKING = "checking"
    SECURING = "securing"
    CONNECTED = "connected"
    CLOSED = "closed"


class Answer:
    """What a client needs to know of an SDP answer."""

    def __init__(self, text: str) -> None:
        """Raises ShuntError if something is missing, or audio was refused."""
        self.level_id: int | None = None
        """Of the header extension for the audio level (RFC 8285), if it was taken."""
        lines: dict[str, str] = {}
        candidates: list[Address] = []
        for line in text.splitlines():
            name, _, value = line.partition(":")
            if name == "a=candidate":
                fields = value.split()
                if fields[2].lower() == "udp" and fields[7] == "host":
                    candidates.append((fields[4], int(fields[5])))
            elif name == "a=fingerprint":
                if value.lower().startswith("sha-256 "):
                    lines.setdefault(name, value[8:])
            elif name == "a=extmap" and value.endswith(f" {_AUDIO_LEVEL}"):
                self.level_id = int(value.split()[0].partition("/")[0])
            elif line.startswith("m=audio 0 "):
                raise ShuntError("the bench's audio was refused")
            else:
                lines.setdefault(name, value)
        try:
            self.remote = Credentials(lines["a=ice-ufrag"], lines["a=ice-pwd"])
            self.fingerprint = bytes.fromhex(lines["a=fingerprint"].replace(":", ""))
            self.is_active = lines["a=setup"].strip() == "active"
            self.destination = candidates[0]
        except (KeyError, IndexError) as error:
            raise ShuntError(
                f"an answer that the bench cannot use lacks {error}:\n{text}"
            ) from None


class Call:
    """One call, from its offer on. Times are of `time.monotonic`, seconds.

    *source*: where its datagrams come from. *packets*: what it says, again and again.
    """

    def __init__(
        self, certificate: Certificate, *, source: Address, packets: Sequence[bytes]
    ) -> None:
        self.state = State.POSTING
        self.began_at = 0.0
        self.connected_at = 0.0
        self.heard = 0
        """RTP packets that came and were authentic."""
        self.spoken = 0
        """RTP packets that went."""
        self.destination: Address = ("", 0)
        self.outgoing: list[bytes] = []
        """What is to be sent and was not taken yet; media is not among it."""
        self.farewell: list[bytes] = []
        self.nominates = True
        """Whether its checks say USE-CANDIDATE."""
        self._certificate = certificate
        self._local = Credentials.fresh()
        self._packets = packets
        self._ssrc = secrets.randbits(32)
        self._sequence = secrets.randbits(15)
        self._timestamp = secrets.randbits(31)
        self._first_byte = 0x80
        self._extension = b""
        self._check_at = 0.0
        self._transactions: set[bytes] = set()
        self.offer = _offer(self._local, certificate.fingerprint, source, self._ssrc)

    def answered(self, sdp: str, now: float) -> None:
        """The answer to the offer has come. Raises ShuntError."""
        answer = Answer(sdp)
        self._remote = answer.remote
        self.destination = answer.destination
        if answer.level_id is not None:
            self._first_byte |= 0x10
            self._extension = bytes((0xBE, 0xDE, 0, 1, answer.level_id << 4, _LEVEL, 0, 0))
        self._dtls = Dtls(
            self._certificate,
            is_client=not answer.is_active,
            fingerprints=[("sha-256", answer.fingerprint)],
        )
        self.state = State.CHECKING
        self._is_client = not answer.is_active
        if answer.is_active:  # its hello may come before its answer to our check
            self._dtls.start(now)
        self.check(now)

    def receive(self, data: bytes, now: float) -> None:
        """A datagram has come."""
        first = data[0]
        if first > 127:
            if self.state is State.CONNECTED:
                self._hear(data)
        elif first > 19:
            if self.state in (State.CHECKING, State.SECURING, State.CONNECTED):
                self._dtls.receive(data, now)
                self._follow_dtls(now)
        elif first < 4:
            self._receive_stun(data, now)

    def poll(self, now: float) -> None:
        """Do what is due."""
        if self.state in (State.POSTING, State.CLOSED):
            return
        if now >= self._check_at:
            self.check(now)
        due = self._dtls.next_deadline()
        if due is not None and now >= due:
            self._dtls.poll(now)
            self._follow_dtls(now)

    def next_deadline(self) -> float | None:
        if self.state in (State.POSTING, State.CLOSED):
            return None
        due = self._dtls.next_deadline()
        return self._check_at if due is None else min(due, self._check_at)

    def speak(self) -> bytes:
        """The next packet of what it says, encrypted. Once connected, every 20 ms."""
        payload = self._packets[self.spoken % len(self._packets)]
        self._sequence = (self._sequence + 1) & 0xFFFF
        self._timestamp = (self._timestamp + _FRAME_TICKS) & 0xFFFFFFFF
        self.spoken += 1
        if self.spoken % _REPORT_EVERY == 0:
            self.outgoing.append(self._srtp.protect_rtcp(self._report()))
        header = rtp.HEADER.pack(
            self._first_byte, _PAYLOAD_TYPE, self._sequence, self._timestamp, self._ssrc
        )
        return self._srtp.protect(header + self._extension + payload)

    def hang_up(self) -> None:
        """As a page does that is closed: `farewell`, a close_notify, and nothing after it."""
        if self.state in (State.SECURING, State.CONNECTED):
            self._dtls.close()
            self.farewell = self._dtls.take_datagrams()
        self.state = State.CLOSED

    def _receive_stun(self, data: bytes, now: float) -> None:
        if self.state in (State.POSTING, State.CLOSED):
            return
        try:
            message = stun.parse(data)
        except stun.StunError:
            return
        if message.cls is stun.Class.REQUEST:
            self.outgoing.append(
                stun.binding_success(
                    message.transaction, mapped=self.destination, password=self._local.password
                )
            )
        elif message.cls is stun.Class.SUCCESS and message.transaction in self._transactions:
            self._transactions.clear()
            self._check_at = now + _LATER_CHECKS * random.uniform(0.8, 1.2)
            if self.state is State.CHECKING:
                self.state = State.SECURING
                if self._is_client:
                    self._dtls.start(now)
                self._follow_dtls(now)

    def check(self, now: float) -> None:
        """Check the path now, and not when that is due."""
        transaction = secrets.token_bytes(12)
        self._transactions.add(transaction)
        self.outgoing.append(
            stun.binding_request(
                transaction,
                username=f"{self._remote.ufrag}:{self._local.ufrag}",
                password=self._remote.password,
                priority=_PRIORITY,
                controlling=1,
                use_candidate=self.nominates,
            )
        )
        first = self.state is State.CHECKING
        self._check_at = now + (_FIRST_CHECKS if first else _LATER_CHECKS)

    def _follow_dtls(self, now: float) -> None:
        self.outgoing += self._dtls.take_datagrams()
        if self._dtls.state is DtlsState.CONNECTED and self.state is not State.CONNECTED:
            self._srtp = Srtp(self._dtls.keys())
            self.state = State.CONNECTED
            self.connected_at = now
        elif self._dtls.state in (DtlsState.CLOSED, DtlsState.FAILED):
            self.state = State.CLOSED

    def _hear(self, data: bytes) -> None:
        try:
            if rtp.is_rtcp(data):
                self._srtp.unprotect_rtcp(data)
            else:
                self._srtp.unprotect(data)
                self.heard += 1
        except SrtpError:
            return

    def _report(self) -> bytes:
        report = rtcp.SenderReport(
            ssrc=self._ssrc,
            ntp=rtcp.ntp(time.time()),
            timestamp=self._timestamp,
            packets=self.spoken,
            octets=0,
        )
        return rtcp.build([report, rtcp.SourceDescription(self._ssrc, "bench")])


def _offer(local: Credentials, fingerprint: str, source: Address, ssrc: int) -> str:
    """Chromium's, of one microphone; *source* is its only candidate."""
    host, port = source
    return "\r\n".join(
        [
            "v=0",
            "o=- 4611731400430051336 2 IN IP4 127.0.0.1",
            "s=-",
            "t=0 0",
            "a=group:BUNDLE 0",
            "a=extmap-allow-mixed",
            "a=msid-semantic: WMS bench",
            f"m=audio {port} UDP/TLS/RTP/SAVPF {_PAYLOAD_TYPE} 63 9 0 8 13 110 126",
            f"c=IN IP4 {host}",
            "a=rtcp:9 IN IP4 0.0.0.0",
            f"a=candidate:1 1 udp {_PRIORITY} {host} {port} typ host generation 0 network-id 1",
            f"a=ice-ufrag:{local.ufrag}",
            f"a=ice-pwd:{local.password}",
            "a=ice-options:trickle",
            f"a=fingerprint:sha-256 {fingerprint}",
            "a=setup:actpass",
            "a=mid:0",
            f"a=extmap:1 {_AUDIO_LEVEL}",
            "a=extmap:2 http://www.webrtc.org/experiments/rtp-hdrext/abs-send-time",
            "a=extmap:3 http://www.ietf.org/id/draft-holmer-rmcat-transport-wide-cc-extensions-01",
            "a=extmap:4 urn:ietf:params:rtp-hdrext:sdes:mid",
            "a=sendrecv",
            "a=msid:bench microphone",
            "a=rtcp-mux",
            "a=rtcp-rsize",
            f"a=rtpmap:{_PAYLOAD_TYPE} opus/48000/2",
            f"a=rtcp-fb:{_PAYLOAD_TYPE} transport-cc",
            f"a=fmtp:{_PAYLOAD_TYPE} minptime=10;useinbandfec=1",
            "a=rtpmap:63 red/48000/2",
            f"a=fmtp:63 {_PAYLOAD_TYPE}/{_PAYLOAD_TYPE}",
            "a=rtpmap:9 G722/8000",
            "a=rtpmap:0 PCMU/8000",
            "a=rtpmap:8 PCMA/8000",
            "a=rtpmap:13 CN/8000",
            "a=rtpmap:110 telephone-event/48000",
            "a=rtpmap:126 telephone-event/8000",
            f"a=ssrc:{ssrc} cname:bench",
            f"a=ssrc:{ssrc} msid:bench microphone",
            "",
        ]
    )
