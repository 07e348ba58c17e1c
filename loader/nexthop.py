"""Where a packet to a transceiver goes next, as the kernel knows it: route, then neighbour.

The kernel routes and resolves; this asks it, and has it keep asking the wire.
"""

import errno
import logging
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from pyroute2.netlink.rtnl import RTM_GETNEIGH, RTM_GETROUTE, RTM_NEWNEIGH

from loader.links import Links
from loader.rtnetlink import Rtnetlink, attribute, attributes

__all__ = [
    "UNKNOWN",
    "Entry",
    "Neighbour",
    "NextHop",
    "Reach",
    "Way",
    "entry",
    "entry_of",
    "has_address",
    "hop",
    "keep",
    "kept",
    "release",
    "way",
]

log = logging.getLogger(__name__)

_ROUTE = struct.Struct("=BBBBBBBBI")  # struct rtmsg
_NEIGHBOUR = struct.Struct("=B3xiHBB")  # struct ndmsg
_U32 = struct.Struct("=I")

_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_METRICS, _RTA_VIA = 1, 4, 5, 8, 18
_RTAX_MTU = 2
_RTN_UNICAST, _RTN_LOCAL = 1, 2
_NO_ROUTE = {  # none at all; one that is unreachable, prohibited, a black hole; the link is down
    *(errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EINVAL),
    *(errno.ENETDOWN, errno.ENODEV, errno.ESRCH),
}

_NDA_DST, _NDA_LLADDR, _NDA_PROTOCOL, _NDA_FLAGS_EXT = 1, 2, 12, 15
_NTF_USE, _NTF_EXT_MANAGED = 0x01, 0x01
_NUD_FAILED, _NUD_FIXED = 0x20, 0x40 | 0x80  # NOARP, PERMANENT
_NUD_VALID = 0x02 | 0x04 | 0x08 | 0x10 | _NUD_FIXED  # and REACHABLE, STALE, DELAY, PROBE
_CREATE, _REPLACE = 0x400, 0x100

_OURS = 83
"""By which the kernel tells neighbour entries that the agent has it keep (`proto 83`)."""

_MAX_MTU = 0xFFFF  # what a map holds


class Neighbour(NamedTuple):
    """Whom the kernel sends to on a link: the transceiver itself, or a gateway. *ifindex* is the
    VLAN interface's own, if it is one."""

    ifindex: int
    address: str


@dataclass(frozen=True, slots=True)
class Way:
    """The way to an address by the kernel's routes: the neighbour on it, and the route's own MTU,
    or 0 if it has none."""

    neighbour: Neighbour
    mtu: int = 0


class Reach(Enum):
    """What the kernel knows of a neighbour."""

    ASKED = "the kernel has no answer yet"
    KNOWN = "its MAC is known"
    FAILED = "the kernel has asked, and nobody answered"
    NO_ROOM = "the kernel's neighbour table is full"


@dataclass(frozen=True, slots=True)
class Entry:
    """A neighbour's entry in the kernel's table. *mac*: empty unless known; *kept*: the kernel
    keeps it fresh, and if *ours*, for us; *fixed*: somebody has set it, and it is not to be
    touched."""

    reach: Reach
    mac: bytes = b""
    kept: bool = False
    ours: bool = False
    fixed: bool = False

    @property
    def touchable(self) -> bool:
        """Whether `keep` and `release` may be used on it."""
        return not self.fixed and (self.ours or not self.kept)


UNKNOWN = Entry(Reach.ASKED)


@dataclass(frozen=True, slots=True)
class NextHop:
    """The link layer's side of the way to a transceiver.

    MAC addresses of 6 bytes each; *ifindex* of the interface that the frame leaves by, with *vlan*
    as its tag, or untagged if that is 0; *mtu*: bytes of an IP packet.
    """

    ifindex: int
    mac: bytes
    source_mac: bytes
    vlan: int = 0
    mtu: int = 0


def hop(links: Links, way: Way, mac: bytes) -> NextHop | None:
    """The next hop to a neighbour of that MAC, or None if XDP cannot send there now: see
    `Links.obstacle`."""
    ifindex = way.neighbour.ifindex
    link, carrier = links.get(ifindex), links.carrier(ifindex)
    if link is None or carrier is None or links.obstacle(ifindex):
        return None
    mtu = min(way.mtu or link.mtu, link.mtu, _MAX_MTU)
    return NextHop(carrier[0], mac, link.mac, carrier[1], mtu)


# Questions to the kernel.


def way(netlink: Rtnetlink, address: str) -> Way | None:
    """The way to *address*, or None if the kernel has none: no route, one that forbids, the
    interface down, or an address that is this host's own or a broadcast. Raises OSError if the
    kernel does not say."""
    found = _route(netlink, address)
    if found is None:
        return None
    kind, details = found
    if kind != _RTN_UNICAST or _RTA_OIF not in details:
        return None
    (ifindex,) = _U32.unpack(details[_RTA_OIF])
    if via := details.get(_RTA_VIA):  # the gateway of another family: IPv4 by way of IPv6
        gateway = _text(via[2:])
    else:
        gateway = _text(details[_RTA_GATEWAY]) if _RTA_GATEWAY in details else address
    metrics = attributes(details.get(_RTA_METRICS, b""))
    (mtu,) = _U32.unpack(metrics.get(_RTAX_MTU, bytes(4)))
    return Way(Neighbour(ifindex, gateway), mtu)


