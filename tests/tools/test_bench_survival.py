"""The bench of survival: it runs, and a single packet misses its target."""

import io
from dataclasses import replace
from pathlib import Path

import pytest
from pyroute2 import netns
from rich.console import Console

from tools.bench import survival
from tools.bench.cables import INSIDE_END, PUBLIC_END, RELAY
from tools.bench.numbered import Flow
from tools.bench.report import Report, hold, read_targets
from tools.bench.show import show
from tools.bench.traffic import Report as Carried
from tools.bench.traffic import Way

PINS = Path("/sys/fs/bpf/shunt-bench-tests-survival")

WHOLE = Flow(sent=1000, received=1000, lost=(), duplicated=0, reordered=0, longest_gap=0.01)
LOSSY = replace(WHOLE, received=997, lost=((7, 9),))


def carried(*flows: Flow, seconds: float = 0.01) -> Carried:
    """So many flows, one way."""
    way = Way(
        direction="to_client",
        flows=flows,
        corrupted=0,
        astray=0,
        seconds=seconds,
        longest_gap=0.002,
        longest_pause=0.001,
        skipped=0.0,
        errors={},
    )
    return Carried(ways=(way,), drops={})


def report(rounds: list[Carried]) -> Report:
    """As if each event had gone like that."""
    return survival.report({event.name: rounds for event in survival.EVENTS}, facts={})


def missed(rounds: list[Carried]) -> set[str]:
    held = hold(report(rounds), read_targets("survival"))
    return {each.target.case.partition(".")[2] for each in held if not each.met}


def test_targets_are_for_every_event_but_nothing() -> None:
    events = {target.case.partition(".")[0] for target in read_targets("survival")}

    assert events == {event.name for event in survival.EVENTS} - {"nothing"}


def test_nothing_lost_meets_the_targets() -> None:
    assert missed([carried(WHOLE), carried(WHOLE)]) == set()


def test_one_round_that_loses_packets_misses_its_target() -> None:
    rounds = [carried(WHOLE), carried(WHOLE), carried(WHOLE, LOSSY)]

    assert missed(rounds) == {"faults"}
    (event, *_) = report(rounds).facts["events"]
    assert (event["sent"], event["faults"]) == (4000, {"to_client lost": 3})


def test_one_round_of_too_few_packets_a_second_misses_its_target() -> None:
    assert missed([carried(WHOLE), carried(WHOLE, seconds=0.021)]) == {"rate"}


def test_what_was_lost_is_shown() -> None:
    facts = {
        **{"flows": 1, "rounds": 1, "program": [], "kernel": "6", "cpus": 1, "cpu": "none"},
        **{"pinned_to_cpu": None, "load_average": 0.0},
    }
    rounds = {event.name: [carried(LOSSY)] for event in survival.EVENTS}
    said = io.StringIO()

    show(Console(file=said, width=160), survival.report(rounds, facts=facts), [])

    assert said.getvalue().count("3 to_client lost") == len(survival.EVENTS)


def test_a_run_kills_an_agent_amid_the_traffic(monkeypatch: pytest.MonkeyPatch) -> None:
    killed = [event for event in survival.EVENTS if event.name == "kill"]
    monkeypatch.setattr(survival, "EVENTS", tuple(killed))
    said: list[str] = []

    found = survival.run(PINS, quick=True, progress=said.append)

    assert said[-1] == "bench survival: round 1 of 1: kill -9 of the agent, and a new one"
    assert found.case("kill.sent").rounds[0] >= 100_000
    assert found.case("kill.faults").rounds == (0.0,)
    assert not PINS.exists()
    assert {PUBLIC_END, RELAY, INSIDE_END}.isdisjoint(netns.listnetns())
