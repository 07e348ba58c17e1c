"""The agent as it runs: a process, its socket, its death, its restart, and what attacks it."""

import asyncio
import json
import os
import random
import re
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from loader.cache import SWITCH
from loader.client import AgentClient, AgentRefused, AgentUnavailable, Vip
from loader.config import AgentConfig
from loader.daemon import run, unload
from loader.digest import digest
from loader.errors import ShuntError
from loader.maps import Maps
from loader.pinned_set import LOADING
from loader.problems import PROBLEMS
from loader.reasons import REASONS
from loader.types import PIN_VERSION
from tests.loader.conftest import (
    FIRST_PORT,
    INSTANCE,
    LAST_PORT,
    OTHER_INSTANCE,
    ROOT,
    TRANSCEIVER,
    TRANSCEIVER6,
    VIP,
    VIP6,
    AgentProcess,
    Host,
    binding_request,
    eventually,
)
from tests.loader.versions import OTHER_PROGRAM, Version
from tools import netns
from tools.processes import identify

BODY: dict[str, Any] = {
    "instance": INSTANCE,
    "address": TRANSCEIVER,
    "port": 40000,
    "http": "http://198.18.1.11:8080",
    "capacity": 100,
}
GET = ("transceivers", "routes", "flows", "counters")


async def register(client: AgentClient, id: str = "x1", **change: Any) -> None:
    await client.register(id, **{**BODY, **change})


def ufrags(maps: Maps) -> set[str]:
    return {ufrag for ufrag, _route in maps.routes()}


def knock(agent: AgentProcess, ufrag: str, vip: Vip = VIP) -> None:
    """A Binding Request for *ufrag* from a fresh port of the client; returns when the relay has
    seen it."""

    def send() -> None:
        family = socket.AF_INET6 if ":" in vip.address else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as client:
            client.sendto(binding_request(ufrag), (vip.address, vip.port))

    def seen() -> int:
        counters = maps.counters()
        return counters.to_transceiver.packets + sum(counters.dropped.values())

    with Maps(agent.pins) as maps:
        before = seen()
        netns.run_in(agent.host.outside, send)
        eventually("the relay has seen it", lambda: seen() > before)


async def asked(socket: Path, method: str, path: str, **more: Any) -> tuple[int, Any]:
    """One request; the status and the parsed answer."""
    async with (
        aiohttp.ClientSession(connector=aiohttp.UnixConnector(path=str(socket))) as session,
        session.request(method, f"http://agent{path}", **more) as response,
    ):
        if response.status == 204:
            return response.status, None
        wanted = "application/json" if response.status < 400 else "application/problem+json"
        assert response.content_type == wanted
        return response.status, await response.json(content_type=wanted)


@pytest.fixture
async def client(shared_agent: AgentProcess) -> AsyncIterator[AgentClient]:
    """A client of the shared agent, which forgets all transceivers afterwards."""
    async with AgentClient(str(shared_agent.socket)) as connected:
        yield connected
        for transceiver in (await connected.transceivers())["transceivers"]:
            for instance in (INSTANCE, OTHER_INSTANCE):
                with suppress(AgentRefused):
                    await connected.deregister(transceiver["id"], instance=instance)


@pytest.fixture
def shared_maps(shared_agent: AgentProcess) -> Iterator[Maps]:
    with Maps(shared_agent.pins) as opened:
        yield opened


# The API.


async def test_registering_answers_with_lease_and_vips(client: AgentClient) -> None:
    lease = await client.register("x1", **BODY)

    assert lease.seconds == 15.0
    assert lease.vips == (VIP, VIP6)


async def test_the_first_time_is_201_and_renewing_200(
    client: AgentClient, shared_agent: AgentProcess
) -> None:
    path = "/v1/transceivers/renewer"

    first, answer = await asked(shared_agent.socket, "PUT", path, json={**BODY, "port": 41000})
    again, _ = await asked(shared_agent.socket, "PUT", path, json={**BODY, "port": 41000})

    assert (first, again) == (201, 200)
    assert answer["vips"] == [{"address": v.address, "port": v.port} for v in (VIP, VIP6)]


@pytest.mark.parametrize("ufrag", ["abcd", "++++", "////", "/abc", "abc/", "a//b", "Z" * 32])
async def test_a_route_is_in_the_map_when_its_201_arrives_and_gone_with_204(
    client: AgentClient, shared_maps: Maps, ufrag: str
) -> None:
    await register(client)

    await client.add_route(ufrag, transceiver="x1", instance=INSTANCE)
    assert ufrags(shared_maps) == {ufrag}
    nothing = {"packets": 0, "bytes": 0}
    assert (await client.routes())["routes"] == [
        {
            **{"ufrag": ufrag, "transceiver": "x1", "checks": True, "slots": []},
            **{"to_transceiver": nothing, "to_client": nothing},
        }
    ]

    await client.remove_route(ufrag, instance=INSTANCE)
    assert ufrags(shared_maps) == set()
    await client.remove_route(ufrag, instance=INSTANCE)


async def test_removing_a_route_closes_its_flows_at_once(
    client: AgentClient, shared_agent: AgentProcess
) -> None:
    await register(client)
    await client.add_route("abcd", transceiver="x1", instance=INSTANCE)
    for _ in range(3):
        await asyncio.to_thread(knock, shared_agent, "abcd")
    (route,) = (await client.routes(transceiver="x1"))["routes"]
    assert len(route["slots"]) == 3
    assert route["to_transceiver"]["packets"] == 3
    assert all(FIRST_PORT <= port <= LAST_PORT for port in route["slots"])

    await client.remove_route("abcd", instance=INSTANCE)

    states = {flow["port"]: flow["state"] for flow in (await client.flows())["flows"]}
    assert [states[port] for port in route["slots"]] == ["closing"] * 3


