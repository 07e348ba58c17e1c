"""A backend in a thread of its own, so that whatever it does is its own session's trouble.

Everything of a process shares one event loop: who blocks it for a second takes a second of
everybody's conversation. Those that come with Shunt do not. Others get, for each session, a thread
with an event loop, and meet the session at two places only:

        session's loop                          thread's loop
        hear, receive … ──▶ bounded inbox ────▶ the same methods, in order
        the session     ◀── calls, at a bounded rate, one at a time ◀── say, flush, send, end

So for its author nothing changes. A thread still shares the process's memory and, where it computes
in Python, its interpreter; for those that need more there is `transceiver.backends.processes`.
"""

import asyncio
import ctypes
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

from loader.errors import ShuntError
from transceiver.backends import AudioFormat, Backend, Conversation, Factory, Flushed
from transceiver.backends.allowance import Allowance
from transceiver.media import opus

__all__ = [
    "MAX_MESSAGES",
    "MAX_MESSAGE_BYTES",
    "MAX_WAITS",
    "PROBE",
    "Bounds",
    "checked",
    "isolated",
    "plain",
]

MAX_MESSAGES = 256
MAX_MESSAGE_BYTES = 1 << 20
"""Messages of the client that wait for the backend; with more, the session ends."""

MAX_LEFT = 32
"""Threads that hang and were left behind, for which no more sessions are begun. One that waits for
something outside of Python cannot be ended, and has its memory."""

FAIR = 8
"""Calls of a backend before its own tasks have their turn."""

MAX_WAITS = 16
"""`wait_backlog` at once."""

PROBE = 30.0
"""Seconds to make a backend when the process starts."""

log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What a backend in a thread may do to its session."""

    audio: int = 100
    """Pieces of the client's audio, mostly 20 ms each, that wait for it: of more, the oldest is
    lost. It sees that by `at`."""
    hang: float = 10.0
    """Seconds for which it may take nothing; then its session ends."""
    close: float = 2.5
    """Seconds to close; less than the session waits."""
    calls: float = 500.0
    """Calls of the session a second in the long run; beyond that, each waits in the thread."""
    burst: float = 1000.0


def isolated(name: str, factory: Factory, bounds: Bounds | None = None) -> Factory:
    """A factory of the same backends, each in a thread of its own; ShuntError if it makes none.

    One is made and closed here and now, to know what audio they want and that they can be made.
    """
    crew = _Crew(name, factory, bounds or Bounds())
    audio = crew.probe()
    return lambda: _Isolated(crew, audio)


def checked(name: str, audio: object) -> AudioFormat:
    """The audio that a backend says it wants; ShuntError if there is none such."""
    if not isinstance(audio, AudioFormat) or audio.rate not in opus.RATES:
        rates = ", ".join(map(str, opus.RATES))
        raise ShuntError(
            f"backend {name} wants audio as {audio!r}", f"an AudioFormat, of {rates} Hz"
        )
    return audio


class _Crew:
    """All the threads of one backend."""

    def __init__(self, name: str, factory: Factory, bounds: Bounds) -> None:
        self.name = name
        self.factory = factory
        self.bounds = bounds
        self.left: set[threading.Thread] = set()
        """Those that hang and were left behind."""

    def probe(self) -> AudioFormat:
        found: Future[AudioFormat] = Future()
        what = f"backend {self.name} cannot be made"

        def make() -> None:
            try:
                found.set_result(asyncio.run(self._made_and_closed()))
            except (Exception, SystemExit) as error:
                log.exception("%s", what)
                found.set_exception(error)

        thread = threading.Thread(target=make, name=f"probe of backend {self.name}", daemon=True)
        thread.start()
        thread.join(PROBE)
        if not found.done():
            raise ShuntError(f"{what} within {PROBE:g} s", "what it waits for can wait in start()")
        error = found.exception()
        if error is not None:
            raise ShuntError(f"{what}: {_told(error)}", "the log has where") from error
        audio = found.result()
        return checked(self.name, audio)

    async def _made_and_closed(self) -> AudioFormat:
        backend = self.factory()
        audio = backend.audio
        await backend.close()
        return audio


class _Isolated:
    """What the session sees; all of it runs on the session's loop."""

    _conversation: Conversation

    def __init__(self, crew: _Crew, audio: AudioFormat) -> None:
        crew.left = {thread for thread in crew.left if thread.is_alive()}
        if len(crew.left) >= MAX_LEFT:
            raise ShuntError(
                f"{len(crew.left)} sessions of backend {crew.name} have hung and still do",
                "its threads cannot be ended but with the process",
            )
        self._crew = crew
        self.audio = audio
        self._inbox = _Inbox(crew.bounds.audio)
        self._thread: threading.Thread | None = None
        self._finished = asyncio.Event()
        self._closing = False

    def start(self, conversation: Conversation) -> None:
        self._conversation = conversation
        caller = _Caller(conversation, asyncio.get_running_loop(), self._inbox, self._crew.bounds)
        self._thread = threading.Thread(
            target=self._live,
            args=(caller, asyncio.get_running_loop()),
            name=f"backend {self._crew.name}",
            daemon=True,
        )
        self._thread.start()

    def hear(self, pcm: bytes, at: int, concealed: bool) -> None:
        self._inbox.add_audio(pcm, at, concealed)
        self._end_if_hung()

    def channel_opened(self, label: str) -> None:
        self._add(lambda backend: backend.channel_opened(label), len(label))

    def receive(self, label: str, message: str | bytes) -> None:
        self._add(lambda backend: backend.receive(label, message), len(message))

    async def close(self) -> None:
        self._closing = True
        self._inbox.close()
        if self._thread is None:
            return
        try:
            async with asyncio.timeout(self._crew.bounds.close):
                await self._finished.wait()
        except TimeoutError:
            self._crew.left.add(self._thread)
            log.warning("a session of backend %s hangs, and is left behind", self._crew.name)
            _interrupt(self._thread)

    def _add(self, call: Callable[[Backend], None], size: int) -> None:
        if not self._inbox.add_call(call, size):
            self._end("does not take the client's messages")
        self._end_if_hung()

    def _end_if_hung(self) -> None:
        if self._inbox.untaken() > self._crew.bounds.hang:
            self._end(f"has taken nothing for {self._crew.bounds.hang:g} s")

    def _end(self, why: str) -> None:
        if not self._closing:
            self._closing = True
            self._conversation.end(f"backend {self._crew.name} {why}")

    # The thread

    def _live(self, caller: "_Caller", session: asyncio.AbstractEventLoop) -> None:
        why = "has ended its thread"
        try:
            with asyncio.Runner() as runner:
                runner.run(self._converse(caller))
                why = "has ended"  # it was asked to
        except (Exception, SystemExit) as error:
            log.exception("a session of backend %s failed", self._crew.name)
            why = f"failed: {_told(error)}"
        finally:
            self._inbox.close()
            with suppress(RuntimeError):  # the session's loop may be gone
                session.call_soon_threadsafe(self._gone, why)

    async def _converse(self, caller: "_Caller") -> None:
        backend = self._crew.factory()
        try:
            backend.start(caller)
            await self._inbox.hand_to(backend)
        finally:
            await backend.close()

    def _gone(self, why: str) -> None:
        self._finished.set()
        self._end(why)


