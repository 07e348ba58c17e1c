"""The program on real interfaces: on, off, replaced, refused, and never half of it."""

import ctypes
import os
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from pyroute2 import IPRoute
from pyroute2.netlink.rtnl import RTMGRP_LINK

from loader import bpf, carriers, datapath, source, types
from loader.errors import ShuntError
from loader.maps import Maps, versioned
from loader.pinned_set import PARTS, PROGRAM, remove_pins
from loader.sizes import sizes
from loader.types import Mode
from tests.loader.conftest import (
    Host,
    binding_request,
    eventually,
    frame,
    settings,
)
from tests.loader.test_links import message, vlan

_PROG_LOAD, _XDP, _PASS = 5, 6, 2


@pytest.fixture
def loaded(host: Host, maps: Maps, pins: Path, own_pins: Path) -> Iterator[Path]:
    """The suite's program and maps, pinned a second time, for a host of its own."""
    versioned(own_pins).mkdir(parents=True)
    for entry in versioned(pins).iterdir():
        descriptor = bpf.pinned(entry)
        bpf.pin(descriptor, versioned(own_pins) / entry.name)
        os.close(descriptor)
    yield own_pins
    host.run(lambda: carriers.unload(own_pins))


def attach(host: Host, pins: Path, *interfaces: str) -> list[carriers.Attachment]:
    return host.run(lambda: carriers.attach(pins, list(interfaces)))


def program_id(pins: Path) -> int:
    descriptor = bpf.pinned(versioned(pins) / PROGRAM)
    try:
        return bpf.program_info(descriptor).id
    finally:
        os.close(descriptor)


def load_a_strangers_program() -> int:
    """`xdp_pass`: return XDP_PASS; a descriptor."""
    instructions = struct.pack("<BBhi", 0xB7, 0, 0, _PASS) + struct.pack("<BBhi", 0x95, 0, 0, 0)
    code = ctypes.create_string_buffer(instructions, len(instructions))
    licence = ctypes.create_string_buffer(b"GPL")
    attributes = struct.pack(
        "=IIQQIIQII16s",
        *(_XDP, 2, ctypes.addressof(code), ctypes.addressof(licence), 0, 0, 0, 0, 0, b"xdp_pass"),
    )
    buffer = ctypes.create_string_buffer(attributes.ljust(128, b"\0"), 128)
    return bpf._bpf(_PROG_LOAD, buffer)


def attach_a_strangers_program(host: Host, interface: str) -> int:
    """Put `xdp_pass` on an interface; its id."""
    descriptor = load_a_strangers_program()
    try:

        def put() -> None:
            with IPRoute() as netlink:
                index = netlink.link_lookup(ifname=interface)[0]
                netlink.link("set", index=index, xdp={"attrs": [("IFLA_XDP_FD", descriptor)]})

        host.run(put)
        return bpf.program_info(descriptor).id
    finally:
        os.close(descriptor)


def test_a_veth_takes_the_program_natively(host: Host, loaded: Path) -> None:
    public, inside = attach(host, loaded, "public", "inside")

    assert (public.interface, public.mode, public.why) == ("public", Mode.NATIVE, "")
    assert (inside.interface, inside.mode) == ("inside", Mode.NATIVE)
    assert host.xdp("public") == host.xdp("inside") == f"xdp {program_id(loaded)}"


def test_the_mode_can_be_read_back(host: Host, loaded: Path) -> None:
    host.ip("link add bridge0 type bridge")
    attachments = attach(host, loaded, "public", "bridge0")

    def modes() -> list[Mode]:
        with IPRoute() as netlink:
            return [carriers.attached_mode(netlink, a.ifindex) for a in attachments]

    assert host.run(modes) == [Mode.NATIVE, Mode.GENERIC]
    host.ip("link set public xdp off")
    host.ip("link del bridge0")
    assert host.run(modes) == [Mode.DETACHED, Mode.DETACHED]


