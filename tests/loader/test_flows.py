"""The agent's half of a slot's life, over real maps and slots that the program has made."""

import itertools
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loader import bpf, datapath, types
from loader.flows import IDLE_SECONDS, REST_SECONDS, Flow, FlowTable, ticks
from loader.maps import Maps, versioned
from loader.pinned_set import PROGRAM, remove_pins
from loader.routeids import RouteIds
from loader.types import TICK, State
from tests.loader.conftest import (
    FIRST_PORT,
    LAST_PORT,
    binding_request,
    drained,
    empty,
    frame,
    put,
    settings,
    state,
)

PORTS = range(FIRST_PORT, LAST_PORT + 1)
NOW = 1000.0


def routes(*ids: int) -> RouteIds:
    """As if these routes were there, and no others."""
    known = RouteIds()
    known.adopt(ids)
    return known


@pytest.fixture
def table(maps: Maps) -> FlowTable:
    flows = FlowTable(maps)
    flows.rebuild_free()
    return flows


def sweep(table: FlowTable, known: RouteIds, *, now: float) -> int:
    """The whole table; how many flows were closed."""
    readings = [table.sweep(piece, known, now=now) for piece in table.pieces]
    for each in readings:
        if each:
            table.free(each)
    return sum(int(np.count_nonzero(each.closed)) for each in readings if each)


@pytest.fixture
def knock(maps: Maps, pins: Path) -> Iterator[Callable[..., int]]:
    """Sends a Binding Request through the program: opens a slot; gives its port."""
    descriptor = bpf.pinned(versioned(pins) / PROGRAM)
    maps.set_transceiver(5, types.Transceiver(port=40000, resolved=1))

    def knock(ufrag: str, *, port: int = 50000) -> int:
        before = {int(p) for p in maps.slots["to_transceiver"]["state"].nonzero()[0]}
        bpf.test_run(descriptor, frame(binding_request(ufrag), port=port))
        (opened,) = {int(p) for p in maps.slots["to_transceiver"]["state"].nonzero()[0]} - before
        return opened

    yield knock
    os.close(descriptor)


# Time.


def test_a_tick_is_that_of_the_program() -> None:
    assert ticks(0.0) == 0
    assert ticks(TICK * 1000.5) == 1000
    assert ticks(123456.789) == int(123456.789 * 1e9) >> 27


def test_ticks_wrap_at_32_bits() -> None:
    assert ticks(TICK * (2**32 + 5.5)) == 5


@pytest.mark.parametrize("now", [NOW, TICK * (2**32 + 20), TICK * (2**31 + 20), TICK * 2**32])
@pytest.mark.parametrize(
    ("idle", "left"), [(0.0, State.ESTABLISHED), (29.0, State.ESTABLISHED), (30.2, State.CLOSING)]
)
def test_a_flow_is_closed_after_30_idle_seconds_at_any_time(
    maps: Maps, table: FlowTable, now: float, idle: float, left: State
) -> None:
    put(maps, 20001, seen=now - idle)

    closed = sweep(table, routes(1), now=now)

    assert state(maps, 20001) is left
    assert closed == (left is State.CLOSING)


def test_a_packet_from_a_moment_ahead_does_not_make_a_flow_old(
    maps: Maps, table: FlowTable
) -> None:
    put(maps, 20001, seen=NOW + 2 * TICK)

    assert sweep(table, routes(1), now=NOW) == 0
    (flow,) = table.flows(now=NOW)
    assert flow.idle_s == 0.0


@pytest.mark.parametrize("now", [NOW, TICK * (2**32 + 20)])
@pytest.mark.parametrize(("rested", "left"), [(9.5, State.CLOSING), (10.2, State.FREE)])
def test_a_closed_port_rests_for_10_seconds(
    maps: Maps, table: FlowTable, now: float, rested: float, left: State
) -> None:
    drained(maps)
    put(maps, 20001, State.CLOSING, since=now - rested)

    sweep(table, routes(), now=now)

    assert state(maps, 20001) is left
    assert drained(maps) == ([20001] if left is State.FREE else [])


