"""When turns begin and end, by the position in the client's audio."""

import pytest

from tests.transceiver.backends.sound import RATE, noise, speech
from transceiver.backends.oai_session import TurnDetection
from transceiver.backends.turns import MAX_TURN_MS, SpeechStarted, SpeechStopped, Turns
from transceiver.backends.vad import EnergyVad

SETTINGS = TurnDetection()
YES, NO = b"\x01\x00" * 480, bytes(960)


class Scripted:
    """A detector that is told."""

    def probability(self, frame: bytes) -> float:
        return frame[0] / 4 if frame[0] > 1 else float(frame[0])


class Listener:
    """Feeds audio to `Turns` and keeps what it finds."""

    def __init__(self, turns: Turns, settings: TurnDetection = SETTINGS) -> None:
        self.turns = turns
        self.settings = settings
        self.at = 0
        self.found: list[SpeechStarted | SpeechStopped] = []

    def hear(self, pcm: bytes, *, concealed: bool = False, size: int = 960) -> None:
        for start in range(0, len(pcm), size):
            piece = pcm[start : start + size]
            self.found += self.turns.hear(piece, self.at, concealed, self.settings)
            self.at += len(piece) // 2


@pytest.fixture
def listener() -> Listener:
    return Listener(Turns(rate=RATE, vad=Scripted()))


def test_a_turn_begins_with_its_padding_and_ends_with_its_silence(listener: Listener) -> None:
    listener.hear(NO * 50 + YES * 50 + NO * 50)
    assert listener.found == [SpeechStarted(1000 - 300), SpeechStopped(2000 + 500)]


def test_padding_reaches_no_further_back_than_the_last_turn(listener: Listener) -> None:
    listener.hear(YES * 10 + NO * 25 + YES * 10)
    assert listener.found == [SpeechStarted(0), SpeechStopped(700), SpeechStarted(700)]


def test_a_click_is_no_turn(listener: Listener) -> None:
    listener.hear((YES * 2 + NO * 10) * 20)
    assert listener.found == []


def test_one_frame_in_doubt_does_not_delay_a_turn(listener: Listener) -> None:
    listener.hear(YES * 2 + NO + YES)
    assert listener.found == [SpeechStarted(0)]


def test_a_pause_for_breath_ends_no_turn(listener: Listener) -> None:
    listener.hear(YES * 20 + NO * 24 + YES * 20)
    assert listener.found == [SpeechStarted(0)]


def test_settings_count_from_the_next_frame(listener: Listener) -> None:
    listener.hear(YES * 20)
    listener.settings = TurnDetection(silence_duration_ms=200)
    listener.hear(NO * 10)
    assert listener.found[-1] == SpeechStopped(600)


def test_whoever_speaks_may_become_softer(listener: Listener) -> None:
    soft = b"\x02\x00" * 480
    listener.settings = TurnDetection(threshold=0.6)
    listener.hear(soft * 20)
    assert listener.found == []
    listener.hear(YES * 5 + soft * 100)
    assert len(listener.found) == 1


@pytest.mark.parametrize("size", [240, 960, 1440, 5760])
def test_packets_of_any_length_give_the_same_turns(size: int) -> None:
    listener = Listener(Turns(rate=RATE, vad=Scripted()))
    listener.hear(NO * 50 + YES * 50 + NO * 50, size=size)
    assert listener.found == [SpeechStarted(700), SpeechStopped(2500)]


def test_concealed_audio_begins_no_turn(listener: Listener) -> None:
    listener.hear(YES * 20, concealed=True)
    assert listener.found == []


def test_a_loss_is_no_silence_unless_it_is_as_long(listener: Listener) -> None:
    listener.hear(YES * 20)
    listener.hear(NO * 10, concealed=True)
    listener.hear(YES * 5)
    assert listener.found == [SpeechStarted(0)]
    listener.hear(NO * 30, concealed=True)
    assert listener.found[-1] == SpeechStopped(700 + 500)


def test_a_gap_in_the_stream_counts_as_silence(listener: Listener) -> None:
    listener.hear(YES * 20)
    listener.at += RATE * 3
    listener.hear(YES * 20)
    assert listener.found == [SpeechStarted(0), SpeechStopped(3400), SpeechStarted(3400)]


def test_a_turn_without_end_is_ended(listener: Listener) -> None:
    listener.hear(YES * (MAX_TURN_MS // 20 + 10))
    assert SpeechStopped(MAX_TURN_MS) in listener.found


def test_what_is_reset_is_forgotten(listener: Listener) -> None:
    listener.hear(YES * 20)
    listener.turns.reset()
    listener.hear(NO * 50)
    assert listener.found == [SpeechStarted(0)]


def test_real_sound_gives_one_turn_for_each_sentence() -> None:
    listener = Listener(Turns(rate=RATE, vad=EnergyVad(RATE)))
    listener.hear(noise(1) + speech(2) + noise(1) + speech(1.5) + noise(1))
    assert [type(found) for found in listener.found] == [SpeechStarted, SpeechStopped] * 2
    started, stopped = listener.found[0], listener.found[1]
    assert isinstance(started, SpeechStarted)
    assert isinstance(stopped, SpeechStopped)
    assert abs(started.audio_start_ms - 700) <= 40
    assert abs(stopped.audio_end_ms - 3460) <= 60
