"""What time asks of the agent: leases that end, flows to close, slots to free."""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable

from loader import types
from loader.events import EventLog
from loader.flows import FlowTable
from loader.maps import Maps
from loader.table import Lease, RouteTable

__all__ = ["Housekeeping"]

log = logging.getLogger(__name__)

_SWEEP_SECONDS = 1.0


class Housekeeping:
    """Ends what has to end, in the maps and in the tables. `clock` gives monotonic seconds;
    *on_end* is called with each lease that has ended, *on_pass* with the seconds that each round
    took."""

    def __init__(
        self,
        maps: Maps,
        table: RouteTable,
        flows: FlowTable,
        events: EventLog,
        *,
        on_end: Callable[[Lease], None],
        on_pass: Callable[[float], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._maps = maps
        self._table = table
        self._flows = flows
        self._events = events
        self._on_end = on_end
        self._on_pass = on_pass
        self._clock = clock
        self.turned = clock()
        """When `keep` last came round; it does so once a second."""

    async def keep(self) -> None:
        """Forever: end leases, close and free slots."""
        while True:
            self.sweep()
            self.turned = self._clock()
            await asyncio.sleep(_SWEEP_SECONDS)

    def sweep(self) -> None:
        """One round of everything that ends by time."""
        now = self._clock()
        for lease in self._table.expire(now=now):
            self.end(lease, "lease ended")
        self._flows.sweep(self._table.ids, now=now)
        if resting := self._table.resting_indexes():
            in_use = self._flows.transceivers()
            for index in resting:
                if index not in in_use:
                    self._table.release_index(index)
        self._on_pass(self._clock() - now)

    def end(self, lease: Lease, why: str) -> None:
        """Leave nothing of a lease that the table holds no more."""
        log.info("transceiver %s: %s; %d routes go", lease.id, why, len(lease.routes))
        self.forget_routes(lease.routes)
        self._maps.set_transceiver(lease.index, types.Transceiver())
        self._on_end(lease)
        self._events.tell(
            "transceiver_gone", transceiver=lease.id, why=why, routes=len(lease.routes)
        )

    def forget_routes(self, ufrags: Iterable[str]) -> None:
        """Take routes that the table holds no more out of the map, and close their flows."""
        gone = [route for route in map(self._maps.remove_route, ufrags) if route is not None]
        self._flows.close_routes(
            [route.id for route in gone],
            known=self._table.ids,
            among=[slot for route in gone for slot in route.slots],
            now=self._clock(),
        )
