"""The program on its way to the interfaces: load, attach, detach, unload.

`compile` makes the pins; this decides when, puts the program on interfaces in native mode, in
generic mode where it must, and takes it off again.
"""

import errno
import logging
import os
import subprocess
import sys
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from loader import bpf
from loader.capabilities import Capability, require
from loader.compile import PARTS, PROGRAM
from loader.errors import ShuntError
from loader.links import Link, link_of, mode_of
from loader.maps import check_shapes, versioned
from loader.sizes import sizes
from loader.types import Mode

__all__ = [
    "Attachment",
    "attach",
    "attached_mode",
    "load",
    "loaded",
    "make_room",
    "pinned_program",
    "unload",
]

log = logging.getLogger(__name__)

BPFFS = Path("/sys/fs/bpf")
PROGRAM_NAME = "shunt"  # as the kernel knows it
_COMPILE_LIMIT = 600.0  # seconds; it takes a few, and minutes on an emulated machine
_FLAG_GENERIC, _FLAG_NATIVE = 1 << 1, 1 << 2

_NATIVE_FAILURES = {
    errno.EOPNOTSUPP: "the driver has no native XDP",
    errno.EINVAL: "the driver refuses the interface's settings (MTU, LRO or queues)",
    errno.ERANGE: "the MTU is too large for native XDP",
    errno.ENOMEM: "the driver has no memory for its XDP queues",
    errno.ENOSPC: "the device has too few queues for XDP",
    errno.EEXIST: "it is in generic mode already, and a change loses packets: unload first",
}


@dataclass(frozen=True, slots=True)
class Attachment:
    """How an interface carries the program, and if not natively, why not.

    The program sits below VLANs: for an 802.1Q interface *ifindex* is its parent's, and *vlan*
    the VLAN's number; else that is 0. *mtu*: bytes of the interface's own IP packets. *veth*: it
    is one, which loses what XDP_TX sends. *program*: the program's id.
    """

    interface: str
    ifindex: int
    mode: Mode
    why: str = ""
    vlan: int = 0
    mtu: int = 0
    veth: bool = False
    program: int = 0


def make_room(pins: Path) -> None:
    """Make the folder for *pins* in bpffs, which is mounted if the system has not. Raises
    ShuntError."""
    if pins.is_relative_to(BPFFS) and not _in_bpffs(BPFFS):
        _mount_bpffs()
    if not _in_bpffs(pins):
        raise ShuntError(f"{pins} is not in bpffs", f"Choose --pins below {BPFFS}.")
    try:
        versioned(pins).mkdir(parents=True, exist_ok=True)
    except PermissionError as error:
        raise ShuntError(
            f"cannot make {error.filename}: {error.strerror}",
            f"Let the agent's user have {pins}: `sudo install -d -o USER -m 700 {pins}`.",
        ) from None
    except OSError as error:
        raise ShuntError(f"cannot make {versioned(pins)}: {error.strerror}") from None


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


