"""The maps follow a real kernel, and by its events alone: the next look is a fortnight away."""

import asyncio
import errno
import logging
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from pyroute2.ethtool.ioctl import IoctlEthtool

from loader import rtnetlink, types
from loader.carriers import Attachment, attach
from loader.daemon import unload
from loader.events import EventLog
from loader.follow import Follower
from loader.interfaces import State
from loader.maps import Maps
from loader.network import Network
from loader.nexthop import Neighbour
from loader.table import Lease
from loader.types import Mode
from tests.loader.conftest import (
    RELAY_INSIDE,
    RELAY_INSIDE6,
    TRANSCEIVER,
    TRANSCEIVER6,
    VIP,
    VIP6,
    Host,
    binding_request,
    settings,
)
from tests.loader.test_datapath import attach_a_strangers_program
from tools import netns

NEVER = 1e6  # seconds
ADDRESSES = {VIP.address: "public", VIP6.address: "public"}
ADDRESSES |= {RELAY_INSIDE: "inside", RELAY_INSIDE6: "inside"}
GATEWAYS = ["198.18.1.21", "198.18.1.22"]
GATEWAYS6 = ["2001:db8:118::21", "2001:db8:118::22"]


@dataclass(slots=True)
class Scene:
    """A follower at its work, and what it works with."""

    host: Host
    maps: Maps
    network: Network
    events: EventLog
    follower: Follower
    leases: list[Lease] = field(default_factory=list)
    asked: dict[str, int] = field(default_factory=lambda: {"way": 0, "entry": 0})

    def transceiver(self, address: str = TRANSCEIVER) -> int:
        """Register one; its index."""
        index = self.adopted(address)
        self.follower.resolve(self.leases[index])
        return index

    def adopted(self, address: str, hop: types.NextHop | None = None) -> int:
        """One that an earlier agent has left in the map, perhaps with its next hop; its index."""
        index = len(self.leases)
        self.leases.append(Lease(f"x{index}", index, 1, address, 40000, "", 4, expires=1e9))
        entry = types.Transceiver(address=types.packed_address(address), port=40000)
        if hop:
            entry.hop, entry.resolved = hop, 1
        self.maps.set_transceiver(index, entry)
        return index

    def mac(self, index: int) -> str | None:
        """Where packets to a transceiver are sent, or None."""
        entry = self.maps.transceiver(index)
        return bytes(entry.hop.mac).hex(":") if entry.resolved else None

    def told(self, kind: str) -> list[Any]:
        """The facts of the events of a kind."""
        return [event.facts for event in self.events.since(0)[0] if event.kind == kind]

    def state(self, interface: str) -> str:
        """How an interface is."""
        return self.follower.interface_states[interface].value

    def inside_links(self) -> list[int]:
        """Ifindexes by which transceivers' packets may come in."""
        return [link.ifindex for link in self.maps.settings().inside_links if link.ifindex]

    async def until(self, holds: Callable[[], bool], what: str = "") -> None:
        """Wait for it."""
        try:
            async with asyncio.timeout(8):
                while not holds():  # noqa: ASYNC110 - the follower does not tell
                    await asyncio.sleep(0.005)
        except TimeoutError:
            pytest.fail(f"still not so: {what}")

    async def until_mac(self, index: int, mac: str | None) -> None:
        """Wait until packets to a transceiver go there."""
        await self.until(lambda: self.mac(index) == mac, f"{self.mac(index)} is {mac}")

    async def idle(self) -> None:
        """Wait until all that has been told is done, by telling of one thing more."""
        index = self.transceiver("198.18.1.250")
        self.host.ip("neigh replace 198.18.1.250 lladdr 02:00:00:00:02:50 dev inside")
        await self.until_mac(index, "02:00:00:00:02:50")


Story = Callable[[Scene], Awaitable[None]]
Follow = Callable[..., None]


