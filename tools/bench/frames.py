"""Frames as clients and transceivers send them, byte by byte: Ethernet, IP, UDP, STUN and RTP.

All are of one size, that of a voice packet, so that what differs between two measurements is not
how much was written. Behind `SHARED_TAIL` their payloads are the same.
"""

import ipaddress
import struct
from dataclasses import dataclass, replace

__all__ = [
    "CLIENT_MAC",
    "INSIDE_MAC",
    "PAYLOAD",
    "PUBLIC_MAC",
    "SHARED_TAIL",
    "TRANSCEIVER_MAC",
    "Endpoint",
    "checksum_words",
    "frame",
    "junk",
    "lying_stun",
    "media",
    "network_offset",
    "stun_request",
    "stun_success",
]

PAYLOAD = 100  # bytes of a UDP datagram: 20 ms of Opus at 32 kb/s, SRTP and its tag
SHARED_TAIL = 48
_TTL = 255
_COOKIE = 0x2112A442
_REQUEST, _SUCCESS = 0x0001, 0x0101

CLIENT_MAC, PUBLIC_MAC = bytes.fromhex("020000000010"), bytes.fromhex("020000000001")
INSIDE_MAC, TRANSCEIVER_MAC = bytes.fromhex("020000000101"), bytes.fromhex("020000000111")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An address and UDP port, and the MAC address on the way there."""

    address: str
    port: int
    mac: bytes

    @property
    def packed(self) -> bytes:
        return ipaddress.ip_address(self.address).packed

    def at(self, port: int) -> "Endpoint":
        """The same at another port."""
        return replace(self, port=port)


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("!HH", kind, len(value)) + value + b"\0" * (-len(value) % 4)


# PRIORITY, ICE-CONTROLLED, MESSAGE-INTEGRITY and FINGERPRINT. The relay reads none of them.
_REST = (
    _attribute(0x0024, bytes.fromhex("6e7f1eff"))
    + _attribute(0x8029, bytes(range(8)))
    + _attribute(0x0008, bytes(range(64, 84)))
    + _attribute(0x8028, bytes.fromhex("a5b6c7d8"))
)


def _stun(kind: int, transaction: int, attributes: bytes) -> bytes:
    return (
        struct.pack("!HHI", kind, len(attributes), _COOKIE)
        + b"benchack"
        + struct.pack("<I", transaction)  # as the generator writes it
        + attributes
    )


def stun_request(ufrag: str, transaction: int = 0) -> bytes:
    """A Binding Request with the attributes of a browser's; *ufrag* has 16 characters."""
    username = _attribute(0x0006, f"{ufrag}:clnt".encode())
    return _sized(_stun(_REQUEST, transaction, username + _REST))


def stun_success(transaction: int = 0) -> bytes:
    """A Binding Success Response; SOFTWARE stands where a request has USERNAME."""
    return _sized(_stun(_SUCCESS, transaction, _attribute(0x8022, b"bench".ljust(24)) + _REST))


def lying_stun() -> bytes:
    """A Binding Request whose first attribute is longer than the message."""
    message = bytearray(stun_request("no ufrag at all!"))
    struct.pack_into("!H", message, 22, 2000)
    return bytes(message)


def media() -> bytes:
    """An RTP packet."""
    return _sized(struct.pack("!BBHII", 0x80, 111, 7, 960, 1).ljust(SHARED_TAIL, b"\x55") + _REST)


def junk() -> bytes:
    """What RFC 7983 knows as nothing."""
    return _sized(b"\xff".ljust(SHARED_TAIL, b"\xee") + _REST)


def _sized(payload: bytes) -> bytes:
    if len(payload) != PAYLOAD:
        raise ValueError(f"a payload of {len(payload)} bytes, not {PAYLOAD}")
    return payload


def checksum_words(octets: bytes) -> int:
    """The sum of the 16-bit words as they stand in memory, not folded; of an even length."""
    return sum(struct.unpack(f"<{len(octets) // 2}H", octets))


def _checksum(total: int) -> int:
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def network_offset(octets: bytes) -> tuple[bool, int]:
    """Of a frame: whether it is IPv6, and where UDP begins."""
    ipv6 = octets[12:14] == b"\x86\xdd"
    return ipv6, 54 if ipv6 else 34


def pseudo_header(octets: bytes) -> bytes:
    """What the UDP checksum covers besides the datagram."""
    ipv6, udp = network_offset(octets)
    addresses = octets[22:54] if ipv6 else octets[26:34]
    return addresses + struct.pack("!HH", 17, len(octets) - udp)


def frame(source: Endpoint, destination: Endpoint, payload: bytes, *, lie: int = 0) -> bytes:
    """A frame with right checksums; *lie* is added to the length that UDP claims."""
    length = 8 + len(payload)
    udp = struct.pack("!HHHH", source.port, destination.port, length + lie, 0) + payload
    addresses = source.packed + destination.packed
    if len(addresses) == 8:
        kind = 0x0800
        ip = bytearray(struct.pack("!BBHHHBBH", 0x45, 0, 20 + length, 0, 0x4000, _TTL, 17, 0))
        ip += addresses
        struct.pack_into("<H", ip, 10, _checksum(checksum_words(bytes(ip))))
    else:
        kind = 0x86DD
        ip = bytearray(struct.pack("!IHBB", 0x60000000, length, 17, _TTL) + addresses)
    made = bytearray(destination.mac + source.mac + struct.pack("!H", kind) + ip + udp)
    _, offset = network_offset(bytes(made))
    covered = pseudo_header(bytes(made)) + udp
    struct.pack_into("<H", made, offset + 6, _checksum(checksum_words(covered)) or 0xFFFF)
    return bytes(made)
