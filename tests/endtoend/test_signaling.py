"""Signaling in the lab, with the real agent: any transceiver takes any request, and a session is
explained from both sides."""

import asyncio
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Coroutine, Iterator
from typing import Any

import aiohttp

from loader.client import AgentClient
from tests.endtoend.waiting import eventually
from tests.transceiver.sdp.samples import AUDIO, DATA, offer
from tools import topology
from tools.call import CallReport, place_call
from tools.explain import ask, verdict
from tools.labstate import Lab
from tools.netns import run_in
from tools.processes import ROOT

OFFER = offer(AUDIO, DATA)
FRAGMENT = "application/trickle-ice-sdpfrag"
RESTART = "a=ice-ufrag:wxyz\r\na=ice-pwd:wxyz567890123456789012\r\n"


def from_the_client(lab: Lab, doing: Coroutine[Any, Any, Any]) -> Any:
    return run_in(lab.client_namespace, lambda: asyncio.run(doing))


async def make_restart_and_end(lab: Lab) -> list[int]:
    """A session of the first transceiver's, restarted and ended through the second."""
    here, there = (transceiver.http for transceiver in lab.transceivers[:2])
    bearer = {"Authorization": f"Bearer {lab.api_key}"}
    statuses = []
    async with aiohttp.ClientSession(headers=bearer) as http:
        headers = {"Content-Type": "application/sdp"}
        async with http.post(f"{here}/whip", data=OFFER, headers=headers) as response:
            statuses.append(response.status)
            url = there + response.headers["Location"]
        headers = {"Content-Type": FRAGMENT, "If-Match": "*"}
        async with http.patch(url, data=RESTART, headers=headers) as response:
            statuses.append(response.status)
        for _ in range(2):
            async with http.delete(url) as response:
                statuses.append(response.status)
    return statuses


def test_the_wrong_transceiver_hands_a_request_to_the_right_one(lab: Lab) -> None:
    assert from_the_client(lab, make_restart_and_end(lab)) == [201, 200, 200, 410]


@contextlib.contextmanager
def two_workers(lab: Lab) -> Iterator[str]:
    """Beside the first transceiver, in its namespace; the URL that they share.

    That is at its IPv6 address, since the lab's firewall lets only one port through.
    """
    place = lab.transceivers[0]
    http = f"[{topology.transceiver_address6(1)}]:{topology.HTTP_PORT}"
    udp = f"{place.udp.rpartition(':')[0]}:41000"
    command = [
        *(sys.executable, "-m", "tools", "transceiver", "run", "--id", "w", "--workers", "2"),
        *("--udp", udp, "--http", http, "--agent", lab.agent_socket),
        *("--drain-limit", "0"),
    ]
    process = run_in(
        place.namespace,
        lambda: subprocess.Popen(
            command, cwd=ROOT, env={**os.environ, "SHUNT_API_KEY": lab.api_key}
        ),
    )

    async def registered() -> set[str]:
        async with AgentClient(lab.agent_socket) as agent:
            return {each["id"] for each in (await agent.transceivers())["transceivers"]}

    try:
        eventually(
            "workers register", lambda: {"w-1", "w-2"} <= asyncio.run(registered()), within=30.0
        )
        yield f"http://{http}"
    finally:
        process.terminate()
        assert process.wait(timeout=30) == 0
    assert not {"w-1", "w-2"} & asyncio.run(registered())


def test_calls_of_two_workers_pass_the_relay(lab: Lab) -> None:
    async def both(url: str) -> list[CallReport]:
        calls = (place_call(url, key=lab.api_key, duration_s=1.0) for _ in range(2))
        return await asyncio.gather(*calls)

    async def owners() -> set[str]:
        async with AgentClient(lab.agent_socket) as agent:
            events = [event async for event in agent.events(kinds=["route_added"], follow=False)]
        return {event["transceiver"] for event in events}

    with two_workers(lab) as url:
        reports = from_the_client(lab, both(url))
        assert {"w-1", "w-2"} <= asyncio.run(owners())
    for report in reports:
        assert report.received > 30
        assert report.datachannel_rtt_ms is not None


def test_a_call_is_explained_while_it_runs_and_when_it_is_over(lab: Lab) -> None:
    during: list[str] = []

    async def look(ufrag: str) -> None:
        # Agent and transceivers are asked from where an operator is: the relay host.
        answer = await asyncio.to_thread(
            subprocess.run,
            ["nsenter", f"--net=/run/netns/{lab.relay_namespace}", sys.executable, "-m", "tools",
             "explain", ufrag, "--agent", lab.agent_socket, "--key", lab.api_key, "-o", "json"],
            cwd=ROOT, capture_output=True, text=True, check=True,
        )  # fmt: skip
        (known,) = json.loads(answer.stdout)
        assert known["route"]["transceiver"] == lab.transceivers[0].id
        assert known["flows"]
        assert "route_added" in [event["kind"] for event in known["events"]]
        during.append(known["verdict"])

    url = lab.transceivers[0].http
    report = from_the_client(lab, place_call(url, key=lab.api_key, duration_s=1.0, during=look))
    assert during == ["The call runs as it should."]

    async def again() -> str:
        agent = AgentClient(lab.agent_socket)
        (known,) = await ask(agent, report.ufrag, key=lab.api_key)
        assert known.session is not None
        return verdict(known)

    assert run_in(lab.relay_namespace, lambda: asyncio.run(again())).startswith(
        "The call was set up as it should"
    )