@pytest.fixture
def follow(host: Host, maps: Maps, pins: Path) -> Follow:
    """Runs a story with a follower, on interfaces that carry the program if *attached*, over what
    an earlier one has *left*."""

    def run(
        story: Story,
        *,
        attached: bool = False,
        addresses: Mapping[str, str] = ADDRESSES,
        look_seconds: float = NEVER,
        watched: bool = True,
        reattach: bool = False,
        left: Callable[[Scene], None] = lambda _scene: None,
    ) -> None:
        async def session() -> None:
            with Network() as network:
                await network.look()
                events = EventLog(clock=lambda: 0.0)
                scene = Scene(
                    *(host, maps, network, events),
                    Follower(
                        *(maps, network, events),
                        leases=lambda: scene.leases,
                        addresses=addresses,
                        reattach=lambda name: attach(pins, [name])[0],
                        mending=reattach,
                        look_seconds=look_seconds,
                    ),
                )
                count_questions(scene)
                scene.follower.begin(
                    carriers or [bare(network, name) for name in interfaces], inside=["inside"]
                )
                left(scene)
                async with at_work(scene, watched=watched):
                    await story(scene)

        interfaces = ["public", "inside"]
        carriers = host.run(lambda: attach(pins, interfaces)) if attached else []
        maps.configure(settings())
        host.run(lambda: asyncio.run(session()))

    return run


def bare(network: Network, name: str) -> Attachment:
    link = network.links.named(name)
    assert link is not None
    return Attachment(name, link.ifindex, Mode.NATIVE, mtu=link.mtu)


def count_questions(scene: Scene) -> None:
    way, entry = scene.network.way, scene.network.entry

    def counted_way(address: str) -> Any:
        scene.asked["way"] += 1
        return way(address)

    def counted_entry(neighbour: Neighbour) -> Any:
        scene.asked["entry"] += 1
        return entry(neighbour)

    scene.network.way = counted_way  # type: ignore[method-assign]
    scene.network.entry = counted_entry  # type: ignore[method-assign]


@asynccontextmanager
async def at_work(scene: Scene, *, watched: bool) -> AsyncIterator[None]:
    async with asyncio.TaskGroup() as tasks:
        work = [tasks.create_task(scene.follower.follow())]
        if watched:
            work.append(tasks.create_task(scene.follower.watch()))
            await scene.until(lambda: scene.follower.looks == 1, "the first look")
        yield
        for task in work:
            task.cancel()


def mac(host: Host, interface: str, *, outside: bool = False) -> str:
    words = host.ip(f"link show dev {interface}", outside=outside).split()
    return words[words.index("link/ether") + 1]


def sysctl(host: Host, setting: str, *, outside: bool = False) -> None:
    name, value = setting.split("=")
    path = Path("/proc/sys/net") / name
    netns.run_in(host.outside if outside else host.relay, lambda: path.write_text(value))


def route(address: str, gateway: str) -> str:
    return f"route replace {address} via {gateway} dev inside"


# Neighbours.


@pytest.mark.parametrize("address", [TRANSCEIVER, TRANSCEIVER6])
def test_a_transceiver_that_announces_another_mac_is_followed(
    host: Host, follow: Follow, address: str
) -> None:
    """By a gratuitous ARP, or an unsolicited neighbour advertisement."""
    sysctl(host, "ipv4/conf/behind/arp_notify=1", outside=True)
    sysctl(host, "ipv6/conf/behind/ndisc_notify=1", outside=True)

    async def story(scene: Scene) -> None:
        index = scene.transceiver(address)
        await scene.until_mac(index, mac(host, "behind", outside=True))
        host.ip("link set behind address 02:00:00:00:00:99", outside=True)
        await scene.until_mac(index, "02:00:00:00:00:99")
        assert scene.follower.looks == 1

    follow(story)


def test_a_silent_change_of_mac_is_found_by_the_kernel_probing(host: Host, follow: Follow) -> None:
    """As the kernel keeps the entry fresh although no packet of its own uses it."""
    for setting in ("base_reachable_time_ms=50", "delay_first_probe_time=1", "retrans_time_ms=20"):
        sysctl(host, f"ipv4/neigh/inside/{setting}")
    sysctl(host, "ipv4/neigh/inside/interval_probe_time_ms=100")
    sysctl(host, "ipv4/conf/behind/arp_notify=0", outside=True)

    async def story(scene: Scene) -> None:
        index = scene.transceiver()
        await scene.until_mac(index, mac(host, "behind", outside=True))
        host.ip("link set behind address 02:00:00:00:00:99", outside=True)
        await scene.until_mac(index, "02:00:00:00:00:99")
        assert scene.follower.looks == 1

    follow(story)


