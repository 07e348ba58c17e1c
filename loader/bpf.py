"""bpf(2), as much of it as the loader needs, without BCC: maps, pins, test runs.

The agent and the inspector work on pinned objects alone, so neither carries a compiler.
"""

import ctypes
import mmap
import os
import platform
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

__all__ = [
    "Map",
    "MapInfo",
    "ProgramInfo",
    "TestRun",
    "map_info",
    "pin",
    "pinned",
    "possible_cpus",
    "program_by_id",
    "program_info",
    "test_run",
]

_LOOKUP, _UPDATE, _DELETE, _NEXT_KEY = 1, 2, 3, 4
_OBJ_PIN, _OBJ_GET, _TEST_RUN, _PROGRAM_BY_ID, _INFO_BY_FD, _POP = 6, 7, 10, 13, 15, 21

NOEXIST, EXIST = 1, 2

_PERCPU = {5, 6}  # BPF_MAP_TYPE_PERCPU_HASH, …_PERCPU_ARRAY
_NUMBERS = {"x86_64": 321, "aarch64": 280}

_libc = ctypes.CDLL(None, use_errno=True)


def _bpf(command: int, attributes: "ctypes.Array[ctypes.c_char]") -> int:
    result: int = _libc.syscall(
        _NUMBERS[platform.machine()], command, attributes, ctypes.c_uint(len(attributes))
    )
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def _attributes(layout: str, *values: int) -> "ctypes.Array[ctypes.c_char]":
    packed = struct.pack("=" + layout, *values)
    return ctypes.create_string_buffer(packed.ljust(128, b"\0"), 128)


def _address(buffer: Any) -> int:
    return ctypes.addressof(buffer)


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


@dataclass(frozen=True, slots=True)
class ProgramInfo:
    """The kernel's word on a program; *tag* is a hash of its instructions, in hexadecimal."""

    id: int
    tag: str
    name: str


def program_info(descriptor: int) -> ProgramInfo:
    """What the kernel says of the program behind *descriptor*."""
    info = _info(descriptor)
    _type, id, tag = struct.unpack_from("=II8s", info)
    return ProgramInfo(id, tag.hex(), info[64:80].rstrip(b"\0").decode())


def program_by_id(id: int) -> int:
    """A descriptor of a loaded program; the caller closes it. Raises FileNotFoundError."""
    return _bpf(_PROGRAM_BY_ID, _attributes("II", id, 0))


def possible_cpus() -> int:
    """How many values a per-CPU map has for each key."""
    text = Path("/sys/devices/system/cpu/possible").read_text().strip()
    return int(text.replace(",", "-").split("-")[-1]) + 1


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


class Map:
    """A BPF map by its descriptor. Keys and values are bytes of exactly the map's sizes."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.info = map_info(descriptor)
        self._percpu = self.info.type in _PERCPU
        stride = (self.info.value_size + 7) // 8 * 8
        self._room = stride * possible_cpus() if self._percpu else self.info.value_size
        self._value = ctypes.create_string_buffer(self._room)

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

    def update(self, key: bytes, value: bytes, *, flags: int = 0) -> None:
        """Set a value. Raises FileExistsError, FileNotFoundError, OSError(E2BIG) for a full map."""
        if len(value) != self._room:
            raise ValueError(f"value of {len(value)} bytes, not {self._room}")
        self._element(_UPDATE, key, ctypes.create_string_buffer(value, len(value)), flags)

    def push(self, value: bytes) -> None:
        """Add to a queue."""
        self._element(_UPDATE, b"", ctypes.create_string_buffer(value, len(value)))

    def pop(self) -> bytes | None:
        """Take the oldest from a queue."""
        try:
            self._element(_POP, b"", self._value)
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

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """Entries of a hash, none twice. The caller may delete what it is given. Entries that come
        or go meanwhile may be missed; ends in bounded time however busy the map is."""
        seen: set[bytes] = set()
        key = self._next_key(None)
        # The kernel starts from the beginning when the key to go on from is gone.
        for _ in range(2 * self.info.max_entries):
            if key is None:
                return
            following = self._next_key(key)
            if key not in seen:
                seen.add(key)
                value = self.lookup(key)
                if value is not None:
                    yield key, value
            key = following

    def _next_key(self, key: bytes | None) -> bytes | None:
        before = None if key is None else ctypes.create_string_buffer(key, len(key))
        following = ctypes.create_string_buffer(self.info.key_size)
        address = _address(before) if before is not None else 0
        try:
            _bpf(_NEXT_KEY, _attributes("IIQQ", self.descriptor, 0, address, _address(following)))
        except FileNotFoundError:
            return None
        return following.raw

    def memory(self, *, writable: bool) -> mmap.mmap:
        """The values of an mmapable array, as the kernel itself sees them."""
        length = -(-self.info.value_size * self.info.max_entries // mmap.PAGESIZE) * mmap.PAGESIZE
        access = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        return mmap.mmap(self.descriptor, length, mmap.MAP_SHARED, access)
