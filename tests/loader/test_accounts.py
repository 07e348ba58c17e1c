"""What routes and transceivers have carried, over all that becomes of their slots."""

import numpy as np
import pytest

from loader import accounts
from loader.accounts import NOTHING, Account
from loader.events import Event
from loader.maps import Maps, Rate, ufrag_key
from loader.routeids import INDEXES
from loader.table import Route
from loader.types import State
from tests.loader.relay import Relay


@pytest.fixture
def relay(maps: Maps, monkeypatch: pytest.MonkeyPatch) -> Relay:
    """One whose totals are new after each pass."""
    monkeypatch.setattr(accounts, "SUMMED_EVERY", 1)
    made = Relay(maps)
    made.register()
    return made


def counts(relay: Relay, *routes: int) -> list[list[int]]:
    columns = relay.housekeeping.accounts.of_routes(np.array(routes, dtype=np.uint32)).T
    found: list[list[int]] = columns.tolist()
    return found


def total(relay: Relay, id: str = "x1") -> Account:
    return relay.housekeeping.transceiver_accounts()[id]


def account(*counts: int) -> Account:
    packets_in, bytes_in, packets_out, bytes_out = counts
    return Account(Rate(packets_in, bytes_in), Rate(packets_out, bytes_out))


def removed(events: list[Event]) -> dict[str, list[int]]:
    return {
        event.facts["ufrag"]: [
            event.facts[way][what]
            for way in ("to_transceiver", "to_client")
            for what in ("packets", "bytes")
        ]
        for event in events
        if event.kind == "route_removed"
    }


def test_a_routes_account_is_that_of_its_slots_at_this_moment(relay: Relay) -> None:
    one, two, none = (relay.route(ufrag) for ufrag in ("one+", "two+", "none"))
    relay.put(20001, route=one)
    relay.put(20002, State.PENDING, route=one)
    relay.put(20003, State.FREE, route=one)
    relay.put(20004, route=two)
    for slot in (20001, 20002, 20003, 20004):
        relay.carry(slot, 1, 100, 2, 1000)

    assert counts(relay, two, none, one) == [[1, 100, 2, 1000], [0] * 4, [2, 200, 4, 2000]]
    relay.look()
    relay.carry(20001, 1, 1, 1, 1)
    assert counts(relay, one) == [[3, 201, 5, 2001]]


def test_what_a_slot_had_carried_stays_when_it_is_closed_freed_and_used_again(
    relay: Relay,
) -> None:
    one, two = relay.route("one+"), relay.route("two+")
    relay.put(20001, route=one)
    relay.carry(20001, 3, 300, 4, 400)
    relay.look()
    relay.put(20001, State.CLOSING, route=one)
    for _ in range(12):
        relay.look()
        assert counts(relay, one) == [[3, 300, 4, 400]]
        assert total(relay) == account(3, 300, 4, 400)
    assert relay.maps.slots["to_transceiver"]["state"][20001] == State.FREE

    relay.maps.slots.clear(20001, 20002)
    relay.put(20001, State.PENDING, route=two)
    relay.carry(20001, 1, 10, 0, 0)
    relay.look()
    assert counts(relay, one, two) == [[3, 300, 4, 400], [1, 10, 0, 0]]
    assert total(relay) == account(4, 310, 4, 400)


def test_what_is_counted_while_a_slot_closes_is_not_lost(relay: Relay) -> None:
    """Another CPU may still be sending a packet."""
    id = relay.route("abcd")
    relay.put(20001, State.CLOSING, route=id)
    relay.carry(20001, 1, 10, 0, 0)
    relay.look()
    relay.carry(20001, 1, 10, 0, 0)
    relay.look(after=11)

    assert relay.maps.slots["to_transceiver"]["state"][20001] == State.FREE
    assert counts(relay, id) == [[2, 20, 0, 0]]
    assert total(relay) == account(2, 20, 0, 0)


