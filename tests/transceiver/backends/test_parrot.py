"""A parrot's conversation, in virtual time: turns, answers, barge-in, and what clients ask for."""

import json

import pytest

from loader.errors import ShuntError
from tests.transceiver.backends.conversation import FakeConversation
from tests.transceiver.backends.sound import FRAME, frames, noise, speech
from transceiver.backends import make
from transceiver.backends.oai_events import LABEL
from transceiver.backends.parrot import Parrot

ONE_TURN = noise(0.5) + speech(1.5) + noise(0.7)


class Client:
    """Speaks to a parrot in real time, in which what it says goes out too."""

    def __init__(self, **configuration: object) -> None:
        self.conversation = FakeConversation(configuration=configuration)
        self.parrot = Parrot()
        self.parrot.start(self.conversation)
        self.at = 0

    def open(self) -> None:
        self.parrot.channel_opened(LABEL)

    def speak(self, pcm: bytes) -> None:
        for frame in frames(pcm):
            self.parrot.hear(frame, self.at, False)
            self.at += len(frame) // 2
            self.conversation.play(0.02)

    def send(self, type: str, **fields: object) -> list[object]:
        """Send an event; the types of those that came back."""
        before = len(self.conversation.events)
        self.parrot.receive(LABEL, json.dumps({"type": type, "event_id": "mine", **fields}))
        return self.conversation.types[before:]

    def error(self) -> object:
        error = self.conversation.event("error")["error"]
        assert isinstance(error, dict)
        assert error["event_id"] == "mine"
        return error["code"]


@pytest.fixture
def client() -> Client:
    client = Client()
    client.open()
    return client


def of(event: dict[str, object], *path: str) -> object:
    value: object = event
    for name in path:
        assert isinstance(value, dict)
        value = value[name]
    return value


def test_a_turn_and_its_answer_in_the_order_of_the_api(client: Client) -> None:
    client.speak(ONE_TURN + noise(3))
    assert client.conversation.types == [
        "session.created",
        "input_audio_buffer.speech_started",
        "input_audio_buffer.speech_stopped",
        "input_audio_buffer.committed",
        "conversation.item.added",
        "conversation.item.created",
        "conversation.item.done",
        "response.created",
        "response.output_item.added",
        "conversation.item.added",
        "conversation.item.created",
        "response.content_part.added",
        "output_audio_buffer.started",
        "response.output_audio.done",
        "response.content_part.done",
        "response.output_item.done",
        "conversation.item.done",
        "response.done",
        "output_audio_buffer.stopped",
    ]


def test_it_says_what_it_heard(client: Client) -> None:
    client.speak(ONE_TURN + noise(3))
    assert bytes(client.conversation.played) in ONE_TURN
    assert speech(1.5)[FRAME:-FRAME] in ONE_TURN
    assert len(client.conversation.played) / 48000 == pytest.approx(0.3 + 1.5 + 0.5, abs=0.1)


def test_the_events_of_a_turn_belong_together(client: Client) -> None:
    client.speak(ONE_TURN + noise(3))
    conversation = client.conversation
    items = {
        conversation.event(f"input_audio_buffer.{what}")["item_id"]
        for what in ("speech_started", "speech_stopped", "committed")
    }
    assert len(items) == 1
    response = of(conversation.event("response.created"), "response", "id")
    assert of(conversation.event("response.done"), "response", "id") == response
    assert conversation.event("output_audio_buffer.started")["response_id"] == response
    assert conversation.event("output_audio_buffer.stopped")["response_id"] == response
    assert conversation.event("response.content_part.added")["response_id"] == response
    (user,) = items
    added = [e for e in conversation.events if e["type"] == "conversation.item.added"]
    assert [of(event, "item", "role") for event in added] == ["user", "assistant"]
    assert added[1]["previous_item_id"] == user


def test_a_turn_is_where_it_was_in_the_audio(client: Client) -> None:
    client.speak(ONE_TURN)
    started = client.conversation.event("input_audio_buffer.speech_started")["audio_start_ms"]
    stopped = client.conversation.event("input_audio_buffer.speech_stopped")["audio_end_ms"]
    assert started == pytest.approx(200, abs=40)
    assert stopped == pytest.approx(2460, abs=60)


def test_who_speaks_while_it_answers_is_listened_to_at_once(client: Client) -> None:
    client.speak(ONE_TURN)
    before = len(client.conversation.played)
    client.speak(noise(0.3) + speech(0.2))
    conversation = client.conversation
    assert conversation.types[-8:] == [
        "input_audio_buffer.speech_started",
        "output_audio_buffer.cleared",
        "conversation.item.truncated",
        "response.output_audio.done",
        "response.content_part.done",
        "response.output_item.done",
        "conversation.item.done",
        "response.done",
    ]
    assert of(conversation.event("response.done"), "response", "status") == "cancelled"
    assert of(conversation.event("response.done"), "response", "status_details") == {
        "type": "cancelled",
        "reason": "turn_detected",
    }
    heard = len(conversation.played) / 48
    assert conversation.event("conversation.item.truncated")["audio_end_ms"] == int(heard)
    assert len(conversation.played) - before < 0.42 * 48000
    assert conversation.backlog == 0


