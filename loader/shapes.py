"""What goes over the agent's API, in one place: for reading requests, and for their description.

What is asked is checked against these to the letter; members that are not here are refused.
"""

from typing import TYPE_CHECKING, Annotated, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from loader.events import KINDS
from loader.types import HTTP_LENGTH, UFRAG_LENGTH

__all__ = [
    "Counters",
    "DrainAsked",
    "Draining",
    "EventId",
    "EventsQuery",
    "Flow",
    "Flows",
    "FlowsQuery",
    "Health",
    "Id",
    "Instance",
    "NothingAsked",
    "Problem",
    "ProblemTypes",
    "Ready",
    "Registered",
    "Registration",
    "Reloaded",
    "Route",
    "RouteAsked",
    "RouteMade",
    "Routes",
    "RoutesQuery",
    "Transceiver",
    "Transceivers",
    "Ufrag",
    "Vip",
]

Id = Annotated[
    str,
    Meta(
        description="A transceiver's id.",
        min_length=1,
        max_length=63,
        pattern="^[A-Za-z0-9][A-Za-z0-9._-]*$",
        examples=["x1"],
    ),
]
Ufrag = Annotated[
    str,
    Meta(
        description="The server-side ICE username fragment of a session (RFC 8839 5.4).",
        min_length=4,
        max_length=UFRAG_LENGTH,
        pattern="^[A-Za-z0-9+/]+$",
        examples=["u/Frag+16chars+x"],
    ),
]
Instance = Annotated[
    str,
    Meta(
        description="A random word by which one process of a transceiver is told from the next.",
        min_length=16,
        max_length=256,
        pattern="^[!-~]+$",
    ),
]
EventId = Annotated[
    str,
    Meta(
        description="The id of the last event that the reader has.",
        pattern="^[0-9]{1,16}$",
    ),
]
if TYPE_CHECKING:
    EventKind = str
else:
    EventKind = Literal[tuple(KINDS)]
Port = Annotated[int, Meta(ge=1, le=65535)]
Url = Annotated[
    str,
    Meta(
        description="Where a transceiver's signaling is: an http or https URL.",
        min_length=8,
        max_length=HTTP_LENGTH,
        pattern=r"^https?://([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?(/[!-~]*)?$",
        examples=["http://198.18.1.11:8080"],
    ),
]
Count = Annotated[int, Meta(ge=0)]


class _Asked(Struct, forbid_unknown_fields=True, frozen=True):
    """What comes from outside."""


class _Told(Struct, frozen=True):
    """What the agent answers. Others may come to it: who reads it leaves alone what it does not
    know."""


class NothingAsked(_Asked, frozen=True, kw_only=True):
    """No parameters."""


class Registration(_Asked, frozen=True, kw_only=True):
    """What a transceiver says of itself."""

    instance: Instance
    address: Annotated[
        str,
        Meta(
            description="The IPv4 or IPv6 address of its UDP socket.",
            max_length=45,
            examples=["198.18.1.11"],
        ),
    ]
    port: Annotated[Port, Meta(description="Of its UDP socket.")]
    http: Url
    capacity: Annotated[
        int,
        Meta(
            description="Sessions that it takes at a time. It may hold two routes for each.",
            ge=1,
            le=1 << 20,
        ),
    ]


class Vip(_Told, frozen=True, kw_only=True):
    """An address and UDP port that clients send to."""

    address: str
    port: Port


class Registered(_Told, frozen=True, kw_only=True):
    """A lease. It is renewed by registering again within *lease_s* seconds; a third of that is a
    good interval."""

    id: Id
    lease_s: float
    reachable: Annotated[
        bool, Meta(description="Whether the relay knows how to send packets to the transceiver.")
    ]
    vips: list[Vip]
    draining: Annotated[
        bool, Meta(description="Whether it gets no new routes: take no new sessions then.")
    ]
    routes: Annotated[int, Meta(description="How many it holds.", ge=0)]
    digest: Annotated[
        str,
        Meta(
            description="Of the ufrags of its routes: the exclusive or of their BLAKE2b digests of "
            "8 bytes each, in hexadecimal. Who has another has other routes.",
            pattern="^[0-9a-f]{16}$",
        ),
    ]


class RouteAsked(_Asked, frozen=True, kw_only=True):
    """Whose route it shall be."""

    transceiver: Id
    checks: Annotated[
        bool,
        Meta(
            description="Whether the transceiver makes ICE checks of its own. If not, no client "
            "can prove that it is there, and the relay sets no limit on what goes to it."
        ),
    ] = True
    restarts: Annotated[
        Ufrag | None,
        Meta(
            description="After an ICE restart, the ufrag that the session has had until now: a "
            "route of the same transceiver. Such a route is made also during a drain."
        ),
    ] = None


class RouteMade(_Told, frozen=True, kw_only=True):
    """A route that the relay steers by."""

    ufrag: Ufrag
    transceiver: Id
    checks: bool


class Transceiver(_Told, frozen=True, kw_only=True):
    """A transceiver that has a lease."""

    id: Id
    address: str
    port: Port
    http: str
    capacity: Count
    routes: Annotated[int, Meta(description="How many it holds.", ge=0)]
    lease_s: Annotated[float, Meta(description="Seconds until its lease ends.")]
    reachable: bool
    draining: bool


