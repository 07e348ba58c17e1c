"""From one relay to the next: what is kept, what is brought over, and what a failure leaves."""

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from loader import bpf, carriers, types, upgrade
from loader.errors import ShuntError
from loader.flows import FlowTable
from loader.layout import layout
from loader.maps import Maps, Rate, shapes, versioned
from loader.migrate import rows_of
from loader.pinned_set import PARTS, PROGRAM, described, pinned_sets
from loader.sizes import sizes
from loader.source import digest
from loader.types import State
from loader.upgrade import Fate
from tests.loader.conftest import (
    FIRST_PORT,
    PINS,
    Host,
    binding_request,
    frame,
    make_host,
    remove_host,
    settings,
)
from tests.loader.test_bpf import create
from tests.loader.test_datapath import attach_a_strangers_program
from tests.loader.versions import COLOURED, NARROW, TINY, UNVERIFIABLE, Version

ROUTE = 7
UFRAG = "abcd"
BOTH = "public", "inside"


@pytest.fixture(scope="module")
def first() -> Iterator[tuple[Host, Path]]:
    """A host, and this version's relay on it."""
    host = make_host(f"{os.getpid()}-up")
    pins = PINS.with_name(f"{PINS.name}-up")
    host.run(lambda: upgrade.carry_out(upgrade.plan(pins, 1), list(BOTH)))
    yield host, pins
    host.run(lambda: carriers.unload(pins))
    remove_host(host)


@pytest.fixture
def running(first: tuple[Host, Path]) -> tuple[Host, Path]:
    """It, with a route, its flow, established, and another slot that is pending."""
    host, pins = first
    take_over(host, pins)
    fill(pins)
    return first


def take_over(host: Host, pins: Path, *, inside: int = 1) -> upgrade.Taken:
    """As an agent of this version begins."""

    def begin() -> upgrade.Taken:
        upgrade.recover(pins)
        return upgrade.carry_out(upgrade.plan(pins, inside), list(BOTH))

    return host.run(begin)


def fill(pins: Path) -> None:
    with Maps(pins, writable=True) as maps:
        configured = settings()
        configured.inside_links[0].ifindex = 1  # where test runs come in
        maps.configure(configured)
        for ufrag, _route in list(maps.routes()):
            maps.remove_route(ufrag)
        maps.slots.clear(0, len(maps.slots))
        entry = types.Transceiver(
            address=types.packed_address("198.18.1.11"), port=40000, resolved=1, expires=12345
        )
        entry.hop.ifindex, entry.hop.mtu = 1, 1500
        maps.set_transceiver(4, entry)
        maps.add_route(UFRAG, id=ROUTE, transceiver=4, checks=False)
        FlowTable(maps).rebuild_free()
    for port in (50000, 50001):
        through(pins, frame(binding_request(UFRAG), port=port))
    through(pins, answer(FIRST_PORT))
    assert states(pins) == [State.ESTABLISHED, State.PENDING]


def answer(port: int) -> bytes:
    """The transceiver's success to a request, to the slot of that port."""
    success = bytes.fromhex("01010000 2112a442") + (1).to_bytes(12, "big")
    udp = (40000).to_bytes(2, "big") + port.to_bytes(2, "big") + (8 + 20).to_bytes(2, "big")
    ip = bytes.fromhex("45000030 00004000 4011 0000 c612010b c6120101")
    return bytes.fromhex("020000000001 020000000002 0800") + ip + udp + bytes(2) + success


def media(port: int) -> bytes:
    return frame(b"\x80" + bytes(40), port=port)


def through(pins: Path, octets: bytes) -> int:
    """The verdict of the program that is pinned."""
    descriptor = bpf.pinned(versioned(pins) / PROGRAM)
    try:
        return bpf.test_run(descriptor, octets).verdict
    finally:
        os.close(descriptor)


def states(pins: Path) -> list[int]:
    with Maps(pins) as maps:
        found = maps.slots["to_client"]["state"][FIRST_PORT : FIRST_PORT + 2]
        assert np.array_equal(
            maps.slots["to_transceiver"]["state"], maps.slots["to_client"]["state"]
        )
        return [State(int(each)) for each in found]


def is_relayed(pins: Path, port: int) -> bool:
    """Whether the program that is pinned finds the client's established flow."""
    with Maps(pins) as maps:
        before = maps.counters().dropped["no_flow"]
        through(pins, media(port))
        return maps.counters().dropped["no_flow"] == before


