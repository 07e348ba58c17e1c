"""`shunt test`: the whole suite, or what its arguments ask pytest for."""

import os
import subprocess
import sys
from collections.abc import Sequence

from tools.processes import ROOT

__all__ = ["lanes", "run"]

_MOST_LANES = 4  # each has a lab of its own, and a browser
_SLOWEST = "--durations=25"


def lanes(cpus: int) -> int:
    """How many tests run side by side: one more than there are CPUs, since many wait."""
    return min(cpus + 1, _MOST_LANES)


def run(arguments: Sequence[str]) -> int:
    """Run pytest from the project's folder; the exit status.

    Without arguments, the whole suite: side by side in lanes, and after that, one by one, what is
    marked `alone`.
    """
    os.chdir(ROOT)
    pytest = [sys.executable, "-m", "pytest"]
    if arguments:
        os.execv(sys.executable, [*pytest, *arguments])
    count = lanes(len(os.sched_getaffinity(0)))
    side_by_side = ["-n", str(count), "--dist", "loadfile", "--no-loadscope-reorder"]
    statuses = [
        subprocess.run([*pytest, _SLOWEST, *more], check=False).returncode
        for more in ((*side_by_side, "-m", "not alone"), ("-m", "alone", *_with_some_alone()))
    ]
    return max(statuses)


def _with_some_alone() -> list[str]:
    """Files that speak of such tests: to collect all of the others again takes ten seconds."""
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    return [str(file) for file in files if "mark.alone" in file.read_text()]