def test_a_pending_slot_that_another_client_takes_over_counts_for_both(relay: Relay) -> None:
    id = relay.route("abcd")
    for client, packets in enumerate((5, 2, 3, 3, 9)):
        relay.maps.slots.clear(20001, 20002)
        relay.put(20001, State.PENDING, route=id)
        relay.maps.slots["to_transceiver"]["check"][20001] = client
        relay.carry(20001, packets, 100 * packets, 0, 0)
        relay.look()

    assert counts(relay, id) == [[22, 2200, 0, 0]]
    assert total(relay) == account(22, 2200, 0, 0)


def test_a_flow_that_takes_another_route_counts_for_each_in_its_time(relay: Relay) -> None:
    old, new = relay.route("old+"), relay.route("new+")
    relay.put(20001, route=old)
    relay.carry(20001, 3, 300, 4, 400)
    relay.look()
    relay.put(20001, route=new, next_route=old)
    relay.look()
    relay.carry(20001, 1, 10, 2, 20)

    assert counts(relay, old, new) == [[3, 300, 4, 400], [1, 10, 2, 20]]
    relay.look()
    assert total(relay) == account(4, 310, 6, 420)


def test_a_removed_route_tells_what_it_has_carried_and_is_forgotten(relay: Relay) -> None:
    id, other = relay.route("abcd"), relay.route("efgh")
    relay.put(20001, State.CLOSING, route=id)
    relay.carry(20001, 1, 1, 1, 1)
    relay.put(20002, route=id)
    relay.carry(20002, 10, 10, 10, 10)
    relay.look()
    relay.put(20003, route=id, next_route=other)
    relay.carry(20003, 100, 100, 100, 100)
    slots = [20002, 20003, *[0] * 6]
    entry = next(each for ufrag, each in relay.maps.routes() if ufrag == "abcd")
    entry.slots[:] = slots
    relay.maps._maps["routes"].update(ufrag_key("abcd"), bytes(entry))

    before = relay.events.last
    relay.remove("abcd")

    (told,) = [each for each in relay.events.since(before)[0] if each.kind == "route_removed"]
    assert told.facts["transceiver"] == "x1"
    assert removed([told]) == {"abcd": [111] * 4}
    assert counts(relay, other) == [[0] * 4], "what was carried before was the first route's"
    relay.carry(20003, 1, 1, 1, 1)
    assert counts(relay, other) == [[1] * 4]


def test_an_index_that_comes_to_another_route_brings_nothing_along(relay: Relay) -> None:
    id = relay.route("abcd")
    relay.put(20001, State.CLOSING, route=id)
    relay.carry(20001, 1, 1, 1, 1)
    relay.look()
    assert counts(relay, id) == [[1] * 4]

    again = id + INDEXES
    relay.table.ids.give_back(id)
    relay.table.ids.adopt([again])
    assert counts(relay, again) == [[0] * 4]
    relay.put(20002, State.PENDING, route=again)
    relay.carry(20002, 2, 2, 2, 2)
    relay.look()
    assert counts(relay, again, id) == [[2] * 4, [0] * 4]


@pytest.mark.parametrize("count", [1, 3, 200])
def test_all_routes_of_a_lease_tell_what_they_have_carried(relay: Relay, count: int) -> None:
    """Few by their entries in the map, many at once."""
    for number in range(count):
        id = relay.route(f"uf{number:04}")
        slot = 20001 + number % 60
        if number < 60:
            relay.put(slot, State.CLOSING, route=id)
            relay.carry(slot, number, 0, 0, number)
    relay.look()
    lease = relay.table.deregister("x1", instance="0123456789abcdef-first")
    assert lease is not None

    before = relay.events.last
    relay.housekeeping.end(lease, "deregistered")

    assert removed(relay.events.since(before)[0]) == {
        f"uf{number:04}": [number, 0, 0, number] if number < 60 else [0] * 4
        for number in range(count)
    }
    assert list(relay.maps.routes()) == []


