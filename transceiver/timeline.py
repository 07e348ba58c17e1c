"""What has happened to a session and when, for logs, histograms and `shunt explain`."""

from collections.abc import Callable
from enum import StrEnum

__all__ = ["Moment", "Timeline"]

_MOST = 64
"""Entries kept of one session: the first half of them and the newest."""


class Moment(StrEnum):
    """What a timeline knows of, in the order in which it usually comes."""

    OFFER = "offer"
    ROUTE = "route"
    """The relay steers the session's packets here."""
    ANSWER = "answer"
    FIRST_CHECK = "first check"
    """The client's first authentic check has come."""
    SELECTED = "selected"
    """The client has answered ours: media has somewhere to go."""
    DTLS = "dtls"
    """The handshake is done."""
    FIRST_AUDIO_IN = "first audio in"
    FIRST_AUDIO_OUT = "first audio out"
    DATA = "data"
    """A data channel was opened."""
    ROAM = "roam"
    """Media goes elsewhere."""
    RESTART = "restart"
    """An ICE restart was begun."""
    END = "end"


class Timeline:
    """The moments of one session. *clock* tells monotonic seconds, *wall* those since 1970."""

    def __init__(self, clock: Callable[[], float], wall: Callable[[], float]) -> None:
        self.began = wall()
        """When the session began, seconds since 1970."""
        self._clock = clock
        self._origin = clock()
        self._first: dict[Moment, float] = {}
        self._entries: list[tuple[float, Moment, dict[str, str]]] = []
        self._left_out = 0

    def note(self, what: Moment, **details: str) -> None:
        """It has happened just now."""
        after = self._clock() - self._origin
        self._first.setdefault(what, after)
        if len(self._entries) == _MOST:  # a client that roams for ever must not grow us
            del self._entries[_MOST // 2]
            self._left_out += 1
        self._entries.append((after, what, details))

    def at(self, what: Moment) -> float | None:
        """When it first happened, seconds after the offer; None if it has not."""
        return self._first.get(what)

    def between(self, start: Moment, end: Moment) -> float | None:
        """Seconds from one to the other, None unless both have happened."""
        began, ended = self._first.get(start), self._first.get(end)
        return None if began is None or ended is None else ended - began

    def to_json(self) -> list[dict[str, object]]:
        """Oldest first; `after_s` is seconds after the offer."""
        entries: list[dict[str, object]] = [
            {"after_s": round(after, 6), "what": str(what), **details}
            for after, what, details in self._entries
        ]
        if self._left_out:
            entries.insert(_MOST // 2, {"what": "left out", "count": self._left_out})
        return entries
