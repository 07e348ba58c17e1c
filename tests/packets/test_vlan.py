"""One 802.1Q tag on either side: kept, added, removed or changed as the next hop needs."""

from dataclasses import dataclass

import pytest

from loader import types
from tests.packets import messages
from tests.packets.frames import in_vlan, partial, quick_frame, tagged
from tests.packets.relay import (
    CLIENT,
    COMBINATIONS,
    MTU,
    PORTS,
    VIP,
    X1,
    Endpoint,
    Outcome,
    Relay,
    client_frame,
    transceiver_frame,
)

OUTER, INNER = 7, 4094
SIDES = {"neither": (0, 0), "client's": (OUTER, 0), "inside": (0, INNER), "both": (OUTER, INNER)}


@dataclass(frozen=True, slots=True)
class Flow:
    """An established flow between a client and a transceiver in VLANs."""

    client: Endpoint
    transceiver: Endpoint
    slot: int


def flow(relay: Relay, families: str, sides: str) -> Flow:
    """In the VLANs of *sides*, over the IP versions *families*."""
    pair = COMBINATIONS[families]
    outer, inner = SIDES[sides]
    client, transceiver = in_vlan(pair.client, outer), in_vlan(pair.transceiver, inner)
    relay.configure(inside=[(relay.interfaces.inside, inner)])
    index = relay.route(pair.ufrag).transceiver
    relay.set_transceiver(index, transceiver)
    slot = relay.proven(client, pair.ufrag, transceiver=transceiver)
    return Flow(client, transceiver, slot)


@pytest.mark.parametrize("sides", SIDES)
@pytest.mark.parametrize("families", COMBINATIONS)
def test_each_side_has_its_own_tag(relay: Relay, families: str, sides: str) -> None:
    has = flow(relay, families, sides)
    there = relay.from_client(messages.rtp(), client=has.client)
    back = relay.from_transceiver(messages.rtp(), to=has.slot, transceiver=has.transceiver)
    assert (there.tci, back.tci) == (has.transceiver.vlan or None, has.client.vlan or None)
    for outcome in (there, back):
        assert outcome.payload == bytes(messages.rtp())
        assert outcome.is_right


@pytest.mark.parametrize("sides", SIDES)
@pytest.mark.parametrize("families", COMBINATIONS)
def test_the_link_addresses_are_the_next_hops(relay: Relay, families: str, sides: str) -> None:
    has = flow(relay, families, sides)
    there = relay.from_client(messages.rtp(), client=has.client)
    back = relay.from_transceiver(messages.rtp(), to=has.slot, transceiver=has.transceiver)
    assert (there.ethernet.dst, back.ethernet.dst) == (has.transceiver.mac, has.client.mac)
    assert back.ethernet.src == VIP.mac


@pytest.mark.parametrize("sides", SIDES)
def test_padding_goes_with_the_frame(relay: Relay, sides: str) -> None:
    has = flow(relay, "4-4", sides)
    outcome = relay.receive(bytes(client_frame(b"\x80\x6f", client=has.client)) + b"\xa5" * 16)
    assert outcome.payload == b"\x80\x6f"
    assert outcome.frame.endswith(b"\x80\x6f" + b"\xa5" * 16)


@pytest.mark.parametrize("sides", SIDES)
def test_partial_checksums_are_made_whole(relay: Relay, sides: str) -> None:
    has = flow(relay, "4-4", sides)
    assert relay.receive(partial(client_frame(messages.rtp(), client=has.client))).is_right
    frame = partial(transceiver_frame(messages.rtp(), to=has.slot, transceiver=has.transceiver))
    assert relay.receive(frame, on=relay.interfaces.inside).is_right


# Priority.


@pytest.mark.parametrize("priority", [0, 5, 7])
@pytest.mark.parametrize("eligible", [0, 1])
def test_a_priority_tag_counts_as_untagged_and_goes(
    relay: Relay, priority: int, eligible: int
) -> None:
    slot = relay.proven()
    tci = priority << 13 | eligible << 12
    there = relay.receive(tagged(client_frame(messages.rtp()), tci))
    back = relay.receive(
        tagged(transceiver_frame(messages.rtp(), to=slot), tci), on=relay.interfaces.inside
    )
    assert (there.tci, back.tci) == (None, None)
    assert there.is_right
    assert back.is_right


def test_a_client_behind_a_priority_tag_is_answered_untagged(relay: Relay) -> None:
    outcome = relay.receive(tagged(client_frame(messages.request("ufragOfX1/session")), 5 << 13))
    assert outcome.tci is None
    assert relay.from_transceiver(messages.check(1), to=PORTS[0]).tci is None


def test_the_priority_of_a_tag_is_not_passed_on(relay: Relay) -> None:
    has = flow(relay, "4-4", "both")
    plain = Endpoint(CLIENT.address, CLIENT.port, CLIENT.mac)
    outcome = relay.receive(tagged(client_frame(messages.rtp(), client=plain), 7 << 13 | OUTER))
    assert outcome.tci == INNER
    frame = transceiver_frame(messages.rtp(), to=has.slot)
    back = relay.receive(tagged(frame, 3 << 13 | 1 << 12 | INNER), on=relay.interfaces.inside)
    assert back.tci == OUTER


def test_a_second_tag_is_none_of_the_relays(relay: Relay) -> None:
    relay.proven()
    assert relay.receive(tagged(tagged(client_frame(messages.rtp()), 7), 8)).passed
    assert relay.receive(tagged(tagged(client_frame(messages.rtp()), 0), 0)).passed
    assert relay.receive(tagged(client_frame(messages.rtp()), 7, protocol=0x88A8)).passed


