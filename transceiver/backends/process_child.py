"""The process of one backend and one session: makes it, calls it, and asks the session for it.

Begun by `transceiver.backends.processes`, with two sockets (`process_wire`). It ends with either of
them, and with its parent.
"""

import asyncio
import ctypes
import logging
import os
import signal
import socket
from collections.abc import Callable, Mapping
from typing import TypeVar

import msgspec

from loader.errors import ShuntError
from transceiver.backends import AudioFormat, Backend, BacklogFull, Flushed, make
from transceiver.backends.process_wire import (
    Answer,
    Asked,
    Audio,
    Backlog,
    Begin,
    Close,
    Drained,
    End,
    Failed,
    Flush,
    Hear,
    Opened,
    Received,
    Refused,
    Say,
    Send,
    Start,
    Taken,
    Told,
    Wait,
    Waited,
    frame,
    frames,
    packed,
    unpacked,
)
from transceiver.media.opus import OpusError

__all__ = ["live"]

PR_SET_PDEATHSIG = 1  # of linux/prctl.h

TAKEN_EVERY = 0.25
"""Seconds between two words that we are alive, while there is something to do."""

_RAISED: dict[str, type[Exception]] = {
    "BacklogFull": BacklogFull,
    "OpusError": OpusError,
    "TypeError": TypeError,
    "ValueError": ValueError,
}

log = logging.getLogger(__name__)

T = TypeVar("T")


def live(inbox: int, calls: int, parent: int) -> None:
    """The whole life of the process; descriptors of the sockets, and the parent's id."""
    # A backend that computes without end would not see that its sockets are closed.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        return
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    session = _Session(socket.socket(fileno=calls))
    try:
        asyncio.run(_converse(socket.socket(fileno=inbox), session))
    except (Exception, SystemExit) as error:
        log.exception("the backend failed")
        session.tell(Failed(f"{type(error).__name__}: {error}"))


async def _converse(inbox: socket.socket, session: "_Session") -> None:
    reader, _ = await asyncio.open_unix_connection(sock=inbox)
    received = bytearray()
    backend: Backend | None = None
    try:
        while chunk := await reader.read(1 << 16):
            received += chunk
            for body in frames(received):
                message = msgspec.msgpack.decode(body, type=Told)
                if isinstance(message, Close):
                    return
                if isinstance(message, Begin):
                    backend = _made(message, session)
                else:
                    assert backend is not None
                    _hand(message, backend, session)
                session.took()
    finally:
        if backend is not None:
            await backend.close()


def _made(begin: Begin, session: "_Session") -> Backend | None:
    try:
        factory = make(begin.name, {**begin.options, "isolation": "loop"})
    except ShuntError as error:
        session.tell(Refused(error.what, error.cure))
        return None
    backend = factory()
    if begin.probe:
        audio = backend.audio
        if not isinstance(audio, AudioFormat):
            raise TypeError(f"audio is {audio!r}, and no AudioFormat")
        session.tell(Audio(audio.rate, audio.passthrough))
    return backend


def _hand(message: Told, backend: Backend, session: "_Session") -> None:
    match message:
        case Hear(pcm, at, concealed):
            backend.hear(pcm, at, concealed)
        case Received(label, content, is_text):
            backend.receive(label, unpacked(content, is_text))
        case Opened(label):
            backend.channel_opened(label)
        case Start(rate, configuration):
            session.begin(rate, configuration)
            backend.start(session)
        case Drained():
            if session.on_drained is not None:
                session.on_drained()
        case Waited(number):
            session.waited(number)


class _Session:
    """The conversation, by the calls' socket: each call blocks us until it is answered."""

    def __init__(self, calls: socket.socket) -> None:
        self.on_drained: Callable[[], None] | None = None
        self._calls = calls
        self._received = bytearray()
        self._rate = 0
        self._configuration: Mapping[str, object] = {}
        self._waits: dict[int, asyncio.Future[None]] = {}
        self._number = 0
        self._taken = 0
        self._tells = False

    def begin(self, rate: int, configuration: Mapping[str, object]) -> None:
        self._rate, self._configuration = rate, configuration

    @property
    def rate(self) -> int:
        return self._rate

    @property
    def configuration(self) -> Mapping[str, object]:
        return self._configuration

    @property
    def backlog(self) -> float:
        value = self._ask(Backlog())
        return value if isinstance(value, float) else 0.0

    def say(self, pcm: bytes) -> None:
        self._ask(Say(pcm, False))

    def say_packet(self, packet: bytes) -> None:
        self._ask(Say(packet, True))

    def flush(self) -> Flushed:
        value = self._ask(Flush())
        return Flushed(*value) if isinstance(value, tuple) else Flushed(0.0, 0.0)

    async def wait_backlog(self, below: float) -> None:
        self._number += 1
        number = self._number
        waiting = self._waits[number] = asyncio.get_running_loop().create_future()
        try:
            self._ask(Wait(number, below))
            await waiting
        finally:
            del self._waits[number]

    def send(self, message: str | bytes, label: str = "oai-events") -> bool:
        return self._ask(Send(label, *packed(message))) is True

    def end(self, reason: str) -> None:
        self._ask(End(reason))

    def waited(self, number: int) -> None:
        waiting = self._waits.get(number)
        if waiting is not None and not waiting.done():
            waiting.set_result(None)

    def took(self) -> None:
        """Know that a frame of the inbox has been taken; the session is told, now and then."""
        self._taken += 1
        if not self._tells:
            self._tells = True
            asyncio.get_running_loop().call_later(TAKEN_EVERY, self._tell_taken)

    def tell(self, message: Asked) -> None:
        """Say what has no answer. When the session is over nobody listens."""
        try:
            self._calls.sendall(frame(message))
        except OSError:
            log.debug("the session is over")

    def _tell_taken(self) -> None:
        self._tells = False
        self.tell(Taken(self._taken))

    def _ask(self, message: Asked) -> object:
        self.tell(message)
        while not (found := frames(self._received)):
            chunk = self._calls.recv(1 << 16)
            if not chunk:
                return None
            self._received += chunk
        answer = msgspec.msgpack.decode(found[0], type=Answer)
        if answer.error is not None:
            name, text = answer.error
            raise _RAISED.get(name, RuntimeError)(text)
        return answer.value
