"""What Prometheus is told: of a running agent with flows, by its own text and by its own tools."""

import asyncio
import re
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import suppress

import aiohttp
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as openmetrics_families,
)
from prometheus_client.parser import text_string_to_metric_families

from loader import VERSION, datapath, types
from loader.client import AgentClient, AgentRefused
from loader.interfaces import State as InterfaceState
from loader.maps import Counters, Interface, Rate, versioned
from loader.reasons import REASONS
from loader.scrape import Scrape
from loader.types import Mode, State
from tests.loader.conftest import (
    FIRST_PORT,
    INSTANCE,
    LAST_PORT,
    RELAY_INSIDE,
    RELAY_INSIDE6,
    ROOT,
    TRANSCEIVER,
    VIP,
    VIP6,
    AgentProcess,
    binding_request,
    register_x1,
)
from tests.loader.test_agent_process import knock

OPENMETRICS = "application/openmetrics-text; version=1.0.0"
Samples = dict[str, dict[tuple[tuple[str, str], ...], float]]


async def scraped(agent: AgentProcess, **headers: str) -> tuple[str, str]:
    """The answer to a scrape: its type and its text."""
    async with (
        aiohttp.ClientSession(connector=aiohttp.UnixConnector(path=str(agent.socket))) as session,
        session.get("http://agent/metrics", headers=headers) as response,
    ):
        assert response.status == 200
        return response.headers["Content-Type"], await response.text()


def samples(text: str) -> Samples:
    """By name and labels; the parser raises ValueError for what is not Prometheus' format."""
    found: Samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
    return found


async def told(agent: AgentProcess, name: str, **labels: str) -> float | None:
    """The value of one series, or None if there is no such."""
    _type, text = await scraped(agent)
    return samples(text).get(name, {}).get(tuple(sorted(labels.items())))


async def became(agent: AgentProcess, expected: float | None, name: str, **labels: str) -> None:
    """Wait until a series has the value."""
    async with asyncio.timeout(5):
        while await told(agent, name, **labels) != expected:
            pass


@pytest.fixture
async def client(shared_agent: AgentProcess) -> AsyncIterator[AgentClient]:
    """A client of the shared agent, with a transceiver x1 that has gone again afterwards."""
    async with AgentClient(str(shared_agent.socket)) as connected:
        await register_x1(connected)
        yield connected
        await connected.deregister("x1", instance=INSTANCE)


async def test_every_reason_is_there_before_its_first_packet(shared_agent: AgentProcess) -> None:
    _type, text = await scraped(shared_agent)

    reasons = samples(text)["shunt_relay_dropped_packets_total"]

    assert set(reasons) == {(("reason", reason.name),) for reason in REASONS}


async def test_a_dropped_packet_counts_for_its_reason(shared_agent: AgentProcess) -> None:
    name = "shunt_relay_dropped_packets_total"
    before = await told(shared_agent, name, reason="no_route")
    assert before is not None

    await asyncio.to_thread(knock, shared_agent, "nobody")

    assert await told(shared_agent, name, reason="no_route") == before + 1


async def test_a_packet_sent_on_counts_with_its_bytes(
    client: AgentClient, shared_agent: AgentProcess
) -> None:
    await client.add_route("sent", transceiver="x1", instance=INSTANCE)
    await became(shared_agent, 1, "shunt_transceiver_reachable", transceiver="x1")
    _type, before = await scraped(shared_agent)

    await asyncio.to_thread(knock, shared_agent, "sent")

    _type, after = await scraped(shared_agent)
    there = (("direction", "to_transceiver"),)
    packets, octets = (
        samples(after)[name][there] - samples(before)[name][there]
        for name in ("shunt_relay_packets_total", "shunt_relay_bytes_total")
    )
    assert packets == 1
    assert octets == 28 + len(binding_request("sent"))
    x1 = {"transceiver": "x1", "direction": "to_transceiver"}
    earlier = samples(before)["shunt_transceiver_packets_total"][tuple(sorted(x1.items()))]
    await became(shared_agent, earlier + 1, "shunt_transceiver_packets_total", **x1)


