"""For who runs a transceiver: its metrics, its health, and the story of a session."""

import asyncio
from collections.abc import Callable
from typing import Any

from aiohttp import hdrs, web
from aiohttp.typedefs import Middleware
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.openmetrics import exposition as openmetrics

from transceiver.metrics import Metrics
from transceiver.sessionid import owner_of
from transceiver.sessions import Sessions
from transceiver.signaling.calls import Calls
from transceiver.signaling.http import Handler, Refused

__all__ = ["measuring", "routes"]

OPENMETRICS = openmetrics.CONTENT_TYPE_LATEST.partition(";")[0]

UNMATCHED = "unmatched"


def routes(
    sessions: Sessions, calls: Calls, metrics: Metrics, is_registered: Callable[[], bool]
) -> list[web.RouteDef]:
    """`/healthz` for anybody; `/metrics` and `/v1/sessions/…` for who has the API key."""

    async def health(_request: web.Request) -> web.Response:
        return web.json_response({"sessions": len(sessions), "registered": is_registered()})

    async def tell(request: web.Request) -> web.StreamResponse:
        calls.operator(request)
        write: Callable[[Any], bytes] = generate_latest
        content_type = CONTENT_TYPE_PLAIN_0_0_4
        # The library's own choice between the two fails with versions that are no numbers.
        if OPENMETRICS in request.headers.get(hdrs.ACCEPT, ""):
            write, content_type = openmetrics.generate_latest, openmetrics.CONTENT_TYPE_LATEST
        body = await asyncio.to_thread(write, metrics.scrape())
        return web.Response(body=body, headers={hdrs.CONTENT_TYPE: content_type})

    async def explain(request: web.Request) -> web.Response:
        asker = calls.operator(request)
        name = request.match_info["name"]
        told = sessions.describe(name)
        if told is None and owner_of(name) is not None:
            told = calls.find(asker, name).to_json()
        if told is None:
            raise Refused(404, "no session has or had that ufrag of late", code="session_not_found")
        return web.json_response(told)

    return [
        web.get("/healthz", health),
        web.get("/metrics", tell),
        web.get("/v1/sessions/{name:.+}", explain),  # a ufrag may have slashes in it
    ]


def measuring(metrics: Metrics) -> Middleware:
    """A middleware, to be the outermost, that counts and times answers."""

    @web.middleware
    async def measure(request: web.Request, handler: Handler) -> web.StreamResponse:
        begun = metrics.clock()
        response = await handler(request)
        metrics.answered(_operation(request), response.status, metrics.clock() - begun)
        return response

    return measure


def _operation(request: web.Request) -> str:
    """The operation, with names for values: what is asked for by paths and methods of an asker's
    own making is all one, or he could make any number of series."""
    resource = request.match_info.route.resource
    if resource is None or request.method not in METHODS:
        return UNMATCHED
    return f"{request.method} {resource.canonical}"


METHODS = frozenset({"DELETE", "GET", "OPTIONS", "PATCH", "POST"})
