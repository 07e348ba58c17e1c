"""Signaling over HTTP: an SDP offer in, an answer out, a DELETE to hang up; and the page.

Raw SDP only, as OpenAI's Realtime calls and WHIP (RFC 9725) send it. What a session is, is
`transceiver.session`'s.
"""

import asyncio
import hmac
import json
from collections.abc import Awaitable, Callable
from pathlib import Path

from aiohttp import web

from transceiver.sdp.offer import OfferError, UnsupportedError
from transceiver.session import UnavailableError
from transceiver.sessions import Sessions

__all__ = ["make_app"]

MAX_BODY = 64 << 10
BODY_LIMIT = 10.0
"""Seconds that a client may take to send its offer."""

CORS = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Allow-Methods": "POST, DELETE, GET, OPTIONS",
    "Access-Control-Allow-Headers": "Authorization, Content-Type",
    "Access-Control-Expose-Headers": "Location, Retry-After",
    "Access-Control-Max-Age": "86400",
}

PAGE_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".ico": "image/x-icon",
    ".woff2": "font/woff2",
}
"""What the page may be made of; files of other kinds are not served."""

PAGE_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "font-src 'self'; media-src 'self' blob:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Permissions-Policy": "microphone=(self)",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def make_app(
    sessions: Sessions,
    *,
    api_key: str,
    page: Path,
    is_registered: Callable[[], bool],
) -> web.Application:
    """The HTTP side of a transceiver. *page* is a folder, read now."""
    signaling = _Signaling(sessions, api_key)
    files = _page_files(page)

    async def health(request: web.Request) -> web.Response:
        return web.json_response({"sessions": len(sessions), "registered": is_registered()})

    async def serve_file(request: web.Request) -> web.Response:
        found = files.get(request.match_info.get("file", "index.html"))
        if found is None:
            raise _error(web.HTTPNotFound, "there is no such page")
        body, content_type = found
        return web.Response(body=body, headers=PAGE_HEADERS | {"Content-Type": content_type})

    app = web.Application(client_max_size=MAX_BODY, middlewares=[_cors])
    for path in ("/v1/realtime/calls", "/whip"):
        app.router.add_post(path, signaling.create)
        app.router.add_delete(path + "/{id}", signaling.delete)
        app.router.add_options(path, _preflight)
        app.router.add_options(path + "/{id}", _preflight)
    app.router.add_get("/healthz", health)
    app.router.add_get("/", serve_file)
    app.router.add_get("/{file:.+}", serve_file)
    return app


class _Signaling:
    def __init__(self, sessions: Sessions, api_key: str) -> None:
        self._sessions = sessions
        self._expected = f"Bearer {api_key}".encode()

    async def create(self, request: web.Request) -> web.Response:
        self._authorize(request)
        if request.content_type != "application/sdp":
            raise _error(web.HTTPUnsupportedMediaType, "the body must be application/sdp")
        offer = await _read_text(request)
        try:
            session = await self._sessions.open(offer, dialect=request.path)
        except UnsupportedError as error:
            raise _error(web.HTTPUnprocessableEntity, str(error)) from error
        except OfferError as error:
            raise _error(web.HTTPBadRequest, str(error)) from error
        except UnavailableError as error:
            headers = {"Retry-After": str(error.retry_after)}
            raise _error(web.HTTPServiceUnavailable, str(error), headers) from error
        return web.Response(
            status=201,
            text=session.answer,
            content_type="application/sdp",
            headers={"Location": f"{request.path}/{session.id}"},
        )

    async def delete(self, request: web.Request) -> web.Response:
        self._authorize(request)
        session = self._sessions.find(request.match_info["id"])
        if session is None:
            raise _error(web.HTTPNotFound, "there is no such session (any more)")
        await session.end("deleted")
        return web.Response()

    def _authorize(self, request: web.Request) -> None:
        given = request.headers.get("Authorization", "").encode("utf-8", "surrogateescape")
        if not hmac.compare_digest(given, self._expected):
            headers = {"WWW-Authenticate": "Bearer"}
            raise _error(web.HTTPUnauthorized, "needs the API key as a bearer token", headers)


async def _read_text(request: web.Request) -> str:
    try:
        async with asyncio.timeout(BODY_LIMIT):
            body = await request.read()
    except TimeoutError as error:
        raise _error(web.HTTPRequestTimeout, "the offer did not arrive in time") from error
    except web.HTTPRequestEntityTooLarge as error:
        what = f"an offer may have {MAX_BODY} bytes"
        raise _error(web.HTTPBadRequest, what, status=413) from error
    try:
        return body.decode()
    except UnicodeDecodeError as error:
        raise _error(web.HTTPBadRequest, "the offer is not UTF-8") from error


def _error(
    kind: type[web.HTTPError],
    what: str,
    headers: dict[str, str] | None = None,
    *,
    status: int | None = None,
) -> web.HTTPError:
    """An HTTP error with one sentence, in the shape that the agent's API has too."""
    error = kind(text=json.dumps({"error": what}), content_type="application/json", headers=headers)
    if status is not None:
        error.set_status(status)
    return error


async def _preflight(request: web.Request) -> web.Response:
    return web.Response(status=204)


@web.middleware
async def _cors(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        response = await handler(request)
    except web.HTTPException as error:
        error.headers.update(CORS)
        raise
    response.headers.update(CORS)
    return response


def _page_files(folder: Path) -> dict[str, tuple[bytes, str]]:
    """Name to content and type. Only what is in here can be asked for, so no path can escape."""
    return {
        file.relative_to(folder).as_posix(): (file.read_bytes(), PAGE_TYPES[file.suffix])
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.suffix in PAGE_TYPES
    }
