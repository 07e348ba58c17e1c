"""The compiled program as plain data, and how that becomes programs and maps of the kernel.

What the compiler makes of the source are instructions, in which a descriptor stands wherever a map
is meant. Here such a place is kept by the map's name, so that the instructions outlive the process
that compiled them (`kept`), and another can load them without a compiler. No BCC.
"""

import os
import struct
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from msgspec import Struct

from loader import bpf
from loader.errors import ShuntError
from loader.pinned_set import PARTS, PROGRAM

__all__ = ["Image", "MapImage", "ProgramImage", "pin_programs", "references"]

_LOAD = 0x18  # BPF_LD | BPF_IMM | BPF_DW: a constant of 64 bits, two instructions long
_OF_MAP = 1  # BPF_PSEUDO_MAP_FD: the constant stands for the map with this descriptor
_INSTRUCTION = struct.Struct("=BBhi")


class MapImage(Struct, frozen=True, kw_only=True):
    """A map: as in `bpf.MapInfo`, and the types of its entries in the image's BTF (0: none)."""

    name: str
    type: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int
    key_btf: int
    value_btf: int
    pinned: bool

    def info(self) -> bpf.MapInfo:
        """Of such a map; the id is nobody's."""
        return bpf.MapInfo(
            self.type, 0, self.key_size, self.value_size, self.max_entries, self.flags
        )


class ProgramImage(Struct, frozen=True, kw_only=True):
    """A program: its instructions, and which map stands at which of them."""

    name: str
    code: bytes
    maps: dict[int, str]

    def linked(self, descriptors: Mapping[str, int]) -> bytes:
        """The instructions for the maps behind these descriptors."""
        code = bytearray(self.code)
        for number, name in self.maps.items():
            struct.pack_into("=i", code, number * _INSTRUCTION.size + 4, descriptors[name])
        return bytes(code)


class Image(Struct, frozen=True, kw_only=True):
    """Everything that is loaded: *entry* is the program for interfaces, *parts* those that it calls
    by way of the map *calls*, by their index in it."""

    license: str
    btf: bytes
    maps: list[MapImage]
    calls: str
    entry: ProgramImage
    parts: dict[int, ProgramImage]

    def pin(self, folder: Path) -> None:
        """Load it, and pin it in *folder*: maps that are pinned there are taken as they are, and
        the program's pin is replaced in one step.

        Raises OSError if the kernel refuses something, and ShuntError for a pinned map of another
        shape.
        """
        folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as held:

            def hold(descriptor: int) -> int:
                held.callback(os.close, descriptor)
                return descriptor

            btf = hold(bpf.load_btf(self.btf))
            descriptors = {each.name: hold(_map(each, folder, btf)) for each in self.maps}

            def load(program: ProgramImage) -> int:
                code = program.linked(descriptors)
                return hold(bpf.load_xdp(program.name, code, license=self.license))

            parts = {index: load(part) for index, part in self.parts.items()}
            pin_programs(folder, descriptors[self.calls], parts, load(self.entry))


def _map(image: MapImage, folder: Path, btf: int) -> int:
    pin = folder / image.name
    if image.pinned and pin.exists():
        descriptor = bpf.pinned(pin)
        if not _is_alike(bpf.map_info(descriptor), image.info()):
            os.close(descriptor)
            raise ShuntError(
                f"the pinned map {pin} is not one that this version can use",
                "`shunt agent unload` removes it; calls end with that.",
            )
        return descriptor
    types = bpf.BtfTypes(0, image.key_btf, image.value_btf)
    descriptor = bpf.create_map(image.name, image.info(), btf, types)
    if image.pinned:
        try:
            bpf.pin(descriptor, pin)
        except OSError:
            os.close(descriptor)
            raise
    return descriptor


def _is_alike(found: bpf.MapInfo, wanted: bpf.MapInfo) -> bool:
    flags = (found.flags ^ wanted.flags) & ~bpf.READ_ONLY_PROGRAM
    return not flags and found == replace(wanted, id=found.id, flags=found.flags)


def pin_programs(folder: Path, calls: int, parts: Mapping[int, int], entry: int) -> None:
    """Fill the map *calls* with *parts*, and pin it and the program *entry*, all given as
    descriptors, which stay the caller's."""
    callable_parts = bpf.Map(calls)
    for index, part in parts.items():
        callable_parts.update(index.to_bytes(4, "little"), part.to_bytes(4, "little"))
    # The kernel empties a map of programs when its last pin and descriptor are gone.
    bpf.pin(calls, folder / f"{PARTS}{bpf.program_info(entry).id}")
    fresh = folder / f"{PROGRAM}_{os.getpid()}"
    bpf.pin(entry, fresh)
    fresh.rename(folder / PROGRAM)


def references(code: bytes, names: Mapping[int, str]) -> dict[int, str]:
    """Which map stands at which instruction of loaded code, given each map's name by descriptor."""
    found = {}
    number = 0
    while number * _INSTRUCTION.size < len(code):
        operation, registers, _offset, constant = _INSTRUCTION.unpack_from(
            code, number * _INSTRUCTION.size
        )
        if operation == _LOAD and registers >> 4 == _OF_MAP:
            found[number] = names[constant]
        number += 2 if operation == _LOAD else 1
    return found
