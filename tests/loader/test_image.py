"""A compiled program that is loaded without a compiler is the one that was compiled."""

import logging
import os
from pathlib import Path

import pytest
from msgspec.structs import replace

from loader import bpf, cache, datapath
from loader.cache import SWITCH, Cache
from loader.datapath import make_room
from loader.errors import ShuntError
from loader.image import Image, ProgramImage, references
from loader.maps import Maps, versioned
from loader.pinned_set import PARTS, PROGRAM, maps_of, remove_pins
from tests.loader.conftest import binding_request, frame, settings
from tests.loader.versions import Version

NO_COMPILER = {"loader/compile.py": "raise SystemExit('there is no compiler')\n"}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own."""
    path = tmp_path / "cache"
    monkeypatch.setenv(SWITCH, str(path))
    return path


@pytest.fixture
def kept(pins: Path, suites_cache: Path) -> Image:
    """What was kept when the suite's program was compiled, in this process or before it."""
    found = Cache(suites_cache).find(cache.name_of(1))
    assert found is not None
    return found


def programs(folder: Path) -> list[bpf.ProgramInfo]:
    """What the kernel says of the entry and of all parts in their order."""
    entry = datapath.pinned_program(folder)
    found = [entry]
    with bpf.Map.open(folder / f"{PARTS}{entry.id}") as parts:
        for index in range(parts.info.max_entries):
            id = parts.lookup(index.to_bytes(4, "little"))
            assert id is not None
            descriptor = bpf.program_by_id(int.from_bytes(id, "little"))
            found.append(bpf.program_info(descriptor))
            os.close(descriptor)
    return found


def facts(folder: Path) -> list[tuple[object, ...]]:
    programs_facts = [
        (each.name, each.tag, each.xlated, each.jited, each.verified) for each in programs(folder)
    ]
    map_facts = []
    for name in maps_of(folder):
        with bpf.Map.open(folder / name) as opened:
            info, types = opened.info, bpf.btf_types(opened.descriptor)
            map_facts.append(
                (
                    bpf.map_name(opened.descriptor),
                    *(info.type, info.key_size, info.value_size, info.max_entries, info.flags),
                    *(types.key, types.value, types.btf != 0),
                )
            )
    return [*programs_facts, *map_facts]


def test_the_kernel_sees_no_difference(
    kept: Image, own_pins: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SWITCH, "off")
    datapath.load(own_pins)
    compiled = facts(versioned(own_pins))
    remove_pins(own_pins)

    make_room(own_pins)
    kept.pin(versioned(own_pins))

    assert facts(versioned(own_pins)) == compiled
    assert not place.exists(), "off means that nothing is kept either"


def test_it_walks_as_the_compiled_one(
    kept: Image, suites_cache: Path, own_pins: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    datapath.load(own_pins)
    assert f"taken from {suites_cache}" in caplog.text
    with Maps(own_pins, writable=True) as maps:
        maps.configure(settings())
        program = bpf.pinned(versioned(own_pins) / PROGRAM)
        before = maps.counters().dropped
        bpf.test_run(program, frame(binding_request("nobodys+ufrag")))
        os.close(program)
        after = maps.counters().dropped

    assert after["no_route"] == before["no_route"] + 1, "by way of a part, a hash and a counter"


def test_a_start_with_what_is_kept_needs_no_compiler(
    kept: Image, own_pins: Path, tmp_path: Path
) -> None:
    version = Version(tmp_path / "tree", NO_COMPILER)

    assert version.load(own_pins) == "loaded"


def test_without_the_cache_it_does(
    own_pins: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SWITCH, "off")
    version = Version(tmp_path / "tree", NO_COMPILER)

    assert "there is no compiler" in version.load(own_pins)


def test_pinned_maps_are_taken_with_all_they_hold(kept: Image, own_pins: Path) -> None:
    folder = versioned(own_pins)
    make_room(own_pins)
    kept.pin(folder)
    before = datapath.pinned_program(folder)
    with bpf.Map.open(folder / "settings") as opened:
        value = os.urandom(opened.info.value_size)
        opened.update(bytes(4), value)

    kept.pin(folder)

    with bpf.Map.open(folder / "settings") as opened:
        assert opened.lookup(bytes(4)) == value
    assert datapath.pinned_program(folder).id != before.id


def test_a_pinned_map_of_another_shape_is_not_taken(kept: Image, own_pins: Path) -> None:
    folder = versioned(own_pins)
    folder.mkdir(parents=True)
    descriptor = bpf.create_map(
        "free_tail", bpf.MapInfo(2, 0, 4, 8, 1, bpf.MMAPABLE), 0, bpf.BtfTypes(0, 0, 0)
    )
    bpf.pin(descriptor, folder / "free_tail")
    os.close(descriptor)

    with pytest.raises(ShuntError, match="free_tail is not one that this version can use"):
        kept.pin(folder)
    assert not (folder / PROGRAM).exists()


def test_what_the_kernel_refuses_is_compiled_afresh(
    kept: Image, place: Path, own_pins: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spoilt = replace(kept, entry=replace(kept.entry, code=bytes(8), maps={}))
    Cache(place).keep(cache.name_of(1), spoilt, {})

    program = datapath.load(own_pins)

    assert "the kept one cannot be loaded" in caplog.text
    assert program.xlated > 1000
    mended = Cache(place).find(cache.name_of(1))
    assert mended is not None
    assert mended.entry.code == kept.entry.code


def test_where_nothing_can_be_kept_the_program_is_loaded_all_the_same(
    own_pins: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    file = tmp_path / "file"
    file.touch()
    monkeypatch.setenv(SWITCH, str(file / "cache"))

    datapath.load(own_pins)

    assert "what was compiled is not kept for the next start" in caplog.text


def test_nothing_stays_open(kept: Image, own_pins: Path) -> None:
    def open_descriptors() -> set[str]:
        return set(os.listdir("/proc/self/fd"))

    make_room(own_pins)
    before = open_descriptors()
    kept.pin(versioned(own_pins))
    assert open_descriptors() == before


def test_places_of_maps_are_found_and_filled_again() -> None:
    load_map = bytes.fromhex("1811000007000000 0000000000000000")  # r1 = map by descriptor 7
    load_number = bytes.fromhex("1802000007000000 1811000007000000")  # r2 = a number like that
    end = bytes.fromhex("9500000000000000")
    code = load_number + load_map + end

    places = references(code, {7: "routes"})
    linked = ProgramImage(name="x", code=code, maps=places).linked({"routes": 9})

    assert places == {2: "routes"}
    assert linked == load_number + load_map.replace(b"\x07", b"\x09") + end
