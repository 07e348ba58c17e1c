"""What the doctor says of the suite's relay and program; its other tests are in `tests/tools`."""

import asyncio
import os
from pathlib import Path

from pyroute2 import IPRoute

from loader import bpf
from loader.client import AgentClient
from loader.maps import versioned
from loader.types import Mode
from tests.loader.conftest import (
    FIRST_PORT,
    INSTANCE,
    LAST_PORT,
    RELAY_INSIDE,
    RELAY_INSIDE6,
    VIP,
    VIP6,
    AgentProcess,
)
from tools.doctor.checks import examine
from tools.doctor.facts import Facts
from tools.doctor.findings import Verdict
from tools.doctor.gather import facts_of_this_host
from tools.doctor.trial import attach_alone

NOBODY = "198.18.1.99"


def facts(agent: AgentProcess) -> Facts:
    return agent.host.run(
        lambda: facts_of_this_host(pins=agent.pins, agent=str(agent.socket), moment=0)
    )


def verdicts(found: Facts, check: str) -> dict[str, Verdict]:
    return {
        each.finding.about: each.finding.verdict
        for each in examine(found)
        if each.check.name == check
    }


def test_a_running_relay_is_seen_as_its_agent_made_it(shared_agent: AgentProcess) -> None:
    found = facts(shared_agent)

    assert found.agent is not None
    assert found.agent.ready
    assert found.plan.interfaces == ("public", "inside")
    assert found.plan.vips == ((VIP.address, VIP.port), (VIP6.address, VIP6.port))
    assert set(found.plan.inside_addresses) == {RELAY_INSIDE, RELAY_INSIDE6}
    assert found.plan.ports == (FIRST_PORT, LAST_PORT)
    assert verdicts(found, "attached") == {"public": Verdict.OK, "inside": Verdict.OK}
    assert verdicts(found, "addresses") == dict.fromkeys(
        (VIP.address, VIP6.address, RELAY_INSIDE, RELAY_INSIDE6), Verdict.OK
    )
    # Whose other ends have no NAPI, so that nothing would come out of them.
    assert verdicts(found, "redirect") == {"public": Verdict.FAILURE, "inside": Verdict.FAILURE}


def test_a_transceiver_without_a_mac_address_is_named(shared_agent: AgentProcess) -> None:
    async def while_registered() -> Facts:
        async with AgentClient(str(shared_agent.socket)) as agent:
            await agent.register(
                "ghost",
                instance=INSTANCE,
                address=NOBODY,
                port=40000,
                http=f"http://{NOBODY}:8080",
                capacity=1,
            )
            try:
                return await asyncio.to_thread(facts, shared_agent)
            finally:
                await agent.deregister("ghost", instance=INSTANCE)

    found = asyncio.run(while_registered())

    assert verdicts(found, "neighbours") == {"ghost": Verdict.FAILURE}


def test_the_trial_attaches_where_nobody_else_is(pins: Path, own_pins: Path) -> None:
    """`shunt doctor --try` compiles a program of its own first."""
    versioned(own_pins).mkdir(parents=True)
    for entry in versioned(pins).iterdir():
        descriptor = bpf.pinned(entry)
        bpf.pin(descriptor, versioned(own_pins) / entry.name)
        os.close(descriptor)

    assert attach_alone(own_pins) is Mode.NATIVE

    with IPRoute() as netlink:
        assert not netlink.link_lookup(ifname="doctor0")
