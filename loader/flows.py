"""The agent's half of a slot's life: it closes flows, lets their ports rest, and frees them.

The program's half is `bpf/slot.h`. Works on the mapped flow table, many slots at once: there may
be a million, so that nothing here goes through them one by one. What else is learned from a look
at them all is `accounts`' and `sessions`'.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from loader.maps import Maps
from loader.routeids import NO_ROUTE, Ids, RouteIds
from loader.types import PORT_BITS, PORTS, TICK, TRANSCEIVERS, State, text_address

__all__ = [
    "IDLE_SECONDS",
    "REST_SECONDS",
    "Bools",
    "Counts",
    "Flow",
    "FlowTable",
    "Indexes",
    "Reading",
    "counts_of",
    "elapsed",
    "ticks",
]

IDLE_SECONDS = 30.0  # without a packet from the client: consent is gone (RFC 7675)
REST_SECONDS = 10.0  # of a closed slot's port

_PIECE = 1 << 15  # slots that are looked at without a pause: a millisecond or two
_IDLE_TICKS = int(IDLE_SECONDS / TICK)
_REST_TICKS = int(REST_SECONDS / TICK)

Indexes = npt.NDArray[np.intp]
Bools = npt.NDArray[np.bool_]
Counts = npt.NDArray[np.uint64]
"""Four rows: packets and bytes to the transceiver, packets and bytes to the client."""


def ticks(now: float) -> int:
    """Monotonic seconds in the coarse time of the slots."""
    return int(now / TICK) & 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Flow:
    """A slot in use, as people see it. *slot* is its index: *inside*, the index of the inside
    address, above the *port*. *idle_s*: since the client's last packet."""

    slot: int
    inside: int
    port: int
    state: State
    client: str
    client_port: int
    vip: int
    route: int
    transceiver: int
    proven: bool
    idle_s: float
    to_transceiver: tuple[int, int]  # packets, bytes
    to_client: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Reading:
    """Slots that were in use at one moment, in arrays side by side, after what had to be closed
    is; those that are to be freed count as free. `was_…` is what the reading before found at the
    same slot."""

    moment: int  # tick
    at: Any  # the same in arrays by slot
    slot: Indexes
    state: npt.NDArray[np.uint8]
    live: Bools  # pending or established
    route: Ids
    next_route: Ids
    since: npt.NDArray[np.uint32]  # tick
    seen: npt.NDArray[np.uint32]  # tick
    transceiver: npt.NDArray[np.uint16]
    proven: Bools
    was_state: npt.NDArray[np.uint8]
    was_route: Ids
    was_proven: Bools
    fresh: Bools  # live, and was not in use, or another route's
    closed: Bools  # just now
    expired: Bools  # of these, for being idle
    freed: Bools  # having rested