def test_the_rest_begins_when_the_flow_is_closed(maps: Maps, table: FlowTable) -> None:
    drained(maps)
    put(maps, 20001, since=NOW - 3600)

    table.close_orphans(routes(), now=NOW)
    sweep(table, routes(), now=NOW + REST_SECONDS - 0.5)
    assert state(maps, 20001) is State.CLOSING

    sweep(table, routes(), now=NOW + REST_SECONDS + 0.5)
    assert state(maps, 20001) is State.FREE
    sweep(table, routes(), now=NOW + 3600)
    assert drained(maps) == [20001], "freed once, queued once"


# Ends.


def test_closing_a_route_closes_all_its_flows_and_no_others(maps: Maps, table: FlowTable) -> None:
    put(maps, 20001, State.ESTABLISHED, route=7)
    put(maps, 20002, State.PENDING, route=7)
    put(maps, 20003, State.PENDING, route=8)
    put(maps, 20004, State.CLOSING, route=7, since=NOW - 5)

    assert table.close_orphans(routes(8), now=NOW) == 2

    assert [state(maps, port) for port in range(20001, 20005)] == [
        *(State.CLOSING, State.CLOSING, State.PENDING, State.CLOSING)
    ]
    sweep(table, routes(8), now=NOW + REST_SECONDS - 4)
    assert state(maps, 20004) is State.FREE, "its rest has not begun anew"


def test_a_flow_with_another_living_route_goes_on_with_that(maps: Maps, table: FlowTable) -> None:
    """Or a stranger ends a client's flow by a request in its name and hanging up."""
    put(maps, 20001, State.ESTABLISHED, route=7, next_route=8)

    assert table.close_orphans(routes(8), now=NOW) == 0

    book = maps.slots["book"][20001]
    assert state(maps, 20001) is State.ESTABLISHED
    assert (book["route"], book["next_route"]) == (8, 0)
    assert table.close_orphans(routes(), now=NOW) == 1, "and ends with that"


def test_a_flow_whose_route_is_gone_is_closed(maps: Maps, table: FlowTable) -> None:
    put(maps, 20001, route=1)
    put(maps, 20002, State.PENDING, route=2)

    assert sweep(table, routes(2), now=NOW) == 1

    assert state(maps, 20001) is State.CLOSING
    assert state(maps, 20002) is State.PENDING


def test_a_flow_on_its_way_to_a_new_route_stays(maps: Maps, table: FlowTable) -> None:
    """An ICE restart: the old session's route goes before the new one is confirmed."""
    put(maps, 20001, route=1, next_route=2)

    assert sweep(table, routes(2), now=NOW) == 0
    assert state(maps, 20001) is State.ESTABLISHED


def test_without_any_route_every_flow_goes(maps: Maps, table: FlowTable) -> None:
    put(maps, 20001)
    put(maps, 20002, State.PENDING)

    assert sweep(table, routes(), now=NOW) == 2


class OpenedMeanwhile:
    """The forward halves of the slots, of which one is opened after the first look at any."""

    def __init__(self, maps: Maps, port: int) -> None:
        self._maps, self._port = maps, port
        self._looks = 0

    def __getitem__(self, name: str) -> Any:
        seen = self._maps.slots["to_transceiver"][name].copy()
        self._looks += 1
        if self._looks == 1:
            put(self._maps, self._port, State.PENDING, route=2)
            return seen
        return self._maps.slots["to_transceiver"][name]


@pytest.mark.parametrize(
    "end",
    [
        lambda table: sweep(table, routes(2), now=NOW),
        lambda table: table.close_orphans(routes(), now=NOW),
    ],
    ids=["sweep", "close"],
)
def test_a_slot_that_is_opened_meanwhile_is_not_judged_by_what_it_was(
    maps: Maps, table: FlowTable, end: Callable[[FlowTable], int]
) -> None:
    put(maps, 20001, State.FREE, route=1, seen=NOW - 3600)
    table._forward = OpenedMeanwhile(maps, 20001)  # type: ignore[assignment]

    assert end(table) == 0
    assert state(maps, 20001) is State.PENDING


def test_pending_slots_end_by_idleness_too(maps: Maps, table: FlowTable) -> None:
    put(maps, 20001, State.PENDING, seen=NOW - IDLE_SECONDS - 1)

    assert sweep(table, routes(1), now=NOW) == 1
    assert state(maps, 20001) is State.CLOSING


