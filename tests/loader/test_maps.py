"""The typed view of the pinned maps."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from loader import bpf, types
from loader.errors import ShuntError
from loader.maps import Interface, Maps, check_shapes, shapes, ufrag_key, versioned
from loader.pinned_set import PROGRAM
from loader.reasons import REASONS
from loader.sizes import sizes
from tests.loader.conftest import binding_request, frame, settings
from tests.loader.test_bpf import create

SHAPES = shapes(sizes(1))


def run(pins: Path, packet: bytes) -> int:
    """The program's verdict on a packet."""
    descriptor = bpf.pinned(versioned(pins) / PROGRAM)
    try:
        return bpf.test_run(descriptor, packet).verdict
    finally:
        os.close(descriptor)


# Opening.


def test_with_nothing_pinned_it_says_what_to_start() -> None:
    with pytest.raises(ShuntError, match="no relay is loaded") as error:
        Maps(Path("/sys/fs/bpf/shunt-tl-nothing"))

    assert "shunt agent run" in error.value.cure


@pytest.fixture
def copied(pins: Path, own_pins: Path) -> Path:
    """The suite's maps, pinned a second time, to spoil."""
    versioned(own_pins).mkdir(parents=True)
    for name in SHAPES:
        descriptor = bpf.pinned(versioned(pins) / name)
        bpf.pin(descriptor, versioned(own_pins) / name)
        os.close(descriptor)
    return own_pins


@pytest.mark.parametrize("name", ["routes", "slots_in", "slots_out", "traffic"])
def test_a_missing_map_is_no_relay(copied: Path, name: str) -> None:
    (versioned(copied) / name).unlink()

    with pytest.raises(ShuntError, match="no relay is loaded"):
        Maps(copied)


@pytest.mark.parametrize("field", ["type", "key", "value", "entries", "flags"])
@pytest.mark.parametrize("name", ["routes", "slots_in", "slots_out", "flows", "free_ring"])
def test_a_map_of_another_shape_is_refused_by_name(copied: Path, name: str, field: str) -> None:
    shape = SHAPES[name]._asdict()
    is_hash = name == "routes"
    if field == "type":
        shape.update(type=5 if is_hash else 6, flags=0)
    elif field == "flags":
        shape["flags"] = 1 if is_hash else 0
    elif field == "key" and not is_hash:
        shape.update(type=1, key=8, flags=0)  # an array's key is always 4 bytes
    else:
        shape[field] += 8
    exchange(copied, name, create(**shape))

    with pytest.raises(ShuntError, match=f"{name} has a shape") as error:
        Maps(copied)

    assert "unload" in error.value.cure


@pytest.mark.parametrize("slots", [65535, 65537, 17 * 65536])
def test_a_number_of_slots_that_cannot_be_is_another_shape(copied: Path, slots: int) -> None:
    exchange(copied, "slots_in", create(**SHAPES["slots_in"]._replace(entries=slots)._asdict()))

    with pytest.raises(ShuntError, match="slots_in has a shape"):
        Maps(copied)


def test_maps_of_different_sizes_do_not_belong_together(copied: Path) -> None:
    exchange(copied, "slots_in", create(**shapes(sizes(2))["slots_in"]._asdict()))

    with pytest.raises(ShuntError, match="has a shape"):
        Maps(copied)


def exchange(pins: Path, name: str, descriptor: int) -> None:
    """Pin another map in the place of one."""
    (versioned(pins) / name).unlink()
    bpf.pin(descriptor, versioned(pins) / name)
    os.close(descriptor)


@pytest.mark.parametrize("inside", [1, 3])
def test_its_sizes_are_those_that_it_was_made_with(own_pins: Path, inside: int) -> None:
    versioned(own_pins).mkdir(parents=True)
    for name, shape in shapes(sizes(inside)).items():
        descriptor = create(**shape._asdict())
        bpf.pin(descriptor, versioned(own_pins) / name)
        os.close(descriptor)

    with Maps(own_pins) as maps:
        assert maps.sizes == sizes(inside)
        assert len(maps.slots) == inside * 65536
    check_shapes(own_pins, sizes(inside))
    with pytest.raises(ShuntError, match=f"has {inside * 65536} slots.* asks for 131072"):
        check_shapes(own_pins, sizes(2))