def contents(pins: Path) -> dict[str, object]:
    """All that maps hold, but the notebook and the ring, which each agent writes anew."""
    with Maps(pins) as maps:
        flows = [
            {name: record[name].tobytes() for name in record.dtype.names if "unused" not in name}
            for slot in (FIRST_PORT, FIRST_PORT + 1)
            for record in maps.slots.at(slot).values()
        ]
        with bpf.Map.open(versioned(pins) / "handshakes") as handshakes:
            handshake = rows_of(handshakes)[FIRST_PORT].tobytes()
        return {
            "routes": [(ufrag, bytes(route)) for ufrag, route in maps.routes()],
            "transceivers": [(index, bytes(each)) for index, each in maps.transceivers()],
            "flows": flows,
            "handshake": handshake,
            "index": np.sort(maps.buckets()["entries"].ravel()).tobytes(),
            "settings": bytes(maps.settings().vips) + bytes(maps.settings().seed),
            # Without what is the kernel's: neighbour discovery goes on meanwhile.
            "counters": replace(maps.counters(), passed=Rate(0, 0)),
        }


def map_ids(pins: Path) -> dict[str, int]:
    """The kernel's ids of the pinned maps, by name, but of the notebook, which is a set's own."""
    ids = {}
    for name in layout(sizes(1)).maps.keys() - {"about"}:
        with bpf.Map.open(versioned(pins) / name) as opened:
            ids[name] = opened.info.id
    return ids


def folders(pins: Path) -> set[str]:
    """Names of the folders that hold pins."""
    return {entry.name for entry in pins.iterdir() if any(entry.iterdir())}


def on(host: Host) -> set[str]:
    return {host.xdp("public"), host.xdp("inside")}


def untouched(host: Host, pins: Path) -> Callable[[], bool]:
    """Whether the relay is as it is now: its program, its pins, what its maps hold, and that it
    opens slots."""
    before = on(host), sorted(pins.glob("*/*")), contents(pins)

    def still() -> bool:
        same = (on(host), sorted(pins.glob("*/*")), contents(pins)) == before
        with Maps(pins, writable=True) as maps:
            return same and maps.take_free() is not None

    return still


# The plan.


def test_without_a_relay_all_is_made(tmp_path: Path) -> None:
    plan = upgrade.plan(tmp_path / "none", 1)

    assert plan.running is None
    assert set(plan.maps.values()) == {Fate.MADE}
    assert "no relay yet" in plan.words


def test_maps_say_how_they_are_laid_out_and_what_the_program_was_compiled_of(
    running: tuple[Host, Path],
) -> None:
    _host, pins = running

    assert described(versioned(pins)) == layout(sizes(1))
    with Maps(pins) as maps:
        assert bytes(maps.about().source) == digest(1)


# The same layout.


def test_the_same_version_takes_over_what_is_there(running: tuple[Host, Path]) -> None:
    host, pins = running
    before, held = on(host), contents(pins)
    with Maps(pins) as maps:
        about = maps.about()

    done = take_over(host, pins)

    assert (done.adopted, done.program, done.brought_over) == (True, None, ())
    assert on(host) == before
    assert contents(pins) == held
    assert [(each.interface, each.mode.name) for each in done.attachments] == [
        ("public", "NATIVE"),
        ("inside", "NATIVE"),
    ]
    with Maps(pins) as maps:
        assert maps.about().adoptions == about.adoptions + 1
        assert maps.about().upgrades == about.upgrades


def test_another_program_takes_the_maps_as_they_are(running: tuple[Host, Path]) -> None:
    """It is loaded beside the one at work, which knows nothing of it until it is replaced."""
    host, pins = running
    before, held, kept = on(host), contents(pins), map_ids(pins)
    with Maps(pins, writable=True) as maps:
        about = maps.about()
        about.source[:] = bytes(len(about.source))
        maps.set_about(about)
    host.run(lambda: upgrade.stage(upgrade.plan(pins, 1)))
    assert (on(host), contents(pins), map_ids(pins)) == (before, held, kept)
    (staged,) = (each.program for each in pinned_sets(pins) if each.folder.name == upgrade.STAGE)

    done = take_over(host, pins)

    assert (done.adopted, done.program, done.brought_over) == (True, staged, ())
    assert on(host) == {f"xdp {staged}"}
    assert on(host) != before
    assert contents(pins) == held
    assert map_ids(pins) == kept
    assert is_relayed(pins, 50000)
    with Maps(pins) as maps:
        assert maps.about().upgrades == about.upgrades + 1
        assert bytes(maps.about().source) == digest(1)
    (parts,) = versioned(pins).glob(f"{PARTS}*")
    assert parts.name == f"{PARTS}{staged}"
    assert folders(pins) == {versioned(pins).name}


# Other layouts.


