"""What the maps hold: `bpf/types.h` in ctypes, field by field. A test holds the two together.

Fields in network byte order are big-endian here, so that reading one gives its value. Addresses
are 16 bytes, IPv4 as IPv4-mapped IPv6.
"""

import ctypes
import ipaddress
from enum import IntEnum

__all__ = [
    "BUCKET_ENTRIES",
    "CHECKS",
    "DIRECTIONS",
    "HTTP_LENGTH",
    "INSIDE_ADDRESSES",
    "INTERFACES",
    "LAYOUT_LENGTH",
    "PIN_VERSION",
    "PORTS",
    "PORT_BITS",
    "REASON_ROOM",
    "REQUESTS",
    "ROUTE_NO_CHECKS",
    "ROUTE_SLOTS",
    "SLOT_BITS",
    "TICK",
    "TRANSCEIVERS",
    "TRANSCEIVER_DRAINING",
    "UFRAG_LENGTH",
    "VIPS",
    "About",
    "Address",
    "Book",
    "Bucket",
    "Direction",
    "FreeHead",
    "Handshake",
    "Inside",
    "Interface",
    "Link",
    "Mode",
    "NextHop",
    "Route",
    "Settings",
    "State",
    "ToClient",
    "ToTransceiver",
    "Traffic",
    "Transaction",
    "Transceiver",
    "Ufrag",
    "Vip",
    "packed_address",
    "text_address",
]

PIN_VERSION = "v3"  # of the shape of the maps; part of the path they are pinned at

SLOT_BITS = 20
PORT_BITS = 16
PORTS = 1 << PORT_BITS
"""Slots for each inside address; those outside the configured range are never opened."""

TRANSCEIVERS = 4096
VIPS = 16
INSIDE_ADDRESSES = 16
INTERFACES = 16
UFRAG_LENGTH = 32
ROUTE_SLOTS = 8
REQUESTS = 4
CHECKS = 2
BUCKET_ENTRIES = 14
REASON_ROOM = 64
HTTP_LENGTH = 112
LAYOUT_LENGTH = 32704
TRANSCEIVER_DRAINING = 1
ROUTE_NO_CHECKS = 1
TICK = 2**27 / 1e9
"""Seconds in one tick of the coarse time that slots hold."""

Address = ctypes.c_uint8 * 16
_Be16 = ctypes.c_uint16.__ctype_be__
_u8, _u16, _u32, _u64 = ctypes.c_uint8, ctypes.c_uint16, ctypes.c_uint32, ctypes.c_uint64


class State(IntEnum):
    """States of a slot."""

    FREE = 0
    PENDING = 1
    ESTABLISHED = 2
    CLOSING = 3


class Direction(IntEnum):
    """Indexes of the map `traffic`."""

    TO_TRANSCEIVER = 0
    TO_CLIENT = 1
    PASSED = 2


DIRECTIONS = len(Direction)


class Mode(IntEnum):
    """How an XDP program is attached (`XDP_ATTACHED_…` of linux/if_link.h)."""

    DETACHED = 0
    NATIVE = 1
    GENERIC = 2
    OFFLOADED = 3


class Vip(ctypes.Structure):
    _fields_ = [("address", Address), ("port", _Be16), ("number", _u16), ("unused", _u32)]


class Inside(ctypes.Structure):
    _fields_ = [("ipv4", Address), ("ipv6", Address), ("first_slot", _u32), ("used", _u32)]


class Link(ctypes.Structure):
    _fields_ = [("ifindex", _u32), ("vlan", _u16), ("unused", _u16)]


class Settings(ctypes.Structure):
    _fields_ = [
        ("seed", _u64 * 2),
        ("vips", Vip * VIPS),
        ("inside", Inside * INSIDE_ADDRESSES),
        ("inside_links", Link * INTERFACES),
        ("first_port", _u16),
        ("last_port", _u16),
        ("no_tx", _u32),
        ("unused", _u32),
        ("tick", _u32),
        ("jiffies", _u64),
    ]


