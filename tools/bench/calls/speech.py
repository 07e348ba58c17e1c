"""What is said in the bench's calls: made by arithmetic, the same each time, and speech to a codec.

Syllables with a gliding pitch and moving formants, hisses between them, phrases of about two
seconds and pauses of about half a second. Opus codes it as it codes a voice: nothing here is a
steady tone, and a sixth of the time is room noise.
"""

from collections.abc import Sequence
from functools import cache

import numpy as np
import numpy.typing as npt

from transceiver.media.opus import Encoder

__all__ = ["FRAME_MS", "MARK_EVERY", "marked", "packets", "pcm"]

Samples = npt.NDArray[np.int16]

FRAME_MS = 20
"""Of a packet: 50 a second."""

MARK_EVERY = 10
"""Packets from one mark to the next."""

_SECONDS = 10
_RATE = 24000  # Hz, that it is made at
_SEED = 5
_LOUD = 9000.0  # the voice's peak, of 32768
_HARMONICS = 33  # up to 4 kHz
_ROOM = 12.0  # the noise of the room, RMS
_VOWELS = ((700, 1200, 2600), (300, 2300, 3000), (500, 1000, 2400), (350, 800, 2300))
_CLIENT_RATE, _CLIENT_BITRATE, _CLIENT_COMPLEXITY = 48000, 32000, 9  # as browsers have it
_TONE = 1000.0  # Hz, of a mark
_MARK = 12000.0


@cache
def pcm(rate: int) -> bytes:
    """Ten seconds, to be said again and again: mono s16le at *rate*, a whole number of frames."""
    voice = _voice()
    if rate == _RATE:
        return _quantised(voice)
    count = _SECONDS * rate
    return _quantised(np.interp(np.arange(count) * (_RATE / rate), np.arange(len(voice)), voice))


@cache
def _voice() -> npt.NDArray[np.float64]:
    random = np.random.default_rng(_SEED)
    count = _SECONDS * _RATE
    time = np.arange(count) / _RATE
    voiced, hiss, vowel = _script(random, time)
    pitch = 120 + 25 * np.sin(2 * np.pi * 0.7 * time) + 15 * np.sin(2 * np.pi * 3.1 * time)
    phase = 2 * np.pi * np.cumsum(pitch) / _RATE
    formants = _formants(vowel)
    sound = np.zeros(count)
    for harmonic in range(1, _HARMONICS):
        sound += _envelope(formants, harmonic * pitch) * np.sin(harmonic * phase)
    sound *= voiced
    noise = np.diff(random.standard_normal(count + 1))  # more of it above than below
    sound /= np.abs(sound).max()
    sound += 0.15 * hiss * noise
    sound *= _LOUD / float(np.abs(sound).max())
    sound += _ROOM * random.standard_normal(count)
    return sound


def _script(
    random: np.random.Generator, time: npt.NDArray[np.float64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """For each sample: how much voice, how much hiss, and which vowel, where between two."""
    edges, vowels, loudness, hisses = [0.0], [0.0], [0.0], [0.0]
    at, left = 0.0, 2.0  # s left of the phrase
    while at < _SECONDS:
        if left <= 0:
            left = random.uniform(1.5, 2.5)
            for moment in (at + 0.05, at + random.uniform(0.35, 0.6)):
                edges.append(moment)
                vowels.append(vowels[-1])
                loudness.append(0.0)
                hisses.append(0.0)
            at = edges[-1]
        length = random.uniform(0.12, 0.28)
        hissing = random.random() < 0.4
        for part, loud, hissed in ((0.15, 0.1, hissing), (0.4, 1.0, False), (0.95, 0.15, False)):
            edges.append(at + part * length)
            vowels.append(random.uniform(0, len(_VOWELS) - 1))
            loudness.append(loud * random.uniform(0.6, 1.0))
            hisses.append(float(hissed))
        at += length
        left -= length
    return (
        np.interp(time, edges, loudness),
        np.interp(time, edges, hisses),
        np.interp(time, edges, vowels),
    )


def _formants(vowel: npt.NDArray[np.float64]) -> list[npt.NDArray[np.float64]]:
    """Their frequencies, Hz."""
    places = np.arange(len(_VOWELS))
    return [np.interp(vowel, places, frequencies) for frequencies in zip(*_VOWELS, strict=True)]


def _envelope(
    formants: Sequence[npt.NDArray[np.float64]], frequency: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """How loud a harmonic of this frequency is, by the formants near it."""
    level = np.zeros(len(frequency))
    for number, (centre, width) in enumerate(zip(formants, (90.0, 110.0, 170.0), strict=True)):
        level += 1 / (1 + ((frequency - centre) / width) ** 2) / (number + 1)
    return level


@cache
def packets() -> tuple[bytes, ...]:
    """What the client says, as a browser codes it: mono, 32 kbit/s, with in-band FEC."""
    return _coded(pcm(_CLIENT_RATE))


@cache
def marked() -> tuple[bytes, ...]:
    """A quiet room; in every tenth packet, the first among them, a tone as long as the packet."""
    random = np.random.default_rng(_SEED)
    frame = _CLIENT_RATE * FRAME_MS // 1000
    sound = _ROOM * random.standard_normal(MARK_EVERY * frame)
    sound[:frame] = _MARK * np.sin(2 * np.pi * _TONE * np.arange(frame) / _CLIENT_RATE)
    # Twice, and the second time taken: the encoder is not new then.
    return _coded(_quantised(sound) * 2)[MARK_EVERY:]


def _coded(samples: bytes) -> tuple[bytes, ...]:
    encoder = Encoder(
        _CLIENT_RATE, bitrate=_CLIENT_BITRATE, complexity=_CLIENT_COMPLEXITY, fec=True
    )
    size = 2 * _CLIENT_RATE * FRAME_MS // 1000
    return tuple(encoder.encode(samples[at : at + size]) for at in range(0, len(samples), size))


def _quantised(sound: npt.NDArray[np.float64]) -> bytes:
    return np.clip(np.rint(sound), -32768, 32767).astype("<i2").tobytes()
