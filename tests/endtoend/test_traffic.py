"""The traffic itself: it loses nothing while nothing happens, and shows what was lost, and why."""

import pytest

from loader import carriers
from loader.types import Mode
from tests.endtoend.traffic import assert_nothing_lost, stream
from tests.loader.conftest import AgentProcess

pytestmark = pytest.mark.alone


def test_while_nothing_happens_nothing_is_lost(busy_relay: AgentProcess) -> None:
    with stream(busy_relay, flows=64) as running:
        running.carry(40_000)
        report = running.stop()

    assert_nothing_lost(report)
    assert not [name for name in report.drops if not name.startswith("softnet")]
    assert [len(way.flows) for way in report.ways] == [64, 64]
    for way in report.ways:
        assert all(flow.sent == flow.received > 0 for flow in way.flows)
        assert way.sent >= 40_000


def test_an_instant_without_the_program_is_seen_as_a_loss_of_the_relays(
    busy_relay: AgentProcess,
) -> None:
    def flicker() -> None:
        (attachment,) = carriers.attach(busy_relay.pins, ["public"])
        assert attachment.mode is Mode.NATIVE

    with stream(busy_relay) as running:
        running.carry(5_000)
        busy_relay.host.ip("link set public xdp off")
        busy_relay.host.run(flicker)
        running.carry(5_000)
        report = running.stop()

    up, down = report.ways
    assert up.lost > 0
    assert down.lost == 0
    assert up.sent == up.received + up.lost
    assert report.faults["to_transceiver lost"] == report.lost
    assert report.drops.get("relay UdpNoPorts", 0) + report.drops.get("relay Udp6NoPorts", 0) > 0


def test_a_route_that_ends_takes_its_flow_along_and_no_other(busy_relay: AgentProcess) -> None:
    with stream(busy_relay) as running:
        running.carry(5_000)
        running.remove_route(running.ufrags[3])
        running.carry(5_000)
        report = running.stop()

    for way in report.ways:
        lost = [flow.lost for flow in way.flows]
        assert [number for number, ranges in enumerate(lost) if ranges] == [3]
        ((first, last),) = lost[3]
        assert 0 < first < last == way.flows[3].sent - 1
    named = {name: count for name, count in report.drops.items() if name.startswith("program ")}
    assert sum(named.values()) == report.lost, named
