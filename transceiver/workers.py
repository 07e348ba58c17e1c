"""Several transceivers on one machine, by one command: a supervisor and its worker processes.

Each worker is a transceiver of its own: it has an id (`ID-1`, `ID-2`, …), a UDP socket, a listener
for what the others hand it, and a lease. All accept from one listening socket, which is the
supervisor's: it stays, whichever worker ends, so that no connection is lost in a queue, and nobody
else can take the port meanwhile. Who happens to accept a call is not who has to take it: see
`placement`.

A worker is spoken to through its standard input: first its assignment, then words, and the end of
it means that the supervisor is gone.
"""

import asyncio
import contextlib
import logging
import os
import pickle
import signal
import socket
import struct
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from aiohttp import web

from loader.errors import ShuntError
from transceiver.placement import BEAT_SECONDS, Board, Place
from transceiver.server import (
    Transceiver,
    TransceiverConfig,
    allow_descriptors,
    listen,
    reachable,
    serve_until,
)
from transceiver.stun import endpoint, text

__all__ = ["MAX_WORKERS", "assignments", "run", "supervise"]

MAX_WORKERS = 64

FIRST_PAUSE, LAST_PAUSE = 0.5, 30.0
"""Seconds before a worker that died is started again: more each time, unless it has lived."""
LIVED = 60.0
"""Seconds after which a worker's death is no sequel of the last."""

HUNG_SECONDS = 30.0
"""That a worker's event loop may stand still before it is killed: its calls are lost by then, as
nobody has answered their consent checks (RFC 7675 section 5.1)."""

STOP_SECONDS = 10.0
"""That a worker gets to stop, beyond its drain limit, before it is killed."""

REFUSES = 78
"""The exit status of a worker that would fail again (EX_CONFIG of sysexits.h)."""

ACCEPT_PAUSE = 0.5
"""Seconds that a worker leaves connections to others when it can have no more descriptors."""

READY, DRAIN, STOP = b"r", b"d", b"s"

ROOT = Path(__file__).parents[1]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Assignment:
    """What a worker is told."""

    config: TransceiverConfig
    names: tuple[str, ...]
    """The ids of all workers."""
    listener: int
    board: int
    ready: int
    """Descriptors: of the listening socket, of the board, and of the pipe to say READY on."""


def run(config: TransceiverConfig, count: int) -> None:
    """Serve by *count* workers until a signal, as `server.run` does; ShuntError if that cannot be,
    or if a worker had to be killed."""
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    allow_descriptors()
    asyncio.run(supervise(config, count))


def assignments(config: TransceiverConfig, count: int) -> list[TransceiverConfig]:
    """What each of *count* workers is: ids by number; UDP ports from the one given on; listeners of
    their own at the HTTP ports after the one that all share. Port 0 is any. ShuntError if there
    cannot be so many."""
    if not 1 <= count <= MAX_WORKERS:
        raise ShuntError(f"{count} workers cannot be", f"give --workers 1 to {MAX_WORKERS}")
    udp, http = endpoint(config.udp), endpoint(config.http)
    host, _ = reachable(http, udp)
    workers = []
    for number in range(count):
        udp_port = udp[1] and udp[1] + number
        http_port = http[1] and http[1] + 1 + number
        if max(udp_port, http_port) > 65535:
            raise ShuntError(f"there are no {count} ports from there on", "begin lower")
        workers.append(
            replace(
                config,
                id=f"{config.id}-{number + 1}",
                udp=text((udp[0], udp_port)),
                http=text((host, http_port)),
            )
        )
    return workers


async def supervise(
    config: TransceiverConfig,
    count: int,
    *,
    on_started: Callable[["Supervisor"], None] = lambda supervisor: None,
) -> None:
    """`run`, on a loop that there is. *on_started* is called when all workers serve."""
    configs = assignments(config, count)
    loop = asyncio.get_running_loop()
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(listen(config.http))
        listener.setblocking(False)
        board = Board.create([each.id for each in configs])
        stack.callback(board.close)
        supervisor = Supervisor(configs, listener, board)
        for number, ask in (
            (signal.SIGTERM, supervisor.terminate),
            (signal.SIGINT, supervisor.stop),
        ):
            loop.add_signal_handler(number, ask)
            stack.callback(loop.remove_signal_handler, number)
        await supervisor.run(on_started)


