"""All checks, in the order in which they are reported."""

from tools.doctor.checks import addresses, host, interfaces, relay, trial
from tools.doctor.facts import Facts
from tools.doctor.findings import Check, Diagnosis

__all__ = ["CHECKS", "examine"]

CHECKS: tuple[Check, ...] = (
    *host.CHECKS,
    *interfaces.CHECKS,
    *addresses.CHECKS,
    *relay.CHECKS,
    *trial.CHECKS,
)


def examine(facts: Facts) -> list[Diagnosis]:
    """What all checks find in the facts."""
    return [Diagnosis(check, finding) for check in CHECKS for finding in check.look(facts)]
