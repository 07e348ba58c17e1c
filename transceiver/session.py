"""A session's life, from an offer to exactly one end, however that comes.

    new ──answer──▶ connecting ──a path──▶ securing ──DTLS──▶ connected
     └──────────────────┴─────────────────────┴───end────────────┴──────▶ closed

Each state has its deadline, and so has the first sign of life after them. The route is in the relay
before the answer goes out, and goes when the session has said goodbye through it. What HTTP makes
of it all is `transceiver.signaling`'s.
"""

import asyncio
import dataclasses
import logging
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from loader.errors import ShuntError
from transceiver import sessionid
from transceiver.backends import AudioFormat, Backend
from transceiver.conversation import LiveConversation
from transceiver.dtls import Certificate
from transceiver.ice import Credentials
from transceiver.media.metronome import Metronome
from transceiver.media.receiver import AudioReceiver
from transceiver.media.sender import BITRATE, AudioSender
from transceiver.peer import Peer
from transceiver.sdp import answer as sdp_answer
from transceiver.sdp import offer as sdp_offer
from transceiver.sdp.offer import Audio, Offer, OfferError
from transceiver.shared_socket import SharedSocket
from transceiver.stun import Address, text
from transceiver.timeline import Moment, Timeline

__all__ = ["Limits", "Routes", "Session", "State", "Surroundings", "UnavailableError"]

GOODBYE_LIMIT = 3.0
"""Seconds that a backend gets to close."""

LEAST_BITRATE = 6000
"""Bit/s, the lowest that Opus has (RFC 7587 section 6.1)."""

DEFAULT_PAYLOAD_TYPE = 111
"""Of a sender whose client wants no audio, and so never gets a packet of it."""

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

    async def add(self, ufrag: str, *, restarts: str | None = None) -> None:
        """Return once the relay steers *ufrag* to us; ShuntError if it does not. *restarts*: the
        ufrag that this one takes the place of, which is allowed during a drain."""

    async def remove(self, ufrag: str) -> None:
        """Take the route of *ufrag* back, now or as soon as that can be; never raises."""


class State(StrEnum):
    NEW = "new"
    CONNECTING = "connecting"
    """The answer is out; no path has been validated."""
    SECURING = "securing"
    """The DTLS handshake is under way."""
    CONNECTED = "connected"
    CLOSED = "closed"


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds that a session may take in each state, and from there to the first sign of life: an
    authentic media packet, or a data channel."""

    path: float = 15.0
    dtls: float = 10.0
    media: float = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What all sessions of a process share."""

    owner: str
    """The transceiver's id."""
    shared: SharedSocket
    routes: Routes
    metronome: Metronome
    certificate: Callable[[], Certificate]
    limits: Limits


