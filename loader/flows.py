"""The agent's half of a slot's life: it closes flows, lets their ports rest, and frees them.

The program's half is `bpf/flow.h`. Works on the mapped flow table, all of it at once.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from loader.maps import Maps
from loader.types import TICK, Client4, State, text_address

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
    """The slots of the configured ports, over the maps."""

    def __init__(self, maps: Maps) -> None:
        self._maps = maps
        settings = maps.settings()
        self._first = settings.first_port
        self._slots = maps.slots[settings.first_port : settings.last_port + 1]
        self._forward = self._slots["to_transceiver"]

    def rebuild_free(self) -> int:
        """Fill the queue of free ports with just the ports that are free; how many those are.

        For an agent's start: an earlier one may have died between freeing a slot and queueing its
        port, or have had other ports. A packet that took a port from the queue just before it
        was drained has opened its slot long before the states are read.
        """
        while self._maps.take_free() is not None:
            pass
        free = np.flatnonzero(self._forward["state"] == State.FREE)
        for offset in free:
            self._maps.free(self._first + int(offset))
        return len(free)

    def highest_route(self) -> int:
        """The highest route id that any slot names."""
        return int(max(self._forward["route"].max(), self._forward["next_route"].max()))

    def close_routes(self, routes: Iterable[int], *, now: float) -> int:
        """Close the flows of these routes (by id) at once; how many."""
        mine = np.isin(self._forward["route"], list(routes)) & self._live()
        return self._close(mine, now)

    def close_all(self, *, now: float) -> int:
        """Close every flow; how many."""
        return self._close(self._live(), now)

    def sweep(self, known_routes: Iterable[int], *, now: float) -> int:
        """Close flows that are idle, or whose route is gone; free ports that have rested. How
        many flows were closed."""
        moment = ticks(now)
        known = np.fromiter(known_routes, dtype=np.uint32)
        idle = _elapsed(moment, self._forward["seen"]) >= int(IDLE_SECONDS / TICK)
        orphan = ~np.isin(self._forward["route"], known) & ~np.isin(
            self._forward["next_route"], known
        )
        closed = self._close((idle | orphan) & self._live(), now)
        rested = (self._forward["state"] == State.CLOSING) & (
            _elapsed(moment, self._forward["since"]) >= int(REST_SECONDS / TICK)
        )
        for offset in np.flatnonzero(rested):
            self._free(int(offset))
        return closed

    def transceivers(self) -> set[int]:
        """Indexes of the transceivers that slots refer to."""
        used = self._forward["state"] != State.FREE
        return {int(index) for index in np.unique(self._forward["transceiver"][used])}

    def flows(self, *, now: float) -> list[Flow]:
        """All slots in use, by port."""
        return [
            self._flow(int(offset), now)
            for offset in np.flatnonzero(self._forward["state"] != State.FREE)
        ]

    def _live(self) -> Any:
        state = self._forward["state"]
        return (state == State.PENDING) | (state == State.ESTABLISHED)

    def _close(self, which: Any, now: float) -> int:
        offsets = np.flatnonzero(which)
        for offset in offsets:
            # The client's entry first: whoever dies in between leaves a flow that is swept, not
            # an entry that leads to a port with a new life.
            self._forget(int(offset))
            self._forward["since"][offset] = ticks(now)
            self._set_state(int(offset), State.CLOSING)
        return len(offsets)

    def _free(self, offset: int) -> None:
        # The program closes slots too, and leaves these entries to us.
        self._forget(offset)
        self._set_state(offset, State.FREE)
        self._maps.free(self._first + offset)

    def _forget(self, offset: int) -> None:
        port = self._first + offset
        back = self._slots["to_client"][offset]
        client = Client4(
            address=int.from_bytes(bytes(back["client"])[12:], "big"),
            port=int(back["client_port"]),
            vip=int(back["vip"]),
        )
        self._maps.forget_client(client, port=port)
        self._maps.forget_checks(port)

    def _set_state(self, offset: int, state: State) -> None:
        self._slots["to_client"]["state"][offset] = state
        self._forward["state"][offset] = state

    def _flow(self, offset: int, now: float) -> Flow:
        slot = self._slots[offset]
        there, back = slot["to_transceiver"], slot["to_client"]
        return Flow(
            port=self._first + offset,
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
