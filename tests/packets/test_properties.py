"""What holds for any packet, random or mutilated; tests/model has the long random histories.

That exactly one counter moves, and that what is not sent on is unchanged, `Relay.receive` checks.
"""

import random

from scapy.packet import Packet

from loader.types import State
from tests.packets import messages
from tests.packets.relay import (
    PORTS,
    SECOND_PORTS,
    UFRAG,
    X2,
    Outcome,
    Relay,
    client_frame,
    correct_checksums,
    partial,
    transceiver_frame,
)

OF_X2 = "ufragOfX2"


def headers(dice: random.Random) -> dict[str, object]:
    """A random but honest IP header."""
    return {
        "ttl": dice.randrange(2, 256),
        "tos": dice.randrange(256),
        "id": dice.randrange(65536),
        "flags": dice.choice(["", "DF"]),
    }


def is_honest(outcome: Outcome) -> bool:
    """Whether a forwarded frame is right in all that the relay vouches for."""
    was, now = outcome.received, outcome.frame
    ip, udp = outcome.checksums
    return (
        (ip, udp or correct_checksums(now)[1]) == correct_checksums(now)
        and now[42:] == was[42:]
        and now[12:22] + now[23:24] == was[12:22] + was[23:24]
        and now[22] == was[22] - 1
        and now[38:40] == was[38:40]
    )


def test_whatever_is_forwarded_has_its_payload_and_right_checksums(
    relay: Relay, dice: random.Random
) -> None:
    port = relay.proven()
    for _ in range(2000):
        payload = bytes([dice.randrange(128, 192)]) + dice.randbytes(dice.randrange(1472))
        comes_from_client = dice.random() < 0.5
        frame: Packet | bytes = (
            client_frame(payload, ip=headers(dice))
            if comes_from_client
            else transceiver_frame(payload, to=port, ip=headers(dice))
        )
        if dice.random() < 0.3:
            frame = partial(frame)
        on = relay.interfaces.public if comes_from_client else relay.interfaces.inside
        outcome = relay.receive(frame, on=on)
        assert outcome.forwarded
        assert is_honest(outcome)


def seeds(relay: Relay) -> list[tuple[bytes, int]]:
    """Frames that go through, one for each way through the program, and where they come in."""
    port = relay.proven()
    relay.add_route(OF_X2, to=X2)
    public, inside = relay.interfaces.public, relay.interfaces.inside
    relay.from_transceiver(messages.check(77), to=port)
    client = [
        messages.request(UFRAG),
        messages.request(OF_X2),
        messages.success(77),
        messages.indication(),
        messages.rtp(),
        messages.dtls(),
    ]
    transceiver = [messages.check(78), messages.success(1), messages.rtp(), messages.dtls()]
    return [(bytes(client_frame(payload)), public) for payload in client] + [
        (bytes(transceiver_frame(payload, to=port)), inside) for payload in transceiver
    ]


def has_right_checksums(frame: bytes) -> bool:
    """For frames whose lengths have been mutilated too."""
    found = int.from_bytes(frame[24:26], "big"), int.from_bytes(frame[40:42], "big")
    right = correct_checksums(frame)
    return found[0] == right[0] and found[1] in (0, right[1])


def test_a_mutilated_packet_never_leaves_with_a_checksum_that_it_did_not_come_with(
    relay: Relay, dice: random.Random
) -> None:
    """Flipped bits make checksums wrong, and the relay must not make them right again."""
    valid = seeds(relay)
    for _ in range(4000):
        whole, on = dice.choice(valid)
        frame = bytearray(whole)
        for _ in range(dice.choice([1, 1, 1, 2, 3, 8])):
            frame[dice.randrange(14, len(frame))] ^= 1 << dice.randrange(8)
        outcome = relay.receive(bytes(frame), on=on)
        if outcome.forwarded:
            assert has_right_checksums(outcome.frame) == has_right_checksums(bytes(frame))
            assert outcome.frame[42:] == outcome.received[42:]


def test_a_cut_packet_is_not_forwarded(relay: Relay) -> None:
    for whole, on in seeds(relay):
        for size in range(14, len(whole)):
            assert not relay.receive(whole[:size], on=on).forwarded


def test_random_bytes_behind_honest_headers_are_dropped_or_forwarded_whole(
    relay: Relay, dice: random.Random
) -> None:
    port = relay.proven()
    for _ in range(1500):
        payload = dice.randbytes(dice.randrange(1, 200))
        if dice.random() < 0.5:
            outcome = relay.from_client(payload, ip=headers(dice))
        else:
            outcome = relay.from_transceiver(payload, to=port, ip=headers(dice))
        assert not outcome.forwarded or is_honest(outcome)


def test_random_bytes_are_the_kernels(relay: Relay, dice: random.Random) -> None:
    for _ in range(500):
        assert relay.receive(dice.randbytes(dice.randrange(14, 1514))).passed


def test_random_attributes_open_no_slot_but_the_routes(relay: Relay, dice: random.Random) -> None:
    for _ in range(1500):
        attributes = [
            messages.attribute(
                dice.randbytes(dice.randrange(20)),
                type=dice.choice([6, 6, 0x8022, dice.randrange(65536)]),
                length=dice.choice([None, None, None, dice.randrange(64), dice.randrange(65536)]),
            )
            for _ in range(dice.randrange(15))
        ]
        outcome = relay.from_client(messages.stun(messages.REQUEST, *attributes))
        assert outcome.reason in ("stun_malformed", "stun_username", "no_route")
    assert relay.in_state(State.FREE) == [*PORTS, *SECOND_PORTS]
