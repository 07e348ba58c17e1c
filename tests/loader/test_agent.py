"""The agent in one process with the test: decisions meet maps, netlink and HTTP; time is ours."""

import asyncio
import json
import socket
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from prometheus_client import generate_latest

from loader import types
from loader.agent import Agent
from loader.api import Runner, application
from loader.carriers import Attachment, attach
from loader.client import AgentClient, AgentRefused, Vip
from loader.config import AgentConfig
from loader.daemon import _serve_agent
from loader.errors import ShuntError
from loader.leases import write_lease
from loader.maps import Maps, ufrag_key
from loader.network import Network
from loader.problems import Refused
from loader.shapes import Registration
from loader.supervision import Supervision
from loader.table import GRACE_SECONDS, LEASE_SECONDS
from loader.types import Mode, State
from tests.loader.conftest import (
    INSTANCE,
    OTHER_INSTANCE,
    RELAY_INSIDE,
    RELAY_INSIDE6,
    TRANSCEIVER,
    TRANSCEIVER6,
    VIP,
    VIP6,
    Host,
    binding_request,
    config,
    drained,
    put,
    state,
)
from tools import netns

BODY: dict[str, Any] = {
    "instance": INSTANCE,
    "address": TRANSCEIVER,
    "port": 40000,
    "http": "http://198.18.1.11:8080",
    "capacity": 4,
}
DATAGRAM = socket.SOCK_DGRAM
BOTH = (RELAY_INSIDE, RELAY_INSIDE6)
Story = Callable[[Agent], Awaitable[None]]


@dataclass(slots=True)
class Clock:
    """Monotonic seconds that pass when a test says so."""

    now: float = 5000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@dataclass(frozen=True, slots=True)
class Start:
    """Starts agents over the same maps, one after another, in the host's namespace."""

    host: Host
    maps: Maps
    clock: Clock
    config: AgentConfig

    def __call__(
        self,
        story: Story,
        *,
        config: AgentConfig | None = None,
        attachments: list[Attachment] | None = None,
    ) -> None:
        config = config or self.config

        async def session() -> None:
            with Network() as network:
                await network.look()
                agent = Agent(config, self.maps, network, clock=self.clock)
                agent.configure(attachments or [attached(network, n) for n in config.interfaces])
                agent.adopt()
                await story(agent)

        self.host.run(lambda: asyncio.run(session()))


def attached(network: Network, name: str) -> Attachment:
    """As if the program were on the interface."""
    link = network.links.named(name)
    assert link is not None
    return Attachment(name, link.ifindex, Mode.NATIVE, mtu=link.mtu)


@pytest.fixture
def start(host: Host, maps: Maps, clock: Clock, tmp_path: Path, pins: Path) -> Start:
    return Start(host, maps, clock, config(tmp_path, pins))


async def register(agent: Agent, id: str = "x1", **change: Any) -> int:
    """Register; the transceiver's index."""
    registered, _reachable = await agent.register(id, Registration(**{**BODY, **change}))
    return registered.lease.index


def mac(host: Host, interface: str, *, outside: bool = False) -> str:
    words = host.ip(f"link show dev {interface}", outside=outside).split()
    return words[words.index("link/ether") + 1]


def ufrags(maps: Maps) -> set[str]:
    return {ufrag for ufrag, _route in maps.routes()}


def route_id(maps: Maps, ufrag: str) -> int:
    return next(int(route.id) for found, route in maps.routes() if found == ufrag)


def name_slots(maps: Maps, ufrag: str, *slots: int) -> None:
    """Have a route's entry name these slots, as the program would."""
    route = maps.route(ufrag)
    assert route
    route.slots[: len(slots)] = slots
    maps._maps["routes"].update(ufrag_key(ufrag), bytes(route))


# Configuration.


def test_the_maps_say_how_the_agent_was_configured(start: Start) -> None:
    async def story(agent: Agent) -> None:
        names = {i.name: i for i in start.maps.interfaces()}
        written = start.maps.settings()
        assert list(names) == ["public", "inside"]
        assert [names[name].inside for name in names] == [False, True]
        assert [vip.port for vip in written.vips][:3] == [3478, 3478, 0]
        assert types.text_address(bytes(written.inside[0].ipv4)) == "198.18.1.1"
        assert types.text_address(bytes(written.inside[0].ipv6)) == "2001:db8:118::1"
        assert [link.ifindex for link in written.inside_links][:2] == [names["inside"].ifindex, 0]
        assert any(written.seed)

    start(story)


def test_the_seed_by_which_flows_are_found_outlives_the_agent(start: Start) -> None:
    seeds = []

    async def story(agent: Agent) -> None:
        seeds.append(list(start.maps.settings().seed))

    start(story)
    start(story, config=replace(start.config, last_port=20100))

    assert seeds[0] == seeds[1]


# Leases meet the maps.


@pytest.mark.parametrize("address", [TRANSCEIVER, TRANSCEIVER6])
def test_a_registered_transceiver_is_in_the_map_with_its_next_hop(
    start: Start, address: str
) -> None:
    async def story(agent: Agent) -> None:
        index = await register(agent, address=address)
        async with asyncio.timeout(3):
            while not start.maps.transceiver(index).resolved:
                await register(agent, address=address)
        entry = start.maps.transceiver(index)
        interfaces = {i.name: i for i in start.maps.interfaces()}
        assert types.text_address(bytes(entry.address)) == address
        assert entry.port == 40000
        assert bytes(entry.hop.mac).hex(":") == mac(start.host, "behind", outside=True)
        assert bytes(entry.hop.source_mac).hex(":") == mac(start.host, "inside")
        assert entry.hop.ifindex == interfaces["inside"].ifindex
        assert (entry.hop.vlan, entry.hop.mtu) == (0, 1500)

    start(story)


