"""What is speech to each detector, and what is not."""

import sys

import pytest

from loader.errors import ShuntError
from tests.transceiver.backends.sound import RATE, frames, noise, speech
from transceiver.backends import make
from transceiver.backends.vad import VADS, EnergyVad, Vad, WebRtcVad


@pytest.fixture(params=["energy", "webrtc"])
def vad(request: pytest.FixtureRequest) -> Vad:
    if request.param == "webrtc":
        pytest.importorskip("webrtcvad", reason="the extra `vad` is not installed")
    return VADS[request.param](RATE)


def share(vad: Vad, pcm: bytes) -> float:
    """Of the frames of *pcm*, those that are speech."""
    found = [vad.probability(frame) >= 0.5 for frame in frames(pcm)]
    return sum(found) / len(found)


def test_speech_is_speech(vad: Vad) -> None:
    share(vad, noise(1))
    assert share(vad, speech(3)) > 0.5


@pytest.mark.parametrize("pcm", [noise(3), bytes(RATE * 6)], ids=["noise", "silence"])
def test_a_quiet_room_is_not(vad: Vad, pcm: bytes) -> None:
    """But for some frames with which WebRTC's begins, fewer than a turn needs."""
    assert share(vad, pcm) < 0.05


def test_noise_as_loud_as_a_fan_becomes_the_floor() -> None:
    vad = EnergyVad(RATE)
    share(vad, noise(15, -35))
    assert share(vad, noise(1, -35)) == 0


def test_over_that_noise_louder_speech_is_heard() -> None:
    vad = EnergyVad(RATE)
    share(vad, noise(15, -45))
    assert share(vad, speech(2, -20)) > 0.5


def test_a_monologue_does_not_become_the_floor() -> None:
    vad = EnergyVad(RATE)
    share(vad, speech(30))
    assert share(vad, speech(2)) > 0.5


def test_a_constant_offset_is_not_sound() -> None:
    assert share(EnergyVad(RATE), (b"\x00\x20" * RATE)) == 0


def test_what_is_not_installed_is_said_when_the_process_starts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "webrtcvad", None)
    with pytest.raises(ShuntError, match="not installed") as refused:
        make("parrot", {"vad": "webrtc"})
    assert "shunt[vad]" in refused.value.cure


def test_the_better_detector_is_an_option() -> None:
    pytest.importorskip("webrtcvad", reason="the extra `vad` is not installed")
    made = make("parrot", {"vad": "webrtc"})()
    assert isinstance(made._turns._vad, WebRtcVad)  # type: ignore[attr-defined]
