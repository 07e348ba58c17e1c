"""What a jitter buffer adds and what it spoils: ours and stock aiortc's, on the same traces.

All of it is in virtual time: a packet comes, and what the receiver then delivers, it delivers at
that instant, or when its own deadline comes. So decoding takes no time, nor do the two thread hops
that stock takes for each frame; those are `shunt bench transceiver`'s to show.

*Added delay* is from a packet's arrival to the delivery of what is in it: nobody has it before.
"""

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiortc.codecs.opus import OpusDecoder
from aiortc.jitterbuffer import JitterBuffer
from aiortc.rtcrtpreceiver import TimestampMapper
from aiortc.rtp import RtpPacket

from tools.bench.facts import machine
from tools.bench.report import Case, Report
from tools.bench.traces import FRAME, PAYLOAD_TYPE, TRACES, Arrival, Script, Trace
from transceiver.media.receiver import AudioReceiver

__all__ = ["RECEIVERS", "Delivery", "Measured", "compare", "measure", "ours", "run", "stock"]

_RATE = 24000  # what a backend gets of us
_SAMPLES = round(_RATE * FRAME)
_TICKS = 960
_CAPACITY, _PREFETCH = 16, 4  # as aiortc.RTCRtpReceiver has them for audio
_ENDS = 50  # frames at either end that a delay left behind is told from
_SEEDS = range(1, 6)
_QUICK = range(1, 3)


@dataclass(frozen=True, slots=True)
class Delivery:
    """*frame* was delivered at a time; *guessed*: it is made up."""

    at: float
    frame: int
    guessed: bool