async def test_flows_are_told_by_state_and_routes_by_transceiver(
    client: AgentClient, shared_agent: AgentProcess
) -> None:
    await became(shared_agent, 0, "shunt_flows", state="pending")  # those of tests before
    for ufrag in ("one1", "two2"):
        await client.add_route(ufrag, transceiver="x1", instance=INSTANCE)
        await asyncio.to_thread(knock, shared_agent, ufrag)

    await became(shared_agent, 2, "shunt_flows", state="pending")

    _type, text = await scraped(shared_agent)
    found, x1 = samples(text), (("transceiver", "x1"),)
    assert found["shunt_routes"] == {(): 2}
    assert found["shunt_map_entries"][(("map", "routes"),)] == 2
    assert found["shunt_map_entries"][(("map", "slots"),)] == sum(found["shunt_flows"].values())
    assert found["shunt_map_capacity_entries"][(("map", "slots"),)] == LAST_PORT - FIRST_PORT + 1
    assert found["shunt_transceivers"] == {(): 1}
    assert found["shunt_transceiver_routes"] == {x1: 2}
    assert found["shunt_transceiver_capacity_sessions"] == {x1: 10}
    assert found["shunt_transceiver_quota_routes"] == {x1: 20}
    assert 0 < found["shunt_transceiver_lease_remaining_seconds"][x1] <= 15


async def test_a_transceiver_that_has_gone_leaves_no_series(
    client: AgentClient, shared_agent: AgentProcess
) -> None:
    await client.register(
        "gone",
        instance=INSTANCE,
        address=TRANSCEIVER,
        port=40001,
        http="http://198.18.1.11:8081",
        capacity=1,
    )
    assert 'transceiver="gone"' in (await scraped(shared_agent))[1]

    await client.deregister("gone", instance=INSTANCE)

    assert 'transceiver="gone"' not in (await scraped(shared_agent))[1]


async def test_what_the_relay_has_counted_and_how_often_it_was_adopted_outlive_the_agent(
    own_agent: AgentProcess,
) -> None:
    await asyncio.to_thread(knock, own_agent, "nobody")
    _type, before = await scraped(own_agent)

    own_agent.kill()
    await asyncio.to_thread(own_agent.start)

    _type, after = await scraped(own_agent)
    dropped = samples(before)["shunt_relay_dropped_packets_total"]
    assert dropped[(("reason", "no_route"),)] > 0
    assert samples(after)["shunt_relay_dropped_packets_total"] == dropped
    adoptions, upgrades = (
        [samples(text)[f"shunt_agent_{name}_total"][()] for text in (before, after)]
        for name in ("adoptions", "upgrades")
    )
    assert adoptions[1] == adoptions[0] + 1
    assert upgrades[1] == upgrades[0]


@pytest.mark.parametrize("accept", ["*/*", OPENMETRICS])
async def test_no_client_and_no_ufrag_is_named(
    client: AgentClient, shared_agent: AgentProcess, accept: str
) -> None:
    await client.add_route("Secret4444", transceiver="x1", instance=INSTANCE)
    await client.add_route("Secret6666", transceiver="x1", instance=INSTANCE)
    await asyncio.to_thread(knock, shared_agent, "Secret4444", VIP)
    await asyncio.to_thread(knock, shared_agent, "Secret6666", VIP6)
    with suppress(AgentRefused):
        await client.add_route("Secret-bad", transceiver="x1", instance=INSTANCE)
    await client.remove_route("SecretGone", instance=INSTANCE)
    flows = (await client.flows())["flows"]
    clients = {re.sub(r"^\[?(.*?)\]?:(\d+)$", r"\1", flow["client"]) for flow in flows}
    assert {"198.18.0.10", "2001:db8:18::10"} <= clients, "they are there to be named"

    _type, text = await scraped(shared_agent, Accept=accept)

    assert "Secret" not in text
    assert not [address for address in clients if address in text]


async def test_the_api_is_counted_and_timed_by_operation(
    client: AgentClient, shared_agent: AgentProcess
) -> None:
    _type, before = await scraped(shared_agent)
    for ufrag in ("aaaa", "bbbb"):
        await client.add_route(ufrag, transceiver="x1", instance=INSTANCE)
    with pytest.raises(AgentRefused):
        await client.add_route("no", transceiver="x1", instance=INSTANCE)
    _type, after = await scraped(shared_agent)

    operation = ("operation", "PUT /v1/routes/{ufrag}")

    def more(name: str, *labels: tuple[str, str]) -> float:
        then, now = samples(before).get(name, {}), samples(after)[name]
        return now[tuple(sorted(labels))] - then.get(tuple(sorted(labels)), 0)

    assert more("shunt_api_requests_total", operation, ("status", "201")) == 2
    assert more("shunt_api_requests_total", operation, ("status", "400")) == 1
    seconds = "shunt_api_request_duration_seconds"
    assert more(f"{seconds}_count", operation) == 3
    assert more(f"{seconds}_bucket", operation, ("le", "+Inf")) == 3
    assert 0 < more(f"{seconds}_sum", operation) < 30


