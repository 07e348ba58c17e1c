"""The agent in one process with the test: decisions meet maps, netlink and HTTP; time is ours."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from pyroute2 import AsyncIPRoute

from loader import types
from loader.agent import Agent, AgentConfig
from loader.api import application
from loader.client import AgentClient, AgentRefused, Vip
from loader.daemon import _serve_agent
from loader.datapath import Attachment
from loader.errors import ShuntError
from loader.maps import Maps
from loader.table import LEASE_SECONDS, Refused
from loader.types import Mode, State
from tests.loader.conftest import INSTANCE, OTHER_INSTANCE, TRANSCEIVER, Host
from tests.loader.test_flows import put, state

BODY = {
    "instance": INSTANCE,
    "address": TRANSCEIVER,
    "port": 40000,
    "http": "http://198.18.1.11:8080",
    "capacity": 4,
}
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

    def __call__(self, story: Story, *, config: AgentConfig | None = None) -> None:
        config = config or self.config

        async def session() -> None:
            async with AsyncIPRoute() as netlink:
                agent = Agent(config, self.maps, netlink, clock=self.clock)
                agent.configure(
                    [
                        Attachment(name, await ifindex(netlink, name), Mode.NATIVE)
                        for name in config.interfaces
                    ]
                )
                agent.adopt()
                await story(agent)

        self.host.run(lambda: asyncio.run(session()))


async def ifindex(netlink: AsyncIPRoute, name: str) -> int:
    found: list[int] = await netlink.link_lookup(ifname=name)
    return found[0]


@pytest.fixture
def start(host: Host, maps: Maps, clock: Clock, tmp_path: Path, pins: Path) -> Start:
    return Start(host, maps, clock, host.config(tmp_path, pins))


async def register(agent: Agent, id: str = "x1", **change: Any) -> int:
    """Register; the transceiver's index."""
    registered, _reachable = await agent.register(id, {**BODY, **change})
    return registered.lease.index


def ufrags(maps: Maps) -> set[str]:
    return {ufrag for ufrag, _route in maps.routes()}


def route_id(maps: Maps, ufrag: str) -> int:
    return next(int(route.id) for found, route in maps.routes() if found == ufrag)


# Configuration.


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"public": ()}, "public and an inside interface"),
        ({"inside": ()}, "public and an inside interface"),
        ({"inside": tuple(f"i{n}" for n in range(8))}, "at most 8 interfaces"),
        ({"vips": ()}, "1 to 4 VIPs"),
        ({"vips": tuple(Vip("198.18.0.1", n) for n in range(1, 6))}, "1 to 4 VIPs"),
        ({"vips": (Vip("198.18.0", 1),)}, "is no IP address"),
        ({"vips": (Vip("2001:db8::1", 1),)}, "is not IPv4"),
        ({"vips": (Vip("198.18.0.1", 0),)}, "port is 1 to 65535"),
        ({"vips": (Vip("198.18.0.1", 65536),)}, "port is 1 to 65535"),
        ({"vips": (Vip("198.18.1.1", 20005),)}, "among the inside ports"),
        ({"inside_address": "inside"}, "is no IP address"),
        ({"inside_address": "2001:db8::1"}, "is not IPv4"),
        ({"first_port": 1023}, "range within 1024 to 65535"),
        ({"first_port": 30000, "last_port": 29999}, "range within 1024 to 65535"),
        ({"last_port": 65536}, "range within 1024 to 65535"),
    ],
)
def test_a_configuration_that_cannot_work_is_refused(
    tmp_path: Path, change: dict[str, Any], what: str
) -> None:
    good = Host("", "").config(tmp_path, tmp_path)

    with pytest.raises(ShuntError, match=what):
        replace(good, **change)


def test_an_interface_that_is_both_public_and_inside_is_one(tmp_path: Path) -> None:
    config = replace(Host("", "").config(tmp_path, tmp_path), inside=("inside", "public"))

    assert config.interfaces == ["public", "inside"]


def test_the_maps_say_how_the_agent_was_configured(start: Start) -> None:
    async def story(agent: Agent) -> None:
        names = {i.name: i for i in start.maps.interfaces()}
        written = start.maps.settings()
        assert list(names) == ["public", "inside"]
        assert [names[name].inside for name in names] == [False, True]
        assert written.vips[0].port == 3478
        assert types.text_address(bytes(written.inside_address)) == "198.18.1.1"
        assert list(written.inside_interfaces) == [names["inside"].ifindex] + [0] * 7

    start(story)


