"""What time asks of the agent: leases that end, flows to close, slots to free, and what else is
learned from a look at all slots. In steps, so that no request waits for long."""

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any

import numpy as np

from loader import types
from loader.accounts import NOTHING, Account, Accounts, accounts_of
from loader.events import EventLog
from loader.flows import FlowTable, ticks
from loader.maps import Maps
from loader.picture import picture_of_account
from loader.sessions import TOLD_A_PASS, Sessions
from loader.table import Lease, Route, RouteTable

__all__ = ["REFUSALS", "Housekeeping"]

log = logging.getLogger(__name__)

_PASS_SECONDS = 1.0
_STALL_SECONDS = 3.0  # longer than any pass, and much shorter than a lease
_FEW = 64  # routes; of more, it is quicker to look for their slots among all

REFUSALS = (
    "no_route",
    "source",
    "table_full",
    "route_full",
    "transceiver_gone",
    "neighbour",
    "wrong_transceiver",
    "amplification",
    "link_address",
)
"""Reasons for which somebody may have been refused a session, or an answer. The others are noise,
or what a client repeats."""


class Housekeeping:
    """Ends what has to end, in the maps and in the tables. `clock` gives monotonic seconds, `wall`
    Unix time; *on_end* is called with each lease that has ended, *on_pass* with the seconds that
    each pass took."""

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
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._maps = maps
        self._table = table
        self._flows = flows
        self._events = events
        self._on_end = on_end
        self._on_pass = on_pass
        self._clock = clock
        self._wall = wall
        self.turned = clock()
        """When `keep` last came round; it does so once a second."""
        self._sessions = Sessions(maps.slots, table, events)
        self.accounts = Accounts(maps.slots, table.ids)
        """What routes and transceivers have carried."""
        self._resting: dict[int, str] = {}  # indexes of ended leases, and whose they were
        self._earlier: dict[str, Account] = {}  # of those whose indexes are another's now
        self._dropped = maps.counters().dropped

    def adopt(self) -> None:
        """Take the slots for what they are, when the table has adopted its routes: what was there
        before this agent is no news."""
        for piece in self._flows.pieces:
            reading = self._flows.sweep(piece, self._table.ids, now=self._clock())
            if reading:
                self.accounts.take(reading)
                self._sessions.adopt(reading)
                self._flows.free(reading)
        self.accounts.end_pass()

    async def keep(self) -> None:
        """Forever: a pass a second."""
        while True:
            for _ in self.steps():
                await asyncio.sleep(0)
            self.turned = self._clock()
            begun = self._clock()
            await asyncio.sleep(_PASS_SECONDS)
            stalled = self._clock() - begun - _PASS_SECONDS
            if stalled > _STALL_SECONDS:
                # Renewals may wait in the socket that came in time.
                log.warning("stood still for %.1f s; leases are that much longer", stalled)
                self._table.prolong(stalled)

    def sweep(self) -> None:
        """A pass at once."""
        for _ in self.steps():
            pass

    def steps(self) -> Iterator[None]:
        """A pass, a millisecond or two at a time."""
        spent = 0.0
        steps = self._pass()
        while True:
            begun = self._clock()
            over = next(steps, True)
            spent += self._clock() - begun
            if over:
                break
            yield
        self._on_pass(spent)

    def _pass(self) -> Iterator[None]:
        for lease in self._table.expire(now=self._clock()):
            self.end(lease, "expired")
            yield
        resting = self._table.resting_indexes()
        in_use = np.zeros(types.TRANSCEIVERS, dtype=np.bool_)
        for piece in self._flows.pieces:
            now = self._clock()
            reading = self._flows.sweep(piece, self._table.ids, now=now)
            if reading:
                in_use[reading.transceiver[~reading.freed]] = True
                self.accounts.take(reading)
                self._sessions.take(reading)
                self._flows.free(reading)
            yield
            yield from self._sessions.tell(moment=ticks(now), now=self._wall())
        self.accounts.end_pass()
        self._sessions.end_pass()
        for index in resting:
            if not in_use[index]:
                self._release(index)
        self._tell_refusals()

    def _release(self, index: int) -> None:
        """No slot refers to an ended lease's index any more."""
        id, last = self._resting.pop(index, None), self.accounts.end_transceiver(index)
        if id is not None:
            self._earlier[id] = self._earlier.pop(id, NOTHING) + last
            if len(self._earlier) > types.TRANSCEIVERS:
                del self._earlier[next(iter(self._earlier))]
        self._table.release_index(index)

    def _tell_refusals(self) -> None:
        before, self._dropped = self._dropped, self._maps.counters().dropped
        more = {name: self._dropped[name] - before[name] for name in REFUSALS}
        if any(more.values()):
            self._events.tell("refused", reasons={name: n for name, n in more.items() if n})

    def transceiver_accounts(self) -> dict[str, Account]:
        """Of each transceiver that has a lease, by its id: what it has carried since the agent's
        start, as of some seconds ago, also under earlier leases. They never go down while the
        agent runs, unless 4,096 other transceivers were here meanwhile."""
        leases = self._table.leases()
        resting = self.accounts.of_transceivers(self._resting)
        earlier = [*self._earlier.items(), *zip(self._resting.values(), resting, strict=True)]
        now = self.accounts.of_transceivers(lease.index for lease in leases)
        accounts = {lease.id: account for lease, account in zip(leases, now, strict=True)}
        for id, account in earlier:
            if id in accounts:
                accounts[id] += account
        return accounts

    def end(self, lease: Lease, why: str) -> None:
        """Leave nothing of a lease that the table holds no more."""
        log.info("transceiver %s: %s; %d routes go", lease.id, why, len(lease.routes))
        self.forget_routes(lease, lease.routes)
        self._maps.set_transceiver(lease.index, types.Transceiver())
        self._resting[lease.index] = lease.id
        self._on_end(lease)
        self._events.tell(
            "transceiver_gone", transceiver=lease.id, why=why, routes=len(lease.routes)
        )

    def forget_routes(self, lease: Lease, routes: Mapping[str, Route]) -> None:
        """Take routes of the lease's, which the table holds no more, out of the map, and close
        their flows."""
        if not routes:
            return
        ids = np.array([route.id for route in routes.values()], dtype=np.uint32)
        known, now = self._table.ids, self._clock()
        if len(routes) <= _FEW:
            entries = [self._maps.remove_route(ufrag) for ufrag in routes]
            slots = [slot for entry in entries if entry for slot in entry.slots if slot]
            carried = self.accounts.end_routes(ids, among=slots)
            self._flows.close_routes(ids, known=known, among=slots, now=now)
        else:
            self._maps.remove_routes(routes)
            carried = self.accounts.end_routes(ids)
            self._flows.close_orphans(known, now=now)
        for ufrag, account in zip(islice(routes, TOLD_A_PASS), accounts_of(carried), strict=False):
            facts: dict[str, Any] = picture_of_account(account)
            self._events.tell("route_removed", ufrag=ufrag, transceiver=lease.id, **facts)
        if len(routes) > TOLD_A_PASS:
            self._events.tell("left_out", route_removed=len(routes) - TOLD_A_PASS)