async def test_an_asker_cannot_make_series_by_asking_for_what_is_not_there(
    shared_agent: AgentProcess,
) -> None:
    connector = aiohttp.UnixConnector(path=str(shared_agent.socket))
    async with aiohttp.ClientSession(connector=connector) as session:
        for number in range(20):
            async with session.request(f"M{number}", "http://agent/v1/routes/abcd"):
                pass
            async with session.get(f"http://agent/v1/nothing/{number}"):
                pass

    _type, text = await scraped(shared_agent)

    operations = {dict(labels)["operation"] for labels in samples(text)["shunt_api_requests_total"]}
    assert "unmatched" in operations
    assert not [name for name in operations if "nothing" in name or re.match(r"M\d", name)]


async def test_a_drain_shows_while_it_lasts(
    client: AgentClient, shared_agent: AgentProcess
) -> None:
    async def drains() -> tuple[float | None, float | None]:
        return (
            await told(shared_agent, "shunt_transceiver_draining", transceiver="x1"),
            await told(shared_agent, "shunt_agent_draining"),
        )

    assert await drains() == (0, 0)
    await client.drain("x1")
    assert await drains() == (1, 0)
    await client.call_off_drain("x1")
    await client.drain()
    assert await drains() == (0, 1)
    await client.call_off_drain()
    assert await drains() == (0, 0)


async def test_a_route_that_is_refused_counts_for_its_problem(
    client: AgentClient, shared_agent: AgentProcess
) -> None:
    name, why = "shunt_agent_refused_routes_total", "quota-exceeded"
    before = await told(shared_agent, name, why=why)
    assert before is not None
    for number in range(20):
        await client.add_route(f"many{number}", transceiver="x1", instance=INSTANCE)

    with pytest.raises(AgentRefused):
        await client.add_route("onemore", transceiver="x1", instance=INSTANCE)

    assert await told(shared_agent, name, why=why) == before + 1


async def test_events_and_housekeeping_are_counted(
    client: AgentClient, shared_agent: AgentProcess
) -> None:
    gone = await told(shared_agent, "shunt_agent_events_total", kind="transceiver_gone")
    ended = await told(shared_agent, "shunt_agent_leases_ended_total", why="deregistered")
    assert ended is not None
    passes = await told(shared_agent, "shunt_housekeeping_pass_duration_seconds_count")
    assert gone is not None
    assert passes is not None
    await client.register(
        "short",
        instance=INSTANCE,
        address=TRANSCEIVER,
        port=40002,
        http="http://198.18.1.11:8082",
        capacity=1,
    )
    await client.deregister("short", instance=INSTANCE)

    await became(shared_agent, gone + 1, "shunt_agent_events_total", kind="transceiver_gone")
    await became(shared_agent, passes + 1, "shunt_housekeeping_pass_duration_seconds_count")
    assert ended + 1 == await told(
        shared_agent, "shunt_agent_leases_ended_total", why="deregistered"
    )
    last = await told(shared_agent, "shunt_housekeeping_last_success_timestamp_seconds")
    assert last is not None
    assert abs(time.time() - last) < 60


async def test_the_build_and_the_interfaces_are_told(shared_agent: AgentProcess) -> None:
    tag = datapath.pinned_program(versioned(shared_agent.pins)).tag

    _type, text = await scraped(shared_agent)

    (build,) = samples(text)["shunt_agent_build_info"]
    assert dict(build) == {"version": VERSION, "program_tag": tag, "layout": types.PIN_VERSION}
    attached = samples(text)["shunt_interface_attached"]
    assert {labels for labels, value in attached.items() if value} == {
        (("interface", name), ("mode", "native")) for name in ("public", "inside")
    }
    assert len(attached) == 6
    states = samples(text)["shunt_interface_state"]
    assert {labels for labels, value in states.items() if value} == {
        (("interface", name), ("state", "working")) for name in ("public", "inside")
    }
    assert samples(text)["shunt_address_present"] == {
        (("address", address),): 1
        for address in (VIP.address, VIP6.address, RELAY_INSIDE, RELAY_INSIDE6)
    }
    assert samples(text)["process_open_fds"][()] > 0


