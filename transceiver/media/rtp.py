"""RTP packets (RFC 3550 section 5.1, RFC 8285), bytes in and bytes out.

Each packet of each session goes through here, so a parsed one is a plain tuple.
"""

import struct

__all__ = ["HEADER", "Parsed", "RtpError", "build", "is_rtcp", "parse"]

HEADER = struct.Struct("!BBHII")
"""First byte, marker and payload type, sequence number, timestamp, SSRC."""

Parsed = tuple[int, bool, int, int, int, bytes]
"""Payload type, marker, sequence number, timestamp, SSRC, payload without padding."""

_LENGTH = struct.Struct("!H")


class RtpError(ValueError):
    """These bytes are no RTP packet."""


def is_rtcp(packet: bytes) -> bool:
    """Which of the two a packet on a shared port is (RFC 5761 section 4)."""
    return len(packet) > 1 and 192 <= packet[1] <= 223


def parse(packet: bytes) -> Parsed:
    """Read one packet, as it is after SRTP. Raises RtpError. Header extensions are skipped."""
    try:
        first, second, sequence, timestamp, ssrc = HEADER.unpack_from(packet)
    except struct.error:
        raise RtpError("shorter than a header") from None
    payload = packet[12:] if first == 0x80 else _payload(packet, first)
    return second & 0x7F, second > 0x7F, sequence, timestamp, ssrc, payload


def _payload(packet: bytes, first: int) -> bytes:
    """Of a packet with CSRCs, an extension or padding, by its first byte."""
    if first >> 6 != 2:
        raise RtpError(f"version {first >> 6}")
    start = 12 + 4 * (first & 0x0F)
    end = len(packet)
    if first & 0x10:
        if start + 4 > end:
            raise RtpError("no room for the header extension")
        start += 4 + 4 * _LENGTH.unpack_from(packet, start + 2)[0]
    if start > end:
        raise RtpError("the header is longer than the packet")
    if first & 0x20:
        padding = packet[-1] if end > start else 0
        if not 0 < padding <= end - start:
            raise RtpError("more padding than there is payload, or none")
        end -= padding
    return packet[start:end]


def build(
    payload: bytes,
    *,
    payload_type: int,
    sequence: int,
    timestamp: int,
    ssrc: int,
    marker: bool = False,
) -> bytes:
    """A packet with neither CSRCs nor extensions. Numbers must be in their fields' ranges."""
    second = payload_type | 0x80 if marker else payload_type
    return HEADER.pack(0x80, second, sequence, timestamp, ssrc) + payload