async def test_a_flow_is_told_with_all_that_is_known(
    client: AgentClient, shared_agent: AgentProcess
) -> None:
    await register(client)
    await client.add_route("told", transceiver="x1", instance=INSTANCE)
    await asyncio.to_thread(knock, shared_agent, "told")

    (flow,) = (f for f in (await client.flows())["flows"] if f["ufrag"] == "told")

    assert flow["client"].startswith("198.18.0.10:")
    assert (flow["vip"], flow["transceiver"], flow["state"]) == ("198.18.0.1:3478", "x1", "pending")
    assert flow["to_transceiver"]["bytes"] == 28 + len(binding_request("told"))
    assert flow["to_client"] == {"packets": 0, "bytes": 0}
    assert flow["validated"] is False
    assert 0 <= flow["idle_s"] < 5


@pytest.mark.parametrize("address", [TRANSCEIVER, TRANSCEIVER6])
@pytest.mark.parametrize("vip", [VIP, VIP6])
async def test_a_client_of_either_family_meets_a_transceiver_of_either(
    client: AgentClient, shared_agent: AgentProcess, vip: Vip, address: str
) -> None:
    await register(client, address=address)
    await client.add_route("meet", transceiver="x1", instance=INSTANCE)
    async with asyncio.timeout(5):
        while not (await client.transceivers())["transceivers"][0]["reachable"]:
            await register(client, address=address)

    await asyncio.to_thread(knock, shared_agent, "meet", vip)

    (flow,) = (f for f in (await client.flows())["flows"] if f["ufrag"] == "meet")
    client_address = "198.18.0.10" if vip is VIP else "[2001:db8:18::10]"
    inside = "198.18.1.1" if address == TRANSCEIVER else "[2001:db8:118::1]"
    assert flow["client"].startswith(f"{client_address}:")
    assert flow["inside"] == f"{inside}:{flow['port']}"
    assert flow["to_transceiver"]["packets"] == 1, "it was sent on"


async def test_a_route_without_checks_asks_no_client_for_an_answer(
    client: AgentClient, shared_agent: AgentProcess
) -> None:
    await register(client)
    await client.add_route("asks", transceiver="x1", instance=INSTANCE)
    await client.add_route("trusts", transceiver="x1", instance=INSTANCE, checks=False)
    for ufrag in ("asks", "trusts"):
        await asyncio.to_thread(knock, shared_agent, ufrag)

    checks = {route["ufrag"]: route["checks"] for route in (await client.routes())["routes"]}
    flows = (await client.flows())["flows"]

    assert checks == {"asks": True, "trusts": False}
    proven = {flow["ufrag"]: flow["validated"] for flow in flows if flow["ufrag"]}
    assert proven == {"asks": False, "trusts": True}


async def test_a_route_cannot_change_its_mind_about_checks(client: AgentClient) -> None:
    await register(client)
    await client.add_route("abcd", transceiver="x1", instance=INSTANCE)

    with pytest.raises(AgentRefused, match="remove it first") as error:
        await client.add_route("abcd", transceiver="x1", instance=INSTANCE, checks=False)

    assert error.value.status == 409


async def test_a_transceiver_is_told_with_its_lease(client: AgentClient) -> None:
    await register(client)
    await client.add_route("abcd", transceiver="x1", instance=INSTANCE)

    (told,) = (await client.transceivers())["transceivers"]

    assert told["id"] == "x1"
    assert (told["address"], told["port"], told["routes"]) == (TRANSCEIVER, 40000, 1)
    assert 14 < told["lease_s"] <= 15


async def test_counters_name_modes_directions_and_every_reason(
    client: AgentClient, shared_agent: AgentProcess
) -> None:
    before = (await client.counters())["dropped"]["no_route"]
    await asyncio.to_thread(knock, shared_agent, "nobody")

    counters = await client.counters()

    assert counters["mode"] == {"public": "native", "inside": "native"}
    assert list(counters["dropped"]) == [reason.name for reason in REASONS]
    assert counters["dropped"]["no_route"] == before + 1
    for direction in ("to_transceiver", "to_client", "passed"):
        assert set(counters[direction]) == {"packets", "bytes"}


async def test_it_is_alive_and_ready(client: AgentClient, shared_agent: AgentProcess) -> None:
    assert await client.health() == {"ready": True}
    assert (await asked(shared_agent.socket, "GET", "/healthz"))[0] == 200


async def test_two_transceivers_cannot_hold_one_ufrag(client: AgentClient) -> None:
    await register(client, "x1")
    await register(client, "x2", port=40001, instance=OTHER_INSTANCE)

    async def claim(id: str, instance: str) -> int:
        try:
            await client.add_route("contested", transceiver=id, instance=instance)
        except AgentRefused as refused:
            return refused.status
        return 201

    answers = await asyncio.gather(
        *(claim("x1", INSTANCE) for _ in range(20)),
        *(claim("x2", OTHER_INSTANCE) for _ in range(20)),
    )

    assert sorted(set(answers)) == [201, 409]
    assert answers.count(201) == 20
    (route,) = (await client.routes())["routes"]
    assert (route["transceiver"] == "x1") == (answers[0] == 201)


