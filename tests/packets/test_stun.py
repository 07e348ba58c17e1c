"""STUN from clients: what is a message, and which ufrag its USERNAME names."""

import pytest
from scapy.packet import Packet, Raw

from loader.types import State
from tests.packets import messages
from tests.packets.messages import ERROR, INDICATION, REQUEST, SUCCESS, attribute, stun, username
from tests.packets.relay import PORTS, SECOND_PORTS, UFRAG, Relay

USERNAME = f"{UFRAG}:clnt"

# The message.


@pytest.mark.parametrize("lie", [-20, -4, -1, 1, 2, 3, 4, 400])
def test_a_length_that_is_not_the_datagrams_is_malformed(relay: Relay, lie: int) -> None:
    honest = len(bytes(messages.request(UFRAG))) - 20
    message = stun(REQUEST, username(USERNAME), attribute(bytes(4)), length=honest + lie)
    assert relay.from_client(message).reason == "stun_malformed"


@pytest.mark.parametrize("extra", [1, 2, 3])
def test_a_length_that_is_no_multiple_of_four_is_malformed(relay: Relay, extra: int) -> None:
    honest = bytes(messages.request(UFRAG))
    message = honest[:2] + (len(honest) - 20 + extra).to_bytes(2, "big") + honest[4:] + bytes(extra)
    assert relay.from_client(message).reason == "stun_malformed"


@pytest.mark.parametrize("cookie", [0, 0x2112A443, 0x42A41221, 0xFFFFFFFF])
def test_another_cookie_is_malformed(relay: Relay, cookie: int) -> None:
    message = stun(REQUEST, username(USERNAME), cookie=cookie)
    assert relay.from_client(message).reason == "stun_malformed"


@pytest.mark.parametrize("size", range(1, 20))
def test_less_than_a_header_is_malformed(relay: Relay, size: int) -> None:
    assert relay.from_client(bytes(messages.request(UFRAG))[:size]).reason == "stun_malformed"


def test_two_messages_in_one_datagram_are_malformed(relay: Relay) -> None:
    both = bytes(messages.request(UFRAG)) + bytes(messages.request(UFRAG))
    assert relay.from_client(both).reason == "stun_malformed"


def test_a_message_with_bytes_behind_it_is_malformed(relay: Relay) -> None:
    assert relay.from_client(bytes(messages.request(UFRAG)) + bytes(4)).reason == "stun_malformed"


# Other messages than the Binding method's requests and responses.

OTHERS = {
    "Binding Indication": INDICATION,
    "Allocate Request": 0x0003,
    "Allocate Success Response": 0x0103,
    "Send Indication": 0x0016,
    "ChannelBind Request": 0x0009,
    "a method of ones": 0x02EF,
}


@pytest.mark.parametrize("type", OTHERS.values(), ids=OTHERS)
def test_other_messages_follow_the_established_flow(relay: Relay, type: int) -> None:
    relay.established()
    assert relay.from_client(stun(type)).forwarded


@pytest.mark.parametrize("type", [INDICATION, 0x0003, 0x0016])
def test_without_a_flow_other_messages_are_dropped(relay: Relay, type: int) -> None:
    assert relay.from_client(stun(type, username(USERNAME))).reason == "no_flow"


@pytest.mark.parametrize("type", [INDICATION, 0x0003, 0x0016])
def test_other_messages_open_no_slot(relay: Relay, type: int) -> None:
    relay.from_client(stun(type, username(USERNAME)))
    assert relay.in_state(State.FREE) == [*PORTS, *SECOND_PORTS]


# USERNAME.


@pytest.mark.parametrize("place", range(12))
def test_username_is_found_among_the_first_twelve_attributes(relay: Relay, place: int) -> None:
    others = [attribute(bytes(size % 9)) for size in range(place)]
    assert relay.from_client(stun(REQUEST, *others, username(USERNAME))).forwarded


@pytest.mark.parametrize("place", [12, 13, 40])
def test_username_is_not_looked_for_further_back(relay: Relay, place: int) -> None:
    others = [attribute()] * place
    outcome = relay.from_client(stun(REQUEST, *others, username(USERNAME)))
    assert outcome.reason == "stun_username"


