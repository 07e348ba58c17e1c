"""Starting the lab's processes in its namespaces, and ending them for sure and nobody else.

A process is a pid and its start time, so that a pid that was given to another is left alone.
"""

import os
import select
import signal
import subprocess
import time
from collections.abc import Iterable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from tools.netns import run_in

__all__ = ["ROOT", "UNPRIVILEGED", "Process", "alive", "end", "identify", "spawn", "tail"]

ROOT = Path(__file__).resolve().parent.parent
# The uid stays, so that a clone under /root is readable; every capability goes.
UNPRIVILEGED = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"]


@dataclass(frozen=True, slots=True)
class Process:
    name: str
    pid: int
    started: int  # clock ticks since boot, field 22 of /proc/PID/stat
    log: str = ""


def spawn(
    name: str, argv: list[str], *, namespace: str, log: Path, environment: Mapping[str, str]
) -> Process:
    """Start *argv* in the namespace and in a session of its own, its output going to *log*."""

    def start() -> int:
        with log.open("ab") as output:
            return subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                env=dict(environment),
                start_new_session=True,
            ).pid

    pid = run_in(namespace, start)
    return Process(name, pid, _started(pid) or 0, str(log))


def identify(pid: int, name: str = "") -> Process | None:
    """The process that has this pid now, or None."""
    started = _started(pid)
    return None if started is None else Process(name, pid, started)


def alive(process: Process) -> bool:
    return _started(process.pid) == process.started


def end(processes: Iterable[Process], *, patience_s: float = 5.0) -> None:
    """SIGTERM, and SIGKILL to those that are still there *patience_s* later. Returns when all
    are gone."""
    with ExitStack() as stack:
        waiting: dict[int, Process] = {}
        for process in processes:
            with suppress(ProcessLookupError):
                descriptor = os.pidfd_open(process.pid)
                stack.callback(os.close, descriptor)
                # The descriptor holds on to one process; only now is the check worth anything.
                if alive(process):
                    waiting[descriptor] = process
        for chosen, patience in ((signal.SIGTERM, patience_s), (signal.SIGKILL, 5.0)):
            for descriptor in waiting:
                with suppress(ProcessLookupError):
                    signal.pidfd_send_signal(descriptor, chosen)
            _await_exits(waiting, patience)


def tail(process: Process, lines: int = 8) -> str:
    """The last lines of the process's log."""
    try:
        text = Path(process.log).read_text(errors="replace")
    except OSError:
        return ""
    return "\n".join(text.rstrip().splitlines()[-lines:])


def _await_exits(waiting: dict[int, Process], patience_s: float) -> None:
    poll = select.poll()
    for descriptor in waiting:
        poll.register(descriptor, select.POLLIN)
    deadline = time.monotonic() + patience_s
    while waiting and (left := deadline - time.monotonic()) > 0:
        for descriptor, _ in poll.poll(left * 1000):
            poll.unregister(descriptor)
            del waiting[descriptor]


def _started(pid: int) -> int | None:
    """Start time of a process that runs; None if there is none, or only its zombie."""
    try:
        # The command's name, in parentheses, may itself hold spaces and parentheses.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else int(fields[19])