def test_nothing_of_a_cut_answer_goes_out_after_the_frame_that_told(client: Client) -> None:
    client.speak(ONE_TURN)
    for frame in frames(noise(0.3) + speech(0.3)):
        client.parrot.hear(frame, client.at, False)
        client.at += len(frame) // 2
        if "output_audio_buffer.cleared" in client.conversation.types:
            break
        client.conversation.play(0.02)
    else:
        pytest.fail("no barge-in")
    before = bytes(client.conversation.played)
    client.conversation.play(1)
    assert bytes(client.conversation.played) == before


def test_an_answer_that_is_generated_but_not_heard_is_truncated_and_not_cancelled(
    client: Client,
) -> None:
    client.speak(noise(0.5) + speech(0.4) + noise(0.6) + noise(0.3) + speech(0.2))
    conversation = client.conversation
    assert of(conversation.event("response.done"), "response", "status") == "completed"
    assert "output_audio_buffer.cleared" in conversation.types
    assert "conversation.item.truncated" in conversation.types


def detection(**settings: object) -> dict[str, object]:
    inner = {"type": "server_vad", **settings}
    return {"type": "realtime", "audio": {"input": {"turn_detection": inner}}}


def test_an_answer_goes_on_if_the_client_wants_no_interruption() -> None:
    client = Client(**detection(interrupt_response=False))
    client.open()
    client.speak(ONE_TURN + noise(0.3) + speech(1))
    assert "output_audio_buffer.cleared" not in client.conversation.types
    client.speak(noise(5))
    assert client.conversation.types.count("input_audio_buffer.committed") == 2


def test_no_answer_comes_by_itself_if_the_client_wants_none() -> None:
    client = Client(**detection(create_response=False))
    client.open()
    client.speak(ONE_TURN)
    assert client.conversation.types[-1] == "conversation.item.done"
    assert client.send("response.create")[0] == "response.created"
    client.speak(noise(3))
    assert bytes(client.conversation.played) in ONE_TURN


def test_a_client_may_decide_on_turns_itself() -> None:
    client = Client(audio={"input": {"turn_detection": None}})
    client.open()
    client.speak(ONE_TURN)
    assert client.conversation.types == ["session.created"]
    assert client.send("input_audio_buffer.commit")[0] == "input_audio_buffer.committed"
    client.send("response.create")
    client.speak(noise(4))
    assert bytes(client.conversation.played) == ONE_TURN


def test_what_was_cleared_is_not_committed() -> None:
    client = Client(audio={"input": {"turn_detection": None}})
    client.open()
    client.speak(ONE_TURN)
    assert client.send("input_audio_buffer.clear") == ["input_audio_buffer.cleared"]
    assert client.send("input_audio_buffer.commit") == ["error"]
    assert client.error() == "input_audio_buffer_commit_empty"


def test_a_turn_that_is_cleared_does_not_stop(client: Client) -> None:
    client.speak(noise(0.5) + speech(0.5))
    client.send("input_audio_buffer.clear")
    client.speak(noise(2))
    assert "input_audio_buffer.speech_stopped" not in client.conversation.types


def test_what_is_kept_of_the_audio_is_bounded() -> None:
    client = Client(audio={"input": {"turn_detection": None}})
    for _ in range(4):
        client.parrot.hear(bytes(24000 * 20 * 2), client.at, False)
        client.at += 24000 * 20
    assert len(client.parrot._buffer) == 30 * 48000


def test_a_cancelled_answer_is_heard_as_far_as_it_was_made(client: Client) -> None:
    client.speak(ONE_TURN)
    assert client.send("response.cancel")[-1] == "response.done"
    assert of(client.conversation.event("response.done"), "response", "status_details") == {
        "type": "cancelled",
        "reason": "client_cancelled",
    }
    client.speak(noise(2))
    assert client.conversation.types[-1] == "output_audio_buffer.stopped"


def test_an_sdk_interrupts_with_two_events(client: Client) -> None:
    client.speak(ONE_TURN)
    client.send("response.cancel")
    assert client.send("output_audio_buffer.clear") == [
        "output_audio_buffer.cleared",
        "conversation.item.truncated",
    ]
    assert client.conversation.backlog == 0


def test_clearing_when_nothing_plays_is_no_error(client: Client) -> None:
    assert client.send("output_audio_buffer.clear") == []


def test_there_must_be_an_answer_to_cancel(client: Client) -> None:
    assert client.send("response.cancel") == ["error"]
    assert client.error() == "response_cancel_not_active"


def test_one_answer_at_a_time(client: Client) -> None:
    client.speak(ONE_TURN)
    assert client.send("response.create") == ["error"]
    assert client.error() == "conversation_already_has_active_response"


