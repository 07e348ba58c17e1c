"""What happened, for who watches: a bounded list of session-level facts, newest last. No I/O.

A fact is told once and numbered. Who reads too slowly learns how many he has missed, and costs
nobody else anything. Numbers begin where no earlier agent's can have ended, so that who comes back
to another agent than he left learns that, too.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

__all__ = ["ENDS", "KINDS", "Event", "EventLog"]

KEPT = 4096
"""Events that are remembered, for those who come back with the number of the last they saw."""

KINDS: dict[str, str] = {
    "transceiver_registered": "a transceiver has a lease that it did not have before",
    "transceiver_gone": "a lease ended: deregistered, superseded, expired",
    "drain_started": "no new routes: of a transceiver, or of the whole relay",
    "drain_ended": "all routes are gone, the deadline has passed, or the drain was called off",
    "route_added": "packets with this ufrag are steered from now on",
    "route_refused": "a route was asked for and not made, and why",
    "route_removed": "the session is over; with what it has carried",
    "first_check": "the first Binding Request with the route's ufrag has come",
    "established": "the transceiver has answered: the client's flow",
    "confirmed": "the client has answered a check of the transceiver",
    "roamed": "the session goes on from another client address",
    "expired": "a flow without a packet from its client for 30 s is closed",
    "refused": "packets dropped since the last word of it, by reason; of no session",
    "transceiver_unreachable": "there is no way to transceivers that there was, and why",
    "transceiver_reachable": "there is a way to them again",
    "left_out": "of one second, so many more than are told, by kind",
    "interface_changed": "an interface went down, came up, lost or regained the program",
    "address_changed": "the kernel has lost, or has again, an address of the relay",
    "adopted": "an agent took over what an earlier one left",
    "upgraded": "another program took over the interfaces",
}
"""Every kind of event and what it means."""

ENDS = ("deregistered", "superseded", "expired")
"""Why a lease ends."""


@dataclass(frozen=True, slots=True)
class Event:
    """A fact. *number* counts up by one; *at* is Unix time in seconds."""

    number: int
    at: float
    kind: str
    facts: dict[str, Any] = field(default_factory=dict)


class EventLog:
    """The last `KEPT` events. *clock* gives Unix time."""

    def __init__(self, *, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._events: deque[Event] = deque(maxlen=KEPT)
        # A million a second for as long as the agent before was up, and exact in JavaScript.
        self._first = self._next = (int(clock()) << 20) + 1
        self._listeners: list[Callable[[Event], None]] = []

    def tell(self, kind: str, *, at: float | None = None, **facts: Any) -> Event:
        """Add an event; *at* if it happened earlier than now. Raises KeyError for no kind of
        `KINDS`."""
        if kind not in KINDS:
            raise KeyError(kind)
        event = Event(self._next, self._clock() if at is None else at, kind, facts)
        self._next += 1
        self._events.append(event)
        for listener in tuple(self._listeners):
            listener(event)
        return event

    @property
    def last(self) -> int:
        """The number of the last event, whether or not it was this log's."""
        return self._next - 1

    def since(self, number: int) -> tuple[list[Event], int | None]:
        """Events after that *number*, and how many of those are forgotten already; None if that is
        not known, since the number is of another agent's. 0: all that are remembered."""
        forgotten = self._next - len(self._events) - self._first
        if not self._first - 1 <= number < self._next:
            return list(self._events), None if number else forgotten
        left = self._next - 1 - number
        kept = islice(self._events, max(0, len(self._events) - left), None)
        return list(kept), max(0, left - len(self._events))

    def listen(self, listener: Callable[[Event], None]) -> Callable[[], None]:
        """Call *listener* with each event to come, until what is returned is called. It must not
        raise, nor take long."""
        self._listeners.append(listener)

        def stop() -> None:
            if listener in self._listeners:
                self._listeners.remove(listener)

        return stop