def ours(arrivals: Sequence[Arrival]) -> list[Delivery]:
    """What `AudioReceiver` delivers of them."""
    deliveries: list[Delivery] = []
    first = arrivals[0].frame
    now = arrivals[0].at

    def deliver(pcm: bytes, at: int, concealed: bool) -> None:
        deliveries.append(Delivery(now, first + at // _SAMPLES, concealed))

    receiver = AudioReceiver(
        payload_type=PAYLOAD_TYPE, rate=_RATE, passthrough=False, deliver=deliver
    )
    for arrival in arrivals:
        while (due := receiver.next_deadline()) is not None and due <= arrival.at:
            now = max(now, due)
            receiver.poll(now)
        now = arrival.at
        receiver.receive(arrival.packet, now)
    return deliveries


def stock(arrivals: Sequence[Arrival]) -> list[Delivery]:
    """What `aiortc.RTCRtpReceiver` delivers, put together of its parts in its way, without its
    threads."""
    buffer = JitterBuffer(capacity=_CAPACITY, prefetch=_PREFETCH)
    mapper, decoder = TimestampMapper(), OpusDecoder()
    deliveries = []
    first: int | None = None
    frames = {RtpPacket.parse(each.packet).timestamp: each.frame for each in arrivals}
    for arrival in arrivals:
        packet = RtpPacket.parse(arrival.packet)
        packet._data = packet.payload  # type: ignore[attr-defined]
        _, complete = buffer.add(packet)
        if complete is None:
            continue
        if first is None:
            first = frames[complete.timestamp]
        complete.timestamp = mapper.map(complete.timestamp)
        for decoded in decoder.decode(complete):
            assert decoded.pts is not None
            deliveries.append(Delivery(arrival.at, first + decoded.pts // _TICKS, False))
    return deliveries


RECEIVERS: dict[str, Callable[[Sequence[Arrival]], list[Delivery]]] = {
    "shunt": ours,
    "stock": stock,
}


@dataclass(frozen=True, slots=True)
class Measured:
    """One receiver on one trace; delays in ms. Of the frames that were sent: *whole* were
    delivered from their own packets, *recovered* from their successors', *concealed* by a guess,
    *missing* not at all. *spoiled*: packets that had arrived, and were not delivered whole. *left*:
    how much more delay there is at the end than at the beginning."""

    delays: tuple[float, ...]
    whole: int
    recovered: int
    concealed: int
    missing: int
    spoiled: int
    left: float
    lag: tuple[tuple[float, float], ...]
    """Time, and by how many ms what is delivered then is later than what took the network's least
    time and was delivered at once."""

    def percentile(self, part: float) -> float:
        ordered = sorted(self.delays)
        return ordered[min(len(ordered) - 1, int(part * len(ordered)))]


def measure(trace: Trace, deliveries: Sequence[Delivery]) -> Measured:
    """*deliveries* that a receiver made of the trace's arrivals."""
    arrived: dict[int, float] = {}
    for arrival in trace.arrivals:
        arrived.setdefault(arrival.frame, arrival.at)
    quickest = min(at - trace.sent[frame] for frame, at in arrived.items())
    first: dict[int, Delivery] = {}
    for delivery in deliveries:
        if delivery.frame in trace.sent:
            first.setdefault(delivery.frame, delivery)
    whole = {
        frame: delivery.at
        for frame, delivery in first.items()
        if not delivery.guessed and frame in arrived and delivery.at >= arrived[frame]
    }
    delays = [1e3 * (at - arrived[frame]) for frame, at in whole.items()]
    sent = range(min(arrived), max(whole) + 1)  # what is still held at the end is no loss
    expected = [frame for frame in trace.sent if frame in sent]
    guessed = sum(first[frame].guessed for frame in expected if frame in first)
    missing = sum(frame not in first for frame in expected)
    spoiled = sum(frame in arrived and frame not in whole for frame in expected)
    return Measured(
        delays=tuple(delays),
        whole=len(whole),
        recovered=len(expected) - len(whole) - guessed - missing,
        concealed=guessed,
        missing=missing,
        spoiled=spoiled,
        left=statistics.median(delays[-_ENDS:]) - statistics.median(delays[:_ENDS]),
        lag=tuple((at, 1e3 * (at - trace.sent[f] - quickest)) for f, at in whole.items()),
    )


def run(_pins: Path | None, *, quick: bool, progress: Callable[[str], None]) -> Report:
    """Each receiver on each trace, from several seeds: a round is a seed."""
    return compare(TRACES, _QUICK if quick else _SEEDS, progress)


def compare(
    scripts: Sequence[Script], seeds: Sequence[int], progress: Callable[[str], None]
) -> Report:
    """The receivers, on traces of these scripts."""
    cases: list[Case] = []
    charts: list[dict[str, Any]] = []
    for script in scripts:
        progress(f"{script.name}: {script.what}")
        traces = [script.make(seed) for seed in seeds]
        for name, receive in RECEIVERS.items():
            found = [measure(trace, receive(trace.arrivals)) for trace in traces]
            cases += _cases(f"{script.name}.{name}", found)
            lag = _by_the_second(found[0].lag)
            charts.append(
                {"trace": script.name, "what": script.what, "receiver": name, "ms_by_second": lag}
            )
    return Report("jitter", "ms", tuple(cases), {"lag": charts, **machine(None, None)})


def _cases(name: str, found: Sequence[Measured]) -> Iterator[Case]:
    for part in (50, 95, 99):
        what = f"added delay, p{part}"
        rounds = tuple(each.percentile(part / 100) for each in found)
        yield Case(f"{name}.p{part}", what, rounds)
    yield Case(f"{name}.left", "delay left at the end", tuple(each.left for each in found))
    for kind, what in (
        ("whole", "frames delivered from their own packets"),
        ("recovered", "frames recovered by FEC"),
        ("concealed", "frames concealed"),
        ("missing", "frames of which nothing was delivered"),
        ("spoiled", "frames that had arrived and were not delivered whole"),
    ):
        rounds = tuple(float(getattr(each, kind)) for each in found)
        yield Case(f"{name}.{kind}", what, rounds, unit="frames")


def _by_the_second(lag: Sequence[tuple[float, float]]) -> list[float]:
    """The most in each second, ms."""
    worst: dict[int, float] = {}
    for at, late in lag:
        worst[int(at)] = max(late, worst.get(int(at), 0.0))
    return [worst.get(second, 0.0) for second in range(max(worst) + 1)]
