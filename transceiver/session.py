"""A session's life, from an offer to exactly one end, however that comes.

    new ──answer──▶ connecting ──DTLS done──▶ connected
     └──────────────────┴────────end────────────┴──────▶ closed

The route is in the relay before the answer goes out, and goes when the session has said goodbye
through it. What HTTP makes of it all is `transceiver.signaling`'s.
"""

import asyncio
import logging
import secrets
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Protocol

from aiortc import (
    RTCBundlePolicy,
    RTCConfiguration,
    RTCDataChannel,
    RTCPeerConnection,
    RTCSessionDescription,
)
from aiortc.exceptions import InternalError, InvalidAccessError, InvalidStateError, OperationError

from loader.errors import ShuntError
from transceiver.backends.legacy import Backend
from transceiver.offer import PARSER_FAILURES, Offer, OfferError
from transceiver.offer import parse as parse_offer
from transceiver.seam import Link
from transceiver.shared_socket import SharedSocket
from transceiver.stun import Address

__all__ = ["Routes", "Session", "Sessions", "State", "UnavailableError"]

GOODBYE_LIMIT = 3.0
"""Seconds that aiortc gets to close a peer connection."""

AIORTC_FAILURES = (
    InternalError,
    InvalidAccessError,
    InvalidStateError,
    OperationError,
    *PARSER_FAILURES,
)

log = logging.getLogger(__name__)


class UnavailableError(Exception):
    """No session can be made just now; another try in *retry_after* seconds may do."""

    def __init__(self, what: str, *, retry_after: int = 1) -> None:
        super().__init__(what)
        self.retry_after = retry_after


class Routes(Protocol):
    """The relay, as sessions see it."""

    @property
    def vips(self) -> Sequence[Address]:
        """Where clients send to; empty while no relay has taken us in."""

    @property
    def draining(self) -> bool:
        """Whether the relay takes no new sessions of ours."""

    async def add(self, ufrag: str) -> None:
        """Return once the relay steers *ufrag* to us; ShuntError if it does not."""

    async def remove(self, ufrag: str) -> None:
        """Take the route of *ufrag* back, now or as soon as that can be; never raises."""


class State(StrEnum):
    NEW = "new"
    CONNECTING = "connecting"
    CONNECTED = "connected"
    CLOSED = "closed"