# Links.


@pytest.mark.parametrize("vlan", [0, 1, 4093, 4095])
def test_an_inside_link_is_interface_and_vlan(relay: Relay, vlan: int) -> None:
    has = flow(relay, "4-4", "both")
    elsewhere = in_vlan(X1, vlan)
    outcome = relay.from_transceiver(messages.rtp(), to=has.slot, transceiver=elsewhere)
    assert outcome.reason == "wrong_interface"


def test_the_inside_vlan_of_another_interface_is_not_inside(relay: Relay) -> None:
    has = flow(relay, "4-4", "both")
    outcome = relay.from_transceiver(
        messages.rtp(), to=has.slot, transceiver=has.transceiver, on=relay.interfaces.public
    )
    assert outcome.reason == "wrong_interface"


@pytest.mark.parametrize("place", range(types.INTERFACES))
def test_each_of_the_inside_links_counts(relay: Relay, place: int) -> None:
    inside = relay.interfaces.inside
    links: list[tuple[int, int]] = [(inside, 100 + number) for number in range(types.INTERFACES)]
    relay.configure(inside=links)
    slot = relay.pending()
    transceiver = in_vlan(X1, 100 + place)
    outcome = relay.from_transceiver(messages.check(1), to=slot, transceiver=transceiver)
    assert outcome.forwarded


def test_an_unused_link_ends_the_list(relay: Relay) -> None:
    relay.configure(inside=[(0, 0), (relay.interfaces.inside, 0)])
    slot = relay.pending()
    assert relay.from_transceiver(messages.check(1), to=slot).reason == "wrong_interface"


def test_with_one_arm_and_two_vlans_frames_go_back_by_the_same_interface(relay: Relay) -> None:
    only = relay.interfaces.public
    relay.configure(inside=[(only, INNER)])
    relay.set_transceiver(0, in_vlan(X1, INNER), ifindex=only)
    client = in_vlan(CLIENT, OUTER)
    there = relay.from_client(messages.request("ufragOfX1/session"), client=client, on=only)
    back = relay.from_transceiver(
        messages.check(1), to=PORTS[0], transceiver=in_vlan(X1, INNER), on=only
    )
    assert (there.tci, back.tci) == (INNER, OUTER)
    assert there.verdict == back.verdict == 3


def test_from_the_clients_vlan_nobody_may_send_to_the_inside(relay: Relay) -> None:
    only = relay.interfaces.public
    relay.configure(inside=[(only, INNER)])
    slot = relay.pending(in_vlan(CLIENT, OUTER))
    for vlan in (0, OUTER):
        outcome = relay.from_transceiver(
            messages.check(1), to=slot, transceiver=in_vlan(X1, vlan), on=only
        )
        assert outcome.reason == "wrong_interface"


# The next hop.


def test_a_client_that_moves_to_another_vlan_is_answered_there(relay: Relay) -> None:
    slot = relay.proven(in_vlan(CLIENT, OUTER))
    moved = in_vlan(CLIENT, 99)
    _, asked = relay.asked(moved)
    assert relay.from_transceiver(messages.rtp(), to=slot).tci == OUTER
    relay.from_transceiver(messages.success(asked), to=slot)
    assert relay.from_transceiver(messages.rtp(), to=slot).tci == 99


def test_the_answer_that_moves_it_already_goes_there(relay: Relay) -> None:
    slot = relay.proven()
    _, asked = relay.asked(in_vlan(CLIENT, 99))
    assert relay.from_transceiver(messages.success(asked), to=slot).tci == 99


def test_a_client_may_send_from_any_vlan(relay: Relay) -> None:
    relay.proven(in_vlan(CLIENT, OUTER))
    for vlan in (0, 1, OUTER, 4095):
        outcome: Outcome = relay.from_client(messages.rtp(), client=in_vlan(CLIENT, vlan))
        assert outcome.forwarded


def test_the_mtu_is_that_of_the_clients_vlan(relay: Relay) -> None:
    relay.set_mtu(public=1500, vlans=[OUTER, 8])
    mtus = {}
    for vlan in (0, OUTER, 8, 9):
        client = Endpoint(f"203.0.113.{vlan + 1}", 5000, CLIENT.mac, vlan)
        mtus[vlan] = int(relay.slot(relay.pending(client))["to_client"]["hop"]["mtu"])
    assert {vlan: mtus[vlan] for vlan in (0, OUTER, 8)} == {0: 1500, OUTER: 1496, 8: 1492}
    assert mtus[9] in (1500, 1496, 1492)


def test_a_tag_does_not_count_for_the_mtu(relay: Relay) -> None:
    has = flow(relay, "4-4", "both")
    relay.set_client_mtu(has.slot, 1500)
    relay.set_transceiver(0, has.transceiver, mtu=1500)
    payload = b"\x80" * (1500 - 28)
    assert relay.from_client(payload, client=has.client).forwarded
    back = relay.from_transceiver(payload, to=has.slot, transceiver=has.transceiver)
    assert back.forwarded


def test_every_frame_of_a_vlan_of_any_length_stays_whole(relay: Relay) -> None:
    assert MTU > 1500
    has = flow(relay, "4-6", "client's")
    for size in range(1, 1453, 7):
        payload = b"\x80" + bytes(size - 1)
        outcome = relay.receive(quick_frame(has.client, VIP, payload))
        assert (outcome.payload, outcome.is_right) == (payload, True)
