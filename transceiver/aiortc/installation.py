"""Puts the shared socket, the lease and the routes behind aiortc, and takes them away again.

What aiortc is given in place of aioice's connection is `transceiver.aiortc.connection`'s.
"""

import asyncio
import contextlib
import datetime
import ipaddress
import logging
import struct
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiortc
import aiortc.rtcpeerconnection
import aiortc.rtcsctptransport
from aiortc import RTCCertificate, RTCIceGatherer, RTCIceServer
from aiortc.rtcconfiguration import RTCIceTransportPolicy

from loader.client import DEFAULT_SOCKET, AgentClient
from loader.errors import ShuntError
from transceiver.aiortc.connection import Connection
from transceiver.ice import Credentials, IceTiming
from transceiver.registration import Registration
from transceiver.sessionid import is_owner
from transceiver.shared_socket import SharedSocket
from transceiver.stun import Address, endpoint

__all__ = ["install", "uninstall"]

LEASE_LIMIT = 3.0
"""Seconds that an answer waits for the agent to take us in."""

TIMING = IceTiming()

_PARAMETER = struct.Struct("!HH")  # type and length, RFC 9260 section 3.2.1

CERTIFICATE_MARGIN = datetime.timedelta(days=7)

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Settings:
    id: str
    udp: Address
    http: str
    agent: str
    agent_token: str | None = field(repr=False)
    agent_ca: Path | None
    capacity: int

    def agent_client(self) -> AgentClient:
        return AgentClient(self.agent, token=self.agent_token, ca=self.agent_ca)