@pytest.mark.parametrize("ended", [[7], [7, 99]])
def test_a_routes_own_entry_names_the_slots_to_look_at(
    maps: Maps, table: FlowTable, ended: list[int]
) -> None:
    put(maps, 20001, route=7)
    put(maps, 20002, route=7)
    put(maps, 20003, route=8)
    put(maps, 20004, State.CLOSING, route=7, since=NOW - 5)

    among, ids = [20001, 20003, 20004, 0, 0, 20001], np.array(ended, dtype=np.uint32)
    assert table.close_routes(ids, known=routes(8), now=NOW, among=among) == 1

    assert [state(maps, slot) for slot in (20001, 20002, 20003)] == [
        *(State.CLOSING, State.ESTABLISHED, State.ESTABLISHED)
    ]
    assert int(maps.slots["book"][20004]["since"]) == ticks(NOW - 5)


def test_flows_of_other_addresses_are_closed(maps: Maps, table: FlowTable) -> None:
    put(maps, 20001, vip=0)
    put(maps, 20002, State.PENDING, vip=1)
    put(maps, 20003, State.CLOSING, vip=1, since=NOW - 5)

    assert table.close_addresses(vips=[1, 3], entries=[1], now=NOW) == 1
    assert [state(maps, 20001), state(maps, 20002)] == [State.ESTABLISHED, State.CLOSING]

    assert table.close_addresses(vips=[], entries=[0], now=NOW) == 1
    assert state(maps, 20001) is State.CLOSING


def test_route_ids_are_told_apart_however_far_apart_they_lie(maps: Maps, table: FlowTable) -> None:
    """They share places in what the sweep looks them up in, and 0 is no route."""
    known = [1, 2**20 + 1, 2**31, 2**32 - 1, 5, 5 + 2**16, 5 + 2**17]
    named = [*known, 2, 2**20 + 2, 2**31 - 1, 5 + 2**18, 0]
    for place, route in enumerate(named):
        put(maps, 20000 + place, route=route)

    assert sweep(table, routes(*known), now=NOW) == len(named) - len(known)
    assert [state(maps, 20000 + place) for place in range(len(named))] == [
        State.ESTABLISHED if route in known else State.CLOSING for route in named
    ]


# The slots that may be opened.


def test_at_first_every_port_is_free_once(maps: Maps) -> None:
    assert FlowTable(maps).rebuild_free() == len(PORTS)
    assert drained(maps) == list(PORTS)


def test_rebuilding_twice_frees_no_port_twice(maps: Maps, table: FlowTable) -> None:
    table.rebuild_free()

    assert drained(maps) == list(PORTS)


def test_ports_in_use_or_at_rest_are_not_free(maps: Maps, table: FlowTable) -> None:
    put(maps, 20001)
    put(maps, 20002, State.PENDING)
    put(maps, 20003, State.CLOSING)

    assert table.rebuild_free() == len(PORTS) - 3
    assert drained(maps) == [port for port in PORTS if port not in (20001, 20002, 20003)]


