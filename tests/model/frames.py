"""Frames of every kind, from scapy's layers: made once as templates, and patched as bytes after
that, since a run sends hundreds of thousands."""

import random
import struct
from dataclasses import dataclass
from functools import cache

from scapy.layers.inet import IP, UDP, IPOption_NOP, IPOption_RR
from scapy.layers.inet6 import (
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
)
from scapy.packet import Packet, Raw

from tests.model import checksums
from tests.model.walk import MAPPED
from tests.packets import messages

__all__ = [
    "End",
    "Style",
    "chain",
    "error_frame",
    "ip_options",
    "message",
    "odd_stun",
    "resummed",
    "tagged",
    "udp_frame",
    "udp_packet",
]


@dataclass(frozen=True, slots=True)
class End:
    """Where a packet comes from or goes to; the address as 16 bytes."""

    address: bytes
    port: int

    @property
    def version(self) -> int:
        return 4 if self.address[:12] == MAPPED else 6

    def __str__(self) -> str:
        if self.version == 4:
            return ".".join(map(str, self.address[12:])) + f":{self.port}"
        return f"[{self.address.hex()}]:{self.port}"


@dataclass(frozen=True, slots=True)
class Style:
    """What an honest sender may choose. *checksum*: whole, partial, none, or wrong."""

    ttl: int = 64
    tos: int = 0
    id: int = 0x1234
    flags: int = 0x4000
    label: int = 0
    checksum: str = "whole"
    ip_off: int = 0
    """How far the IPv4 header's checksum is off."""
    trailer: bytes = b""


@cache
def _header(version: int) -> bytes:
    """IP and UDP header, as scapy builds them."""
    layer = IPv6(src="::2", dst="::3") if version == 6 else IP(src="0.0.0.2", dst="0.0.0.3")
    return bytes(layer / UDP(sport=1, dport=2))


@cache
def message(kind: str, ufrag: str = "") -> bytes:
    """A payload; STUN's transaction id is at 8 to 20, to be patched."""
    makers: dict[str, Packet] = {
        "success": messages.success(1),
        "error": messages.error(1),
        "check": messages.check(1),
        "indication": messages.indication(),
        "rtp": messages.rtp(),
        "dtls": messages.dtls(),
    }
    return bytes(messages.request(ufrag, transaction_id=1) if ufrag else makers[kind])


def udp_packet(source: End, destination: End, payload: bytes, style: Style | None = None) -> bytes:
    """An IP packet."""
    style = style or Style()
    version = source.version
    start = 0 if version == 6 else 12
    addresses = source.address[start:] + destination.address[start:]
    size = 8 + len(payload)
    udp = struct.pack("!4H", source.port, destination.port, size & 0xFFFF, 0) + payload
    found = 0
    if style.checksum == "partial":
        found = (checksums.total(addresses) + 17 + size) % 0xFFFF or 0xFFFF
    elif style.checksum != "none":
        found = checksums.transport(addresses, 17, udp, 6)
        if style.checksum == "wrong":
            found = (found + style.id + 1) % 0xFFFF
        found = found or 0xFFFF
    udp = udp[:6] + found.to_bytes(2, "big") + udp[8:]
    template = _header(version)
    if version == 6:
        first = (6 << 28 | style.tos << 20 | style.label).to_bytes(4, "big")
        return first + struct.pack("!HBB", size, template[6], style.ttl) + addresses + udp
    start_of_header = struct.pack(
        "!BBHHHBBH", template[0], style.tos, 20 + size, style.id, style.flags, style.ttl, 17, 0
    )
    right = checksums.of_ipv4(start_of_header + addresses)
    found = (right + style.ip_off) % 0xFFFF
    return start_of_header[:10] + found.to_bytes(2, "big") + addresses + udp


def link(mac: bytes, source_mac: bytes, version: int, tci: int | None) -> bytes:
    """The Ethernet header in front."""
    head = mac + source_mac
    if tci is not None:
        head += b"\x81\x00" + tci.to_bytes(2, "big")
    return head + (b"\x86\xdd" if version == 6 else b"\x08\x00")


def udp_frame(
    macs: tuple[bytes, bytes],
    source: End,
    destination: End,
    payload: bytes,
    *,
    tci: int | None = None,
    style: Style | None = None,
) -> bytes:
    """A frame to and from *macs*."""
    packet = udp_packet(source, destination, payload, style)
    trailer = style.trailer if style else b""
    return link(macs[0], macs[1], source.version, tci) + packet + trailer


def error_frame(
    macs: tuple[bytes, bytes],
    router: bytes,
    to: bytes,
    head: bytes,
    quote: bytes,
    *,
    tci: int | None = None,
    style: Style | None = None,
) -> bytes:
    """An ICMP error; *head*: its first 8 bytes but for the checksum."""
    style = style or Style()
    version = 4 if to[:12] == MAPPED else 6
    start = 0 if version == 6 else 12
    addresses = router[start:] + to[start:]
    text = head[:2] + b"\0\0" + head[4:] + quote
    if version == 6:
        found = checksums.transport(addresses, 58, text, 2)
    else:
        found = checksums.internet(text)
    if style.checksum == "wrong":
        found = (found + style.id + 1) % 0xFFFF
    text = text[:2] + found.to_bytes(2, "big") + text[4:]
    if version == 6:
        first = (6 << 28 | style.tos << 20 | style.label).to_bytes(4, "big")
        packet = first + struct.pack("!HBB", len(text), 58, style.ttl) + addresses + text
    else:
        ip = struct.pack(
            "!BBHHHBBH", 0x45, style.tos, 20 + len(text), style.id, style.flags, style.ttl, 1, 0
        )
        checksum = (checksums.of_ipv4(ip + addresses) + style.ip_off) % 0xFFFF
        packet = ip[:10] + checksum.to_bytes(2, "big") + addresses + text
    return link(macs[0], macs[1], version, tci) + packet + style.trailer


