"""What is told of sessions, from one look at their slots to the next."""

from typing import Any

import pytest

from loader.events import Event
from loader.maps import Maps
from loader.routeids import INDEXES
from loader.sessions import TOLD_A_PASS
from loader.table import Route
from loader.types import TICK, State
from tests.loader.relay import WALL, Relay

HOME, AWAY = "198.18.0.10", "2001:db8:18::77"
BY_HOME, BY_AWAY = f"{HOME}:50000", f"[{AWAY}]:50000"


@pytest.fixture
def relay(maps: Maps) -> Relay:
    made = Relay(maps)
    made.register()
    return made


def told(events: list[Event]) -> list[tuple[str, Any]]:
    """Kinds, and of which ufrag."""
    return [(event.kind, event.facts.get("ufrag")) for event in events]


def prove(relay: Relay, slot: int) -> None:
    relay.maps.slots["to_client"]["proven"][slot] = 1


def test_a_session_is_told_from_its_first_check_to_its_end(relay: Relay) -> None:
    id = relay.route("abcd")
    assert relay.look() == []

    relay.put(20001, State.PENDING, route=id)
    (checked,) = relay.look()
    assert (checked.kind, checked.facts) == (
        "first_check",
        {"ufrag": "abcd", "transceiver": "x1", "client": BY_HOME, "slot": 20001},
    )

    relay.put(20001, State.ESTABLISHED, route=id)
    (established,) = relay.look()
    assert (established.kind, established.facts) == ("established", checked.facts)

    prove(relay, 20001)
    (confirmed,) = relay.look()
    assert (confirmed.kind, confirmed.facts) == ("confirmed", checked.facts)

    for _ in range(27):
        assert relay.look() == [], "said once"
    (expired,) = relay.look()
    assert (expired.kind, expired.facts) == ("expired", {**checked.facts, "was": "established"})
    for _ in range(12):
        assert relay.look() == []


def test_events_have_the_time_at_which_it_happened(relay: Relay) -> None:
    id = relay.route("abcd")
    opened = relay.now
    relay.put(20001, State.PENDING, route=id)
    (checked,) = relay.look(after=0.9)
    established = relay.now
    relay.put(20001, State.ESTABLISHED, route=id)
    (answered,) = relay.look(after=0.5)

    assert checked.at == pytest.approx(WALL + opened, abs=2 * TICK)
    assert answered.at == pytest.approx(WALL + established, abs=2 * TICK)


def test_what_happened_within_one_pass_is_told_in_its_order(relay: Relay) -> None:
    late, early = relay.route("late"), relay.route("early")
    relay.put(20001, route=late, since=relay.now + 0.6, seen=relay.now + 0.6)
    relay.put(20002, State.PENDING, route=early, since=relay.now + 0.2)
    prove(relay, 20001)

    assert told(relay.look()) == [
        ("first_check", "early"),
        ("first_check", "late"),
        ("established", "late"),
        ("confirmed", "late"),
    ]


def test_the_first_check_of_a_route_is_told_once_whoever_it_comes_from(relay: Relay) -> None:
    id = relay.route("abcd")
    relay.put(20002, State.PENDING, route=id, client=AWAY, since=relay.now + 0.5)
    relay.put(20001, State.PENDING, route=id)

    (checked,) = relay.look()
    assert checked.facts["client"] == BY_HOME, "the earliest"
    relay.put(20003, State.PENDING, route=id, client="198.18.0.12")
    assert relay.look() == []


def test_a_pending_slot_that_others_take_over_again_and_again_is_no_news(relay: Relay) -> None:
    id = relay.route("abcd")
    relay.put(20001, State.PENDING, route=id)
    relay.look()

    for client in range(20):
        relay.put(20001, State.PENDING, route=id, client=f"198.18.0.{client + 100}")
        assert relay.look() == []


def test_a_transceiver_that_makes_no_checks_has_none_confirmed(relay: Relay) -> None:
    """The relay takes its clients for proven from the start."""
    relay.put(20001, State.PENDING, route=relay.route("abcd", checks=False))
    prove(relay, 20001)

    assert told(relay.look()) == [("first_check", "abcd")]


def test_what_expires_before_it_is_established_is_told_as_that(relay: Relay) -> None:
    relay.put(20001, State.PENDING, route=relay.route("abcd"))
    relay.look()

    (expired,) = relay.look(after=31)
    assert expired.facts["was"] == "pending"


def test_an_orphan_is_closed_without_a_word(relay: Relay) -> None:
    relay.put(20001, route=77)

    assert relay.look() == []
    assert relay.maps.slots["to_client"]["state"][20001] == State.CLOSING