@pytest.mark.parametrize(
    ("inside", "address", "problem", "why"),
    [
        (BOTH, RELAY_INSIDE, "address-of-the-relay", "give the transceiver's"),
        (BOTH, "2001:DB8:118:0::1", "address-of-the-relay", "give the transceiver's"),
        (BOTH, VIP.address, "address-of-the-relay", "give the transceiver's"),
        (BOTH, VIP6.address, "address-of-the-relay", "give the transceiver's"),
        ((RELAY_INSIDE,), TRANSCEIVER6, "address-not-served", "give an IPv4 one, or add"),
        ((RELAY_INSIDE6,), TRANSCEIVER, "address-not-served", "give an IPv6 one, or add"),
        (BOTH, "198.18.2.11", "address-not-allowed", "give one that is, or add a prefix"),
        (BOTH, f"::ffff:{TRANSCEIVER}", "malformed-body", f"give {TRANSCEIVER} itself"),
    ],
)
def test_an_address_that_this_relay_cannot_serve_is_refused_with_the_cure(
    start: Start, inside: tuple[str, ...], address: str, problem: str, why: str
) -> None:
    async def story(agent: Agent) -> None:
        with pytest.raises(Refused, match=why) as error:
            await register(agent, address=address)
        assert error.value.name == problem
        assert list(start.maps.transceivers()) == []

    prefixes = ("198.18.1.0/24",) if problem == "address-not-allowed" else ()
    start(
        story,
        config=replace(start.config, inside_addresses=inside, transceiver_prefixes=prefixes),
    )


@pytest.mark.parametrize("address", ["198.18.1.2", "2001:db8:118::2"])
def test_another_address_of_the_relays_host_is_no_transceivers(start: Start, address: str) -> None:
    async def story(agent: Agent) -> None:
        length = 64 if ":" in address else 24
        start.host.ip(f"addr add {address}/{length} dev inside nodad")
        with pytest.raises(Refused, match="one of the relay's host") as error:
            await register(agent, address=address)
        assert error.value.name == "address-of-the-relay"
        assert list(start.maps.transceivers()) == []
        start.host.ip(f"addr del {address}/{length} dev inside")
        await register(agent, address=address)

    start(story)


def test_one_address_written_in_two_ways_is_one_transceiver(start: Start) -> None:
    async def story(agent: Agent) -> None:
        index = await register(agent, address="2001:db8:118:0:0::11")
        assert await register(agent, address="2001:DB8:118::11") == index
        (told,) = agent.transceivers()["transceivers"]
        assert told["address"] == TRANSCEIVER6

    start(story)


@pytest.mark.parametrize("checks", [True, False])
def test_a_route_tells_the_program_whether_its_transceiver_makes_checks(
    start: Start, checks: bool
) -> None:
    async def story(agent: Agent) -> None:
        await register(agent)
        agent.add_route("abcd", transceiver="x1", instance=INSTANCE, checks=checks)
        ((_ufrag, route),) = start.maps.routes()
        assert route.flags == (0 if checks else types.ROUTE_NO_CHECKS)

    start(story)


def test_leases_end_by_the_clock_with_routes_flows_and_entry(start: Start) -> None:
    maps, clock = start.maps, start.clock

    async def story(agent: Agent) -> None:
        index = await register(agent)
        agent.add_route("abcd", transceiver="x1", instance=INSTANCE)
        put(maps, 20001, route=route_id(maps, "abcd"), seen=clock.now, transceiver=index)

        clock.now += LEASE_SECONDS - 0.1
        agent.housekeeping.sweep()
        assert ufrags(maps) == {"abcd"}

        clock.now += 0.2
        agent.housekeeping.sweep()
        assert ufrags(maps) == set()
        assert state(maps, 20001) is State.CLOSING
        assert maps.transceiver(index).port == 0
        assert agent.transceivers() == {"transceivers": []}

    start(story)


def test_renewing_keeps_all_of_it(start: Start) -> None:
    maps, clock = start.maps, start.clock

    async def story(agent: Agent) -> None:
        index = await register(agent)
        agent.add_route("abcd", transceiver="x1", instance=INSTANCE)
        put(maps, 20001, route=route_id(maps, "abcd"), seen=clock.now, transceiver=index)
        for _ in range(5):
            clock.now += 5.0
            assert await register(agent) == index
            agent.housekeeping.sweep()
        assert ufrags(maps) == {"abcd"}
        assert state(maps, 20001) is State.ESTABLISHED

    start(story)


def test_the_index_of_a_gone_transceiver_waits_for_its_last_port(start: Start) -> None:
    maps, clock = start.maps, start.clock

    async def story(agent: Agent) -> None:
        index = await register(agent)
        agent.add_route("abcd", transceiver="x1", instance=INSTANCE)
        put(maps, 20001, route=route_id(maps, "abcd"), seen=clock.now, transceiver=index)
        agent.deregister("x1", INSTANCE)

        agent.housekeeping.sweep()
        assert await register(agent, "x2", port=40002) != index

        clock.now += 10.5  # the port's rest
        agent.housekeeping.sweep()
        assert await register(agent, "x3", port=40003) == index

    start(story)


