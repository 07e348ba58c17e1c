"""What a client's audio looks like when it arrives: scripted loss, jitter, order and clocks.

Each trace is made from a seed and from nothing else, so everybody's is the same.
"""

import functools
import math
import random
from collections.abc import Callable
from dataclasses import dataclass

from tools.bench.calls.speech import pcm
from transceiver.media import opus, rtp

__all__ = ["FRAME", "PAYLOAD_TYPE", "TRACES", "Arrival", "Script", "Trace"]

FRAME = 0.02
"""Seconds of audio in a packet."""

PAYLOAD_TYPE = 111

_SSRC = 0x5EED
_TICKS = 960  # of a frame
_RATE = 48000
_TRANSIT = 0.030  # s, at least
_SECONDS = 30
_BEFORE = 5.0  # s until something happens, where one thing does


@dataclass(frozen=True, slots=True)
class Arrival:
    """A packet at the receiver: when, which frame it carries, the RTP packet."""

    at: float
    frame: int
    packet: bytes


@dataclass(frozen=True, slots=True)
class Trace:
    """*sent*: the time at which each frame was sent, by its number; frames that DTX left out are
    not in it. *arrivals* are in their order."""

    sent: dict[int, float]
    arrivals: tuple[Arrival, ...]


@dataclass(frozen=True, slots=True)
class Script:
    """What a trace is called, what happens in it, and how it is made from a seed."""

    name: str
    what: str
    make: Callable[[int], Trace]


@dataclass(slots=True)
class _Sent:
    """A packet on its way: *at* is when it was sent, and then when it arrives."""

    frame: int
    at: float
    packet: bytes


@functools.cache
def _said(*, dtx: bool) -> tuple[tuple[int, bytes], ...]:
    """Frames that are sent, and their Opus, as a browser codes it; with *dtx* there are pauses."""
    encoder = opus.Encoder(_RATE, bitrate=32000, complexity=5, fec=True, dtx=dtx)
    encoder.expect_loss(0.1)
    sound, size = pcm(_RATE), 2 * _TICKS
    frames, silent = [], False
    for number in range(_SECONDS * 50):
        at = number * size % len(sound)
        quiet = dtx and number // 100 % 2
        payload = encoder.encode(bytes(size) if quiet else sound[at : at + size])
        if not (silent and opus.is_dtx(payload)):
            frames.append((number, payload))
        silent = opus.is_dtx(payload)
    return tuple(frames)


def _sending(drift: float = 0.0, *, dtx: bool = False) -> list[_Sent]:
    """By a client whose clock is fast by *drift*."""
    return [
        _Sent(
            frame,
            frame * FRAME / (1 + drift),
            rtp.build(
                payload,
                payload_type=PAYLOAD_TYPE,
                sequence=index & 0xFFFF,
                timestamp=frame * _TICKS & 0xFFFFFFFF,
                ssrc=_SSRC,
            ),
        )
        for index, (frame, payload) in enumerate(_said(dtx=dtx))
    ]


def _trace(sent: list[_Sent], arrived: list[tuple[float, _Sent]]) -> Trace:
    arrived.sort(key=lambda each: each[0])
    return Trace(
        {each.frame: each.at for each in sent},
        tuple(Arrival(at, each.frame, each.packet) for at, each in arrived),
    )


def _delays(source: random.Random, most: float) -> Callable[[], float]:
    """Of a queue in the network: short as a rule, seldom long, at most *most* seconds."""
    return lambda: min(most, source.expovariate(4 / most))


def _in_order(arrived: list[tuple[float, _Sent]]) -> list[tuple[float, _Sent]]:
    """A queue lets nobody overtake."""
    last, ordered = 0.0, []
    for at, each in arrived:
        last = max(last, at)
        ordered.append((last, each))
    return ordered


def _plain(
    seed: int,
    *,
    lost: Callable[[random.Random, int], bool] = lambda source, frame: False,
    jitter: float = 0.001,
    drift: float = 0.0,
    dtx: bool = False,
) -> Trace:
    source = random.Random(seed)
    delay = _delays(source, jitter)
    sent = _sending(drift, dtx=dtx)
    arrived = [
        (each.at + _TRANSIT + delay(), each) for each in sent if not lost(source, each.frame)
    ]
    return _trace(sent, _in_order(arrived))


def _bursts(seed: int) -> Trace:
    """Gilbert's model: 2 % of packets begin a burst, which lasts four on the average."""
    source = random.Random(seed)
    sent = _sending()
    losing, arrived = False, []
    for each in sent:
        losing = source.random() < (0.75 if losing else 0.02)
        if not losing:
            arrived.append((each.at + _TRANSIT, each))
    return _trace(sent, arrived)


def _reordered(seed: int) -> Trace:
    """One in twenty takes a way that is longer by one to two frames."""
    source = random.Random(seed)
    sent = _sending()
    arrived = [
        (
            each.at + _TRANSIT + (source.uniform(0.025, 0.045) if source.random() < 0.05 else 0.0),
            each,
        )
        for each in sent
    ]
    return _trace(sent, arrived)


def _stalls(seed: int) -> Trace:
    """Every five seconds the link stands still for 300 ms, and then delivers all at once."""
    source = random.Random(seed)
    sent = _sending()
    arrived = []
    for each in sent:
        at = each.at + _TRANSIT
        into = math.fmod(at, 5.0)
        arrived.append((at + 0.3 - into if into < 0.3 else at + source.uniform(0, 0.001), each))
    return _trace(sent, _in_order(arrived))


def _repeated(seed: int) -> Trace:
    source = random.Random(seed)
    sent = _sending()
    arrived = []
    for each in sent:
        arrived.append((each.at + _TRANSIT, each))
        if source.random() < 0.1:
            arrived.append((each.at + _TRANSIT + source.uniform(0, 0.05), each))
    return _trace(sent, arrived)


TRACES = (
    Script("clean", "30 ms, up to 1 ms of jitter", lambda seed: _plain(seed)),
    Script(
        "one",
        "one packet is lost, after 5 s",
        lambda seed: _plain(seed, lost=lambda source, frame: frame == _BEFORE / FRAME + seed % 50),
    ),
    Script(
        "loss",
        "2 % are lost, each by itself",
        lambda seed: _plain(seed, lost=lambda source, frame: source.random() < 0.02),
    ),
    Script(
        "heavy",
        "10 % are lost, each by itself",
        lambda seed: _plain(seed, lost=lambda source, frame: source.random() < 0.10),
    ),
    Script("bursts", "7 % are lost, in bursts of four", _bursts),
    Script("jitter", "up to 60 ms of jitter, in order", lambda seed: _plain(seed, jitter=0.060)),
    Script("reordered", "5 % are overtaken by one or two", _reordered),
    Script("stalls", "300 ms of nothing every 5 s, then all at once", _stalls),
    Script("repeated", "10 % come twice", _repeated),
    Script("fast", "the client's clock is fast by 200 ppm", lambda seed: _plain(seed, drift=2e-4)),
    Script("slow", "it is slow by 200 ppm", lambda seed: _plain(seed, drift=-2e-4)),
    Script("dtx", "2 s of speech, 2 s of silence, by DTX", lambda seed: _plain(seed, dtx=True)),
)
"""In the order in which they are shown."""
