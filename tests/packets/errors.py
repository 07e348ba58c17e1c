"""ICMP errors about relayed packets, and what the relay ought to make of them: built from
scratch, with scapy's IP headers and checksums of our own."""

import struct
from dataclasses import dataclass
from typing import Any

from scapy.layers.inet import IP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Raw

from tests.packets import messages
from tests.packets.frames import (
    COMBINATIONS,
    Endpoint,
    Pair,
    frame_between,
    inside_endpoint,
    internet_checksum,
    layout,
    packed,
    transport_checksum,
    vip_for,
)
from tests.packets.outcome import Outcome
from tests.packets.relay import Relay

__all__ = [
    "ROUTERS",
    "Error",
    "ErrorFlow",
    "Sent",
    "as_it_was",
    "icmp_frame",
    "icmp_message",
    "ip_packet",
]

ROUTERS = {
    4: Endpoint("192.0.2.254", 0, "02:00:00:00:00:fe"),
    6: Endpoint("2001:db8:fe::fe", 0, "02:00:00:00:00:fe"),
}
_PROTOCOLS = {4: 1, 6: 58}


def icmp_message(version: int, addresses: bytes, head: bytes, quote: bytes) -> bytes:
    """An ICMP message whose first 8 bytes are *head* but for the checksum."""
    blank = head[:2] + b"\0\0" + head[4:] + quote
    if version == 6:
        found = transport_checksum(addresses, _PROTOCOLS[6], blank)
    else:
        found = internet_checksum(blank)
    return head[:2] + found.to_bytes(2, "big") + head[4:] + quote


def ip_packet(
    source: str, destination: str, message: bytes, fields: dict[str, Any] | None = None
) -> bytes:
    """An IP packet with an ICMP message; *fields* of the IP header."""
    addresses = {"src": source, "dst": destination}
    if ":" in source:
        return bytes(IPv6(**{**addresses, "nh": 58, **(fields or {})}) / Raw(message))
    return bytes(IP(**{**addresses, "proto": 1, **(fields or {})}) / Raw(message))


@dataclass(frozen=True, slots=True)
class Error:
    """Type, code, and the four bytes behind the checksum."""

    type: int
    code: int
    rest: int = 0

    @property
    def head(self) -> bytes:
        return struct.pack("!BBHI", self.type, self.code, 0, self.rest)


def icmp_frame(
    error: Error,
    quote: bytes,
    *,
    source: Endpoint,
    destination: Endpoint,
    ip: dict[str, Any] | None = None,
) -> bytes:
    """A frame with the error, from a router to where the quoted packet is said to come from."""
    addresses = packed(source.address) + packed(destination.address)
    message = icmp_message(source.version, addresses, error.head, quote)
    frame = Ether(src=source.mac, dst=destination.mac)
    if source.vlan:
        frame /= Dot1Q(vlan=source.vlan)
    kind = 0x86DD if source.version == 6 else 0x0800
    frame.lastlayer().type = kind
    return bytes(frame) + ip_packet(source.address, destination.address, message, ip)


@dataclass(frozen=True, slots=True)
class Sent:
    """A packet that the relay has sent on: as it came in, and as it went out."""

    before: bytes
    after: bytes