def test_a_route_that_does_not_fit_into_the_map_is_no_route(start: Start) -> None:
    def full(ufrag: str, *, id: int, transceiver: int, checks: bool = True) -> None:
        raise ShuntError("the relay's route map is full")

    async def story(agent: Agent) -> None:
        await register(agent)
        start.maps.add_route = full  # type: ignore[method-assign]
        with pytest.raises(Refused) as error:
            agent.add_route("abcd", transceiver="x1", instance=INSTANCE)
        assert error.value.name == "route-map-full"
        del start.maps.add_route
        assert agent.routes() == {"routes": [], "next": None}
        agent.add_route("abcd", transceiver="x1", instance=INSTANCE)
        assert ufrags(start.maps) == {"abcd"}

    start(story)


def test_deregistering_while_the_kernel_is_asked_leaves_no_entry(start: Start) -> None:
    async def story(agent: Agent) -> None:
        start.host.ip(f"neigh replace {TRANSCEIVER} lladdr 02:00:00:00:00:77 dev inside")
        for _ in range(20):
            renewal = asyncio.create_task(agent.register("x1", Registration(**BODY)))
            await asyncio.sleep(0)
            agent.deregister("x1", INSTANCE)
            await renewal
        assert list(start.maps.transceivers()) == []
        assert all(not start.maps.transceiver(index).resolved for index in range(20))

    start(story)


def test_an_answer_for_a_gone_transceiver_is_not_written_to_the_next(start: Start) -> None:
    """The index may have come to another while the kernel was asked."""

    async def story(agent: Agent) -> None:
        start.host.ip(f"neigh replace {TRANSCEIVER} lladdr 02:00:00:00:00:77 dev inside")
        renewal = asyncio.create_task(agent.register("x1", Registration(**BODY)))
        await asyncio.sleep(0)
        agent.deregister("x1", INSTANCE)
        agent.housekeeping.sweep()
        next_one = asyncio.create_task(
            agent.register(
                "x2",
                Registration(**{**BODY, "instance": OTHER_INSTANCE, "address": "198.18.1.99"}),
            )
        )
        registered, _ = await renewal
        assert not start.maps.transceiver(registered.lease.index).resolved
        other, reachable = await next_one
        assert other.lease.index == registered.lease.index
        assert not reachable

    start(story)


# Adoption.


@pytest.mark.parametrize("address", [TRANSCEIVER, TRANSCEIVER6])
@pytest.mark.parametrize("checks", [True, False])
def test_a_new_agent_adopts_what_the_last_one_left(
    start: Start, address: str, checks: bool
) -> None:
    maps, clock = start.maps, start.clock
    indexes = []

    async def before(agent: Agent) -> None:
        indexes.append(await register(agent, address=address))
        agent.add_route("ab/+", transceiver="x1", instance=INSTANCE, checks=checks)
        put(maps, 20001, route=route_id(maps, "ab/+"), seen=clock.now, transceiver=indexes[0])
        name_slots(maps, "ab/+", 20001)

    async def after(agent: Agent) -> None:
        (route,) = agent.routes()["routes"]
        assert (route["ufrag"], route["transceiver"]) == ("ab/+", "x1")
        assert (route["checks"], route["slots"]) == (checks, [20001])
        (flow,) = agent.flows()["flows"]
        assert (flow["ufrag"], flow["transceiver"], flow["state"]) == ("ab/+", "x1", "established")
        assert await register(agent, address=address) == indexes[0]
        clock.now += 14
        agent.housekeeping.sweep()
        assert ufrags(maps) == {"ab/+"}
        assert state(maps, 20001) is State.ESTABLISHED
        agent.remove_route("ab/+", instance=INSTANCE)
        agent.housekeeping.sweep()
        assert state(maps, 20001) is State.CLOSING

    start(before)
    start(after)


@pytest.mark.parametrize(
    ("away", "left"),
    [(4.0, 11.0), (12.0, GRACE_SECONDS), (60.0, GRACE_SECONDS)],
    ids=["in time", "about to end", "ended meanwhile"],
)
def test_an_adopted_lease_goes_on_where_it_was_and_leaves_time_to_renew(
    start: Start, away: float, left: float
) -> None:
    async def before(agent: Agent) -> None:
        await register(agent)
        agent.add_route("abcd", transceiver="x1", instance=INSTANCE)

    async def after(agent: Agent) -> None:
        (told,) = agent.transceivers()["transceivers"]
        assert told["lease_s"] == pytest.approx(left)
        assert (told["http"], told["capacity"]) == (BODY["http"], BODY["capacity"])
        start.clock.now += left - 0.1
        agent.housekeeping.sweep()
        assert ufrags(start.maps) == {"abcd"}
        start.clock.now += 0.2
        agent.housekeeping.sweep()
        assert ufrags(start.maps) == set()

    start(before)
    start.clock.now += away
    start(after)


def test_what_a_renewal_says_is_what_a_successor_knows(start: Start) -> None:
    async def before(agent: Agent) -> None:
        await register(agent)
        start.clock.now += 10.0
        await register(agent, http="https://x1.example", capacity=7)

    async def after(agent: Agent) -> None:
        (told,) = agent.transceivers()["transceivers"]
        assert (told["http"], told["capacity"]) == ("https://x1.example", 7)
        assert told["lease_s"] == pytest.approx(LEASE_SECONDS)

    start(before)
    start(after)


