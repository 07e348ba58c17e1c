"""What time asks of the agent, pass by pass."""

import asyncio
import itertools
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from loader import bpf, housekeeping, types
from loader.housekeeping import REFUSALS
from loader.maps import Maps, versioned
from loader.pinned_set import PROGRAM
from loader.reasons import REASONS
from loader.types import State
from tests.loader.conftest import binding_request, frame, state
from tests.loader.relay import Relay


@pytest.fixture
def relay(maps: Maps) -> Relay:
    made = Relay(maps)
    made.register()
    return made


def test_a_pass_ends_what_is_over_and_frees_what_has_rested(relay: Relay) -> None:
    id = relay.route("abcd")
    relay.put(20001, route=id)
    relay.put(20002, route=id, seen=relay.now - 40)
    relay.put(20003, State.CLOSING, since=relay.now - 40)
    relay.put(20004, route=77)

    relay.look()

    assert [state(relay.maps, slot) for slot in range(20001, 20005)] == [
        *(State.ESTABLISHED, State.CLOSING, State.FREE, State.CLOSING)
    ]


def test_a_slot_goes_through_its_whole_life_while_nobody_looks(relay: Relay) -> None:
    """The process was stopped for a while: each pass takes things for what they are by then."""
    id = relay.route("abcd")
    relay.put(20001, route=id)
    relay.look()

    relay.look(after=3600)
    assert state(relay.maps, 20001) is State.CLOSING
    relay.look(after=5)
    assert state(relay.maps, 20001) is State.CLOSING, "its rest begins when it is closed"
    relay.look(after=6)
    assert state(relay.maps, 20001) is State.FREE


def test_a_clock_that_goes_back_ends_nothing(relay: Relay) -> None:
    id = relay.route("abcd")
    relay.put(20001, route=id)
    relay.put(20002, State.CLOSING, route=id)

    relay.look(after=-500)

    assert state(relay.maps, 20001) is State.ESTABLISHED
    assert state(relay.maps, 20002) is State.CLOSING


def test_a_route_that_is_gone_is_no_flows_next_one(relay: Relay) -> None:
    id = relay.route("abcd")
    relay.put(20001, route=id, next_route=99)
    relay.put(20002, route=99, next_route=id)

    relay.look()

    books = relay.maps.slots["book"][[20001, 20002]]
    assert [tuple(book)[:2] for book in books] == [(id, 0), (id, 0)]
    assert state(relay.maps, 20002) is State.ESTABLISHED


# Transceivers' indexes.


def test_an_index_rests_until_a_pass_finds_no_slot_of_it(relay: Relay) -> None:
    lease = relay.table.leases()[0]
    relay.put(20001, State.CLOSING, transceiver=lease.index)
    relay.register(instance="another-process-of-x1")
    assert relay.ended == [lease]

    relay.look()
    assert relay.table.resting_indexes() == [lease.index]
    relay.look(after=11)
    assert state(relay.maps, 20001) is State.FREE
    assert relay.table.resting_indexes() == []


def test_an_index_that_comes_to_rest_in_mid_pass_is_not_released_by_that(relay: Relay) -> None:
    """The slots that the pass has seen by then do not count."""
    lease = relay.table.leases()[0]
    steps = relay.housekeeping.steps()
    next(steps)
    relay.put(20001, route=1, transceiver=lease.index)
    relay.register(instance="another-process-of-x1")
    for _ in steps:
        pass

    assert relay.table.resting_indexes() == [lease.index]


# Steps.


async def test_others_have_their_turn_between_the_steps_of_a_pass(
    relay: Relay, short: None
) -> None:
    """A million slots are as many steps as there are pieces of the table."""
    turns = 0

    async def take_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    turning = asyncio.create_task(take_turns())
    keeping = asyncio.create_task(relay.housekeeping.keep())
    await passes(relay, 1)
    turning.cancel()
    keeping.cancel()

    assert turns >= len(relay.flows.pieces) > 1


async def test_an_error_in_a_pass_ends_the_keeping_loudly(
    relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Systemd starts the agent again: silent decay would be worse."""
    relay.put(20001, State.CLOSING, since=1.0)
    monkeypatch.setattr(relay.maps, "free_slots", None)

    with pytest.raises(TypeError):
        await asyncio.wait_for(relay.housekeeping.keep(), timeout=10)


async def test_time_in_which_nobody_could_renew_does_not_count(relay: Relay, short: None) -> None:
    """Stopped, or starved of CPU: the renewals are in the socket, and will be read."""
    lease = relay.register("x2", port=40001)
    lease.expires = relay.now + 15

    keeping = asyncio.create_task(relay.housekeeping.keep())
    await passes(relay, 1)
    relay.now += 60
    await passes(relay, 2)
    assert lease in relay.table.leases()

    lease.expires = relay.now
    await passes(relay, 2)
    assert lease not in relay.table.leases()
    keeping.cancel()


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Passes follow each other at once."""
    monkeypatch.setattr(housekeeping, "_PASS_SECONDS", 0.001)


async def passes(relay: Relay, count: int) -> None:
    """Wait for so many to come to their end."""
    ended = asyncio.Event()

    def end(_spent: float) -> None:
        nonlocal count
        count -= 1
        if count == 0:
            ended.set()

    relay.on_pass = end
    await asyncio.wait_for(ended.wait(), timeout=10)


# What is told.


@pytest.fixture
def knock(maps: Maps, pins: Path) -> Iterator[Callable[[str], None]]:
    """Sends a Binding Request through the program, from another port each time."""
    descriptor = bpf.pinned(versioned(pins) / PROGRAM)
    ports = itertools.count(50000)

    def knock(ufrag: str) -> None:
        bpf.test_run(descriptor, frame(binding_request(ufrag), port=next(ports)))

    yield knock
    os.close(descriptor)


def test_refusals_are_told_once_a_pass_with_how_many_there_were(
    relay: Relay, knock: Callable[[str], None]
) -> None:
    relay.flows.rebuild_free()
    relay.maps.set_transceiver(0, types.Transceiver(port=40000))
    relay.route("abcd")
    knock("none")
    knock("none")
    knock("abcd")  # whose transceiver's MAC address is not known

    relay.now = time.monotonic()  # the program's time
    events = {event.kind: event.facts for event in relay.look()}
    assert events["refused"] == {"reasons": {"no_route": 2, "neighbour": 1}}
    assert [event.kind for event in relay.look()] == []


def test_no_refusal_of_before_the_agents_start_is_told(
    relay: Relay, knock: Callable[[str], None]
) -> None:
    knock("none")
    relay.restart()

    assert relay.look() == []


def test_refusals_are_reasons_of_the_program() -> None:
    assert set(REFUSALS) < {reason.name for reason in REASONS}


def test_a_slot_that_the_program_opens_is_told_of(
    relay: Relay, knock: Callable[[str], None]
) -> None:
    relay.flows.rebuild_free()
    relay.maps.set_transceiver(0, types.Transceiver(port=40000, resolved=1))
    relay.route("abcd")
    knock("abcd")
    slot = int(relay.maps.slots["book"]["route"].argmax())
    relay.now = time.monotonic()

    (checked,) = relay.look()
    assert checked.kind == "first_check"
    assert checked.facts["slot"] == slot
