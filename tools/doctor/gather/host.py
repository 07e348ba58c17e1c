"""Facts of the kernel, this process and what is installed."""

import ctypes
import ctypes.util
import importlib.machinery
import os
import platform
import re
import resource
import sys
from collections.abc import Sequence
from pathlib import Path

from loader.bpf import possible_cpus
from loader.capabilities import held
from loader.datapath import BPFFS
from loader.source import compiler_flags
from tools.doctor.facts import Bcc, HostFacts

__all__ = ["bcc_on", "look"]

_HEADERS = ("linux/bpf.h", "asm/types.h")
_CLOCKSOURCE = Path("/sys/devices/system/clocksource/clocksource0/current_clocksource")
_STEAL = 7  # of the numbers in the first line of /proc/stat
_STATUS_AT, _UNSYNCHRONISED = 40, 0x40  # in struct timex, as 64-bit machines lay it out; STA_UNSYNC


def look() -> HostFacts:
    """All of them."""
    release = platform.release()
    bpffs = _bpffs_options()
    return HostFacts(
        release=release,
        kernel=_version(release),
        machine=platform.machine(),
        page=resource.getpagesize(),
        cpus=possible_cpus(),
        uid=os.geteuid(),
        capabilities=held(),
        btf=Path("/sys/kernel/btf/vmlinux").exists(),
        jit=_sysctl("net/core/bpf_jit_enable"),
        jit_harden=_sysctl("net/core/bpf_jit_harden"),
        unprivileged_bpf=_sysctl("kernel/unprivileged_bpf_disabled"),
        memlock=resource.getrlimit(resource.RLIMIT_MEMLOCK)[0],
        bpffs=bpffs is not None,
        bpffs_writable="rw" in (bpffs or ()) and os.access(BPFFS, os.W_OK),
        bcc=bcc_on(sys.path),
        headers={name: _is_header(name) for name in _HEADERS},
        clocksource=_text(_CLOCKSOURCE) or "",
        synchronised=_synchronised(),
        steal=_steal(Path("/proc/stat").read_text()),
    )


def _version(release: str) -> tuple[int, int]:
    found = re.match(r"(\d+)\.(\d+)", release)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def bcc_on(path: Sequence[str]) -> Bcc:
    """BCC as `import bcc` would find it on *path*. It is not imported: that takes a compiler's
    hundred megabytes."""
    library = ctypes.util.find_library("bcc") is not None
    spec = importlib.machinery.PathFinder.find_spec("bcc", list(path))
    if spec is None or not spec.submodule_search_locations:
        module = spec.origin if spec and spec.origin else ""
        return Bcc(module=module, genuine=False, version="", library=library)
    folder = Path(next(iter(spec.submodule_search_locations)))
    version = re.search(r"['\"]([\d.]+)", _text(folder / "version.py") or "")
    return Bcc(
        module=str(folder),
        genuine=(folder / "libbcc.py").exists(),  # the binding, which PyPI's has not
        version=version[1] if version else "of unknown version",
        library=library,
    )


def _is_header(name: str) -> bool:
    folders = [flag[2:] for flag in compiler_flags(Path()) if flag.startswith("-I")]
    return any((Path(folder) / name).exists() for folder in folders)


def _bpffs_options() -> list[str] | None:
    """Its mount options, or None if it is not mounted where pins go."""
    for line in Path("/proc/thread-self/mounts").read_text().splitlines():
        _what, where, kind, options, *_ = line.split()
        if (where, kind) == (str(BPFFS), "bpf"):
            return options.split(",")
    return None


def _synchronised() -> bool | None:
    timex = ctypes.create_string_buffer(256)  # modes 0: only look
    if ctypes.CDLL(None, use_errno=True).adjtimex(timex) < 0:
        return None
    status = int.from_bytes(timex.raw[_STATUS_AT : _STATUS_AT + 4], sys.byteorder)
    return not status & _UNSYNCHRONISED


def _steal(stat: str) -> float:
    ticks = [int(number) for number in stat.splitlines()[0].split()[1:]]
    return ticks[_STEAL] / max(sum(ticks[: _STEAL + 1]), 1)


def _text(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None


def _sysctl(name: str) -> int | None:
    text = _text(Path("/proc/sys") / name)
    return int(text) if text else None
