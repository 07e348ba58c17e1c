"""The event stream: what readers get, and what those cost who do not read."""

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from loader.api import Runner, stream
from loader.api.answers import problem_answer
from loader.api.stream import Streams
from loader.client import AgentClient, AgentRefused, AgentUnavailable
from loader.events import KEPT, EventLog
from loader.problems import Refused
from tests.loader.conftest import INSTANCE, ROOT, AgentProcess, register_x1

AT = 1777888999.123


@pytest.fixture
def events() -> EventLog:
    return EventLog(clock=lambda: AT)


@asynccontextmanager
async def served(events: EventLog, folder: Path) -> AsyncIterator[AgentClient]:
    """A client of a server that tells these events and nothing else."""
    streams = Streams(events)

    async def tell(request: web.Request) -> web.StreamResponse:
        kinds = request.query.get("kinds", "").split(",") if "kinds" in request.query else []
        follow = request.query["follow"] == "true"
        try:
            return await streams.tell(request, kinds=kinds, follow=follow)
        except Refused as refused:
            return problem_answer(refused)

    async def end(_app: web.Application) -> None:
        streams.end()

    app = web.Application()
    app.router.add_get("/v1/events", tell)
    app.on_shutdown.append(end)
    runner = Runner(app)
    await runner.setup()
    socket = folder / "events.sock"
    await web.UnixSite(runner, str(socket)).start()
    async with AgentClient(str(socket)) as client:
        yield client
    await runner.cleanup()


async def told(client: AgentClient, count: int | None = None, **more: Any) -> list[dict[str, Any]]:
    """The first *count* events; without, all until the stream ends."""
    found: list[dict[str, Any]] = []
    async with asyncio.timeout(10):
        reading = client.events(**more)
        while count is None or len(found) < count:
            try:
                found.append(await anext(reading))
            except StopAsyncIteration:
                break
        await reading.aclose()
    return found


async def test_what_is_known_comes_first_and_then_what_comes(
    events: EventLog, tmp_path: Path
) -> None:
    events.tell("route_added", ufrag="abcd", transceiver="x1")
    async with served(events, tmp_path) as client:
        reading = client.events()
        first = await anext(reading)
        coming = asyncio.ensure_future(anext(reading))
        await asyncio.sleep(0)
        events.tell("route_removed", ufrag="abcd")
        second = await asyncio.wait_for(coming, 5)
        await reading.aclose()

    assert first == {
        "id": str(events.last - 1),
        "time": "2026-05-04T10:03:19.123Z",
        "kind": "route_added",
        "ufrag": "abcd",
        "transceiver": "x1",
    }
    assert (second["kind"], second["id"]) == ("route_removed", str(events.last))


async def test_the_last_id_resumes(events: EventLog, tmp_path: Path) -> None:
    for number in range(5):
        events.tell("route_added", ufrag=f"number{number}")
    async with served(events, tmp_path) as client:
        first, second, *_ = await told(client, follow=False)
        rest = await told(client, follow=False, last=second["id"])

    assert (first["ufrag"], second["ufrag"]) == ("number0", "number1")
    assert [event["ufrag"] for event in rest] == ["number2", "number3", "number4"]


async def test_only_the_kinds_that_are_asked_for_are_told(events: EventLog, tmp_path: Path) -> None:
    for kind in ("route_added", "established", "route_removed"):
        events.tell(kind)
    async with served(events, tmp_path) as client:
        found = await told(client, follow=False, kinds=["established", "route_removed"])

    assert [event["kind"] for event in found] == ["established", "route_removed"]


async def test_who_comes_back_too_late_is_told_how_many_he_missed(
    events: EventLog, tmp_path: Path
) -> None:
    seen = events.tell("route_added").number
    for _ in range(KEPT + 7):
        events.tell("route_added")
    async with served(events, tmp_path) as client:
        missed, *rest = await told(client, follow=False, last=str(seen))

    assert missed == {"id": None, "kind": "missed", "missed": 7}
    assert len(rest) == KEPT


async def test_an_id_that_is_none_is_refused(events: EventLog, tmp_path: Path) -> None:
    async with served(events, tmp_path) as client:
        with pytest.raises(AgentRefused) as error:
            await told(client, last="yesterday")

    assert error.value.type == "malformed-header"
    assert error.value.members == {"header": "Last-Event-ID"}


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not holds():  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.01)


@asynccontextmanager
async def mute(folder: Path) -> AsyncIterator[asyncio.StreamReader]:
    """A reader who asks for the events and then reads nothing, until he does."""
    reader, writer = await asyncio.open_unix_connection(str(folder / "events.sock"), limit=4096)
    writer.write(b"GET /v1/events?follow=true HTTP/1.1\r\nHost: a\r\n\r\n")
    yield reader
    writer.close()


