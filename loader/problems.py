"""Every way in which the agent's API refuses, in one list (RFC 9457), and the exception for it.

What a problem is called, and its status, is for programs; the detail that comes with it, and what
the list says, for people. No I/O.
"""

import json
from dataclasses import dataclass
from typing import Any

__all__ = ["MEDIA_TYPE", "PROBLEMS", "ProblemType", "Refused", "problem_uri", "quoted"]

MEDIA_TYPE = "application/problem+json"


@dataclass(frozen=True, slots=True)
class ProblemType:
    """A kind of failure: its *name*, the HTTP *status* that it always has, a *title* that says
    what it is, and what *to_do* about it. *members*: what its problems hold besides the four
    of RFC 9457, by name."""

    name: str
    status: int
    title: str
    to_do: str
    members: tuple[str, ...] = ()

    @property
    def uri(self) -> str:
        """Its `type`: a reference relative to the API, under which it is explained."""
        return problem_uri(self.name)


def problem_uri(name: str) -> str:
    """The `type` of the problems of that name."""
    return f"/problems/{name}"


_ALL = (
    ProblemType(
        "malformed-request",
        400,
        "this is no HTTP request",
        "Send HTTP/1.1, with a request line and header fields of at most 8190 bytes each.",
    ),
    ProblemType(
        "malformed-header",
        400,
        "a header field is missing or malformed",
        "Give the header field as the operation describes it.",
        ("header",),
    ),
    ProblemType(
        "malformed-query",
        400,
        "a query parameter is unknown or malformed",
        "Give only the parameters that the operation describes, each once.",
        ("parameter",),
    ),
    ProblemType(
        "malformed-body",
        400,
        "the body is not what the operation takes",
        "Send one JSON object (UTF-8) with the members that the operation describes, and no "
        "others. `pointer` (RFC 6901) says which member is meant.",
        ("pointer",),
    ),
    ProblemType(
        "bad-id",
        400,
        "this is no transceiver's id",
        "An id has 1 to 63 letters, digits, hyphens, dots and underscores, and begins with a "
        "letter or a digit.",
    ),
    ProblemType(
        "bad-ufrag",
        400,
        "this is no ufrag that the relay can steer by",
        "A ufrag has letters, digits, + and / only (RFC 8839 5.4), 4 to 32 of them; in a path, "
        "/ is written as %2F.",
    ),
    ProblemType(
        "unauthorized",
        401,
        "over TCP, the agent asks for a token",
        "Send `Authorization: Bearer …` with one of the tokens of the agent's token file.",
    ),
    ProblemType(
        "forbidden",
        403,
        "this user may not use the agent",
        "Over the Unix socket, root, the agent's own user, and the users of its configuration "
        "(`users` in [api]) may.",
    ),
    ProblemType(
        "address-not-allowed",
        403,
        "the transceiver's address is outside of the configured prefixes",
        "Register an address within `transceiver_prefixes`, or add a prefix to the agent's "
        "configuration.",
        ("address", "prefixes"),
    ),
    ProblemType(
        "not-yours",
        403,
        "another process speaks for this transceiver",
        "Send the `Shunt-Instance` that the transceiver was registered with.",
    ),
    ProblemType(
        "not-found",
        404,
        "there is nothing at this path",
        "`GET /openapi.json` describes every path that there is.",
    ),
    ProblemType(
        "unknown-transceiver",
        404,
        "no such transceiver is registered",
        "Register it first, and renew its lease in time (`lease_s`).",
        ("transceiver",),
    ),
    ProblemType(
        "unknown-route",
        404,
        "the transceiver holds no such route",
        "Leave `restarts` out, or name a route that the same transceiver holds.",
    ),
    ProblemType(
        "method-not-allowed",
        405,
        "the path does not take this method",
        "Use one of the methods that `Allow` names.",
        ("allow",),
    ),
    ProblemType(
        "request-timeout",
        408,
        "the request did not come in time",
        "Send the whole request at once. It may be repeated.",
    ),
    ProblemType(
        "superseded",
        409,
        "another process has taken the transceiver's place",
        "Stop, or register under an id and an address of one's own: each transceiver has its own.",
    ),
    ProblemType(
        "ufrag-taken",
        409,
        "the ufrag is routed to another transceiver",
        "Draw another ufrag.",
    ),
    ProblemType(
        "route-differs",
        409,
        "the route is there, but was made otherwise",
        "Remove the route first, or repeat what it was made with.",
    ),
    ProblemType(
        "body-too-large",
        413,
        "the body is too large",
        "No operation takes a body of more than `limit` bytes.",
        ("limit",),
    ),
    ProblemType(
        "unsupported-media-type",
        415,
        "the body is not in a form that the agent reads",
        "Send JSON with `Content-Type: application/json`, in UTF-8, without a content encoding.",
    ),
    ProblemType(
        "expectation-failed",
        417,
        "the agent cannot do what `Expect` asks for",
        "Leave `Expect` out, or send `100-continue`.",
    ),
    ProblemType(
        "address-of-the-relay",
        422,
        "a transceiver cannot have an address of the relay itself",
        "Register the address of the transceiver's own UDP socket. It may be on the relay's host "
        "only in a network namespace of its own.",
        ("address",),
    ),
    ProblemType(
        "address-not-served",
        422,
        "the relay has no inside address of the transceiver's family",
        "Register an address of the other family, or give the agent an inside address of this one.",
        ("address",),
    ),
    ProblemType(
        "configuration-refused",
        422,
        "the configuration cannot be used; everything is as it was",
        "Mend each of `faults`; `shunt config check` finds them too.",
        ("faults",),
    ),
    ProblemType(
        "quota-exceeded",
        429,
        "the transceiver holds as many routes as it may",
        "Remove routes of sessions that are over. A transceiver may hold two routes for each "
        "session of its `capacity`, and never more than the agent's `max_routes`.",
        ("transceiver", "quota"),
    ),
    ProblemType(
        "internal-error",
        500,
        "the agent failed at this; the fault is its own",
        "See the agent's log, and report what it says there.",
    ),
    ProblemType(
        "draining",
        503,
        "no new routes are taken: the transceiver or the relay is draining",
        "Take the session to another transceiver, or to another relay. Those that are go on, and "
        "may restart ICE (`restarts`).",
        ("transceiver", "retry_after_s"),
    ),
    ProblemType(
        "not-ready",
        503,
        "the relay cannot do its work",
        "See `detail` for what is amiss; `shunt doctor` says more.",
    ),
    ProblemType(
        "too-many-readers",
        503,
        "as many follow the events as the agent serves at a time",
        "Try again later, or ask with `follow=false` for what is known.",
        ("retry_after_s",),
    ),
    ProblemType(
        "route-map-full",
        507,
        "the relay has no room for another route",
        "Add a relay, or remove routes of sessions that are over.",
    ),
    ProblemType(
        "transceiver-map-full",
        507,
        "the relay has no room for another transceiver",
        "Add a relay. The place of a transceiver that went is free once its last flow is.",
    ),
)

PROBLEMS: dict[str, ProblemType] = {problem.name: problem for problem in _ALL}
"""Every problem by its name."""


class Refused(Exception):
    """A problem, by its name in `PROBLEMS`, and what of it is wrong here and what to change
    (*detail*, one sentence). *members* are the problem's own. Raises KeyError for no such."""

    def __init__(self, name: str, detail: str, **members: Any) -> None:
        super().__init__(detail)
        self.problem = PROBLEMS[name]
        self.detail = detail
        self.members = members

    @property
    def name(self) -> str:
        return self.problem.name

    @property
    def status(self) -> int:
        """The HTTP status."""
        return self.problem.status

    def to_json(self) -> dict[str, Any]:
        """As it goes over the wire."""
        return {
            "type": self.problem.uri,
            "title": self.problem.title,
            "status": self.problem.status,
            "detail": self.detail,
            **self.members,
        }


def quoted(text: str) -> str:
    """What somebody sent, in a sentence: in quotes, in ASCII, and not longer than it helps."""
    return json.dumps(text if len(text) <= 45 else f"{text[:44]}…")
