"""A typed view of the pinned maps: what the agent and the inspector read and the agent writes.

Holds no state of its own and takes no decisions: those are `routes` and `flows`.
"""

import ctypes
import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from loader import bpf, types
from loader.errors import ShuntError
from loader.reasons import REASONS

__all__ = ["DEFAULT_PINS", "Counters", "Interface", "Maps", "Rate", "ufrag_key", "versioned"]

DEFAULT_PINS = Path("/sys/fs/bpf/shunt")

_HASH, _ARRAY, _PERCPU_ARRAY, _QUEUE = 1, 2, 6, 22
_MMAPABLE = 1 << 10

_SHAPES = {
    # name: (type, key size, value size, entries, flags)
    "settings": (_ARRAY, 4, ctypes.sizeof(types.Settings), 1, 0),
    "interfaces": (_ARRAY, 4, ctypes.sizeof(types.Interface), types.INTERFACES, 0),
    "routes": (_HASH, ctypes.sizeof(types.Ufrag), ctypes.sizeof(types.Route), types.ROUTES, 0),
    "transceivers": (_ARRAY, 4, ctypes.sizeof(types.Transceiver), types.TRANSCEIVERS, 0),
    "flows4": (_HASH, ctypes.sizeof(types.Client4), 4, types.PORTS, 0),
    "slots": (_ARRAY, 4, ctypes.sizeof(types.Slot), types.PORTS, _MMAPABLE),
    "handshakes": (_ARRAY, 4, ctypes.sizeof(types.Handshake), types.PORTS, 0),
    "checks": (_HASH, ctypes.sizeof(types.Transaction), 4, types.PORTS * types.CHECKS, 0),
    "free_slots": (_QUEUE, 0, 4, types.PORTS, 0),
    "drops": (_PERCPU_ARRAY, 4, 8, max(r.number for r in REASONS) + 1, 0),
    "traffic": (_PERCPU_ARRAY, 4, ctypes.sizeof(types.Traffic), types.DIRECTIONS, 0),
}


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
    """An interface of the relay; *inside*: transceivers' packets may come in by it."""

    name: str
    ifindex: int
    inside: bool
    mode: types.Mode


def _u32(number: int) -> bytes:
    return number.to_bytes(4, "little")


def ufrag_key(ufrag: str) -> bytes:
    """The key of a route. Raises ValueError if it cannot be one."""
    text = ufrag.encode("ascii")
    if not 4 <= len(text) <= types.UFRAG_LENGTH:
        raise ValueError(f"a ufrag has 4 to {types.UFRAG_LENGTH} characters")
    key = types.Ufrag(length=len(text))
    ctypes.memmove(key.text, text, len(text))
    return bytes(key)


class Maps:
    """The pinned maps, opened and checked.

    Raises ShuntError if there are none, or if they have another shape than this version's.
    """

    def __init__(self, pins: Path = DEFAULT_PINS, *, writable: bool = False) -> None:
        folder = versioned(pins)
        self._maps: dict[str, bpf.Map] = {}
        try:
            for name in _SHAPES:
                self._maps[name] = bpf.Map.open(folder / name)
        except FileNotFoundError:
            self.close()
            raise ShuntError(
                f"no relay is loaded: nothing is pinned at {folder}",
                "Start one with `shunt agent run`, or `shunt lab up`.",
            ) from None
        except PermissionError:
            self.close()
            raise ShuntError("the relay's maps are root's to read", "Use sudo.") from None
        for name, shape in _SHAPES.items():
            found = self._maps[name].info
            if shape != (
                found.type,
                found.key_size,
                found.value_size,
                found.max_entries,
                found.flags & ~0x80,
            ):
                self.close()
                raise ShuntError(
                    f"the map {folder / name} has a shape that this version does not know",
                    "Unload the relay it belongs to: `shunt agent unload`.",
                )
        self._memory = self._maps["slots"].memory(writable=writable)
        self.slots: npt.NDArray[Any] = np.frombuffer(
            self._memory, dtype=np.dtype(types.Slot), count=types.PORTS
        )
        """The flow table, live, by port: fields as in `types.Slot`."""

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
        """Change the settings."""
        self._maps["settings"].update(_u32(0), bytes(settings))

    def transceiver(self, index: int) -> types.Transceiver:
        """An entry, in use or not (port 0)."""
        return types.Transceiver.from_buffer_copy(self._value("transceivers", index))

    def transceivers(self) -> Iterator[tuple[int, types.Transceiver]]:
        """The entries in use."""
        for index in range(types.TRANSCEIVERS):
            entry = self.transceiver(index)
            if entry.port:
                yield index, entry

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

    def add_route(self, ufrag: str, *, id: int, transceiver: int) -> None:
        """Make a route; when this returns, packets find it. Raises FileExistsError, and
        ShuntError if the map is full."""
        route = types.Route(id=id, transceiver=transceiver)
        try:
            self._maps["routes"].update(ufrag_key(ufrag), bytes(route), flags=bpf.NOEXIST)
        except OSError as error:
            if error.errno != errno.E2BIG:
                raise
            raise ShuntError("the relay's route map is full", "Add another relay.") from None

    def remove_route(self, ufrag: str) -> bool:
        """Whether there was one."""
        return self._maps["routes"].delete(ufrag_key(ufrag))

    # Slots.

    def free(self, port: int) -> None:
        """Let the port be used again."""
        self._maps["free_slots"].push(_u32(port))

    def take_free(self) -> int | None:
        """Take the port that has been free for longest, as the program does."""
        value = self._maps["free_slots"].pop()
        return None if value is None else int.from_bytes(value, "little")

    def flows4(self) -> Iterator[tuple[types.Client4, int]]:
        """Established IPv4 flows: client, port."""
        for key, value in self._maps["flows4"].items():
            yield types.Client4.from_buffer_copy(key), int.from_bytes(value, "little")

    def forget_client(self, client: types.Client4, *, port: int) -> None:
        """Remove the client's established flow if it is still that port's."""
        key = bytes(client)
        if self._maps["flows4"].lookup(key) == _u32(port):
            self._maps["flows4"].delete(key)

    def forget_checks(self, port: int) -> None:
        """Remove a slot's checks under way."""
        handshake = types.Handshake.from_buffer_copy(self._value("handshakes", port))
        for check in handshake.checks:
            key = bytes(check)
            if self._maps["checks"].lookup(key) == _u32(port):
                self._maps["checks"].delete(key)

    # Counters.

    def counters(self) -> Counters:
        """Totals of all CPUs."""
        return Counters(
            to_transceiver=self._rate(types.Direction.TO_TRANSCEIVER),
            to_client=self._rate(types.Direction.TO_CLIENT),
            passed=self._rate(types.Direction.PASSED),
            dropped={
                reason.name: int(self._per_cpu("drops", reason.number).sum()) for reason in REASONS
            },
        )

    def _rate(self, direction: types.Direction) -> Rate:
        packets, octets = self._per_cpu("traffic", direction).reshape(-1, 2).sum(axis=0)
        return Rate(int(packets), int(octets))

    def _per_cpu(self, name: str, index: int) -> npt.NDArray[np.uint64]:
        return np.frombuffer(self._value(name, index), dtype=np.uint64)

    def _value(self, name: str, index: int) -> bytes:
        value = self._maps[name].lookup(_u32(index))
        if value is None:
            raise OSError(errno.ENOENT, f"{name}[{index}]", os.fspath(name))
        return value