def test_another_layout_is_brought_over_and_back(
    running: tuple[Host, Path], tmp_path: Path
) -> None:
    """Newer or older: a version that turns out bad is taken back as it came. Killed as it cleaned
    up behind itself, it has taken over all the same."""
    host, pins = running
    held, before = contents(pins), on(host)
    killed = "upgrade._forget_others = lambda *_: os._exit(9)"

    assert Version(tmp_path, COLOURED).take_over(host, pins, *BOTH, changed=killed) == "killed"

    assert before.isdisjoint(on(host))
    assert described(versioned(pins)) != layout(sizes(1))
    with pytest.raises(ShuntError, match="a shape that this version does not know"):
        Maps(pins)
    plan = host.run(lambda: upgrade.plan(pins, 1))
    copied = {name for name, fate in plan.maps.items() if fate is Fate.COPIED}
    assert copied == {"routes", "slots_in", "slots_out", "books"}
    assert plan.maps["flows"] is Fate.KEPT
    assert plan.slots == 2

    done = take_over(host, pins)

    assert set(done.brought_over) == copied
    assert contents(pins) == held
    assert is_relayed(pins, 50000)
    assert not is_relayed(pins, 50001), "still pending"
    with Maps(pins) as maps:
        assert maps.about().migrations > 0
    assert folders(pins) == {versioned(pins).name}


def test_more_inside_addresses_end_no_flow_and_fewer_none_that_they_leave_room_for(
    running: tuple[Host, Path],
) -> None:
    """Killed when the interfaces have changed hands and the pins have not: it is completed."""
    host, pins = running
    held = contents(pins)
    killed = "upgrade.Migration.finish = lambda *_: os._exit(9)"
    assert Version.here().take_over(host, pins, *BOTH, inside=2, changed=killed) == "killed"
    assert (pins / upgrade.STAGE).is_dir()

    take_over(host, pins, inside=2)

    assert folders(pins) == {versioned(pins).name}
    with Maps(pins, writable=True) as maps:
        assert maps.sizes == sizes(2)
        assert states(pins) == [State.ESTABLISHED, State.PENDING]
        assert [route.id for _ufrag, route in maps.routes()] == [ROUTE]
    assert is_relayed(pins, 50000), "it is found in an index of another size"
    with Maps(pins, writable=True) as maps:
        for half in ("to_transceiver", "to_client"):
            maps.slots[half]["state"][65536 + FIRST_PORT] = State.ESTABLISHED
        FlowTable(maps).rebuild_free()
    still = untouched(host, pins)
    with pytest.raises(ShuntError, match="1 of its slots are in use beyond the 65536") as error:
        host.run(lambda: upgrade.plan(pins, 1))
    assert "wait until those flows are over" in error.value.cure
    assert still()

    with Maps(pins, writable=True) as maps:
        for half in ("to_transceiver", "to_client"):
            maps.slots[half]["state"][65536 + FIRST_PORT] = State.FREE
    take_over(host, pins)
    assert is_relayed(pins, 50000)
    assert contents(pins)["routes"] == held["routes"]


def test_the_pins_of_v2_are_brought_over(running: tuple[Host, Path]) -> None:
    host, pins = running
    held, before = contents(pins), on(host)
    make_v2(pins)
    plan = host.run(lambda: upgrade.plan(pins, 1))
    assert plan.running is not None
    assert plan.running.folder.name == "v2"
    assert {name for name, fate in plan.maps.items() if fate is not Fate.KEPT} == {
        "about",
        "transceivers",
    }

    take_over(host, pins)

    assert before.isdisjoint(on(host))
    assert [each.folder for each in pinned_sets(pins)] == [versioned(pins)]
    now = contents(pins)
    assert now.pop("transceivers") != held.pop("transceivers"), "v2 kept no leases"
    assert now == held
    assert is_relayed(pins, 50000)
    with Maps(pins) as maps:
        entry = maps.transceiver(4)
        assert (entry.port, entry.resolved, entry.hop.mtu, entry.expires) == (40000, 1, 1500, 0)


def make_v2(pins: Path) -> None:
    """The running relay, pinned as v2 would have left it: transceivers' entries are shorter, and
    there is no notebook."""
    old, folder = versioned(pins), pins / "v2"
    shape = shapes(sizes(1))["transceivers"]
    folder.mkdir()
    with Maps(pins) as maps:
        value = bytes(maps.transceiver(4))[:112] + bytes(16)
    with bpf.Map(create(**shape._replace(value=len(value))._asdict())) as transceivers:
        transceivers.update((4).to_bytes(4, "little"), value)
        bpf.pin(transceivers.descriptor, folder / "transceivers")
    for entry in list(old.iterdir()):
        if entry.name in ("about", "transceivers"):
            entry.unlink()
        else:
            entry.rename(folder / entry.name)
    old.rmdir()


# What cannot be, and what fails.


def test_fields_that_mean_something_else_are_refused_before_anything_is_done(
    running: tuple[Host, Path], tmp_path: Path
) -> None:
    host, pins = running
    still = untouched(host, pins)

    said = Version(tmp_path, NARROW).take_over(host, pins, *BOTH)

    assert "its ROUTE_SLOTS is 8, this version's 4" in said
    assert "It goes on as it is" in said
    assert still()


