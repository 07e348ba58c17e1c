"""Compiles the program, loads it and pins it with its maps; run as a process of its own.

`python -m loader.compile FOLDER INSIDE PID` does it and ends; INSIDE is how many inside addresses
the maps are made for, PID the process that waits for it. So the compiler's hundred megabytes, and
whatever it might do wrong, are never the agent's. Maps that are pinned already are taken over with
all they hold; the program's pin is replaced in one step.
"""

import ctypes
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from loader import bpf
from loader.cache import Cache, libraries, name_of
from loader.cache import folder as cache_folder
from loader.image import Image, MapImage, ProgramImage, pin_programs, references
from loader.sizes import sizes
from loader.source import compiler_flags, entry_source, kernel_source, parts

__all__ = ["compile_and_pin"]

_ENTRY, _CALLS = "shunt", "parts"  # of bpf/shunt.c and bpf/maps.h
_PR_SET_PDEATHSIG = 1  # of linux/prctl.h


def compile_and_pin(folder: Path, inside: int) -> Image:
    """Compile for this kernel and pin in *folder*. BCC writes what went wrong to stderr."""
    flags = sizes(inside).flags
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["BCC_KERNEL_SOURCE"] = str(kernel_source())
    from bcc import BPF  # it looks for kernel headers once, when imported

    program = BPF(text=entry_source().encode(), cflags=compiler_flags(folder) + flags)
    # BCC's descriptors, and BCC's to close.
    loaded = {index: program.load_func(name, BPF.XDP).fd for index, name in parts().items()}
    entry = program.load_func(_ENTRY, BPF.XDP).fd
    pin_programs(folder, program[_CALLS].get_fd(), loaded, entry)
    return _image(program, folder)


def _image(program: Any, folder: Path) -> Image:
    """What BCC has made of the source. Every map that this process has open is the program's."""
    maps = {each: bpf.map_name(each) for each in _open_descriptors("bpf-map")}
    (btf,) = _open_descriptors("btf")

    def made(name: str) -> ProgramImage:
        code = program.dump_func(name)
        image = ProgramImage(name=name, code=code, maps=references(code, maps))
        return replace(image, code=image.linked(dict.fromkeys(maps.values(), 0)))

    return Image(
        license=_license(program),
        btf=bpf.btf_data(btf),
        maps=[_map_image(each, pinned=(folder / maps[each]).exists()) for each in sorted(maps)],
        calls=_CALLS,
        entry=made(_ENTRY),
        parts={index: made(name) for index, name in parts().items()},
    )


def _license(program: Any) -> str:
    from bcc import lib

    said: bytes = lib.bpf_module_license(program.module)
    return said.decode()


def _map_image(descriptor: int, *, pinned: bool) -> MapImage:
    info, types = bpf.map_info(descriptor), bpf.btf_types(descriptor)
    return MapImage(
        name=bpf.map_name(descriptor),
        type=info.type,
        key_size=info.key_size,
        value_size=info.value_size,
        max_entries=info.max_entries,
        flags=info.flags,
        key_btf=types.key,
        value_btf=types.value,
        pinned=pinned,
    )


def _open_descriptors(kind: str) -> list[int]:
    """Of this process, and of that kind: see proc_pid_fd(5)."""
    found = []
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # the one by which this folder is read
            if os.readlink(entry) in (f"anon_inode:{kind}", f"anon_inode:[{kind}]"):
                found.append(int(entry.name))
    return found


def _keep(image: Image, inside: int) -> None:
    """For the next start, which need not compile then. Says why not, if it cannot be kept."""
    place = cache_folder(os.environ)
    if place is None:
        return
    try:
        Cache(place).keep(name_of(inside), image, libraries())
    except (OSError, ValueError) as error:
        print(f"what was compiled is not kept for the next start: {error}")


def _end_with(parent: int) -> None:
    """Whoever waits for this may be killed: then nothing is to be pinned behind his back."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # he was, before that was said
        sys.exit(1)


if __name__ == "__main__":
    folder, inside, parent = sys.argv[1:]
    _end_with(int(parent))
    _keep(compile_and_pin(Path(folder), int(inside)), int(inside))
