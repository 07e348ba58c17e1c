"""What an echo sends back, what it does not, and that delay cannot grow."""

import numpy as np
import pytest

from loader.errors import ShuntError
from tests.transceiver.backends.conversation import FakeConversation
from transceiver.backends import make
from transceiver.backends.echo import MOST, SLACK, Echo

RATE = 48000
FRAME = 960
RNG = np.random.default_rng(1)
VOICE = RNG.integers(-8000, 8000, FRAME, dtype=np.int16).tobytes()
SILENCE = bytes(FRAME * 2)


@pytest.fixture
def conversation() -> FakeConversation:
    return FakeConversation(rate=RATE)


@pytest.fixture
def echo(conversation: FakeConversation) -> Echo:
    echo = Echo()
    echo.start(conversation)
    return echo


def hear(echo: Echo, *frames: bytes) -> None:
    for frame in frames:
        echo.hear(frame, 0, False)


def test_audio_comes_back_unchanged(echo: Echo, conversation: FakeConversation) -> None:
    frames = [RNG.integers(-8000, 8000, FRAME, dtype=np.int16).tobytes() for _ in range(5)]
    for frame in frames:
        hear(echo, frame)
        conversation.play(0.02)
    assert bytes(conversation.played) == b"".join(frames)


def test_a_burst_after_a_stall_is_not_kept(echo: Echo, conversation: FakeConversation) -> None:
    hear(echo, *[VOICE] * 500)
    assert conversation.backlog <= MOST + 0.02


def test_what_is_left_of_a_burst_is_the_newest(echo: Echo, conversation: FakeConversation) -> None:
    newest = RNG.integers(-8000, 8000, FRAME, dtype=np.int16).tobytes()
    hear(echo, *[VOICE] * 500, newest)
    conversation.play(1)
    assert conversation.played.endswith(newest)


def test_silence_takes_the_delay_of_a_burst_away(
    echo: Echo, conversation: FakeConversation
) -> None:
    hear(echo, *[VOICE] * 9)
    for _ in range(20):
        hear(echo, SILENCE)
        conversation.play(0.02)
    assert conversation.backlog <= SLACK


def test_a_client_with_a_fast_clock_causes_no_delay(
    echo: Echo, conversation: FakeConversation
) -> None:
    """One frame in a hundred too many, of audio without silence, for ten minutes."""
    most = 0.0
    for frame in range(30_000):
        hear(echo, VOICE, *[VOICE] * (frame % 100 == 0))
        conversation.play(0.02)
        most = max(most, conversation.backlog)
    assert most <= MOST + 0.04


@pytest.mark.parametrize("message", ["text", b"\x00bytes", "", b"", "ping", "ping: pong"])
def test_messages_come_back(
    echo: Echo, conversation: FakeConversation, message: str | bytes
) -> None:
    echo.receive("test", message)
    assert conversation.sent == [("test", message)]


@pytest.mark.parametrize(
    ("label", "message"),
    [("oai-events", "{}"), ("chat", "hello"), ("chat", "ping: 1"), ("test", "ping: 1764215000000")],
)
def test_protocols_of_others_and_pings_are_not_echoed(
    echo: Echo, conversation: FakeConversation, label: str, message: str
) -> None:
    echo.channel_opened(label)
    echo.receive(label, message)
    assert conversation.sent == []


def test_a_client_that_does_not_read_ends_nothing(
    echo: Echo, conversation: FakeConversation
) -> None:
    conversation.open.clear()
    echo.receive("test", "lost")
    assert conversation.ended is None


def test_it_is_made_by_its_name() -> None:
    assert isinstance(make("echo")(), Echo)


def test_an_option_it_does_not_have_is_refused() -> None:
    with pytest.raises(ShuntError, match="no option 'volume'"):
        make("echo", {"volume": "11"})


def test_an_unknown_backend_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(ShuntError) as refused:
        make("shout")
    assert "echo" in refused.value.cure
