"""The ways to transceivers: the map's next hops, as the kernel's routes, neighbours and links are.

A next hop is made of three things, each of which is asked for again only when it may have changed:
by which neighbour (the kernel's route), at which MAC (its neighbour table), over which link. One
gateway may be on the way to all transceivers, and then its MAC is still one question.

When a next hop stands, and when it goes:

    the neighbour answers                        the next hop is what the kernel says
    the kernel has no answer yet                 the last one stands, if it was by this neighbour
    the kernel has asked, and nobody answered    none
    no route; the link is down, or gone          none

With none (`resolved` 0) the program drops packets and counts them (`neighbour`). A last next hop
that stood on would send them where nobody is, uncounted, or to whoever has the MAC address or
the interface's number now.
"""

import ctypes
import logging
from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar

from loader import nexthop, types
from loader.events import EventLog
from loader.maps import Maps
from loader.network import EVERYWHERE, Network, Span, number_of
from loader.nexthop import UNKNOWN, Entry, Neighbour, NextHop, Reach, Way
from loader.table import Lease

__all__ = ["Ways"]

T = TypeVar("T")
log = logging.getLogger(__name__)

_NAMED = 8  # transceivers, in one line of the log
_NO_ROOM = (
    "the kernel's neighbour table is full: raise net.ipv4.neigh.default.gc_thresh3, "
    "or net.ipv6.neigh.default.gc_thresh3"
)
_NO_ROUTE = "the kernel has no route to it"


@dataclass(slots=True)
class _Followed:
    """A transceiver's way, once it was *asked* for. *by*: the neighbour by which the map's next hop
    was learned; *why*: what has been told of its being out of reach, or "" if it is not."""

    lease: Lease
    number: int
    packed: bytes
    asked: bool = False
    way: Way | None = None
    by: Neighbour | None = None
    why: str = ""