def test_of_two_usernames_the_first_counts(relay: Relay) -> None:
    first = stun(REQUEST, username("nobody:clnt"), username(USERNAME))
    assert relay.from_client(first).reason == "no_route"


def test_a_request_without_attributes_has_no_username(relay: Relay) -> None:
    assert relay.from_client(stun(REQUEST)).reason == "stun_username"


def test_a_request_with_other_attributes_only_has_no_username(relay: Relay) -> None:
    message = stun(REQUEST, attribute(b"a"), attribute(b"bb"), attribute(USERNAME.encode()))
    assert relay.from_client(message).reason == "stun_username"


def test_a_username_within_another_attribute_is_none(relay: Relay) -> None:
    nested = attribute(bytes(username(USERNAME)))
    assert relay.from_client(stun(REQUEST, nested)).reason == "stun_username"


@pytest.mark.parametrize("size", range(9))
def test_padding_between_attributes_is_stepped_over(relay: Relay, size: int) -> None:
    message = stun(REQUEST, attribute(bytes(size)), username(USERNAME))
    assert relay.from_client(message).forwarded


@pytest.mark.parametrize("padding", [b"\0\0\0", b"   ", b":::"])
def test_what_the_padding_holds_does_not_matter(relay: Relay, padding: bytes) -> None:
    value = (UFRAG + ":").encode() + b"x" * (-(len(UFRAG) + 1) % 4 + 1)
    built = bytearray(bytes(stun(REQUEST, username(value))))
    built[-3:] = padding
    assert relay.from_client(bytes(built)).forwarded


@pytest.mark.parametrize("length", [13, 16, 100, 1000, 0xFFFC, 0xFFFF])
def test_an_attribute_that_claims_more_than_there_is_is_malformed(
    relay: Relay, length: int
) -> None:
    message = stun(REQUEST, attribute(bytes(4), length=length), attribute(bytes(4)))
    assert relay.from_client(message).reason == "stun_malformed"


@pytest.mark.parametrize("length", [len(USERNAME) + 4, 1000, 0xFFFF])
def test_a_username_that_claims_more_than_there_is_is_malformed(relay: Relay, length: int) -> None:
    message = stun(REQUEST, username(USERNAME, length=length))
    assert relay.from_client(message).reason == "stun_malformed"


def test_an_attribute_that_swallows_the_username_hides_it(relay: Relay) -> None:
    swallower = attribute(bytes(4), length=4 + len(bytes(username(USERNAME))))
    assert relay.from_client(stun(REQUEST, swallower, username(USERNAME))).reason == (
        "stun_username"
    )


def test_a_username_that_claims_less_than_there_is_is_believed(relay: Relay) -> None:
    message = stun(REQUEST, username(USERNAME, length=len(UFRAG)))
    assert relay.from_client(message).reason == "stun_username"


@pytest.mark.parametrize("length", range(4, 33))
def test_a_ufrag_of_any_routable_length_is_found(relay: Relay, length: int) -> None:
    ufrag = ("0123456789abcdefghijklmnopqrstuvwxyz+/")[:length]
    relay.add_route(ufrag)
    assert relay.from_client(messages.request(ufrag)).forwarded


@pytest.mark.parametrize("length", range(1, 33))
def test_a_ufrag_that_nobody_has_finds_no_route(relay: Relay, length: int) -> None:
    assert relay.from_client(messages.request("z" * length)).reason == "no_route"


@pytest.mark.parametrize("length", [33, 34, 35, 36, 37, 64, 256])
def test_a_ufrag_longer_than_any_route_is_refused(relay: Relay, length: int) -> None:
    assert relay.from_client(messages.request("z" * length)).reason == "stun_username"


@pytest.mark.parametrize("length", [33, 64, 256])
def test_a_longer_ufrag_does_not_find_the_route_that_it_begins_with(
    relay: Relay, length: int
) -> None:
    ufrag = "0123456789abcdefghijklmnopqrstuv"
    relay.add_route(ufrag)
    longer = ufrag.ljust(length, "w")
    assert relay.from_client(messages.request(longer)).reason == "stun_username"


