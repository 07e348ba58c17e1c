"""What a bench says besides times: the machine, the program's sizes, the maps' memory."""

import os
import platform
import struct
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from loader import bpf
from loader.maps import versioned
from loader.pinned_set import PARTS, PROGRAM
from loader.sizes import Sizes

__all__ = ["machine", "map_memory", "program_sizes"]

_NOT_OF_SLOTS = {"settings", "interfaces", "routes", "transceivers", "drops", "traffic"}


def program_sizes(pins: Path) -> list[bpf.ProgramInfo]:
    """Of the pinned program and its parts, in the order of `bpf/parts.h`."""
    folder = versioned(pins)
    found = [_info(bpf.pinned(folder / PROGRAM))]
    with bpf.Map.open(folder / f"{PARTS}{found[0].id}") as calls:
        for index in range(calls.info.max_entries):
            id = calls.lookup(struct.pack("=I", index))
            if id is not None:
                found.append(_info(bpf.program_by_id(int.from_bytes(id, sys.byteorder))))
    return found


def _info(descriptor: int) -> bpf.ProgramInfo:
    try:
        return bpf.program_info(descriptor)
    finally:
        os.close(descriptor)


def map_memory(pins: Path, sizes: Sizes) -> dict[str, Any]:
    """Bytes of kernel memory that each pinned map holds, and what that makes for one slot (all
    maps but the routes, the transceivers and the counters) and one route."""
    memory = {}
    for entry in sorted(versioned(pins).iterdir()):
        if entry.name == PROGRAM or entry.name.startswith(PARTS):
            continue
        with bpf.Map.open(entry) as opened:
            fields = dict(
                line.split(":\t", 1)
                for line in Path(f"/proc/self/fdinfo/{opened.descriptor}").read_text().splitlines()
            )
            memory[entry.name] = int(fields["memlock"])
    slots = sum(size for name, size in memory.items() if name not in _NOT_OF_SLOTS)
    return {
        "maps_bytes": memory,
        "total_bytes": sum(memory.values()),
        "slots": sizes.slots,
        "routes": sizes.routes,
        "bytes_per_slot": slots / sizes.slots,
        "bytes_per_route": memory["routes"] / sizes.routes,
    }


def machine(pins: Path | None, cpu: int | None) -> dict[str, Any]:
    """Where a bench ran, and what: for its report. *pins*: of the program, if there was one; *cpu*:
    the one that the bench was kept on, if it was."""
    model = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    return {
        "kernel": platform.release(),
        "cpu": model,
        "cpus": os.cpu_count(),
        "pinned_to_cpu": cpu,
        "load_average": os.getloadavg()[0],
        **({"program": [asdict(size) for size in program_sizes(pins)]} if pins else {}),
    }
