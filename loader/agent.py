"""The agent: what a relay host's owner of the maps does when asked.

Decisions are `table`'s (who may route) and `flows`' (which slots end); what time asks for is
`housekeeping`'s, what the network asks for `follow`'s. What it leaves in the maps outlives it: a
new agent adopts it. `api` is how it is asked, `daemon` the process around it.
"""

import logging
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from loader import types
from loader.accounts import accounts_of
from loader.addresses import host_address, http_url
from loader.carriers import Attachment, attach
from loader.config import AgentConfig, outdated
from loader.datapath import pinned_program
from loader.draining import Drains
from loader.errors import ShuntError
from loader.events import EventLog
from loader.flows import FlowTable
from loader.follow import Follower
from loader.housekeeping import Housekeeping
from loader.leases import lease_of, relay_drain, write_lease
from loader.maps import Maps, versioned
from loader.metrics import Metrics
from loader.network import Network
from loader.picture import (
    Routed,
    picture_of_counters,
    picture_of_flows,
    picture_of_routes,
    picture_of_routes_alone,
)
from loader.problems import Refused, quoted
from loader.reloading import Reloading
from loader.shapes import Registration
from loader.table import Lease, Registered, Route, RouteTable

__all__ = ["Agent"]

log = logging.getLogger(__name__)

LISTED = 1000
"""Routes and flows in one answer, if it is not said how many."""


