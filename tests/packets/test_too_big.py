"""A packet too long for the way on: dropped, and its sender told by an ICMP error."""

from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP
from scapy.layers.inet6 import ICMPv6PacketTooBig, IPv6
from scapy.packet import Packet, Raw

from tests.packets import messages
from tests.packets.errors import Error, ip_packet
from tests.packets.frames import (
    COMBINATIONS,
    Endpoint,
    Pair,
    frame_between,
    in_vlan,
    inside_endpoint,
    layout,
    quick_frame,
    tagged,
    vip_for,
)
from tests.packets.relay import MTU, UFRAG, Outcome, Relay, Verdict, client_frame

BOTH_WAYS = [(families, direction) for families in COMBINATIONS for direction in (0, 1)]
LIMIT = 1400
QUOTES = {4: 548, 6: 1232}
HEADERS = {4: 28, 6: 48}


class Flow:
    """An established flow, and the limit on one of its ways."""

    def __init__(self, relay: Relay, families: str, direction: int, *, limit: int = LIMIT) -> None:
        self.relay, self.direction = relay, direction
        self.pair: Pair = COMBINATIONS[families]
        self.slot = relay.proven(self.pair.client, self.pair.ufrag)
        self.narrow(limit)

    @property
    def sender(self) -> Endpoint:
        return self.pair.transceiver if self.direction else self.pair.client

    @property
    def to(self) -> Endpoint:
        """Where the sender sends to."""
        if self.direction:
            return inside_endpoint(self.slot, self.sender.version)
        return vip_for(self.sender)

    @property
    def receiver(self) -> Endpoint:
        return self.pair.client if self.direction else self.pair.transceiver

    @property
    def on(self) -> int:
        interfaces = self.relay.interfaces
        return interfaces.inside if self.direction else interfaces.public

    def narrow(self, mtu: int) -> None:
        """Set the MTU of the way on, and of that alone."""
        index = self.relay.route(self.pair.ufrag).transceiver
        there, back = (MTU, mtu) if self.direction else (mtu, MTU)
        self.relay.set_transceiver(index, self.pair.transceiver, mtu=there)
        self.relay.set_client_mtu(self.slot, back)

    def frame(self, length: int, *, df: bool = True, flags: str = "") -> bytes:
        """A frame of the sender's that is an IP packet of *length* bytes on the way on."""
        payload = b"\x80" + messages.filler(length - HEADERS[self.receiver.version] - 1)
        ip: dict[str, object] = {"ttl": 44, "id": 0x5555, "flags": "DF" if df else flags}
        if self.sender.version == 6:
            ip = {"hlim": 44, "fl": 0x777}
        return bytes(frame_between(self.sender, self.to, payload, ip=ip))

    def send(self, length: int) -> Outcome:
        return self.relay.receive(self.frame(length), on=self.on)


@pytest.mark.parametrize(("families", "direction"), BOTH_WAYS)
def test_what_just_fits_goes_on(relay: Relay, families: str, direction: int) -> None:
    flow = Flow(relay, families, direction)
    outcome = flow.send(LIMIT)
    assert outcome.forwarded
    assert len(outcome.packet) == LIMIT


@pytest.mark.parametrize(("families", "direction"), BOTH_WAYS)
@pytest.mark.parametrize("beyond", [1, 2, 100, 1500])
def test_of_what_does_not_its_sender_is_told_exactly_this(
    relay: Relay, families: str, direction: int, beyond: int
) -> None:
    flow = Flow(relay, families, direction)
    frame = flow.frame(LIMIT + beyond)
    outcome = relay.receive(frame, on=flow.on)
    assert outcome.answered
    version = flow.sender.version
    told = LIMIT + 10 * (version - flow.receiver.version)
    quote = frame[14 : 14 + QUOTES[version]]
    ends: dict[str, Any] = {"src": flow.to.address, "dst": flow.sender.address}
    message: Packet
    if version == 6:
        message = IPv6(**ends, nh=58, hlim=64) / ICMPv6PacketTooBig(mtu=told)
    else:
        header = IP(**ends, proto=1, ttl=64, tos=0xC0, id=outcome.ip.id)
        message = header / ICMP(type=3, code=4, nexthopmtu=told)
    assert outcome.packet == bytes(message / Raw(quote))
    assert outcome.frame[outcome.layout.end :] == b""


