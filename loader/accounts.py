"""What sessions and transceivers have carried: packets and bytes each way, over all the slots that
were theirs. No I/O.

A slot counts for itself from when it is opened. Here its counts are *settled*, that is added to
its route's account, when it is about to lose them (it has closed, or another client may take it
over any time) or to count for another route. A route's account is what was settled, and what its
slots have counted since.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from loader.flows import Counts, Indexes, Reading, counts_of
from loader.maps import Rate, Slots
from loader.routeids import INDEXES, NO_ROUTE, Ids, RouteIds, indexes_of
from loader.types import TRANSCEIVERS, State

__all__ = ["NOTHING", "Account", "Accounts", "accounts_of"]


SUMMED_EVERY = 4
"""Passes, of which one adds up what all slots in use have counted: half of a pass's work."""


@dataclass(frozen=True, slots=True)
class Account:
    """What was carried."""

    to_transceiver: Rate
    to_client: Rate

    def __add__(self, other: "Account") -> "Account":
        return Account(
            _sum(self.to_transceiver, other.to_transceiver),
            _sum(self.to_client, other.to_client),
        )


NOTHING = Account(Rate(0, 0), Rate(0, 0))


def _sum(one: Rate, other: Rate) -> Rate:
    return Rate(one.packets + other.packets, one.bytes + other.bytes)


def accounts_of(counts: Counts) -> Iterator[Account]:
    """One for each column."""
    for packets_in, bytes_in, packets_out, bytes_out in zip(*counts.tolist(), strict=True):
        yield Account(Rate(packets_in, bytes_in), Rate(packets_out, bytes_out))


