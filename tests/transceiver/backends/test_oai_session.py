"""What a client may set with `session.update`, and what follows of it."""

import copy

import pytest

from transceiver.backends.oai_events import EventError
from transceiver.backends.oai_session import MAX_SESSION, SessionSettings, TurnDetection


@pytest.fixture
def settings() -> SessionSettings:
    return SessionSettings(model="parrot")


def turn_detection(value: object) -> dict[str, object]:
    return {"type": "realtime", "audio": {"input": {"turn_detection": value}}}


def test_by_default_turns_are_detected(settings: SessionSettings) -> None:
    assert settings.turn_detection == TurnDetection()


def test_what_agents_realtime_sends_first_is_taken(settings: SessionSettings) -> None:
    """@openai/agents-realtime 0.20: its defaults, without those that JSON leaves out."""
    settings.update(
        {
            "type": "realtime",
            "instructions": "Be brief.",
            "model": "gpt-realtime",
            "output_modalities": ["audio"],
            "audio": {
                "input": {
                    "format": {"type": "audio/pcm", "rate": 24000},
                    "noise_reduction": None,
                    "transcription": {"model": "gpt-4o-mini-transcribe"},
                    "turn_detection": {"type": "semantic_vad"},
                },
                "output": {"format": {"type": "audio/pcm", "rate": 24000}, "speed": 1},
            },
            "tool_choice": "auto",
            "tools": [{"type": "function", "name": "weather", "parameters": {}}],
        }
    )
    settings.update({"type": "realtime", "tracing": "auto"})
    shown = settings.session
    assert shown["instructions"] == "Be brief."
    assert shown["tracing"] == "auto"
    assert shown["type"] == "realtime"
    assert shown["id"] == settings.id


def test_settings_of_server_vad_count_and_the_rest_is_default(settings: SessionSettings) -> None:
    settings.update(turn_detection({"type": "server_vad", "threshold": 0.8}))
    assert settings.turn_detection == TurnDetection(threshold=0.8)


def test_turn_detection_can_be_off(settings: SessionSettings) -> None:
    settings.update(turn_detection(None))
    assert settings.turn_detection is None


def test_what_an_update_does_not_name_stays(settings: SessionSettings) -> None:
    settings.update(turn_detection({"type": "server_vad", "silence_duration_ms": 900}))
    settings.update({"audio": {"output": {"voice": "marin"}}})
    assert settings.turn_detection == TurnDetection(silence_duration_ms=900)


def test_an_eager_client_is_answered_sooner(settings: SessionSettings) -> None:
    settings.update(turn_detection({"type": "semantic_vad", "eagerness": "high"}))
    assert settings.turn_detection == TurnDetection(silence_duration_ms=300)


def test_the_beta_has_turn_detection_elsewhere(settings: SessionSettings) -> None:
    settings.update({"turn_detection": None, "modalities": ["audio", "text"], "voice": "alloy"})
    assert settings.turn_detection is None


@pytest.mark.parametrize(
    ("wanted", "code", "param"),
    [
        (None, "invalid_value", "session"),
        ([], "invalid_value", "session"),
        ({"typ": "realtime"}, "unknown_parameter", "session.typ"),
        ({"type": "transcription"}, "invalid_value", "session.type"),
        ({"instructions": 7}, "invalid_value", "session.instructions"),
        (
            turn_detection({"type": "server_vad", "threshold": 2}),
            "invalid_value",
            "session.audio.input.turn_detection.threshold",
        ),
        (
            turn_detection({"type": "server_vad", "silence_duration_ms": 10**9}),
            "invalid_value",
            "session.audio.input.turn_detection.silence_duration_ms",
        ),
        (
            turn_detection({"type": "telepathy"}),
            "invalid_value",
            "session.audio.input.turn_detection.type",
        ),
        ({"instructions": "x" * MAX_SESSION}, "invalid_value", "session"),
    ],
)
def test_what_makes_no_sense_is_refused_and_changes_nothing(
    settings: SessionSettings, wanted: object, code: str, param: str
) -> None:
    before = copy.deepcopy(settings.session)
    with pytest.raises(EventError) as refused:
        settings.update(wanted, "mine")
    assert (refused.value.code, refused.value.param) == (code, param)
    assert refused.value.event_id == "mine"
    assert settings.session == before