def test_a_relay_that_does_not_describe_itself_is_refused(running: tuple[Host, Path]) -> None:
    host, pins = running
    with Maps(pins, writable=True) as maps:
        about = maps.about()
        maps.set_about(types.About())
        still = untouched(host, pins)

        with pytest.raises(ShuntError, match="does not say how its maps are laid out") as error:
            host.run(lambda: upgrade.plan(pins, 1))

        assert "shunt agent unload" in error.value.cure
        assert still()
        maps.set_about(about)


def test_a_program_that_the_verifier_refuses_leaves_the_old_one_at_work(
    running: tuple[Host, Path], tmp_path: Path
) -> None:
    host, pins = running
    still = untouched(host, pins)

    said = Version(tmp_path, UNVERIFIABLE).take_over(host, pins, *BOTH)

    assert "cannot be loaded on this kernel" in said
    assert "invalid access to packet" in said
    assert still()


def test_an_interface_that_takes_no_program_leaves_all_as_they_were(
    running: tuple[Host, Path], tmp_path: Path
) -> None:
    """Slots are brought over by then, and none may be opened: that too is as it was."""
    host, pins = running
    still = untouched(host, pins)
    refused = (
        "put = carriers._attach\n"
        "def refuse(netlink, descriptor, carrier, old):\n"
        "    if carrier.name == 'inside':\n"
        "        raise ShuntError('inside takes no XDP program')\n"
        "    return put(netlink, descriptor, carrier, old)\n"
        "carriers._attach = refuse\n"
    )

    said = Version(tmp_path, TINY).take_over(host, pins, *BOTH, inside=2, changed=refused)

    assert "inside takes no XDP program" in said
    assert still()


def test_killed_before_the_interfaces_change_hands_it_leaves_the_old_relay_at_work(
    running: tuple[Host, Path], tmp_path: Path
) -> None:
    host, pins = running
    before = on(host), contents(pins)
    killed = "upgrade.Carriers.attach = lambda *_: os._exit(9)"
    version = Version(tmp_path, TINY)
    assert version.take_over(host, pins, *BOTH, inside=2, changed=killed) == "killed"
    assert (pins / upgrade.STAGE).is_dir()
    assert (on(host), contents(pins)) == before

    take_over(host, pins)

    assert (on(host), contents(pins)) == before
    assert folders(pins) == {versioned(pins).name}


@pytest.mark.parametrize("trouble", ["a stranger's program", "a missing interface"])
def test_interfaces_are_looked_at_before_anything_is_compiled(
    running: tuple[Host, Path], trouble: str
) -> None:
    host, pins = running
    if trouble == "a missing interface":
        name, complaint = "nowhere0", "there is no interface nowhere0"
    else:
        host.ip("link add other0 type veth peer name other1")
        attach_a_strangers_program(host, "other0")
        name, complaint = "other0", "already carries another XDP program"
    still = untouched(host, pins)
    plan = host.run(lambda: upgrade.plan(pins, 2))

    with pytest.raises(ShuntError, match=complaint):
        host.run(lambda: upgrade.carry_out(plan, ["public", "inside", name]))

    assert still()
    if name == "other0":
        host.ip("link del other0")


def test_killed_between_two_interfaces_it_is_completed_by_who_sees_no_stranger_in_its_own(
    running: tuple[Host, Path],
) -> None:
    """An agent without CAP_SYS_ADMIN knows a program only by its pins: those of the old one must be
    there until the last interface has the new one."""
    host, pins = running
    before = on(host)
    killed = (
        "put = carriers._attach\n"
        "def once(netlink, descriptor, carrier, old):\n"
        "    if carrier.name == 'inside':\n"
        "        os._exit(9)\n"
        "    return put(netlink, descriptor, carrier, old)\n"
        "carriers._attach = once\n"
    )
    here = Version.here()
    assert here.take_over(host, pins, *BOTH, inside=2, changed=killed) == "killed"
    assert len(on(host) - before) == 1
    assert len(on(host)) == 2

    without = ("setpriv", "--bounding-set", "-sys_admin", "--inh-caps", "-sys_admin")
    assert here.take_over(host, pins, *BOTH, inside=2, before=without) == ""

    assert len(on(host)) == 1
    assert on(host) != before
    assert folders(pins) == {versioned(pins).name}
    assert is_relayed(pins, 50000)


def test_an_interface_that_is_not_the_relays_any_more_is_left(
    running: tuple[Host, Path], tmp_path: Path
) -> None:
    """By an upgrade, too, after which the program that it has is pinned no more."""
    host, pins = running

    assert Version(tmp_path, TINY).take_over(host, pins, "public") == ""

    assert host.xdp("inside") == "none"
    assert host.xdp("public") != "none"
