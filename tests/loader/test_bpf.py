"""bpf(2) on maps and programs of the kernel's own."""

import ctypes
import errno
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from loader import bpf
from loader.maps import versioned
from loader.pinned_set import PROGRAM
from tests.loader.conftest import frame

_HASH, _ARRAY, _PERCPU_ARRAY = 1, 2, 6
_MAP_CREATE, _MMAPABLE = 0, 1 << 10
_DROP, _PASS = 1, 2


def create(type: int, *, key: int, value: int, entries: int, flags: int = 0) -> int:
    """A map of our own; a descriptor."""
    packed = struct.pack("=5I", type, key, value, entries, flags).ljust(128, b"\0")
    return bpf._bpf(_MAP_CREATE, ctypes.create_string_buffer(packed, 128))


@pytest.fixture
def words() -> Iterator[bpf.Map]:
    """A hash of 4-byte words, 64 of them at most."""
    with bpf.Map(create(_HASH, key=4, value=4, entries=64)) as made:
        yield made


def word(number: int) -> bytes:
    return number.to_bytes(4, "little")


def test_a_value_is_found_changed_and_deleted(words: bpf.Map) -> None:
    assert words.lookup(word(1)) is None
    words.update(word(1), word(10))
    assert words.lookup(word(1)) == word(10)
    words.update(word(1), word(11))
    assert words.lookup(word(1)) == word(11)
    assert words.delete(word(1))
    assert not words.delete(word(1))
    assert words.lookup(word(1)) is None


def test_flags_tell_new_from_old(words: bpf.Map) -> None:
    with pytest.raises(FileNotFoundError):
        words.update(word(1), word(10), flags=bpf.EXIST)
    words.update(word(1), word(10), flags=bpf.NOEXIST)
    with pytest.raises(FileExistsError):
        words.update(word(1), word(11), flags=bpf.NOEXIST)
    assert words.lookup(word(1)) == word(10)


def test_a_full_map_says_so(words: bpf.Map) -> None:
    for number in range(64):
        words.update(word(number), word(0))

    with pytest.raises(OSError) as error:
        words.update(word(64), word(0))

    assert error.value.errno == errno.E2BIG


@pytest.mark.parametrize(("key", "value"), [(3, 4), (5, 4), (4, 3), (4, 5), (0, 4)])
def test_wrong_sizes_never_reach_the_kernel(words: bpf.Map, key: int, value: int) -> None:
    with pytest.raises(ValueError, match="bytes, not 4"):
        words.update(bytes(key), bytes(value))


def test_all_items_come_once(words: bpf.Map) -> None:
    for number in range(64):
        words.update(word(number), word(number + 100))

    items = list(words.items())

    assert len(items) == 64
    assert dict(items) == {word(n): word(n + 100) for n in range(64)}


def test_an_empty_map_has_no_items(words: bpf.Map) -> None:
    assert list(words.items()) == []


def test_deleting_while_iterating_visits_every_item_once(words: bpf.Map) -> None:
    """The kernel starts from the beginning when the key it should go on from is gone."""
    for number in range(64):
        words.update(word(number), word(0))

    seen = []
    for position, (key, _value) in enumerate(words.items()):
        seen.append(key)
        if position % 2:
            words.delete(key)

    assert sorted(seen) == sorted(word(number) for number in range(64))


def test_iterating_ends_though_the_map_never_rests(words: bpf.Map) -> None:
    for number in range(32):
        words.update(word(number), word(0))

    seen = []
    for fresh, (key, _value) in enumerate(words.items(), start=1000):
        seen.append(key)
        words.delete(key)
        words.update(word(fresh), word(0))

    assert len(seen) == len(set(seen)) <= 2 * 64


def test_more_entries_than_one_question_brings_come_once() -> None:
    with bpf.Map(create(_HASH, key=4, value=8, entries=20_000)) as many:
        for number in range(20_000):
            many.update(word(number), word(number) + word(1))

        assert sorted(many.items()) == sorted(
            (word(number), word(number) + word(1)) for number in range(20_000)
        )


def test_a_bucket_larger_than_the_question_is_asked_for_again(
    words: bpf.Map, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bpf, "_BATCH", 1)
    for number in range(64):
        words.update(word(number), word(0))

    assert sorted(key for key, _value in words.items()) == sorted(map(word, range(64)))


def test_what_is_taken_is_gone(words: bpf.Map) -> None:
    words.update(word(1), word(10))

    assert words.take(word(1)) == word(10)
    assert words.take(word(1)) is None
    assert words.lookup(word(1)) is None