# Transceivers.


def test_a_transceivers_total_goes_on_under_its_next_lease(relay: Relay) -> None:
    first = relay.table.leases()[0]
    relay.put(20001, route=relay.route("abcd"), transceiver=first.index)
    relay.carry(20001, 1, 10, 2, 20)
    relay.look()
    second = relay.register(instance="another-process-of-x1")
    assert second.index != first.index
    assert total(relay) == account(1, 10, 2, 20)

    relay.put(20002, route=99, transceiver=second.index)
    relay.carry(20002, 1, 1, 1, 1)
    for _ in range(12):
        relay.look()
        assert total(relay) == account(2, 11, 3, 21)
    assert relay.table.resting_indexes() == []


def test_an_index_that_comes_to_another_transceiver_brings_nothing_along(relay: Relay) -> None:
    first = relay.table.leases()[0]
    relay.put(20001, State.CLOSING, route=9, transceiver=first.index, since=900.0)
    relay.carry(20001, 1, 10, 2, 20)
    lease = relay.table.deregister("x1", instance="0123456789abcdef-first")
    assert lease is not None
    relay.housekeeping.end(lease, "deregistered")
    relay.look()

    second = relay.register("x2", port=40001)
    relay.look()
    assert second.index == first.index
    assert total(relay, "x2") == NOTHING


def test_totals_are_added_up_every_few_passes_with_all_that_has_closed_since(maps: Maps) -> None:
    relay = Relay(maps)
    relay.register()
    id = relay.route("abcd")
    found = []
    for number in range(3 * accounts.SUMMED_EVERY):
        relay.put(20001 + number, State.CLOSING, route=id, since=relay.now - 20)
        relay.carry(20001 + number, 1, 1, 1, 1)
        relay.look()
        found.append(total(relay).to_client.packets)

    assert found == [1, 1, 1, 1, 5, 5, 5, 5, 9, 9, 9, 9]
    assert counts(relay, id) == [[12] * 4]


def test_what_a_transceiver_carried_last_is_not_lost_with_its_index(maps: Maps) -> None:
    relay = Relay(maps)
    first = relay.register()
    relay.look()
    relay.put(20001, State.CLOSING, route=9, transceiver=first.index, since=relay.now - 20)
    relay.carry(20001, 1, 10, 2, 20)
    relay.register(instance="another-process-of-x1")
    relay.look()

    assert relay.table.resting_indexes() == []
    assert total(relay) == account(1, 10, 2, 20)


def test_totals_never_go_down_whatever_slots_say(relay: Relay) -> None:
    relay.put(20001, route=relay.route("abcd"))
    relay.carry(20001, 5, 50, 5, 50)
    relay.look()
    relay.maps.slots["to_transceiver"]["packets"][20001] = 1

    relay.look()
    assert total(relay).to_transceiver.packets == 5


def test_a_new_agent_counts_what_the_slots_have_counted(relay: Relay) -> None:
    id = relay.route("abcd")
    relay.put(20001, route=id)
    relay.carry(20001, 5, 50, 5, 50)

    relay.restart()

    assert counts(relay, id) == [[5, 50, 5, 50]]
    assert total(relay) == account(5, 50, 5, 50)


def test_routes_that_share_an_index_do_not_share_an_account(relay: Relay) -> None:
    lease = relay.table.leases()[0]
    lease.routes = {"abcd": Route(5), "efgh": Route(5 + INDEXES)}
    relay.restart()
    for slot, id in ((20001, 5), (20002, 5 + INDEXES)):
        relay.put(slot, State.PENDING, route=id)
        relay.carry(slot, 1, 1, 1, 1)
    relay.look()

    assert [counts(relay, id) for id in (5, 5 + INDEXES)] == [[[1] * 4]] * 2
    relay.carry(20001, 1, 1, 1, 1)
    assert [counts(relay, id) for id in (5, 5 + INDEXES)] == [[[2] * 4], [[1] * 4]]
