"""What became of the trial, if there was one."""

from collections.abc import Iterator

from loader.types import Mode
from tools.doctor.facts import Facts
from tools.doctor.findings import Check, Finding, failure, not_applicable, ok, unknown, warning

__all__ = ["CHECKS"]


def _trial(facts: Facts) -> Iterator[Finding]:
    trial = facts.trial
    if trial is None:
        yield not_applicable("not asked for (--try)")
    elif trial.why_not:
        yield unknown(f"not tried: {trial.why_not}", "sudo shunt doctor --try")
    elif trial.trouble:
        yield failure(trial.trouble, trial.cure)
    elif trial.mode is not Mode.NATIVE:
        yield warning(
            "the program loads, but a veth took it in generic mode only", "dmesg | tail -n 20"
        )
    else:
        yield ok(
            f"loaded and attached in {trial.seconds:.1f} s: {trial.instructions} instructions "
            f"verified, {trial.bytes} bytes of machine code"
        )


CHECKS = (
    Check(
        "try",
        "Whether this kernel takes the program, only its verifier knows.",
        _trial,
    ),
)
