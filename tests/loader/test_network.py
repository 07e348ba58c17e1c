"""Word of what changes in the network, from a real kernel."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from loader.network import Network, News, Span, number_of
from loader.nexthop import Neighbour
from tests.loader.conftest import TRANSCEIVER, TRANSCEIVER6, Host

Story = Callable[[Network], Awaitable[None]]


def tell(host: Host, story: Story) -> None:
    """Run *story* with a network that has been looked at and is watched."""

    async def session() -> None:
        with Network() as network:
            await network.look()
            async with asyncio.TaskGroup() as tasks:
                watch = tasks.create_task(network.watch())
                assert (await network.news(within=5)).missed, "of what was before, nothing is known"
                await story(network)
                watch.cancel()

    host.run(lambda: asyncio.run(session()))


async def news(network: Network, such: Callable[[News], bool]) -> None:
    """Take news until there is *such*."""
    async with asyncio.timeout(5):
        while not such(await network.news(within=5)):
            pass


def ifindex(network: Network, name: str) -> int:
    link = network.links.named(name)
    assert link is not None
    return link.ifindex


def test_a_link_that_changes_is_news_and_known(host: Host) -> None:
    async def story(network: Network) -> None:
        inside = ifindex(network, "inside")
        host.ip("link set inside mtu 1400")
        await news(network, lambda news: inside in news.links)
        link = network.links.get(inside)
        assert link is not None
        assert link.mtu == 1400

    tell(host, story)


def test_links_that_come_and_go_are_followed(host: Host) -> None:
    async def story(network: Network) -> None:
        host.ip("link add guest type veth peer name visitor")
        await news(network, lambda _news: network.links.named("guest") is not None)
        host.ip("link del guest")
        await news(network, lambda _news: network.links.named("guest") is None)

    tell(host, story)


def test_what_nobody_needs_of_a_link_is_no_news_of_links(host: Host) -> None:
    async def story(network: Network) -> None:
        heard: list[News] = []

        def of_neighbours(news: News) -> bool:
            heard.append(news)
            return bool(news.neighbours)

        host.ip("link set inside alias anything")
        host.ip(f"neigh replace {TRANSCEIVER} lladdr 02:00:00:00:00:01 dev inside")
        await news(network, of_neighbours)
        assert not any(each.links for each in heard)

    tell(host, story)


@pytest.mark.parametrize("address", [TRANSCEIVER, TRANSCEIVER6])
def test_a_neighbour_that_changes_is_told_by_name(host: Host, address: str) -> None:
    async def story(network: Network) -> None:
        neighbour = Neighbour(ifindex(network, "inside"), address)
        host.ip(f"neigh replace {address} lladdr 02:00:00:00:00:01 dev inside nud permanent")
        await news(network, lambda news: neighbour in news.neighbours)
        host.ip(f"neigh del {address} dev inside")
        await news(network, lambda news: neighbour in news.neighbours)

    tell(host, story)


def test_a_neighbour_that_nobody_heeds_is_no_news(host: Host) -> None:
    async def story(network: Network) -> None:
        heard: set[Neighbour] = set()
        wanted = Neighbour(ifindex(network, "inside"), TRANSCEIVER)
        network.heeds = lambda neighbour, _entry: neighbour == wanted

        def until_wanted(news: News) -> bool:
            heard.update(news.neighbours)
            return wanted in heard

        for address in ("198.18.1.98", TRANSCEIVER6, TRANSCEIVER):
            host.ip(f"neigh replace {address} lladdr 02:00:00:00:00:01 dev inside nud permanent")
        await news(network, until_wanted)
        assert heard == {wanted}

    tell(host, story)


@pytest.mark.parametrize(
    ("command", "first", "last"),
    [
        ("route add 10.9.0.0/16 dev inside", "10.9.0.0", "10.9.255.255"),
        ("route add default dev inside", "0.0.0.0", "255.255.255.255"),
        (
            "route add 2001:db8:9::/48 dev inside",
            "2001:db8:9::",
            "2001:db8:9:ffff:ffff:ffff:ffff:ffff",
        ),
        ("addr add 198.18.9.1/24 dev inside", "198.18.9.1", "198.18.9.1"),
        ("rule add to 10.9.0.0/16 lookup 7", "::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
    ],
)
def test_what_a_route_a_rule_or_an_address_reaches_is_news(
    host: Host, command: str, first: str, last: str
) -> None:
    async def story(network: Network) -> None:
        host.ip(command)
        span = Span(number_of(first), number_of(last))
        await news(network, lambda news: span in news.spans)

    tell(host, story)


def test_a_port_that_leaves_a_bridge_is_still_there(host: Host) -> None:
    """The kernel's word for it is "link removed"."""

    async def story(network: Network) -> None:
        host.ip("link add switch type bridge")
        host.ip("link add port type veth peer name far")
        host.ip("link set port master switch")
        await news(network, lambda _news: network.links.named("port") is not None)
        host.ip("link set port nomaster")
        host.ip("link set port mtu 1300")
        await news(
            network,
            lambda _news: (link := network.links.named("port")) is not None and link.mtu == 1300,
        )

    tell(host, story)


def test_without_news_it_waits_no_longer_than_asked(host: Host) -> None:
    async def story(network: Network) -> None:
        async with asyncio.timeout(5):
            while await network.news(within=0.1) != News():
                pass

    tell(host, story)
