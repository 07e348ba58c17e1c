"""What the doctor sees of a real kernel: veths in namespaces of the tests' own, each broken in
one way."""

import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pytest
from pyroute2 import IPRoute
from pyroute2.ethtool.ioctl import IoctlEthtool
from pyroute2.netlink.exceptions import NetlinkError

from loader.types import Mode
from tests.loader.test_datapath import load_a_strangers_program
from tests.loader.test_links import message, vlan
from tools import netns
from tools.doctor.checks import examine
from tools.doctor.checks.drivers import mtu_limit
from tools.doctor.facts import Facts, InterfaceFacts, Peer, Plan, Socket
from tools.doctor.findings import Finding, Verdict
from tools.doctor.gather import facts_of_this_host
from tools.doctor.gather.addresses import bound_sockets, port_ranges
from tools.doctor.gather.ethtool import Driver, driver_of
from tools.doctor.gather.host import bcc_on
from tools.doctor.gather.interfaces import look_at, virtio_bits
from tools.doctor.gather.relay import pinned
from tools.doctor.gather.xdp_features import xdp_features

T = TypeVar("T")

NOWHERE = Path(f"/sys/fs/bpf/shunt-td-{os.getpid()}")  # no relay is pinned there
RELAY, OUTSIDE = f"t-doctor-{os.getpid()}-r", f"t-doctor-{os.getpid()}-o"
PLAN = Plan(
    interfaces=("near",),
    vips=(("198.18.0.1", 3478),),
    inside_addresses=("198.18.0.1",),
    ports=(20000, 20063),
)


