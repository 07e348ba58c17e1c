"""What the kernel knows of links, ways and neighbours, and word of what changes: the agent's ear at
netlink."""

import asyncio
import errno
import ipaddress
import socket
import struct
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import NamedTuple

from pyroute2.netlink.rtnl import (
    RTM_DELADDR,
    RTM_DELLINK,
    RTM_DELNEIGH,
    RTM_DELROUTE,
    RTM_GETLINK,
    RTM_NEWADDR,
    RTM_NEWLINK,
    RTM_NEWNEIGH,
    RTM_NEWROUTE,
    RTNLGRP_IPV4_IFADDR,
    RTNLGRP_IPV4_ROUTE,
    RTNLGRP_IPV4_RULE,
    RTNLGRP_IPV6_IFADDR,
    RTNLGRP_IPV6_ROUTE,
    RTNLGRP_IPV6_RULE,
    RTNLGRP_LINK,
    RTNLGRP_NEIGH,
)
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg

from loader import nexthop
from loader.links import Link, Links
from loader.nexthop import Entry, Neighbour, Way
from loader.pace import Pace
from loader.rtnetlink import Message, Rtnetlink, attribute, attributes, group

__all__ = ["EVERYWHERE", "Change", "Network", "News", "Span", "number_of"]

_RTNLGRP_NEXTHOP = 32
_EVENTS = group(
    *(RTNLGRP_LINK, RTNLGRP_NEIGH, RTNLGRP_IPV4_IFADDR, RTNLGRP_IPV6_IFADDR),
    *(RTNLGRP_IPV4_ROUTE, RTNLGRP_IPV6_ROUTE, RTNLGRP_IPV4_RULE, RTNLGRP_IPV6_RULE),
    _RTNLGRP_NEXTHOP,
)
_LINK = struct.Struct("=BxHiII")  # struct ifinfomsg
_LINK_EXTENT = attribute(29, struct.pack("=I", 8))  # IFLA_EXT_MASK: no statistics
_ROUTE, _RTA_DST = struct.Struct("=BBBBBBBBI"), 1
_ADDRESS, _IFA_ADDRESS, _IFA_LOCAL = struct.Struct("=BBBBi"), 1, 2

_AT_ONCE = 256  # events that are read before others on the loop have their turn
_LINKS_AT_ONCE = 16  # likewise
_REMEMBERED = 1024  # spans; of more, only that they are many
_MAPPED = 0xFFFF << 32  # IPv4 addresses as numbers among the IPv6 ones, as IPv4-mapped


class Span(NamedTuple):
    """Addresses, as numbers (see `number_of`) from the *first* to the *last*."""

    first: int
    last: int


EVERYWHERE = Span(0, 2**128 - 1)


def number_of(address: str) -> int:
    """An address as a number: an IPv4 one is its IPv4-mapped IPv6 address's."""
    number = int(ipaddress.ip_address(address))
    return number if ":" in address else _MAPPED | number


class Change(NamedTuple):
    """A link as it was and as it is; None if there was, or is, none of its index."""

    before: Link | None
    after: Link | None


@dataclass(frozen=True, slots=True)
class News:
    """What changed: *links*, by ifindex; *neighbours*; and by routes, rules and addresses the ways
    to all that is in these *spans*, or that goes by these *exits* (ifindexes). If some of it was
    *missed*, nothing is known of what else changed."""

    links: dict[int, Change] = field(default_factory=dict)
    neighbours: frozenset[Neighbour] = frozenset()
    spans: frozenset[Span] = frozenset()
    exits: frozenset[int] = frozenset()
    missed: bool = False


