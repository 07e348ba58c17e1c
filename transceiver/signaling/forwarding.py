"""A request for a session of another transceiver's is handed to that one, and its answer back.

Ids of sessions name their transceiver; where that is, the agent knows. So nothing is sent to an
address that the agent did not name, and a request is handed on once at most.
"""

import asyncio
import hmac
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Protocol

import aiohttp
from aiohttp import hdrs, web

from loader.errors import ShuntError
from transceiver.signaling.calls import Elsewhere
from transceiver.signaling.http import Handler, Refused, read_body

__all__ = ["Directory", "Forwarder"]

HOP = "Shunt-Hop"
"""Says that a transceiver has handed a request on: ID TIME MAC."""

HERE = web.RequestKey("here", bool)
"""Whether a call is to be made here, because nobody else would."""

HOP_SECONDS = 30
"""That a marker is good for: requests take less, and clocks differ by less."""

FRESH_SECONDS = 5.0
"""That an answer of the agent is taken for true."""
ANSWER_SECONDS = 8.0
"""That the other transceiver gets: a little more than its agent gets from it."""
CONNECT_SECONDS = 2.0
ANSWER_BYTES = 256 << 10

ASKED = (
    hdrs.ACCEPT,
    hdrs.AUTHORIZATION,
    hdrs.CONTENT_TYPE,
    hdrs.IF_MATCH,
    hdrs.ORIGIN,
    hdrs.USER_AGENT,
)
ANSWERED = (
    hdrs.ALLOW,
    hdrs.CACHE_CONTROL,
    hdrs.CONTENT_TYPE,
    hdrs.ETAG,
    hdrs.LINK,
    hdrs.LOCATION,
    hdrs.RETRY_AFTER,
    hdrs.WWW_AUTHENTICATE,
    "Accept-Patch",
    "Accept-Post",
)
"""Headers that are passed on; all others are between us and the client, or us and the other."""

NO_ANSWER = (aiohttp.ClientError, TimeoutError, OSError)

log = logging.getLogger(__name__)


class Directory(Protocol):
    """Of the transceivers that there are: `loader.client.AgentClient`."""

    async def transceivers(self) -> Mapping[str, object]:
        """`GET /v1/transceivers` of the agent; ShuntError if there is no answer."""


