"""The life of a slot as packets drive it: pending, established, replaced, taken over, closed."""

from collections.abc import Callable

import numpy as np
import pytest
from scapy.packet import Packet

from loader import types
from loader.types import State
from tests.packets import messages
from tests.packets.buckets import SLOT_MASK
from tests.packets.relay import (
    CLIENT,
    INSIDE_ADDRESS,
    INSIDE_MAC,
    OTHER_VIP,
    PORTS,
    STRANGER,
    UFRAG,
    VIP,
    X1,
    X2,
    Endpoint,
    Relay,
    Verdict,
    client_frame,
    correct_checksums,
)

OF_X2 = "ufragOfX2"
NEXT = "ufragOfX1Restarted"
IN_USE, IDLE = 4.5, 5.2  # seconds without a packet of the client


def client(number: int) -> Endpoint:
    """One of many clients."""
    return Endpoint(f"203.0.113.{number}", 10000 + number, CLIENT.mac)


# A first request.


def test_a_first_request_goes_to_the_routes_transceiver(relay: Relay) -> None:
    outcome = relay.from_client(messages.request(UFRAG))
    assert outcome.addresses == (INSIDE_ADDRESS, PORTS[0], X1.address, X1.port)


def test_a_first_request_leaves_a_pending_slot(relay: Relay) -> None:
    relay.from_client(messages.request(UFRAG))
    assert relay.in_state(State.PENDING) == [PORTS[0]]


def test_a_repeated_request_goes_through_the_same_slot(relay: Relay) -> None:
    ports = {relay.from_client(messages.request(UFRAG)).udp.sport for _ in range(20)}
    assert ports == {PORTS[0]}


def test_a_repeated_request_takes_no_second_port(relay: Relay) -> None:
    for _ in range(20):
        relay.from_client(messages.request(UFRAG))
    assert relay.maps.take_free() == PORTS[1]


def test_another_port_of_the_client_is_another_client(relay: Relay) -> None:
    other = Endpoint(CLIENT.address, CLIENT.port + 1, CLIENT.mac)
    assert relay.pending() != relay.pending(other)


def test_another_vip_makes_it_another_flow(relay: Relay) -> None:
    first = relay.pending()
    outcome = relay.from_client(messages.request(UFRAG), vip=OTHER_VIP)
    assert outcome.udp.sport != first


def test_a_flow_answers_from_the_vip_that_the_client_used(relay: Relay) -> None:
    port = relay.from_client(messages.request(UFRAG), vip=OTHER_VIP).udp.sport
    outcome = relay.from_transceiver(messages.check(1), to=port)
    assert outcome.addresses[:2] == (OTHER_VIP.address, OTHER_VIP.port)


def test_ports_are_taken_in_the_order_they_became_free(relay: Relay) -> None:
    assert [relay.pending(client(n)) for n in range(1, 5)] == list(PORTS[:4])


def test_a_ufrag_without_a_route_is_dropped(relay: Relay) -> None:
    assert relay.from_client(messages.request("nobodys")).reason == "no_route"


def test_a_ufrag_whose_route_is_gone_is_dropped_also_with_a_flow(relay: Relay) -> None:
    relay.proven()
    relay.maps.remove_route(UFRAG)
    assert relay.from_client(messages.request(UFRAG)).reason == "no_route"


def test_a_route_to_a_transceiver_that_is_gone_is_dropped(relay: Relay) -> None:
    relay.set_transceiver(0, Endpoint(X1.address, 0, X1.mac))
    assert relay.from_client(messages.request(UFRAG)).reason == "transceiver_gone"


def test_it_takes_no_port_either(relay: Relay) -> None:
    relay.set_transceiver(0, Endpoint(X1.address, 0, X1.mac))
    relay.from_client(messages.request(UFRAG))
    assert relay.maps.take_free() == PORTS[0]


def test_a_flow_whose_transceiver_is_gone_is_dropped(relay: Relay) -> None:
    relay.proven()
    relay.set_transceiver(0, Endpoint(X1.address, 0, X1.mac))
    assert relay.from_client(messages.rtp()).reason == "transceiver_gone"


def test_an_unknown_neighbour_is_a_reason_to_drop(relay: Relay) -> None:
    relay.set_transceiver(0, X1, resolved=False)
    assert relay.from_client(messages.request(UFRAG)).reason == "neighbour"


def test_a_neighbour_that_became_unknown_is_too(relay: Relay) -> None:
    relay.proven()
    relay.set_transceiver(0, X1, resolved=False)
    assert relay.from_client(messages.rtp()).reason == "neighbour"


def test_a_neighbours_new_address_counts_at_once(relay: Relay) -> None:
    relay.proven()
    relay.set_transceiver(0, Endpoint(X1.address, X1.port, "02:00:00:00:99:99"))
    assert relay.from_client(messages.rtp()).ethernet.dst == "02:00:00:00:99:99"


def test_a_route_that_another_cpu_is_changing_drops_the_request(relay: Relay) -> None:
    relay.add_route(NEXT, busy=True)
    assert relay.from_client(messages.request(NEXT)).reason == "route_busy"


@pytest.mark.parametrize("ufrag", [UFRAG, NEXT])
def test_a_request_leaves_the_route_to_the_next_cpu(relay: Relay, ufrag: str) -> None:
    relay.add_route(NEXT)
    relay.from_client(messages.request(ufrag))
    assert relay.route(ufrag).busy == 0


def test_a_refused_request_leaves_the_route_to_the_next_cpu(relay: Relay) -> None:
    for number in range(1, 9):
        relay.proven(client(number))
    relay.from_client(messages.request(UFRAG))
    assert relay.route().busy == 0


@pytest.mark.parametrize(
    "address",
    ["0.0.0.0", "0.1.2.3", "127.0.0.1", "127.255.255.255", "224.0.0.1", "239.1.2.3", "240.0.0.1",
     "255.255.255.255", VIP.address, INSIDE_ADDRESS],
)  # fmt: skip
def test_a_source_that_no_client_can_have_is_dropped(relay: Relay, address: str) -> None:
    spoofed = Endpoint(address, 5000, CLIENT.mac)
    assert relay.from_client(messages.request(UFRAG), client=spoofed).reason == "source"


