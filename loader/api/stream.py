"""Events as they come, to many readers: Server-Sent Events (WHATWG HTML 9.2).

Nothing is kept for a reader but the number of the event that it had last. Who reads more slowly
than events are forgotten is told how many he has missed.
"""

import asyncio
import re
from collections.abc import Collection
from datetime import UTC, datetime
from typing import Any

import msgspec
from aiohttp import web

from loader.api.connection import Connection
from loader.events import Event, EventLog
from loader.problems import Refused, quoted

__all__ = ["Streams"]

READERS = 32
HEARTBEAT_SECONDS = 15.0
"""Of silence, after which a comment says that the stream is alive."""

PATIENCE_SECONDS = 30.0
"""That a reader gets to take what it is sent."""

_BATCH = 256


class Streams:
    """The readers of an event log, `READERS` at most."""

    def __init__(self, events: EventLog) -> None:
        self._events = events
        self._readers: set[asyncio.Event] = set()
        self._over = False

    def end(self) -> None:
        """End all streams: the agent stops."""
        self._over = True
        for news in self._readers:
            news.set()

    async def tell(
        self, request: web.Request, *, kinds: Collection[str], follow: bool
    ) -> web.StreamResponse:
        """Answer with what is remembered, after the event that the reader names as its last, and
        with *follow* with what is yet to come; of these kinds, or of all. Raises Refused."""
        last = _last(request.headers.get("Last-Event-ID"))
        if len(self._readers) >= READERS:
            raise Refused(
                "too-many-readers",
                f"{READERS} readers follow the events already: try again later",
                retry_after_s=HEARTBEAT_SECONDS,
            )
        news = asyncio.Event()
        connection = request.protocol
        assert isinstance(connection, Connection)
        connection.when_lost(news.set)
        self._readers.add(news)
        forget = self._events.listen(lambda _event: news.set())
        try:
            response = web.StreamResponse(
                headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"}
            )
            await response.prepare(request)
            if request.method != "HEAD":
                await self._send(request, response, news, last, kinds, follow=follow)
            return response
        finally:
            forget()
            self._readers.discard(news)

    async def _send(
        self,
        request: web.Request,
        response: web.StreamResponse,
        news: asyncio.Event,
        last: int,
        kinds: Collection[str],
        *,
        follow: bool,
    ) -> None:
        while True:
            news.clear()
            events, missed = self._events.since(last)
            if missed != 0:
                await _write(response, _missed(missed))
            for first in range(0, len(events), _BATCH):
                batch = events[first : first + _BATCH]
                wanted = [event for event in batch if not kinds or event.kind in kinds]
                await _write(response, b"".join(map(_written, wanted)))
            last = events[-1].number if events else last
            if not follow or self._over or request.transport is None:
                return
            try:
                async with asyncio.timeout(HEARTBEAT_SECONDS):
                    await news.wait()
            except TimeoutError:
                await _write(response, b":\n\n")


def _last(id: str | None) -> int:
    """The number of the last event that a reader has; 0 for none."""
    if id is None:
        return 0
    if not re.fullmatch(r"[0-9]{1,16}", id):
        raise Refused(
            "malformed-header",
            f"Last-Event-ID is the id of an event, not {quoted(id)}",
            header="Last-Event-ID",
        )
    return int(id)


def _written(event: Event) -> bytes:
    at = datetime.fromtimestamp(event.at, UTC).isoformat(timespec="milliseconds")
    told = {"time": at.replace("+00:00", "Z"), "kind": event.kind, **event.facts}
    return _message(event.kind, told, id=str(event.number))


def _missed(count: int | None) -> bytes:
    """So many events are forgotten; None if it is not known how many."""
    return _message("missed", {"missed": count})


def _message(kind: str, data: dict[str, Any], *, id: str | None = None) -> bytes:
    head = f"id: {id}\n" if id else ""
    return f"{head}event: {kind}\ndata: ".encode() + msgspec.json.encode(data) + b"\n\n"


async def _write(response: web.StreamResponse, data: bytes) -> None:
    if not data:
        return
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            await response.write(data)
    except TimeoutError:
        raise ConnectionResetError("the reader takes nothing") from None
