"""Packets from sockets of the relay's own host, which leave their checksums to hardware that is not
there: what comes out at the other end is whole."""

import socket
import struct
from contextlib import closing

from tests.endtoend.capture import capture
from tests.endtoend.chain import Chain, Family, between
from tests.packets.messages import filler


def folded(*parts: bytes) -> int:
    """The one's complement sum (RFC 1071) of parts that are, but for the last, of even length."""
    data = b"".join(parts)
    total = int.from_bytes(data + b"\0" * (len(data) % 2)) % 0xFFFF
    return total or 0xFFFF


def whole(packet: bytes, family: Family) -> bool:
    """Whether the checksums of a UDP packet are right, and the one of UDP is there."""
    udp = packet[family.header :]
    addresses = packet[12:20] if family.version == 4 else packet[8:40]
    pseudo = struct.pack("!II", len(udp), socket.IPPROTO_UDP)
    header = family.version == 6 or folded(packet[:20]) == 0xFFFF
    return header and udp[6:8] != b"\0\0" and folded(addresses, pseudo, udp) == 0xFFFF


def lengths(client: Family, transceiver: Family) -> range:
    """Of all payloads that fit into 1500 bytes on both sides."""
    return range(min(family.payload(1500) for family in (client, transceiver)) + 1)


def payload_of(size: int) -> bytes:
    """Looks like RTP, and is never cheap to sum."""
    return b"\x80"[:size] + filler(size)[1:]


@between
def test_what_a_transceiver_sends_is_whole_at_every_length(
    two_armed: Chain, client: Family, transceiver: Family
) -> None:
    with (
        two_armed.flow(client, transceiver) as flow,
        closing(capture(two_armed, "inner", "relay")) as before,
        closing(capture(two_armed, "outer", "relay")) as after,
    ):
        for size in lengths(client, transceiver):
            payload = payload_of(size)
            flow.down(payload)
            sent, came = before.next(transceiver, payload), after.next(client, payload)
            assert (sent.partial, came.partial) == (True, False), f"{size} bytes"
            assert whole(came.packet, client), f"{size} bytes: {came.packet.hex()}"


@between
def test_what_a_client_sends_is_whole_at_every_length(
    two_armed: Chain, client: Family, transceiver: Family
) -> None:
    with (
        two_armed.flow(client, transceiver) as flow,
        closing(capture(two_armed, "outer", "relay")) as before,
        closing(capture(two_armed, "inner", "relay")) as after,
    ):
        for size in lengths(client, transceiver)[1:]:
            payload = payload_of(size)
            flow.up(payload)
            sent, came = before.next(client, payload), after.next(transceiver, payload)
            assert (sent.partial, came.partial) == (True, False), f"{size} bytes"
            assert whole(came.packet, transceiver), f"{size} bytes: {came.packet.hex()}"


@between
def test_an_empty_datagram_of_a_client_is_noise(
    two_armed: Chain, client: Family, transceiver: Family
) -> None:
    before = two_armed.dropped().get("class", 0)
    with two_armed.flow(client, transceiver) as flow:
        flow.client.sendto(b"", flow.vip)
        flow.up(payload_of(1))  # which comes behind it
    assert two_armed.dropped()["class"] == before + 1