@pytest.mark.parametrize(("families", "direction"), BOTH_WAYS)
def test_it_goes_back_on_the_link_that_the_packet_came_by(
    relay: Relay, families: str, direction: int
) -> None:
    flow = Flow(relay, families, direction)
    outcome = flow.send(LIMIT + 1)
    assert outcome.verdict is Verdict.TX
    assert (outcome.ethernet.dst, outcome.ethernet.src) == (flow.sender.mac, flow.to.mac)
    assert outcome.tci is None


@pytest.mark.parametrize(("families", "direction"), BOTH_WAYS)
def test_tagged_if_the_packet_was(relay: Relay, families: str, direction: int) -> None:
    flow = Flow(relay, families, direction)
    plain = flow.send(LIMIT + 1)
    inside = relay.interfaces.inside
    relay.configure(inside=[(inside, 0), (inside, 77)])
    outcome = relay.receive(tagged(flow.frame(LIMIT + 1), 77), on=flow.on)
    assert outcome.answered
    assert outcome.tci is not None
    assert outcome.tci & 0xFFF == 77
    assert outcome.icmp == plain.icmp


@pytest.mark.parametrize(("families", "direction"), BOTH_WAYS)
def test_what_follows_the_packet_is_no_part_of_it(
    relay: Relay, families: str, direction: int
) -> None:
    flow = Flow(relay, families, direction)
    plain = flow.send(LIMIT + 1)
    padded = relay.receive(flow.frame(LIMIT + 1) + b"\xa5" * 46, on=flow.on)
    assert (padded.icmp, len(padded.frame)) == (plain.icmp, len(plain.frame))
    fits = relay.receive(flow.frame(LIMIT) + b"\xa5" * 46, on=flow.on)
    assert fits.forwarded


@pytest.mark.parametrize(
    ("families", "direction"), [("4-4", 0), ("4-4", 1), ("4-6", 0), ("6-4", 1)]
)
def test_who_lets_it_be_fragmented_is_not_told(relay: Relay, families: str, direction: int) -> None:
    flow = Flow(relay, families, direction)
    for flags in ("", "evil"):
        frame = flow.frame(LIMIT + 1, df=False, flags=flags)
        outcome = relay.receive(frame, on=flow.on)
        assert (outcome.reason, outcome.answered) == ("mtu", False)


@pytest.mark.parametrize(("families", "direction"), BOTH_WAYS)
def test_an_mtu_that_is_not_known_is_no_limit(relay: Relay, families: str, direction: int) -> None:
    flow = Flow(relay, families, direction, limit=0)
    assert flow.send(3400).forwarded


@pytest.mark.parametrize(("families", "direction"), BOTH_WAYS)
def test_what_is_dropped_is_not_counted_and_shows_no_life(
    relay: Relay, families: str, direction: int
) -> None:
    flow = Flow(relay, families, direction)
    before = relay.snapshot(flow.slot)
    assert flow.send(LIMIT + 1).answered
    assert relay.snapshot(flow.slot) == before


@pytest.mark.parametrize(("families", "direction"), BOTH_WAYS)
def test_stun_of_an_established_flow_is_answered_too(
    relay: Relay, families: str, direction: int
) -> None:
    flow = Flow(relay, families, direction)
    long = messages.stun(messages.INDICATION, messages.attribute(bytes(1400)))
    ip = {} if flow.sender.version == 6 else {"flags": "DF"}
    frame = frame_between(flow.sender, flow.to, long, ip=ip)
    assert relay.receive(frame, on=flow.on).answered


@pytest.mark.parametrize("direction", [0, 1])
def test_an_ipv6_sender_is_told_no_less_than_1280(relay: Relay, direction: int) -> None:
    flow = Flow(relay, "6-6", direction, limit=1250)
    outcome = flow.send(1251)
    assert outcome.answered
    assert ICMPv6PacketTooBig(outcome.icmp[:8]).mtu == 1280


