"""Brings over what maps of another layout hold, while their program relays on.

    begin ── catch_up ── (the interfaces get the new program) ── finish
       └────────┴──────────────────────┴──▶ as it was

Until the interfaces change hands the old program goes on in the old maps, so that what it has
changed is brought over again: all of it at first, then only what is different. From `catch_up` on
no slot is opened: a client that is new waits for its next check; flows have nothing to wait for.
"""

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt

from loader import bpf
from loader.flow_index import insert, rebuild
from loader.layout import Conversion, Layout, Rows
from loader.maps import Maps
from loader.types import State

__all__ = ["REBUILT", "Migration", "rows_of"]

REBUILT = frozenset({"about", "flows", "free_ring", "free_tail", "free_head"})
"""Maps that are not copied: the notebook and the index are written anew, and the slots that may be
opened are the agent's to say."""


_ENOTSUPP = 524  # of the kernel's own, in no header of ours

_AGENTS = frozenset({"about"}) | {"transceivers", "settings", "interfaces"}
"""Maps in which a packet changes nothing that lasts."""


class _Array:
    """An array's values, a row for each entry, and for each CPU if it is per CPU."""

    def __init__(self, opened: bpf.Map, *, writable: bool) -> None:
        self._map = opened
        self._mapped: Rows | None = None
        if (memory := _memory(opened, writable=writable)) is not None:
            whole = memory[: opened.info.max_entries * opened.stride]
            self._mapped = whole.reshape(-1, opened.stride)[:, : opened.info.value_size]

    def read(self) -> Rows:
        """A copy."""
        if self._mapped is not None:
            return self._mapped.copy()
        return rows_of(self._map)

    def write(
        self, indexes: npt.NDArray[np.intp], rows: Rows, pieces: Iterable[tuple[int, int]]
    ) -> None:
        """Of these rows only these pieces (offset, size)."""
        whole = _padded(self._map) if self._mapped is None else self._mapped
        for at, size in pieces:
            whole[indexes, at : at + size] = rows[:, at : at + size]
        if self._mapped is None:
            each = len(whole) // self._map.info.max_entries  # rows of an entry
            entries = np.unique(indexes // each)
            values = whole.reshape(-1, each * whole.shape[1])[entries]
            self._map.update_many(entries.astype("<u4").tobytes(), values.tobytes())


def rows_of(array: bpf.Map) -> Rows:
    """A copy of an array's values; if it is per CPU, one row for each CPU's."""
    return _padded(array)[:, : array.info.value_size]


def _padded(array: bpf.Map) -> Rows:
    return np.frombuffer(bytearray(array.values()), np.uint8).reshape(-1, array.width)


def _memory(array: bpf.Map, *, writable: bool) -> Rows | None:
    if not array.info.flags & bpf.MMAPABLE:
        return None
    try:
        return np.frombuffer(array.memory(writable=writable), dtype=np.uint8)
    except OSError as error:
        if error.errno != _ENOTSUPP:
            raise
        return None  # values with a spin lock in them are not mapped, whatever the flag


class _ArrayCopy:
    """One array, from the old maps to the new."""

    def __init__(self, old: bpf.Map, new: bpf.Map, conversion: Conversion) -> None:
        self._old, self._new = _Array(old, writable=False), _Array(new, writable=True)
        self._conversion = conversion
        self._limit = len(self._new.read())  # the plan has seen to it that nothing is beyond
        self._seen: Rows = np.zeros((0, 0), dtype=np.uint8)

    def all(self) -> None:
        """Every row that is not zero; the new map's are, where nothing is written."""
        self._seen = self._old.read()[: self._limit]
        rows = np.flatnonzero(self._seen.any(axis=1))
        self._new.write(rows, self._conversion.convert(self._seen[rows]), self._conversion.all)

    def changed(self) -> npt.NDArray[np.intp]:
        """What is different from the last time; which rows that were."""
        now = self._old.read()[: self._limit]
        rows = np.flatnonzero((now != self._seen).any(axis=1))
        self._new.write(rows, self._conversion.convert(now[rows]), self._conversion.all)
        self._seen = now
        return rows

    def late(self) -> npt.NDArray[np.intp]:
        """What the old program did last, while the new one was at work already: of rows that the
        new one has left alone in all that lasts. Which those were."""
        now = self._old.read()[: self._limit]
        rows = np.flatnonzero((now != self._seen).any(axis=1))
        if not len(rows):
            return rows
        fresh, theirs = self._new.read()[rows], self._conversion.convert(self._seen[rows])
        ours = self._conversion.convert(now[rows])
        differs, untouched = (np.zeros(len(rows), dtype=bool) for _ in range(2))
        untouched[:] = True
        for at, size in self._conversion.lasting:
            part = slice(at, at + size)
            untouched &= (fresh[:, part] == theirs[:, part]).all(axis=1)
            differs |= (ours[:, part] != theirs[:, part]).any(axis=1)
        mine = differs & untouched
        self._new.write(rows[mine], ours[mine], self._conversion.lasting)
        self._seen = now
        late: npt.NDArray[np.intp] = rows[mine]
        return late


class _HashCopy:
    """One hash, from the old maps to the new."""

    def __init__(self, old: bpf.Map, new: bpf.Map, key: Conversion, value: Conversion) -> None:
        self._old, self._new = old, new
        self._key, self._value = key, value
        self._seen: dict[bytes, bytes] = {}

    def all(self) -> None:
        self.changed()

    def changed(self) -> npt.NDArray[np.intp]:
        """Entries that are other than the last time, or new. None is taken out: the old program
        takes none out, and no agent is at work."""
        now = dict(self._old.items())
        keys = [key for key, value in now.items() if self._seen.get(key) != value]
        if keys:
            values = self._value.convert(_rows(now[key] for key in keys))
            self._new.update_many(self._key.convert(_rows(keys)).tobytes(), values.tobytes())
        self._seen = now
        return np.arange(0)

    late = changed


def _rows(values: Iterable[bytes]) -> Rows:
    whole = list(values)
    return np.frombuffer(b"".join(whole), dtype=np.uint8).reshape(len(whole), -1)


class Migration:
    """From the maps in the folder *old*, laid out as *before*, to those in *new*, as *now*: the
    maps named, and the index of flows if it is among them. A context manager, which leaves the
    old maps as they were if an error comes before `finish`."""

    def __init__(
        self, old: Path, new: Path, before: Layout, now: Layout, *, names: frozenset[str]
    ) -> None:
        self._stack = ExitStack()
        self._old, self._before, self._now = old, before, now
        self._names = names
        self._new = new
        self._stopped_at: bytes | None = None

    def __enter__(self) -> "Migration":
        with self._stack:
            self._maps = self._stack.enter_context(Maps(folder=self._new, writable=True))
            copied = sorted(self._names - REBUILT)
            self._copies = {name: self._copy(name) for name in copied}
            self._head, self._tail = (
                self._open(self._old, name) for name in ("free_head", "free_tail")
            )
            self._stack = self._stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if error is not None:
                self._undo()
        finally:
            self._copies.clear()
            self._stack.close()

    def _open(self, folder: Path, name: str) -> bpf.Map:
        return self._stack.enter_context(bpf.Map.open(folder / name))

    def _copy(self, name: str) -> "_ArrayCopy | _HashCopy":
        old, new = self._open(self._old, name), self._open(self._new, name)
        before, now = self._before.maps[name], self._now.maps[name]
        value = Conversion.between(before.value, now.value)
        if old.info.type in bpf.ARRAYS:
            return _ArrayCopy(old, new, value)
        return _HashCopy(old, new, Conversion.between(before.key, now.key), value)

    def begin(self) -> None:
        """Bring over everything, while slots are opened as ever."""
        for copy in self._copies.values():
            copy.all()
        if "flows" in self._names:
            rebuild(self._maps)

    def catch_up(self) -> None:
        """Let no slot be opened any more, and bring over what has changed since."""
        if not self._names <= _AGENTS:
            self._stopped_at = self._tail.lookup(bytes(4))
            self._stop_opening()
            bpf.wait_for_programs()
            self._stop_opening()  # those that had seen the tail as it was may have gone beyond it
        self._again(lambda copy: copy.changed())

    def _stop_opening(self) -> None:
        fields = self._before.maps["free_head"].value.fields
        (place,) = (field for field in fields if field.name == "head")
        head = self._head.lookup(bytes(4))
        assert head is not None
        self._tail.update(bytes(4), head[place.offset : place.offset + place.size])

    def finish(self) -> None:
        """The interfaces have the new program: bring over what the old one did last."""
        self._stopped_at = None  # there is no way back any more
        bpf.wait_for_programs()
        self._again(lambda copy: copy.late())

    def _undo(self) -> None:
        """The old program stays: let it open slots again."""
        if self._stopped_at is not None:
            self._tail.update(bytes(4), self._stopped_at)

    def _again(self, bring: "Callable[[_ArrayCopy | _HashCopy], npt.NDArray[np.intp]]") -> None:
        slots = np.arange(0)
        for name, copy in self._copies.items():
            rows = bring(copy)
            if name == "slots_in":
                slots = rows
        if "flows" in self._names and len(slots):
            states = self._maps.slots["to_transceiver"]["state"][slots]
            insert(self._maps, slots[states == State.ESTABLISHED])