def test_port_zero_is_no_clients(relay: Relay) -> None:
    spoofed = Endpoint(CLIENT.address, 0, CLIENT.mac)
    assert relay.from_client(messages.request(UFRAG), client=spoofed).reason == "source"


@pytest.mark.parametrize("vip", [VIP, OTHER_VIP], ids=["first", "second"])
def test_an_address_of_the_relays_own_is_no_clients(relay: Relay, vip: Endpoint) -> None:
    """Packets between two VIPs would go round: what is sent to such a client comes back in."""
    for source in (VIP, OTHER_VIP):
        outcome = relay.from_client(messages.request(UFRAG), vip=vip, client=source)
        assert outcome.reason == "source"


@pytest.mark.parametrize("address", ["1.0.0.1", "126.255.255.255", "128.0.0.1", "223.255.255.255"])
def test_addresses_next_to_those_are_clients(relay: Relay, address: str) -> None:
    assert relay.from_client(
        messages.request(UFRAG), client=Endpoint(address, 65535, CLIENT.mac)
    ).forwarded


def test_a_reused_slot_remembers_nothing_of_its_former_life(relay: Relay) -> None:
    """Ports are used again: whatever the slot held before must not show."""
    port = relay.pending()
    fresh = {half: record.copy() for half, record in relay.slot(port).items()}
    relay.reset()
    for half in ("to_transceiver", "to_client", "book"):
        relay.maps.slots[half][PORTS.start : PORTS.stop].view(np.uint8)[:] = 0xA5
    for port in PORTS:
        relay.set_state(port, State.FREE)
    reused = relay.slot(relay.pending())
    not_told = {"unused", "unused_too", "seen", "since"}
    told = [
        (half, name)
        for half, record in reused.items()
        for name in record.dtype.names
        if name not in not_told
    ]
    assert len(told) > 10
    for half, name in told:
        assert np.array_equal(reused[half][name], fresh[half][name]), (half, name)


# From pending to established.


def test_the_transceivers_success_establishes_the_flow(relay: Relay) -> None:
    port = relay.pending()
    asked = messages.transaction()
    relay.from_client(messages.request(UFRAG, transaction_id=asked))
    relay.from_transceiver(messages.success(asked), to=port)
    assert relay.state(port) is State.ESTABLISHED


def test_the_success_itself_reaches_the_client(relay: Relay) -> None:
    asked = messages.transaction()
    port = relay.from_client(messages.request(UFRAG, transaction_id=asked)).udp.sport
    outcome = relay.from_transceiver(messages.success(asked), to=port)
    assert outcome.addresses == (VIP.address, VIP.port, CLIENT.address, CLIENT.port)


def test_the_success_of_another_transaction_does_not(relay: Relay) -> None:
    port = relay.pending()
    relay.from_transceiver(messages.success(messages.transaction()), to=port)
    assert relay.state(port) is State.PENDING


@pytest.mark.parametrize("bit", [0, 31, 32, 63, 64, 95])
def test_a_transaction_is_compared_to_its_last_bit(relay: Relay, bit: int) -> None:
    asked = messages.transaction()
    port = relay.from_client(messages.request(UFRAG, transaction_id=asked)).udp.sport
    relay.from_transceiver(messages.success(asked ^ 1 << bit), to=port)
    assert relay.state(port) is State.PENDING


def test_the_success_of_transaction_zero_does_not(relay: Relay) -> None:
    """Places for transactions that were never used hold zeros."""
    port = relay.pending()
    relay.from_transceiver(messages.success(0), to=port)
    assert relay.state(port) is State.PENDING


def test_an_error_response_does_not(relay: Relay) -> None:
    asked = messages.transaction()
    port = relay.from_client(messages.request(UFRAG, transaction_id=asked)).udp.sport
    relay.from_transceiver(messages.error(asked), to=port)
    assert relay.state(port) is State.PENDING


@pytest.mark.parametrize("damage", ["cookie", "length"])
def test_a_malformed_success_does_not(relay: Relay, damage: str) -> None:
    asked = messages.transaction()
    port = relay.from_client(messages.request(UFRAG, transaction_id=asked)).udp.sport
    damaged = messages.stun(messages.SUCCESS, transaction_id=asked, **{damage: 4})
    relay.from_transceiver(damaged, to=port)
    assert relay.state(port) is State.PENDING


def test_the_answer_to_any_of_the_last_four_requests_does(relay: Relay) -> None:
    asked = [messages.transaction() for _ in range(types.REQUESTS)]
    for transaction in asked:
        port = relay.from_client(messages.request(UFRAG, transaction_id=transaction)).udp.sport
    relay.from_transceiver(messages.success(asked[0]), to=port)
    assert relay.state(port) is State.ESTABLISHED


def test_retransmissions_do_not_push_out_earlier_requests(relay: Relay) -> None:
    first, second = messages.transaction(), messages.transaction()
    for asked in (first, second, second, second, second, second):
        port = relay.from_client(messages.request(UFRAG, transaction_id=asked)).udp.sport
    relay.from_transceiver(messages.success(first), to=port)
    assert relay.state(port) is State.ESTABLISHED


def test_another_clients_request_is_not_answered_by_it(relay: Relay) -> None:
    """The slot is the transaction's too, not only the client's."""
    asked = messages.transaction()
    relay.from_client(messages.request(UFRAG, transaction_id=asked))
    other = relay.pending(STRANGER)
    relay.from_transceiver(messages.success(asked), to=other)
    assert relay.state(other) is State.PENDING


def test_the_clients_success_to_a_check_establishes_the_flow_too(relay: Relay) -> None:
    port = relay.pending()
    relay.from_transceiver(messages.check(77), to=port)
    relay.from_client(messages.success(77))
    assert relay.state(port) is State.ESTABLISHED