def test_asked_before_it_heard_anything_it_says_nothing(client: Client) -> None:
    types = client.send("response.create")
    assert (types[0], types[-1]) == ("response.created", "response.done")
    assert client.conversation.played == b""


def test_settings_can_be_changed_and_are_shown(client: Client) -> None:
    assert client.send("session.update", session=detection(threshold=0.9)) == ["session.updated"]
    updated = client.conversation.event("session.updated")
    assert of(updated, "session", "audio", "input", "turn_detection", "threshold") == 0.9


def test_settings_that_came_with_the_offer_are_in_session_created() -> None:
    client = Client(instructions="Be a parrot.")
    client.open()
    created = client.conversation.event("session.created")
    assert of(created, "session", "instructions") == "Be a parrot."


def test_settings_of_the_offer_that_make_no_sense_are_told_when_the_channel_opens() -> None:
    client = Client(instructions=7)
    client.open()
    assert client.conversation.types == ["session.created", "error"]


@pytest.mark.parametrize(
    ("type", "fields", "code"),
    [
        ("session.update", {}, "invalid_value"),
        ("session.update", {"session": {"x": 1}}, "unknown_parameter"),
        ("input_audio_buffer.append", {"audio": ""}, "invalid_event"),
        ("response.create", {"response": 7}, "invalid_value"),
        ("conversation.item.create", {}, "invalid_value"),
        ("conversation.item.create", {"item": {"type": "message", "id": 7}}, "invalid_value"),
        ("conversation.item.retrieve", {"item_id": "nobody"}, "item_not_found"),
        ("conversation.item.delete", {}, "item_not_found"),
        ("conversation.item.truncate", {"item_id": []}, "item_not_found"),
        ("conversation.item.levitate", {}, "invalid_value"),
        ("no.such.type", {}, "invalid_value"),
    ],
)
def test_what_cannot_be_is_an_error_that_names_the_event(
    client: Client, type: str, fields: dict[str, object], code: str
) -> None:
    assert client.send(type, **fields) == ["error"]
    assert client.error() == code


@pytest.mark.parametrize("message", ["", "{", b"\x00", "[]", '{"type": 1}'])
def test_what_is_no_event_ends_nothing(client: Client, message: str | bytes) -> None:
    client.parrot.receive(LABEL, message)
    assert client.conversation.types[-1] == "error"
    assert client.send("session.update", session={}) == ["session.updated"]


def test_items_of_the_client_can_be_asked_for_and_deleted(client: Client) -> None:
    item = {"id": "a", "type": "message", "role": "user", "content": []}
    assert client.send("conversation.item.create", item=item)[0] == "conversation.item.added"
    client.send("conversation.item.retrieve", item_id="a")
    assert of(client.conversation.event("conversation.item.retrieved"), "item", "id") == "a"
    assert client.send("conversation.item.delete", item_id="a") == ["conversation.item.deleted"]
    assert client.send("conversation.item.retrieve", item_id="a") == ["error"]


def test_an_answer_can_be_truncated_by_the_client_and_nothing_else(client: Client) -> None:
    client.speak(ONE_TURN + noise(3))
    added = [e for e in client.conversation.events if e["type"] == "conversation.item.added"]
    user, assistant = (of(event, "item", "id") for event in added)
    fields = {"content_index": 0, "audio_end_ms": 100}
    assert client.send("conversation.item.truncate", item_id=assistant, **fields) == [
        "conversation.item.truncated"
    ]
    assert client.send("conversation.item.truncate", item_id=user, **fields) == ["error"]
    fields["audio_end_ms"] = -1
    assert client.send("conversation.item.truncate", item_id=assistant, **fields) == ["error"]


def test_items_without_end_take_no_memory_without_end(client: Client) -> None:
    item = {"type": "message", "role": "user", "content": [{"text": "x" * 200_000}]}
    for _ in range(20):
        client.send("conversation.item.create", item=item)
    assert client.parrot._dialogue._bytes <= 1 << 20
    assert len(client.parrot._dialogue._items) == 5


def test_other_channels_are_not_its_business(client: Client) -> None:
    client.parrot.channel_opened("chat")
    client.parrot.receive("chat", "ping: 1")
    assert client.conversation.types == ["session.created"]


def test_a_client_without_the_channel_hears_the_answer_all_the_same() -> None:
    client = Client()
    client.speak(ONE_TURN + noise(3))
    assert client.conversation.sent == []
    assert len(client.conversation.played) > 48000


def test_an_option_it_does_not_have_is_refused() -> None:
    with pytest.raises(ShuntError, match="no option"):
        make("parrot", {"pitch": "high"})


def test_a_detector_that_there_is_not_is_refused() -> None:
    with pytest.raises(ShuntError) as refused:
        make("parrot", {"vad": "crystal"})
    assert refused.value.cure == "use one of: energy, webrtc"
