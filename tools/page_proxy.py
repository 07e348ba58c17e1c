"""The page on localhost: hands requests on to a transceiver's HTTP, and adds nothing to them.

Browsers give a microphone to pages from https or localhost only. Media does not pass here.
"""

import asyncio
import errno
import signal
import socket
from contextlib import ExitStack

import aiohttp
from aiohttp import web
from multidict import CIMultiDict
from yarl import URL

from loader.errors import ShuntError

__all__ = ["listen", "serve"]

# RFC 9110 section 7.6.1; and what belongs to one connection's framing.
HOP_BY_HOP = frozenset(
    [
        *("connection", "content-length", "host", "keep-alive", "proxy-authenticate"),
        *("proxy-authorization", "te", "trailer", "transfer-encoding", "upgrade"),
    ]
)


def listen(port: int) -> list[socket.socket]:
    """Take *port* on 127.0.0.1 and, where there is one, on ::1; before anything else is built.

    Raises ShuntError if the port is in use.
    """
    with ExitStack() as taken:
        sockets = []
        for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
            try:
                listening = taken.enter_context(socket.socket(family, socket.SOCK_STREAM))
                listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listening.bind((address, port))
                listening.listen()
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    raise ShuntError(
                        f"port {port} on {address} is in use",
                        "End what uses it, or choose another with --port.",
                    ) from None
                if family == socket.AF_INET6:
                    continue  # a host without IPv6
                raise ShuntError(f"cannot listen on {address}:{port}: {error.strerror}") from None
            sockets.append(listening)
        taken.pop_all()
        return sockets


async def serve(sockets: list[socket.socket], upstream: str) -> None:
    """Hand on requests to *upstream* (an origin) until SIGINT or SIGTERM."""
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with aiohttp.ClientSession(auto_decompress=False) as client:

        async def hand_on(request: web.Request) -> web.Response:
            try:
                async with client.request(
                    request.method,
                    URL(upstream + request.raw_path, encoded=True),
                    headers=_end_to_end(request.headers),
                    data=await request.read(),
                    allow_redirects=False,
                ) as answer:
                    return web.Response(
                        status=answer.status,
                        headers=_end_to_end(answer.headers),
                        body=await answer.read(),
                    )
            except aiohttp.ClientError as error:
                return web.Response(status=502, text=f"{upstream} does not answer: {error}\n")

        app = web.Application()
        app.router.add_route("*", "/{path:.*}", hand_on)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        try:
            for listening in sockets:
                await web.SockSite(runner, listening).start()
            await stop.wait()
        finally:
            await runner.cleanup()


def _end_to_end(headers: "aiohttp.typedefs.LooseHeaders") -> CIMultiDict[str]:
    given = CIMultiDict(headers)
    named = {name.strip().lower() for name in given.get("Connection", "").split(",")}
    return CIMultiDict(
        (name, value)
        for name, value in given.items()
        if name.lower() not in HOP_BY_HOP and name.lower() not in named
    )
