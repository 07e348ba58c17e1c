"""The agent's HTTP API: JSON over a Unix socket, to those whose credentials allow it.

What is asked for is `agent`'s to do; here it is only read, checked for its form, and answered.
"""

import json
import os
import socket as sockets
import struct
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web
from aiohttp.http_exceptions import PayloadEncodingError

from loader.agent import Agent
from loader.exposition import measuring, telling
from loader.table import LEASE_SECONDS, Refused

__all__ = ["application"]

_BODY_LIMIT = 64 * 1024

_AGENT: web.AppKey[Agent] = web.AppKey("agent", Agent)


@web.middleware
async def _answer(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Only to those who may ask, and every failure as one sentence of JSON."""
    transport = request.transport
    if transport is None:
        raise ConnectionResetError
    allowed = {0, os.geteuid()} | request.app[_AGENT].config.uids
    if _peer_uid(transport.get_extra_info("socket")) not in allowed:
        return web.json_response({"error": "this user may not use the agent"}, status=403)
    try:
        return await handler(request)
    except Refused as refused:
        return web.json_response({"error": refused.why}, status=refused.status)
    except web.HTTPException as error:
        return web.json_response({"error": error.reason}, status=error.status)


def _peer_uid(connection: Any) -> int:
    credentials = connection.getsockopt(sockets.SOL_SOCKET, sockets.SO_PEERCRED, 12)
    _pid, uid, _gid = struct.unpack("iII", credentials)
    return int(uid)


async def _body(request: web.Request) -> dict[str, Any]:
    try:
        body = json.loads((await request.read()).decode())
    except (ValueError, RecursionError):  # besides syntax: encoding, depth, numbers without end
        raise Refused(400, "the body is not JSON") from None
    except (web.RequestPayloadError, PayloadEncodingError):
        raise Refused(400, "the body cannot be decoded") from None
    if not isinstance(body, dict):
        raise Refused(400, "the body is not a JSON object")
    return body


def _instance(request: web.Request) -> str:
    instance = request.headers.get("Shunt-Instance")
    if instance is None:
        raise Refused(400, "the header Shunt-Instance is missing")
    return instance


async def _put_transceiver(request: web.Request) -> web.Response:
    agent = request.app[_AGENT]
    registered, reachable = await agent.register(request.match_info["id"], await _body(request))
    answer = {
        "id": registered.lease.id,
        "lease_s": LEASE_SECONDS,
        "reachable": reachable,
        "vips": [{"address": v.address, "port": v.port} for v in agent.config.vips],
    }
    return web.json_response(answer, status=201 if registered.new else 200)


async def _delete_transceiver(request: web.Request) -> web.Response:
    request.app[_AGENT].deregister(request.match_info["id"], _instance(request))
    return web.Response(status=204)


async def _put_route(request: web.Request) -> web.Response:
    ufrag = request.match_info["ufrag"]
    body = await _body(request)
    transceiver = body.get("transceiver")
    if not isinstance(transceiver, str):
        raise Refused(400, "transceiver is missing")
    checks = body.get("checks", True)
    if not isinstance(checks, bool):
        raise Refused(400, "checks must be true or false")
    request.app[_AGENT].add_route(
        ufrag, transceiver=transceiver, instance=_instance(request), checks=checks
    )
    return web.json_response(
        {"ufrag": ufrag, "transceiver": transceiver, "checks": checks}, status=201
    )


async def _delete_route(request: web.Request) -> web.Response:
    request.app[_AGENT].remove_route(request.match_info["ufrag"], instance=_instance(request))
    return web.Response(status=204)


async def _get_routes(request: web.Request) -> web.Response:
    return web.json_response(request.app[_AGENT].routes(request.query.get("transceiver")))


async def _ready(request: web.Request) -> web.Response:
    why = request.app[_AGENT].not_ready()
    if why:
        raise Refused(503, why)
    return web.json_response({"ready": True})


def _reader(read: Callable[[Agent], dict[str, Any]]) -> Any:
    async def handler(request: web.Request) -> web.Response:
        return web.json_response(read(request.app[_AGENT]))

    return handler


def application(agent: Agent) -> web.Application:
    """The HTTP API over an agent."""
    app = web.Application(
        middlewares=[measuring(agent.metrics), _answer], client_max_size=_BODY_LIMIT
    )
    app[_AGENT] = agent
    app.add_routes(
        [
            web.put("/v1/transceivers/{id}", _put_transceiver),
            web.delete("/v1/transceivers/{id}", _delete_transceiver),
            web.put("/v1/routes/{ufrag:.+}", _put_route),
            web.delete("/v1/routes/{ufrag:.+}", _delete_route),
            web.get("/v1/transceivers", _reader(Agent.transceivers)),
            web.get("/v1/routes", _get_routes),
            web.get("/v1/flows", _reader(Agent.flows)),
            web.get("/v1/counters", _reader(Agent.counters)),
            web.get("/healthz", _reader(lambda agent: {"alive": True})),
            web.get("/readyz", _ready),
            web.get("/metrics", telling(agent.metrics)),
        ]
    )
    return app