class Interface(ctypes.Structure):
    _fields_ = [
        ("ifindex", _u32),
        ("vlan", _u16),
        ("mtu", _u16),
        ("inside", _u32),
        ("mode", _u32),
        ("name", _u8 * 16),
    ]


class Ufrag(ctypes.Structure):
    _fields_ = [("length", _u32), ("text", _u8 * (UFRAG_LENGTH + 4))]


class Route(ctypes.Structure):
    _fields_ = [
        ("lock", _u32),
        ("busy", _u32),
        ("id", _u32),
        ("transceiver", _u32),
        ("flags", _u32),
        ("slots", _u32 * ROUTE_SLOTS),
    ]


class NextHop(ctypes.Structure):
    _fields_ = [
        ("mac", _u8 * 6),
        ("source_mac", _u8 * 6),
        ("ifindex", _u32),
        ("vlan", _u16),
        ("mtu", _u16),
    ]


class Transceiver(ctypes.Structure):
    _fields_ = [
        ("address", Address),
        ("port", _Be16),
        ("resolved", _u16),
        ("hop", NextHop),
        ("instance", _u64),
        ("id", _u8 * 64),
        ("expires", _u64),
        ("drain_until", _u64),
        ("capacity", _u32),
        ("flags", _u32),
        ("http", _u8 * HTTP_LENGTH),
        ("drain_since", _u64),
    ]


class About(ctypes.Structure):
    _fields_ = [
        ("drain_until", _u64),
        ("draining", _u32),
        ("adoptions", _u32),
        ("upgrades", _u32),
        ("migrations", _u32),
        ("drain_since", _u64),
        ("source", _u8 * 24),
        ("length", _u32),
        ("filled", _u32),
        ("layout", _u8 * LAYOUT_LENGTH),
    ]


class ToTransceiver(ctypes.Structure):
    _fields_ = [
        ("check", _u32),
        ("state", _u8),
        ("unused", _u8),
        ("transceiver", _u16),
        ("udp_delta", _u16),
        ("ip_delta", _u16),
        ("seen", _u32),
        ("packets", _u64),
        ("bytes", _u64),
    ]


class ToClient(ctypes.Structure):
    _fields_ = [
        ("client", Address),
        ("client_port", _Be16),
        ("vip", _u8),
        ("state", _u8),
        ("transceiver", _u16),
        ("udp_delta", _u16),
        ("ip_delta", _u16),
        ("proven", _u8),
        ("unused", _u8),
        ("hop", NextHop),
        ("packets", _u64),
        ("bytes", _u64),
    ]


class Book(ctypes.Structure):
    _fields_ = [("route", _u32), ("next_route", _u32), ("since", _u32), ("unused", _u32)]


class Transaction(ctypes.Structure):
    _fields_ = [("id", _u8 * 12)]


class Handshake(ctypes.Structure):
    _fields_ = [
        ("lock", _u32),
        ("generation", _u32),
        ("requests", Transaction * REQUESTS),
        ("checks", Transaction * CHECKS),
        ("next_request", _u32),
        ("next_check", _u32),
        ("hop_request", Transaction),
        ("hop", NextHop),
    ]


class Bucket(ctypes.Structure):
    _fields_ = [("lock", _u32), ("overflowed", _u32), ("entries", _u32 * BUCKET_ENTRIES)]


class FreeHead(ctypes.Structure):
    _fields_ = [("lock", _u32), ("head", _u32)]


class Traffic(ctypes.Structure):
    _fields_ = [("packets", _u64), ("bytes", _u64)]


def packed_address(text: str) -> "ctypes.Array[ctypes.c_uint8]":
    """The 16 bytes by which maps hold an address. Raises ValueError for what is none."""
    address = ipaddress.ip_address(text)
    mapped = b"\0" * 10 + b"\xff\xff" if address.version == 4 else b""
    return Address.from_buffer_copy(mapped + address.packed)


def text_address(packed: bytes) -> str:
    """The reverse of `packed_address`."""
    address = ipaddress.IPv6Address(packed)
    return str(address.ipv4_mapped or address)
