"""From one IP version to the other (RFC 7915), both directions, and checksums on the way."""

import random

import pytest

from tests.packets import messages
from tests.packets.frames import (
    Endpoint,
    Pair,
    inside_endpoint,
    quick_frame,
    vip_for,
)
from tests.packets.relay import (
    CLIENT,
    CLIENT6,
    COMBINATIONS,
    INSIDE_ADDRESS,
    INSIDE_ADDRESS6,
    UFRAG,
    UFRAG6,
    VIP,
    VIP6,
    X1,
    X6,
    Outcome,
    Relay,
    Verdict,
    client_frame,
)

MIXED = ["4-6", "6-4"]
TO_IPV4 = [("6-4", 0), ("4-6", 1)]
TO_IPV6 = [("4-6", 0), ("6-4", 1)]
BOTH_WAYS = [(families, direction) for families in COMBINATIONS for direction in (0, 1)]
MTU_OF_ETHERNET = 1500


class Flow:
    """An established flow that any number of packets may go through."""

    def __init__(self, relay: Relay, families: str) -> None:
        self.relay = relay
        self.pair: Pair = COMBINATIONS[families]
        self.slot = relay.proven(self.pair.client, self.pair.ufrag)

    def ends(self, direction: int) -> tuple[Endpoint, Endpoint]:
        """Source and destination of what comes in, to the transceiver (0) or the client (1)."""
        if direction:
            transceiver = self.pair.transceiver
            return transceiver, inside_endpoint(self.slot, transceiver.version)
        return self.pair.client, vip_for(self.pair.client)

    def send(self, direction: int, payload: bytes, checksum: str = "whole") -> Outcome:
        """A packet through the flow."""
        on = self.relay.interfaces.inside if direction else self.relay.interfaces.public
        return self.relay.receive(
            quick_frame(*self.ends(direction), payload, checksum=checksum), on=on
        )

    def largest(self, direction: int, mtu: int = MTU_OF_ETHERNET) -> int:
        """The payload that fills the MTU on either side."""
        versions = {self.pair.client.version, self.pair.transceiver.version}
        return mtu - (48 if 6 in versions else 28)


def media(size: int, dice: random.Random) -> bytes:
    """A datagram of *size* bytes that follows the flow."""
    return bytes([dice.randrange(128, 192)]) + dice.randbytes(size - 1)


# Headers.


def test_an_ipv4_client_reaches_an_ipv6_transceiver(relay: Relay) -> None:
    slot = relay.proven(CLIENT, UFRAG6)
    there = relay.from_client(messages.rtp())
    back = relay.from_transceiver(messages.rtp(), to=slot)
    assert there.addresses == (INSIDE_ADDRESS6, slot, X6.address, X6.port)
    assert back.addresses == (VIP.address, VIP.port, CLIENT.address, CLIENT.port)


def test_an_ipv6_client_reaches_an_ipv4_transceiver(relay: Relay) -> None:
    slot = relay.proven(CLIENT6, UFRAG)
    there = relay.from_client(messages.rtp(), client=CLIENT6)
    back = relay.from_transceiver(messages.rtp(), to=slot)
    assert there.addresses == (INSIDE_ADDRESS, slot, X1.address, X1.port)
    assert back.addresses == (VIP6.address, VIP6.port, CLIENT6.address, CLIENT6.port)


@pytest.mark.parametrize("families", MIXED)
def test_the_very_first_request_is_translated_too(relay: Relay, families: str) -> None:
    pair = COMBINATIONS[families]
    request = messages.request(pair.ufrag)
    outcome = relay.from_client(request, client=pair.client)
    assert outcome.payload == bytes(request)
    assert outcome.is_right


