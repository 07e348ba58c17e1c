"""Audio for tests: s16le mono at 24 kHz, the same every time."""

import numpy as np
import numpy.typing as npt

RATE = 24000
FRAME = RATE // 50


def noise(seconds: float, dbfs: float = -60.0) -> bytes:
    """White noise of that loudness."""
    random = np.random.default_rng(3)
    return _pcm(random.normal(0, 32768 * 10 ** (dbfs / 20), round(seconds * RATE)))


def speech(seconds: float, dbfs: float = -20.0, *, seed: int = 1) -> bytes:
    """Syllables of 120 ms with gaps of 60 ms, over the noise of a quiet room."""
    random = np.random.default_rng(seed)
    time = np.arange(round(seconds * RATE)) / RATE
    pitch = 140 + 30 * np.sin(2 * np.pi * 0.7 * time)
    phase = 2 * np.pi * np.cumsum(pitch) / RATE
    voice = sum(np.sin(k * phase) / k for k in range(1, 20))
    syllables = np.where(time % 0.18 < 0.12, 1.0, 0.0)
    loud = 32768 * 10 ** (dbfs / 20) * np.asarray(voice) * syllables
    return _pcm(loud + random.normal(0, 33, len(time)))


def frames(pcm: bytes) -> list[bytes]:
    """In pieces of 20 ms."""
    return [pcm[i : i + FRAME * 2] for i in range(0, len(pcm), FRAME * 2)]


def _pcm(samples: npt.NDArray[np.float64]) -> bytes:
    return np.clip(samples, -32768, 32767).astype("<i2").tobytes()