def test_the_clients_error_to_a_check_does_not(relay: Relay) -> None:
    port = relay.pending()
    relay.from_transceiver(messages.check(77), to=port)
    relay.from_client(messages.error(77))
    assert relay.state(port) is State.PENDING


def test_the_clients_error_reaches_the_transceiver(relay: Relay) -> None:
    port = relay.pending()
    relay.from_transceiver(messages.check(77), to=port)
    outcome = relay.from_client(messages.error(77))
    assert outcome.addresses == (INSIDE_ADDRESS, port, X1.address, X1.port)


@pytest.mark.parametrize("answer", [messages.success, messages.error])
def test_somebody_elses_answer_to_a_check_is_dropped(
    relay: Relay, answer: Callable[[int], Packet]
) -> None:
    port = relay.pending()
    relay.pending(STRANGER)
    relay.from_transceiver(messages.check(77), to=port)
    outcome = relay.from_client(answer(77), client=STRANGER)
    assert outcome.reason == "unexpected_response"


@pytest.mark.parametrize("answer", [messages.success, messages.error])
def test_the_same_clients_answer_by_another_vip_is_dropped(
    relay: Relay, answer: Callable[[int], Packet]
) -> None:
    port = relay.pending()
    relay.from_transceiver(messages.check(77), to=port)
    outcome = relay.from_client(answer(77), vip=OTHER_VIP)
    assert outcome.reason == "unexpected_response"


def test_either_of_the_last_two_checks_may_be_answered(relay: Relay) -> None:
    port = relay.pending()
    for asked in (1, 2):
        relay.from_transceiver(messages.check(asked), to=port)
    assert [relay.from_client(messages.success(asked)).forwarded for asked in (1, 2)] == [True] * 2


@pytest.mark.parametrize("begin", ["pending", "proven"])
def test_a_check_before_the_last_two_is_forgotten(relay: Relay, begin: str) -> None:
    port = getattr(relay, begin)()
    for asked in (1, 2, 3):
        relay.from_transceiver(messages.check(asked), to=port)
    answers = [relay.from_client(messages.error(asked)).reason for asked in (1, 2, 3)]
    assert answers == ["unexpected_response", None, None]


@pytest.mark.parametrize("begin", ["pending", "proven"])
def test_a_repeated_check_is_remembered_once(relay: Relay, begin: str) -> None:
    port = getattr(relay, begin)()
    for asked in (1, 2, 2, 2, 2):
        relay.from_transceiver(messages.check(asked), to=port)
    assert [relay.from_client(messages.error(asked)).reason for asked in (1, 2)] == [None, None]


def test_a_check_through_an_established_slot_takes_no_room_from_pending_ones(relay: Relay) -> None:
    port = relay.proven()
    before = relay.checks()
    for asked in range(1, 500):
        relay.from_transceiver(messages.check(asked), to=port)
    assert relay.checks() == before


def test_a_check_that_was_pushed_out_is_of_an_established_flow_all_the_same(relay: Relay) -> None:
    port = relay.proven()
    relay.from_transceiver(messages.check(77), to=port)
    relay.forget_checks()
    assert relay.from_client(messages.success(77)).forwarded


def test_media_flows_both_ways_once_established(relay: Relay) -> None:
    port = relay.proven()
    there = relay.from_client(messages.rtp())
    back = relay.from_transceiver(messages.rtp(), to=port)
    assert (there.payload, back.payload) == (bytes(messages.rtp()), bytes(messages.rtp()))


# Whose flow it is: nobody steals a stranger's.


def both_sessions(relay: Relay) -> tuple[int, int, int]:
    """The client has a flow to X1; then somebody asks, in its name, for a session of X2.

    Returns the two slots' ports and the transaction of the second request.
    """
    relay.add_route(OF_X2, to=X2)
    flow = relay.proven()
    asked = messages.transaction()
    pending = relay.from_client(messages.request(OF_X2, transaction_id=asked)).udp.sport
    return flow, pending, asked


def test_a_request_to_another_transceiver_gets_a_slot_of_its_own(relay: Relay) -> None:
    flow, pending, _ = both_sessions(relay)
    assert (relay.state(flow), relay.state(pending)) == (State.ESTABLISHED, State.PENDING)


def test_until_it_is_established_media_goes_the_old_way(relay: Relay) -> None:
    flow, _, _ = both_sessions(relay)
    assert relay.from_client(messages.rtp()).addresses[1:3] == (flow, X1.address)


def test_a_flow_in_use_is_not_lost_to_the_other_transceivers_success(relay: Relay) -> None:
    flow, pending, asked = both_sessions(relay)
    relay.let_idle(flow, IN_USE)
    relay.from_transceiver(messages.success(asked), to=pending, transceiver=X2)
    assert (relay.flow_of(), relay.state(flow)) == (flow, State.ESTABLISHED)


def test_nor_to_the_clients_error(relay: Relay) -> None:
    flow, pending, _ = both_sessions(relay)
    relay.from_transceiver(messages.check(77), to=pending, transceiver=X2)
    relay.from_client(messages.error(77))
    assert (relay.flow_of(), relay.state(flow)) == (flow, State.ESTABLISHED)


def test_nor_to_the_clients_success_to_the_old_transceiver(relay: Relay) -> None:
    flow, pending, _ = both_sessions(relay)
    relay.from_transceiver(messages.check(77), to=flow)
    relay.from_client(messages.success(77))
    assert (relay.flow_of(), relay.state(pending)) == (flow, State.PENDING)


def test_nor_to_a_request_that_carries_a_checks_transaction(relay: Relay) -> None:
    flow, pending, _ = both_sessions(relay)
    relay.from_transceiver(messages.check(77), to=pending, transceiver=X2)
    relay.from_client(messages.request(OF_X2, transaction_id=77))
    assert (relay.flow_of(), relay.state(pending)) == (flow, State.PENDING)


