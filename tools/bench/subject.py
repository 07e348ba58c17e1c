"""The relay that is measured: the program with maps of its own, flows opened through it, and its
counters to hold every measurement to."""

import os
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

import numpy as np

from loader import bpf, datapath, types
from loader.errors import ShuntError
from loader.maps import Counters, Maps, versioned
from loader.pinned_set import PROGRAM, remove_pins
from tools.bench.frames import Endpoint
from tools.bench.generator import ufrag

__all__ = ["FIRST_PORT", "LAST_PORT", "PORTS", "Subject", "context", "moved"]

FIRST_PORT, LAST_PORT = 1024, 65535
PORTS = LAST_PORT - FIRST_PORT + 1


class Subject:
    """A loaded relay, attached nowhere. *pins*: where; what an earlier bench left there goes."""

    def __init__(self, pins: Path, inside: int) -> None:
        self.pins = pins
        self.inside = inside

    def __enter__(self) -> "Subject":
        remove_pins(self.pins)
        try:
            datapath.load(self.pins, self.inside)
            self.maps = Maps(self.pins, writable=True)
            self.program = bpf.pinned(versioned(self.pins) / PROGRAM)
        except BaseException:
            remove_pins(self.pins)
            raise
        self._routes = 0
        slots = np.arange(FIRST_PORT, LAST_PORT + 1)
        for entry in range(self.inside):
            self.maps.free_slots(slots + (entry << types.PORT_BITS))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self.program)
        self.maps.close()
        remove_pins(self.pins)

    def configure(
        self,
        vips: list[Endpoint],
        inside: list[tuple[str | None, str | None]],
        link: int,
    ) -> None:
        """VIPs, inside addresses (IPv4, IPv6), and the ifindex that transceivers' packets come
        in by."""
        settings = types.Settings(first_port=FIRST_PORT, last_port=LAST_PORT)
        for number, vip in enumerate(vips):
            address = types.packed_address(vip.address)
            settings.vips[number] = types.Vip(address=address, port=vip.port, number=number)
        for place, (ipv4, ipv6) in enumerate(inside):
            entry = settings.inside[place]
            if ipv4:
                entry.ipv4 = types.packed_address(ipv4)
            if ipv6:
                entry.ipv6 = types.packed_address(ipv6)
            entry.first_slot = place << types.PORT_BITS
            entry.used = 1
        settings.inside_links[0].ifindex = link
        self.maps.configure(settings)

    def set_transceiver(self, index: int, endpoint: Endpoint, *, link: int, source: bytes) -> None:
        """A transceiver, and the next hop towards it."""
        entry = types.Transceiver(
            address=types.packed_address(endpoint.address), port=endpoint.port, resolved=1
        )
        entry.hop.mac[:] = endpoint.mac
        entry.hop.source_mac[:] = source
        entry.hop.ifindex = link
        entry.hop.mtu = 1500
        self.maps.set_transceiver(index, entry)

    def add_routes(self, rest: str, count: int, transceivers: list[int]) -> None:
        """Routes by the generator's ufrags; the transceivers take them in turn, and make no
        checks."""
        for number in range(count):
            self._routes += 1
            self.maps.add_route(
                ufrag(number, rest),
                id=self._routes,
                transceiver=transceivers[number % len(transceivers)],
                checks=False,
            )

    def established(self) -> int:
        """How many slots are."""
        states = self.maps.slots["to_transceiver"]["state"]
        return int(np.count_nonzero(states == types.State.ESTABLISHED))

    def free_pending(self) -> int:
        """Let pending slots be opened again, as the agent does in the end; how many were."""
        slots = self.maps.slots
        found = np.flatnonzero(slots["to_transceiver"]["state"] == types.State.PENDING)
        slots["to_transceiver"]["state"][found] = types.State.FREE
        slots["to_client"]["state"][found] = types.State.FREE
        self.maps.free_slots(found)
        return len(found)

    @contextmanager
    def counted(self, what: str, expected: Mapping[str, int]) -> Iterator[None]:
        """Hold the relay's counters to what is measured inside: they move by exactly so many
        packets, by direction or reason, and no others. Raises ShuntError."""
        before = self.maps.counters()
        yield
        found = moved(before, self.maps.counters())
        if found != {name: count for name, count in expected.items() if count}:
            raise ShuntError(
                f"{what}: the relay counted {found}, not {dict(expected)}",
                "The bench measures something else than it says; please report this.",
            )


def moved(before: Counters, after: Counters) -> dict[str, int]:
    """Packets between two readings, by direction and by reason; only what moved."""
    now, then = _packets(after), _packets(before)
    return {name: count - then[name] for name, count in now.items() if count != then[name]}


def _packets(counters: Counters) -> dict[str, int]:
    return {
        "to_transceiver": counters.to_transceiver.packets,
        "to_client": counters.to_client.packets,
        "passed": counters.passed.packets,
        **counters.dropped,
    }


def context(length: int, ifindex: int) -> bytes:
    """A `struct xdp_md`: a frame of so many bytes that comes in by an interface of the calling
    thread's namespace."""
    return struct.pack("=6I", 0, length, 0, ifindex, 0, 0)
