"""What a session and a backend in a process of its own tell each other: frames of msgpack.

Two Unix sockets for each session. Over the *inbox* the backend gets what it is called with; over
the *calls* it asks its session, one thing at a time, and waits for the answer, so that the contract
of `transceiver.backends` holds as it stands. Each side takes the other's frames for a stranger's:
their length has a bound and their shape is checked.
"""

import struct
from typing import Final

import msgspec
from msgspec import Struct

__all__ = [
    "MAX_FRAME",
    "Answer",
    "Asked",
    "Audio",
    "Backlog",
    "Begin",
    "Close",
    "Drained",
    "End",
    "Failed",
    "Flush",
    "FrameError",
    "Hear",
    "Opened",
    "Received",
    "Refused",
    "Say",
    "Send",
    "Start",
    "Taken",
    "Told",
    "Wait",
    "Waited",
    "frame",
    "frames",
    "packed",
    "unpacked",
]

MAX_FRAME: Final = 16 << 20
"""Bytes; five minutes of audio in one `say`."""

_LENGTH = struct.Struct("!I")


class FrameError(Exception):
    """The other side broke the protocol."""


class _Tagged(Struct, frozen=True, array_like=True, tag=True):
    pass


# Over the inbox, to the backend


class Begin(_Tagged, frozen=True):
    """Make the backend of that *name*; with *probe*, only to say what it is."""

    name: str
    options: dict[str, str]
    probe: bool


class Start(_Tagged, frozen=True):
    rate: int
    configuration: dict[str, object]


class Hear(_Tagged, frozen=True):
    pcm: bytes
    at: int
    concealed: bool


class Opened(_Tagged, frozen=True):
    label: str


class Received(_Tagged, frozen=True):
    label: str
    message: bytes
    is_text: bool


class Drained(_Tagged, frozen=True):
    pass


class Waited(_Tagged, frozen=True):
    number: int


class Close(_Tagged, frozen=True):
    pass


Told = Begin | Start | Hear | Opened | Received | Drained | Waited | Close

# Over the calls, to the session; the first seven have an answer


class Say(_Tagged, frozen=True):
    audio: bytes
    is_packet: bool


class Flush(_Tagged, frozen=True):
    pass


class Send(_Tagged, frozen=True):
    label: str
    message: bytes
    is_text: bool


class Backlog(_Tagged, frozen=True):
    pass


class End(_Tagged, frozen=True):
    reason: str


class Wait(_Tagged, frozen=True):
    """`wait_backlog`; `Waited` with that number says when it is over."""

    number: int
    below: float


class Taken(_Tagged, frozen=True):
    """So many frames of the inbox have been taken, in all."""

    count: int


class Failed(_Tagged, frozen=True):
    """The backend raised that, and its process ends."""

    what: str


class Audio(_Tagged, frozen=True):
    """The answer to a probe."""

    rate: int
    passthrough: bool


class Refused(_Tagged, frozen=True):
    """The other one: a ShuntError."""

    what: str
    cure: str


Asked = Say | Flush | Send | Backlog | End | Wait | Taken | Failed | Audio | Refused


class Answer(Struct, frozen=True, array_like=True):
    """To a call: what it returns, or the name of what it raises, and with what words."""

    value: float | bool | tuple[float, float] | None = None
    error: tuple[str, str] | None = None


def packed(message: str | bytes) -> tuple[bytes, bool]:
    """A message of a data channel as it is told, and whether it is text."""
    return (message.encode(), True) if isinstance(message, str) else (message, False)


def unpacked(message: bytes, is_text: bool) -> str | bytes:
    """The message; UnicodeDecodeError for text that is none."""
    return message.decode() if is_text else message


def frame(message: Struct) -> bytes:
    body = msgspec.msgpack.encode(message)
    return _LENGTH.pack(len(body)) + body


def frames(received: bytearray) -> list[bytes]:
    """The bodies of those that are whole, taken out of *received*; FrameError for one too long."""
    found = []
    at = 0
    while len(received) - at >= _LENGTH.size:
        (length,) = _LENGTH.unpack_from(received, at)
        if length > MAX_FRAME:
            raise FrameError(f"a frame of {length} bytes")
        if len(received) - at - _LENGTH.size < length:
            break
        at += _LENGTH.size
        found.append(bytes(received[at : at + length]))
        at += length
    del received[:at]
    return found
