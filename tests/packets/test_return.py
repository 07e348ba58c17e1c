"""Transceiver to client: who may send, and how much before the client has answered a check."""

from collections.abc import Callable

import pytest
from scapy.packet import Packet

from tests.packets import messages
from tests.packets.relay import (
    CLIENT,
    INSIDE_ADDRESS,
    PORTS,
    STRANGER,
    UFRAG,
    VIP,
    X1,
    X2,
    Endpoint,
    Relay,
)

OPEN = "ufragWithoutChecks"

# Who may send.


def test_a_port_that_was_never_used_leads_nowhere(relay: Relay) -> None:
    assert relay.from_transceiver(messages.rtp(), to=PORTS[3]).reason == "slot_free"


def test_a_port_that_was_freed_leads_nowhere(relay: Relay) -> None:
    port = relay.proven()
    relay.close_slot(port)
    relay.free_slot(port)
    assert relay.from_transceiver(messages.rtp(), to=port).reason == "slot_free"


@pytest.mark.parametrize("payload", [messages.rtp(), messages.check(1)], ids=["rtp", "stun"])
def test_a_closed_port_leads_nowhere(relay: Relay, payload: Packet) -> None:
    port = relay.proven()
    relay.close_slot(port)
    assert relay.from_transceiver(payload, to=port).reason == "slot_closing"


@pytest.mark.parametrize("port", [PORTS[0], PORTS[-1]])
def test_the_range_of_inside_ports_includes_both_ends(relay: Relay, port: int) -> None:
    assert relay.from_transceiver(messages.rtp(), to=port).reason == "slot_free"


IMPOSTORS = {
    "another transceiver": X2,
    "another port of its address": Endpoint(X1.address, X1.port + 1, X1.mac),
    "its port of another address": Endpoint("198.18.1.99", X1.port, X1.mac),
    "its port with the bytes swapped": Endpoint(X1.address, 0x409C, X1.mac),
    "the client": CLIENT,
    "the VIP": VIP,
    "the inside address": Endpoint(INSIDE_ADDRESS, X1.port, X1.mac),
}


@pytest.mark.parametrize("who", IMPOSTORS)
@pytest.mark.parametrize("is_established", [False, True], ids=["pending", "established"])
def test_only_the_slots_transceiver_may_send(relay: Relay, who: str, is_established: bool) -> None:
    port = relay.proven() if is_established else relay.pending()
    outcome = relay.from_transceiver(messages.check(1), to=port, transceiver=IMPOSTORS[who])
    assert outcome.reason == "wrong_transceiver"


def test_an_impostors_success_establishes_nothing(relay: Relay) -> None:
    port = relay.from_client(messages.request(UFRAG, transaction_id=88)).udp.sport
    relay.from_transceiver(messages.success(88), to=port, transceiver=X2)
    assert relay.flow_of() is None


def test_an_impostors_check_is_not_remembered(relay: Relay) -> None:
    port = relay.pending()
    relay.from_transceiver(messages.check(77), to=port, transceiver=X2)
    assert relay.checks() == {}


def test_from_the_public_side_nobody_may_send_to_the_inside(relay: Relay) -> None:
    port = relay.proven()
    outcome = relay.from_transceiver(messages.rtp(), to=port, on=relay.interfaces.public)
    assert outcome.reason == "wrong_interface"


def test_nor_learn_which_ports_are_in_use(relay: Relay) -> None:
    outcome = relay.from_transceiver(messages.rtp(), to=PORTS[5], on=relay.interfaces.public)
    assert outcome.reason == "wrong_interface"


def test_from_an_interface_that_is_neither_nobody_may_send_to_the_inside(relay: Relay) -> None:
    port = relay.proven()
    assert relay.from_transceiver(messages.rtp(), to=port, on=1).reason == "wrong_interface"


def test_a_transceiver_that_is_gone_may_send_no_more(relay: Relay) -> None:
    port = relay.proven()
    relay.set_transceiver(0, Endpoint(X1.address, 0, X1.mac))
    assert relay.from_transceiver(messages.rtp(), to=port).reason == "transceiver_gone"


def test_a_neighbour_that_is_not_known_does_not_hinder_the_way_back(relay: Relay) -> None:
    port = relay.proven()
    relay.set_transceiver(0, X1, resolved=False)
    assert relay.from_transceiver(messages.rtp(), to=port).forwarded


def test_the_way_back_needs_no_route(relay: Relay) -> None:
    port = relay.proven()
    relay.maps.remove_route(UFRAG)
    assert relay.from_transceiver(messages.rtp(), to=port).forwarded