class Supervisor:
    """Keeps workers running until it is told to stop them."""

    def __init__(
        self, configs: Sequence[TransceiverConfig], listener: socket.socket, board: Board
    ) -> None:
        self.listener = listener
        self.board = board
        self.workers = [Worker(config, self) for config in configs]
        self.leaving = asyncio.Event()
        """Set once no worker is to be started again."""

    def terminate(self) -> None:
        """Let calls go on for the drain limit; at once if this is asked a second time."""
        self._say(STOP if self.leaving.is_set() else DRAIN)

    def stop(self) -> None:
        """End calls and workers."""
        self._say(STOP)

    async def run(self, on_started: Callable[["Supervisor"], None]) -> None:
        """Return when all workers have ended; ShuntError unless all did as they were told."""
        lives = [asyncio.create_task(worker.live()) for worker in self.workers]
        begun = asyncio.create_task(self._all_begun())
        try:
            await asyncio.wait((begun, *lives), return_when=asyncio.FIRST_COMPLETED)
            if any(worker.failed for worker in self.workers):
                # What keeps one from its start is for who has just given the command to mend.
                self.stop()
            elif not self.leaving.is_set():
                log.info("%d workers on %s", len(lives), text(self.listener.getsockname()[:2]))
                on_started(self)
            await asyncio.wait(lives)
        finally:
            for task in (begun, *lives):
                task.cancel()
        if failed := [worker for worker in self.workers if worker.failed]:
            raise ShuntError(
                "; ".join(f"worker {worker.config.id} {worker.failed}" for worker in failed),
                "what they wrote above tells why",
            )

    async def _all_begun(self) -> None:
        for worker in self.workers:
            await worker.begun.wait()

    def _say(self, word: bytes) -> None:
        self.leaving.set()
        for worker in self.workers:
            worker.say(word)


class Worker:
    """One worker over all of its processes, of which there is one at a time."""

    def __init__(self, config: TransceiverConfig, supervisor: Supervisor) -> None:
        self.config = config
        self.begun = asyncio.Event()
        """Set when it has served for the first time, or has failed to."""
        self.failed = ""
        """What has become of it, if it has ended otherwise than it was told to."""
        self.process: asyncio.subprocess.Process | None = None
        self._supervisor = supervisor
        self._said = b""

    def say(self, word: bytes) -> None:
        """Tell the process to drain or to stop."""
        self._said = word
        if self.process is not None and self.process.stdin is not None:
            with contextlib.suppress(ConnectionError, RuntimeError):  # it is ending as it is
                self.process.stdin.write(word)

    async def live(self) -> None:
        """Start the process, and again when it dies, until the supervisor leaves."""
        loop = asyncio.get_running_loop()
        pause = FIRST_PAUSE
        while not self._supervisor.leaving.is_set():
            started = loop.time()
            status = await self._run_once()
            self._supervisor.board.withdraw(self.config.id)
            if self._supervisor.leaving.is_set():
                break
            if status == REFUSES or not self.begun.is_set():
                self.failed = "cannot be"
                break
            if loop.time() - started > LIVED:
                pause = FIRST_PAUSE
            log.warning(
                "worker %s has ended (%s), and starts again in %.1f s",
                self.config.id,
                _reason(status),
                pause,
            )
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._supervisor.leaving.wait()
            pause = min(2 * pause, LAST_PAUSE)
        self.begun.set()

    async def _run_once(self) -> int:
        """One process from start to end; its exit status, as `subprocess` has it."""
        ready, says_ready = os.pipe()
        told = Assignment(
            self.config,
            self._supervisor.board.names,
            self._supervisor.listener.fileno(),
            self._supervisor.board.descriptor,
            says_ready,
        )
        with os.fdopen(ready, "rb", buffering=0) as pipe:
            try:
                self.process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-P", "-m", "transceiver.workers"),
                    stdin=asyncio.subprocess.PIPE,
                    pass_fds=(told.listener, told.board, told.ready),
                    env=os.environ | {"PYTHONPATH": _path()},
                )
            finally:
                os.close(says_ready)
            stdin = self.process.stdin
            assert stdin is not None
            message = pickle.dumps(told)
            stdin.write(struct.pack("!I", len(message)) + message + self._said)
            tasks = [
                asyncio.create_task(self.process.wait()),
                asyncio.create_task(self._supervisor.leaving.wait()),
                asyncio.create_task(self._watch(self.process, pipe.fileno())),
            ]
            try:
                await asyncio.wait(tasks[:2], return_when=asyncio.FIRST_COMPLETED)
                limit = self.config.drain_limit + STOP_SECONDS
                await asyncio.wait(tasks[:1], timeout=limit)
                if not tasks[0].done():
                    self.failed = "did not stop, and was killed"
                    self.process.kill()
                status = await self.process.wait()
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.wait(tasks)
                stdin.close()
                self.process = None
        return status

    async def _watch(self, process: asyncio.subprocess.Process, pipe: int) -> None:
        """Learn when the process serves, and kill it if it stands still from then on."""
        loop = asyncio.get_running_loop()
        readable = asyncio.Event()
        loop.add_reader(pipe, readable.set)
        try:
            await readable.wait()
        finally:
            loop.remove_reader(pipe)
        if os.read(pipe, 1) != READY:
            return
        self.begun.set()
        board, name = self._supervisor.board, self.config.id
        while (left := HUNG_SECONDS - board.silence(name)) > 0:  # noqa: ASYNC110 (shared memory)
            await asyncio.sleep(left)
        log.error("worker %s has stood still for %.0f s", name, HUNG_SECONDS)
        process.kill()


