"""The agent as a process: it loads, attaches, adopts and serves, until it is told to stop."""

import asyncio
import fcntl
import logging
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from aiohttp import web
from pyroute2 import AsyncIPRoute

from loader import bpf, datapath
from loader.agent import Agent
from loader.api import Runner, application
from loader.capabilities import Capability, held, require
from loader.config import AgentConfig
from loader.errors import ShuntError
from loader.logs import EventLines
from loader.maps import DEFAULT_PINS, Maps
from loader.network import Network

__all__ = ["load", "run", "unload"]

log = logging.getLogger(__name__)


def load(config: AgentConfig) -> None:
    """Load and pin the program, for an agent with this configuration that may not do so itself.

    Raises ShuntError, also while an agent runs.
    """
    datapath.make_room(config.pins)
    with _owned(config.pins):
        program = datapath.load(config.pins, len(config.inside_entries))
        log.info("program %s (id %d) is pinned", program.tag, program.id)


def run(config: AgentConfig, *, read: Callable[[], AgentConfig] | None = None) -> None:
    """Load, attach, adopt and serve, until SIGTERM or SIGINT; on SIGHUP, *read* gives the
    configuration anew.

    The program and its maps stay when this ends; `unload` takes them away. Raises ShuntError.
    """
    # From here on SIGHUP means a reload. One that comes before there is anything to reload waits.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    try:
        _run(config, read or (lambda: config))
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})


def _run(config: AgentConfig, read: Callable[[], AgentConfig]) -> None:
    require(Capability.BPF, Capability.NET_ADMIN, what="the agent")
    datapath.make_room(config.pins)
    with _owned(config.pins):
        program = _program(config)
        log.info("program %s (id %d) is loaded", program.tag, program.id)
        with Maps(config.pins, writable=True) as maps:
            asyncio.run(_serve(config, read, maps))


def _program(config: AgentConfig) -> bpf.ProgramInfo:
    """A fresh one. What that takes lets one read the kernel's memory, too, so an agent may well be
    kept from it: then the one that `load` has left."""
    inside = len(config.inside_entries)
    if Capability.PERFMON in held():
        return datapath.load(config.pins, inside)
    return datapath.loaded(config.pins, inside)


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


async def _serve(config: AgentConfig, read: Callable[[], AgentConfig], maps: Maps) -> None:
    attachments = await asyncio.to_thread(datapath.attach, config.pins, config.interfaces)
    for attachment in attachments:
        why = f" ({attachment.why})" if attachment.why else ""
        log.info("%s: %s mode%s", attachment.interface, attachment.mode.name.lower(), why)
    async with AsyncIPRoute() as netlink:
        network = Network(netlink)
        await network.look()
        agent = Agent(config, maps, network, read=read)
        agent.events.listen(EventLines())
        agent.configure(attachments)
        agent.adopt()
        await _serve_agent(agent)


async def _serve_agent(agent: Agent) -> None:
    config = agent.config
    runner = Runner(application(agent))
    await runner.setup()
    try:
        config.socket.parent.mkdir(parents=True, exist_ok=True)
        if config.socket.is_socket():
            config.socket.unlink()  # the lock says that nobody lives behind it
        await web.UnixSite(runner, str(config.socket)).start()
    except OSError as error:
        await runner.cleanup()
        raise ShuntError(
            f"cannot listen at {config.socket}: {error.strerror or error}",
            "Choose another --socket; what is there is left alone.",
        ) from None
    config.socket.chmod(0o666)  # who may ask is decided by peer credentials
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, agent.reloading.ask)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
    log.info("ready: API at %s", config.socket)
    try:
        async with asyncio.TaskGroup() as tasks:
            work = [
                tasks.create_task(each)
                for each in (
                    agent.housekeeping.keep(),
                    agent.drains.keep(),
                    agent.following.follow(),
                    agent.following.watch(),
                    agent.reloading.keep(),
                )
            ]
            await stop.wait()
            for task in work:
                task.cancel()
    finally:
        await runner.cleanup()
        config.socket.unlink(missing_ok=True)
        log.info("stopped; the relay goes on without its agent")


def unload(pins: Path = DEFAULT_PINS) -> None:
    """Take the relay off this network namespace's interfaces and remove its pins; no error if
    there is none. Raises ShuntError while an agent runs."""
    require(Capability.NET_ADMIN, what="unloading the relay")
    with _owned(pins) if pins.is_dir() else nullcontext():
        datapath.unload(pins)