def test_each_slot_leads_to_its_own_client(relay: Relay) -> None:
    ports = {who: relay.proven(who) for who in (CLIENT, STRANGER)}
    reached = {
        who: relay.from_transceiver(messages.rtp(), to=port).addresses[2:]
        for who, port in ports.items()
    }
    assert reached == {who: (who.address, who.port) for who in ports}


# Three times what the client sent, until it has answered.

HEADERS = 28


def send(relay: Relay, port: int, size: int) -> str | None:
    """One STUN packet of *size* bytes, headers included, that proves nothing; why it is dropped."""
    message = messages.stun(messages.INDICATION, messages.attribute(bytes(size - HEADERS - 20 - 4)))
    assert len(bytes(message)) == size - HEADERS
    return relay.from_transceiver(message, to=port).reason


def asked(relay: Relay) -> int:
    """Bytes of the client's request, headers included."""
    return len(bytes(messages.request(UFRAG))) + HEADERS


def test_three_times_the_clients_bytes_are_sent(relay: Relay) -> None:
    port = relay.pending()
    assert send(relay, port, 3 * asked(relay)) is None


def test_a_little_more_is_not(relay: Relay) -> None:
    port = relay.pending()
    assert send(relay, port, 3 * asked(relay) + 4) == "amplification"


def test_it_is_the_sum_that_counts(relay: Relay) -> None:
    port = relay.pending()
    sent = [send(relay, port, asked(relay)) for _ in range(5)]
    assert sent == [None, None, None, "amplification", "amplification"]


def test_what_is_dropped_does_not_count(relay: Relay) -> None:
    port = relay.pending()
    for _ in range(5):
        send(relay, port, 3 * asked(relay) + 4)
    assert send(relay, port, 3 * asked(relay)) is None


def test_what_the_client_sends_allows_for_more(relay: Relay) -> None:
    port = relay.pending()
    send(relay, port, 3 * asked(relay))
    relay.from_client(messages.request(UFRAG))
    assert send(relay, port, 3 * asked(relay)) is None


def test_what_another_client_sends_does_not(relay: Relay) -> None:
    port = relay.pending()
    send(relay, port, 3 * asked(relay))
    relay.pending(STRANGER)
    assert send(relay, port, asked(relay)) == "amplification"


def test_what_the_client_sends_in_vain_does_not(relay: Relay) -> None:
    port = relay.pending()
    send(relay, port, 3 * asked(relay))
    relay.from_client(messages.rtp())
    assert send(relay, port, asked(relay)) == "amplification"


def test_a_check_that_is_dropped_is_not_remembered(relay: Relay) -> None:
    port = relay.pending()
    send(relay, port, 3 * asked(relay))
    relay.from_transceiver(messages.check(77), to=port)
    assert relay.checks() == {}


def test_a_success_that_is_dropped_establishes_nothing(relay: Relay) -> None:
    port = relay.from_client(messages.request(UFRAG, transaction_id=88)).udp.sport
    send(relay, port, 3 * asked(relay))
    relay.from_transceiver(messages.success(88), to=port)
    assert relay.flow_of() is None


def test_the_limit_holds_also_once_the_flow_is_established(relay: Relay) -> None:
    port = relay.established()
    sent = [relay.from_transceiver(messages.rtp(100), to=port).reason for _ in range(9)]
    assert sent[-1] == "amplification"


@pytest.mark.parametrize("answer", [messages.success, messages.error])
def test_it_ends_with_the_clients_success_only(
    relay: Relay, answer: Callable[[int], Packet]
) -> None:
    port = relay.established()
    relay.from_transceiver(messages.check(77), to=port)
    relay.from_client(answer(77))
    sent = {relay.from_transceiver(messages.rtp(1000), to=port).reason for _ in range(9)}
    assert sent == ({None} if answer is messages.success else {"amplification"})


def test_a_transceiver_that_makes_no_checks_has_no_limit(relay: Relay) -> None:
    relay.add_route(OPEN, makes_checks=False)
    port = relay.established(ufrag=OPEN)
    sent = {relay.from_transceiver(messages.rtp(1000), to=port).reason for _ in range(9)}
    assert sent == {None}


def test_but_it_still_waits_until_the_flow_is_established(relay: Relay) -> None:
    relay.add_route(OPEN, makes_checks=False)
    port = relay.pending(ufrag=OPEN)
    assert relay.from_transceiver(messages.rtp(), to=port).reason == "not_established"


def test_a_slot_that_changes_hands_is_limited_anew(relay: Relay) -> None:
    port = relay.pending()
    relay.from_transceiver(messages.check(77), to=port)
    relay.slot(port)["to_client"]["proven"] = 1
    relay.let_idle(port, 1.0)
    for number in range(1, 9):
        relay.pending(Endpoint(f"203.0.113.{number}", 9, CLIENT.mac))
    assert relay.slot(port)["to_client"]["proven"] == 0
