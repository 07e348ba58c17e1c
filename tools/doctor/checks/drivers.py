"""What drivers demand before they take an XDP program natively, and how each refuses.

Read in the kernel's source, after reports of people who met it; each rule names its report. All
but the queues' locking end in generic mode, as the agent falls back to it.
"""

from dataclasses import dataclass

from loader.types import Mode
from tools.doctor.facts import HostFacts, InterfaceFacts

__all__ = [
    "BASIC",
    "NATIVE",
    "NDO_XMIT",
    "REDIRECT",
    "Obstacle",
    "at_peer",
    "locked_queues",
    "mtu_limit",
    "mtu_obstacle",
    "obstacles",
    "offload_obstacle",
    "queue_obstacle",
]

BASIC, REDIRECT, NDO_XMIT = 1 << 0, 1 << 1, 1 << 2  # enum netdev_xdp_act

NATIVE = frozenset(
    (
        *("atlantic", "bnxt_en", "cpsw", "cpsw-switch", "ena", "fsl_dpa", "fsl_dpaa2_eth"),
        *("fsl_enetc", "gve", "hv_netvsc", "i40e", "ice", "igb", "igc"),
        *("ixgbe", "ixgbevf", "mana", "mlx4_en", "mlx5_core", "mtk_soc_eth", "mvneta"),
        *("mvpp2", "netsec", "nfp", "qede", "sfc", "st_gmac", "thunder-nicvf"),
        *("tsnep", "tun", "veth", "vif", "virtio_net"),
    )
)
"""Drivers (`ethtool -i`) with native XDP, for kernels that do not tell: before 6.3."""

_HEADROOM, _SHARED_INFO = 256, 320  # XDP_PACKET_HEADROOM, and struct skb_shared_info as aligned
_ETHERNET, _VLAN, _FCS = 14, 4, 4
_GVE_BUFFER, _GVE_PAD = 2048, 2

# Feature bits of a virtio network device (virtio 1.2, 5.1.3).
_GUEST_CSUM, _CTRL_GUEST_OFFLOADS, _MRG_RXBUF, _ANY_LAYOUT, _VERSION_1 = 1, 2, 15, 27, 32
_GUEST_OFFLOADS = {
    _GUEST_CSUM: "csum",
    7: "tso4",
    8: "tso6",
    9: "ecn",
    10: "ufo",
    54: "uso4",
    55: "uso6",
}


@dataclass(frozen=True, slots=True)
class Obstacle:
    """Why the driver refuses native mode, with the error that it answers, and the cure."""

    what: str
    cure: str


def at_peer(interface: InterfaceFacts, command: str) -> str:
    """A command for the end of a veth that is not ours; PEER in it stands for its name."""
    peer = interface.peer
    if peer is None:
        return f"sudo {command}  # in the network namespace of {interface.name}'s other end"
    enter = ""
    if peer.where:
        named = not peer.where.startswith("/")
        enter = f"ip netns exec {peer.where} " if named else f"nsenter --net={peer.where} "
    return f"sudo {enter}{command.replace('PEER', peer.name)}"


def _is_native(interface: InterfaceFacts) -> bool:
    """Whether it carries a program natively: then its driver has had nothing against it."""
    return interface.xdp.mode is Mode.NATIVE


def mtu_limit(driver: str, page: int) -> int | None:
    """The largest MTU with which the driver takes a program that knows no fragments, None if we
    have not read its source. Of a veth, it is the peer's MTU that counts."""
    in_a_page = page - _HEADROOM - _SHARED_INFO - _ETHERNET
    return {
        # bpfman#1675: "numerical result out of range" (ERANGE) on every pod with jumbo frames.
        "veth": in_a_page,
        # Since 6.3; before, a little more, and each longer packet was copied.
        "virtio_net": in_a_page,
        # cilium#19593: 3498, and not the 3818 of older kernels.
        "ena": min(page, 16384) - _ETHERNET - _FCS - _VLAN - _HEADROOM - _SHARED_INFO,
        # EOPNOTSUPP; half a page.
        "gve": _GVE_BUFFER - _ETHERNET - _GVE_PAD,
    }.get(driver)


def mtu_obstacle(host: HostFacts, interface: InterfaceFacts) -> Obstacle | None:
    """Packets longer than the driver can hold in one piece."""
    limit = mtu_limit(interface.driver, host.page)
    if _is_native(interface):
        return None
    if interface.driver == "veth":
        if interface.peer is None or limit is None or interface.peer.mtu <= limit:
            return None
        return Obstacle(
            f"its other end has an MTU of {interface.peer.mtu}, and native XDP takes {limit} "
            "(ERANGE)",
            at_peer(interface, f"ip link set dev PEER mtu {limit}"),
        )
    if limit is not None and interface.mtu > limit:
        return Obstacle(
            f"MTU {interface.mtu}, and {interface.driver} takes {limit} with XDP",
            f"sudo ip link set dev {interface.name} mtu {limit}",
        )
    return None