@pytest.mark.parametrize(
    ("family", "address", "whole"),
    [(4, TRANSCEIVER, f"{TRANSCEIVER}/24"), (6, TRANSCEIVER6, f"{TRANSCEIVER6}/64 nodad")],
)
def test_where_probing_fails_everybody_is_asked_at_once(
    host: Host, follow: Follow, family: int, address: str, whole: str
) -> None:
    """And not when the kernel next comes to it, which may take 5 s."""

    async def story(scene: Scene) -> None:
        index = scene.transceiver(address)
        there = mac(host, "behind", outside=True)
        await scene.until_mac(index, there)
        for setting in ("retrans_time_ms=50", "mcast_solicit=1000"):
            sysctl(host, f"ipv{family}/neigh/inside/{setting}")
        host.ip(f"addr del {whole.split()[0]} dev behind", outside=True)
        host.ip(f"neigh replace {address} lladdr 02:00:00:00:00:98 dev inside nud probe")
        await scene.until(lambda: bool(scene.follower.unreachable), "nobody answers")
        assert "INCOMPLETE" in host.ip(f"neigh show {address}")

        host.ip(f"addr add {whole} dev behind", outside=True)
        await scene.until_mac(index, there)
        assert len(scene.told("transceiver_unreachable")) == 1
        assert scene.follower.looks == 1

    follow(story)


def test_where_nobody_answers_nothing_is_sent_and_people_are_told(
    host: Host, follow: Follow
) -> None:
    sysctl(host, "ipv4/neigh/inside/retrans_time_ms=50")

    async def story(scene: Scene) -> None:
        index = scene.transceiver()
        there = mac(host, "behind", outside=True)
        await scene.until_mac(index, there)
        host.ip(f"addr del {TRANSCEIVER}/24 dev behind", outside=True)
        host.ip(f"neigh replace {TRANSCEIVER} dev inside nud failed")
        await scene.until_mac(index, None)
        why = f"nobody answers for {TRANSCEIVER} on inside"
        assert scene.follower.unreachable == {"x0": why}
        assert scene.told("transceiver_unreachable") == [{"transceivers": ["x0"], "why": why}]

        host.ip(f"addr add {TRANSCEIVER}/24 dev behind", outside=True)
        scene.follower.resolve(scene.leases[0])  # as it renews its lease
        await scene.until_mac(index, there)
        assert scene.follower.unreachable == {}
        assert scene.told("transceiver_reachable") == [{"transceivers": ["x0"]}]
        assert scene.follower.looks == 1

    follow(story)


def test_while_the_kernel_asks_the_last_next_hop_stands(host: Host, follow: Follow) -> None:
    async def story(scene: Scene) -> None:
        index = scene.transceiver()
        there = mac(host, "behind", outside=True)
        await scene.until_mac(index, there)
        host.ip(f"addr del {TRANSCEIVER}/24 dev behind", outside=True)
        host.ip(f"neigh del {TRANSCEIVER} dev inside")
        await scene.idle()
        assert "INCOMPLETE" in host.ip(f"neigh show {TRANSCEIVER}")
        assert scene.mac(index) == there
        assert scene.follower.unreachable == {}

    follow(story)


def test_an_entry_that_somebody_has_fixed_is_left_as_it_is(host: Host, follow: Follow) -> None:
    host.ip(f"neigh replace {TRANSCEIVER} lladdr 02:00:00:00:00:99 dev inside nud permanent")

    async def story(scene: Scene) -> None:
        index = scene.transceiver()
        assert scene.mac(index) == "02:00:00:00:00:99"
        await scene.idle()
        assert "PERMANENT" in host.ip(f"neigh show {TRANSCEIVER}")
        host.ip(f"neigh del {TRANSCEIVER} dev inside")
        await scene.until_mac(index, mac(host, "behind", outside=True))
        assert "managed" in host.ip(f"neigh show {TRANSCEIVER}")

    follow(story)