@pytest.mark.parametrize(("families", "direction"), TO_IPV6)
@pytest.mark.parametrize("tos", [0, 0xB8, 0x03, 0xFF])
def test_a_new_ipv6_header_is_exactly_this(
    relay: Relay, families: str, direction: int, tos: int
) -> None:
    flow = Flow(relay, families)
    source, _ = flow.ends(direction)
    ip = {"tos": tos, "ttl": 57, "id": 0x4321, "flags": "DF"}
    outcome = (
        relay.from_transceiver(messages.rtp(99), to=flow.slot, ip=ip)
        if direction
        else relay.from_client(messages.rtp(99), client=source, ip=ip)
    )
    header = outcome.ip
    assert (header.version, header.tc, header.fl, header.nh) == (6, tos, 0, 17)
    assert (header.plen, header.hlim) == (8 + 12 + 99, 56)


@pytest.mark.parametrize(("families", "direction"), TO_IPV4)
@pytest.mark.parametrize("tc", [0, 0xB8, 0x03, 0xFF])
def test_a_new_ipv4_header_is_exactly_this(
    relay: Relay, families: str, direction: int, tc: int
) -> None:
    flow = Flow(relay, families)
    source, _ = flow.ends(direction)
    ip = {"tc": tc, "hlim": 57, "fl": 0xABCDE}
    outcome = (
        relay.from_transceiver(messages.rtp(99), to=flow.slot, ip=ip)
        if direction
        else relay.from_client(messages.rtp(99), client=source, ip=ip)
    )
    header = outcome.ip
    assert (header.version, header.ihl, header.tos, header.proto) == (4, 5, tc, 17)
    assert (header.len, header.ttl, header.frag) == (20 + 8 + 12 + 99, 56, 0)
    assert outcome.is_right


@pytest.mark.parametrize(("families", "direction"), TO_IPV4)
@pytest.mark.parametrize(("length", "flags"), [(29, 0), (1259, 0), (1260, 0), (1261, 2), (1480, 2)])
def test_short_packets_may_be_fragmented_later_and_long_ones_not(
    relay: Relay, families: str, direction: int, length: int, flags: int
) -> None:
    """RFC 7915 5.1. *length*: of the IPv4 packet."""
    flow = Flow(relay, families)
    outcome = flow.send(direction, b"\x80" * (length - 28))
    assert (outcome.ip.len, int(outcome.ip.flags)) == (length, flags)


@pytest.mark.parametrize(("families", "direction"), TO_IPV4)
def test_those_that_may_have_an_id_of_their_own(
    relay: Relay, families: str, direction: int
) -> None:
    flow = Flow(relay, families)
    ids = {flow.send(direction, b"\x80" * 100).ip.id for _ in range(20)}
    assert len(ids) > 15
    assert any(id > 255 for id in ids)
    assert {flow.send(direction, b"\x80" * 1300).ip.id for _ in range(5)} == {0}


@pytest.mark.parametrize("families", MIXED)
@pytest.mark.parametrize("ttl", [0, 1])
def test_a_ttl_that_would_end_here_is_dropped(relay: Relay, families: str, ttl: int) -> None:
    flow = Flow(relay, families)
    name = {4: "ttl", 6: "hlim"}
    client, transceiver = flow.pair.client, flow.pair.transceiver
    there = relay.from_client(messages.rtp(), client=client, ip={name[client.version]: ttl})
    back = relay.from_transceiver(messages.rtp(), to=flow.slot, ip={name[transceiver.version]: ttl})
    assert (there.reason, back.reason) == ("ttl", "ttl")


@pytest.mark.parametrize("families", MIXED)
def test_padding_goes_along(relay: Relay, families: str) -> None:
    flow = Flow(relay, families)
    frame = quick_frame(*flow.ends(0), b"\x80\x01\x02")
    outcome = relay.receive(frame + b"\xa5" * 15)
    assert outcome.payload == b"\x80\x01\x02"
    assert outcome.frame[outcome.layout.end :] == b"\xa5" * 15
    assert outcome.is_right


@pytest.mark.parametrize("families", MIXED)
def test_the_clients_bytes_are_counted_as_they_are_on_its_side(relay: Relay, families: str) -> None:
    flow = Flow(relay, families)
    slot = relay.slot(flow.slot)
    halves = ("to_transceiver", "to_client")
    before = [int(slot[half]["bytes"]) for half in halves]
    flow.send(0, b"\x80" * 100)
    flow.send(1, b"\x80" * 200)
    header = 48 if flow.pair.client.version == 6 else 28
    after = [int(slot[half]["bytes"]) for half in halves]
    assert [b - a for a, b in zip(before, after, strict=True)] == [header + 100, header + 200]