def test_a_renewal_keeps_the_next_hop(start: Start) -> None:
    async def story(agent: Agent) -> None:
        index = await register(agent)
        entry = start.maps.transceiver(index)
        entry.resolved, entry.hop.ifindex = 1, 77
        start.maps.set_transceiver(index, entry)
        write_lease(start.maps, agent._table.lease("x1"))
        assert start.maps.transceiver(index).hop.ifindex == 77

    start(story)


# Drains.


def drained_events(agent: Agent) -> list[tuple[str | None, str]]:
    """Of whom and why."""
    events, _missed = agent.events.since(0)
    return [(e.facts["transceiver"], e.facts["why"]) for e in events if e.kind == "drain_ended"]


@pytest.mark.parametrize("id", ["x1", None])
def test_a_drain_goes_on_until_the_last_session_ends(start: Start, id: str | None) -> None:
    maps, clock = start.maps, start.clock

    async def story(agent: Agent) -> None:
        index = await register(agent)
        agent.add_route("abcd", transceiver="x1", instance=INSTANCE)
        put(maps, 20001, route=route_id(maps, "abcd"), seen=clock.now, transceiver=index)

        begun = agent.drains.begin(id, deadline_s=None)
        assert (begun.draining, begun.over, begun.routes, begun.flows) == (True, False, 1, 1)
        with pytest.raises(Refused) as error:
            agent.add_route("efgh", transceiver="x1", instance=INSTANCE)
        assert error.value.name == "draining"
        clock.now += 10.0
        agent.drains.look()
        assert agent.drains.progress(id).since_s == pytest.approx(10.0)
        assert ufrags(maps) == {"abcd"}
        assert drained_events(agent) == []

        agent.remove_route("abcd", instance=INSTANCE)
        agent.drains.look()
        agent.drains.look()
        assert agent.drains.progress(id).over
        assert drained_events(agent) == [(id, "drained")], "told once"

    start(story)


def test_a_drain_of_one_transceiver_leaves_the_others_alone(start: Start) -> None:
    async def story(agent: Agent) -> None:
        await register(agent)
        await register(agent, "x2", port=40002, instance=OTHER_INSTANCE)
        agent.add_route("abcd", transceiver="x2", instance=OTHER_INSTANCE)
        agent.drains.begin("x1", deadline_s=0.0)
        while agent.drains.look():
            pass
        assert agent.add_route("efgh", transceiver="x2", instance=OTHER_INSTANCE)
        told = {t["id"]: t["draining"] for t in agent.transceivers()["transceivers"]}
        assert told == {"x1": True, "x2": False}
        assert ufrags(start.maps) == {"abcd", "efgh"}

    start(story)


@pytest.mark.parametrize("id", ["x1", None])
def test_at_the_deadline_what_remains_is_ended(start: Start, id: str | None) -> None:
    maps, clock = start.maps, start.clock

    async def story(agent: Agent) -> None:
        index = await register(agent)
        agent.add_route("abcd", transceiver="x1", instance=INSTANCE)
        put(maps, 20001, route=route_id(maps, "abcd"), seen=clock.now, transceiver=index)
        assert agent.drains.begin(id, deadline_s=10.0).deadline_s == 10.0

        clock.now += 9.9
        agent.drains.look()
        assert ufrags(maps) == {"abcd"}

        clock.now += 0.2
        while agent.drains.look():
            pass
        assert ufrags(maps) == set()
        await register(agent)  # it was not renewed for so long
        agent.housekeeping.sweep()
        assert state(maps, 20001) is State.CLOSING
        assert drained_events(agent) == [(id, "deadline")]
        assert agent.transceivers()["transceivers"][0]["draining"], "the lease stays"

    start(story)


def test_a_drain_ends_one_transceiver_at_a_time_so_that_others_are_served(start: Start) -> None:
    async def story(agent: Agent) -> None:
        for id, port, instance in (("x1", 1, INSTANCE), ("x2", 2, OTHER_INSTANCE)):
            await register(agent, id, port=port, instance=instance)
            agent.add_route(f"of{id}", transceiver=id, instance=instance)
        agent.drains.begin(None, deadline_s=60.0)
        start.clock.now += 60.0
        assert agent.drains.look()
        assert ufrags(start.maps) == {"ofx2"}
        assert agent.drains.look()
        assert not agent.drains.look()
        assert drained_events(agent) == [(None, "deadline")]

    start(story)


@pytest.mark.parametrize("id", ["x1", None])
def test_a_drain_can_be_called_off(start: Start, id: str | None) -> None:
    async def story(agent: Agent) -> None:
        await register(agent)
        agent.add_route("abcd", transceiver="x1", instance=INSTANCE)
        agent.drains.begin(id, deadline_s=30.0)
        agent.drains.call_off(id)
        agent.drains.call_off(id)
        start.clock.now += 60.0
        agent.drains.look()
        assert not agent.drains.progress(id).draining
        assert agent.add_route("efgh", transceiver="x1", instance=INSTANCE)
        assert drained_events(agent) == [(id, "called off")]

    async def after(agent: Agent) -> None:
        assert not agent.drains.progress(id).draining

    start(story)
    start(after)


