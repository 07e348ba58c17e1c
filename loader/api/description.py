"""The API described (OpenAPI 3.1), out of the operations and the shapes that serve it."""

import re
from collections.abc import Iterable
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from loader import VERSION, shapes
from loader.api.operations import OPERATIONS, Operation, Text
from loader.problems import MEDIA_TYPE, PROBLEMS

__all__ = ["describe"]

_REFERENCE = "#/components/schemas/{name}"

_IN_PATHS: dict[str, Any] = {
    "id": shapes.Id,
    "ufrag": shapes.Ufrag,
    "name": Annotated[Literal[tuple(PROBLEMS)], Meta(description="Of a problem.")],
}
"""Parameters in paths, by name."""

_HEADERS: dict[int, dict[str, str]] = {
    401: {"WWW-Authenticate": "The scheme by which to show that one may ask: Bearer."},
    503: {"Retry-After": "Seconds after which another try may do, if any may."},
}
"""Of answers, by status."""


def describe() -> dict[str, Any]:
    """The whole API."""
    paths: dict[str, dict[str, Any]] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _operation(operation)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Shunt agent",
            "version": VERSION,
            "summary": "The control plane of a relay for WebRTC: who is sent which sessions.",
            "description": (
                "Over the agent's Unix socket, the asker's user decides (peer credentials); over "
                "TCP, a bearer token. Every failure is a problem (RFC 9457); its `type` says "
                "which, and leads to what to do."
            ),
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "security": [{"token": []}],
        "paths": paths,
        "components": {
            "schemas": _schemas(),
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(operation: Operation) -> dict[str, Any]:
    described: dict[str, Any] = {
        "operationId": operation.name,
        "summary": operation.summary,
        "parameters": list(_parameters(operation)),
        "responses": _responses(operation),
    }
    if operation.operator:
        described["description"] = "Over the Unix socket, for root and the agent's own user alone."
    if operation.body:
        described["requestBody"] = {
            "required": any(field.required for field in msgspec.structs.fields(operation.body)),
            "content": {"application/json": {"schema": _reference(operation.body)}},
        }
    return described


def _parameters(operation: Operation) -> Iterable[dict[str, Any]]:
    for name in re.findall(r"\{(\w+)\}", operation.path):
        yield _parameter("path", name, _IN_PATHS[name], required=True)
    if operation.instance:
        yield _parameter("header", "Shunt-Instance", shapes.Instance, required=True)
    for name, kind in operation.headers:
        yield _parameter("header", name, kind, required=False)
    for field in msgspec.structs.fields(operation.query or shapes.NothingAsked):
        yield _parameter("query", field.encode_name, field.type, required=field.required)


def _parameter(place: str, name: str, kind: Any, *, required: bool) -> dict[str, Any]:
    schema = msgspec.json.schema(kind, ref_template=_REFERENCE)
    schema.pop("$defs", None)
    parameter = {"name": name, "in": place, "required": required}
    if text := schema.pop("description", ""):
        parameter["description"] = text
    # A parameter that is left out is left out: none is null.
    if "anyOf" in schema:
        (schema,) = (each for each in schema["anyOf"] if each != {"type": "null"})
    if schema.get("type") == "array":
        parameter |= {"style": "form", "explode": False}
    return {**parameter, "schema": schema}


def _responses(operation: Operation) -> dict[str, Any]:
    responses: dict[str, Any] = {}
    for status, answer in operation.answers.items():
        response: dict[str, Any] = {"description": _meaning(status)}
        if isinstance(answer, Text):
            response["content"] = {each: {"schema": {}} for each in answer.media_types}
        elif answer:
            response["content"] = {"application/json": {"schema": _reference(answer)}}
        responses[str(status)] = response
    for status, names in _by_status(operation.all_problems).items():
        responses[str(status)] = {
            "description": "\n".join(f"* `{name}`: {PROBLEMS[name].title}" for name in names),
            "content": {MEDIA_TYPE: {"schema": _problem(names)}},
            **_headers(status),
        }
    return dict(sorted(responses.items()))


def _problem(names: list[str]) -> dict[str, Any]:
    uris = [PROBLEMS[name].uri for name in names]
    return {"allOf": [_reference(shapes.Problem), {"properties": {"type": {"enum": uris}}}]}


def _headers(status: int) -> dict[str, Any]:
    headers = {
        name: {"description": text, "schema": {"type": "string"}}
        for name, text in _HEADERS.get(status, {}).items()
    }
    return {"headers": headers} if headers else {}


def _by_status(names: Iterable[str]) -> dict[int, list[str]]:
    found: dict[int, list[str]] = {}
    for name in names:
        found.setdefault(PROBLEMS[name].status, []).append(name)
    return found


def _meaning(status: int) -> str:
    return {200: "Done.", 201: "Made.", 204: "Done, or there was nothing to do."}[status]


def _reference(shape: type[Struct]) -> dict[str, str]:
    return {"$ref": _REFERENCE.format(name=shape.__name__)}


def _schemas() -> dict[str, Any]:
    wanted: dict[type[Struct], None] = {shapes.Problem: None}
    for operation in OPERATIONS:
        for shape in (operation.body, *operation.answers.values()):
            if shape and not isinstance(shape, Text):
                wanted[shape] = None
    _, components = msgspec.json.schema_components(list(wanted), ref_template=_REFERENCE)
    return dict(sorted(components.items()))
