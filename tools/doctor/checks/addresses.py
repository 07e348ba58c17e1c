"""Checks of what the relay is to be: its addresses, its ports, and who else wants them."""

import ipaddress
from collections.abc import Iterator

from loader.addresses import endpoint
from tools.doctor.facts import Address, Facts, InterfaceFacts, NetworkFacts, Socket
from tools.doctor.findings import Check, Finding, failure, not_applicable, ok, warning

__all__ = ["CHECKS"]

_SHORTEST = 1300  # bytes: WebRTC's packets of 1200 or so, and 20 more on their way to IPv6
_SHOWN = 5
_NEVER = 8  # of arp_ignore
_NO_PLAN = "no address of a relay is known: give --config, or load one"

Range = tuple[int, int]


def _addresses(facts: Facts) -> Iterator[Finding]:
    here = {each.address: each for each in facts.network.addresses}
    for address in _wanted(facts):
        if found := here.get(address):
            yield ok(f"on {found.interface}", about=address)
            continue
        length = 128 if ":" in address else 32
        interface = facts.plan.interfaces[0] if facts.plan.interfaces else "IFACE"
        yield failure(
            "on no interface of this network namespace",
            f"sudo ip addr add {address}/{length} dev {interface}",
            about=address,
        )
    if not _wanted(facts):
        yield not_applicable(_NO_PLAN)


def _wanted(facts: Facts) -> list[str]:
    vips = [address for address, _port in facts.plan.vips]
    return list(dict.fromkeys([*vips, *facts.plan.inside_addresses]))


def _duplicates(facts: Facts) -> Iterator[Finding]:
    wanted = [address for address in _wanted(facts) if ":" in address]
    here = {each.address: each for each in facts.network.addresses}
    for address in wanted:
        found = here.get(address)
        if found is None:
            yield not_applicable("not here", about=address)
        elif found.duplicate:
            yield failure(
                "duplicate address detection failed: another host on the link has it",
                f"sudo ip addr del {_with_prefix(found)} dev {found.interface}  # then find the "
                f"other: ip -6 neigh show {address}",
                about=address,
            )
        elif found.tentative:
            yield warning(
                "still tentative: the kernel does not answer for it yet",
                f"ip -6 addr show dev {found.interface} tentative  # a moment later; without a "
                "carrier it stays so",
                about=address,
            )
        else:
            yield ok("unique on its link", about=address)
    if not wanted:
        yield not_applicable("no IPv6 address of a relay is known")


def _with_prefix(address: Address) -> str:
    return f"{address.address}/{address.prefix}"


def _arp(facts: Facts) -> Iterator[Finding]:
    here = {each.address: each.interface for each in facts.network.addresses}
    mute = False
    for address in _wanted(facts):
        home = here.get(address)
        if ":" in address or home is None:
            continue
        # The address's own interface, or, if it is none of the relay's, any that could be asked.
        own = tuple(i for i in facts.interfaces if home in (i.name, *i.vlans))
        asked = own or facts.interfaces
        levels = {i.name: max(facts.network.arp_ignore, i.arp_ignore) for i in asked}
        if not asked or not all(
            _is_mute(level, home, at_home=bool(own)) for level in levels.values()
        ):
            continue
        mute = True
        for interface in asked:
            yield failure(
                f"on {home}, and {interface.name} answers no ARP request for it "
                f"(arp_ignore={levels[interface.name]})",
                _answer_arp(facts.network.arp_ignore, interface),
                about=address,
            )
    if not mute:
        yield ok("nothing keeps the kernel from answering for the relay's IPv4 addresses")


def _is_mute(level: int, home: str, *, at_home: bool) -> bool:
    """Whether arp_ignore (Documentation/networking/ip-sysctl.rst) keeps the kernel from answering
    for an address on the interface *home*, when asked there or elsewhere."""
    if level == _NEVER:
        return True
    return not at_home and (level in (1, 2) or (level == 3 and home == "lo"))


def _answer_arp(of_all: int, interface: InterfaceFacts) -> str:
    where = [*(["all"] if of_all else []), *([interface.name] if interface.arp_ignore else [])]
    return "sudo sysctl -w " + " ".join(f"net.ipv4.conf.{each}.arp_ignore=0" for each in where)


def _rp_filter(facts: Facts) -> Iterator[Finding]:
    networks: dict[str, set[ipaddress.IPv4Network]] = {}
    for each in facts.network.addresses:
        if ":" not in each.address and each.prefix < 31:
            network = ipaddress.IPv4Network(_with_prefix(each), strict=False)
            networks.setdefault(each.interface, set()).add(network)
    deaf = False
    for interface in facts.interfaces:
        if max(facts.network.rp_filter, interface.rp_filter) != 1:
            continue
        mine = networks.get(interface.name, set())
        for other, theirs in networks.items():
            if other == interface.name or not mine & theirs:
                continue
            deaf = True
            shared = ", ".join(map(str, sorted(mine & theirs)))
            yield warning(
                f"strict, and {other} is in {shared} too: one of the two gets no answer to ARP",
                f"sudo sysctl -w net.ipv4.conf.{interface.name}.rp_filter=2",
                about=interface.name,
            )
    if not deaf:
        yield ok("does not matter here: relayed packets never come to it")