def _path() -> str:
    """Where workers find what the supervisor has found."""
    return os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])


def _reason(status: int) -> str:
    if status < 0:
        return signal.Signals(-status).name
    return f"exit status {status}"


# The worker's side.


def main() -> None:
    """Be a worker: `python -m transceiver.workers`, with an assignment as standard input."""
    told = _read_assignment()
    logging.basicConfig(
        level=logging.INFO,
        format=f"%(asctime)s %(levelname)s {told.config.id} %(name)s: %(message)s",
    )
    try:
        asyncio.run(_work(told))
    except ShuntError as error:
        log.error("%s (%s)", error.what, error.cure)
        sys.exit(REFUSES)


def _read_assignment() -> Assignment:
    (size,) = struct.unpack("!I", _read_exactly(4))
    told = pickle.loads(_read_exactly(size))
    assert isinstance(told, Assignment)
    return told


def _read_exactly(size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = os.read(sys.stdin.fileno(), size - len(data))
        if not part:
            raise SystemExit(0)  # the supervisor is gone
        data += part
    return data


async def _work(told: Assignment) -> None:
    drain, stop = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    # A terminal's or a service manager's signal may reach all of us at once. What it means to a
    # worker the supervisor says; only a SIGTERM is also for one alone, which is then replaced.
    loop.add_signal_handler(signal.SIGINT, lambda: None)
    loop.add_signal_handler(signal.SIGTERM, drain.set)
    os.set_blocking(sys.stdin.fileno(), False)
    loop.add_reader(sys.stdin.fileno(), _hear, drain, stop)

    place = Place(Board(told.board, told.names), told.config.id)
    listener = socket.socket(fileno=told.listener)
    try:
        async with Transceiver(told.config, placement=place) as transceiver:
            acceptor = _Acceptor(listener, transceiver.runner)

            async def beat() -> None:
                while True:
                    place.beat()
                    await asyncio.sleep(BEAT_SECONDS)

            async def arrive_and_leave() -> None:
                await transceiver.registration.registered.wait()
                place.tell(len(transceiver.sessions))
                await drain.wait()
                acceptor.close()
                place.leave()

            place.beat()
            tasks = asyncio.create_task(beat()), asyncio.create_task(arrive_and_leave())
            os.write(told.ready, READY)
            try:
                await serve_until(transceiver, drain, stop)
            finally:
                for task in tasks:
                    task.cancel()
                acceptor.close()
                place.leave()
    finally:
        loop.remove_reader(sys.stdin.fileno())


def _hear(drain: asyncio.Event, stop: asyncio.Event) -> None:
    """Take the supervisor's words; its silence too, as it will say no more."""
    words = os.read(sys.stdin.fileno(), 64)
    if DRAIN in words:
        drain.set()
    if STOP in words or not words:
        stop.set()
        asyncio.get_running_loop().remove_reader(sys.stdin.fileno())


class _Acceptor:
    """Serves who connects to *listener*. One at a time, so that a burst is spread over all workers
    that are idle; and none is accepted that is not served."""

    def __init__(self, listener: socket.socket, runner: web.AppRunner) -> None:
        assert runner.server is not None
        self._server = runner.server
        self._listener = listener
        self._loop = asyncio.get_running_loop()
        self._beginning: set[asyncio.Task[object]] = set()
        self._pausing: asyncio.TimerHandle | None = None
        listener.setblocking(False)
        self._loop.add_reader(listener.fileno(), self._accept)

    def close(self) -> None:
        """Leave who connects from now on to others. May be called again."""
        if self._pausing is not None:
            self._pausing.cancel()
        if self._listener.fileno() >= 0:
            self._loop.remove_reader(self._listener.fileno())
            self._listener.close()

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return  # another was faster
        except OSError as error:
            log.warning("no connection can be accepted: %s", error)
            self._loop.remove_reader(self._listener.fileno())
            self._pausing = self._loop.call_later(
                ACCEPT_PAUSE, self._loop.add_reader, self._listener.fileno(), self._accept
            )
            return
        connection.setblocking(False)
        task = self._loop.create_task(self._begin(connection))
        self._beginning.add(task)
        task.add_done_callback(self._beginning.discard)

    async def _begin(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError):  # it is gone already
            await self._loop.connect_accepted_socket(self._server, connection)


if __name__ == "__main__":
    # Once more by its name: what was pickled by that is to be the same here.
    from transceiver.workers import main

    main()