class Transceivers(_Told, frozen=True, kw_only=True):
    """All transceivers, by id."""

    transceivers: list[Transceiver]


class DrainAsked(_Asked, frozen=True, kw_only=True):
    """How a drain shall end."""

    deadline_s: Annotated[
        Annotated[float, Meta(ge=0, le=30 * 86400)] | None,
        Meta(description="Seconds until what remains is ended. Left out: never."),
    ] = None


class Draining(_Told, frozen=True, kw_only=True):
    """How far a drain is."""

    draining: bool
    over: Annotated[bool, Meta(description="It is draining, and no route is left.")]
    routes: Annotated[int, Meta(description="Routes that are left.", ge=0)]
    flows: Annotated[int, Meta(description="Living flows that are left.", ge=0)]
    since_s: Annotated[float | None, Meta(description="Seconds since it began.")]
    deadline_s: Annotated[
        float | None, Meta(description="Seconds until what remains is ended; null for never.")
    ]


class EventsQuery(_Asked, frozen=True, kw_only=True):
    """Which events."""

    kinds: Annotated[list[EventKind], Meta(description="Only these kinds.")] = []
    follow: Annotated[
        bool, Meta(description="Go on with what is yet to come; if not, end with what is known.")
    ] = True


class Reloaded(_Told, frozen=True, kw_only=True):
    """What a reload came to: the keys that have changed, and those that only a restart changes."""

    changed: list[str]
    restart: list[str]


class _Page(_Asked, frozen=True, kw_only=True):
    """Which part of a list."""

    limit: Annotated[int, Meta(description="As many at most.", ge=1, le=10_000)] = 1000
    after: Annotated[
        int, Meta(description="Where to go on: the last answer's `next`.", ge=0, lt=1 << 33)
    ] = 0


class FlowsQuery(_Page, frozen=True, kw_only=True):
    """Which flows."""


class RoutesQuery(_Page, frozen=True, kw_only=True):
    """Which routes."""

    transceiver: Annotated[
        str | None, Meta(description="Only those of the transceiver with this id.")
    ] = None
    slots: Annotated[
        bool, Meta(description="Whether to tell what the slots know; without, it is quicker.")
    ] = True


class Rate(_Told, frozen=True, kw_only=True):
    """A count of packets and of their bytes (IP packets)."""

    packets: Count
    bytes: Count


Next = Annotated[
    int | None, Meta(description="`after` for what comes next; null if this is the end.")
]


class Route(_Told, frozen=True, kw_only=True):
    """A route; the slots of its living flows, and what all flows that it has had have carried, as
    far as this agent knows."""

    ufrag: Ufrag
    transceiver: Id
    checks: bool
    slots: list[Count] | UnsetType = UNSET
    to_transceiver: Rate | UnsetType = UNSET
    to_client: Rate | UnsetType = UNSET


class Routes(_Told, frozen=True, kw_only=True):
    """Routes, in an order that does not change. Whoever goes on with `next` until it is null has
    had every route that was there all the time once."""

    routes: list[Route]
    next: Next


class Flow(_Told, frozen=True, kw_only=True):
    """A slot in use. Null stands for what is gone, or is not known."""

    slot: Annotated[int, Meta(description="Its place in the table.", ge=0)]
    port: Annotated[int, Meta(description="Of `inside`.", ge=0, le=65535)]
    inside: Annotated[
        str | None, Meta(description="Address and port that the transceiver sees as the client.")
    ]
    state: Annotated[str, Meta(pattern="^(pending|established|closing|free)$")]
    client: str
    vip: str | None
    ufrag: str | None
    transceiver: str | None
    idle_s: Annotated[float, Meta(description="Seconds since the client's last packet.", ge=0)]
    validated: Annotated[
        bool, Meta(description="Whether the client has answered a check of the transceiver.")
    ]
    to_transceiver: Rate
    to_client: Rate


class Flows(_Told, frozen=True, kw_only=True):
    """Flows by slot, and how many there are in all."""

    flows: list[Flow]
    next: Next
    count: Count


class Counters(_Told, frozen=True, kw_only=True):
    """Totals since the maps were made. *mode*: how the program is attached, by interface;
    *dropped*: packets by reason; *passed*: what was left to the kernel."""

    mode: dict[str, str]
    to_transceiver: Rate
    to_client: Rate
    passed: Rate
    dropped: dict[str, Count]


class Health(_Told, frozen=True, kw_only=True):
    """The agent answers."""

    alive: bool


class Ready(_Told, frozen=True, kw_only=True):
    """The relay can do its work."""

    ready: bool


class ProblemType(_Told, frozen=True, kw_only=True):
    """A kind of failure. *members*: what such problems hold besides those that all have."""

    type: str
    title: str
    status: Annotated[int, Meta(ge=400, le=599)]
    to_do: str
    members: list[str]


class ProblemTypes(_Told, frozen=True, kw_only=True):
    """All kinds of failure."""

    problems: list[ProblemType]


class Problem(_Told, frozen=True, kw_only=True):
    """Why a request failed (RFC 9457). Some types have more members; each type's own page
    (`type`) names them."""

    type: Annotated[str, Meta(pattern="^/problems/[a-z-]+$")]
    title: str
    status: Annotated[int, Meta(ge=400, le=599)]
    detail: Annotated[str, Meta(description="What is wrong here, and what to change.")]
