"""What a run of the suite sees of this machine, and what it leaves behind."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from tools.processes import ROOT, alive, identify

_SCRIPT = """
import subprocess, sys
from pathlib import Path
from tests.isolation import isolate
isolate()
import os
print(*os.listdir("/run/netns"), *os.listdir("/sys/fs/bpf"), *os.listdir("/run"))
print(subprocess.check_output(["ip", "-brief", "link"], text=True).split()[:2])
left = subprocess.Popen(["sleep", "1000"], start_new_session=True)
print(left.pid, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def run() -> Iterator["subprocess.Popen[str]"]:
    """A process that has isolated itself, and waits for its input's end."""
    with subprocess.Popen(
        [sys.executable, "-c", _SCRIPT],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as made:
        yield made
        made.kill()


def line(run: "subprocess.Popen[str]") -> str:
    assert run.stdout
    return run.stdout.readline().strip()


def test_it_sees_nothing_of_the_machines(run: "subprocess.Popen[str]") -> None:
    assert set(line(run).split()) == {
        *("maps.debug", "progs.debug"),  # which every bpffs has
        *("lock", "netns"),
    }
    assert line(run) == "['lo', 'UNKNOWN']"


@pytest.mark.parametrize("end", ["killed", "over"])
def test_nothing_that_it_started_outlives_it(run: "subprocess.Popen[str]", end: str) -> None:
    line(run), line(run)
    left = identify(int(line(run)))
    assert left
    assert run.stdin

    if end == "killed":
        run.send_signal(signal.SIGKILL)
    else:
        run.stdin.close()

    deadline = time.monotonic() + 30
    while alive(left):
        assert time.monotonic() < deadline, "it is still there"
        time.sleep(0.01)
