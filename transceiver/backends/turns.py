"""Turn-taking: from what a detector says of each frame to when a turn begins and ends.

                3 of 4 frames are speech
        quiet ───────────────────────────▶ speaking
              ◀───────────────────────────
                `silence_duration_ms` without speech, or the turn is too long

Time is the position in the client's audio, so it goes on only as audio comes, and neither jitter
nor a slow server moves a boundary. No I/O, no clock.
"""

from collections import deque
from dataclasses import dataclass

from transceiver.backends.oai_session import TurnDetection
from transceiver.backends.vad import Vad

__all__ = ["FRAME_MS", "SpeechStarted", "SpeechStopped", "Turns"]

FRAME_MS = 20

ONSET = 3
"""Frames of speech, of the last ONSET + 1, that begin a turn: 60 ms. A click has fewer."""

HYSTERESIS = 0.15
"""By how much less probable speech may be, once somebody speaks."""

MAX_TURN_MS = 30_000
"""A turn that does not end is ended, so that what is kept of it stays bounded."""


@dataclass(frozen=True, slots=True)
class SpeechStarted:
    audio_start_ms: int
    """Where the turn begins, with its prefix padding; ms since the start of the stream."""


@dataclass(frozen=True, slots=True)
class SpeechStopped:
    audio_end_ms: int
    """Where it ends, with the silence that ended it."""


class Turns:
    """The turns of one client."""

    def __init__(self, *, rate: int, vad: Vad) -> None:
        self._rate = rate
        self._vad = vad
        self._pending = b""
        self._position = 0  # of the first sample of `pending`
        self._recent: deque[bool] = deque(maxlen=ONSET + 1)
        self._started_ms: int | None = None
        self._last_speech_ms = 0
        self._earliest_ms = 0

    @property
    def speaking(self) -> bool:
        return self._started_ms is not None

    def reset(self) -> None:
        """Forget the turn that is under way, and what led to it."""
        self._started_ms = None
        self._recent.clear()
        self._earliest_ms = self._ms(self._position)

    def hear(
        self, pcm: bytes, at: int, concealed: bool, settings: TurnDetection
    ) -> list[SpeechStarted | SpeechStopped]:
        """What the audio (s16le mono, any amount) from sample *at* on brings about.

        Audio that was *concealed* is neither speech nor silence; time goes on through it.
        """
        found: list[SpeechStarted | SpeechStopped] = []
        if concealed or at != self._position + len(self._pending) // 2:
            self._pending, self._position = b"", at + concealed * len(pcm) // 2
            self._stop_if_due(settings, found)
        if concealed:
            return found
        self._pending += pcm
        size = self._rate * FRAME_MS // 1000 * 2
        for start in range(0, len(self._pending) - size + 1, size):
            frame = self._pending[start : start + size]
            self._hear_frame(self._vad.probability(frame), settings, found)
            self._position += size // 2
            self._stop_if_due(settings, found)
        self._pending = self._pending[len(self._pending) // size * size :]
        return found

    def _hear_frame(
        self,
        probability: float,
        settings: TurnDetection,
        found: list[SpeechStarted | SpeechStopped],
    ) -> None:
        start_ms = self._ms(self._position)
        hysteresis = HYSTERESIS if self.speaking else 0.0
        speech = probability >= max(settings.threshold - hysteresis, 0.01)
        self._recent.append(speech)
        if speech:
            self._last_speech_ms = start_ms + FRAME_MS
        if not self.speaking and sum(self._recent) >= ONSET:
            first = start_ms - (len(self._recent) - 1 - list(self._recent).index(True)) * FRAME_MS
            self._started_ms = max(first - settings.prefix_padding_ms, self._earliest_ms)
            found.append(SpeechStarted(self._started_ms))

    def _stop_if_due(
        self, settings: TurnDetection, found: list[SpeechStarted | SpeechStopped]
    ) -> None:
        if self._started_ms is None:
            return
        now_ms = self._ms(self._position)
        silence = now_ms - self._last_speech_ms
        if silence >= settings.silence_duration_ms or now_ms - self._started_ms >= MAX_TURN_MS:
            self._started_ms = None
            self._recent.clear()
            self._earliest_ms = now_ms
            found.append(SpeechStopped(now_ms))

    def _ms(self, position: int) -> int:
        return position * 1000 // self._rate
