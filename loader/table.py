"""Who may route, and what to: leases of transceivers, and their routes. No I/O; time is passed in.

    unknown ──register──▶ leased ──(lease_s without a renewal, or deregister)──▶ gone

A transceiver is known by its id and, between one process with that id and the next, by its
*instance*, a random word of the process's own. A new instance supersedes the old: its routes go,
and what the old process still asks is refused. The maps are written by the caller, after this
table has agreed and before the answer goes out.
"""

import hashlib
import heapq
from collections.abc import Iterable
from dataclasses import dataclass, field

import msgspec
import numpy as np
import numpy.typing as npt

from loader.digest import digest_of
from loader.maps import ufrag_key
from loader.problems import Refused, quoted
from loader.routeids import INDEXES, Ids, RouteIds, index_of, indexes_of

__all__ = [
    "GRACE_SECONDS",
    "LEASE_SECONDS",
    "MAX_ROUTES",
    "Drain",
    "Lease",
    "Registered",
    "Route",
    "RouteTable",
    "check_id",
    "check_ufrag",
    "instance_number",
]

LEASE_SECONDS = 15.0
GRACE_SECONDS = LEASE_SECONDS / 3
"""That a lease has left at least when an agent takes it over: while there was none, nobody could
renew it, and whoever renews in time or tries again within less than that must not lose it."""

MAX_ROUTES = 8192
"""Of a transceiver, unless the configuration says otherwise."""

MAX_SUPERSEDED = 4096  # instances remembered, so that two processes with one id do not alternate


class Route(msgspec.Struct, frozen=True, gc=False):
    """A route: its *id*, never used twice, and whether its transceiver makes checks of its own.

    There may be half a million: small, and nothing that the garbage collector has to go through.
    """

    id: int
    checks: bool = True


@dataclass(slots=True)
class Drain:
    """No new routes *since* then; *until*: when what remains is ended, None for never. Monotonic
    seconds. *ended*: how many routes were, at the deadline; *over*: none are left."""

    since: float
    until: float | None = None
    ended: int = 0
    over: bool = False


@dataclass(slots=True)
class Lease:
    """A transceiver that is here until *expires*; its routes by ufrag."""

    id: str
    index: int
    instance: int
    address: str
    port: int
    http: str
    capacity: int
    expires: float
    routes: dict[str, Route] = field(default_factory=dict)
    drain: Drain | None = None
    digest: int = 0
    """Of the ufrags of its routes; see `digest`."""


@dataclass(frozen=True, slots=True)
class Registered:
    """What registering did: the lease, whether it is new, and the leases that ended by it."""

    lease: Lease
    new: bool
    ended: tuple[Lease, ...] = ()


def instance_number(instance: str) -> int:
    """The 64 bits by which the pinned maps remember an instance. Not the word itself: whoever
    reads the maps could speak for the transceiver with it."""
    word = instance.encode(errors="surrogatepass")  # JSON and headers may carry what is no text
    return int.from_bytes(hashlib.sha256(word).digest()[:8], "little")


