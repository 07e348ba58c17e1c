"""`parrot`: says back what it heard, when the client has finished: a model's manners without one.

It speaks OpenAI's Realtime events as a model would: turns by voice activity, barge-in, and what of
an answer was heard. So it is what a client is tried against, and what the lab's numbers on turns
and barge-in are measured with.
"""

from functools import partial
from typing import Self

from loader.errors import ShuntError
from transceiver.backends import PCM_24000, Conversation, Options
from transceiver.backends.dialogue import Dialogue
from transceiver.backends.oai_events import (
    CLIENT_EVENTS,
    LABEL,
    ClientEvent,
    Event,
    EventChannel,
    EventError,
    error_event,
    new_id,
    parse,
)
from transceiver.backends.oai_session import SessionSettings
from transceiver.backends.playout import Playout
from transceiver.backends.turns import MAX_TURN_MS, SpeechStarted, SpeechStopped, Turns
from transceiver.backends.vad import VADS, EnergyVad, Vad, WebRtcVad

__all__ = ["Parrot"]

LEAD = 1.0
"""Seconds of an answer that are queued ahead; what it has more is still being "generated", so that
it can be cancelled like a model's."""

PIECE = 0.1
"""Seconds that are queued at a time."""

LEAST_COMMIT_MS = 100
"""As OpenAI asks of `input_audio_buffer.commit`."""


