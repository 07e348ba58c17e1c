"""What happened, for who watches: a bounded list of session-level facts, newest last. No I/O.

A fact is told once and numbered. Who reads too slowly learns how many he has missed, and costs
nobody else anything.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

__all__ = ["KINDS", "Event", "EventLog"]

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
    "interface_changed": "an interface went down, came up, lost or regained the program",
    "address_changed": "the kernel has lost, or has again, an address of the relay",
    "adopted": "an agent took over what an earlier one left",
    "upgraded": "another program took over the interfaces",
}
"""Every kind of event and what it means."""


@dataclass(frozen=True, slots=True)
class Event:
    """A fact. *number* counts up by one; *at* is Unix time in seconds."""

    number: int
    at: float
    kind: str
    facts: dict[str, Any] = field(default_factory=dict)


class EventLog:
    """The last `KEPT` events. *clock* gives Unix time; *on_event* is called with each."""

    def __init__(
        self, *, clock: Callable[[], float], on_event: Callable[[Event], None] | None = None
    ) -> None:
        self._clock = clock
        self._events: deque[Event] = deque(maxlen=KEPT)
        self._next = 1
        self._listeners: list[Callable[[Event], None]] = [on_event] if on_event else []

    def tell(self, kind: str, *, at: float | None = None, **facts: Any) -> Event:
        """Add an event; *at* if it happened earlier than now. Raises KeyError for no kind of
        `KINDS`."""
        KINDS[kind]
        event = Event(self._next, self._clock() if at is None else at, kind, facts)
        self._next += 1
        self._events.append(event)
        for listener in tuple(self._listeners):
            listener(event)
        return event

    @property
    def last(self) -> int:
        """The number of the last event; 0 if there was none."""
        return self._next - 1

    def since(self, number: int) -> tuple[list[Event], int]:
        """Events after that *number*, and how many of those are forgotten already."""
        events = [event for event in self._events if event.number > number]
        first = events[0].number if events else self._next
        return events, max(0, first - number - 1)

    def listen(self, listener: Callable[[Event], None]) -> Callable[[], None]:
        """Call *listener* with each event to come, until what is returned is called."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)
