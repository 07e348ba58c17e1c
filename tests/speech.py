"""Something to say, its way into Opus and back, and how like it is what was heard."""

import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import av
import numpy as np
import numpy.typing as npt

from transceiver.media.opus import Decoder, Encoder

__all__ = [
    "RATE",
    "SENTENCE",
    "Samples",
    "from_opus",
    "likeness",
    "likeness_of_pieces",
    "read",
    "speak",
    "speech",
    "to_opus",
]

SENTENCE = "The quick brown fox jumps over the lazy dog, and then it rests for a while."
RATE = 48000
FRAME = RATE // 50
"""Samples of one packet, and of one point of an envelope: 20 ms."""

QUIET = 100
"""What is not louder than that, root mean square, is silence."""

Samples = npt.NDArray[np.int16]
"""Mono, 48 kHz."""
Envelope = npt.NDArray[np.float64]


def speak(text: str, path: Path) -> None:
    """Write *text*, spoken, as a WAV file."""
    subprocess.run(["espeak-ng", "-w", str(path), text], check=True)


def speech(text: str) -> Samples:
    """*text*, spoken."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "speech.wav"
        speak(text, path)
        return read(path)


def read(source: Path | BinaryIO) -> Samples:
    """What is in an audio file."""
    to_mono = av.AudioResampler(format="s16", layout="mono", rate=RATE)
    with av.open(source, "r") as file:
        parts = [
            part.to_ndarray().reshape(-1)
            for frame in file.decode(audio=0)
            for part in to_mono.resample(frame)
        ]
    return np.concatenate(parts).astype(np.int16)


def to_opus(samples: Samples) -> list[bytes]:
    """Packets of 20 ms; what is left over at the end is left out."""
    encoder = Encoder(RATE, bitrate=32000, complexity=5)
    whole = samples[: len(samples) // FRAME * FRAME].reshape(-1, FRAME)
    return [encoder.encode(frame.tobytes()) for frame in whole]


def from_opus(packets: Iterable[bytes]) -> Samples:
    """What packets that follow each other hold."""
    decoder = Decoder(RATE)
    return np.frombuffer(b"".join(map(decoder.decode, packets)), np.int16)


def likeness(said: Samples, heard: Samples) -> float:
    """The best correlation of how loud what was said is, with any stretch of what was heard."""
    return _best(_envelope(said), _envelope(heard))


def likeness_of_pieces(said: Samples, heard: Samples) -> float:
    """The median likeness of half seconds of what was said: whoever sent it on may have left out a
    bit here, and waited there. Another sentence has 0.8."""
    mine, theirs = _envelope(said), _envelope(heard)
    size = RATE // FRAME // 2
    pieces = (mine[at : at + size] for at in range(0, len(mine) - size + 1, size // 2))
    return float(np.median([_best(piece, theirs) for piece in pieces if piece.max() > QUIET]))


def _best(mine: Envelope, theirs: Envelope) -> float:
    stretches = (theirs[at : at + len(mine)] for at in range(len(theirs) - len(mine) + 1))
    heard = (stretch for stretch in stretches if stretch.max() > QUIET)
    return max(float(np.corrcoef(mine, stretch)[0, 1]) for stretch in heard)


def _envelope(samples: Samples) -> Envelope:
    """Loudness of each 20 ms."""
    windows = samples[: len(samples) // FRAME * FRAME].reshape(-1, FRAME).astype(float)
    return np.asarray(np.sqrt((windows**2).mean(axis=1)))