@pytest.mark.parametrize("length", range(1, len(UFRAG)))
def test_the_beginning_of_a_ufrag_is_not_the_ufrag(relay: Relay, length: int) -> None:
    assert relay.from_client(messages.request(UFRAG[:length])).reason == "no_route"


def test_a_ufrag_is_told_by_its_case(relay: Relay) -> None:
    assert relay.from_client(messages.request(UFRAG.swapcase())).reason == "no_route"


@pytest.mark.parametrize("size", [32, 33, 34, 36, 37, 512])
def test_a_username_without_a_colon_names_nobody(relay: Relay, size: int) -> None:
    message = stun(REQUEST, username("u" * size))
    assert relay.from_client(message).reason == "stun_username"


@pytest.mark.parametrize("value", [b"", b":", b"u"])
def test_a_username_too_short_for_any_ufrag_names_nobody(relay: Relay, value: bytes) -> None:
    assert relay.from_client(stun(REQUEST, username(value))).reason == "stun_username"


def test_a_colon_first_finds_no_route(relay: Relay) -> None:
    assert relay.from_client(stun(REQUEST, username(":" + USERNAME))).reason == "no_route"


@pytest.mark.parametrize("value", [b"\0:clnt", b"\0\0\0\0:clnt", UFRAG.encode() + b"\0:clnt"])
def test_zero_bytes_are_characters_like_others(relay: Relay, value: bytes) -> None:
    assert relay.from_client(stun(REQUEST, username(value))).reason == "no_route"


def test_only_the_first_colon_ends_the_ufrag(relay: Relay) -> None:
    assert relay.from_client(stun(REQUEST, username(f"{UFRAG}:a:b:c"))).forwarded


def test_a_route_is_not_found_by_what_an_earlier_packet_left_behind(relay: Relay) -> None:
    relay.from_client(messages.request("z" * 32))
    relay.from_client(stun(REQUEST, username(b"u" * 512)))
    assert relay.from_client(messages.request(UFRAG)).forwarded


@pytest.mark.parametrize("size", [513, 763, 1400])
def test_a_huge_username_with_the_ufrag_in_front_is_routed(relay: Relay, size: int) -> None:
    value = f"{UFRAG}:".ljust(size, "c")
    assert relay.from_client(stun(REQUEST, username(value))).forwarded


def test_a_username_at_the_end_of_a_full_packet_is_found(relay: Relay) -> None:
    message = stun(REQUEST, attribute(bytes(1400)), username(USERNAME))
    assert relay.from_client(message).forwarded


def test_a_username_beyond_any_packet_of_the_internet_is_not_looked_for(relay: Relay) -> None:
    message = stun(REQUEST, attribute(bytes(1600)), username(USERNAME))
    assert relay.from_client(message).reason == "stun_username"


def test_a_request_of_the_bytes_that_crash_parsers_is_dropped(relay: Relay) -> None:
    for first in (b"\0\1", b"\1\1", b"\1\x11"):
        for rest in (b"\xff" * 18, b"\0" * 18, b"\xff" * 1400, b"\0" * 1400):
            assert relay.from_client(first + rest).reason == "stun_malformed"


# Responses to no check.


@pytest.mark.parametrize("type", [SUCCESS, ERROR])
def test_a_response_to_no_check_is_dropped(relay: Relay, type: int) -> None:
    assert relay.from_client(stun(type)).reason == "unexpected_response"


@pytest.mark.parametrize("type", [SUCCESS, ERROR])
def test_also_from_the_client_of_an_established_flow(relay: Relay, type: int) -> None:
    relay.established()
    assert relay.from_client(stun(type)).reason == "unexpected_response"


def test_a_response_of_transaction_zero_is_dropped(relay: Relay) -> None:
    relay.established()
    message = stun(SUCCESS, transaction_id=0)
    assert relay.from_client(message).reason == "unexpected_response"


def test_a_response_is_not_let_through_by_a_username(relay: Relay) -> None:
    message: Packet = stun(SUCCESS, username(USERNAME))
    assert relay.from_client(Raw(bytes(message))).reason == "unexpected_response"