async def test_many_routes_at_once_are_all_made_once(
    client: AgentClient, shared_maps: Maps
) -> None:
    await register(client)
    wanted = [f"many{number:03}" for number in range(200)]

    await asyncio.gather(
        *(client.add_route(u, transceiver="x1", instance=INSTANCE) for u in wanted * 2)
    )

    assert ufrags(shared_maps) == set(wanted)
    ids = [route.id for _ufrag, route in shared_maps.routes()]
    assert len(set(ids)) == 200
    with pytest.raises(AgentRefused, match="quota of 200 routes") as error:
        await client.add_route("onemore", transceiver="x1", instance=INSTANCE)
    assert error.value.status == 429


async def test_registrations_at_once_leave_one_transceiver(
    client: AgentClient, shared_maps: Maps
) -> None:
    instances = [f"instance-number-{number:04}" for number in range(50)]

    async def come(instance: str) -> str | None:
        with suppress(AgentRefused):
            await register(client, "racer", instance=instance, port=42000)
            await client.add_route("prize", transceiver="racer", instance=instance)
            return instance
        return None

    await asyncio.gather(*(come(instance) for instance in instances))

    (told,) = (await client.transceivers())["transceivers"]
    in_use = [entry for _index, entry in shared_maps.transceivers()]
    assert told["id"] == "racer"
    assert len(in_use) == 1
    assert len(ufrags(shared_maps)) == told["routes"] <= 1
    statuses = set()
    for instance in instances:
        try:
            await client.deregister("racer", instance=instance)
        except AgentRefused as refused:
            statuses.add(refused.status)
    assert statuses <= {403, 404, 409}
    assert (await client.transceivers())["transceivers"] == []


async def test_lists_come_in_pages_of_the_askers_choice(
    client: AgentClient, shared_agent: AgentProcess
) -> None:
    await register(client, capacity=400)
    wanted = {f"page{number:03}" for number in range(600)}
    for ufrag in sorted(wanted):
        await client.add_route(ufrag, transceiver="x1", instance=INSTANCE)

    status, first = await asked(shared_agent.socket, "GET", "/v1/routes?limit=550")
    _, rest = await asked(
        shared_agent.socket, "GET", f"/v1/routes?limit=550&slots=false&after={first['next']}"
    )
    everything = (await client.routes(transceiver="x1", slots=False))["routes"]

    assert (status, len(first["routes"]), rest["next"]) == (200, 550, None)
    assert {route["ufrag"] for route in first["routes"] + rest["routes"]} == wanted
    assert {route["ufrag"] for route in everything} == wanted
    assert set(rest["routes"][0]) == {"ufrag", "transceiver", "checks"}


@pytest.mark.parametrize("query", ["limit=0", "limit=10001", "limit=x", "limit=1.0", "after=-1"])
@pytest.mark.parametrize("what", ["routes", "flows"])
async def test_pages_that_cannot_be_are_refused(
    shared_agent: AgentProcess, what: str, query: str
) -> None:
    status, answer = await asked(shared_agent.socket, "GET", f"/v1/{what}?{query}")

    assert (status, answer["parameter"]) == (400, query.partition("=")[0])


async def test_a_registration_tells_which_routes_there_are_by_their_digest(
    client: AgentClient,
) -> None:
    assert (await client.register("x1", **BODY)).digest == digest([])
    for ufrag in ("abcd", "efgh"):
        await client.add_route(ufrag, transceiver="x1", instance=INSTANCE)
    assert (await client.register("x1", **BODY)).digest == digest(["efgh", "abcd"])


# Drains.


async def test_a_drained_transceiver_is_told_so_and_new_routes_are_refused(
    client: AgentClient, shared_agent: AgentProcess
) -> None:
    await register(client)
    await client.add_route("goes", transceiver="x1", instance=INSTANCE)

    begun = await client.drain("x1", deadline_s=600)

    assert (begun["draining"], begun["over"], begun["routes"]) == (True, False, 1)
    assert (await client.register("x1", **BODY)).draining
    with pytest.raises(AgentRefused) as error:
        await client.add_route("comes", transceiver="x1", instance=INSTANCE)
    assert (error.value.status, error.value.type) == (503, "draining")
    await client.add_route("again", transceiver="x1", instance=INSTANCE, restarts="goes")
    assert await client.health() == {"ready": True}, "the relay is there for others"

    await client.call_off_drain("x1")
    assert not (await client.drain_progress("x1"))["draining"]
    assert not (await client.register("x1", **BODY)).draining
    await client.add_route("comes", transceiver="x1", instance=INSTANCE)


async def test_a_draining_relay_is_not_ready_and_says_when_to_come_back(
    client: AgentClient, shared_agent: AgentProcess
) -> None:
    await register(client)
    await client.drain()
    try:
        with pytest.raises(AgentRefused) as error:
            await client.health()
        assert (error.value.status, error.value.type) == (503, "draining")
        assert (await client.register("x1", **BODY)).draining
        answer = await asyncio.to_thread(
            raw,
            shared_agent,
            b"PUT /v1/routes/abcd HTTP/1.0\r\nContent-Type: application/json\r\n"
            b"Shunt-Instance: " + INSTANCE.encode() + b"\r\nContent-Length: 20\r\n\r\n"
            b'{"transceiver":"x1"}',
        )
        assert answer.startswith(b"HTTP/1.0 503 ")
        assert b"\r\nRetry-After: 5\r\n" in answer
    finally:
        await client.call_off_drain()
    assert await client.health() == {"ready": True}