class Parrot:
    """Repeats each turn of the client."""

    audio = PCM_24000
    _conversation: Conversation
    _channel: EventChannel
    _dialogue: Dialogue
    _playout: Playout

    def __init__(self, vad: Vad | None = None) -> None:
        rate = self.audio.rate
        self._settings = SessionSettings(model="parrot")
        self._turns = Turns(rate=rate, vad=vad or EnergyVad(rate))
        self._buffer = bytearray()
        self._end = 0  # sample index of the end of `buffer`
        self._item_id = new_id("item")  # of the client's next item
        self._heard = b""  # what was committed last
        self._saying = b""
        self._said = 0  # bytes of `saying`

    @classmethod
    def of(cls, options: Options) -> "partial[Self]":
        """What makes one for each session. Option `vad`: `energy` (without it) or `webrtc`."""
        for name in options:
            if name != "vad":
                raise ShuntError(f"backend parrot has no option {name!r}", "it has: vad")
        name = options.get("vad", "energy")
        if name not in VADS:
            raise ShuntError(
                f"there is no voice activity detector {name!r}", f"use one of: {', '.join(VADS)}"
            )
        VADS[name](cls.audio.rate)  # so that what is not installed is known now
        return partial(cls._with, VADS[name])

    @classmethod
    def _with(cls, vad: type[EnergyVad] | type[WebRtcVad]) -> Self:
        return cls(vad(cls.audio.rate))

    def start(self, conversation: Conversation) -> None:
        self._conversation = conversation
        self._channel = EventChannel(conversation)
        self._dialogue = Dialogue(self._channel)
        self._playout = Playout(conversation, self._channel)
        conversation.on_drained = self._go_on
        refused = None
        if conversation.configuration:
            try:
                self._settings.update(dict(conversation.configuration))
            except EventError as error:
                refused = error
        self._channel.send({"type": "session.created", "session": self._settings.session})
        if refused is not None:
            self._channel.send(error_event(refused))

    def hear(self, pcm: bytes, at: int, concealed: bool) -> None:
        self._buffer += pcm
        self._end = at + len(pcm) // 2
        detection = self._settings.turn_detection
        keep_ms = MAX_TURN_MS
        if detection is not None:
            for found in self._turns.hear(pcm, at, concealed, detection):
                match found:
                    case SpeechStarted():
                        self._speech_started(found)
                    case SpeechStopped():
                        self._speech_stopped(found)
            if not self._turns.speaking:
                # Speech is noticed some frames after it began, and padding goes before that.
                keep_ms = detection.prefix_padding_ms + 100
        self._forget_before(self._end - keep_ms * self.audio.rate // 1000)
        self._go_on()

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
        pass

    # Turns

    def _speech_started(self, found: SpeechStarted) -> None:
        self._forget_before(found.audio_start_ms * self.audio.rate // 1000)
        self._channel.send(
            {
                "type": "input_audio_buffer.speech_started",
                "audio_start_ms": found.audio_start_ms,
                "item_id": self._item_id,
            }
        )
        detection = self._settings.turn_detection
        if detection is not None and detection.interrupt_response:
            self._cut()
            if self._dialogue.response is not None:
                self._end_response("cancelled", "turn_detected")

    def _speech_stopped(self, found: SpeechStopped) -> None:
        self._channel.send(
            {
                "type": "input_audio_buffer.speech_stopped",
                "audio_end_ms": found.audio_end_ms,
                "item_id": self._item_id,
            }
        )
        self._commit()
        detection = self._settings.turn_detection
        if detection is not None and detection.create_response and self._dialogue.response is None:
            self._respond()

    def _commit(self) -> None:
        self._heard = bytes(self._buffer)
        self._buffer.clear()
        id, self._item_id = self._item_id, new_id("item")
        self._channel.send(
            {
                "type": "input_audio_buffer.committed",
                "previous_item_id": self._dialogue.last_item_id,
                "item_id": id,
            }
        )
        self._dialogue.add(
            {
                "id": id,
                "object": "realtime.item",
                "type": "message",
                "status": "completed",
                "role": "user",
                "content": [{"type": "input_audio", "transcript": None}],
            }
        )

    def _forget_before(self, position: int) -> None:
        """Drop what of the input buffer lies before the sample *position*."""
        start = self._end - len(self._buffer) // 2
        if position > start:
            del self._buffer[: (position - start) * 2]

    # Answers

    def _respond(self) -> None:
        self._saying, self._said = self._heard, 0
        self._dialogue.begin_response()
        self._go_on()

    def _go_on(self) -> None:
        """Queue more of the answer if it is time, and tell of what has gone out."""
        response = self._dialogue.response
        if response is not None:
            piece = int(self.audio.rate * PIECE) * 2
            while self._said < len(self._saying) and self._conversation.backlog < LEAD:
                pcm = self._saying[self._said : self._said + piece]
                self._said += len(pcm)
                self._playout.say(response.id, response.item_id, 0, pcm)
            if self._said == len(self._saying):
                self._end_response("completed")
        self._playout.advance()

    def _end_response(self, status: str, reason: str | None = None) -> None:
        response = self._dialogue.response
        assert response is not None
        self._dialogue.end_response(status, reason)
        self._playout.finish(response.id)

    def _cut(self) -> None:
        for cut in self._playout.cut():
            self._dialogue.truncated(cut.item_id, cut.content_index, cut.heard_ms)

    # What clients ask for

    def _handle(self, event: ClientEvent) -> None:
        match event.type:
            case "session.update":
                self._settings.update(event.body.get("session"), event.event_id)
                if self._settings.turn_detection is None:
                    self._turns.reset()
                updated: Event = {"type": "session.updated", "session": self._settings.session}
                self._channel.send(updated)
            case "input_audio_buffer.commit":
                ms = len(self._buffer) // 2 * 1000 // self.audio.rate
                if ms < LEAST_COMMIT_MS:
                    raise EventError(
                        "input_audio_buffer_commit_empty",
                        f"The input buffer has {ms} ms of audio; {LEAST_COMMIT_MS} ms are needed.",
                        event_id=event.event_id,
                    )
                self._turns.reset()
                self._commit()
            case "input_audio_buffer.clear":
                self._turns.reset()
                self._buffer.clear()
                self._channel.send({"type": "input_audio_buffer.cleared"})
            case "input_audio_buffer.append":
                raise EventError(
                    "invalid_event",
                    "Audio comes over the media track of this call, not in events.",
                    param="type",
                    event_id=event.event_id,
                )
            case "output_audio_buffer.clear":
                self._cut()
            case "response.create":
                self._create_response(event)
            case "response.cancel":
                self._cancel_response(event)
            case type if type in CLIENT_EVENTS:
                self._dialogue.handle(event)
            case _:
                raise EventError(
                    "invalid_value",
                    f"There is no client event of the type {event.type[:64]!r}.",
                    param="type",
                    event_id=event.event_id,
                )

    def _create_response(self, event: ClientEvent) -> None:
        if self._dialogue.response is not None:
            raise EventError(
                "conversation_already_has_active_response",
                f"The response {self._dialogue.response.id} is under way.",
                event_id=event.event_id,
            )
        if not isinstance(event.body.get("response", {}), dict):
            raise EventError(
                "invalid_value",
                "'response' is an object.",
                param="response",
                event_id=event.event_id,
            )
        self._respond()

    def _cancel_response(self, event: ClientEvent) -> None:
        response = self._dialogue.response
        if response is None or event.body.get("response_id", response.id) != response.id:
            raise EventError(
                "response_cancel_not_active",
                "There is no such response under way.",
                event_id=event.event_id,
            )
        # What is queued is still heard, as with OpenAI, unless the client has it cleared.
        self._end_response("cancelled", "client_cancelled")