def test_the_kernel_keeps_those_that_are_followed_and_no_others(host: Host, follow: Follow) -> None:
    host.ip("neigh replace 198.18.1.99 dev inside managed protocol 83")  # an earlier agent's
    host.ip("neigh replace 198.18.1.98 dev inside managed")  # somebody else's

    async def story(scene: Scene) -> None:
        scene.transceiver()
        await scene.until(lambda: len(scene.network.kept()) == 1, "one is kept")
        scene.follower.forget(scene.leases[0])
        assert scene.network.kept() == []
        assert "managed" not in host.ip("neigh show 198.18.1.99")
        assert "managed" in host.ip("neigh show 198.18.1.98")

    follow(story)


def test_unloading_leaves_the_kernel_nothing_to_keep(host: Host, own_pins: Path) -> None:
    host.ip(f"neigh replace {TRANSCEIVER} dev inside managed protocol 83")

    host.run(lambda: unload(own_pins))

    assert "managed" not in host.ip(f"neigh show {TRANSCEIVER}")


# Links.


@pytest.mark.parametrize("end", ["inside", "behind"])
def test_an_interface_that_goes_down_and_comes_up(host: Host, follow: Follow, end: str) -> None:
    outside = end == "behind"
    state = State.NO_CARRIER if outside else State.DOWN
    why = "inside has no carrier" if outside else "inside is down"

    async def story(scene: Scene) -> None:
        index = scene.transceiver()
        there = mac(host, "behind", outside=True)
        await scene.until_mac(index, there)
        host.ip(f"link set {end} down", outside=outside)
        await scene.until_mac(index, None)
        assert scene.follower.interface_states == {"public": State.WORKING, "inside": state}
        assert scene.follower.interfaces[1].mode is Mode.NATIVE, "the program is still there"
        assert scene.told("transceiver_unreachable") == [{"transceivers": ["x0"], "why": why}]
        assert list(scene.follower.unreachable) == ["x0"]
        told = scene.follower.not_ready()
        assert told is not None
        assert told.startswith(f"{why}: ")
        assert outside or "`ip link set dev inside up`" in told

        host.ip(f"link set {end} up", outside=outside)
        await scene.until_mac(index, there)
        await scene.until(lambda: scene.follower.not_ready() is None, "ready")
        states = [(e["interface"], e["state"]) for e in scene.told("interface_changed")]
        assert states == [("inside", state.value), ("inside", "working")]
        assert scene.follower.looks == 1

    follow(story, attached=True, addresses={})


def make_inside(host: Host) -> None:
    """Another inside interface than there was, with another index and MAC."""
    host.ip(f"link add inside type veth peer name behind netns {host.outside}")
    for outside, name, number in ((False, "inside", 1), (True, "behind", 11)):
        host.ip(f"addr add 198.18.1.{number}/24 dev {name}", outside=outside)
        host.ip(f"link set {name} up", outside=outside)


def test_an_interface_made_anew_is_followed_with_all_that_hangs_on_its_index(
    host: Host, follow: Follow
) -> None:
    async def story(scene: Scene) -> None:
        index = scene.transceiver()
        await scene.until_mac(index, mac(host, "behind", outside=True))
        (before,) = scene.inside_links()
        host.ip("link del inside")
        await scene.until(lambda: scene.inside_links() == [], "no inside link")
        assert scene.mac(index) is None
        assert scene.state("inside") == "gone"

        make_inside(host)
        await scene.until_mac(index, mac(host, "behind", outside=True))
        (after,) = scene.inside_links()
        assert after != before
        entry = scene.maps.transceiver(index)
        assert entry.hop.ifindex == after
        assert bytes(entry.hop.source_mac).hex(":") == mac(host, "inside")
        assert [i.ifindex for i in scene.maps.interfaces() if i.inside] == [after]
        assert scene.state("inside") == "lost_program"
        assert scene.follower.looks == 1

    follow(story, attached=True, addresses={})


# Routes.


