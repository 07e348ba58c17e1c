"""Speech for the codec, spoken by espeak-ng once a run, as PCM at any rate."""

import functools
import io
import subprocess
import wave

import numpy as np

__all__ = ["frames", "level", "speech"]

_TEXT = "She sells sea shells by the sea shore, and the quick brown fox jumps over the lazy dog."


@functools.cache
def speech(rate: int) -> bytes:
    """Some five seconds, mono s16le."""
    command = ["espeak-ng", "--stdout", _TEXT]
    spoken = subprocess.run(command, check=True, capture_output=True).stdout
    with wave.open(io.BytesIO(spoken)) as file:
        native = file.getframerate()
        # The header of what goes to a pipe does not tell the length.
        samples = np.frombuffer(spoken[44:][: len(spoken[44:]) & ~1], dtype="<i2")
    count = len(samples) * rate // native
    at = np.arange(count) / rate
    made = np.interp(at, np.arange(len(samples)) / native, samples.astype(float))
    pcm: bytes = made.astype("<i2").tobytes()
    return pcm


def frames(rate: int, ms: float = 20) -> list[bytes]:
    """The same, in frames."""
    pcm, size = speech(rate), int(rate * ms / 1000) * 2
    return [pcm[start : start + size] for start in range(0, len(pcm) - size + 1, size)]


def level(pcm: bytes) -> float:
    """Root mean square."""
    samples = np.frombuffer(pcm, dtype="<i2").astype(float)
    return float(np.sqrt(np.mean(samples**2))) if len(samples) else 0.0