def test_it_moves_when_the_client_itself_answers_the_new_transceiver(relay: Relay) -> None:
    _, pending, _ = both_sessions(relay)
    relay.from_transceiver(messages.check(77), to=pending, transceiver=X2)
    relay.from_client(messages.success(77))
    assert relay.from_client(messages.rtp()).addresses[1:3] == (pending, X2.address)


def test_the_flow_that_it_replaces_is_closed(relay: Relay) -> None:
    flow, pending, _ = both_sessions(relay)
    relay.from_transceiver(messages.check(77), to=pending, transceiver=X2)
    relay.from_client(messages.success(77))
    assert (relay.state(flow), relay.state(pending)) == (State.CLOSING, State.ESTABLISHED)


def test_an_idle_flow_moves_on_the_new_transceivers_success(relay: Relay) -> None:
    flow, pending, asked = both_sessions(relay)
    relay.let_idle(flow, IDLE)
    relay.from_transceiver(messages.success(asked), to=pending, transceiver=X2)
    assert (relay.state(flow), relay.flow_of()) == (State.CLOSING, pending)


def test_an_idle_flow_does_not_move_on_an_error(relay: Relay) -> None:
    flow, pending, asked = both_sessions(relay)
    relay.let_idle(flow, IDLE)
    relay.from_transceiver(messages.error(asked), to=pending, transceiver=X2)
    assert relay.flow_of() == flow


def test_a_packet_of_the_client_makes_an_idle_flow_one_in_use(relay: Relay) -> None:
    flow, pending, asked = both_sessions(relay)
    relay.let_idle(flow, IDLE)
    relay.from_client(messages.rtp())
    relay.from_transceiver(messages.success(asked), to=pending, transceiver=X2)
    assert relay.flow_of() == flow


def test_a_packet_of_the_transceiver_does_not(relay: Relay) -> None:
    flow, pending, asked = both_sessions(relay)
    relay.let_idle(flow, IDLE)
    relay.from_transceiver(messages.rtp(), to=flow)
    relay.from_transceiver(messages.success(asked), to=pending, transceiver=X2)
    assert relay.flow_of() == pending


def test_a_client_seen_in_the_future_of_another_cpus_clock_is_not_idle(relay: Relay) -> None:
    flow, pending, asked = both_sessions(relay)
    relay.let_idle(flow, -2.0)
    relay.from_transceiver(messages.success(asked), to=pending, transceiver=X2)
    assert relay.flow_of() == flow


def test_a_request_for_the_old_session_still_goes_its_way(relay: Relay) -> None:
    flow, _, _ = both_sessions(relay)
    outcome = relay.from_client(messages.request(UFRAG))
    assert outcome.addresses[1:3] == (flow, X1.address)


def test_a_client_whose_flow_was_closed_may_have_a_new_one(relay: Relay) -> None:
    relay.close_slot(relay.proven())
    assert relay.established() == PORTS[1]


def test_a_closed_flow_carries_no_media(relay: Relay) -> None:
    relay.close_slot(relay.proven())
    assert relay.from_client(messages.rtp()).reason == "no_flow"


def test_a_closed_slot_passes_no_answer_to_a_check_made_before(relay: Relay) -> None:
    port = relay.proven()
    relay.from_transceiver(messages.check(77), to=port)
    relay.close_slot(port)
    assert relay.from_client(messages.success(77)).verdict is Verdict.DROP


def lose_entry(relay: Relay) -> None:
    """The client's flow is no longer found: its bucket holds nothing."""
    relay.write_bucket(relay.bucket_of(CLIENT), types.Bucket())
    assert relay.from_client(messages.rtp()).reason == "no_flow"


def test_a_flow_whose_entry_was_lost_is_found_again_by_the_clients_next_check(
    relay: Relay,
) -> None:
    """STUN alone must not keep a slot alive that media cannot use."""
    relay.proven()
    lose_entry(relay)
    relay.established()
    assert relay.from_client(messages.rtp()).forwarded


def test_it_is_found_again_in_the_same_slot(relay: Relay) -> None:
    port = relay.proven()
    lose_entry(relay)
    assert relay.established() == port


@pytest.mark.parametrize("state", [State.FREE, State.PENDING, State.CLOSING])
def test_an_entry_that_leads_to_a_slot_that_is_not_established_leads_nowhere(
    relay: Relay, state: State
) -> None:
    relay.set_state(relay.proven(), state)
    assert relay.from_client(messages.rtp()).reason == "no_flow"


def test_an_entry_that_leads_to_another_clients_slot_leads_nowhere(relay: Relay) -> None:
    port, strangers = relay.proven(), relay.proven(STRANGER)
    place = relay.bucket_of(CLIENT)
    bucket = relay.bucket(place)
    for number, entry in enumerate(bucket.entries):
        if entry & SLOT_MASK == port:
            bucket.entries[number] = entry & ~SLOT_MASK | strangers
    relay.write_bucket(place, bucket)
    assert relay.from_client(messages.rtp()).reason == "no_flow"
    assert relay.from_client(messages.rtp(), client=STRANGER).forwarded


def test_a_slot_with_a_new_life_is_not_the_first_clients(relay: Relay) -> None:
    """The agent closes and frees a slot, and takes nothing out: the next client gets it."""
    port = relay.proven()
    relay.close_slot(port)
    relay.free_slot(port)
    relay.offer([port])
    assert relay.proven(STRANGER) == port
    assert relay.from_client(messages.rtp()).reason == "no_flow"
    assert relay.from_client(messages.rtp(), client=STRANGER).forwarded


# The same transceiver, another route: an ICE restart.


def test_a_restart_goes_on_through_the_same_slot(relay: Relay) -> None:
    relay.add_route(NEXT)
    port = relay.proven()
    assert relay.from_client(messages.request(NEXT)).udp.sport == port


def test_a_restart_alone_does_not_change_the_route(relay: Relay) -> None:
    next_id = relay.add_route(NEXT)
    port = relay.proven()
    relay.from_client(messages.request(NEXT))
    book = relay.slot(port)["book"]
    assert (book["route"], book["next_route"]) == (relay.route().id, next_id)


