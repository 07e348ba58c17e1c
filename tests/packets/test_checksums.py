"""Checksums: made whole where veth left them partial, kept right where they were right.

That they are at every length, and whatever the addresses, `test_translation` checks for all
combinations of IP versions.
"""

import random
from collections.abc import Callable

import pytest
from scapy.layers.inet import UDP

from tests.packets import messages
from tests.packets.relay import (
    UFRAG,
    Outcome,
    Relay,
    client_frame,
    correct_checksums,
    partial,
    transceiver_frame,
)


def media(size: int, dice: random.Random) -> bytes:
    """A datagram of *size* bytes that follows the flow."""
    return bytes([dice.randrange(128, 192)]) + dice.randbytes(size - 1)


def both_ways(relay: Relay) -> list[Callable[[bytes], Outcome]]:
    """An established flow with room for anything: senders of partial checksums, each way."""
    port = relay.proven()
    return [
        lambda payload: relay.receive(partial(client_frame(payload))),
        lambda payload: relay.receive(
            partial(transceiver_frame(payload, to=port)), on=relay.interfaces.inside
        ),
    ]


@pytest.mark.parametrize("direction", [0, 1], ids=["to the transceiver", "to the client"])
@pytest.mark.parametrize("size", [2039, 2040, 2041, 3000, 3001, 3400, 3401])
def test_also_beyond_ethernets_size(
    relay: Relay, dice: random.Random, direction: int, size: int
) -> None:
    outcome = both_ways(relay)[direction](media(size, dice))
    assert outcome.checksums == correct_checksums(outcome.frame)


@pytest.mark.parametrize("filling", [b"\0", b"\xff", b"\xff\xfe", b"\0\1"])
@pytest.mark.parametrize("size", [1, 2, 3, 4, 7, 8, 511, 512, 513, 1471, 1472])
def test_also_of_extreme_payloads(relay: Relay, size: int, filling: bytes) -> None:
    payload = (b"\x80" + filling * size)[:size]
    for send in both_ways(relay):
        outcome = send(payload)
        assert outcome.checksums == correct_checksums(outcome.frame)


def test_a_partial_checksum_of_a_first_request_is_made_whole(relay: Relay) -> None:
    outcome = relay.receive(partial(client_frame(messages.request(UFRAG))))
    assert outcome.checksums == correct_checksums(outcome.frame)


def test_padding_behind_the_datagram_is_not_summed(relay: Relay) -> None:
    relay.established()
    outcome = relay.receive(partial(client_frame(b"\x80\x01\x02")) + b"\xff" * 15)
    assert outcome.checksums == correct_checksums(outcome.frame)


@pytest.mark.parametrize("direction", [0, 1], ids=["to the transceiver", "to the client"])
def test_a_missing_checksum_stays_missing(relay: Relay, direction: int) -> None:
    port = relay.proven()
    none = {"chksum": 0}
    outcome = (
        relay.from_transceiver(messages.rtp(), to=port, udp=none)
        if direction
        else relay.from_client(messages.rtp(), udp=none)
    )
    assert outcome.udp.chksum == 0


def payload_for(checksum: int, built: Callable[[bytes], bytes]) -> bytes:
    """A payload with which the frame that *built* makes ought to have *checksum*."""
    plain = b"\x80\0\0\0"
    found = correct_checksums(built(plain))[1]
    # The last two bytes add to the sum, and the checksum is its complement.
    return plain[:2] + ((found - checksum) % 0xFFFF).to_bytes(2, "big")


def test_a_checksum_that_becomes_zero_is_sent_as_ffff(relay: Relay) -> None:
    relay.established()

    def sent(payload: bytes) -> bytes:
        return relay.from_client(payload).frame

    outcome = relay.from_client(payload_for(0xFFFF, sent))
    assert outcome.udp.chksum == 0xFFFF
    assert outcome.checksums == correct_checksums(outcome.frame)


def test_a_partial_checksum_that_becomes_zero_is_sent_as_ffff(relay: Relay) -> None:
    relay.established()

    def sent(payload: bytes) -> bytes:
        return relay.from_client(payload).frame

    outcome = relay.receive(partial(client_frame(payload_for(0xFFFF, sent))))
    assert outcome.udp.chksum == 0xFFFF
    assert outcome.checksums == correct_checksums(outcome.frame)


def test_a_partial_checksum_that_is_zero_when_whole_is_not_taken_for_none(relay: Relay) -> None:
    relay.established()
    payload = payload_for(0xFFFF, lambda payload: bytes(client_frame(payload)))
    outcome = relay.receive(partial(client_frame(payload)))
    assert outcome.checksums == correct_checksums(outcome.frame)


def test_a_checksum_of_ffff_is_not_taken_for_none(relay: Relay) -> None:
    relay.established()
    payload = payload_for(0xFFFF, lambda payload: bytes(client_frame(payload)))
    frame = client_frame(payload)
    assert UDP(bytes(frame)[34:]).chksum == 0xFFFF
    outcome = relay.receive(frame)
    assert outcome.checksums == correct_checksums(outcome.frame)


def test_a_whole_checksum_that_looks_partial_stays_right(relay: Relay) -> None:
    """One in 65,536 is equal to the pseudo-header's sum by chance."""
    relay.established()
    looks = UDP(partial(client_frame(b"\x80\0\0\0"))[34:]).chksum
    payload = payload_for(looks, lambda payload: bytes(client_frame(payload)))
    assert UDP(bytes(client_frame(payload))[34:]).chksum == looks
    outcome = relay.from_client(payload)
    assert outcome.checksums == correct_checksums(outcome.frame)


@pytest.mark.parametrize("direction", [0, 1], ids=["to the transceiver", "to the client"])
def test_a_wrong_checksum_stays_wrong_by_the_same(
    relay: Relay, dice: random.Random, direction: int
) -> None:
    port = relay.proven()
    for _ in range(100):
        payload = media(dice.randrange(1, 300), dice)
        frame = transceiver_frame(payload, to=port) if direction else client_frame(payload)
        built = bytearray(bytes(frame))
        right = int.from_bytes(built[40:42], "big")
        error = dice.randrange(1, 0xFFFF)
        wrong = (right + error) % 0xFFFF or 0xFFFF
        if wrong == UDP(partial(frame)[34:]).chksum:
            continue
        built[40:42] = wrong.to_bytes(2, "big")
        outcome = relay.receive(
            bytes(built), on=relay.interfaces.inside if direction else relay.interfaces.public
        )
        ought = correct_checksums(outcome.frame)[1]
        assert outcome.udp.chksum % 0xFFFF == (ought + error) % 0xFFFF
