"""A backend in a process of its own for each session: it may even crash, and is killed if it hangs.

Dearer than a thread (`transceiver.backends.isolation`): an interpreter for each session, and a
moment until it hears. Nothing of the backend is imported here; what it asks of its session is
checked like a stranger's words, and comes at a bounded rate.
"""

import asyncio
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections import deque

import msgspec

from loader.errors import ShuntError
from transceiver.backends import AudioFormat, BacklogFull, Conversation, Factory, Options
from transceiver.backends.allowance import Allowance
from transceiver.backends.isolation import (
    MAX_MESSAGE_BYTES,
    MAX_MESSAGES,
    MAX_WAITS,
    PROBE,
    Bounds,
    checked,
    plain,
)
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
    FrameError,
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

__all__ = ["in_processes"]

IN_FLIGHT = 32 << 10
"""Bytes that the kernel holds on the way to a backend: what lies there cannot be replaced by newer
audio. Half a second or so."""

MAX_UNREAD = 1 << 20
"""Bytes of answers that wait to be read."""

LAST_WORDS = 1.0
"""Seconds from the end of a process to the end of what it said, or the other way round."""

_BOOT = """
import sys
sys.path[:] = sys.argv[4:]
from transceiver.backends.process_child import live
live(*map(int, sys.argv[1:4]))
"""

log = logging.getLogger(__name__)


def in_processes(name: str, options: Options, bounds: Bounds | None = None) -> Factory:
    """What makes that backend, in a process for each session; ShuntError if it cannot be made.

    One is made and closed here and now, to know what audio they want and that they can be made.
    """
    audio = _probed(name, options)
    return lambda: _InProcess(name, options, audio, bounds or Bounds())


def _command(inbox: socket.socket, calls: socket.socket) -> list[str]:
    descriptors = (inbox.fileno(), calls.fileno(), os.getpid())
    return [sys.executable, "-c", _BOOT, *map(str, descriptors), *sys.path]


def _probed(name: str, options: Options) -> AudioFormat:
    what = f"backend {name} cannot be made"
    inbox, its_inbox = socket.socketpair()
    calls, its_calls = socket.socketpair()
    with inbox, calls:
        with its_inbox, its_calls:
            process = subprocess.Popen(
                _command(its_inbox, its_calls),
                stdin=subprocess.DEVNULL,
                pass_fds=(its_inbox.fileno(), its_calls.fileno()),
                start_new_session=True,
            )
        try:
            inbox.sendall(frame(Begin(name, dict(options), True)) + frame(Close()))
            told = _all_told(calls, time.monotonic() + PROBE)
        except TimeoutError:
            raise ShuntError(
                f"{what} within {PROBE:g} s", "what it waits for can wait in start()"
            ) from None
        except (FrameError, msgspec.DecodeError, OSError) as error:
            raise ShuntError(f"{what}: {error}", "standard error has where") from error
        finally:
            process.kill()
            process.wait()
    audio: AudioFormat | None = None
    for message in told:
        match message:
            case Refused(refused, cure):
                raise ShuntError(plain(refused), plain(cure))
            case Failed(why):
                raise ShuntError(f"{what}: {plain(why)}", "standard error has where")
            case Audio(rate, passthrough):
                audio = AudioFormat(rate, passthrough)
    if audio is None:
        raise ShuntError(f"{what}: its process ended", "standard error may have why")
    return checked(name, audio)


def _all_told(calls: socket.socket, deadline: float) -> list[Asked]:
    """All that a process says until it ends."""
    received = bytearray()
    told: list[Asked] = []
    while True:
        calls.settimeout(max(0.001, deadline - time.monotonic()))
        chunk = calls.recv(1 << 16)
        if not chunk:
            return told
        received += chunk
        told += [msgspec.msgpack.decode(body, type=Asked) for body in frames(received)]


