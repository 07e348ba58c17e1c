"""Standing with the agent: late agents, lost routes, a second process with the same id."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from loader.client import AgentClient
from loader.errors import ShuntError
from loader.problems import Refused
from tests.transceiver.agent import FakeAgent
from tests.transceiver.caller import eventually
from transceiver.registration import Registration


@pytest.fixture
async def registration(tmp_path: Path) -> AsyncIterator[Registration]:
    async with AgentClient(str(tmp_path / "agent.sock")) as client:
        yield Registration(
            client, id="x1", udp=("198.18.1.11", 40000), http="http://x1", capacity=7
        )


@pytest.fixture
async def running(registration: Registration) -> AsyncIterator[Registration]:
    task = asyncio.create_task(registration.run())
    yield registration
    task.cancel()
    await asyncio.wait((task,))


async def test_an_agent_that_starts_late_is_waited_for(
    tmp_path: Path, registration: Registration, caplog: pytest.LogCaptureFixture
) -> None:
    task = asyncio.create_task(registration.run())
    await eventually(lambda: "no lease" in caplog.text)
    assert not registration.vips
    async with FakeAgent(tmp_path / "agent.sock"):
        await eventually(registration.registered.is_set)
    assert registration.vips == (("198.18.1.11", 40000),)
    assert caplog.text.count("no lease") == 1
    task.cancel()
    await asyncio.wait((task,))


async def test_the_agent_is_told_all_it_asks_for(agent: FakeAgent, running: Registration) -> None:
    await eventually(running.registered.is_set)
    told = agent.transceivers["x1"]
    assert len(str(told.pop("instance"))) >= 16
    assert told == {"address": "198.18.1.11", "port": 40000, "http": "http://x1", "capacity": 7}


async def test_live_routes_come_back_after_the_agent_lost_them(
    agent: FakeAgent, running: Registration
) -> None:
    agent.lease = 0.3
    await eventually(running.registered.is_set)
    await running.add("ufrag/with+odd/chars")
    agent.lose_all()
    await eventually(lambda: agent.routes == {"ufrag/with+odd/chars": "x1"})
    assert "x1" in agent.transceivers


async def test_routes_of_nobody_are_swept_but_not_those_of_others(
    agent: FakeAgent, running: Registration
) -> None:
    agent.lease = 0.3
    agent.routes = {"stale": "x1", "others": "x2"}
    await eventually(lambda: agent.routes == {"others": "x2"})


async def test_routes_are_listed_only_when_they_differ(
    agent: FakeAgent, running: Registration
) -> None:
    agent.lease = 0.15
    await eventually(running.registered.is_set)
    for ufrag in ("abcd", "efgh"):
        await running.add(ufrag)
    renewals = agent.registered
    await eventually(lambda: agent.registered > renewals + 3)
    assert agent.listed == 0

    agent.routes["stale"] = "x1"
    await eventually(lambda: "stale" not in agent.routes)
    assert agent.listed == 1


async def test_a_route_that_a_drain_has_ended_does_not_cost_the_lease(
    agent: FakeAgent, running: Registration, caplog: pytest.LogCaptureFixture
) -> None:
    agent.lease = 0.3
    await eventually(running.registered.is_set)
    await running.add("ended")
    agent.routes.clear()
    agent.refuse_routes = Refused("draining", "x1 is draining")
    await eventually(lambda: "route ended is not restored" in caplog.text)
    assert running.registered.is_set()


async def test_a_second_process_with_the_same_id_ends_the_first(
    agent: FakeAgent, registration: Registration
) -> None:
    agent.superseded = True
    with pytest.raises(ShuntError, match="another process registered as transceiver x1"):
        async with asyncio.timeout(5):
            await registration.run()


async def test_leaving_gives_the_lease_back(agent: FakeAgent, running: Registration) -> None:
    await eventually(running.registered.is_set)
    await running.leave()
    assert not agent.transceivers


async def test_leaving_an_agent_that_is_away_is_no_error(registration: Registration) -> None:
    await registration.leave()
    await registration.remove("gone")
