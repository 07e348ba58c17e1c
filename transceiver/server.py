"""A transceiver process: what it is told, what it is made of, and how it stops."""

import asyncio
import contextlib
import errno
import ipaddress
import logging
import os
import resource
import signal
import socket
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from aiohttp import web

from loader.client import DEFAULT_SOCKET, AgentClient
from loader.errors import ShuntError
from transceiver import backends, signaling
from transceiver.ice import IceTiming
from transceiver.registration import Registration
from transceiver.session import Limits
from transceiver.sessionid import is_owner
from transceiver.sessions import Sessions
from transceiver.shared_socket import SharedSocket
from transceiver.signaling import make_app
from transceiver.stun import Address, endpoint, text

__all__ = [
    "Transceiver",
    "TransceiverConfig",
    "allow_descriptors",
    "listen",
    "reachable",
    "run",
    "serve_until",
]

PAGE = Path(__file__).parent / "page"

log = logging.getLogger(__name__)


def _key_from_environment() -> str:
    return os.environ.get("SHUNT_API_KEY", "")


@dataclass(frozen=True, slots=True, kw_only=True)
class TransceiverConfig:
    """All that a transceiver is told; ShuntError if it makes no sense."""

    id: str
    udp: str
    """HOST:PORT of the one UDP socket; the relay sends here."""
    http: str
    """HOST:PORT of signaling."""
    agent: str = DEFAULT_SOCKET
    """The relay's agent: the path of its Unix socket, or a URL."""
    agent_token: str | None = field(default=None, repr=False)
    agent_ca: Path | None = None
    """For an agent on another host: see `AgentClient`."""
    capacity: int = 100
    backend: str = "echo"
    backend_options: Mapping[str, str] = field(default_factory=dict)
    """What the backend is told; each has options of its own."""
    api_key: str = field(default_factory=_key_from_environment, repr=False)
    limits: Limits = field(default_factory=Limits)
    request_limits: signaling.Limits = field(default_factory=signaling.Limits)
    ice_servers: tuple[signaling.IceServer, ...] = ()
    """What clients are told of: a TURN server, for those whose networks let no UDP out."""
    drain_limit: float = 30.0
    """Seconds that calls may go on after SIGTERM."""
    ice: IceTiming = field(default_factory=IceTiming)

    def __post_init__(self) -> None:
        if not is_owner(self.id):
            raise ShuntError(
                f"transceiver id {self.id!r} is not valid", "use up to 63 of A-Z a-z 0-9 . _ -"
            )
        _endpoint(self.udp, "--udp")
        _endpoint(self.http, "--http")
        if self.capacity < 1:
            raise ShuntError(f"capacity is {self.capacity}", "give --capacity 1 or more")
        if self.drain_limit < 0:
            raise ShuntError(
                f"drain limit is {self.drain_limit}", "give --drain-limit seconds, 0 or more"
            )
        if not self.api_key:
            raise ShuntError("no API key", "set SHUNT_API_KEY to what clients shall present")
        if not self.api_key.isascii() or not self.api_key.isprintable() or " " in self.api_key:
            raise ShuntError(
                "the API key does not fit in a header", "use printable ASCII without spaces"
            )


class Transceiver:
    """A running transceiver; an async context manager."""

    def __init__(
        self, config: TransceiverConfig, *, placement: signaling.Placement | None = None
    ) -> None:
        """*placement*: who takes new calls, if there are others beside this one."""
        self.config = config
        self._placement = placement
        self._stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with contextlib.AsyncExitStack() as stack:
            await self._start(stack)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._stack.aclose()

    async def _start(self, stack: contextlib.AsyncExitStack) -> None:
        """Each part pushes its own end: they stop in reverse, the sessions first."""
        config = self.config
        backend = backends.make(config.backend, config.backend_options)
        udp = _endpoint(config.udp, "--udp")
        try:
            self.shared = await SharedSocket.open(udp, config.ice)
        except OSError as error:
            raise _cannot_bind("UDP", config.udp, error) from error
        stack.callback(self.shared.close)

        client = await stack.enter_async_context(_agent(config))
        listener = listen(config.http)
        stack.callback(listener.close)
        self.http_url = f"http://{text(reachable(listener.getsockname()[:2], udp))}"

        self.registration = Registration(
            client,
            id=config.id,
            udp=self.shared.address,
            http=self.http_url,
            capacity=config.capacity,
        )
        stack.push_async_callback(self.registration.leave)
        self.lease = asyncio.create_task(self.registration.run(), name="lease")
        stack.push_async_callback(_cancel, self.lease)

        self.sessions = Sessions(
            owner=config.id,
            shared=self.shared,
            routes=self.registration,
            backend=backend,
            capacity=config.capacity,
            limits=config.limits,
        )
        app = make_app(
            self.sessions,
            api_key=config.api_key,
            page=PAGE,
            is_registered=self.registration.registered.is_set,
            directory=client,
            dropped=self.shared.dropped,
            limits=config.request_limits,
            placement=self._placement,
            ice_servers=config.ice_servers,
        )
        self.runner = signaling.Runner(app, config.request_limits)
        await self.runner.setup()
        stack.push_async_callback(self.runner.cleanup)
        await web.SockSite(self.runner, listener).start()
        stack.push_async_callback(self.sessions.stop)
        log.info("signaling on %s, media on %s", self.http_url, text(self.shared.address))