def test_waiting_for_programs_comes_to_an_end_and_leaks_no_descriptor() -> None:
    before = len(os.listdir("/proc/self/fd"))

    for _ in range(3):
        bpf.wait_for_programs()

    assert len(os.listdir("/proc/self/fd")) == before


def test_a_per_cpu_value_has_a_place_for_each_cpu() -> None:
    cpus = bpf.possible_cpus()
    with bpf.Map(create(_PERCPU_ARRAY, key=4, value=4, entries=1)) as counters:
        value = b"".join(struct.pack("<II", cpu + 1, 0) for cpu in range(cpus))
        counters.update(word(0), value)

        assert counters.lookup(word(0)) == value
        with pytest.raises(ValueError, match="bytes"):
            counters.update(word(0), word(1))


def test_there_is_at_least_every_cpu_we_may_run_on() -> None:
    assert bpf.possible_cpus() > max(os.sched_getaffinity(0))


def test_memory_is_the_map_itself() -> None:
    with bpf.Map(create(_ARRAY, key=4, value=8, entries=600, flags=_MMAPABLE)) as array:
        memory = array.memory(writable=True)
        memory[599 * 8 : 600 * 8] = b"12345678"
        assert array.lookup(word(599)) == b"12345678"
        array.update(word(0), b"abcdefgh")
        assert memory[:8] == b"abcdefgh"
        assert len(memory) % 4096 == 0
        memory.close()


def test_elements_lie_eight_bytes_apart_however_small() -> None:
    with bpf.Map(create(_ARRAY, key=4, value=4, entries=600, flags=_MMAPABLE)) as array:
        array.update(word(599), b"abcd")
        memory = array.memory(writable=False)
        assert memory[599 * 8 : 599 * 8 + 4] == b"abcd"
        memory.close()


def test_memory_for_reading_cannot_be_written() -> None:
    with bpf.Map(create(_ARRAY, key=4, value=8, entries=1, flags=_MMAPABLE)) as array:
        memory = array.memory(writable=False)
        with pytest.raises(TypeError):
            memory[0:1] = b"x"
        memory.close()


def test_a_pin_is_the_same_map_under_a_name(pins: Path, words: bpf.Map) -> None:
    path = versioned(pins) / "words"
    words.update(word(1), word(10))
    bpf.pin(words.descriptor, path)
    try:
        with pytest.raises(FileExistsError):
            bpf.pin(words.descriptor, path)
        with bpf.Map.open(path) as again:
            assert again.info == words.info
            assert again.lookup(word(1)) == word(10)
    finally:
        path.unlink()


def test_what_is_not_pinned_is_not_found(pins: Path) -> None:
    with pytest.raises(FileNotFoundError):
        bpf.pinned(versioned(pins) / "nothing")


def test_map_info_is_what_the_map_was_made_with(words: bpf.Map) -> None:
    info = words.info

    assert (info.type, info.key_size, info.value_size, info.max_entries) == (_HASH, 4, 4, 64)
    assert info.id > 0


def test_closing_closes_the_descriptor() -> None:
    with bpf.Map(create(_HASH, key=4, value=4, entries=1)) as opened:
        pass

    with pytest.raises(OSError):
        os.fstat(opened.descriptor)


def test_a_program_is_known_by_its_name_and_id(pins: Path) -> None:
    descriptor = bpf.pinned(versioned(pins) / PROGRAM)
    info = bpf.program_info(descriptor)
    again = bpf.program_by_id(info.id)

    assert info.name == "shunt"
    assert len(info.tag) == 16
    assert bpf.program_info(again) == info
    os.close(descriptor)
    os.close(again)


def test_a_program_that_is_not_there_is_not_found() -> None:
    with pytest.raises(FileNotFoundError):
        bpf.program_by_id(2**31 - 1)


def test_a_test_run_gives_verdict_and_frame(pins: Path, maps: object) -> None:
    descriptor = bpf.pinned(versioned(pins) / PROGRAM)
    stranger = bytes(12) + b"\x08\x06" + bytes(46)

    passed = bpf.test_run(descriptor, stranger)
    dropped = bpf.test_run(descriptor, frame(b"neither STUN nor media"), repeat=100)

    assert (passed.verdict, passed.frame) == (_PASS, stranger)
    assert dropped.verdict == _DROP
    assert dropped.nanoseconds > 0
    os.close(descriptor)
