"""Both benches run, in seconds, and give every case; what they measure is nobody's concern here."""

import itertools
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from pyroute2 import netns

from loader.errors import ShuntError
from loader.maps import Counters, Rate
from tools.bench import cables, dataplane, live
from tools.bench.alone import alone
from tools.bench.report import Report, hold, read_targets
from tools.bench.subject import Subject
from tools.netns import create

PINS = Path("/sys/fs/bpf/shunt-bench-tests")
BENCHES = {"dataplane": dataplane.run, "live": live.run}


@pytest.fixture(scope="module")
def reports() -> dict[str, Report]:
    progress: list[str] = []
    made = {name: run(PINS, quick=True, progress=progress.append) for name, run in BENCHES.items()}
    assert [line for line in progress if "round 1 of" in line]
    return made


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", BENCHES)
def test_a_quick_run_measures_all_that_the_targets_ask_for(
    reports: dict[str, Report], name: str
) -> None:
    report = reports[name]

    assert all(value > 0 for case in report.cases for value in case.rounds)
    assert len(hold(report, read_targets(name))) > 1
    assert not list(PINS.parent.glob(f"{PINS.name}*"))


def test_dataplane_has_each_case_for_each_family(reports: dict[str, Report]) -> None:
    names = {case.name for case in reports["dataplane"].cases}

    every = ("to_transceiver", "to_client", "first_stun")
    one = (*every, "check", "no_route", "class", "no_flow")
    assert names >= {f"bare.{case}" for case in ("drop", "swap", "redirect")}
    assert names >= {f"{family}.{case}" for family in ("ipv4", "ipv6") for case in one}
    assert names >= {f"{family}.{case}" for family in ("4to6", "6to4") for case in every}


def test_live_has_each_number_of_flows_both_ways(reports: dict[str, Report]) -> None:
    report = reports["live"]

    cases = ("drop", "redirect", "1", "10000", "60000", "1000000")
    wanted = {".".join(pair) for pair in itertools.product(("to_transceiver", "to_client"), cases)}
    assert {case.name for case in report.cases} == {
        *wanted,
        *(f"{case}.{flows}" for case in ("touch", "hostile") for flows in (60_000, 1_000_000)),
    }
    assert [each["flows"] for each in report.facts["setup"]] == [60_000, 1_000_000]
    assert all(each["bytes_per_slot"] > 0 for each in report.facts["memory"])
    assert all(0 <= lost < 1 for lost in report.facts["lost"].values())


@pytest.fixture
def leftover() -> Iterator[None]:
    """What a bench leaves that was killed."""
    with alone(print):
        create(cables.RELAY)
        yield
        assert cables.RELAY not in netns.listnetns()


@pytest.mark.usefixtures("leftover")
def test_cables_are_laid_over_what_a_killed_bench_has_left() -> None:
    with cables.cables() as laid:
        assert laid.public != laid.inside
        assert cables.arrived(cables.RELAY, laid.public) == 0

    assert not {name for name in netns.listnetns() if name.startswith("bench-")}


def test_a_bench_waits_for_the_end_of_another() -> None:
    said: list[str] = []
    before = os.sched_getaffinity(0)

    def wait() -> None:
        with alone(said.append) as cpu:
            said.append(f"on {cpu}")

    with alone(print) as cpu:
        assert os.sched_getaffinity(0) == {cpu}
        other = threading.Thread(target=wait)
        other.start()
        deadline = time.monotonic() + 5
        while not said and time.monotonic() < deadline:
            time.sleep(0.01)
        assert said == ["waiting for another bench to end"]
    other.join()

    assert said[1:] == [f"on {cpu}"]
    assert os.sched_getaffinity(0) == before


@pytest.mark.parametrize("expected", [{"no_flow": 3}, {"no_flow": 2, "to_client": 1}, {}])
def test_a_measurement_of_something_else_is_an_error(expected: dict[str, int]) -> None:
    nothing = Rate(0, 0)
    readings = [Counters(nothing, nothing, nothing, {"no_flow": count}) for count in (5, 7)]
    subject = Subject(PINS, inside=1)
    subject.maps = SimpleNamespace(counters=iter(readings).__next__)  # type: ignore[assignment]

    with (
        pytest.raises(ShuntError, match=r"what: the relay counted \{'no_flow': 2\}"),
        subject.counted("what", expected),
    ):
        pass
