"""Each check, from facts as they would be gathered on hosts that we do not have."""

import re
from dataclasses import replace
from typing import Any

import pytest

from loader.capabilities import Capability
from loader.maps import Interface
from loader.reasons import REASONS
from loader.types import PIN_VERSION, Mode
from tools.doctor.checks import CHECKS, examine
from tools.doctor.checks.relay import ALARMING
from tools.doctor.facts import (
    Address,
    AgentFacts,
    Bcc,
    Channels,
    Facts,
    HostFacts,
    InterfaceFacts,
    Loaded,
    NetworkFacts,
    Offload,
    Peer,
    Plan,
    RelayFacts,
    Socket,
    Trial,
    Xdp,
)
from tools.doctor.findings import Finding, Verdict
from tools.processes import ROOT

NATIVE = 0b111  # basic, redirect, ndo-xmit
HOST = HostFacts(
    release="6.1.0-18-amd64",
    kernel=(6, 1),
    machine="x86_64",
    page=4096,
    cpus=4,
    uid=0,
    capabilities=frozenset(Capability),
    btf=True,
    jit=1,
    jit_harden=0,
    unprivileged_bpf=2,
    memlock=8 << 20,
    bpffs=True,
    bpffs_writable=True,
    bcc=Bcc(module="/usr/lib/bcc", genuine=True, version="0.26.0", library=True),
    headers={"linux/bpf.h": True, "asm/types.h": True},
    clocksource="tsc",
    synchronised=True,
    steal=0.001,
)
NIC = InterfaceFacts(
    name="eth0",
    ifindex=2,
    driver="mlx5_core",
    features=NATIVE,
    offloads={"rx-lro": Offload(False), "rx-vlan-hw-parse": Offload(True)},
    channels=Channels(combined=4, max_combined=8),
    irq_cpus=frozenset({0, 1, 2, 3}),
)
PEER = Peer(
    name="port1",
    where="switch",
    mtu=1500,
    xdp=Xdp(),
    offloads={"rx-gro": Offload(True), "tx-vlan-hw-insert": Offload(True)},
    channels=Channels(rx=1, tx=1),
)
VETH = InterfaceFacts(
    name="veth0",
    ifindex=3,
    kind="veth",
    driver="veth",
    features=NATIVE,
    offloads={"rx-vlan-hw-parse": Offload(True)},
    channels=Channels(rx=1, tx=1),
    peer=PEER,
)
VIRTIO = replace(
    NIC,
    driver="virtio_net",
    channels=Channels(combined=4, max_combined=8),
    virtio=frozenset({1, 2, 7, 8, 9, 10, 15, 22, 32}),
)
PLAN = Plan(
    interfaces=("eth0", "veth0"),
    vips=(("203.0.113.5", 3478), ("2001:db8::5", 3478)),
    inside_addresses=("10.0.0.1", "fd00::1"),
)
NETWORK = NetworkFacts(
    addresses=(
        Address("eth0", "203.0.113.5", 24),
        Address("eth0", "2001:db8::5", 64),
        Address("veth0", "10.0.0.1", 24),
        Address("veth0", "fd00::1", 64),
    ),
    sockets=(Socket("0.0.0.0", 68), Socket("203.0.113.5", 40000), Socket("10.0.0.1", 123)),
)
LOADED = Loaded(
    program=77,
    interfaces=(
        Interface("eth0", 2, inside=False, mode=Mode.NATIVE),
        Interface("veth0", 3, inside=True, mode=Mode.NATIVE),
    ),
    plan=PLAN,
    flows=10,
    room=22768,
    routes=10,
    routes_room=65536,
    transceivers=2,
    transceivers_room=4096,
    dropped={reason.name: 0 for reason in REASONS} | {"class": 12, "no_route": 3},
)
HEALTHY = Facts(host=HOST, network=NETWORK, interfaces=(NIC, VETH), plan=PLAN)
RUNNING = replace(
    HEALTHY,
    interfaces=(
        replace(NIC, xdp=Xdp(Mode.NATIVE, 77, "shunt")),
        replace(VETH, xdp=Xdp(Mode.NATIVE, 77, "shunt")),
    ),
    relay=RelayFacts(versions=(PIN_VERSION,), loaded=LOADED),
    agent=AgentFacts(socket="/run/shunt/agent.sock", there=True, reached=True, ready=True),
)


def host(**changes: Any) -> Facts:
    return replace(HEALTHY, host=replace(HOST, **changes))


