"""The relay by one interface and by two, with 802.1Q tags and without."""

import socket
from collections.abc import Iterator
from functools import partial

import pytest

from tests.endtoend.chain import FAMILIES, Chain, Family, Shape, add_route, between, chain
from tests.endtoend.waiting import eventually
from tests.packets import messages

SHAPES = [
    Shape(public_vlan=10),
    Shape(inside_vlan=20),
    Shape(public_vlan=10, inside_vlan=20),
    Shape(one_armed=True),
    Shape(one_armed=True, inside_vlan=20),
    Shape(one_armed=True, public_vlan=10, inside_vlan=20),
]


@pytest.fixture(scope="module", params=SHAPES, ids=str)
def wired(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Chain]:
    with chain(request.param, tmp_path_factory.mktemp("chain")) as made:
        yield made


@between
def test_media_goes_both_ways_at_any_length(
    wired: Chain, client: Family, transceiver: Family
) -> None:
    """The routers' interfaces tell: without its tag, or with one too many, nothing arrives."""
    longest = min(family.payload(1500) for family in (client, transceiver))
    with wired.flow(client, transceiver) as flow:
        for size in (12, 13, 172, longest - 1, longest):
            flow.up(bytes(messages.rtp(size - 12)))
            flow.down(bytes(messages.rtp(size - 12)))


@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_the_inside_address_is_reached_from_the_inside_alone(wired: Chain, family: Family) -> None:
    if wired.public == wired.inside:
        pytest.skip("there is no way in but the inside one")
    wired.run("outer", partial(add_route, family.inside, family.vip))
    before = wired.dropped().get("wrong_interface", 0)

    def knock() -> None:
        with socket.socket(family.domain, socket.SOCK_DGRAM) as stranger:
            stranger.sendto(bytes(messages.rtp()), (family.inside, 20000))

    wired.run("outer", knock)
    eventually(
        "the drop is counted", lambda: wired.dropped().get("wrong_interface", 0) == before + 1
    )
