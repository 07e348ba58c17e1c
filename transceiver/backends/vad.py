"""Is this speech? Of 20 ms of audio at a time, as a probability. No I/O, no clock.

`EnergyVad` needs nothing and knows only loudness; `WebRtcVad` knows speech from noise somewhat, and
needs the extra `vad`. When a turn begins and ends is left to `transceiver.backends.turns`.
"""

import math
from typing import Protocol

import numpy as np

from loader.errors import ShuntError

__all__ = ["VADS", "EnergyVad", "Vad", "WebRtcVad"]

QUIETEST = -65.0
"""dBFS: the floor sinks no lower, so that faint noise after digital silence is not speech."""

LOUDEST = -20.0
"""dBFS: the floor rises no higher."""

FALL = 0.3
"""How far the floor follows a quieter frame at once, of the way there."""

RISE = 2.0
"""dB per second that the floor rises otherwise, also while somebody speaks: the gaps between
syllables take it back down, and steady noise has none."""

RANGE = 20.0
"""dB above the floor at which speech is certain: so a threshold of 0.5 means 10 dB."""


class Vad(Protocol):
    def probability(self, frame: bytes) -> float:
        """How likely it is, 0 to 1, that somebody speaks in *frame*: 20 ms of s16le mono."""


class EnergyVad:
    """Compares the loudness with a floor of noise that adapts."""

    def __init__(self, rate: int) -> None:
        self.floor = QUIETEST

    def probability(self, frame: bytes) -> float:
        level = _level(frame)
        if level < self.floor:
            self.floor = max(QUIETEST, self.floor + FALL * (level - self.floor))
        else:
            self.floor = min(LOUDEST, self.floor + RISE * 0.02, max(level, QUIETEST))
        return min(1.0, max(0.0, (level - self.floor) / RANGE))


class WebRtcVad:
    """WebRTC's detector (Gaussian mixtures over six bands), which says yes or no."""

    AGGRESSIVENESS = 2
    """Of 0 to 3: how readily it takes sound for noise."""

    def __init__(self, rate: int) -> None:
        try:
            import webrtcvad
        except ImportError as error:
            raise ShuntError(
                "the voice activity detector webrtc is not installed",
                "install the extra: pip install 'shunt[vad]', or use vad=energy",
            ) from error
        self._vad = webrtcvad.Vad(self.AGGRESSIVENESS)
        # It takes 8, 16, 32 and 48 kHz, and looks at no more than 4 kHz of it: a sample said twice
        # does for 24 kHz.
        self._repeat = 48000 // rate if 48000 % rate == 0 else 1
        self._rate = rate * self._repeat

    def probability(self, frame: bytes) -> float:
        if self._repeat > 1:
            frame = np.frombuffer(frame, "<i2").repeat(self._repeat).tobytes()
        return float(self._vad.is_speech(frame, self._rate))


VADS: dict[str, type[EnergyVad] | type[WebRtcVad]] = {"energy": EnergyVad, "webrtc": WebRtcVad}


def _level(frame: bytes) -> float:
    """dBFS without the constant part; -inf for silence."""
    samples = np.frombuffer(frame, "<i2").astype(np.float32)
    mean = float(samples.mean())
    power = float(samples @ samples) / len(samples) - mean * mean
    return 10 * math.log10(power / 32768**2) if power > 1e-3 else -math.inf