class RouteTable:
    """Leases and routes. *indexes*: how many transceivers the map holds; *max_routes*: how many
    routes a transceiver may, which can be changed.

    What a request asks of it takes as long with half a million routes as with none.
    """

    def __init__(self, *, indexes: int, max_routes: int = MAX_ROUTES) -> None:
        self.max_routes = max_routes
        self.drain: Drain | None = None
        """Of the whole relay."""
        self._indexes = indexes
        self._leases: dict[str, Lease] = {}
        self._sorted: list[Lease] | None = None
        self._endpoints: dict[tuple[str, int], Lease] = {}
        self._ufrags: dict[str, Lease] = {}
        self._ufrag_at: list[str | None] = [None] * INDEXES
        self._extra_ufrags: dict[int, str] = {}
        self._checks_at = np.zeros(INDEXES, dtype=np.bool_)
        self._free = list(range(indexes))  # a heap of transceivers' indexes
        self._resting: set[int] = set()
        self._superseded: dict[int, None] = {}  # in the order in which they were
        self.ids = RouteIds()
        """The ids of all routes."""

    def leases(self) -> list[Lease]:
        """All leases, by id."""
        if self._sorted is None:
            self._sorted = sorted(self._leases.values(), key=lambda lease: lease.id)
        return list(self._sorted)

    def lease(self, id: str) -> Lease:
        """The transceiver's lease. Raises Refused if there is none."""
        lease = self._leases.get(id)
        if lease is None:
            raise Refused(
                "unknown-transceiver",
                f"no transceiver {quoted(id)} is registered: register it first",
                transceiver=id.encode("ascii", "replace").decode(),
            )
        return lease

    def find(self, id: str) -> Lease | None:
        """The transceiver's lease, or None."""
        return self._leases.get(id)

    def drain_of(self, lease: Lease) -> Drain | None:
        """The drain because of which the transceiver gets no new routes: its own or the relay's."""
        return lease.drain or self.drain

    def routes_after(
        self, place: int, *, limit: int, transceiver: str | None = None
    ) -> list[tuple[int, Lease, str]]:
        """Routes by their places (see `RouteIds.after`), with the lease and the ufrag of each: the
        first *limit* after that place, of one transceiver if its id is given."""
        if transceiver is None:
            ufrags = [self.ufrag(id) for id in self.ids.after(place, limit)]
            found = [(self._ufrags[ufrag], ufrag) for ufrag in ufrags if ufrag is not None]
            return [
                (self.ids.place(lease.routes[ufrag].id), lease, ufrag) for lease, ufrag in found
            ]
        lease = self._leases.get(transceiver)
        if lease is None:
            return []
        places = ((self.ids.place(route.id), ufrag) for ufrag, route in lease.routes.items())
        first = heapq.nsmallest(limit, (each for each in places if each[0] > place))
        return [(at, lease, ufrag) for at, ufrag in first]

    def owner(self, ufrag: str) -> Lease | None:
        """The lease that holds the route."""
        return self._ufrags.get(ufrag)

    def ufrag(self, id: int) -> str | None:
        """The ufrag of the route with that id."""
        if id not in self.ids:
            return None
        if self.ids.is_extra(id):
            return self._extra_ufrags[id]
        return self._ufrag_at[index_of(id)]

    def makes_checks(self, ids: Ids) -> npt.NDArray[np.bool_]:
        """Of each route that `RouteIds.placed` is true of, whether its transceiver does."""
        return self._checks_at[indexes_of(ids)]

    def adopt(
        self,
        leases: Iterable[Lease],
        *,
        now: float,
        named: Ids | Iterable[int] = (),
        resting: Iterable[int] = (),
    ) -> None:
        """Take over what the maps hold from an earlier agent, at the start. Leases end when they
        would have, but not before `GRACE_SECONDS` have passed. Slots still name the route ids
        *named*, and refer to the transceivers of the indexes *resting*, which are no new one's."""
        routes: list[tuple[str, Route]] = []
        for lease in leases:
            left = min(max(lease.expires - now, GRACE_SECONDS), LEASE_SECONDS)
            lease.expires = now + left
            self._begin(lease)
            for ufrag in lease.routes:
                lease.digest ^= digest_of(ufrag)
            self._ufrags.update(dict.fromkeys(lease.routes, lease))
            routes.extend(lease.routes.items())
        self.ids.adopt([route.id for _, route in routes], named=named)
        self._place_all(routes)
        taken = {lease.index for lease in self._leases.values()}
        self._resting = set(resting) - taken
        self._free = [each for each in self._free if each not in taken | self._resting]

    def register(
        self,
        id: str,
        *,
        instance: str,
        address: str,
        port: int,
        http: str,
        capacity: int,
        now: float,
    ) -> Registered:
        """Make or renew a lease. Raises Refused."""
        check_id(id)
        number = instance_number(instance)
        if number in self._superseded:
            raise _superseded(id)
        held = self._leases.get(id)
        if held and (held.instance, held.address, held.port) == (number, address, port):
            held.http, held.capacity, held.expires = http, capacity, now + LEASE_SECONDS
            return Registered(held, new=False)
        if not self._free:
            raise Refused(
                "transceiver-map-full",
                f"the relay has room for {self._indexes} transceivers, and no more: add a relay",
            )
        other = self._endpoints.get((address, port))
        ended = [lease for lease in (held, other) if lease]
        if held is other:
            ended = ended[:1]
        for gone in ended:
            self._end(gone)
            if gone.instance != number:
                self._supersede(gone.instance)
        index = heapq.heappop(self._free)
        lease = Lease(id, index, number, address, port, http, capacity, now + LEASE_SECONDS)
        self._begin(lease)
        return Registered(lease, new=True, ended=tuple(ended))

    def deregister(self, id: str, *, instance: str) -> Lease | None:
        """End a lease; None if there was none. Raises Refused for another instance's."""
        if id not in self._leases:
            return None
        lease = self._authorised(id, instance)
        self._end(lease)
        return lease

    def expire(self, *, now: float) -> list[Lease]:
        """End the leases that nobody has renewed in time."""
        ended = [lease for lease in self._leases.values() if lease.expires <= now]
        for lease in ended:
            self._end(lease)
        return ended

    def prolong(self, seconds: float) -> None:
        """Every lease ends so much later."""
        for lease in self._leases.values():
            lease.expires += seconds

    def release_index(self, index: int) -> None:
        """Let an ended lease's index be used again: no slot refers to it any more."""
        self._resting.remove(index)
        heapq.heappush(self._free, index)

    def resting_indexes(self) -> list[int]:
        """Indexes of ended leases, which slots may still refer to."""
        return sorted(self._resting)

    def add_route(
        self,
        ufrag: str,
        *,
        transceiver: str,
        instance: str,
        checks: bool = True,
        restarts: str | None = None,
    ) -> Route | None:
        """The new route, or None if the transceiver holds it already. *checks*: whether the
        transceiver makes checks of its own; *restarts*: the ufrag that the same session has had
        until now. Raises Refused."""
        lease = self._authorised(transceiver, instance)
        check_ufrag(ufrag)
        owner = self._ufrags.get(ufrag)
        if owner is lease:
            if lease.routes[ufrag].checks != checks:
                raise Refused(
                    "route-differs",
                    f"the route {ufrag} was made with other checks: remove it first",
                )
            return None
        if owner is not None:
            raise Refused(
                "ufrag-taken", f"the ufrag {ufrag} is routed to another transceiver: draw another"
            )
        if restarts is not None and restarts not in lease.routes:
            raise Refused(
                "unknown-route",
                f"{transceiver} holds no route {quoted(restarts)} that could restart: "
                "name one of its own",
            )
        if self.drain_of(lease) and restarts is None:
            what = f"{transceiver} is draining" if lease.drain else "the relay is draining"
            raise Refused(
                "draining",
                f"{what}: it takes no new routes",
                transceiver=transceiver,
                retry_after_s=GRACE_SECONDS,
            )
        if len(lease.routes) >= (quota := self.quota(lease)):
            raise Refused(
                "quota-exceeded",
                f"{transceiver} holds its quota of {quota} routes: remove some first",
                transceiver=transceiver,
                quota=quota,
            )
        id = self.ids.take()
        if id is None:
            raise Refused("route-map-full", f"the relay holds {len(self.ids)} routes, its most")
        route = Route(id, checks)
        lease.routes[ufrag] = route
        self._ufrags[ufrag] = lease
        lease.digest ^= digest_of(ufrag)
        self._place(ufrag, route)
        return route

    def end_routes(self, lease: Lease) -> dict[str, Route]:
        """End all routes of a lease that stays; which they were."""
        ended, lease.routes = lease.routes, {}
        for ufrag, route in ended.items():
            self._forget(ufrag, route)
        lease.digest = 0
        return ended

    def quota(self, lease: Lease) -> int:
        """Routes it may hold: two a session, since an ICE restart has the old and the new."""
        return min(2 * lease.capacity, self.max_routes)

    def remove_route(self, ufrag: str, *, instance: str) -> Route | None:
        """The route removed, or None if there was none. Raises Refused."""
        lease = self._ufrags.get(ufrag)
        if lease is None:
            return None
        self._authorised(lease.id, instance)
        route = lease.routes.pop(ufrag)
        lease.digest ^= digest_of(ufrag)
        self._forget(ufrag, route)
        return route

    def _authorised(self, id: str, instance: str) -> Lease:
        lease = self.lease(id)
        if instance_number(instance) in self._superseded:
            raise _superseded(id)
        if lease.instance != instance_number(instance):
            raise Refused(
                "not-yours", f"another process speaks for {id}: send its own Shunt-Instance"
            )
        return lease

    def _begin(self, lease: Lease) -> None:
        self._leases[lease.id] = self._endpoints[lease.address, lease.port] = lease
        self._sorted = None

    def _end(self, lease: Lease) -> None:
        del self._leases[lease.id]
        del self._endpoints[lease.address, lease.port]
        self._sorted = None
        self._resting.add(lease.index)
        for ufrag, route in lease.routes.items():
            self._forget(ufrag, route)

    def _supersede(self, instance: int) -> None:
        self._superseded[instance] = None
        if len(self._superseded) > MAX_SUPERSEDED:
            del self._superseded[next(iter(self._superseded))]

    def _place_all(self, routes: list[tuple[str, Route]]) -> None:
        ids = np.array([route.id for _, route in routes], dtype=np.uint32)
        placed = self.ids.placed(ids)
        checks = np.array([route.checks for _, route in routes], dtype=np.bool_)
        self._checks_at[indexes_of(ids)[placed]] = checks[placed]
        if placed.all():
            for index, (ufrag, _) in zip(indexes_of(ids).tolist(), routes, strict=True):
                self._ufrag_at[index] = ufrag
        else:
            for ufrag, route in routes:
                self._place(ufrag, route)

    def _place(self, ufrag: str, route: Route) -> None:
        if self.ids.is_extra(route.id):
            self._extra_ufrags[route.id] = ufrag
        else:
            self._ufrag_at[index_of(route.id)] = ufrag
            self._checks_at[index_of(route.id)] = route.checks

    def _forget(self, ufrag: str, route: Route) -> None:
        del self._ufrags[ufrag]
        if self.ids.is_extra(route.id):
            del self._extra_ufrags[route.id]
        else:
            self._ufrag_at[index_of(route.id)] = None
        self.ids.give_back(route.id)


def _superseded(id: str) -> Refused:
    return Refused(
        "superseded", f"another process has taken the place of {id}: give each an id of its own"
    )


def check_id(id: str) -> None:
    """Raises Refused for what no transceiver can be called."""
    if not (
        1 <= len(id) <= 63
        and id.isascii()
        and id[0].isalnum()
        and all(c.isalnum() or c in "-._" for c in id)
    ):
        raise Refused(
            "bad-id",
            f"{quoted(id)} is no id: give 1 to 63 letters, digits, hyphens, dots, underscores, "
            "a letter or digit first",
        )


def check_ufrag(ufrag: str) -> None:
    """Raises Refused for what no route can be called."""
    if not all(c.isascii() and (c.isalnum() or c in "+/") for c in ufrag):
        raise Refused(
            "bad-ufrag", "a ufrag has only letters, digits, + and / (RFC 8839 5.4): draw another"
        )
    try:
        ufrag_key(ufrag)
    except ValueError as error:
        raise Refused("bad-ufrag", f"{error}: draw another") from None
