"""IPv6 on both sides: the same walk as over IPv4, and what only IPv6 has."""

import pytest

from loader.types import State
from tests.packets import messages
from tests.packets.frames import SECOND_INSIDE_ADDRESS6, frame_between, in_vlan
from tests.packets.relay import (
    CLIENT,
    CLIENT6,
    INSIDE_ADDRESS,
    INSIDE_ADDRESS6,
    INSIDE_MAC,
    PORTS,
    STRANGER6,
    UFRAG6,
    VIP,
    VIP6,
    X1,
    X6,
    Endpoint,
    Relay,
    client_frame,
    transceiver_frame,
)

ASK = messages.request(UFRAG6)


def test_a_first_request_opens_a_pending_slot(relay: Relay) -> None:
    outcome = relay.from_client(ASK, client=CLIENT6)
    assert outcome.addresses == (INSIDE_ADDRESS6, PORTS[0], X6.address, X6.port)
    assert relay.in_state(State.PENDING) == [PORTS[0]]


def test_a_flow_carries_media_both_ways(relay: Relay) -> None:
    slot = relay.proven(CLIENT6, UFRAG6)
    there = relay.from_client(messages.rtp(), client=CLIENT6)
    back = relay.from_transceiver(messages.rtp(), to=slot)
    assert there.addresses == (INSIDE_ADDRESS6, slot, X6.address, X6.port)
    assert back.addresses == (VIP6.address, VIP6.port, CLIENT6.address, CLIENT6.port)
    assert [there.payload, back.payload] == [bytes(messages.rtp())] * 2
    assert there.is_right
    assert back.is_right


def test_the_link_layer_is_the_next_hops(relay: Relay) -> None:
    slot = relay.proven(CLIENT6, UFRAG6)
    there = relay.from_client(messages.rtp(), client=CLIENT6).ethernet
    back = relay.from_transceiver(messages.rtp(), to=slot).ethernet
    assert (there.dst, there.src) == (X6.mac, INSIDE_MAC)
    assert (back.dst, back.src) == (CLIENT6.mac, VIP6.mac)


def test_clients_are_told_apart_by_the_last_bit_of_their_addresses(relay: Relay) -> None:
    twins = [Endpoint(f"2001:db8::{last:x}", 1000, CLIENT6.mac) for last in (0x10, 0x11)]
    twins += [Endpoint(f"{first:x}:db8::10", 1000, CLIENT6.mac) for first in (0x2002, 0x3001)]
    slots = [relay.proven(twin, UFRAG6) for twin in twins]
    assert [relay.flow_of(twin) for twin in twins] == slots
    ports = [relay.from_client(messages.rtp(), client=twin).udp.sport for twin in twins]
    assert ports == slots


@pytest.mark.parametrize("field", [{"tc": 0xB8}, {"tc": 3}, {"fl": 0xFFFFF}, {"fl": 1}], ids=str)
def test_other_fields_of_the_header_stay(relay: Relay, field: dict[str, int]) -> None:
    slot = relay.proven(CLIENT6, UFRAG6)
    for outcome in (
        relay.from_client(messages.rtp(), client=CLIENT6, ip=field),
        relay.from_transceiver(messages.rtp(), to=slot, ip=field),
    ):
        assert {name: outcome.ip.getfieldval(name) for name in field} == field
        assert outcome.is_right


@pytest.mark.parametrize("hop_limit", [2, 3, 64, 255])
def test_the_hop_limit_goes_down_by_one(relay: Relay, hop_limit: int) -> None:
    slot = relay.proven(CLIENT6, UFRAG6)
    hop = {"hlim": hop_limit}
    assert relay.from_client(messages.rtp(), client=CLIENT6, ip=hop).ip.hlim == hop_limit - 1
    assert relay.from_transceiver(messages.rtp(), to=slot, ip=hop).ip.hlim == hop_limit - 1


@pytest.mark.parametrize("hop_limit", [0, 1])
def test_a_hop_limit_that_would_end_here_is_dropped(relay: Relay, hop_limit: int) -> None:
    slot = relay.proven(CLIENT6, UFRAG6)
    hop = {"hlim": hop_limit}
    assert relay.from_client(messages.rtp(), client=CLIENT6, ip=hop).reason == "ttl"
    assert relay.from_transceiver(messages.rtp(), to=slot, ip=hop).reason == "ttl"


# Lengths and checksums.


def test_udp_without_a_checksum_is_dropped(relay: Relay) -> None:
    slot = relay.proven(CLIENT6, UFRAG6)
    none = {"chksum": 0}
    assert relay.from_client(messages.rtp(), client=CLIENT6, udp=none).reason == "no_checksum"
    assert relay.from_client(ASK, client=STRANGER6, udp=none).reason == "no_checksum"
    assert relay.from_transceiver(messages.rtp(), to=slot, udp=none).reason == "no_checksum"


