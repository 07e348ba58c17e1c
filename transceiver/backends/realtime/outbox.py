"""What waits to be sent to the server: events, and the client's audio, in their order.

Bounded, whatever the server does: of audio the oldest goes, since a model that hears late answers
late; an event that finds no room is refused. No I/O.
"""

from collections import deque

__all__ = ["Outbox"]

MAX_EVENTS = 256
MAX_EVENT_BYTES = 1 << 20


class Outbox:
    """Audio is s16le mono of *rate* Hz, at most *seconds* of it."""

    def __init__(self, *, rate: int, seconds: float) -> None:
        self._per_second = rate * 2
        self._max_audio = int(seconds * self._per_second)
        self._number = 0
        self._audio: deque[tuple[int, bytes]] = deque()
        self._audio_bytes = 0
        self._events: deque[tuple[int, bytes]] = deque()
        self._event_bytes = 0
        self._lost = 0  # bytes

    @property
    def lost(self) -> float:
        """Seconds of audio that found no room, or made some."""
        return self._lost / self._per_second

    def add_audio(self, pcm: bytes) -> None:
        self._number += 1
        self._audio.append((self._number, pcm))
        self._audio_bytes += len(pcm)
        while self._audio_bytes > self._max_audio:
            _, oldest = self._audio.popleft()
            self._audio_bytes -= len(oldest)
            self._lost += len(oldest)

    def add_event(self, text: bytes) -> bool:
        """Queue the JSON of an event; False if there is no room."""
        if len(self._events) == MAX_EVENTS or self._event_bytes + len(text) > MAX_EVENT_BYTES:
            return False
        self._number += 1
        self._events.append((self._number, text))
        self._event_bytes += len(text)
        return True

    def take(self) -> tuple[bytes, bool] | None:
        """What is next, and whether it is audio; None if nothing waits."""
        if self._events and (not self._audio or self._events[0][0] < self._audio[0][0]):
            _, text = self._events.popleft()
            self._event_bytes -= len(text)
            return text, False
        if not self._audio:
            return None
        _, pcm = self._audio.popleft()
        self._audio_bytes -= len(pcm)
        return pcm, True