class Transceiver:
    """The socket, the lease and the routes, on one event loop. Starts when it is made."""

    def __init__(self, settings: _Settings) -> None:
        self.loop = asyncio.get_running_loop()
        self.shared: SharedSocket
        self._settings = settings
        self._registration: Registration
        self._has_begun = asyncio.Event()
        self._has_ended = False
        self._users: Counter[str] = Counter()
        self._task = asyncio.create_task(self._run(), name=f"transceiver {settings.id}")
        self._task.add_done_callback(self._tell)

    @property
    def could_not_begin(self) -> bool:
        """Whether another try is worth it."""
        return self._task.done() and not self._has_begun.is_set()

    @property
    def vips(self) -> tuple[Address, ...]:
        """Where clients send to."""
        return self._registration.vips

    async def ready(self) -> None:
        """Return once the relay has taken us in; ShuntError if it does not, or not in time."""
        waiting = asyncio.create_task(self._wait_registered())
        try:
            done, _ = await asyncio.wait(
                (waiting, self._task), timeout=LEASE_LIMIT, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            waiting.cancel()
        if self._task in done:
            with contextlib.suppress(asyncio.CancelledError):
                self._task.result()
            raise ShuntError(f"transceiver {self._settings.id} was uninstalled")
        if waiting not in done:
            raise ShuntError(
                f"no relay has taken transceiver {self._settings.id} in: its agent is "
                f"{self._settings.agent}",
                "See that the agent runs (shunt doctor), and this program's log for what it says.",
            )

    async def add(self, ufrag: str) -> None:
        """Return once the relay steers *ufrag* here; else ShuntError, and it need not be removed.

        Sections that are not bundled share a ufrag: it stays for as long as one of them needs it.
        """
        self._users[ufrag] += 1
        has_route = False
        try:
            await self._registration.add(ufrag)
            has_route = True
        finally:
            if not has_route:
                await self.remove(ufrag)

    async def remove(self, ufrag: str) -> None:
        """Take the route back, now or as soon as that can be; never raises."""
        self._users[ufrag] -= 1
        if self._users[ufrag] <= 0:
            del self._users[ufrag]
            if not self._has_ended:
                await self._registration.remove(ufrag)

    async def stop(self) -> None:
        """Give the lease back and close the socket."""
        self._task.cancel()
        await asyncio.wait((self._task,))

    async def _run(self) -> None:
        settings = self._settings
        async with contextlib.AsyncExitStack() as stack:
            self.shared = await _bind(settings.udp)
            stack.callback(self.shared.close)
            client = await stack.enter_async_context(settings.agent_client())
            self._registration = Registration(
                client,
                id=settings.id,
                udp=self.shared.address,
                http=settings.http,
                capacity=settings.capacity,
            )
            stack.push_async_callback(self._registration.leave)
            stack.callback(self._end)
            self._has_begun.set()
            await self._registration.run()

    def _end(self) -> None:
        """From now on the lease takes all routes along."""
        self._has_ended = True

    async def _wait_registered(self) -> None:
        await self._has_begun.wait()
        await self._registration.registered.wait()

    def _tell(self, task: "asyncio.Task[None]") -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("transceiver %s: %s", self._settings.id, error)


class Installation:
    """What `install` was told, and what came of it."""

    def __init__(self, settings: _Settings) -> None:
        self.settings = settings
        self._transceiver: Transceiver | None = None

    async def transceiver(self) -> Transceiver:
        """The one of the running loop, with a lease; ShuntError if there is none to be had.

        It begins with the first answer. A loop that is closed has taken its own along; a socket
        is one loop's, so there is none for a second one beside it.
        """
        found = self._transceiver
        if found is not None and found.loop is not asyncio.get_running_loop():
            if not found.loop.is_closed():
                raise ShuntError(
                    "the UDP socket is in use on another event loop of this process",
                    "Let all peer connections answer on one loop.",
                )
            found = None
        if found is None or found.could_not_begin:
            found = self._transceiver = Transceiver(self.settings)
        await found.ready()
        return found

    async def stop(self) -> None:
        """As `uninstall`."""
        found = self._transceiver
        if found is None or found.loop.is_closed():
            return
        if found.loop is not asyncio.get_running_loop():
            raise ShuntError("uninstall must be awaited on the loop that answers calls")
        await found.stop()


_installed: Installation | None = None
_originals: dict[str, Any] = {}


def install(
    *,
    id: str,
    udp: str,
    http: str | None = None,
    agent: str = DEFAULT_SOCKET,
    agent_token: str | None = None,
    agent_ca: Path | None = None,
    capacity: int = 100,
) -> None:
    """Let all peer connections of this process that answer from now on go through the relay.

    *id*: of this transceiver: a process of that id that comes later takes its place. *udp*:
    IP:PORT to bind, an address that the relay reaches. *http*: the URL of signaling, for operators
    to see. *agent*: the relay's agent, the path of its Unix socket, or a URL: then with
    *agent_token* and perhaps *agent_ca*. *capacity*: calls at a time, for the relay to know.

    Nothing is opened yet: that is done on the loop of the first answer. Raises ShuntError if an
    argument makes no sense, if it was called before with others, or if aiortc is not what it was.
    """
    global _installed
    if not is_owner(id):
        raise ShuntError(f"id {id!r} is not valid", "Use up to 63 of A-Z a-z 0-9 . _ -")
    if capacity < 1:
        raise ShuntError(f"capacity is {capacity}", "Give 1 or more.")
    host, port = _endpoint(udp)
    url = http or f"http://{f'[{host}]' if ':' in host else host}"
    settings = _Settings(id, (host, port), url, agent, agent_token, agent_ca, capacity)
    settings.agent_client()  # raises ShuntError for what can be no agent
    if _installed is not None:
        if _installed.settings != settings:
            raise ShuntError(
                f"transceiver {_installed.settings.id} is installed in this process already",
                "Call install once, or await uninstall first.",
            )
        return
    if lacking := [name for name, (module, _) in _OURS.items() if not hasattr(module, name)]:
        raise ShuntError(
            f"aiortc {aiortc.__version__} has no {' and no '.join(lacking)} to take the place of",
            "Use aiortc 1.16.",
        )
    _installed = Installation(settings)
    for name, (module, ours) in _OURS.items():
        _originals[name] = getattr(module, name)
        setattr(module, name, ours)


async def uninstall() -> None:
    """Undo `install`: the lease is given back, the socket closed, and calls on it fail. To be
    awaited on the loop that answers. Does nothing where nothing is installed."""
    global _installed
    if _installed is None:
        return
    await _installed.stop()
    _installed = None
    for name, original in _originals.items():
        setattr(_OURS[name][0], name, original)
    _originals.clear()


class _Gatherer(RTCIceGatherer):
    """aiortc's own, with our connection in it."""

    def __init__(
        self,
        iceServers: list[RTCIceServer] | None = None,  # noqa: N803
        iceTransportPolicy: RTCIceTransportPolicy = RTCIceTransportPolicy.ALL,  # noqa: N803
        local_username: str | None = None,
        local_password: str | None = None,
    ) -> None:
        if local_username is None or local_password is None:  # of the first section
            fresh = Credentials.fresh()
            local_username, local_password = fresh.ufrag, fresh.password
        super().__init__(
            iceServers=iceServers,
            iceTransportPolicy=iceTransportPolicy,
            local_username=local_username,
            local_password=local_password,
        )
        if _installed is not None:
            ours = Connection(self._connection, _installed.transceiver)
            self._connection = ours  # type: ignore[assignment]


class _Certificate(RTCCertificate):
    """One certificate for all peer connections: to make one is a third of a session's cost."""

    _shared: RTCCertificate | None = None

    @classmethod
    def generateCertificate(cls) -> RTCCertificate:  # type: ignore[override]  # noqa: N802
        now = datetime.datetime.now(tz=datetime.UTC)
        if cls._shared is None or cls._shared.expires - now < CERTIFICATE_MARGIN:
            cls._shared = RTCCertificate.generateCertificate()
        return cls._shared


_decode_params = aiortc.rtcsctptransport.decode_params


def _bounded_params(body: bytes) -> list[tuple[int, bytes]]:
    """As aiortc's own, which reads a parameter of length 0 for ever (1.16): a client's, who could
    stop the whole process by one packet. ValueError drops the packet there."""
    at = 0
    while at <= len(body) - _PARAMETER.size:
        _, length = _PARAMETER.unpack_from(body, at)
        if length < _PARAMETER.size:
            raise ValueError("an SCTP parameter shorter than its header")
        at += (length + 3) & ~3
    return _decode_params(body)


_OURS: dict[str, tuple[Any, Any]] = {
    "RTCIceGatherer": (aiortc.rtcpeerconnection, _Gatherer),
    "RTCCertificate": (aiortc.rtcpeerconnection, _Certificate),
    "decode_params": (aiortc.rtcsctptransport, _bounded_params),
}
"""What we put in aiortc's modules, by its name there."""


def _endpoint(text: str) -> Address:
    """IP:PORT, IPv6 in brackets."""
    try:
        host, port = endpoint(text)
    except ValueError as error:
        raise ShuntError(f"udp {text!r} is not IP:PORT", "Write e.g. 10.0.0.7:40000.") from error
    if ipaddress.ip_address(host).is_unspecified:
        raise ShuntError(
            f"udp {text!r} names no address", "Give the one that the relay shall send to."
        )
    return host, port


async def _bind(address: Address) -> SharedSocket:
    try:
        return await SharedSocket.open(address, TIMING)
    except OSError as error:
        raise ShuntError(
            f"UDP {address[0]} port {address[1]} cannot be bound: {error.strerror}",
            "Use an address of this machine (ip address), and a port that is free (ss -lnp).",
        ) from error