def has_address(netlink: Rtnetlink, address: str) -> bool:
    """Whether the kernel takes *address* for its own, on whatever interface: it answers ARP and
    neighbour discovery for it, and takes its packets. Raises OSError if it does not say."""
    found = _route(netlink, address)
    return found is not None and found[0] == _RTN_LOCAL


def entry(netlink: Rtnetlink, neighbour: Neighbour) -> Entry:
    """What the kernel knows of a neighbour. Raises OSError if it does not say."""
    try:
        found = netlink.get(RTM_GETNEIGH, _neighbour(neighbour))
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENODEV, errno.EINVAL):
            raise
        # Never heard of, or the interface went away meanwhile.
        log.debug("%s is not known: %s", neighbour, error)
        return UNKNOWN
    return entry_of(found.body)[1]


def keep(netlink: Rtnetlink, neighbour: Neighbour) -> Entry:
    """Have the kernel find the neighbour, and from then on keep its entry fresh by itself, which
    it does for packets of its own alone; relayed ones never pass through its tables. What it
    knows of it now.

    Not for an entry that is not `touchable`: the kernel would forget it.
    """
    extended = attribute(_NDA_FLAGS_EXT, _U32.pack(_NTF_EXT_MANAGED))
    why = _change(netlink, neighbour, 0, extended + attribute(_NDA_PROTOCOL, bytes([_OURS])))
    return Entry(Reach.NO_ROOM) if why == errno.ENOBUFS else entry(netlink, neighbour)


def release(netlink: Rtnetlink, neighbour: Neighbour) -> None:
    """Have the kernel treat an entry that it keeps for us like any other."""
    _change(netlink, neighbour, _NTF_USE, b"")


def kept(netlink: Rtnetlink) -> Iterator[Neighbour]:
    """Whom the kernel keeps for us, or for an agent before us."""
    for message in netlink.dump(RTM_GETNEIGH, _NEIGHBOUR.pack(0, 0, 0, 0, 0)):
        neighbour, found = entry_of(message.body)
        if neighbour is not None and found.ours:
            yield neighbour


def entry_of(body: bytes) -> tuple[Neighbour | None, Entry]:
    """A neighbour message: whom it is about (None of what is no IP address), and what it says."""
    family, ifindex, state, _flags, _type = _NEIGHBOUR.unpack_from(body)
    details = attributes(body, _NEIGHBOUR.size)
    if family not in (socket.AF_INET, socket.AF_INET6) or _NDA_DST not in details:
        return None, UNKNOWN
    neighbour = Neighbour(ifindex, _text(details[_NDA_DST]))
    (extended,) = _U32.unpack(details.get(_NDA_FLAGS_EXT, bytes(4)))
    mac, fixed = details.get(_NDA_LLADDR, b""), bool(state & _NUD_FIXED)
    kept = bool(extended & _NTF_EXT_MANAGED)
    ours = kept and details.get(_NDA_PROTOCOL) == bytes([_OURS])
    if state & _NUD_VALID and len(mac) == 6:
        return neighbour, Entry(Reach.KNOWN, mac, kept, ours, fixed)
    reach = Reach.FAILED if state & _NUD_FAILED else Reach.ASKED
    return neighbour, Entry(reach, b"", kept, ours, fixed)


def _route(netlink: Rtnetlink, address: str) -> tuple[int, dict[int, bytes]] | None:
    """The route's type and attributes, or None if there is none."""
    family, packed = _packed(address)
    request = _ROUTE.pack(family, 8 * len(packed), 0, 0, 0, 0, 0, 0, 0)
    try:
        found = netlink.get(RTM_GETROUTE, request + attribute(_RTA_DST, packed))
    except OSError as error:
        if error.errno not in _NO_ROUTE:
            raise
        log.debug("no route to %s: %s", address, error)
        return None
    return _ROUTE.unpack_from(found.body)[7], attributes(found.body, _ROUTE.size)


def _change(netlink: Rtnetlink, neighbour: Neighbour, flags: int, more: bytes) -> int:
    """0, or the number of the kernel's refusal."""
    request = _neighbour(neighbour, flags) + more
    try:
        netlink.change(RTM_NEWNEIGH, _CREATE | _REPLACE, request)
    except OSError as error:  # the interface is down, or went away meanwhile; an event will tell
        log.debug("%s cannot be looked for: %s", neighbour, error)
        return error.errno or 0
    return 0


def _neighbour(neighbour: Neighbour, flags: int = 0) -> bytes:
    family, packed = _packed(neighbour.address)
    head = _NEIGHBOUR.pack(family, neighbour.ifindex, 0, flags, 0)
    return head + attribute(_NDA_DST, packed)


def _packed(address: str) -> tuple[int, bytes]:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return family, socket.inet_pton(family, address)


def _text(packed: bytes) -> str:
    return socket.inet_ntop(socket.AF_INET6 if len(packed) == 16 else socket.AF_INET, packed)
