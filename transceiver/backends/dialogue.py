"""The server's side of OpenAI's Realtime events, for a backend that is no model: items, responses.

Keeps what clients can ask for by name and makes the events around it in the API's order. It knows
nothing of audio: when a response begins and how it ends is told to it.
"""

from collections import OrderedDict

import msgspec

from transceiver.backends.oai_events import ClientEvent, Event, EventChannel, EventError, new_id

__all__ = ["Dialogue", "Response"]

MAX_ITEMS = 64
MAX_ITEMS_BYTES = 1 << 20
"""Of the items of a conversation, the newest are kept: this many, and bytes as JSON."""


class Response:
    """A response with one item of speech."""

    def __init__(self, conversation_id: str) -> None:
        self.id = new_id("resp")
        self.item_id = new_id("item")
        self._conversation_id = conversation_id

    def item(self, status: str) -> Event:
        content = [] if status == "in_progress" else [{"type": "output_audio", "transcript": ""}]
        return {
            "id": self.item_id,
            "object": "realtime.item",
            "type": "message",
            "status": status,
            "role": "assistant",
            "content": content,
        }

    def response(self, status: str, details: Event | None = None) -> Event:
        item_status = "completed" if status == "completed" else "incomplete"
        return {
            "object": "realtime.response",
            "id": self.id,
            "status": status,
            "status_details": details,
            "output": [] if status == "in_progress" else [self.item(item_status)],
            "output_modalities": ["audio"],
            "conversation_id": self._conversation_id,
            "usage": None,
            "metadata": None,
        }


class Dialogue:
    """The items of one conversation, and the response that is under way."""

    def __init__(self, channel: EventChannel) -> None:
        self.id = new_id("conv")
        self.response: Response | None = None
        self._channel = channel
        self._items: OrderedDict[str, tuple[Event, int]] = OrderedDict()
        self._bytes = 0
        self._last: str | None = None

    @property
    def last_item_id(self) -> str | None:
        return self._last

    def add(self, item: Event, *, done: bool = True) -> None:
        """Append *item*, which has an id; *done*: it is whole already."""
        previous, self._last = self._last, str(item["id"])
        self._keep(item)
        # `created` is the beta's name for `added`.
        for what in ("added", "created", *(["done"] if done else [])):
            self._channel.send(
                {
                    "type": f"conversation.item.{what}",
                    "previous_item_id": previous,
                    "item": item,
                }
            )

    def begin_response(self) -> Response:
        """Begin to speak; there must be no response under way."""
        assert self.response is None
        response = self.response = Response(self.id)
        self._channel.send(
            {"type": "response.created", "response": response.response("in_progress")},
            self._of(response, "output_item.added", item=response.item("in_progress")),
        )
        self.add(response.item("in_progress"), done=False)
        part = {"type": "audio", "transcript": ""}
        self._channel.send(self._of_part(response, "content_part.added", part=part))
        return response

    def end_response(self, status: str, reason: str | None = None) -> None:
        """End the response under way: `completed`, or `cancelled` for that *reason*."""
        assert self.response is not None
        response, self.response = self.response, None
        item = response.item("completed" if status == "completed" else "incomplete")
        self._keep(item)
        part = {"type": "audio", "transcript": ""}
        details: Event | None = None
        if status != "completed":
            details = {"type": status, "reason": reason}
        self._channel.send(
            self._of_part(response, "output_audio.done"),
            self._of_part(response, "content_part.done", part=part),
            self._of(response, "output_item.done", item=item),
            {"type": "conversation.item.done", "item": item},
            {"type": "response.done", "response": response.response(status, details)},
        )

    def truncated(self, item_id: str, content_index: int, audio_end_ms: int) -> None:
        """Tell that only the beginning of an item was heard."""
        self._channel.send(
            {
                "type": "conversation.item.truncated",
                "item_id": item_id,
                "content_index": content_index,
                "audio_end_ms": audio_end_ms,
            }
        )

    def handle(self, event: ClientEvent) -> None:
        """Do what a client asks for with `conversation.item.*`; EventError if that cannot be."""
        match event.type:
            case "conversation.item.create":
                self._create(event)
            case "conversation.item.retrieve":
                item = self._item(event)
                self._channel.send({"type": "conversation.item.retrieved", "item": item})
            case "conversation.item.delete":
                id = str(self._item(event)["id"])
                self._bytes -= self._items.pop(id)[1]
                self._channel.send({"type": "conversation.item.deleted", "item_id": id})
            case "conversation.item.truncate":
                self._truncate(event)
            case _:
                raise AssertionError(event.type)

    def _create(self, event: ClientEvent) -> None:
        item = event.body.get("item")
        if not isinstance(item, dict) or not isinstance(item.get("type"), str):
            raise EventError(
                "invalid_value",
                "'item' is an object with a 'type'.",
                param="item",
                event_id=event.event_id,
            )
        id = item.get("id", new_id("item"))
        if not isinstance(id, str) or not 0 < len(id) <= 64 or id in self._items:
            raise EventError(
                "invalid_value",
                "An item's id is a string of 1 to 64 characters that no other item has.",
                param="item.id",
                event_id=event.event_id,
            )
        named = {"object": "realtime.item", "status": "completed"}
        self.add({"id": id, **named, **item})

    def _truncate(self, event: ClientEvent) -> None:
        item = self._item(event)
        end, index = event.body.get("audio_end_ms"), event.body.get("content_index")
        if type(end) is not int or end < 0:
            raise EventError(
                "invalid_value",
                "'audio_end_ms' is a whole number, and not negative.",
                param="audio_end_ms",
                event_id=event.event_id,
            )
        if index != 0 or item.get("role") != "assistant":
            raise EventError(
                "invalid_value",
                "Only the first part of an item of the assistant can be truncated.",
                param="content_index",
                event_id=event.event_id,
            )
        self.truncated(str(item["id"]), 0, end)

    def _item(self, event: ClientEvent) -> Event:
        id = event.body.get("item_id")
        if not isinstance(id, str) or id not in self._items:
            raise EventError(
                "item_not_found",
                "There is no item with that 'item_id', or it is forgotten.",
                param="item_id",
                event_id=event.event_id,
            )
        return self._items[id][0]

    def _keep(self, item: Event) -> None:
        id = str(item["id"])
        if id in self._items:
            self._bytes -= self._items[id][1]
        size = len(msgspec.json.encode(item))
        self._items[id] = (item, size)
        self._bytes += size
        while len(self._items) > MAX_ITEMS or self._bytes > MAX_ITEMS_BYTES:
            _, (_, gone) = self._items.popitem(last=False)
            self._bytes -= gone

    def _of(self, response: Response, what: str, **more: object) -> Event:
        return {
            "type": f"response.{what}",
            "response_id": response.id,
            "output_index": 0,
            **more,
        }

    def _of_part(self, response: Response, what: str, **more: object) -> Event:
        return self._of(response, what, item_id=response.item_id, content_index=0, **more)
