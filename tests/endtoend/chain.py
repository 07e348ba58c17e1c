"""A relay among routers: client – outer – relay – inner – transceiver, five namespaces in a row.

It has an agent of its own, and the kernel's sockets at both ends. Tests say what is sent.

Each link has both families. `Shape` says how the relay is wired: by one interface or two, with
802.1Q tags or without.
"""

import asyncio
import itertools
import os
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import pytest
from pyroute2 import IPRoute, netns
from pyroute2.ethtool.ioctl import IoctlEthtool

from loader.client import AgentClient, AgentRefused, AgentUnavailable
from loader.daemon import unload
from loader.maps import Maps
from tests.endtoend import vlan
from tests.endtoend.waiting import eventually
from tests.packets import messages
from tools.netns import create, run_in
from tools.processes import alive, end, spawn, tail

__all__ = [
    "FAMILIES",
    "MIXES",
    "Chain",
    "Family",
    "Flow",
    "Shape",
    "add_route",
    "between",
    "chain",
    "path_mtu",
]

T = TypeVar("T")

IFA_F_NODAD = 0x02
UDP_PORT = 40000
VIP_PORT = 3478
PATIENCE_S = 5.0

# Not in Python's socket module; values of linux/in.h and linux/in6.h.
IP_MTU_DISCOVER, IP_MTU, IPV6_MTU_DISCOVER, IPV6_MTU = 10, 14, 23, 24
PMTUDISC_DO = 2

_numbers = itertools.count()


@dataclass(frozen=True, slots=True)
class Family:
    """IPv4 or IPv6: addresses and header length of the chain, and the names of its options."""

    version: int
    domain: socket.AddressFamily
    vip: str
    inside: str
    client: str
    transceiver: str
    header: int  # bytes of an IP header

    def option(self, ipv4: int, ipv6: int) -> tuple[int, int]:
        """The level and the number of a socket option that both families have."""
        if self.version == 4:
            return socket.IPPROTO_IP, ipv4
        return socket.IPPROTO_IPV6, ipv6

    def payload(self, mtu: int) -> int:
        """Bytes of the longest UDP payload that fits into a packet of *mtu* bytes."""
        return mtu - self.header - 8

    def __str__(self) -> str:
        return f"IPv{self.version}"


IPV4 = Family(
    4, socket.AF_INET, "198.18.0.1", "198.18.1.1", "198.18.2.10", "198.18.3.11", header=20
)
IPV6 = Family(
    *(6, socket.AF_INET6, "2001:db8:18::1", "2001:db8:118::1"),
    *("2001:db8:218::10", "2001:db8:318::11"),
    header=40,
)
FAMILIES = (IPV4, IPV6)
MIXES = [(client, transceiver) for client in FAMILIES for transceiver in FAMILIES]
"""Every family of the client with every family of the transceiver."""

between = pytest.mark.parametrize(
    ("client", "transceiver"), MIXES, ids=[f"{c} to {t}" for c, t in MIXES]
)
"""For tests that shall hold for all of them."""


@dataclass(frozen=True, slots=True)
class Shape:
    """How the relay is wired. VLAN 0 is untagged."""

    one_armed: bool = False
    public_vlan: int = 0
    inside_vlan: int = 0

    def __str__(self) -> str:
        arms = "one-armed" if self.one_armed else "two-armed"
        tags = (("public", self.public_vlan), ("inside", self.inside_vlan))
        return ", ".join([arms, *(f"VLAN {vlan} {side}" for side, vlan in tags if vlan)])


