"""What happens to the agent, and what is done to the program, costs no packet: under numbered
traffic of 50,000 packets a second and more, both ways at once."""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from loader import bpf
from loader.client import AgentClient
from loader.maps import Maps
from loader.table import GRACE_SECONDS
from tests.endtoend.callers import Callers
from tests.endtoend.traffic import assert_nothing_lost, ends, stream
from tests.endtoend.waiting import eventually
from tests.loader.conftest import ROOT, TRANSCEIVER, AgentProcess
from tests.loader.test_datapath import attach_a_strangers_program
from tests.loader.versions import COLOURED, NARROW, OTHER_PROGRAM, UNVERIFIABLE, Version
from tools.bench import traffic
from tools.bench.traffic import Stream

pytestmark = pytest.mark.alone

T = TypeVar("T")

AROUND = 20_000
"""Packets that go each way before an event, and after it."""
INSTANCE = "fedcba9876543210-other"


def ask(agent: AgentProcess, question: Callable[[AgentClient], Awaitable[T]]) -> T:
    """Put one question to the agent."""

    async def put() -> T:
        async with AgentClient(str(agent.socket)) as client:
            return await question(client)

    return asyncio.run(put())


def assert_took_over(agent: AgentProcess, running: Stream) -> None:
    """The agent knows the routes and the flows that there were before it, and takes more."""
    routes = ask(agent, lambda client: client.routes(transceiver=traffic.ID))["routes"]
    flows = ask(agent, AgentClient.flows)["flows"]

    assert {route["ufrag"] for route in routes} == set(running.ufrags)
    assert {port for route in routes for port in route["slots"]} == set(running.ports)
    established = {flow["port"] for flow in flows if flow["state"] == "established"}
    assert established >= set(running.ports)
    running.add_route("one/more")
    running.remove_route("one/more")


def at_work(agent: AgentProcess) -> str:
    """Mode and id of the program that both interfaces carry."""
    (program,) = {agent.host.xdp(interface) for interface in ("public", "inside")}
    return program


def pinned(agent: AgentProcess) -> dict[str, int]:
    """What is pinned, by the kernel's ids."""
    found = {}
    for entry in sorted(agent.pins.glob("*/*")):
        descriptor = bpf.pinned(entry)
        try:
            about = bpf.program_info if entry.name == "program" else bpf.map_info
            found[str(entry)] = about(descriptor).id
        finally:
            os.close(descriptor)
    return found


# The agent goes and comes.


def test_an_agent_that_is_killed_or_stopped_costs_no_packet(busy_relay: AgentProcess) -> None:
    before = at_work(busy_relay)

    with stream(busy_relay) as running:
        running.carry(AROUND)
        for end in (busy_relay.kill, busy_relay.stop):
            end()
            running.carry(AROUND)
            busy_relay.start()
            running.carry(AROUND)
            assert_took_over(busy_relay, running)
        report = running.stop()

    assert_nothing_lost(report)
    assert at_work(busy_relay) == before


async def register(client: AgentClient, id: str) -> None:
    await client.register(
        id,
        instance=INSTANCE,
        address=TRANSCEIVER,
        port=41000 + len(id),
        http="http://198.18.1.11:8080",
        capacity=10,
    )


def make_transceivers(agent: AgentProcess) -> None:
    """`silent` and `renewing`, with a route each; `renewing`, and the relay, drain."""

    async def make(client: AgentClient) -> None:
        for id in ("silent", "renewing"):
            await register(client, id)
            await client.add_route(f"{id}/1", transceiver=id, instance=INSTANCE)
        await client.drain("renewing", deadline_s=600)
        await client.drain(deadline_s=900)

    ask(agent, make)


def let_lease_end(agent: AgentProcess, id: str) -> None:
    """As if it had been registered long ago, while no agent runs."""
    with Maps(agent.pins, writable=True) as maps:
        for index, entry in maps.transceivers():
            if bytes(entry.id).rstrip(b"\0").decode() == id:
                entry.expires = time.monotonic_ns()
                maps.set_transceiver(index, entry)