def test_a_port_lost_between_freeing_and_saying_so_comes_back(
    maps: Maps, table: FlowTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(maps, 20001, State.CLOSING, since=NOW - 60)
    drained(maps)

    class Died(Exception):
        pass

    def die(slots: object) -> None:
        raise Died

    with monkeypatch.context() as patch:
        patch.setattr(maps, "free_slots", die)
        with pytest.raises(Died):
            sweep(table, routes(), now=NOW)
    assert drained(maps) == []

    FlowTable(maps).rebuild_free()

    assert drained(maps) == list(PORTS)


def test_with_another_range_only_its_ports_are_handed_out(maps: Maps, table: FlowTable) -> None:
    maps.configure(settings(first_port=20032, last_port=20100))

    assert FlowTable(maps).rebuild_free() == 69
    assert drained(maps) == list(range(20032, 20101))


def test_flows_outside_another_range_are_closed_and_their_ports_never_opened(
    maps: Maps, table: FlowTable
) -> None:
    put(maps, 20001, State.PENDING)
    put(maps, 20040, State.PENDING)
    maps.configure(settings(first_port=20032, last_port=20100))
    table = FlowTable(maps)
    table.rebuild_free()

    assert sweep(table, routes(1), now=NOW) == 1
    assert state(maps, 20001) is State.CLOSING
    assert state(maps, 20040) is State.PENDING

    sweep(table, routes(1), now=NOW + REST_SECONDS + 0.5)
    assert state(maps, 20001) is State.FREE
    assert drained(maps) == [port for port in range(20032, 20101) if port != 20040]


def test_closing_all_closes_every_flow(maps: Maps, table: FlowTable) -> None:
    put(maps, 20001)
    put(maps, 20002, State.PENDING)
    put(maps, 20003, State.CLOSING, since=NOW - 5)

    assert table.close_all(now=NOW) == 2
    assert {state(maps, port) for port in (20001, 20002, 20003)} == {State.CLOSING}


def test_the_program_takes_each_port_once(
    maps: Maps, table: FlowTable, knock: Callable[..., int]
) -> None:
    for number in range(len(PORTS) // 8):
        maps.add_route(f"ufrag{number}", id=number + 1, transceiver=5)

    opened = [
        knock(f"ufrag{number % (len(PORTS) // 8)}", port=50000 + number) for number in range(64)
    ]

    assert sorted(opened) == list(PORTS)
    assert maps.take_free() is None


def test_no_slot_is_lost_or_given_twice_however_often_an_agent_starts(
    maps: Maps, table: FlowTable, pins: Path
) -> None:
    """While packets open slots: they never wait for the agent."""
    maps.set_transceiver(5, types.Transceiver(port=40000, resolved=1))
    for number in range(8):
        maps.add_route(f"ufrag{number}", id=number + 1, transceiver=5)
    descriptor = bpf.pinned(versioned(pins) / PROGRAM)
    stop = threading.Event()

    def knock() -> None:
        for number in itertools.count():
            if stop.is_set():
                return
            packet = frame(binding_request(f"ufrag{number % 8}"), port=1024 + number % 60000)
            bpf.test_run(descriptor, packet)

    knocking = threading.Thread(target=knock)
    knocking.start()
    try:
        for _ in range(40):
            table.close_all(now=NOW)
            bpf.wait_for_programs()  # as they all end within a port's rest
            sweep(table, routes(), now=NOW + 60)
            table.rebuild_free()
    finally:
        stop.set()
        knocking.join()
        os.close(descriptor)

    free = drained(maps)
    in_use = [flow.slot for flow in table.flows(now=NOW)]
    assert len(in_use) > 0
    assert sorted(free + in_use) == list(PORTS)


# What people see.


def test_a_flow_is_told_as_the_program_made_it(
    maps: Maps, table: FlowTable, knock: Callable[..., int]
) -> None:
    maps.add_route("abcd", id=7, transceiver=5)
    port = knock("abcd", port=50321)
    now = float(maps.slots.at(port)["to_transceiver"]["seen"]) * TICK + 4.0

    (flow,) = table.flows(now=now)

    length = len(frame(binding_request("abcd"))) - 14
    assert flow == Flow(
        slot=port,
        inside=0,
        port=port,
        state=State.PENDING,
        client="198.18.0.10",
        client_port=50321,
        vip=0,
        route=7,
        transceiver=5,
        proven=False,
        idle_s=flow.idle_s,
        to_transceiver=(1, length),
        to_client=(0, 0),
    )
    assert flow.idle_s == pytest.approx(4.0, abs=TICK)


def test_free_slots_are_no_flows(maps: Maps, table: FlowTable) -> None:
    assert table.flows(now=NOW) == []
    assert table.count() == 0


def test_flows_come_by_slot_and_no_more_than_asked_for(maps: Maps, table: FlowTable) -> None:
    for slot in (20003, 20001, 20002):
        put(maps, slot, State.CLOSING if slot == 20002 else State.PENDING)

    assert [flow.slot for flow in table.flows(now=NOW)] == [20001, 20002, 20003]
    assert [flow.slot for flow in table.flows(now=NOW, limit=2)] == [20001, 20002]
    assert table.count() == 3


def test_slots_are_told_by_route(maps: Maps, table: FlowTable) -> None:
    assert table.slots_by_route() == {}
    put(maps, 20001, route=7)
    put(maps, 20002, State.CLOSING, route=7)
    put(maps, 20003, State.PENDING, route=2**32 - 1)
    put(maps, 20004, State.PENDING, route=7)

    assert table.slots_by_route() == {7: [20001, 20004], 2**32 - 1: [20003]}


def test_a_transceiver_is_referred_to_until_its_last_port_is_free(
    maps: Maps, table: FlowTable
) -> None:
    put(maps, 20001, transceiver=3)
    put(maps, 20002, State.CLOSING, transceiver=4, since=NOW - 60)
    assert table.transceivers() == {3, 4}

    sweep(table, routes(1), now=NOW)
    assert table.transceivers() == {3}


def test_slots_in_use_name_their_routes_and_those_to_come(maps: Maps, table: FlowTable) -> None:
    assert set(table.named_routes()) == set()
    put(maps, 20001, route=17, next_route=0)
    put(maps, 20002, State.CLOSING, route=3, next_route=19)
    put(maps, 20003, State.FREE, route=4)

    assert set(table.named_routes()) == {17, 0, 3, 19}


# Several inside addresses.


@pytest.fixture(scope="module")
def wide_pins() -> Iterator[Path]:
    """Maps for three inside addresses, with a program that fits them."""
    pins = Path(f"/sys/fs/bpf/shunt-tl-wide-{os.getpid()}")
    datapath.load(pins, 3)
    yield pins
    remove_pins(pins)


@pytest.fixture
def wide(wide_pins: Path) -> Iterator[Maps]:
    """Those maps as if just made, with the first two addresses in use."""
    with Maps(wide_pins, writable=True) as opened:
        empty(opened)
        opened.configure(with_addresses(2))
        yield opened


def with_addresses(count: int) -> types.Settings:
    """Settings with so many inside addresses."""
    made = settings()
    for index in range(types.INSIDE_ADDRESSES):
        used = index < count
        address = types.packed_address(f"198.18.1.{index + 1}") if used else types.Address()
        made.inside[index] = types.Inside(ipv4=address, first_slot=index << 16, used=used)
    return made


def test_the_ports_of_all_addresses_are_free_and_take_turns(wide: Maps) -> None:
    assert FlowTable(wide).rebuild_free() == 2 * len(PORTS)
    assert drained(wide) == [slot for port in PORTS for slot in (port, (1 << 16) + port)]


def test_a_slot_of_another_address_lives_and_ends_as_any(wide: Maps) -> None:
    table = FlowTable(wide)
    put(wide, (1 << 16) + 20001)
    put(wide, (1 << 16) + 20002, State.CLOSING, since=NOW - 60)

    assert sweep(table, routes(1), now=NOW) == 0
    assert drained(wide) == [(1 << 16) + 20002]
    (flow,) = table.flows(now=NOW)
    assert (flow.slot, flow.inside, flow.port) == ((1 << 16) + 20001, 1, 20001)
    assert table.close_addresses(vips=[], entries=[1], now=NOW) == 1


def test_flows_of_an_address_that_is_no_more_are_closed_and_not_opened_again(wide: Maps) -> None:
    put(wide, (2 << 16) + 20001)
    put(wide, (1 << 16) + 20001)
    table = FlowTable(wide)

    assert sweep(table, routes(1), now=NOW) == 1
    assert state(wide, (2 << 16) + 20001) is State.CLOSING

    wide.slots["to_transceiver"]["seen"][(1 << 16) + 20001] = ticks(NOW + 60)
    sweep(table, routes(1), now=NOW + 60)
    assert state(wide, (2 << 16) + 20001) is State.FREE
    assert drained(wide) == []


def test_the_program_opens_slots_of_all_addresses(wide: Maps, wide_pins: Path) -> None:
    FlowTable(wide).rebuild_free()
    wide.set_transceiver(5, types.Transceiver(port=40000, resolved=1))
    wide.add_route("abcd", id=7, transceiver=5)
    descriptor = bpf.pinned(versioned(wide_pins) / PROGRAM)
    for client in range(4):
        bpf.test_run(descriptor, frame(binding_request("abcd"), port=50000 + client))
    os.close(descriptor)

    assert [(flow.inside, flow.port) for flow in FlowTable(wide).flows(now=NOW)] == [
        *((0, 20000), (0, 20001), (1, 20000), (1, 20001))
    ]
