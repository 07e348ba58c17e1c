"""Connections to signaling: how many one address may have, how long they may be idle, and what is
answered to what is no HTTP.
"""

import asyncio
import logging
from collections import Counter

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from transceiver.signaling.addresses import site_of
from transceiver.signaling.calls import Limits
from transceiver.signaling.http import Refused
from transceiver.signaling.whip import refusal

__all__ = ["Runner"]

IDLE_SECONDS = 30.0
"""That a connection may be idle, or take for a request's head. Twice what aiohttp's clients keep
theirs, so that it is the client who ends it, and not we in the middle of a request."""

STOP_SECONDS = 1.0
"""That requests under way get when the transceiver stops."""


log = logging.getLogger(__name__)


class Runner(web.AppRunner):
    """Serves an application to as many as *limits* say."""

    def __init__(self, app: web.Application, limits: Limits) -> None:
        super().__init__(
            app,
            access_log=None,
            auto_decompress=False,
            keepalive_timeout=IDLE_SECONDS,
            shutdown_timeout=STOP_SECONDS,
        )
        self._limits = limits

    async def _make_server(self) -> web.Server:
        made = await super()._make_server()
        return _Server(made, self._limits)


class _Connection(RequestHandler):
    """aiohttp's, but that strangers cannot fill the log: it tells only what we have failed at."""

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        if isinstance(exc, ConnectionError):
            log.debug("a client left while it asked")
        elif status < 500:
            log.debug("a request that is no HTTP: %r", message)
        else:
            log.error("%s %s failed", request.method, request.path, exc_info=exc)
        if request.writer.output_size > 0:
            raise ConnectionError("a part of the answer is out already")
        what = "the request is malformed" if status < 500 else "the transceiver failed at this"
        answer = refusal(Refused(status, what))
        answer.force_close()
        return answer


class _Server(web.Server):
    def __init__(self, made: web.Server, limits: Limits) -> None:
        # There is no other way to have the options than to take them from what aiohttp has made.
        super().__init__(made.request_handler, request_factory=made.request_factory, **made._kwargs)
        self._limits = limits
        self._sites: dict[RequestHandler, str] = {}
        self._counts: Counter[str] = Counter()

    def __call__(self) -> RequestHandler:
        return _Connection(self, loop=self._loop, **self._kwargs)

    def connection_made(self, handler: RequestHandler, transport: asyncio.Transport) -> None:
        super().connection_made(handler, transport)
        peer = transport.get_extra_info("peername")
        site = site_of(peer[0], self._limits.proxies) if isinstance(peer, tuple) else None
        if site is None:
            return  # a proxy's, or over a Unix socket: not one client's
        self._sites[handler] = site
        self._counts[site] += 1
        if self._counts[site] > self._limits.connections:
            # Once it has been begun, which is after this.
            self._loop.call_soon(transport.abort)

    def connection_lost(self, handler: RequestHandler, exc: BaseException | None = None) -> None:
        super().connection_lost(handler, exc)
        site = self._sites.pop(handler, None)
        if site is not None:
            self._counts[site] -= 1
            if not self._counts[site]:
                del self._counts[site]
