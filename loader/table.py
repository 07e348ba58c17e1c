"""Who may route, and what to: leases of transceivers, and their routes. No I/O; time is passed in.

    unknown ──register──▶ leased ──(lease_s without a renewal, or deregister)──▶ gone

A transceiver is known by its id and, between one process with that id and the next, by its
*instance*, a random word of the process's own. A new instance supersedes the old: its routes go,
and what the old process still asks is refused. The maps are written by the caller, after this
table has agreed and before the answer goes out.
"""

import hashlib
from collections import deque
from dataclasses import dataclass, field

from loader.maps import ufrag_key

__all__ = [
    "LEASE_SECONDS",
    "Lease",
    "Refused",
    "Registered",
    "Route",
    "RouteTable",
    "instance_number",
]

LEASE_SECONDS = 15.0
MAX_ROUTES_PER_TRANSCEIVER = 8192
MAX_SUPERSEDED = 4096  # instances remembered, so that two processes with one id do not alternate


class Refused(Exception):
    """The asker's fault: an HTTP *status* and one sentence."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status
        self.why = why


@dataclass(frozen=True, slots=True)
class Route:
    """A route: its *id*, never used twice, and whether its transceiver makes checks of its own."""

    id: int
    checks: bool = True


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

    @property
    def quota(self) -> int:
        """Routes it may hold: two a session, since an ICE restart has the old and the new."""
        return min(2 * self.capacity, MAX_ROUTES_PER_TRANSCEIVER)

    @property
    def route_ids(self) -> list[int]:
        """The ids of its routes."""
        return [route.id for route in self.routes.values()]


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
    """Leases and routes. *indexes*: how many transceivers the map holds."""

    def __init__(self, *, indexes: int) -> None:
        self._indexes = indexes
        self._leases: dict[str, Lease] = {}
        self._ufrags: dict[str, Lease] = {}
        self._resting: set[int] = set()
        self._superseded: deque[int] = deque(maxlen=MAX_SUPERSEDED)
        self._next_route = 1

    def leases(self) -> list[Lease]:
        """All leases, by id."""
        return sorted(self._leases.values(), key=lambda lease: lease.id)

    def owner(self, ufrag: str) -> Lease | None:
        """The lease that holds the route."""
        return self._ufrags.get(ufrag)

    def route_ids(self) -> list[int]:
        """The ids of all routes."""
        return [id for lease in self._leases.values() for id in lease.route_ids]

    def adopt(self, lease: Lease, *, now: float) -> None:
        """Take over what the maps hold from an earlier agent; one lease's time to renew it."""
        lease.expires = now + LEASE_SECONDS
        self._leases[lease.id] = lease
        for ufrag, route in lease.routes.items():
            self._ufrags[ufrag] = lease
            self._next_route = max(self._next_route, route.id + 1)

    def adopt_route_ids(self, highest: int) -> None:
        """Never give a new route an id at or below *highest*: a slot may still name it."""
        self._next_route = max(self._next_route, highest + 1)

    def adopt_indexes(self, indexes: set[int]) -> None:
        """Keep new transceivers off indexes of gone ones, which slots still refer to."""
        self._resting |= indexes

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
        self._check(id, instance, port, capacity)
        number = instance_number(instance)
        if number in self._superseded:
            raise Refused(409, f"another process has taken the place of {id}")
        held = self._leases.get(id)
        if held and (held.instance, held.address, held.port) == (number, address, port):
            held.http, held.capacity, held.expires = http, capacity, now + LEASE_SECONDS
            return Registered(held, new=False)
        ended = [
            other
            for other in self._leases.values()
            if other is held or (other.address, other.port) == (address, port)
        ]
        index = self._free_index()
        for other in ended:
            self._end(other)
            if other.instance != number:
                self._superseded.append(other.instance)
        lease = Lease(id, index, number, address, port, http, capacity, now + LEASE_SECONDS)
        self._leases[id] = lease
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

    def release_index(self, index: int) -> None:
        """Let an ended lease's index be used again: no slot refers to it any more."""
        self._resting.discard(index)

    def resting_indexes(self) -> list[int]:
        """Indexes of ended leases, which slots may still refer to."""
        return sorted(self._resting)

    def add_route(
        self, ufrag: str, *, transceiver: str, instance: str, checks: bool = True
    ) -> Route | None:
        """The new route, or None if the transceiver holds it already. *checks*: whether the
        transceiver makes checks of its own. Raises Refused."""
        lease = self._authorised(transceiver, instance)
        if not all(c.isascii() and (c.isalnum() or c in "+/") for c in ufrag):
            raise Refused(400, "a ufrag has only letters, digits, + and / (RFC 8839 5.4)")
        try:
            ufrag_key(ufrag)
        except ValueError as error:
            raise Refused(400, str(error)) from None
        owner = self._ufrags.get(ufrag)
        if owner is lease:
            if lease.routes[ufrag].checks != checks:
                raise Refused(409, f"the route {ufrag} was made otherwise: remove it first")
            return None
        if owner is not None:
            raise Refused(409, f"the ufrag {ufrag} is routed to another transceiver")
        if len(lease.routes) >= lease.quota:
            raise Refused(429, f"{transceiver} holds its quota of {lease.quota} routes")
        route = Route(self._next_route, checks)
        self._next_route += 1
        lease.routes[ufrag] = route
        self._ufrags[ufrag] = lease
        return route

    def remove_route(self, ufrag: str, *, instance: str) -> Route | None:
        """The route removed, or None if there was none. Raises Refused."""
        lease = self._ufrags.get(ufrag)
        if lease is None:
            return None
        self._authorised(lease.id, instance)
        del self._ufrags[ufrag]
        return lease.routes.pop(ufrag)

    def _authorised(self, id: str, instance: str) -> Lease:
        lease = self._leases.get(id)
        if lease is None:
            raise Refused(404, f"no transceiver {id} is registered")
        if instance_number(instance) in self._superseded:
            raise Refused(409, f"another process has taken the place of {id}")
        if lease.instance != instance_number(instance):
            raise Refused(403, f"another process speaks for {id}")
        return lease

    def _check(self, id: str, instance: str, port: int, capacity: int) -> None:
        if not 1 <= len(id) <= 63 or not all(
            c.isascii() and (c.isalnum() or c in "-._") for c in id
        ):
            raise Refused(400, "an id has 1 to 63 letters, digits, hyphens, dots, underscores")
        if len(instance) < 16:
            raise Refused(400, "an instance is a random word of at least 16 characters")
        if not 1 <= port <= 65535:
            raise Refused(400, "port is out of range")
        if capacity < 1:
            raise Refused(400, "capacity is at least 1 session")

    def _free_index(self) -> int:
        taken = {lease.index for lease in self._leases.values()} | self._resting
        for index in range(self._indexes):
            if index not in taken:
                return index
        raise Refused(503, "the relay has no room for another transceiver")

    def _end(self, lease: Lease) -> None:
        self._leases.pop(lease.id, None)
        self._resting.add(lease.index)
        for ufrag in lease.routes:
            del self._ufrags[ufrag]