def ip(command: str) -> str:
    done = subprocess.run(["ip", *command.split()], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"ip {command}: {done.stderr}"
    return done.stdout


@dataclass(frozen=True, slots=True)
class Cable:
    """A veth `near` in a namespace of its own, with 198.18.0.1, and its other end `far` in
    another."""

    def near(self, work: Callable[[], T]) -> T:
        return netns.run_in(RELAY, work)

    def far(self, work: Callable[[], T]) -> T:
        return netns.run_in(OUTSIDE, work)

    def facts(self, *names: str, plan: Plan = PLAN) -> Facts:
        return self.near(
            lambda: facts_of_this_host(names=names, plan=plan, pins=NOWHERE, agent="/nowhere")
        )

    def interface(self) -> InterfaceFacts:
        found = self.facts().interface("near")
        assert found is not None
        return found

    def peer(self) -> Peer:
        found = self.interface().peer
        assert found is not None
        return found

    def finding(self, check: str, *names: str) -> Finding:
        found = [e.finding for e in examine(self.facts(*names)) if e.check.name == check]
        (finding,) = found
        return finding


@pytest.fixture
def cable() -> Iterator[Cable]:
    for namespace in (RELAY, OUTSIDE):
        netns.create(namespace)
    ip(f"-n {RELAY} link add near type veth peer name far netns {OUTSIDE}")
    ip(f"-n {RELAY} addr add 198.18.0.1/24 dev near")
    ip(f"-n {RELAY} link set near up")
    ip(f"-n {OUTSIDE} link set far up")
    yield Cable()
    for namespace in (RELAY, OUTSIDE):
        if (netns.RUN_DIR / namespace).exists():
            ip(f"netns del {namespace}")


def receive_offload(name: str, *, on: bool) -> None:
    ethtool = IoctlEthtool(name)
    try:
        ethtool.set_offload_flag("generic-receive-offload", int(on))
    finally:
        ethtool.close()


def attach_a_strangers_program(interface: str) -> None:
    """`xdp_pass`, natively, on an interface of this namespace."""
    descriptor = load_a_strangers_program()
    try:
        with IPRoute() as netlink:
            index = netlink.link_lookup(ifname=interface)[0]
            attributes = [("IFLA_XDP_FD", descriptor), ("IFLA_XDP_FLAGS", 1 << 2)]
            netlink.link("set", index=index, xdp={"attrs": attributes})
    finally:
        os.close(descriptor)


def test_an_interface_is_seen_as_it_is(cable: Cable) -> None:
    near = cable.interface()

    assert (near.driver, near.kind, near.up, near.carrier) == ("veth", "veth", True, True)
    assert (near.mtu, near.xdp.mode, near.below, near.vlans) == (1500, Mode.DETACHED, "", ())
    assert near.offloads is not None
    assert near.offloads["rx-vlan-hw-parse"].on
    assert near.offloads["rx-lro"].fixed
    assert near.channels is not None
    assert (near.channels.rx, near.channels.tx) == (1, 1)


def test_its_other_end_is_seen_in_another_namespace(cable: Cable) -> None:
    ip(f"-n {OUTSIDE} link set far mtu 1400")

    peer = cable.peer()

    assert (peer.name, peer.where, peer.mtu) == ("far", OUTSIDE, 1400)
    assert peer.offloads["tx-vlan-hw-insert"].on
    assert peer.channels is not None


def test_a_name_that_leads_to_no_namespace_keeps_nobody_from_looking(cable: Cable) -> None:
    leftover = netns.RUN_DIR / f"0-{OUTSIDE}"  # before all others
    leftover.touch()
    try:
        assert cable.peer().name == "far"
    finally:
        leftover.unlink()


def test_its_other_end_is_seen_in_this_namespace(cable: Cable) -> None:
    ip(f"-n {RELAY} link add one type veth peer name two")

    found = cable.facts("one").interface("one")

    assert found is not None
    assert found.peer is not None
    assert (found.peer.name, found.peer.where) == ("two", "")


def test_a_peer_without_napi_loses_what_is_redirected(cable: Cable) -> None:
    finding = cable.finding("redirect")

    assert finding.verdict is Verdict.FAILURE
    assert finding.cure == f"sudo ip netns exec {OUTSIDE} ethtool -K far gro on"

    cable.far(lambda: receive_offload("far", on=True))

    assert cable.finding("redirect").verdict is Verdict.OK


def test_a_peer_in_a_namespace_without_a_name_is_told_of_by_the_kernel_alone(cable: Cable) -> None:
    """A container's: nobody can look in, but the features of our own end say what it does."""
    held = os.open(f"/run/netns/{OUTSIDE}", os.O_RDONLY)
    try:
        ip(f"netns del {OUTSIDE}")

        assert cable.interface().peer is None
        assert cable.finding("redirect").verdict is Verdict.FAILURE
        assert cable.finding("mtu").verdict is Verdict.UNKNOWN
    finally:
        os.close(held)


@pytest.mark.parametrize("over", [0, 1])
def test_the_limit_of_a_veths_mtu_is_the_kernels(cable: Cable, over: int) -> None:
    limit = mtu_limit("veth", os.sysconf("SC_PAGESIZE"))
    assert limit is not None
    ip(f"-n {OUTSIDE} link set far mtu {limit + over}")

    finding = cable.finding("mtu")

    if over:
        assert finding.verdict is Verdict.WARNING
        with pytest.raises(NetlinkError, match="34"):  # ERANGE
            cable.near(lambda: attach_a_strangers_program("near"))
    else:
        assert finding.verdict is Verdict.OK
        cable.near(lambda: attach_a_strangers_program("near"))


def test_too_few_receive_queues_are_seen_before_the_kernel_refuses(cable: Cable) -> None:
    ip(
        f"-n {RELAY} link add few numrxqueues 1 numtxqueues 1 type veth "
        f"peer name many numrxqueues 2 numtxqueues 2"
    )

    finding = cable.finding("queues", "few")

    assert (finding.verdict, finding.cure) == (Verdict.WARNING, "sudo ethtool -L few rx 2")
    with pytest.raises(NetlinkError, match="28"):  # ENOSPC
        cable.near(lambda: attach_a_strangers_program("few"))


def test_somebody_elses_program_is_named(cable: Cable) -> None:
    cable.near(lambda: attach_a_strangers_program("near"))

    finding = cable.finding("other_program")

    assert finding.verdict is Verdict.FAILURE
    assert "xdp_pass" in finding.found
    assert finding.cure == "sudo ip link set dev near xdp off"


def test_a_missing_interface_is_a_failure(cable: Cable) -> None:
    finding = cable.finding("present", "nowhere0")

    assert (finding.verdict, finding.about) == (Verdict.FAILURE, "nowhere0")


def test_an_interface_that_is_down_is_a_failure(cable: Cable) -> None:
    ip(f"-n {RELAY} link set near down")

    assert cable.finding("up").cure == "sudo ip link set dev near up"


def test_an_other_end_that_is_down_is_a_failure(cable: Cable) -> None:
    ip(f"-n {OUTSIDE} link set far down")

    assert cable.finding("up").cure == f"sudo ip netns exec {OUTSIDE} ip link set dev far up"


def test_a_bridge_has_generic_mode_only(cable: Cable) -> None:
    ip(f"-n {RELAY} link add bridge0 type bridge")

    assert cable.finding("xdp_modes", "bridge0").verdict is Verdict.WARNING


def test_a_socket_on_a_port_of_the_relay_is_seen(cable: Cable) -> None:
    assert cable.finding("sockets").verdict is Verdict.OK

    def with_a_socket() -> Facts:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            stranger.bind(("198.18.0.1", 3478))
            return facts_of_this_host(plan=PLAN, pins=NOWHERE, agent="/nowhere")

    facts = cable.near(with_a_socket)

    assert Socket("198.18.0.1", 3478) in facts.network.sockets
    (finding,) = [e.finding for e in examine(facts) if e.check.name == "sockets"]
    assert (finding.verdict, finding.about) == (Verdict.WARNING, "198.18.0.1:3478")


def test_sysctls_are_the_namespaces_own(cable: Cable) -> None:
    def set_them() -> None:
        for name, value in (
            ("ip_local_port_range", "20000 20009"),
            ("ip_local_reserved_ports", "20000-20004"),
            ("conf/near/rp_filter", "1"),
            ("conf/near/arp_ignore", "2"),
        ):
            Path("/proc/sys/net/ipv4", name).write_text(value)

    cable.near(set_them)

    facts, near = cable.facts(), cable.interface()

    assert facts.network.ephemeral == (20000, 20009)
    assert facts.network.reserved == ((20000, 20004),)
    assert (near.rp_filter, near.arp_ignore) == (1, 2)
    found = [e.finding for e in examine(facts) if e.check.name == "ephemeral_ports"]
    assert [(f.verdict, f.about) for f in found] == [
        (Verdict.WARNING, "198.18.0.1"),
        (Verdict.OK, "198.18.0.1:3478"),
    ]
    assert found[0].found.startswith("5 of its ports")


def test_an_address_that_nobody_could_have_confirmed_is_tentative(cable: Cable) -> None:
    ip(f"-n {OUTSIDE} link set far down")
    ip(f"-n {RELAY} addr add 2001:db8:18::1/64 dev near")

    (found,) = [
        each for each in cable.facts().network.addresses if each.address == "2001:db8:18::1"
    ]

    assert (found.interface, found.prefix, found.tentative) == ("near", 64, True)


def test_without_names_a_container_is_seen_by_its_veths(cable: Cable) -> None:
    facts = cable.facts(plan=Plan())

    assert [interface.name for interface in facts.interfaces] == ["near"]


def test_nothing_is_changed(cable: Cable) -> None:
    before = cable.interface()

    examine(cable.facts())

    assert cable.interface() == before
    assert before.xdp.mode is Mode.DETACHED
    assert not NOWHERE.exists()


def test_a_kernel_that_does_not_tell_is_no_trouble(caplog: pytest.LogCaptureFixture) -> None:
    assert xdp_features(family="nosuchfamily") == {}
    assert caplog.records == []


# What needs no kernel.


def test_a_vlan_brings_its_parent_along() -> None:
    links = [message(70001, "trunk"), vlan(70002, "trunk.7", below=70001, id=7)]

    found, missing = look_at(links, ["trunk.7", "gone"])

    assert [(i.name, i.below, i.vlans) for i in found] == [
        ("trunk.7", "trunk", ()),
        ("trunk", "", ("trunk.7",)),
    ]
    assert missing == ("gone",)


def test_pypis_bcc_is_told_from_bcc(tmp_path: Path) -> None:
    package = tmp_path / "bcc"
    package.mkdir()
    (package / "__init__.py").write_text("")

    assert not bcc_on([str(tmp_path)]).genuine

    (package / "libbcc.py").write_text("")
    (package / "version.py").write_text("__version__ = '0.29.1'\n")

    found = bcc_on([str(tmp_path)])
    assert (found.genuine, found.version, found.module) == (True, "0.29.1", str(package))


def test_no_bcc_and_a_module_of_that_name_are_no_bcc(tmp_path: Path) -> None:
    assert bcc_on([str(tmp_path)]).module == ""

    (tmp_path / "bcc.py").write_text("")

    assert bcc_on([str(tmp_path)]).module == str(tmp_path / "bcc.py")
    assert not bcc_on([str(tmp_path)]).genuine


def test_only_versions_are_versions(tmp_path: Path) -> None:
    """A relay that is just being loaded, or an earlier version's, is none of ours."""
    for name in ("v1", "next", "v1-old"):
        (tmp_path / name).mkdir()

    found = pinned(tmp_path, moment=0)

    assert (found.versions, found.loaded, found.why) == (("v1",), None, "")


def test_a_driver_tells_where_its_device_is() -> None:
    fields = (b"virtio_net", b"1.0.0", b"", b"0000:00:03.0")
    info = bytes(4) + b"".join(field.ljust(32, b"\0") for field in fields) + bytes(64)

    assert driver_of(info) == Driver("virtio_net", "0000:00:03.0")


def test_bits_of_a_virtio_device_are_numbered_from_the_left() -> None:
    assert virtio_bits("01100001\n") == {1, 2, 7}


def test_sockets_of_both_families_are_read_in_the_kernels_byte_order(tmp_path: Path) -> None:
    table = tmp_path / "udp"
    table.write_text(
        "  sl  local_address rem_address …\n"
        "   0: 010012C6:0D96 00000000:0000 07\n"
        "   1: B80D0120000018000000000001000000:0D96 0:0000 07\n"
    )

    assert bound_sockets(table) == [Socket("198.18.0.1", 3478), Socket("2001:db8:18::1", 3478)]
    assert bound_sockets(tmp_path / "udp6") == []


def test_port_ranges_are_read_as_sysctls_write_them() -> None:
    assert port_ranges("8080,9148-9500\n") == ((8080, 8080), (9148, 9500))
    assert port_ranges("\n") == ()