class _Inbox:
    """What waits for the backend: written on the session's loop, read on the thread's.

    Nobody holds a lock: who waits for one waits for a thread that computes. Each count has one
    writer, and a deque's ends are the interpreter's to guard.
    """

    def __init__(self, pieces: int) -> None:
        self._audio: deque[tuple[bytes, int, bool]] = deque(maxlen=pieces)
        self._calls: deque[tuple[Callable[[Backend], None], int]] = deque()
        self._put_bytes = 0
        self._taken_bytes = 0
        self._waits_since = self._taken_at = time.monotonic()
        self._is_waking = False
        self.closed = False
        # The thread's, once it has begun
        self._loop: asyncio.AbstractEventLoop | None = None
        self._backend: Backend
        self._over: asyncio.Future[None]

    # On the session's loop

    def add_audio(self, pcm: bytes, at: int, concealed: bool) -> None:
        self._begin_to_wait()
        self._audio.append((pcm, at, concealed))
        self._wake()

    def add_call(self, call: Callable[[Backend], None], size: int) -> bool:
        """*size*: bytes or so. False if there is no room."""
        self._begin_to_wait()
        waiting = self._put_bytes - self._taken_bytes
        if len(self._calls) == MAX_MESSAGES or waiting + size > MAX_MESSAGE_BYTES:
            return False
        self._put_bytes += size
        self._calls.append((call, size))
        self._wake()
        return True

    def untaken(self) -> float:
        """Seconds that something waits without anything having been taken."""
        if not (self._audio or self._calls):
            return 0.0
        return time.monotonic() - max(self._waits_since, self._taken_at)

    def close(self) -> None:
        """Nothing more is taken."""
        self.closed = True
        self._is_waking = False
        self._wake()

    def _begin_to_wait(self) -> None:
        if not (self._audio or self._calls):
            self._waits_since = time.monotonic()

    def _wake(self) -> None:
        if self._loop is not None and not self._is_waking:
            self._is_waking = True
            with suppress(RuntimeError):  # it is over
                self._loop.call_soon_threadsafe(self._hand)

    # On the thread's

    async def hand_to(self, backend: Backend) -> None:
        """Call it with what waits, as it comes, until this is closed; raises what it raises."""
        self._backend = backend
        self._loop = asyncio.get_running_loop()
        self._over = self._loop.create_future()
        self._hand()  # what came before
        await self._over

    def _hand(self) -> None:
        self._is_waking = False  # before one looks: who adds something from now on wakes us again
        try:
            for _ in range(FAIR):
                self._taken_at = time.monotonic()
                if self.closed:
                    if not self._over.done():
                        self._over.set_result(None)
                    return
                if self._calls:
                    call, size = self._calls.popleft()
                    self._taken_bytes += size
                    call(self._backend)
                elif self._audio:
                    self._backend.hear(*self._audio.popleft())
                else:
                    return
        except Exception as error:
            if self._over.done():
                log.exception("a backend failed while it was closed")
            else:
                self._over.set_exception(error)
            self.closed = True
            return
        self._wake()  # the rest, when what the backend itself has begun has had its turn


