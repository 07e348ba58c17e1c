"""A typed view of the pinned maps: what the agent and the inspector read and the agent writes.

Holds no state of its own and takes no decisions: those are `routes` and `flows`.
"""

import ctypes
import errno
import os
import secrets
import struct
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from loader import bpf, types
from loader.errors import ShuntError
from loader.reasons import REASONS
from loader.sizes import Sizes, sizes

__all__ = [
    "DEFAULT_PINS",
    "Counters",
    "Interface",
    "Maps",
    "Rate",
    "Slots",
    "check_shapes",
    "shapes",
    "ufrag_key",
    "versioned",
]

DEFAULT_PINS = Path("/sys/fs/bpf/shunt")

_HASH, _ARRAY, _PERCPU_ARRAY, _LRU_HASH = 1, 2, 6, 9
_MMAPABLE = 1 << 10
_ROUTE_SIZE, _UFRAG_SIZE = ctypes.sizeof(types.Route), ctypes.sizeof(types.Ufrag)


class Shape(NamedTuple):
    """What the kernel says of a map, as far as it is this version's to say. Sizes in bytes."""

    type: int
    key: int
    value: int
    entries: int
    flags: int


def shapes(sizes: Sizes) -> dict[str, Shape]:
    """Every pinned map by name."""

    def array(value: Any, entries: int, flags: int = 0) -> Shape:
        return Shape(_ARRAY, 4, ctypes.sizeof(value), entries, flags)

    def per_cpu(value: Any, entries: int) -> Shape:
        return Shape(_PERCPU_ARRAY, 4, ctypes.sizeof(value), entries, 0)

    word = ctypes.c_uint32
    return {
        "settings": array(types.Settings, 1),
        "about": array(types.About, 1),
        "interfaces": array(types.Interface, types.INTERFACES),
        "routes": Shape(_HASH, _UFRAG_SIZE, _ROUTE_SIZE, sizes.routes, 0),
        "transceivers": array(types.Transceiver, types.TRANSCEIVERS, _MMAPABLE),
        "flows": array(types.Bucket, sizes.buckets, _MMAPABLE),
        "slots_in": array(types.ToTransceiver, sizes.slots, _MMAPABLE),
        "slots_out": array(types.ToClient, sizes.slots, _MMAPABLE),
        "books": array(types.Book, sizes.slots, _MMAPABLE),
        "handshakes": array(types.Handshake, sizes.slots, _MMAPABLE),
        "checks": Shape(_LRU_HASH, ctypes.sizeof(types.Transaction), 4, sizes.checks, 0),
        "free_ring": array(word, sizes.ring, _MMAPABLE),
        "free_tail": array(word, 1, _MMAPABLE),
        "free_head": array(types.FreeHead, 1),
        "drops": per_cpu(ctypes.c_uint64, types.REASON_ROOM),
        "traffic": per_cpu(types.Traffic, types.DIRECTIONS),
    }


def check_shapes(pins: Path, sizes: Sizes) -> None:
    """Raises ShuntError if a map is pinned below *pins* that a program for these sizes would
    misread: BCC takes a pinned map without a look. None at all are fine."""
    folder = versioned(pins)
    found: dict[str, bpf.MapInfo] = {}
    for name in shapes(sizes):
        with suppress(FileNotFoundError), bpf.Map.open(folder / name) as opened:
            found[name] = opened.info
    if "slots_in" in found and found["slots_in"].max_entries != sizes.slots:
        raise ShuntError(
            f"the pinned relay has {found['slots_in'].max_entries} slots, "
            f"the configuration asks for {sizes.slots}",
            "`shunt agent unload` first; calls end with that.",
        )
    for name, info in found.items():
        _check_shape(folder / name, info, shapes(sizes)[name])


def _check_shape(path: Path, info: bpf.MapInfo, shape: Shape) -> None:
    flags = info.flags & ~bpf.READ_ONLY_PROGRAM
    if shape != (info.type, info.key_size, info.value_size, info.max_entries, flags):
        raise _unknown_shape(path)


def versioned(pins: Path) -> Path:
    """The folder that holds the pins of this version of the maps' shape."""
    return pins / types.PIN_VERSION


@dataclass(frozen=True, slots=True)
class Rate:
    """A count of packets and bytes."""

    packets: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Counters:
    """Totals since the maps were made: by direction, and dropped packets by reason."""

    to_transceiver: Rate
    to_client: Rate
    passed: Rate
    dropped: dict[str, int]


