"""The conversation: the client's audio and events to the server, and the server's to the client.

To the client the server seems to be at the other end of its data channel. Three things are not
passed on: audio, which has its track; `output_audio_buffer.…`, which is about what we play; and the
answers to what we have told the server on our own account, that an answer was cut off and where.
"""

import asyncio
import logging
from collections import OrderedDict, deque
from dataclasses import dataclass
from functools import partial
from typing import Self

import msgspec

from transceiver.backends import PCM_24000, BacklogFull, Conversation, Options
from transceiver.backends.oai_events import (
    LABEL,
    ClientEvent,
    EventChannel,
    EventError,
    error_event,
    new_id,
    parse,
)
from transceiver.backends.playout import Playout
from transceiver.backends.realtime.endpoint import Endpoint
from transceiver.backends.realtime.link import GarbageError, Link, Patience
from transceiver.backends.realtime.settings import Settings, without_formats

__all__ = ["Realtime"]

HELD = 240.0
"""Seconds of audio kept here when the session's queue is full; with more, the server is not read.

A model is many times faster than speech, and that somebody interrupts it comes behind all that it
has said: so for an answer of usual length reading goes on.
"""

MAX_PIECES = 4096
"""Pieces of audio that are kept at most, and items that are queued, whatever their length."""

PIECE = 1.0
"""Seconds that are queued at a time."""

MAX_RESPONSES = 64
"""Responses under way that are known by their ids; no server has more than a few."""

MAX_MODEL = 256
"""Characters of the model that a client asks for; a longer name is none."""

OURS = "shunt_"
"""How the ids of events of our own account begin."""

AUDIO = frozenset({"response.output_audio.delta", "response.audio.delta"})
"""Today's name and the beta's."""

log = logging.getLogger(__name__)


class _Type(msgspec.Struct):
    type: str


class _Audio(msgspec.Struct):
    delta: bytes
    """PCM; base64 in JSON."""
    response_id: str = ""
    item_id: str = ""
    content_index: int = 0


class _Identity(msgspec.Struct):
    id: str = ""


class _OfResponse(msgspec.Struct):
    response: _Identity


class _Cause(msgspec.Struct):
    event_id: str | None = None


class _OfError(msgspec.Struct):
    error: _Cause


class _Detection(msgspec.Struct):
    interrupt_response: bool = True


class _Input(msgspec.Struct):
    turn_detection: _Detection | None = None


class _Sound(msgspec.Struct):
    input: _Input | None = None


class _Session(msgspec.Struct):
    audio: _Sound | None = None
    turn_detection: _Detection | None = None
    """The beta's."""


class _OfSession(msgspec.Struct):
    session: _Session


@dataclass(frozen=True, slots=True)
class _Piece:
    """Audio that waits for room."""

    response_id: str
    item_id: str
    content_index: int
    pcm: bytes