def test_a_map_that_a_new_program_would_misread_is_named_before_it_is_loaded(copied: Path) -> None:
    check_shapes(copied, sizes(1))
    shape = SHAPES["drops"]
    exchange(copied, "drops", create(**shape._replace(entries=shape.entries - 1)._asdict()))

    with pytest.raises(ShuntError, match="drops has a shape"):
        check_shapes(copied, sizes(1))


def test_sizes_of_what_is_not_there_are_any(own_pins: Path) -> None:
    check_shapes(own_pins, sizes(16))


def test_opening_and_closing_leaks_no_descriptor(pins: Path, copied: Path) -> None:
    with Maps(pins):
        pass
    (versioned(copied) / "traffic").unlink()
    before = len(os.listdir("/proc/self/fd"))

    for _ in range(20):
        with Maps(pins, writable=True):
            pass
        with pytest.raises(ShuntError):
            Maps(copied)

    assert len(os.listdir("/proc/self/fd")) == before


def test_a_reader_cannot_write_slots(pins: Path) -> None:
    with Maps(pins) as maps, pytest.raises(ValueError, match="read-only"):
        maps.slots["to_transceiver"]["state"][20000] = 1


# Contents.


def test_settings_come_back_as_written(maps: Maps) -> None:
    wanted = settings(first_port=1234, last_port=5678)
    wanted.seed[:] = [1, 2]

    maps.configure(wanted)

    found = maps.settings()
    found.tick = found.jiffies = 0
    assert bytes(found) == bytes(wanted)


def test_the_programs_clock_is_left_alone(maps: Maps) -> None:
    """With tick 0 in it, the next packet would make its flow years old."""
    before = types.Settings(tick=123, jiffies=456)
    maps._maps["settings"].update(bytes(4), bytes(before))

    maps.configure(settings())

    assert (maps.settings().tick, maps.settings().jiffies) == (123, 456)


def test_the_seed_is_drawn_once_and_kept(maps: Maps) -> None:
    zero = settings()
    zero.seed[:] = [0, 0]
    maps._maps["settings"].update(bytes(4), bytes(zero))

    maps.configure(settings(first_port=1234))
    first = list(maps.settings().seed)
    maps.configure(settings(first_port=2345))

    assert any(first)
    assert list(maps.settings().seed) == first
    assert maps.settings().first_port == 2345
    assert not any(settings().seed), "what was passed in is not changed"


def test_no_two_relays_have_the_same_seed(maps: Maps) -> None:
    seeds = set()
    for _ in range(3):
        maps._maps["settings"].update(bytes(4), bytes(types.Settings()))
        maps.configure(types.Settings())
        seeds |= set(maps.settings().seed)

    assert len(seeds) == 6


def test_interfaces_come_back_as_written_and_shrink(maps: Maps) -> None:
    two = [
        Interface("public0", 7, inside=False, mode=types.Mode.NATIVE, mtu=1500),
        Interface("a-name-of-15-ch", 8, inside=True, mode=types.Mode.GENERIC, vlan=4094, mtu=9000),
    ]
    maps.set_interfaces(two)
    assert maps.interfaces() == two

    maps.set_interfaces(two[1:])
    assert maps.interfaces() == two[1:]


def test_an_mtu_beyond_any_ip_packet_is_the_largest_packet(maps: Maps) -> None:
    maps.set_interfaces([Interface("lo", 1, inside=True, mode=types.Mode.GENERIC, mtu=65536)])

    assert maps.interfaces()[0].mtu == 65535


def test_only_transceivers_in_use_are_listed(maps: Maps) -> None:
    maps.set_transceiver(5, types.Transceiver(port=40000, instance=9))
    maps.set_transceiver(4095, types.Transceiver(port=40001))

    assert [(index, entry.port) for index, entry in maps.transceivers()] == [
        (5, 40000),
        (4095, 40001),
    ]
    assert maps.transceiver(5).instance == 9
    assert maps.transceiver(6).port == 0


