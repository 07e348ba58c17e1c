"""RTCP packets (RFC 3550 section 6), bytes in and bytes out; and what a round trip takes.

Reports of reception and of sending, a name, a farewell. Feedback messages and what else clients
send are skipped.
"""

import struct
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = [
    "Bye",
    "Packet",
    "ReceiverReport",
    "ReportBlock",
    "RtcpError",
    "SenderReport",
    "SourceDescription",
    "build",
    "ntp",
    "parse",
    "round_trip",
]

_HEADER = struct.Struct("!BBH")
_SSRC = struct.Struct("!I")
_SENDER = struct.Struct("!QIII")
_BLOCK = struct.Struct("!IB3sIIII")
_SR, _RR, _SDES, _BYE = 200, 201, 202, 203
_CNAME = 1
_TO_NTP = 2_208_988_800  # s from 1900 to 1970
_MOST_BLOCKS = 31
_LEAST_LOST, _MOST_LOST = -(1 << 23), (1 << 23) - 1


class RtcpError(ValueError):
    """These bytes are no compound RTCP packet."""


@dataclass(frozen=True, slots=True)
class ReportBlock:
    """How one source is received (RFC 3550 section 6.4.1).

    *fraction_lost* since the last report, 0 to 1; *lost*: packets in all, less duplicates;
    *highest*: sequence number, with its cycles; *jitter* in ticks of the media's clock;
    *last_report*: the middle 32 bits of the last sender report's NTP time, 0 if there was none;
    *delay* since then, s.
    """

    ssrc: int
    fraction_lost: float
    lost: int
    highest: int
    jitter: int
    last_report: int
    delay: float


@dataclass(frozen=True, slots=True)
class SenderReport:
    """*ntp*: 64 bits, as `ntp` makes it; *timestamp*: the same instant, on the media's clock."""

    ssrc: int
    ntp: int
    timestamp: int
    packets: int
    octets: int
    blocks: tuple[ReportBlock, ...] = ()


@dataclass(frozen=True, slots=True)
class ReceiverReport:
    ssrc: int
    blocks: tuple[ReportBlock, ...] = ()


@dataclass(frozen=True, slots=True)
class SourceDescription:
    """The CNAME of one SSRC; other items are skipped."""

    ssrc: int
    cname: str


@dataclass(frozen=True, slots=True)
class Bye:
    ssrcs: tuple[int, ...]


Packet = SenderReport | ReceiverReport | SourceDescription | Bye


def ntp(unix: float) -> int:
    """The NTP timestamp of a time in seconds since 1970, 64 bits, the upper 32 for the seconds."""
    return int((unix + _TO_NTP) * 2**32) & 0xFFFFFFFFFFFFFFFF


def round_trip(block: ReportBlock, now_ntp: int) -> float | None:
    """From us to the client and back, without what it took to answer, s (RFC 3550 section 6.4.1).

    *block*: of a report that arrived at *now_ntp*. None if it tells of no report of ours.
    """
    if block.last_report == 0:
        return None
    elapsed = (now_ntp >> 16) - block.last_report & 0xFFFFFFFF
    if elapsed >= 0x80000000:  # its clock, or its word, is not to be trusted
        return 0.0
    return max(0.0, elapsed / 65536 - block.delay)


def parse(data: bytes) -> list[Packet]:
    """Read a compound packet, as it is after SRTCP. Raises RtcpError, and nothing else.

    One that is of reduced size (RFC 5506) will do as well. What is of another type is left out.
    """
    packets: list[Packet] = []
    at, end = 0, len(data)
    if not data:
        raise RtcpError("nothing")
    while at < end:
        if end - at < _HEADER.size:
            raise RtcpError("shorter than a header")
        first, kind, words = _HEADER.unpack_from(data, at)
        if first >> 6 != 2:
            raise RtcpError(f"version {first >> 6}")
        body = data[at + 4 : at + 4 + 4 * words]
        if len(body) < 4 * words:
            raise RtcpError("longer than the datagram")
        at += 4 + 4 * words
        if first & 0x20:
            if at < end:
                raise RtcpError("padding before the last packet")
            if not body or not 0 < body[-1] <= len(body):
                raise RtcpError("more padding than there is packet, or none")
            body = body[: -body[-1]]
        try:
            packets += _packets(kind, first & 0x1F, body)
        except struct.error:
            raise RtcpError(f"packet of type {kind} is shorter than it says") from None
    return packets