def run(config: TransceiverConfig) -> None:
    """Serve until a signal; ShuntError if that cannot be.

    SIGTERM lets the calls that are go on for the drain limit; SIGINT or a second one does not.
    """
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    allow_descriptors()
    asyncio.run(_serve(config))


def allow_descriptors() -> None:
    """Let this process and its children have as many descriptors as they may: each connection to
    signaling takes one."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


async def _serve(config: TransceiverConfig) -> None:
    loop = asyncio.get_running_loop()
    drain, stop = asyncio.Event(), asyncio.Event()

    def terminate() -> None:
        (stop if drain.is_set() else drain).set()

    loop.add_signal_handler(signal.SIGTERM, terminate)
    loop.add_signal_handler(signal.SIGINT, stop.set)
    async with Transceiver(config) as transceiver:
        await serve_until(transceiver, drain, stop)


async def serve_until(transceiver: Transceiver, drain: asyncio.Event, stop: asyncio.Event) -> None:
    """Return when *transceiver* is to stop: at once by *stop*, by *drain* when its calls are over
    or the drain limit is; ShuntError if it has lost its id to another process."""
    lease = transceiver.lease
    if await _first(lease, drain.wait(), stop.wait()) == 1:
        log.info("draining: %d sessions go on", len(transceiver.sessions))
        draining = transceiver.sessions.drain(transceiver.config.drain_limit)
        await _first(lease, draining, stop.wait())
    log.info("stopping")
    if lease.done():
        await lease


async def _first(lease: asyncio.Task[None], *others: Coroutine[Any, Any, object]) -> int:
    """Which ended first, 0 for *lease*, which is not ended by this; *others* are."""
    tasks = [asyncio.ensure_future(other) for other in others]
    try:
        done, _ = await asyncio.wait((lease, *tasks), return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
    return next(number for number, task in enumerate((lease, *tasks)) if task in done)


def _endpoint(text: str, option: str) -> Address:
    """HOST:PORT, the host an IP address, IPv6 in brackets."""
    try:
        return endpoint(text)
    except ValueError as error:
        raise ShuntError(
            f"{option} {text!r} is not IP:PORT", f"write e.g. {option} 198.18.1.11:8080"
        ) from error


def _agent(config: TransceiverConfig) -> AgentClient:
    return AgentClient(config.agent, token=config.agent_token, ca=config.agent_ca)


def reachable(http: Address, udp: Address) -> Address:
    """Where others reach a listener at *http*: where media goes, if it is at every address."""
    return (udp[0] if ipaddress.ip_address(http[0]).is_unspecified else http[0]), http[1]


def listen(text: str) -> socket.socket:
    """A listening socket at HOST:PORT; ShuntError if that cannot be."""
    host, port = _endpoint(text, "--http")
    try:
        return socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET
        )
    except OSError as error:
        raise _cannot_bind("TCP", text, error) from error


def _cannot_bind(protocol: str, text: str, error: OSError) -> ShuntError:
    if error.errno == errno.EADDRINUSE:
        return ShuntError(
            f"{protocol} {text} is in use", "stop what uses it (ss -lnp tells), or choose another"
        )
    return ShuntError(
        f"{protocol} {text} cannot be bound: {os.strerror(error.errno or 0)}",
        "use an address of this machine (ip address tells)",
    )


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait((task,))