@pytest.mark.parametrize("families", MIXED)
def test_three_times_is_of_the_clients_side(relay: Relay, families: str) -> None:
    pair = COMBINATIONS[families]
    slot = relay.pending(pair.client, pair.ufrag)
    allowed = 3 * int(relay.slot(slot)["to_transceiver"]["bytes"])
    header = 48 if pair.client.version == 6 else 28
    size = allowed - header - 20 - 4

    def check(more: int) -> Outcome:
        message = messages.stun(messages.INDICATION, messages.attribute(bytes(size + more)))
        return relay.from_transceiver(message, to=slot)

    assert check(4).reason == "amplification"
    at_most = check(-(size % 4))
    assert at_most.forwarded
    assert allowed - 4 < at_most.layout.end - at_most.layout.ip <= allowed


# Checksums.


@pytest.mark.parametrize(("families", "direction"), BOTH_WAYS)
def test_a_partial_checksum_is_made_whole_at_every_length(
    relay: Relay, dice: random.Random, families: str, direction: int
) -> None:
    flow = Flow(relay, families)
    wrong = []
    for size in range(1, flow.largest(direction) + 1):
        payload = media(size, dice)
        outcome = flow.send(direction, payload, "partial")
        if not outcome.is_right or outcome.payload != payload:
            wrong.append(size)
    assert wrong == []


@pytest.mark.parametrize(("families", "direction"), BOTH_WAYS)
def test_a_whole_checksum_stays_right(
    relay: Relay, dice: random.Random, families: str, direction: int
) -> None:
    flow = Flow(relay, families)
    for size in [*range(1, 60), *range(60, flow.largest(direction) + 1, 31)]:
        payload = media(size, dice)
        outcome = flow.send(direction, payload)
        assert (outcome.is_right, outcome.payload) == (True, payload)


@pytest.mark.parametrize(("families", "direction"), TO_IPV6)
def test_a_missing_one_is_worked_out_on_the_way_to_ipv6(
    relay: Relay, dice: random.Random, families: str, direction: int
) -> None:
    flow = Flow(relay, families)
    for size in [*range(1, 140), *range(140, flow.largest(direction) + 1, 13)]:
        payload = media(size, dice)
        outcome = flow.send(direction, payload, "none")
        assert (outcome.is_right, outcome.payload) == (True, payload)


def test_between_ipv4_and_ipv4_a_missing_one_stays_missing(relay: Relay) -> None:
    flow = Flow(relay, "4-4")
    assert [flow.send(way, b"\x80abc", "none").udp.chksum for way in (0, 1)] == [0, 0]


@pytest.mark.parametrize(("families", "direction"), BOTH_WAYS)
def test_one_that_becomes_zero_is_sent_as_ffff(relay: Relay, families: str, direction: int) -> None:
    flow = Flow(relay, families)
    plain = b"\x80\0\0\0"
    found = flow.send(direction, plain).udp.chksum
    payload = plain[:2] + (found % 0xFFFF).to_bytes(2, "big")
    kinds = ["whole", "partial"] + (["none"] if (families, direction) in TO_IPV6 else [])
    for checksum in kinds:
        outcome = flow.send(direction, payload, checksum)
        assert outcome.udp.chksum == 0xFFFF
        assert outcome.is_right


