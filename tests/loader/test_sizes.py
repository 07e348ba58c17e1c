"""How large the maps are for so many inside addresses, and that the program is told so."""

import re

import pytest

from loader.errors import ShuntError
from loader.sizes import sizes
from loader.source import BPF_FOLDER
from loader.types import BUCKET_ENTRIES, INSIDE_ADDRESSES, SLOT_BITS

ALL = range(1, INSIDE_ADDRESSES + 1)


def test_sixteen_addresses_are_a_million_slots() -> None:
    assert sizes(16).slots == 1_048_576


def test_the_index_of_every_slot_has_room_in_a_bucket() -> None:
    assert sizes(INSIDE_ADDRESSES).slots <= 1 << SLOT_BITS


@pytest.mark.parametrize("inside", ALL)
def test_each_map_has_room_for_what_the_slots_need(inside: int) -> None:
    made = sizes(inside)

    assert made.slots == inside * 65536
    assert made.ring >= made.slots, "every slot may be free"
    assert made.buckets * BUCKET_ENTRIES * 4 >= 7 * made.slots, "few buckets are ever full"
    assert made.routes >= max(65536, made.slots // 2)
    assert made.checks >= max(65536, made.slots // 4)


@pytest.mark.parametrize("inside", ALL)
def test_what_is_masked_is_a_power_of_two_and_no_larger_than_it_must_be(inside: int) -> None:
    made = sizes(inside)

    for size, least in ((made.ring, made.slots), (made.buckets, made.slots // 8)):
        assert size.bit_count() == 1
        assert size // 2 < least


@pytest.mark.parametrize("inside", [-1, 0, INSIDE_ADDRESSES + 1])
def test_so_many_addresses_there_cannot_be(inside: int) -> None:
    with pytest.raises(ShuntError, match="1 to 16 inside addresses"):
        sizes(inside)


def test_the_compiler_is_told_every_size_that_the_header_leaves_open() -> None:
    left_open = re.findall(r"^#ifndef (\w+)$", (BPF_FOLDER / "types.h").read_text(), re.MULTILINE)
    told = dict(flag.removeprefix("-D").split("=") for flag in sizes(3).flags)

    assert list(told) == left_open
    assert list(told.values()) == ["196608", "32768", "262144", "98304", "65536"]