@pytest.mark.parametrize(
    ("address", "prefix", "gateways"),
    [
        ("10.9.8.7", "10.9.0.0/16", GATEWAYS),
        ("10.9.8.7", "default", GATEWAYS),
        ("2001:db8:9::7", "2001:db8:9::/48", GATEWAYS6),
    ],
)
def test_a_route_that_moves_to_another_gateway_is_followed(
    host: Host, follow: Follow, address: str, prefix: str, gateways: list[str]
) -> None:
    for number, gateway in enumerate(gateways):
        host.ip(f"neigh replace {gateway} lladdr 02:00:00:00:01:0{number} dev inside nud permanent")
    host.ip(route(prefix, gateways[0]))

    async def story(scene: Scene) -> None:
        index = scene.transceiver(address)
        assert scene.mac(index) == "02:00:00:00:01:00"
        host.ip(route(prefix, gateways[1]))
        await scene.until_mac(index, "02:00:00:00:01:01")
        assert scene.follower.looks == 1

    follow(story)


@pytest.mark.parametrize(
    "command",
    [
        "route del 10.9.0.0/16",
        "route add unreachable 10.9.8.0/24",
        "rule add to 10.9.0.0/16 blackhole",
        "addr del 198.18.1.2/24 dev inside",
    ],
    ids=["gone", "another that forbids", "a rule", "its source address gone"],
)
def test_a_way_that_ends_is_no_way_to_go_on(host: Host, follow: Follow, command: str) -> None:
    host.ip(f"neigh replace {GATEWAYS[0]} lladdr 02:00:00:00:01:00 dev inside nud permanent")
    host.ip("addr add 198.18.1.2/24 dev inside")
    host.ip(f"{route('10.9.0.0/16', GATEWAYS[0])} src 198.18.1.2")

    async def story(scene: Scene) -> None:
        index = scene.transceiver("10.9.8.7")
        assert scene.mac(index) == "02:00:00:00:01:00"
        host.ip(command)
        await scene.until_mac(index, None)
        assert scene.follower.unreachable == {"x0": "the kernel has no route to it"}
        assert scene.follower.looks == 1

    follow(story, addresses={})


def test_nothing_goes_by_the_old_gateway_while_the_new_one_is_asked(
    host: Host, follow: Follow
) -> None:
    host.ip(f"neigh replace {GATEWAYS[0]} lladdr 02:00:00:00:01:00 dev inside nud permanent")
    host.ip(route("10.9.0.0/16", GATEWAYS[0]))

    async def story(scene: Scene) -> None:
        index = scene.transceiver("10.9.8.7")
        assert scene.mac(index) == "02:00:00:00:01:00"
        host.ip(route("10.9.0.0/16", "198.18.1.77"))  # where nobody is
        await scene.until_mac(index, None)
        assert scene.told("transceiver_unreachable") == [], "it is still being asked"

    follow(story)


def test_a_way_round_a_link_without_a_carrier_is_taken_and_left_again(
    host: Host, follow: Follow
) -> None:
    """Of neither does the kernel tell by an event of the route's."""
    for interface, network, metric in (("inside", 1, 10), ("public", 0, 20)):
        sysctl(host, f"ipv4/conf/{interface}/ignore_routes_with_linkdown=1")
        gateway = f"198.18.{network}.21"
        host.ip(f"neigh replace {gateway} lladdr 02:00:00:00:01:{metric} dev {interface}")
        host.ip(f"route add 10.9.0.0/16 via {gateway} dev {interface} metric {metric}")

    async def story(scene: Scene) -> None:
        index = scene.transceiver("10.9.8.7")
        assert scene.mac(index) == "02:00:00:00:01:10"
        host.ip("link set behind down", outside=True)
        await scene.until_mac(index, "02:00:00:00:01:20")
        host.ip("link set behind up", outside=True)
        await scene.until_mac(index, "02:00:00:00:01:10")
        assert scene.follower.looks == 1

    follow(story, addresses={})


# Addresses.


