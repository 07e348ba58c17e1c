"""The relay by one interface and by two, with 802.1Q tags and without."""

import socket
from collections.abc import Iterator
from contextlib import closing
from functools import partial

import pytest

from tests.endtoend.capture import capture
from tests.endtoend.chain import FAMILIES, Chain, Family, Shape, add_route, between, chain
from tests.endtoend.waiting import eventually
from tests.packets import messages

SHAPES = [
    Shape(public_vlan=10),
    Shape(inside_vlan=20),
    Shape(one_armed=True),
    Shape(one_armed=True, inside_vlan=20),
    Shape(one_armed=True, public_vlan=10, inside_vlan=20),
]


FENCED = [shape for shape in SHAPES if shape != Shape(one_armed=True)]
"""Those with a side that is not the inside one."""


@pytest.fixture(scope="module")
def wired(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Chain]:
    with chain(request.param, tmp_path_factory.mktemp("chain")) as made:
        yield made


@pytest.mark.parametrize("wired", SHAPES, indirect=True, ids=str)
@between
def test_media_goes_both_ways_at_any_length(
    wired: Chain, client: Family, transceiver: Family
) -> None:
    longest = min(family.payload(1500) for family in (client, transceiver))
    with (
        wired.flow(client, transceiver) as flow,
        closing(capture(wired, "outer", "relay")) as public,
        closing(capture(wired, "inner", "relay")) as inside,
    ):
        for size in (12, 13, 172, longest - 1, longest):
            payload = bytes(messages.rtp(size - 12))
            for direction in (flow.up, flow.down):
                direction(payload)
                assert public.next(client, payload).vlan == wired.shape.public_vlan
                assert inside.next(transceiver, payload).vlan == wired.shape.inside_vlan


@pytest.mark.parametrize("wired", FENCED, indirect=True, ids=str)
@pytest.mark.parametrize("family", FAMILIES, ids=str)
def test_the_inside_address_is_reached_from_the_inside_alone(wired: Chain, family: Family) -> None:
    wired.run("outer", partial(add_route, family.inside, family.vip))
    before = wired.dropped().get("wrong_interface", 0)

    def knock() -> None:
        with socket.socket(family.domain, socket.SOCK_DGRAM) as stranger:
            stranger.sendto(bytes(messages.rtp()), (family.inside, 20000))

    wired.run("outer", knock)
    eventually(
        "the drop is counted", lambda: wired.dropped().get("wrong_interface", 0) == before + 1
    )
