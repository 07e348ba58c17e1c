"""Where a packet to a transceiver goes next, as the kernel knows it: route, then neighbour.

The kernel resolves addresses; this asks it, and makes it ask the wire when it does not know.
"""

import logging
import socket
from dataclasses import dataclass

from pyroute2 import AsyncIPRoute
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.rtnl import RTMGRP_NEIGH

__all__ = ["NEIGHBOUR_EVENTS", "NextHop", "next_hop"]

log = logging.getLogger(__name__)

NEIGHBOUR_EVENTS = RTMGRP_NEIGH
_NTF_USE = 1
_RTN_UNICAST = 1
_WELL_KNOWN = 0x02 | 0x40 | 0x80  # NUD_REACHABLE, NOARP, PERMANENT
_VALID = _WELL_KNOWN | 0x04 | 0x08 | 0x10  # and STALE, DELAY, PROBE: a MAC that may be sent to


@dataclass(frozen=True, slots=True)
class NextHop:
    """The link layer's addresses for packets to a transceiver, 6 bytes each."""

    ifindex: int
    mac: bytes
    source_mac: bytes


async def next_hop(netlink: AsyncIPRoute, address: str) -> NextHop | None:
    """The next hop towards *address*, or None while the kernel does not know it.

    Each call makes the kernel check the neighbour if its knowledge is old, as a packet of its own
    would: relayed packets never pass through the kernel's tables.
    """
    try:
        return await _ask(netlink, address)
    except NetlinkError as error:
        # No route, a route that forbids, an interface that went down or away meanwhile.
        log.debug("no next hop to %s: %s", address, error)
        return None


async def _ask(netlink: AsyncIPRoute, address: str) -> NextHop | None:
    routes = await netlink.route("get", dst=address)
    if routes[0]["type"] != _RTN_UNICAST:  # this host's own address, or a broadcast
        return None
    ifindex = routes[0].get_attr("RTA_OIF")
    gateway = routes[0].get_attr("RTA_GATEWAY") or address
    family = socket.AF_INET6 if ":" in gateway else socket.AF_INET
    source_mac = mac = None
    known_well = False
    async for link in await netlink.get_links(ifindex):
        if link["index"] == ifindex:
            source_mac = link.get_attr("IFLA_ADDRESS")
    async for neighbour in await netlink.get_neighbours(family=family, ifindex=ifindex):
        here = neighbour["ifindex"] == ifindex and neighbour.get_attr("NDA_DST") == gateway
        if here and neighbour["state"] & _VALID:
            mac = neighbour.get_attr("NDA_LLADDR")
            known_well = bool(neighbour["state"] & _WELL_KNOWN)
    # Not more often than it must be: with NTF_USE the kernel forgets an entry that somebody fixed.
    if not known_well:
        await netlink.neigh(
            "replace", dst=gateway, ifindex=ifindex, family=family, state=0, flags=_NTF_USE
        )
    if mac is None or source_mac is None:
        return None
    return NextHop(ifindex, _packed(mac), _packed(source_mac))


def _packed(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))