@pytest.mark.parametrize(
    ("address", "length", "interface", "whole"),
    [(VIP.address, 24, "public", 32), (RELAY_INSIDE6, 64, "inside", 128)],
)
def test_an_address_that_the_kernel_loses_is_told_until_it_is_back_anywhere(
    host: Host, follow: Follow, address: str, length: int, interface: str, whole: int
) -> None:
    async def story(scene: Scene) -> None:
        assert scene.follower.addresses == dict.fromkeys(ADDRESSES, True)
        host.ip(f"addr del {address}/{length} dev {interface}")
        await scene.until(lambda: not scene.follower.addresses[address], "it is missed")
        assert scene.follower.not_ready() == (
            f"the kernel has lost {address}: `ip address add {address}/{whole} dev {interface}`"
        )
        host.ip(f"addr add {address}/{whole} dev lo")
        await scene.until(lambda: scene.follower.not_ready() is None, "ready")
        assert scene.told("address_changed") == [
            {"address": address, "present": False},
            {"address": address, "present": True},
        ]
        assert scene.follower.looks == 1

    follow(story, attached=True)


def test_an_address_that_was_never_there_is_warned_of_and_no_more(
    follow: Follow, caplog: pytest.LogCaptureFixture
) -> None:
    """A router may send its packets here without asking."""

    async def story(scene: Scene) -> None:
        assert scene.follower.addresses == {"198.18.7.7": False}
        assert scene.follower.not_ready() is None

    with caplog.at_level(logging.WARNING):
        follow(story, attached=True, addresses={"198.18.7.7": "public"})

    assert "does not have 198.18.7.7" in caplog.text
    assert "`ip address add 198.18.7.7/32 dev public`" in caplog.text


# The program.


def listener(address: str = TRANSCEIVER) -> socket.socket:
    # XDP_REDIRECT into a veth delivers only to a peer with NAPI.
    ethtool = IoctlEthtool("behind")
    ethtool.set_offload_flag("generic-receive-offload", 1)
    ethtool.close()
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.bind((address, 40000))
    made.settimeout(5)
    return made


def knock() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.sendto(binding_request("abcd"), (VIP.address, VIP.port))


def hears(heard: socket.socket) -> bool:
    return heard.recv(2048) == binding_request("abcd")


def test_a_program_that_was_taken_off_is_told_with_the_cure(host: Host, follow: Follow) -> None:
    async def story(scene: Scene) -> None:
        host.ip("link set dev public xdp off")
        await scene.until(lambda: scene.follower.not_ready() is not None, "it is told")
        why = scene.follower.not_ready()
        assert why is not None
        assert why.startswith("public no longer carries the XDP program: `systemctl restart")
        assert [i.mode for i in scene.maps.interfaces()] == [Mode.DETACHED, Mode.NATIVE]
        (told,) = scene.told("interface_changed")
        assert (told["interface"], told["state"]) == ("public", "lost_program")
        assert host.xdp("public") == "none"

        scene.follower.mend(True)  # as after a reload of the configuration
        await scene.until(lambda: scene.follower.not_ready() is None, "mended")
        assert host.xdp("public") != "none"
        assert scene.follower.looks == 1

    follow(story, attached=True)


def test_a_program_that_was_taken_off_is_put_back_and_packets_flow_again(
    host: Host, follow: Follow
) -> None:
    async def story(scene: Scene) -> None:
        index = scene.transceiver()
        scene.maps.free_slots([20001, 20002, 20003])
        scene.maps.add_route("abcd", id=1, transceiver=index)
        await scene.until_mac(index, mac(host, "behind", outside=True))
        with netns.run_in(host.outside, listener) as heard:
            netns.run_in(host.outside, knock)
            assert hears(heard)
            before = host.xdp("public")
            for lost in (1, 2):
                host.ip("link set dev public xdp off")
                await scene.until(lambda lost=lost: scene.follower.reattached == lost, "mended")  # type: ignore[misc]
                assert host.xdp("public") == before
                assert scene.follower.not_ready() is None
            netns.run_in(host.outside, knock)
            assert hears(heard)
        states = [told["state"] for told in scene.told("interface_changed")]
        assert states == ["lost_program", "working"] * 2
        assert scene.follower.looks == 1

    follow(story, attached=True, reattach=True)


