"""A network, a /run and a bpffs of this process's own, before any test begins.

So a run of the suite meets no lab, no relay and no namespace but its own, and leaves none of them
where it ran; two runs, or two lanes of one run, do not meet either. Takes root; without, there is
nothing that the tests could touch.
"""

import ctypes
import os
import subprocess
from pathlib import Path

__all__ = ["isolate"]

_CLONE_NEWNS, _CLONE_NEWNET = 0x00020000, 0x40000000  # linux/sched.h
_MNT_DETACH = 2
_MS_REC, _MS_PRIVATE = 1 << 14, 1 << 18  # linux/mount.h

_libc = ctypes.CDLL(None, use_errno=True)


def isolate() -> None:
    """Leave the system's namespaces for fresh ones; for the calling thread, and for the threads
    and processes that it begins from now on. Raises OSError."""
    if os.geteuid() != 0:
        return
    _check(_libc.unshare(_CLONE_NEWNS | _CLONE_NEWNET), "no namespaces of our own")
    _mount("none", Path("/"), "", _MS_REC | _MS_PRIVATE)
    _mount("run", Path("/run"), "tmpfs", options="mode=755")
    for folder, mode in (("lock", 0o1777), ("netns", 0o755)):
        (Path("/run") / folder).mkdir()
        (Path("/run") / folder).chmod(mode)
    bpffs = Path("/sys/fs/bpf")
    while bpffs.is_mount():
        _check(_libc.umount2(bytes(bpffs), _MNT_DETACH), f"no way to unmount {bpffs}")
    _mount("bpf", bpffs, "bpf")
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    # As any host has one: WebRTC clients offer no candidate of 127.0.0.1.
    subprocess.run(["ip", "address", "add", "192.0.2.200/32", "dev", "lo"], check=True)


def _mount(source: str, place: Path, kind: str, flags: int = 0, options: str = "") -> None:
    done = _libc.mount(
        source.encode(),
        bytes(place),
        kind.encode(),
        ctypes.c_ulong(flags),
        options.encode(),
    )
    _check(done, f"{kind or 'no change'} at {place}")


def _check(done: int, what: str) -> None:
    if done < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")
