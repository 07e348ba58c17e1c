"""Answers as they go out: JSON, and problems in their own media type (RFC 9457)."""

import math
from typing import Any

import msgspec
from aiohttp import web

from loader.problems import MEDIA_TYPE, Refused, quoted

__all__ = ["json_answer", "problem_answer", "refusal_of"]


def json_answer(value: Any, *, status: int = 200) -> web.Response:
    """*value* as JSON."""
    return web.Response(
        body=msgspec.json.encode(value), status=status, content_type="application/json"
    )


def problem_answer(refused: Refused) -> web.Response:
    """The problem; what of it HTTP has a field for is in that too."""
    answer = web.Response(
        body=msgspec.json.encode(refused.to_json()), status=refused.status, content_type=MEDIA_TYPE
    )
    if refused.status == 401:
        answer.headers["WWW-Authenticate"] = 'Bearer realm="shunt agent"'
    if "allow" in refused.members:
        answer.headers["Allow"] = ", ".join(refused.members["allow"])
    if "retry_after_s" in refused.members:
        answer.headers["Retry-After"] = str(math.ceil(refused.members["retry_after_s"]))
    return answer


def refusal_of(error: web.HTTPException, request: web.BaseRequest) -> Refused:
    """What aiohttp refuses, as a problem."""
    path = quoted(request.rel_url.raw_path)
    match error:
        case web.HTTPMethodNotAllowed():
            allowed = sorted(error.allowed_methods)
            detail = f"{path} takes {' and '.join(allowed)}, not {quoted(error.method)}"
            return Refused("method-not-allowed", detail, allow=allowed)
        case web.HTTPNotFound():
            return Refused("not-found", f"there is nothing at {path}: see /openapi.json")
        case web.HTTPExpectationFailed():
            return Refused(
                "expectation-failed",
                f"only 100-continue can be expected, not {quoted(request.headers['Expect'])}",
            )
        case _:
            return Refused("malformed-request", f"the request is malformed: {error.reason}")
