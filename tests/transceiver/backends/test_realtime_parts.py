"""The parts of the realtime backend that do no I/O: options, what waits to be sent, settings."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loader.errors import ShuntError
from transceiver.backends import make
from transceiver.backends.oai_events import Event, EventError
from transceiver.backends.realtime.endpoint import Endpoint
from transceiver.backends.realtime.outbox import MAX_EVENTS, Outbox
from transceiver.backends.realtime.settings import MAX_PENDING, Settings

# Options

KEYS = {"OPENAI_API_KEY": "sk-openai", "MODEL_KEY": "sk-ours"}


def test_openai_needs_its_key_alone() -> None:
    endpoint = Endpoint.of({}, KEYS)
    assert str(endpoint.at("gpt-realtime")) == (
        "wss://api.openai.com/v1/realtime?model=gpt-realtime"
    )
    assert endpoint.headers == {"Authorization": "Bearer sk-openai"}


def test_openais_key_goes_nowhere_else() -> None:
    assert Endpoint.of({"url": "wss://model.example/"}, KEYS).headers == {}


def test_a_key_is_named_and_not_shown() -> None:
    options = {"url": "wss://model.example/", "api_key_env": "MODEL_KEY"}
    endpoint = Endpoint.of(options, KEYS)
    assert endpoint.headers == {"Authorization": "Bearer sk-ours"}
    assert "sk-ours" not in repr(endpoint)


def test_the_operators_model_is_everybodys() -> None:
    options = {"url": "wss://model.example/?v=1", "model": "small"}
    assert str(Endpoint.of(options, {}).at("dear")) == "wss://model.example/?v=1&model=small"


def test_the_beta_has_its_header() -> None:
    options = {"url": "wss://model.example/", "beta": "yes"}
    assert Endpoint.of(options, {}).headers == {"OpenAI-Beta": "realtime=v1"}


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"voice": "alloy"}, "no option 'voice'"),
        ({"url": "https://model.example/"}, "no WebSocket URL"),
        ({"url": "wss://"}, "no WebSocket URL"),
        ({"url": "wss://[::1/"}, "no WebSocket URL"),
        ({"url": "wss://host:99999/"}, "no WebSocket URL"),
        ({"url": "wss://user:key@host/"}, "holds a password"),
        ({"url": "wss://host/", "api_key_env": "UNSET"}, "UNSET is not set"),
        ({"url": "ws://host/", "api_key_env": "MODEL_KEY"}, "in the clear"),
        ({"url": "wss://host/", "api_key_env": "BROKEN_KEY"}, "no API key"),
        ({"url": "wss://host/", "beta": "true"}, "beta=true"),
        ({"url": "wss://host/", "chunk_ms": "10"}, "chunk_ms=10"),
        ({"url": "wss://host/", "chunk_ms": "٤٠"}, "chunk_ms"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, str], what: str) -> None:
    with pytest.raises(ShuntError, match=what) as refused:
        Endpoint.of(options, {**KEYS, "BROKEN_KEY": "sk\r\nX: y"})
    assert refused.value.cure
    assert "sk-" not in str(refused.value)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]"])
def test_on_the_same_host_a_key_may_go_in_the_clear(host: str) -> None:
    options = {"url": f"ws://{host}:8000/v1/realtime", "api_key_env": "MODEL_KEY"}
    assert "Authorization" in Endpoint.of(options, KEYS).headers


def test_a_missing_key_is_known_when_the_process_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(ShuntError, match="OPENAI_API_KEY is not set"):
        make("realtime")


# What waits to be sent


def taken(outbox: Outbox) -> list[tuple[bytes, bool]]:
    found = []
    while (each := outbox.take()) is not None:
        found.append(each)
    return found


def test_what_waits_keeps_its_order() -> None:
    outbox = Outbox(rate=24000, seconds=1)
    outbox.add_audio(b"aa")
    outbox.add_event(b"{1}")
    outbox.add_event(b"{2}")
    outbox.add_audio(b"bb")
    assert taken(outbox) == [(b"aa", True), (b"{1}", False), (b"{2}", False), (b"bb", True)]


@settings(deadline=None)
@given(st.lists(st.integers(1, 2000), max_size=100))
def test_of_audio_the_newest_waits_and_the_rest_is_counted(pieces: list[int]) -> None:
    outbox = Outbox(rate=1000, seconds=1)
    for number, samples in enumerate(pieces):
        outbox.add_audio(bytes([number, 0]) * samples)
    left = [pcm for pcm, _ in taken(outbox)]
    assert sum(map(len, left)) <= 2000
    assert [pcm[0] for pcm in left] == list(range(len(pieces)))[len(pieces) - len(left) :]
    assert outbox.lost * 2000 == pytest.approx(sum(pieces) * 2 - sum(map(len, left)))


def test_events_that_find_no_room_are_refused_and_audio_still_has_its_own() -> None:
    outbox = Outbox(rate=24000, seconds=1)
    assert all(outbox.add_event(b"{}") for _ in range(MAX_EVENTS))
    assert not outbox.add_event(b"{}")
    outbox.add_audio(b"aa")
    assert taken(outbox)[-1] == (b"aa", True)
    assert not outbox.add_event(b"x" * (2 << 20))
    assert outbox.add_event(b"{}")


# What a session is set to


def sessions(events: list[Event]) -> list[object]:
    return [event["session"] for event in events]


def test_what_was_accepted_is_sent_again_as_one() -> None:
    settings = Settings(beta=True)
    settings.ask({"voice": "a", "audio": {"output": {"voice": "a", "speed": 1}}})
    settings.ask({"tools": [], "audio": {"output": {"voice": "b"}, "input": {"x": None}}})
    settings.accepted()
    settings.accepted()
    assert sessions(settings.again()) == [
        {
            "voice": "a",
            "tools": [],
            "audio": {"output": {"voice": "b", "speed": 1}, "input": {"x": None}},
        }
    ]


def test_what_was_refused_is_not_sent_again_and_what_is_open_is() -> None:
    settings = Settings(beta=True)
    settings.ask({"voice": "a"}, "e1")
    settings.ask({"voice": "b"}, "e2")
    settings.ask({"voice": "c"}, "e3")
    settings.accepted()
    settings.refused("e2")
    settings.refused("another")
    settings.refused(None)
    for _ in range(3):  # connections that are lost before they are answered
        assert sessions(settings.again()) == [{"voice": "a"}, {"voice": "c"}]


def test_a_client_may_give_all_its_events_one_id() -> None:
    settings = Settings(beta=True)
    for voice in "abc":
        settings.ask({"voice": voice}, "mine")
    settings.accepted()
    settings.refused("mine")
    assert sessions(settings.again()) == [{"voice": "a"}, {"voice": "c"}]


def test_a_session_has_its_type_and_keeps_one_of_another() -> None:
    settings = Settings(beta=False)
    assert sessions([settings.ask({})]) == [{"type": "realtime"}]
    assert sessions([settings.ask({"type": "transcription"})]) == [{"type": "transcription"}]


@pytest.mark.parametrize("wanted", [None, 7, [], "voice"])
def test_what_is_no_object_sets_nothing(wanted: object) -> None:
    with pytest.raises(EventError, match="object"):
        Settings(beta=False).ask(wanted, "mine")


@pytest.mark.parametrize("audio", [None, 7, [], {"input": None}, {"input": 7, "output": []}])
def test_whatever_audio_is_the_server_judges_it(audio: object) -> None:
    settings = Settings(beta=True)
    settings.ask({"audio": audio})
    settings.ask({"audio": {"output": {"voice": "a"}}})
    settings.accepted()
    settings.accepted()
    (session,) = sessions(settings.again())
    assert isinstance(session, dict)
    assert session["audio"]["output"] == {"voice": "a"}


def test_settings_are_bounded() -> None:
    settings = Settings(beta=False)
    with pytest.raises(EventError, match="bytes in all"):
        settings.ask({"instructions": "x" * (256 << 10)})
    for _ in range(MAX_PENDING):
        settings.ask({})
    with pytest.raises(EventError, match="not answered"):
        settings.ask({})
