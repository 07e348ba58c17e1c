"""What a check is, and what it can find. No I/O."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum

from tools.doctor.facts import Facts

__all__ = [
    "Check",
    "Diagnosis",
    "Finding",
    "Verdict",
    "failure",
    "not_applicable",
    "ok",
    "unknown",
    "warning",
]


class Verdict(StrEnum):
    """How bad it is. Only a failure makes the command fail."""

    FAILURE = "failure"
    """The relay does not work like this, or loses packets."""
    WARNING = "warning"
    """It works, but slower than it could, or something else on the host suffers."""
    UNKNOWN = "unknown"
    """Could not be seen, mostly for want of privilege."""
    OK = "ok"
    NOT_APPLICABLE = "not applicable"


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found, in words; *about*: the interface, address or the like, if it is about
    one. *cure*: the command that mends it, or where there is none, who has to do what."""

    verdict: Verdict
    found: str
    cure: str = ""
    about: str = ""


def ok(found: str, *, about: str = "") -> Finding:
    """All is well."""
    return Finding(Verdict.OK, found, about=about)


def warning(found: str, cure: str, *, about: str = "") -> Finding:
    """It works, but not well."""
    return Finding(Verdict.WARNING, found, cure, about)


def failure(found: str, cure: str, *, about: str = "") -> Finding:
    """It does not work."""
    return Finding(Verdict.FAILURE, found, cure, about)


def unknown(found: str, cure: str = "", *, about: str = "") -> Finding:
    """It could not be seen; *cure*: how it could."""
    return Finding(Verdict.UNKNOWN, found, cure, about)


def not_applicable(found: str, *, about: str = "") -> Finding:
    """There is nothing here that the check could be about."""
    return Finding(Verdict.NOT_APPLICABLE, found, about=about)


@dataclass(frozen=True, slots=True)
class Check:
    """A check: its stable *name*, *why* it matters in a sentence, and how it looks at the facts."""

    name: str
    why: str
    look: Callable[[Facts], Iterable[Finding]]


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """One finding of one check."""

    check: Check
    finding: Finding
