"""A bench has the machine's interfaces and pins of its kind, and one CPU, to itself."""

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["alone"]

_LOCK = Path("/run/lock/shunt-bench.lock")


@contextmanager
def alone(progress: Callable[[str], None], *, pinned: bool = True) -> Iterator[int]:
    """Wait for the end of other benches: two would measure each other, and take each other's
    namespaces for those of one that was killed. Then, if *pinned*, keep this process, and the
    packets that it sends, on the last CPU that it may use: its number."""
    _LOCK.parent.mkdir(parents=True, exist_ok=True)
    before = os.sched_getaffinity(0)
    cpu = max(before)
    with _LOCK.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress("waiting for another bench to end")
            fcntl.flock(lock, fcntl.LOCK_EX)
        if pinned:
            os.sched_setaffinity(0, {cpu})
        try:
            yield cpu
        finally:
            os.sched_setaffinity(0, before)
