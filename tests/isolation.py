"""A network, a /run and a bpffs of this process's own, before any test begins.

So a run of the suite meets no lab, no relay and no namespace but its own, and leaves none of them
where it ran; two runs, or two lanes of one run, do not meet either. Nobody else could find what a
run leaves there when it is killed: a process outlives it that ends all others, and then itself.
Takes root; without, there is nothing that the tests could touch.
"""

import ctypes
import os
import select
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

__all__ = ["isolate"]

_CLONE_NEWNS, _CLONE_NEWNET = 0x00020000, 0x40000000  # linux/sched.h
_MNT_DETACH = 2
_MS_REC, _MS_PRIVATE = 1 << 14, 1 << 18  # linux/mount.h

_caretakers: list["subprocess.Popen[bytes]"] = []  # they outlive us: nobody waits for them

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
    command = [sys.executable, "-E", "-S", __file__, str(os.getpid())]
    _caretakers.append(subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True))


def _take_care(pid: int) -> None:
    """Wait for the end of the process that isolated itself, and end all that it has left behind."""
    poll = select.poll()
    with suppress(ProcessLookupError):  # it has ended by now
        poll.register(os.pidfd_open(pid), select.POLLIN)
        poll.poll()
    while left := _neighbours():
        for each in left:
            with suppress(ProcessLookupError):
                os.kill(each, signal.SIGKILL)


def _neighbours() -> list[int]:
    """Other processes that live with these mounts, and have not ended."""
    ours = os.readlink("/proc/self/ns/mnt")
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has just ended
            if int(folder.name) != os.getpid() and os.readlink(folder / "ns/mnt") == ours:
                found.append(int(folder.name))
    return found


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


if __name__ == "__main__":
    _take_care(int(sys.argv[1]))
