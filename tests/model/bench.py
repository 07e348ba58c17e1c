"""The program on the other side of the comparison: its maps, and test runs at little cost.

The process that uses it moves into a network namespace of its own, for good.
"""

import ctypes
import os
import platform
import struct
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pyroute2 import IPRoute

from loader import bpf, types
from loader.maps import Interface, Maps, versioned
from loader.pinned_set import PROGRAM
from loader.reasons import REASONS
from tests.model.walk import MAPPED, Hop, Walk

__all__ = ["Bench", "Links", "Seen", "enter_namespace"]

_libc = ctypes.CDLL(None, use_errno=True)
_CLONE_NEWNET = 0x40000000
_TEST_RUN, _NUMBERS = 10, {"x86_64": 321, "aarch64": 280}
_ROOM = 4096
_MTU = 20000
_DIRECTIONS = ("to_transceiver", "to_client", "passed")
_NAMES = {reason.number: reason.name for reason in REASONS}


@dataclass(frozen=True, slots=True)
class Links:
    """Indexes of interfaces that exist in the namespace: two ends of each of two veth pairs."""

    public: int
    inside: int
    other_public: int
    neither: int


@dataclass(frozen=True, slots=True)
class Seen:
    """What the program made of a frame."""

    verdict: int
    frame: bytes
    counted: tuple[tuple[str, int, int], ...]
    """Of each counter that moved: reason or direction, packets, bytes (0 for reasons)."""


def enter_namespace() -> Links:
    """Leave this process's network namespace for a fresh one, which ends with the process."""
    if _libc.unshare(_CLONE_NEWNET) < 0:
        raise OSError(ctypes.get_errno(), "cannot make a network namespace")
    with IPRoute() as netlink:
        for pair in (("public", "inside"), ("other", "neither")):
            netlink.link("add", ifname=pair[0], kind="veth", peer={"ifname": pair[1]})
        names = ("public", "inside", "other", "neither")
        indexes = [netlink.link_lookup(ifname=name)[0] for name in names]
        for index in indexes:
            netlink.link("set", index=index, mtu=_MTU, state="up")
    return Links(*indexes)