@pytest.mark.parametrize("id", ["x1", None])
@pytest.mark.parametrize("deadline", [None, 60.0])
def test_a_drain_outlives_the_agent(start: Start, id: str | None, deadline: float | None) -> None:
    maps, clock = start.maps, start.clock

    async def before(agent: Agent) -> None:
        await register(agent)
        agent.add_route("abcd", transceiver="x1", instance=INSTANCE)
        agent.drains.begin(id, deadline_s=deadline)

    async def after(agent: Agent) -> None:
        progress = agent.drains.progress(id)
        assert progress.since_s == pytest.approx(4.0)
        assert progress.deadline_s == (deadline and pytest.approx(56.0))
        with pytest.raises(Refused):
            agent.add_route("efgh", transceiver="x1", instance=INSTANCE)
        clock.now += 56.1
        while agent.drains.look():
            pass
        assert ufrags(maps) == (set() if deadline else {"abcd"})

    start(before)
    clock.now += 4.0
    start(after)


def test_a_drain_that_was_over_is_not_told_again_by_the_next_agent(start: Start) -> None:
    async def before(agent: Agent) -> None:
        await register(agent)
        agent.drains.begin("x1", deadline_s=None)
        assert drained_events(agent) == [("x1", "drained")]

    async def after(agent: Agent) -> None:
        agent.drains.look()
        assert agent.drains.progress("x1").over
        assert drained_events(agent) == []

    start(before)
    start(after)


def test_another_deadline_does_not_begin_the_drain_anew(start: Start) -> None:
    async def story(agent: Agent) -> None:
        await register(agent)
        agent.drains.begin("x1", deadline_s=None)
        start.clock.now += 5.0
        progress = agent.drains.begin("x1", deadline_s=60.0)
        assert (progress.since_s, progress.deadline_s) == (5.0, 60.0)

    start(story)


def test_what_befalls_routes_and_transceivers_is_told(start: Start) -> None:
    async def story(agent: Agent) -> None:
        await register(agent)
        await register(agent)
        agent.add_route("abcd", transceiver="x1", instance=INSTANCE)
        agent.add_route("abcd", transceiver="x1", instance=INSTANCE)
        with pytest.raises(Refused):
            agent.add_route("ab", transceiver="x1", instance=INSTANCE)
        events, _missed = agent.events.since(0)
        told = [(event.kind, event.facts) for event in events]
        assert [kind for kind, _ in told] == [
            *("transceiver_registered", "route_added", "route_refused")
        ]
        assert told[0][1]["transceiver"] == "x1"
        assert told[1][1] == {"ufrag": "abcd", "transceiver": "x1"}
        assert told[2][1] == {"ufrag": "ab", "transceiver": "x1", "why": "bad-ufrag"}

    start(story)


def test_a_new_process_after_the_restart_does_not_get_the_old_routes(start: Start) -> None:
    async def before(agent: Agent) -> None:
        await register(agent)
        agent.add_route("abcd", transceiver="x1", instance=INSTANCE)

    async def after(agent: Agent) -> None:
        await register(agent, instance=OTHER_INSTANCE)
        assert ufrags(start.maps) == set()

    start(before)
    start(after)


def test_a_route_without_a_transceiver_is_not_adopted(start: Start) -> None:
    async def after(agent: Agent) -> None:
        assert ufrags(start.maps) == set()
        await register(agent)
        agent.add_route("lost", transceiver="x1", instance=INSTANCE)

    start.maps.add_route("lost", id=9, transceiver=77)
    start(after)


def test_ids_and_indexes_that_slots_still_name_are_not_given_out_again(start: Start) -> None:
    async def after(agent: Agent) -> None:
        assert await register(agent) == 1
        agent.add_route("abcd", transceiver="x1", instance=INSTANCE)
        assert route_id(start.maps, "abcd") == 2

    put(start.maps, 20001, State.CLOSING, route=1, seen=5000.0, since=5000.0, transceiver=0)
    start(after)


def test_flows_of_the_same_settings_live_on(start: Start) -> None:
    async def before(agent: Agent) -> None:
        index = await register(agent)
        agent.add_route("abcd", transceiver="x1", instance=INSTANCE)
        id = route_id(start.maps, "abcd")
        put(start.maps, 20001, route=id, seen=start.clock.now, transceiver=index)

    async def after(agent: Agent) -> None:
        assert state(start.maps, 20001) is State.ESTABLISHED

    start(before)
    start(after)


OTHER_VIP = Vip("198.18.0.2", 3478)
ENDS, GOES_ON = State.CLOSING, State.ESTABLISHED


@pytest.mark.parametrize(
    ("change", "of_vip", "of_vip6"),
    [
        ({"first_port": 20032}, ENDS, ENDS),
        ({"last_port": 20100}, GOES_ON, GOES_ON),
        ({"inside_addresses": ("198.18.1.2", RELAY_INSIDE6)}, ENDS, ENDS),
        ({"inside_addresses": (RELAY_INSIDE,)}, ENDS, ENDS),
        ({"vips": (VIP, VIP6, OTHER_VIP)}, GOES_ON, GOES_ON),
        ({"vips": (OTHER_VIP, VIP6)}, ENDS, GOES_ON),
        ({"vips": (VIP,)}, GOES_ON, ENDS),
        ({"vips": (VIP6, VIP)}, ENDS, ENDS),
    ],
    ids=[
        *("port outside", "more ports", "other inside address", "no inside IPv6"),
        *("one VIP more", "another VIP", "a VIP less", "VIPs swapped"),
    ],
)
def test_flows_that_other_settings_would_break_end_and_no_others(
    start: Start, change: dict[str, Any], of_vip: State, of_vip6: State
) -> None:
    config = replace(start.config, **change)
    maps, clock = start.maps, start.clock

    async def before(agent: Agent) -> None:
        index = await register(agent)
        agent.add_route("abcd", transceiver="x1", instance=INSTANCE)
        opened = partial(put, maps, route=route_id(maps, "abcd"), seen=clock.now, transceiver=index)
        opened(20001, vip=0)
        opened(20002, vip=1, client="2001:db8:18::10")

    async def after(agent: Agent) -> None:
        agent.housekeeping.sweep()
        assert (state(maps, 20001), state(maps, 20002)) == (of_vip, of_vip6)
        everything = set(range(config.first_port, config.last_port + 1))
        assert set(drained(maps)) == everything - {20001, 20002}

    start(before)
    start(after, config=config)