class Session:
    """One client's peer connection, route and backend."""

    def __init__(
        self,
        *,
        link: Link,
        routes: Routes,
        backend: Backend,
        setup_deadline: float,
        on_closed: Callable[["Session"], None],
    ) -> None:
        """*setup_deadline*: seconds from now until it must be connected."""
        self.id = secrets.token_urlsafe(16)
        self.state = State.NEW
        self._link = link
        self._routes = routes
        self._backend = backend
        self._on_closed = on_closed
        self._ending: asyncio.Task[None] | None = None
        self._deadline = asyncio.get_running_loop().call_later(
            setup_deadline, self._begin_end, "not connected in time"
        )
        configuration = RTCConfiguration(iceServers=[], bundlePolicy=RTCBundlePolicy.MAX_BUNDLE)
        with link.entered():
            self._peer = RTCPeerConnection(configuration)
        self._peer.on("connectionstatechange", self._peer_changed)
        self._peer.on("datachannel", self._take_channel)

    @property
    def ufrag(self) -> str:
        """Our ICE ufrag: the name of the route."""
        return self._link.credentials.ufrag

    async def answer(self, offer: Offer) -> str:
        """The SDP answer, its route in place.

        Raises OfferError, ShuntError (the relay refused) or UnavailableError (ended meanwhile); in
        each case the caller must `end` the session.
        """
        try:
            with self._link.entered():
                await self._peer.setRemoteDescription(RTCSessionDescription(offer.sdp, "offer"))
                self._arrange_media(offer)
                await self._peer.setLocalDescription()
        except AIORTC_FAILURES as error:
            raise OfferError(f"the offer cannot be answered: {error}") from error
        await self._routes.add(self.ufrag)
        if self.state is not State.NEW:
            await self._routes.remove(self.ufrag)
            raise UnavailableError("the session was ended while it began")
        self.state = State.CONNECTING
        return self._peer.localDescription.sdp

    async def end(self, reason: str) -> None:
        """End the session, or wait for the end that is under way."""
        await asyncio.shield(self._begin_end(reason))

    def _arrange_media(self, offer: Offer) -> None:
        """Talk on one audio section, and let all others rest."""
        for transceiver in self._peer.getTransceivers():
            if transceiver.mid == offer.audio_mid:
                if transceiver.receiver.track is not None:
                    track = self._backend.converse(transceiver.receiver.track)
                    transceiver.sender.replaceTrack(track)
                    transceiver.direction = "sendrecv"
            else:
                transceiver.direction = "inactive"

    def _take_channel(self, channel: RTCDataChannel) -> None:
        channel.on("close", self._channel_closed)
        self._backend.open_channel(channel)

    def _channel_closed(self) -> None:
        # A channel that closes alone ends nothing; all of SCTP does (the client's ABORT).
        if self._peer.sctp is not None and self._peer.sctp.state == "closed":
            self._begin_end("client hung up")

    def _peer_changed(self) -> None:
        match self._peer.connectionState:
            case "connected" if self.state is State.CONNECTING:
                self.state = State.CONNECTED
                self._deadline.cancel()
                log.info("session %s connected", self.ufrag)
            case "failed" | "closed":
                self._begin_end(self._reason())

    def _reason(self) -> str:
        if self._link.channel is not None and self._link.channel.consent_lost:
            return "client gone"
        return "client hung up" if self.state is State.CONNECTED else "connection failed"

    def _begin_end(self, reason: str) -> asyncio.Task[None]:
        if self._ending is None:
            log.info("session %s ended (%s): %s", self.ufrag, self.state, reason)
            self.state = State.CLOSED
            self._deadline.cancel()
            self._ending = asyncio.create_task(self._finish(), name=f"end of {self.ufrag}")
        return self._ending

    async def _finish(self) -> None:
        try:
            async with asyncio.timeout(GOODBYE_LIMIT):
                await self._peer.close()
        except (TimeoutError, *AIORTC_FAILURES) as error:
            log.warning("session %s: aiortc did not close: %r", self.ufrag, error)
        finally:
            if self._link.channel is not None:
                self._link.channel.close()
            await self._backend.close()
            await self._routes.remove(self.ufrag)
            self._on_closed(self)


class Sessions:
    """The sessions of this process, at most *capacity* at a time."""

    def __init__(
        self,
        *,
        shared: SharedSocket,
        routes: Routes,
        backend: Callable[[], Backend],
        capacity: int,
        setup_deadline: float,
    ) -> None:
        self._shared = shared
        self._routes = routes
        self._backend = backend
        self._capacity = capacity
        self._setup_deadline = setup_deadline
        self._sessions: dict[str, Session] = {}
        self._stopping = False

    def __len__(self) -> int:
        return len(self._sessions)

    async def open(self, offer_sdp: str) -> tuple[Session, str]:
        """A new session and its answer; or OfferError or UnavailableError, and nothing is left."""
        offer = parse_offer(offer_sdp)
        if self._stopping:
            raise UnavailableError("the transceiver is stopping", retry_after=5)
        if self._routes.draining:
            raise UnavailableError("this transceiver is draining", retry_after=5)
        if len(self) >= self._capacity:
            raise UnavailableError(f"all {self._capacity} sessions are taken", retry_after=5)
        vips = self._routes.vips
        if not vips:
            raise UnavailableError("no relay has taken this transceiver in yet")

        session = Session(
            link=Link(self._shared, vips),
            routes=self._routes,
            backend=self._backend(),
            setup_deadline=self._setup_deadline,
            on_closed=self._forget,
        )
        self._sessions[session.id] = session
        answer = None
        try:
            answer = await session.answer(offer)
        except ShuntError as error:
            raise UnavailableError(f"the relay took no route: {error}") from error
        finally:
            if answer is None:
                await session.end("could not begin")
        return session, answer

    async def close(self, id: str) -> bool:
        """End the session *id*; False if there is none."""
        session = self._sessions.get(id)
        if session is None:
            return False
        await session.end("deleted")
        return True

    async def stop(self) -> None:
        """Take no more calls and end those that are."""
        self._stopping = True
        await asyncio.gather(*(s.end("the transceiver stops") for s in self._sessions.values()))

    def _forget(self, session: Session) -> None:
        del self._sessions[session.id]
