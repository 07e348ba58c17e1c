"""Who talks to whom in the packet tests, and the frames between them: made by scapy, and taken
apart by plain arithmetic that shares nothing with the program.
"""

import ipaddress
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Packet, Raw

__all__ = [
    "CLIENT",
    "CLIENT6",
    "COMBINATIONS",
    "INSIDE",
    "INSIDE_ADDRESS",
    "INSIDE_ADDRESS6",
    "INSIDE_MAC",
    "OTHER_VIP",
    "PORTS",
    "SECOND_INSIDE_ADDRESS",
    "SECOND_INSIDE_ADDRESS6",
    "SECOND_PORTS",
    "STRANGER",
    "STRANGER6",
    "TRANSCEIVERS",
    "UDP_PROTOCOL",
    "UFRAG",
    "UFRAG6",
    "VIP",
    "VIP6",
    "VIPS",
    "X1",
    "X2",
    "X6",
    "Endpoint",
    "Layout",
    "Pair",
    "addresses_of",
    "client_frame",
    "correct_checksums",
    "frame_between",
    "in_vlan",
    "inside_endpoint",
    "internet_checksum",
    "layout",
    "packed",
    "partial",
    "quick_frame",
    "tagged",
    "transceiver_frame",
    "transport_checksum",
    "vip_for",
]

UDP_PROTOCOL = 17
_ETHERTYPES = {4: 0x0800, 6: 0x86DD}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where packets come from or go to, and the neighbour on the way there. *vlan*: 0 if the
    neighbour's frames are untagged."""

    address: str
    port: int
    mac: str
    vlan: int = 0

    @property
    def version(self) -> int:
        """4 or 6."""
        return 6 if ":" in self.address else 4


CLIENT = Endpoint("198.18.0.10", 50000, "02:00:00:00:00:10")
CLIENT6 = Endpoint("2001:db8:18::10", 50006, "02:00:00:00:00:16")
STRANGER = Endpoint("203.0.113.66", 6666, "02:00:00:00:00:66")
STRANGER6 = Endpoint("2001:db8:66::66", 6666, "02:00:00:00:00:66")
VIP = Endpoint("198.18.0.1", 3478, "02:00:00:00:00:01")
OTHER_VIP = Endpoint("198.18.0.2", 3479, "02:00:00:00:00:01")
VIP6 = Endpoint("2001:db8:18::1", 3478, "02:00:00:00:00:01")
VIPS = [VIP, OTHER_VIP, VIP6]
INSIDE_ADDRESS, INSIDE_ADDRESS6 = "198.18.1.1", "2001:db8:19::1"
SECOND_INSIDE_ADDRESS, SECOND_INSIDE_ADDRESS6 = "198.18.1.2", "2001:db8:19::2"
INSIDE = [(INSIDE_ADDRESS, INSIDE_ADDRESS6), (SECOND_INSIDE_ADDRESS, SECOND_INSIDE_ADDRESS6)]
INSIDE_MAC = "02:00:00:00:01:01"
X1 = Endpoint("198.18.1.11", 40000, "02:00:00:00:01:11")
X2 = Endpoint("198.18.1.12", 40000, "02:00:00:00:01:12")
X6 = Endpoint("2001:db8:19::16", 40006, "02:00:00:00:01:16")
TRANSCEIVERS = [X1, X2, X6]
UFRAG = "ufragOfX1/session"
UFRAG6 = "ufragOfX6/session"
PORTS = range(20000, 20016)
"""The slots of the first inside entry: their indexes are their ports."""
SECOND_PORTS = range((1 << 16) + PORTS.start, (1 << 16) + PORTS.stop)
"""The slots of the second."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A client, and the transceiver that its ufrag leads to."""

    client: Endpoint
    transceiver: Endpoint
    ufrag: str