# What people are told.


def test_a_flow_is_told_as_its_transceiver_sees_it(start: Start) -> None:
    async def story(agent: Agent) -> None:
        four = await register(agent)
        six = await register(agent, "x2", address=TRANSCEIVER6, instance=OTHER_INSTANCE)
        put(start.maps, 20001, transceiver=four, client="2001:db8:18::10", vip=1)
        put(start.maps, 20002, transceiver=six, client="198.18.0.10", vip=0)
        put(start.maps, 20003, transceiver=77)
        told = {flow["slot"]: flow for flow in agent.flows()["flows"]}
        assert [(f["slot"], f["port"]) for f in told.values()] == [
            *((20001, 20001), (20002, 20002), (20003, 20003))
        ]
        assert told[20001]["client"] == "[2001:db8:18::10]:50000"
        assert told[20001]["vip"] == "[2001:db8:18::1]:3478"
        assert told[20001]["inside"] == "198.18.1.1:20001"
        assert told[20002]["client"] == "198.18.0.10:50000"
        assert told[20002]["vip"] == "198.18.0.1:3478"
        assert told[20002]["inside"] == "[2001:db8:118::1]:20002"
        assert (told[20003]["inside"], told[20003]["transceiver"]) == (None, None)

    start(story)


def test_flows_are_told_page_by_page_and_how_many_there_are(start: Start) -> None:
    async def story(agent: Agent) -> None:
        for half in ("to_transceiver", "to_client"):
            start.maps.slots[half]["state"][1:6] = State.PENDING
        first = agent.flows(limit=2)
        second = agent.flows(limit=2, after=first["next"])
        third = agent.flows(limit=2, after=second["next"])
        pages = [[flow["slot"] for flow in page["flows"]] for page in (first, second, third)]
        assert pages == [[1, 2], [3, 4], [5]]
        assert (third["next"], third["count"]) == (None, 5)

    start(story)


def test_routes_are_told_page_by_page_with_their_own_living_slots(start: Start) -> None:
    maps = start.maps

    async def story(agent: Agent) -> None:
        index = await register(agent)
        for ufrag in ("abcd", "efgh", "ijkl"):
            agent.add_route(ufrag, transceiver="x1", instance=INSTANCE)
        mine, other = route_id(maps, "abcd"), route_id(maps, "efgh")
        put(maps, 20001, route=mine, transceiver=index)
        put(maps, 20002, State.CLOSING, route=mine, transceiver=index)
        put(maps, 20003, route=other, transceiver=index)
        name_slots(maps, "abcd", 20001, 20002, 20003)
        first = agent.routes(limit=2)
        second = agent.routes(limit=2, after=first["next"])
        assert [r["ufrag"] for r in first["routes"]] == ["abcd", "efgh"]
        assert [r["slots"] for r in first["routes"]] == [[20001], [20003]]
        assert ([r["ufrag"] for r in second["routes"]], second["next"]) == (["ijkl"], None)
        assert agent.routes(slots=False, limit=1)["routes"] == [
            {"ufrag": "abcd", "transceiver": "x1", "checks": True}
        ]

    start(story)


# Interfaces.


@asynccontextmanager
async def running(agent: Agent) -> AsyncIterator[None]:
    """The agent at its work, all but the API."""
    async with asyncio.TaskGroup() as tasks:
        work = [
            tasks.create_task(each)
            for each in (
                agent.housekeeping.keep(),
                agent.following.follow(),
                agent.following.watch(),
            )
        ]
        yield
        for task in work:
            task.cancel()


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not holds():  # noqa: ASYNC110 - the agent does not tell
            await asyncio.sleep(0.01)


def test_the_relay_is_not_ready_once_the_program_is_off(start: Start) -> None:
    async def story(agent: Agent) -> None:
        assert agent.not_ready() is None
        async with running(agent):
            await until(lambda: agent.not_ready() is not None)  # nothing was ever attached
        why = agent.not_ready()
        assert why is not None
        assert why.startswith("public no longer carries the XDP program: `systemctl restart")
        assert agent.counters()["mode"] == {"public": "detached", "inside": "detached"}

    start(story)


def test_an_interface_that_goes_away_does_not_take_the_agent_with_it(start: Start) -> None:
    async def story(agent: Agent) -> None:
        await register(agent)
        async with running(agent):
            start.host.ip("link del inside")
            await until(lambda: agent.not_ready() is not None)
            await register(agent)
            await register(agent, "x2", address="198.18.1.12", instance=OTHER_INSTANCE)
        assert [t["id"] for t in agent.transceivers()["transceivers"]] == ["x1", "x2"]

    start(story)


