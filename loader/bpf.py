"""bpf(2), as much of it as the loader needs, without BCC: maps, pins, test runs.

The agent and the inspector work on pinned objects alone, so neither carries a compiler.
"""

import ctypes
import errno
import mmap
import os
import platform
import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

__all__ = [
    "MACHINES",
    "BtfTypes",
    "Map",
    "MapInfo",
    "ProgramInfo",
    "TestRun",
    "btf_data",
    "btf_types",
    "create_map",
    "live_run",
    "load_btf",
    "load_xdp",
    "map_info",
    "map_name",
    "pin",
    "pinned",
    "possible_cpus",
    "program_by_id",
    "program_info",
    "test_run",
    "wait_for_programs",
]

_LOOKUP, _UPDATE, _DELETE = 1, 2, 3
_PROGRAM_LOAD, _BTF_LOAD = 5, 18
_OBJ_PIN, _OBJ_GET, _TEST_RUN, _PROGRAM_BY_ID, _INFO_BY_FD, _TAKE = 6, 7, 10, 13, 15, 21
_LOOKUP_BATCH, _UPDATE_BATCH, _DELETE_BATCH = 24, 26, 27
_MAP_CREATE, _ARRAY, _ARRAY_OF_MAPS = 0, 2, 12

NOEXIST, EXIST = 1, 2
_XDP = 6  # BPF_PROG_TYPE_XDP
_NAME = 15  # characters of a name that the kernel keeps
READ_ONLY_PROGRAM = 1 << 7  # a flag that BCC sets for maps that no program writes
_LIVE_FRAMES = 1 << 1

_BATCH = 4096  # entries of a hash, asked for at a time

_PERCPU = {5, 6}  # BPF_MAP_TYPE_PERCPU_HASH, …_PERCPU_ARRAY
ARRAYS = {2, 6}
MMAPABLE = 1 << 10
_NUMBERS = {"x86_64": 321, "aarch64": 280}
MACHINES = frozenset(_NUMBERS)
"""Those whose bpf(2) this knows, by `uname -m`."""

_libc = ctypes.CDLL(None, use_errno=True)


def _bpf(command: int, attributes: "ctypes.Array[ctypes.c_char]") -> int:
    result: int = _libc.syscall(
        _NUMBERS[platform.machine()], command, attributes, ctypes.c_uint(len(attributes))
    )
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def _attributes(layout: str, *values: int | bytes) -> "ctypes.Array[ctypes.c_char]":
    packed = struct.pack("=" + layout, *values)
    return ctypes.create_string_buffer(packed.ljust(128, b"\0"), 128)


def _address(buffer: Any) -> int:
    return ctypes.addressof(buffer)


def _pieces(whole: bytes, size: int, count: int) -> Iterator[bytes]:
    return (whole[start : start + size] for start in range(0, size * count, size))


def pin(descriptor: int, path: Path) -> None:
    """Pin a map or program. Raises FileExistsError if the name is taken."""
    name = ctypes.create_string_buffer(os.fsencode(path))
    _bpf(_OBJ_PIN, _attributes("QI", _address(name), descriptor))


def pinned(path: Path) -> int:
    """A descriptor of what is pinned at *path*; the caller closes it."""
    name = ctypes.create_string_buffer(os.fsencode(path))
    return _bpf(_OBJ_GET, _attributes("QI", _address(name), 0))


def _info(descriptor: int) -> bytes:
    info = ctypes.create_string_buffer(256)
    _bpf(_INFO_BY_FD, _attributes("IIQ", descriptor, len(info), _address(info)))
    return info.raw


@dataclass(frozen=True, slots=True)
class MapInfo:
    """The kernel's word on a map (`struct bpf_map_info`); sizes in bytes."""

    type: int
    id: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int


def map_info(descriptor: int) -> MapInfo:
    """What the kernel says of the map behind *descriptor*."""
    return MapInfo(*struct.unpack_from("=6I", _info(descriptor)))


def map_name(descriptor: int) -> str:
    """A map's name, as far as the kernel keeps it: 15 characters."""
    return _info(descriptor)[24:40].rstrip(b"\0").decode()


class BtfTypes(NamedTuple):
    """Which types of which BTF a map's entries are of; all 0 if the map has none."""

    btf: int
    key: int
    value: int


