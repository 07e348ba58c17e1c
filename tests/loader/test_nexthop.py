"""Next hops, asked of a real kernel over real veths."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import pytest
from pyroute2 import AsyncIPRoute

from loader.nexthop import NextHop, next_hop
from tests.loader.conftest import TRANSCEIVER, Host

T = TypeVar("T")


def ask(host: Host, question: Callable[[AsyncIPRoute], Awaitable[T]]) -> T:
    async def session() -> T:
        async with AsyncIPRoute() as netlink:
            return await question(netlink)

    return host.run(lambda: asyncio.run(session()))


def resolve(host: Host, address: str, *, within: float = 3.0) -> NextHop | None:
    """Ask until there is an answer, as the agent does."""

    async def patiently(netlink: AsyncIPRoute) -> NextHop | None:
        try:
            async with asyncio.timeout(within):
                while (hop := await next_hop(netlink, address)) is None:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
                return hop
        except TimeoutError:
            return None

    return ask(host, patiently)


def once(host: Host, address: str) -> NextHop | None:
    return ask(host, lambda netlink: next_hop(netlink, address))


def mac(host: Host, interface: str, *, outside: bool = False) -> bytes:
    words = host.ip(f"link show dev {interface}", outside=outside).split()
    return bytes.fromhex(words[words.index("link/ether") + 1].replace(":", ""))


def ifindex(host: Host, interface: str) -> int:
    return int(host.ip(f"link show dev {interface}").split(":")[0])


def test_a_neighbour_on_the_link_is_resolved_without_a_packet_of_ours(host: Host) -> None:
    hop = resolve(host, TRANSCEIVER)

    assert hop == NextHop(
        ifindex=ifindex(host, "inside"),
        mac=mac(host, "behind", outside=True),
        source_mac=mac(host, "inside"),
    )


def test_a_transceiver_behind_a_gateway_is_reached_by_the_gateways_mac(host: Host) -> None:
    host.ip(f"route add 10.9.0.0/16 via {TRANSCEIVER}")

    hop = resolve(host, "10.9.8.7")

    assert hop is not None
    assert hop.mac == mac(host, "behind", outside=True)
    assert hop.ifindex == ifindex(host, "inside")


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


@pytest.mark.parametrize("address", ["198.18.1.1", "198.18.1.255", "127.0.0.1", "0.0.0.0"])
def test_an_address_that_no_transceiver_can_have_has_none(host: Host, address: str) -> None:
    for _ in range(2):  # the first question may leave an entry for the second to find
        assert once(host, address) is None
