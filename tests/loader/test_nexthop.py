"""Next hops, asked of a real kernel over real veths and VLAN interfaces."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import pytest
from pyroute2 import AsyncIPRoute

from loader.links import Links
from loader.nexthop import Neighbour, NextHop, Way, way
from tests.loader.conftest import TRANSCEIVER, TRANSCEIVER6, Host

T = TypeVar("T")


def ask(host: Host, question: Callable[[AsyncIPRoute, Links], Awaitable[T]]) -> T:
    async def session() -> T:
        async with AsyncIPRoute() as netlink:
            links = Links()
            links.replace([message async for message in await netlink.get_links()])
            return await question(netlink, links)

    return host.run(lambda: asyncio.run(session()))


def resolve(host: Host, address: str, *, within: float = 3.0) -> NextHop | None:
    """Ask until there is an answer, as the agent does."""

    async def patiently(netlink: AsyncIPRoute, links: Links) -> NextHop | None:
        try:
            async with asyncio.timeout(within):
                while True:
                    found = await way(netlink, links, address)
                    if found and found.hop:
                        return found.hop
                    await asyncio.sleep(0.01)
        except TimeoutError:
            return None

    return ask(host, patiently)


def once(host: Host, address: str) -> NextHop | None:
    found = asked(host, address)
    return found.hop if found else None


def asked(host: Host, address: str) -> Way | None:
    return ask(host, lambda netlink, links: way(netlink, links, address))


def mac(host: Host, interface: str, *, outside: bool = False) -> bytes:
    words = host.ip(f"link show dev {interface}", outside=outside).split()
    return bytes.fromhex(words[words.index("link/ether") + 1].replace(":", ""))


def ifindex(host: Host, interface: str) -> int:
    return int(host.ip(f"link show dev {interface}").split(":")[0])


@pytest.mark.parametrize("address", [TRANSCEIVER, TRANSCEIVER6])
def test_a_neighbour_on_the_link_is_resolved_without_a_packet_of_ours(
    host: Host, address: str
) -> None:
    hop = resolve(host, address)

    assert hop == NextHop(
        ifindex=ifindex(host, "inside"),
        mac=mac(host, "behind", outside=True),
        source_mac=mac(host, "inside"),
        mtu=1500,
    )


@pytest.mark.parametrize(
    ("route", "address"),
    [
        (f"10.9.0.0/16 via {TRANSCEIVER}", "10.9.8.7"),
        (f"10.9.0.0/16 via inet6 {TRANSCEIVER6}", "10.9.8.7"),
        (f"2001:db8:9::/48 via {TRANSCEIVER6}", "2001:db8:9::7"),
    ],
    ids=["IPv4", "IPv4 by way of IPv6", "IPv6"],
)
def test_a_transceiver_behind_a_gateway_is_reached_by_the_gateways_mac(
    host: Host, route: str, address: str
) -> None:
    host.ip(f"route add {route} dev inside")

    hop = resolve(host, address)

    assert hop is not None
    assert hop.mac == mac(host, "behind", outside=True)
    assert hop.ifindex == ifindex(host, "inside")


def test_the_neighbour_to_watch_is_told_before_its_mac_is_known(host: Host) -> None:
    host.ip("link set behind down", outside=True)
    host.ip(f"route add 10.9.0.0/16 via {TRANSCEIVER}")

    found = asked(host, "10.9.8.7")

    assert found == Way(Neighbour(ifindex(host, "inside"), TRANSCEIVER), None)


@pytest.mark.parametrize(
    ("link", "metric", "mtu"),
    [(1400, "", 1400), (1500, "mtu 1300", 1300), (1400, "mtu 1450", 1400), (65535, "", 65535)],
    ids=["the link's", "the route's", "never more than the link's", "the largest"],
)
def test_the_mtu_is_the_smaller_of_the_links_and_the_routes(
    host: Host, link: int, metric: str, mtu: int
) -> None:
    host.ip(f"link set inside mtu {link}")
    host.ip(f"route add 10.9.0.0/16 via {TRANSCEIVER} {metric}")

    hop = resolve(host, "10.9.8.7")

    assert hop is not None
    assert hop.mtu == mtu


@pytest.mark.parametrize("address", ["198.18.3.11", "2001:db8:318::11"])
def test_a_transceiver_on_a_vlan_is_reached_through_the_parent_with_the_tag(
    vlans: Host, address: str
) -> None:
    vlans.ip("link set inside.100 address 02:00:00:00:01:00 mtu 1400")

    hop = resolve(vlans, address)

    assert hop == NextHop(
        ifindex=ifindex(vlans, "inside"),
        mac=mac(vlans, "behind.100", outside=True),
        source_mac=bytes.fromhex("020000000100"),
        vlan=100,
        mtu=1400,
    )


def test_a_vlan_that_the_relay_has_no_tag_for_is_no_way(vlans: Host) -> None:
    vlans.ip("link add link inside name outer type vlan protocol 802.1ad id 7")
    vlans.ip("link add link inside.100 name nested type vlan id 8")
    for name, network in (("outer", 4), ("nested", 5)):
        vlans.ip(f"link set {name} up")
        vlans.ip(f"addr add 198.18.{network}.1/24 dev {name}")
        vlans.ip(f"neigh add 198.18.{network}.11 lladdr 02:00:00:00:00:99 dev {name}")

        assert asked(vlans, f"198.18.{network}.11") is None


def test_the_most_specific_route_decides_the_interface(host: Host) -> None:
    host.ip(f"route add {TRANSCEIVER}/32 via 198.18.0.10")

    hop = resolve(host, TRANSCEIVER)

    assert hop is not None
    assert hop.ifindex == ifindex(host, "public")
    assert hop.mac == mac(host, "client", outside=True)


def test_a_changed_mac_is_seen_once_the_kernel_knows(host: Host) -> None:
    assert resolve(host, TRANSCEIVER) is not None
    host.ip("link set behind address 02:00:00:00:00:99", outside=True)
    host.ip(f"neigh replace {TRANSCEIVER} lladdr 02:00:00:00:00:99 dev inside nud reachable")

    hop = once(host, TRANSCEIVER)

    assert hop is not None
    assert hop.mac == bytes.fromhex("020000000099")


def test_asking_does_not_undo_an_entry_that_somebody_has_fixed(host: Host) -> None:
    host.ip(f"neigh replace {TRANSCEIVER} lladdr 02:00:00:00:00:99 dev inside nud permanent")

    for _ in range(2):
        hop = once(host, TRANSCEIVER)
        assert hop is not None
        assert hop.mac == bytes.fromhex("020000000099")
    assert "PERMANENT" in host.ip(f"neigh show {TRANSCEIVER}")


def test_asking_makes_the_kernel_look_again_where_it_has_failed(host: Host) -> None:
    host.ip("link set behind down", outside=True)
    assert once(host, TRANSCEIVER) is None
    host.ip("link set behind up", outside=True)
    host.ip(f"neigh replace {TRANSCEIVER} dev inside nud failed")

    assert resolve(host, TRANSCEIVER) is not None


def test_a_silent_address_on_the_link_has_none(host: Host) -> None:
    assert resolve(host, "198.18.1.200", within=0.3) is None


@pytest.mark.parametrize(
    "prepare",
    [
        [],
        ["route add unreachable 10.9.0.0/16"],
        ["route add prohibit 10.9.0.0/16"],
        ["route add blackhole 10.9.0.0/16"],
        ["route add 10.9.0.0/16 via 198.18.1.11", "link set inside down"],
        ["route add 10.9.0.0/16 via 198.18.1.11", "link del inside"],
    ],
    ids=["no route", "unreachable", "prohibit", "blackhole", "interface down", "interface gone"],
)
def test_an_address_that_cannot_be_reached_has_none(host: Host, prepare: list[str]) -> None:
    for command in prepare:
        host.ip(command)

    assert once(host, "10.9.8.7") is None


@pytest.mark.parametrize(
    "address",
    ["198.18.1.1", "198.18.1.255", "127.0.0.1", "0.0.0.0", "2001:db8:118::1", "::1", "ff02::1"],
)
def test_an_address_that_no_transceiver_can_have_has_none(host: Host, address: str) -> None:
    for _ in range(2):  # the first question may leave an entry for the second to find
        assert once(host, address) is None