def test_an_ice_restart_is_a_first_check_and_an_established_flow_of_the_new_route(
    relay: Relay,
) -> None:
    old, new = relay.route("old+"), relay.route("new+")
    relay.put(20001, route=old)
    relay.look()

    relay.put(20001, route=old, next_route=new)
    assert told(relay.look()) == [("first_check", "new+")]
    relay.put(20001, route=new, next_route=old)
    assert told(relay.look()) == [("established", "new+")]
    relay.put(20001, route=old, next_route=new)
    assert told(relay.look()) == [], "back and forth is no news"
    relay.put(20001, route=new, next_route=old)
    assert told(relay.look()) == []


def test_a_removed_routes_events_are_not_the_next_ones(relay: Relay) -> None:
    relay.put(20001, route=relay.route("abcd"))
    relay.look()
    relay.remove("abcd")
    relay.look(after=11)

    relay.put(20001, State.PENDING, route=relay.route("abcd"))
    assert told(relay.look()) == [("first_check", "abcd")]


def test_an_index_that_comes_to_another_route_begins_with_its_first_check(relay: Relay) -> None:
    id = relay.route("abcd")
    relay.put(20001, route=id)
    relay.look()
    relay.remove("abcd")
    relay.look(after=11)
    again = id + INDEXES
    lease = relay.table.leases()[0]
    lease.routes = {"efgh": Route(again)}
    relay.table.adopt([lease], now=relay.now)
    relay.keep_leases()

    relay.put(20001, route=again)
    assert told(relay.look()) == [("first_check", "efgh"), ("established", "efgh")]
    relay.put(20002, route=again, client=AWAY)
    assert told(relay.look()) == [("established", "efgh")]


# Roaming.


def settled(relay: Relay) -> int:
    """A session whose flow is slot 20001, for long enough; its route."""
    id = relay.route("abcd")
    relay.put(20001, route=id)
    for _ in range(8):
        relay.hear(20001)
        relay.look()
    return id


def roam(relay: Relay, id: int) -> None:
    relay.put(20002, route=id, client=AWAY)


def test_media_from_another_address_is_roaming(relay: Relay) -> None:
    roam(relay, settled(relay))
    assert told(relay.look()) == [("established", "abcd")]

    relay.carry(20002, 50, 5000, 50, 5000)
    relay.carry(20001, 2, 200, 2, 200)
    relay.hear(20001, 20002)
    (roamed,) = relay.look()
    assert (roamed.kind, roamed.facts) == (
        "roamed",
        {
            **{"ufrag": "abcd", "transceiver": "x1", "slot": 20002},
            **{"client": BY_AWAY, "before": BY_HOME},
        },
    )
    relay.carry(20002, 50, 5000, 50, 5000)
    assert relay.look() == []


def test_a_client_that_is_heard_only_from_another_address_has_roamed(relay: Relay) -> None:
    roam(relay, settled(relay))
    kinds = []
    for _ in range(7):
        relay.hear(20002)
        kinds += told(relay.look())

    assert kinds == [("established", "abcd"), ("roamed", "abcd")]


def test_checks_from_other_addresses_are_no_roaming(relay: Relay) -> None:
    """A client that keeps a spare path alive, and says nothing meanwhile."""
    roam(relay, settled(relay))
    relay.look()
    for number in range(20):
        relay.carry(20002, 2, 200, 2, 200)
        if number % 4 == 0:
            relay.carry(20001, 1, 100, 1, 100)
            relay.hear(20001)
        relay.hear(20002)
        assert relay.look() == []


def test_while_the_session_carries_as_much_as_the_other_path_it_stays(relay: Relay) -> None:
    roam(relay, settled(relay))
    relay.look()
    for _ in range(5):
        for slot in (20001, 20002):
            relay.carry(slot, 50, 5000, 50, 5000)
            relay.hear(slot)
        assert relay.look() == []


def test_which_address_a_client_chooses_at_first_is_no_roaming(relay: Relay) -> None:
    id = relay.route("abcd")
    relay.put(20001, route=id)
    relay.put(20002, route=id, client=AWAY)
    kinds = []
    for _ in range(30):
        relay.hear(20002)
        relay.carry(20002, 50, 5000, 50, 5000)
        kinds += [event.kind for event in relay.look()]

    assert kinds == ["first_check", "established", "established", "expired"]
    relay.put(20003, route=id, client="198.18.0.33")
    relay.maps.slots["to_client"]["state"][20002] = State.CLOSING
    relay.maps.slots["to_transceiver"]["state"][20002] = State.CLOSING
    (established, roamed) = relay.look()
    assert (established.kind, roamed.kind) == ("established", "roamed")
    assert roamed.facts["before"] == BY_AWAY, "the one that it chose"


