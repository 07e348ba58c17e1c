"""What becomes of sessions, told from one look at their slots to the next. No I/O.

A route has the slots of all client addresses that its session was tried from. The *session's flow*
is one of them: the first to be established, until another takes over, which it does

* when the session's flow is no more, or
* when its client has not been heard through it for 5 s, but through the other one since, or
* when the other one carries a good deal, and more than twice as much: checks alone go both ways
  through all of them.

In the first 5 s ICE is choosing among a client's addresses. What takes over later is told as a
session that has roamed.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from loader.addresses import endpoint
from loader.events import EventLog
from loader.flows import Bools, Indexes, Reading, elapsed
from loader.maps import Slots
from loader.routeids import INDEXES, NO_ROUTE, Ids, indexes_of
from loader.table import RouteTable
from loader.types import TICK, State, text_address

__all__ = ["TOLD_A_PASS", "Sessions"]

TOLD_A_PASS = 1000
"""Events of a kind that are told of one pass; of more, only how many they were."""

_BATCH = 50  # events told at a time: less than a millisecond
_CHOOSING = int(5.0 / TICK)
_SILENT = int(5.0 / TICK)
_MUCH = 2048  # bytes from one pass to the next, more than checks amount to
_REMEMBERED = 200  # passes for which it counts what a slot had carried by then
_LOOKED_AT = 256  # of a piece's slots that are one of several of their route, in a pass

_CLIENT = np.dtype([("address", "u1", 16), ("port", ">u2")])


@dataclass(frozen=True, slots=True)
class _Fact:
    """An event to be told, but for its words. *at* is a tick, *before* the client before."""

    at: int
    kind: str
    route: int
    slot: int
    client: tuple[bytes, int]
    before: tuple[bytes, int] | None = None
    was: int = State.FREE


class Sessions:
    """The sessions of the *table*'s routes, as their *slots* show them, told to *events*. Routes
    that share their index with another are not told of."""

    def __init__(self, slots: Slots, table: RouteTable, events: EventLog) -> None:
        self._slots = slots
        self._table = table
        self._events = events
        self._facts: list[_Fact] = []
        self._found: Counter[str] = Counter()
        self._pass = _REMEMBERED + 1  # so that 0 is long ago
        # By route's index, and whose they are.
        self._owner = np.zeros(INDEXES, dtype=np.uint32)
        self._checked = np.zeros(INDEXES, dtype=np.bool_)
        self._flow = np.zeros(INDEXES, dtype=np.uint32)  # its slot + 1; 0: none yet
        self._begun = np.zeros(INDEXES, dtype=np.uint32)  # tick at which there first was one
        self._client = np.zeros(INDEXES, dtype=_CLIENT)  # of the flow
        # By slot: whether it is the flow that stands at its route's index.
        self._is_flow = np.zeros(len(slots), dtype=np.bool_)
        # By slot, of those whose route has several.
        self._weighed = np.zeros(len(slots), dtype=np.uint32)  # in that pass, last
        self._bytes = np.zeros(len(slots), dtype=np.uint64)
        self._carried = np.zeros(len(slots), dtype=np.uint64)  # since the pass before

    # A pass over the slots.

    def adopt(self, reading: Reading) -> None:
        """One step of the first pass of an agent: what it finds was there before, and is no
        news."""
        self._add("expired", reading, self._placed(reading, reading.expired))
        live = self._placed(reading, reading.live)
        self._checked[self._rows(reading.route[live])] = True
        asked = reading.next_route[live]
        self._checked[self._rows(asked[self._table.ids.placed(asked)])] = True
        # The one heard last is the session's flow, as far as can be seen; if it was not, the next
        # seconds show it, and that is no news either.
        here = live[reading.state[live] == State.ESTABLISHED]
        here = here[np.argsort(-elapsed(reading.moment, reading.seen[here]), kind="stable")]
        self._set_flow(reading, here)
        self._begun[indexes_of(reading.route[here])] = reading.moment

    def take(self, reading: Reading) -> None:
        """One step of a pass."""
        live, fresh = reading.live, reading.fresh & reading.live
        self._is_flow[reading.slot[np.flatnonzero(fresh)]] = False
        established = reading.state == State.ESTABLISHED
        begins = established & (fresh | (reading.was_state != State.ESTABLISHED))
        self._find_checked(reading, live, fresh)
        self._find_established(reading, begins)
        self._find_flows(reading, established, begins)
        proven = self._placed(reading, live & reading.proven & ~reading.was_proven)
        proven = proven[self._table.makes_checks(reading.route[proven])]
        self._add("confirmed", reading, proven)
        self._add("expired", reading, self._placed(reading, reading.expired))

    def tell(self, *, moment: int, now: float) -> Iterator[None]:
        """Tell what the steps have found so far, in the order of time and a few at a time.
        *moment* is the tick of *now*, in Unix time."""
        facts, self._facts = self._facts, []
        ages = elapsed(moment, np.array([fact.at for fact in facts], dtype=np.uint32))
        for count, place in enumerate(np.argsort(-ages, kind="stable").tolist()):
            self._tell_one(facts[place], now - max(0, int(ages[place])) * TICK)
            if count % _BATCH == _BATCH - 1:
                yield

    def end_pass(self) -> None:
        """All steps of a pass are taken and told."""
        left_out = {
            kind: count - TOLD_A_PASS for kind, count in self._found.items() if count > TOLD_A_PASS
        }
        if left_out:
            self._events.tell("left_out", **left_out)
        self._found.clear()
        self._pass += 1

    def _tell_one(self, fact: _Fact, at: float) -> None:
        ufrag = self._table.ufrag(fact.route)
        lease = self._table.owner(ufrag) if ufrag else None
        if lease is None:
            return  # gone meanwhile
        more: dict[str, Any] = {}
        if fact.before:
            more["before"] = _text(*fact.before)
        if fact.kind == "expired":
            more["was"] = State(fact.was).name.lower()
        self._events.tell(
            fact.kind,
            at=at,
            ufrag=ufrag,
            transceiver=lease.id,
            client=_text(*fact.client),
            slot=fact.slot,
            **more,
        )

    # What is new.

    def _find_checked(self, reading: Reading, live: Bools, fresh: Bools) -> None:
        opened = np.flatnonzero(fresh)
        asked = np.flatnonzero(live & (reading.next_route != NO_ROUTE))
        if not len(opened) and not len(asked):
            return
        here = np.concatenate((opened, asked))
        routes = np.concatenate((reading.route[opened], reading.next_route[asked]))
        ticks = np.concatenate((reading.since[opened], reading.seen[asked]))
        placed = self._table.ids.placed(routes)
        here, routes, ticks = here[placed], routes[placed], ticks[placed]
        rows = self._rows(routes)
        # The earliest slot of each route that has not been told of.
        order = np.lexsort((-elapsed(reading.moment, ticks), routes))
        order = order[_first_of_each(routes[order])]
        order = order[~self._checked[rows[order]]]
        self._checked[rows[order]] = True
        self._add("first_check", reading, here[order], at=ticks[order], routes=routes[order])

    def _find_established(self, reading: Reading, begins: Bools) -> None:
        here = self._placed(reading, begins)
        if not len(here):
            return
        rows = self._rows(reading.route[here])
        clients = self._clients(reading.slot[here])
        known = (self._flow[rows] == reading.slot[here] + 1) & (self._client[rows] == clients)
        here = here[~known]
        self._add("established", reading, here, at=reading.since[here])

    def _find_flows(self, reading: Reading, established: Bools, begins: Bools) -> None:
        other = established & ~self._is_flow[reading.at]
        others = np.flatnonzero(other)
        if len(others) > _LOOKED_AT:
            # Those that are new, and of the rest some this time, and some the next.
            turn = np.arange(_LOOKED_AT) + self._pass * _LOOKED_AT
            other &= begins
            other[others[turn % len(others)]] = True
            others = np.flatnonzero(other)
        others = others[self._table.ids.placed(reading.route[others])]
        if not len(others):
            return
        rows = self._rows(reading.route[others])
        first = others[self._flow[rows] == 0]
        if len(first):
            # The earliest last, which then stands.
            first = first[np.argsort(elapsed(reading.moment, reading.since[first]))]
            self._set_flow(reading, first)
            self._begun[indexes_of(reading.route[first])] = reading.since[first]
        stands = self._flow[rows] == reading.slot[others] + 1
        self._is_flow[reading.slot[others[stands]]] = True
        rivals = others[~stands]
        if len(rivals):
            self._find_roamed(reading, rivals, begins)

    def _find_roamed(self, reading: Reading, here: Indexes, begins: Bools) -> None:
        routes, slots, seen = reading.route[here], reading.slot[here], reading.seen[here]
        rows = indexes_of(routes)
        flow = self._flow[rows].astype(np.intp) - 1
        there, back = self._slots["to_transceiver"], self._slots["to_client"]
        alive = there["state"][flow] == State.ESTABLISHED
        alive &= self._slots["book"]["route"][flow] == routes
        seen_before = there["seen"][flow]
        carried = self._weigh(slots, there["bytes"][slots] + back["bytes"][slots])
        carried_before = self._weigh(flow, there["bytes"][flow] + back["bytes"][flow])
        silent = elapsed(reading.moment, seen_before) >= _SILENT
        moves = ~alive & (elapsed(reading.moment, seen) < _SILENT)
        moves |= alive & silent & ((seen - seen_before).view(np.int32) > 0)
        moves |= alive & (carried >= _MUCH) & (carried > 2 * carried_before)
        if not moves.any():
            return
        # Of several that could be it, the one that carries most.
        order = np.lexsort((-elapsed(reading.moment, seen), carried, routes))
        order = order[moves[order]]
        order = order[_first_of_each(routes[order][::-1])[::-1]]
        here, rows = here[order], rows[order]
        before = self._client[rows]
        chosen = elapsed(reading.moment, self._begun[rows]) >= _CHOOSING
        told = chosen & (before != self._clients(reading.slot[here]))
        at = np.where(begins[here], reading.since[here], np.uint32(reading.moment))
        self._set_flow(reading, here)
        self._add("roamed", reading, here[told], at=at[told], before=before[told])

    # The arrays by route's index and by slot.

    def _placed(self, reading: Reading, which: Bools) -> Indexes:
        here = np.flatnonzero(which)
        return here[self._table.ids.placed(reading.route[here])] if len(here) else here

    def _rows(self, routes: Ids) -> Indexes:
        """Where these routes' own things are, which are nothing at first."""
        rows = indexes_of(routes)
        others = self._owner[rows] != routes
        if others.any():
            new = rows[others]
            self._owner[new] = routes[others]
            self._checked[new] = False
            self._flow[new] = 0
        return rows

    def _set_flow(self, reading: Reading, here: Indexes) -> None:
        """Of several slots of one route, the last counts."""
        rows = self._rows(reading.route[here])
        before = self._flow[rows]
        self._is_flow[before[before != 0] - 1] = False
        self._flow[rows] = reading.slot[here] + 1
        self._client[rows] = self._clients(reading.slot[here])
        self._is_flow[self._flow[rows] - 1] = True

    def _clients(self, slots: Indexes) -> npt.NDArray[Any]:
        back = self._slots["to_client"]
        clients = np.empty(len(slots), dtype=_CLIENT)
        clients["address"], clients["port"] = back["client"][slots], back["client_port"][slots]
        return clients

    def _weigh(self, slots: Indexes, count: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        """Bytes a pass since the slots were weighed the last time; 0 if that is too long ago."""
        anew = self._weighed[slots] != self._pass
        new, now = slots[anew], count[anew]
        before, passes = self._bytes[new], self._pass - self._weighed[new]
        lately = (passes <= _REMEMBERED) & (now >= before)
        self._carried[new] = np.where(lately, now - before, 0) // passes
        self._bytes[new] = now
        self._weighed[new] = self._pass
        carried: npt.NDArray[np.uint64] = self._carried[slots]
        return carried

    def _add(
        self,
        kind: str,
        reading: Reading,
        here: Indexes,
        *,
        at: npt.NDArray[np.uint32] | None = None,
        routes: Ids | None = None,
        before: npt.NDArray[Any] | None = None,
    ) -> None:
        room = max(0, TOLD_A_PASS - self._found[kind])
        self._found[kind] += len(here)
        if not len(here) or not room:
            return
        here = here[:room]
        clients = self._clients(reading.slot[here])
        moments = [reading.moment] * len(here) if at is None else at[:room].tolist()
        named = reading.route[here] if routes is None else routes[:room]
        befores = [None] * len(here) if before is None else map(_client, before[:room])
        columns = (moments, named.tolist(), reading.slot[here].tolist(), map(_client, clients))
        more = (befores, reading.was_state[here].tolist())
        for tick, route, slot, client, other, was in zip(*columns, *more, strict=True):
            self._facts.append(_Fact(tick, kind, route, slot, client, other, was))


def _first_of_each(routes: Ids) -> Bools:
    """Of routes in order: which are not as the one before."""
    first = np.ones(len(routes), dtype=np.bool_)
    first[1:] = routes[1:] != routes[:-1]
    return first


def _client(client: Any) -> tuple[bytes, int]:
    return client["address"].tobytes(), int(client["port"])


def _text(address: bytes, port: int) -> str:
    return endpoint(text_address(address), port)
