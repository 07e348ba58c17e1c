"""The agent as a process: it loads, attaches, adopts and serves, until it is told to stop."""

import asyncio
import faulthandler
import fcntl
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, nullcontext, suppress
from pathlib import Path

from aiohttp import web

from loader import carriers, datapath, upgrade
from loader.agent import Agent
from loader.api import Access, Listener, Runner, application
from loader.capabilities import Capability, require
from loader.config import AgentConfig
from loader.errors import ShuntError
from loader.logs import EventLines
from loader.maps import DEFAULT_PINS, Maps
from loader.network import Network
from loader.reloading import Reloading
from loader.supervision import Supervision

__all__ = ["load", "plan", "run", "unload"]

log = logging.getLogger(__name__)

_SIGNALS = signal.SIGTERM, signal.SIGINT
_BACKLOG = 128


def plan(config: AgentConfig) -> upgrade.Plan:
    """How an agent of this version would take over from the relay that runs; nothing is touched.
    Raises ShuntError if it cannot without ending calls."""
    require(Capability.BPF, Capability.NET_ADMIN, what="a look at the pinned relay")
    try:
        return upgrade.plan(config.pins, len(config.inside_entries))
    except PermissionError as error:
        raise datapath.not_permitted(config.pins, error) from None


def load(config: AgentConfig) -> None:
    """Load and pin this version's program beside the one that is at work, if that is another, for
    an agent that may not do so itself. It is at work when such an agent begins; one that runs is
    not disturbed, and what cannot be is known before that has to stop. Raises ShuntError.
    """
    datapath.make_room(config.pins)
    upgrade.stage(plan(config))


def run(config: AgentConfig, *, read: Callable[[], AgentConfig] | None = None) -> None:
    """Load, attach, adopt and serve, until SIGTERM or SIGINT, of which a second one ends it at
    once; on SIGHUP, *read* gives the configuration anew.

    The program and its maps stay when this ends; `unload` takes them away. Raises ShuntError.
    """
    reloading = Reloading(config, read or (lambda: config))
    with _hangups(reloading.ask):
        _run(reloading)


@contextmanager
def _hangups(ask: Callable[[], None]) -> Iterator[None]:
    """SIGHUP asks for a reload, also before there is anything to reload. (Holding it back until
    then would not do: the kernel would give it to a thread that some library has made.)"""
    if threading.current_thread() is not threading.main_thread():
        yield  # no other thread is told of signals
        return
    before = signal.signal(signal.SIGHUP, lambda _number, _frame: ask())
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, before)


def _run(reloading: Reloading) -> None:
    config = reloading.config
    require(Capability.BPF, Capability.NET_ADMIN, what="the agent")
    faulthandler.enable()  # where it stood, if systemd's watchdog ends it (SIGABRT)
    datapath.make_room(config.pins)
    with _owned(config.pins), closing(Supervision()) as supervision:
        supervision.status("taking over the relay")
        taken = _take_over(config)
        with Maps(config.pins, writable=True) as maps:
            asyncio.run(_serve(reloading, maps, taken, supervision))


def _take_over(config: AgentConfig) -> upgrade.Taken:
    try:
        upgrade.recover(config.pins)
        planned = plan(config)
        log.info("%s", planned.words)
        taken = upgrade.carry_out(planned, config.interfaces)
    except PermissionError as error:
        raise datapath.not_permitted(config.pins, error) from None
    for each in taken.attachments:
        why = f" ({each.why})" if each.why else ""
        log.info("%s: %s mode%s", each.interface, each.mode.name.lower(), why)
    return taken


@contextmanager
def _owned(pins: Path) -> Iterator[None]:
    """No other process runs an agent on these pins, or unloads them. Raises ShuntError."""
    try:
        lock = os.open(pins, os.O_RDONLY | os.O_DIRECTORY)
    except PermissionError:
        raise ShuntError(
            f"{pins} is another user's", "Be that user, or root; `ls -ld` says who it is."
        ) from None
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ShuntError(
                f"another agent owns {pins}", "Stop it first: there is one agent to a relay host."
            ) from None
        yield
    finally:
        os.close(lock)


