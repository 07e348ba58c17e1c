"""The `session` of OpenAI's Realtime API: what a client may set, checked, and what it is set to.

Of all that can be set, a backend of our own heeds the turn detection; the rest is kept and shown,
as a client expects of `session.updated`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from transceiver.backends.oai_events import Event, EventError, new_id

__all__ = ["MAX_SESSION", "SessionSettings", "TurnDetection"]

MAX_SESSION = 256 << 10
"""Bytes of all that clients may have set, as JSON."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnDetection:
    """When a client's turn begins and ends, and what follows of it (`turn_detection`)."""

    threshold: float = 0.5
    """0 to 1: how sure one must be that somebody speaks."""
    prefix_padding_ms: int = 300
    """What of the audio before speech was noticed belongs to the turn."""
    silence_duration_ms: int = 500
    """The silence that ends a turn."""
    create_response: bool = True
    interrupt_response: bool = True


class _ServerVad(Struct, tag_field="type", tag="server_vad"):
    threshold: Annotated[float, Meta(ge=0, le=1)] = 0.5
    prefix_padding_ms: Annotated[int, Meta(ge=0, le=5000)] = 300
    silence_duration_ms: Annotated[int, Meta(ge=20, le=10_000)] = 500
    create_response: bool = True
    interrupt_response: bool = True
    idle_timeout_ms: Annotated[int, Meta(ge=5000, le=30_000)] | None = None


class _SemanticVad(Struct, tag_field="type", tag="semantic_vad"):
    eagerness: Literal["low", "medium", "high", "auto"] = "auto"
    create_response: bool = True
    interrupt_response: bool = True


_Detection = _ServerVad | _SemanticVad | None | UnsetType
_Modalities = list[Literal["text", "audio"]] | UnsetType


class _Input(Struct):
    format: str | dict[str, object] | UnsetType = UNSET
    transcription: dict[str, object] | UnsetType | None = UNSET
    noise_reduction: dict[str, object] | UnsetType | None = UNSET
    turn_detection: _Detection = UNSET


class _Output(Struct):
    format: str | dict[str, object] | UnsetType = UNSET
    voice: str | dict[str, object] | UnsetType = UNSET
    speed: Annotated[float, Meta(ge=0.25, le=1.5)] | UnsetType = UNSET


class _Audio(Struct):
    input: _Input | UnsetType = UNSET
    output: _Output | UnsetType = UNSET


class _Session(Struct, forbid_unknown_fields=True):
    """What `session.update` may hold: the names of general availability, then those of the beta."""

    type: Literal["realtime"] | UnsetType = UNSET
    model: str | UnsetType = UNSET
    instructions: str | UnsetType = UNSET
    output_modalities: _Modalities = UNSET
    audio: _Audio | UnsetType = UNSET
    tools: list[dict[str, object]] | UnsetType = UNSET
    tool_choice: str | dict[str, object] | UnsetType = UNSET
    parallel_tool_calls: bool | UnsetType = UNSET
    max_output_tokens: int | Literal["inf"] | UnsetType = UNSET
    reasoning: dict[str, object] | UnsetType | None = UNSET
    tracing: Literal["auto"] | dict[str, object] | UnsetType | None = UNSET
    truncation: str | dict[str, object] | UnsetType | None = UNSET
    prompt: dict[str, object] | UnsetType | None = UNSET
    include: list[str] | UnsetType | None = UNSET

    modalities: _Modalities = UNSET
    voice: str | UnsetType = UNSET
    speed: float | UnsetType = UNSET
    temperature: float | UnsetType = UNSET
    input_audio_format: str | UnsetType = UNSET
    output_audio_format: str | UnsetType = UNSET
    input_audio_transcription: dict[str, object] | UnsetType | None = UNSET
    input_audio_noise_reduction: dict[str, object] | UnsetType | None = UNSET
    turn_detection: _Detection = UNSET
    max_response_output_tokens: int | Literal["inf"] | UnsetType = UNSET


EAGERNESS_MS = {"low": 800, "medium": 500, "auto": 500, "high": 300}
"""The silence that stands for each eagerness of `semantic_vad`: we have no model of meaning, but
SDKs ask for it unless told otherwise."""

