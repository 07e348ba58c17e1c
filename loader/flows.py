"""The agent's half of a slot's life: it closes flows, lets their ports rest, and frees them.

The program's half is `bpf/slot.h`. Works on the mapped flow table, all of it at once: there
may be a million slots, so that nothing here goes through them one by one.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from loader.maps import Maps
from loader.routeids import Ids, RouteIds
from loader.types import PORT_BITS, PORTS, TICK, TRANSCEIVERS, State, text_address

__all__ = ["IDLE_SECONDS", "REST_SECONDS", "Flow", "FlowTable", "ticks"]

IDLE_SECONDS = 30.0  # without a packet from the client: consent is gone (RFC 7675)
REST_SECONDS = 10.0  # of a closed slot's port

Indexes = npt.NDArray[np.intp]


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
        self,
        routes: Iterable[int],
        *,
        known: RouteIds,
        now: float,
        among: Iterable[int] | None = None,
    ) -> int:
        """Close the flows of these ended routes (by id) at once; how many.

        A flow whose other route is *known* goes on with that: a stranger who had a request sent
        in a client's name does not end the client's flow by hanging up. With *among*, only these
        slots are looked at: those that a route's entry in the map names.
        """
        ended = np.fromiter(routes, dtype=np.uint32)
        mine = self._live() if among is None else self._live_of(among)
        mine = mine[np.isin(self._book["route"][mine], ended)]
        other = self._book["next_route"][mine]
        goes_on = known.known(other)
        self._book["route"][mine[goes_on]] = other[goes_on]
        self._book["next_route"][mine[goes_on]] = 0
        return self._close(mine[~goes_on], now)

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

    def sweep(self, known: RouteIds, *, now: float) -> int:
        """Close flows that are idle, whose route is not *known*, or whose port is no longer an
        inside port; free slots that have rested. How many flows were closed."""
        moment = ticks(now)
        state = self._states()
        resting = np.flatnonzero(state == State.CLOSING)
        live = _live_in(state)
        idle = _elapsed(moment, self._forward["seen"][live]) >= int(IDLE_SECONDS / TICK)
        orphan = ~known.known(self._book["route"][live])
        if orphan.any():
            orphan[orphan] = ~known.known(self._book["next_route"][live[orphan]])
        closed = self._close(live[idle | orphan | ~self._is_inside(live)], now)
        rested = _elapsed(moment, self._book["since"][resting]) >= int(REST_SECONDS / TICK)
        self._free(resting[rested])
        return closed

    def transceivers(self) -> set[int]:
        """Indexes of the transceivers that slots refer to."""
        used = np.flatnonzero(self._states() != State.FREE)
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

    @property
    def capacity(self) -> int:
        """How many flows there can be: slots at the inside ports of the inside addresses."""
        return self._inside * len(self._ports)

    def states(self) -> dict[State, int]:
        """How many slots are in each state."""
        counts = np.bincount(self._states(), minlength=len(State)).tolist()
        return dict(zip(State, counts, strict=True))

    def live(self, *, transceiver: int | None = None) -> int:
        """How many flows are pending or established: to the transceiver of that index, or all."""
        live = self._live()
        if transceiver is None:
            return len(live)
        return int(np.count_nonzero(self._forward["transceiver"][live] == transceiver))

    def count(self) -> int:
        """How many slots are in use."""
        return int(np.count_nonzero(self._states()))

    def flows(self, *, now: float, limit: int | None = None) -> list[Flow]:
        """All slots in use, by index; the first *limit* of them."""
        moment = ticks(now)
        used = np.flatnonzero(self._states() != State.FREE)[:limit]
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
        some = np.array(sorted(set(slots)), dtype=np.intp)
        return some[_live_in(self._forward["state"][some])]

    def _is_inside(self, slots: Indexes) -> npt.NDArray[np.bool_]:
        """Whether transceivers' packets to these slots still come to the program; if not, they
        are the kernel's, so that the flow goes one way only."""
        ports = slots % PORTS
        within: npt.NDArray[np.bool_] = (
            (slots < self._inside * PORTS)
            & (ports >= self._ports.start)
            & (ports < self._ports.stop)
        )
        return within

    def _close(self, slots: Indexes, now: float) -> int:
        self._book["since"][slots] = ticks(now)
        self._set_state(slots, State.CLOSING)
        return len(slots)

    def _free(self, slots: Indexes) -> None:
        self._set_state(slots, State.FREE)
        self._maps.free_slots(slots[self._is_inside(slots)])

    def _set_state(self, slots: Indexes, state: State) -> None:
        self._back["state"][slots] = state
        self._forward["state"][slots] = state


def _live_in(state: npt.NDArray[np.uint8]) -> Indexes:
    return np.flatnonzero((state == State.PENDING) | (state == State.ESTABLISHED))


def _elapsed(moment: int, then: npt.NDArray[np.uint32]) -> npt.NDArray[np.int32]:
    """Ticks from *then* to *moment*, negative if *then* is a little later (another CPU's clock)."""
    return (np.uint32(moment) - then).view(np.int32)


def _flow(index: int, there: Any, back: Any, route: int, moment: int) -> Flow:
    idle = _elapsed(moment, there["seen"].reshape(1))[0]
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
