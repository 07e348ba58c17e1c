"""The agent's bench runs, on a small scale, and leaves nothing; its client times what it asks."""

import asyncio
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiohttp import web
from pyroute2 import netns

from loader.errors import ShuntError
from tools.bench.agent import Scale, run
from tools.bench.asking import ask, ask_all, request
from tools.bench.report import Report, hold, read_targets

PINS = Path(f"/sys/fs/bpf/shunt-bench-agent-tests-{os.getpid()}")
SMALL = Scale(inside=1, routes=500, rounds=1, asked=100, idle_s=1.2, followed=5, follow_rounds=2)


@pytest.fixture(scope="module")
def report() -> Report:
    progress: list[str] = []
    made = run(PINS, quick=True, progress=progress.append, scale=SMALL)
    assert progress[-1] == "round 1 of 1"
    return made


@pytest.mark.timeout(300)
def test_a_run_measures_all_that_the_targets_ask_for(report: Report) -> None:
    assert all(value > 0 for case in report.cases for value in case.rounds)
    assert {target.case for target in read_targets("agent")} >= {
        *("routes.put.p99", "routes.8.put.p99", "flows.pass"),
    }
    assert len(hold(report, read_targets("agent"))) == len(read_targets("agent"))


def test_a_run_measures_each_subject_alone_and_several_at_once(report: Report) -> None:
    names = {case.name for case in report.cases}

    assert names >= {
        f"{subject}{several}.{what}.{which}"
        for subject in ("trivial", "none", "routes", "flows")
        for several in ("", ".8")
        for what in ("put", "delete")
        for which in ("p50", "p99", "each")
    }
    assert names >= {"map.update", "none.pass", "routes.pass", "flows.pass"}


def test_the_agents_have_taken_over_what_they_were_to_find(report: Report) -> None:
    agents = {each["name"]: each for each in report.facts["agents"]}

    assert {name: (each["routes"], each["flows"]) for name, each in agents.items()} == {
        **{"none": (0, 0), "routes": (500, 0), "flows": (500, 64512)},
    }
    assert all(each["resident_bytes"] > 10 * 2**20 for each in agents.values())
    assert report.facts["following"]["mac"]["worst_ms"] > 0
    assert report.facts["memory"][0]["bytes_per_route"] > 0


def test_a_run_leaves_nothing(report: Report) -> None:
    assert not list(PINS.parent.glob(f"{PINS.name}*"))
    assert not [name for name in netns.listnetns() if name.startswith("bench-agent")]


# The client.


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Path]:
    """Says how many it has answered, in two pieces; 404 to whoever asks for `none`."""
    socket, ready, stop = tmp_path / "socket", threading.Event(), asyncio.Event()
    loop = asyncio.new_event_loop()
    answered = 0

    async def answer(request: web.Request) -> web.StreamResponse:
        nonlocal answered
        answered += 1
        if request.match_info["name"] == "none":
            return web.Response(status=404)
        body = json.dumps([answered, await request.text()]).encode()
        response = web.StreamResponse(status=200, headers={"Content-Length": str(len(body))})
        await response.prepare(request)
        for byte in body:
            await response.write(bytes([byte]))
        return response

    async def serve() -> None:
        app = web.Application()
        app.add_routes([web.route("*", "/{name}", answer)])
        runner = web.AppRunner(app)
        await runner.setup()
        await web.UnixSite(runner, str(socket)).start()
        ready.set()
        await stop.wait()
        await runner.cleanup()

    serving = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    serving.start()
    assert ready.wait(10)
    yield socket
    loop.call_soon_threadsafe(stop.set)
    serving.join()
    loop.close()


@pytest.mark.parametrize("connections", [1, 3, 50])
def test_each_request_is_asked_once_and_timed(server: Path, connections: int) -> None:
    requests = [request("PUT", "/some", instance="one", body=b"{}") for _ in range(20)]

    answers = ask_all(server, requests, status=200, connections=connections)

    assert len(answers.milliseconds) == 20
    assert all(0 < each <= 1e3 * answers.seconds for each in answers.milliseconds)
    assert ask(server, requests[0]) == (200, b'[21, "{}"]')


def test_another_answer_than_was_expected_is_an_error(server: Path) -> None:
    with pytest.raises(ShuntError, match="404 Not Found"):
        ask_all(server, [request("GET", "/none", instance="one")], status=200)


def test_answers_add_up(server: Path) -> None:
    one = ask_all(server, [request("GET", "/some", instance="one")])

    both = one + one
    assert both.milliseconds == one.milliseconds * 2
    assert both.seconds == 2 * one.seconds