COMBINATIONS = {
    "4-4": Pair(CLIENT, X1, UFRAG),
    "6-6": Pair(CLIENT6, X6, UFRAG6),
    "4-6": Pair(CLIENT, X6, UFRAG6),
    "6-4": Pair(CLIENT6, X1, UFRAG),
}
"""By IP version, the client's first."""


def vip_for(client: Endpoint) -> Endpoint:
    """The first VIP that the client can reach."""
    return VIP6 if client.version == 6 else VIP


def inside_endpoint(slot: int, version: int, *, vlan: int = 0) -> Endpoint:
    """The inside address and port that are the slot, for transceivers of that IP version."""
    addresses = INSIDE[slot >> 16]
    return Endpoint(addresses[version == 6], slot & 0xFFFF, INSIDE_MAC, vlan)


def client_frame(
    payload: Packet | bytes,
    *,
    client: Endpoint = CLIENT,
    vip: Endpoint | None = None,
    ip: Mapping[str, Any] | None = None,
    udp: Mapping[str, Any] | None = None,
) -> Packet:
    """A frame from *client* to *vip*; *ip* and *udp* override header fields."""
    return frame_between(client, vip or vip_for(client), payload, ip=ip, udp=udp)


def transceiver_frame(
    payload: Packet | bytes,
    *,
    to: int,
    transceiver: Endpoint = X1,
    ip: Mapping[str, Any] | None = None,
    udp: Mapping[str, Any] | None = None,
) -> Packet:
    """A frame from *transceiver* to the slot *to*."""
    inside = inside_endpoint(to, transceiver.version)
    return frame_between(transceiver, inside, payload, ip=ip, udp=udp)


def frame_between(
    source: Endpoint,
    destination: Endpoint,
    payload: Packet | bytes,
    *,
    ip: Mapping[str, Any] | None = None,
    udp: Mapping[str, Any] | None = None,
) -> Packet:
    """A UDP frame, in the source's VLAN; *ip* and *udp* override header fields."""
    frame = Ether(src=source.mac, dst=destination.mac)
    if source.vlan:
        frame /= Dot1Q(vlan=source.vlan)
    addresses = {"src": source.address, "dst": destination.address}
    if source.version == 6:
        frame /= IPv6(**{**addresses, **(ip or {})})
    else:
        frame /= IP(**{**addresses, "id": 0x1234, **(ip or {})})
    frame /= UDP(**{"sport": source.port, "dport": destination.port, **(udp or {})})
    return frame / Raw(bytes(payload))


def quick_frame(
    source: Endpoint, destination: Endpoint, payload: bytes, *, checksum: str = "whole"
) -> bytes:
    """The same without scapy, for tests that send thousands. *checksum*: whole, partial or none."""
    length = 8 + len(payload)
    addresses = packed(source.address) + packed(destination.address)
    udp = struct.pack("!4H", source.port, destination.port, length, 0)
    found = 0
    if checksum == "partial":
        found = _pseudo_sum(addresses, UDP_PROTOCOL, length)
    elif checksum == "whole":
        found = transport_checksum(addresses, UDP_PROTOCOL, udp + payload) or 0xFFFF
    if source.version == 6:
        ip = struct.pack("!IHBB", 6 << 28, length, UDP_PROTOCOL, 64) + addresses
    else:
        ip = struct.pack("!BBHHHBBH", 0x45, 0, 20 + length, 0x1234, 0, 64, UDP_PROTOCOL, 0)
        ip = ip[:10] + internet_checksum(ip + addresses).to_bytes(2, "big") + addresses
    tag = struct.pack("!HH", 0x8100, source.vlan) if source.vlan else b""
    link = _mac(destination.mac) + _mac(source.mac) + tag
    ethertype = _ETHERTYPES[source.version].to_bytes(2, "big")
    return link + ethertype + ip + udp[:6] + found.to_bytes(2, "big") + payload


