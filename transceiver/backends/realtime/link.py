"""The connection to the server: made, kept alive, made again, given up; and never in anybody's way.

A connection that is lost is made again, after a wait that grows and is no two sessions' the same,
for as long as a caller could be expected to wait; what the server *says* no to is not asked again.
A server that does not read, does not answer, or sends faster than anybody could talk costs its own
session only: what waits for it is bounded (`outbox`), its silence has an end, and it is read at a
bounded rate, as TCP lets us.
"""

import asyncio
import logging
import random
import socket
from asyncio.trsock import TransportSocket
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from typing import Literal, NoReturn

import aiohttp
import msgspec
from aiohttp import ClientWebSocketResponse, WSCloseCode, WSMsgType
from yarl import URL

from transceiver.backends.allowance import Allowance
from transceiver.backends.oai_events import Event
from transceiver.backends.realtime.endpoint import Endpoint
from transceiver.backends.realtime.outbox import Outbox

__all__ = ["GarbageError", "Link", "Patience"]

MAX_MESSAGE = 8 << 20
"""Bytes of one event of the server: two minutes of audio."""

MAX_GARBAGE = 16
"""Messages that are no events, after which this is no server of Realtime events."""

UNSENT = 32 << 10
"""Bytes that the kernel takes before it has sent them: half a second. What lies there can not be
thrown away when it is old."""

FAIR = 8
"""Messages that are handled before other sessions have their turn."""

_LASTING = frozenset(
    {
        WSCloseCode.PROTOCOL_ERROR,
        WSCloseCode.UNSUPPORTED_DATA,
        WSCloseCode.INVALID_TEXT,
        WSCloseCode.POLICY_VIOLATION,
        WSCloseCode.MESSAGE_TOO_BIG,
        WSCloseCode.MANDATORY_EXTENSION,
    }
)
"""Codes of RFC 6455 section 7.4.1 that would be the same the next time."""

_PASSING = frozenset({408, 425, 429})
"""HTTP statuses below 500 that may be another one the next time."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long to wait for what; seconds."""

    connect: float = 5.0
    first_retry: float = 0.25
    longest_retry: float = 4.0
    without: float = 20.0
    """That a session may go on without a connection, all attempts together."""
    settled: float = 10.0
    """After which a connection counts as one that works, so that the next loss is a new one."""
    silent: float = 20.0
    """That the server may send nothing, not even the answer to a ping; or may read nothing."""
    goodbye: float = 1.0
    buffered: float = 5.0
    """Of the client's audio, that waits for a server that is away or does not read."""


class GarbageError(Exception):
    """The server sent something that is no event."""


class _LostError(Exception):
    """The connection is gone; another one may do. *after*: not before so many seconds."""

    def __init__(self, reason: str, after: float = 0.0) -> None:
        super().__init__(reason)
        self.after = after


class _EndedError(Exception):
    """The server does not want this session, or not any more."""


class _Append(msgspec.Struct, tag_field="type", tag="input_audio_buffer.append"):
    audio: bytes
    """PCM; base64 in JSON."""