class Forwarder:
    """Hands requests on. *owner*: this transceiver; *api_key*: what all transceivers share.

    *clock*: monotonic seconds, *wall*: Unix time.
    """

    def __init__(
        self,
        directory: Directory,
        *,
        owner: str,
        api_key: str,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.outcomes: Counter[str] = Counter()
        """Requests that were for others, by what became of them."""
        self._directory = directory
        self._owner = owner
        self._key = hmac.digest(api_key.encode(), b"shunt, version 1: handed on", "sha256")
        self._clock = clock
        self._wall = wall
        self._known: dict[str, str] = {}
        self._known_at = -FRESH_SECONDS
        self._asking = asyncio.Lock()
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """End what connections there are."""
        if self._session is not None:
            await self._session.close()

    def is_handed_on(self, request: web.Request) -> bool:
        """Whether one of us has handed *request* on, and so has judged how often its client asks.

        Whoever says so without knowing the API key is not believed.
        """
        if request.get(HERE, False):
            return True
        owner, _, rest = request.headers.get(HOP, "").partition(" ")
        at, _, mac = rest.partition(" ")
        if not at.isascii() or not at.isdecimal() or len(at) > 12:
            return False
        expected = self._mac(owner, at, request)
        return (
            hmac.compare_digest(mac.encode("utf-8", "surrogateescape"), expected.encode())
            and abs(self._wall() - int(at)) <= HOP_SECONDS
        )

    async def is_there(self, owner: str) -> bool:
        """Whether the agent knows of the transceiver; Refused (503) if there is no telling."""
        return await self._url_of(owner) is not None

    @web.middleware
    async def middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Hands on what is Elsewhere."""
        try:
            return await handler(request)
        except Elsewhere as elsewhere:
            owner, or_here = elsewhere.owner, elsewhere.or_here
        if not or_here:
            return await self._hand_on(request, owner)
        try:
            answer = await self._hand_on(request, owner)
        except Refused as refused:
            log.info("a call that %s should have had is taken here: %s", owner, refused.what)
        else:
            if answer.status != 503:
                return answer
        request[HERE] = True
        return await handler(request)

    async def _hand_on(self, request: web.Request, owner: str) -> web.Response:
        if HOP in request.headers:
            self.outcomes["refused"] += 1
            raise Refused(404, "there is no such session", code="session_not_found")
        url = await self._url_of(owner)
        if url is None:
            self.outcomes["unknown"] += 1
            raise Refused(
                404, "the session's transceiver is gone, or never was", code="session_not_found"
            )
        try:
            try:
                return await self._forward(request, url)
            except aiohttp.ClientConnectorError:
                # Nothing has reached it, so it may be tried again where it is by now.
                self._known_at = -FRESH_SECONDS
                moved = await self._url_of(owner)
                if moved is None or moved == url:
                    raise
                return await self._forward(request, url := moved)
        except NO_ANSWER as error:
            raise self._failure(owner, url, error) from error

    async def _forward(self, request: web.Request, url: str) -> web.Response:
        """The answer of the transceiver at *url*; NO_ANSWER for want of one."""
        body = await read_body(request)
        headers: dict[str, str] = {
            name: request.headers[name] for name in ASKED if name in request.headers
        }
        headers[HOP] = self._marker(request)
        async with self._client().request(
            request.method,
            f"{url.rstrip('/')}{request.rel_url}",
            data=body,
            headers=headers,
            allow_redirects=False,
        ) as response:
            answer = await _read(response)
        self.outcomes["answered"] += 1
        told = {name: response.headers[name] for name in ANSWERED if name in response.headers}
        return web.Response(status=response.status, body=answer, headers=told)

    def _failure(self, owner: str, url: str, error: Exception) -> Refused:
        self.outcomes["failed"] += 1
        self._known_at = -FRESH_SECONDS
        log.warning("transceiver %s at %s does not answer: %r", owner, url, error)
        return Refused(
            503,
            "the session's transceiver does not answer",
            code="unavailable",
            headers={hdrs.RETRY_AFTER: "1"},
        )

    async def _url_of(self, owner: str) -> str | None:
        came = self._clock()
        async with self._asking:
            is_fresh = came - self._known_at < FRESH_SECONDS
            # Who is not known may have come since. An answer to a later question settles it, so
            # however many ask, the agent is asked by one at a time.
            if not (is_fresh and owner in self._known) and self._known_at < came:
                asked = self._clock()
                self._known = await self._ask()
                self._known_at = asked
        return self._known.get(owner)

    async def _ask(self) -> dict[str, str]:
        try:
            told = await self._directory.transceivers()
        except ShuntError as error:
            self.outcomes["failed"] += 1
            raise Refused(
                503,
                f"where the session is cannot be told: {error}",
                code="unavailable",
                headers={hdrs.RETRY_AFTER: "1"},
            ) from error
        transceivers = told["transceivers"]
        assert isinstance(transceivers, list)
        return {each["id"]: each["http"] for each in transceivers}

    def _client(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(total=ANSWER_SECONDS, sock_connect=CONNECT_SECONDS),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
            )
        return self._session

    def _marker(self, request: web.Request) -> str:
        at = str(int(self._wall()))
        return f"{self._owner} {at} {self._mac(self._owner, at, request)}"

    def _mac(self, owner: str, at: str, request: web.Request) -> str:
        text = "\n".join((owner, at, request.method, str(request.rel_url)))
        return hmac.digest(self._key, text.encode("utf-8", "surrogateescape"), "sha256").hex()


async def _read(response: aiohttp.ClientResponse) -> bytes:
    answer = bytearray()
    async for chunk in response.content.iter_any():
        answer += chunk
        if len(answer) > ANSWER_BYTES:
            raise aiohttp.ClientPayloadError("the answer is too long")
    return bytes(answer)