@pytest.mark.parametrize("method", ["POST", "GET", "DELETE"])
async def test_nobody_cannot_drain(shared_agent: AgentProcess, method: str) -> None:
    path = "/v1/transceivers/nobody/drain"
    status, answer = await asked(shared_agent.socket, method, path)

    assert status == 404
    assert is_problem(answer, "unknown-transceiver")


@pytest.mark.parametrize("deadline", [-1, "60", True, 1e300, [60]])
async def test_a_deadline_that_is_none_is_refused(
    client: AgentClient, shared_agent: AgentProcess, deadline: Any
) -> None:
    status, answer = await asked(
        shared_agent.socket, "POST", "/v1/drain", json={"deadline_s": deadline}
    )

    assert (status, answer["pointer"]) == (400, "#/deadline_s")
    assert not (await client.drain_progress())["draining"]


def shunt(agent: AgentProcess, *arguments: str) -> tuple[int, str]:
    """A command of the command line that asks this agent; its exit status and what it prints."""
    done = subprocess.run(
        [sys.executable, "-m", "tools", *arguments, "--socket", str(agent.socket)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


async def test_the_command_drains_waits_and_calls_off(
    client: AgentClient, shared_agent: AgentProcess
) -> None:
    async def ask(*arguments: str) -> tuple[int, str]:
        return await asyncio.to_thread(shunt, shared_agent, *arguments)

    await register(client)
    await client.add_route("goes", transceiver="x1", instance=INSTANCE)

    status, said = await ask("transceivers", "drain", "x1")
    assert (status, said.startswith("draining for 0 s: 1 routes, 0 flows left")) == (0, True), said
    status, said = await ask("transceivers", "drain", "x1", "--cancel")
    assert (status, said) == (0, "not draining: new sessions are taken\n")
    status, said = await ask("agent", "drain", "--deadline", "0", "--wait")
    assert (status, said.splitlines()[-1]) == (0, "drained: 0 routes, 0 flows left")
    status, said = await ask("agent", "drain", "--cancel", "-o", "json")
    assert (status, json.loads(said)["draining"]) == (0, False)
    status, said = await ask("transceivers", "drain", "nobody")
    assert (status, 'no transceiver "nobody"' in said) == (1, True)


# Refusals: 4xx, one sentence, JSON; never 500.


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in BODY.items() if key != name}


NO_REGISTRATION: list[tuple[str, Any]] = [
    *((f"no {name}", without(name)) for name in BODY),
    *((f"{name} null", {**BODY, name: None}) for name in BODY),
    *((f"{name} list", {**BODY, name: []}) for name in BODY),
    ("address number", {**BODY, "address": 5}),
    ("one member more", {**BODY, "colour": "blue"}),
    ("id", {**BODY, "id": "x1"}),
    ("http no URL", {**BODY, "http": "198.18.1.11:8080"}),
    ("http other scheme", {**BODY, "http": "ftp://198.18.1.11:8080"}),
    ("http without a host", {**BODY, "http": "http://"}),
    ("http with a user", {**BODY, "http": "http://me@198.18.1.11"}),
    ("http with a port beyond", {**BODY, "http": "http://198.18.1.11:65536"}),
    ("http with no IPv6", {**BODY, "http": "http://[fd00::zz]:80"}),
    ("http with a space", {**BODY, "http": "http://198.18.1.11/a b"}),
    ("http with a line's end", {**BODY, "http": "http://198.18.1.11\n"}),
    ("http long", {**BODY, "http": "http://" + "x" * 106}),
    ("instance with a space", {**BODY, "instance": "0123456789 abcdef"}),
    ("address name", {**BODY, "address": "x1.example"}),
    ("address mapped", {**BODY, "address": "::ffff:198.18.1.11"}),
    ("address link-local", {**BODY, "address": "fe80::11"}),
    ("address with zone", {**BODY, "address": "2001:db8:118::11%eth0"}),
    ("address multicast 6", {**BODY, "address": "ff02::1"}),
    ("address loopback 6", {**BODY, "address": "::1"}),
    ("address any 6", {**BODY, "address": "::"}),
    ("address bracketed", {**BODY, "address": "[2001:db8:118::11]"}),
    ("address any", {**BODY, "address": "0.0.0.0"}),
    ("address loopback", {**BODY, "address": "127.0.0.1"}),
    ("address multicast", {**BODY, "address": "224.0.0.1"}),
    ("address broadcast", {**BODY, "address": "255.255.255.255"}),
    ("address long", {**BODY, "address": "1" * 10000}),
    ("port true", {**BODY, "port": True}),
    ("port text", {**BODY, "port": "40000"}),
    ("port float", {**BODY, "port": 40000.0}),
    ("port huge", {**BODY, "port": 10**30}),
    ("capacity zero", {**BODY, "capacity": 0}),
    ("instance short", {**BODY, "instance": "short"}),
    ("list", [BODY]),
    ("null", None),
]


def is_problem(answer: Any, name: str | None = None) -> bool:
    """Whether it is one, of that name, with one sentence of detail."""
    found = PROBLEMS.get(answer["type"].removeprefix("/problems/"))
    assert found is not None, answer
    detail = answer["detail"]
    return (
        name in (None, found.name)
        and (answer["title"], answer["status"]) == (found.title, found.status)
        and set(answer) <= {"type", "title", "status", "detail", *found.members}
        and 5 < len(detail) < 200
        and "\n" not in detail
    )


@pytest.mark.parametrize(
    "body", [b for _, b in NO_REGISTRATION], ids=[i for i, _ in NO_REGISTRATION]
)
async def test_what_is_no_registration_is_a_400(
    client: AgentClient, shared_agent: AgentProcess, body: Any
) -> None:
    status, answer = await asked(
        *(shared_agent.socket, "PUT", "/v1/transceivers/x1"),
        data=json.dumps(body),
        headers={"Content-Type": "application/json"},
    )

    assert status == 400
    assert is_problem(answer, "malformed-body")
    assert (await client.transceivers())["transceivers"] == []


@pytest.mark.parametrize(
    ("body", "detail", "pointer"),
    [
        (without("port"), "port is missing", "#/port"),
        ({**BODY, "port": 40000.0}, "port: expected `int`, got `float`", "#/port"),
        ({**BODY, "port": 0}, "port: expected `int` >= 1", "#/port"),
        (
            {**without("capacity"), "capactiy": 1},
            'there is no member "capactiy": did you mean capacity?',
            "#",
        ),
        (
            {**BODY, "\u2603" * 99: 1},
            'there is no member "' + "\\u2603" * 44 + '\\u2026": '
            "there is instance, address, port, http, capacity",
            "#",
        ),
        ([BODY], "the body: expected `object`, got `array`", "#"),
    ],
    ids=["missing", "type", "range", "misspelt", "unknown", "no object"],
)
async def test_the_problem_says_which_member_is_meant_and_why(
    client: AgentClient, shared_agent: AgentProcess, body: Any, detail: str, pointer: str
) -> None:
    _, answer = await asked(shared_agent.socket, "PUT", "/v1/transceivers/x1", json=body)

    assert (answer["detail"], answer["pointer"]) == (detail, pointer)


@pytest.mark.parametrize("address", [VIP.address, VIP6.address, "198.18.1.1", "2001:db8:118::1"])
async def test_the_relay_is_no_transceiver(
    client: AgentClient, shared_agent: AgentProcess, address: str
) -> None:
    status, answer = await asked(
        shared_agent.socket, "PUT", "/v1/transceivers/x1", json={**BODY, "address": address}
    )

    assert status == 422
    assert is_problem(answer, "address-of-the-relay")
    assert answer["address"] == address
    assert (await client.transceivers())["transceivers"] == []


NO_JSON = {
    "empty": b"",
    "text": b"hello",
    "half": b'{"instance": "',
    "binary": bytes(range(256)),
    "UTF-16": json.dumps(BODY).encode("utf-16"),
    "deep": b"[" * 60000,
    "deep object": b'{"a":' * 10000,
    "endless number": b'{"port": ' + b"9" * 50000 + b"}",
    "NUL": b"\0" * 100,
}


@pytest.mark.parametrize("path", ["/v1/transceivers/x1", "/v1/routes/abcd"])
@pytest.mark.parametrize("body", NO_JSON.values(), ids=NO_JSON)
async def test_what_is_no_json_is_a_400(
    shared_agent: AgentProcess, client: AgentClient, path: str, body: bytes
) -> None:
    headers = {"Shunt-Instance": INSTANCE, "Content-Type": "application/json"}
    status, answer = await asked(shared_agent.socket, "PUT", path, data=body, headers=headers)

    assert status == 400
    assert is_problem(answer, "malformed-body")


ME = {"Shunt-Instance": INSTANCE}
LATIN = {"data": b"{}", "headers": {**ME, "Content-Type": "application/json; charset=latin-1"}}
ZIPPED = {"data": b"{}", "headers": {**ME, "Content-Encoding": "gzip"}}


@pytest.mark.parametrize(
    ("problem", "method", "path", "more"),
    [
        ("malformed-header", "PUT", "/v1/routes/abcd", {"json": {"transceiver": "x1"}}),
        ("malformed-header", "DELETE", "/v1/routes/abcd", {}),
        ("malformed-header", "DELETE", "/v1/transceivers/x1", {}),
        (
            *("malformed-header", "DELETE", "/v1/transceivers/x1"),
            {"headers": {"Shunt-Instance": "short"}},
        ),
        ("malformed-body", "PUT", "/v1/routes/abcd", {"json": {}, "headers": ME}),
        ("malformed-body", "PUT", "/v1/routes/abcd", {"json": {"transceiver": 1}, "headers": ME}),
        ("malformed-query", "GET", "/v1/routes?transciever=x1", {}),
        ("malformed-query", "GET", "/v1/routes?transceiver=x1&transceiver=x2", {}),
        ("malformed-query", "GET", "/v1/counters?all=true", {}),
        ("malformed-query", "PUT", "/v1/transceivers/x1?force=true", {"json": BODY}),
        ("bad-id", "PUT", "/v1/transceivers/x%2F1", {"json": BODY}),
        ("bad-id", "PUT", "/v1/transceivers/%FF%00", {"json": BODY}),
        ("bad-id", "PUT", "/v1/transceivers/x%0A", {"json": BODY}),
        (
            *("unknown-transceiver", "PUT", "/v1/routes/abcd"),
            {"json": {"transceiver": "x1"}, "headers": ME},
        ),
        ("not-found", "PUT", "/v1/transceivers/", {"json": BODY}),
        ("not-found", "GET", "/", {}),
        ("not-found", "GET", "/v2/routes", {}),
        ("not-found", "GET", "/%FF%00", {}),
        ("not-found", "GET", "/problems/nothing", {}),
        ("not-found", "PUT", "/v1/routes/", {"json": {"transceiver": "x1"}}),
        ("method-not-allowed", "POST", "/v1/routes", {"json": {}}),
        ("method-not-allowed", "PATCH", "/v1/routes/abcd", {"json": {}}),
        ("method-not-allowed", "DELETE", "/readyz", {}),
        ("body-too-large", "PUT", "/v1/transceivers/x1", {"data": b" " * 70000}),
        ("unsupported-media-type", "PUT", "/v1/transceivers/x1", {"data": b"{}"}),
        ("unsupported-media-type", "PUT", "/v1/routes/abcd", LATIN),
        ("unsupported-media-type", "PUT", "/v1/routes/abcd", ZIPPED),
        ("expectation-failed", "GET", "/healthz", {"headers": {"Expect": "nonsense"}}),
    ],
)
async def test_other_nonsense_is_a_problem_of_its_own(
    shared_agent: AgentProcess,
    client: AgentClient,
    problem: str,
    method: str,
    path: str,
    more: dict[str, Any],
) -> None:
    found, answer = await asked(shared_agent.socket, method, path, **more)

    assert (found, is_problem(answer, problem)) == (PROBLEMS[problem].status, True), answer


async def test_an_unknown_parameter_is_told_with_the_one_that_was_meant(
    shared_agent: AgentProcess,
) -> None:
    _, answer = await asked(shared_agent.socket, "GET", "/v1/routes?transciever=x1")

    assert answer["parameter"] == "transciever"
    assert answer["detail"].endswith('"transciever": did you mean transceiver?')


async def test_405_says_what_is_allowed(shared_agent: AgentProcess) -> None:
    answer = await asyncio.to_thread(raw, shared_agent, b"POST /v1/flows HTTP/1.0\r\n\r\n")

    assert b"\r\nAllow: GET, HEAD\r\n" in answer


async def test_what_is_no_http_is_a_problem_too(shared_agent: AgentProcess) -> None:
    answer = await asyncio.to_thread(raw, shared_agent, b"\x16\x03\x01 hello\r\n\r\n")

    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.0 400 ")
    assert b"Content-Type: application/problem+json" in head
    assert is_problem(json.loads(body), "malformed-request")


async def test_every_problem_is_explained_where_its_type_leads(shared_agent: AgentProcess) -> None:
    _, listed = await asked(shared_agent.socket, "GET", "/problems")

    assert {problem["type"] for problem in listed["problems"]} == {
        problem.uri for problem in PROBLEMS.values()
    }
    for problem in listed["problems"]:
        assert (await asked(shared_agent.socket, "GET", problem["type"])) == (200, problem)


@pytest.mark.parametrize("checks", [None, 0, 1, "false", [], {}])
async def test_checks_that_are_neither_true_nor_false_are_a_400(
    client: AgentClient, shared_agent: AgentProcess, checks: Any
) -> None:
    await register(client)

    status, answer = await asked(
        shared_agent.socket,
        "PUT",
        "/v1/routes/abcd",
        json={"transceiver": "x1", "checks": checks},
        headers={"Shunt-Instance": INSTANCE},
    )

    assert (status, answer["pointer"]) == (400, "#/checks")
    assert (await client.routes())["routes"] == []


@pytest.mark.parametrize(
    "ufrag", ["abc", "a" * 33, "ab%20c", "%FF%FF%FF%FF", "a%00bc", "abc%C3%A4"]
)
async def test_what_is_no_ufrag_is_a_400(
    client: AgentClient, shared_agent: AgentProcess, ufrag: str
) -> None:
    await register(client)

    status, answer = await asked(
        shared_agent.socket,
        "PUT",
        f"/v1/routes/{ufrag}",
        json={"transceiver": "x1"},
        headers={"Shunt-Instance": INSTANCE},
    )

    assert status == 400
    assert is_problem(answer, "bad-ufrag")


RAW_HEADERS = [
    b"Shunt-Instance: \xff\xfe\xfd\xfc and more of it",
    b"Shunt-Instance: " + b"x" * 7000,
    b"Shunt-Instance: " + "①②③④⑤⑥⑦⑧⑨".encode(),
    b"Content-Type: application/json; charset=no-such-thing\r\nShunt-Instance: x",
    b"Content-Encoding: gzip\r\nShunt-Instance: x",
    b"Content-Encoding: deflate\r\nShunt-Instance: x",
    b"Content-Encoding: br\r\nShunt-Instance: x",
    b"Expect: nonsense\r\nShunt-Instance: x",
]


def raw(agent: AgentProcess, request: bytes) -> bytes:
    """Send bytes as they are; the answer, until the agent closes or has said nothing for 0.3 s."""
    answer = b""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(0.3)
        connection.connect(str(agent.socket))
        with suppress(TimeoutError, ConnectionError):
            connection.sendall(request)
            while data := connection.recv(65536):
                answer += data
    return answer


@pytest.mark.parametrize("headers", RAW_HEADERS)
@pytest.mark.parametrize("line", ["PUT /v1/routes/abcd", "DELETE /v1/transceivers/x1"])
async def test_odd_headers_are_never_the_agents_fault(
    client: AgentClient, shared_agent: AgentProcess, line: str, headers: bytes
) -> None:
    await register(client)
    body = b'{"transceiver": "x1"}'
    request = b"\r\n".join(
        [
            f"{line} HTTP/1.1".encode(),
            b"Host: agent",
            b"Connection: close",
            f"Content-Length: {len(body)}".encode(),
            headers,
            b"",
            body,
        ]
    )

    answer = await asyncio.to_thread(raw, shared_agent, request)

    assert re.match(rb"HTTP/1\.[01] 4", answer), answer


async def test_noise_never_makes_a_500(client: AgentClient, shared_agent: AgentProcess) -> None:
    dice = random.Random(20260504)
    paths = ["/v1/transceivers/x", "/v1/routes/abcd", "/v1/routes", "/v1/flows", "/readyz", "/"]
    values: list[Any] = [
        *(None, True, -1, 0, 1, 2**64, 1.5, "", "x" * 40, "\ud800" * 20, [], {}, [[]], {"a": 1}),
        *(INSTANCE, TRANSCEIVER, 40000, "198.18.1.12"),
    ]
    statuses = set()
    async with aiohttp.ClientSession(
        connector=aiohttp.UnixConnector(path=str(shared_agent.socket))
    ) as session:
        for _ in range(400):
            body = {
                name: dice.choice([BODY[name], *values]) for name in BODY if dice.random() < 0.9
            }
            body["transceiver"] = dice.choice(["x", *values])
            data = bytearray(json.dumps(body).encode())
            if dice.random() < 0.3:
                data[dice.randrange(len(data))] = dice.randrange(256)
            async with session.request(
                dice.choice(["PUT", "PUT", "DELETE", "GET", "POST"]),
                f"http://agent{dice.choice(paths)}",
                data=bytes(data),
                headers={
                    "Shunt-Instance": dice.choice([INSTANCE, "", "short", "é" * 20]),
                    "Content-Type": dice.choice(["application/json"] * 9 + ["text/plain"]),
                },
            ) as response:
                statuses.add(response.status)
                assert response.status < 500, (await response.text(), bytes(data))
                if response.status >= 400:
                    assert is_problem(await response.json(content_type=None))
    assert {200, 400, 404} <= statuses


# What attacks it.


async def test_slow_clients_hold_up_nobody(client: AgentClient, shared_agent: AgentProcess) -> None:
    await register(client)
    held = []
    for number in range(50):
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(str(shared_agent.socket))
        connection.sendall(
            b"PUT /v1/transceivers/slow HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n{"
            if number % 2
            else b"GET /v1/ro"
        )
        connection.setblocking(False)
        held.append(connection)

    for number in range(20):
        await client.add_route(f"fast{number:02}", transceiver="x1", instance=INSTANCE)

    for connection in held:
        with pytest.raises(BlockingIOError):
            connection.recv(1)  # it is still there, and has no answer
        connection.close()


async def test_coming_and_going_200_times_leaks_nothing(shared_agent: AgentProcess) -> None:
    def descriptors() -> int:
        return len(os.listdir(f"/proc/{shared_agent.process.pid}/fd"))

    async def come_and_go(number: int) -> None:
        async with AgentClient(str(shared_agent.socket)) as client:
            await register(client, f"guest{number}", port=43000)
            await client.add_route(
                f"guest{number}", transceiver=f"guest{number}", instance=INSTANCE
            )
            await client.deregister(f"guest{number}", instance=INSTANCE)

    await come_and_go(0)
    before = descriptors()
    for number in range(1, 201):
        await come_and_go(number)

    eventually("no descriptor more than before", lambda: descriptors() <= before + 2)


async def test_two_idle_transceivers_cost_next_to_nothing(
    client: AgentClient, shared_agent: AgentProcess
) -> None:
    """One that answers and one that does not: asking for it again must not be a spin."""
    await register(client, "here")
    await register(client, "away", address="198.18.1.77", instance=OTHER_INSTANCE)

    def cpu() -> float:
        fields = Path(f"/proc/{shared_agent.process.pid}/stat").read_text().rsplit(")")[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    before, began = cpu(), time.monotonic()
    await asyncio.sleep(3)

    assert (cpu() - before) / (time.monotonic() - began) < 0.05


# Its life.


def test_a_second_agent_is_refused_and_the_first_goes_on(
    own_agent: AgentProcess, tmp_path: Path
) -> None:
    second = own_agent.spawn(log=tmp_path / "second.log")

    try:
        assert second.wait(timeout=10) == 1
    finally:
        second.kill()
    assert "another agent owns" in (tmp_path / "second.log").read_text()
    assert raw(own_agent, b"GET /readyz HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.0 200")


def test_unloading_under_a_running_agent_is_refused(own_agent: AgentProcess) -> None:
    with pytest.raises(ShuntError, match="another agent owns"):
        own_agent.host.run(lambda: unload(own_agent.pins))

    assert own_agent.host.xdp("public") != "none"
    assert raw(own_agent, b"GET /readyz HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.0 200")


def mac(maps: Maps) -> str:
    """Where the one transceiver is."""
    ((_index, entry),) = maps.transceivers()
    return bytes(entry.hop.mac).hex(":")


async def test_every_change_of_a_mac_reaches_the_map(own_agent: AgentProcess) -> None:
    async with AgentClient(str(own_agent.socket)) as client:
        await register(client)
        with Maps(own_agent.pins) as maps:
            for wanted in ("02:00:00:00:00:01", "02:00:00:00:00:02", "02:00:00:00:00:03"):
                own_agent.host.ip(
                    f"neigh replace {TRANSCEIVER} lladdr {wanted} dev inside nud permanent"
                )
                is_there = partial(lambda wanted: mac(maps) == wanted, wanted)
                await asyncio.to_thread(eventually, f"it is {wanted}", is_there)
        await client.deregister("x1", instance=INSTANCE)
    own_agent.host.ip("neigh flush dev inside nud permanent")


async def test_a_storm_of_neighbours_is_survived(own_agent: AgentProcess, tmp_path: Path) -> None:
    """More events than its netlink socket can hold: some are lost, and renewing makes up for it."""
    host = own_agent.host
    storm = tmp_path / "storm"
    storm.write_text(
        "".join(
            f"neigh replace 198.18.1.{100 + n % 100} lladdr 02:00:00:00:{n % 256:02x}:00 "
            "dev inside nud permanent\n"
            for n in range(6000)
        )
        + f"neigh replace {TRANSCEIVER} lladdr 02:00:00:00:00:42 dev inside nud permanent\n"
    )
    async with AgentClient(str(own_agent.socket)) as client:
        await register(client)
        host.ip(f"-b {storm}")
        with Maps(own_agent.pins) as maps:
            async with asyncio.timeout(20):
                while mac(maps) != "02:00:00:00:00:42":
                    await register(client)
        assert await client.health() == {"ready": True}
        await client.deregister("x1", instance=INSTANCE)
    host.ip("neigh flush dev inside nud permanent")


async def test_a_killed_agent_loses_nothing_and_its_successor_adopts_it_all(
    own_agent: AgentProcess,
) -> None:
    host = own_agent.host
    async with AgentClient(str(own_agent.socket)) as client:
        await register(client, "keeps")
        await register(client, "changes", address="198.18.1.12", instance="first-instance-of-it")
        await client.add_route("kept", transceiver="keeps", instance=INSTANCE)
        await client.add_route("lost", transceiver="changes", instance="first-instance-of-it")
        async with asyncio.timeout(5):
            while not (await client.transceivers())["transceivers"][1]["reachable"]:
                await register(client, "keeps")
        await asyncio.to_thread(knock, own_agent, "kept")
        (flow,) = (await client.flows())["flows"]
        xdp = host.xdp("public"), host.xdp("inside")

    own_agent.kill()

    assert (host.xdp("public"), host.xdp("inside")) == xdp
    assert own_agent.socket.exists(), "a stale file, which the next one must cope with"
    with Maps(own_agent.pins) as maps:
        assert ufrags(maps) == {"kept", "lost"}
        before = int(maps.slots["to_transceiver"]["packets"][flow["slot"]])
    await asyncio.to_thread(
        knock, own_agent, "kept"
    )  # forwarded without an agent, by a slot of its own
    with Maps(own_agent.pins) as maps:
        assert (maps.slots["to_transceiver"]["packets"] > 0).sum() == 2
        assert before == 1

    own_agent.start()

    async with AgentClient(str(own_agent.socket)) as client:
        told = {t["id"]: t for t in (await client.transceivers())["transceivers"]}
        assert set(told) == {"keeps", "changes"}
        assert told["keeps"]["reachable"]
        flows = (await client.flows())["flows"]
        assert flow["port"] in [f["port"] for f in flows]
        assert {f["ufrag"] for f in flows} == {"kept"}
        await register(client, "keeps")
        await register(client, "changes", address="198.18.1.12", instance=OTHER_INSTANCE)
        assert [r["ufrag"] for r in (await client.routes())["routes"]] == ["kept"]
        assert len((await client.flows())["flows"]) == 2
        starts = client.events(kinds=("adopted", "upgraded"), follow=False)
        assert [(e["kind"], e.get("routes")) async for e in starts] == [("adopted", 2)]
    assert (host.xdp("public"), host.xdp("inside")) == xdp, "the same program needs no exchange"


def test_a_compiler_ends_with_the_agent_that_waits_for_it(
    own_agent: AgentProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SWITCH, "off")
    own_agent.stop()
    tree = Version(tmp_path / "tree", OTHER_PROGRAM).folder
    process = own_agent.spawn(log=tmp_path / "log", tree=tree)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")

    def compiler() -> list[int]:
        found = [int(pid) for pid in children.read_text().split()]
        return [p for p in found if "loader.compile" in Path(f"/proc/{p}/cmdline").read_text()]

    eventually("it compiles", lambda: bool(compiler()), within=60)
    (running,) = compiler()
    process.kill()
    process.wait()

    eventually("the compiler is gone", lambda: identify(running) is None)
    own_agent.start()
    assert {entry.name for entry in own_agent.pins.iterdir()} == {PIN_VERSION, LOADING}


def test_sigterm_stops_it_and_leaves_the_relay_running(own_agent: AgentProcess) -> None:
    host, xdp = own_agent.host, own_agent.host.xdp("public")

    assert own_agent.stop() == 0

    assert not own_agent.socket.exists()
    assert host.xdp("public") == xdp != "none"
    with Maps(own_agent.pins) as maps:
        assert maps.settings().first_port == FIRST_PORT


# How it does not start.


def refused_start(host: Host, config: AgentConfig) -> ShuntError:
    """Why an agent does not start. `run` would serve until a signal, so it must refuse."""

    def start() -> ShuntError:
        with pytest.raises(ShuntError) as error:
            run(config)
        return error.value

    return host.run(start)


def test_a_missing_interface_is_named_and_nothing_stays_attached(
    host: Host, tmp_path: Path, own_pins: Path
) -> None:
    config = AgentConfig(
        public=("public",),
        inside=("insid",),
        vips=(Vip("198.18.0.1", 3478),),
        inside_addresses=("198.18.1.1",),
        socket=tmp_path / "agent.sock",
        pins=own_pins,
    )

    error = refused_start(host, config)

    assert "no interface insid here" in error.what
    assert host.xdp("public") == host.xdp("inside") == "none"


async def test_without_an_agent_the_client_says_what_to_start(tmp_path: Path) -> None:
    async with AgentClient(str(tmp_path / "nobody.sock")) as client:
        with pytest.raises(AgentUnavailable, match="cannot reach the agent") as error:
            await client.routes()
    assert "shunt agent run" in error.value.cure
