"""The headers of what is for the VIP or an inside port: fragments, options, lengths, TTL, class."""

import random

import pytest
from scapy.layers.inet import IPOption_NOP, IPOption_Timestamp
from scapy.packet import Raw

from tests.packets import messages
from tests.packets.relay import (
    CLIENT,
    CLIENT6,
    INSIDE_ADDRESS,
    VIP,
    X1,
    Endpoint,
    Relay,
    client_frame,
    correct_checksums,
    transceiver_frame,
)

ASK = messages.request("ufragOfX1/session")
NOP = [IPOption_NOP()] * 4

# Fragments.


def test_a_first_fragment_to_the_vip_is_dropped(relay: Relay) -> None:
    assert relay.from_client(ASK, ip={"flags": "MF"}).reason == "fragment"


@pytest.mark.parametrize("flags", ["", "MF"])
def test_a_later_fragment_to_the_vips_address_is_dropped(relay: Relay, flags: str) -> None:
    assert relay.from_client(ASK, ip={"flags": flags, "frag": 1}).reason == "fragment"


def test_a_later_fragment_too_short_for_ports_is_dropped(relay: Relay) -> None:
    frame = bytes(client_frame(b"", ip={"frag": 185, "len": 21}))[:35]
    assert relay.receive(frame).reason == "fragment"


def test_a_transceivers_fragment_is_dropped(relay: Relay) -> None:
    port = relay.established()
    assert relay.from_transceiver(messages.rtp(), to=port, ip={"flags": "MF"}).reason == "fragment"


def test_the_bit_that_forbids_fragments_is_no_fragment(relay: Relay) -> None:
    assert relay.from_client(ASK, ip={"flags": "DF"}).forwarded


# IP options.


@pytest.mark.parametrize("options", [NOP, [IPOption_Timestamp()]], ids=["no-operation", "stamp"])
def test_options_to_the_vips_port_are_dropped(relay: Relay, options: list[object]) -> None:
    assert relay.from_client(ASK, ip={"options": options}).reason == "ip_options"


def test_options_to_another_port_are_the_kernels(relay: Relay) -> None:
    frame = client_frame(ASK, vip=Endpoint(VIP.address, 53, VIP.mac), ip={"options": NOP})
    assert relay.receive(frame).passed


def test_options_from_a_transceiver_are_dropped(relay: Relay) -> None:
    port = relay.established()
    assert relay.from_transceiver(ASK, to=port, ip={"options": NOP}).reason == "ip_options"


def test_a_port_that_stands_where_options_do_is_not_the_vips(relay: Relay) -> None:
    """Read without regard to options, bytes 22 and 23 of this header would be the VIP's port."""
    frame = bytearray(bytes(client_frame(ASK, ip={"options": NOP}, udp={"dport": 53})))
    frame[36:38] = VIP.port.to_bytes(2, "big")
    assert relay.receive(bytes(frame)).passed


# Lengths.


@pytest.mark.parametrize("lie", [-1, 1, -8, 8, -500, 500])
def test_a_udp_length_that_lies_is_dropped(relay: Relay, lie: int) -> None:
    relay.established()
    size = 600
    outcome = relay.from_client(Raw(bytes([128]) * size), udp={"len": 8 + size + lie})
    assert outcome.reason == "length"


@pytest.mark.parametrize("length", [0, 1, 7])
def test_a_udp_length_below_its_header_is_dropped(relay: Relay, length: int) -> None:
    assert relay.from_client(ASK, udp={"len": length}).reason == "length"


@pytest.mark.parametrize("length", range(8))
@pytest.mark.parametrize("client", [CLIENT, CLIENT6], ids=["IPv4", "IPv6"])
def test_lengths_that_agree_on_less_than_a_udp_header_are_dropped(
    relay: Relay, client: Endpoint, length: int
) -> None:
    """What stands behind it in the frame could be Ethernet's padding."""
    relay.proven(client)
    ip = {"plen": length} if client is CLIENT6 else {"len": 20 + length}
    outcome = relay.from_client(b"\x80" * 30, client=client, ip=ip, udp={"len": length})
    assert outcome.reason == "length"


