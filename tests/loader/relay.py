"""A relay's housekeeping over real maps, with a clock to turn: for its tests."""

from collections.abc import Callable
from typing import Any

from loader.events import Event, EventLog
from loader.flows import FlowTable, ticks
from loader.housekeeping import Housekeeping
from loader.maps import Maps
from loader.table import Lease, RouteTable
from loader.types import State
from tests.loader.conftest import INSTANCE, put

WALL = 1_700_000_000.0
"""Unix time at 0 of the monotonic clock."""


class Relay:
    """An agent without its API: a table, and slots that a test puts where it likes.

    `now` is the time, which `look` turns on."""

    def __init__(self, maps: Maps) -> None:
        self.maps = maps
        self.now = 1000.0
        self.on_pass: Callable[[float], None] = lambda _spent: None
        self.ended: list[Lease] = []
        self.start()

    def start(self) -> None:
        """An agent that knows nothing yet."""
        self.table = RouteTable(indexes=8)
        self.flows = FlowTable(self.maps)
        self.events = EventLog(clock=lambda: WALL + self.now)
        self.housekeeping = Housekeeping(
            self.maps,
            self.table,
            self.flows,
            self.events,
            on_end=self.ended.append,
            on_pass=lambda spent: self.on_pass(spent),
            clock=lambda: self.now,
            wall=lambda: WALL + self.now,
        )

    def restart(self) -> None:
        """Another agent, which adopts the leases and their routes."""
        leases = self.table.leases()
        self.start()
        self.table.adopt(leases, now=self.now, named=self.flows.named_routes())
        self.keep_leases()
        self.housekeeping.adopt()

    def register(self, id: str = "x1", *, port: int = 40000, instance: str = INSTANCE) -> Lease:
        """A lease that does not end by itself."""
        registered = self.table.register(
            id,
            instance=instance,
            address="198.18.1.11",
            port=port,
            http="",
            capacity=4000,
            now=self.now,
        )
        for ended in registered.ended:
            self.housekeeping.end(ended, "superseded")
        self.keep_leases()
        return registered.lease

    def keep_leases(self) -> None:
        for lease in self.table.leases():
            lease.expires = float("inf")

    def route(self, ufrag: str, *, transceiver: str = "x1", checks: bool = True) -> int:
        """A route; its id."""
        made = self.table.add_route(
            ufrag, transceiver=transceiver, instance=INSTANCE, checks=checks
        )
        lease = self.table.owner(ufrag)
        assert made is not None
        assert lease is not None
        self.maps.add_route(ufrag, id=made.id, transceiver=lease.index, checks=checks)
        return made.id

    def remove(self, ufrag: str) -> None:
        """As the API does."""
        lease = self.table.owner(ufrag)
        assert lease is not None
        made = self.table.remove_route(ufrag, instance=INSTANCE)
        assert made is not None
        self.housekeeping.forget_routes(lease, {ufrag: made})

    def put(self, slot: int, state: State = State.ESTABLISHED, **changes: Any) -> None:
        """A slot that is heard now, and changed its state just now."""
        put(self.maps, slot, state, **{"seen": self.now, "since": self.now, **changes})

    def hear(self, *slots: int) -> None:
        """A packet of the client."""
        self.maps.slots["to_transceiver"]["seen"][list(slots)] = ticks(self.now)

    def carry(self, slot: int, *counts: int) -> None:
        """So many more packets and bytes to the transceiver, packets and bytes to the client."""
        there, back, _book = self.maps.slots.at(slot).values()
        fields = ((there, "packets"), (there, "bytes"), (back, "packets"), (back, "bytes"))
        for (half, field), count in zip(fields, counts, strict=True):
            half[field] += count

    def look(self, *, after: float = 1.0) -> list[Event]:
        """A pass, a while later; what it tells."""
        before = self.events.last
        self.now += after
        self.housekeeping.sweep()
        told, missed = self.events.since(before)
        assert missed == 0
        return told