def network(**changes: Any) -> Facts:
    return replace(HEALTHY, network=replace(NETWORK, **changes))


def with_interfaces(*interfaces: InterfaceFacts, **changes: Any) -> Facts:
    """A host whose kernel or whatever is changed, and which has these interfaces and no others."""
    return replace(HEALTHY, interfaces=interfaces, **changes)


def loaded(**changes: Any) -> Facts:
    return replace(RUNNING, relay=replace(RUNNING.relay, loaded=replace(LOADED, **changes)))


def attached(xdp: Xdp, nic: InterfaceFacts = NIC) -> Facts:
    return replace(RUNNING, interfaces=(replace(nic, xdp=xdp), RUNNING.interfaces[1]))


def findings(facts: Facts, check: str) -> list[Finding]:
    return [each.finding for each in examine(facts) if each.check.name == check]


def bad(facts: Facts) -> list[tuple[str, Finding]]:
    fine = (Verdict.OK, Verdict.NOT_APPLICABLE)
    return [
        (each.check.name, each.finding)
        for each in examine(facts)
        if each.finding.verdict not in fine
    ]


@pytest.mark.parametrize(
    "facts",
    [
        HEALTHY,
        RUNNING,
        with_interfaces(VIRTIO),
        with_interfaces(replace(NIC, features=None), replace(VETH, features=None)),
        with_interfaces(replace(NIC, mtu=3498)),
        with_interfaces(replace(NIC, features=0b011), VETH),
        with_interfaces(
            replace(
                VETH,
                features=None,
                peer=replace(PEER, offloads={}, xdp=Xdp(Mode.NATIVE, 5, "xdp_pass")),
            )
        ),
        with_interfaces(
            replace(
                NIC,
                driver="ena",
                mtu=3498,
                channels=Channels(combined=8, max_combined=8),
                offloads={"rx-lro": Offload(True)},
                xdp=Xdp(Mode.NATIVE, 77, "shunt"),
            )
        ),
        with_interfaces(replace(VETH, peer=replace(PEER, mtu=3506))),
        with_interfaces(
            replace(VETH, peer=replace(PEER, mtu=9000)), host=replace(HOST, page=65536)
        ),
        with_interfaces(replace(NIC, driver="ena", mtu=3498)),
        with_interfaces(
            replace(NIC, driver="gve", channels=Channels(rx=2, tx=2, max_rx=4, max_tx=4))
        ),
        host(machine="aarch64"),
        host(btf=False),
        host(uid=999, capabilities=frozenset({Capability.BPF, Capability.NET_ADMIN})),
        host(jit_harden=1),
        network(reserved=((3000, 4000), (10000, 32767)), ephemeral=(1024, 65535)),
        network(arp_ignore=1),
        network(rp_filter=1),
        replace(RUNNING, relay=RelayFacts(), agent=None),
        replace(HEALTHY, trial=Trial(mode=Mode.NATIVE, instructions=38192)),
        loaded(dropping={"class": 100, "no_route": 100, "no_flow": 1000}),
        loaded(dropped={"neighbour": 5}),
    ],
)
def test_nothing_is_wrong_with_what_is_not(facts: Facts) -> None:
    assert bad(facts) == []


FAILURE, WARNING, UNKNOWN = Verdict.FAILURE, Verdict.WARNING, Verdict.UNKNOWN


