"""Checks of each interface: that it is there and up, and what its driver makes of XDP."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from loader.carriers import PROGRAM_NAME
from loader.types import Mode
from tools.doctor.checks import drivers
from tools.doctor.facts import Facts, InterfaceFacts
from tools.doctor.findings import (
    Check,
    Finding,
    failure,
    not_applicable,
    ok,
    unknown,
    warning,
)

__all__ = ["CHECKS"]

_ANY_DRIVER = 3498  # the least of the limits of a page that we know


def _present(facts: Facts) -> Iterator[Finding]:
    for name in facts.missing:
        yield failure("no interface of that name in this network namespace", "ip link", about=name)
    if not facts.interfaces and not facts.missing:
        yield not_applicable("no interface to look at: name one with --interface")
    for interface in facts.interfaces:
        driver = interface.driver or interface.kind or "no driver's name"
        yield ok(f"{driver}, MTU {interface.mtu}", about=interface.name)


def _up(facts: Facts, interface: InterfaceFacts) -> Finding:
    if not interface.up:
        return failure("down", f"sudo ip link set dev {interface.name} up")
    if not interface.carrier:
        return failure(
            "up, but without a carrier",
            drivers.at_peer(interface, "ip link set dev PEER up")
            if interface.kind == "veth"
            else f"ip -d link show dev {interface.name}  # the cable, or the other end's port",
        )
    return ok("up")


def _xdp_modes(facts: Facts, interface: InterfaceFacts) -> Finding:
    if interface.below:
        return not_applicable(f"a VLAN: the program is attached to {interface.below}")
    generic = "generic mode only: each packet becomes a socket buffer first"
    other = "Use a NIC whose driver has native XDP, or take the cost."
    if interface.features is not None:
        if interface.features & drivers.BASIC:
            return ok("native, by the kernel's word (netdev xdp-features)")
        return warning(f"{generic} (netdev xdp-features)", other)
    if interface.driver in drivers.NATIVE:
        return ok("native, by our own table of drivers: Linux tells since 6.3")
    return warning(f"{generic}, by our own table of drivers: Linux tells since 6.3", other)


def _redirect(facts: Facts, interface: InterfaceFacts) -> Finding:
    if interface.below:
        return not_applicable(f"a VLAN: packets leave by {interface.below}")
    if interface.xdp.mode is Mode.GENERIC:
        return not_applicable("in generic mode packets leave as the kernel's own do")
    if interface.kind == "veth":
        return _redirect_into_veth(interface)
    if interface.features is None:
        return not_applicable("this kernel does not tell: Linux does since 6.3")
    if sum(not each.below for each in facts.interfaces) < 2:
        return not_applicable("the only interface: packets leave by XDP_TX")
    cure = "Use another NIC, or one interface for both sides."
    if interface.features & drivers.BASIC and not interface.features & drivers.REDIRECT:
        return failure(f"{interface.driver} cannot redirect what it receives", cure)
    if interface.features & drivers.NDO_XMIT:
        return ok("takes redirected packets")
    if interface.xdp.mode is not Mode.NATIVE:
        return not_applicable("not attached; most drivers make ready for it only then")
    return failure(f"{interface.driver} takes no redirected packets, attached as it is", cure)


def _redirect_into_veth(interface: InterfaceFacts) -> Finding:
    # eupf#116, ellanetworks/core#1158, xdp-tutorial#167: packets vanish without a word.
    lost = "its other end has neither NAPI nor an XDP program: what is redirected here is lost"
    cure = drivers.at_peer(interface, "ethtool -K PEER gro on")
    peer = interface.peer
    if interface.features is not None:
        ready = bool(interface.features & drivers.NDO_XMIT)
    elif peer is not None:
        gro = peer.offloads.get("rx-gro")
        ready = bool(gro and gro.on) or peer.xdp.mode is Mode.NATIVE
    else:
        return unknown("its other end is in a network namespace that cannot be seen", cure)
    return ok("its other end takes redirected packets") if ready else failure(lost, cure)


def _rx_offloads(facts: Facts, interface: InterfaceFacts) -> Finding:
    if interface.below:
        return not_applicable(f"a VLAN: see {interface.below}")
    if obstacle := drivers.offload_obstacle(interface):
        return warning(f"native mode is refused: {obstacle.what}", obstacle.cure)
    if interface.driver == "virtio_net" and interface.virtio is None:
        return unknown("the device's feature bits cannot be seen")
    if interface.offloads is None:
        return unknown("the driver does not tell (ethtool -k)")
    return ok("nothing joins packets before XDP sees them")


def _mtu(facts: Facts, interface: InterfaceFacts) -> Finding:
    if interface.below:
        return not_applicable(f"a VLAN: see {interface.below}")
    if obstacle := drivers.mtu_obstacle(facts.host, interface):
        return warning(f"native mode is refused: {obstacle.what}", obstacle.cure)
    limit = drivers.mtu_limit(interface.driver, facts.host.page)
    if interface.kind == "veth":
        if interface.peer is None:
            return unknown(
                f"its other end cannot be seen, whose MTU may be {limit} at most",
                drivers.at_peer(interface, "ip link show"),
            )
        return ok(f"its other end has {interface.peer.mtu}, of {limit} at most")
    if limit is not None:
        return ok(f"{interface.mtu}, of {limit} at most")
    if interface.mtu > _ANY_DRIVER:
        # xdp-tools#327: EINVAL from ixgbevf with an MTU of 9000, and nothing in the log.
        return warning(
            f"{interface.mtu}: most drivers take native XDP only if a frame fits into a page",
            f"sudo ip link set dev {interface.name} mtu 1500",
        )
    return ok(f"{interface.mtu}")


def _queues(facts: Facts, interface: InterfaceFacts) -> Finding:
    if interface.below:
        return not_applicable(f"a VLAN: see {interface.below}")
    if obstacle := drivers.queue_obstacle(interface):
        return warning(f"native mode is refused: {obstacle.what}", obstacle.cure)
    if obstacle := drivers.locked_queues(facts.host, interface):
        return warning(obstacle.what, obstacle.cure)
    have = interface.channels
    if have is None:
        return not_applicable("the driver has no channels (ethtool -l)")
    count = have.combined + have.rx
    return ok(f"{count} receive queue{'s' if count != 1 else ''}, {facts.host.cpus} CPUs")


def _irqs(facts: Facts, interface: InterfaceFacts) -> Finding:
    have, cpus = interface.channels, interface.irq_cpus
    if cpus is None or have is None or have.combined + have.rx < 2 or facts.host.cpus < 2:
        return not_applicable("one queue, one CPU, or no interrupts that could be told apart")
    if len(cpus) > 1:
        return ok(f"receive interrupts on CPUs {', '.join(map(str, sorted(cpus)))}")
    (only,) = cpus
    return warning(
        f"all its receive queues interrupt CPU {only}",
        "sudo apt install irqbalance  # or set /proc/irq/*/smp_affinity_list by hand",
    )


def _vlan_tags(facts: Facts, interface: InterfaceFacts) -> Finding:
    if not interface.vlans:
        return not_applicable("no VLAN interface of the relay is on it")
    if interface.kind == "veth":
        peer = interface.peer
        cure = drivers.at_peer(interface, "ethtool -K PEER txvlan off")
        if peer is None:
            return unknown("its other end, which must write the tag, cannot be seen", cure)
        insert = peer.offloads.get("tx-vlan-hw-insert")
        if insert and insert.on:
            return failure("its other end sends the tag beside the packet", cure)
        return ok("its other end writes the tag into the packet")
    if interface.offloads is None:
        return unknown("the driver does not tell (ethtool -k)")
    # p4c-xdp#38: the tag is gone before the program runs.
    parse = interface.offloads.get("rx-vlan-hw-parse")
    if not parse or not parse.on:
        return ok("tags stay in the packet")
    return failure(
        "the NIC takes the tag out of the packet before XDP sees it",
        "This NIC cannot do without: use another, or no VLAN."
        if parse.fixed
        else f"sudo ethtool -K {interface.name} rxvlan off",
    )


def _other_program(facts: Facts, interface: InterfaceFacts) -> Finding:
    xdp = interface.xdp
    if not xdp.id:
        return ok("no XDP program is attached")
    if xdp.id in facts.relay.programs or xdp.name == PROGRAM_NAME:
        return ok(f"ours is attached (id {xdp.id}, {xdp.mode.name.lower()})")
    if xdp.name is None:
        return unknown(f"program {xdp.id} is attached; whose, only root sees", "sudo shunt doctor")
    return failure(
        f"carries another XDP program: {xdp.name} (id {xdp.id}, {xdp.mode.name.lower()})",
        f"sudo xdp-loader unload --all {interface.name}"
        if xdp.name == "xdp_dispatcher"
        else f"sudo ip link set dev {interface.name} "
        f"{'xdpgeneric' if xdp.mode is Mode.GENERIC else 'xdp'} off",
    )


def _each(look: Callable[[Facts, InterfaceFacts], Finding]) -> Callable[[Facts], Iterable[Finding]]:
    return lambda facts: [
        replace(look(facts, interface), about=interface.name) for interface in facts.interfaces
    ]


CHECKS = (
    Check("present", "The agent does not start without one of its interfaces.", _present),
    Check("up", "What is down carries no packets.", _each(_up)),
    Check(
        "xdp_modes",
        "In native mode the program sees packets before anything is allocated for them; in generic "
        "mode it costs several times as much.",
        _each(_xdp_modes),
    ),
    Check(
        "rx_offloads",
        "XDP is for packets as they came. A driver whose packets come joined or unfinished refuses "
        "it, and mostly says so in dmesg only.",
        _each(_rx_offloads),
    ),
    Check(
        "mtu",
        "In native mode a frame must fit into a page, with room for headers; what is larger, the "
        "driver refuses to take XDP for.",
        _each(_mtu),
    ),
    Check(
        "queues",
        "XDP sends by queues of its own, one for each CPU or for each queue.",
        _each(_queues),
    ),
    Check(
        "irqs",
        "The program runs on the CPU that its packet interrupts: with one for all queues, the "
        "others idle.",
        _each(_irqs),
    ),
    Check(
        "redirect",
        "From one interface to another, packets go by XDP_REDIRECT; where the receiving end is not "
        "ready for it they vanish, and no counter of ours tells.",
        _each(_redirect),
    ),
    Check(
        "vlan_tags",
        "XDP sees an 802.1Q tag only where it is in the packet, and else takes the packet for "
        "another link's.",
        _each(_vlan_tags),
    ),
    Check(
        "other_program",
        "An interface carries one XDP program; the agent does not push out somebody else's.",
        _each(_other_program),
    ),
)