def test_an_interface_made_anew_gets_the_program_back(host: Host, follow: Follow) -> None:
    async def story(scene: Scene) -> None:
        host.ip("link del inside")
        make_inside(host)
        await scene.until(lambda: scene.follower.reattached == 1, "mended")
        assert host.xdp("inside") == host.xdp("public")
        assert scene.state("inside") == "working"

    follow(story, attached=True, reattach=True, addresses={})


def test_another_program_is_told_by_name_and_not_fought(
    host: Host, follow: Follow, caplog: pytest.LogCaptureFixture
) -> None:
    async def story(scene: Scene) -> None:
        ours = host.xdp("public")
        id = attach_a_strangers_program(host, "public")
        await scene.until(lambda: scene.state("public") == "other_program", "it is told")
        why = scene.follower.not_ready()
        assert why is not None
        assert why.startswith(f"public carries another XDP program: xdp_pass (id {id}): take it")
        assert "`ip link set dev public xdpdrv off`" in why
        assert [i.mode for i in scene.follower.interfaces] == [Mode.DETACHED, Mode.NATIVE]
        await scene.idle()
        assert host.xdp("public") == f"xdp {id}"

        host.ip("link set dev public xdpdrv off")
        await scene.until(lambda: scene.follower.reattached == 1, "mended")
        assert host.xdp("public") == ours
        assert "cannot be put back" not in caplog.text, "it was not tried before"

    follow(story, attached=True, reattach=True)


# Load.


MANY = 300


def test_one_gateways_mac_is_one_question_for_all_that_are_behind_it(
    host: Host, follow: Follow
) -> None:
    host.ip(f"neigh replace {GATEWAYS[0]} lladdr 02:00:00:00:01:00 dev inside nud permanent")
    host.ip(route("10.9.0.0/16", GATEWAYS[0]))

    async def story(scene: Scene) -> None:
        indexes = [scene.transceiver(f"10.9.{n // 250}.{1 + n % 250}") for n in range(MANY)]
        scene.asked.update(way=0, entry=0)
        host.ip(f"neigh replace {GATEWAYS[0]} lladdr 02:00:00:00:01:01 dev inside nud permanent")
        for index in indexes:
            await scene.until_mac(index, "02:00:00:00:01:01")
        assert scene.asked == {"way": 0, "entry": 1}

        host.ip(f"{route('10.9.0.9/32', GATEWAYS[0])} mtu 1300")
        await scene.until(lambda: scene.maps.transceiver(indexes[8]).hop.mtu == 1300, "its MTU")
        assert scene.asked["way"] == 1

        host.ip("link set inside address 02:00:00:00:0a:0a")
        source = bytes.fromhex("020000000a0a")
        await scene.until(
            lambda: all(bytes(scene.maps.transceiver(n).hop.source_mac) == source for n in indexes),
            "all follow",
        )
        assert scene.asked["way"] == 1
        assert scene.follower.looks == 1

    follow(story)


def storm(folder: Path, count: int) -> Path:
    """Changes of neighbours that nobody needs."""
    path = folder / "storm"
    path.write_text(
        "".join(
            f"neigh replace 198.18.1.{100 + n % 100} lladdr 02:00:00:00:{n % 256:02x}:00 "
            "dev inside nud permanent\n"
            for n in range(count)
        )
    )
    return path


def test_a_storm_about_others_costs_no_question(host: Host, follow: Follow, tmp_path: Path) -> None:
    async def story(scene: Scene) -> None:
        index = scene.transceiver()
        await scene.until_mac(index, mac(host, "behind", outside=True))
        scene.asked.update(way=0, entry=0)
        host.ip(f"-b {storm(tmp_path, 5000)}")
        host.ip(f"neigh replace {TRANSCEIVER} lladdr 02:00:00:00:00:42 dev inside nud permanent")
        await scene.until_mac(index, "02:00:00:00:00:42")
        assert scene.asked == {"way": 0, "entry": 1}
        assert (scene.follower.overflows, scene.follower.looks) == (0, 1)

    follow(story)