@pytest.mark.parametrize(
    ("facts", "check", "verdict", "cure"),
    [
        (host(machine="riscv64"), "machine", FAILURE, "aarch64, x86_64"),
        (host(kernel=(5, 15), release="5.15.0"), "kernel", FAILURE, "apt install linux-image"),
        (host(jit=0), "jit", WARNING, "sudo sysctl -w net.core.bpf_jit_enable=1"),
        (host(jit_harden=2), "jit", WARNING, "sudo sysctl -w net.core.bpf_jit_harden=1"),
        (host(jit=None), "jit", UNKNOWN, ""),
        (host(bpffs=False), "bpffs", FAILURE, "sudo mount -t bpf bpf /sys/fs/bpf"),
        (host(bpffs_writable=False), "bpffs", FAILURE, "remount,rw"),
        (host(bpffs_writable=False, uid=1000), "bpffs", UNKNOWN, ""),
        (
            host(capabilities=frozenset({Capability.BPF})),
            "capabilities",
            FAILURE,
            "--cap-add NET_ADMIN",
        ),
        (host(capabilities=frozenset(), uid=1000), "capabilities", UNKNOWN, "sudo shunt doctor"),
        (host(unprivileged_bpf=0), "unprivileged_bpf", WARNING, "unprivileged_bpf_disabled=1"),
        (host(unprivileged_bpf=None), "unprivileged_bpf", UNKNOWN, ""),
        (host(kernel=(5, 10)), "memlock", FAILURE, "ulimit -l unlimited"),
        (host(bcc=replace(HOST.bcc, module="")), "bcc", FAILURE, "apt install python3-bpfcc"),
        (host(bcc=replace(HOST.bcc, genuine=False)), "bcc", FAILURE, "pip uninstall --yes bcc"),
        (host(bcc=replace(HOST.bcc, library=False)), "bcc", FAILURE, "apt install python3-bpfcc"),
        (host(headers={"linux/bpf.h": False}), "headers", FAILURE, "apt install linux-libc-dev"),
        (host(clocksource="hpet"), "clocksource", WARNING, "dmesg"),
        (host(synchronised=False), "synchronised", WARNING, "apt install chrony"),
        (host(synchronised=None), "synchronised", UNKNOWN, ""),
        (host(steal=0.2), "steal", WARNING, "dedicated CPUs"),
        (replace(HEALTHY, missing=("eth9",)), "present", FAILURE, "ip link"),
        (with_interfaces(replace(NIC, up=False)), "up", FAILURE, "ip link set dev eth0 up"),
        (with_interfaces(replace(NIC, carrier=False)), "up", FAILURE, "ip -d link show dev eth0"),
        (
            with_interfaces(replace(VETH, carrier=False)),
            *("up", FAILURE, "ip netns exec switch ip link set dev port1 up"),
        ),
        (with_interfaces(replace(NIC, features=0)), "xdp_modes", WARNING, "native XDP"),
        (
            with_interfaces(replace(NIC, features=None, driver="e1000e")),
            *("xdp_modes", WARNING, "native XDP"),
        ),
        # katran#18
        (
            with_interfaces(replace(VIRTIO, virtio=frozenset({1, 7, 8, 32}))),
            *("rx_offloads", WARNING, "guest_csum=off,guest_tso4=off,guest_tso6=off"),
        ),
        (
            with_interfaces(replace(VIRTIO, virtio=frozenset({2, 15}))),
            *("rx_offloads", WARNING, "disable-legacy=on"),
        ),
        (with_interfaces(replace(VIRTIO, virtio=None)), "rx_offloads", UNKNOWN, ""),
        (
            with_interfaces(replace(NIC, offloads={"rx-lro": Offload(True)})),
            *("rx_offloads", WARNING, "sudo ethtool -K eth0 lro off"),
        ),
        (with_interfaces(replace(NIC, offloads=None)), "rx_offloads", UNKNOWN, ""),
        # bpfman#1675
        (
            with_interfaces(replace(VETH, peer=replace(PEER, mtu=3507))),
            *("mtu", WARNING, "sudo ip netns exec switch ip link set dev port1 mtu 3506"),
        ),
        (
            with_interfaces(replace(VETH, peer=None)),
            *("mtu", UNKNOWN, "in the network namespace of veth0's other end"),
        ),
        (with_interfaces(replace(VIRTIO, mtu=3507)), "mtu", WARNING, "dev eth0 mtu 3506"),
        # cilium#19593
        (
            with_interfaces(replace(NIC, driver="ena", mtu=9001)),
            *("mtu", WARNING, "dev eth0 mtu 3498"),
        ),
        (
            with_interfaces(replace(NIC, driver="gve", mtu=2033)),
            *("mtu", WARNING, "dev eth0 mtu 2032"),
        ),
        (with_interfaces(replace(NIC, mtu=9000)), "mtu", WARNING, "dev eth0 mtu 1500"),
        # bcc#1833
        (
            with_interfaces(replace(VIRTIO, channels=Channels(combined=8, max_combined=8))),
            *("queues", WARNING, "sudo ethtool -L eth0 combined 4"),
        ),
        (
            with_interfaces(replace(VIRTIO, channels=Channels(combined=1, max_combined=1))),
            *("queues", WARNING, "queues=8"),
        ),
        (
            with_interfaces(
                replace(
                    VIRTIO,
                    channels=Channels(combined=2, max_combined=2),
                    xdp=Xdp(Mode.NATIVE, 77, "shunt"),
                )
            ),
            *("queues", WARNING, "queues=8"),
        ),
        # amzn-drivers#240
        (
            with_interfaces(
                replace(NIC, driver="ena", channels=Channels(combined=8, max_combined=8))
            ),
            *("queues", WARNING, "sudo ethtool -L eth0 combined 4"),
        ),
        # firezone#7518
        (
            with_interfaces(
                replace(NIC, driver="gve", channels=Channels(rx=2, tx=2, max_rx=2, max_tx=2))
            ),
            *("queues", WARNING, "sudo ethtool -L eth0 rx 1 tx 1"),
        ),
        (
            with_interfaces(
                replace(NIC, driver="gve", channels=Channels(rx=1, tx=1, max_rx=1, max_tx=1))
            ),
            *("queues", WARNING, "queue-count=2"),
        ),
        (
            with_interfaces(replace(VETH, peer=replace(PEER, channels=Channels(rx=4, tx=4)))),
            *("queues", WARNING, "sudo ethtool -L veth0 rx 4"),
        ),
        (
            with_interfaces(replace(NIC, irq_cpus=frozenset({0}))),
            *("irqs", WARNING, "irqbalance"),
        ),
        (
            with_interfaces(replace(VETH, features=0b011)),
            *("redirect", FAILURE, "sudo ip netns exec switch ethtool -K port1 gro on"),
        ),
        (
            with_interfaces(
                replace(
                    VETH, features=None, peer=replace(PEER, offloads={"rx-gro": Offload(False)})
                )
            ),
            *("redirect", FAILURE, "gro on"),
        ),
        (
            with_interfaces(replace(VETH, features=None, peer=None)),
            *("redirect", UNKNOWN, "ethtool -K PEER gro on"),
        ),
        (
            with_interfaces(
                replace(NIC, features=0b011, xdp=Xdp(Mode.NATIVE, 77, "shunt")),
                VETH,
            ),
            *("redirect", FAILURE, "another NIC"),
        ),
        (
            with_interfaces(replace(NIC, features=0b101), VETH),
            *("redirect", FAILURE, "another NIC"),
        ),
        (
            with_interfaces(replace(NIC, vlans=("eth0.100",))),
            *("vlan_tags", FAILURE, "sudo ethtool -K eth0 rxvlan off"),
        ),
        (
            with_interfaces(
                replace(
                    NIC,
                    vlans=("eth0.100",),
                    offloads={"rx-vlan-hw-parse": Offload(True, fixed=True)},
                )
            ),
            *("vlan_tags", FAILURE, "This NIC cannot do without"),
        ),
        (
            with_interfaces(replace(VETH, vlans=("veth0.100",))),
            *("vlan_tags", FAILURE, "sudo ip netns exec switch ethtool -K port1 txvlan off"),
        ),
        (
            with_interfaces(replace(VETH, vlans=("veth0.100",), peer=None)),
            *("vlan_tags", UNKNOWN, "txvlan off"),
        ),
        (
            with_interfaces(replace(NIC, xdp=Xdp(Mode.NATIVE, 5, "xdp_pass"))),
            *("other_program", FAILURE, "sudo ip link set dev eth0 xdp off"),
        ),
        (
            with_interfaces(replace(NIC, xdp=Xdp(Mode.GENERIC, 5, "xdp_pass"))),
            *("other_program", FAILURE, "sudo ip link set dev eth0 xdpgeneric off"),
        ),
        (
            with_interfaces(replace(NIC, xdp=Xdp(Mode.NATIVE, 5, "xdp_dispatcher"))),
            *("other_program", FAILURE, "xdp-loader unload --all eth0"),
        ),
        (
            with_interfaces(replace(NIC, xdp=Xdp(Mode.NATIVE, 5, None))),
            *("other_program", UNKNOWN, "sudo"),
        ),
        (
            loaded(dropping={"program": 1}),
            *("drops", FAILURE, "restart shunt-agent"),
        ),
        (
            network(addresses=NETWORK.addresses[1:]),
            *("addresses", FAILURE, "sudo ip addr add 203.0.113.5/32 dev eth0"),
        ),
        (
            network(addresses=NETWORK.addresses[:3]),
            *("addresses", FAILURE, "sudo ip addr add fd00::1/128"),
        ),
        (
            network(
                addresses=(*NETWORK.addresses[:3], Address("veth0", "fd00::1", 64, duplicate=True))
            ),
            *("duplicates", FAILURE, "sudo ip addr del fd00::1/64 dev veth0"),
        ),
        (
            network(
                addresses=(*NETWORK.addresses[:3], Address("veth0", "fd00::1", 64, tentative=True))
            ),
            *("duplicates", WARNING, "ip -6 addr show dev veth0"),
        ),
        (
            network(
                arp_ignore=1,
                addresses=(Address("lo", "203.0.113.5", 32), *NETWORK.addresses[1:]),
            ),
            *("arp", FAILURE, "sudo sysctl -w net.ipv4.conf.all.arp_ignore=0"),
        ),
        (
            with_interfaces(replace(NIC, arp_ignore=8), VETH),
            *("arp", FAILURE, "sudo sysctl -w net.ipv4.conf.eth0.arp_ignore=0"),
        ),
        (
            network(
                rp_filter=1, addresses=(*NETWORK.addresses, Address("eth1", "203.0.113.6", 24))
            ),
            *("rp_filter", WARNING, "sudo sysctl -w net.ipv4.conf.eth0.rp_filter=2"),
        ),
        # cilium#45569
        (
            network(ephemeral=(30000, 60999), reserved=((8080, 8080), (32000, 32767))),
            *("ephemeral_ports", WARNING, "ip_local_reserved_ports=8080,30000-32767"),
        ),
        (
            network(ephemeral=(1024, 9999)),
            *("ephemeral_ports", WARNING, "ip_local_reserved_ports=3478"),
        ),
        (
            network(sockets=(Socket("0.0.0.0", 3478),)),
            *("sockets", WARNING, "sudo ss -ulpn 'sport = :3478'"),
        ),
        (network(sockets=(Socket("::", 3478),)), "sockets", WARNING, ":3478"),
        (network(sockets=(Socket("10.0.0.1", 20000),)), "sockets", WARNING, ":20000"),
        # katran#82
        (
            with_interfaces(NIC, replace(VETH, mtu=1280)),
            *("path_mtu", WARNING, "sudo ip link set dev veth0 mtu 1500"),
        ),
        (
            replace(RUNNING, relay=RelayFacts(versions=None)),
            *("pins", UNKNOWN, "sudo shunt doctor"),
        ),
        (
            replace(RUNNING, relay=RelayFacts(versions=("v1",))),
            *("pins", WARNING, "shunt agent run"),
        ),
        (
            replace(RUNNING, relay=replace(RUNNING.relay, versions=("v1", PIN_VERSION))),
            *("pins", WARNING, "sudo rm -r /sys/fs/bpf/shunt/v1"),
        ),
        (
            replace(RUNNING, relay=RelayFacts(versions=(PIN_VERSION,), why="a shape not known")),
            *("pins", FAILURE, "shunt agent unload"),
        ),
        (loaded(interfaces=()), "attached", FAILURE, "restart shunt-agent"),
        (attached(Xdp()), "attached", FAILURE, "restart shunt-agent"),
        (attached(Xdp(Mode.NATIVE, 5, "xdp_pass")), "attached", FAILURE, "restart shunt-agent"),
        (attached(Xdp(Mode.NATIVE, 5, "shunt")), "attached", WARNING, "restart shunt-agent"),
        (attached(Xdp(Mode.GENERIC, 77, "shunt")), "attached", WARNING, "shunt agent unload"),
        (
            attached(Xdp(Mode.GENERIC, 77, "shunt"), replace(NIC, features=0)),
            *("attached", WARNING, "another NIC"),
        ),
        (
            attached(Xdp(Mode.GENERIC, 77, "shunt"), replace(VIRTIO, virtio=frozenset({1, 7, 32}))),
            *("attached", WARNING, "guest_tso4=off"),
        ),
        (replace(RUNNING, interfaces=(NIC,)), "attached", UNKNOWN, "nsenter"),
        (
            replace(RUNNING, agent=AgentFacts(socket="s", there=True, why="refused")),
            *("agent", FAILURE, "systemctl start shunt-agent"),
        ),
        (
            replace(RUNNING, agent=AgentFacts(socket="s", there=True, reached=True, why="off")),
            *("agent", FAILURE, "journalctl -u shunt-agent"),
        ),
        (
            replace(
                RUNNING,
                agent=AgentFacts(
                    socket="s", there=True, reached=True, forbidden=True, why="not you"
                ),
            ),
            *("agent", UNKNOWN, "sudo shunt doctor"),
        ),
        # cilium#23604, #20069
        (loaded(flows=18215), "flow_table", WARNING, "--inside-ports"),
        (loaded(flows=22768), "flow_table", FAILURE, "--inside-ports"),
        (loaded(routes=65536), "route_map", FAILURE, "shunt transceivers list"),
        (loaded(transceivers=4096), "transceivers", FAILURE, "another relay"),
        (
            loaded(unresolved=(("x1", "10.0.0.11"),)),
            *("neighbours", FAILURE, "ip neigh show 10.0.0.11"),
        ),
        (loaded(dropping={"neighbour": 5}), "drops", FAILURE, "ip neigh"),
        (loaded(dropping={"amplification": 5}), "drops", WARNING, "shunt flows list"),
        (
            replace(HEALTHY, trial=Trial(why_not="no bpffs")),
            "try",
            UNKNOWN,
            "sudo shunt doctor --try",
        ),
        (
            replace(HEALTHY, trial=Trial(trouble="invalid stack access", cure="report it")),
            *("try", FAILURE, "report it"),
        ),
        (replace(HEALTHY, trial=Trial(mode=Mode.GENERIC)), "try", WARNING, "dmesg"),
    ],
)
def test_what_is_wrong_is_found_with_its_cure(
    facts: Facts, check: str, verdict: Verdict, cure: str
) -> None:
    worst = [each for each in findings(facts, check) if each.verdict is verdict]

    assert worst, findings(facts, check)
    assert all(cure in each.cure for each in worst)


