"""Compiles the program, loads it and pins it with its maps; run as a process of its own.

`python -m loader.compile PINS` does it and ends. So the compiler's hundred megabytes, and
whatever it might do wrong, are never the agent's. Maps that are pinned already are taken over with
all they hold; the program's pin is replaced in one step.
"""

import os
import sys
from pathlib import Path

from loader import bpf
from loader.maps import versioned
from loader.source import compiler_flags, entry_source, kernel_source

__all__ = ["PROGRAM", "compile_and_pin"]

PROGRAM = "program"


def compile_and_pin(pins: Path) -> None:
    """Compile for this kernel and pin below *pins*. BCC writes what went wrong to stderr."""
    folder = versioned(pins)
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["BCC_KERNEL_SOURCE"] = str(kernel_source())
    from bcc import BPF  # it looks for kernel headers once, when imported

    program = BPF(text=entry_source().encode(), cflags=compiler_flags(folder))
    function = program.load_func("shunt", BPF.XDP)
    fresh = folder / f"{PROGRAM}_{os.getpid()}"
    bpf.pin(function.fd, fresh)
    fresh.rename(folder / PROGRAM)


if __name__ == "__main__":
    compile_and_pin(Path(sys.argv[1]))
