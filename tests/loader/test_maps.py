"""The typed view of the pinned maps."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from loader import bpf, types
from loader.compile import PROGRAM
from loader.errors import ShuntError
from loader.maps import _SHAPES, Interface, Maps, ufrag_key, versioned
from loader.reasons import REASONS
from tests.loader.conftest import binding_request, frame, settings
from tests.loader.test_bpf import create


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
    for name in _SHAPES:
        descriptor = bpf.pinned(versioned(pins) / name)
        bpf.pin(descriptor, versioned(own_pins) / name)
        os.close(descriptor)
    return own_pins


@pytest.mark.parametrize("name", ["routes", "slots", "traffic"])
def test_a_missing_map_is_no_relay(copied: Path, name: str) -> None:
    (versioned(copied) / name).unlink()

    with pytest.raises(ShuntError, match="no relay is loaded"):
        Maps(copied)


@pytest.mark.parametrize("field", ["type", "key", "value", "entries", "flags"])
@pytest.mark.parametrize("name", ["routes", "slots"])
def test_a_map_of_another_shape_is_refused_by_name(copied: Path, name: str, field: str) -> None:
    kind, key, value, entries, flags = _SHAPES[name]
    shape = {"type": kind, "key": key, "value": value, "entries": entries, "flags": flags}
    if field == "type":
        shape.update(type=5 if kind == 1 else 6, flags=0)
    elif field == "flags":
        shape["flags"] = 1 if kind == 1 else 0
    elif field == "key" and kind == 2:
        shape.update(type=1, key=8, flags=0)  # an array's key is always 4 bytes
    else:
        shape[field] = int(shape[field]) + 8
    descriptor = create(
        shape["type"],
        key=shape["key"],
        value=shape["value"],
        entries=shape["entries"],
        flags=shape["flags"],
    )
    (versioned(copied) / name).unlink()
    bpf.pin(descriptor, versioned(copied) / name)
    os.close(descriptor)

    with pytest.raises(ShuntError, match=f"{name} has a shape") as error:
        Maps(copied)

    assert "unload" in error.value.cure


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
    maps.configure(settings(first_port=1234, last_port=5678))

    assert bytes(maps.settings()) == bytes(settings(first_port=1234, last_port=5678))


def test_interfaces_come_back_as_written_and_shrink(maps: Maps) -> None:
    two = [
        Interface(name="public0", ifindex=7, inside=False, mode=types.Mode.NATIVE),
        Interface(name="a-name-of-15-ch", ifindex=8, inside=True, mode=types.Mode.GENERIC),
    ]
    maps.set_interfaces(two)
    assert maps.interfaces() == two

    maps.set_interfaces(two[1:])
    assert maps.interfaces() == two[1:]


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
    assert maps.remove_route("a+/Z")
    assert not maps.remove_route("a+/Z")


def test_a_ufrag_is_not_the_beginning_of_another(maps: Maps) -> None:
    maps.add_route("abcd", id=1, transceiver=0)
    maps.add_route("abcde", id=2, transceiver=0)

    assert {ufrag: route.id for ufrag, route in maps.routes()} == {"abcd": 1, "abcde": 2}


@pytest.mark.parametrize("ufrag", ["", "abc", "x" * 33, "é" * 4])
def test_what_cannot_be_a_key_is_a_value_error(ufrag: str) -> None:
    with pytest.raises(ValueError):
        ufrag_key(ufrag)


def test_a_full_route_map_says_so(maps: Maps) -> None:
    for number in range(types.ROUTES):
        maps.add_route(f"{number:06}", id=number + 1, transceiver=0)

    with pytest.raises(ShuntError, match="route map is full"):
        maps.add_route("onemore", id=70000, transceiver=0)

    maps.remove_route("000000")
    maps.add_route("onemore", id=70000, transceiver=0)


def test_free_ports_are_taken_in_the_order_they_were_freed(maps: Maps) -> None:
    for port in (20007, 20003, 20005):
        maps.free(port)

    assert [maps.take_free() for _ in range(4)] == [20007, 20003, 20005, None]


def test_slots_are_the_program_s_own_memory(maps: Maps, pins: Path) -> None:
    maps.set_transceiver(0, types.Transceiver(port=40000))
    maps.add_route("abcd", id=77, transceiver=0)
    maps.free(20010)

    run(pins, frame(binding_request("abcd"), port=50123))

    slot = maps.slots[20010]
    assert slot["to_transceiver"]["route"] == 77
    assert slot["to_transceiver"]["state"] == slot["to_client"]["state"] == types.State.PENDING
    assert slot["to_client"]["client_port"] == 50123
    assert types.text_address(bytes(slot["to_client"]["client"])) == "198.18.0.10"


def flows4_of(maps: Maps) -> bpf.Map:
    return maps._maps["flows4"]


def test_a_client_is_forgotten_only_by_its_own_port(maps: Maps) -> None:
    client = types.Client4(address=0xC612000A, port=50000, vip=0)
    flows4_of(maps).update(bytes(client), (20001).to_bytes(4, "little"))

    maps.forget_client(client, port=20002)
    assert [port for _client, port in maps.flows4()] == [20001]

    maps.forget_client(client, port=20001)
    assert list(maps.flows4()) == []


def test_a_slots_checks_are_forgotten_but_not_anothers(maps: Maps) -> None:
    checks, handshakes = maps._maps["checks"], maps._maps["handshakes"]
    mine, not_mine = types.Transaction(), types.Transaction()
    mine.id[0], not_mine.id[0] = 1, 2
    handshake = types.Handshake()
    handshake.checks[0], handshake.checks[1] = mine, not_mine
    handshakes.update((20001).to_bytes(4, "little"), bytes(handshake))
    checks.update(bytes(mine), (20001).to_bytes(4, "little"))
    checks.update(bytes(not_mine), (20002).to_bytes(4, "little"))

    maps.forget_checks(20001)

    assert checks.lookup(bytes(mine)) is None
    assert checks.lookup(bytes(not_mine)) == (20002).to_bytes(4, "little")
    checks.delete(bytes(not_mine))
    handshakes.update((20001).to_bytes(4, "little"), bytes(types.Handshake()))


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
