"""What of an answer has been heard, and what the client is told of it."""

import pytest

from tests.transceiver.backends.conversation import FakeConversation
from transceiver.backends import BacklogFull
from transceiver.backends.oai_events import EventChannel
from transceiver.backends.playout import Cut, Playout

SECOND = bytes(48000)


@pytest.fixture
def conversation() -> FakeConversation:
    return FakeConversation()


@pytest.fixture
def playout(conversation: FakeConversation) -> Playout:
    channel = EventChannel(conversation)
    channel.opened()
    playout = Playout(conversation, channel)
    conversation.on_drained = playout.advance
    return playout


def told(conversation: FakeConversation) -> list[tuple[str, object]]:
    return [
        (str(event["type"]).removeprefix("output_audio_buffer."), event["response_id"])
        for event in conversation.events
    ]


def test_a_response_starts_once_and_stops_when_it_is_out(
    playout: Playout, conversation: FakeConversation
) -> None:
    playout.say("r1", "i1", 0, SECOND)
    playout.say("r1", "i1", 0, SECOND)
    playout.finish("r1")
    conversation.play(1.9)
    assert told(conversation) == [("started", "r1")]
    conversation.play(0.1)
    assert told(conversation) == [("started", "r1"), ("stopped", "r1")]
    assert not playout.playing


def test_a_model_that_is_slow_has_not_stopped(
    playout: Playout, conversation: FakeConversation
) -> None:
    playout.say("r1", "i1", 0, SECOND)
    conversation.play(2)
    playout.say("r1", "i1", 0, SECOND)
    conversation.play(2)
    assert told(conversation) == [("started", "r1")]
    playout.finish("r1")
    assert told(conversation) == [("started", "r1"), ("stopped", "r1")]


def test_responses_that_wait_behind_each_other_start_in_turn(
    playout: Playout, conversation: FakeConversation
) -> None:
    for response in ("r1", "r2"):
        playout.say(response, f"item of {response}", 0, SECOND)
        playout.finish(response)
    conversation.play(0.9)
    playout.advance()
    assert told(conversation) == [("started", "r1")]
    conversation.play(0.1)
    playout.advance()
    assert told(conversation) == [("started", "r1"), ("stopped", "r1"), ("started", "r2")]


def test_a_cut_says_what_was_heard(playout: Playout, conversation: FakeConversation) -> None:
    playout.say("r1", "i1", 0, SECOND)
    conversation.play(0.3)
    assert playout.cut() == [Cut("r1", "i1", 0, 300)]
    assert told(conversation) == [("started", "r1"), ("cleared", "r1")]
    assert conversation.backlog == 0
    assert not playout.playing


def test_items_that_were_heard_are_not_cut_and_those_to_come_are_cut_whole(
    playout: Playout, conversation: FakeConversation
) -> None:
    for item in ("i1", "i2", "i3"):
        playout.say("r1", item, 0, SECOND)
    playout.finish("r1")
    conversation.play(1.5)
    assert playout.cut() == [Cut("r1", "i2", 0, 500), Cut("r1", "i3", 0, 0)]


def test_an_item_that_a_slow_model_has_not_finished_is_cut_where_it_is(
    playout: Playout, conversation: FakeConversation
) -> None:
    playout.say("r1", "i1", 0, SECOND)
    conversation.play(2)
    assert playout.cut() == [Cut("r1", "i1", 0, 1000)]


def test_when_nothing_plays_nothing_is_cut(
    playout: Playout, conversation: FakeConversation
) -> None:
    playout.say("r1", "i1", 0, SECOND)
    playout.finish("r1")
    conversation.play(1)
    assert playout.cut() == []
    assert told(conversation) == [("started", "r1"), ("stopped", "r1")]


def test_what_found_no_room_is_not_counted(
    playout: Playout, conversation: FakeConversation
) -> None:
    conversation.limit = 1.5
    playout.say("r1", "i1", 0, SECOND)
    with pytest.raises(BacklogFull):
        playout.say("r1", "i1", 0, SECOND)
    conversation.play(0.3)
    assert playout.cut() == [Cut("r1", "i1", 0, 300)]
