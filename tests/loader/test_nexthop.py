"""Next hops, asked of a real kernel over real veths and VLAN interfaces."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from loader.network import Network
from loader.nexthop import Entry, Neighbour, NextHop, Reach, Way, hop
from tests.loader.conftest import TRANSCEIVER, TRANSCEIVER6, Host


@dataclass(frozen=True, slots=True)
class Asked:
    """What the kernel has said of an address."""

    way: Way
    entry: Entry
    hop: NextHop | None


def ask(host: Host, address: str, *, until: Callable[[Asked | None], bool]) -> Asked | None:
    """Ask the kernel, which is to keep the neighbour, until the answer is such a one, or until it
    has been no such one for some time."""

    def session() -> Asked | None:
        with Network() as network:
            deadline = time.monotonic() + 3
            while not until(found := once_more(network)) and time.monotonic() < deadline:
                time.sleep(0.01)
            return found

    def once_more(network: Network) -> Asked | None:
        asyncio.run(network.look())
        way = network.way(address)
        if way is None:
            return None
        entry = network.entry(way.neighbour)
        if not entry.fixed and entry.reach is not Reach.KNOWN:
            network.keep(way.neighbour)
        found = hop(network.links, way, entry.mac) if entry.mac else None
        return Asked(way, entry, found)

    return host.run(session)


def resolve(host: Host, address: str) -> NextHop | None:
    """The next hop, if the kernel finds it."""
    found = ask(host, address, until=lambda found: bool(found and found.hop))
    return found.hop if found else None


def once(host: Host, address: str) -> Asked | None:
    """The first answer."""
    return ask(host, address, until=lambda _found: True)


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

    found = once(host, "10.9.8.7")

    assert found is not None
    assert found.way == Way(Neighbour(ifindex(host, "inside"), TRANSCEIVER))
    assert (found.entry.reach, found.hop) == (Reach.ASKED, None)


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

        found = once(vlans, f"198.18.{network}.11")
        assert found is not None
        assert (found.entry.reach, found.hop) == (Reach.KNOWN, None)


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

    found = once(host, TRANSCEIVER)

    assert found is not None
    assert found.entry.mac == bytes.fromhex("020000000099")


def test_an_entry_that_somebody_has_fixed_is_told_as_such(host: Host) -> None:
    host.ip(f"neigh replace {TRANSCEIVER} lladdr 02:00:00:00:00:99 dev inside nud permanent")

    found = once(host, TRANSCEIVER)

    assert found is not None
    assert found.entry == Entry(Reach.KNOWN, bytes.fromhex("020000000099"), fixed=True)
    assert not found.entry.touchable


def test_where_the_kernel_has_failed_it_is_told_and_looks_again(host: Host) -> None:
    host.ip(f"neigh replace {TRANSCEIVER} dev inside nud failed")

    found = once(host, TRANSCEIVER)

    assert found is not None
    assert found.entry.reach is Reach.FAILED
    assert resolve(host, TRANSCEIVER) is not None


@pytest.mark.parametrize("address", [TRANSCEIVER, TRANSCEIVER6])
def test_the_kernel_keeps_a_neighbour_until_it_is_released(host: Host, address: str) -> None:
    def story() -> None:
        with Network() as network:
            neighbour = Neighbour(ifindex(host, "inside"), address)
            network.keep(neighbour)
            assert network.entry(neighbour).ours
            assert network.kept() == [neighbour]
            assert "managed" in host.ip(f"neigh show {address}")
            network.release([neighbour])
            assert network.kept() == []
            assert not network.entry(neighbour).kept

    host.run(story)


def test_what_somebody_else_has_the_kernel_keep_is_not_ours(host: Host) -> None:
    host.ip(f"neigh replace {TRANSCEIVER} dev inside managed")

    found = once(host, TRANSCEIVER)

    assert found is not None
    assert (found.entry.kept, found.entry.ours, found.entry.touchable) == (True, False, False)


def test_a_silent_address_on_the_link_has_no_hop(host: Host) -> None:
    found = once(host, "198.18.1.200")

    assert found is not None
    assert (found.entry.reach, found.hop) == (Reach.ASKED, None)


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


@pytest.mark.parametrize(
    ("prepare", "there"),
    [
        ([], True),
        (["addr add 198.18.9.1/32 dev lo", "addr add 2001:db8:918::1/128 dev lo"], True),
        (
            ["route add local 198.18.9.0/24 dev lo", "route add local 2001:db8:918::/48 dev lo"],
            True,
        ),
        (["link set inside down", "addr flush dev inside"], False),
    ],
    ids=["on its interface", "on lo", "a local route", "flushed"],
)
@pytest.mark.parametrize("family", [4, 6])
def test_an_address_is_the_kernels_on_whatever_interface(
    host: Host, prepare: list[str], there: bool, family: int
) -> None:
    for command in prepare:
        host.ip(command)
    own = {4: ("198.18.1.1", "198.18.9.1"), 6: ("2001:db8:118::1", "2001:db8:918::1")}
    address = own[family][len(prepare) > 0 and there]

    def has() -> bool:
        with Network() as network:
            return network.has_address(address)

    assert host.run(has) == there


def test_a_link_without_a_carrier_is_no_way_out(host: Host) -> None:
    assert resolve(host, TRANSCEIVER) is not None
    host.ip(f"neigh replace {TRANSCEIVER} lladdr 02:00:00:00:00:99 dev inside nud permanent")
    host.ip("link set behind down", outside=True)

    # The kernel tells of a carrier once a second.
    found = ask(host, TRANSCEIVER, until=lambda found: bool(found and not found.hop))

    assert found is not None
    assert (found.entry.reach, found.hop) == (Reach.KNOWN, None)
