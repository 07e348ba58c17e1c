"""Pipecat's small WebRTC transport: what `@pipecat-ai/small-webrtc-transport` sends.

`POST /api/offer` makes a session, or negotiates anew in the one that `pc_id` names, `PATCH` of the
same tells candidates. Where a client is, its checks tell; so they are only counted.

A client that is configured by `startBot` asks `POST /start` first, and from then on speaks to
`/sessions/{sessionId}/api/offer`. Pipecat's runner keeps in memory what was posted to `/start`;
here it is in the `sessionId` itself, sealed, so that any transceiver can take what comes next.
"""

import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import msgspec
from aiohttp import hdrs, web

from loader.errors import ShuntError
from transceiver.sdp.offer import OfferError
from transceiver.session import Session, UnavailableError
from transceiver.signaling import iceservers
from transceiver.signaling.calls import Calls, Elsewhere, refusal_of
from transceiver.signaling.http import Refused, preflight, read_json
from transceiver.signaling.iceservers import IceServer
from transceiver.signaling.keys import Asker, Seal, TooLarge

__all__ = ["PREFIXES", "refusal", "routes"]

OFFER = "/api/offer"
START = "/start"
STARTED_OFFER = "/sessions/{session}/api/offer"
PREFIXES = ("/api/", START, "/sessions/")

DIALECT = "pipecat"

START_SECONDS = 3600
"""That one may take from `/start` to the offer."""


def refusal(refused: Refused) -> web.Response:
    """A refusal as Pipecat's own server (FastAPI) has them."""
    return web.json_response({"detail": refused.what}, status=refused.status)


IsThere = Callable[[str], Awaitable[bool]]


def routes(
    calls: Calls, seal: Seal, is_there: IsThere, ice_servers: Sequence[IceServer] = ()
) -> list[web.RouteDef]:
    """What this dialect serves. *seal*: makes and reads session ids of `/start`. *is_there*:
    whether there is a transceiver of that id, to which requests can be handed on. *ice_servers*:
    what clients of `/start` are told of, if they ask."""
    dialect = _Pipecat(calls, seal, is_there, ice_servers)
    return [
        web.post(START, dialect.start),
        web.options(START, preflight),
        *(
            route
            for path in (OFFER, STARTED_OFFER)
            for route in (
                web.post(path, dialect.negotiate),
                web.patch(path, dialect.trickle),
                web.options(path, preflight),
            )
        ),
    ]


class _Offer(msgspec.Struct):
    sdp: str
    type: str
    pc_id: str | None = None
    restart_pc: bool | None = None
    request_data: Any = None
    camel_request_data: Any = msgspec.field(default=None, name="requestData")


class _Candidate(msgspec.Struct):
    candidate: str
    sdp_mid: str | None = None
    sdp_mline_index: int | None = None


class _Candidates(msgspec.Struct):
    pc_id: str
    candidates: list[_Candidate] = []


class _Start(msgspec.Struct):
    transport: str | None = None
    enable_default_ice_servers: bool = msgspec.field(default=False, name="enableDefaultIceServers")
    body: dict[str, Any] | None = None


class _Pipecat:
    def __init__(
        self, calls: Calls, seal: Seal, is_there: IsThere, ice_servers: Sequence[IceServer]
    ) -> None:
        self._calls = calls
        self._seal = seal
        self._is_there = is_there
        self._ice_servers = iceservers.to_json(ice_servers)

    async def start(self, request: web.Request) -> web.Response:
        self._calls.asker(request)
        asked: _Start = await read_json(request, _Start) if request.can_read_body else _Start()
        if asked.transport not in (None, "webrtc"):
            raise Refused(400, "the transport here is webrtc")
        try:
            session = self._seal.make(int(time.time()) + START_SECONDS, asked.body or {})
        except TooLarge as error:
            raise Refused(413, str(error)) from error
        told: dict[str, object] = {"sessionId": session}
        if asked.enable_default_ice_servers:
            told["iceConfig"] = {"iceServers": self._ice_servers}
        return web.json_response(told, headers={hdrs.CACHE_CONTROL: "no-store"})

    async def negotiate(self, request: web.Request) -> web.Response:
        asker = self._calls.asker(request)
        configuration, expired = self._started(request)
        asked: _Offer = await read_json(request, _Offer)
        if asked.type != "offer":
            raise Refused(400, f"an offer is wanted, and not {asked.type[:32]!r}")
        session = await self._existing(asker, asked.pc_id)
        if session is not None and not asked.restart_pc:
            return _answer(session, await _renegotiated(session, asked.sdp))
        if session is not None:
            # The client has thrown its peer connection away, and its certificate with it.
            await session.end("the client begins anew")
        elif expired:
            raise Refused(404, "that session was not begun in time: start another")
        data = asked.request_data or asked.camel_request_data or {}
        configuration |= data if isinstance(data, dict) else {"request_data": data}
        session = await self._calls.open(
            asker, asked.sdp, dialect=DIALECT, configuration=configuration
        )
        return _answer(session, session.answer)

    async def trickle(self, request: web.Request) -> web.Response:
        asker = self._calls.asker(request)
        self._started(request)
        asked: _Candidates = await read_json(request, _Candidates)
        self._calls.find(asker, asked.pc_id)
        return web.json_response({"status": "success"})

    async def _existing(self, asker: Asker, id: str | None) -> Session | None:
        """The session that the client believes it has; None if it has none (any more), which makes
        a new one, as Pipecat's own server does."""
        if id is None:
            return None
        try:
            return self._calls.find(asker, id)
        except Refused as refused:
            if refused.status in (404, 410):
                return None
            raise
        except Elsewhere as elsewhere:
            # If it was handed on, its session has ended, and the next is to be made here.
            if not asker.is_handed_on and await self._is_there(elsewhere.owner):
                raise
            return None

    def _started(self, request: web.Request) -> tuple[dict[str, object], bool]:
        """What was posted to `/start`, and whether that was too long ago."""
        sealed = request.match_info.get("session")
        if sealed is None:
            return {}, False
        claims = self._seal.read(sealed)
        if claims is None:
            raise Refused(404, "there is no such session: start one")
        return dict(claims.configuration), time.time() >= claims.expires_at


async def _renegotiated(session: Session, offer: str) -> str:
    try:
        return await session.renegotiate(offer)
    except (OfferError, UnavailableError) as error:
        raise refusal_of(error) from error
    except ShuntError as error:
        raise refusal_of(UnavailableError(f"no ICE restart can be had: {error}")) from error


def _answer(session: Session, sdp: str) -> web.Response:
    return web.json_response({"sdp": sdp, "type": "answer", "pc_id": session.id})
