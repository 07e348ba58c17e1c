"""HTTP/1.1 with the agent of this host: small requests, over connections to its Unix socket that
are kept.

A transceiver asks twice for each call, and aiohttp's client takes four times as long for that as
this does: a tenth of all that a call's setup costs. What goes to other hosts, and streams, are
aiohttp's.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["Response", "UnixHttp"]

_LONGEST_HEAD = 65536
_AT_ONCE = 32  # connections; more than the agent lets wait to be accepted would fail


@dataclass(frozen=True, slots=True)
class Response:
    """What was answered; *reason* is the status line's phrase."""

    status: int
    reason: str
    body: bytes


class UnixHttp:
    """Keeps as many connections to the socket at *path* as there are requests at a time, but
    for those beyond 32, which wait."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self._turns = asyncio.Semaphore(_AT_ONCE)

    def close(self) -> None:
        """Close what is kept."""
        while self._idle:
            self._idle.pop()[1].close()

    async def request(
        self, method: str, target: str, headers: Mapping[str, str], body: bytes
    ) -> Response:
        """One request that does no harm if it is made twice. Its *headers* must be fit to be sent.

        Raises OSError if there is nobody, or no answer comes; ValueError for an answer that is
        none.
        """
        lines = [
            f"{method} {target} HTTP/1.1",
            "Host: agent",
            f"Content-Length: {len(body)}",
            *(f"{name}: {value}" for name, value in headers.items()),
        ]
        async with self._turns:
            return await self._ask("\r\n".join([*lines, "", ""]).encode() + body)

    async def _ask(self, request: bytes) -> Response:
        while self._idle:
            reader, writer = self._idle.pop()
            if reader.at_eof():
                writer.close()
                continue
            try:
                return await self._exchange(reader, writer, request)
            except ConnectionError:
                break  # it was closed while it was idle
        reader, writer = await asyncio.open_unix_connection(self._path, limit=_LONGEST_HEAD)
        return await self._exchange(reader, writer, request)

    async def _exchange(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes
    ) -> Response:
        is_kept = False
        try:
            writer.write(request)
            response, is_kept = await _read(reader)
            return response
        finally:
            if is_kept:
                self._idle.append((reader, writer))
            else:
                writer.close()


async def _read(reader: asyncio.StreamReader) -> tuple[Response, bool]:
    """A response, and whether another one may follow."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
        first, *rest = head[:-4].decode("latin-1").split("\r\n")
        version, status, reason = first.split(" ", 2)
        fields = {}
        for line in rest:
            name, _, value = line.partition(":")
            fields[name.lower()] = value.strip()
        if version != "HTTP/1.1" or "transfer-encoding" in fields:
            raise ValueError(f"not an answer that was expected: {first[:100]!r}")
        body = await reader.readexactly(int(fields.get("content-length", "0")))
    except asyncio.IncompleteReadError as error:
        raise ConnectionResetError("the connection was closed without an answer") from error
    except asyncio.LimitOverrunError as error:
        raise ValueError("an answer whose headers do not end") from error
    return Response(int(status), reason, body), fields.get("connection", "").lower() != "close"