# Leases meet the maps.


def test_a_registered_transceiver_is_in_the_map_with_its_next_hop(start: Start) -> None:
    async def story(agent: Agent) -> None:
        index = await register(agent)
        async with asyncio.timeout(3):
            while not start.maps.transceiver(index).resolved:
                await register(agent)
        entry = start.maps.transceiver(index)
        assert types.text_address(bytes(entry.address)) == TRANSCEIVER
        assert entry.port == 40000
        words = start.host.ip("link show dev behind", outside=True).split()
        assert bytes(entry.mac).hex(":") == words[words.index("link/ether") + 1]

    start(story)


def test_leases_end_by_the_clock_with_routes_flows_and_entry(start: Start) -> None:
    maps, clock = start.maps, start.clock

    async def story(agent: Agent) -> None:
        index = await register(agent)
        agent.add_route("abcd", transceiver="x1", instance=INSTANCE)
        put(maps, 20001, route=route_id(maps, "abcd"), seen=clock.now, transceiver=index)

        clock.now += LEASE_SECONDS - 0.1
        agent.sweep()
        assert ufrags(maps) == {"abcd"}

        clock.now += 0.2
        agent.sweep()
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
            agent.sweep()
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

        agent.sweep()
        assert await register(agent, "x2", port=40002) != index

        clock.now += 10.5  # the port's rest
        agent.sweep()
        assert await register(agent, "x3", port=40003) == index

    start(story)


def test_a_route_that_does_not_fit_into_the_map_is_no_route(start: Start) -> None:
    def full(ufrag: str, *, id: int, transceiver: int) -> None:
        raise ShuntError("the relay's route map is full")

    async def story(agent: Agent) -> None:
        await register(agent)
        start.maps.add_route = full  # type: ignore[method-assign]
        with pytest.raises(Refused, match="full") as error:
            agent.add_route("abcd", transceiver="x1", instance=INSTANCE)
        assert error.value.status == 507
        del start.maps.add_route
        assert agent.routes() == {"routes": []}
        agent.add_route("abcd", transceiver="x1", instance=INSTANCE)
        assert ufrags(start.maps) == {"abcd"}

    start(story)


def test_deregistering_while_the_kernel_is_asked_leaves_no_entry(start: Start) -> None:
    async def story(agent: Agent) -> None:
        start.host.ip(f"neigh replace {TRANSCEIVER} lladdr 02:00:00:00:00:77 dev inside")
        for _ in range(20):
            renewal = asyncio.create_task(agent.register("x1", dict(BODY)))
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
        renewal = asyncio.create_task(agent.register("x1", dict(BODY)))
        await asyncio.sleep(0)
        agent.deregister("x1", INSTANCE)
        agent.sweep()
        next_one = asyncio.create_task(
            agent.register("x2", {**BODY, "instance": OTHER_INSTANCE, "address": "198.18.1.99"})
        )
        registered, _ = await renewal
        assert not start.maps.transceiver(registered.lease.index).resolved
        other, reachable = await next_one
        assert other.lease.index == registered.lease.index
        assert not reachable

    start(story)


# Adoption.


def test_a_new_agent_adopts_what_the_last_one_left(start: Start) -> None:
    maps, clock = start.maps, start.clock
    indexes = []

    async def before(agent: Agent) -> None:
        indexes.append(await register(agent))
        agent.add_route("ab/+", transceiver="x1", instance=INSTANCE)
        put(maps, 20001, route=route_id(maps, "ab/+"), seen=clock.now, transceiver=indexes[0])

    async def after(agent: Agent) -> None:
        assert agent.routes() == {
            "routes": [{"ufrag": "ab/+", "transceiver": "x1", "slots": [20001]}]
        }
        (flow,) = agent.flows()["flows"]
        assert (flow["ufrag"], flow["transceiver"], flow["state"]) == ("ab/+", "x1", "established")
        assert await register(agent) == indexes[0]
        clock.now += 14
        agent.sweep()
        assert ufrags(maps) == {"ab/+"}
        assert state(maps, 20001) is State.ESTABLISHED
        agent.remove_route("ab/+", instance=INSTANCE)
        assert state(maps, 20001) is State.CLOSING

    start(before)
    start(after)


