"""The events of OpenAI's Realtime API, as they pass over the data channel `oai-events`.

Reads what clients send, makes what servers send, and holds no state: what a conversation is and
when which event is due is left to `transceiver.backends.dialogue` and, for a model of somebody
else's, to that server. The shapes are those of the API's general availability (2025-08), the names
of which differ from the beta's; clients of either ignore what they do not know.

RFC 8259 is read strictly: one object, no NaN, no text after it.
"""

import secrets
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import msgspec

from transceiver.backends import Conversation

__all__ = [
    "CLIENT_EVENTS",
    "LABEL",
    "MAX_MESSAGE",
    "ClientEvent",
    "Event",
    "EventChannel",
    "EventError",
    "encode",
    "error_event",
    "new_id",
    "parse",
]

Event = dict[str, object]
"""An event as JSON has it."""

LABEL: Final = "oai-events"
"""The data channel."""

MAX_MESSAGE = 256 << 10
"""Bytes of one event of a client; what browsers take for the longest message they need to send."""

MAX_DEPTH = 64
"""Levels of arrays and objects in one event of a client. JSON Schemas of tools have about 20."""

MAX_EVENT_ID = 512
"""Characters of a client's `event_id`."""

MAX_HELD = 64
"""Events that wait for the client to open its channel."""

CLIENT_EVENTS = frozenset(
    {
        "session.update",
        "input_audio_buffer.append",
        "input_audio_buffer.commit",
        "input_audio_buffer.clear",
        "output_audio_buffer.clear",
        "conversation.item.create",
        "conversation.item.retrieve",
        "conversation.item.truncate",
        "conversation.item.delete",
        "response.create",
        "response.cancel",
    }
)


class EventError(Exception):
    """A client's event that cannot be done; what the `error` event for it will say."""

    def __init__(
        self, code: str, message: str, *, param: str | None = None, event_id: str | None = None
    ) -> None:
        """*event_id*: that of the client's event, if it gave it one."""
        super().__init__(message)
        self.code = code
        self.message = message
        self.param = param
        self.event_id = event_id


@dataclass(frozen=True, slots=True)
class ClientEvent:
    """An event of the client: well-formed, but its fields are as they came."""

    type: str
    event_id: str | None
    body: Event


def parse(message: str | bytes) -> ClientEvent:
    """Read what a client sent; EventError says what is wrong with it. Its type may be unknown."""
    if isinstance(message, bytes):
        raise EventError("invalid_event", "Events are text messages; this one was binary.")
    if len(message) > MAX_MESSAGE:
        raise EventError(
            "event_too_long", f"An event may have {MAX_MESSAGE} characters; this has more."
        )
    if not _depth_is_sane(message):
        raise EventError("invalid_json", f"The event is nested deeper than {MAX_DEPTH} levels.")
    try:
        body = msgspec.json.decode(message)
    except (msgspec.DecodeError, UnicodeEncodeError) as error:
        raise EventError("invalid_json", f"The event is not JSON: {error}.") from None
    if not isinstance(body, dict):
        raise EventError("invalid_event", "An event is a JSON object.")
    event_id = body.get("event_id")
    if event_id is not None and not (isinstance(event_id, str) and len(event_id) <= MAX_EVENT_ID):
        raise EventError(
            "invalid_value",
            f"'event_id' is a string of at most {MAX_EVENT_ID} characters.",
            param="event_id",
        )
    type = body.get("type")
    if not isinstance(type, str):
        raise EventError(
            "missing_required_parameter",
            "Missing required parameter: 'type'.",
            param="type",
            event_id=event_id,
        )
    return ClientEvent(type, event_id, body)


def _depth_is_sane(text: str) -> bool:
    """False if *text*, should it be JSON, is nested deeper than MAX_DEPTH. Brackets in strings
    count too, so only texts with many are walked."""
    if text.count("{") + text.count("[") <= MAX_DEPTH:
        return True
    depth = deepest = 0
    quoted = escaped = False
    for character in text:
        if quoted:
            if escaped:
                escaped = False
            elif character == "\\":
                escaped = True
            elif character == '"':
                quoted = False
        elif character == '"':
            quoted = True
        elif character in "{[":
            depth += 1
            deepest = max(deepest, depth)
        elif character in "}]":
            depth -= 1
    return deepest <= MAX_DEPTH


def new_id(kind: str) -> str:
    """An identifier as OpenAI's look: `event_…`, `item_…`, `resp_…`, `sess_…`, `conv_…`."""
    return f"{kind}_{secrets.token_hex(11)}"


def encode(event: Mapping[str, object]) -> str:
    """JSON of a server's event, with an `event_id` if it has none yet."""
    if "event_id" not in event:
        event = {"type": event["type"], "event_id": new_id("event"), **event}
    return msgspec.json.encode(event).decode()


def error_event(error: EventError, *, type: str = "invalid_request_error") -> Event:
    """*type*: `invalid_request_error` if it is the client's fault, `server_error` if ours."""
    return {
        "type": "error",
        "error": {
            "type": type,
            "code": error.code,
            "message": error.message,
            "param": error.param,
            "event_id": error.event_id,
        },
    }


class EventChannel:
    """The way of events to the client; what is due before its channel is open is held, in order.

    What a client does not read is lost: `lost` counts it. Of what is held, the oldest goes first.
    """

    def __init__(self, conversation: Conversation) -> None:
        self._conversation = conversation
        self._held: deque[str] = deque(maxlen=MAX_HELD)
        self._open = False
        self.lost = 0

    def send(self, *events: Mapping[str, object]) -> None:
        self.send_text(encode(event) for event in events)

    def send_text(self, messages: Iterable[str]) -> None:
        """Send what is JSON already."""
        for message in messages:
            if not self._open:
                self.lost += len(self._held) == self._held.maxlen
                self._held.append(message)
            elif not self._conversation.send(message, LABEL):
                self.lost += 1

    def opened(self) -> None:
        """Know that the client has opened the channel."""
        self._open = True
        held = list(self._held)
        self._held.clear()
        self.send_text(held)
