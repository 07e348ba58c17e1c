"""Frames with little room in front, where headers would have to grow: dropped, and unchanged."""

import pytest

from tests.packets import messages
from tests.packets.errors import Error, ErrorFlow
from tests.packets.frames import (
    COMBINATIONS,
    frame_between,
    in_vlan,
    inside_endpoint,
    partial,
    vip_for,
)
from tests.packets.relay import CLIENT, X1, Relay, client_frame

FULL = 216
"""Bytes of metadata that leave no room at all."""
EMPTY = 100


def frames(relay: Relay, families: str) -> list[tuple[bytes, int]]:
    """Media of a flow, each way, and where it comes in."""
    pair = COMBINATIONS[families]
    slot = relay.proven(pair.client, pair.ufrag)
    inside = inside_endpoint(slot, pair.transceiver.version)
    there = frame_between(pair.client, vip_for(pair.client), messages.rtp())
    back = frame_between(pair.transceiver, inside, messages.rtp())
    interfaces = relay.interfaces
    return [(bytes(there), interfaces.public), (bytes(back), interfaces.inside)]


@pytest.mark.parametrize(
    ("families", "reasons"),
    [
        ("4-4", [None, None]),
        ("6-6", [None, None]),
        ("4-6", ["headroom", None]),
        ("6-4", [None, "headroom"]),
    ],
)
def test_without_room_only_what_grows_is_dropped(
    relay: Relay, families: str, reasons: list[str | None]
) -> None:
    both = frames(relay, families)
    assert [relay.receive(f, on=on, metadata=FULL).reason for f, on in both] == reasons


@pytest.mark.parametrize("families", COMBINATIONS)
def test_with_room_metadata_does_no_harm(relay: Relay, families: str) -> None:
    for frame, on in frames(relay, families):
        outcome = relay.receive(frame, on=on, metadata=EMPTY)
        assert outcome.payload == bytes(messages.rtp())
        assert outcome.is_right


def test_without_room_no_tag_is_added(relay: Relay) -> None:
    relay.proven()
    relay.set_transceiver(0, in_vlan(X1, 7))
    outcome = relay.receive(client_frame(messages.rtp()), metadata=FULL)
    assert outcome.reason == "headroom"


def test_what_is_dropped_is_not_counted(relay: Relay) -> None:
    pair = COMBINATIONS["4-6"]
    slot = relay.proven(pair.client, pair.ufrag)
    before = relay.snapshot(slot)
    frame = client_frame(messages.rtp(), client=pair.client)
    assert relay.receive(frame, metadata=FULL).reason == "headroom"
    assert relay.receive(partial(frame), metadata=FULL).reason == "headroom"
    assert relay.snapshot(slot) == before


@pytest.mark.parametrize(("families", "to_client"), [("4-6", False), ("6-4", True)])
def test_an_error_that_grows_is_dropped(relay: Relay, families: str, to_client: bool) -> None:
    flow = ErrorFlow(relay, families, to_client=to_client)
    frame = flow.frame(Error(3, 3), flow.quote())
    outcome = relay.receive(frame, on=flow.on, metadata=FULL)
    assert outcome.reason == "headroom"
    assert relay.receive(frame, on=flow.on, metadata=EMPTY).forwarded


def test_without_room_the_sender_of_what_is_too_long_is_not_told(relay: Relay) -> None:
    relay.proven()
    relay.set_transceiver(0, X1, mtu=1400)
    frame = client_frame(b"\x80" * 1400, client=CLIENT, ip={"flags": "DF"})
    outcome = relay.receive(frame, metadata=FULL)
    assert (outcome.reason, outcome.answered) == ("mtu", False)
    assert relay.receive(frame, metadata=EMPTY).answered
