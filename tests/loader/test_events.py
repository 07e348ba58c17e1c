"""The log of events: what is told, what is remembered, and what who comes back learns of it."""

import json

import pytest

from loader.events import KEPT, KINDS, Event, EventLog

NOW = 1_700_000_000.5


def log(now: float = NOW) -> EventLog:
    return EventLog(clock=lambda: now)


def numbers(events: list[Event]) -> list[int]:
    return [event.number for event in events]


def test_an_event_has_its_time_and_its_facts() -> None:
    events = log()

    event = events.tell("route_added", ufrag="abcd")
    earlier = events.tell("first_check", at=NOW - 1, ufrag="abcd")

    assert (event.at, event.kind, event.facts) == (NOW, "route_added", {"ufrag": "abcd"})
    assert (earlier.at, earlier.number) == (NOW - 1, event.number + 1)


def test_only_kinds_that_have_a_meaning_are_told() -> None:
    events = log()

    with pytest.raises(KeyError):
        events.tell("rumour")
    assert events.since(0) == ([], 0)
    assert all(KINDS.values())


def test_who_comes_back_gets_what_he_has_not_seen() -> None:
    events = log()
    before = events.last
    told = [events.tell("route_added", ufrag=str(n)) for n in range(5)]

    assert events.since(before) == (told, 0)
    assert events.since(told[2].number) == (told[3:], 0)
    assert events.since(events.last) == ([], 0)
    assert events.since(0) == (told, 0)


def test_who_was_away_for_too_long_learns_how_much_he_has_missed() -> None:
    events = log()
    told = [events.tell("route_added").number for _ in range(KEPT + 3)]

    left, missed = events.since(told[0])
    assert (numbers(left), missed) == (told[3:], 2)
    assert events.since(told[2]) == (left, 0)
    assert events.since(0) == (left, 3)


@pytest.mark.parametrize("number", [1, (int(NOW) << 20) - 5, 1 << 60, -1])
def test_who_left_another_agent_learns_that_he_has_missed_what_nobody_knows(number: int) -> None:
    events = log()
    told = events.tell("adopted")

    assert events.since(number) == ([told], None)


def test_a_later_agent_never_gives_an_earlier_ones_numbers() -> None:
    first, second = log(NOW), log(NOW + 1)

    last = [first.tell("route_added") for _ in range(1000)][-1]

    assert second.tell("adopted").number > last.number
    assert second.since(last.number)[1] is None


def test_a_number_is_the_same_in_json_for_everybody() -> None:
    number = log(4e9).tell("adopted").number

    assert number == int(float(json.dumps(number)))
    assert number < 2**53


def test_listeners_hear_each_event_until_they_stop() -> None:
    events, heard = log(), list[int]()
    stop = events.listen(lambda event: heard.append(event.number))

    told = events.tell("adopted")
    stop()
    stop()
    events.tell("adopted")

    assert heard == [told.number]


def test_a_listener_may_stop_while_it_is_told() -> None:
    events, heard = log(), list[str]()

    def once(_event: Event) -> None:
        heard.append("once")
        stop()

    stop = events.listen(once)
    events.listen(lambda _event: heard.append("always"))
    events.tell("adopted")
    events.tell("adopted")

    assert heard == ["once", "always", "always"]
