"""The HTTP server: who may ask, which operation is meant, and how long one may take to say so."""

import logging
import os
import re
import socket as sockets
import struct
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from loader.agent import Agent
from loader.api.answers import problem_answer, refusal_of
from loader.api.operations import OPERATIONS, Call, Operation
from loader.api.reading import BODY_BYTES, read_body, read_instance, read_query
from loader.exposition import measuring
from loader.problems import MEDIA_TYPE, Refused
from loader.shapes import NothingAsked

__all__ = ["Runner", "application"]

log = logging.getLogger(__name__)

HEAD_SECONDS = 30.0
"""That a connection may be idle, or take for a request's head. More than the 15 that aiohttp's
clients keep theirs, so that it is the client who ends it, and not in the middle of a request."""

SHUTDOWN_SECONDS = 5.0
"""That requests under way get when the agent stops."""

_AGENT: web.AppKey[Agent] = web.AppKey("agent", Agent)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def application(agent: Agent) -> web.Application:
    """The HTTP API over an agent."""
    app = web.Application(
        middlewares=[measuring(agent.metrics), _answer], client_max_size=BODY_BYTES
    )
    app[_AGENT] = agent
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
        _check_who_asks(request)
        return await handler(request)
    except Refused as refused:
        return problem_answer(refused)


def _check_who_asks(request: web.Request) -> None:
    transport = request.transport
    if transport is None:
        raise ConnectionResetError
    uid = _peer_uid(transport.get_extra_info("socket"))
    if uid not in {0, os.geteuid()} | request.app[_AGENT].config.uids:
        raise Refused(
            "forbidden",
            f"user {uid} may not use the agent: add it to `users` in [api] of its configuration",
        )


def _peer_uid(connection: Any) -> int:
    credentials = connection.getsockopt(sockets.SOL_SOCKET, sockets.SO_PEERCRED, 12)
    _pid, uid, _gid = struct.unpack("iII", credentials)
    return int(uid)


class _Connection(RequestHandler):
    """A connection to a client. Also what never gets to an operation fails with a problem."""

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        if isinstance(resp, web.HTTPException) and resp.content_type != MEDIA_TYPE:
            resp = problem_answer(refusal_of(resp, request))
        return await super().finish_response(request, resp, start_time)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """The answer to what is no HTTP, and to what the agent failed at."""
        if status < 500:
            log.info("a request that is no HTTP: %r", message)
            refused = Refused("malformed-request", f"the request is malformed: {message}")
        else:
            log.error("%s %s failed", request.method, request.rel_url.raw_path, exc_info=exc)
            refused = Refused("internal-error", "the agent failed at this; its log says how")
        if request.writer.output_size > 0:
            raise ConnectionError("a part of the answer is out already")
        answer = problem_answer(refused)
        answer.force_close()
        return answer


class _Server(web.Server):
    def __call__(self) -> RequestHandler:
        return _Connection(
            self,
            loop=self._loop,
            access_log=None,  # type: ignore[arg-type]
            keepalive_timeout=HEAD_SECONDS,
            auto_decompress=False,
        )


class Runner(web.AppRunner):
    """Serves an application whose every failure is a problem."""

    def __init__(self, app: web.Application) -> None:
        super().__init__(app, shutdown_timeout=SHUTDOWN_SECONDS)

    async def _make_server(self) -> web.Server:
        made = await super()._make_server()
        return _Server(made.request_handler, request_factory=made.request_factory)