def test_a_route_is_made_once_and_removed_once(maps: Maps) -> None:
    maps.add_route("a+/Z", id=3, transceiver=9)

    ((ufrag, route),) = maps.routes()
    assert (ufrag, route.id, route.transceiver, list(route.slots)) == ("a+/Z", 3, 9, [0] * 8)
    with pytest.raises(FileExistsError):
        maps.add_route("a+/Z", id=4, transceiver=9)
    removed = maps.remove_route("a+/Z")
    assert removed is not None
    assert removed.id == 3
    assert maps.remove_route("a+/Z") is None


@pytest.mark.parametrize(("checks", "flags"), [(True, 0), (False, types.ROUTE_NO_CHECKS)])
def test_a_route_says_whether_its_transceiver_makes_checks(
    maps: Maps, checks: bool, flags: int
) -> None:
    maps.add_route("abcd", id=3, transceiver=9, checks=checks)

    ((_ufrag, route),) = maps.routes()
    assert route.flags == flags


def test_a_ufrag_is_not_the_beginning_of_another(maps: Maps) -> None:
    maps.add_route("abcd", id=1, transceiver=0)
    maps.add_route("abcde", id=2, transceiver=0)

    assert {ufrag: route.id for ufrag, route in maps.routes()} == {"abcd": 1, "abcde": 2}


@pytest.mark.parametrize("ufrag", ["", "abc", "x" * 33, "é" * 4])
def test_what_cannot_be_a_key_is_a_value_error(ufrag: str) -> None:
    with pytest.raises(ValueError):
        ufrag_key(ufrag)


def test_a_full_route_map_says_so(maps: Maps) -> None:
    for number in range(maps.sizes.routes):
        maps.add_route(f"{number:06}", id=number + 1, transceiver=0)

    with pytest.raises(ShuntError, match="route map is full"):
        maps.add_route("onemore", id=70000, transceiver=0)

    maps.remove_route("000000")
    maps.add_route("onemore", id=70000, transceiver=0)


def test_free_slots_are_taken_in_the_order_they_were_freed(maps: Maps) -> None:
    maps.free_slots([20007, 20003])
    maps.free(20005)

    assert [maps.take_free() for _ in range(4)] == [20007, 20003, 20005, None]


def test_a_forgotten_slot_is_not_taken(maps: Maps) -> None:
    maps.free_slots(range(20000, 20010))
    maps.take_free()

    maps.forget_free()

    assert maps.take_free() is None
    maps.free(20001)
    assert [maps.take_free(), maps.take_free()] == [20001, None]


def place_ring(maps: Maps, at: int) -> None:
    """Head and tail of the ring as after so many slots."""
    maps._maps["free_head"].update(bytes(4), bytes(types.FreeHead(head=at)))
    maps._free_tail[0] = at


@pytest.mark.parametrize("at", [2**32 - 3, 65536 - 3, 2**31 - 3])
def test_the_ring_goes_round_and_counts_beyond_32_bits(maps: Maps, pins: Path, at: int) -> None:
    place_ring(maps, at)
    maps.set_transceiver(0, types.Transceiver(port=40000))
    maps.add_route("abcd", id=77, transceiver=0)
    maps.free_slots(range(20000, 20006))

    for client in range(4):  # the program goes round, and so does who takes its part
        run(pins, frame(binding_request("abcd"), port=50000 + client))

    assert np.flatnonzero(maps.slots["to_transceiver"]["state"]).tolist() == [*range(20000, 20004)]
    assert [maps.take_free() for _ in range(3)] == [20004, 20005, None]


def test_all_slots_can_be_free_at_once(maps: Maps) -> None:
    place_ring(maps, 12345)

    maps.free_slots(np.arange(maps.sizes.slots))

    assert maps.take_free() == 0
    head = int.from_bytes(maps._maps["free_head"].lookup(bytes(4))[4:], "little")  # type: ignore[index]
    assert int(maps._free_tail[0]) - head == maps.sizes.slots - 1