class Accounts:
    """Of the routes that *ids* knows and of transceivers, by index. They begin with the agent, and
    with what the slots have counted by then: of slots that had closed before, nothing is known.
    What a pending slot counts between the last look at it and its being taken over is lost. Of
    routes that share their index with another, only what their present slots count is known.
    """

    def __init__(self, slots: Slots, ids: RouteIds) -> None:
        self._slots = slots
        self._ids = ids
        # By route's index, and whose they are: an index comes to another route in the end.
        self._carried = np.zeros((4, INDEXES), dtype=np.uint64)
        self._owner = np.full(INDEXES, NO_ROUTE, dtype=np.uint32)
        # By slot: what of its counts is settled. Nearly all zero, and zero takes no memory.
        self._settled = np.zeros((4, len(slots)), dtype=np.uint64)
        # By slot: the hash of a pending one's client.
        self._check = np.zeros(len(slots), dtype=np.uint32)
        # By transceiver's index: of slots' earlier lives, of slots in use, in all.
        self._gone = np.zeros((4, TRANSCEIVERS), dtype=np.uint64)
        self._seen = np.zeros((4, TRANSCEIVERS), dtype=np.uint64)
        self._totals = np.zeros((4, TRANSCEIVERS), dtype=np.uint64)
        self._pass = 0

    # A pass over the slots.

    def take(self, reading: Reading) -> None:
        """One step of a pass."""
        self._find_taken_over(reading)
        moved = (reading.was_state != State.FREE) & (reading.was_route != reading.route)
        loses = (reading.state == State.PENDING) | reading.freed
        loses |= (reading.state == State.CLOSING) & (reading.was_state != State.CLOSING)
        at = np.flatnonzero(moved)
        self._settle(reading.slot[at], reading.was_route[at])
        at = np.flatnonzero(loses & ~moved)
        at = at[self._ids.placed(reading.route[at])]  # an extra's slots alone are its account
        self._settle(reading.slot[at], reading.route[at])

        at = np.flatnonzero(reading.freed)
        slots = reading.slot[at]
        _add(self._gone, reading.transceiver[at], self._counts(slots))
        self._settled[:, slots] = 0
        if self._pass % SUMMED_EVERY == 0:
            stays = np.flatnonzero(~reading.freed)
            there, back = self._slots["to_transceiver"], self._slots["to_client"]
            whole = len(stays) == len(reading.slot)
            where = reading.at if whole else reading.slot[stays]
            counts = counts_of(there[where], back[where])
            _add(self._seen, reading.transceiver[stays].astype(np.intp), counts)

    def end_pass(self) -> None:
        """All steps of a pass are taken: now and then, the transceivers' totals are new."""
        if self._pass % SUMMED_EVERY == 0:
            # They never go down, whatever has happened to a slot.
            np.maximum(self._totals, self._gone + self._seen, out=self._totals)
            self._seen[:] = 0
        self._pass += 1

    def _find_taken_over(self, reading: Reading) -> None:
        """Pending slots that have come to another client since, and count from nothing."""
        check = self._slots["to_transceiver"]["check"]
        was = np.flatnonzero(reading.was_state == State.PENDING)
        if len(was):
            slots = reading.slot[was]
            again = self._check[slots] != check[slots]
            again |= (self._counts(slots) < self._settled[:, slots]).any(axis=0)
            slots = slots[again]
            _add(self._gone, reading.transceiver[was[again]], self._settled[:, slots])
            self._settled[:, slots] = 0
        pending = reading.slot[reading.state == State.PENDING]
        self._check[pending] = check[pending]

    def _settle(self, slots: Indexes, routes: Ids) -> None:
        if not len(slots):
            return
        counts, before = self._counts(slots), self._settled[:, slots]
        self._settled[:, slots] = counts
        placed = self._ids.placed(routes)
        self._credit(routes[placed], (counts - before)[:, placed])

    def _credit(self, routes: Ids, counts: Counts) -> None:
        at = indexes_of(routes)
        self._carried[:, at[self._owner[at] != routes]] = 0
        self._owner[at] = routes
        _add(self._carried, at, counts)

    # What is asked.

    def of_transceivers(self, indexes: Iterable[int]) -> Iterator[Account]:
        """Of each, all since its index came to it, as of `SUMMED_EVERY` passes ago at most."""
        return accounts_of(self._totals[:, list(indexes)])

    def end_transceiver(self, index: int) -> Account:
        """The same to the last packet, of one that no slot refers to any more: the index will be
        another's."""
        np.maximum(self._totals[:, index], self._gone[:, index], out=self._totals[:, index])
        (account,) = self.of_transceivers([index])
        for each in (self._gone, self._seen, self._totals):
            each[:, index] = 0
        return account

    def of_routes(self, routes: Ids, *, among: Iterable[int] | None = None) -> Counts:
        """Of each route, as it is now: a column each. With *among*, only these slots are looked
        at, which the routes' entries in the map name; else all that are in use."""
        return self._sum(routes, *self._slots_of(routes, among))

    def end_routes(self, routes: Ids, *, among: Iterable[int] | None = None) -> Counts:
        """The same, of routes that end now: what their slots count from here on is another's."""
        slots, place = self._slots_of(routes, among)
        sums = self._sum(routes, slots, place)
        self._settled[:, slots] = self._counts(slots)
        return sums

    def _slots_of(self, routes: Ids, among: Iterable[int] | None) -> tuple[Indexes, Indexes]:
        """The slots in use of these routes, and which of the routes is each one's."""
        state = self._slots["to_transceiver"]["state"]
        if among is None:
            slots = np.flatnonzero(state)
        else:
            slots = np.array(list(set(among)), dtype=np.intp)
            slots = slots[state[slots] != State.FREE]
        owners = self._slots["book"]["route"][slots]
        place = _places(routes, owners)
        mine = place >= 0
        return slots[mine], place[mine]

    def _sum(self, routes: Ids, slots: Indexes, place: Indexes) -> Counts:
        now, before = self._counts(slots), self._settled[:, slots]
        now -= np.where((now < before).any(axis=0), 0, before)
        sums = np.zeros((4, len(routes)), dtype=np.uint64)
        _add(sums, place, now)
        at = indexes_of(routes)
        settled = self._owner[at] == routes
        sums[:, settled] += self._carried[:, at[settled]]
        return sums

    def _counts(self, slots: Indexes) -> Counts:
        return counts_of(self._slots["to_transceiver"][slots], self._slots["to_client"][slots])


def _add(sums: Counts, at: npt.NDArray[np.integer], counts: Counts) -> None:
    for row, each in zip(sums, counts, strict=True):
        np.add.at(row, at, each)


_FEW = 4096  # comparisons


def _places(routes: Ids, owners: Ids) -> Indexes:
    """Where each owner is among the routes, or -1."""
    if len(owners) * len(routes) <= _FEW:
        if not len(routes):
            return np.full(len(owners), -1, dtype=np.intp)
        same = owners[:, None] == routes
        return np.where(same.any(axis=1), same.argmax(axis=1), -1)
    column = np.full(INDEXES, -1, dtype=np.intp)
    column[indexes_of(routes)] = np.arange(len(routes))
    place = column[indexes_of(owners)]
    found = place >= 0
    found[found] = routes[place[found]] == owners[found]
    place[~found] = -1
    return place
