"""Where a packet to a transceiver goes next, as the kernel knows it: route, then neighbour.

The kernel resolves addresses; this asks it, and makes it ask the wire when it does not know.
"""

import logging
import socket
from dataclasses import dataclass
from typing import Any, NamedTuple

from pyroute2 import AsyncIPRoute
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.rtnl import RTMGRP_LINK, RTMGRP_NEIGH

from loader.links import Links

__all__ = ["EVENTS", "Neighbour", "NextHop", "Way", "neighbour_of", "way"]

log = logging.getLogger(__name__)

EVENTS = RTMGRP_NEIGH | RTMGRP_LINK
"""Groups of netlink events by which next hops change."""

_NTF_USE = 1
_RTN_UNICAST = 1
_WELL_KNOWN = 0x02 | 0x40 | 0x80  # NUD_REACHABLE, NOARP, PERMANENT
_VALID = _WELL_KNOWN | 0x04 | 0x08 | 0x10  # and STALE, DELAY, PROBE: a MAC that may be sent to
_MAX_MTU = 0xFFFF  # what a map holds


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


class Neighbour(NamedTuple):
    """Whom the kernel sends to on a link: the transceiver itself, or a gateway. *ifindex* is the
    VLAN interface's own, if it is one."""

    ifindex: int
    address: str


@dataclass(frozen=True, slots=True)
class Way:
    """The neighbour on the way to an address, and the next hop once the kernel knows its MAC."""

    neighbour: Neighbour
    hop: NextHop | None


def neighbour_of(message: Any) -> Neighbour:
    """Whom a neighbour event is about."""
    return Neighbour(message["ifindex"], message.get_attr("NDA_DST"))


async def way(netlink: AsyncIPRoute, links: Links, address: str) -> Way | None:
    """The way to *address*, or None if the kernel has none that XDP could go.

    Each call makes the kernel check the neighbour if its knowledge is old, as a packet of its own
    would: relayed packets never pass through the kernel's tables.
    """
    try:
        return await _ask(netlink, links, address)
    except NetlinkError as error:
        # No route, a route that forbids, an interface that went down or away meanwhile.
        log.debug("no way to %s: %s", address, error)
        return None


async def _ask(netlink: AsyncIPRoute, links: Links, address: str) -> Way | None:
    (route, *_) = await netlink.route("get", dst=address)
    if route["type"] != _RTN_UNICAST:  # this host's own address, or a broadcast
        return None
    neighbour = _neighbour(route, address)
    mac = await _mac(netlink, neighbour)
    link, carrier = links.get(neighbour.ifindex), links.carrier(neighbour.ifindex)
    if link is None or carrier is None or not link.mac:
        return None
    if mac is None:
        return Way(neighbour, None)
    ifindex, vlan = carrier
    mtu = min(_mtu_metric(route) or link.mtu, link.mtu, _MAX_MTU)
    return Way(neighbour, NextHop(ifindex, mac, link.mac, vlan, mtu))


def _neighbour(route: Any, address: str) -> Neighbour:
    via = route.get_attr("RTA_VIA")  # the gateway of another family: IPv4 by way of IPv6
    gateway = via["addr"] if via else route.get_attr("RTA_GATEWAY")
    return Neighbour(route.get_attr("RTA_OIF"), gateway or address)


def _mtu_metric(route: Any) -> int | None:
    metrics = route.get_attr("RTA_METRICS")
    return metrics.get_attr("RTAX_MTU") if metrics else None


async def _mac(netlink: AsyncIPRoute, neighbour: Neighbour) -> bytes | None:
    family = socket.AF_INET6 if ":" in neighbour.address else socket.AF_INET
    which = {"dst": neighbour.address, "ifindex": neighbour.ifindex, "family": family}
    state, mac = 0, None
    try:
        (entry, *_) = await netlink.neigh("get", **which)
    except NetlinkError as error:
        log.debug("%s is not known: %s", neighbour, error)
    else:
        state, mac = entry["state"], entry.get_attr("NDA_LLADDR")
    # Not more often than it must be: with NTF_USE the kernel forgets an entry that somebody fixed.
    if not state & _WELL_KNOWN:
        await netlink.neigh("replace", **which, state=0, flags=_NTF_USE)
    return bytes.fromhex(mac.replace(":", "")) if mac and state & _VALID else None
