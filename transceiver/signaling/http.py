"""HTTP as all dialects have it: bodies with bounds, refusals, headers for pages of other origins.

A handler raises `Refused`; in which shape its client reads that is the dialect's, a `Shape`.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import msgspec
from aiohttp import hdrs, web
from aiohttp.http_exceptions import PayloadEncodingError
from aiohttp.typedefs import Middleware

__all__ = [
    "BODY_BYTES",
    "CORS",
    "Handler",
    "Refused",
    "Shape",
    "accepts",
    "cors",
    "in_shape",
    "preflight",
    "read_body",
    "read_json",
    "read_text",
    "to_text",
]

BODY_BYTES = 128 << 10
"""The longest body: an offer of 64 KiB, and as much again for what comes with it."""
OFFER_BYTES = 64 << 10
BODY_SECONDS = 10.0
"""That a client may take to send its body."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

CORS = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Allow-Methods": "POST, PATCH, DELETE, GET, OPTIONS",
    "Access-Control-Allow-Headers": (
        "Authorization, Content-Type, If-Match, OpenAI-Beta, OpenAI-Organization, OpenAI-Project, "
        "OpenAI-Safety-Identifier, X-OpenAI-Agents-SDK, *"
    ),
    "Access-Control-Expose-Headers": "Location, ETag, Link, Retry-After, WWW-Authenticate",
    "Access-Control-Max-Age": "86400",
}
"""For pages of any origin: what lets somebody in is the bearer token, and no cookie. `*` among the
headers is all but Authorization, for browsers that know it."""


class Refused(Exception):
    """A request that gets no more than an HTTP *status* and a sentence.

    *code*: a word for programs, *parameter*: the field of the request that is at fault.
    """

    def __init__(
        self,
        status: int,
        what: str,
        *,
        code: str = "",
        parameter: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(what)
        self.status = status
        self.what = what
        self.code = code
        self.parameter = parameter
        self.headers = dict(headers or {})


Shape = Callable[[Refused], web.Response]
"""Writes a refusal as a dialect's clients read it."""


def in_shape(shape_of: Callable[[str], Shape]) -> Middleware:
    """A middleware that answers what was refused in the shape for the request's path."""

    @web.middleware
    async def answer(request: web.Request, handler: Handler) -> web.StreamResponse:
        shape = shape_of(request.path)
        try:
            return await handler(request)
        except Refused as refused:
            response = shape(refused)
            response.headers.update(refused.headers)
        except web.HTTPError as error:  # of aiohttp's router and parser
            response = shape(Refused(error.status, error.reason.lower()))
            if hdrs.ALLOW in error.headers:
                response.headers[hdrs.ALLOW] = error.headers[hdrs.ALLOW]
        if not request.content.at_eof():
            # What follows on the connection is the rest of a body that nobody is to read.
            response.force_close()
        return response

    return answer


@web.middleware
async def cors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every answer may be read by pages of other origins."""
    response = await handler(request)
    response.headers.update(CORS)
    return response


async def preflight(_request: web.Request) -> web.Response:
    """What OPTIONS is answered where there is no more to say than CORS."""
    return web.Response(status=204)


async def read_body(request: web.Request, *, what: str = "the body") -> bytes:
    """All of the body; Refused if it is too long, too slow or compressed."""
    _refuse_encoded(request)
    try:
        async with _within_body_time(what):
            return await request.read()
    except web.HTTPRequestEntityTooLarge as error:
        raise _too_long(what, BODY_BYTES) from error
    except (web.RequestPayloadError, PayloadEncodingError) as error:
        raise Refused(400, f"{what} is not sent as HTTP has it") from error


@contextlib.asynccontextmanager
async def _within_body_time(what: str) -> AsyncIterator[None]:
    """Refused if reading in here takes longer than a client may take to send."""
    try:
        async with asyncio.timeout(BODY_SECONDS):
            yield
    except TimeoutError as error:
        raise Refused(408, f"{what} did not arrive in time") from error


async def read_text(request: web.Request, *, what: str = "the offer") -> str:
    """The body as text; Refused as by `read_body`, and if it is no UTF-8 or over 64 KiB."""
    return to_text(await read_body(request, what=what), what=what)


async def read_json(request: web.Request, kind: type[Any]) -> Any:
    """The body as a *kind* of msgspec's; Refused as by `read_body`, and if it is none."""
    if request.content_type != "application/json":
        raise Refused(415, "the body must be application/json")
    try:
        return msgspec.json.decode(await read_body(request), type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Refused(400, f"the body is not what it should be: {error}") from error


def to_text(body: bytes, *, what: str) -> str:
    """*body* as text; Refused if it is no UTF-8 or over 64 KiB."""
    if len(body) > OFFER_BYTES:
        raise _too_long(what, OFFER_BYTES)
    try:
        return body.decode()
    except UnicodeDecodeError as error:
        raise Refused(400, f"{what} is not UTF-8") from error


def _too_long(what: str, limit: int) -> Refused:
    """What is longer than *limit* bytes."""
    return Refused(413, f"{what} may have {limit} bytes", code="too_long")


def _refuse_encoded(request: web.Request) -> None:
    """Nobody compresses an offer, and what unpacks to a thousand times its size is an attack."""
    if request.headers.get(hdrs.CONTENT_ENCODING, "identity").lower() != "identity":
        raise Refused(415, "the body must not be compressed")


def accepts(request: web.Request, content_type: str) -> bool:
    """Whether the client takes *content_type*, by its Accept (RFC 9110 section 12.5.1)."""
    ranges = ",".join(request.headers.getall(hdrs.ACCEPT, ["*/*"]))
    kind = content_type.partition("/")[0]
    best: tuple[int, float] = (-1, 0.0)
    for each in ranges.split(","):
        name, *parameters = (part.strip().lower() for part in each.split(";"))
        if name not in (content_type, f"{kind}/*", "*/*"):
            continue
        # The most specific range counts, whatever its weight.
        specific = ("*/*", f"{kind}/*", content_type).index(name)
        best = max(best, (specific, _weight(parameters)))
    return best[1] > 0


def _weight(parameters: list[str]) -> float:
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            try:
                return float(value)
            except ValueError:
                return 0.0
    return 1.0
