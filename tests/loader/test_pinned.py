"""The relay looked at through its pins, without an agent; here, where the maps are."""

import os
from pathlib import Path

import pytest

from loader import bpf, types
from loader.flows import FlowTable
from loader.maps import Interface, Maps, versioned
from loader.pinned_set import PROGRAM
from tests.loader.conftest import (
    FIRST_PORT,
    RELAY_INSIDE,
    TRANSCEIVER,
    VIP,
    binding_request,
    frame,
)
from tools import pinned
from tools.rates import rates


def open_flow(maps: Maps, pins: Path, ufrag: str, *, client: int, times: int = 1) -> None:
    """A client's Binding Requests, through the program."""
    descriptor = bpf.pinned(versioned(pins) / PROGRAM)
    for number in range(times):
        request = frame(binding_request(ufrag, transaction=number + 1), port=client)
        bpf.test_run(descriptor, request)
    os.close(descriptor)


@pytest.fixture
def relay(maps: Maps, pins: Path) -> Maps:
    """One transceiver with two routes, and free ports."""
    entry = types.Transceiver(
        address=types.packed_address(TRANSCEIVER),
        port=40000,
        resolved=1,
        hop=types.NextHop(mtu=1500),
    )
    for place, byte in enumerate(b"t1"):
        entry.id[place] = byte
    maps.set_transceiver(5, entry)
    maps.add_route("abcd", id=1, transceiver=5)
    maps.add_route("efgh", id=2, transceiver=5, checks=False)
    maps.set_interfaces([Interface("public", 7, inside=False, mode=types.Mode.NATIVE)])
    FlowTable(maps).rebuild_free()
    return maps


def test_flows_and_routes_are_told_as_the_agent_tells_them(relay: Maps, pins: Path) -> None:
    open_flow(relay, pins, "abcd", client=50123)

    seen = pinned.look(pins)

    nothing, length = {"packets": 0, "bytes": 0}, len(frame(binding_request("abcd"))) - 14
    assert sorted(seen.routes, key=lambda route: route["ufrag"]) == [
        {
            **{"ufrag": "abcd", "transceiver": "t1", "checks": True, "slots": [FIRST_PORT]},
            **{"to_transceiver": {"packets": 1, "bytes": length}, "to_client": nothing},
        },
        {
            **{"ufrag": "efgh", "transceiver": "t1", "checks": False, "slots": []},
            **{"to_transceiver": nothing, "to_client": nothing},
        },
    ]
    (flow,) = seen.flows
    length = len(frame(binding_request("abcd"))) - 14
    assert 0 <= flow.pop("idle_s") < 60
    assert flow == {
        "slot": FIRST_PORT,
        "port": FIRST_PORT,
        "inside": f"{RELAY_INSIDE}:{FIRST_PORT}",
        "state": "pending",
        "client": "198.18.0.10:50123",
        "vip": f"{VIP.address}:{VIP.port}",
        "ufrag": "abcd",
        "transceiver": "t1",
        "validated": False,
        "to_transceiver": {"packets": 1, "bytes": length},
        "to_client": {"packets": 0, "bytes": 0},
    }
    assert seen.flow_count == 1
    assert seen.counters["mode"] == {"public": "native"}


def test_two_looks_give_rates(relay: Maps, pins: Path) -> None:
    open_flow(relay, pins, "abcd", client=50123)
    before = pinned.look(pins)
    open_flow(relay, pins, "abcd", client=50123, times=3)
    after = pinned.look(pins)

    seconds = after.at - before.at
    assert rates(before, after).flows[FIRST_PORT]["to_transceiver"] == pytest.approx(3 / seconds)


def test_what_is_gone_is_null(relay: Maps, pins: Path) -> None:
    open_flow(relay, pins, "abcd", client=50123)
    relay.remove_route("abcd")
    relay.set_transceiver(5, types.Transceiver())

    (flow,) = pinned.look(pins).flows

    assert (flow["ufrag"], flow["transceiver"], flow["inside"]) == (None, None, None)


def test_of_very_many_flows_only_some_are_listed_but_all_counted(
    relay: Maps, pins: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pinned, "FLOWS_SHOWN", 2)
    for client in range(3):
        open_flow(relay, pins, "abcd", client=50000 + client)

    seen = pinned.look(pins)

    assert [flow["slot"] for flow in seen.flows] == [FIRST_PORT, FIRST_PORT + 1]
    assert seen.flow_count == 3