class Agent:
    """The running agent, between the maps and the API. *reloading* gives it another
    configuration. `clock` gives monotonic seconds."""

    def __init__(
        self,
        config: AgentConfig,
        maps: Maps,
        network: Network,
        *,
        reloading: Reloading | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.config = config
        self.reloading = reloading or Reloading(config, lambda: config)
        self.reloading.parts.append(lambda new: partial(self.reconfigure, new))
        self.events = EventLog(clock=time.time)
        self._maps = maps
        self._clock = clock
        self._table = RouteTable(indexes=types.TRANSCEIVERS, max_routes=config.max_routes)
        self._network = network
        self.following = Follower(
            maps,
            network,
            self.events,
            leases=self._table.leases,
            addresses=config.own_addresses,
            reattach=self._reattach,
            mending=config.reattach,
            clock=clock,
        )

    # Start.

    def configure(self, attachments: list[Attachment]) -> None:
        """Write settings and interfaces into the maps. The program may be attached already."""
        self.following.begin(attachments, inside=self.config.inside)
        settings = self.config.settings(
            (i.ifindex, i.vlan) for i in self.following.interfaces if i.inside
        )
        settings.no_tx = any(attachment.veth for attachment in attachments)
        before = self._maps.settings()
        self._maps.configure(settings)
        self._flows = FlowTable(self._maps)
        self.metrics = Metrics(
            self._maps,
            self._table,
            self._flows,
            self.following,
            self.reloading,
            self.events,
            accounts=lambda: self.housekeeping.transceiver_accounts(),
            program_tag=lambda: pinned_program(versioned(self.config.pins)).tag,
            clock=self._clock,
        )
        self.housekeeping = Housekeeping(
            self._maps,
            self._table,
            self._flows,
            self.events,
            on_end=self.following.forget,
            on_pass=self.metrics.housekept,
            clock=self._clock,
        )
        self.drains = Drains(
            self._maps,
            self._table,
            self._flows,
            self.events,
            forget_routes=self.housekeeping.forget_routes,
            clock=self._clock,
        )
        vips, entries = outdated(before, settings)
        closed = self._flows.close_addresses(vips=vips, entries=entries, now=self._clock())
        if closed:
            log.warning("the relay has other addresses than before: %d flows closed", closed)

    def reconfigure(self, config: AgentConfig) -> None:
        """Go on with another configuration, different in no key that needs a restart."""
        self.config = config
        self._table.max_routes = config.max_routes
        self.following.mend(config.reattach)

    def adopt(self) -> int:
        """Take over the transceivers, routes and flows that an earlier agent left in the maps;
        how many routes."""
        now = self._clock()
        leases = {}
        for index, entry in self._maps.transceivers():
            leases[index] = lease_of(index, entry)
        ufrags, entries = self._maps.all_routes()
        checks = (entries["flags"] & types.ROUTE_NO_CHECKS) == 0
        columns = (entries["id"].tolist(), entries["transceiver"].tolist(), checks.tolist())
        for ufrag, id, index, makes_checks in zip(ufrags, *columns, strict=True):
            if index in leases:
                leases[index].routes[ufrag] = Route(id, makes_checks)
            else:
                self._maps.remove_route(ufrag)
        self._table.drain = relay_drain(self._maps)
        self._table.adopt(
            leases.values(),
            now=now,
            named=self._flows.named_routes(),
            resting=self._flows.transceivers(),
        )
        self.drains.resume()
        self.housekeeping.adopt()
        free = self._flows.rebuild_free()
        log.info(
            "adopted %d transceivers, %d routes in %.3f s; %d ports are free",
            len(leases),
            len(self._table.ids),
            self._clock() - now,
            free,
        )
        return len(self._table.ids)

    # What the API asks for.

    async def register(self, id: str, asked: Registration) -> tuple[Registered, bool]:
        """Make or renew a lease; the transceiver's entry is in the map when this returns."""
        registered = self._table.register(
            id,
            instance=asked.instance,
            address=self._address(id, asked.address),
            port=asked.port,
            http=_url(asked.http),
            capacity=asked.capacity,
            now=self._clock(),
        )
        for ended in registered.ended:
            self.housekeeping.end(ended, "superseded")
        lease = registered.lease
        write_lease(self._maps, lease, new=registered.new)
        if registered.new:
            log.info("transceiver %s at %s:%d", lease.id, lease.address, lease.port)
            self.events.tell(
                "transceiver_registered",
                transceiver=lease.id,
                address=lease.address,
                port=lease.port,
                capacity=lease.capacity,
            )
        self.following.resolve(lease)
        return registered, bool(self._maps.transceiver(lease.index).resolved)

    def deregister(self, id: str, instance: str) -> None:
        """End a lease."""
        lease = self._table.deregister(id, instance=instance)
        if lease:
            self.housekeeping.end(lease, "deregistered")

    def add_route(
        self,
        ufrag: str,
        *,
        transceiver: str,
        instance: str,
        checks: bool = True,
        restarts: str | None = None,
    ) -> bool:
        """Make a route; the map holds it when this returns. Whether it was not there before."""
        try:
            route = self._table.add_route(
                ufrag,
                transceiver=transceiver,
                instance=instance,
                checks=checks,
                restarts=restarts,
            )
        except Refused as refused:
            self.events.tell(
                "route_refused", ufrag=ufrag[:64], transceiver=transceiver, why=refused.name
            )
            raise
        if route is None:
            return False
        lease = self._table.owner(ufrag)
        assert lease is not None
        try:
            self._maps.add_route(ufrag, id=route.id, transceiver=lease.index, checks=route.checks)
        except ShuntError as full:
            self._table.remove_route(ufrag, instance=instance)
            self.events.tell(
                "route_refused", ufrag=ufrag, transceiver=transceiver, why="route-map-full"
            )
            raise Refused("route-map-full", f"{full.what}: {full.cure}") from None
        self.events.tell("route_added", ufrag=ufrag, transceiver=transceiver)
        return True

    def remove_route(self, ufrag: str, *, instance: str) -> None:
        """Remove a route and close its flows."""
        lease = self._table.owner(ufrag)
        route = self._table.remove_route(ufrag, instance=instance)
        if lease and route:
            self.housekeeping.forget_routes(lease, {ufrag: route})

    def transceivers(self) -> dict[str, Any]:
        """`GET /v1/transceivers`."""
        now = self._clock()
        return {
            "transceivers": [
                {
                    "id": lease.id,
                    "address": lease.address,
                    "port": lease.port,
                    "http": lease.http,
                    "capacity": lease.capacity,
                    "routes": len(lease.routes),
                    "lease_s": round(lease.expires - now, 3),
                    "reachable": bool(self._maps.transceiver(lease.index).resolved),
                    "draining": self._table.drain_of(lease) is not None,
                }
                for lease in self._table.leases()
            ]
        }

    def routes(
        self,
        *,
        transceiver: str | None = None,
        slots: bool = True,
        after: int = 0,
        limit: int = LISTED,
    ) -> dict[str, Any]:
        """`GET /v1/routes`: the first *limit* after that place, of one transceiver if its id is
        given; with *slots*, what those know. `next`: after what to go on."""
        places = self._table.routes_after(after, limit=limit + 1, transceiver=transceiver)
        next = places[limit - 1][0] if len(places) > limit else None
        routes = [
            Routed(ufrag, route.id, lease.id, route.checks)
            for _, lease, ufrag in places[:limit]
            for route in (lease.routes[ufrag],)
        ]
        if not slots:
            return {"routes": picture_of_routes_alone(routes), "next": next}
        named = {route.id: self._slots_named(route.ufrag) for route in routes}
        found = self._flows.slots_of(named)
        among = [slot for each in found.values() for slot in each]
        ids = np.array([route.id for route in routes], dtype=np.uint32)
        accounts = accounts_of(self.housekeeping.accounts.of_routes(ids, among=among))
        picture = picture_of_routes(routes, slots=found, accounts=accounts)
        return {"routes": picture, "next": next}

    def _slots_named(self, ufrag: str) -> list[int]:
        entry = self._maps.route(ufrag)
        return list(entry.slots) if entry else []

    def flows(self, *, after: int = 0, limit: int = LISTED) -> dict[str, Any]:
        """`GET /v1/flows`: the first *limit* after that slot. `next`: after which to go on."""
        shown = self._flows.flows(now=self._clock(), after=after, limit=limit + 1)
        next = shown[limit - 1].slot if len(shown) > limit else None
        shown = shown[:limit]
        flows = picture_of_flows(
            shown,
            settings=self._maps.settings(),
            ufrags={flow.route: self._table.ufrag(flow.route) for flow in shown},
            transceivers=dict(self._maps.transceivers()),
        )
        return {"flows": flows, "next": next, "count": self._flows.count()}

    def counters(self) -> dict[str, Any]:
        """`GET /v1/counters`."""
        return picture_of_counters(self._maps.counters(), self.following.interfaces)

    @property
    def draining(self) -> bool:
        """Whether the relay takes no new routes."""
        return self._table.drain is not None

    def is_draining(self, lease: Lease) -> bool:
        """Whether the transceiver gets no new routes."""
        return self._table.drain_of(lease) is not None

    def not_ready(self) -> str | None:
        """Why the relay cannot do its work, or None if it can."""
        return self.following.not_ready()

    def _reattach(self, interface: str) -> Attachment:
        (attachment,) = attach(self.config.pins, [interface])
        return attachment

    def _address(self, id: str, text: str) -> str:
        """The address that a transceiver says it has, written in one way."""
        try:
            address = host_address(text)
        except ValueError as error:
            raise Refused(
                "malformed-body", f"the address {quoted(text)} {error}", pointer="#/address"
            ) from None
        if refused := self.config.why_not_transceiver(address):
            raise refused
        held = self._table.find(id)
        if not (held and held.address == str(address)) and self._network.has_address(str(address)):
            raise Refused(
                "address-of-the-relay",
                f"the address {address} is one of the relay's host: give the transceiver's",
                address=str(address),
            )
        return str(address)


def _url(text: str) -> str:
    try:
        return http_url(text)
    except ValueError as error:
        raise Refused("malformed-body", f"http: {quoted(text)} {error}", pointer="#/http") from None
