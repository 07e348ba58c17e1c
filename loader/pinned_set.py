"""One relay's pins: a folder in bpffs with the program, its parts, and its maps, of any version."""

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from loader import bpf, types
from loader.errors import ShuntError
from loader.layout import Layout, layout_v2

__all__ = [
    "LOADING",
    "PARTS",
    "PROGRAM",
    "PinnedSet",
    "described",
    "maps_of",
    "pinned_sets",
    "program_ids",
    "remove_folder",
    "remove_pins",
]

PROGRAM = "program"
LOADING = "loading"
"""A folder beside the sets, locked by whoever makes one."""

PARTS = "parts-"
"""With the program's id behind it, the pin of the map that its tail calls go through."""


@dataclass(frozen=True, slots=True)
class PinnedSet:
    """A folder with a program, and the program's id."""

    folder: Path
    program: int


def pinned_sets(pins: Path) -> list[PinnedSet]:
    """All below *pins*, by name of the folder."""
    found = []
    for folder in sorted(pins.iterdir()) if pins.is_dir() else []:
        with suppress(FileNotFoundError, NotADirectoryError):
            found.append(PinnedSet(folder, _id(folder / PROGRAM)))
    return found


def _id(pin: Path) -> int:
    descriptor = bpf.pinned(pin)
    try:
        return bpf.program_info(descriptor).id
    finally:
        os.close(descriptor)


def program_ids(pins: Path) -> set[int]:
    """Ids of all programs that are the relay's: pinned ones, and those whose parts are, as
    interfaces still carry them."""
    ids = {each.program for each in pinned_sets(pins)}
    for parts in pins.glob(f"*/{PARTS}*"):
        ids.add(int(parts.name.removeprefix(PARTS)))
    return ids


def remove_pins(pins: Path) -> None:
    """Remove all that is pinned below *pins*, of every version, without a look at any interface.
    There need not be anything."""
    if not pins.is_dir():
        return
    for folder in list(pins.iterdir()):
        remove_folder(folder)
    pins.rmdir()


def remove_folder(folder: Path) -> None:
    """Remove a folder of pins with all that is in it."""
    for entry in list(folder.iterdir()):
        entry.unlink()
    folder.rmdir()


def maps_of(folder: Path) -> Iterator[str]:
    """Names of the maps that are pinned in the folder."""
    for entry in sorted(folder.iterdir()):
        if entry.name != PROGRAM and not entry.name.startswith((PARTS, f"{PROGRAM}_")):
            yield entry.name


def described(folder: Path) -> Layout:
    """How the maps in the folder are laid out, as they say themselves.

    Raises ShuntError if they do not, or if the kernel says otherwise of one of them.
    """
    infos: dict[str, bpf.MapInfo] = {}
    for name in maps_of(folder):
        with bpf.Map.open(folder / name) as opened:
            infos[name] = opened.info
    found = _description(folder, infos)
    for name, each in found.maps.items():
        info = infos.get(name)
        says = (each.type, each.key.size, each.value.size, each.entries, each.flags)
        if info is None or says != (
            info.type,
            info.key_size,
            info.value_size,
            info.max_entries,
            info.flags & ~bpf.READ_ONLY_PROGRAM,
        ):
            raise ShuntError(
                f"the pinned map {folder / name} is "
                + ("missing" if info is None else "not what its relay says of it"),
                "Unload that relay: `shunt agent unload`. Calls end with it.",
            )
    return found


def _description(folder: Path, infos: dict[str, bpf.MapInfo]) -> Layout:
    if "about" in infos:
        with bpf.Map.open(folder / "about") as opened:
            value = opened.lookup(bytes(4)) or b""
        if len(value) >= len(bytes(types.About())):
            about = types.About.from_buffer_copy(value)
            with suppress(ValueError):
                return Layout.from_json(bytes(about.layout[: about.length]))
    elif folder.name == "v2":
        return layout_v2({name: info.max_entries for name, info in infos.items()})
    raise ShuntError(
        f"the relay that is pinned at {folder} does not say how its maps are laid out",
        "It is of a version that this one cannot follow without ending calls: "
        "`shunt agent unload` first.",
    )
