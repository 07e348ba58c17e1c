"""aiortc on the shared socket: what stands in for aioice, and the two globals it enters by.

aiortc asks nothing of its ICE connection but the seven methods and nine attributes that
`SharedConnection` has. Peer connections made inside `Link.entered()` get one; all others go on
as before.
"""

import contextlib
import datetime
import ipaddress
import itertools
from collections.abc import Iterator, Sequence
from contextvars import ContextVar

import aiortc.rtcpeerconnection
from aioice import Candidate, ConnectionClosed
from aiortc import RTCCertificate, RTCIceGatherer, RTCIceServer
from aiortc.rtcconfiguration import RTCIceTransportPolicy

from transceiver.ice import Credentials
from transceiver.shared_socket import Channel, SharedSocket
from transceiver.stun import Address

__all__ = ["Link", "SharedConnection", "by_preference", "install"]

HOST_PRIORITY = 126 << 24 | 255
"""Host candidate, component 1, least local preference (RFC 8445 section 5.1.2.1)."""

CERTIFICATE_MARGIN = datetime.timedelta(days=7)

_current: ContextVar["Link | None"] = ContextVar("link", default=None)


def by_preference(vips: Sequence[Address]) -> list[Address]:
    """IPv6 and IPv4 by turns, IPv6 first (RFC 8421 section 4): a client for which one family leads
    nowhere soon tries the other."""
    turns = {6: itertools.count(0, 2), 4: itertools.count(1, 2)}
    numbered = [(next(turns[ipaddress.ip_address(vip[0]).version]), vip) for vip in vips]
    return [vip for _, vip in sorted(numbered)]


class Link:
    """What joins one session's peer connection to the shared socket."""

    def __init__(self, shared: SharedSocket, vips: Sequence[Address]) -> None:
        self.shared = shared
        self.vips = tuple(vips)
        self.credentials = Credentials.fresh()
        self.channel: Channel | None = None
        """The channel that took part, once aiortc has started ICE."""

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Peer connections made and described within go through this link."""
        token = _current.set(self)
        try:
            yield
        finally:
            _current.reset(token)


class SharedConnection:
    """Stands in for `aioice.Connection`; candidates of the client are taken and never used.

    aiortc makes one for each media section, with the same credentials, and closes all but one
    when it bundles. So a connection takes part only from `connect` on.
    """

    def __init__(self, link: Link, credentials: Credentials) -> None:
        self.ice_controlling = False
        self.remote_is_lite = False
        self.remote_username: str | None = None
        self.remote_password: str | None = None
        self.remote_candidates: list[Candidate] = []
        self.local_username = credentials.ufrag
        self.local_password = credentials.password
        self.local_candidates: list[Candidate] = []
        self._link = link
        self._channel = link.shared.channel(credentials)

    async def gather_candidates(self) -> None:
        """There is nothing to gather: the VIPs are the candidates."""
        self.local_candidates = [
            Candidate(
                foundation=str(index),
                component=1,
                transport="udp",
                priority=HOST_PRIORITY | (65535 - index) << 8,
                host=host,
                port=port,
                type="host",
            )
            for index, (host, port) in enumerate(by_preference(self._link.vips))
        ]

    async def add_remote_candidate(self, remote_candidate: Candidate | None) -> None:
        """Ignored: the client's checks tell its addresses, and nothing else is to be believed."""

    async def connect(self) -> None:
        """Wait until media can go out."""
        if self.remote_username is None or self.remote_password is None or self.ice_controlling:
            raise ConnectionError("needs the credentials of a full ICE agent that makes the offer")
        self._channel.ice.set_remote(Credentials(self.remote_username, self.remote_password))
        self._channel.open()
        self._link.channel = self._channel
        await self._channel.wait_selected()

    async def recv(self) -> bytes:
        return await self._channel.receive()

    async def send(self, data: bytes) -> None:
        self._channel.send(data)

    async def get_event(self) -> ConnectionClosed:
        await self._channel.wait_closed()
        return ConnectionClosed()

    async def close(self) -> None:
        self._channel.close()


class _Gatherer(RTCIceGatherer):
    """Gives a `SharedConnection` to what is made inside a link."""

    def __init__(
        self,
        iceServers: list[RTCIceServer] | None = None,  # noqa: N803
        iceTransportPolicy: RTCIceTransportPolicy = RTCIceTransportPolicy.ALL,  # noqa: N803
        local_username: str | None = None,
        local_password: str | None = None,
    ) -> None:
        link = _current.get()
        super().__init__(
            iceServers=iceServers if link is None else [],
            iceTransportPolicy=iceTransportPolicy,
            local_username=local_username,
            local_password=local_password,
        )
        if link is not None:
            credentials = link.credentials
            if local_username is not None and local_password is not None:
                credentials = Credentials(local_username, local_password)
            self._connection = SharedConnection(link, credentials)  # type: ignore[assignment]


class _Certificate(RTCCertificate):
    """One certificate for all peer connections inside links: a third of the cost of a session."""

    _shared: RTCCertificate | None = None

    @classmethod
    def generateCertificate(cls) -> RTCCertificate:  # type: ignore[override]  # noqa: N802
        if _current.get() is None:
            return RTCCertificate.generateCertificate()
        now = datetime.datetime.now(tz=datetime.UTC)
        if cls._shared is None or cls._shared.expires - now < CERTIFICATE_MARGIN:
            cls._shared = RTCCertificate.generateCertificate()
        return cls._shared


def install() -> None:
    """Let aiortc make its ICE connections and certificates here. May be called again."""
    aiortc.rtcpeerconnection.RTCIceGatherer = _Gatherer  # type: ignore[attr-defined]
    aiortc.rtcpeerconnection.RTCCertificate = _Certificate  # type: ignore[attr-defined]
