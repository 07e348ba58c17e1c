"""Compiled programs, kept from one start to the next, so that the same source is compiled once.

An entry's name is a digest of all that its program was made from: our source, the system's headers
that it includes, flags, kernel and machine. Which libraries the compiler is made of is known only
once it has run: they are noted in the entry, and one that has changed since makes it a miss.

Who can write here decides what the relay does with packets. So a folder or an entry that anybody
else owns or may write to is not used, and nothing is repaired: then the program is compiled, as it
is when there is no room, no right to write, or nothing that can be read.
"""

import hashlib
import logging
import os
import platform
import pwd
import re
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec
from msgspec import Struct

from loader.image import Image
from loader.source import compiler_flags, digest, system_headers

__all__ = ["SWITCH", "Cache", "folder", "libraries", "name_of"]

log = logging.getLogger(__name__)

SWITCH = "SHUNT_PROGRAM_CACHE"
"""An environment variable: the folder, or `off`."""

_ENTRIES = 16  # of some 200 kB each
_FORMAT = 1
_DIGEST = 32  # bytes
_NAMED = re.compile(r"[0-9a-f]{64}$|\.[0-9a-f]{64}\.\d+$")
_LARGEST = 8 << 20  # bytes of an entry


class _Entry(Struct, frozen=True, kw_only=True):
    compiler: dict[str, tuple[int, int, int]]
    image: Image


def folder(environment: Mapping[str, str]) -> Path | None:
    """Where compiled programs are kept: where SHUNT_PROGRAM_CACHE says, or systemd's
    CacheDirectory=, or the user's own cache (XDG). None if they are not to be."""
    asked = environment.get(SWITCH)
    if asked is not None:
        return None if asked in ("", "off") else Path(asked)
    if given := environment.get("CACHE_DIRECTORY"):
        return Path(given.split(":")[0])
    if (ours := Path(environment.get("XDG_CACHE_HOME", ""))).is_absolute():
        return ours / "shunt"
    try:
        home = Path(pwd.getpwuid(os.geteuid()).pw_dir)  # with sudo, $HOME may be another user's
    except KeyError:
        return None
    return home / ".cache" / "shunt" if home.is_dir() else None


def name_of(inside: int) -> str:
    """The entry's name for a program for so many inside addresses, on this machine as it is."""
    hashed = hashlib.blake2b(digest_size=_DIGEST)
    machine = platform.uname()
    flags = compiler_flags(Path())
    facts = (_FORMAT, flags, machine.system, machine.release, machine.version, machine.machine)
    hashed.update(digest(inside) + repr(facts).encode())
    for header in system_headers():
        hashed.update(f"\0{header}\0".encode() + header.read_bytes())
    return hashed.hexdigest()


def libraries() -> dict[str, tuple[int, int, int]]:
    """What this process, which has compiled, was made of: files of code, and the list by which the
    linker finds them; each with inode, size and time of its last change."""
    mapped = Path("/proc/self/maps").read_text().splitlines()
    fields = [line.split(maxsplit=5) for line in mapped]
    files = {each[5] for each in fields if len(each) == 6 and "x" in each[1]}
    names = [*sorted(name for name in files if name.startswith("/")), "/etc/ld.so.cache"]
    return {name: found for name in names if (found := _identity(name))}


def _identity(name: str) -> tuple[int, int, int] | None:
    try:
        found = os.stat(name)
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


class Cache:
    """The folder *place*, which need not be there yet."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def find(self, name: str) -> Image | None:
        """What is kept under that name, if it is whole, ours, and of the compiler that is there."""
        try:
            with self._opened() as at:
                entry = _read(at, name)
                os.utime(name, dir_fd=at)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            log.warning("the program is compiled, as what is kept is not used: %s", error)
            return None
        if any(_identity(file) != tuple(was) for file, was in entry.compiler.items()):
            return None
        return entry.image

    def keep(self, name: str, image: Image, compiler: dict[str, tuple[int, int, int]]) -> None:
        """Keep an image, in one step, and of others only the latest used. Raises OSError or
        ValueError, and then it is not kept."""
        data = msgspec.msgpack.encode(_Entry(compiler=compiler, image=image))
        self.place.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            self.place.mkdir(mode=0o700)
        with self._opened() as at:
            fresh = f".{name}.{os.getpid()}"
            with suppress(FileNotFoundError):
                os.unlink(fresh, dir_fd=at)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            try:
                with os.fdopen(os.open(fresh, flags, 0o600, dir_fd=at), "wb") as file:
                    file.write(_digest(data) + data)
                os.rename(fresh, name, src_dir_fd=at, dst_dir_fd=at)
            except OSError:
                with suppress(FileNotFoundError):
                    os.unlink(fresh, dir_fd=at)
                raise
            _leave_latest(at)

    @contextmanager
    def _opened(self) -> Iterator[int]:
        """A descriptor of the folder. Raises FileNotFoundError, and ValueError if it is not ours
        alone."""
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        at = os.open(self.place, flags)
        try:
            _check_ours(at, str(self.place))
            yield at
        finally:
            os.close(at)


def _check_ours(descriptor: int, name: str) -> None:
    found = os.fstat(descriptor)
    if found.st_uid != os.geteuid():
        raise ValueError(f"{name} is another user's")
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ValueError(f"others may write to {name}")


def _read(at: int, name: str) -> _Entry:
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(name, flags, dir_fd=at)
    with os.fdopen(descriptor, "rb") as file:
        _check_ours(descriptor, name)
        data = file.read(_LARGEST)
    if data[:_DIGEST] != _digest(data[_DIGEST:]):
        raise ValueError(f"{name} is damaged")
    try:
        return msgspec.msgpack.decode(data[_DIGEST:], type=_Entry)
    except msgspec.MsgspecError as error:
        raise ValueError(f"{name} is no entry: {error}") from None


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=_DIGEST).digest()


def _leave_latest(at: int) -> None:
    """Of what `keep` has written; what a killed process has left half done goes with age."""
    used = {}
    for entry in os.scandir(at):
        if not _NAMED.match(entry.name):
            continue
        with suppress(FileNotFoundError):  # somebody else's turn to tidy up
            used[entry.name] = entry.stat(follow_symlinks=False).st_mtime_ns
    for name in sorted(used, key=lambda each: used[each], reverse=True)[_ENTRIES:]:
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=at)