class Chain:
    """The namespaces, made by `chain`. Interfaces are named after who is at the other end."""

    def __init__(self, shape: Shape, folder: Path) -> None:
        self.shape = shape
        self.folder = folder
        self.socket = str(folder / "agent.sock")
        self._name = f"{os.getpid()}-{next(_numbers)}"
        self.pins = Path(f"/sys/fs/bpf/shunt-lab-{self._name}")
        self.instance = "0123456789abcdef-chain"
        wire = "wire" if shape.one_armed else None
        self.public = _tagged(wire or "public", shape.public_vlan)
        self.inside = _tagged(wire or "inside", shape.inside_vlan)
        self._routes = 0

    def namespace(self, place: str) -> str:
        """Of client, outer, relay, inner, transceiver or switch."""
        return f"t-lab-{self._name}-{place}"

    def run(self, place: str, work: Callable[[], T]) -> T:
        """Call *work* in a place's namespace."""
        return run_in(self.namespace(place), work)

    # The network.

    @property
    def places(self) -> list[str]:
        row = ["client", "outer", "relay", "inner", "transceiver"]
        return [*row, "switch"] if self.shape.one_armed else row

    def build(self) -> None:
        for place in self.places:
            create(self.namespace(place))
            self.run(place, _settle)
        self._cable("client", "outer", "outer", "client")
        if self.shape.one_armed:
            self.run("switch", _make_switch)
            for place, interface in (("relay", "wire"), ("outer", "relay"), ("inner", "relay")):
                self._cable(place, interface, "switch", place)
                self.run("switch", partial(_plug, place))
        else:
            self._cable("relay", "public", "outer", "relay")
            self._cable("relay", "inside", "inner", "relay")
        self._cable("inner", "transceiver", "transceiver", "inner")

        outer = self._tag("outer", "relay", self.shape.public_vlan)
        inner = self._tag("inner", "relay", self.shape.inside_vlan)
        self._tag("relay", "wire" if self.shape.one_armed else "public", self.shape.public_vlan)
        self._tag("relay", "wire" if self.shape.one_armed else "inside", self.shape.inside_vlan)

        self._address("client", "outer", 2, 10)
        self._address("outer", "client", 2, 1)
        self._address("outer", outer, 0, 254)
        self._address("relay", self.public, 0, 1)
        self._address("relay", self.inside, 1, 1)
        self._address("inner", inner, 1, 254)
        self._address("inner", "transceiver", 3, 1)
        self._address("transceiver", "inner", 3, 11)
        self._default("client", 2, 1)
        self._default("relay", 0, 254)
        self._default("transceiver", 3, 1)
        self.run("relay", partial(add_route, "198.18.3.0/24", "198.18.1.254"))
        self.run("relay", partial(add_route, "2001:db8:318::/64", "2001:db8:118::254"))

    def remove(self) -> None:
        for place in self.places:
            with suppress(FileNotFoundError):
                netns.remove(self.namespace(place))

    def _cable(self, place: str, interface: str, peer: str, peer_interface: str) -> None:
        """A veth pair; both ends up, with NAPI, without which a redirected frame is lost."""

        def lay() -> None:
            with IPRoute() as ip:
                other = {"ifname": peer_interface, "net_ns_fd": self.namespace(peer)}
                ip.link("add", ifname=interface, kind="veth", peer=other)

        self.run(place, lay)
        for where, name in ((place, interface), (peer, peer_interface)):
            self.run(where, partial(_lift, name, tags_in_frames=self._has_tags))

    @property
    def _has_tags(self) -> bool:
        return bool(self.shape.public_vlan or self.shape.inside_vlan)

    def _tag(self, place: str, interface: str, number: int) -> str:
        """The VLAN interface on *interface*, or itself if there shall be none."""
        if not number:
            return interface
        return self.run(place, partial(vlan.add, interface, number, alone=place != "relay"))

    def _address(self, place: str, interface: str, network: int, host: int) -> None:
        def add() -> None:
            with IPRoute() as ip:
                index = ip.link_lookup(ifname=interface)[0]
                ip.addr("add", index=index, address=f"198.18.{network}.{host}", prefixlen=24)
                ip.addr(
                    "add",
                    index=index,
                    address=f"2001:db8:{network or ''}18::{host}",
                    prefixlen=64,
                    flags=IFA_F_NODAD,
                )

        self.run(place, add)

    def _default(self, place: str, network: int, host: int) -> None:
        self.run(place, partial(add_route, "0.0.0.0/0", f"198.18.{network}.{host}"))
        self.run(place, partial(add_route, "::/0", f"2001:db8:{network or ''}18::{host}"))

    @contextmanager
    def mtu(self, size: int, *ends: tuple[str, str]) -> Iterator[None]:
        """Give interfaces, each a place and a name, an MTU for a while."""

        def change(interface: str, mtu: int) -> int:
            with IPRoute() as ip:
                index = ip.link_lookup(ifname=interface)[0]
                before = int(ip.get_links(index)[0].get("mtu"))
                ip.link("set", index=index, mtu=mtu)
                return before

        before = [(*end, self.run(end[0], partial(change, end[1], size))) for end in ends]
        try:
            yield
        finally:
            for place, interface, mtu in before:
                self.run(place, partial(change, interface, mtu))

    @contextmanager
    def relay_mtu(self, size: int, interface: str) -> Iterator[None]:
        """The same of one of the relay's interfaces, from when the program knows of it until it
        knows that it is over."""
        before = self._relay_mtus(interface)
        with self.mtu(size, ("relay", interface)):
            eventually("the new MTU is known", lambda: self._relay_mtus(interface) == {size})
            yield
        eventually("the old MTU is known", lambda: self._relay_mtus(interface) == before)

    def _relay_mtus(self, interface: str) -> set[int]:
        """What the program goes by: of the interface, and of next hops by way of it."""
        with Maps(self.pins) as maps:
            found = {each.mtu for each in maps.interfaces() if each.name == interface}
            if interface == self.inside:
                found |= {entry.hop.mtu for _index, entry in maps.transceivers()}
            return found

    def forget_path_mtus(self) -> None:
        """Make the kernels of both ends forget what ICMP has told them."""
        for place in ("client", "transceiver"):
            self.run(place, _forget_routes)
        self._default("client", 2, 1)
        self._default("transceiver", 3, 1)

    # The agent.

    def start_agent(self) -> None:
        arguments = [
            *("--config", "/dev/null"),
            *("--public", self.public, "--inside", self.inside),
            *("--vip", f"{IPV4.vip}:{VIP_PORT}", "--vip", f"[{IPV6.vip}]:{VIP_PORT}"),
            *("--inside-address", IPV4.inside, "--inside-address", IPV6.inside),
            *("--inside-ports", "20000-20255"),
            *("--socket", self.socket, "--pins", str(self.pins)),
        ]
        self.agent = spawn(
            "agent",
            [*vlan.agent_command(), "agent", "run", *arguments],
            namespace=self.namespace("relay"),
            log=self.folder / "agent.log",
            environment={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        eventually("the agent is ready", self._agent_ready, within=60)

    def stop_agent(self) -> None:
        end([self.agent])
        self.run("relay", partial(unload, self.pins))

    def ask(self, question: Callable[[AgentClient], Awaitable[T]]) -> T:
        """Put one question to the agent."""

        async def put() -> T:
            async with AgentClient(self.socket) as agent:
                return await question(agent)

        return asyncio.run(put())

    def _agent_ready(self) -> bool:
        assert alive(self.agent), tail(self.agent, 40)
        try:
            self.ask(lambda agent: agent.health())
        except (AgentUnavailable, AgentRefused):
            return False
        return True

    def register(self) -> None:
        """Transceivers `x4` and `x6`, each known to the agent with its next hop."""

        async def register(agent: AgentClient) -> set[str]:
            for family in FAMILIES:
                await agent.register(
                    f"x{family.version}",
                    instance=self.instance,
                    address=family.transceiver,
                    port=UDP_PORT,
                    http="http://none",
                    capacity=100,
                )
            listed = (await agent.transceivers())["transceivers"]
            return {entry["id"] for entry in listed if entry["reachable"]}

        eventually("both are reachable", lambda: self.ask(register) == {"x4", "x6"})

    def route(self, to: Family) -> str:
        """A fresh ufrag that leads to the transceiver's address of that family."""
        self._routes += 1
        ufrag = f"chain{self._routes}"
        self.ask(
            lambda agent: agent.add_route(
                ufrag, transceiver=f"x{to.version}", instance=self.instance
            )
        )
        return ufrag

    def dropped(self) -> dict[str, int]:
        """The relay's drops by reason, those that are not zero."""
        counted: dict[str, int] = self.ask(lambda agent: agent.counters())["dropped"]
        return {reason: count for reason, count in counted.items() if count}

    @contextmanager
    def flow(self, client: Family, transceiver: Family) -> Iterator["Flow"]:
        """An established flow over those families, confirmed by its client."""
        self.register()
        flow = Flow(self, client, transceiver)
        try:
            flow.establish(self.route(transceiver))
            yield flow
        finally:
            flow.close()


class Flow:
    """A client's socket and a transceiver's. Neither is connected, or an ICMP error would make the
    next call fail, whatever that is."""

    def __init__(self, chain: Chain, client: Family, transceiver: Family) -> None:
        self.families = client, transceiver
        self.vip = client.vip, VIP_PORT
        self.client = chain.run("client", partial(_socket, client, (client.client, 0)))
        local = (transceiver.transceiver, UDP_PORT)
        self.transceiver = chain.run("transceiver", partial(_socket, transceiver, local))
        self.peer: tuple[str, int] = ("", 0)  # the client as the transceiver sees it

    def close(self) -> None:
        self.client.close()
        self.transceiver.close()

    def establish(self, ufrag: str) -> None:
        """A client's check that is answered, and then the transceiver's."""
        asks, checks = messages.transaction(), messages.transaction()
        self.up(bytes(messages.request(ufrag, transaction_id=asks)))
        self.down(bytes(messages.success(asks)))
        self.down(bytes(messages.check(checks)))
        self.up(bytes(messages.success(checks)))

    def up(self, payload: bytes) -> None:
        """From the client to the transceiver; TimeoutError if it is lost."""
        self.client.sendto(payload, self.vip)
        received, source = self.transceiver.recvfrom(1 << 16)
        assert received == payload
        self.peer = source[:2]

    def down(self, payload: bytes) -> None:
        """From the transceiver to the client."""
        self.transceiver.sendto(payload, self.peer)
        received, source = self.client.recvfrom(1 << 16)
        assert (received, source[:2]) == (payload, self.vip)


def _socket(family: Family, local: tuple[str, int]) -> socket.socket:
    made = socket.socket(family.domain, socket.SOCK_DGRAM)
    made.settimeout(PATIENCE_S)
    made.setsockopt(*family.option(IP_MTU_DISCOVER, IPV6_MTU_DISCOVER), PMTUDISC_DO)
    made.bind(local)
    return made


def path_mtu(chain: Chain, place: str, family: Family, destination: str) -> int:
    """What the kernel of a place knows of the way there, in bytes of an IP packet."""

    def read() -> int:
        with socket.socket(family.domain, socket.SOCK_DGRAM) as probe:
            probe.connect((destination, 9))
            return probe.getsockopt(*family.option(IP_MTU, IPV6_MTU))

    return chain.run(place, read)


@contextmanager
def chain(shape: Shape, folder: Path) -> Iterator[Chain]:
    """The chain in that shape, its agent running, both transceivers registered."""
    made = Chain(shape, folder)
    try:
        made.build()
        made.start_agent()
        try:
            made.register()
            yield made
        finally:
            made.stop_agent()
    finally:
        made.remove()


def _tagged(interface: str, vlan: int) -> str:
    return f"{interface}.{vlan}" if vlan else interface


def _settle() -> None:
    """A router that takes no addresses but those given, and keeps no errors back."""
    settings = {
        "ipv4/ip_forward": 1,
        "ipv4/icmp_ratelimit": 0,
        "ipv6/icmp/ratelimit": 0,
        "ipv6/conf/all/forwarding": 1,
    }
    for interface in ("all", "default"):
        settings[f"ipv6/conf/{interface}/disable_ipv6"] = 0
        settings[f"ipv6/conf/{interface}/accept_dad"] = 0
        settings[f"ipv6/conf/{interface}/accept_ra"] = 0
    for key, value in settings.items():
        Path(f"/proc/sys/net/{key}").write_text(f"{value}\n")
    with IPRoute() as ip:
        ip.link("set", index=1, state="up")


def _make_switch() -> None:
    with IPRoute() as ip:
        ip.link("add", ifname="switch", kind="bridge", br_stp_state=0, br_mcast_snooping=0)
        ip.link("set", index=ip.link_lookup(ifname="switch")[0], state="up")


def _plug(port: str) -> None:
    with IPRoute() as ip:
        bridge = ip.link_lookup(ifname="switch")[0]
        ip.link("set", index=ip.link_lookup(ifname=port)[0], master=bridge)


def _lift(interface: str, *, tags_in_frames: bool) -> None:
    with IPRoute() as ip:
        ip.link("set", index=ip.link_lookup(ifname=interface)[0], state="up")
    ethtool = IoctlEthtool(interface)
    try:
        ethtool.set_offload_flag("generic-receive-offload", 1)
        if tags_in_frames:
            # A veth hands the tag over beside the frame, where an XDP program cannot see it.
            ethtool.set_offload_flag("tx-vlan-offload", 0)
    finally:
        ethtool.close()


def add_route(destination: str, gateway: str) -> None:
    with IPRoute() as ip:
        ip.route("add", dst=destination, gateway=gateway)


def _forget_routes() -> None:
    """Exceptions live with the route that they are from."""
    with IPRoute() as ip:
        for destination in ("0.0.0.0/0", "::/0"):
            ip.route("del", dst=destination)
