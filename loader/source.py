"""The program's C source as one text, and how it is compiled.

BCC rewrites map accesses only in the file that it is given, not in what that includes, so the
project's own headers are laid into the entry file, with `#line` marks that keep every error
message pointing at the file a person would edit.
"""

import hashlib
import re
import sysconfig
from pathlib import Path

from loader.sizes import sizes

__all__ = [
    "BPF_FOLDER",
    "compiler_flags",
    "digest",
    "entries",
    "entry_source",
    "kernel_source",
    "parts",
    "system_headers",
]

BPF_FOLDER = Path(__file__).resolve().parent.parent / "bpf"

_INCLUDE = re.compile(r'^#include "([a-z0-9_]+\.h)"$')
_SYSTEM_INCLUDE = re.compile(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', re.MULTILINE)
_ENTRY = re.compile(r'X\((\d+),[\s\\]*(\w+),[\s\\]*"([^"]+)"\)')


def entry_source() -> str:
    """The whole program: `bpf/shunt.c` with each of its own headers in place, once."""
    return "".join(_lines("shunt.c", seen=set()))


def _lines(name: str, *, seen: set[str]) -> list[str]:
    seen.add(name)
    lines = [f'#line 1 "bpf/{name}"\n']
    for number, line in enumerate((BPF_FOLDER / name).read_text().splitlines(), start=1):
        include = _INCLUDE.match(line)
        if include is None:
            lines.append("\n" if line == "#pragma once" else line + "\n")
            continue
        if include[1] not in seen:
            lines += _lines(include[1], seen=seen)
        lines.append(f'#line {number + 1} "bpf/{name}"\n')
    return lines


def entries(header: str) -> list[tuple[int, str, str]]:
    """The list that a header holds as `X(number, name, "meaning")`, in its order."""
    text = (BPF_FOLDER / header).read_text()
    return [(int(number), name, meaning) for number, name, meaning in _ENTRY.findall(text)]


def parts() -> dict[int, str]:
    """The functions that the program calls by tail call, by their index in the map `parts`."""
    return {number: f"shunt_{name}" for number, name, _meaning in entries("parts.h")}


def digest(inside: int) -> bytes:
    """Of all that a program for so many inside addresses is compiled of, but the kernel's headers
    and the compiler itself: 24 bytes, and the same only if the source is."""
    flags = " ".join(sizes(inside).flags)
    hashed = hashlib.blake2b(digest_size=24)
    hashed.update(f"{entry_source()}\0{flags}\0{sorted(parts().items())}".encode())
    for header in sorted(kernel_source().rglob("*.h")):
        hashed.update(header.read_bytes())
    return hashed.digest()


def kernel_source() -> Path:
    """The include tree that stands for the kernel's own (see `bpf/kernel/README.md`)."""
    return BPF_FOLDER / "kernel"


def _include_folders() -> list[Path]:
    """Where UAPI headers are."""
    multiarch = sysconfig.get_config_var("MULTIARCH") or ""
    return [Path("/usr/include"), Path("/usr/include") / multiarch]


def system_headers() -> list[Path]:
    """The system's headers that the program may include, by way of others too; whatever `#if` says,
    so there are some that it does not."""
    texts = [entry_source(), *(h.read_text() for h in sorted(kernel_source().rglob("*.h")))]
    found: dict[Path, None] = {}
    while texts:
        for name in _SYSTEM_INCLUDE.findall(texts.pop()):
            for folder in _include_folders():
                header = folder / name
                if header not in found and header.is_file():
                    found[header] = None
                    texts.append(header.read_text(errors="replace"))
    return sorted(found)


def compiler_flags(pins: Path) -> list[str]:
    """Flags for BCC: where UAPI headers are, and where the maps are pinned."""
    return [
        *(f"-I{folder}" for folder in _include_folders()),
        f'-DSHUNT_PINS="{pins}"',
        "-Wall",
        "-Wno-unused-function",
    ]