class _InProcess:
    """What the session sees."""

    _conversation: Conversation

    def __init__(self, name: str, options: Options, audio: AudioFormat, bounds: Bounds) -> None:
        self.audio = audio
        self._name = name
        self._options = dict(options)
        self._bounds = bounds
        self._life: asyncio.Task[None] | None = None
        self._inbox = _Inbox(bounds.audio)
        self._waits: set[asyncio.Task[None]] = set()
        self._why = ""
        self._closing = False

    def start(self, conversation: Conversation) -> None:
        self._conversation = conversation
        conversation.on_drained = lambda: self._add(Drained(), 0)
        self._inbox.add(Begin(self._name, self._options, False), 0)
        self._inbox.add(Start(conversation.rate, dict(conversation.configuration)), 0)
        self._life = asyncio.create_task(self._live(), name=f"backend {self._name}")
        self._life.add_done_callback(self._gone)

    def hear(self, pcm: bytes, at: int, concealed: bool) -> None:
        self._inbox.add_audio(Hear(pcm, at, concealed))
        self._end_if_hung()

    def channel_opened(self, label: str) -> None:
        self._add(Opened(label), len(label))

    def receive(self, label: str, message: str | bytes) -> None:
        self._add(Received(label, *packed(message)), len(message))

    async def close(self) -> None:
        self._closing = True
        for each in self._waits:
            each.cancel()
        if self._life is None:
            return
        self._inbox.add_last(Close())
        done, _ = await asyncio.wait([self._life], timeout=self._bounds.close)
        if not done:
            log.warning("a session of backend %s hangs, and is killed", self._name)
            self._life.cancel()
            await asyncio.wait([self._life])

    # The process

    async def _live(self) -> None:
        loop = asyncio.get_running_loop()
        inbox, its_inbox = socket.socketpair()
        calls, its_calls = socket.socketpair()
        inbox.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, IN_FLIGHT)
        process: asyncio.subprocess.Process | None = None
        asked = _Calls(self)
        try:
            with its_inbox, its_calls:
                process = await asyncio.create_subprocess_exec(
                    *_command(its_inbox, its_calls),
                    stdin=subprocess.DEVNULL,
                    pass_fds=(its_inbox.fileno(), its_calls.fileno()),
                    start_new_session=True,
                )
            await loop.create_unix_connection(lambda: self._inbox, sock=inbox)
            await loop.create_unix_connection(lambda: asked, sock=calls)
            # Its last words may come after its end; its end after them, or not at all.
            ends = {asyncio.create_task(process.wait()), asyncio.create_task(asked.over.wait())}
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait(ends, timeout=LAST_WORDS)
            for each in ends:
                each.cancel()
        finally:
            if process is not None and process.returncode is None:
                process.kill()
                await process.wait()
            self._inbox.abort()
            asked.abort()
            inbox.close()
            calls.close()
        self._why = self._why or _died(process.returncode)

    def _gone(self, life: asyncio.Task[None]) -> None:
        if life.cancelled():
            return
        if (error := life.exception()) is not None:
            log.error("backend %s: its process failed", self._name, exc_info=error)
            self._why = f"has no process: {plain(str(error))}"
        self._end(self._why)

    def _add(self, message: Told, size: int) -> None:
        if not self._inbox.add(message, size):
            self._end("does not take the client's messages")
        self._end_if_hung()

    def _end_if_hung(self) -> None:
        if self._inbox.untaken() > self._bounds.hang:
            self._end(f"has taken nothing for {self._bounds.hang:g} s")

    def _end(self, why: str) -> None:
        if not self._closing:
            self._closing = True
            self._conversation.end(f"backend {self._name} {why}")

    # What it asks

    def asked(self, message: Asked) -> Answer | None:
        """The answer, if there is one to that."""
        match message:
            case Taken(count):
                self._inbox.took(count)
                return None
            case Failed(what):
                self._why = f"failed: {plain(what)}"
                return None
            case Refused(what):
                self._why = f"cannot be made: {plain(what)}"
                return None
            case Audio():
                return None
        if self._closing:
            return Answer()  # the session is over
        try:
            return self._answer(message)
        except (BacklogFull, OpusError, TypeError, ValueError) as error:
            return Answer(error=(type(error).__name__, str(error)))

    def _answer(self, message: Asked) -> Answer:
        conversation = self._conversation
        match message:
            case Say(audio, is_packet):
                (conversation.say_packet if is_packet else conversation.say)(audio)
            case Backlog():
                return Answer(conversation.backlog)
            case Flush():
                flushed = conversation.flush()
                return Answer((flushed.heard, flushed.dropped))
            case Send(label, content, is_text):
                return Answer(conversation.send(unpacked(content, is_text), label))
            case End(reason):
                conversation.end(plain(reason))
            case Wait(number, below):
                if len(self._waits) == MAX_WAITS:
                    raise ValueError(f"{MAX_WAITS} wait for the backlog already")
                wait = asyncio.create_task(self._wait(number, below))
                self._waits.add(wait)
                wait.add_done_callback(self._waits.discard)
        return Answer()

    async def _wait(self, number: int, below: float) -> None:
        await self._conversation.wait_backlog(below)
        self._add(Waited(number), 0)

    def broke(self, how: str) -> None:
        """Know that it does not keep to the protocol."""
        self._why = f"breaks the protocol: {how}"