class FlowTable:
    """All slots, over the maps. New ones are opened only at the configured ports of the configured
    inside addresses; those that an earlier agent's configuration left at others are closed and
    freed as any."""

    def __init__(self, maps: Maps) -> None:
        self._maps = maps
        settings = maps.settings()
        self._ports = range(settings.first_port, settings.last_port + 1)
        self._inside = sum(1 for entry in settings.inside if entry.used)
        self._forward: npt.NDArray[Any] = maps.slots["to_transceiver"]
        self._back: npt.NDArray[Any] = maps.slots["to_client"]
        self._book: npt.NDArray[Any] = maps.slots["book"]
        slots = len(maps.slots)
        # Whether transceivers' packets to a slot still come to the program; if not, they are the
        # kernel's, so that its flow goes one way only.
        inside = np.zeros((slots // PORTS, PORTS), dtype=np.bool_)
        inside[: self._inside, self._ports.start : self._ports.stop] = True
        self._is_inside: Bools = inside.reshape(-1)
        self.pieces = range(slots // _PIECE)
        """Of the table: `sweep` takes one at a time."""
        self._was_state = np.zeros(slots, dtype=np.uint8)
        self._was_route = np.zeros(slots, dtype=np.uint32)
        self._was_proven = np.zeros(slots, dtype=np.bool_)

    def rebuild_free(self) -> int:
        """Let just those slots be opened that are free; how many those are.

        For an agent's start: an earlier one may have died between freeing a slot and saying so,
        or have had other ports. The addresses take turns, so that all are used alike.
        """
        self._maps.forget_free()
        free = (self._forward["state"] == State.FREE).reshape(-1, PORTS)
        ports, inside = np.nonzero(free[: self._inside, self._ports.start : self._ports.stop].T)
        self._maps.free_slots((inside << PORT_BITS) + ports + self._ports.start)
        return len(ports)

    def named_routes(self) -> Ids:
        """Ids of routes that slots in use name, some of them often."""
        used = np.flatnonzero(self._states())
        return np.concatenate((self._book["route"][used], self._book["next_route"][used]))

    def close_routes(
        self, routes: Ids, *, known: RouteIds, among: Iterable[int], now: float
    ) -> int:
        """Close the flows of these few ended routes (by id) at once; how many. Only the slots
        *among* these are looked at: those that the routes' entries in the map name.

        A flow whose other route is *known* goes on with that: a stranger who had a request sent in
        a client's name does not end the client's flow by hanging up.
        """
        live = self._live_of(among)
        mine = (self._book["route"][live][:, None] == routes).any(axis=1)
        return self._end(live[mine], known, now)

    def close_orphans(self, known: RouteIds, *, now: float) -> int:
        """The same of all flows whose route is not *known* any more, wherever they are."""
        live = self._live()
        return self._end(live[~known.known(self._book["route"][live])], known, now)

    def _end(self, slots: Indexes, known: RouteIds, now: float) -> int:
        other = self._book["next_route"][slots]
        goes_on = known.known(other)
        self._book["route"][slots[goes_on]] = other[goes_on]
        self._book["next_route"][slots[goes_on]] = NO_ROUTE
        return self._close(slots[~goes_on], now)

    def close_all(self, *, now: float) -> int:
        """Close every flow; how many."""
        return self._close(self._live(), now)

    def close_addresses(
        self, *, vips: Collection[int], entries: Collection[int], now: float
    ) -> int:
        """Close the flows of these VIPs and inside addresses (by index); how many."""
        live = self._live()
        ends = np.isin(self._back["vip"][live], list(vips))
        ends |= np.isin(live >> PORT_BITS, list(entries))
        return self._close(live[ends], now)

    def sweep(self, piece: int, known: RouteIds, *, now: float) -> Reading | None:
        """Of a piece's slots: close flows that are idle, whose route is not *known*, or whose port
        is no longer an inside port, and find those that have rested, for `free`. None: none was
        in use."""
        first = piece * _PIECE
        state = self._forward["state"][first : first + _PIECE].copy()
        used = np.flatnonzero(state)
        if not len(used):
            return None
        # As one piece where it is one, which is read twice as fast.
        whole = used[-1] - used[0] + 1 == len(used)
        slots = used + first
        at: Any = slice(slots[0], slots[-1] + 1) if whole else slots

        def read(array: npt.NDArray[Any], field: str) -> npt.NDArray[Any]:
            return np.array(array[field][at])

        moment = ticks(now)
        book = {field: read(self._book, field) for field in ("route", "next_route", "since")}
        live = _is_live(state[used])
        was_state, was_route = np.array(self._was_state[at]), np.array(self._was_route[at])
        was_proven = np.array(self._was_proven[at])
        fresh = live & ((was_state == State.FREE) | (was_route != book["route"]))
        reading = Reading(
            moment=moment,
            at=at,
            slot=slots,
            state=state[used],
            live=live,
            **book,
            seen=read(self._forward, "seen"),
            transceiver=read(self._forward, "transceiver"),
            proven=self._proven(slots, fresh | (was_state != State.ESTABLISHED), was_proven),
            was_state=was_state,
            was_route=was_route,
            was_proven=was_proven,
            fresh=fresh,
            closed=np.zeros(len(slots), dtype=np.bool_),
            expired=np.zeros(len(slots), dtype=np.bool_),
            freed=np.zeros(len(slots), dtype=np.bool_),
        )
        self._follow_next_routes(reading, known)
        self._judge(reading, known, self._is_inside[at], now)
        state[used] = reading.state
        self._was_state[first : first + _PIECE] = state
        self._was_route[at] = reading.route
        self._was_proven[at] = reading.proven & reading.live
        return reading

    def _proven(self, slots: Indexes, anew: Bools, was: Bools) -> Bools:
        """Which slots' clients have proven that they are there: what has been proven stays so, but
        for a pending slot's, which comes to another client. Media's own half of a slot is the
        largest: it is not looked at for nothing."""
        proven = was.copy()
        asked = np.flatnonzero(anew | ~was)
        proven[asked] = self._back["proven"][slots[asked]]
        return proven

    def _follow_next_routes(self, reading: Reading, known: RouteIds) -> None:
        """Flows whose route is gone, but not their other one, go on with that; another one that
        is gone stands for nothing, and its id may come again."""
        two = np.flatnonzero((reading.next_route != NO_ROUTE) & reading.live)
        if not len(two):
            return
        there = known.known(reading.next_route[two])
        goes_on = two[there & ~known.known(reading.route[two])]
        reading.route[goes_on] = reading.next_route[goes_on]
        over = np.concatenate((goes_on, two[~there]))
        reading.next_route[over] = NO_ROUTE
        self._book["route"][reading.slot[goes_on]] = reading.route[goes_on]
        self._book["next_route"][reading.slot[over]] = NO_ROUTE

    def free(self, reading: Reading) -> None:
        """Let those slots of a sweep be opened again that have rested: their counts are lost."""
        if reading.freed.any():
            slots = reading.slot[reading.freed]
            self._set_state(slots, State.FREE)
            self._maps.free_slots(slots[self._is_inside[slots]])

    def _judge(self, reading: Reading, known: RouteIds, inside: Bools, now: float) -> None:
        """Close what has to be closed, and find what has rested."""
        moment = reading.moment
        np.greater_equal(elapsed(moment, reading.seen), _IDLE_TICKS, out=reading.expired)
        np.logical_and(reading.expired, reading.live, out=reading.expired)
        stays = known.known(reading.route) & inside & ~reading.expired
        np.greater(reading.live, stays, out=reading.closed)
        ends = np.flatnonzero(reading.closed)
        resting = np.flatnonzero(reading.state == State.CLOSING)
        rested = elapsed(moment, reading.since[resting]) >= _REST_TICKS
        reading.freed[resting[rested]] = True
        self._close(reading.slot[ends], now)
        reading.state[ends] = State.CLOSING
        reading.state[resting[rested]] = State.FREE
        reading.live[ends] = False

    def transceivers(self) -> set[int]:
        """Indexes of the transceivers that slots refer to."""
        used = np.flatnonzero(self._states())
        counts = np.bincount(self._forward["transceiver"][used], minlength=TRANSCEIVERS)
        return set(np.flatnonzero(counts).tolist())

    def slots_by_route(self) -> dict[int, list[int]]:
        """The slots of each route's living flows, by route id."""
        live = self._live()
        routes = self._book["route"][live]
        order = np.argsort(routes, kind="stable")
        routes, slots = routes[order], live[order].tolist()
        starts = np.flatnonzero(np.diff(routes, prepend=routes[:1] + np.uint32(1)))
        ends = np.append(starts, len(slots))[1:].tolist()
        return {
            id: slots[start:end]
            for id, start, end in zip(routes[starts].tolist(), starts.tolist(), ends, strict=True)
        }

    def slots_of(self, named: Mapping[int, Iterable[int]]) -> dict[int, list[int]]:
        """The same of a few routes: of the slots that a route's entry in the map names, those
        whose flows live and are the route's."""
        slots = self._live_of(slot for each in named.values() for slot in each if slot)
        found: dict[int, list[int]] = {}
        for slot, route in zip(slots.tolist(), self._book["route"][slots].tolist(), strict=True):
            if route in named:
                found.setdefault(route, []).append(slot)
        return found

    @property
    def capacity(self) -> int:
        """How many flows there can be: slots at the inside ports of the inside addresses."""
        return self._inside * len(self._ports)

    def states(self) -> dict[State, int]:
        """How many slots the last look at each found in each state, or made so."""
        return {state: int(np.count_nonzero(self._was_state == state)) for state in State}

    def live(self, *, transceiver: int | None = None) -> int:
        """How many flows are pending or established: to the transceiver of that index, or all."""
        live = self._live()
        if transceiver is None:
            return len(live)
        return int(np.count_nonzero(self._forward["transceiver"][live] == transceiver))

    def count(self) -> int:
        """How many slots are in use."""
        return int(np.count_nonzero(self._states()))

    def flows(self, *, now: float, after: int = -1, limit: int | None = None) -> list[Flow]:
        """All slots in use, by index; the first *limit* of them *after* that one."""
        moment = ticks(now)
        first = after + 1
        used = first + np.flatnonzero(self._states()[first:] != State.FREE)[:limit]
        return [
            _flow(index, there, back, int(route), moment)
            for index, there, back, route in zip(
                used.tolist(),
                self._forward[used],
                self._back[used],
                self._book["route"][used],
                strict=True,
            )
        ]

    def _states(self) -> npt.NDArray[np.uint8]:
        # To be asked before anything else of a slot: the program writes the state last, so that
        # what is read after it is of the same flow.
        return self._forward["state"].copy()

    def _live(self) -> Indexes:
        return _live_in(self._states())

    def _live_of(self, slots: Iterable[int]) -> Indexes:
        some = np.array(list(set(slots)), dtype=np.intp)
        return some[_live_in(self._forward["state"][some])]

    def _close(self, slots: Indexes, now: float) -> int:
        self._book["since"][slots] = ticks(now)
        self._set_state(slots, State.CLOSING)
        return len(slots)

    def _set_state(self, slots: Indexes, state: State) -> None:
        self._back["state"][slots] = state
        self._forward["state"][slots] = state


_LIVE_STATES = np.uint8(State.ESTABLISHED - State.PENDING)


def _is_live(state: npt.NDArray[np.uint8]) -> Bools:
    live: Bools = state - np.uint8(State.PENDING) <= _LIVE_STATES  # that of 0 is 255
    return live


def _live_in(state: npt.NDArray[np.uint8]) -> Indexes:
    return np.flatnonzero(_is_live(state))


def counts_of(there: npt.NDArray[Any], back: npt.NDArray[Any]) -> Counts:
    """Of so many slots' two halves."""
    return np.stack([half[field] for half in (there, back) for field in ("packets", "bytes")])


def elapsed(moment: int, then: npt.NDArray[np.uint32]) -> npt.NDArray[np.int32]:
    """Ticks from *then* to *moment*, negative if *then* is a little later (another CPU's clock)."""
    return (np.uint32(moment) - then).view(np.int32)


def _flow(index: int, there: Any, back: Any, route: int, moment: int) -> Flow:
    idle = elapsed(moment, there["seen"].reshape(1))[0]
    return Flow(
        slot=index,
        inside=index >> PORT_BITS,
        port=index % PORTS,
        state=State(int(there["state"])),
        client=text_address(bytes(back["client"])),
        client_port=int(back["client_port"]),
        vip=int(back["vip"]),
        route=route,
        transceiver=int(there["transceiver"]),
        proven=bool(back["proven"]),
        idle_s=max(0.0, float(idle) * TICK),
        to_transceiver=(int(there["packets"]), int(there["bytes"])),
        to_client=(int(back["packets"]), int(back["bytes"])),
    )