@pytest.mark.parametrize(
    ("ip", "udp", "reason"),
    [
        ({"hlim": 1, "plen": 20}, {"chksum": 0}, "length"),
        ({"hlim": 1}, {"chksum": 0}, "ttl"),
        ({}, {"chksum": 0}, "no_checksum"),
        ({}, {}, "class"),
    ],
)
def test_reasons_come_in_this_order(
    relay: Relay, ip: dict[str, int], udp: dict[str, int], reason: str
) -> None:
    assert relay.from_client(b"\xff" * 40, client=CLIENT6, ip=ip, udp=udp).reason == reason


@pytest.mark.parametrize("lie", [-1, 1, -8, 8, 500])
def test_a_udp_length_that_lies_is_dropped(relay: Relay, lie: int) -> None:
    relay.proven(CLIENT6, UFRAG6)
    outcome = relay.from_client(bytes([128]) * 600, client=CLIENT6, udp={"len": 608 + lie})
    assert outcome.reason == "length"


@pytest.mark.parametrize("length", [0, 1, 7, 8])
def test_a_payload_length_that_lies_is_dropped(relay: Relay, length: int) -> None:
    """0 may announce a jumbogram (RFC 2675), which is none of UDP's over the internet."""
    assert relay.from_client(ASK, client=CLIENT6, ip={"plen": length}).reason == "length"


@pytest.mark.parametrize("beyond", [1, 2, 1000, 65000])
def test_lengths_that_agree_but_exceed_the_frame_are_dropped(relay: Relay, beyond: int) -> None:
    size = len(bytes(ASK)) + 8 + beyond
    outcome = relay.from_client(ASK, client=CLIENT6, ip={"plen": size}, udp={"len": size})
    assert outcome.reason == "length"


@pytest.mark.parametrize(("trailer", "reason"), [(0, None), (46, None), (47, "length")])
@pytest.mark.parametrize("client", [CLIENT, CLIENT6], ids=["IPv4", "IPv6"])
def test_no_more_may_follow_the_packet_than_ethernet_may_need(
    relay: Relay, client: Endpoint, trailer: int, reason: str | None
) -> None:
    slot = relay.proven(client, UFRAG6)
    outcome = relay.receive(bytes(client_frame(messages.rtp(), client=client)) + bytes(trailer))
    assert outcome.reason == reason
    back = bytes(transceiver_frame(messages.rtp(), to=slot, transceiver=X6)) + bytes(trailer)
    assert relay.receive(back, on=relay.interfaces.inside).reason == reason


# Sources.

MARTIANS = [
    "::",
    "::1",
    "ff02::1",
    "ff00::",
    "ffff:ffff::1",
    "fe80::1",
    "fe80:1::1",
    "febf:ffff::1",
    "::ffff:198.18.0.10",
    "::ffff:0.0.0.0",
    VIP6.address,
    INSIDE_ADDRESS6,
    SECOND_INSIDE_ADDRESS6,
]
CLIENTS = [
    "::2",
    "::1:0:1",
    "2001:db8::1",
    "fec0::1",
    "fe7f::1",
    "fd00::1",
    "feff::1",
    "64:ff9b::1",
]


@pytest.mark.parametrize("address", MARTIANS)
def test_a_source_that_no_client_can_have_is_dropped(relay: Relay, address: str) -> None:
    spoofed = Endpoint(address, 5000, CLIENT6.mac)
    outcome = relay.from_client(ASK, client=spoofed, vip=VIP6)
    assert outcome.reason == "source"
    assert relay.in_state(State.PENDING) == []


@pytest.mark.parametrize("address", CLIENTS)
def test_addresses_next_to_those_are_clients(relay: Relay, address: str) -> None:
    assert relay.from_client(ASK, client=Endpoint(address, 5000, CLIENT6.mac)).forwarded


def test_port_zero_is_no_clients(relay: Relay) -> None:
    assert relay.from_client(ASK, client=Endpoint(CLIENT6.address, 0, CLIENT6.mac)).reason == (
        "source"
    )


def test_a_mapped_source_is_not_the_ipv4_client_of_that_address(relay: Relay) -> None:
    """The table holds IPv4 addresses as mapped ones; a packet must not pass for the other's."""
    mapped = Endpoint(f"::ffff:{CLIENT.address}", CLIENT.port, CLIENT.mac)
    relay.configure(vips=[VIP6, VIP])
    relay.proven(CLIENT, UFRAG6, vip=VIP)
    frame = frame_between(mapped, VIP6, messages.rtp())
    assert relay.receive(frame).reason == "no_flow"


