"""How maps are laid out, and how one layout's rows become another's. No maps."""

import ctypes

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loader import types
from loader.errors import ShuntError
from loader.layout import Conversion, Field, Layout, Structure, layout, layout_v2, structure
from loader.sizes import sizes


def fields(*fields: tuple[str, int, bool]) -> Structure:
    """Fields of (name, size, number), one behind the other."""
    offset, made = 0, []
    for name, size, number in fields:
        made.append(Field(name, offset, size, number))
        offset += size
    return Structure(offset, tuple(made))


def row(*values: bytes) -> "np.ndarray[tuple[int, int], np.dtype[np.uint8]]":
    return np.frombuffer(b"".join(values), dtype=np.uint8).reshape(1, -1)


def test_inner_fields_are_named_by_their_place() -> None:
    found = {field.name: field for field in structure(types.Transceiver).fields}

    assert found["hop.mtu"] == Field("hop.mtu", 38, 2, True)
    assert found["id"] == Field("id", 48, 64, False)
    assert found["port"].number is False, "it is big-endian: another size would be another value"
    handshake = {field.name: field for field in structure(types.Handshake).fields}
    assert handshake["requests[1].id"].offset == handshake["requests[0].id"].offset + 12


@pytest.mark.parametrize("kind", [types.ToClient, types.Book, types.Route, types.About])
def test_the_fields_fill_the_structure(kind: type[ctypes.Structure]) -> None:
    found = structure(kind)

    assert found.size == ctypes.sizeof(kind) == sum(field.size for field in found.fields)


@pytest.mark.parametrize("inside", [1, 16])
def test_a_layout_survives_being_written_down(inside: int) -> None:
    described = layout(sizes(inside)).to_json()

    assert Layout.from_json(described) == layout(sizes(inside))
    assert len(described) <= types.LAYOUT_LENGTH


def test_v2_is_what_it_was() -> None:
    """Whatever this version's structures become: told from the transceiver's entry, which was
    shorter, and had neither a lease nor a drain."""
    then = layout_v2({"transceivers": 4096, "slots_in": 65536})

    assert then.maps["transceivers"].value.size == 128
    assert {f.name for f in then.maps["transceivers"].value.fields} == {
        *("address", "port", "resolved", "instance", "id"),
        *(f"hop.{name}" for name in ("mac", "source_mac", "ifindex", "vlan", "mtu")),
    }
    assert then.maps["slots_in"].entries == 65536
    assert "about" not in then.maps


@pytest.mark.parametrize(
    "text", [b"", b"\xff", b"[]", b"{}", b'{"constants": {}, "maps": {"a": 1}}']
)
def test_what_is_no_description_is_refused(text: bytes) -> None:
    with pytest.raises(ValueError):
        Layout.from_json(text)


def test_fields_are_found_by_name_wherever_they_are() -> None:
    before = fields(("a", 2, True), ("gone", 3, False), ("b", 4, False))
    now = fields(("new", 1, True), ("b", 4, False), ("a", 2, True))

    converted = Conversion.between(before, now).convert(row(b"aa", b"ggg", b"bbbb"))

    assert converted.tobytes() == b"\0" + b"bbbb" + b"aa"


def test_a_number_may_grow_and_shrink_as_long_as_it_fits() -> None:
    narrow, wide = fields(("n", 2, True)), fields(("n", 4, True))

    assert Conversion.between(narrow, wide).convert(row(b"\1\2")).tobytes() == b"\1\2\0\0"
    back = Conversion.between(wide, narrow)
    assert back.convert(row(b"\1\2\0\0")).tobytes() == b"\1\2"
    with pytest.raises(ShuntError, match="field n holds numbers that are too large"):
        back.convert(row(b"\1\2\1\0"))


def test_anything_else_of_another_size_is_refused() -> None:
    with pytest.raises(ShuntError, match="field address was 4 bytes, now 16"):
        Conversion.between(fields(("address", 4, False)), fields(("address", 16, False)))


def test_what_each_packet_changes_is_not_of_a_flows_life() -> None:
    before = fields(
        ("state", 1, True), ("packets", 8, True), ("lock", 4, True), ("hop.mtu", 2, True)
    )

    assert Conversion.between(before, before).lasting == ((0, 1), (13, 2))


@given(st.permutations(structure(types.ToClient).fields), st.binary(min_size=64, max_size=64))
def test_any_order_and_back_is_what_it_was(order: list[Field], octets: bytes) -> None:
    here = structure(types.ToClient)
    there = fields(*((field.name, field.size, field.number) for field in order))

    moved = Conversion.between(here, there).convert(row(octets))

    assert Conversion.between(there, here).convert(moved).tobytes() == octets
