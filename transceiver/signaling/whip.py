"""WHIP (RFC 9725): what OBS, GStreamer, FFmpeg and WHIP's own JavaScript client send.

An offer by POST, candidates and ICE restarts by PATCH of the session's URL (RFC 8840), its end by
DELETE. Candidates are read for form's sake: where a client is, its checks tell.

Two things are as they are because the endpoint serves voice. The answer has the client's audio both
ways, though WHIP's clients only send; and video is inactive in the answer, not the offer refused
(section 4.4.3 has that as SHOULD NOT), so that an encoder that cannot leave it out is heard. Link
names the operator's ICE servers, if there are any; extensions there are none.
"""

from collections.abc import Sequence
from typing import NoReturn

import msgspec
from aiohttp import hdrs, web

from loader.errors import ShuntError
from transceiver.sdp import fragment
from transceiver.sdp.fragment import FragmentError
from transceiver.session import Session, UnavailableError
from transceiver.signaling import iceservers
from transceiver.signaling.calls import Calls, refusal_of
from transceiver.signaling.http import Handler, Refused, accepts, read_text
from transceiver.signaling.iceservers import IceServer
from transceiver.timeline import Moment

__all__ = ["ENDPOINT", "refusal", "routes"]

ENDPOINT = "/whip"
SESSION = ENDPOINT + "/{id}"

DIALECT = "whip"

SDP = "application/sdp"
FRAGMENT = "application/trickle-ice-sdpfrag"

ANY = "*"


def refusal(refused: Refused) -> web.Response:
    """A refusal as problem details (RFC 9457)."""
    problem: dict[str, object] = {"title": refused.what, "status": refused.status}
    if refused.code:
        problem["code"] = refused.code
    return web.Response(
        status=refused.status,
        body=msgspec.json.encode(problem),
        content_type="application/problem+json",
    )


def routes(calls: Calls, ice_servers: Sequence[IceServer] = ()) -> list[web.RouteDef]:
    """What this dialect serves; all other methods are reserved (sections 4.2 and 4.3)."""
    dialect = _Whip(calls, iceservers.links(ice_servers))
    return [
        web.post(ENDPOINT, dialect.create),
        web.options(ENDPOINT, _tell_endpoint),
        web.route(hdrs.METH_ANY, ENDPOINT, _not_allowed("POST", "OPTIONS")),
        web.patch(SESSION, dialect.patch),
        web.delete(SESSION, dialect.delete),
        web.options(SESSION, _tell_session),
        web.route(hdrs.METH_ANY, SESSION, _not_allowed("PATCH", "DELETE", "OPTIONS")),
    ]


class _Whip:
    def __init__(self, calls: Calls, links: str) -> None:
        self._calls = calls
        self._links = {hdrs.LINK: links} if links else {}

    async def create(self, request: web.Request) -> web.Response:
        asker = self._calls.asker(request)
        if request.content_type != SDP:
            raise Refused(415, f"the body must be {SDP}", headers={"Accept-Post": SDP})
        if not accepts(request, SDP):
            raise Refused(406, f"the answer is {SDP}, and you do not take that")
        session = await self._calls.open(asker, await read_text(request), dialect=DIALECT)
        return web.Response(
            status=201,
            text=session.answer,
            content_type=SDP,
            headers={
                hdrs.LOCATION: f"{ENDPOINT}/{session.id}",
                hdrs.ETAG: session.etag,
                **self._links,
            },
        )

    async def patch(self, request: web.Request) -> web.Response:
        asker = self._calls.asker(request)
        session = self._calls.find(asker, request.match_info["id"])
        if request.content_type != FRAGMENT:
            raise Refused(415, f"the body must be {FRAGMENT}", headers={"Accept-Patch": FRAGMENT})
        expected = request.headers.get(hdrs.IF_MATCH)
        if expected is None:
            raise Refused(
                428, "say by If-Match which ICE session is meant", code="precondition_required"
            )
        try:
            told = fragment.parse(await read_text(request, what="the fragment"))
        except FragmentError as error:
            raise Refused(400, str(error), code="invalid_fragment") from error
        # Only now, as another PATCH may have come meanwhile.
        if expected.strip() != ANY and session.etag not in _tags(expected):
            raise Refused(412, "that ICE session is over, by a restart", code="precondition_failed")
        if told.credentials is None or told.credentials == session.remote:
            if expected.strip() == ANY and session.timeline.at(Moment.RESTART) is not None:
                # The answer to its restart was lost, and the client asks again.
                return self._restarted(session)
            return web.Response(status=204)
        try:
            await session.restart_ice(told.credentials)
        except UnavailableError as error:
            raise refusal_of(error) from error
        except ShuntError as error:
            raise refusal_of(UnavailableError(f"no ICE restart can be had: {error}")) from error
        return self._restarted(session)

    async def delete(self, request: web.Request) -> web.Response:
        asker = self._calls.asker(request)
        session = self._calls.find(asker, request.match_info["id"])
        await session.end("hung up by request")
        return web.Response()

    def _restarted(self, session: Session) -> web.Response:
        answer = fragment.write(
            session.credentials, session.mids, self._calls.vips, bundled=session.bundled
        )
        return web.Response(text=answer, content_type=FRAGMENT, headers={hdrs.ETAG: session.etag})


def _tags(header: str) -> list[str]:
    """The strong entity tags in an If-Match; weak ones match nothing (RFC 9110 section 13.1.1).
    Ours have no commas."""
    return [tag.strip() for tag in header.split(",")]


async def _tell_endpoint(_request: web.Request) -> web.Response:
    return web.Response(headers={"Accept-Post": SDP, hdrs.ALLOW: "POST, OPTIONS"})


async def _tell_session(_request: web.Request) -> web.Response:
    return web.Response(headers={"Accept-Patch": FRAGMENT, hdrs.ALLOW: "PATCH, DELETE, OPTIONS"})


def _not_allowed(*allowed: str) -> Handler:
    async def refuse(request: web.Request) -> NoReturn:
        raise Refused(
            405,
            f"{request.method} means nothing here",
            headers={hdrs.ALLOW: ", ".join(allowed)},
        )

    return refuse