def test_a_mapped_transceiver_is_not_the_ipv4_one(relay: Relay) -> None:
    slot = relay.proven()
    mapped = Endpoint(f"::ffff:{X1.address}", X1.port, X1.mac)
    inside = Endpoint(INSIDE_ADDRESS6, slot, INSIDE_MAC)
    outcome = relay.receive(
        frame_between(mapped, inside, messages.rtp()), on=relay.interfaces.inside
    )
    assert outcome.reason == "wrong_transceiver"


@pytest.mark.parametrize("bit", [0, 31, 32, 63, 64, 95, 96, 127])
def test_a_transceiver_is_told_by_every_bit_of_its_address(relay: Relay, bit: int) -> None:
    slot = relay.proven(CLIENT6, UFRAG6)
    number = int.from_bytes(bytes.fromhex("20010db8001900000000000000000016"), "big") ^ 1 << bit
    text = ":".join(f"{number >> shift & 0xFFFF:x}" for shift in range(112, -16, -16))
    impostor = Endpoint(text, X6.port, X6.mac)
    outcome = relay.from_transceiver(messages.rtp(), to=slot, transceiver=impostor)
    assert outcome.reason == "wrong_transceiver"


@pytest.mark.parametrize("bit", [0, 31, 32, 63, 64, 95, 96, 127])
def test_the_vip_is_told_by_every_bit_of_its_address(relay: Relay, bit: int) -> None:
    number = int.from_bytes(bytes.fromhex("20010db8001800000000000000000001"), "big") ^ 1 << bit
    text = ":".join(f"{number >> shift & 0xFFFF:x}" for shift in range(112, -16, -16))
    assert relay.from_client(ASK, client=CLIENT6, vip=Endpoint(text, VIP6.port, VIP6.mac)).passed


@pytest.mark.parametrize("client", [CLIENT, CLIENT6], ids=["IPv4", "IPv6"])
@pytest.mark.parametrize(
    ("source", "destination"),
    [("01:00:5e:00:00:01", VIP.mac), (CLIENT.mac, "33:33:00:00:00:01"),
     (CLIENT.mac, "ff:ff:ff:ff:ff:ff")],
)  # fmt: skip
def test_from_or_to_a_multicast_mac_address_no_slot_is_made(
    relay: Relay, client: Endpoint, source: str, destination: str
) -> None:
    vip = VIP6 if client is CLIENT6 else VIP
    sender = Endpoint(client.address, client.port, source)
    outcome = relay.from_client(
        ASK, client=sender, vip=Endpoint(vip.address, vip.port, destination)
    )
    assert outcome.reason == "link_address"
    assert relay.in_state(State.PENDING) == []


def test_with_a_flow_a_multicast_mac_address_does_no_harm(relay: Relay) -> None:
    """It is not asked for: only a request that makes a slot teaches a next hop at once."""
    slot = relay.proven()
    loud = Endpoint(CLIENT.address, CLIENT.port, "01:00:5e:00:00:01")
    assert relay.from_client(messages.rtp(), client=loud).forwarded
    assert relay.from_transceiver(messages.rtp(), to=slot).ethernet.dst == CLIENT.mac


# The inside.


@pytest.mark.parametrize("address", [INSIDE_ADDRESS, INSIDE_ADDRESS6])
def test_from_the_public_side_nobody_may_send_to_the_inside(relay: Relay, address: str) -> None:
    slot = relay.proven(CLIENT6, UFRAG6)
    inside = Endpoint(address, slot, INSIDE_MAC)
    source = X6 if ":" in address else X1
    outcome = relay.receive(frame_between(source, inside, messages.rtp()))
    assert outcome.reason == "wrong_interface"


def test_the_interface_comes_before_the_headers(relay: Relay) -> None:
    slot = relay.proven(CLIENT6, UFRAG6)
    frame = transceiver_frame(messages.rtp(), to=slot, transceiver=X6, ip={"hlim": 1})
    assert relay.receive(frame).reason == "wrong_interface"


def test_the_headers_come_before_the_slot(relay: Relay) -> None:
    frame = transceiver_frame(messages.rtp(), to=PORTS[5], transceiver=X6, ip={"hlim": 1})
    assert relay.receive(frame, on=relay.interfaces.inside).reason == "ttl"


def test_an_inside_link_without_a_vlan_takes_no_tagged_frames(relay: Relay) -> None:
    slot = relay.proven(CLIENT6, UFRAG6)
    outcome = relay.from_transceiver(messages.rtp(), to=slot, transceiver=in_vlan(X6, 7))
    assert outcome.reason == "wrong_interface"