class Session:
    """One client, its routes and its backend. Made of a judged offer; `begin` makes the answer."""

    def __init__(
        self,
        offer: Offer,
        *,
        dialect: str,
        configuration: Mapping[str, object],
        surroundings: Surroundings,
        backend: Backend,
        audio: AudioFormat,
        on_closed: Callable[["Session"], None],
    ) -> None:
        """*audio*: the backend's. *on_closed* is called once, when nothing of it is left."""
        self.id = sessionid.fresh(surroundings.owner)
        self.dialect = dialect
        self.configuration = configuration
        self.state = State.NEW
        self.answer = ""
        """The newest SDP answer."""
        self.mids = offer.bundle or offer.mids
        """Of the media sections that were not refused, the tagged one first."""
        self.bundled = offer.bundled
        self.reason = ""
        """Why it ended, once it has."""
        self.backend_failure = ""
        """How its backend failed, if it did: "raised", or "did_not_close"."""
        self._loop = asyncio.get_running_loop()
        self.timeline = Timeline(self._loop.time, time.time)
        self.timeline.note(Moment.OFFER, dialect=dialect)
        self._routes = surroundings.routes
        self._limits = surroundings.limits
        self._backend = backend
        self._audio = audio
        self._on_closed = on_closed
        self._ending: asyncio.Task[None] | None = None
        self._removals: set[asyncio.Task[None]] = set()
        self._restarting = asyncio.Lock()
        self._deadline: asyncio.TimerHandle | None = None
        self._has_heard = False
        self._where: Address | None = None

        credentials = Credentials.fresh()
        certificate = surroundings.certificate()
        self._routed = {credentials.ufrag}
        self.remote = offer.remote
        """The client's credentials, of the newest ICE generation."""
        self._offer = offer
        self._local = sdp_answer.Local(
            credentials=credentials,
            fingerprint=certificate.fingerprint,
            ssrc=secrets.randbits(32),
            cname=secrets.token_urlsafe(12),
            vips=tuple(surroundings.routes.vips),
            session_id=secrets.randbits(62),
            version=1,
        )
        channel = surroundings.shared.channel(credentials)
        channel.set_remote(offer.remote)
        self._peer = Peer(
            channel=channel,
            certificate=certificate,
            offer=offer,
            sender=self._make_sender(),
            receiver=self._make_receiver(),
            cname=self._local.cname,
            metronome=surroundings.metronome,
            events=self,
        )
        self._follow_direction(offer)
        self._conversation = LiveConversation(
            audio=audio,
            configuration=configuration,
            sender=self._peer.sender,
            send=self._peer.send,
            end=self._begin_end,
            guard=self._guard,
            spoken=lambda: self.timeline.note(Moment.FIRST_AUDIO_OUT),
        )

    @property
    def ufrag(self) -> str:
        """Our newest ICE ufrag: the name of the route."""
        return self._local.credentials.ufrag

    @property
    def credentials(self) -> Credentials:
        """Ours, of the newest ICE generation."""
        return self._local.credentials

    @property
    def ufrags(self) -> list[str]:
        """All that lead here: more than one while an ICE restart is under way."""
        return self._peer.channel.ice.ufrags

    @property
    def etag(self) -> str:
        """Names the ICE generation, quoted as HTTP wants it (RFC 9725 section 4.3)."""
        return f'"{self.ufrag}"'

    async def begin(self) -> None:
        """Have the route put in place, and `answer` made.

        Raises ShuntError (the relay refused) or UnavailableError (ended meanwhile); in each case
        the caller must `end` the session.
        """
        self._peer.open()
        await self._routes.add(self.ufrag)
        if self.state is not State.NEW:
            await self._routes.remove(self.ufrag)
            raise UnavailableError("the session was ended while it began")
        self.timeline.note(Moment.ROUTE)
        self.answer = sdp_answer.write(self._offer, self._local)
        self.timeline.note(Moment.ANSWER)
        self._turn(State.CONNECTING, self._limits.path, "no path to the client in time")

    async def end(self, reason: str) -> None:
        """End the session, or wait for the end that is under way."""
        await asyncio.shield(self._begin_end(reason))

    async def restart_ice(self, remote: Credentials) -> Credentials:
        """Begin an ICE restart (RFC 8445 section 9); our credentials for it, routed already.

        ShuntError if the relay refuses, UnavailableError if the session has ended meanwhile: media
        goes on as before, if it does.
        """
        async with self._restarting:
            old, new = self._local.credentials, Credentials.fresh()
            self._check_running()
            self._routed.add(new.ufrag)
            try:
                await self._routes.add(new.ufrag, restarts=old.ufrag)
                self._check_running()
                self._peer.channel.restart(new, remote)
            except (ShuntError, UnavailableError, ConnectionError) as error:
                self._remove_route(new.ufrag)
                if isinstance(error, ConnectionError):
                    raise UnavailableError("the session has ended") from error
                raise
            self._local = _with_credentials(self._local, new)
            self.remote = remote
            self.timeline.note(Moment.RESTART)
            return new

    async def renegotiate(self, offer: str) -> str:
        """The answer to another offer for the same session: other directions, or an ICE restart.

        Raises OfferError, also for what would take another session: other fingerprints, or media
        sections that were not there; and what `restart_ice` raises.
        """
        parsed = sdp_offer.parse(offer)
        self._check_running()
        before = self._offer
        if set(parsed.fingerprints) != set(before.fingerprints):
            raise OfferError("another certificate is another session: make a new offer for it")
        if [s.kind for s in parsed.sections[: len(before.sections)]] != [
            s.kind for s in before.sections
        ]:
            raise OfferError("media sections cannot be taken away or change their kind (RFC 3264)")
        if parsed.mids != before.mids:
            raise OfferError("media sections in use cannot be added or given up in a session")
        if _payload_type(parsed) != _payload_type(before):
            raise OfferError("Opus must keep its payload type in a session")
        if parsed.remote != self.remote:
            await self.restart_ice(parsed.remote)
        self._offer = parsed
        self.mids = parsed.bundle or parsed.mids
        self._local = _with_credentials(self._local, self._local.credentials)
        self._follow_direction(parsed)
        self.answer = sdp_answer.write(parsed, self._local, is_client=self._peer.is_client)
        return self.answer

    def to_json(self) -> dict[str, object]:
        """What the operator may know of it: no keys, no audio."""
        receiver, reports = self._peer.receiver, self._peer.reports
        told: dict[str, object] = {
            "id": self.id,
            "dialect": self.dialect,
            "state": str(self.state),
            "ufrags": self.ufrags or [self.ufrag],
            "began": round(self.timeline.began, 3),
            "selected": None if self._where is None else text(self._where),
            "reason": self.reason or None,
            "timeline": self.timeline.to_json(),
            "sent": {"packets": self._peer.sender.packets, "loss": round(reports.loss, 4)},
            "rtt_s": reports.rtt if reports.rtt is not None else self._peer.channel.ice.rtt,
            "dropped": self._peer.dropped,
        }
        if receiver is not None:
            told["received"] = {
                "packets": receiver.received,
                "lost": receiver.lost,
                "late": receiver.late,
                "recovered": receiver.recovered,
                "concealed": receiver.concealed,
                "jitter_s": round(receiver.jitter, 6),
            }
        return told

    # What the peer tells (`peer.PeerEvents`).

    def checked(self) -> None:
        self.timeline.note(Moment.FIRST_CHECK)

    def selected(self, address: Address) -> None:
        if self.state is State.CLOSED:
            return
        if self._where is None:
            self.timeline.note(Moment.SELECTED, address=text(address))
        else:
            self.timeline.note(Moment.ROAM, address=text(address))
        self._where = address
        if self.state is State.CONNECTING:
            self._turn(State.SECURING, self._limits.dtls, "no DTLS handshake in time")

    def restarted(self, old_ufrag: str) -> None:
        self._remove_route(old_ufrag)

    def secured(self) -> None:
        if self.state is State.CLOSED:  # its end is about to be carried out
            return
        self.timeline.note(Moment.DTLS)
        self._turn(State.CONNECTED, self._limits.media, "neither audio nor data in time")
        log.info("session %s connected", self.id)
        self._guard(lambda: self._backend.start(self._conversation))

    def alive(self) -> None:
        if self._deadline is not None and self.state is State.CONNECTED:
            self._deadline.cancel()

    def hear(self, pcm: bytes, at: int, concealed: bool) -> None:
        if self.state is not State.CONNECTED:
            return
        if not self._has_heard:
            self._has_heard = True
            self.timeline.note(Moment.FIRST_AUDIO_IN)
        try:
            self._backend.hear(pcm, at, concealed)
        except Exception as error:
            log.exception("session %s: its backend failed", self.id)
            self._backend_failed(error)

    def channel_opened(self, label: str) -> None:
        self.timeline.note(Moment.DATA, label=label[:64])
        self._guard(lambda: self._backend.channel_opened(label))

    def receive(self, label: str, message: str | bytes) -> None:
        self._guard(lambda: self._backend.receive(label, message))

    def closed(self, reason: str) -> None:
        self._begin_end(reason)

    # The parts of it.

    def _make_sender(self) -> AudioSender:
        audio, wanted = self._offer.audio, self._audio
        return AudioSender(
            ssrc=self._local.ssrc,
            payload_type=DEFAULT_PAYLOAD_TYPE if audio is None else audio.payload_type,
            rate=wanted.rate,
            passthrough=wanted.passthrough,
            fec=audio is not None and audio.fec,
            dtx=audio is not None and audio.dtx,
            bitrate=_bitrate(audio),
            sequence=secrets.randbits(15),  # RFC 3711 section 3.3.1: the first wrap is far away
            timestamp=secrets.randbits(32),
        )

    def _make_receiver(self) -> AudioReceiver | None:
        audio, wanted = self._offer.audio, self._audio
        if audio is None:
            return None
        return AudioReceiver(
            payload_type=audio.payload_type,
            rate=wanted.rate,
            passthrough=wanted.passthrough,
            deliver=self.hear,
        )

    def _follow_direction(self, offer: Offer) -> None:
        """Speak only to who will listen."""
        audio = offer.audio
        self._peer.is_heard = audio is not None and audio.direction in ("sendrecv", "recvonly")

    # Its end.

    def _turn(self, state: State, limit: float, otherwise: str) -> None:
        """Go on to *state*, which may last *limit* seconds; or else end."""
        self.state = state
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = self._loop.call_later(limit, self._give_up, otherwise)

    def _give_up(self, reason: str) -> None:
        complaint = self._peer.complaint
        self._begin_end(f"{reason}: {complaint}" if complaint else reason)

    def _check_running(self) -> None:
        if self.state in (State.NEW, State.CLOSED):
            raise UnavailableError("the session has ended")

    def _guard(self, call: Callable[[], object]) -> None:
        """Call the backend; whatever it raises ends this session, and no other."""
        if self.state is State.CLOSED:
            return
        try:
            call()
        except Exception as error:
            log.exception("session %s: its backend failed", self.id)
            self._backend_failed(error)

    def _backend_failed(self, error: Exception) -> None:
        self.backend_failure = "raised"
        self._begin_end(f"the backend failed: {type(error).__name__}")

    def _begin_end(self, reason: str) -> asyncio.Task[None]:
        if self._ending is None:
            self.reason = reason
            self.timeline.note(Moment.END, reason=reason, state=str(self.state))
            log.info("session %s ended (%s): %s", self.id, self.state, reason)
            self.state = State.CLOSED
            if self._deadline is not None:
                self._deadline.cancel()
            self._ending = self._loop.create_task(self._finish(), name=f"end of {self.id}")
        return self._ending

    async def _finish(self) -> None:
        # Not in `_begin_end`: who calls that may be in the middle of one of the peer's calls.
        self._peer.close()
        try:
            async with asyncio.timeout(GOODBYE_LIMIT):
                await self._backend.close()
        except TimeoutError:
            log.warning("session %s: its backend did not close in time", self.id)
            self.backend_failure = "did_not_close"
        except Exception:
            log.exception("session %s: its backend failed to close", self.id)
            self.backend_failure = "raised"
        self._conversation.close()
        for ufrag in list(self._routed):
            self._remove_route(ufrag)
        await asyncio.gather(*self._removals)
        self._on_closed(self)

    def _remove_route(self, ufrag: str) -> None:
        if ufrag not in self._routed:
            return
        self._routed.discard(ufrag)
        removal = self._loop.create_task(self._routes.remove(ufrag), name=f"no route {ufrag}")
        self._removals.add(removal)
        removal.add_done_callback(self._removals.discard)


def _bitrate(audio: Audio | None) -> int:
    """Bit/s to encode to: no more than the client wants (maxaveragebitrate, RFC 7587)."""
    if audio is None or audio.max_bitrate is None:
        return BITRATE
    return max(LEAST_BITRATE, min(BITRATE, audio.max_bitrate))


def _payload_type(offer: Offer) -> int | None:
    return None if offer.audio is None else offer.audio.payload_type


def _with_credentials(local: sdp_answer.Local, credentials: Credentials) -> sdp_answer.Local:
    """For the next answer."""
    return dataclasses.replace(local, credentials=credentials, version=local.version + 1)