def test_the_route_changes_when_the_transceiver_has_answered(relay: Relay) -> None:
    next_id = relay.add_route(NEXT)
    port = relay.proven()
    relay.from_client(messages.request(NEXT, transaction_id=88))
    relay.from_transceiver(messages.success(88), to=port)
    book = relay.slot(port)["book"]
    assert (book["route"], book["next_route"]) == (next_id, relay.route().id)


def test_the_answer_to_any_of_the_restarts_requests_does(relay: Relay) -> None:
    next_id = relay.add_route(NEXT)
    port = relay.proven()
    for asked in (88, 89, 90):
        relay.from_client(messages.request(NEXT, transaction_id=asked))
    relay.from_transceiver(messages.success(88), to=port)
    assert relay.slot(port)["book"]["route"] == next_id


def test_the_clients_next_check_takes_its_route_back_from_a_stranger(relay: Relay) -> None:
    """Who has a session with the same transceiver, and had a request sent in the client's name."""
    stranger = relay.add_route(NEXT)
    port = relay.proven()
    relay.from_client(messages.request(NEXT, transaction_id=88))
    relay.from_transceiver(messages.success(88), to=port)
    relay.from_client(messages.request(UFRAG, transaction_id=89))
    relay.from_transceiver(messages.success(88), to=port)  # late, and of no use to the stranger
    relay.from_transceiver(messages.success(89), to=port)
    book = relay.slot(port)["book"]
    assert (book["route"], book["next_route"]) == (relay.route().id, stranger)


@pytest.mark.parametrize("answer", [messages.error(88), messages.success(89)])
def test_another_answer_does_not_change_it(relay: Relay, answer: Packet) -> None:
    relay.add_route(NEXT)
    port = relay.proven()
    relay.from_client(messages.request(NEXT, transaction_id=88))
    relay.from_transceiver(answer, to=port)
    assert relay.slot(port)["book"]["route"] == relay.route().id


def test_the_answer_to_an_older_request_does_not_change_it(relay: Relay) -> None:
    """A request for any session of the same transceiver may be sent in the client's name, with
    no password; the transceiver's late answer to the client's own must not count for it."""
    relay.add_route(NEXT)
    relay.from_client(messages.request(UFRAG, transaction_id=87))
    port = relay.from_client(messages.request(UFRAG, transaction_id=88)).udp.sport
    relay.from_transceiver(messages.success(87), to=port)
    relay.from_client(messages.request(NEXT))
    relay.from_transceiver(messages.success(88), to=port)
    assert relay.slot(port)["book"]["route"] == relay.route().id


def test_flows_that_a_restart_brought_count_among_the_routes_eight(relay: Relay) -> None:
    """Or two sessions of one transceiver are enough to use up all ports."""
    relay.add_route(NEXT)
    for number in range(1, 13):
        asked = messages.transaction()
        outcome = relay.from_client(
            messages.request(UFRAG, transaction_id=asked), client=client(number)
        )
        if not outcome.forwarded:
            break
        port = outcome.udp.sport
        relay.from_transceiver(messages.success(asked), to=port)
        moved = messages.transaction()
        relay.from_client(messages.request(NEXT, transaction_id=moved), client=client(number))
        relay.from_transceiver(messages.success(moved), to=port)
    of_next = [
        port
        for port in relay.in_state(State.ESTABLISHED)
        if relay.slot(port)["book"]["route"] == relay.route(NEXT).id
    ]
    assert len(of_next) <= types.ROUTE_SLOTS


def test_flows_that_have_only_asked_for_a_route_do_not_keep_its_client_out(relay: Relay) -> None:
    """Whoever has sessions of their own may ask for a stranger's; the transceiver never answers,
    and their flows stay in use all the same."""
    relay.add_route(NEXT)
    for number in range(1, 9):
        relay.proven(client(number))
        relay.from_client(messages.request(NEXT), client=client(number))
    assert relay.from_client(messages.request(NEXT)).forwarded


def asking(relay: Relay) -> list[int]:
    """Eight clients with flows of their own, which have only asked for the route NEXT."""
    relay.add_route(NEXT)
    flows = [relay.proven(client(number)) for number in range(1, 9)]
    for number in range(1, 9):
        relay.from_client(messages.request(NEXT), client=client(number))
    return flows


def test_those_flows_go_on(relay: Relay) -> None:
    flows = asking(relay)
    assert relay.pending(CLIENT, NEXT) not in flows
    for number, flow in enumerate(flows, 1):
        assert relay.from_client(messages.rtp(), client=client(number)).udp.sport == flow
        assert relay.slot(flow)["book"]["route"] == relay.route().id


def test_one_of_them_has_asked_in_vain(relay: Relay) -> None:
    flows = asking(relay)
    relay.pending(CLIENT, NEXT)
    asked = [int(relay.slot(flow)["book"]["next_route"]) for flow in flows]
    assert sorted(asked) == [0] + [relay.route(NEXT).id] * 7


def test_none_of_them_if_one_has_ended(relay: Relay) -> None:
    flows = asking(relay)
    relay.close_slot(flows[-1])
    relay.pending(CLIENT, NEXT)
    asked = {int(relay.slot(flow)["book"]["next_route"]) for flow in flows[:-1]}
    assert asked == {relay.route(NEXT).id}


# The limits: eight slots a route, and a full table.


def test_a_route_has_eight_slots(relay: Relay) -> None:
    ports = [relay.pending(client(number)) for number in range(1, 9)]
    assert sorted(ports) == list(PORTS[:8])


def test_a_ninth_client_takes_over_the_oldest_pending_slot(relay: Relay) -> None:
    ports = [relay.pending(client(number)) for number in range(1, 9)]
    relay.let_idle(ports[3], 60.0)
    assert relay.pending(client(9)) == ports[3]