def test_an_mtu_that_changes_reaches_interfaces_and_transceivers(start: Start) -> None:
    maps = start.maps

    def mtus() -> dict[str, int]:
        return {interface.name: interface.mtu for interface in maps.interfaces()}

    async def story(agent: Agent) -> None:
        four = await register(agent)
        six = await register(agent, "x2", address=TRANSCEIVER6, instance=OTHER_INSTANCE)
        async with running(agent):
            await until(lambda: all(maps.transceiver(n).resolved for n in (four, six)))
            assert mtus() == {"public": 1500, "inside": 1500}
            for mtu in (1400, 9000, 1500):
                start.host.ip(f"link set inside mtu {mtu}")
                await until(lambda mtu=mtu: maps.transceiver(four).hop.mtu == mtu)  # type: ignore[misc]
                await until(lambda mtu=mtu: maps.transceiver(six).hop.mtu == mtu)  # type: ignore[misc]
                assert mtus() == {"public": 1500, "inside": mtu}

    start(story)


def test_a_mac_that_moves_changes_one_entry_and_no_slot(start: Start) -> None:
    maps = start.maps

    async def story(agent: Agent) -> None:
        four = await register(agent)
        six = await register(agent, "x2", address=TRANSCEIVER6, instance=OTHER_INSTANCE)
        put(maps, 20001, transceiver=four, seen=start.clock.now)
        agent.add_route("abcd", transceiver="x1", instance=INSTANCE)
        maps.slots["book"]["route"][20001] = route_id(maps, "abcd")
        slots = maps.slots.tobytes()
        async with running(agent):
            await until(lambda: all(maps.transceiver(n).resolved for n in (four, six)))
            before = bytes(maps.transceiver(four))
            for number in range(1, 4):
                moved = f"02:00:00:00:00:{number:02x}"
                start.host.ip(f"neigh replace {TRANSCEIVER6} lladdr {moved} dev inside")
                await until(
                    lambda moved=moved: bytes(maps.transceiver(six).hop.mac).hex(":") == moved  # type: ignore[misc]
                )
        assert bytes(maps.transceiver(four)) == before
        assert maps.slots.tobytes() == slots

    start(story)


def test_the_relays_own_mac_is_followed(start: Start) -> None:
    async def story(agent: Agent) -> None:
        index = await register(agent)
        async with running(agent):
            await until(lambda: bool(start.maps.transceiver(index).resolved))
            start.host.ip("link set inside address 02:00:00:00:0a:0a")
            await until(
                lambda: (
                    bytes(start.maps.transceiver(index).hop.source_mac).hex(":")
                    == "02:00:00:00:0a:0a"
                )
            )

    start(story)


# VLANs.


@pytest.mark.parametrize("address", ["198.18.3.11", "2001:db8:318::11"])
def test_a_relay_on_a_vlan_serves_transceivers_there(
    start: Start, vlans: Host, pins: Path, address: str
) -> None:
    maps = start.maps
    config = replace(
        start.config, inside=("inside.100",), inside_addresses=("198.18.3.1", "2001:db8:318::1")
    )

    inside_address = config.inside_addresses[":" in address]

    def listen() -> socket.socket:
        # XDP_REDIRECT into a veth delivers only to a peer with NAPI.
        subprocess.run(["ethtool", "-K", "behind", "gro", "on"], check=True)
        listener = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, DATAGRAM)
        listener.bind((address, 40000))
        listener.settimeout(5)
        return listener

    def knock() -> None:
        with socket.socket(socket.AF_INET, DATAGRAM) as client:
            client.sendto(binding_request("abcd"), (VIP.address, VIP.port))

    async def story(agent: Agent) -> None:
        index = await register(agent, address=address)
        agent.add_route("abcd", transceiver="x1", instance=INSTANCE)
        (_public, inside) = maps.interfaces()
        (link, *_) = maps.settings().inside_links
        assert (inside.name, inside.vlan, inside.mtu) == ("inside.100", 100, 1500)
        assert (link.ifindex, link.vlan) == (inside.ifindex, 100)
        async with running(agent):
            await until(lambda: bool(maps.transceiver(index).resolved))
            hop = maps.transceiver(index).hop
            assert (hop.ifindex, hop.vlan, hop.mtu) == (inside.ifindex, 100, 1500)
            assert bytes(hop.source_mac).hex(":") == mac(vlans, "inside.100")

            with netns.run_in(vlans.outside, listen) as listener:
                netns.run_in(vlans.outside, knock)
                datagram, source = listener.recvfrom(2048)
            assert datagram == binding_request("abcd")
            assert source[:2] == (inside_address, flow_port(agent))

            vlans.ip("link set inside.100 mtu 1300")
            await until(lambda: maps.transceiver(index).hop.mtu == 1300)
            assert maps.interfaces()[1].mtu == 1300

    attachments = vlans.run(lambda: attach(pins, config.interfaces))
    start(story, config=config, attachments=attachments)


def flow_port(agent: Agent) -> int:
    (flow,) = agent.flows()["flows"]
    return int(flow["port"])


# HTTP: who may ask.


@asynccontextmanager
async def served(agent: Agent) -> AsyncIterator[Path]:
    runner = Runner(application(agent))
    await runner.setup()
    await web.UnixSite(runner, str(agent.config.socket)).start()
    agent.config.socket.chmod(0o666)
    agent.config.socket.parent.chmod(0o755)
    yield agent.config.socket
    await runner.cleanup()