class ErrorFlow:
    """An established flow, and errors about its packets.

    *to_client*: whether the errors are for the client, about packets to the transceiver.
    """

    def __init__(
        self, relay: Relay, families: str, *, to_client: bool, is_proven: bool = True
    ) -> None:
        self.relay = relay
        self.pair: Pair = COMBINATIONS[families]
        self.to_client = to_client
        begin = relay.proven if is_proven else relay.established
        self.slot = begin(self.pair.client, self.pair.ufrag)

    @property
    def receiver(self) -> Endpoint:
        """Who is told."""
        return self.pair.client if self.to_client else self.pair.transceiver

    @property
    def teller(self) -> Endpoint:
        """Whom it is told by: the VIP to the client, the inside to the transceiver."""
        if self.to_client:
            return vip_for(self.pair.client)
        return inside_endpoint(self.slot, self.receiver.version)

    @property
    def target(self) -> Endpoint:
        """Who the packet was for that met the trouble."""
        return self.pair.transceiver if self.to_client else self.pair.client

    @property
    def sender(self) -> Endpoint:
        """Where that packet seemed to come from, and so where the error goes."""
        if self.to_client:
            return inside_endpoint(self.slot, self.target.version)
        return vip_for(self.pair.client)

    @property
    def version(self) -> int:
        """Of the error."""
        return self.target.version

    @property
    def on(self) -> int:
        """The interface that the error comes in by."""
        interfaces = self.relay.interfaces
        return interfaces.inside if self.to_client else interfaces.public

    def sent(
        self, payload: bytes | None = None, *, ip: dict[str, Any] | None = None, **udp: Any
    ) -> Sent:
        """Have the receiver-to-be of the error send a packet through the relay."""
        content = bytes(messages.rtp(200)) if payload is None else payload
        source, destination = self.receiver, self.teller
        on = self.relay.interfaces.public if self.to_client else self.relay.interfaces.inside
        frame = frame_between(source, destination, content, ip=ip, udp=udp)
        outcome = self.relay.receive(frame, on=on)
        assert outcome.forwarded
        at = layout(outcome.received)
        return Sent(outcome.received[at.ip : at.end], outcome.packet)

    def quote(self, **changes: Any) -> bytes:
        """A packet as the relay would have sent it, but for *changes* of source, destination (as
        endpoints), and of fields of its IP and UDP header."""
        source = changes.pop("source", self.sender)
        destination = changes.pop("destination", self.target)
        frame = frame_between(source, destination, messages.rtp(60), **changes)
        return bytes(frame)[14:]

    def frame(
        self,
        error: Error,
        quote: bytes,
        *,
        source: Endpoint | None = None,
        ip: dict[str, Any] | None = None,
    ) -> bytes:
        """The frame with the error."""
        source = source or ROUTERS[self.version]
        return icmp_frame(error, quote, source=source, destination=self.sender, ip=ip)

    def receive(self, error: Error, quote: bytes, **how: Any) -> Outcome:
        """Have the relay receive it."""
        return self.relay.receive(self.frame(error, quote, **how), on=self.on)

    def expected(self, error: Error, quote: bytes, ip: dict[str, Any]) -> bytes:
        """The IP packet that the receiver ought to get."""
        teller, receiver = self.teller, self.receiver
        addresses = packed(teller.address) + packed(receiver.address)
        message = icmp_message(receiver.version, addresses, error.head, quote)
        return ip_packet(teller.address, receiver.address, message, ip)

    def slot_bytes(self) -> tuple[int, int, int, int]:
        """What the slot counts: packets and bytes, each way."""
        slot = self.relay.slot(self.slot)
        halves = ("to_transceiver", "to_client")
        a, b, c, d = (int(slot[half][name]) for half in halves for name in ("packets", "bytes"))
        return a, b, c, d


def as_it_was(sent: Sent, *, version: int) -> bytes:
    """The packet that the receiver of an error had sent, as an error quotes it: the same, but
    its TTL has gone down at the relay; and what translation loses, is lost."""
    before, after = bytearray(sent.before), sent.after
    if version == 6:
        before[7] -= 1
        if after[0] >> 4 == 4:
            before[1] &= 0xF0  # the flow label
            before[2:4] = b"\0\0"
        return bytes(before)
    before[8] -= 1
    if after[0] >> 4 == 6:
        before[4:8] = b"\0\0\x40\0"  # ID and DF
    before[10:12] = b"\0\0"
    before[10:12] = internet_checksum(bytes(before[:20])).to_bytes(2, "big")
    return bytes(before)