class Ways:
    """Keeps the next hops of the transceivers that it was told of."""

    def __init__(self, maps: Maps, network: Network, events: EventLog) -> None:
        self._maps = maps
        self._network = network
        self._events = events
        self._followed: dict[int, _Followed] = {}  # by the transceiver's index
        self._numbers: list[tuple[int, int]] = []  # addresses in order, each with the index
        self._entries: dict[Neighbour, Entry] = {}  # of neighbours on the way to somebody
        self._users: dict[Neighbour, set[int]] = {}  # indexes
        # What may have changed, in the order in which that was heard: indexes, and neighbours.
        self._hops_due: dict[int, None] = {}
        self._neighbours_due: dict[Neighbour, None] = {}
        self._routes_due: dict[int, None] = {}
        self._next_in_turn = 0
        self._exits: set[int] = set()  # every link that has been on a way
        # What is to be told: ids, by the MAC address where they are now, and by why they are lost.
        self._moved: dict[bytes, list[str]] = {}
        self._lost: dict[str, list[str]] = {}
        self._found: list[str] = []
        network.heeds = self._heeds

    @property
    def unreachable(self) -> dict[str, str]:
        """Why there is no way to a transceiver, by id; those that are being asked for are not
        among them."""
        return {each.lease.id: each.why for each in self._followed.values() if each.why}

    # What happens.

    def follow(self, lease: Lease) -> None:
        """A transceiver is there, or is still: when this returns, its next hop is in the map if the
        kernel knows it, and else the kernel is looking for it."""
        followed = self._know(lease)
        self._ask_route(followed)
        if followed.way:
            known = self._entries[followed.way.neighbour]
            if known.reach is not Reach.KNOWN:
                self._look_for(followed.way.neighbour, known)
        self._settle(followed)
        self._tell()

    def expect(self, leases: Iterable[Lease]) -> None:
        """These are all that there are; those that were not known are looked at soon."""
        for lease in leases:
            if lease.index not in self._followed:
                self._know(lease)
                self._routes_due[lease.index] = None

    def forget(self, lease: Lease) -> None:
        """The transceiver is gone."""
        followed = self._followed.get(lease.index)
        if followed is None or followed.lease is not lease:
            return
        del self._followed[lease.index]
        del self._numbers[bisect_left(self._numbers, (followed.number, lease.index))]
        if followed.way:
            self._leave(followed, followed.way)

    def all_may_have_changed(self) -> None:
        """Nothing is known to be as it was."""
        self._hops_due.update(dict.fromkeys(self._followed))
        self._neighbours_due.update(dict.fromkeys(self._users))
        self._routes_due.update(dict.fromkeys(self._followed))

    def some_in_turn(self, limit: int) -> None:
        """*limit* of the transceivers may have changed: of what no event tells, so that all of them
        are looked at some time, and the work for it does not grow with their number."""
        start = self._next_in_turn if self._next_in_turn < len(self._numbers) else 0
        self._next_in_turn = start + limit
        for _number, index in self._numbers[start : start + limit]:
            self._routes_due[index] = None
            if way := self._followed[index].way:
                self._neighbours_due[way.neighbour] = None

    def routes_changed(self, spans: Iterable[Span]) -> None:
        """The kernel may route these addresses otherwise."""
        for first, last in spans:
            start = bisect_left(self._numbers, (first, 0))
            end = bisect_right(self._numbers, (last, types.TRANSCEIVERS))
            self._routes_due.update((index, None) for _, index in self._numbers[start:end])

    def neighbours_changed(self, neighbours: Iterable[Neighbour]) -> None:
        """What the kernel knows of these may be something else."""
        self._neighbours_due.update((each, None) for each in neighbours if each in self._users)

    def link_changed(self, ifindex: int) -> None:
        """A link has another MAC, MTU or carrier."""
        for neighbour in self._on(ifindex):
            self._hops_due.update(dict.fromkeys(self._users[neighbour]))

    def exit_changed(self, ifindex: int) -> None:
        """A link came, went, went up or down, or an address of it did: of the neighbours and
        routes that go with it, the kernel does not tell all."""
        for neighbour in self._on(ifindex):
            users = dict.fromkeys(self._users[neighbour])
            self._hops_due.update(users)
            self._neighbours_due[neighbour] = None
            self._routes_due.update(users)

    def exit_opened(self, ifindex: int) -> None:
        """A link can be used that could not: what has no way may have one, and if there ever was
        one by this link, any may go by it again."""
        if ifindex in self._exits:
            self.routes_changed([EVERYWHERE])
        else:
            lost = (index for index, each in self._followed.items() if each.way is None)
            self._routes_due.update(dict.fromkeys(lost))

    # What is done about it.

    @property
    def due(self) -> bool:
        """Whether anything is to be looked at."""
        return bool(self._hops_due or self._neighbours_due or self._routes_due)

    def work(self, limit: int) -> None:
        """Look at *limit* of the things that are due; the cheapest first, which stop packets to
        where nobody is."""
        for _ in range(limit):
            if self._hops_due:
                if followed := self._followed.get(_first(self._hops_due)):
                    self._settle(followed)
            elif self._neighbours_due:
                self._ask_neighbour(_first(self._neighbours_due))
            elif self._routes_due:
                followed = self._followed.get(_first(self._routes_due))
                if followed and self._ask_route(followed):
                    self._settle(followed)
            else:
                break
        self._tell()

    def release_others(self) -> None:
        """Have the kernel keep nobody fresh but those on a way: an agent before this one may have
        had others."""
        self._network.release(each for each in self._network.kept() if each not in self._users)

    def _heeds(self, neighbour: Neighbour, entry: Entry | None) -> bool:
        return neighbour in self._entries and self._entries[neighbour] != entry

    def _on(self, ifindex: int) -> list[Neighbour]:
        return [neighbour for neighbour in self._users if neighbour.ifindex == ifindex]

    def _know(self, lease: Lease) -> _Followed:
        followed = self._followed.get(lease.index)
        if followed is None or followed.lease is not lease:
            if followed:
                self.forget(followed.lease)
            packed = bytes(types.packed_address(lease.address))
            followed = _Followed(lease, number_of(lease.address), packed)
            self._followed[lease.index] = followed
            insort(self._numbers, (followed.number, lease.index))
        return followed

    def _ask_route(self, followed: _Followed) -> bool:
        """Whether it is another one than it was."""
        way = self._network.way(followed.lease.address)
        if followed.asked and way == followed.way:
            return False
        if way and way.neighbour not in self._entries:
            self._look_up(way.neighbour)
        before, followed.way, followed.asked = followed.way, way, True
        if before and way and way.neighbour == before.neighbour:
            return True
        if way:
            self._users.setdefault(way.neighbour, set()).add(followed.lease.index)
            self._exits.add(way.neighbour.ifindex)
        if before:
            self._leave(followed, before)
        return True

    def _leave(self, followed: _Followed, way: Way) -> None:
        """It is not by this way any more."""
        users = self._users[way.neighbour]
        users.discard(followed.lease.index)
        if not users:
            del self._users[way.neighbour]
            if self._entries.pop(way.neighbour).ours:
                self._network.release([way.neighbour])

    def _ask_neighbour(self, neighbour: Neighbour) -> None:
        if neighbour not in self._users:
            return
        before, now = self._entries[neighbour], self._look_up(neighbour)
        if now.reach is Reach.FAILED and before.reach is not Reach.FAILED:
            # It may just have moved: the kernel asked where it was, and asks everybody in 5 s only.
            self._look_for(neighbour, now)
            self._entries[neighbour] = now
        if (before.reach, before.mac) != (now.reach, now.mac):
            self._hops_due.update(dict.fromkeys(self._users[neighbour]))

    def _look_up(self, neighbour: Neighbour) -> Entry:
        """What the kernel knows of a neighbour, which it keeps fresh from now on."""
        entry = self._entries[neighbour] = self._network.entry(neighbour)
        return entry if entry.kept else self._look_for(neighbour, entry)

    def _look_for(self, neighbour: Neighbour, entry: Entry) -> Entry:
        if entry.touchable:
            entry = self._entries[neighbour] = self._network.keep(neighbour)
        return entry

    def _settle(self, followed: _Followed) -> None:
        """Write the next hop, if it is another one. What an earlier agent has left stands until the
        kernel was asked."""
        if not followed.asked:
            return
        lease = followed.lease
        entry = self._maps.transceiver(lease.index)
        if bytes(entry.address) != followed.packed:
            return  # not written yet, or gone
        hop, why = self._hop(followed, entry)
        if hop:
            self._write(lease, entry, hop)
        elif entry.resolved:
            entry.resolved = 0
            self._maps.set_transceiver(lease.index, entry)
        if why and not followed.why:
            self._lost.setdefault(why, []).append(lease.id)
        elif followed.why and hop:
            self._found.append(lease.id)
        if why or hop:
            followed.why = why

    def _write(self, lease: Lease, entry: types.Transceiver, hop: NextHop) -> None:
        packed = _packed(hop)
        if entry.resolved and bytes(entry.hop) == bytes(packed):
            return
        if not entry.resolved or bytes(entry.hop.mac) != hop.mac:
            self._moved.setdefault(hop.mac, []).append(lease.id)
        entry.hop, entry.resolved = packed, 1
        self._maps.set_transceiver(lease.index, entry)

    def _hop(self, followed: _Followed, entry: types.Transceiver) -> tuple[NextHop | None, str]:
        """The next hop, or why there is none; neither while the kernel has no answer yet."""
        way, links = followed.way, self._network.links
        if way is None:
            return None, _NO_ROUTE
        neighbour, known = way.neighbour, self._entries.get(way.neighbour, UNKNOWN)
        link = links.get(neighbour.ifindex)
        name = link.name if link else f"interface {neighbour.ifindex}"
        last = bytes(entry.hop.mac)
        hop = nexthop.hop(links, way, known.mac or last)
        if hop is None:
            return None, f"{name} {links.obstacle(neighbour.ifindex)}"
        if known.reach is Reach.KNOWN:
            followed.by = neighbour
            return hop, ""
        if known.reach is Reach.NO_ROOM:
            return None, _NO_ROOM
        if known.reach is Reach.FAILED:
            return None, f"nobody answers for {neighbour.address} on {name}"
        # Of a next hop that an earlier agent has left, only the link is known.
        same = followed.by == neighbour or (
            followed.by is None and (entry.hop.ifindex, entry.hop.vlan) == (hop.ifindex, hop.vlan)
        )
        return (hop, "") if entry.resolved and same else (None, "")

    def _tell(self) -> None:
        for mac, ids in self._moved.items():
            log.info("transceiver %s is at %s", _some(ids), mac.hex(":"))
        for why, ids in self._lost.items():
            log.warning("transceiver %s is out of reach: %s", _some(ids), why)
            self._events.tell("transceiver_unreachable", transceivers=ids, why=why)
        if self._found:
            log.info("transceiver %s is in reach again", _some(self._found))
            self._events.tell("transceiver_reachable", transceivers=self._found)
        self._moved, self._lost, self._found = {}, {}, []


def _some(ids: list[str]) -> str:
    if len(ids) <= _NAMED:
        return ", ".join(ids)
    return f"{', '.join(ids[:_NAMED])} and {len(ids) - _NAMED} more"


def _first(due: dict[T, None]) -> T:
    first = next(iter(due))
    del due[first]
    return first


def _packed(hop: NextHop) -> types.NextHop:
    packed = types.NextHop(ifindex=hop.ifindex, vlan=hop.vlan, mtu=hop.mtu)
    ctypes.memmove(packed.mac, hop.mac, len(hop.mac))
    ctypes.memmove(packed.source_mac, hop.source_mac, len(hop.source_mac))
    return packed