def offload_obstacle(interface: InterfaceFacts) -> Obstacle | None:
    """Received packets that are put together, or not checked, before XDP sees them."""
    if _is_native(interface):
        return None
    if interface.virtio is not None:
        return _virtio_obstacle(interface.virtio)
    lro = (interface.offloads or {}).get("rx-lro")
    # mlx5: "can't set XDP while LRO is on"; gve: "XDP is not supported when LRO is on". In dmesg.
    if lro and lro.on:
        return Obstacle(
            "LRO is on: packets are joined before XDP sees them, and drivers refuse (EINVAL, "
            "EOPNOTSUPP)",
            f"sudo ethtool -K {interface.name} lro off",
        )
    return None


def _virtio_obstacle(features: frozenset[int]) -> Obstacle | None:
    # katran#18, firecracker#2433, learning-ebpf#15: "Can't set XDP while host is implementing
    # GRO_HW/CSUM" (EOPNOTSUPP). If the device has CTRL_GUEST_OFFLOADS, the driver turns them off
    # by itself; else ethtool shows them as fixed, and only the hypervisor can.
    offloads = [name for bit, name in _GUEST_OFFLOADS.items() if bit in features]
    if offloads and _CTRL_GUEST_OFFLOADS not in features:
        qemus = ",".join(f"guest_{name}=off" for name in offloads)
        libvirts = " ".join(f"{name}='off'" for name in offloads)
        return Obstacle(
            f"the hypervisor hands over unfinished packets (guest {', '.join(offloads)}) and lets "
            "the guest not turn that off (EOPNOTSUPP)",
            f"On the hypervisor: qemu … -device virtio-net-pci,…,{qemus}  # or, in libvirt: "
            f"<driver><guest {libvirts}/>",
        )
    # xdp-tutorial#275, oxdpus#2: "XDP expects header/data in single page, any_header_sg required".
    if _MRG_RXBUF in features and not features & {_ANY_LAYOUT, _VERSION_1}:
        return Obstacle(
            "a legacy virtio device with mergeable buffers (EINVAL)",
            "On the hypervisor: qemu … -device virtio-net-pci,…,disable-legacy=on,"
            "disable-modern=off",
        )
    return None


def queue_obstacle(interface: InterfaceFacts) -> Obstacle | None:
    """Too few queues for those that XDP wants for itself, or, on a veth, for its other end's."""
    have, name = interface.channels, interface.name
    if have is None or _is_native(interface):
        return None
    if interface.driver == "veth":
        theirs = interface.peer and interface.peer.channels
        if theirs and have.rx < theirs.tx:
            return Obstacle(
                f"{have.rx} receive queues, fewer than the {theirs.tx} by which its other end "
                "sends (ENOSPC)",
                f"sudo ethtool -L {name} rx {theirs.tx}",
            )
    # amzn-drivers#240 and #164: "the Rx/Tx channel count should be at most half of the maximum".
    if interface.driver == "ena" and 2 * have.combined > have.max_combined:
        return Obstacle(
            f"{have.combined} queues of {have.max_combined}, and XDP wants as many again (EINVAL)",
            f"sudo ethtool -L {name} combined {have.max_combined // 2}"
            if have.max_combined > 1
            else "Use an instance type with more queues.",
        )
    # firezone#7518, solved in #8538 and #8539: "Invalid argument (os error 22)".
    if interface.driver == "gve" and (have.rx != have.tx or 2 * have.tx > have.max_tx):
        half = min(have.max_tx, have.max_rx) // 2
        return Obstacle(
            f"{have.rx} receive and {have.tx} send queues of {have.max_tx}; XDP wants as many of "
            "both, and at most half (EINVAL)",
            f"sudo ethtool -L {name} rx {half} tx {half}"
            if half
            else "gcloud compute instances create … --network-interface=nic-type=GVNIC,"
            "queue-count=2",
        )
    return None


def locked_queues(host: HostFacts, interface: InterfaceFacts) -> Obstacle | None:
    """A virtio device without a send queue for each CPU; no obstacle to native mode since 5.13."""
    # bcc#1833: "request 2 queues but max is 1" (ENOMEM). Now it warns instead, and CPUs take turns:
    # "XDP_TX and XDP_REDIRECT will operate in a slower locked tx mode".
    have = interface.channels
    if interface.driver != "virtio_net" or have is None:
        return None
    with_xdp = have.combined + (0 if _is_native(interface) else host.cpus)
    enough = with_xdp <= have.max_combined and with_xdp > host.cpus
    if enough:
        return None
    spare = have.max_combined - host.cpus
    return Obstacle(
        f"at most {have.max_combined} queue pair{'s' if have.max_combined != 1 else ''}, and XDP "
        f"wants one for each of {host.cpus} CPUs beside those in use: they take turns at sending",
        f"sudo ethtool -L {interface.name} combined {spare}"
        if spare > 0 and not _is_native(interface)
        else f"On the hypervisor: qemu … -netdev tap,…,queues={2 * host.cpus} -device "
        f"virtio-net-pci,…,mq=on,vectors={4 * host.cpus + 2}  # or, in libvirt: "
        f"<driver queues='{2 * host.cpus}'/>",
    )


def obstacles(host: HostFacts, interface: InterfaceFacts) -> list[Obstacle]:
    """All that keeps the driver from taking the program natively, as far as we know."""
    found = (
        mtu_obstacle(host, interface),
        offload_obstacle(interface),
        queue_obstacle(interface),
    )
    return [each for each in found if each]