def test_what_is_attached_in_generic_mode_is_still_told_why() -> None:
    generic = Xdp(Mode.GENERIC, 77, "shunt")
    ena = replace(NIC, driver="ena", channels=Channels(combined=8, max_combined=8))

    (finding, _) = findings(attached(generic, ena), "attached")

    assert "8 queues of 8" in finding.found
    assert finding.cure == "sudo ethtool -L eth0 combined 4"


def test_of_virtio_only_what_the_guest_cannot_turn_off_is_wrong() -> None:
    (finding,) = findings(with_interfaces(replace(VIRTIO, virtio=frozenset({1, 7}))), "rx_offloads")

    assert "guest csum, tso4)" in finding.found
    assert "EOPNOTSUPP" in finding.found
    assert "<guest csum='off' tso4='off'/>" in finding.cure


def test_a_program_of_ours_is_known_by_its_pin_where_its_name_cannot_be_seen() -> None:
    facts = attached(Xdp(Mode.NATIVE, 77, None))

    known = replace(facts, relay=replace(facts.relay, programs=frozenset({77})))

    assert {each.verdict for each in findings(known, "other_program")} == {Verdict.OK}


def test_a_vlan_is_judged_by_what_carries_it() -> None:
    below = replace(NIC, vlans=("eth0.100",), offloads={"rx-vlan-hw-parse": Offload(False)})
    vlan = InterfaceFacts(name="eth0.100", ifindex=9, kind="vlan", below="eth0", features=0)

    assert bad(with_interfaces(below, vlan)) == []