_UNKNOWN = re.compile(r"unknown field `([^`]*)`")
_PATH = re.compile(r" - at `\$\.?([^`]*)`$")


class SessionSettings:
    """A session's settings, and the turn detection that follows from them."""

    def __init__(self, *, model: str) -> None:
        """*model*: what to call oneself."""
        self.id = new_id("sess")
        self.turn_detection: TurnDetection | None = TurnDetection()
        pcm: Event = {"type": "audio/pcm", "rate": 24000}
        self._audio: dict[str, Event] = {
            "input": {
                "format": pcm,
                "transcription": None,
                "noise_reduction": None,
                "turn_detection": msgspec.to_builtins(_ServerVad()),
            },
            "output": {"format": pcm, "voice": model, "speed": 1.0},
        }
        self._rest: Event = {
            "model": model,
            "output_modalities": ["audio"],
            "instructions": "",
            "tools": [],
            "tool_choice": "auto",
            "max_output_tokens": "inf",
            "tracing": None,
        }

    @property
    def session(self) -> Event:
        """As `session.created` and `session.updated` show it."""
        identity = {"type": "realtime", "object": "realtime.session", "id": self.id}
        return {**identity, **self._rest, "audio": self._audio}

    def update(self, wanted: object, event_id: str | None = None) -> None:
        """Set what *wanted* names; or EventError, and nothing is changed."""
        checked = _checked(wanted, event_id)
        given: Mapping[str, object] = wanted if isinstance(wanted, dict) else {}
        audio = {direction: dict(values) for direction, values in self._audio.items()}
        for direction, values in _of_object(given.get("audio")).items():
            if direction in audio:
                audio[direction].update(_of_object(values))
        rest = {**self._rest, **{k: v for k, v in given.items() if k not in ("audio", "type")}}

        detection: _Detection = checked.turn_detection
        rest.pop("turn_detection", None)
        if checked.audio is not UNSET and checked.audio.input is not UNSET:
            inner = checked.audio.input.turn_detection
            detection = detection if inner is UNSET else inner
        if detection is not UNSET:
            audio["input"]["turn_detection"] = msgspec.to_builtins(detection)
        if len(msgspec.json.encode([rest, audio])) > MAX_SESSION:
            raise EventError(
                "invalid_value",
                f"A session's settings may have {MAX_SESSION} bytes in all.",
                param="session",
                event_id=event_id,
            )
        self._rest, self._audio = rest, audio
        if detection is not UNSET:
            self.turn_detection = _turn_detection(detection)


def _checked(wanted: object, event_id: str | None) -> _Session:
    try:
        return msgspec.convert(wanted, _Session)
    except msgspec.ValidationError as error:
        what = str(error)
        at = _PATH.search(what)
        path = ".".join(("session", *filter(None, [at and at[1]])))
        if unknown := _UNKNOWN.search(what):
            path = f"{path}.{unknown[1]}"
            raise EventError(
                "unknown_parameter",
                f"Unknown parameter: '{path}'.",
                param=path,
                event_id=event_id,
            ) from None
        raise EventError(
            "invalid_value",
            f"Invalid value for '{path}': {_PATH.sub('', what)}.",
            param=path,
            event_id=event_id,
        ) from None


def _of_object(value: object) -> Mapping[str, object]:
    return value if isinstance(value, dict) else {}


def _turn_detection(detection: _ServerVad | _SemanticVad | None) -> TurnDetection | None:
    match detection:
        case _ServerVad():
            return TurnDetection(
                threshold=detection.threshold,
                prefix_padding_ms=detection.prefix_padding_ms,
                silence_duration_ms=detection.silence_duration_ms,
                create_response=detection.create_response,
                interrupt_response=detection.interrupt_response,
            )
        case _SemanticVad():
            return TurnDetection(
                silence_duration_ms=EAGERNESS_MS[detection.eagerness],
                create_response=detection.create_response,
                interrupt_response=detection.interrupt_response,
            )
        case _:
            return None
