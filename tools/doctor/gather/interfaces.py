"""Facts of interfaces, by netlink and ethtool, which go by the thread's network namespace; /sys
does not, so that only devices on their buses are looked up there."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute

from loader.links import link_of
from tools.doctor.facts import InterfaceFacts
from tools.doctor.gather import ethtool
from tools.doctor.gather.peers import peer_of
from tools.doctor.gather.programs import xdp_of
from tools.doctor.gather.xdp_features import xdp_features

__all__ = ["all_links", "look_at", "virtio_bits"]

_UP, _LOWER_UP, _ETHERNET = 0x1, 0x10000, 1
_VIRTIO = Path("/sys/bus/virtio/devices")
_PCI = Path("/sys/bus/pci/devices")


def all_links() -> list[Any]:
    """The link messages of this namespace."""
    with IPRoute() as netlink:
        return list(netlink.get_links())


def look_at(
    links: Sequence[Any], names: Sequence[str], *, and_at: Collection[int] = ()
) -> tuple[tuple[InterfaceFacts, ...], tuple[str, ...]]:
    """Facts of the interfaces of these names, of the parents of those that are VLANs, and of those
    of the ifindexes *and_at*; and the names of those that are not there. Without names: of those
    that look like a relay's."""
    by_name = {link.get_attr("IFLA_IFNAME"): link for link in links}
    by_index = {link["index"]: link for link in links}
    wanted = [by_name[name] for name in names if name in by_name]
    wanted += [by_index[index] for index in and_at if index in by_index]
    if not names and not wanted:
        wanted = _likely(links)
    vlans: dict[int, list[str]] = {}
    for link in list(wanted):
        parsed = link_of(link)
        if parsed.vlan and parsed.below in by_index:
            vlans.setdefault(parsed.below, []).append(parsed.name)
            wanted.append(by_index[parsed.below])
    features = xdp_features()
    with IPRoute() as netlink:
        facts = [
            _facts(netlink, link, by_index, features, tuple(vlans.get(link["index"], ())))
            for link in {link["index"]: link for link in wanted}.values()
        ]
    return tuple(facts), tuple(name for name in names if name not in by_name)


def _likely(links: Sequence[Any]) -> list[Any]:
    """Ethernet devices that no software made; in a container, its veths."""
    ethernet = [link for link in links if link["ifi_type"] == _ETHERNET]
    devices = [link for link in ethernet if not _kind(link)]
    return devices or [link for link in ethernet if _kind(link) == "veth"]


def _kind(link: Any) -> str:
    info = link.get_attr("IFLA_LINKINFO")
    return (info and info.get_attr("IFLA_INFO_KIND")) or ""


def _facts(
    netlink: IPRoute,
    link: Any,
    by_index: dict[int, Any],
    features: dict[int, int],
    vlans: tuple[str, ...],
) -> InterfaceFacts:
    parsed, driver = link_of(link), ethtool.driver(link.get_attr("IFLA_IFNAME"))
    below = by_index.get(parsed.below) if parsed.vlan else None
    ipv4 = _ipv4_settings(link)
    virtio = _virtio_device(driver)
    return InterfaceFacts(
        name=parsed.name,
        ifindex=parsed.ifindex,
        kind=_kind(link),
        driver=driver.name,
        up=bool(link["flags"] & _UP),
        carrier=bool(link["flags"] & _LOWER_UP),
        mtu=parsed.mtu,
        xdp=xdp_of(link),
        features=features.get(parsed.ifindex),
        offloads=ethtool.offloads(parsed.name),
        channels=ethtool.channels(parsed.name),
        virtio=_virtio_bits_of(virtio),
        peer=peer_of(netlink, link) if parsed.veth else None,
        below=below.get_attr("IFLA_IFNAME") if below is not None else "",
        vlans=vlans,
        rp_filter=ipv4.get("rp_filter", 0),
        arp_ignore=ipv4.get("arp_ignore", 0),
        irq_cpus=_irq_cpus(virtio.resolve().parent if virtio else _PCI / driver.bus),
    )


def _ipv4_settings(link: Any) -> dict[str, int]:
    families = link.get_attr("IFLA_AF_SPEC")
    return (families and families.get_attr("AF_INET")) or {}


def _virtio_device(driver: ethtool.Driver) -> Path | None:
    """The folder of a virtio device, whose driver names only the bus device above it."""
    if driver.name != "virtio_net" or not _VIRTIO.is_dir():
        return None
    found = (each for each in _VIRTIO.iterdir() if each.resolve().parent.name == driver.bus)
    return next(found, None)


def _virtio_bits_of(device: Path | None) -> frozenset[int] | None:
    if device is None:
        return None
    try:
        return virtio_bits((device / "features").read_text())
    except OSError:
        return None


def virtio_bits(text: str) -> frozenset[int]:
    """The numbers of the bits that are set, of a device's file `features`: bit 0 comes first."""
    return frozenset(bit for bit, digit in enumerate(text.strip()) if digit == "1")


def _irq_cpus(device: Path) -> frozenset[int] | None:
    """CPUs that a device's message interrupts go to; None if it has none that we could find."""
    try:
        irqs = [int(entry.name) for entry in (device / "msi_irqs").iterdir()]
    except OSError:
        return None
    cpus = set()
    for irq in irqs:
        try:
            served = Path(f"/proc/irq/{irq}/effective_affinity_list").read_text().strip()
        except OSError:
            continue  # not in use
        if served.isdigit():
            cpus.add(int(served))
    return frozenset(cpus) or None
