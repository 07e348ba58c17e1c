"""A session's side of a conversation, in virtual time."""

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from transceiver.backends import BacklogFull, Flushed

__all__ = ["FakeConversation"]

FRAME = 0.02


@dataclass
class FakeConversation:
    """Plays what is said to it, 20 ms for every 20 ms that a test lets pass with `play`."""

    rate: int = 24000
    configuration: Mapping[str, object] = field(default_factory=dict)
    open: set[str] = field(default_factory=lambda: {"oai-events", "chat", "test"})
    limit: float = 60.0
    on_drained: Callable[[], None] | None = None
    played: bytearray = field(default_factory=bytearray)
    sent: list[tuple[str, str | bytes]] = field(default_factory=list)
    ended: str | None = None
    flushed: list[Flushed] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._queue = bytearray()
        self._utterance = 0
        self._waiting: list[tuple[float, asyncio.Future[None]]] = []

    @property
    def backlog(self) -> float:
        return len(self._queue) / 2 / self.rate

    def say(self, pcm: bytes) -> None:
        if self.backlog + len(pcm) / 2 / self.rate > self.limit:
            raise BacklogFull
        if not self._queue:
            self._utterance = 0
        self._queue += pcm

    def say_packet(self, packet: bytes) -> None:
        raise NotImplementedError

    def flush(self) -> Flushed:
        flushed = Flushed(self._utterance / 2 / self.rate, self.backlog)
        self.flushed.append(flushed)
        self._queue.clear()
        self._settle()
        return flushed

    async def wait_backlog(self, below: float) -> None:
        if self.backlog >= below:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append((below, future))
            await future

    def send(self, message: str | bytes, label: str = "oai-events") -> bool:
        if label not in self.open:
            return False
        self.sent.append((label, message))
        return True

    def end(self, reason: str) -> None:
        self.ended = self.ended or reason

    def play(self, seconds: float) -> None:
        """Let time pass."""
        for _ in range(round(seconds / FRAME)):
            frame = self._queue[: round(self.rate * FRAME) * 2]
            if frame:
                del self._queue[: len(frame)]
                self._utterance += len(frame)
                self.played += frame
                if not self._queue and self.on_drained is not None:
                    self.on_drained()
        self._settle()

    @property
    def events(self) -> list[dict[str, object]]:
        """What was sent on `oai-events`."""
        return [json.loads(message) for label, message in self.sent if label == "oai-events"]

    @property
    def types(self) -> list[object]:
        return [event["type"] for event in self.events]

    def event(self, type: str) -> dict[str, object]:
        """The last event of that type."""
        return [event for event in self.events if event["type"] == type][-1]

    def _settle(self) -> None:
        for below, future in list(self._waiting):
            if self.backlog < below:
                self._waiting.remove((below, future))
                future.set_result(None)
