"""What a relay is found to be when Prometheus asks, as families of metrics. No I/O.

Names and units follow Prometheus' conventions. No label holds a client's address or a ufrag: there
are as many series as an operator has transceivers and interfaces. `docs/metrics.md` says of each
family what is normal.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from loader import VERSION, types
from loader.accounts import Account
from loader.interfaces import State as InterfaceState
from loader.maps import Counters, Interface, Rate
from loader.types import Mode, State

__all__ = ["Scrape", "Transceiver"]

_IN_USE = (State.PENDING, State.ESTABLISHED, State.CLOSING)
_ATTACHED = (Mode.NATIVE, Mode.GENERIC, Mode.OFFLOADED)


class Transceiver(NamedTuple):
    """A lease: how many *routes* it holds and may hold (*quota*), its *capacity* in sessions, the
    seconds that are *left* of it, whether there is a way to it, whether it is drained, and what the
    transceiver has *carried*."""

    id: str
    routes: int
    quota: int
    capacity: int
    left: float
    reachable: bool
    draining: bool
    carried: Account


@dataclass(frozen=True, slots=True)
class Scrape(Collector):
    """The numbers of one moment, and what was *counted* until then. *sizes*: entries that a map
    has room for; *states*: by interface's name; *addresses*: whether the kernel has them;
    *reattached*, *resyncs*: how often; *program*: the kernel's tag of it; *configured_at*: Unix
    time.

    To find the numbers is quick, and they belong together. To write them down is not, if there are
    thousands of transceivers: `collect` has no part in the agent's state, so that another thread
    may do it.
    """

    counted: Collector
    counters: Counters
    flows: Mapping[State, int]
    routes: int
    sizes: Mapping[str, int]
    transceivers: tuple[Transceiver, ...]
    interfaces: tuple[Interface, ...]
    states: Mapping[str, InterfaceState]
    addresses: Mapping[str, bool]
    reattached: int
    resyncs: int
    adoptions: int
    upgrades: int
    migrations: int
    program: str
    draining: bool
    reload_failed: bool
    configured_at: float

    @property
    def entries(self) -> Mapping[str, int]:
        """How many entries of each map are in use."""
        return {
            "slots": sum(self.flows[state] for state in _IN_USE),
            "routes": self.routes,
            "transceivers": len(self.transceivers),
        }

    def collect(self) -> Iterator[Metric]:
        """All families."""
        for family in _COUNTERS:
            yield family.filled(CounterMetricFamily, self)
        for family in _GAUGES:
            yield family.filled(GaugeMetricFamily, self)
        yield from self.counted.collect()


@dataclass(frozen=True, slots=True)
class _Family:
    """A family of metrics: *values* reads them off, by the values of the *labels*."""

    name: str
    meaning: str
    values: Callable[[Scrape], Mapping[tuple[str, ...], float]]
    labels: tuple[str, ...] = ()
    unit: str = ""

    def filled(
        self, kind: type[CounterMetricFamily] | type[GaugeMetricFamily], scrape: Scrape
    ) -> Metric:
        family = kind(self.name, self.meaning, labels=self.labels, unit=self.unit)
        for labels, value in self.values(scrape).items():
            family.add_metric(labels, value)
        return family


def _directions(carried: Account | Counters) -> tuple[tuple[str, Rate], ...]:
    return ("to_transceiver", carried.to_transceiver), ("to_client", carried.to_client)


_COUNTERS = (
    _Family(
        "shunt_relay_packets",
        "Packets that the program has sent on.",
        lambda scrape: {
            (direction,): rate.packets for direction, rate in _directions(scrape.counters)
        },
        labels=("direction",),
    ),
    _Family(
        "shunt_relay_bytes",
        "Bytes of the packets sent on.",
        lambda scrape: {
            (direction,): rate.bytes for direction, rate in _directions(scrape.counters)
        },
        labels=("direction",),
        unit="bytes",
    ),
    _Family(
        "shunt_relay_passed_packets",
        "Packets that are not the relay's, left to the kernel.",
        lambda scrape: {(): scrape.counters.passed.packets},
    ),
    _Family(
        "shunt_relay_passed_bytes",
        "Bytes of the packets left to the kernel.",
        lambda scrape: {(): scrape.counters.passed.bytes},
        unit="bytes",
    ),
    _Family(
        "shunt_relay_dropped_packets",
        "Packets dropped, by reason.",
        lambda scrape: {(reason,): count for reason, count in scrape.counters.dropped.items()},
        labels=("reason",),
    ),
    _Family(
        "shunt_transceiver_packets",
        "Packets that the transceiver's flows have carried.",
        lambda scrape: {
            (each.id, direction): rate.packets
            for each in scrape.transceivers
            for direction, rate in _directions(each.carried)
        },
        labels=("transceiver", "direction"),
    ),
    _Family(
        "shunt_transceiver_bytes",
        "Bytes that the transceiver's flows have carried.",
        lambda scrape: {
            (each.id, direction): rate.bytes
            for each in scrape.transceivers
            for direction, rate in _directions(each.carried)
        },
        labels=("transceiver", "direction"),
        unit="bytes",
    ),
    _Family(
        "shunt_agent_adoptions",
        "Times that an agent took over what an earlier one had left.",
        lambda scrape: {(): scrape.adoptions},
    ),
    _Family(
        "shunt_agent_upgrades",
        "Times that another program took over the interfaces.",
        lambda scrape: {(): scrape.upgrades},
    ),
    _Family(
        "shunt_agent_migrations",
        "Times that what maps of another layout held was brought over.",
        lambda scrape: {(): scrape.migrations},
    ),
    _Family(
        "shunt_interface_reattachments",
        "Times that the program was put back on an interface that had lost it.",
        lambda scrape: {(): scrape.reattached},
    ),
    _Family(
        "shunt_netlink_resyncs",
        "Times that the kernel told of more changes than could be read: all was looked at then.",
        lambda scrape: {(): scrape.resyncs},
    ),
)

_GAUGES = (
    _Family(
        "shunt_flows",
        "Flows by state, as the last housekeeping pass found them.",
        lambda scrape: {(state.name.lower(),): scrape.flows[state] for state in _IN_USE},
        labels=("state",),
    ),
    _Family("shunt_routes", "Routes that there are.", lambda scrape: {(): scrape.routes}),
    _Family(
        "shunt_transceivers",
        "Transceivers that hold a lease.",
        lambda scrape: {(): len(scrape.transceivers)},
    ),
    _Family(
        "shunt_map_entries",
        "Entries of a map that are in use.",
        lambda scrape: {(name,): count for name, count in scrape.entries.items()},
        labels=("map",),
    ),
    _Family(
        "shunt_map_capacity_entries",
        "Entries that a map has room for.",
        lambda scrape: {(name,): scrape.sizes[name] for name in scrape.entries},
        labels=("map",),
    ),
    _Family(
        "shunt_transceiver_routes",
        "Routes that the transceiver holds.",
        lambda scrape: {(each.id,): each.routes for each in scrape.transceivers},
        labels=("transceiver",),
    ),
    _Family(
        "shunt_transceiver_quota_routes",
        "Routes that the transceiver may hold.",
        lambda scrape: {(each.id,): each.quota for each in scrape.transceivers},
        labels=("transceiver",),
    ),
    _Family(
        "shunt_transceiver_capacity_sessions",
        "Sessions that the transceiver says it can take.",
        lambda scrape: {(each.id,): each.capacity for each in scrape.transceivers},
        labels=("transceiver",),
    ),
    _Family(
        "shunt_transceiver_lease_remaining_seconds",
        "How long the transceiver's lease lasts if it is not renewed.",
        lambda scrape: {(each.id,): each.left for each in scrape.transceivers},
        labels=("transceiver",),
        unit="seconds",
    ),
    _Family(
        "shunt_transceiver_reachable",
        "1 if there is a way to the transceiver, else 0.",
        lambda scrape: {(each.id,): each.reachable for each in scrape.transceivers},
        labels=("transceiver",),
    ),
    _Family(
        "shunt_transceiver_draining",
        "1 if the transceiver is drained, else 0.",
        lambda scrape: {(each.id,): each.draining for each in scrape.transceivers},
        labels=("transceiver",),
    ),
    _Family(
        "shunt_agent_draining",
        "1 if the whole relay is drained, else 0.",
        lambda scrape: {(): scrape.draining},
    ),
    _Family(
        "shunt_interface_attached",
        "1 for the mode in which the interface carries the program, else 0.",
        lambda scrape: {
            (interface.name, mode.name.lower()): interface.mode is mode
            for interface in scrape.interfaces
            for mode in _ATTACHED
        },
        labels=("interface", "mode"),
    ),
    _Family(
        "shunt_interface_state",
        "1 for the state that the interface is in, else 0.",
        lambda scrape: {
            (interface, state.value): found is state
            for interface, found in scrape.states.items()
            for state in InterfaceState
        },
        labels=("interface", "state"),
    ),
    _Family(
        "shunt_address_present",
        "1 if the kernel has this address of the relay's own, else 0.",
        lambda scrape: {(address,): present for address, present in scrape.addresses.items()},
        labels=("address",),
    ),
    _Family(
        "shunt_agent_build_info",
        "Always 1: the agent's version, the program's tag, the maps' layout.",
        lambda scrape: {(VERSION, scrape.program, types.PIN_VERSION): 1},
        labels=("version", "program_tag", "layout"),
    ),
    _Family(
        "shunt_agent_config_last_reload_successful",
        "1 if the configuration was taken when it was last read, else 0.",
        lambda scrape: {(): not scrape.reload_failed},
    ),
    _Family(
        "shunt_agent_config_last_reload_success_timestamp_seconds",
        "When the configuration that is in force was read, in Unix time.",
        lambda scrape: {(): scrape.configured_at},
        unit="seconds",
    ),
)
