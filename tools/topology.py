"""The lab's network: namespaces, two switches, cables, addresses, routes and the relay's firewall.

Knows nothing of the agent or the transceivers that run in it: `lab` starts those.
"""

import ipaddress
import subprocess
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from socket import AF_INET, AF_INET6
from typing import Any

from pyroute2 import IPRoute, netns
from pyroute2.ethtool.ioctl import IoctlEthtool
from pyroute2.netlink.exceptions import NetlinkError

from loader.errors import ShuntError
from tools.netns import RUN_DIR, create, run_in

__all__ = [
    "CLIENT",
    "HOST_INTERFACE",
    "HTTP_PORT",
    "INSIDE_ADDRESS",
    "INSIDE_ADDRESS6",
    "MAX_TRANSCEIVERS",
    "RELAY",
    "VIP_ADDRESS",
    "VIP_ADDRESS6",
    "Cable",
    "cables",
    "down",
    "namespaces",
    "overlapping",
    "present",
    "transceiver_address",
    "transceiver_address6",
    "up",
]

CLIENT, RELAY, SWITCH = "shunt-client", "shunt-relay", "shunt-switch"
HOST_INTERFACE = "shunt-host"
VIP_ADDRESS, INSIDE_ADDRESS = "198.18.0.1", "198.18.1.1"
VIP_ADDRESS6, INSIDE_ADDRESS6 = "2001:db8:18::1", "2001:db8:118::1"
INSIDE_NET, INSIDE_NET6 = "198.18.1.0/24", "2001:db8:118::/64"
LAB_RANGES = ("198.18.0.0/15", "2001:db8:18::/64", "2001:db8:118::/64")
SHORTEST_PREFIX = {4: 8, 6: 16}  # a route for more than that is a default route, or a part of one
IFA_F_NODAD = 0x02
HTTP_PORT = 8080
MAX_TRANSCEIVERS = 200

# Stateless on purpose: the lab then needs no connection tracking, and a transceiver's UDP can
# reach a client, or the other way round, only through XDP.
FIREWALL = f"""
table inet shunt {{
    chain forward {{
        type filter hook forward priority filter; policy drop;
        iifname "public" oifname "inside" tcp dport {HTTP_PORT} counter accept
        iifname "inside" oifname "public" tcp sport {HTTP_PORT} counter accept
        counter comment "dropped"
    }}
}}
"""


@dataclass(frozen=True, slots=True)
class Cable:
    """A veth pair from a place to a switch, with the place's addresses and its routes."""

    namespace: str | None  # None: the host itself
    interface: str
    bridge: str  # "public" or "inside"
    port: str  # the pair's other end, a port of the bridge
    addresses: tuple[str, str]  # IPv4 and IPv6
    routes: tuple[tuple[str, str], ...] = ()  # destination, gateway


def transceiver_address(number: int) -> str:
    """Inside IPv4 address of transceiver x*number*, from 1."""
    return f"198.18.1.{10 + number}"


def transceiver_address6(number: int) -> str:
    """Inside IPv6 address of transceiver x*number*, from 1; it reads as the IPv4 one does."""
    return f"2001:db8:118::{10 + number}"


def cables(*, transceivers: int, host: bool) -> list[Cable]:
    """The whole lab as a list; what `up` lays and the tests compare with DESIGN's table."""
    to_inside = ((INSIDE_NET, VIP_ADDRESS), (INSIDE_NET6, VIP_ADDRESS6))
    to_anywhere = (("0.0.0.0/0", INSIDE_ADDRESS), ("::/0", INSIDE_ADDRESS6))
    relay_public = (f"{VIP_ADDRESS}/24", f"{VIP_ADDRESS6}/64")
    relay_inside = (f"{INSIDE_ADDRESS}/24", f"{INSIDE_ADDRESS6}/64")
    client = ("198.18.0.10/24", "2001:db8:18::10/64")
    plan = [
        Cable(RELAY, "public", "public", "relay-public", relay_public),
        Cable(RELAY, "inside", "inside", "relay-inside", relay_inside),
        Cable(CLIENT, "eth0", "public", "client", client, to_inside),
    ]
    for number in range(1, transceivers + 1):
        addresses = (f"{transceiver_address(number)}/24", f"{transceiver_address6(number)}/64")
        plan.append(
            Cable(f"shunt-x{number}", "eth0", "inside", f"x{number}", addresses, to_anywhere)
        )
    if host:
        joined = ("198.18.0.9/24", "2001:db8:18::9/64")
        plan.append(Cable(None, HOST_INTERFACE, "public", "host", joined, to_inside))
    return plan