async def ask_as(uid: int, socket: Path, request: bytes) -> bytes:
    """Send a request as another user; the whole answer."""
    script = (
        "import socket, sys\n"
        f"s = socket.socket(socket.AF_UNIX); s.connect({socket.name!r})\n"
        f"s.sendall({request!r})\n"
        "while data := s.recv(65536): sys.stdout.buffer.write(data)\n"
    )
    process = await asyncio.create_subprocess_exec(
        *("/usr/bin/python3", "-I", "-S", "-c", script),
        cwd=socket.parent,
        user=uid,
        group=uid,
        extra_groups=[],
        stdout=asyncio.subprocess.PIPE,
    )
    answer, _ = await process.communicate()
    return answer


@pytest.mark.parametrize(
    "request_line",
    ["GET /v1/routes", "GET /healthz", "PUT /v1/transceivers/x1", "GET /nothing", "DELETE /readyz"],
)
def test_another_user_is_refused_whatever_they_ask(start: Start, request_line: str) -> None:
    async def story(agent: Agent) -> None:
        request = f"{request_line} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode()
        async with served(agent) as socket:
            answer = await ask_as(65534, socket, request)
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 403 ")
        problem = json.loads(body)
        assert problem["type"] == "/problems/forbidden"
        assert problem["detail"].startswith("user 65534 may not use the agent: ")

    start(story)


def test_users_who_may_not_ask_cannot_hold_the_agent_up(start: Start) -> None:
    async def story(agent: Agent) -> None:
        async with served(agent) as socket, AgentClient(str(socket)) as client:
            script = (
                "import socket, sys\n"
                "held = [socket.socket(socket.AF_UNIX) for _ in range(40)]\n"
                f"for each in held: each.connect({socket.name!r})\n"
                "ended = sum(1 for each in held[16:] if not each.recv(1))\n"
                "held[0].sendall(b'GET / HTTP/1.0\\r\\n\\r\\n')\n"
                "print(ended, held[0].recv(12).decode(), flush=True)\n"
                "sys.stdin.read()\n"
            )
            stranger = await asyncio.create_subprocess_exec(
                *("/usr/bin/python3", "-I", "-S", "-c", script),
                cwd=socket.parent,
                user=65534,
                group=65534,
                extra_groups=[],
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
            )
            assert stranger.stdout
            try:
                async with asyncio.timeout(20):
                    assert await stranger.stdout.readline() == b"24 HTTP/1.0 403\n"
                assert await client.health() == {"ready": True}
            finally:
                stranger.kill()
                await stranger.communicate()

    start(story)


def test_a_user_whom_the_configuration_allows_may_ask(start: Start) -> None:
    async def story(agent: Agent) -> None:
        request = b"GET /healthz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
        async with served(agent) as socket:
            assert (await ask_as(65534, socket, request)).startswith(b"HTTP/1.1 200 ")

    start(story, config=replace(start.config, uids=frozenset({65534})))


def test_a_superseded_process_is_told_so_over_http(start: Start) -> None:
    async def story(agent: Agent) -> None:
        async with served(agent) as socket, AgentClient(str(socket)) as client:
            await client.register("x1", **BODY)
            await client.register("x1", **{**BODY, "instance": OTHER_INSTANCE})
            with pytest.raises(AgentRefused) as error:
                await client.register("x1", **BODY)
        assert (error.value.status, error.value.type) == (409, "superseded")
        assert error.value.detail.startswith("another process has taken the place of x1")
        assert error.value.cure.startswith("Stop, or register under")

    start(story)


# Starting to serve.


@pytest.mark.parametrize("what", ["a file", "a folder", "too long"])
def test_a_socket_that_cannot_be_is_refused_and_nothing_deleted(
    start: Start, tmp_path: Path, what: str
) -> None:
    place = tmp_path / ("x" * 120 if what == "too long" else "precious")
    if what == "a file":
        place.write_text("precious")
    elif what == "a folder":
        place.mkdir()

    async def story(agent: Agent) -> None:
        with pytest.raises(ShuntError, match="cannot listen at") as error:
            await _serve_agent(agent, Supervision())
        assert str(place) in error.value.what

    start(story, config=replace(start.config, socket=place))
    assert what != "a file" or place.read_text() == "precious"
    assert what != "a folder" or place.is_dir()


# Metrics.


def test_events_that_are_left_out_for_their_number_are_counted_all_the_same(start: Start) -> None:
    async def story(agent: Agent) -> None:
        agent.events.tell("established", ufrag="abcd")
        agent.events.tell("left_out", established=500, roamed=3)

        told = generate_latest(agent.metrics.scrape()).decode()

        assert 'shunt_agent_events_total{kind="established"} 501.0' in told
        assert 'shunt_agent_events_total{kind="roamed"} 3.0' in told

    start(story)


def test_a_lease_that_was_not_renewed_counts_as_expired(start: Start) -> None:
    async def story(agent: Agent) -> None:
        await register(agent)
        start.clock.now += LEASE_SECONDS + 1
        agent.housekeeping.sweep()

        told = generate_latest(agent.metrics.scrape()).decode()

        assert 'shunt_agent_leases_ended_total{why="expired"} 1.0' in told
        assert 'shunt_agent_leases_ended_total{why="deregistered"} 0.0' in told

    start(story)


def test_metrics_are_told_even_if_somebody_has_removed_the_programs_pin(start: Start) -> None:
    async def story(agent: Agent) -> None:
        told = generate_latest(agent.metrics.scrape()).decode()

        assert 'shunt_agent_build_info{layout="v' in told
        assert 'program_tag=""' in told

    start(story, config=replace(start.config, pins=Path("/sys/fs/bpf/shunt-removed")))
