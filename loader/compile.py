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
from pathlib import Path

from loader import bpf
from loader.pinned_set import PARTS, PROGRAM
from loader.sizes import sizes
from loader.source import compiler_flags, entry_source, kernel_source, parts

__all__ = ["compile_and_pin"]

_PR_SET_PDEATHSIG = 1  # of linux/prctl.h


def compile_and_pin(folder: Path, inside: int) -> None:
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


def _end_with(parent: int) -> None:
    """Whoever waits for this may be killed: then nothing is to be pinned behind his back."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # he was, before that was said
        sys.exit(1)


if __name__ == "__main__":
    folder, inside, parent = sys.argv[1:]
    _end_with(int(parent))
    compile_and_pin(Path(folder), int(inside))