@dataclass(frozen=True, slots=True)
class Interface:
    """An interface of the relay.

    *ifindex* is the interface that carries the program: of a VLAN interface, its parent's, and
    *vlan* the VLAN's number; else 0. *inside*: transceivers' packets may come in by it. *mtu*:
    bytes of an IP packet, 0 if not known.
    """

    name: str
    ifindex: int
    inside: bool
    mode: types.Mode
    vlan: int = 0
    mtu: int = 0


def _u32(number: int) -> bytes:
    return number.to_bytes(4, "little")


def ufrag_key(ufrag: str) -> bytes:
    """The key of a route. Raises ValueError if it cannot be one."""
    text = ufrag.encode("ascii")
    if not 4 <= len(text) <= types.UFRAG_LENGTH:
        raise ValueError(f"a ufrag has 4 to {types.UFRAG_LENGTH} characters")
    return _KEY.pack(len(text), text)


_KEY = struct.Struct(f"=I{types.UFRAG_LENGTH + 4}s")
"""`types.Ufrag`, which takes ten times as long to fill."""
_UFRAG = np.dtype([("length", "<u4"), ("text", f"S{types.UFRAG_LENGTH + 4}")])
_NAMES = tuple(shapes(sizes(1)))
_WORD = np.dtype({"names": ["word"], "formats": ["<u4"], "offsets": [0], "itemsize": 8})
"""An array's elements begin 8 bytes apart, whatever their size."""


def _unknown_shape(path: Path) -> ShuntError:
    return ShuntError(
        f"the map {path} has a shape that this version does not know",
        "Unload the relay it belongs to: `shunt agent unload`.",
    )


class Slots:
    """The flow table's three arrays by the slot's index: `to_transceiver`, `to_client` and `book`,
    whose fields are those of `types.ToTransceiver`, `types.ToClient` and `types.Book`."""

    def __init__(self, **arrays: npt.NDArray[Any]) -> None:
        self._arrays = arrays

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        return self._arrays[name]

    def __len__(self) -> int:
        return len(self._arrays["to_client"])

    def at(self, slot: int) -> dict[str, Any]:
        """One slot's entry of each array, as records to be read and written."""
        return {name: array[slot] for name, array in self._arrays.items()}

    def clear(self, first: int, end: int) -> None:
        """Make slots *first* up to *end* as if they had never been used."""
        for array in self._arrays.values():
            array[first:end] = 0

    def tobytes(self) -> bytes:
        """All there is, as it is now."""
        return b"".join(array.tobytes() for array in self._arrays.values())


