"""`loader/types.py` against `bpf/types.h`, told by the compiler: names, offsets, sizes, constants.

The mirror is turned into assertions in C, which BCC compiles behind the real header. That each
mirror fills its structure without a gap makes it complete: C can have no field that it lacks.
"""

import ctypes
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from loader import types
from loader.sizes import sizes
from loader.source import BPF_FOLDER, compiler_flags, kernel_source

STRUCTURES = {
    "shunt_vip": types.Vip,
    "shunt_inside": types.Inside,
    "shunt_link": types.Link,
    "shunt_settings": types.Settings,
    "shunt_interface": types.Interface,
    "shunt_ufrag": types.Ufrag,
    "shunt_route": types.Route,
    "shunt_next_hop": types.NextHop,
    "shunt_transceiver": types.Transceiver,
    "shunt_about": types.About,
    "shunt_to_transceiver": types.ToTransceiver,
    "shunt_to_client": types.ToClient,
    "shunt_book": types.Book,
    "shunt_transaction": types.Transaction,
    "shunt_handshake": types.Handshake,
    "shunt_bucket": types.Bucket,
    "shunt_free_head": types.FreeHead,
    "shunt_traffic": types.Traffic,
}
PROGRAMS_OWN = {
    "shunt_address",  # 16 bytes: types.Address
    "shunt_scratch",  # never leaves the program
}
CONSTANTS = {
    "PORT_BITS": types.PORT_BITS,
    "SLOT_BITS": types.SLOT_BITS,
    "TRANSCEIVERS": types.TRANSCEIVERS,
    "VIPS": types.VIPS,
    "INSIDE_ADDRESSES": types.INSIDE_ADDRESSES,
    "INTERFACES": types.INTERFACES,
    "UFRAG_LENGTH": types.UFRAG_LENGTH,
    "ROUTE_SLOTS": types.ROUTE_SLOTS,
    "REQUESTS": types.REQUESTS,
    "CHECKS": types.CHECKS,
    "BUCKET_ENTRIES": types.BUCKET_ENTRIES,
    "ROUTE_NO_CHECKS": types.ROUTE_NO_CHECKS,
    "HTTP_LENGTH": types.HTTP_LENGTH,
    "LAYOUT_LENGTH": types.LAYOUT_LENGTH,
    "TRANSCEIVER_DRAINING": types.TRANSCEIVER_DRAINING,
    "DIRECTIONS": types.DIRECTIONS,
    **{state.name: state.value for state in types.State},
    **{direction.name: direction.value for direction in types.Direction},
}

BYTES = {types.Address, ctypes.c_uint8 * 12}  # words in C, bytes in Python
SIZES = {
    "SLOTS": sizes(1).slots,
    "BUCKETS": sizes(1).buckets,
    "RING": sizes(1).ring,
    "ROUTES": sizes(1).routes,
    "CHECKS_UNDER_WAY": sizes(1).checks,
}

HEADER = (BPF_FOLDER / "types.h").read_text()
WITHOUT_COMMENTS = re.sub(r"/\*.*?\*/", "", HEADER, flags=re.DOTALL)


def compile_c(text: str) -> str:
    """What BCC has to say against *text* behind types.h; nothing if it compiles."""
    program = "import sys; from bcc import BPF; BPF(text=sys.stdin.read(), cflags=sys.argv[1:])"
    header = HEADER.replace("#pragma once", "")
    source = f"#include <linux/if_ether.h>\n{header}\n{text}\n"
    done = subprocess.run(
        [sys.executable, "-c", program, *compiler_flags(BPF_FOLDER)],
        input=source,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "BCC_KERNEL_SOURCE": str(kernel_source())},
    )
    errors = [line for line in done.stderr.splitlines() if "error:" in line]
    return "" if done.returncode == 0 else "\n".join(errors) or done.stderr


def fields(mirror: Any, prefix: str = "") -> Iterator[tuple[str, int, Any]]:
    """Every field of a mirror, those of structures within it too: path, offset, type."""
    offset = 0
    for name, kind in mirror._fields_:
        offset = getattr(mirror, name).offset
        yield prefix + name, offset, kind
        if issubclass(kind, ctypes.Structure):
            for path, within, of in fields(kind, f"{prefix}{name}."):
                yield path, offset + within, of