def _ephemeral_ports(facts: Facts) -> Iterator[Finding]:
    network, plan = facts.network, facts.plan
    wanted: list[tuple[str, Range]] = [
        *((address, plan.ports) for address in plan.inside_addresses),
        *((endpoint(address, port), (port, port)) for address, port in plan.vips),
    ]
    if not wanted:
        yield not_applicable(_NO_PLAN)
    for about, (first, last) in wanted:
        taken = _ephemeral_among(network, first, last)
        if not taken:
            yield ok("none of its ports is given to the host's own sockets", about=about)
            continue
        overlap = (max(first, network.ephemeral[0]), min(last, network.ephemeral[1]))
        reserved = ",".join(_text(each) for each in _union([*network.reserved, overlap]))
        # cilium#45569, #33723: answers to the host's own packets end at whom the port belongs to.
        yield warning(
            f"{taken} of its ports are in net.ipv4.ip_local_port_range "
            f"({_text(network.ephemeral)}): the host's own sockets get them, and no answers",
            f"sudo sysctl -w net.ipv4.ip_local_reserved_ports={reserved}",
            about=about,
        )


def _ephemeral_among(network: NetworkFacts, first: int, last: int) -> int:
    ports = set(range(max(first, network.ephemeral[0]), min(last, network.ephemeral[1]) + 1))
    for low, high in network.reserved:
        ports -= set(range(low, high + 1))
    return len(ports)


def _union(ranges: list[Range]) -> list[Range]:
    merged: list[Range] = []
    for first, last in sorted(ranges):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
        else:
            merged.append((first, last))
    return merged


def _text(ports: Range) -> str:
    first, last = ports
    return str(first) if first == last else f"{first}-{last}"


def _sockets(facts: Facts) -> Iterator[Finding]:
    plan = facts.plan
    if not plan.vips and not plan.inside_addresses:
        yield not_applicable(_NO_PLAN)
        return
    deaf = [
        socket
        for socket in facts.network.sockets
        if any(_covers(socket, address) and socket.port == port for address, port in plan.vips)
        or any(
            _covers(socket, address) and plan.ports[0] <= socket.port <= plan.ports[1]
            for address in plan.inside_addresses
        )
    ]
    for socket in deaf[:_SHOWN]:
        yield warning(
            "a socket of the host is bound there, and gets nothing that comes by XDP's interfaces",
            f"sudo ss -ulpn 'sport = :{socket.port}'  # whose it is; give it another port",
            about=endpoint(socket.address, socket.port),
        )
    if len(deaf) > _SHOWN:
        yield warning(f"and {len(deaf) - _SHOWN} more sockets", "sudo ss -ulpn")
    if not deaf:
        yield ok("no UDP socket of the host is bound to a port of the relay")


def _covers(socket: Socket, address: str) -> bool:
    """Whether packets to *address* would be the socket's; `::` takes IPv4 ones as well."""
    return socket.address in (address, "::", "0.0.0.0" if ":" not in address else "::")


def _path_mtu(facts: Facts) -> Iterator[Finding]:
    narrow = False
    for interface in facts.interfaces:
        if interface.mtu < _SHORTEST:
            narrow = True
            # katran#82, #206: packets that just fit outside do not fit inside, and vanish.
            yield warning(
                f"MTU {interface.mtu}: media of 1200 bytes and more may not fit",
                f"sudo ip link set dev {interface.name} mtu 1500",
                about=interface.name,
            )
    if not narrow:
        yield ok(f"every interface takes packets of {_SHORTEST} bytes")


CHECKS = (
    Check(
        "addresses",
        "The kernel answers ARP and neighbour discovery for the relay's addresses, and does so "
        "only for those that it has.",
        _addresses,
    ),
    Check(
        "duplicates",
        "An IPv6 address that another host has, or may have, is not answered for.",
        _duplicates,
    ),
    Check(
        "arp",
        "With arp_ignore, which load balancers set, an address on another interface (lo, say) is "
        "not answered for.",
        _arp,
    ),
    Check(
        "rp_filter",
        "Relayed packets never come to the reverse-path filter, but ARP requests do: strict, with "
        "two interfaces in one network, it drops those of one.",
        _rp_filter,
    ),
    Check(
        "ephemeral_ports",
        "A port of the relay that the kernel gives to a socket of the host's own (DNS, NTP) is a "
        "socket without answers.",
        _ephemeral_ports,
    ),
    Check(
        "sockets",
        "XDP comes before sockets: what is bound to a port of the relay hears nothing any more.",
        _sockets,
    ),
    Check(
        "path_mtu",
        "What does not fit into the way on is dropped (`mtu`), and not every sender heeds the "
        "ICMP error that tells it.",
        _path_mtu,
    ),
)
