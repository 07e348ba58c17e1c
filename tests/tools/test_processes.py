import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from pyroute2 import netns

from tools.netns import RUN_DIR, create, pids_in, run_in
from tools.processes import Process, alive, end, identify, spawn, tail

SPACE = "t-tools-processes"


@pytest.fixture
def namespace() -> Iterator[str]:
    create(SPACE)
    yield SPACE
    end(process for pid in pids_in([SPACE]) if (process := identify(pid)))
    netns.remove(SPACE)


def start(namespace: str, log: Path, script: str) -> Process:
    """A Python process that has said `ready` in its log."""
    argv = [
        sys.executable,
        "-c",
        f"import signal, time; {script}; print('ready', flush=True); time.sleep(60)",
    ]
    process = spawn("it", argv, namespace=namespace, log=log, environment=os.environ)
    deadline = time.monotonic() + 10
    while "ready" not in tail(process):
        assert time.monotonic() < deadline, tail(process)
        time.sleep(0.01)
    return process


def test_a_spawned_process_lives_in_its_namespace(namespace: str, tmp_path: Path) -> None:
    process = start(namespace, tmp_path / "log", "pass")

    assert pids_in([namespace]) == [process.pid]


def test_end_ends_it(namespace: str, tmp_path: Path) -> None:
    process = start(namespace, tmp_path / "log", "pass")

    end([process])

    assert not alive(process)
    assert pids_in([namespace]) == []


def test_end_kills_what_ignores_sigterm(namespace: str, tmp_path: Path) -> None:
    ignore = "signal.signal(signal.SIGTERM, signal.SIG_IGN)"
    process = start(namespace, tmp_path / "log", ignore)

    end([process], patience_s=0.2)

    assert not alive(process)


def test_end_spares_a_process_that_has_only_the_pid(namespace: str, tmp_path: Path) -> None:
    process = start(namespace, tmp_path / "log", "pass")

    end([replace(process, started=process.started - 1)])

    assert alive(process)


def test_a_name_that_leads_to_the_hosts_namespace_has_no_processes() -> None:
    leftover = RUN_DIR / "t-tools-leftover"
    RUN_DIR.mkdir(exist_ok=True)
    leftover.touch()
    subprocess.run(["mount", "--bind", "/proc/self/ns/net", str(leftover)], check=True)
    try:
        assert pids_in([leftover.name]) == []
    finally:
        netns.remove(leftover.name)


def test_run_in_hands_on_what_the_work_raises(namespace: str) -> None:
    with pytest.raises(ZeroDivisionError):
        run_in(namespace, lambda: 1 / 0)


def test_run_in_leaves_the_caller_where_it_was(namespace: str) -> None:
    before = os.stat("/proc/thread-self/ns/net").st_ino

    inside = run_in(namespace, lambda: os.stat("/proc/thread-self/ns/net").st_ino)

    assert inside != before
    assert os.stat("/proc/thread-self/ns/net").st_ino == before