def test_the_slot_it_takes_over_is_then_its_own(relay: Relay) -> None:
    ports = [relay.pending(client(number)) for number in range(1, 9)]
    relay.let_idle(ports[3], 60.0)
    relay.pending(client(9))
    outcome = relay.from_transceiver(messages.check(77), to=ports[3])
    assert outcome.addresses[2:] == (client(9).address, client(9).port)


def test_the_slot_it_takes_over_counts_from_zero(relay: Relay) -> None:
    ports = [relay.pending(client(number)) for number in range(1, 9)]
    relay.let_idle(ports[3], 60.0)
    relay.from_transceiver(messages.check(77), to=ports[3])
    relay.pending(client(9))
    slot = relay.slot(ports[3])
    assert (slot["to_transceiver"]["packets"], slot["to_client"]["packets"]) == (1, 0)


def test_the_slot_it_takes_over_has_the_new_clients_checksums(relay: Relay) -> None:
    ports = [relay.pending(client(number)) for number in range(1, 9)]
    relay.let_idle(ports[3], 60.0)
    outcome = relay.from_client(messages.request(UFRAG), client=client(9))
    assert outcome.checksums == correct_checksums(outcome.frame)


def test_checks_made_before_a_takeover_are_forgotten(relay: Relay) -> None:
    ports = [relay.pending(client(number)) for number in range(1, 9)]
    relay.let_idle(ports[3], 60.0)
    relay.from_transceiver(messages.check(77), to=ports[3])
    relay.pending(client(9))
    for number in (4, 9):
        outcome = relay.from_client(messages.success(77), client=client(number))
        assert outcome.reason == "unexpected_response"
    assert relay.state(ports[3]) is State.PENDING


def test_a_reused_slot_has_made_no_check_of_transaction_zero(relay: Relay) -> None:
    """Places for transactions hold zeros again."""
    port = relay.proven()
    relay.from_transceiver(messages.check(77), to=port)
    relay.close_slot(port)
    relay.free_slot(port)
    relay.offer([port])
    assert relay.established() == port
    outcome = relay.from_client(messages.success(0))
    assert outcome.reason == "unexpected_response"
    assert relay.slot(port)["to_client"]["proven"] == 0


def test_requests_made_before_a_takeover_are_forgotten(relay: Relay) -> None:
    relay.from_client(messages.request(UFRAG, transaction_id=88), client=client(1))
    ports = [relay.pending(client(number)) for number in range(1, 9)]
    relay.let_idle(ports[0], 60.0)
    relay.pending(client(9))
    relay.from_transceiver(messages.success(88), to=ports[0])
    assert relay.state(ports[0]) is State.PENDING


def test_a_client_whose_slot_was_taken_over_gets_another(relay: Relay) -> None:
    ports = [relay.pending(client(number)) for number in range(1, 9)]
    relay.let_idle(ports[3], 90.0)
    relay.let_idle(ports[5], 60.0)
    relay.pending(client(9))
    assert relay.pending(client(4)) == ports[5]


def test_a_hammered_route_uses_eight_ports_and_no_more(relay: Relay) -> None:
    ports = {relay.pending(client(number)) for number in range(1, 200)}
    assert ports == set(PORTS[:8])


def test_a_hammered_route_keeps_its_established_flows(relay: Relay) -> None:
    flow = relay.proven()
    for number in range(1, 50):
        relay.pending(client(number))
    assert relay.from_client(messages.rtp()).udp.sport == flow


def test_an_unused_place_is_preferred_to_a_pending_one(relay: Relay) -> None:
    ports = [relay.pending(client(number)) for number in range(1, 9)]
    relay.let_idle(ports[1], 20.0)
    relay.close_slot(ports[5])
    assert relay.pending(client(9)) == PORTS[8]


def test_a_pending_place_is_preferred_to_an_idle_one(relay: Relay) -> None:
    flows = [relay.proven(client(number)) for number in range(1, 8)]
    for flow in flows:
        relay.let_idle(flow, 20.0)
    pending = relay.pending(client(8))
    assert relay.pending(client(9)) == pending


def full_route(relay: Relay) -> list[int]:
    """Eight clients with flows in use."""
    return [relay.proven(client(number)) for number in range(1, 9)]


def test_with_eight_flows_in_use_a_ninth_client_is_refused(relay: Relay) -> None:
    for flow in full_route(relay):
        relay.let_idle(flow, IN_USE)
    assert relay.from_client(messages.request(UFRAG)).reason == "route_full"


def test_the_refusal_leaves_all_eight_alone(relay: Relay) -> None:
    flows = full_route(relay)
    relay.from_client(messages.request(UFRAG))
    assert relay.in_state(State.ESTABLISHED) == sorted(flows)


def test_an_idle_flow_gives_way_on_a_fresh_port(relay: Relay) -> None:
    flows = full_route(relay)
    relay.let_idle(flows[2], IDLE)
    assert relay.pending(client(9)) == PORTS[8]


def test_the_flow_that_gave_way_is_closed(relay: Relay) -> None:
    flows = full_route(relay)
    relay.let_idle(flows[2], IDLE)
    relay.pending(client(9))
    assert relay.in_state(State.CLOSING) == [flows[2]]


def test_the_client_that_gave_way_has_no_flow(relay: Relay) -> None:
    flows = full_route(relay)
    relay.let_idle(flows[2], IDLE)
    relay.pending(client(9))
    assert relay.from_client(messages.rtp(), client=client(3)).reason == "no_flow"