@pytest.mark.parametrize(("families", "direction"), BOTH_WAYS)
def test_a_wrong_checksum_stays_wrong_by_the_same(
    relay: Relay, dice: random.Random, families: str, direction: int
) -> None:
    flow = Flow(relay, families)
    on = relay.interfaces.inside if direction else relay.interfaces.public
    for _ in range(40):
        frame = bytearray(quick_frame(*flow.ends(direction), media(50, dice)))
        partial = quick_frame(*flow.ends(direction), bytes(frame[-50:]), checksum="partial")
        at = len(frame) - 50 - 2
        error = dice.randrange(1, 0xFFFF)
        wrong = (int.from_bytes(frame[at : at + 2], "big") + error) % 0xFFFF or 0xFFFF
        frame[at : at + 2] = wrong.to_bytes(2, "big")
        if bytes(frame) == partial:
            continue
        outcome = relay.receive(bytes(frame), on=on)
        right = flow.send(direction, bytes(frame[-50:])).udp.chksum
        assert outcome.udp.chksum % 0xFFFF == (right + error) % 0xFFFF


@pytest.mark.parametrize("families", COMBINATIONS)
def test_checksums_are_right_whatever_the_addresses(
    relay: Relay, dice: random.Random, families: str
) -> None:
    """The deltas are worked out once a slot: many slots, with extreme sums among them."""
    pair = COMBINATIONS[families]

    def address(version: int) -> str:
        if version == 4:
            extremes = ["1.0.0.0", "223.255.255.255", "128.0.0.0", "1.1.1.1"]
            return dice.choice([*extremes, f"{dice.randrange(128, 224)}.{dice.randrange(256)}.0.9"])
        extremes = ["2000::", "1::ffff:ffff:ffff", "fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"]
        words = ":".join(f"{dice.randrange(65536):x}" for _ in range(6))
        return dice.choice([*extremes, f"2001:db8:{words}"])

    def port() -> int:
        return dice.choice([1, 255, 256, 65535, dice.randrange(1, 65536)])

    for _ in range(60):
        relay.reset()
        client = Endpoint(address(pair.client.version), port(), CLIENT.mac)
        transceiver = Endpoint(address(pair.transceiver.version), port(), X1.mac)
        relay.set_transceiver(relay.route(pair.ufrag).transceiver, transceiver)
        there = relay.from_client(messages.request(pair.ufrag), client=client)
        back = relay.from_transceiver(
            messages.check(1), to=there.udp.sport, transceiver=transceiver
        )
        assert (there.is_right, back.is_right) == (True, True)


# Beyond a test run's page.

LONG = [4096, 4097, 8183, 8184, 12345, 16375]


@pytest.mark.parametrize("families", COMBINATIONS)
@pytest.mark.parametrize("size", LONG)
def test_up_to_16_kib_a_partial_checksum_is_made_whole(
    relay: Relay, dice: random.Random, families: str, size: int
) -> None:
    flow = Flow(relay, families)
    payload = media(size, dice)
    counted, frame = relay.on_the_wire(quick_frame(*flow.ends(0), payload, checksum="partial"))
    assert counted == "to_transceiver"
    arrived = Outcome(Verdict.REDIRECT, None, b"", frame)
    assert (arrived.payload, arrived.is_right) == (payload, True)


@pytest.mark.parametrize("families", COMBINATIONS)
def test_beyond_that_it_is_dropped(relay: Relay, families: str) -> None:
    flow = Flow(relay, families)
    payload = b"\x80" * (16384 - 8)
    frame = quick_frame(*flow.ends(0), payload, checksum="partial")
    assert relay.on_the_wire(frame)[0] == "checksum"


def test_a_missing_one_beyond_that_is_dropped_on_the_way_to_ipv6(relay: Relay) -> None:
    frame = quick_frame(*Flow(relay, "4-6").ends(0), b"\x80" * (16384 - 8), checksum="none")
    assert relay.on_the_wire(frame)[0] == "checksum"


@pytest.mark.parametrize("families", COMBINATIONS)
def test_a_whole_checksum_of_any_length_needs_no_work(relay: Relay, families: str) -> None:
    frame = quick_frame(*Flow(relay, families).ends(0), b"\x80" * 18000)
    counted, arrived = relay.on_the_wire(frame)
    assert counted == "to_transceiver"
    assert arrived.endswith(b"\x80" * 18000)


def test_a_first_request_is_not_translated_with_a_zero_checksum(relay: Relay) -> None:
    frame = client_frame(messages.request(UFRAG6), udp={"chksum": 0})
    assert relay.receive(frame).is_right
