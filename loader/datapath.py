"""The program on its way into the kernel: compiled by a process of its own, loaded, pinned.

`carriers` puts it on interfaces; `upgrade` decides in the place of what it comes.
"""

import ctypes
import errno
import logging
import os
import subprocess
import sys
from pathlib import Path

from loader import bpf, cache, types
from loader.capabilities import Capability, require
from loader.errors import ShuntError
from loader.layout import layout
from loader.maps import check_shapes, versioned
from loader.pinned_set import LOADING, PROGRAM
from loader.sizes import sizes
from loader.source import digest

__all__ = [
    "load",
    "load_into",
    "make_room",
    "not_permitted",
    "notebook",
    "pinned_program",
    "write_notebook",
]

log = logging.getLogger(__name__)

BPFFS = Path("/sys/fs/bpf")
_COMPILE_LIMIT = 600.0  # seconds; it takes a few, and minutes on an emulated machine


def make_room(pins: Path) -> None:
    """Make the folder for *pins* in bpffs, which is mounted if the system has not. Raises
    ShuntError."""
    if pins.is_relative_to(BPFFS) and not _in_bpffs(pins):
        _mount_bpffs()
    if not _in_bpffs(pins):
        raise ShuntError(f"{pins} is not in bpffs", f"Choose --pins below {BPFFS}.")
    try:
        (pins / LOADING).mkdir(parents=True, exist_ok=True)
    except PermissionError as error:
        raise ShuntError(
            f"cannot make {error.filename}: {error.strerror}",
            f"Let the agent's user have {pins}: `sudo install -d -o USER -m 700 {pins}`.",
        ) from None
    except OSError as error:
        raise ShuntError(f"cannot make {pins}: {error.strerror}") from None


def _in_bpffs(path: Path) -> bool:
    """Whether what is made at *path* is in a bpffs: of the mounts it is below, the innermost."""
    below = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        if path.is_relative_to(mount := before.split()[4]):
            below.append((len(mount), after.split()[0]))
    return max(reversed(below), key=lambda found: found[0])[1] == "bpf"  # of equals the last hides


def _mount_bpffs() -> None:
    mounted = subprocess.run(
        ["mount", "-t", "bpf", "bpf", str(BPFFS)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        raise ShuntError(
            f"cannot mount bpffs at {BPFFS}: {mounted.stderr.strip()}",
            f"Have it mounted by root: `sudo mount -t bpf bpf {BPFFS}`; systemd does so at boot.",
        )


def load(pins: Path, inside: int = 1, *, afresh: bool = False) -> bpf.ProgramInfo:
    """Compile the program for this kernel, or take what was compiled before unless *afresh*, and
    pin it with maps for so many *inside* addresses; pinned maps keep what they hold. Takes CAP_BPF,
    CAP_NET_ADMIN and CAP_PERFMON: without the last the verifier refuses what this program does with
    pointers, and guards what is left against Spectre, which costs media three times the time.

    Raises ShuntError with the compiler's or the verifier's last words, and if maps for another
    number of inside addresses, or of another shape, are pinned: those are `upgrade`'s.
    """
    require(
        Capability.BPF, Capability.NET_ADMIN, Capability.PERFMON, what="loading the XDP program"
    )
    make_room(pins)
    try:
        check_shapes(pins, sizes(inside))
    except PermissionError as error:
        raise not_permitted(pins, error) from None
    return load_into(versioned(pins), inside, afresh=afresh)


def load_into(folder: Path, inside: int, *, afresh: bool = False) -> bpf.ProgramInfo:
    """Load the program from the cache, or compile it if it is not there or *afresh* is to be, and
    pin it in *folder*, with maps for so many
    inside addresses as far as there are none there yet. Raises ShuntError with the compiler's or
    the verifier's last words."""
    if afresh or not _take_kept(folder, inside):
        _compile(folder, inside)
    about = notebook(folder)
    about.source[:] = list(digest(inside))
    write_notebook(folder, about, inside)
    return pinned_program(folder)


def _take_kept(folder: Path, inside: int) -> bool:
    """Whether there was a compiled program in the cache, which is pinned now."""
    place = cache.folder(os.environ)
    kept = cache.Cache(place).find(cache.name_of(inside)) if place else None
    if kept is None:
        return False
    try:
        kept.pin(folder)
    except OSError as error:  # the kernel's reason is with the compiler's own attempt
        if error.errno == errno.EPERM:  # which it would not get to
            raise ShuntError(*_explain("Operation not permitted")) from None
        log.warning("the program is compiled, as the kept one cannot be loaded: %s", error)
        return False
    log.info("the program was compiled before, and is taken from %s", place)
    return True


def _compile(folder: Path, inside: int) -> None:
    try:
        compiled = subprocess.run(
            [sys.executable, "-m", "loader.compile", str(folder), str(inside), str(os.getpid())],
            capture_output=True,
            text=True,
            timeout=_COMPILE_LIMIT,
            check=False,
            cwd=Path(__file__).resolve().parent.parent,
        )
    except subprocess.TimeoutExpired:
        raise ShuntError(
            f"the XDP program was not compiled and loaded within {_COMPILE_LIMIT:.0f} s",
            "Try again when the machine is less busy.",
        ) from None
    if compiled.returncode:
        raise ShuntError(*_explain(compiled.stderr.strip()))
    if remark := compiled.stdout.strip():
        log.info("%s", remark)


def pinned_program(folder: Path) -> bpf.ProgramInfo:
    """What the kernel says of the program that is pinned in *folder*."""
    descriptor = bpf.pinned(folder / PROGRAM)
    try:
        return bpf.program_info(descriptor)
    finally:
        os.close(descriptor)


def notebook(folder: Path) -> types.About:
    """What the agent has noted in the maps of this version in *folder*."""
    with bpf.Map.open(folder / "about") as opened:
        value = opened.lookup(bytes(4))
    assert value is not None
    return types.About.from_buffer_copy(value)


def write_notebook(folder: Path, about: types.About, inside: int) -> None:
    """Note *about*, and with it how the maps in *folder* are laid out: as this version's are."""
    description = layout(sizes(inside)).to_json()
    about.length = len(description)
    ctypes.memset(about.layout, 0, len(about.layout))
    ctypes.memmove(about.layout, description, len(description))
    with bpf.Map.open(folder / "about") as opened:
        opened.update(bytes(4), bytes(about))


def not_permitted(pins: Path, error: PermissionError) -> ShuntError:
    """What the kernel's refusal to let us at *pins* means."""
    if error.errno == errno.EPERM:
        return ShuntError(*_explain("Operation not permitted"))
    return ShuntError(
        f"the pins at {pins} are another user's",
        f"Give them to the agent's: `sudo chown -R USER {pins}`.",
    )


def _explain(trouble: str) -> tuple[str, str]:
    if "No module named 'bcc'" in trouble or "libbcc.so" in trouble:
        return "BCC is not installed", "Install python3-bpfcc, or run `./provision.sh`."
    if "Operation not permitted" in trouble:
        return (
            "the kernel does not let us load BPF programs",
            "Capabilities count only outside of containers' user namespaces, and Secure Boot's "
            "lockdown can forbid BPF.",
        )
    # What the compiler or the verifier said comes before Python's own words.
    said, _, last = trouble.partition("Traceback (most recent call last):")
    lines = [*said.splitlines()[-12:], *last.splitlines()[-1:]] or ["no output"]
    return (
        "the XDP program cannot be loaded on this kernel:\n" + "\n".join(lines),
        "The relay needs Linux 6.1 or newer with BPF and XDP; please report this output.",
    )