class _Inbox(asyncio.Protocol):
    """What waits for the backend; of audio the newest, should it not be taken."""

    def __init__(self, pieces: int) -> None:
        self._audio: deque[Hear] = deque(maxlen=pieces)
        self._calls: deque[tuple[Told, int]] = deque()
        self._bytes = 0
        self._transport: asyncio.Transport | None = None
        self._paused = True
        self._sent = self._taken = 0
        self._waits_since = self._taken_at = time.monotonic()

    def add_audio(self, heard: Hear) -> None:
        self._begin_to_wait()
        self._audio.append(heard)
        self._send()

    def add(self, message: Told, size: int) -> bool:
        """*size*: bytes or so. False if there is no room."""
        self._begin_to_wait()
        if len(self._calls) == MAX_MESSAGES or self._bytes + size > MAX_MESSAGE_BYTES:
            return False
        self._bytes += size
        self._calls.append((message, size))
        self._send()
        return True

    def add_last(self, message: Told) -> None:
        """This, and nothing that waits still."""
        self._audio.clear()
        self._calls.clear()
        self._bytes = 0
        self.add(message, 0)

    def took(self, count: int) -> None:
        if self._taken < count <= self._sent:
            self._taken = count
            self._taken_at = time.monotonic()

    def untaken(self) -> float:
        """Seconds that something waits without anything having been taken."""
        if not self._is_waiting():
            return 0.0
        return time.monotonic() - max(self._waits_since, self._taken_at)

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def _is_waiting(self) -> bool:
        return bool(self._sent > self._taken or self._audio or self._calls)

    def _begin_to_wait(self) -> None:
        if not self._is_waiting():
            self._waits_since = time.monotonic()

    def _send(self) -> None:
        while not self._paused and self._transport is not None:
            if self._calls:
                message, size = self._calls.popleft()
                self._bytes -= size
            elif self._audio:
                message = self._audio.popleft()
            else:
                return
            self._sent += 1
            self._transport.write(frame(message))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        # Whatever the kernel does not take is to wait here, where it has its bounds.
        transport.set_write_buffer_limits(high=0)
        self.resume_writing()

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._send()

    def connection_lost(self, exc: Exception | None) -> None:
        self._paused = True
        self._transport = None


class _Calls(asyncio.Protocol):
    """What the backend asks, answered one at a time and at a bounded rate."""

    def __init__(self, backend: _InProcess) -> None:
        self.over = asyncio.Event()
        self._backend = backend
        self._received = bytearray()
        self._asked: deque[bytes] = deque()
        self._transport: asyncio.Transport | None = None
        bounds = backend._bounds
        self._allowance = Allowance.full(bounds.burst, bounds.calls, time.monotonic())
        self._resumes: asyncio.TimerHandle | None = None

    def abort(self) -> None:
        if self._resumes is not None:
            self._resumes.cancel()
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        try:
            self._asked.extend(frames(self._received))
            self._answer()
        except (FrameError, msgspec.DecodeError) as error:
            self._backend.broke(plain(str(error)))
            self.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self.over.set()

    def _answer(self) -> None:
        while self._asked and self._transport is not None and self._resumes is None:
            answer = self._backend.asked(msgspec.msgpack.decode(self._asked.popleft(), type=Asked))
            if answer is not None:
                self._transport.write(frame(answer))
                if self._transport.get_write_buffer_size() > MAX_UNREAD:
                    raise FrameError("it asks, and does not read the answers")
            wait = self._allowance.take(1, time.monotonic())
            if wait:
                self._transport.pause_reading()
                self._resumes = asyncio.get_running_loop().call_later(wait, self._resume)

    def _resume(self) -> None:
        self._resumes = None
        if self._transport is None:
            return
        self._transport.resume_reading()
        try:
            self._answer()
        except (FrameError, msgspec.DecodeError) as error:
            self._backend.broke(plain(str(error)))
            self.abort()


def _died(code: int | None) -> str:
    if code is None or code >= 0:
        return f"has ended its process with {code}"
    return f"has died of {signal.Signals(-code).name}"
