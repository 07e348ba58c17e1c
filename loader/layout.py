"""How maps are laid out, in words that outlive a version: which field is where.

Each relay's maps carry their own description (in the map `about`), so that another version, newer
or older, can bring over what they hold, field by field. A field is known by its name: whoever
changes what a field means gives it another name. No I/O, but for the one layout that is in a file.
"""

import ctypes
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from loader import types
from loader.errors import ShuntError
from loader.maps import shapes
from loader.sizes import Sizes

__all__ = [
    "VOLATILE",
    "Conversion",
    "Field",
    "Layout",
    "MapLayout",
    "Rows",
    "Structure",
    "layout",
    "layout_v2",
    "structure",
]

Rows = npt.NDArray[np.uint8]
"""Entries of a map, a row each."""

VOLATILE = frozenset({"", "lock", "packets", "bytes", "seen", "tick", "jiffies"})
"""Fields that each packet may change, and that mean nothing to a flow's life; a value that is a
bare number is a count."""

_CONSTANTS = ("PORT_BITS", "SLOT_BITS", "UFRAG_LENGTH", "ROUTE_SLOTS", "TICK")
"""What the meaning of fields rests on; as whole numbers, `TICK` in nanoseconds."""

_NUMBERS = (ctypes.c_uint8, ctypes.c_uint16, ctypes.c_uint32, ctypes.c_uint64)


class Field(NamedTuple):
    """A field at *offset*, *size* bytes long. *number*: a little-endian one, which may be of
    another size in another version."""

    name: str
    offset: int
    size: int
    number: bool


@dataclass(frozen=True, slots=True)
class Structure:
    """A key or a value: its *size* in bytes and its innermost fields; `hop.mac` is one's name."""

    size: int
    fields: tuple[Field, ...]


@dataclass(frozen=True, slots=True)
class MapLayout:
    """A map: `type` and `flags` as the kernel has them, *entries* at most."""

    type: int
    flags: int
    entries: int
    key: Structure
    value: Structure


@dataclass(frozen=True, slots=True)
class Layout:
    """All pinned maps by name, and the constants that they rest on."""

    constants: Mapping[str, int]
    maps: Mapping[str, MapLayout]

    def to_json(self) -> bytes:
        """At most `types.LAYOUT_LENGTH` bytes."""
        maps = {
            name: [each.type, each.flags, each.entries, _listed(each.key), _listed(each.value)]
            for name, each in self.maps.items()
        }
        return json.dumps(
            {"constants": dict(self.constants), "maps": maps}, separators=(",", ":")
        ).encode()

    @classmethod
    def from_json(cls, text: bytes) -> "Layout":
        """The reverse. Raises ValueError for what is none."""
        try:
            read = json.loads(text)
            return cls(
                {str(name): int(value) for name, value in read["constants"].items()},
                {
                    str(name): MapLayout(
                        int(type), int(flags), int(entries), _unlisted(key), _unlisted(value)
                    )
                    for name, (type, flags, entries, key, value) in read["maps"].items()
                },
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"no description of a layout: {error!r}") from None


def _listed(structure: Structure) -> list[Any]:
    return [structure.size, [list(field) for field in structure.fields]]


def _unlisted(listed: Any) -> Structure:
    size, fields = listed
    return Structure(
        int(size),
        tuple(Field(str(n), int(offset), int(size), bool(k)) for n, offset, size, k in fields),
    )


def structure(kind: Any) -> Structure:
    """Of a ctypes structure, or of a plain number."""
    return Structure(ctypes.sizeof(kind), tuple(_fields(kind, "", 0)))


def _fields(kind: Any, name: str, offset: int) -> Iterator[Field]:
    size = ctypes.sizeof(kind)
    if issubclass(kind, ctypes.Structure):
        for inner, inner_kind, *_bits in kind._fields_:
            place = offset + getattr(kind, inner).offset
            yield from _fields(inner_kind, f"{name}.{inner}" if name else inner, place)
    elif issubclass(kind, ctypes.Array) and issubclass(kind._type_, ctypes.Structure):
        step = ctypes.sizeof(kind._type_)
        for index in range(kind._length_):
            yield from _fields(kind._type_, f"{name}[{index}]", offset + index * step)
    else:
        yield Field(name, offset, size, kind in _NUMBERS)


