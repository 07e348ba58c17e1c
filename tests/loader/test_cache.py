"""The cache of compiled programs: what is kept is used only if it is whole, ours and up to date."""

import os
import pwd
from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec.structs import replace

from loader import cache, source
from loader.cache import Cache
from loader.image import Image, MapImage, ProgramImage

NAME = "0" * 64
NOBODY = pwd.getpwnam("nobody").pw_uid

IMAGE = Image(
    license="GPL",
    btf=b"\x9f\xeb",
    maps=[
        MapImage(
            name="parts",
            type=3,
            key_size=4,
            value_size=4,
            max_entries=1,
            flags=0,
            key_btf=0,
            value_btf=0,
            pinned=False,
        )
    ],
    calls="parts",
    entry=ProgramImage(name="shunt", code=bytes(8), maps={}),
    parts={0: ProgramImage(name="part", code=bytes(24), maps={1: "parts"})},
)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "shunt"


@pytest.fixture
def compiler(tmp_path: Path) -> Path:
    """A file that stands for one of the compiler's."""
    path = tmp_path / "libcompiler.so"
    path.write_bytes(b"code")
    return path


@pytest.fixture
def kept(place: Path, compiler: Path) -> Cache:
    """A cache that has IMAGE under NAME."""
    made = Cache(place)
    found = compiler.stat()
    identity = found.st_ino, found.st_size, found.st_mtime_ns
    made.keep(NAME, IMAGE, {str(compiler): identity})
    return made


def test_what_is_kept_is_found(kept: Cache) -> None:
    assert kept.find(NAME) == IMAGE


def test_nobody_else_may_look_into_it(kept: Cache, place: Path) -> None:
    assert place.stat().st_mode & 0o777 == 0o700
    assert (place / NAME).stat().st_mode & 0o777 == 0o600


