"""Facts of the network namespace: addresses, UDP sockets, sysctls."""

import ipaddress
from pathlib import Path

from pyroute2 import IPRoute

from tools.doctor.facts import Address, NetworkFacts, Socket

__all__ = ["bound_sockets", "look", "port_ranges"]

_TENTATIVE, _DUPLICATE = 0x40, 0x08  # IFA_F_…
_SYSCTLS = Path("/proc/sys/net/ipv4")  # of the reading thread's namespace, both families' ports


def look() -> NetworkFacts:
    """All of them, of this thread's namespace."""
    first, last = (_SYSCTLS / "ip_local_port_range").read_text().split()
    return NetworkFacts(
        addresses=_addresses(),
        sockets=tuple(
            socket
            for table in ("udp", "udp6")
            # /proc/net would be the namespace of the process, which may be another.
            for socket in bound_sockets(Path("/proc/thread-self/net") / table)
        ),
        ephemeral=(int(first), int(last)),
        reserved=port_ranges((_SYSCTLS / "ip_local_reserved_ports").read_text()),
        rp_filter=int((_SYSCTLS / "conf/all/rp_filter").read_text()),
        arp_ignore=int((_SYSCTLS / "conf/all/arp_ignore").read_text()),
    )


def _addresses() -> tuple[Address, ...]:
    with IPRoute() as netlink:
        names = {link["index"]: link.get_attr("IFLA_IFNAME") for link in netlink.get_links()}
        found = []
        for message in netlink.get_addr():
            # Of a point-to-point link, IFA_ADDRESS is the other end.
            address = message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")
            flags = message.get_attr("IFA_FLAGS") or 0
            found.append(
                Address(
                    interface=names.get(message["index"], ""),
                    address=str(ipaddress.ip_address(address)),
                    prefix=message["prefixlen"],
                    tentative=bool(flags & _TENTATIVE),
                    duplicate=bool(flags & _DUPLICATE),
                )
            )
    return tuple(found)


def bound_sockets(table: Path) -> list[Socket]:
    """The sockets of `/proc/net/udp` or `udp6`; none if the kernel has no such table (no IPv6)."""
    try:
        lines = table.read_text().splitlines()[1:]
    except FileNotFoundError:
        return []
    return [_socket(line.split()[1]) for line in lines]


def _socket(local: str) -> Socket:
    address, port = local.split(":")
    # Words of 32 bits, each in the machine's byte order, which is little-endian where we run.
    words = [address[start : start + 8] for start in range(0, len(address), 8)]
    packed = b"".join(bytes.fromhex(word)[::-1] for word in words)
    return Socket(str(ipaddress.ip_address(packed)), int(port, 16))


def port_ranges(text: str) -> tuple[tuple[int, int], ...]:
    """`8080,9148-9500`, as sysctls write it."""
    ranges = []
    for each in filter(None, text.strip().split(",")):
        first, _, last = each.partition("-")
        ranges.append((int(first), int(last or first)))
    return tuple(ranges)
