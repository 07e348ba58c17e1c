"""What every bench makes of its rounds: medians, spreads, ratios, and whether targets are met.

No measuring here, and no I/O but reading the file of targets.
"""

import statistics
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loader.errors import ShuntError

__all__ = [
    "TARGETS",
    "Case",
    "Held",
    "Report",
    "Spread",
    "Target",
    "hold",
    "read_targets",
    "spread",
]

TARGETS = Path(__file__).resolve().parent.parent.parent / "bench-targets.toml"


@dataclass(frozen=True, slots=True)
class Spread:
    """The median of several rounds, and the least and the most of them."""

    median: float
    low: float
    high: float

    def to_json(self) -> dict[str, float]:
        return {"median": self.median, "low": self.low, "high": self.high}


def spread(values: Sequence[float]) -> Spread:
    """Of at least one value."""
    return Spread(statistics.median(values), min(values), max(values))


@dataclass(frozen=True, slots=True)
class Case:
    """One thing that was measured: a value for each round, in the report's unit, or in its own."""

    name: str
    what: str
    rounds: tuple[float, ...]
    method: str = ""
    unit: str = ""

    @property
    def spread(self) -> Spread:
        return spread(self.rounds)


@dataclass(frozen=True, slots=True)
class Report:
    """What one bench has found; *facts* are what is no time: sizes, set-up, losses."""

    bench: str
    unit: str
    cases: tuple[Case, ...]
    facts: dict[str, Any] = field(default_factory=dict)

    def case(self, name: str) -> Case:
        """Raises ShuntError if nothing of that name was measured."""
        for case in self.cases:
            if case.name == name:
                return case
        raise ShuntError(
            f"the bench {self.bench} has no case {name}", "Correct bench-targets.toml."
        )

    def ratio(self, name: str, against: str) -> Spread:
        """Of two cases, round by round: what disturbs a round disturbs both alike."""
        pairs = zip(self.case(name).rounds, self.case(against).rounds, strict=True)
        return spread([value / base for value, base in pairs])

    def to_json(self) -> dict[str, Any]:
        return {
            "bench": self.bench,
            "unit": self.unit,
            "cases": [
                {
                    "name": case.name,
                    "what": case.what,
                    "method": case.method,
                    "unit": case.unit or self.unit,
                    **case.spread.to_json(),
                    "rounds": list(case.rounds),
                }
                for case in self.cases
            ],
            **self.facts,
        }


@dataclass(frozen=True, slots=True)
class Target:
    """A bound for the ratio of two cases, or, without *against*, for one case in the report's
    unit; exactly one of *at_most* and *at_least* is given."""

    name: str
    bench: str
    case: str
    against: str | None = None
    at_most: float | None = None
    at_least: float | None = None

    def met(self, value: float) -> bool:
        if self.at_most is not None:
            return value <= self.at_most
        return self.at_least is not None and value >= self.at_least

    @property
    def text(self) -> str:
        """The bound as it is printed."""
        return f"≤ {self.at_most:g}" if self.at_most is not None else f"≥ {self.at_least:g}"


@dataclass(frozen=True, slots=True)
class Held:
    """A target, held against what was measured."""

    target: Target
    value: Spread

    @property
    def met(self) -> bool:
        return self.target.met(self.value.median)

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.target.name,
            "value": self.value.median,
            "low": self.value.low,
            "high": self.value.high,
            "target": self.target.text,
            "met": self.met,
        }


def read_targets(bench: str, path: Path = TARGETS) -> list[Target]:
    """The targets of one bench. Raises ShuntError for a file that is none."""
    try:
        with path.open("rb") as file:
            entries = tomllib.load(file)["target"]
        if not isinstance(entries, list):
            raise TypeError("[target], not [[target]]")
        targets = [Target(**entry) for entry in entries]
    except (OSError, tomllib.TOMLDecodeError, KeyError, TypeError) as error:
        raise ShuntError(f"{path} holds no targets: {error}", "Restore it from git.") from None
    for target in targets:
        if (target.at_most is None) == (target.at_least is None):
            raise ShuntError(
                f"{path}: {target.name}: exactly one of at_most and at_least is wanted",
                "Correct bench-targets.toml.",
            )
    return [target for target in targets if target.bench == bench]


def hold(report: Report, targets: Sequence[Target]) -> list[Held]:
    """The targets against the report. Raises ShuntError if one names what was not measured."""
    return [Held(target, _value(report, target)) for target in targets]


def _value(report: Report, target: Target) -> Spread:
    if target.against is None:
        return report.case(target.case).spread
    return report.ratio(target.case, target.against)
