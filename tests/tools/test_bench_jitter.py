"""The bench of jitter buffers: its traces, its measures, its stock receiver as aiortc has it."""

import asyncio
import itertools
from collections import Counter
from types import SimpleNamespace

import pytest
from aiortc import RTCRtpReceiver
from aiortc.mediastreams import MediaStreamTrack
from aiortc.rtcrtpparameters import RTCRtpCodecParameters, RTCRtpReceiveParameters
from aiortc.rtcrtpreceiver import RemoteStreamTrack
from aiortc.rtp import RtpPacket

from tools.bench import jitter
from tools.bench.jitter import Delivery, measure, ours, stock
from tools.bench.report import Report, hold, read_targets
from tools.bench.traces import FRAME, PAYLOAD_TYPE, TRACES, Arrival, Trace

MAKE = {script.name: script.make for script in TRACES}


@pytest.fixture(scope="module")
def report() -> Report:
    scripts = [script for script in TRACES if script.name in ("clean", "one")]
    return jitter.compare(scripts, [1], progress=lambda text: None)


def test_the_targets_are_met_here_too(report: Report) -> None:
    held = hold(report, read_targets("jitter"))

    assert len(held) == 4
    assert [each.target.name for each in held if not each.met] == []


def test_stock_is_what_the_field_knows_it_for(report: Report) -> None:
    """80 ms always; one packet lost throws four good frames away and leaves 200 ms more."""
    assert report.case("clean.stock.p50").spread.median == pytest.approx(80, abs=1)
    assert report.case("one.stock.spoiled").spread.median == 4
    assert report.case("one.stock.left").spread.median == pytest.approx(200, abs=1)


@pytest.mark.parametrize("name", MAKE)
def test_a_trace_is_the_same_for_everybody(name: str) -> None:
    assert MAKE[name](3) == MAKE[name](3)


def test_traces_hold_what_they_say() -> None:
    def lost(name: str) -> float:
        trace = MAKE[name](1)
        return 1 - len({each.frame for each in trace.arrivals}) / len(trace.sent)

    def overtaken(name: str) -> int:
        frames = [each.frame for each in MAKE[name](1).arrivals]
        return sum(later < earlier for earlier, later in itertools.pairwise(frames))

    assert lost("clean") == lost("jitter") == lost("stalls") == 0
    assert lost("one") == pytest.approx(1 / 1500)
    assert 0.01 < lost("loss") < 0.03
    assert 0.05 < lost("bursts") < 0.12
    assert overtaken("clean") == overtaken("jitter") == 0
    assert overtaken("reordered") > 30
    assert max(Counter(each.frame for each in MAKE["repeated"](1).arrivals).values()) == 2
    assert len(MAKE["dtx"](1).sent) < 1100


class Sink(MediaStreamTrack):
    kind = "audio"


@pytest.mark.parametrize("name", ["one", "bursts", "reordered"])
async def test_the_stock_receiver_delivers_what_aiortcs_own_does(name: str) -> None:
    arrivals = MAKE[name](1).arrivals[:600]
    transport = SimpleNamespace(
        state="connected",
        _register_rtp_receiver=lambda *_: None,
        _unregister_rtp_receiver=lambda *_: None,
    )
    receiver = RTCRtpReceiver("audio", transport)  # type: ignore[arg-type]
    receiver._track = track = RemoteStreamTrack(kind="audio")
    codec = RTCRtpCodecParameters(
        mimeType="audio/opus", clockRate=48000, channels=2, payloadType=PAYLOAD_TYPE
    )
    await receiver.receive(RTCRtpReceiveParameters(codecs=[codec]))
    for each in arrivals:
        await receiver._handle_rtp_packet(RtpPacket.parse(each.packet), 0)
    wanted = [each.frame for each in stock(arrivals)]

    async with asyncio.timeout(10):
        frames = [await track.recv() for _ in wanted]
    assert track._queue.empty()
    await receiver.stop()

    assert [wanted[0] + (frame.pts or 0) // 960 for frame in frames] == wanted


def arrival(frame: int, at: float) -> Arrival:
    return Arrival(at, frame, b"")


def test_what_becomes_of_each_frame_is_counted() -> None:
    """Of six: whole, lost and recovered, lost and guessed, spoiled, not delivered, whole late."""
    trace = Trace(
        {number: number * FRAME for number in range(6)},
        tuple(arrival(frame, frame * FRAME + 0.03) for frame in (0, 3, 4, 5)),
    )
    measured = measure(
        trace,
        [
            Delivery(0.03, 0, False),
            Delivery(0.09, 1, False),
            Delivery(0.09, 2, True),
            Delivery(0.09, 3, True),
            Delivery(0.14, 5, False),
        ],
    )

    assert measured.delays == pytest.approx((0, 10))
    assert (measured.whole, measured.recovered) == (2, 1)
    assert (measured.concealed, measured.missing, measured.spoiled) == (2, 1, 2)


def test_ours_delivers_every_frame_there_is() -> None:
    trace = MAKE["heavy"](1)

    frames = [each.frame for each in ours(trace.arrivals)]

    assert frames == list(range(frames[0], trace.arrivals[-1].frame + 1))