def tagged(frame: bytes, tci: int, protocol: bytes) -> bytes:
    """One more tag in front."""
    return frame[:12] + protocol + tci.to_bytes(2, "big") + frame[12:]


@cache
def _options() -> list[bytes]:
    built = [
        IP(options=[IPOption_NOP()]),
        IP(options=[IPOption_RR(routers=["192.0.2.1"])]),
        IP(options=[IPOption_NOP()] * 40),
    ]
    return [bytes(header)[20:] for header in built]


def ip_options(packet: bytes, dice: random.Random) -> bytes:
    """An IPv4 packet, with options."""
    options = dice.choice(_options())
    length = (int.from_bytes(packet[2:4], "big") + len(options)) & 0xFFFF
    header = bytes([0x45 + len(options) // 4, packet[1]]) + length.to_bytes(2, "big") + packet[4:20]
    header += options
    checksum = checksums.of_ipv4(header).to_bytes(2, "big")
    return header[:10] + checksum + header[12:] + packet[20:]


@cache
def _extensions() -> list[tuple[int, bytes]]:
    """Number and bytes of extension headers, whose first byte is what follows."""
    layers: list[tuple[int, Packet]] = [
        (0, IPv6ExtHdrHopByHop()),
        (60, IPv6ExtHdrDestOpt()),
        (43, IPv6ExtHdrRouting(addresses=["2001:db8::1"])),
        (44, IPv6ExtHdrFragment()),
        (44, IPv6ExtHdrFragment(m=1)),
        (44, IPv6ExtHdrFragment(offset=5)),
        (60, IPv6ExtHdrDestOpt(len=3) / Raw(bytes(24))),
        (51, IPv6ExtHdrDestOpt()),
    ]
    whole = []
    for number, layer in layers:
        octets = bytes(layer)
        size = 8 if number == 44 else 8 * (octets[1] + 1)
        whole.append((number, octets.ljust(size, b"\0")[:size]))
    return whole


def chain(packet: bytes, dice: random.Random) -> bytes:
    """An IPv6 packet, with extension headers between."""
    following, headers = packet[6], b""
    for _ in range(dice.choice([1, 1, 2, 3, 4, 5, 6])):
        number, octets = dice.choice(_extensions()[:-1] if dice.random() < 0.95 else _extensions())
        headers = bytes([following]) + octets[1:] + headers
        following = number
    length = (int.from_bytes(packet[4:6], "big") + len(headers)) & 0xFFFF
    return (
        packet[:4]
        + length.to_bytes(2, "big")
        + bytes([following])
        + packet[7:40]
        + headers
        + packet[40:]
    )


def odd_stun(dice: random.Random, ufrags: list[str], transaction: bytes) -> bytes:
    """A Binding Request with anything in it, right or wrong."""
    attributes = []
    for _ in range(dice.choice([0, 1, 2, 3, 11, 12, 13, 14])):
        attributes.append(_attribute(dice, 0x8022, dice.randbytes(dice.randrange(9))))
    for _ in range(dice.choice([0, 1, 1, 1, 2])):
        ufrag = dice.choice(ufrags).encode()
        value = dice.choice(
            [
                ufrag + b":clnt",
                ufrag + b":",
                ufrag,
                b":" + ufrag,
                ufrag + b":a:b:c",
                ufrag + b"\0:x",
                ufrag.swapcase() + b":x",
                ufrag[:-1] + b":x",
                b"u" * dice.choice([1, 2, 3, 31, 32, 33, 34, 64, 300]) + b":x",
                b"u" * dice.choice([1, 2, 3, 31, 32, 33, 34, 64, 300]),
                (ufrag + b":").ljust(dice.choice([40, 513, 763]), b"c"),
                b":",
                b"",
                b"a:",
                b":a",
            ]
        )
        whole = _attribute(dice, 6, value)
        if dice.random() < 0.1:
            whole = _attribute(dice, dice.choice([0x8022, 6]), whole)
        attributes.insert(dice.randrange(len(attributes) + 1), whole)
    body = b"".join(attributes)
    length, cookie = len(body), 0x2112A442
    match dice.randrange(20):
        case 0:
            length = (
                dice.choice([0, 4, length + 4, length - 4, length + 1, 0xFFFC, 0xFFFF]) & 0xFFFF
            )
        case 1:
            cookie ^= 1 << dice.randrange(32)
        case 2:
            body = body[: dice.randrange(len(body) + 1)]
        case _:
            pass
    type = dice.choice([1] * 12 + [0x101, 0x111, 0x11, 3, 0x0201, dice.randrange(0x400)])
    return struct.pack("!HHI", type, length, cookie) + transaction + body


def _attribute(dice: random.Random, type: int, value: bytes) -> bytes:
    length = len(value)
    if dice.random() < 0.05:
        length = dice.choice([length + 1, length + 4, max(0, length - 1), 0xFFFF, 0xFFFC, 16])
    return struct.pack("!HH", type, length) + value + bytes(-len(value) % 4)


def resummed(frame: bytes) -> bytes:
    """The frame with a right IPv4 header checksum, if it has such a header where one belongs."""
    at = 18 if frame[12:14] == b"\x81\x00" else 14
    if frame[at - 2 : at] != b"\x08\x00" or len(frame) < at + 20 or frame[at] & 15 < 5:
        return frame
    end = at + (frame[at] & 15) * 4
    found = checksums.of_ipv4(frame[at:end]).to_bytes(2, "big")
    return frame[: at + 10] + found + frame[at + 12 :]