def _packets(kind: int, count: int, body: bytes) -> Iterable[Packet]:
    if kind == _SR:
        (ssrc,) = _SSRC.unpack_from(body)
        ntp, timestamp, packets, octets = _SENDER.unpack_from(body, 4)
        blocks = _blocks(body, 4 + _SENDER.size, count)
        return [SenderReport(ssrc, ntp, timestamp, packets, octets, blocks)]
    if kind == _RR:
        (ssrc,) = _SSRC.unpack_from(body)
        return [ReceiverReport(ssrc, _blocks(body, 4, count))]
    if kind == _BYE:
        return [Bye(struct.unpack_from(f"!{count}I", body))]
    if kind == _SDES:
        return _descriptions(body, count)
    return []


def _blocks(body: bytes, start: int, count: int) -> tuple[ReportBlock, ...]:
    return tuple(_block(body, start + number * _BLOCK.size) for number in range(count))


def _block(body: bytes, start: int) -> ReportBlock:
    ssrc, fraction, lost, highest, jitter, last, delay = _BLOCK.unpack_from(body, start)
    return ReportBlock(
        ssrc=ssrc,
        fraction_lost=fraction / 256,
        lost=int.from_bytes(lost, "big", signed=True),
        highest=highest,
        jitter=jitter,
        last_report=last,
        delay=delay / 65536,
    )


def _descriptions(body: bytes, count: int) -> list[Packet]:
    found: list[Packet] = []
    at = 0
    for _ in range(count):
        (ssrc,) = _SSRC.unpack_from(body, at)
        at += 4
        while at < len(body) and body[at]:
            kind, size = struct.unpack_from("!BB", body, at)
            text = body[at + 2 : at + 2 + size]
            if len(text) < size:
                raise RtcpError("a description is longer than its packet")
            if kind == _CNAME:
                found.append(SourceDescription(ssrc, text.decode(errors="replace")))
            at += 2 + size
        at = (at + 4) & ~3  # a zero at least, up to the next word
    return found


def build(packets: Iterable[Packet]) -> bytes:
    """A compound packet of these, in this order: a report comes first (RFC 3550 section 6.1).

    Numbers must be in their fields' ranges; counts that overflow are cut off as the RFC has it.
    """
    return b"".join(_built(packet) for packet in packets)


def _built(packet: Packet) -> bytes:
    if isinstance(packet, SenderReport):
        times = _SENDER.pack(
            packet.ntp, packet.timestamp, packet.packets & 0xFFFFFFFF, packet.octets & 0xFFFFFFFF
        )
        blocks = packet.blocks[:_MOST_BLOCKS]
        return _framed(_SR, len(blocks), _SSRC.pack(packet.ssrc) + times + _built_blocks(blocks))
    if isinstance(packet, ReceiverReport):
        blocks = packet.blocks[:_MOST_BLOCKS]
        return _framed(_RR, len(blocks), _SSRC.pack(packet.ssrc) + _built_blocks(blocks))
    if isinstance(packet, SourceDescription):
        name = packet.cname.encode()[:255]
        item = _SSRC.pack(packet.ssrc) + bytes((_CNAME, len(name))) + name
        return _framed(_SDES, 1, item + bytes(4 - len(item) % 4))
    return _framed(_BYE, len(packet.ssrcs), struct.pack(f"!{len(packet.ssrcs)}I", *packet.ssrcs))


def _framed(kind: int, count: int, body: bytes) -> bytes:
    return _HEADER.pack(0x80 | count, kind, len(body) // 4) + body


def _built_blocks(blocks: tuple[ReportBlock, ...]) -> bytes:
    return b"".join(
        _BLOCK.pack(
            block.ssrc,
            min(255, int(block.fraction_lost * 256)),
            max(_LEAST_LOST, min(_MOST_LOST, block.lost)).to_bytes(3, "big", signed=True),
            block.highest,
            block.jitter & 0xFFFFFFFF,
            block.last_report,
            max(0, min(0xFFFFFFFF, int(block.delay * 65536))),
        )
        for block in blocks
    )