@pytest.mark.parametrize("length", [0, 19, 20, 27])
def test_a_total_length_without_room_for_the_headers_is_dropped(relay: Relay, length: int) -> None:
    assert relay.from_client(ASK, ip={"len": length}).reason == "length"


@pytest.mark.parametrize("beyond", [1, 2, 1000, 65535 - 200])
def test_lengths_that_agree_but_exceed_the_frame_are_dropped(relay: Relay, beyond: int) -> None:
    size = len(bytes(ASK)) + 8 + beyond
    assert relay.from_client(ASK, ip={"len": 20 + size}, udp={"len": size}).reason == "length"


def test_both_lengths_zero_are_dropped(relay: Relay) -> None:
    assert relay.from_client(ASK, ip={"len": 0}, udp={"len": 0}).reason == "length"


def test_lengths_that_agree_and_leave_out_the_rest_of_the_frame_are_believed(relay: Relay) -> None:
    """Ethernet pads short frames to 60 bytes; the padding is no part of the datagram."""
    relay.established()
    outcome = relay.receive(bytes(client_frame(b"\x80\x6f")) + b"\xa5" * 16)
    assert outcome.payload == b"\x80\x6f"


def test_padding_is_no_part_of_a_stun_message(relay: Relay) -> None:
    outcome = relay.receive(bytes(client_frame(messages.stun(messages.REQUEST))) + bytes(40))
    assert outcome.reason == "stun_username"


def test_padding_does_not_make_a_cut_stun_message_whole(relay: Relay) -> None:
    whole = bytes(ASK)
    frame = bytes(client_frame(whole[:-4])) + whole[-4:]
    assert relay.receive(frame).reason == "stun_malformed"


@pytest.mark.parametrize("lie", [-1, 1])
def test_a_transceivers_lengths_must_agree_too(relay: Relay, lie: int) -> None:
    port = relay.established()
    size = len(bytes(messages.rtp())) + 8
    outcome = relay.from_transceiver(messages.rtp(), to=port, udp={"len": size + lie})
    assert outcome.reason == "length"


# TTL.


@pytest.mark.parametrize("ttl", [0, 1])
def test_a_ttl_that_would_end_here_is_dropped(relay: Relay, ttl: int) -> None:
    assert relay.from_client(ASK, ip={"ttl": ttl}).reason == "ttl"


@pytest.mark.parametrize("ttl", [0, 1])
def test_a_transceivers_ttl_that_would_end_here_is_dropped(relay: Relay, ttl: int) -> None:
    port = relay.established()
    assert relay.from_transceiver(messages.rtp(), to=port, ip={"ttl": ttl}).reason == "ttl"


@pytest.mark.parametrize("ttl", [2, 3, 64, 128, 255])
def test_a_greater_ttl_goes_down_by_one(relay: Relay, ttl: int) -> None:
    outcome = relay.from_client(ASK, ip={"ttl": ttl})
    assert outcome.ip.ttl == ttl - 1
    assert outcome.checksums == correct_checksums(outcome.frame)


# RFC 7983: what a packet is, by its first byte.

BOUNDARIES = [0, 3, 4, 19, 20, 63, 64, 127, 128, 191, 192, 255]
MEDIA = [20, 63, 128, 191]
NOISE = [4, 19, 64, 127, 192, 255]


@pytest.mark.parametrize("first", MEDIA)
def test_media_follows_the_established_flow(relay: Relay, first: int) -> None:
    relay.established()
    payload = bytes([first]) + messages.filler(40)
    assert relay.from_client(payload).payload == payload


@pytest.mark.parametrize("first", NOISE)
def test_noise_is_dropped_even_in_an_established_flow(relay: Relay, first: int) -> None:
    relay.established()
    assert relay.from_client(bytes([first]) + messages.filler(40)).reason == "class"


@pytest.mark.parametrize("first", [0, 1, 2, 3])
def test_what_begins_like_stun_must_be_stun(relay: Relay, first: int) -> None:
    relay.established()
    assert relay.from_client(bytes([first]) + messages.filler(40)).reason == "stun_malformed"