async def test_a_reader_who_takes_nothing_costs_the_others_nothing_and_is_told(
    events: EventLog, tmp_path: Path
) -> None:
    async with served(events, tmp_path) as client, mute(tmp_path) as slow:
        await slow.readline()
        reading = client.events()
        much, received = "x" * 4000, 0
        for number in range(3 * KEPT):
            events.tell("route_added", ufrag=much)
            if number % 1000 == 999:
                while received <= number:
                    event = await asyncio.wait_for(anext(reading), 5)
                    received += 1
                    assert event["kind"] == "route_added"
        await reading.aclose()

        async with asyncio.timeout(10):
            while (line := await slow.readline()) != b"event: missed\n":
                assert line
        missed = json.loads((await slow.readline()).removeprefix(b"data: "))
        assert missed["missed"] > KEPT


async def test_a_reader_who_takes_nothing_for_long_is_sent_away(
    events: EventLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "PATIENCE_SECONDS", 0.2)
    for _ in range(KEPT):
        events.tell("route_added", ufrag="x" * 4000)
    async with served(events, tmp_path), mute(tmp_path) as slow:
        await slow.readline()
        await until(lambda: not events._listeners)


async def test_there_are_so_many_readers_and_no_more(
    events: EventLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "READERS", 1)
    events.tell("route_added")
    async with served(events, tmp_path) as client:
        first = client.events()
        await anext(first)
        with pytest.raises(AgentRefused) as error:
            await told(client)
        assert (error.value.status, error.value.type) == (503, "too-many-readers")

        await first.aclose()
        await until(lambda: not events._listeners)
        assert await told(client, follow=False)


async def test_silence_is_broken_by_a_comment(
    events: EventLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "HEARTBEAT_SECONDS", 0.05)
    async with served(events, tmp_path), mute(tmp_path) as reader:
        async with asyncio.timeout(5):
            await reader.readuntil(b"\r\n\r\n")
            assert b":\n\n" in await reader.readuntil(b":\n\n")


async def test_an_agent_that_stops_ends_its_streams(events: EventLog, tmp_path: Path) -> None:
    events.tell("route_added")
    async with AgentClient(str(tmp_path / "events.sock")) as client:
        async with served(events, tmp_path):
            reading = client.events()
            await anext(reading)
        with suppress(StopAsyncIteration, AgentUnavailable):
            await asyncio.wait_for(anext(reading), 5)
            pytest.fail("the stream goes on")


# Of a running agent.


@pytest.fixture
async def client(shared_agent: AgentProcess) -> AsyncIterator[AgentClient]:
    """A client with a transceiver x1 that has gone again afterwards."""
    async with AgentClient(str(shared_agent.socket)) as connected:
        await register_x1(connected)
        yield connected
        await connected.deregister("x1", instance=INSTANCE)


async def test_the_agent_tells_of_routes_as_they_are_made(client: AgentClient) -> None:
    known = await told(client, follow=False)
    reading = client.events(kinds=["route_added", "route_refused"], last=known[-1]["id"])
    coming = asyncio.ensure_future(anext(reading))

    await client.add_route("evnt", transceiver="x1", instance=INSTANCE)

    event = await asyncio.wait_for(coming, 5)
    assert (event["kind"], event["ufrag"], event["transceiver"]) == ("route_added", "evnt", "x1")
    with pytest.raises(AgentRefused):
        await client.add_route("evnt", transceiver="x1", instance=INSTANCE, checks=False)
    event = await asyncio.wait_for(anext(reading), 5)
    assert (event["kind"], event["why"]) == ("route_refused", "route-differs")
    await reading.aclose()


async def test_a_kind_that_is_none_is_refused_with_the_one_that_was_meant(
    shared_agent: AgentProcess,
) -> None:
    async with (
        aiohttp.ClientSession(
            connector=aiohttp.UnixConnector(path=str(shared_agent.socket))
        ) as session,
        session.get("http://agent/v1/events?kinds=route_added,route_aded") as answer,
    ):
        problem = await answer.json(content_type="application/problem+json")

    assert problem["type"] == "/problems/malformed-query"
    assert problem["parameter"] == "kinds"
    assert "did you mean route_added?" in problem["detail"]


async def test_the_command_prints_what_is_known(
    client: AgentClient, shared_agent: AgentProcess
) -> None:
    await client.add_route("shwn", transceiver="x1", instance=INSTANCE)

    def shunt(*arguments: str) -> list[str]:
        done = subprocess.run(
            [
                *(sys.executable, "-m", "tools", "events"),
                *("--socket", str(shared_agent.socket), *arguments),
            ],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    (line,) = (
        line
        for line in await asyncio.to_thread(shunt, "--kinds", "route_added")
        if "ufrag=shwn" in line
    )
    assert "Z  route_added " in line
    assert line.endswith("ufrag=shwn transceiver=x1")
    (told_last, *_) = reversed(await asyncio.to_thread(shunt, "-o", "json"))
    assert json.loads(told_last)["id"].isdecimal()