def test_an_adopted_transceiver_that_never_renews_goes(start: Start) -> None:
    async def before(agent: Agent) -> None:
        await register(agent)
        agent.add_route("abcd", transceiver="x1", instance=INSTANCE)

    async def after(agent: Agent) -> None:
        start.clock.now += LEASE_SECONDS + 0.1
        agent.sweep()
        assert ufrags(start.maps) == set()

    start(before)
    start(after)


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
        assert route_id(start.maps, "abcd") == 501

    put(start.maps, 20001, State.CLOSING, route=500, seen=5000.0, since=5000.0, transceiver=0)
    start(after)


def test_flows_of_the_same_settings_live_on(start: Start) -> None:
    async def story(agent: Agent) -> None:
        assert state(start.maps, 20001) is State.ESTABLISHED

    put(start.maps, 20001)
    start(story)


@pytest.mark.parametrize(
    ("change", "left"),
    [
        ({"first_port": 20032}, State.CLOSING),
        ({"last_port": 20100}, State.ESTABLISHED),
        ({"inside_address": "198.18.1.2"}, State.CLOSING),
        ({"vips": (Vip("198.18.0.2", 3478), Vip("198.18.0.1", 3478))}, State.CLOSING),
    ],
    ids=["port outside", "more ports", "inside address", "VIPs"],
)
def test_flows_that_other_settings_would_break_end(
    start: Start, change: dict[str, Any], left: State
) -> None:
    config = replace(start.config, **change)
    maps, clock = start.maps, start.clock

    async def before(agent: Agent) -> None:
        index = await register(agent)
        agent.add_route("abcd", transceiver="x1", instance=INSTANCE)
        put(maps, 20001, route=route_id(maps, "abcd"), seen=clock.now, transceiver=index)

    async def after(agent: Agent) -> None:
        agent.sweep()
        assert state(maps, 20001) is left
        assert len(list(maps.flows4())) == (left is State.ESTABLISHED)
        ports = set()
        while (port := maps.take_free()) is not None:
            ports.add(port)
        assert ports == set(range(config.first_port, config.last_port + 1)) - {20001}

    start(before)
    start(after, config=config)


# Interfaces.


async def until(holds: Callable[[], bool], agent: Agent) -> None:
    """Let the agent keep house until *holds*."""
    async with asyncio.timeout(5), asyncio.TaskGroup() as tasks:
        keep = tasks.create_task(agent.keep())
        while not holds():  # noqa: ASYNC110 - the agent does not tell
            await asyncio.sleep(0.01)
        keep.cancel()


def test_the_relay_is_not_ready_once_the_program_is_off(start: Start) -> None:
    async def story(agent: Agent) -> None:
        assert agent.not_ready() is None
        await until(lambda: agent.not_ready() is not None, agent)  # nothing was ever attached
        assert agent.not_ready() == "public no longer carries the XDP program"
        assert agent.counters()["mode"] == {"public": "detached", "inside": "detached"}

    start(story)


def test_an_interface_that_goes_away_does_not_take_the_agent_with_it(start: Start) -> None:
    async def story(agent: Agent) -> None:
        await register(agent)
        start.host.ip("link del inside")
        await until(lambda: agent.not_ready() is not None, agent)
        await register(agent)
        await register(agent, "x2", address="198.18.1.12", instance=OTHER_INSTANCE)
        assert [t["id"] for t in agent.transceivers()["transceivers"]] == ["x1", "x2"]

    start(story)


# HTTP: who may ask.


@asynccontextmanager
async def served(agent: Agent) -> AsyncIterator[Path]:
    runner = web.AppRunner(application(agent))
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
        assert json.loads(body) == {"error": "this user may not use the agent"}

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
            await client.register("x1", **BODY)  # type: ignore[arg-type]
            await client.register("x1", **{**BODY, "instance": OTHER_INSTANCE})  # type: ignore[arg-type]
            with pytest.raises(AgentRefused) as error:
                await client.register("x1", **BODY)  # type: ignore[arg-type]
        assert error.value.status == 409

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
            await _serve_agent(agent)
        assert str(place) in error.value.what

    start(story, config=replace(start.config, socket=place))
    assert what != "a file" or place.read_text() == "precious"
    assert what != "a folder" or place.is_dir()