def test_every_first_byte_is_of_exactly_one_class(relay: Relay) -> None:
    relay.established()
    became = [
        relay.from_client(bytes([first]) + messages.filler(40)).reason for first in range(256)
    ]
    stun, noise = ["stun_malformed"], ["class"]
    assert became == (stun * 4 + noise * 16 + [None] * 44 + noise * 64 + [None] * 64 + noise * 64)


def test_an_empty_datagram_is_noise(relay: Relay) -> None:
    relay.established()
    assert relay.from_client(b"").reason == "class"


def test_padding_does_not_give_an_empty_datagram_a_class(relay: Relay) -> None:
    relay.established()
    assert relay.receive(bytes(client_frame(b"")) + b"\x80" * 18).reason == "class"


@pytest.mark.parametrize("first", MEDIA)
def test_media_without_a_flow_is_dropped(relay: Relay, first: int) -> None:
    assert relay.from_client(bytes([first]) + messages.filler(40)).reason == "no_flow"


@pytest.mark.parametrize("first", MEDIA)
def test_media_through_a_pending_slot_is_dropped(relay: Relay, first: int) -> None:
    relay.pending()
    assert relay.from_client(bytes([first]) + messages.filler(40)).reason == "no_flow"


@pytest.mark.parametrize("first", BOUNDARIES)
def test_of_an_established_flow_the_transceiver_may_send_all(relay: Relay, first: int) -> None:
    port = relay.proven()
    payload = bytes([first]) + messages.filler(40)
    assert relay.from_transceiver(payload, to=port).payload == payload


@pytest.mark.parametrize("first", [f for f in BOUNDARIES if f > 3])
def test_before_that_it_may_send_only_stun(relay: Relay, first: int) -> None:
    port = relay.pending()
    payload = bytes([first]) + messages.filler(40)
    assert relay.from_transceiver(payload, to=port).reason == "not_established"


def test_before_that_it_may_send_no_empty_datagram(relay: Relay) -> None:
    port = relay.pending()
    assert relay.from_transceiver(b"", to=port).reason == "not_established"


# What a header keeps on its way.


@pytest.mark.parametrize(
    "field",
    [{"tos": 0xB8}, {"tos": 0x03}, {"id": 0}, {"id": 0xFFFF}, {"flags": "DF"}, {"flags": "evil"}],
    ids=str,
)
def test_other_fields_of_the_ip_header_stay(relay: Relay, field: dict[str, object]) -> None:
    outcome = relay.from_client(ASK, ip=field)
    assert {name: outcome.ip.getfieldval(name) for name in field} == field
    assert outcome.checksums == correct_checksums(outcome.frame)


def test_a_client_sees_the_vip_and_the_transceiver_the_slot(relay: Relay) -> None:
    port = relay.established()
    there = relay.from_client(messages.rtp())
    back = relay.from_transceiver(messages.rtp(), to=port)
    assert there.addresses == (INSIDE_ADDRESS, port, X1.address, X1.port)
    assert back.addresses == (VIP.address, VIP.port, "198.18.0.10", 50000)


def test_a_wrong_ip_checksum_stays_wrong(relay: Relay, dice: random.Random) -> None:
    relay.established()
    frame = bytearray(bytes(client_frame(messages.rtp())))
    error = dice.randrange(1, 0xFFFF)
    found = (int.from_bytes(frame[24:26], "big") + error) % 0xFFFF
    frame[24:26] = found.to_bytes(2, "big")
    outcome = relay.receive(bytes(frame))
    assert outcome.ip.chksum % 0xFFFF == (correct_checksums(outcome.frame)[0] + error) % 0xFFFF


def test_a_whole_transceiver_frame_is_forwarded_at_the_largest_size(relay: Relay) -> None:
    port = relay.proven()
    for _ in range(3):
        relay.from_client(messages.rtp(1400))
    outcome = relay.receive(
        transceiver_frame(messages.rtp(3400), to=port), on=relay.interfaces.inside
    )
    assert outcome.checksums == correct_checksums(outcome.frame)
