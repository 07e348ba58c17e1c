"""Doing something inside a named network namespace, and finding who lives in one.

Only the *network* namespace changes: mounts stay the host's, so /run and /sys/fs/bpf are shared.
"""

import ctypes
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from pyroute2 import netns

__all__ = ["RUN_DIR", "create", "pids_in", "run_in", "run_in_new"]

T = TypeVar("T")
RUN_DIR = Path("/run/netns")
CLONE_NEWNET = 0x40000000  # os.unshare comes with Python 3.12


def create(namespace: str) -> None:
    """Make a namespace, as `ip netns add` does. Raises OSError if the name is taken.

    pyroute2's own `create`, and its `IPRoute(netns=…)`, fork this process and end the child by
    a signal; where the parent answers signals by cleaning up, the child would do so too.
    """

    def name() -> None:
        _unshare()
        netns.attach(namespace, "thread-self")

    _in_a_thread(name)


def run_in(namespace: str, work: Callable[[], T]) -> T:
    """Call *work* in the namespace and return what it returns or raise what it raises.

    A namespace belongs to a thread, and so do the sockets and child processes that the thread
    makes: *work* runs in a thread of its own, which is gone afterwards, and nothing has to be
    switched back. Raises OSError if there is no such namespace.
    """

    def enter() -> T:
        netns.setns(namespace, flags=0)
        return work()

    return _in_a_thread(enter)


def run_in_new(work: Callable[[], T]) -> T:
    """As `run_in`, in a namespace without a name that nobody else is in. It ends with *work*, as
    do its interfaces; a child process that *work* leaves behind keeps them."""

    def enter() -> T:
        _unshare()
        return work()

    return _in_a_thread(enter)


def _unshare() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET) < 0:
        raise OSError(ctypes.get_errno(), "no new network namespace")


def _in_a_thread(work: Callable[[], T]) -> T:
    results: list[T] = []
    errors: list[BaseException] = []

    def catch() -> None:
        try:
            results.append(work())
        except BaseException as error:  # noqa: BLE001 - raised again below
            errors.append(error)

    thread = threading.Thread(target=catch)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def pids_in(namespaces: list[str]) -> list[int]:
    """Processes whose network namespace is one of the named ones; never this process.

    A name that leads to our own namespace (a leftover file that is no namespace, or somebody's
    bind mount) is skipped, so that nobody takes the host's processes for the lab's.
    """
    own = _identity(Path("/proc/self/ns/net"))
    wanted = {_identity(RUN_DIR / name) for name in namespaces} - {own, None}
    if not wanted:
        return []
    return [
        int(entry.name)
        for entry in Path("/proc").iterdir()
        if entry.name.isdigit()
        and int(entry.name) != os.getpid()
        and _identity(entry / "ns/net") in wanted
    ]


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
