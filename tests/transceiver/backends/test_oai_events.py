"""Events as they pass over the data channel: what is read, what is refused, what is held."""

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.transceiver.backends.conversation import FakeConversation
from transceiver.backends.oai_events import (
    MAX_DEPTH,
    MAX_EVENT_ID,
    MAX_HELD,
    MAX_MESSAGE,
    ClientEvent,
    Event,
    EventChannel,
    EventError,
    encode,
    error_event,
    new_id,
    parse,
)


def test_an_event_is_read() -> None:
    body: Event = {"type": "response.create", "event_id": "e1", "response": {}}
    assert parse(json.dumps(body)) == ClientEvent("response.create", "e1", body)


@pytest.mark.parametrize(
    ("message", "code"),
    [
        (b"{}", "invalid_event"),
        ("", "invalid_json"),
        ("{", "invalid_json"),
        ("ping", "invalid_json"),
        ('{"type": "a"} {"type": "b"}', "invalid_json"),
        ('{"type": "a", "x": NaN}', "invalid_json"),
        ('{"type": "\ud800"}', "invalid_json"),
        ("[" * 100_000, "invalid_json"),
        ('{"a":' * 100_000, "event_too_long"),
        ("null", "invalid_event"),
        ("[]", "invalid_event"),
        ("{}", "missing_required_parameter"),
        ('{"type": 7}', "missing_required_parameter"),
        ('{"type": "a", "event_id": 7}', "invalid_value"),
        (json.dumps({"type": "a", "event_id": "x" * (MAX_EVENT_ID + 1)}), "invalid_value"),
        (json.dumps({"type": "a", "x": "y" * MAX_MESSAGE}), "event_too_long"),
    ],
    ids=range(16),
)
def test_what_is_no_event_is_refused(message: str | bytes, code: str) -> None:
    with pytest.raises(EventError) as refused:
        parse(message)
    assert refused.value.code == code


@pytest.mark.parametrize(("levels", "sane"), [(MAX_DEPTH - 1, True), (MAX_DEPTH, False)])
def test_depth_is_bounded(levels: int, sane: bool) -> None:
    message = '{"type": "a", "x": ' + "[" * levels + "]" * levels + "}"
    if sane:
        assert parse(message).type == "a"
    else:
        with pytest.raises(EventError, match="deeper"):
            parse(message)


def test_brackets_in_strings_are_no_depth() -> None:
    text = '[{\\"' * 100
    assert parse(json.dumps({"type": "a", "x": text})).body["x"] == text


def test_an_error_names_the_event_that_it_is_for() -> None:
    with pytest.raises(EventError) as refused:
        parse('{"event_id": "mine"}')
    assert error_event(refused.value) == {
        "type": "error",
        "error": {
            "type": "invalid_request_error",
            "code": "missing_required_parameter",
            "message": "Missing required parameter: 'type'.",
            "param": "type",
            "event_id": "mine",
        },
    }


@given(st.text() | st.binary())
def test_nothing_that_a_client_sends_does_more_than_be_refused(message: str | bytes) -> None:
    with contextlib.suppress(EventError):
        assert isinstance(parse(message).type, str)


def test_every_event_of_ours_has_an_id_of_its_own() -> None:
    first, second = (json.loads(encode({"type": "x"})) for _ in range(2))
    assert first["event_id"] != second["event_id"]
    assert first["event_id"].startswith("event_")


def test_identifiers_look_like_those_of_the_api() -> None:
    assert len(new_id("item")) <= 32
    assert new_id("item").startswith("item_")


def test_events_before_the_channel_is_open_are_held_in_order() -> None:
    conversation = FakeConversation()
    channel = EventChannel(conversation)
    channel.send({"type": "one"}, {"type": "two"})
    assert conversation.sent == []
    channel.opened()
    channel.send({"type": "three"})
    assert conversation.types == ["one", "two", "three"]


def test_of_too_many_held_events_the_oldest_go() -> None:
    conversation = FakeConversation()
    channel = EventChannel(conversation)
    channel.send(*({"type": str(number)} for number in range(MAX_HELD + 3)))
    channel.opened()
    assert conversation.types == [str(number) for number in range(3, MAX_HELD + 3)]
    assert channel.lost == 3


def test_events_that_a_client_does_not_read_are_counted() -> None:
    conversation = FakeConversation()
    channel = EventChannel(conversation)
    channel.opened()
    conversation.open.clear()
    channel.send({"type": "one"})
    assert channel.lost == 1