_STRUCTURES: dict[str, tuple[Any, Any]] = {
    "routes": (types.Ufrag, types.Route),
    "checks": (types.Transaction, ctypes.c_uint32),
    "settings": (ctypes.c_uint32, types.Settings),
    "about": (ctypes.c_uint32, types.About),
    "interfaces": (ctypes.c_uint32, types.Interface),
    "transceivers": (ctypes.c_uint32, types.Transceiver),
    "flows": (ctypes.c_uint32, types.Bucket),
    "slots_in": (ctypes.c_uint32, types.ToTransceiver),
    "slots_out": (ctypes.c_uint32, types.ToClient),
    "books": (ctypes.c_uint32, types.Book),
    "handshakes": (ctypes.c_uint32, types.Handshake),
    "free_ring": (ctypes.c_uint32, ctypes.c_uint32),
    "free_tail": (ctypes.c_uint32, ctypes.c_uint32),
    "free_head": (ctypes.c_uint32, types.FreeHead),
    "drops": (ctypes.c_uint32, ctypes.c_uint64),
    "traffic": (ctypes.c_uint32, types.Traffic),
}
"""Key and value of each map."""


def layout(sizes: Sizes) -> Layout:
    """This version's, of maps of these sizes."""
    constants = {name: getattr(types, name) for name in _CONSTANTS}
    constants["TICK"] = round(types.TICK * 1e9)
    maps = {
        name: MapLayout(shape.type, shape.flags, shape.entries, *map(structure, _STRUCTURES[name]))
        for name, shape in shapes(sizes).items()
    }
    return Layout(constants, maps)


def layout_v2(entries: Mapping[str, int]) -> Layout:
    """That of the pins below `v2`, which do not describe themselves: as it was, whatever this
    version's is. *entries*: of each map."""
    then = Layout.from_json((Path(__file__).parent / "layout_v2.json").read_bytes())
    maps = {name: replace(each, entries=entries.get(name, 0)) for name, each in then.maps.items()}
    return Layout(then.constants, maps)


@dataclass(frozen=True, slots=True)
class Conversion:
    """From one structure to another: pieces of (offset before, offset now, size)."""

    size: int
    pieces: tuple[tuple[int, int, int], ...]
    lasting: tuple[tuple[int, int], ...]
    """Where those fields are now, and their sizes, that are not `VOLATILE`."""
    cut: tuple[tuple[int, int, str], ...]
    """What was more of numbers that have become shorter: offset, size, the field's name."""

    @property
    def all(self) -> tuple[tuple[int, int], ...]:
        """Where those fields are now that are brought over, and their sizes."""
        return tuple((now, size) for _before, now, size in self.pieces)

    @classmethod
    def between(cls, before: Structure, now: Structure) -> "Conversion":
        """Fields that only *before* has are left behind; those that only *now* has are zero.

        Raises ShuntError if a field of both is of another size and no number.
        """
        had = {field.name: field for field in before.fields}
        pieces, lasting, cut = [], [], []
        for field in now.fields:
            old = had.get(field.name)
            if old is None:
                continue
            size = min(old.size, field.size)
            if old.size != field.size and not (old.number and field.number):
                raise ShuntError(f"the field {field.name} was {old.size} bytes, now {field.size}")
            pieces.append((old.offset, field.offset, size))
            if old.size > size:
                cut.append((old.offset + size, old.size - size, field.name))
            if VOLATILE.isdisjoint(field.name.replace("[", ".").split(".")):
                lasting.append((field.offset, size))
        return cls(now.size, tuple(pieces), tuple(lasting), tuple(cut))

    def convert(self, rows: Rows) -> Rows:
        """Rows as they are now. Raises ShuntError for a number that does not fit any more."""
        for at, size, name in self.cut:
            if rows[:, at : at + size].any():
                raise ShuntError(f"the field {name} holds numbers that are too large by now")
        converted = np.zeros((len(rows), self.size), dtype=np.uint8)
        for before, now, size in self.pieces:
            converted[:, now : now + size] = rows[:, before : before + size]
        return converted