class Link:
    """One session's connection to its server. Begins with `start`, ends with `close`.

    *greet*: what to send first on each connection. *take* gets each message of the server; while it
    waits, nothing is read, and it raises GarbageError for what it does not understand. *lost* is
    called with the reason when a connection that was made has been lost, and another will be tried;
    *ended* when there will be none.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        rate: int,
        greet: Callable[[], list[Event]],
        take: Callable[[bytes], Awaitable[None]],
        lost: Callable[[str], None],
        ended: Callable[[str], None],
        patience: Patience,
    ) -> None:
        self._endpoint = endpoint
        self._greet = greet
        self._take = take
        self._lost = lost
        self._ended = ended
        self._patience = patience
        self._outbox = Outbox(rate=rate, seconds=patience.buffered)
        self._filled = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.connected = False
        """Whether there is a connection, that has been greeted."""

    def start(self, model: str | None) -> None:
        """Connect; *model*: what the client asks for."""
        self._task = asyncio.create_task(self._run(self._endpoint.at(model)), name="realtime link")
        self._task.add_done_callback(self._stopped)

    def send_audio(self, pcm: bytes) -> None:
        self._outbox.add_audio(pcm)
        self._filled.set()

    def send_event(self, event: Event) -> bool:
        """False if too much waits already."""
        self._filled.set()
        return self._outbox.add_event(msgspec.json.encode(event))

    async def close(self) -> None:
        """Say goodbye, and be gone within *patience.goodbye* and a bit."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        if self._outbox.lost:
            name, lost = self._endpoint.name, self._outbox.lost
            log.warning("%s: %.1f s of a client's audio found no room", name, lost)

    def _stopped(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (bug := task.exception()) is not None:
            log.error("the link to %s failed", self._endpoint.name, exc_info=bug)
            self._ended(f"an error of ours: {type(bug).__name__}")

    async def _run(self, url: URL) -> None:
        """One connection after the other, until the server or our patience ends it."""
        clock, patience = asyncio.get_running_loop().time, self._patience
        without_since, retry = clock(), patience.first_retry
        # Nothing of one connection is another's business: no cookies.
        async with aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as http:
            while True:
                try:
                    connection = await self._connect(http, url)
                    connected_at = clock()
                    self.connected = True
                    try:
                        await connection.run(self._greet())
                    except _LostError as lost:
                        self.connected = False
                        if clock() - connected_at >= patience.settled:
                            without_since, retry = clock(), patience.first_retry
                        self._lost(str(lost))
                        raise
                    finally:
                        await connection.part()
                except _LostError as lost:
                    wait = max(lost.after, retry * random.uniform(0.5, 1.0))
                    if clock() + wait - without_since > patience.without:
                        self._ended(f"{lost} (tried for {patience.without:g} s)")
                        return
                    log.info("%s: %s; trying again in %.2f s", self._endpoint.name, lost, wait)
                except _EndedError as ended:
                    self._ended(str(ended))
                    return
                await asyncio.sleep(wait)
                retry = min(2 * retry, patience.longest_retry)

    async def _connect(self, http: aiohttp.ClientSession, url: URL) -> "_Connection":
        name, patience = self._endpoint.name, self._patience
        try:
            async with asyncio.timeout(patience.connect):
                ws = await http.ws_connect(
                    url,
                    headers=self._endpoint.headers,
                    timeout=aiohttp.ClientWSTimeout(ws_close=patience.goodbye),
                    autoping=False,
                    max_msg_size=MAX_MESSAGE,
                    decode_text=False,
                )
        except aiohttp.WSServerHandshakeError as error:
            raise _refusal(error) from None
        except aiohttp.ClientSSLError as error:
            raise _EndedError(f"{name} does not prove who it is: {_plain(str(error))}") from None
        except TimeoutError:
            raise _LostError(f"{name} does not answer within {patience.connect:g} s") from None
        except (aiohttp.ClientError, OSError) as error:
            raise _LostError(f"{name} cannot be reached: {_plain(str(error))}") from None
        return _Connection(ws, self._outbox, self._filled, self._take, patience)


class _Connection:
    """One WebSocket: what comes is taken, what waits is sent, and silence is noticed."""

    def __init__(
        self,
        ws: "ClientWebSocketResponse[Literal[False]]",
        outbox: Outbox,
        filled: asyncio.Event,
        take: Callable[[bytes], Awaitable[None]],
        patience: Patience,
    ) -> None:
        self._ws = ws
        self._outbox = outbox
        self._filled = filled
        self._take = take
        self._patience = patience
        self._clock = asyncio.get_running_loop().time
        self._control: deque[tuple[bytes, WSMsgType]] = deque(maxlen=8)
        self._heard_at = self._clock()
        self._handling = False
        self._sending_since: float | None = None
        self._garbage = 0
        self._socket: TransportSocket | None = ws.get_extra_info("socket")
        if self._socket is not None:
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT)

    async def run(self, greeting: list[Event]) -> NoReturn:
        """Until it is lost or ended, which is what is raised."""
        errors: list[_LostError | _EndedError] = []
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._read())
                group.create_task(self._write([msgspec.json.encode(each) for each in greeting]))
                group.create_task(self._watch())
        except* (_LostError, _EndedError) as raised:
            for each in raised.exceptions:
                assert isinstance(each, _LostError | _EndedError)
                errors.append(each)
        errors.sort(key=lambda error: isinstance(error, _LostError))
        raise errors[0]

    async def part(self) -> None:
        """Close it, with a goodbye if the server takes one."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._patience.goodbye):
                await self._ws.close()
        # A transport that is closed waits until what it holds is read, and that may be never.
        if self._socket is not None:
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)

    async def _read(self) -> None:
        messages = Allowance.full(2000, 500, self._clock())
        data = Allowance.full(2 * MAX_MESSAGE, 2 << 20, self._clock())
        number = 0
        while True:
            message = await self._ws.receive()
            self._heard_at = now = self._clock()
            match message.type:
                case WSMsgType.TEXT:
                    assert isinstance(message.data, bytes)
                    self._handling = True
                    await self._handle(message.data)
                    wait = max(messages.take(1, now), data.take(len(message.data), now))
                    if wait:
                        await asyncio.sleep(wait)
                    self._handling = False
                    self._heard_at = self._clock()
                case WSMsgType.PING:
                    self._send_control(bytes(message.data), WSMsgType.PONG)
                    messages.take(1, now)
                case WSMsgType.PONG:
                    messages.take(1, now)
                case WSMsgType.CLOSE:
                    raise _closed(int(message.data), str(message.extra or ""))
                case WSMsgType.ERROR:
                    raise _EndedError(f"the server breaks WebSocket's rules: {message.data}")
                case WSMsgType.BINARY:
                    self._ignore("a binary message")
                case _:
                    raise _LostError("the connection broke")
            number += 1
            if number % FAIR == 0:
                await asyncio.sleep(0)  # what has arrived already would not wait for anybody

    async def _handle(self, text: bytes) -> None:
        try:
            await self._take(text)
        except GarbageError as error:
            self._ignore(str(error))

    def _ignore(self, what: str) -> None:
        self._garbage += 1
        if self._garbage == 1:
            log.warning("the server sent %s", what)
        if self._garbage > MAX_GARBAGE:
            raise _EndedError(f"the server does not speak Realtime events: it sent {what}")

    async def _write(self, greeting: list[bytes]) -> None:
        try:
            for text in greeting:
                await self._send(text, WSMsgType.TEXT)
            while True:
                while self._control:
                    await self._send(*self._control.popleft())
                taken = self._outbox.take()
                if taken is not None:
                    content, is_audio = taken
                    text = msgspec.json.encode(_Append(content)) if is_audio else content
                    await self._send(text, WSMsgType.TEXT)
                elif not self._control:
                    self._filled.clear()
                    await self._filled.wait()
        except (aiohttp.ClientError, ConnectionError):
            # Why, the server may have told: that is read before this counts.
            await asyncio.sleep(self._patience.goodbye)
            raise _LostError("the connection broke") from None

    async def _send(self, content: bytes, kind: WSMsgType) -> None:
        self._sending_since = self._clock()
        await self._ws.send_frame(content, kind)
        self._sending_since = None

    def _send_control(self, content: bytes, kind: WSMsgType) -> None:
        self._control.append((content, kind))
        self._filled.set()

    async def _watch(self) -> None:
        """Notice a server that is there and does nothing."""
        silent = self._patience.silent
        while True:
            await asyncio.sleep(silent / 4)
            now = self._clock()
            if self._sending_since is not None and now - self._sending_since > silent:
                raise _LostError(f"the server has read nothing for {silent:g} s")
            if self._handling:
                continue
            if now - self._heard_at > silent:
                raise _LostError(f"the server has sent nothing for {silent:g} s")
            if now - self._heard_at > silent / 4:
                self._send_control(b"", WSMsgType.PING)


def _refusal(error: aiohttp.WSServerHandshakeError) -> _LostError | _EndedError:
    try:
        status = f"{error.status} {HTTPStatus(error.status).phrase}"
    except ValueError:
        status = str(error.status)
    if error.status < 500 and error.status not in _PASSING:
        return _EndedError(f"the server refuses the session: {status}")
    after = error.headers.get("Retry-After", "") if error.headers else ""
    seconds = float(after) if after.isascii() and after.isdecimal() and len(after) < 7 else 0.0
    return _LostError(f"the server cannot take the session now: {status}", seconds)


def _closed(code: int, reason: str) -> _LostError | _EndedError:
    told = f"the server closed the connection: {code} {_plain(reason)}".rstrip()
    if code == WSCloseCode.OK:
        return _EndedError(f"the server ended the conversation. {_plain(reason)}".rstrip())
    if code in _LASTING or 3000 <= code < 5000:  # 3000 and above: the application's (RFC 6455)
        return _EndedError(told)
    return _LostError(told)


def _plain(text: str) -> str:
    """A stranger's words, fit for a line of a log."""
    return "".join(c if c.isprintable() else " " for c in text[:200]).strip()
