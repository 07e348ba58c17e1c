"""An agent with the API of the real one, and no relay: routes are kept in a dict."""

import json
from pathlib import Path
from typing import Self

from aiohttp import web

from loader.digest import digest
from loader.problems import Refused
from transceiver.stun import Address


class FakeAgent:
    """Serves on a Unix socket; what it holds and how it answers is for the test to see and set."""

    def __init__(self, socket: Path, *, lease: float = 15.0) -> None:
        self.socket = str(socket)
        self.lease = lease
        self.vips: list[Address] = []
        self.transceivers: dict[str, dict[str, object]] = {}
        self.routes: dict[str, str] = {}
        self.added: list[str] = []
        self.restarts: dict[str, str | None] = {}
        """Of each route, the one it was to take the place of."""
        self.registered = 0
        """How often transceivers have registered or renewed."""
        self.flows: list[dict[str, object]] = []
        self.events: list[dict[str, object]] = []
        """What it tells of each."""
        self.asked_for_transceivers = 0
        """How often it was asked for a list of them."""
        self.listed = 0
        """How often it was asked for a list of routes."""
        self.refuse_routes: Refused | None = None
        """What new routes are refused with."""
        self.draining = False
        """Whether transceivers are told that they get no new routes."""
        self.superseded = False
        """Whether another instance has taken the id."""
        self.superseded_ids: set[str] = set()
        """Ids that another instance has taken, if not all."""
        self._runner: web.AppRunner | None = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.stop()

    async def start(self) -> None:
        app = web.Application()
        app.router.add_get("/v1/transceivers", self._list_transceivers)
        app.router.add_put("/v1/transceivers/{id}", self._register)
        app.router.add_delete("/v1/transceivers/{id}", self._deregister)
        app.router.add_put("/v1/routes/{ufrag}", self._add)
        app.router.add_delete("/v1/routes/{ufrag}", self._remove)
        app.router.add_get("/v1/routes", self._list)
        app.router.add_get("/v1/flows", self._list_flows)
        app.router.add_get("/v1/events", self._tell_events)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        await web.UnixSite(self._runner, self.socket).start()

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    def lose_all(self) -> None:
        """As after a restart with no pins."""
        self.transceivers.clear()
        self.routes.clear()

    async def _register(self, request: web.Request) -> web.Response:
        name, body = request.match_info["id"], await request.json()
        known = self.transceivers.get(name)
        if self.superseded or name in self.superseded_ids:
            return _refused(Refused("superseded", "another process has come"))
        self.transceivers[name] = body
        self.registered += 1
        vips = self.vips or [(body["address"], body["port"])]
        answer = {
            "id": name,
            "lease_s": self.lease,
            "draining": self.draining,
            "digest": digest(u for u, transceiver in self.routes.items() if transceiver == name),
            "vips": [{"address": host, "port": port} for host, port in vips],
        }
        return web.json_response(answer, status=200 if known else 201)

    async def _list_flows(self, _request: web.Request) -> web.Response:
        return web.json_response({"flows": self.flows, "count": len(self.flows), "next": None})

    async def _tell_events(self, _request: web.Request) -> web.Response:
        told = (
            f"id: {number}\nevent: {event['kind']}\ndata: {json.dumps(event)}\n\n"
            for number, event in enumerate(self.events)
        )
        return web.Response(text="".join(told), content_type="text/event-stream")

    async def _list_transceivers(self, _request: web.Request) -> web.Response:
        self.asked_for_transceivers += 1
        told = [{"id": id, **body} for id, body in self.transceivers.items()]
        return web.json_response({"transceivers": told})

    async def _deregister(self, request: web.Request) -> web.Response:
        self.transceivers.pop(request.match_info["id"], None)
        return web.Response(status=204)

    async def _add(self, request: web.Request) -> web.Response:
        if self.refuse_routes is not None:
            return _refused(self.refuse_routes)
        body = await request.json()
        if body["transceiver"] not in self.transceivers:
            return _refused(Refused("unknown-transceiver", "no lease"))
        self.routes[request.match_info["ufrag"]] = body["transceiver"]
        self.restarts[request.match_info["ufrag"]] = body.get("restarts")
        self.added.append(request.match_info["ufrag"])
        return web.json_response({}, status=201)

    async def _remove(self, request: web.Request) -> web.Response:
        self.routes.pop(request.match_info["ufrag"], None)
        return web.Response(status=204)

    async def _list(self, request: web.Request) -> web.Response:
        wanted = request.query.get("transceiver")
        routes = [
            {"ufrag": ufrag, "transceiver": transceiver, "slots": []}
            for ufrag, transceiver in self.routes.items()
            if wanted in (None, transceiver)
        ]
        self.listed += 1
        return web.json_response({"routes": routes, "next": None})


def _refused(refused: Refused) -> web.Response:
    return web.json_response(
        refused.to_json(), status=refused.status, content_type="application/problem+json"
    )