def test_what_did_not_fit_into_the_sockets_buffer_is_looked_at(
    host: Host, follow: Follow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rtnetlink, "_EVENTS_BUFFER", 4096)

    async def story(scene: Scene) -> None:
        index = scene.transceiver()
        host.ip(f"-b {storm(tmp_path, 200)}")
        host.ip(f"neigh replace {TRANSCEIVER} lladdr 02:00:00:00:00:42 dev inside nud permanent")
        await scene.until_mac(index, "02:00:00:00:00:42")
        assert scene.follower.overflows >= 1

    follow(story)


def test_what_no_event_tells_of_is_seen_at_the_next_look(host: Host, follow: Follow) -> None:
    """Played by one who hears none."""

    async def story(scene: Scene) -> None:
        index = scene.transceiver()
        host.ip(f"neigh replace {TRANSCEIVER} lladdr 02:00:00:00:00:42 dev inside nud permanent")
        await scene.until_mac(index, "02:00:00:00:00:42")
        host.ip("link set inside mtu 1400")
        await scene.until(lambda: scene.maps.transceiver(index).hop.mtu == 1400, "its MTU")

    follow(story, watched=False, look_seconds=0.05)


# A new agent.


def next_hop(scene: Scene, interface: str, mac: str) -> types.NextHop:
    link = scene.network.links.named(interface)
    assert link is not None
    hop = types.NextHop(ifindex=link.ifindex, mtu=link.mtu)
    hop.mac[:] = bytes.fromhex(mac.replace(":", ""))
    hop.source_mac[:] = link.mac
    return hop


def test_what_an_earlier_agent_has_left_stands_until_the_kernel_says_otherwise(
    host: Host, follow: Follow
) -> None:
    """The first is one that the kernel knows nothing of yet, and never will."""

    def left(scene: Scene) -> None:
        scene.adopted("198.18.1.66", next_hop(scene, "inside", "02:00:00:00:00:66"))
        scene.adopted(TRANSCEIVER, next_hop(scene, "inside", "02:00:00:00:00:99"))

    async def story(scene: Scene) -> None:
        await scene.until_mac(1, mac(host, "behind", outside=True))
        assert scene.mac(0) == "02:00:00:00:00:66"
        assert scene.told("transceiver_unreachable") == []

    follow(story, left=left)


def test_what_an_earlier_agent_has_left_goes_where_the_kernels_way_is_another(
    host: Host, follow: Follow
) -> None:
    def left(scene: Scene) -> None:
        scene.adopted("198.18.1.66", next_hop(scene, "public", "02:00:00:00:00:66"))

    async def story(scene: Scene) -> None:
        await scene.until_mac(0, None)
        assert scene.told("transceiver_unreachable") == [], "it is still being asked"

    follow(story, left=left)


def test_a_kernel_that_does_not_answer_is_asked_again_and_nothing_changes_meanwhile(
    host: Host, follow: Follow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Played: it happens to those without memory."""

    async def story(scene: Scene) -> None:
        asked = []

        def refuse(kind: int, body: bytes) -> None:
            asked.append(kind)
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

        index = scene.transceiver()
        there = mac(host, "behind", outside=True)
        await scene.until_mac(index, there)
        with monkeypatch.context() as played:
            played.setattr(scene.network._netlink, "get", refuse)
            host.ip(route(f"{TRANSCEIVER}/32", "198.18.1.77"))
            host.ip("link set inside mtu 1400")
            scene.follower.resolve(scene.leases[index])
            await scene.until(lambda: len(asked) > 1, "it is asked")
            assert scene.mac(index) == there
            assert scene.follower.not_ready() is None
        await scene.until_mac(index, None)

    follow(story, attached=True)


def test_a_full_neighbour_table_is_told_with_the_cure(
    host: Host, follow: Follow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Played: the table is the whole machine's."""

    async def story(scene: Scene) -> None:
        def refuse(kind: int, flags: int, body: bytes) -> None:
            raise OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS))

        monkeypatch.setattr(scene.network._netlink, "change", refuse)
        index = scene.transceiver()
        assert scene.mac(index) is None
        assert "gc_thresh3" in scene.follower.unreachable["x0"]

        monkeypatch.undo()
        scene.follower.resolve(scene.leases[index])
        await scene.until_mac(index, mac(host, "behind", outside=True))

    follow(story)