def btf_types(descriptor: int) -> BtfTypes:
    """What the kernel knows of the types of a map's entries."""
    return BtfTypes(*struct.unpack_from("=3I", _info(descriptor), 64))


def btf_data(descriptor: int) -> bytes:
    """The BTF behind a descriptor, as it was loaded."""
    info = ctypes.create_string_buffer(64)
    _bpf(_INFO_BY_FD, _attributes("IIQ", descriptor, len(info), _address(info)))
    (size,) = struct.unpack_from("=I", info.raw, 8)
    data = ctypes.create_string_buffer(size)
    struct.pack_into("=QI", info, 0, _address(data), size)
    _bpf(_INFO_BY_FD, _attributes("IIQ", descriptor, len(info), _address(info)))
    return data.raw


def load_btf(data: bytes) -> int:
    """A descriptor of the loaded BTF; the caller closes it. Raises OSError."""
    buffer = ctypes.create_string_buffer(data, len(data))
    return _bpf(_BTF_LOAD, _attributes("QQIII", _address(buffer), 0, len(data), 0, 0))


def create_map(name: str, info: MapInfo, btf: int, types: BtfTypes) -> int:
    """A descriptor of a new map like *info*, whose id does not count; the caller closes it. *btf*
    is a descriptor of the BTF that *types* are of, if they are of any. Raises OSError."""
    return _bpf(
        _MAP_CREATE,
        _attributes(
            "7I16s4I",
            *(info.type, info.key_size, info.value_size, info.max_entries, info.flags, 0, 0),
            name.encode()[:_NAME],
            *(0, btf if any(types) else 0, types.key, types.value),
        ),
    )