@pytest.mark.parametrize(
    ("families", "direction", "limit", "length"),
    [("4-4", 0, 540, 547), ("4-4", 1, 540, 547), ("6-6", 0, 1200, 1231), ("6-6", 1, 1200, 1231)],
)
def test_a_packet_shorter_than_what_is_quoted_is_just_dropped(
    relay: Relay, families: str, direction: int, limit: int, length: int
) -> None:
    flow = Flow(relay, families, direction, limit=limit)
    outcome = flow.send(length)
    assert (outcome.reason, outcome.answered) == ("mtu", False)
    assert flow.send(length + 1).answered


# Only of established flows.


def long_request(ufrag: str) -> bytes:
    """A Binding Request that is longer than the limit."""
    padding = messages.attribute(bytes(1400))
    return bytes(messages.stun(messages.REQUEST, messages.username(f"{ufrag}:clnt"), padding))


@pytest.mark.parametrize("families", COMBINATIONS)
def test_the_sender_of_a_first_request_is_not_told(relay: Relay, families: str) -> None:
    """Nobody is known to be there: it would be an answer to whoever's name was used."""
    pair = COMBINATIONS[families]
    index = relay.route(pair.ufrag).transceiver
    relay.set_transceiver(index, pair.transceiver, mtu=LIMIT)
    ip = {} if pair.client.version == 6 else {"flags": "DF"}
    outcome = relay.from_client(long_request(pair.ufrag), client=pair.client, ip=ip)
    assert (outcome.reason, outcome.answered) == ("mtu", False)


@pytest.mark.parametrize("families", COMBINATIONS)
def test_nor_is_the_transceiver_of_a_pending_slot(relay: Relay, families: str) -> None:
    pair = COMBINATIONS[families]
    slot = relay.pending(pair.client, pair.ufrag)
    assert relay.from_client(long_request(pair.ufrag), client=pair.client).forwarded
    relay.set_client_mtu(slot, LIMIT)
    long = messages.stun(messages.INDICATION, messages.attribute(bytes(1400)))
    ip = {} if pair.transceiver.version == 6 else {"flags": "DF"}
    outcome = relay.from_transceiver(long, to=slot, ip=ip)
    assert (outcome.reason, outcome.answered) == ("mtu", False)


def test_a_request_that_is_too_long_for_a_flow_in_use_is_answered(relay: Relay) -> None:
    flow = Flow(relay, "4-4", 0)
    outcome = relay.from_client(long_request(UFRAG), ip={"flags": "DF"})
    assert outcome.answered
    assert flow.relay.state(flow.slot) == 2


# What the sender makes of it.


@pytest.mark.parametrize(("families", "direction"), BOTH_WAYS)
def test_a_sender_that_believes_it_gets_through(
    relay: Relay, families: str, direction: int
) -> None:
    """The MTU told is the longest of the sender's packets that goes on."""
    flow = Flow(relay, families, direction)
    error = flow.send(LIMIT + 1).icmp
    told = int.from_bytes(error[6:8], "big")
    payload = b"\x80" * (told - HEADERS[flow.sender.version])
    assert relay.receive(quick_frame(flow.sender, flow.to, payload), on=flow.on).forwarded
    longer = relay.receive(quick_frame(flow.sender, flow.to, payload + b"\0"), on=flow.on)
    assert longer.reason == "mtu"


def test_an_error_of_the_clients_own_network_and_the_relays_look_alike(relay: Relay) -> None:
    """The transceiver gets the same kind of message, from the same address, either way."""
    flow = Flow(relay, "4-4", 1)
    own = flow.send(LIMIT + 1)
    assert Error(own.icmp[0], own.icmp[1]) == Error(3, 4)
    assert own.ip.src == flow.to.address
    assert layout(own.frame).version == 4
    assert len(ip_packet(own.ip.src, own.ip.dst, own.icmp)) == 576


@pytest.mark.parametrize("outer", [0, 7])
def test_a_packet_that_changes_its_tag_is_told_by_the_tag_it_came_with(
    relay: Relay, outer: int
) -> None:
    client = in_vlan(COMBINATIONS["4-4"].client, outer)
    relay.proven(client)
    relay.set_transceiver(0, in_vlan(COMBINATIONS["4-4"].transceiver, 9), mtu=LIMIT)
    outcome = relay.receive(client_frame(b"\x80" * LIMIT, client=client, ip={"flags": "DF"}))
    assert outcome.answered
    assert outcome.tci == (outer or None)
