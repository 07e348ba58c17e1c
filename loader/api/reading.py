"""Reads requests to the letter: what is not as it shall be is refused, saying what to change."""

import asyncio
import difflib
import functools
import re
from typing import Any, TypeVar

import msgspec
from aiohttp import web
from aiohttp.http_exceptions import PayloadEncodingError
from msgspec.inspect import BoolType, IntType, ListType, LiteralType, Metadata, Type, type_info

from loader.problems import Refused, quoted
from loader.shapes import Instance

__all__ = ["BODY_BYTES", "BODY_SECONDS", "read_body", "read_instance", "read_query"]

BODY_BYTES = 64 * 1024
BODY_SECONDS = 10.0

T = TypeVar("T", bound=msgspec.Struct)

_PLACE = re.compile(r"(?P<what>.*) - at `\$(?P<place>.*)`", re.DOTALL)
_UNKNOWN = re.compile(r"Object contains unknown field `(?P<name>.*)`", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(?P<name>.*)`")


async def read_body(request: web.Request, shape: type[T]) -> T:
    """The body as *shape*. A body that may be left out is read as an empty object. Raises
    Refused."""
    data = await _bytes(request)
    if not data and not _required(shape):
        return shape()
    if request.content_type != "application/json":
        raise Refused(
            "unsupported-media-type",
            f"the body is {quoted(request.content_type)}: send Content-Type: application/json",
        )
    if (charset := request.charset) and charset.lower() != "utf-8":
        raise Refused("unsupported-media-type", f"JSON is UTF-8, not {quoted(charset)}")
    try:
        body: T = _decoder(shape).decode(data)
    except msgspec.ValidationError as error:
        what, path = _explained(str(error), shape)
        raise Refused("malformed-body", what, pointer=path) from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise Refused("malformed-body", "the body is not JSON in UTF-8", pointer="#") from None
    return body


async def _bytes(request: web.Request) -> bytes:
    coding = request.headers.get("Content-Encoding", "identity")
    if coding.lower() != "identity":
        raise Refused(
            "unsupported-media-type", f"the body is coded as {quoted(coding)}: send it as it is"
        )
    try:
        async with asyncio.timeout(BODY_SECONDS):
            return await request.read()
    except TimeoutError:
        raise Refused(
            "request-timeout", f"the body did not come within {BODY_SECONDS:.0f} s"
        ) from None
    except web.HTTPRequestEntityTooLarge:
        raise Refused(
            "body-too-large", f"the body has more than {BODY_BYTES} bytes", limit=BODY_BYTES
        ) from None
    except (web.RequestPayloadError, PayloadEncodingError):
        raise Refused("malformed-request", "the body does not end as its header says") from None


def read_query(request: web.Request, shape: type[T]) -> T:
    """The query parameters as *shape*: numbers and truth values as JSON writes them, lists with
    commas. Raises Refused."""
    fields = {field.encode_name: _kind(field.type) for field in msgspec.structs.fields(shape)}
    given: dict[str, Any] = {}
    for name, text in request.query.items():
        if name not in fields:
            raise _malformed_query(name, f"there is no parameter {_other(name, fields)}")
        if name in given:
            raise _malformed_query(name, f"the parameter {name} is given twice")
        given[name] = _value(name, text, fields[name])
    try:
        return msgspec.convert(given, shape)
    except msgspec.ValidationError as error:
        what, pointer = _explained(str(error), shape)
        raise _malformed_query(pointer[2:].partition("/")[0], what) from None


def _kind(annotation: Any) -> Type:
    kind = type_info(annotation)
    return kind.type if isinstance(kind, Metadata) else kind


def _value(name: str, text: str, kind: Type) -> Any:
    if isinstance(kind, ListType):
        values = text.split(",")
        if isinstance(kind.item_type, LiteralType):
            for value in values:
                if value not in kind.item_type.values:
                    others = _other(value, kind.item_type.values)
                    raise _malformed_query(name, f"none of the {name} is {others}")
        return values
    if not isinstance(kind, IntType | BoolType):
        return text
    try:
        return msgspec.json.decode(text, type=int if isinstance(kind, IntType) else bool)
    except (msgspec.DecodeError, UnicodeEncodeError):
        wanted = "a number" if isinstance(kind, IntType) else "true or false"
        raise _malformed_query(name, f"{name} is {wanted}, not {quoted(text)}") from None


def _malformed_query(name: str, what: str) -> Refused:
    return Refused("malformed-query", what, parameter=name.encode("ascii", "replace").decode()[:64])


def read_instance(request: web.Request) -> str:
    """The header `Shunt-Instance`. Raises Refused."""
    try:
        return msgspec.convert(request.headers.get("Shunt-Instance"), Instance)
    except msgspec.ValidationError as error:
        given = "Shunt-Instance" in request.headers
        why = str(error) if given else "the word that the transceiver was registered with"
        raise Refused(
            "malformed-header",
            f"Shunt-Instance is {'malformed' if given else 'missing'}: {why}",
            header="Shunt-Instance",
        ) from None


@functools.cache
def _decoder(shape: type[msgspec.Struct]) -> "msgspec.json.Decoder[Any]":
    return msgspec.json.Decoder(shape)


def _required(shape: type[msgspec.Struct]) -> bool:
    return any(field.required for field in msgspec.structs.fields(shape))


def _explained(message: str, shape: type[msgspec.Struct]) -> tuple[str, str]:
    """What msgspec complains of, as a sentence that begins with the member it is about, and a
    pointer to that (RFC 6901 in a URI fragment)."""
    place = ""
    if found := _PLACE.fullmatch(message):
        message, place = found["what"], found["place"]
    if found := _UNKNOWN.fullmatch(message):
        name, members = found["name"], shape.__struct_encode_fields__
        return f"there is no member {_other(name, members)}", "#"
    if found := _MISSING.fullmatch(message):
        return f"{found['name']} is missing", f"#/{found['name']}"
    path = [part for part in re.split(r"[.\[\]]+", place) if part]
    what = message[0].lower() + message[1:]
    return f"{'.'.join(path) or 'the body'}: {what}", "/".join(["#", *path])


def _other(name: str, names: Any) -> str:
    """The name that is wrong, and the one that may have been meant."""
    near = difflib.get_close_matches(name[:64], list(names), n=1)
    if near:
        return f"{quoted(name)}: did you mean {near[0]}?"
    there = f"there is {', '.join(names)}" if names else "there is none at all"
    return f"{quoted(name)}: {there}"
