"""What a bench makes of its rounds, on made-up numbers; nothing here is measured."""

import json
from pathlib import Path

import pytest

from loader.errors import ShuntError
from tools.bench import run as runs
from tools.bench.report import Case, Report, Target, hold, read_targets

FACTS = {
    "program": [{"name": "shunt", "verified": 900, "xlated": 800, "jited": 700}],
    "kernel": "6.18",
    "cpu": "one",
    "cpus": 2,
    "pinned_to_cpu": 1,
    "load_average": 0.25,
}
REPORT = Report(
    "dataplane",
    "ns a packet",
    (
        Case("bare.swap", "bare MAC swap + XDP_TX", (10.0, 40.0, 20.0), "again"),
        Case("ipv4.to_client", "established", (20.0, 84.0, 50.0), "itself"),
    ),
    FACTS,
)
AT_MOST = Target("name", "dataplane", "ipv4.to_client", "bare.swap", at_most=2.5)


def test_a_case_is_its_median_and_its_spread() -> None:
    found = REPORT.case("ipv4.to_client").spread

    assert (found.median, found.low, found.high) == (50.0, 20.0, 84.0)


def test_a_ratio_is_taken_round_by_round() -> None:
    found = REPORT.ratio("ipv4.to_client", "bare.swap")

    assert (found.median, found.low, found.high) == (2.1, 2.0, 2.5)


@pytest.mark.parametrize(
    ("bound", "met"),
    [
        ({"at_most": 2.1}, True),
        ({"at_most": 2.09}, False),
        ({"at_least": 2.1}, True),
        ({"at_least": 2.11}, False),
    ],
)
def test_a_target_is_held_against_the_median(bound: dict[str, float], met: bool) -> None:
    (held,) = hold(REPORT, [Target("name", "dataplane", "ipv4.to_client", "bare.swap", **bound)])

    assert (held.value.median, held.met) == (2.1, met)


@pytest.mark.parametrize(("bound", "met"), [(50.0, True), (49.9, False)])
def test_a_target_may_be_for_one_case_alone(bound: float, met: bool) -> None:
    (held,) = hold(REPORT, [Target("name", "dataplane", "ipv4.to_client", at_most=bound)])

    assert (held.value.median, held.met) == (50.0, met)


def test_a_target_for_what_was_not_measured_is_an_error() -> None:
    with pytest.raises(ShuntError, match=r"no case ipv4\.no_flow"):
        hold(REPORT, [Target("name", "dataplane", "ipv4.no_flow", "bare.swap", at_most=1.0)])


def test_targets_are_read_for_one_bench(tmp_path: Path) -> None:
    file = tmp_path / "targets.toml"
    file.write_text(
        '[[target]]\nname = "a"\nbench = "live"\ncase = "x"\nagainst = "y"\nat_least = 0.5\n'
        '[[target]]\nname = "b"\nbench = "other"\ncase = "x"\nagainst = "y"\nat_most = 2\n'
    )

    assert read_targets("live", file) == [Target("a", "live", "x", "y", at_least=0.5)]


@pytest.mark.parametrize(
    "text",
    [
        "no targets",
        "[target]\n",
        '[[target]]\nname = "a"\n',
        '[[target]]\nname = "a"\nbench = "live"\ncase = "x"\nagainst = "y"\n',
        '[[target]]\nname = "a"\nbench = "live"\ncase = "x"\nagainst = "y"\n'
        "at_most = 1\nat_least = 1\n",
    ],
)
def test_a_file_of_targets_that_is_none_is_an_error(tmp_path: Path, text: str) -> None:
    file = tmp_path / "targets.toml"
    file.write_text(text)

    with pytest.raises(ShuntError, match=r"targets\.toml"):
        read_targets("live", file)


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bench that measures nothing."""
    monkeypatch.setattr(runs, "_bench", lambda name: lambda pins, *, quick, progress: REPORT)


@pytest.mark.usefixtures("made_up")
@pytest.mark.parametrize(("bound", "status", "met"), [(2.5, 0, "yes"), (2.0, 1, "NO")])
def test_check_prints_a_line_for_each_target_and_fails_if_one_is_missed(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    bound: float,
    status: int,
    met: str,
) -> None:
    target = Target("swap", "dataplane", "ipv4.to_client", "bare.swap", at_most=bound)
    monkeypatch.setattr(runs, "read_targets", lambda bench: [AT_MOST, target])

    assert runs.run("dataplane", quick=True, check=True, as_json=False) == status

    lines = capsys.readouterr().out.splitlines()
    (line,) = (line for line in lines if line.startswith("swap"))
    assert line.split() == ["swap", "2.10", "(2.00–2.50)", "≤", f"{bound:g}", met]


@pytest.mark.usefixtures("made_up")
def test_without_check_no_target_is_held(capsys: pytest.CaptureFixture[str]) -> None:
    assert runs.run("dataplane", quick=True, check=False, as_json=True) == 0

    printed = json.loads(capsys.readouterr().out)
    assert "targets" not in printed
    assert [case["median"] for case in printed["cases"]] == [20.0, 50.0]


@pytest.mark.usefixtures("made_up")
def test_json_has_the_targets_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(runs, "read_targets", lambda bench: [AT_MOST])

    assert runs.run("dataplane", quick=True, check=True, as_json=True) == 0

    (held,) = json.loads(capsys.readouterr().out)["targets"]
    assert held == {
        "name": "name",
        "value": 2.1,
        "low": 2.0,
        "high": 2.5,
        "target": "≤ 2.5",
        "met": True,
    }
