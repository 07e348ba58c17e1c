"""OpenAI's Realtime calls: what `openai`, `@openai/agents-realtime` and plain pages send.

An offer comes raw, as `application/sdp`, or as `multipart/form-data` with the session that it is
to have. There is no trickling: the answer is all.
"""

import asyncio
import secrets
from collections.abc import Mapping
from typing import Any

import msgspec
from aiohttp import BodyPartReader, MultipartReader, StreamReader, hdrs, web
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http_exceptions import HttpProcessingError

from transceiver.session import Session
from transceiver.signaling.calls import Calls
from transceiver.signaling.http import (
    Refused,
    preflight,
    read_body,
    read_json,
    read_text,
    to_text,
)
from transceiver.signaling.keys import TooLarge

__all__ = ["PREFIX", "refusal", "routes"]

PREFIX = "/v1/"
CALLS = "/v1/realtime/calls"
SECRETS = "/v1/realtime/client_secrets"

DIALECT = "openai"

SECONDS = 600
MIN_SECONDS, MAX_SECONDS = 10, 7200
"""That a client secret is good for, as OpenAI has it."""

_TYPES = {429: "requests", 401: "authentication_error", 403: "permission_error"}


def refusal(refused: Refused) -> web.Response:
    """A refusal as OpenAI's clients read it."""
    kind = "server_error" if refused.status >= 500 else "invalid_request_error"
    error = {
        "message": refused.what,
        "type": _TYPES.get(refused.status, kind),
        "code": refused.code or None,
        "param": refused.parameter,
    }
    return web.json_response({"error": error}, status=refused.status)


def routes(calls: Calls) -> list[web.RouteDef]:
    """What this dialect serves."""
    dialect = _OpenAI(calls)
    return [
        web.post(CALLS, dialect.create),
        web.post(CALLS + "/{id}/hangup", dialect.hang_up),
        web.delete(CALLS + "/{id}", dialect.hang_up),
        web.post(SECRETS, dialect.make_secret),
        *(
            web.options(path, preflight)
            for path in (CALLS, CALLS + "/{id}", CALLS + "/{id}/hangup", SECRETS)
        ),
    ]


class _ExpiresAfter(msgspec.Struct):
    anchor: str = "created_at"
    seconds: int = SECONDS


class _SecretAsked(msgspec.Struct):
    expires_after: _ExpiresAfter | None = None
    session: dict[str, Any] | None = None


class _OpenAI:
    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    async def create(self, request: web.Request) -> web.Response:
        asker = self._calls.asker(request)
        offer, configuration = await _read_call(request)
        if model := request.query.get("model"):
            configuration = {"model": model, **configuration}
        session = await self._calls.open(asker, offer, dialect=DIALECT, configuration=configuration)
        return _created(session)

    async def hang_up(self, request: web.Request) -> web.Response:
        asker = self._calls.asker(request)
        session = self._calls.find(asker, request.match_info["id"])
        await session.end("hung up by request")
        return web.Response()

    async def make_secret(self, request: web.Request) -> web.Response:
        self._calls.operator(request)
        asked: _SecretAsked = (
            await read_json(request, _SecretAsked) if request.can_read_body else _SecretAsked()
        )
        expires = asked.expires_after or _ExpiresAfter()
        if expires.anchor != "created_at":
            raise Refused(
                400, "a secret expires after created_at", parameter="expires_after.anchor"
            )
        if not MIN_SECONDS <= expires.seconds <= MAX_SECONDS:
            raise Refused(
                400,
                f"a secret is good for {MIN_SECONDS} to {MAX_SECONDS} seconds",
                parameter="expires_after.seconds",
            )
        session = {"type": "realtime", **(asked.session or {})}
        try:
            key = self._calls.keys.make(expires.seconds, session)
        except TooLarge as error:
            raise Refused(413, str(error), code="too_long", parameter="session") from error
        told = {
            "value": key.value,
            "expires_at": key.expires_at,
            "session": {
                "id": f"sess_{secrets.token_urlsafe(16)}",
                "object": "realtime.session",
                **session,
            },
        }
        return web.json_response(told, headers={hdrs.CACHE_CONTROL: "no-store"})


def _created(session: Session) -> web.Response:
    return web.Response(
        status=201,
        text=session.answer,
        content_type="application/sdp",
        headers={hdrs.LOCATION: f"{CALLS}/{session.id}"},
    )


async def _read_call(request: web.Request) -> tuple[str, Mapping[str, object]]:
    """The offer, and the session that it is to have."""
    match request.content_type:
        case "application/sdp":
            return await read_text(request), {}
        case "multipart/form-data":
            parts = await _read_parts(request)
        case _:
            raise Refused(415, "the body must be application/sdp or multipart/form-data")
    if "sdp" not in parts:
        raise Refused(400, "the form has no field sdp", parameter="sdp")
    try:
        session = msgspec.json.decode(parts.get("session", b"{}"), type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Refused(400, f"session is no JSON object: {error}", parameter="session") from error
    return to_text(parts["sdp"], what="the offer"), session


async def _read_parts(request: web.Request) -> dict[str, bytes]:
    """The fields of a form, as they are: none nested, none encoded, none twice."""
    parts: dict[str, bytes] = {}
    # All of it first: it may have to be handed on to another transceiver.
    body = await read_body(request, what="the form")
    try:
        async for part in MultipartReader(request.headers, _stream(body)):
            if not isinstance(part, BodyPartReader) or part.name is None:
                raise Refused(400, "a part of the form is no field")
            if part.name in parts:
                raise Refused(400, f"the form has {part.name[:64]!r} twice")
            encoding = part.headers.get(hdrs.CONTENT_TRANSFER_ENCODING, "binary").lower()
            if hdrs.CONTENT_ENCODING in part.headers or encoding not in _PLAIN:
                raise Refused(415, "the fields of the form must not be encoded")
            content = bytearray()
            while chunk := await part.read_chunk():
                content += chunk
            parts[part.name] = bytes(content)
    except (HttpProcessingError, ValueError, AssertionError, RuntimeError) as error:
        # aiohttp's reader takes a form to be as it should, in these ways.
        raise Refused(400, "the form is malformed") from error
    return parts


_PLAIN = ("7bit", "8bit", "binary")


def _stream(body: bytes) -> StreamReader:
    loop = asyncio.get_running_loop()
    stream = StreamReader(BaseProtocol(loop), limit=len(body), loop=loop)
    stream.feed_data(body)
    stream.feed_eof()
    return stream
