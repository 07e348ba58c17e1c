"""What a client has set its session to, in a form that the server takes, and takes again.

A server forgets when its connection ends, so what it has accepted is kept to be sent to the next
one: and only that, since one setting that it refuses would have it refuse them all. No I/O.
"""

from collections import deque
from collections.abc import Mapping

import msgspec

from transceiver.backends.oai_events import Event, EventError, new_id
from transceiver.backends.oai_session import MAX_SESSION

__all__ = ["Settings", "without_formats"]

MAX_PENDING = 16
"""Updates of which the server has not said yet whether it accepts them."""

FORMATS = frozenset({"input_audio_format", "output_audio_format"})
"""The beta's; what is today's is `audio.….format`."""


class Settings:
    """The settings of one session. *beta*: of that shape."""

    def __init__(self, *, beta: bool) -> None:
        self._beta = beta
        self._accepted: Event = {}
        self._again = new_id("event")
        self._pending: deque[tuple[str, Event]] = deque()  # ids are the client's: any, and twice

    def ask(self, wanted: object, event_id: str | None = None) -> Event:
        """The `session.update` to send for what a client wants set; EventError if it cannot be."""
        if not isinstance(wanted, dict):
            raise EventError(
                "invalid_value", "'session' is an object.", param="session", event_id=event_id
            )
        if len(self._pending) == MAX_PENDING:
            raise EventError(
                "too_many_updates",
                f"{MAX_PENDING} updates of the session are not answered yet.",
                event_id=event_id,
            )
        session = self._allowed(wanted)
        if len(msgspec.json.encode([self._accepted, *self._pending, session])) > MAX_SESSION:
            raise EventError(
                "invalid_value",
                f"A session's settings may have {MAX_SESSION} bytes in all.",
                param="session",
                event_id=event_id,
            )
        event_id = event_id or new_id("event")
        self._pending.append((event_id, session))
        return self._update(session, event_id)

    def accepted(self) -> None:
        """Know of `session.updated`: servers answer in order, and do not say to what."""
        if self._pending:
            _, session = self._pending.popleft()
            self._accepted = _merged(self._accepted, session)

    def refused(self, event_id: str | None) -> None:
        """Know of an `error` about the event of that id, which may be one of these."""
        for each in self._pending:
            if each[0] == event_id:
                self._pending.remove(each)
                return

    def again(self) -> list[Event]:
        """What to send to a server that knows nothing."""
        if self._pending and self._pending[0][0] == self._again:
            self._pending.popleft()
        if self._accepted:
            self._pending.appendleft((self._again, self._accepted))
        return [self._update(session, event_id) for event_id, session in self._pending]

    def _update(self, session: Event, event_id: str) -> Event:
        return {"type": "session.update", "event_id": event_id, "session": session}

    def _allowed(self, wanted: Mapping[str, object]) -> Event:
        session = without_formats(wanted)
        session.pop("model", None)  # the URL has it
        if self._beta:
            session.pop("type", None)
        else:
            session.setdefault("type", "realtime")
        return session


def without_formats(wanted: Mapping[str, object]) -> Event:
    """What a client wants of a session or a response, without the formats of audio: that is PCM of
    24 kHz between us and the server, whatever a client would have over a WebSocket of its own."""
    allowed = {name: value for name, value in wanted.items() if name not in FORMATS}
    audio = allowed.get("audio")
    if isinstance(audio, dict):
        allowed["audio"] = {
            direction: {k: v for k, v in values.items() if k != "format"}
            if isinstance(values, dict)
            else values
            for direction, values in audio.items()
        }
    return allowed


def _merged(old: Event, new: Event) -> Event:
    """*new* over *old*; both directions' audio is merged by itself, all else is taken whole."""
    merged = {**old, **new}
    before, after = old.get("audio"), new.get("audio")
    if isinstance(before, dict) and isinstance(after, dict):
        audio = {**before}
        for direction, values in after.items():
            known = audio.get(direction)
            if isinstance(known, dict) and isinstance(values, dict):
                values = {**known, **values}
            audio[direction] = values
        merged["audio"] = audio
    return merged
