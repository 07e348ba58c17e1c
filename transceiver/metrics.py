"""What a transceiver tells Prometheus: sessions, how long their phases take, what is refused and
what is dropped. `docs/signaling.md` lists the names.

Counts are kept where things happen; here they are looked at when somebody asks, and only what has
no count elsewhere is counted.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from transceiver.session import Session
from transceiver.sessions import Sessions
from transceiver.timeline import Moment, Timeline

__all__ = ["Counts", "Metrics"]

# Or there would be another series for each counter and histogram, to say when it began.
disable_created_metrics()  # type: ignore[no-untyped-call]

_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)

PHASES = {
    "route": (Moment.OFFER, Moment.ROUTE),
    "first_check": (Moment.ROUTE, Moment.FIRST_CHECK),
    "selected": (Moment.FIRST_CHECK, Moment.SELECTED),
    "dtls": (Moment.SELECTED, Moment.DTLS),
    "first_audio": (Moment.DTLS, Moment.FIRST_AUDIO_IN),
    "setup": (Moment.OFFER, Moment.DTLS),
}
"""Of a session's beginning, by name: from one moment to another. The last is all but the audio."""


@dataclass(frozen=True, slots=True)
class Counts:
    """What signaling counts as it works."""

    opened: Mapping[str, int]
    """Sessions that were made, by dialect."""
    refused: Mapping[str, int]
    """Requests turned away before a session was asked for, by why."""
    handed_on: Mapping[str, int]
    """Requests for other transceivers' sessions, by what became of them."""


class Metrics:
    """The numbers of one transceiver. *dropped*: datagrams, by reason."""

    def __init__(
        self,
        sessions: Sessions,
        *,
        capacity: int,
        dropped: Mapping[str, int],
        counts: Counts,
        is_registered: Callable[[], bool],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._counted = CollectorRegistry()
        self.clock = clock
        self._sessions = sessions
        self._capacity = capacity
        self._dropped = dropped
        self._counts = counts
        self._is_registered = is_registered
        self._observed: dict[str, set[str]] = {}
        """By the ids of sessions that are: the phases that the histogram has already."""
        self._requests = Counter(
            "shunt_signaling_requests",
            "Requests that signaling has answered.",
            ("operation", "status"),
            registry=self._counted,
        )
        self._durations = Histogram(
            "shunt_signaling_request_duration_seconds",
            "From a request's headers to its answer.",
            ("operation",),
            unit="seconds",
            buckets=_BUCKETS,
            registry=self._counted,
        )
        self._phases = Histogram(
            "shunt_session_phase_duration_seconds",
            "How long each phase of sessions' beginnings took.",
            ("phase",),
            unit="seconds",
            buckets=_BUCKETS,
            registry=self._counted,
        )
        self._ended = Counter(
            "shunt_sessions_ended",
            "Sessions that have ended, by how far they had come.",
            ("reached",),
            registry=self._counted,
        )
        self._failures = Counter(
            "shunt_backend_failures",
            "Sessions that ended because their backend failed, or whose backend failed at that.",
            ("how",),
            registry=self._counted,
        )
        # What somebody may watch is there from the start, or its first step would be missed.
        for phase in PHASES:
            self._phases.labels(phase)
        for reached in ("connecting", "securing", "connected"):
            self._ended.labels(reached)
        for how in ("raised", "did_not_close"):
            self._failures.labels(how)
        ProcessCollector(registry=self._counted)

    def answered(self, operation: str, status: int, seconds: float) -> None:
        """Signaling has answered a request."""
        self._requests.labels(operation, str(status)).inc()
        self._durations.labels(operation).observe(seconds)

    def ended(self, session: Session) -> None:
        """A session has ended."""
        self._observe(session.id, session.timeline)
        self._observed.pop(session.id, None)
        self._ended.labels(_reached(session.timeline)).inc()
        if session.backend_failure:
            self._failures.labels(session.backend_failure).inc()

    def scrape(self) -> Collector:
        """The numbers of this moment, to be written out by any thread."""
        for session in self._sessions.all():
            if session.answer:  # of others we are not told when they end
                self._observe(session.id, session.timeline)
        return _Scrape(self._counted, list(self._look()))

    def _observe(self, id: str, timeline: Timeline) -> None:
        observed = self._observed.setdefault(id, set())
        for phase, (start, end) in PHASES.items():
            if phase in observed:
                continue
            seconds = timeline.between(start, end)
            if seconds is not None:
                self._phases.labels(phase).observe(seconds)
                observed.add(phase)

    def _look(self) -> Iterator[Metric]:
        """What has its count elsewhere."""
        sessions = self._sessions
        info = GaugeMetricFamily("shunt_session_owner_info", "The id.", labels=["transceiver"])
        info.add_metric([sessions.owner], 1)
        yield info
        yield _gauges("shunt_sessions", "Sessions by state.", "state", sessions.by_state())
        yield GaugeMetricFamily(
            "shunt_sessions_capacity", "Sessions that there may be.", self._capacity
        )
        yield GaugeMetricFamily(
            "shunt_sessions_draining", "1 if no new ones are taken.", int(sessions.draining)
        )
        yield GaugeMetricFamily(
            "shunt_lease_held", "1 if the relay's agent knows us.", int(self._is_registered())
        )
        for name, text, label, counts in (
            ("shunt_sessions_opened", "Sessions made.", "dialect", self._counts.opened),
            ("shunt_offers_refused", "Offers turned away.", "why", sessions.refused),
            ("shunt_signaling_refused", "Requests turned away.", "why", self._counts.refused),
            (
                "shunt_signaling_handed_on",
                "Requests for others' sessions.",
                "outcome",
                self._counts.handed_on,
            ),
            ("shunt_socket_dropped_datagrams", "Datagrams dropped.", "reason", self._dropped),
        ):
            family = CounterMetricFamily(name, text, labels=[label])
            for value, count in counts.items():
                family.add_metric([value], count)
            yield family


class _Scrape(Collector):
    def __init__(self, counted: CollectorRegistry, looked: Sequence[Metric]) -> None:
        self._counted = counted
        self._looked = looked

    def collect(self) -> Iterator[Metric]:
        yield from self._looked
        yield from self._counted.collect()


def _reached(timeline: Timeline) -> str:
    if timeline.at(Moment.DTLS) is not None:
        return "connected"
    return "connecting" if timeline.at(Moment.SELECTED) is None else "securing"


def _gauges(name: str, text: str, label: str, values: Mapping[str, int]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, text, labels=[label])
    for value, count in values.items():
        family.add_metric([value], count)
    return family