def test_without_a_free_slot_a_new_client_is_refused(maps: Maps, pins: Path) -> None:
    maps.set_transceiver(0, types.Transceiver(port=40000))
    maps.add_route("abcd", id=77, transceiver=0)
    before = maps.counters().dropped["table_full"]

    run(pins, frame(binding_request("abcd")))

    assert maps.counters().dropped["table_full"] == before + 1


def test_slots_are_the_program_s_own_memory(maps: Maps, pins: Path) -> None:
    maps.set_transceiver(0, types.Transceiver(port=40000))
    maps.add_route("abcd", id=77, transceiver=0)
    maps.free(20010)

    run(pins, frame(binding_request("abcd"), port=50123))

    slot = maps.slots.at(20010)
    assert slot["book"]["route"] == 77
    assert slot["to_transceiver"]["state"] == slot["to_client"]["state"] == types.State.PENDING
    assert slot["to_client"]["client_port"] == 50123
    assert types.text_address(bytes(slot["to_client"]["client"])) == "198.18.0.10"


# Counters.


def on_each_cpu(work: Callable[[], object]) -> int:
    """Do *work* once on each CPU; how many those are."""
    allowed = os.sched_getaffinity(0)
    try:
        for cpu in allowed:
            os.sched_setaffinity(0, {cpu})
            work()
    finally:
        os.sched_setaffinity(0, allowed)
    return len(allowed)


def test_counters_are_sums_over_all_cpus(maps: Maps, pins: Path) -> None:
    packet = frame(binding_request("none"))
    stranger = bytes(12) + b"\x08\x06" + bytes(46)
    before = maps.counters()

    dropped = on_each_cpu(lambda: run(pins, packet))
    passed = on_each_cpu(lambda: run(pins, stranger))

    after = maps.counters()
    assert after.dropped["no_route"] - before.dropped["no_route"] == dropped
    assert after.passed.packets - before.passed.packets == passed
    assert after.passed.bytes - before.passed.bytes == passed * len(stranger)


def test_every_reason_is_counted_even_if_zero(maps: Maps) -> None:
    assert list(maps.counters().dropped) == [reason.name for reason in REASONS]


# Many routes at once.


def test_all_routes_are_read_at_once_with_all_that_is_in_them(maps: Maps) -> None:
    maps.add_route("abcd", id=7, transceiver=3)
    maps.add_route("a+/" + "Z" * 29, id=8, transceiver=4, checks=False)

    ufrags, entries = maps.all_routes()

    assert {
        ufrag: (int(entry["id"]), int(entry["transceiver"]), int(entry["flags"]))
        for ufrag, entry in zip(ufrags, entries, strict=True)
    } == {
        "abcd": (7, 3, 0),
        "a+/" + "Z" * 29: (8, 4, types.ROUTE_NO_CHECKS),
    }


def test_of_no_routes_there_are_none(maps: Maps) -> None:
    ufrags, entries = maps.all_routes()

    assert (ufrags, len(entries)) == ([], 0)
    assert maps.remove_routes([]) == 0


def test_more_routes_than_one_call_returns_are_all_read(maps: Maps) -> None:
    wanted = {f"uf{number:05}": number + 1 for number in range(9000)}
    for ufrag, id in wanted.items():
        maps.add_route(ufrag, id=id, transceiver=0)

    ufrags, entries = maps.all_routes()

    assert dict(zip(ufrags, entries["id"].tolist(), strict=True)) == wanted


@pytest.mark.parametrize("missing", [[], [0], [3], [5], [0, 1, 2], [0, 2, 4, 5], list(range(6))])
def test_many_routes_are_removed_at_once_and_missing_ones_passed_over(
    maps: Maps, missing: list[int]
) -> None:
    ufrags = [f"uf{number:02}" for number in range(6)]
    for place, ufrag in enumerate(ufrags):
        if place not in missing:
            maps.add_route(ufrag, id=place + 1, transceiver=0)
    maps.add_route("stays", id=77, transceiver=0)

    assert maps.remove_routes(ufrags) == 6 - len(missing)
    assert [ufrag for ufrag, _route in maps.routes()] == ["stays"]
