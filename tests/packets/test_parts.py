"""A part of the program that is missing: what needs it is dropped, and all else goes on."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from loader import bpf
from loader.maps import versioned
from loader.pinned_set import PARTS
from loader.source import parts
from tests.packets import messages
from tests.packets.errors import Error, ErrorFlow
from tests.packets.frames import frame_between, inside_endpoint, partial
from tests.packets.relay import CLIENT, UFRAG, VIP, X1, Relay, client_frame

NUMBERS = {name.removeprefix("shunt_"): number for number, name in parts().items()}


@contextmanager
def without(relay: Relay, part: str) -> Iterator[None]:
    """The program as it is when that part has gone."""
    key = NUMBERS[part].to_bytes(4, sys.byteorder)
    number = bpf.program_info(relay.program).id
    with bpf.Map.open(versioned(relay.pins) / f"{PARTS}{number}") as calls:
        value = calls.lookup(key)
        assert value is not None
        program = bpf.program_by_id(int.from_bytes(value, sys.byteorder))
        calls.delete(key)
        try:
            yield
        finally:
            calls.update(key, program.to_bytes(4, sys.byteorder))
            os.close(program)


def request(relay: Relay) -> tuple[bytes, int]:
    return bytes(client_frame(messages.request(UFRAG))), relay.interfaces.public


def check(relay: Relay) -> tuple[bytes, int]:
    inside = inside_endpoint(relay.proven(), 4)
    return bytes(frame_between(X1, inside, messages.check(1))), relay.interfaces.inside


def partial_checksum(relay: Relay) -> tuple[bytes, int]:
    relay.proven()
    return partial(client_frame(messages.rtp())), relay.interfaces.public


def error(relay: Relay) -> tuple[bytes, int]:
    flow = ErrorFlow(relay, "4-4", to_client=False)
    return flow.frame(Error(3, 3), flow.quote()), flow.on


def too_long(relay: Relay) -> tuple[bytes, int]:
    relay.proven()
    relay.set_transceiver(0, X1, mtu=1000)
    return bytes(client_frame(b"\x80" * 1200, ip={"flags": "DF"})), relay.interfaces.public


def fragment(relay: Relay) -> tuple[bytes, int]:
    return bytes(client_frame(messages.rtp(), ip={"flags": "MF"})), relay.interfaces.public


NEED: dict[str, Callable[[Relay], tuple[bytes, int]]] = {
    "client_stun": request,
    "transceiver_stun": check,
    "reshape": partial_checksum,
    "icmp": error,
    "too_big": too_long,
    "extended": fragment,
}


def test_these_are_all() -> None:
    assert set(NEED) == set(NUMBERS)


@pytest.mark.parametrize("part", NEED)
def test_without_it_what_needs_it_is_dropped(relay: Relay, part: str) -> None:
    frame, on = NEED[part](relay)
    with without(relay, part):
        assert relay.receive(frame, on=on).reason == "program"
    assert relay.receive(frame, on=on).reason != "program"


@pytest.mark.parametrize("part", NEED)
def test_without_it_media_goes_on(relay: Relay, part: str) -> None:
    slot = relay.proven()
    with without(relay, part):
        there = relay.from_client(messages.rtp())
        back = relay.from_transceiver(messages.rtp(), to=slot)
    assert (there.forwarded, back.forwarded) == (True, True)
    assert back.addresses == (VIP.address, VIP.port, CLIENT.address, CLIENT.port)