def load_xdp(name: str, code: bytes, *, license: str) -> int:
    """A descriptor of an XDP program of these instructions; the caller closes it. Raises OSError,
    also if the verifier refuses it."""
    instructions = ctypes.create_string_buffer(code, len(code))
    licensed = ctypes.create_string_buffer(license.encode())
    return _bpf(
        _PROGRAM_LOAD,
        _attributes(
            "IIQQIIQII16s",
            *(_XDP, len(code) // 8, _address(instructions), _address(licensed), 0, 0, 0, 0, 0),
            name.encode()[:_NAME],
        ),
    )


@dataclass(frozen=True, slots=True)
class ProgramInfo:
    """The kernel's word on a program; *tag* is a hash of its instructions, in hexadecimal.

    *jited*: bytes of machine code, *xlated*: of BPF code; *verified*: instructions that the
    verifier walked through (it gives up at a million)."""

    id: int
    tag: str
    name: str
    jited: int
    xlated: int
    verified: int


def program_info(descriptor: int) -> ProgramInfo:
    """What the kernel says of the program behind *descriptor*."""
    info = _info(descriptor)
    _type, id, tag, jited, xlated = struct.unpack_from("=II8sII", info)
    (verified,) = struct.unpack_from("=I", info, 216)
    name = info[64:80].rstrip(b"\0").decode()
    return ProgramInfo(id, tag.hex(), name, jited, xlated, verified)


def program_by_id(id: int) -> int:
    """A descriptor of a loaded program; the caller closes it. Raises FileNotFoundError."""
    return _bpf(_PROGRAM_BY_ID, _attributes("II", id, 0))


def possible_cpus() -> int:
    """How many values a per-CPU map has for each key."""
    text = Path("/sys/devices/system/cpu/possible").read_text().strip()
    return int(text.replace(",", "-").split("-")[-1]) + 1


def wait_for_programs() -> None:
    """Wait until every run of a program that has begun by now has ended: milliseconds.

    The kernel does so for whoever changes a map of maps, lest he frees what is still in use.
    """
    inner = _bpf(_MAP_CREATE, _attributes("6I", _ARRAY, 4, 4, 1, 0, 0))
    try:
        with Map(_bpf(_MAP_CREATE, _attributes("6I", _ARRAY_OF_MAPS, 4, 4, 1, 0, inner))) as outer:
            outer.update(bytes(4), inner.to_bytes(4, "little"))
    finally:
        os.close(inner)


@dataclass(frozen=True, slots=True)
class TestRun:
    """What a program made of a packet: its verdict, the frame, nanoseconds a run."""

    __test__ = False  # no test class, in spite of its name

    verdict: int
    frame: bytes
    nanoseconds: int


def test_run(
    descriptor: int, frame: bytes, *, repeat: int = 1, context: bytes = b"", room: int = 256
) -> TestRun:
    """Run an XDP program on *frame* (`BPF_PROG_TEST_RUN`).

    *context* is a `struct xdp_md`, to choose the interface that the frame comes in by.
    """
    data_in = ctypes.create_string_buffer(frame, len(frame))
    data_out = ctypes.create_string_buffer(len(frame) + room)
    context_in = ctypes.create_string_buffer(context, max(len(context), 1))
    attributes = _attributes(
        "IIIIQQIIIIQQ",
        descriptor,
        0,
        len(frame),
        len(data_out),
        _address(data_in),
        _address(data_out),
        repeat,
        0,
        len(context),
        0,
        _address(context_in) if context else 0,
        0,
    )
    _bpf(_TEST_RUN, attributes)
    _, verdict, _, length = struct.unpack_from("=4I", attributes.raw)
    (nanoseconds,) = struct.unpack_from("=I", attributes.raw, 36)
    return TestRun(verdict, data_out.raw[:length], nanoseconds)


test_run.__test__ = False  # type: ignore[attr-defined]  # pytest would collect it


def live_run(descriptor: int, frame: bytes, *, repeat: int) -> int:
    """Let an XDP program send *repeat* packets (`BPF_F_TEST_XDP_LIVE_FRAMES`): what it makes of
    copies of *frame* goes where its verdict says, in the calling thread's namespace. Returns
    nanoseconds a packet, with all that this CPU does of its way on, and without the set-up."""
    data_in = ctypes.create_string_buffer(frame, len(frame))
    attributes = _attributes(
        "IIIIQQIIIIQQII",
        *(descriptor, 0, len(frame), 0, _address(data_in), 0, repeat, 0, 0, 0, 0, 0),
        *(_LIVE_FRAMES, 0),
    )
    _bpf(_TEST_RUN, attributes)
    nanoseconds: int = struct.unpack_from("=I", attributes.raw, 36)[0]
    return nanoseconds


class Map:
    """A BPF map by its descriptor. Keys and values are bytes of exactly the map's sizes."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.info = map_info(descriptor)
        self._percpu = self.info.type in _PERCPU
        self.stride = (self.info.value_size + 7) // 8 * 8
        """Bytes from one value to the next in mapped memory, and from one CPU's to the next's."""
        self._room = self.stride * possible_cpus() if self._percpu else self.info.value_size
        self._value = ctypes.create_string_buffer(self._room)
        self.width = self.stride if self._percpu else self.info.value_size
        """Bytes of a value, or of one CPU's, as `lookup` and `values` give it."""

    @classmethod
    def open(cls, path: Path) -> "Map":
        """The map pinned at *path*. Raises OSError."""
        return cls(pinned(path))

    def close(self) -> None:
        os.close(self.descriptor)

    def __enter__(self) -> "Map":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _element(self, command: int, key: bytes, value: Any, flags: int = 0) -> None:
        if len(key) != self.info.key_size:
            raise ValueError(f"key of {len(key)} bytes, not {self.info.key_size}")
        key_buffer = ctypes.create_string_buffer(key, max(len(key), 1))
        value_address = _address(value) if value is not None else 0
        key_address = _address(key_buffer) if key else 0
        _bpf(
            command,
            _attributes("IIQQQ", self.descriptor, 0, key_address, value_address, flags),
        )

    def lookup(self, key: bytes) -> bytes | None:
        """The value, or None. A per-CPU map gives the values of all CPUs, each 8-byte aligned."""
        try:
            self._element(_LOOKUP, key, self._value)
        except FileNotFoundError:
            return None
        return self._value.raw

    def values(self) -> bytes:
        """All values of an array, one behind the other, each as `lookup` gives it."""
        count = self.info.max_entries
        batch = ctypes.create_string_buffer(self.info.key_size)
        keys = ctypes.create_string_buffer(self.info.key_size * count)
        values = ctypes.create_string_buffer(self._room * count)
        addresses = (_address(batch), _address(keys), _address(values))
        with suppress(FileNotFoundError):  # so the kernel says that there are no more
            _bpf(_LOOKUP_BATCH, _attributes("4QIIQQ", 0, *addresses, count, self.descriptor, 0, 0))
        return values.raw

    def update(self, key: bytes, value: bytes, *, flags: int = 0) -> None:
        """Set a value. Raises FileExistsError, FileNotFoundError, OSError(E2BIG) for a full map."""
        if len(value) != self._room:
            raise ValueError(f"value of {len(value)} bytes, not {self._room}")
        self._element(_UPDATE, key, ctypes.create_string_buffer(value, len(value)), flags)

    def update_many(self, keys: bytes, values: bytes) -> None:
        """Set values, key by key, each behind the one before; of all CPUs if it is per CPU. Raises
        OSError, and then some may be set."""
        count = len(keys) // self.info.key_size
        if len(values) != count * self._room or len(keys) != count * self.info.key_size:
            raise ValueError(f"{len(keys)} bytes of keys and {len(values)} of values do not fit")
        if not count:
            return
        buffers = (ctypes.create_string_buffer(each, len(each)) for each in (keys, values))
        key_buffer, value_buffer = buffers
        places = _address(key_buffer), _address(value_buffer)
        batch = _attributes("QQQQIIQQ", 0, 0, *places, count, self.descriptor, 0, 0)
        _bpf(_UPDATE_BATCH, batch)

    def take(self, key: bytes) -> bytes | None:
        """Delete an entry of a hash; the value that it had, or None."""
        try:
            self._element(_TAKE, key, self._value)
        except FileNotFoundError:
            return None
        return self._value.raw

    def delete(self, key: bytes) -> bool:
        """Whether there was an entry to delete."""
        try:
            self._element(_DELETE, key, None)
        except FileNotFoundError:
            return False
        return True

    def delete_all(self, keys: bytes) -> int:
        """Delete those of a hash's entries whose keys stand here, one behind the other, and are
        there; how many."""
        whole = ctypes.create_string_buffer(keys, max(len(keys), 1))
        size, place, deleted = self.info.key_size, 0, 0
        while place < len(keys) // size:
            left = len(keys) // size - place
            batch = _attributes(
                "QQQQIIQQ", 0, 0, _address(whole) + place * size, 0, left, self.descriptor, 0, 0
            )
            try:
                _bpf(_DELETE_BATCH, batch)
                return deleted + left
            except FileNotFoundError:  # all before this one are
                (count,) = struct.unpack_from("=I", batch.raw, 32)
                deleted += count
                place += count + 1
        return deleted

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """Entries of a hash, none twice. The caller may delete what it is given. Entries that come
        or go meanwhile may be missed; ends in bounded time however busy the map is."""
        key_size, value_size = self.info.key_size, self.info.value_size
        for keys, values in self.batches():
            count = len(keys) // key_size
            yield from zip(
                _pieces(keys, key_size, count), _pieces(values, value_size, count), strict=True
            )

    def batches(self) -> Iterator[tuple[bytes, bytes]]:
        """The same, many at a time: keys, and values, one behind the other."""
        room = min(self.info.max_entries, _BATCH)
        position = ctypes.create_string_buffer(4)  # among the hash's buckets
        begun, more = False, True
        while more:
            keys = ctypes.create_string_buffer(room * self.info.key_size)
            values = ctypes.create_string_buffer(room * self.info.value_size)
            start = _address(position) if begun else 0
            batch = _attributes(
                "QQQQIIQQ",
                start,
                _address(position),
                _address(keys),
                _address(values),
                room,
                self.descriptor,
                0,
                0,
            )
            try:
                _bpf(_LOOKUP_BATCH, batch)
            except FileNotFoundError:  # these are the last
                more = False
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                room *= 2  # not even one bucket fitted
                continue
            begun = True
            (count,) = struct.unpack_from("=I", batch.raw, 32)
            yield keys.raw[: count * self.info.key_size], values.raw[: count * self.info.value_size]

    def memory(self, *, writable: bool) -> mmap.mmap:
        """The values of an mmapable array, as the kernel itself sees them: each begins at a
        multiple of 8 bytes."""
        length = -(-self.stride * self.info.max_entries // mmap.PAGESIZE) * mmap.PAGESIZE
        access = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        return mmap.mmap(self.descriptor, length, mmap.MAP_SHARED, access)
