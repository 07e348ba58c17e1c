"""What of the answers has been heard: whose audio goes out now, and how much was when it is cut.

Makes the events `output_audio_buffer.started`, `.stopped` and `.cleared`, which no model can make,
because the buffer is ours. Several items may wait at once: a model speaks faster than it is heard.
"""

from collections import deque
from dataclasses import dataclass

from transceiver.backends import Conversation
from transceiver.backends.oai_events import EventChannel

__all__ = ["Cut", "Playout"]

EXACT = 1e-6
"""Seconds that two sums of the same audio may differ by."""


@dataclass(frozen=True, slots=True)
class Cut:
    """An item that was not heard to its end."""

    response_id: str
    item_id: str
    content_index: int
    heard_ms: int


@dataclass(slots=True)
class _Part:
    """An item's audio; seconds."""

    response_id: str
    item_id: str
    content_index: int
    said: float = 0.0
    finished: bool = False


class Playout:
    """The audio that waits to go out, as the items that it belongs to, in order."""

    def __init__(self, conversation: Conversation, channel: EventChannel) -> None:
        self._conversation = conversation
        self._channel = channel
        self._parts: deque[_Part] = deque()
        self._said = 0.0  # seconds, of all parts
        self._audible: str | None = None

    @property
    def playing(self) -> bool:
        """Whether there is something to cut: audio that waits, or an item that is unfinished."""
        return bool(self._parts)

    @property
    def items(self) -> int:
        """How many wait, or are heard."""
        return len(self._parts)

    def say(self, response_id: str, item_id: str, content_index: int, pcm: bytes) -> None:
        """Queue a piece of an item; BacklogFull if there is no room."""
        self._conversation.say(pcm)
        key = (response_id, item_id, content_index)
        last = self._parts[-1] if self._parts else None
        if last is None or (last.response_id, last.item_id, last.content_index) != key:
            last = _Part(*key)
            self._parts.append(last)
        seconds = len(pcm) / 2 / self._conversation.rate
        last.said += seconds
        last.finished = False
        self._said += seconds
        self.advance()

    def finish(self, response_id: str) -> None:
        """Know that no more audio comes of that response."""
        for part in self._parts:
            if part.response_id == response_id:
                part.finished = True
        self.advance()

    def finish_all(self) -> None:
        """Know that no more audio comes of any."""
        for part in self._parts:
            part.finished = True
        self.advance()

    def advance(self) -> None:
        """Tell the client of what has begun and what has ended; to be called now and then."""
        backlog = self._conversation.backlog
        while self._parts:
            part = self._parts[0]
            if self._audible != part.response_id:
                self._audible = part.response_id
                self._tell("started", part.response_id)
            later = self._said - part.said
            if backlog > later + EXACT or (len(self._parts) == 1 and not part.finished):
                return
            self._parts.popleft()
            self._said = later if self._parts else 0.0
            if not self._parts or self._parts[0].response_id != part.response_id:
                self._audible = None
                self._tell("stopped", part.response_id)

    def cut(self) -> list[Cut]:
        """Throw away what waits, now; the items that lost something by it, in order."""
        self.advance()
        dropped = self._conversation.flush().dropped
        if not self._parts:
            return []
        cuts: list[Cut] = []
        for part in reversed(self._parts):
            lost = min(dropped, part.said)
            dropped -= lost
            if lost > EXACT or not part.finished:
                heard_ms = int((part.said - lost) * 1000 + EXACT)
                cuts.append(Cut(part.response_id, part.item_id, part.content_index, heard_ms))
        self._tell("cleared", self._parts[0].response_id)
        self._parts.clear()
        self._said = 0.0
        self._audible = None
        return cuts[::-1]

    def _tell(self, what: str, response_id: str) -> None:
        self._channel.send({"type": f"output_audio_buffer.{what}", "response_id": response_id})