@pytest.mark.parametrize(
    ("device", "prepare", "why"),
    [
        ("bridge0", "link add bridge0 type bridge", "the driver has no native XDP"),
        ("macvlan0", "link add macvlan0 link public type macvlan", "the driver has no native XDP"),
        ("lo", "link set lo up", "the driver has no native XDP"),
    ],
)
def test_an_interface_without_native_xdp_falls_back_and_says_why(
    host: Host, loaded: Path, device: str, prepare: str, why: str
) -> None:
    host.ip(prepare)

    (attachment,) = attach(host, loaded, device)

    assert (attachment.mode, attachment.why) == (Mode.GENERIC, why)
    assert host.xdp(device) == f"xdpgeneric {program_id(loaded)}"


def test_a_veth_whose_peer_has_jumbo_frames_falls_back_and_says_why(
    host: Host, loaded: Path
) -> None:
    host.ip("link set client mtu 9000", outside=True)

    public, inside = attach(host, loaded, "public", "inside")

    assert (public.mode, public.why) == (Mode.GENERIC, "the MTU is too large for native XDP")
    assert inside.mode is Mode.NATIVE


def test_an_interface_in_generic_mode_stays_so_and_says_why(host: Host, loaded: Path) -> None:
    host.ip("link set client mtu 9000", outside=True)
    attach(host, loaded, "public")
    host.ip("link set client mtu 1500", outside=True)

    (attachment,) = attach(host, loaded, "public")

    assert attachment.mode is Mode.GENERIC
    assert "unload first" in attachment.why


def test_somebody_elses_program_is_named_and_left_alone(host: Host, loaded: Path) -> None:
    id = attach_a_strangers_program(host, "inside")

    with pytest.raises(ShuntError, match=r"inside already carries another XDP program") as error:
        attach(host, loaded, "public", "inside")

    assert f"xdp_pass (id {id})" in error.value.what
    assert "ip link set dev inside xdp off" in error.value.cure
    assert host.xdp("inside") == f"xdp {id}"
    assert host.xdp("public") == "none", "all or nothing"


def test_a_missing_interface_leaves_nothing_attached(host: Host, loaded: Path) -> None:
    host.ip("link add bridge0 type bridge")

    with pytest.raises(ShuntError, match="there is no interface nowhere0 here"):
        attach(host, loaded, "public", "bridge0", "nowhere0")

    assert host.xdp("public") == host.xdp("bridge0") == "none"


def test_a_failed_attach_keeps_what_was_attached_before(host: Host, loaded: Path) -> None:
    attach(host, loaded, "public")

    with pytest.raises(ShuntError):
        attach(host, loaded, "public", "inside", "nowhere0")

    assert host.xdp("public") == f"xdp {program_id(loaded)}"
    assert host.xdp("inside") == "none"


def test_attaching_twice_replaces_without_a_moment_of_none(host: Host, loaded: Path) -> None:
    attach(host, loaded, "public")
    old = program_id(loaded)
    datapath.load(loaded)

    def exchange() -> list[int | None]:
        with IPRoute() as monitor:
            monitor.bind(RTMGRP_LINK)
            carriers.attach(loaded, ["public"])
            changes = [message.get_attr("IFLA_XDP") for message in monitor.get()]
            return [xdp.get_attr("IFLA_XDP_PROG_ID") for xdp in changes]

    assert host.run(exchange) == [program_id(loaded)]
    assert host.xdp("public") == f"xdp {program_id(loaded)}" != f"xdp {old}"


def slot_bytes(maps: Maps) -> list[bytes]:
    return [half.tobytes() for half in maps.slots.at(20001).values()]


def test_a_new_version_takes_over_the_maps_with_all_they_hold(host: Host, loaded: Path) -> None:
    old = program_id(loaded)
    with Maps(loaded, writable=True) as maps:
        maps.configure(settings())
        maps.set_transceiver(4, types.Transceiver(port=40000))
        maps.add_route("abcd", id=7, transceiver=4)
        maps.free(20001)
        descriptor = bpf.pinned(versioned(loaded) / PROGRAM)
        bpf.test_run(descriptor, frame(binding_request("abcd")))
        os.close(descriptor)
        before = maps.slots.tobytes()
        before_counters = maps.counters().dropped["no_route"]
        assert maps.slots.at(20001)["book"]["route"] == 7

    datapath.load(loaded)

    assert program_id(loaded) != old
    with Maps(loaded) as maps:
        assert [(ufrag, route.id) for ufrag, route in maps.routes()] == [("abcd", 7)]
        assert maps.slots.tobytes() == before
        assert maps.transceiver(4).port == 40000
    descriptor = bpf.pinned(versioned(loaded) / PROGRAM)
    bpf.test_run(descriptor, frame(binding_request("nope")))
    os.close(descriptor)
    with Maps(loaded) as maps:
        dropped = maps.counters().dropped["no_route"]
    assert dropped == before_counters + 1, "the new program counts in the old maps"
    assert {entry.name for entry in versioned(loaded).iterdir()} >= {PROGRAM, "slots_in"}
    assert not list(versioned(loaded).glob(f"{PROGRAM}_*"))