def test_what_is_not_there_is_not_found(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert Cache(place).find(NAME) is None
    assert not caplog.messages


def _truncate(place: Path) -> None:
    os.truncate(place / NAME, (place / NAME).stat().st_size - 1)


def _empty(place: Path) -> None:
    os.truncate(place / NAME, 0)


def _flip(place: Path) -> None:
    data = bytearray((place / NAME).read_bytes())
    data[-10] ^= 1
    (place / NAME).write_bytes(data)


def _no_entry(place: Path) -> None:
    (place / NAME).write_bytes(cache._digest(b"\x80") + b"\x80")


def _entry_of_another(place: Path) -> None:
    os.chown(place / NAME, NOBODY, 0)


def _entry_for_the_group(place: Path) -> None:
    (place / NAME).chmod(0o620)


def _link(place: Path) -> None:
    (place / NAME).rename(place / "elsewhere")
    (place / NAME).symlink_to("elsewhere")


def _pipe(place: Path) -> None:
    (place / NAME).unlink()
    os.mkfifo(place / NAME, 0o600)


def _folder(place: Path) -> None:
    (place / NAME).unlink()
    (place / NAME).mkdir(0o700)


def _place_of_another(place: Path) -> None:
    os.chown(place, NOBODY, 0)


def _place_for_everybody(place: Path) -> None:
    place.chmod(0o777)


def _linked_place(place: Path) -> None:
    place.rename(place.with_name("elsewhere"))
    place.symlink_to("elsewhere")


@pytest.mark.parametrize(
    "spoil",
    [
        _truncate,
        _empty,
        _flip,
        _no_entry,
        _entry_of_another,
        _entry_for_the_group,
        _link,
        _pipe,
        _folder,
        _place_of_another,
        _place_for_everybody,
        _linked_place,
    ],
)
def test_what_is_not_whole_or_not_ours_alone_is_not_used(
    kept: Cache, place: Path, spoil: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    spoil(place)

    assert kept.find(NAME) is None
    assert "the program is compiled, as what is kept is not used" in caplog.text


@pytest.mark.parametrize("spoil", [_place_of_another, _place_for_everybody])
def test_nothing_is_kept_where_others_may_write(
    kept: Cache, place: Path, spoil: Callable[[Path], None]
) -> None:
    spoil(place)

    with pytest.raises(ValueError):
        kept.keep("1" * 64, IMAGE, {})
    assert [each.name for each in place.iterdir()] == [NAME]


def test_another_compiler_is_a_miss(kept: Cache, compiler: Path) -> None:
    compiler.write_bytes(b"other code")

    assert kept.find(NAME) is None


def test_a_compiler_that_is_gone_is_a_miss(kept: Cache, compiler: Path) -> None:
    compiler.unlink()

    assert kept.find(NAME) is None


def test_a_newer_image_takes_the_place_of_the_older(kept: Cache) -> None:
    kept.keep(NAME, replace(IMAGE, license="Dual BSD/GPL"), {})

    found = kept.find(NAME)
    assert found is not None
    assert found.license == "Dual BSD/GPL"


def test_the_sixteen_that_were_used_last_stay(kept: Cache, place: Path) -> None:
    strangers = place / "a-file-of-somebody's"
    strangers.touch()
    left = place / f".{'f' * 64}.1234"  # by a process that was killed
    left.touch()
    for old, path in enumerate((strangers, left, place / NAME)):
        os.utime(path, (old, old))
    names = [f"{number:064x}" for number in range(1, 16)]
    for number, name in enumerate(names):
        kept.keep(name, IMAGE, {})
        os.utime(place / name, (100 + number, 100 + number))
    kept.find(NAME)  # which makes it the youngest

    kept.keep("e" * 64, IMAGE, {})

    there = {each.name for each in place.iterdir()}
    assert there == {strangers.name, NAME, *names[1:], "e" * 64}


def test_the_name_follows_from_all_that_is_compiled(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    header = tmp_path / "if_ether.h"
    header.write_text("#define ETH_ALEN 6\n")
    monkeypatch.setattr(cache, "system_headers", lambda: [header])
    first = cache.name_of(1)
    assert cache.name_of(1) == first
    assert cache.name_of(2) != first

    header.write_text("#define ETH_ALEN 7\n")
    assert cache.name_of(1) != first


def test_the_systems_headers_are_found_by_way_of_others() -> None:
    names = {path.name for path in source.system_headers()}

    assert {"if_ether.h", "ip.h", "ipv6.h", "udp.h"} <= names, "the program's own"
    assert {"types.h", "posix_types.h", "little_endian.h", "swab.h"} <= names, "what those include"


def test_the_compilers_libraries_are_those_that_are_loaded() -> None:
    found = cache.libraries()

    assert "/etc/ld.so.cache" in found
    assert any("/libc.so" in name or "/libc-" in name for name in found)
    for name, identity in found.items():
        there = os.stat(name)
        assert identity == (there.st_ino, there.st_size, there.st_mtime_ns)


@pytest.mark.parametrize(
    ("environment", "where"),
    [
        ({}, Path(pwd.getpwuid(os.geteuid()).pw_dir) / ".cache/shunt"),
        ({"HOME": "/home/somebody"}, Path(pwd.getpwuid(os.geteuid()).pw_dir) / ".cache/shunt"),
        ({"XDG_CACHE_HOME": "/var/tmp/mine"}, Path("/var/tmp/mine/shunt")),
        ({"XDG_CACHE_HOME": "not/absolute"}, Path(pwd.getpwuid(0).pw_dir) / ".cache/shunt"),
        ({"CACHE_DIRECTORY": "/var/cache/shunt:/var/cache/x"}, Path("/var/cache/shunt")),
        ({"SHUNT_PROGRAM_CACHE": "/srv/cache", "CACHE_DIRECTORY": "/x"}, Path("/srv/cache")),
        ({"SHUNT_PROGRAM_CACHE": "off", "CACHE_DIRECTORY": "/x"}, None),
        ({"SHUNT_PROGRAM_CACHE": ""}, None),
    ],
)
def test_where_it_is(environment: dict[str, str], where: Path | None) -> None:
    assert cache.folder(environment) == where