class _Caller:
    """The conversation as the backend in its thread sees it. When the session is over, nothing that
    it does has an effect."""

    def __init__(
        self,
        conversation: Conversation,
        session: asyncio.AbstractEventLoop,
        inbox: _Inbox,
        bounds: Bounds,
    ) -> None:
        """Made on the session's loop, which is *session*."""
        self.on_drained: Callable[[], None] | None = None
        self._conversation = conversation
        self._session = session
        self._inbox = inbox
        self._allowance = Allowance.full(bounds.burst, bounds.calls, time.monotonic())
        self._waits = 0
        self._rate = conversation.rate
        self._configuration = conversation.configuration
        conversation.on_drained = self._drained

    @property
    def rate(self) -> int:
        return self._rate

    @property
    def configuration(self) -> Mapping[str, object]:
        return self._configuration

    @property
    def backlog(self) -> float:
        return self._conversation.backlog  # one number, that is read and not changed

    def say(self, pcm: bytes) -> None:
        self._call(lambda: self._conversation.say(pcm), None)

    def say_packet(self, packet: bytes) -> None:
        self._call(lambda: self._conversation.say_packet(packet), None)

    def flush(self) -> Flushed:
        return self._call(self._conversation.flush, Flushed(0.0, 0.0))

    async def wait_backlog(self, below: float) -> None:
        if self._waits == MAX_WAITS:
            raise RuntimeError(f"{MAX_WAITS} wait for the backlog already")
        if self._inbox.closed:
            return
        self._waits += 1
        try:
            waiting = self._conversation.wait_backlog(below)
            await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(waiting, self._session))
        finally:
            self._waits -= 1

    def send(self, message: str | bytes, label: str = "oai-events") -> bool:
        return self._call(lambda: self._conversation.send(message, label), False)

    def end(self, reason: str) -> None:
        self._call(lambda: self._conversation.end(plain(reason)), None)

    def _call(self, call: Callable[[], T], otherwise: T) -> T:
        """The result of *call*, made on the session's loop."""
        wait = self._allowance.take(1, time.monotonic())
        if wait:
            time.sleep(wait)  # who floods is held up, with what else it does in its thread

        result: Future[T] = Future()

        def call_there() -> None:
            if self._inbox.closed:
                result.set_result(otherwise)
                return
            try:
                result.set_result(call())
            except Exception as error:  # noqa: BLE001 (it is raised where the call was made)
                result.set_exception(error)

        self._session.call_soon_threadsafe(call_there)
        return result.result()

    def _drained(self) -> None:
        """On the session's loop."""
        if self.on_drained is not None:
            self._inbox.add_call(lambda _: self.on_drained and self.on_drained(), 0)


def _interrupt(thread: threading.Thread) -> None:
    """Raise SystemExit in it, as soon as it runs Python code: so one that computes without end does
    end, and one that sleeps does when it wakes. The log has where it was."""
    if thread.ident is not None:
        ctypes.pythonapi.PyThreadState_SetAsyncExc(
            ctypes.c_ulong(thread.ident), ctypes.py_object(SystemExit)
        )


def _told(error: BaseException) -> str:
    return plain(f"{type(error).__name__}: {error}")


def plain(text: str) -> str:
    """A stranger's words, fit for a line of a log."""
    return "".join(c if c.isprintable() else " " for c in str(text)[:200]).strip()