def tagged(frame: Packet | bytes, tci: int, *, protocol: int = 0x8100) -> bytes:
    """The frame with one more tag in front: priority (3 bits), drop eligible (1), VLAN (12)."""
    octets = bytes(frame)
    return octets[:12] + struct.pack("!HH", protocol, tci) + octets[12:]


@dataclass(frozen=True, slots=True)
class Layout:
    """Where a frame's headers stand, as offsets."""

    tci: int | None
    """Of the 802.1Q tag; None if there is none."""
    ip: int
    version: int
    """4, 6, or 0 for what is neither."""
    transport: int
    """Right behind a plain IP header."""
    end: int
    """Of the IP packet, by its own header."""


def layout(frame: bytes) -> Layout:
    """Of a frame with plain headers: without IP options or extension headers."""
    tci, ip = None, 14
    if frame[12:14] == b"\x81\x00":
        tci, ip = int.from_bytes(frame[14:16], "big"), 18
    ethertype = int.from_bytes(frame[ip - 2 : ip], "big")
    if ethertype == _ETHERTYPES[4]:
        return Layout(tci, ip, 4, ip + 20, ip + int.from_bytes(frame[ip + 2 : ip + 4], "big"))
    if ethertype == _ETHERTYPES[6]:
        length = int.from_bytes(frame[ip + 4 : ip + 6], "big")
        return Layout(tci, ip, 6, ip + 40, ip + 40 + length)
    return Layout(tci, ip, 0, ip, len(frame))


def addresses_of(frame: bytes) -> bytes:
    """Source and destination address, packed, one behind the other."""
    at = layout(frame)
    size = 32 if at.version == 6 else 8
    return frame[at.transport - size : at.transport]


def correct_checksums(frame: bytes) -> tuple[int, int]:
    """The IP and UDP checksums that the frame ought to have, worked out from scratch; IPv6 has no
    header checksum: 0."""
    at = layout(frame)
    datagram = frame[at.transport : at.transport + 6] + b"\0\0" + frame[at.transport + 8 : at.end]
    of_udp = transport_checksum(addresses_of(frame), UDP_PROTOCOL, datagram) or 0xFFFF
    if at.version == 6:
        return 0, of_udp
    header = frame[at.ip : at.ip + 10] + b"\0\0" + frame[at.ip + 12 : at.transport]
    return internet_checksum(header), of_udp


def internet_checksum(octets: bytes) -> int:
    """RFC 1071, of bytes that are not all zero: a sum of 16-bit words with the carries added is
    the number that they make up, modulo 0xffff."""
    padded = octets + b"\0" * (len(octets) % 2)
    return -int.from_bytes(padded, "big") % 0xFFFF


def transport_checksum(addresses: bytes, protocol: int, segment: bytes) -> int:
    """Of UDP or ICMPv6, whose own field in *segment* is zero. *addresses*: source, destination."""
    pseudo = addresses + struct.pack("!II", len(segment), protocol)
    return internet_checksum(pseudo + segment)


def _pseudo_sum(addresses: bytes, protocol: int, length: int) -> int:
    return 0xFFFF - internet_checksum(addresses + struct.pack("!II", length, protocol))


def partial(frame: Packet | bytes) -> bytes:
    """The frame as an ordinary socket sends it over veth: the sum of the pseudo-header alone."""
    octets = bytes(frame)
    at = layout(octets)
    length = int.from_bytes(octets[at.transport + 4 : at.transport + 6], "big")
    found = _pseudo_sum(addresses_of(octets), UDP_PROTOCOL, length)
    place = at.transport + 6
    return octets[:place] + found.to_bytes(2, "big") + octets[place + 2 :]


def packed(address: str) -> bytes:
    """4 or 16 bytes."""
    return ipaddress.ip_address(address).packed


def _mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def in_vlan(endpoint: Endpoint, vlan: int) -> Endpoint:
    """The same, but its neighbour's frames are tagged."""
    return replace(endpoint, vlan=vlan)