async def _serve(
    reloading: Reloading, maps: Maps, taken: upgrade.Taken, supervision: Supervision
) -> None:
    with Network() as network:
        await network.look()
        agent = Agent(reloading.config, maps, network, reloading=reloading)
        agent.events.listen(EventLines())
        agent.configure(taken.attachments)
        routes = agent.adopt()
        if taken.adopted:
            agent.events.tell("adopted", routes=routes)
        if taken.program is not None:
            brought = list(taken.brought_over)
            agent.events.tell("upgraded", program=taken.program, brought_over=brought)
        await _serve_agent(agent, supervision)


async def _serve_agent(agent: Agent, supervision: Supervision) -> None:
    tcp = agent.config.tcp
    access = Access(tcp) if tcp else None
    runner = Runner(application(agent, access))
    with _socket_at(agent.config.socket) as listening, ExitStack() as stack:
        await runner.setup()
        try:
            listener = None
            if tcp and access:
                agent.reloading.parts.append(access.prepare)
                listener = stack.enter_context(closing(Listener(tcp, access, runner)))
            await web.SockSite(runner, listening).start()
            await _work(agent, supervision, listener)
        except ExceptionGroup as bug:
            supervision.stopping(f"ended by a bug: {bug.exceptions[0]!r}")
            raise
        finally:
            await runner.cleanup()
            log.info("stopped; the relay goes on without its agent")


async def _work(agent: Agent, supervision: Supervision, listener: Listener | None) -> None:
    """Until told to stop."""
    stop = asyncio.Event()
    for number in _SIGNALS:
        asyncio.get_running_loop().add_signal_handler(number, _end, stop)
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, agent.reloading.ask)
    loops = {
        "housekeeping": lambda: agent.housekeeping.turned,
        "following the network": lambda: agent.following.turned,
    }

    def status() -> str:
        return agent.not_ready() or "the relay is at work"

    async with asyncio.TaskGroup() as tasks:
        work = [
            tasks.create_task(each)
            for each in (
                agent.housekeeping.keep(),
                agent.drains.keep(),
                agent.following.follow(),
                agent.following.watch(),
                agent.reloading.keep(during=supervision.reloading),
                supervision.watch(loops, status=status),
                *([listener.keep()] if listener else []),
            )
        ]
        where = f" and {listener}" if listener else ""
        log.info("ready: API at %s%s", agent.config.socket, where)
        supervision.ready(status())
        await stop.wait()
        supervision.stopping("stopping; the relay goes on without its agent")
        for task in work:
            task.cancel()


def _end(stop: asyncio.Event) -> None:
    """Told to stop. Whoever says so a second time is not kept waiting."""
    stop.set()
    for number in _SIGNALS:
        asyncio.get_running_loop().remove_signal_handler(number)


@contextmanager
def _socket_at(path: Path) -> Iterator[socket.socket]:
    """A listening socket at *path*, where one that nobody serves any more may be; gone afterwards,
    unless somebody else's has taken its place. Raises ShuntError."""
    with socket.socket(socket.AF_UNIX) as listening:
        try:
            _listen(listening, path)
        except OSError as error:
            raise ShuntError(
                f"cannot listen at {path}: {error.strerror or error}",
                "Choose another --socket; what is there is left alone.",
            ) from None
        ours = _identity(path)
        try:
            yield listening
        finally:
            if _identity(path) == ours:
                path.unlink(missing_ok=True)


def _listen(listening: socket.socket, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_socket():
        if _is_served(path):
            raise ShuntError(
                f"another process serves {path}", "Stop it first, or choose another --socket."
            )
        path.unlink()
    listening.bind(str(path))
    path.chmod(0o666)  # who may ask is decided by peer credentials
    listening.listen(_BACKLOG)


def _is_served(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as knocking:
        knocking.setblocking(False)
        try:
            knocking.connect(str(path))
        except ConnectionRefusedError:
            return False
        except BlockingIOError:  # too busy to take us now, but there
            pass
    return True


def _identity(path: Path) -> tuple[int, int] | None:
    """Which file it is; None if there is none."""
    with suppress(FileNotFoundError):
        found = path.stat()
        return found.st_dev, found.st_ino
    return None


def unload(pins: Path = DEFAULT_PINS) -> None:
    """Take the relay off this network namespace's interfaces and remove its pins; no error if
    there is none. Raises ShuntError while an agent runs."""
    require(Capability.NET_ADMIN, what="unloading the relay")
    with _owned(pins) if pins.is_dir() else nullcontext():
        carriers.unload(pins)
        with Network() as network:
            network.release(network.kept())
