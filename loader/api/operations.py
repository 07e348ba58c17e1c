"""Every operation of the agent's API: how it is asked for, what it does, how it answers.

The routes of the HTTP server and the description of the API are both made of this list, so that
neither knows of something that the other does not.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from aiohttp import web
from msgspec import Struct

from loader import shapes
from loader.agent import Agent
from loader.api.answers import json_answer
from loader.api.stream import Streams
from loader.configfile import BadConfig
from loader.digest import written
from loader.errors import ShuntError
from loader.exposition import telling
from loader.problems import PROBLEMS, ProblemType, Refused, quoted
from loader.table import LEASE_SECONDS

__all__ = ["DESCRIPTION", "OPERATIONS", "STREAMS", "Call", "Operation", "Text"]

_AT_ONCE = 250  # of a list: some milliseconds' work

_ALWAYS = ("malformed-request", "malformed-query", "unauthorized", "forbidden", "internal-error")
_OF_PATHS = (("id", "bad-id"), ("ufrag", "bad-ufrag"))
_BODY = ("malformed-body", "body-too-large", "unsupported-media-type", "request-timeout")
_MINE = ("malformed-header", "unknown-transceiver", "superseded", "not-yours")


@dataclass(frozen=True, slots=True)
class Call:
    """A request whose form is right. *path*: the parameters in its path; *body* and *query* are of
    the operation's shapes; *instance* is empty for operations that do not ask for it."""

    request: web.Request
    agent: Agent
    path: Mapping[str, str]
    body: Any
    query: Any
    instance: str