class Network:
    """The network namespace of the thread that makes this.

    *heeds* is asked of every neighbour that the kernel tells of, with what it says now (None: the
    entry is gone), whether that is news: of thousands, few are on the way to a transceiver.
    """

    def __init__(self) -> None:
        self.links = Links()
        """As of the last `look` or `news`."""
        self.heeds: Callable[[Neighbour, Entry | None], bool] = lambda _neighbour, _entry: True
        self.overflows = 0
        """How often the kernel told more than was read in time."""
        self._netlink = Rtnetlink()
        # What nobody has asked about yet.
        self._told = asyncio.Event()
        self._told_of_links: set[int] = set()
        self._told_of_neighbours: set[Neighbour] = set()
        self._told_of_spans: set[Span] = set()
        self._told_of_exits: set[int] = set()
        self._missed_some = False

    def close(self) -> None:
        self._netlink.close()

    def __enter__(self) -> "Network":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # Questions.

    async def look(self) -> dict[int, Change]:
        """Read all links; those that are not as they were, by ifindex."""
        request = _LINK.pack(socket.AF_UNSPEC, 0, 0, 0, 0) + _LINK_EXTENT
        read = []
        for number, message in enumerate(self._netlink.dump(RTM_GETLINK, request)):
            if number % _LINKS_AT_ONCE == 0:
                await asyncio.sleep(0)
            read.append(_link_message(message))
        before, self.links = self.links, Links()
        self.links.replace(read)
        changes = {
            ifindex: Change(before.get(ifindex), self.links.get(ifindex))
            for ifindex in before.indexes() | self.links.indexes()
        }
        return _real(changes)

    def look_at(self, ifindex: int) -> Change:
        """Read one link. Raises OSError if the kernel does not say."""
        before = self.links.get(ifindex)
        request = _LINK.pack(socket.AF_UNSPEC, 0, ifindex, 0, 0) + _LINK_EXTENT
        try:
            message = self._netlink.get(RTM_GETLINK, request)
        except OSError as error:
            if error.errno != errno.ENODEV:
                raise
            self.links.forget(ifindex)
        else:
            self.links.take(_link_message(message))
        return Change(before, self.links.get(ifindex))

    def way(self, address: str) -> Way | None:
        """The way to an address; see `nexthop`, as for those that follow."""
        return nexthop.way(self._netlink, address)

    def has_address(self, address: str) -> bool:
        """Whether an address is the kernel's own, on whatever interface."""
        return nexthop.has_address(self._netlink, address)

    def entry(self, neighbour: Neighbour) -> Entry:
        """What the kernel knows of a neighbour."""
        return nexthop.entry(self._netlink, neighbour)

    def keep(self, neighbour: Neighbour) -> Entry:
        """Have the kernel find a neighbour, and keep its entry fresh; see `nexthop`."""
        return nexthop.keep(self._netlink, neighbour)

    def release(self, neighbours: Iterable[Neighbour]) -> None:
        """Undo `keep`."""
        for neighbour in neighbours:
            nexthop.release(self._netlink, neighbour)

    def kept(self) -> list[Neighbour]:
        """Whom the kernel keeps fresh for us, or for an agent before us."""
        return list(nexthop.kept(self._netlink))

    # News.

    async def watch(self) -> None:
        """Forever: gather `news`. Of a storm, reads as much as half a CPU can: the rest waits in
        the kernel, and what does not fit there is `missed`."""
        pace = Pace()
        with Rtnetlink(_EVENTS) as events:
            self.miss()  # whatever changed before
            while True:
                await _readable(events)
                began = time.perf_counter()
                try:
                    told = events.told(_AT_ONCE)
                except OSError as error:
                    if error.errno != errno.ENOBUFS:
                        raise
                    self.overflows += 1
                    while events.skip(_AT_ONCE):
                        await asyncio.sleep(pace.rest(began=began, ended=time.perf_counter()))
                        began = time.perf_counter()
                    self.miss()
                else:
                    for message in told:
                        self._tell(message)
                await asyncio.sleep(pace.rest(began=began, ended=time.perf_counter()))

    async def news(self, *, within: float) -> News:
        """What has changed since the last call. Waits for it for *within* seconds at most. Raises
        OSError if the kernel does not say: then as if all was `missed`."""
        with suppress(TimeoutError):
            async with asyncio.timeout(within):
                await self._told.wait()
        self._told.clear()
        links, self._told_of_links = self._told_of_links, set()
        neighbours, self._told_of_neighbours = self._told_of_neighbours, set()
        spans, self._told_of_spans = self._told_of_spans, set()
        exits, self._told_of_exits = self._told_of_exits, set()
        missed, self._missed_some = self._missed_some, False
        if missed:
            return News(missed=True)
        # Of a link, the event says only which: it may be old, or say but half.
        changes = {ifindex: self.look_at(ifindex) for ifindex in links}
        return News(
            _real(changes),
            frozenset(neighbours),
            frozenset(spans),
            frozenset(exits),
        )

    def _tell(self, message: Message) -> None:
        if self._missed_some:
            return  # all will be looked at anyway
        kind, body = message.kind, message.body
        if kind in (RTM_NEWNEIGH, RTM_DELNEIGH):
            neighbour, entry = nexthop.entry_of(body)
            if neighbour is None:
                return
            if not self.heeds(neighbour, entry if kind == RTM_NEWNEIGH else None):
                return
            self._told_of_neighbours.add(neighbour)
        elif kind in (RTM_NEWLINK, RTM_DELLINK):
            self._told_of_links.add(_LINK.unpack_from(body)[2])
        elif kind in (RTM_NEWROUTE, RTM_DELROUTE):
            family, length, *_ = _ROUTE.unpack_from(body)
            self._told_of_spans.add(
                _span(family, length, attributes(body, _ROUTE.size).get(_RTA_DST, b""))
            )
        elif kind in (RTM_NEWADDR, RTM_DELADDR):
            family, _length, _flags, _scope, ifindex = _ADDRESS.unpack_from(body)
            found = attributes(body, _ADDRESS.size)
            packed = found.get(_IFA_LOCAL) or found.get(_IFA_ADDRESS, b"")
            self._told_of_spans.add(_span(family, 8 * len(packed), packed))
            if kind == RTM_DELADDR:
                # With it go routes that name it as their source, which older kernels do not tell.
                self._told_of_exits.add(ifindex)
        else:  # a rule or a next hop object: any route may be another's now
            self._told_of_spans.add(EVERYWHERE)
        if len(self._told_of_spans) > _REMEMBERED:
            self._missed_some = True
        self._told.set()

    def miss(self) -> None:
        """Some of what changes was not heard, or not taken in."""
        self._missed_some = True
        self._told.set()


def _real(changes: dict[int, Change]) -> dict[int, Change]:
    return {index: change for index, change in changes.items() if change.before != change.after}


def _span(family: int, length: int, packed: bytes) -> Span:
    """The addresses that begin with the first *length* bits of *packed*."""
    if family not in (socket.AF_INET, socket.AF_INET6):
        return EVERYWHERE
    bits, base = (32, _MAPPED) if family == socket.AF_INET else (128, 0)
    first = int.from_bytes(packed.ljust(bits // 8, b"\0"), "big")
    return Span(base | first, base | first | ((1 << (bits - length)) - 1))


def _link_message(message: Message) -> ifinfmsg:
    read = ifinfmsg(message.whole)
    read.decode()
    return read


def _arrived(ready: "asyncio.Future[None]") -> None:
    if not ready.done():
        ready.set_result(None)


async def _readable(events: Rtnetlink) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    loop.add_reader(events.fileno(), _arrived, ready)
    try:
        await ready
    finally:
        loop.remove_reader(events.fileno())