def full_table(relay: Relay) -> list[str]:
    """As many pending slots as there are ports, eight for each of the ufrags returned."""
    ufrags = [f"ufrag{number}" for number in range(len(PORTS) // types.ROUTE_SLOTS)]
    for place, ufrag in enumerate(ufrags):
        relay.add_route(ufrag)
        for number in range(types.ROUTE_SLOTS):
            relay.proven(client(100 + place * 10 + number), ufrag)
    return ufrags


def test_at_full_table_a_new_flow_is_refused(relay: Relay) -> None:
    full_table(relay)
    assert relay.from_client(messages.request(UFRAG)).reason == "table_full"


def test_at_full_table_established_flows_are_kept(relay: Relay) -> None:
    full_table(relay)
    relay.from_client(messages.request(UFRAG))
    assert relay.in_state(State.ESTABLISHED) == list(PORTS)


def test_at_full_table_idle_flows_are_kept_too(relay: Relay) -> None:
    (ufrag, *_) = full_table(relay)
    relay.let_idle(PORTS[0], IDLE)
    outcome = relay.from_client(messages.request(ufrag))
    assert (outcome.reason, relay.state(PORTS[0])) == ("table_full", State.ESTABLISHED)


def test_at_full_table_established_flows_go_on(relay: Relay) -> None:
    full_table(relay)
    relay.from_client(messages.request(UFRAG))
    assert relay.from_client(messages.rtp(), client=client(100)).forwarded


def test_at_full_table_a_routes_pending_slot_may_still_change_hands(relay: Relay) -> None:
    (ufrag, *_) = full_table(relay)
    relay.close_slot(PORTS[0])
    relay.free_slot(PORTS[0])
    relay.pending(client(9), ufrag)
    assert relay.pending(client(10), ufrag) == PORTS[0]


def test_a_freed_port_ends_the_refusal(relay: Relay) -> None:
    full_table(relay)
    relay.close_slot(PORTS[7])
    relay.free_slot(PORTS[7])
    assert relay.pending() == PORTS[7]


# The next hop towards the client.


def test_answers_go_where_the_clients_packets_came_from(relay: Relay) -> None:
    port = relay.pending()
    ethernet = relay.from_transceiver(messages.check(1), to=port).ethernet
    assert (ethernet.dst, ethernet.src) == (CLIENT.mac, VIP.mac)


def test_the_transceivers_next_hop_is_the_agents_word(relay: Relay) -> None:
    ethernet = relay.from_client(messages.request(UFRAG)).ethernet
    assert (ethernet.dst, ethernet.src) == (X1.mac, INSIDE_MAC)


def moved(mac: str) -> Endpoint:
    """The client behind another gateway."""
    return Endpoint(CLIENT.address, CLIENT.port, mac)


ELSEWHERE = moved("02:00:00:00:00:99")


def goes_back_to(relay: Relay, port: int) -> str:
    """The MAC address that the slot's packets go to now."""
    outcome = relay.from_transceiver(messages.indication(), to=port)
    assert outcome.forwarded
    mac: str = outcome.ethernet.dst
    return mac


@pytest.mark.parametrize("begin", ["pending", "established", "proven"])
def test_a_request_alone_shows_no_new_next_hop(relay: Relay, begin: str) -> None:
    """Or anybody who knows a client's address could have its media sent elsewhere."""
    port = getattr(relay, begin)()
    relay.from_client(messages.request(UFRAG), client=ELSEWHERE)
    assert goes_back_to(relay, port) == CLIENT.mac


@pytest.mark.parametrize("begin", ["pending", "established", "proven"])
def test_it_does_once_the_transceiver_has_answered_it(relay: Relay, begin: str) -> None:
    port = getattr(relay, begin)()
    assert relay.asked(ELSEWHERE)[0] == port
    slot, asked = relay.asked(ELSEWHERE)
    relay.from_transceiver(messages.success(asked), to=slot)
    assert (slot, goes_back_to(relay, slot)) == (port, ELSEWHERE.mac)


def test_the_answer_itself_goes_the_new_way(relay: Relay) -> None:
    relay.proven()
    slot, asked = relay.asked(ELSEWHERE)
    outcome = relay.from_transceiver(messages.success(asked), to=slot)
    assert outcome.ethernet.dst == ELSEWHERE.mac


@pytest.mark.parametrize("answer", [messages.error, messages.check])
def test_nothing_but_success_is_such_an_answer(
    relay: Relay, answer: Callable[[int], Packet]
) -> None:
    relay.proven()
    slot, asked = relay.asked(ELSEWHERE)
    relay.from_transceiver(answer(asked), to=slot)
    assert goes_back_to(relay, slot) == CLIENT.mac


def test_nor_is_the_answer_to_another_request(relay: Relay) -> None:
    port = relay.proven()
    _, before = relay.asked()
    relay.asked(ELSEWHERE)
    relay.from_transceiver(messages.success(before), to=port)
    assert goes_back_to(relay, port) == CLIENT.mac


def test_an_answer_that_is_dropped_does_not_count(relay: Relay) -> None:
    port = relay.proven()
    _, asked = relay.asked(ELSEWHERE)
    relay.from_transceiver(messages.success(asked), to=port, transceiver=X2)
    relay.from_transceiver(messages.success(asked), to=port, ip={"ttl": 1})
    assert goes_back_to(relay, port) == CLIENT.mac


def test_a_request_of_a_restart_shows_none(relay: Relay) -> None:
    """Whoever has a session of their own with the same transceiver may have such a request sent
    in the client's name, and answered."""
    relay.add_route(NEXT)
    port = relay.proven()
    _, asked = relay.asked(ELSEWHERE, NEXT)
    relay.from_transceiver(messages.success(asked), to=port)
    assert goes_back_to(relay, port) == CLIENT.mac


def test_once_the_route_is_the_flows_own_its_requests_do(relay: Relay) -> None:
    relay.add_route(NEXT)
    port = relay.proven()
    for _ in range(2):
        _, asked = relay.asked(ELSEWHERE, NEXT)
        relay.from_transceiver(messages.success(asked), to=port)
    assert goes_back_to(relay, port) == ELSEWHERE.mac


MULTICAST = [("01:00:5e:00:00:01", VIP.mac), (CLIENT.mac, "ff:ff:ff:ff:ff:ff"),
             ("33:33:00:00:00:01", "33:33:00:00:00:02")]  # fmt: skip


@pytest.mark.parametrize(("source", "destination"), MULTICAST)
def test_a_multicast_mac_address_is_no_next_hop(
    relay: Relay, source: str, destination: str
) -> None:
    port = relay.proven()
    loud = Endpoint(CLIENT.address, CLIENT.port, source)
    everybody = Endpoint(VIP.address, VIP.port, destination)
    frame = client_frame(messages.request(UFRAG, transaction_id=88), client=loud, vip=everybody)
    assert relay.receive(frame).verdict is not Verdict.PASS
    relay.from_transceiver(messages.success(88), to=port)
    relay.from_transceiver(messages.check(77), to=port)
    relay.receive(client_frame(messages.success(77), client=loud, vip=everybody))
    ethernet = relay.from_transceiver(messages.rtp(), to=port).ethernet
    assert (ethernet.dst, ethernet.src) == (CLIENT.mac, VIP.mac)


def test_an_earlier_hop_is_not_taken_back_by_a_late_answer(relay: Relay) -> None:
    """An answer counts once."""
    port = relay.proven()
    _, asked = relay.asked(ELSEWHERE)
    relay.from_transceiver(messages.success(asked), to=port)
    _, again = relay.asked(CLIENT)
    relay.from_transceiver(messages.success(again), to=port)
    relay.from_transceiver(messages.success(asked), to=port)
    assert goes_back_to(relay, port) == CLIENT.mac


def test_the_clients_success_to_a_check_shows_it_at_once(relay: Relay) -> None:
    port = relay.proven()
    relay.from_transceiver(messages.check(77), to=port)
    relay.from_client(messages.success(77), client=ELSEWHERE)
    assert goes_back_to(relay, port) == ELSEWHERE.mac


def test_the_clients_error_to_a_check_shows_nothing(relay: Relay) -> None:
    port = relay.proven()
    relay.from_transceiver(messages.check(77), to=port)
    relay.from_client(messages.error(77), client=ELSEWHERE)
    assert goes_back_to(relay, port) == CLIENT.mac


def test_a_slot_opened_anew_does_not_remember_a_hop_asked_for_before(relay: Relay) -> None:
    slot, asked = relay.asked(ELSEWHERE)
    _, asked = relay.asked(CLIENT)  # by another hop than the slot's
    relay.close_slot(slot)
    relay.free_slot(slot)
    relay.offer([slot])
    assert relay.pending(STRANGER) == slot
    relay.from_transceiver(messages.success(asked), to=slot)
    assert goes_back_to(relay, slot) == STRANGER.mac


def test_media_does_not_change_the_next_hop(relay: Relay) -> None:
    port = relay.proven()
    relay.from_client(messages.rtp(), client=moved("02:00:00:00:00:99"))
    assert relay.from_transceiver(messages.rtp(), to=port).ethernet.dst == CLIENT.mac


def test_a_request_without_a_route_does_not_either(relay: Relay) -> None:
    port = relay.proven()
    relay.from_client(messages.request("nobodys"), client=moved("02:00:00:00:00:99"))
    assert relay.from_transceiver(messages.rtp(), to=port).ethernet.dst == CLIENT.mac


# Interfaces.


def test_with_two_arms_packets_are_redirected(relay: Relay) -> None:
    port = relay.proven()
    there = relay.from_client(messages.rtp())
    back = relay.from_transceiver(messages.rtp(), to=port)
    assert (there.verdict, back.verdict) == (Verdict.REDIRECT, Verdict.REDIRECT)


def test_with_one_arm_packets_go_back_where_they_came_from(relay: Relay) -> None:
    only = relay.interfaces.public
    relay.configure(inside=[only])
    relay.set_transceiver(0, X1, ifindex=only)
    there = relay.from_client(messages.request(UFRAG), on=only)
    back = relay.from_transceiver(messages.check(1), to=there.udp.sport, on=only)
    assert (there.verdict, back.verdict) == (Verdict.TX, Verdict.TX)


def test_answers_leave_by_the_interface_that_the_client_moved_to(relay: Relay) -> None:
    public, inside = relay.interfaces.public, relay.interfaces.inside
    port = relay.proven()
    relay.configure(inside=[public, inside])
    asked = messages.transaction()
    relay.from_client(messages.request(UFRAG, transaction_id=asked), on=inside)
    relay.from_transceiver(messages.success(asked), to=port)
    by = {
        on: relay.from_transceiver(messages.rtp(), to=port, on=on).verdict
        for on in (public, inside)
    }
    assert by == {public: Verdict.REDIRECT, inside: Verdict.TX}


@pytest.mark.parametrize("place", range(types.INTERFACES))
def test_each_of_the_inside_interfaces_counts(relay: Relay, place: int) -> None:
    inside = relay.interfaces.inside
    relay.configure(inside=[9999] * place + [inside] + [9998] * (types.INTERFACES - 1 - place))
    port = relay.pending()
    assert relay.from_transceiver(messages.check(1), to=port).forwarded


# What a slot counts.


def test_a_slot_counts_packets_and_bytes_of_both_directions(relay: Relay) -> None:
    port = relay.proven()
    slot = relay.slot(port)
    halves = ("to_transceiver", "to_client")
    before = [int(slot[half][n]) for half in halves for n in ("packets", "bytes")]
    for size in (10, 20, 30):
        relay.from_client(messages.rtp(size))
    relay.from_transceiver(messages.rtp(40), to=port)
    after = [int(slot[half][n]) for half in halves for n in ("packets", "bytes")]
    assert [b - a for a, b in zip(before, after, strict=True)] == [3, 3 * 40 + 60, 1, 40 + 40]


def test_a_slot_does_not_count_what_is_dropped(relay: Relay) -> None:
    port = relay.proven()
    before = relay.snapshot(port)
    relay.from_client(messages.rtp(), ip={"ttl": 1})
    relay.from_client(b"\xff")
    relay.from_transceiver(messages.rtp(), to=port, transceiver=X2)
    relay.from_transceiver(messages.rtp(), to=port, on=relay.interfaces.public)
    assert relay.snapshot(port) == before