def namespaces(transceivers: int) -> list[str]:
    """Names of all namespaces of a lab of that size, the switch last."""
    return [CLIENT, RELAY, *(f"shunt-x{n}" for n in range(1, transceivers + 1)), SWITCH]


def present() -> list[str]:
    """Namespaces of a lab, of whatever size and however broken, that exist now."""
    fixed = {CLIENT, RELAY, SWITCH}
    return sorted(
        name
        for name in netns.listnetns(str(RUN_DIR))
        if name in fixed or (name.startswith("shunt-x") and name[7:].isdigit())
    )


def overlapping(routes: Iterable[tuple[str, str]]) -> list[str]:
    """Of the host's routes (destination, interface), those that a joined lab would cut into.

    Default routes, and the halves and quarters that VPNs use as such, are no conflict: ours
    are more specific and take nothing from them but the lab's own range.
    """
    lab = [ipaddress.ip_network(taken) for taken in LAB_RANGES]
    return [
        f"{destination} dev {interface}"
        for destination, interface in routes
        if interface != HOST_INTERFACE
        and (network := ipaddress.ip_network(destination)).prefixlen
        >= SHORTEST_PREFIX[network.version]
        and any(network.version == taken.version and network.overlaps(taken) for taken in lab)
    ]


def up(*, transceivers: int = 2, host: bool = False) -> None:
    """Build the network. Whatever is left of an earlier one goes first; on failure all goes.

    Raises ShuntError if the host has the lab's addresses in use, or the kernel refuses a step.
    """
    if host:
        _check_host()
    down()
    plan = cables(transceivers=transceivers, host=host)
    try:
        for name in namespaces(transceivers):
            create(name)
            run_in(name, partial(_settle, forward=name == RELAY, ipv6=name != SWITCH))
        with Path("/proc/self/ns/net").open() as own:
            run_in(SWITCH, partial(_lay, plan, own=own.fileno()))
        for cable in plan:
            if cable.namespace is None:
                _configure(cable)
            else:
                run_in(cable.namespace, partial(_configure, cable))
        run_in(SWITCH, _batch_for_xdp)
        run_in(RELAY, _fence)
    except (OSError, NetlinkError) as error:
        down()
        raise ShuntError(
            f"the lab's network cannot be built: {error}",
            "The kernel needs network namespaces, IPv6, veth, bridge and nftables; run `shunt lab "
            "up` again after loading what is missing (`modprobe veth bridge nf_tables`).",
        ) from error
    except BaseException:
        down()
        raise


def down() -> None:
    """Take away everything that `up` makes, in whatever state it is. Processes are not ended."""
    with IPRoute() as ip:
        for index in ip.link_lookup(ifname=HOST_INTERFACE):
            # It may go by itself meanwhile, with its switch.
            with suppress(NetlinkError):
                ip.link("del", index=index)
    for name in present():
        with suppress(FileNotFoundError):
            netns.remove(name)


def _check_host() -> None:
    with IPRoute() as ip:
        names = {link["index"]: link.get("ifname") for link in ip.get_links()}
        routes = [
            (f"{route.get('dst')}/{route['dst_len']}", str(names.get(route.get("oif"), "?")))
            for family in (AF_INET, AF_INET6)
            for route in ip.get_routes(family=family)
            if route.get("dst")
        ]
    if taken := overlapping(routes):
        raise ShuntError(
            f"the host cannot join the lab: it already routes {taken[0]}, which the lab uses",
            "Remove that route or interface, or run `shunt lab up` without `--host`.",
        )