def scrape(*, mode: Mode = Mode.NATIVE, state: InterfaceState = InterfaceState.WORKING) -> Samples:
    """What is told of a relay with one interface, and without anything else."""
    none = Rate(0, 0)
    found = Scrape(
        counted=CollectorRegistry(),
        counters=Counters(to_transceiver=none, to_client=none, passed=none, dropped={}),
        flows=dict.fromkeys(State, 0),
        routes=0,
        sizes={"slots": 0, "routes": 0, "transceivers": 0},
        transceivers=(),
        interfaces=(Interface("eth1", 2, True, mode),),
        states={"eth1": state},
        addresses={},
        reattached=0,
        resyncs=0,
        adoptions=0,
        upgrades=0,
        migrations=0,
        program="",
        draining=False,
        reload_failed=False,
        configured_at=0,
    )
    return samples(generate_latest(found).decode())


@pytest.mark.parametrize("state", list(InterfaceState))
def test_an_interface_is_in_its_state_and_in_no_other(state: InterfaceState) -> None:
    told = scrape(state=state)["shunt_interface_state"]

    assert {dict(labels)["state"]: value for labels, value in told.items()} == {
        each.value: float(each is state) for each in InterfaceState
    }


@pytest.mark.parametrize("mode", list(Mode))
def test_an_interface_is_attached_in_its_mode_and_in_no_other(mode: Mode) -> None:
    attached = scrape(mode=mode)["shunt_interface_attached"]

    modes = {dict(labels)["mode"]: value for labels, value in attached.items()}
    assert modes == {
        name: float(name == mode.name.lower()) for name in ("native", "generic", "offloaded")
    }


def test_the_version_is_the_projects() -> None:
    assert f'\nversion = "{VERSION}"\n' in (ROOT / "pyproject.toml").read_text()


async def test_the_document_lists_every_metric_as_it_is(
    client: AgentClient, shared_agent: AgentProcess
) -> None:
    await client.add_route("abcd", transceiver="x1", instance=INSTANCE)
    rows = re.findall(
        r"^\| `(\w+)` \| (\w+) \| (\w*) ?\| ([^|]*) ?\| (.+) \|$",
        (ROOT / "docs/metrics.md").read_text(),
        re.M,
    )
    documented = {
        name: (kind, set(re.findall(r"`(\w+)`", labels)), meaning)
        for name, kind, _unit, labels, meaning in rows
    }

    _type, text = await scraped(shared_agent)

    families = {
        family.samples[0].name if family.type == "counter" else family.name: family
        for family in text_string_to_metric_families(text)
    }
    assert set(documented) == set(families)
    for name, _kind, unit, _labels, _meaning in rows:
        if unit in ("seconds", "bytes"):
            assert name.removesuffix("_total").endswith(f"_{unit}")
    for name, family in families.items():
        kind, labels, meaning = documented[name]
        assert (kind, labels) == (family.type, set(family.samples[0].labels) - {"le"}), name
        if not name.startswith("process_"):
            assert meaning.startswith(family.documentation), name


# The form.


async def test_who_asks_for_openmetrics_gets_it_and_who_does_not_the_text(
    shared_agent: AgentProcess,
) -> None:
    plain, text = await scraped(shared_agent)
    assert plain.startswith("text/plain; version=0.0.4")
    assert "# EOF" not in text

    of_prometheus = f"{OPENMETRICS},text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
    better, text = await scraped(shared_agent, Accept=of_prometheus)
    assert better.startswith("application/openmetrics-text; version=1.0.0")
    # Raises ValueError for what is not OpenMetrics.
    families = list(openmetrics_families(text))  # type: ignore[no-untyped-call]
    assert {family.unit for family in families} == {"", "bytes", "seconds"}


@pytest.mark.parametrize(
    "accept",
    ["application/openmetrics-text; version=x", "text/plain; version=x.y", "\t;,;=", "a" * 4000],
)
async def test_an_accept_header_that_is_none_is_no_error(
    shared_agent: AgentProcess, accept: str
) -> None:
    _type, text = await scraped(shared_agent, Accept=accept)

    assert "shunt_agent_build_info" in text


async def test_prometheus_own_linter_has_nothing_to_say(
    client: AgentClient, shared_agent: AgentProcess
) -> None:
    _type, text = await scraped(shared_agent)

    command = ["promtool", "check", "metrics"]
    checked = await asyncio.to_thread(
        subprocess.run, command, input=text, capture_output=True, text=True, check=False
    )

    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")