class Maps:
    """The pinned maps, opened and checked.

    Their sizes are learned from the map `slots_in`. Raises ShuntError if there are none, or if they
    have another shape than this version's.
    """

    def __init__(
        self, pins: Path = DEFAULT_PINS, *, writable: bool = False, folder: Path | None = None
    ) -> None:
        """Those below *pins*, or in another *folder*."""
        folder = folder or versioned(pins)
        self._maps: dict[str, bpf.Map] = {}
        try:
            self._open(folder)
        except BaseException:
            self.close()
            raise
        self.slots = Slots(
            to_transceiver=self._mapped(
                "slots_in", np.dtype(types.ToTransceiver), writable=writable
            ),
            to_client=self._mapped("slots_out", np.dtype(types.ToClient), writable=writable),
            book=self._mapped("books", np.dtype(types.Book), writable=writable),
        )
        """The flow table, live, by index."""
        self._transceivers = self._mapped(
            "transceivers", np.dtype(types.Transceiver), writable=writable
        )
        self._free_ring = self._mapped("free_ring", _WORD, writable=writable)["word"]
        self._free_tail = self._mapped("free_tail", _WORD, writable=writable)["word"]

    def _open(self, folder: Path) -> None:
        slots = 0
        try:
            for name in _NAMES:
                self._maps[name] = bpf.Map.open(folder / name)
            slots = self._maps["slots_in"].info.max_entries
        except FileNotFoundError:
            raise ShuntError(
                f"no relay is loaded: nothing is pinned at {folder}",
                "Start one with `shunt agent run`, or `shunt lab up`.",
            ) from None
        except PermissionError:
            raise ShuntError("the relay's maps are root's to read", "Use sudo.") from None
        try:
            self.sizes = sizes(slots // types.PORTS)
            """How many entries the maps have."""
        except ShuntError:
            raise _unknown_shape(folder / "slots_in") from None
        for name, shape in shapes(self.sizes).items():
            _check_shape(folder / name, self._maps[name].info, shape)

    def _mapped(self, name: str, kind: "np.dtype[Any]", *, writable: bool) -> npt.NDArray[Any]:
        opened = self._maps[name]
        memory = opened.memory(writable=writable)
        return np.frombuffer(memory, dtype=kind, count=opened.info.max_entries)

    def close(self) -> None:
        for opened in self._maps.values():
            opened.close()
        self._maps.clear()

    def __enter__(self) -> "Maps":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # Settings and transceivers.

    def settings(self) -> types.Settings:
        """What the relay was last configured with; all zero if it never was."""
        return types.Settings.from_buffer_copy(self._value("settings", 0))

    def configure(self, settings: types.Settings) -> None:
        """Change the settings. A seed of zero stands for the one that is there, or, the first
        time, for one drawn at random: with another, the program finds no flow again."""
        before, after = self.settings(), types.Settings.from_buffer_copy(settings)
        if not any(after.seed):
            after.seed = before.seed
        while not any(after.seed):
            after.seed[:] = [secrets.randbits(64), secrets.randbits(64)]
        after.tick, after.jiffies = before.tick, before.jiffies  # the program's, which may run
        self._maps["settings"].update(_u32(0), bytes(after))

    def about(self) -> types.About:
        """The agent's notebook; all zero if no agent has written into it yet."""
        return types.About.from_buffer_copy(self._value("about", 0))

    def set_about(self, about: types.About) -> None:
        """Write the notebook. Only the agent does, so that nothing comes between."""
        self._maps["about"].update(_u32(0), bytes(about))

    def transceiver(self, index: int) -> types.Transceiver:
        """An entry, in use or not (port 0)."""
        return types.Transceiver.from_buffer_copy(self._transceivers[index].tobytes())

    def transceivers(self) -> Iterator[tuple[int, types.Transceiver]]:
        """The entries in use."""
        for index in np.flatnonzero(self._transceivers["port"]):
            yield int(index), self.transceiver(int(index))

    def set_transceiver(self, index: int, entry: types.Transceiver) -> None:
        """Write an entry."""
        self._maps["transceivers"].update(_u32(index), bytes(entry))

    # Interfaces.

    def interfaces(self) -> list[Interface]:
        """Where the program is attached, as the agent last saw it."""
        entries = (
            types.Interface.from_buffer_copy(self._value("interfaces", index))
            for index in range(types.INTERFACES)
        )
        return [
            Interface(
                name=bytes(entry.name).rstrip(b"\0").decode(),
                ifindex=entry.ifindex,
                inside=bool(entry.inside),
                mode=types.Mode(entry.mode),
                vlan=entry.vlan,
                mtu=entry.mtu,
            )
            for entry in entries
            if entry.ifindex
        ]

    def set_interfaces(self, interfaces: list[Interface]) -> None:
        """Write them all, at most `types.INTERFACES`."""
        for index in range(types.INTERFACES):
            entry = types.Interface()
            if index < len(interfaces):
                interface = interfaces[index]
                entry.ifindex = interface.ifindex
                entry.inside = interface.inside
                entry.mode = interface.mode
                entry.vlan = interface.vlan
                entry.mtu = min(interface.mtu, 0xFFFF)
                name = interface.name.encode()
                ctypes.memmove(entry.name, name, len(name))
            self._maps["interfaces"].update(_u32(index), bytes(entry))

    # Routes.

    def routes(self) -> Iterator[tuple[str, types.Route]]:
        """All routes."""
        for key, value in self._maps["routes"].items():
            ufrag = types.Ufrag.from_buffer_copy(key)
            yield (
                bytes(ufrag.text[: ufrag.length]).decode("ascii", "replace"),
                (types.Route.from_buffer_copy(value)),
            )

    def route(self, ufrag: str) -> types.Route | None:
        """A route as it is now, or None if there is none."""
        value = self._maps["routes"].lookup(ufrag_key(ufrag))
        return None if value is None else types.Route.from_buffer_copy(value)

    def all_routes(self) -> tuple[list[str], npt.NDArray[Any]]:
        """All routes, at once: their ufrags, and their entries side by side, with the fields of
        `types.Route`."""
        batches = list(self._maps["routes"].batches())
        keys = np.frombuffer(b"".join(keys for keys, _ in batches), dtype=_UFRAG)
        entries = np.frombuffer(b"".join(values for _, values in batches), dtype=types.Route)
        return [text.decode("ascii", "replace") for text in keys["text"].tolist()], entries

    def add_route(self, ufrag: str, *, id: int, transceiver: int, checks: bool = True) -> None:
        """Make a route; when this returns, packets find it. *checks*: whether the transceiver
        makes checks of its own. Raises FileExistsError, and ShuntError if the map is full."""
        flags = 0 if checks else types.ROUTE_NO_CHECKS
        route = types.Route(id=id, transceiver=transceiver, flags=flags)
        try:
            self._maps["routes"].update(ufrag_key(ufrag), bytes(route), flags=bpf.NOEXIST)
        except OSError as error:
            if error.errno != errno.E2BIG:
                raise
            raise ShuntError("the relay's route map is full", "Add another relay.") from None

    def remove_route(self, ufrag: str) -> types.Route | None:
        """The route as it was last, or None if there was none."""
        value = self._maps["routes"].take(ufrag_key(ufrag))
        return None if value is None else types.Route.from_buffer_copy(value)

    def remove_routes(self, ufrags: Iterable[str]) -> int:
        """Remove many routes at once; how many there were."""
        return self._maps["routes"].delete_all(b"".join(map(ufrag_key, ufrags)))

    # The index of established flows.

    def buckets(self) -> npt.NDArray[Any]:
        """A copy of the index, whose fields are those of `types.Bucket`."""
        return np.frombuffer(bytearray(self._maps["flows"].values()), np.dtype(types.Bucket))

    def set_buckets(self, indexes: npt.NDArray[np.intp], buckets: npt.NDArray[Any]) -> None:
        """Write these buckets. What the program puts into one of them meanwhile is lost."""
        self._maps["flows"].update_many(indexes.astype("<u4").tobytes(), buckets.tobytes())

    # Slots.

    def free_slots(self, indexes: npt.ArrayLike) -> None:
        """Let these slots, whose states are FREE, be opened again, in this order."""
        indexes = np.asarray(indexes, dtype=np.uint32)
        tail = int(self._free_tail[0])
        self._free_ring[(tail + np.arange(len(indexes))) % self.sizes.ring] = indexes
        self._free_tail[0] = (tail + len(indexes)) % 2**32

    def forget_free(self) -> None:
        """Leave no slot to be opened; what the program has taken, it has opened when this
        returns."""
        self._free_tail[0] = self._free_head()
        bpf.wait_for_programs()
        # Those that had seen the tail as it was before may have gone beyond it.
        self._free_tail[0] = self._free_head()

    def free(self, slot: int) -> None:
        """Let one slot be opened again."""
        self.free_slots([slot])

    def take_free(self) -> int | None:
        """Take the slot that has been free for longest, as the program does; not while it runs."""
        head = self._free_head()
        if head == int(self._free_tail[0]):
            return None
        slot = int(self._free_ring[head % self.sizes.ring])
        after = types.FreeHead(head=(head + 1) % 2**32)
        self._maps["free_head"].update(_u32(0), bytes(after))
        return slot

    def _free_head(self) -> int:
        return int(types.FreeHead.from_buffer_copy(self._value("free_head", 0)).head)

    # Counters.

    def counters(self) -> Counters:
        """Totals of all CPUs."""
        rates = [Rate(*(int(n) for n in pair)) for pair in self._totals("traffic", 2)]
        drops = self._totals("drops", 1)
        return Counters(
            to_transceiver=rates[types.Direction.TO_TRANSCEIVER],
            to_client=rates[types.Direction.TO_CLIENT],
            passed=rates[types.Direction.PASSED],
            dropped={reason.name: int(drops[reason.number, 0]) for reason in REASONS},
        )

    def _totals(self, name: str, words: int) -> npt.NDArray[np.uint64]:
        """Of a per-CPU map whose values are so many words: the sums, by index."""
        opened = self._maps[name]
        values = np.frombuffer(opened.values(), dtype=np.uint64)
        totals: npt.NDArray[np.uint64] = values.reshape(opened.info.max_entries, -1, words).sum(
            axis=1
        )
        return totals

    def _value(self, name: str, index: int) -> bytes:
        value = self._maps[name].lookup(_u32(index))
        if value is None:
            raise OSError(errno.ENOENT, f"{name}[{index}]", os.fspath(name))
        return value
