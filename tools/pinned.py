"""The relay as its pinned maps show it, in the shapes of the agent's API; it needs no agent."""

import time
from pathlib import Path

import numpy as np

from loader.accounts import Accounts, accounts_of
from loader.flows import FlowTable
from loader.maps import DEFAULT_PINS, Maps
from loader.picture import (
    FLOWS_SHOWN,
    Routed,
    picture_of_counters,
    picture_of_flows,
    picture_of_routes,
)
from loader.routeids import RouteIds
from loader.types import ROUTE_NO_CHECKS
from tools.rates import Snapshot

__all__ = ["look", "route_count", "vip_ports"]


def look(pins: Path = DEFAULT_PINS) -> Snapshot:
    """One picture; of very many flows, only those of the lowest slots, and of what routes have
    carried only what their present slots have. Raises ShuntError if no relay is loaded, or one of
    another version."""
    with Maps(pins) as maps:
        now = time.monotonic()
        transceivers = dict(maps.transceivers())
        ids = {i: bytes(each.id).rstrip(b"\0").decode() for i, each in transceivers.items()}
        table = FlowTable(maps)
        routes = list(maps.routes())
        route_ids = np.array([route.id for _ufrag, route in routes], dtype=np.uint32)
        return Snapshot(
            at=now,
            routes=picture_of_routes(
                (
                    Routed(
                        ufrag,
                        route.id,
                        ids.get(route.transceiver),
                        not route.flags & ROUTE_NO_CHECKS,
                    )
                    for ufrag, route in routes
                ),
                slots=table.slots_by_route(),
                accounts=accounts_of(Accounts(maps.slots, RouteIds()).of_routes(route_ids)),
            ),
            flows=picture_of_flows(
                table.flows(now=now, limit=FLOWS_SHOWN),
                settings=maps.settings(),
                ufrags={route.id: ufrag for ufrag, route in routes},
                transceivers=transceivers,
            ),
            flow_count=table.count(),
            counters=picture_of_counters(maps.counters(), maps.interfaces()),
        )


def route_count() -> int:
    """Routes in the map."""
    with Maps() as maps:
        return sum(1 for _ in maps.routes())


def vip_ports() -> set[int]:
    """UDP ports on which the program takes clients' packets."""
    with Maps() as maps:
        return {int(vip.port) for vip in maps.settings().vips if vip.port}
