"""The agent's half of a slot's life: it closes flows, lets their ports rest, and frees them.

The program's half is `bpf/flow.h`. Works on the mapped flow table, all of it at once.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from loader.maps import Maps
from loader.types import PORTS, TICK, Client4, State, text_address

__all__ = ["IDLE_SECONDS", "REST_SECONDS", "Flow", "FlowTable", "ticks"]

IDLE_SECONDS = 30.0  # without a packet from the client: consent is gone (RFC 7675)
REST_SECONDS = 10.0  # of a closed slot's port


def ticks(now: float) -> int:
    """Monotonic seconds in the coarse time of the slots."""
    return int(now / TICK) & 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Flow:
    """A slot in use, as people see it. *idle_s*: since the client's last packet."""

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
    """All slots, over the maps. New ones are opened only at the configured ports; those that an
    earlier agent's configuration left at others are closed and freed as any."""

    def __init__(self, maps: Maps) -> None:
        self._maps = maps
        settings = maps.settings()
        self._ports = range(settings.first_port, settings.last_port + 1)
        self._slots = maps.slots
        self._forward = self._slots["to_transceiver"]
        # Answers to these ports are the kernel's now, so the flow goes one way only.
        self._astray = np.ones(PORTS, dtype=bool)
        self._astray[settings.first_port : settings.last_port + 1] = False

    def rebuild_free(self) -> int:
        """Fill the queue of free ports with just the ports that are free; how many those are.

        For an agent's start: an earlier one may have died between freeing a slot and queueing its
        port, or have had other ports. A packet that took a port from the queue just before it
        was drained has opened its slot long before the states are read.
        """
        while self._maps.take_free() is not None:
            pass
        free = [port for port in self._ports if self._forward["state"][port] == State.FREE]
        for port in free:
            self._maps.free(port)
        return len(free)

    def highest_route(self) -> int:
        """The highest route id that any slot names."""
        return int(max(self._forward["route"].max(), self._forward["next_route"].max()))

    def close_routes(self, routes: Iterable[int], *, known: Iterable[int], now: float) -> int:
        """Close the flows of these ended routes (by id) at once; how many.

        A flow whose other route is among those *known* goes on with that: a stranger who had a
        request sent in a client's name does not end the client's flow by hanging up.
        """
        mine = self._live() & np.isin(self._forward["route"], list(routes))
        other = np.isin(self._forward["next_route"], list(known))
        for port in np.flatnonzero(mine & other):
            self._forward["route"][port] = self._forward["next_route"][port]
            self._forward["next_route"][port] = 0
        return self._close(mine & ~other, now)

    def close_all(self, *, now: float) -> int:
        """Close every flow; how many."""
        return self._close(self._live(), now)

    def sweep(self, known_routes: Iterable[int], *, now: float) -> int:
        """Close flows that are idle, whose route is gone, or whose port is no longer an inside
        port; free ports that have rested. How many flows were closed."""
        live = self._live()
        moment = ticks(now)
        known = np.fromiter(known_routes, dtype=np.uint32)
        idle = _elapsed(moment, self._forward["seen"]) >= int(IDLE_SECONDS / TICK)
        orphan = ~np.isin(self._forward["route"], known) & ~np.isin(
            self._forward["next_route"], known
        )
        closed = self._close(live & (idle | orphan | self._astray), now)
        rested = (self._forward["state"] == State.CLOSING) & (
            _elapsed(moment, self._forward["since"]) >= int(REST_SECONDS / TICK)
        )
        for port in np.flatnonzero(rested):
            self._free(int(port))
        return closed

    def transceivers(self) -> set[int]:
        """Indexes of the transceivers that slots refer to."""
        used = self._forward["state"] != State.FREE
        return {int(index) for index in np.unique(self._forward["transceiver"][used])}

    def flows(self, *, now: float) -> list[Flow]:
        """All slots in use, by port."""
        return [
            self._flow(int(port), now)
            for port in np.flatnonzero(self._forward["state"] != State.FREE)
        ]

    def _live(self) -> Any:
        # To be asked before anything else of a slot: the program writes the state last, so that
        # what is read after it is of the same flow.
        state = self._forward["state"]
        return (state == State.PENDING) | (state == State.ESTABLISHED)

    def _close(self, which: Any, now: float) -> int:
        ports = np.flatnonzero(which)
        for port in ports:
            # The client's entry first: whoever dies in between leaves a flow that is swept, not
            # an entry that leads to a port with a new life.
            self._forget(int(port))
            self._forward["since"][port] = ticks(now)
            self._set_state(int(port), State.CLOSING)
        return len(ports)

    def _free(self, port: int) -> None:
        # The program closes slots too, and leaves these entries to us.
        self._forget(port)
        self._set_state(port, State.FREE)
        if port in self._ports:
            self._maps.free(port)

    def _forget(self, port: int) -> None:
        back = self._slots["to_client"][port]
        client = Client4(
            address=int.from_bytes(bytes(back["client"])[12:], "big"),
            port=int(back["client_port"]),
            vip=int(back["vip"]),
        )
        self._maps.forget_client(client, port=port)
        self._maps.forget_checks(port)

    def _set_state(self, port: int, state: State) -> None:
        self._slots["to_client"]["state"][port] = state
        self._forward["state"][port] = state

    def _flow(self, port: int, now: float) -> Flow:
        slot = self._slots[port]
        there, back = slot["to_transceiver"], slot["to_client"]
        return Flow(
            port=port,
            state=State(int(there["state"])),
            client=text_address(bytes(back["client"])),
            client_port=int(back["client_port"]),
            vip=int(back["vip"]),
            route=int(there["route"]),
            transceiver=int(there["transceiver"]),
            proven=bool(back["proven"]),
            idle_s=max(0.0, _elapsed(ticks(now), int(there["seen"])) * TICK),
            to_transceiver=(int(there["packets"]), int(there["bytes"])),
            to_client=(int(back["packets"]), int(back["bytes"])),
        )


def _elapsed(moment: int, then: Any) -> Any:
    """Ticks from *then* to *moment*, negative if *then* is a little later (another CPU's clock)."""
    return (np.asarray(moment, dtype=np.int64) - then + 2**31) % 2**32 - 2**31
