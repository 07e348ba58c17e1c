"""A call is carried both ways, its route lives as long as it does, and it survives its relay's
agent."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from loader.client import AgentClient, AgentUnavailable
from loader.maps import Maps
from tests.endtoend.conftest import ufrags
from tests.endtoend.waiting import eventually
from tests.speech import SENTENCE, likeness, read, speak
from tools.call import CallReport, place_call
from tools.labstate import Lab
from tools.netns import run_in


def call(lab: Lab, number: int = 0, **how: Any) -> CallReport:
    """A call from the client's namespace to transceiver *number*."""
    url = lab.transceivers[number].http
    return run_in(
        lab.client_namespace,
        lambda: asyncio.run(place_call(url, key=lab.api_key, **how)),
    )


@pytest.mark.parametrize("number", [0, 1])
def test_audio_goes_both_ways_and_only_through_the_relay(lab: Lab, maps: Maps, number: int) -> None:
    before = maps.counters()
    report = call(lab, number, duration_s=2.0)
    after = maps.counters()
    assert report.sent > 80
    assert report.received > 80
    assert report.datachannel_rtt_ms is not None
    vips = (f"{lab.vip[0]}:{lab.vip[1]}", f"[{lab.vip6[0]}]:{lab.vip6[1]}")
    assert report.remote_candidate in vips
    assert after.to_transceiver.packets - before.to_transceiver.packets >= report.sent
    assert after.to_client.packets - before.to_client.packets >= report.received


@pytest.mark.alone  # a caller that gets no CPU for 100 ms leaves gaps in what it says
def test_what_comes_back_is_what_was_said(lab: Lab, tmp_path: Path) -> None:
    said, heard = tmp_path / "said.wav", tmp_path / "heard.wav"
    speak(SENTENCE, said)
    call(lab, audio=said, save=heard)
    assert likeness(read(said), read(heard)) >= 0.9


def test_the_route_is_in_the_map_during_the_call_and_gone_after_it(lab: Lab, maps: Maps) -> None:
    during: list[set[str]] = []

    async def look(_ufrag: str) -> None:
        during.append(ufrags(maps))

    report = call(lab, during=look, duration_s=0.5)
    assert report.ufrag in during[0]
    eventually("the route is gone", lambda: report.ufrag not in ufrags(maps))


def test_a_call_outlives_the_agent_and_the_next_agent_adopts_it(lab: Lab, maps: Maps) -> None:
    agent = pid_of(lab, "agent")
    command = Path(f"/proc/{agent}/cmdline").read_bytes().rstrip(b"\0").split(b"\0")
    successor: list[subprocess.Popen[bytes]] = []

    async def replace_agent(ufrag: str) -> None:
        os.kill(agent, signal.SIGKILL)
        successor.append(
            await asyncio.to_thread(
                run_in,
                lab.relay_namespace,
                lambda: subprocess.Popen(command, stderr=subprocess.DEVNULL),
            )
        )
        async with AgentClient(lab.agent_socket) as client:
            await _until_adopted(client, ufrag)

    try:
        report = call(lab, during=replace_agent, duration_s=2.0)
        assert report.received > 80
        eventually("the new agent has removed the route", lambda: report.ufrag not in ufrags(maps))
    finally:
        for process in successor:
            process.terminate()
            process.wait(10)


async def _until_adopted(client: AgentClient, ufrag: str) -> None:
    async with asyncio.timeout(20):
        while True:
            try:
                routes = (await client.routes())["routes"]
            except AgentUnavailable:
                await asyncio.sleep(0.05)
                continue
            adopted = {route["ufrag"]: route["slots"] for route in routes}
            assert adopted.get(ufrag), "the flow was adopted with its route"
            return


@pytest.mark.timeout(90)
def test_the_route_goes_when_the_client_vanishes(lab: Lab, maps: Maps) -> None:
    with calling(lab, maps) as (client, ufrag):
        client.kill()
        eventually("consent has run out", lambda: ufrag not in ufrags(maps), within=45)


@pytest.mark.timeout(90)
def test_a_killed_transceiver_loses_its_routes_when_its_lease_ends(lab: Lab, maps: Maps) -> None:
    with calling(lab, maps) as (_client, ufrag):
        os.kill(pid_of(lab, "x1"), signal.SIGKILL)
        eventually("the lease has ended", lambda: ufrag not in ufrags(maps), within=25)
        eventually("only the other is left", lambda: registered(maps) == ["x2"])


def test_a_transceiver_asked_to_stop_takes_its_routes_along(lab: Lab, maps: Maps) -> None:
    with calling(lab, maps) as (_client, ufrag):
        os.kill(pid_of(lab, "x1"), signal.SIGTERM)
        eventually("the route is gone", lambda: ufrag not in ufrags(maps), within=8)
        eventually("the transceiver is gone", lambda: registered(maps) == ["x2"])


def pid_of(lab: Lab, name: str) -> int:
    """Of one of the lab's processes."""
    return next(process.pid for process in lab.processes if process.name == name)


def registered(maps: Maps) -> list[str]:
    """Ids of the transceivers that the relay knows."""
    return [bytes(entry.id).rstrip(b"\0").decode() for _index, entry in maps.transceivers()]


@contextmanager
def calling(lab: Lab, maps: Maps) -> Iterator[tuple["subprocess.Popen[bytes]", str]]:
    """A client, in a process of its own that can be killed, in a call with x1 whose media flows;
    and the call's ufrag."""
    before = ufrags(maps)
    command = [sys.executable, "-m", "tools", "call", lab.transceivers[0].http]
    command += ["--key", lab.api_key, "--duration", "60"]
    client = run_in(
        lab.client_namespace,
        lambda: subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL),
    )
    try:
        eventually("a call is made", lambda: bool(ufrags(maps) - before), within=15)
        (ufrag,) = ufrags(maps) - before
        eventually("its media flows", lambda: packets_back(maps, ufrag) > 50, within=15)
        yield client, ufrag
    finally:
        client.kill()
        client.wait()


def packets_back(maps: Maps, ufrag: str) -> int:
    """Packets that a call's client was sent."""
    id = next(route.id for name, route in maps.routes() if name == ufrag)
    mine = maps.slots["book"]["route"] == id
    return int(maps.slots["to_client"]["packets"][mine].sum())
