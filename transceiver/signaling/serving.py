"""Connections to signaling: how many one address may have, and how long they may be idle."""

import asyncio
from collections import Counter

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from transceiver.signaling.addresses import site_of
from transceiver.signaling.calls import Limits

__all__ = ["Runner"]

IDLE_SECONDS = 30.0
"""That a connection may be idle, or take for a request's head. Twice what aiohttp's clients keep
theirs, so that it is the client who ends it, and not we in the middle of a request."""

STOP_SECONDS = 1.0
"""That requests under way get when the transceiver stops."""


class Runner(web.AppRunner):
    """Serves an application to as many as *limits* say."""

    def __init__(self, app: web.Application, limits: Limits) -> None:
        super().__init__(
            app, access_log=None, shutdown_timeout=STOP_SECONDS, keepalive_timeout=IDLE_SECONDS
        )
        self._limits = limits

    async def _make_server(self) -> web.Server:
        made = await super()._make_server()
        return _Server(made, self._limits)


class _Server(web.Server):
    def __init__(self, made: web.Server, limits: Limits) -> None:
        # There is no other way to have the options than to take them from what aiohttp has made.
        super().__init__(made.request_handler, request_factory=made.request_factory, **made._kwargs)
        self._limits = limits
        self._sites: dict[RequestHandler, str] = {}
        self._counts: Counter[str] = Counter()

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