def test_in_its_first_seconds_a_session_only_chooses_among_addresses(relay: Relay) -> None:
    """Whichever it has carried something through by then."""
    id = relay.route("abcd")
    relay.put(20001, route=id)
    relay.put(20002, route=id, client=AWAY)
    kinds = []
    for slot in (20001, 20002, 20001, 20002):
        relay.carry(slot, 50, 5000, 50, 5000)
        relay.hear(20001, 20002)
        kinds += [event.kind for event in relay.look()]

    assert kinds == ["first_check", "established", "established"]


def test_a_client_that_comes_back_after_its_flow_is_over_has_not_roamed(relay: Relay) -> None:
    id = settled(relay)
    relay.look(after=31)
    relay.put(20002, route=id)

    assert told(relay.look()) == [("established", "abcd")]


def test_of_several_addresses_the_one_that_carries_most_is_it(relay: Relay) -> None:
    id = settled(relay)
    for slot, host in ((20002, 2), (20003, 3), (20004, 4)):
        relay.put(slot, route=id, client=f"198.18.0.{host}")
    relay.look()
    for slot, count in ((20002, 3000), (20003, 9000), (20004, 5000)):
        relay.carry(slot, 9, count, 0, 0)

    (roamed,) = relay.look()
    assert roamed.facts["client"] == "198.18.0.3:50000"


# Bounds.


def test_a_flood_makes_no_more_than_so_many_events_and_says_how_many_more(many_ports: Maps) -> None:
    relay = Relay(many_ports)
    relay.register()
    extra = 100
    routes = [relay.route(f"uf{number:05}") for number in range(TOLD_A_PASS + extra)]
    for place, id in enumerate(routes):
        relay.put(20000 + place, State.PENDING, route=id)

    events = relay.look()
    kinds = [event.kind for event in events]
    assert kinds == ["first_check"] * TOLD_A_PASS + ["left_out"]
    assert events[-1].facts == {"first_check": extra}
    assert relay.look() == [], "and that is that"


def test_many_flows_of_few_routes_are_all_looked_at_in_the_end(many_ports: Maps) -> None:
    """However many there are, each pass looks at no more than so many."""
    relay = Relay(many_ports)
    relay.register()
    id, crowd = relay.route("abcd"), relay.route("crowd")
    relay.put(20001, route=id)
    for slot in range(20010, 23000):
        relay.put(slot, route=crowd)
    for _ in range(6):
        relay.hear(*range(20001, 23000))
        relay.look()
    relay.put(23000, route=id, client=AWAY)
    relay.look()
    roamed = []
    for _ in range(30):
        relay.hear(*range(20001, 23001))
        relay.carry(23000, 9, 50000, 0, 0)
        roamed += [event for event in relay.look() if event.kind == "roamed"]

    assert [event.facts["client"] for event in roamed if event.facts["ufrag"] == "abcd"] == [
        BY_AWAY
    ]


# A new agent.


def test_a_new_agent_takes_what_it_finds_for_no_news(relay: Relay) -> None:
    id, pending = settled(relay), relay.route("efgh")
    prove(relay, 20001)
    relay.put(20003, State.PENDING, route=pending)
    relay.look()

    relay.restart()

    for _ in range(6):
        assert relay.look() == []
        relay.hear(20001, 20003)
    roam(relay, id)
    relay.put(20003, route=pending)
    assert sorted(told(relay.look())) == [("established", "abcd"), ("established", "efgh")]
    relay.hear(20002)
    relay.carry(20002, 50, 5000, 50, 5000)
    assert told(relay.look()) == [("roamed", "abcd")]


def test_a_new_agent_does_not_tell_of_roaming_that_was_over_before(relay: Relay) -> None:
    roam(relay, settled(relay))
    relay.look()
    relay.now += 0.5
    relay.hear(20001)
    relay.restart()
    for _ in range(10):
        relay.hear(20001, 20002)
        relay.carry(20002, 50, 5000, 50, 5000)
        assert relay.look() == []


def test_what_expired_while_there_was_no_agent_is_told(relay: Relay) -> None:
    settled(relay)
    relay.now += 60
    relay.restart()

    assert told(relay.look()) == [("expired", "abcd")]


def test_routes_that_share_an_index_are_let_alone(relay: Relay) -> None:
    lease = relay.table.leases()[0]
    lease.routes = {"abcd": Route(5), "efgh": Route(5 + (1 << 20))}
    relay.restart()
    relay.put(20001, route=5)
    relay.put(20002, route=5 + (1 << 20))

    assert len({ufrag for _kind, ufrag in told(relay.look())}) == 1
    assert relay.maps.slots["to_client"]["state"][20001] == State.ESTABLISHED
    assert relay.maps.slots["to_client"]["state"][20002] == State.ESTABLISHED