def parts(pins: Path) -> list[str]:
    """The pins of maps of parts."""
    return sorted(entry.name for entry in versioned(pins).glob(f"{PARTS}*"))


def test_every_part_is_behind_the_program_after_loading(loaded: Path) -> None:
    (pin,) = parts(loaded)
    assert pin == f"{PARTS}{program_id(loaded)}"

    with bpf.Map.open(versioned(loaded) / pin) as calls:
        found = {}
        for index, name in source.parts().items():
            value = calls.lookup(index.to_bytes(4, "little"))
            assert value is not None, name
            descriptor = bpf.program_by_id(int.from_bytes(value, "little"))
            found[index] = bpf.program_info(descriptor).name
            os.close(descriptor)

    assert found == {index: name[:15] for index, name in source.parts().items()}


def test_without_its_parts_the_program_drops_and_says_so(loaded: Path, maps: Maps) -> None:
    """Why they are pinned: this is what a packet meets else."""
    datapath.load(loaded)  # the suite's own program has another pin
    before = maps.counters().dropped
    descriptor = bpf.pinned(versioned(loaded) / PROGRAM)
    bpf.test_run(descriptor, frame(binding_request("nope")))
    with_parts = maps.counters().dropped
    (versioned(loaded) / f"{PARTS}{program_id(loaded)}").unlink()

    def dropped() -> bool:
        bpf.test_run(descriptor, frame(binding_request("nope")))
        return maps.counters().dropped["program"] > before["program"]

    eventually("the kernel has emptied the map of parts", dropped)
    os.close(descriptor)
    assert with_parts["no_route"] == before["no_route"] + 1
    assert with_parts["program"] == before["program"]


def test_other_sizes_than_the_pinned_maps_are_refused_before_anything_is_loaded(
    loaded: Path,
) -> None:
    before = program_id(loaded)

    with pytest.raises(ShuntError, match=r"has 65536 slots.* asks for 131072") as error:
        datapath.load(loaded, 2)

    assert "shunt agent unload" in error.value.cure
    assert program_id(loaded) == before


def test_maps_are_made_for_as_many_inside_addresses_as_asked_for(own_pins: Path) -> None:
    datapath.load(own_pins, types.INSIDE_ADDRESSES)

    with Maps(own_pins) as maps:
        assert maps.sizes == sizes(types.INSIDE_ADDRESSES)
    remove_pins(own_pins)


# VLAN interfaces, told of by messages: not every kernel has them.


class Told:
    """Netlink that answers with these links."""

    def __init__(self, *messages: Any) -> None:
        self._messages = {message["index"]: message for message in messages}

    def link_lookup(self, ifname: str) -> list[int]:
        return [
            index
            for index, message in self._messages.items()
            if message.get_attr("IFLA_IFNAME") == ifname
        ]

    def get_links(self, index: int) -> list[Any]:
        return [self._messages[index]]


def carrier(name: str, *messages: Any) -> carriers._Carrier:
    return carriers._carrier(cast(IPRoute, Told(*messages)), name)


def test_a_vlan_interface_is_served_by_its_parent() -> None:
    links = message(7, "eth0"), vlan(8, "eth0.100", below=7, id=100, mtu=1400)

    assert carrier("eth0.100", *links) == carriers._Carrier(
        "eth0", 7, vlan=100, mtu=1400, veth=False
    )
    assert carrier("eth0", *links) == carriers._Carrier("eth0", 7, vlan=0, mtu=1500, veth=False)