def assertions(structure: str, mirror: Any) -> Iterator[str]:
    """The mirror's claims about a structure, in C."""
    place = f"((struct {structure} *)0)"
    yield f"sizeof(struct {structure}) == {ctypes.sizeof(mirror)}"
    for path, offset, kind in fields(mirror):
        yield f"__builtin_offsetof(struct {structure}, {path}) == {offset}"
        yield f"sizeof({place}->{path}) == {ctypes.sizeof(kind)}"
        if issubclass(kind, ctypes.Array) and kind not in BYTES:
            yield f"sizeof({place}->{path}) / sizeof({place}->{path}[0]) == {len(kind())}"


def asserting(claims: Iterator[str] | list[str]) -> str:
    return "\n".join(f'_Static_assert({claim}, "{claim}");' for claim in claims)


def test_every_field_has_the_name_offset_and_size_that_it_has_in_c() -> None:
    claims = [
        claim for structure, mirror in STRUCTURES.items() for claim in assertions(structure, mirror)
    ]
    assert compile_c(asserting(claims)) == ""


def test_constants_have_the_values_that_they_have_in_c() -> None:
    claims = [f"SHUNT_{name} == {value}" for name, value in (CONSTANTS | SIZES).items()]
    assert compile_c(asserting(claims)) == ""


@pytest.mark.parametrize(
    "lie",
    ["sizeof(struct shunt_to_client) == 63", "__builtin_offsetof(struct shunt_vip, prt) == 16"],
)
def test_the_compiler_tells_a_claim_that_is_not_true(lie: str) -> None:
    assert "error:" in compile_c(asserting([lie]))


def nested(mirror: Any) -> Iterator[Any]:
    yield mirror
    for _, kind in mirror._fields_:
        of = getattr(kind, "_type_", kind)
        if isinstance(of, type) and issubclass(of, ctypes.Structure):
            yield from nested(of)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_there_is_no_implicit_padding(structure: str) -> None:
    for mirror in nested(STRUCTURES[structure]):
        end = 0
        for name, kind in mirror._fields_:
            assert getattr(mirror, name).offset == end, name
            end += ctypes.sizeof(kind)
        assert ctypes.sizeof(mirror) == end


def test_every_structure_has_its_mirror() -> None:
    declared = set(re.findall(r"^struct (\w+) \{", WITHOUT_COMMENTS, flags=re.MULTILINE))
    assert declared == set(STRUCTURES) | PROGRAMS_OWN


def test_every_constant_has_its_mirror() -> None:
    defined = set(re.findall(r"#define SHUNT_(\w+) \S", WITHOUT_COMMENTS))
    listed = set(re.findall(r"^\tSHUNT_(\w+) = ", WITHOUT_COMMENTS, flags=re.MULTILINE))
    assert defined | listed == set(CONSTANTS) | set(SIZES)


def big_endian_in_c(structure: str) -> set[str]:
    body = re.search(rf"^struct {structure} \{{(.*?)^\}}", WITHOUT_COMMENTS, re.M | re.S)
    assert body
    return set(re.findall(r"__be\d+ (\w+)", body[1]))


@pytest.mark.parametrize("structure", STRUCTURES)
def test_byte_order_is_that_of_c(structure: str) -> None:
    big = {
        path.rsplit(".")[-1]
        for path, _, kind in fields(STRUCTURES[structure])
        if hasattr(kind, "__ctype_le__") and kind is kind.__ctype_be__
        if ctypes.sizeof(kind) > 1
    }
    transactions_are_bytes = {"id"} if structure == "shunt_transaction" else set()
    assert big | transactions_are_bytes == big_endian_in_c(structure)


@pytest.mark.parametrize("half", [types.ToTransceiver, types.ToClient])
def test_no_half_of_a_slot_lies_across_two_cache_lines(half: type[ctypes.Structure]) -> None:
    assert 64 % ctypes.sizeof(half) == 0


def test_a_tick_is_the_programs() -> None:
    shift = re.search(r"#define SHUNT_TICK_SHIFT (\d+)", (BPF_FOLDER / "clock.h").read_text())
    assert shift
    assert 2 ** int(shift[1]) / 1e9 == types.TICK


@pytest.mark.parametrize(
    ("text", "packed"),
    [
        ("198.18.0.1", "00000000000000000000ffffc6120001"),
        ("2001:db8:18::1", "20010db8001800000000000000000001"),
    ],
)
def test_addresses_are_sixteen_bytes_and_read_back(text: str, packed: str) -> None:
    assert bytes(types.packed_address(text)).hex() == packed
    assert types.text_address(bytes.fromhex(packed)) == text


@pytest.mark.parametrize("text", ["", "198.18.0", "198.18.0.256", "vip", "198.18.0.1:3478"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        types.packed_address(text)