class Realtime:
    """A session's conversation with a server of Realtime events."""

    audio = PCM_24000
    _conversation: Conversation
    _channel: EventChannel
    _playout: Playout

    def __init__(self, endpoint: Endpoint, patience: Patience | None = None) -> None:
        self._settings = Settings(beta=endpoint.beta)
        self._link = Link(
            endpoint,
            rate=self.audio.rate,
            greet=self._settings.again,
            take=self._take,
            lost=self._lost,
            ended=self._ended,
            patience=patience or Patience(),
        )
        self._chunk = bytearray()
        self._chunk_size = self.audio.rate * endpoint.chunk_ms // 1000 * 2
        self._interrupts = True
        self._active: OrderedDict[str, None] = OrderedDict()  # responses that are under way
        self._cut_off: OrderedDict[str, None] = OrderedDict()  # those nobody wants to hear
        self._half = ("", b"")  # of a sample of that item, that the next delta makes whole
        self._held: deque[_Piece | str] = deque()  # a str: the response of that id has ended
        self._held_bytes = 0
        self._room = asyncio.Event()
        self._pouring: asyncio.Task[None] | None = None

    @classmethod
    def of(cls, options: Options) -> "partial[Self]":
        """What makes one for each session; ShuntError for options that make no sense."""
        return partial(cls, Endpoint.of(options))

    def start(self, conversation: Conversation) -> None:
        self._conversation = conversation
        self._channel = EventChannel(conversation)
        self._playout = Playout(conversation, self._channel)
        conversation.on_drained = self._playout.advance
        configuration = conversation.configuration
        if configuration:
            try:
                self._settings.ask(dict(configuration))
            except EventError as error:
                self._channel.send(error_event(error))
        model = configuration.get("model")
        known = isinstance(model, str) and 0 < len(model) <= MAX_MODEL
        self._link.start(str(model) if known else None)

    def hear(self, pcm: bytes, at: int, concealed: bool) -> None:
        self._chunk += pcm
        if len(self._chunk) >= self._chunk_size:
            self._send_chunk()
        if self._playout.playing:
            self._playout.advance()

    def channel_opened(self, label: str) -> None:
        if label == LABEL:
            self._channel.opened()

    def receive(self, label: str, message: str | bytes) -> None:
        if label != LABEL:
            return
        try:
            self._handle(parse(message))
        except EventError as error:
            self._channel.send(error_event(error))

    async def close(self) -> None:
        if self._pouring is not None:
            self._pouring.cancel()
        await self._link.close()

    # From the client to the server

    def _send_chunk(self) -> None:
        if self._chunk:
            self._link.send_audio(bytes(self._chunk))
            self._chunk.clear()

    def _handle(self, event: ClientEvent) -> None:
        body = event.body
        match event.type:
            case "session.update":
                body = self._settings.ask(body.get("session"), event.event_id)
                if not self._link.connected:
                    return  # the next connection is greeted with it
            case "input_audio_buffer.append":
                raise EventError(
                    "invalid_event",
                    "Audio comes over the media track of this call, not in events.",
                    param="type",
                    event_id=event.event_id,
                )
            case "output_audio_buffer.clear":
                self._cut()
                return
            case "response.create":
                response = body.get("response")
                if isinstance(response, dict):
                    body = {**body, "response": without_formats(response)}
        self._send_chunk()  # what the client said before it asked
        if not self._link.send_event(body):
            self._settings.refused(event.event_id)
            raise EventError(
                "server_unavailable",
                "The model's server takes nothing at the moment.",
                event_id=event.event_id,
            )

    # From the server to the client

    async def _take(self, text: bytes) -> None:
        try:
            type = msgspec.json.decode(text, type=_Type).type
            if type in AUDIO:
                self._say(msgspec.json.decode(text, type=_Audio))
            elif self._note(type, text):
                self._channel.send_text([text.decode()])
                self._follow(type, text)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise GarbageError(f"what is no event: {error}") from None
        while self._held_bytes > HELD * 2 * self.audio.rate or len(self._held) > MAX_PIECES:
            self._room.clear()
            await self._room.wait()

    def _note(self, type: str, text: bytes) -> bool:
        """Know of an event; whether the client is to know of it."""
        match type:
            case "session.created" | "session.updated":
                self._note_session(msgspec.json.decode(text, type=_OfSession).session)
                if type == "session.updated":
                    self._settings.accepted()
            case "response.created":
                id = msgspec.json.decode(text, type=_OfResponse).response.id
                _remember(self._active, id)
            case "error":
                cause = msgspec.json.decode(text, type=_OfError).error.event_id
                self._settings.refused(cause)
                if cause is not None and cause.startswith(OURS):
                    log.debug("the server would not have it: %r", text[:500])
                    return False
            case _ if type.startswith("output_audio_buffer."):
                return False
        return True

    def _follow(self, type: str, text: bytes) -> None:
        """Do what an event brings about, once the client knows of it."""
        match type:
            case "input_audio_buffer.speech_started":
                if self._interrupts:
                    self._cut()
            case "response.done":
                self._finish(msgspec.json.decode(text, type=_OfResponse).response.id)

    def _note_session(self, session: _Session) -> None:
        detection = session.turn_detection
        if session.audio is not None and session.audio.input is not None:
            detection = session.audio.input.turn_detection
        self._interrupts = detection is None or detection.interrupt_response

    # What is heard

    def _say(self, audio: _Audio) -> None:
        if audio.response_id in self._cut_off:
            return
        item_id, half = self._half
        pcm = half + audio.delta if item_id == audio.item_id else audio.delta
        whole = len(pcm) & ~1
        self._half = (audio.item_id, pcm[whole:])
        step = int(PIECE * self.audio.rate) * 2
        for start in range(0, whole, step):
            piece = pcm[start : min(start + step, whole)]
            self._held_bytes += len(piece)
            self._held.append(_Piece(audio.response_id, audio.item_id, audio.content_index, piece))
        if self._pouring is None:
            self._pour()

    def _pour(self) -> None:
        """Say what is held, as far as there is room; the rest when there is."""
        while self._held:
            first = self._held[0]
            if isinstance(first, str):
                self._playout.finish(first)
            else:
                if not self._fits(first):
                    if self._pouring is None:
                        self._pouring = asyncio.create_task(self._pour_slowly())
                        self._pouring.add_done_callback(self._poured)
                    return
                self._held_bytes -= len(first.pcm)
            self._held.popleft()
            self._room.set()

    def _fits(self, piece: _Piece) -> bool:
        """Say it, if there is room."""
        if self._playout.items >= MAX_PIECES:
            return False
        try:
            self._playout.say(piece.response_id, piece.item_id, piece.content_index, piece.pcm)
        except BacklogFull:
            return False
        return True

    async def _pour_slowly(self) -> None:
        try:
            while self._held:
                full = self._conversation.backlog
                if not full:
                    raise BacklogFull(f"the session takes no {PIECE:g} s of audio at once")
                await self._conversation.wait_backlog(full / 2)
                self._pour()
        finally:
            self._pouring = None

    def _poured(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (bug := task.exception()) is not None:
            log.error("audio of a server could not be played", exc_info=bug)
            self._conversation.end(f"realtime: {bug}")

    def _finish(self, response_id: str) -> None:
        """Know that a response has ended: no more audio comes of it, but some may be held."""
        self._active.pop(response_id, None)
        self._cut_off.pop(response_id, None)
        self._held.append(response_id)
        if self._pouring is None:
            self._pour()

    def _cut(self) -> None:
        """Be silent, now, and tell the server what was heard of what it said."""
        heard: OrderedDict[tuple[str, int], int] = OrderedDict()
        for cut in self._playout.cut():
            heard[cut.item_id, cut.content_index] = cut.heard_ms
        for each in self._held:
            if isinstance(each, _Piece):
                heard.setdefault((each.item_id, each.content_index), 0)
        self._held.clear()
        self._held_bytes = 0
        self._half = ("", b"")
        self._room.set()
        for id in self._active:
            _remember(self._cut_off, id)
        for (item_id, content_index), heard_ms in heard.items():
            self._link.send_event(
                {
                    "type": "conversation.item.truncate",
                    "event_id": new_id(OURS + "truncate"),
                    "item_id": item_id,
                    "content_index": content_index,
                    "audio_end_ms": heard_ms,
                }
            )

    # What becomes of the connection

    def _lost(self, reason: str) -> None:
        """Another connection knows nothing of what was under way; what was said is still heard."""
        lost = EventError("server_connection_lost", f"{reason}. Another connection is made.")
        self._channel.send(error_event(lost, type="server_error"))
        for id in list(self._active):
            details = {"type": "failed", "error": {"type": "server_error", "code": lost.code}}
            response = {"id": id, "object": "realtime.response", "status": "failed", "output": []}
            self._channel.send(
                {"type": "response.done", "response": {**response, "status_details": details}}
            )
            self._finish(id)
        self._cut_off.clear()
        self._half = ("", b"")

    def _ended(self, reason: str) -> None:
        told = EventError("server_unavailable", f"{reason}.")
        self._channel.send(error_event(told, type="server_error"))
        self._conversation.end(f"realtime: {reason}")


def _remember(ids: "OrderedDict[str, None]", id: str) -> None:
    ids[id] = None
    if len(ids) > MAX_RESPONSES:
        ids.popitem(last=False)
