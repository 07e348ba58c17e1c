"""Where the bench's calls take place: two namespaces and a cable, and the processes called.

    bench-callers │ 198.18.0.10 ══════ 198.18.0.11 │ bench-called

There is no relay in between: what that costs is `shunt bench live`'s to say.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute, netns

from loader.errors import ShuntError
from tools.bench.calls.bots import Habit
from tools.bench.calls.load import Callee
from tools.netns import RUN_DIR, create, run_in
from tools.processes import ROOT

__all__ = ["CALLED_HOST", "CALLERS", "CALLER_HOST", "Agent", "Ear", "Server", "State", "place"]

CALLERS, _CALLED = "bench-callers", "bench-called"
CALLER_HOST, CALLED_HOST = "198.18.0.10", "198.18.0.11"
_LOOKS = 15  # whether sessions have ended, before they are hung up once more
_PATIENCE = 30.0  # s for a process to serve, to answer, or to have ended its sessions


@contextmanager
def place() -> Iterator[None]:
    """Make it, also if a bench that was killed has left its own, and take it down."""
    _remove()
    try:
        for namespace in (CALLERS, _CALLED):
            create(namespace)
            run_in(namespace, _silence)
        run_in(CALLERS, _cable)
        for namespace, host in ((CALLERS, CALLER_HOST), (_CALLED, CALLED_HOST)):
            run_in(namespace, lambda host=host: _raise(host))  # type: ignore[misc]
        yield
    finally:
        _remove()


def _remove() -> None:
    for namespace in (CALLERS, _CALLED):
        with suppress(FileNotFoundError):
            netns.remove(namespace)


def _silence() -> None:
    """One address is enough: stock aiortc makes a candidate of each."""
    for where in ("all", "default"):
        Path(f"/proc/sys/net/ipv6/conf/{where}/disable_ipv6").write_text("1")


def _cable() -> None:
    with IPRoute() as netlink, (RUN_DIR / _CALLED).open() as namespace:
        peer = {"ifname": "end", "net_ns_fd": namespace.fileno()}
        netlink.link("add", ifname="end", kind="veth", peer=peer)


def _raise(host: str) -> None:
    with IPRoute() as netlink:
        (index,) = netlink.link_lookup(ifname="end")
        netlink.addr("add", index=index, address=host, prefixlen=24)
        netlink.link("set", index=index, state="up")


@dataclass(frozen=True, slots=True)
class Ear:
    """What a bot has heard so far: seconds of audio, and when marks were, by `time.monotonic`."""

    seconds: float
    onsets: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class State:
    """A server's, *at* one instant: seconds of CPU so far, sessions, asyncio's tasks, and bots in
    the order in which they began."""

    at: float
    cpu: float
    sessions: int
    tasks: int
    begun: int
    """Bots that have begun so far."""
    ears: dict[int, Ear]


class _Process:
    """One that the bench has started, and ends."""

    def __init__(
        self, module: str, arguments: list[str], log: Path, *, namespace: str, cpu: int | None
    ) -> None:
        """*module*: of this package; *cpu*: the only one that it may use."""
        self._log = log

        def start() -> "subprocess.Popen[bytes]":
            if cpu is not None:
                os.sched_setaffinity(0, {cpu})  # this thread's, and its children's
            with log.open("wb") as output:
                return subprocess.Popen(
                    [sys.executable, "-m", f"tools.bench.calls.{module}", *arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    cwd=ROOT,
                )

        self._process = run_in(namespace, start)

    def end(self) -> None:
        """SIGTERM, and SIGKILL to one that does not heed it."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def _broken(self, what: str) -> ShuntError:
        lines = self._log.read_text(errors="replace").splitlines()
        return ShuntError(f"a process of the bench {what}:\n" + "\n".join(lines[-12:]))


class Agent(_Process):
    """Stands in for the relay's agent, on the CPU of the clients."""

    def __init__(self, path: Path, vip: str) -> None:
        arguments = ["--socket", str(path), "--vip", vip]
        super().__init__("agent", arguments, path.with_suffix(".log"), namespace=_CALLED, cpu=None)


class Server(_Process):
    """A process that takes calls, on one CPU. `ready` is to be called once, first."""

    def __init__(
        self, module: str, folder: Path, *, callee: Callee, cpu: int, more: list[str]
    ) -> None:
        """*more*: arguments besides those that all have."""
        self.callee = callee
        self._control = folder / f"{module}.sock"
        host, port = callee.address
        arguments = [
            *("--http", f"{host}:{port}", "--control", str(self._control)),
            *more,
        ]
        super().__init__(module, arguments, folder / f"{module}.log", namespace=_CALLED, cpu=cpu)
        self._connection = socket.socket(socket.AF_UNIX)
        self._connection.settimeout(_PATIENCE)
        self._unread = b""

    def end(self) -> None:
        self._connection.close()
        super().end()

    def ready(self) -> None:
        """Return once it serves. Raises ShuntError if it does not."""
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                self._connection.connect(str(self._control))
                return
            except (FileNotFoundError, ConnectionRefusedError):
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise self._broken("does not start") from None
                time.sleep(0.02)

    def become(self, habit: Habit) -> State:
        """What the bots shall do that begin from now on."""
        self._connection.sendall(f"{habit}\n".encode())
        return self.answer()

    def ask(self) -> None:
        """For a `State`; does not wait for it."""
        self._connection.sendall(b"\n")

    def answer(self) -> State:
        """To the question that was asked first. Raises ShuntError if it does not come."""
        while b"\n" not in self._unread:
            try:
                piece = self._connection.recv(1 << 16)
            except TimeoutError:
                piece = b""
            if not piece:
                raise self._broken("does not answer")
            self._unread += piece
        line, _, self._unread = self._unread.partition(b"\n")
        return _state(json.loads(line))

    def state(self) -> State:
        self.ask()
        return self.answer()

    def wait_until_empty(self, hang_up: Callable[[], None]) -> State:
        """Until the last session has ended; *hang_up* is called now and then. Raises ShuntError if
        that does not come."""
        deadline = time.monotonic() + _PATIENCE
        looked = 0
        while (state := self.state()).sessions:
            if time.monotonic() > deadline:
                raise self._broken(f"still has {state.sessions} sessions that were hung up")
            looked += 1
            if looked % _LOOKS == 0:
                hang_up()
            time.sleep(0.02)
        return state

    def memory_bytes(self) -> int:
        """Its proportional share of what it has in memory."""
        text = Path(f"/proc/{self._process.pid}/smaps_rollup").read_text()
        (line,) = (each for each in text.splitlines() if each.startswith("Pss:"))
        return 1024 * int(line.split()[1])

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self._process.pid}/fd"))


def _state(value: dict[str, Any]) -> State:
    ears = {bot["number"]: Ear(bot["seconds"], tuple(bot["onsets"])) for bot in value["bots"]}
    return State(value["at"], value["cpu"], value["sessions"], value["tasks"], value["begun"], ears)
