"""What the agent counts as it works, and where it looks when Prometheus asks: see `scrape` for the
names, and `exposition` for the way out."""

import time
from collections.abc import Callable, Mapping

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)

from loader import types
from loader.accounts import Account
from loader.events import ENDS, KINDS, Event, EventLog
from loader.flows import FlowTable
from loader.follow import Follower
from loader.maps import Maps
from loader.reloading import Reloading
from loader.scrape import Scrape, Transceiver
from loader.table import RouteTable

__all__ = ["Metrics"]

# Or there would be another series for each counter and histogram, to say when it began.
disable_created_metrics()  # type: ignore[no-untyped-call]

_ANSWER_BUCKETS = (1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
_PASS_BUCKETS = (1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
_REFUSALS = ("draining", "quota-exceeded", "route-map-full", "ufrag-taken")


class Metrics:
    """Counts since this agent's start. `clock` gives monotonic seconds, `wall` Unix time;
    *accounts* what each transceiver has carried, by id, *program_tag* the pinned program's."""

    def __init__(
        self,
        maps: Maps,
        table: RouteTable,
        flows: FlowTable,
        following: Follower,
        reloading: Reloading,
        events: EventLog,
        *,
        accounts: Callable[[], Mapping[str, Account]],
        program_tag: Callable[[], str],
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._maps = maps
        self._table = table
        self._flows = flows
        self._following = following
        self._reloading = reloading
        self._accounts = accounts
        self._program_tag = program_tag
        self._clock = clock
        self._wall = wall
        self._counted = CollectorRegistry()
        self._requests = Counter(
            "shunt_api_requests",
            "Requests that the API has answered.",
            ("operation", "status"),
            registry=self._counted,
        )
        self._durations = Histogram(
            "shunt_api_request_duration_seconds",
            "From a request's headers to its answer, event streams apart.",
            ("operation",),
            unit="seconds",
            buckets=_ANSWER_BUCKETS,
            registry=self._counted,
        )
        self._events = Counter(
            "shunt_agent_events",
            "Events told, by kind.",
            ("kind",),
            registry=self._counted,
        )
        self._ended = Counter(
            "shunt_agent_leases_ended",
            "Leases that ended, by why.",
            ("why",),
            registry=self._counted,
        )
        self._refused = Counter(
            "shunt_agent_refused_routes",
            "Routes that were asked for and not made, by why.",
            ("why",),
            registry=self._counted,
        )
        self._passes = Histogram(
            "shunt_housekeeping_pass_duration_seconds",
            "How long housekeeping passes took.",
            unit="seconds",
            buckets=_PASS_BUCKETS,
            registry=self._counted,
        )
        self._last_pass = Gauge(
            "shunt_housekeeping_last_success_timestamp_seconds",
            "When the last housekeeping pass ended, in Unix time.",
            unit="seconds",
            registry=self._counted,
        )
        ProcessCollector(registry=self._counted)
        # What somebody may watch is there from the start, or its first step would be missed.
        for kind in KINDS:
            self._events.labels(kind)
        for why in ENDS:
            self._ended.labels(why)
        for problem in _REFUSALS:
            self._refused.labels(problem)
        events.listen(self._told)

    def answered(self, operation: str, status: int, seconds: float | None) -> None:
        """The API has answered a request; *seconds* is None for what is not over with that."""
        self._requests.labels(operation, str(status)).inc()
        if seconds is not None:
            self._durations.labels(operation).observe(seconds)

    def housekept(self, seconds: float) -> None:
        """A housekeeping pass has come to its end."""
        self._passes.observe(seconds)
        self._last_pass.set(self._wall())

    def _told(self, event: Event) -> None:
        self._events.labels(event.kind).inc()
        match event.kind:
            case "left_out":
                for kind, count in event.facts.items():
                    self._events.labels(kind).inc(count)
            case "route_refused":
                self._refused.labels(event.facts["why"]).inc()
            case "transceiver_gone":
                self._ended.labels(event.facts["why"]).inc()

    def _program(self) -> str:
        try:
            return self._program_tag()
        except OSError:
            return ""  # somebody has removed the pin; all else is there to be told

    def scrape(self) -> Scrape:
        """The numbers of this moment."""
        now = self._clock()
        leases = self._table.leases()
        about = self._maps.about()
        accounts = self._accounts()
        unreachable = self._following.unreachable
        return Scrape(
            counted=self._counted,
            counters=self._maps.counters(),
            flows=self._flows.states(),
            routes=sum(len(lease.routes) for lease in leases),
            sizes={
                "slots": self._flows.capacity,
                "routes": self._maps.sizes.routes,
                "transceivers": types.TRANSCEIVERS,
            },
            transceivers=tuple(
                Transceiver(
                    id=lease.id,
                    routes=len(lease.routes),
                    quota=self._table.quota(lease),
                    capacity=lease.capacity,
                    left=max(0.0, lease.expires - now),
                    reachable=lease.id not in unreachable
                    and bool(self._maps.transceiver(lease.index).resolved),
                    draining=lease.drain is not None,
                    carried=accounts[lease.id],
                )
                for lease in leases
            ),
            interfaces=tuple(self._following.interfaces),
            states=dict(self._following.interface_states),
            addresses=dict(self._following.addresses),
            reattached=self._following.reattached,
            resyncs=self._following.overflows,
            adoptions=about.adoptions,
            upgrades=about.upgrades,
            migrations=about.migrations,
            program=self._program(),
            draining=self._table.drain is not None,
            reload_failed=self._reloading.failed,
            configured_at=self._reloading.taken_at,
        )
