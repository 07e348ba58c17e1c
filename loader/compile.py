"""Compiles the program, loads it and pins it with its maps; run as a process of its own.

`python -m loader.compile FOLDER [INSIDE]` does it and ends; INSIDE is how many inside addresses
the maps are made for. So the compiler's hundred megabytes, and whatever it might do wrong, are
never the agent's. Maps that are pinned already are taken over with all they hold; the program's
pin is replaced in one step.
"""

import os
import sys
from pathlib import Path

from loader import bpf
from loader.pinned_set import PARTS, PROGRAM
from loader.sizes import sizes
from loader.source import compiler_flags, entry_source, kernel_source, parts

__all__ = ["compile_and_pin"]


def compile_and_pin(folder: Path, inside: int = 1) -> None:
    """Compile for this kernel and pin in *folder*. BCC writes what went wrong to stderr."""
    flags = sizes(inside).flags
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["BCC_KERNEL_SOURCE"] = str(kernel_source())
    from bcc import BPF  # it looks for kernel headers once, when imported

    program = BPF(text=entry_source().encode(), cflags=compiler_flags(folder) + flags)
    calls = bpf.Map(program["parts"].get_fd())  # BCC's descriptor, and BCC's to close
    for index, name in parts().items():
        part = program.load_func(name, BPF.XDP)
        calls.update(index.to_bytes(4, "little"), part.fd.to_bytes(4, "little"))
    function = program.load_func("shunt", BPF.XDP)
    # The kernel empties a map of programs when its last pin and descriptor are gone.
    bpf.pin(calls.descriptor, folder / f"{PARTS}{bpf.program_info(function.fd).id}")
    fresh = folder / f"{PROGRAM}_{os.getpid()}"
    bpf.pin(function.fd, fresh)
    fresh.rename(folder / PROGRAM)


if __name__ == "__main__":
    compile_and_pin(Path(sys.argv[1]), *map(int, sys.argv[2:3]))