@dataclass(frozen=True, slots=True)
class Text:
    """An answer that is not JSON: of one of these media types."""

    media_types: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One operation. *answers*: by status, what the answer holds, or None for nothing; *headers*:
    fields that it reads if they are there, and their types; *instance*: whether it asks who is
    speaking; *operator*: whether, over the Unix socket, it is for root and the agent's own user
    alone; *problems*: those besides what any operation may have."""

    name: str
    method: str
    path: str
    summary: str
    do: Callable[[Call], Awaitable[web.StreamResponse]]
    answers: Mapping[int, type[Struct] | Text | None]
    body: type[Struct] | None = None
    query: type[Struct] | None = None
    headers: tuple[tuple[str, Any], ...] = ()
    instance: bool = False
    operator: bool = False
    problems: tuple[str, ...] = ()

    @property
    def all_problems(self) -> tuple[str, ...]:
        """Every problem that it may have."""
        of_path = tuple(problem for name, problem in _OF_PATHS if f"{{{name}}}" in self.path)
        return (*_ALWAYS, *of_path, *self.problems)


async def _register(call: Call) -> web.Response:
    registered, reachable = await call.agent.register(call.path["id"], call.body)
    answer = shapes.Registered(
        id=registered.lease.id,
        lease_s=LEASE_SECONDS,
        reachable=reachable,
        vips=[shapes.Vip(address=vip.address, port=vip.port) for vip in call.agent.config.vips],
        draining=call.agent.is_draining(registered.lease),
        routes=len(registered.lease.routes),
        digest=written(registered.lease.digest),
    )
    return json_answer(answer, status=201 if registered.new else 200)


async def _deregister(call: Call) -> web.Response:
    call.agent.deregister(call.path["id"], call.instance)
    return web.Response(status=204)


async def _add_route(call: Call) -> web.Response:
    ufrag, asked = call.path["ufrag"], call.body
    new = call.agent.add_route(
        ufrag,
        transceiver=asked.transceiver,
        instance=call.instance,
        checks=asked.checks,
        restarts=asked.restarts,
    )
    made = shapes.RouteMade(ufrag=ufrag, transceiver=asked.transceiver, checks=asked.checks)
    return json_answer(made, status=201 if new else 200)


async def _remove_route(call: Call) -> web.Response:
    call.agent.remove_route(call.path["ufrag"], instance=call.instance)
    return web.Response(status=204)


async def _transceivers(call: Call) -> web.Response:
    return json_answer(call.agent.transceivers())


async def _events(call: Call) -> web.StreamResponse:
    streams = call.request.app[STREAMS]
    return await streams.tell(call.request, kinds=call.query.kinds, follow=call.query.follow)


async def _reload(call: Call) -> web.Response:
    try:
        reloaded = await call.agent.reloading.reload()
    except BadConfig as bad:
        faults = [
            {"what": str(fault), "cure": fault.cure, "key": fault.key} for fault in bad.faults
        ]
        raise Refused("configuration-refused", bad.what, faults=faults) from None
    except ShuntError as error:
        faults = [{"what": error.what, "cure": error.cure, "key": ""}]
        raise Refused("configuration-refused", error.what, faults=faults) from None
    return json_answer(
        shapes.Reloaded(changed=list(reloaded.changed), restart=list(reloaded.restart))
    )


async def _openapi(call: Call) -> web.Response:
    return web.Response(body=call.request.app[DESCRIPTION], content_type="application/json")


async def _drain(call: Call) -> web.Response:
    return json_answer(
        call.agent.drains.begin(call.path.get("id"), deadline_s=call.body.deadline_s)
    )


async def _drain_progress(call: Call) -> web.Response:
    return json_answer(call.agent.drains.progress(call.path.get("id")))


async def _call_off_drain(call: Call) -> web.Response:
    call.agent.drains.call_off(call.path.get("id"))
    return web.Response(status=204)


async def _routes(call: Call) -> web.Response:
    asked = call.query
    read = partial(call.agent.routes, transceiver=asked.transceiver, slots=asked.slots)
    return json_answer(await _list("routes", read, asked))


async def _flows(call: Call) -> web.Response:
    return json_answer(await _list("flows", call.agent.flows, call.query))


async def _list(
    name: str, read: Callable[..., dict[str, Any]], asked: shapes.FlowsQuery | shapes.RoutesQuery
) -> dict[str, Any]:
    """A page, read in pieces, between which others are served."""
    answer = read(after=asked.after, limit=min(asked.limit, _AT_ONCE))
    while answer["next"] is not None and (left := asked.limit - len(answer[name])):
        await asyncio.sleep(0)
        piece = read(after=answer["next"], limit=min(left, _AT_ONCE))
        answer = {**piece, name: answer[name] + piece[name]}
    return answer


async def _counters(call: Call) -> web.Response:
    return json_answer(call.agent.counters())


async def _metrics(call: Call) -> web.StreamResponse:
    return await telling(call.agent.metrics)(call.request)


async def _health(call: Call) -> web.Response:
    return json_answer(shapes.Health(alive=True))


async def _ready(call: Call) -> web.Response:
    if why := call.agent.not_ready():
        raise Refused("not-ready", why)
    if call.agent.draining:
        raise Refused("draining", "the relay is draining: it takes no new routes")
    return json_answer(shapes.Ready(ready=True))


async def _problems(call: Call) -> web.Response:
    return json_answer(shapes.ProblemTypes(problems=[_told(each) for each in PROBLEMS.values()]))


async def _problem(call: Call) -> web.Response:
    name = call.path["name"]
    if name not in PROBLEMS:
        raise Refused("not-found", f"there is no problem {quoted(name)}: /problems lists them")
    return json_answer(_told(PROBLEMS[name]))


def _told(problem: ProblemType) -> shapes.ProblemType:
    return shapes.ProblemType(
        type=problem.uri,
        title=problem.title,
        status=problem.status,
        to_do=problem.to_do,
        members=list(problem.members),
    )


DESCRIPTION: web.AppKey[bytes] = web.AppKey("description", bytes)
"""The description of the API as it is served."""

STREAMS: web.AppKey[Streams] = web.AppKey("streams", Streams)
"""The readers of events."""

OPERATIONS: tuple[Operation, ...] = (
    Operation(
        name="register",
        method="PUT",
        path="/v1/transceivers/{id}",
        summary="Make a transceiver's lease, or renew it",
        do=_register,
        body=shapes.Registration,
        answers={201: shapes.Registered, 200: shapes.Registered},
        problems=(
            *(*_BODY, "address-not-allowed", "address-of-the-relay"),
            *("address-not-served", "superseded", "transceiver-map-full"),
        ),
    ),
    Operation(
        name="deregister",
        method="DELETE",
        path="/v1/transceivers/{id}",
        summary="End a transceiver's lease, its routes and their flows",
        do=_deregister,
        instance=True,
        answers={204: None},
        problems=_MINE,
    ),
    Operation(
        name="transceivers",
        method="GET",
        path="/v1/transceivers",
        summary="The transceivers that have a lease",
        do=_transceivers,
        answers={200: shapes.Transceivers},
    ),
    Operation(
        name="add_route",
        method="PUT",
        path="/v1/routes/{ufrag}",
        summary="Make a route; once this is answered, the relay steers by it",
        do=_add_route,
        body=shapes.RouteAsked,
        instance=True,
        answers={201: shapes.RouteMade, 200: shapes.RouteMade},
        problems=(
            *(*_BODY, *_MINE, "ufrag-taken", "route-differs"),
            *("quota-exceeded", "route-map-full", "draining", "unknown-route"),
        ),
    ),
    Operation(
        name="remove_route",
        method="DELETE",
        path="/v1/routes/{ufrag}",
        summary="Remove a route and close its flows",
        do=_remove_route,
        instance=True,
        answers={204: None},
        problems=_MINE,
    ),
    Operation(
        name="routes",
        method="GET",
        path="/v1/routes",
        summary="The routes, with the slots of their flows",
        do=_routes,
        query=shapes.RoutesQuery,
        answers={200: shapes.Routes},
    ),
    Operation(
        name="drain_transceiver",
        method="POST",
        path="/v1/transceivers/{id}/drain",
        summary="Give the transceiver no new routes, until it is empty or a deadline has passed",
        do=_drain,
        body=shapes.DrainAsked,
        answers={200: shapes.Draining},
        problems=(*_BODY, "unknown-transceiver"),
    ),
    Operation(
        name="transceiver_drain",
        method="GET",
        path="/v1/transceivers/{id}/drain",
        summary="How far the drain of the transceiver is",
        do=_drain_progress,
        answers={200: shapes.Draining},
        problems=("unknown-transceiver",),
    ),
    Operation(
        name="call_off_drain_of_transceiver",
        method="DELETE",
        path="/v1/transceivers/{id}/drain",
        summary="Call the drain of the transceiver off",
        do=_call_off_drain,
        answers={204: None},
        problems=("unknown-transceiver",),
    ),
    Operation(
        name="drain_relay",
        operator=True,
        method="POST",
        path="/v1/drain",
        summary="Give the relay no new routes, until it is empty or a deadline has passed",
        do=_drain,
        body=shapes.DrainAsked,
        answers={200: shapes.Draining},
        problems=_BODY,
    ),
    Operation(
        name="relay_drain",
        method="GET",
        path="/v1/drain",
        summary="How far the drain of the relay is",
        do=_drain_progress,
        answers={200: shapes.Draining},
    ),
    Operation(
        name="call_off_drain_of_relay",
        operator=True,
        method="DELETE",
        path="/v1/drain",
        summary="Call the drain of the relay off",
        do=_call_off_drain,
        answers={204: None},
    ),
    Operation(
        name="flows",
        method="GET",
        path="/v1/flows",
        summary="The flows, by slot",
        do=_flows,
        query=shapes.FlowsQuery,
        answers={200: shapes.Flows},
    ),
    Operation(
        name="counters",
        method="GET",
        path="/v1/counters",
        summary="Packets relayed, passed, and dropped by reason",
        do=_counters,
        answers={200: shapes.Counters},
    ),
    Operation(
        name="events",
        method="GET",
        path="/v1/events",
        summary="What befalls sessions, as it does (Server-Sent Events); Last-Event-ID resumes",
        do=_events,
        query=shapes.EventsQuery,
        headers=(("Last-Event-ID", shapes.EventId),),
        answers={200: Text(("text/event-stream",))},
        problems=("malformed-header", "too-many-readers"),
    ),
    Operation(
        name="reload",
        operator=True,
        method="POST",
        path="/v1/reload",
        summary="Read the configuration again, and change what can change without a restart",
        do=_reload,
        answers={200: shapes.Reloaded},
        problems=("configuration-refused",),
    ),
    Operation(
        name="metrics",
        method="GET",
        path="/metrics",
        summary="What Prometheus scrapes, as OpenMetrics to those that ask for it",
        do=_metrics,
        answers={200: Text(("text/plain", "application/openmetrics-text"))},
    ),
    Operation(
        name="health",
        method="GET",
        path="/healthz",
        summary="Whether the agent lives",
        do=_health,
        answers={200: shapes.Health},
    ),
    Operation(
        name="ready",
        method="GET",
        path="/readyz",
        summary="Whether the relay can do its work",
        do=_ready,
        answers={200: shapes.Ready},
        problems=("not-ready", "draining"),
    ),
    Operation(
        name="openapi",
        method="GET",
        path="/openapi.json",
        summary="This description (OpenAPI 3.1)",
        do=_openapi,
        answers={200: Text(("application/json",))},
    ),
    Operation(
        name="problems",
        method="GET",
        path="/problems",
        summary="Every kind of failure",
        do=_problems,
        answers={200: shapes.ProblemTypes},
    ),
    Operation(
        name="problem",
        method="GET",
        path="/problems/{name}",
        summary="A kind of failure: what it means, and what to do",
        do=_problem,
        answers={200: shapes.ProblemType},
        problems=("not-found",),
    ),
)
"""Every operation."""