@pytest.mark.parametrize(
    ("name", "complaint"),
    [("double", "double is a VLAN inside the VLAN single"), ("service", "cannot use .* service")],
)
def test_vlans_that_the_relay_cannot_tell_are_refused(name: str, complaint: str) -> None:
    with pytest.raises(ShuntError, match=complaint) as error:
        carrier(
            name,
            message(7, "eth0"),
            vlan(8, "single", below=7, id=100),
            vlan(9, "double", below=8, id=200),
            vlan(10, "service", below=7, id=100, protocol=0x88A8),
        )

    assert "tag" in error.value.cure


def test_a_vlan_interface_whose_parent_is_elsewhere_is_refused() -> None:
    with pytest.raises(ShuntError, match="cannot use the VLAN interface lost"):
        carrier("lost", vlan(9, "lost", below=7, id=100, link_netnsid=0))


def test_the_parent_of_several_is_attached_once(
    host: Host, loaded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, put, attached = carriers._carrier, carriers._attach, []

    def pretend(netlink: IPRoute, name: str) -> carriers._Carrier:
        parent, _, number = name.partition(".")
        return replace(own(netlink, parent), vlan=int(number or 0))

    def count(
        netlink: IPRoute, descriptor: int, to: carriers._Carrier, old: int | None
    ) -> tuple[Mode, str]:
        attached.append(to.name)
        return put(netlink, descriptor, to, old)

    monkeypatch.setattr(carriers, "_carrier", pretend)
    monkeypatch.setattr(carriers, "_attach", count)
    done = attach(host, loaded, "inside.100", "public", "inside", "inside.200")

    assert attached == ["inside", "public"]
    assert [(a.interface, a.vlan, a.mode) for a in done] == [
        ("inside.100", 100, Mode.NATIVE),
        ("public", 0, Mode.NATIVE),
        ("inside", 0, Mode.NATIVE),
        ("inside.200", 200, Mode.NATIVE),
    ]


def test_the_program_is_on_the_parent_and_not_on_its_vlan(vlans: Host, loaded: Path) -> None:
    vlans.ip("link set inside.100 mtu 1400")

    done = attach(vlans, loaded, "public", "inside.100", "inside")

    inside = done[2].ifindex
    assert [(a.interface, a.ifindex, a.vlan, a.mtu) for a in done[1:]] == [
        ("inside.100", inside, 100, 1400),
        ("inside", inside, 0, 1500),
    ]
    assert vlans.xdp("inside.100") == "none"
    assert vlans.xdp("inside") == f"xdp {program_id(loaded)}"


def test_unload_takes_everything_away_and_can_be_repeated(host: Host, loaded: Path) -> None:
    host.ip("link add bridge0 type bridge")
    attach(host, loaded, "public", "inside", "bridge0")

    for _ in range(2):
        host.run(lambda: carriers.unload(loaded))

    assert host.xdp("public") == host.xdp("inside") == host.xdp("bridge0") == "none"
    assert not loaded.exists()


def test_unload_leaves_somebody_elses_program_alone(host: Host, loaded: Path) -> None:
    id = attach_a_strangers_program(host, "inside")
    attach(host, loaded, "public")

    host.run(lambda: carriers.unload(loaded))

    assert host.xdp("inside") == f"xdp {id}"
    assert host.xdp("public") == "none"


def test_unload_leaves_another_versions_pins_alone(host: Host, loaded: Path) -> None:
    other = loaded / "v0"
    other.mkdir()

    host.run(lambda: carriers.unload(loaded))

    assert other.is_dir()
    assert not versioned(loaded).exists()
    other.rmdir()
    loaded.rmdir()


def test_unload_leaves_the_folder_of_another_user_to_him(host: Host, own_pins: Path) -> None:
    own_pins.mkdir()
    os.chown(own_pins, 65533, 65533)

    host.run(lambda: carriers.unload(own_pins))

    assert own_pins.is_dir()
    own_pins.rmdir()


def test_pins_outside_bpffs_are_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(ShuntError, match=r"pins is not in bpffs") as error:
        datapath.load(tmp_path / "pins")

    assert "/sys/fs/bpf" in error.value.cure
    assert not (tmp_path / "pins").exists()
