"""What answering costs: the agent's HTTP server, reading a body of JSON and saying 201, and no
more. `python -m tools.bench.trivial SOCKET`."""

import asyncio
import json
import sys

from aiohttp import web

__all__ = ["main"]


async def _put(request: web.Request) -> web.Response:
    body = json.loads(await request.read())
    return web.json_response(
        {"ufrag": request.match_info["ufrag"], "transceiver": body["transceiver"]}, status=201
    )


async def _delete(_request: web.Request) -> web.Response:
    return web.Response(status=204)


async def main(socket: str) -> None:
    """Serve, until this is killed."""
    app = web.Application()
    app.add_routes([web.put("/v1/routes/{ufrag}", _put), web.delete("/v1/routes/{ufrag}", _delete)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.UnixSite(runner, socket).start()
    print("ready: ", file=sys.stderr, flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
