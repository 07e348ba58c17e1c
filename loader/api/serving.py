"""The HTTP server: who may ask, which operation is meant, and how long one may take to say so."""

import asyncio
import os
import re
import socket as sockets
import struct
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from loader.agent import Agent
from loader.api.access import Access
from loader.api.answers import problem_answer
from loader.api.connection import Connection
from loader.api.description import describe
from loader.api.operations import DESCRIPTION, OPERATIONS, STREAMS, Call, Operation
from loader.api.reading import BODY_BYTES, read_body, read_instance, read_query
from loader.api.stream import Streams
from loader.exposition import measuring
from loader.problems import Refused
from loader.shapes import NothingAsked
from loader.table import check_id, check_ufrag

__all__ = ["Runner", "application"]

HEAD_SECONDS = 30.0
"""That a connection may be idle, or take for a request's head. More than the 15 that aiohttp's
clients keep theirs, so that it is the client who ends it, and not in the middle of a request."""

STRANGERS = 16
"""Connections to the Unix socket of users who may not ask, at a time: as many as it takes to tell
them so. More are closed, or one of them could use up the agent's descriptors."""

SHUTDOWN_SECONDS = 5.0
"""That requests under way get when the agent stops."""

_AGENT: web.AppKey[Agent] = web.AppKey("agent", Agent)
_ACCESS: web.AppKey[Access] = web.AppKey("access", Access)

_CHECKS: dict[str, Callable[[str], None]] = {"id": check_id, "ufrag": check_ufrag}
"""Of what stands in paths, by name."""

_OPERATOR: web.RequestKey[bool] = web.RequestKey("operator", bool)
"""Whether a request comes from an operator."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def application(agent: Agent, access: Access | None = None) -> web.Application:
    """The HTTP API over an agent; over TCP, to those to whom *access* is given."""
    app = web.Application(
        middlewares=[measuring(agent.metrics), _answer], client_max_size=BODY_BYTES
    )
    app[_AGENT] = agent
    app[DESCRIPTION] = msgspec.json.format(msgspec.json.encode(describe()))
    if access:
        app[_ACCESS] = access
    app[STREAMS] = streams = Streams(agent.events)

    async def end_streams(_app: web.Application) -> None:
        streams.end()

    app.on_shutdown.append(end_streams)
    for operation in OPERATIONS:
        # A ufrag may have slashes in it.
        path = re.sub(r"\{ufrag\}", "{ufrag:.+}", operation.path)
        handler = _handler(operation)
        app.router.add_route(operation.method, path, handler, name=operation.name)
        if operation.method == "GET":
            app.router.add_route("HEAD", path, handler)
    return app


def _handler(operation: Operation) -> Handler:
    async def handle(request: web.Request) -> web.StreamResponse:
        if operation.operator and not request[_OPERATOR]:
            raise Refused("forbidden", f"{operation.name} is for root and the agent's own user")
        for name, value in request.match_info.items():
            if name in _CHECKS:
                _CHECKS[name](value)
        query = read_query(request, operation.query or NothingAsked)
        instance = read_instance(request) if operation.instance else ""
        body = await read_body(request, operation.body) if operation.body else None
        return await operation.do(
            Call(request, request.app[_AGENT], request.match_info, body, query, instance)
        )

    return handle


@web.middleware
async def _answer(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Only to those who may ask; what is refused, as a problem."""
    try:
        request[_OPERATOR] = _who_asks(request)
        return await handler(request)
    except Refused as refused:
        answer = problem_answer(refused)
        if refused.status in (401, 408):
            answer.force_close()
        return answer


def _who_asks(request: web.Request) -> bool:
    """Whether one who may ask may do so as an operator. Raises Refused for others."""
    transport = request.transport
    if transport is None:
        raise ConnectionResetError
    connection = transport.get_extra_info("socket")
    if connection.family != sockets.AF_UNIX:
        access, given = request.app.get(_ACCESS), request.headers.get("Authorization")
        if not (access and given and access.tokens.accept(given)):
            what = "the token is none of the agent's" if given else "a token is missing"
            raise Refused("unauthorized", f"{what}: send Authorization: Bearer TOKEN")
        return True
    uid = _peer_uid(connection)
    if uid not in _users(request.app[_AGENT]):
        raise Refused(
            "forbidden", f"user {uid} may not use the agent: add it to `users` in its configuration"
        )
    return uid in _operators()


def _operators() -> set[int]:
    return {0, os.geteuid()}


def _users(agent: Agent) -> set[int]:
    """Who may use the Unix socket."""
    return _operators() | agent.config.uids


def _peer_uid(connection: Any) -> int:
    credentials = connection.getsockopt(sockets.SOL_SOCKET, sockets.SO_PEERCRED, 12)
    _pid, uid, _gid = struct.unpack("iII", credentials)
    return int(uid)


class _Server(web.Server):
    """Makes connections. *may_ask*: whether that user may use the Unix socket."""

    def __init__(self, made: web.Server, *, may_ask: Callable[[int], bool]) -> None:
        super().__init__(made.request_handler, request_factory=made.request_factory)
        self._may_ask = may_ask
        self._strangers: set[RequestHandler] = set()

    def __call__(self) -> RequestHandler:
        return Connection(
            self,
            loop=self._loop,
            access_log=None,
            keepalive_timeout=HEAD_SECONDS,
            auto_decompress=False,
        )

    def connection_made(self, handler: RequestHandler, transport: asyncio.Transport) -> None:
        super().connection_made(handler, transport)
        connection = transport.get_extra_info("socket")
        if connection.family != sockets.AF_UNIX or self._may_ask(_peer_uid(connection)):
            return
        if len(self._strangers) >= STRANGERS:
            self._loop.call_soon(transport.abort)  # once it has been begun
            return
        self._strangers.add(handler)

    def connection_lost(self, handler: RequestHandler, exc: BaseException | None = None) -> None:
        super().connection_lost(handler, exc)
        self._strangers.discard(handler)


class Runner(web.AppRunner):
    """Serves an application whose every failure is a problem."""

    def __init__(self, app: web.Application) -> None:
        super().__init__(app, shutdown_timeout=SHUTDOWN_SECONDS)

    def protocol(self, *, on_lost: Callable[[], None]) -> Callable[[], RequestHandler]:
        """Makes what serves one connection; *on_lost* is called when that has ended."""

        def make() -> RequestHandler:
            assert self.server
            connection = self.server()
            assert isinstance(connection, Connection)
            connection.when_lost(on_lost)
            return connection

        return make

    async def _make_server(self) -> web.Server:
        agent = self.app.get(_AGENT)
        return _Server(
            await super()._make_server(), may_ask=lambda uid: not agent or uid in _users(agent)
        )