def test_a_peer_whose_namespace_has_no_name_is_entered_by_its_path() -> None:
    peer = replace(PEER, where="/proc/42/ns/net", mtu=9000)

    (finding,) = findings(with_interfaces(replace(VETH, peer=peer)), "mtu")

    assert finding.cure.startswith("sudo nsenter --net=/proc/42/ns/net ip link set dev port1")


def test_many_sockets_in_the_way_are_summed_up() -> None:
    many = tuple(Socket("10.0.0.1", port) for port in range(20000, 20020))

    found = findings(network(sockets=many), "sockets")

    assert len(found) == 6
    assert found[-1].found == "and 15 more sockets"


def test_every_check_says_something_of_every_host() -> None:
    """Also that there is nothing for it here: what is missing from the output was not looked at."""
    bare = Facts(host=HOST)
    for facts in (HEALTHY, RUNNING, bare):
        of_interfaces = {"up", "xdp_modes", "rx_offloads", "mtu", "queues", "irqs", "redirect"}
        silent = {check.name for check in CHECKS} - {each.check.name for each in examine(facts)}
        assert silent <= of_interfaces | {"vlan_tags", "other_program"}
        assert not silent or not facts.interfaces


def test_no_check_has_the_name_of_another() -> None:
    assert len({check.name for check in CHECKS}) == len(CHECKS)


def test_the_reasons_that_alarm_are_reasons() -> None:
    assert set(ALARMING) <= {reason.name for reason in REASONS}


def test_the_document_lists_every_check_as_it_is() -> None:
    document = (ROOT / "docs/doctor.md").read_text()
    section = document.partition("## What it looks at")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \| (.+) \|$", section, re.M)

    assert rows == [(check.name, check.why) for check in CHECKS]
