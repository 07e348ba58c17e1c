"""The sessions of one process: who is taken in, who is here, who was, and how all of them end."""

import asyncio
import datetime
import logging
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Sequence

from loader.errors import ShuntError
from transceiver.backends import Factory
from transceiver.dtls import Certificate
from transceiver.media import opus
from transceiver.media.metronome import Metronome
from transceiver.sdp import offer as sdp_offer
from transceiver.session import Limits, Routes, Session, State, Surroundings, UnavailableError
from transceiver.shared_socket import SharedSocket
from transceiver.stun import Address

__all__ = ["Sessions"]

REMEMBERED = 1000
"""Ended sessions whose story is kept; the ids of ten times as many are."""

CERTIFICATE_MARGIN = datetime.timedelta(days=7)
"""A session that begins now must be over when its certificate is."""

BUSY, FULL, DRAINING = 2, 5, 5
"""Seconds after which another try may do."""

log = logging.getLogger(__name__)


class Sessions:
    """The sessions of this process, at most *capacity* at a time."""

    def __init__(
        self,
        *,
        owner: str,
        shared: SharedSocket,
        routes: Routes,
        backend: Factory,
        capacity: int,
        limits: Limits | None = None,
    ) -> None:
        """*owner*: the transceiver's id; *backend* makes one for each session."""
        self.on_ended: Callable[[Session], None] = lambda session: None
        """Called once for each session that an answer was made for, when nothing is left of it."""
        self.refused: Counter[str] = Counter()
        """Offers that were turned away, by reason."""
        self._backend = backend
        self._capacity = capacity
        self._routes = routes
        self._metronome = Metronome(asyncio.get_running_loop())
        self._certificate: Certificate | None = None
        self._surroundings = Surroundings(
            owner=owner,
            shared=shared,
            routes=routes,
            metronome=self._metronome,
            certificate=self._current_certificate,
            limits=limits or Limits(),
        )
        self._sessions: dict[str, Session] = {}
        self._ended_ids: OrderedDict[str, None] = OrderedDict()
        self._stories: OrderedDict[str, tuple[dict[str, object], tuple[str, ...]]] = OrderedDict()
        self._by_ufrag: dict[str, str] = {}
        self._closing = ""
        self._empty = asyncio.Event()
        self._empty.set()

    def __len__(self) -> int:
        return len(self._sessions)

    @property
    def owner(self) -> str:
        """The transceiver's id, which ends the ids of its sessions."""
        return self._surroundings.owner

    @property
    def capacity(self) -> int:
        """How many there may be at a time."""
        return self._capacity

    @property
    def vips(self) -> Sequence[Address]:
        """Where clients send to."""
        return self._routes.vips

    @property
    def draining(self) -> bool:
        """Whether no new sessions are taken: by the relay's word, or our own."""
        return bool(self._closing) or self._routes.draining

    async def open(
        self, offer: str, *, dialect: str, configuration: Mapping[str, object] | None = None
    ) -> Session:
        """A new session, its answer made; or OfferError or UnavailableError, and nothing is left.

        *configuration*: what the client posted along with the offer.
        """
        parsed = sdp_offer.parse(offer)
        self._admit()
        try:
            backend = self._backend()
            audio = backend.audio
            if audio.rate not in opus.RATES:
                raise ValueError(f"Opus has no rate of {audio.rate} Hz")
        except Exception as error:
            log.exception("the backend cannot be made")
            raise self._refusal("backend", "the backend cannot be made", BUSY) from error
        session = Session(
            parsed,
            dialect=dialect,
            configuration=configuration or {},
            surroundings=self._surroundings,
            backend=backend,
            audio=audio,
            on_closed=self._forget,
        )
        self._sessions[session.id] = session
        self._empty.clear()
        try:
            await session.begin()
        except ShuntError as error:
            raise self._refusal("relay", f"the relay took no route: {error}", 1) from error
        finally:
            if not session.answer:
                await session.end("could not begin")
        return session

    def find(self, id: str) -> Session | None:
        """The live session *id*."""
        return self._sessions.get(id)

    def has_ended(self, id: str) -> bool:
        """Whether *id* was one of ours, not too long ago."""
        return id in self._ended_ids

    def describe(self, name: str) -> dict[str, object] | None:
        """`Session.to_json` of who has or had the ufrag or id *name*; None if nobody of late."""
        for session in self._sessions.values():
            if name == session.id or name in session.ufrags:
                return session.to_json()
        story = self._stories.get(self._by_ufrag.get(name, name))
        return None if story is None else story[0]

    def by_state(self) -> dict[str, int]:
        """How many are in each state."""
        found = Counter(str(session.state) for session in self._sessions.values())
        return {str(state): found[str(state)] for state in State if state is not State.CLOSED}

    def all(self) -> list[Session]:
        """Those that are here, oldest first."""
        return list(self._sessions.values())

    async def drain(self, limit: float) -> None:
        """Take no new ones, and return when all have ended, or been ended after *limit* seconds."""
        self._closing = self._closing or "this transceiver is draining"
        try:
            async with asyncio.timeout(limit):
                await self._empty.wait()
        except TimeoutError:
            log.warning("%d sessions are ended by the end of the drain", len(self))
            await self._end_all("the drain is over")

    async def stop(self) -> None:
        """Take no new ones, and end those that are."""
        self._closing = "the transceiver is stopping"
        await self._end_all("the transceiver stops")
        self._metronome.close()

    def _admit(self) -> None:
        """UnavailableError unless one more can be had without harm to those that are."""
        if self._closing:
            raise self._refusal("draining", self._closing, DRAINING)
        if self._routes.draining:
            raise self._refusal("draining", "this transceiver is draining", DRAINING)
        if len(self) >= self._capacity:
            raise self._refusal("full", f"all {self._capacity} sessions are taken", FULL)
        if self._metronome.is_full:
            raise self._refusal("busy", "the sessions that are take all there is of this CPU", BUSY)
        if not self._routes.vips:
            raise self._refusal("relay", "no relay has taken this transceiver in yet", 1)

    def _refusal(self, reason: str, what: str, retry_after: int) -> UnavailableError:
        self.refused[reason] += 1
        return UnavailableError(what, retry_after=retry_after)

    def _current_certificate(self) -> Certificate:
        """One for all sessions: to make one costs more than the rest of a session's beginning."""
        now = datetime.datetime.now(tz=datetime.UTC)
        if self._certificate is None or self._certificate.expires - now < CERTIFICATE_MARGIN:
            self._certificate = Certificate.fresh()
        return self._certificate

    async def _end_all(self, reason: str) -> None:
        await asyncio.gather(*(session.end(reason) for session in self.all()))

    def _forget(self, session: Session) -> None:
        del self._sessions[session.id]
        if not self._sessions:
            self._empty.set()
        if not session.answer:
            return  # nobody knows of it
        self._remember(session)
        self.on_ended(session)

    def _remember(self, session: Session) -> None:
        self._ended_ids[session.id] = None
        if len(self._ended_ids) > 10 * REMEMBERED:
            self._ended_ids.popitem(last=False)
        ufrags = tuple(session.ufrags) or (session.ufrag,)
        self._stories[session.id] = session.to_json(), ufrags
        for ufrag in ufrags:
            self._by_ufrag[ufrag] = session.id
        if len(self._stories) > REMEMBERED:
            _, (_, old) = self._stories.popitem(last=False)
            for ufrag in old:
                self._by_ufrag.pop(ufrag, None)
