"""What the bench's bots have in common, whatever stack is around them; and how they are asked.

A bot hears all and speaks without a pause, the same ten seconds again and again. It makes nothing
of what it hears: it counts. One that watches for marks notes when it heard each.
"""

import asyncio
import json
import time
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path

import numpy as np

from tools.bench.calls.speech import FRAME_MS, pcm

__all__ = ["Answering", "Bots", "Ear", "Habit", "utterance"]

_LOUD = 3000
"""The least peak of a mark; the room has less than a hundred."""
_QUIET_FRAMES = 5
"""So many without a mark, before the next can begin."""


class Habit(StrEnum):
    """What the bots do that begin from now on."""

    SPEAKING = "speaking"
    WATCHING = "watching"
    """Speaking, and noting when marks were heard."""
    SILENT = "silent"


class Ear:
    """What one bot has heard; *number*: it was the so-manieth to begin."""

    __slots__ = ("_quiet", "_watching", "number", "onsets", "rate", "samples")

    def __init__(self, number: int, rate: int, *, watching: bool) -> None:
        self.number = number
        self.rate = rate
        self.samples = 0
        self.onsets: list[float] = []
        self._watching = watching
        self._quiet = _QUIET_FRAMES

    def hear(self, pcm: bytes) -> None:
        """Mono s16le."""
        self.samples += len(pcm) >> 1
        if self._watching:
            self._watch(pcm)

    def _watch(self, pcm: bytes) -> None:
        now = time.monotonic()
        samples = np.frombuffer(pcm, "<i2")
        if samples.max() < _LOUD:
            self._quiet += 1
            return
        if self._quiet >= _QUIET_FRAMES:
            self.onsets.append(now)
        self._quiet = 0


class Bots:
    """The ears of those that live."""

    def __init__(self) -> None:
        self.habit = Habit.SPEAKING
        self.ears: dict[int, Ear] = {}
        self.begun = 0

    def begin(self, rate: int) -> Ear:
        """*rate*: samples a second of what it will hear."""
        number = self.begun
        self.begun += 1
        ear = self.ears[number] = Ear(number, rate, watching=self.habit is Habit.WATCHING)
        return ear

    def end(self, ear: Ear) -> None:
        self.ears.pop(ear.number, None)


def utterance(rate: int) -> list[bytes]:
    """What a bot says, frame by frame, mono s16le."""
    sound, size = pcm(rate), 2 * rate * FRAME_MS // 1000
    return [sound[at : at + size] for at in range(0, len(sound), size)]


class Answering:
    """Says how things stand to whoever sends a line to a Unix socket, with this process's clocks,
    so that it does not matter how long the question has waited. A line may name a habit."""

    def __init__(self, bots: Bots, sessions: Callable[[], int]) -> None:
        """*sessions*: how many there are."""
        self._bots = bots
        self._sessions = sessions
        self._server: asyncio.Server | None = None

    async def start(self, path: Path) -> None:
        self._server = await asyncio.start_unix_server(self._serve, path)

    def close(self) -> None:
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                if line.strip():
                    self._bots.habit = Habit(line.decode().strip())
                writer.write(json.dumps(self._state()).encode() + b"\n")
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()

    def _state(self) -> dict[str, object]:
        return {
            "at": time.monotonic(),
            "cpu": time.process_time(),
            "sessions": self._sessions(),
            "tasks": len(asyncio.all_tasks()),
            "begun": self._bots.begun,
            "bots": [
                {
                    "number": ear.number,
                    "seconds": ear.samples / ear.rate,
                    "onsets": ear.onsets,
                }
                for ear in self._bots.ears.values()
            ],
        }