def _settle(*, forward: bool, ipv6: bool) -> None:
    """Settings that would otherwise be copied from the host's, and so differ between hosts."""
    settings = {
        "ipv4/conf/all/rp_filter": 1,
        "ipv4/conf/default/rp_filter": 1,
        "ipv4/ip_forward": int(forward),
        "ipv6/conf/all/forwarding": int(forward),
        **_ipv6_of("all"),
        **_ipv6_of("default"),
        # Of interfaces to come: a switch has no addresses, and says nothing.
        "ipv6/conf/default/disable_ipv6": int(not ipv6),
    }
    for key, value in settings.items():
        _sysctl(key, value)
    with IPRoute() as ip:
        ip.link("set", index=1, state="up")


def _ipv6_of(interface: str) -> dict[str, int]:
    """An interface that takes its address as given, at once, and none from anybody else."""
    folder = f"ipv6/conf/{interface}"
    return {
        f"{folder}/disable_ipv6": 0,
        f"{folder}/accept_ra": 0,
        f"{folder}/autoconf": 0,
        f"{folder}/accept_dad": 0,
    }


def _sysctl(key: str, value: int) -> None:
    (Path("/proc/sys/net") / key).write_text(f"{value}\n")


def _lay(plan: list[Cable], *, own: int) -> None:
    """Bridges and veth pairs, made inside the switch so that the host (whose namespace is *own*)
    never sees them."""
    with IPRoute() as ip:
        for name in ("public", "inside"):
            ip.link("add", ifname=name, kind="bridge", br_stp_state=0, br_mcast_snooping=0)
            ip.link("set", index=_index(ip, name), state="up")
        for cable in plan:
            peer = {"ifname": cable.interface, "net_ns_fd": cable.namespace or own}
            ip.link("add", ifname=cable.port, kind="veth", peer=peer)
            bridge = _index(ip, cable.bridge)
            ip.link("set", index=_index(ip, cable.port), master=bridge, state="up")


def _configure(cable: Cable) -> None:
    if cable.namespace is None:
        for key, value in _ipv6_of(cable.interface).items():
            _sysctl(key, value)
    with IPRoute() as ip:
        index = _index(ip, cable.interface)
        ip.link("set", index=index, state="up")
        for address in cable.addresses:
            host, prefix = address.split("/")
            flags = IFA_F_NODAD if ":" in host else 0
            ip.addr("add", index=index, address=host, prefixlen=int(prefix), flags=flags)
        for destination, gateway in cable.routes:
            ip.route("add", dst=destination, gateway=gateway)


def _batch_for_xdp() -> None:
    """Give the relay's cables NAPI at the switch's end.

    XDP_REDIRECT out of a veth delivers only if its peer has NAPI (`gro on`) or XDP of its own.
    The places' own ends keep their default offloads.
    """
    for port in ("relay-public", "relay-inside"):
        ethtool = IoctlEthtool(port)
        try:
            ethtool.set_offload_flag("generic-receive-offload", 1)
        finally:
            ethtool.close()


def _fence() -> None:
    try:
        done = subprocess.run(
            ["nft", "-f", "-"], input=FIREWALL, text=True, capture_output=True, check=False
        )
    except FileNotFoundError:
        raise ShuntError("nft is not installed", "Run `apt-get install nftables`.") from None
    if done.returncode:
        first = done.stderr.strip().splitlines()[0] if done.stderr.strip() else "no message"
        raise ShuntError(
            f"nft refuses the relay's firewall: {first}",
            "The kernel needs nf_tables: try `modprobe nf_tables`.",
        )


def _index(ip: Any, name: str) -> int:
    found = ip.link_lookup(ifname=name)
    if not found:
        raise OSError(f"interface {name} is missing")
    return int(found[0])
