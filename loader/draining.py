"""Drains: a transceiver, or the whole relay, that gets no new routes until it is empty.

Existing sessions go on. They may restart ICE, which takes a new route; it names the session's old
one. At the deadline, if there is one, what remains is ended. A drain lasts until it is called off,
or the transceiver's lease ends: a new process under the same id is there to take sessions.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping

from loader.events import EventLog
from loader.flows import FlowTable
from loader.leases import write_lease, write_relay_drain
from loader.maps import Maps
from loader.shapes import Draining
from loader.table import Drain, Lease, Route, RouteTable

__all__ = ["Drains"]

log = logging.getLogger(__name__)

Place = Lease | RouteTable

_LOOK_SECONDS = 1.0


class Drains:
    """Begins drains, and ends what they have to end. Each is of the transceiver with that id, or,
    without one, of the relay. *forget_routes* is called with routes of a lease that the table
    holds no more; `clock` gives monotonic seconds."""

    def __init__(
        self,
        maps: Maps,
        table: RouteTable,
        flows: FlowTable,
        events: EventLog,
        *,
        forget_routes: Callable[[Lease, Mapping[str, Route]], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._maps = maps
        self._table = table
        self._flows = flows
        self._events = events
        self._forget_routes = forget_routes
        self._clock = clock

    async def keep(self) -> None:
        """Forever: end what has to end."""
        while True:
            more = self.look()
            await asyncio.sleep(0 if more else _LOOK_SECONDS)  # in between, others are served

    def resume(self) -> None:
        """Take up what an earlier agent has begun: of drains that are over it has told."""
        places: list[Place] = [self._table, *self._table.leases()]
        for place in places:
            if place.drain:
                place.drain.over = not any(lease.routes for lease in self._leases(place))

    def begin(self, id: str | None, *, deadline_s: float | None) -> Draining:
        """Begin a drain, or give the one that lasts another deadline: so many seconds from now.
        Raises Refused for a transceiver that is not there."""
        now = self._clock()
        place = self._place(id)
        since = place.drain.since if place.drain else now
        place.drain = Drain(since, None if deadline_s is None else now + deadline_s)
        self._write(place)
        log.info("drain of %s, deadline %s", _named(place), deadline_s)
        self._events.tell("drain_started", transceiver=id, deadline_s=deadline_s)
        self.look()
        return self.progress(id)

    def call_off(self, id: str | None) -> None:
        """End a drain, if there is one. Raises Refused for a transceiver that is not there."""
        place = self._place(id)
        if place.drain is None:
            return
        place.drain = None
        self._write(place)
        log.info("drain of %s called off", _named(place))
        self._events.tell("drain_ended", transceiver=id, why="called off")

    def progress(self, id: str | None) -> Draining:
        """How far it is. Raises Refused for a transceiver that is not there."""
        place = self._place(id)
        drain, now = place.drain, self._clock()
        routes = sum(len(lease.routes) for lease in self._leases(place))
        index = place.index if isinstance(place, Lease) else None
        until = drain.until if drain else None
        return Draining(
            draining=drain is not None,
            over=drain is not None and not routes,
            routes=routes,
            flows=self._flows.live(transceiver=index),
            since_s=None if drain is None else max(0.0, now - drain.since),
            deadline_s=None if until is None else max(0.0, until - now),
        )

    def look(self) -> bool:
        """End the routes of one transceiver that are past the deadline, or tell which drains are
        over. Whether there is more to end."""
        now = self._clock()
        places: list[Place] = [self._table, *self._table.leases()]
        for place in places:
            drain = place.drain
            if drain is None or drain.over:
                continue
            left = next((lease for lease in self._leases(place) if lease.routes), None)
            if left and drain.until is not None and drain.until <= now:
                drain.ended += len(left.routes)
                self._forget_routes(left, self._table.end_routes(left))
                return True
            if not left:
                drain.over = True
                why = "deadline" if drain.ended else "drained"
                log.info("drain of %s is over: %s", _named(place), why)
                self._events.tell(
                    "drain_ended", transceiver=_id(place), why=why, routes_ended=drain.ended
                )
        return False

    def _place(self, id: str | None) -> Place:
        return self._table if id is None else self._table.lease(id)

    def _leases(self, place: Place) -> list[Lease]:
        return [place] if isinstance(place, Lease) else self._table.leases()

    def _write(self, place: Place) -> None:
        if isinstance(place, Lease):
            write_lease(self._maps, place)
        else:
            write_relay_drain(self._maps, place.drain)


def _id(place: Place) -> str | None:
    return place.id if isinstance(place, Lease) else None


def _named(place: Place) -> str:
    return f"transceiver {place.id}" if isinstance(place, Lease) else "the relay"