class Bench:
    """The program and its maps."""

    def __init__(self, pins: Path) -> None:
        """*pins*: where `loader.compile` has put program and maps for two inside entries."""
        folder = versioned(pins)
        self.maps = Maps(pins, writable=True)
        self.program = bpf.pinned(folder / PROGRAM)
        names = ("routes", "checks", "handshakes", "free_head", "free_tail", "drops", "traffic")
        self._opened = {name: bpf.Map.open(folder / name) for name in names}
        self._input = ctypes.create_string_buffer(_ROOM)
        self._output = ctypes.create_string_buffer(_ROOM)
        self._context = ctypes.create_string_buffer(24)
        self._attributes = ctypes.create_string_buffer(128)
        self._number = _NUMBERS[platform.machine()]
        self._totals = self._count()

    def close(self) -> None:
        for opened in self._opened.values():
            opened.close()
        self.maps.close()
        os.close(self.program)

    def receive(self, frame: bytes, ifindex: int) -> Seen:
        """Run the program on a frame, and see what has moved."""
        size = len(frame)
        ctypes.memmove(self._input, frame, size)
        struct.pack_into("=6I", self._context, 0, 0, size, 0, ifindex, 0, 0)
        struct.pack_into(
            "=IIIIQQIIIIQQ",
            self._attributes,
            0,
            *(self.program, 0, size, _ROOM),
            *(ctypes.addressof(self._input), ctypes.addressof(self._output)),
            *(1, 0, 24, 0, ctypes.addressof(self._context), 0),
        )
        if _libc.syscall(self._number, _TEST_RUN, self._attributes, 128) < 0:
            raise OSError(ctypes.get_errno(), f"test run of {size} bytes: {frame.hex()}")
        _, verdict, _, length = struct.unpack_from("=4I", self._attributes)
        before, self._totals = self._totals, self._count()
        moved = tuple(
            (name, now[0] - was[0], now[1] - was[1])
            for name, now, was in zip(_COUNTERS, self._totals, before, strict=True)
            if now != was
        )
        return Seen(verdict, ctypes.string_at(self._output, length), moved)

    def _count(self) -> list[tuple[int, int]]:
        drops = np.frombuffer(self._opened["drops"].values(), dtype=np.uint64)
        traffic = np.frombuffer(self._opened["traffic"].values(), dtype=np.uint64)
        reasons = drops.reshape(types.REASON_ROOM, -1).sum(axis=1).tolist()
        rates = traffic.reshape(types.DIRECTIONS, -1, 2).sum(axis=1).tolist()
        return [(reasons[number], 0) for number in _NAMES] + [(a, b) for a, b in rates]

    # Arranging: the maps as the agent would write them, from the model.

    def begin(self, walk: Walk, links: Links, indexes: list[int]) -> None:
        """Fresh tables, with the model's settings, and these slots free in this order."""
        for name in ("routes", "checks"):
            for key, _ in list(self._opened[name].items()):
                self._opened[name].delete(key)
        self.maps.configure(_settings(walk))
        self.maps.set_interfaces(
            [
                Interface(
                    f"link{place}", ifindex, (ifindex, vlan) in walk.inside_links,
                    types.Mode.NATIVE, vlan=vlan, mtu=mtu,
                )
                for place, ((ifindex, vlan), mtu) in enumerate(walk.mtus.items())
            ]
        )  # fmt: skip
        for index in range(len(walk.transceivers)):
            self.write_transceiver(walk, index)
        for entry in range(2):
            first = (entry << 16) + walk.ports.start
            self.maps.slots.clear(first, first + len(walk.ports))
        empty = bytes(types.Handshake())
        for index in indexes:
            self._opened["handshakes"].update(_u32(index), empty)
        self._opened["free_tail"].update(_u32(0), _u32(0))
        self._opened["free_head"].update(_u32(0), bytes(types.FreeHead()))
        self.maps.free_slots(list(walk.free))

    def write_transceiver(self, walk: Walk, index: int) -> None:
        there = walk.transceivers[index]
        entry = types.Transceiver(port=there.port if there.present else 0, resolved=there.resolved)
        entry.address[:] = there.address
        entry.hop.mac[:] = there.hop.mac
        entry.hop.source_mac[:] = there.hop.source_mac
        entry.hop.ifindex, entry.hop.vlan = there.hop.ifindex, there.hop.vlan
        entry.hop.mtu = there.hop.mtu
        self.maps.set_transceiver(index, entry)

    def write_route(self, walk: Walk, ufrag: bytes) -> None:
        """A fresh route, or none if the model has none."""
        key = bytes(_ufrag(ufrag))
        route = walk.routes.get(ufrag)
        if route is None:
            self._opened["routes"].delete(key)
            return
        flags = types.ROUTE_NO_CHECKS if route.no_checks else 0
        entry = types.Route(id=route.id, transceiver=route.transceiver, flags=flags)
        self._opened["routes"].update(key, bytes(entry))

    def write_state(self, index: int, state: int) -> None:
        self.maps.slots["to_client"]["state"][index] = state
        self.maps.slots["to_transceiver"]["state"][index] = state

    def write_age(self, index: int, seen: int, since: int) -> None:
        self.maps.slots["to_transceiver"]["seen"][index] = seen
        self.maps.slots["book"]["since"][index] = since

    def seen(self, index: int) -> int:
        """The tick of the client's last packet."""
        return int(self.maps.slots["to_transceiver"]["seen"][index])

    def free(self, index: int) -> None:
        self.write_state(index, 0)
        self.maps.free_slots([index])

    def slot(self, index: int) -> dict[str, object]:
        """All that the model knows of a slot, by its names."""
        slots = self.maps.slots
        there, back, book = (slots[name][index] for name in ("to_transceiver", "to_client", "book"))
        hop = back["hop"]
        state = int(there["state"])
        return {
            "state": state,
            "state of the other half": int(back["state"]),
            "client": (back["client"].tobytes(), int(back["client_port"]), int(back["vip"])),
            "transceiver": (int(there["transceiver"]), int(back["transceiver"])),
            "route": int(book["route"]),
            "next_route": int(book["next_route"]),
            "seen": int(there["seen"]),
            "since": int(book["since"]),
            "in": (int(there["packets"]), int(there["bytes"])),
            "out": (int(back["packets"]), int(back["bytes"])),
            "proven": bool(back["proven"]),
            "hop": Hop(
                hop["mac"].tobytes(), hop["source_mac"].tobytes(),
                int(hop["ifindex"]), int(hop["vlan"]), int(hop["mtu"]),
            ),
        }  # fmt: skip

    def free_count(self) -> int:
        """How many slots may still be opened."""
        tail = self._opened["free_tail"].lookup(_u32(0))
        head = self._opened["free_head"].lookup(_u32(0))
        assert tail is not None
        assert head is not None
        taken: int = types.FreeHead.from_buffer_copy(head).head
        return (int.from_bytes(tail[:4], sys.byteorder) - taken) & 0xFFFFFFFF


_COUNTERS = [*_NAMES.values(), *_DIRECTIONS]


def _settings(walk: Walk) -> types.Settings:
    settings = types.Settings(first_port=walk.ports.start, last_port=walk.ports.stop - 1)
    for number, (address, port) in enumerate(walk.vips):
        vip = settings.vips[number]
        vip.address[:], vip.port, vip.number = address, port, number
    for number, (ipv4, ipv6) in enumerate(walk.inside):
        entry = settings.inside[number]
        entry.ipv4[:] = ipv4 or bytes(16)
        entry.ipv6[:] = ipv6 or bytes(16)
        entry.first_slot, entry.used = number << types.PORT_BITS, 1
        assert not ipv4 or ipv4[:12] == MAPPED
    for number, (ifindex, vlan) in enumerate(sorted(walk.inside_links)):
        settings.inside_links[number].ifindex = ifindex
        settings.inside_links[number].vlan = vlan
    return settings


def _ufrag(text: bytes) -> types.Ufrag:
    key = types.Ufrag(length=len(text))
    ctypes.memmove(key.text, text, len(text))
    return key


def _u32(number: int) -> bytes:
    return number.to_bytes(4, sys.byteorder)
