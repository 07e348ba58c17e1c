"""Stands in for the relay's agent, in a process of its own: keeps routes in a set, steers nothing.

    python -m tools.bench.calls.agent --socket PATH --vip ADDR:PORT

A transceiver asks it over the same socket and with the same requests as the real one, so what
these cost it is measured. What they cost the real agent is `shunt bench agent`'s to say.
"""

import argparse
import asyncio
import signal
from pathlib import Path

from aiohttp import web

from loader.digest import digest


class _Agent:
    def __init__(self, vip: str) -> None:
        host, _, port = vip.rpartition(":")
        self._vip = {"address": host, "port": int(port)}
        self._routes: dict[str, str] = {}

    def app(self) -> web.Application:
        app = web.Application()
        app.add_routes(
            [
                web.put("/v1/transceivers/{id}", self._register),
                web.delete("/v1/transceivers/{id}", self._nothing),
                web.put("/v1/routes/{ufrag}", self._add),
                web.delete("/v1/routes/{ufrag}", self._remove),
                web.get("/v1/routes", self._list),
            ]
        )
        return app

    async def _register(self, request: web.Request) -> web.Response:
        return web.json_response(
            {
                "id": request.match_info["id"],
                "lease_s": 15.0,
                "draining": False,
                "digest": digest(self._routes),
                "vips": [self._vip],
            },
            status=201,
        )

    async def _add(self, request: web.Request) -> web.Response:
        body = await request.json()
        self._routes[request.match_info["ufrag"]] = body["transceiver"]
        return web.json_response({}, status=201)

    async def _remove(self, request: web.Request) -> web.Response:
        self._routes.pop(request.match_info["ufrag"], None)
        return web.Response(status=204)

    async def _list(self, _request: web.Request) -> web.Response:
        routes = [
            {"ufrag": ufrag, "transceiver": transceiver, "slots": []}
            for ufrag, transceiver in self._routes.items()
        ]
        return web.json_response({"routes": routes, "next": None})

    async def _nothing(self, _request: web.Request) -> web.Response:
        return web.Response(status=204)


async def _serve(socket: Path, vip: str) -> None:
    runner = web.AppRunner(_Agent(vip).app(), access_log=None)
    await runner.setup()
    await web.UnixSite(runner, str(socket)).start()
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await stop.wait()
    await runner.cleanup()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--socket", type=Path, required=True)
    parser.add_argument("--vip", required=True)
    arguments = parser.parse_args()
    asyncio.run(_serve(arguments.socket, arguments.vip))


if __name__ == "__main__":
    main()