def test_leases_and_drains_go_on_where_they_were(busy_relay: AgentProcess) -> None:
    make_transceivers(busy_relay)
    busy_relay.kill()
    let_lease_end(busy_relay, "silent")
    busy_relay.start()

    leases = {
        told["id"]: told["lease_s"]
        for told in ask(busy_relay, AgentClient.transceivers)["transceivers"]
    }
    of_one = ask(busy_relay, lambda client: client.drain_progress("renewing"))
    of_relay = ask(busy_relay, AgentClient.drain_progress)
    ask(busy_relay, AgentClient.call_off_drain)

    assert 0 < leases["silent"] <= GRACE_SECONDS, "not a lease of its own"
    assert (of_one["draining"], of_relay["draining"]) == (True, True)
    assert 0 < of_one["deadline_s"] < 600 < of_relay["deadline_s"] < 900

    def silent_is_gone() -> bool:
        ask(busy_relay, lambda client: register(client, "renewing"))
        routes = ask(busy_relay, AgentClient.routes)["routes"]
        assert "renewing/1" in {route["ufrag"] for route in routes}
        return "silent/1" not in {route["ufrag"] for route in routes}

    eventually("the lease of who never renews is over", silent_is_gone, within=3 * GRACE_SECONDS)
    ask(busy_relay, lambda client: client.deregister("renewing", instance=INSTANCE))


# Upgrades: what was not compiled before is compiled amid the traffic.


@pytest.mark.timeout(300)
def test_other_versions_take_over_one_after_the_other_without_a_lost_packet_or_flow(
    busy_relay: AgentProcess, tmp_path: Path
) -> None:
    """Another program for the same maps, another layout of the maps, and back to this version;
    and clients come all the while."""
    of_maps = {file: edits for file, edits in COLOURED.items() if file != "bpf/shunt.c"}
    trees = [
        Version(tmp_path / "program", OTHER_PROGRAM).folder,
        Version(tmp_path / "layout", of_maps).folder,
        ROOT,
    ]
    programs = [at_work(busy_relay)]

    with stream(busy_relay) as running, Callers(ends(busy_relay)) as callers:
        running.carry(AROUND)
        for tree in trees:
            busy_relay.stop()
            busy_relay.start(tree=tree)
            running.carry(AROUND)
            assert_took_over(busy_relay, running)
            programs.append(at_work(busy_relay))
        report = running.stop()
        calls, troubles = callers.hang_up()

    assert_nothing_lost(report)
    assert calls > 0
    assert troubles == []
    assert len(set(programs)) == len(programs)
    assert all(program.startswith("xdp ") for program in programs), "natively"


@pytest.fixture
def refusing(busy_relay: AgentProcess) -> Iterator[str]:
    """An interface of the relay host that takes no program: a port of a bridge that has one."""
    host = busy_relay.host
    host.ip("link add refusing type veth peer name refused")
    host.ip("link add bridge0 type bridge")
    attach_a_strangers_program(host, "bridge0")
    host.ip("link set refusing master bridge0")
    yield "refusing"
    host.ip("link del bridge0")
    host.ip("link del refusing")


@pytest.mark.timeout(300)
def test_upgrades_that_fail_leave_the_old_version_at_work(
    busy_relay: AgentProcess, refusing: str, tmp_path: Path
) -> None:
    """The verifier refuses the program; an interface takes none, when two have it already; and the
    maps cannot be brought over."""
    tries = {
        "invalid access to packet": (UNVERIFIABLE, ()),
        f"{refusing} takes no XDP program": (OTHER_PROGRAM, ("--inside", f"inside,{refusing}")),
        "cannot be brought over": (NARROW, ()),
    }
    before = at_work(busy_relay), pinned(busy_relay)
    log = tmp_path / "log"

    with stream(busy_relay) as running:
        busy_relay.stop()
        for complaint, (edits, more) in tries.items():
            tree = Version(tmp_path / complaint.split()[0], edits).folder
            running.carry(AROUND)
            failed = busy_relay.spawn(*more, log=log, tree=tree)
            assert failed.wait(60) == 1
            assert complaint in log.read_text()
            assert (at_work(busy_relay), pinned(busy_relay)) == before
        running.carry(AROUND)
        busy_relay.start()
        assert_took_over(busy_relay, running)
        report = running.stop()

    assert_nothing_lost(report)
    assert (at_work(busy_relay), pinned(busy_relay)) == before