def load(pins: Path, inside: int = 1) -> bpf.ProgramInfo:
    """Compile the program for this kernel, with maps for so many *inside* addresses, and pin it;
    pinned maps keep what they hold. Takes CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON: without the last
    the verifier refuses what this program does with pointers, and guards what is left against
    Spectre, which costs media three times the time.

    Raises ShuntError with the compiler's or the verifier's last words, and if maps for another
    number of inside addresses, or of another version's shape, are pinned.
    """
    require(
        Capability.BPF, Capability.NET_ADMIN, Capability.PERFMON, what="loading the XDP program"
    )
    make_room(pins)
    _check_shapes(pins, inside)
    try:
        compiled = subprocess.run(
            [sys.executable, "-m", "loader.compile", str(pins), str(inside)],
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
    return pinned_program(pins)


def loaded(pins: Path, inside: int = 1) -> bpf.ProgramInfo:
    """The program that `load` has pinned. Raises ShuntError if there is none, or not for so many
    *inside* addresses."""
    _check_shapes(pins, inside)
    try:
        return pinned_program(pins)
    except FileNotFoundError:
        raise ShuntError(
            f"no program is loaded at {versioned(pins)}",
            f"Load it with `sudo shunt agent load`; an agent that has {Capability.PERFMON} does "
            "so itself.",
        ) from None


def pinned_program(pins: Path) -> bpf.ProgramInfo:
    """The program that is pinned, and goes onto interfaces. Raises OSError if there is none."""
    descriptor = bpf.pinned(versioned(pins) / PROGRAM)
    try:
        return bpf.program_info(descriptor)
    finally:
        os.close(descriptor)


def _check_shapes(pins: Path, inside: int) -> None:
    try:
        check_shapes(pins, sizes(inside))
    except PermissionError as error:
        if error.errno == errno.EPERM:
            raise ShuntError(*_explain("Operation not permitted")) from None
        raise ShuntError(
            f"the pins at {versioned(pins)} are another user's",
            f"Give them to the agent's: `sudo chown -R USER {pins}`.",
        ) from None


def _explain(trouble: str) -> tuple[str, str]:
    if "No module named 'bcc'" in trouble or "libbcc.so" in trouble:
        return "BCC is not installed", "Install python3-bpfcc, or run `./provision.sh`."
    if "Operation not permitted" in trouble:
        return (
            "the kernel does not let us load BPF programs",
            "Capabilities count only outside of containers' user namespaces, and Secure Boot's "
            "lockdown can forbid BPF.",
        )
    lines = trouble.splitlines() or ["no output"]
    return (
        "the XDP program cannot be loaded on this kernel:\n" + "\n".join(lines[-12:]),
        "The relay needs Linux 6.1 or newer with BPF and XDP; please report this output.",
    )


def attach(pins: Path, interfaces: list[str]) -> list[Attachment]:
    """Put the pinned program on each interface, replacing an earlier one of ours in one step.

    All or nothing: if one interface fails, those that were bare before are bare again. Raises
    ShuntError if an interface is missing, carries somebody else's program, or takes none.
    """
    descriptor = bpf.pinned(versioned(pins) / PROGRAM)
    ours = _own_programs(pins)
    program = bpf.program_info(descriptor).id
    carriers: dict[int, tuple[Mode, str]] = {}  # the parent of several VLANs is attached once
    done: list[Attachment] = []
    try:
        with IPRoute() as netlink, ExitStack() as undo:
            for name in interfaces:
                carrier = _carrier(netlink, name)
                if carrier.ifindex not in carriers:
                    bare = _check_bare_or_ours(netlink, carrier, ours)
                    mode, why = carriers[carrier.ifindex] = _attach(netlink, descriptor, carrier)
                    if bare:
                        undo.callback(_detach, netlink, carrier.ifindex, mode)
                mode, why = carriers[carrier.ifindex]
                done.append(
                    Attachment(
                        name,
                        carrier.ifindex,
                        mode,
                        why,
                        carrier.vlan,
                        carrier.mtu,
                        carrier.veth,
                        program,
                    )
                )
            undo.pop_all()
            _forget_parts(netlink, pins, keep=program)
    finally:
        os.close(descriptor)
    return done


@dataclass(frozen=True, slots=True)
class _Carrier:
    """Where the program goes for a configured interface: *name* and *ifindex* of itself or its
    parent; *vlan* and *mtu* of the configured one."""

    name: str
    ifindex: int
    vlan: int
    mtu: int
    veth: bool


def _carrier(netlink: IPRoute, name: str) -> _Carrier:
    link = _link(netlink, name)
    if link.vlan == 0:
        return _Carrier(name, link.ifindex, 0, link.mtu, link.veth)
    if link.vlan is None:
        raise ShuntError(
            f"the relay cannot use the VLAN interface {name}",
            "It knows 802.1Q tags (0x8100) only, on an interface of this network namespace.",
        )
    below = link_of(netlink.get_links(link.below)[0])
    if below.vlan != 0:
        raise ShuntError(
            f"{name} is a VLAN inside the VLAN {below.name}",
            "The relay knows packets with one tag only.",
        )
    return _Carrier(below.name, below.ifindex, link.vlan, link.mtu, below.veth)


def _forget_parts(netlink: IPRoute, pins: Path, *, keep: int) -> None:
    """Remove the pins of parts whose program no interface carries any more."""
    used = {keep} | {_xdp_of(link)[1] for link in netlink.get_links()}
    for entry in versioned(pins).glob(f"{PARTS}*"):
        if int(entry.name.removeprefix(PARTS)) not in used:
            entry.unlink()


def _attach(netlink: IPRoute, descriptor: int, carrier: _Carrier) -> tuple[Mode, str]:
    name, ifindex = carrier.name, carrier.ifindex
    try:
        _set_program(netlink, ifindex, descriptor, Mode.NATIVE)
        return Mode.NATIVE, ""
    except NetlinkError as native:
        why = _NATIVE_FAILURES.get(native.code, str(native))
    try:
        _set_program(netlink, ifindex, descriptor, Mode.GENERIC)
    except NetlinkError as generic:
        raise ShuntError(
            f"{name} takes no XDP program: natively: {why}; generic: {generic}",
            "Use another interface, or a kernel with XDP.",
        ) from None
    return Mode.GENERIC, why


def _detach(netlink: IPRoute, ifindex: int, mode: Mode) -> None:
    with suppress(NetlinkError):  # an interface that is gone carries nothing
        _set_program(netlink, ifindex, -1, mode)


def _check_bare_or_ours(netlink: IPRoute, carrier: _Carrier, ours: set[int]) -> bool:
    """Whether the interface is bare. Raises ShuntError if it is somebody else's."""
    _mode, id = _attached(netlink, carrier.ifindex)
    if not id:
        return True
    if id in ours or (name := _name(id)) == PROGRAM_NAME:
        return False
    raise ShuntError(
        f"{carrier.name} already carries another XDP program: {name or 'one'} (id {id})",
        f"Take it off first: `ip link set dev {carrier.name} xdp off`.",
    )


def _own_programs(pins: Path) -> set[int]:
    """Ids of all programs that agents have pinned here, of any version: none is forgotten while an
    interface carries it (`_forget_parts`). To look at a program by its id takes CAP_SYS_ADMIN."""
    return {int(pin.name.removeprefix(PARTS)) for pin in pins.glob(f"*/{PARTS}*")}


def _name(id: int) -> str:
    """A program's name; empty if it is gone, or not ours to see."""
    with suppress(FileNotFoundError, PermissionError):
        descriptor = bpf.program_by_id(id)
        try:
            return bpf.program_info(descriptor).name
        finally:
            os.close(descriptor)
    return ""


def _set_program(netlink: IPRoute, ifindex: int, descriptor: int, mode: Mode) -> None:
    flags = _FLAG_NATIVE if mode is Mode.NATIVE else _FLAG_GENERIC
    attributes = [("IFLA_XDP_FD", descriptor), ("IFLA_XDP_FLAGS", flags)]
    netlink.link("set", index=ifindex, xdp={"attrs": attributes})


def _link(netlink: IPRoute, name: str) -> Link:
    found: list[int] = netlink.link_lookup(ifname=name)
    if not found:
        raise ShuntError(f"there is no interface {name} here", "`ip link` lists what there is.")
    return link_of(netlink.get_links(found[0])[0])


def _attached(netlink: IPRoute, ifindex: int) -> tuple[Mode, int]:
    return _xdp_of(netlink.get_links(ifindex)[0])


def _xdp_of(link: Any) -> tuple[Mode, int]:
    xdp = link.get_attr("IFLA_XDP")
    return mode_of(link), (xdp and xdp.get_attr("IFLA_XDP_PROG_ID")) or 0


def attached_mode(netlink: IPRoute, ifindex: int) -> Mode:
    """How the interface carries an XDP program now; DETACHED also if it is gone."""
    try:
        return _attached(netlink, ifindex)[0]
    except NetlinkError:
        return Mode.DETACHED


def unload(pins: Path) -> None:
    """Take the program off every interface of this network namespace and remove the pins.

    What is not there is no error. Flows end with it.
    """
    ours = _own_programs(pins)
    with IPRoute() as netlink:
        for link in netlink.get_links():
            mode, id = _xdp_of(link)
            if id and (id in ours or _name(id) == PROGRAM_NAME):
                _set_program(netlink, link["index"], -1, mode)
    folder = versioned(pins)
    if folder.is_dir():
        for entry in folder.iterdir():
            entry.unlink()
        folder.rmdir()
    # Another version's may be there; and a folder that root has made for the agent's user stays.
    if pins.is_dir() and not any(pins.iterdir()) and pins.stat().st_uid == os.geteuid():
        pins.rmdir()
