"""The program on interfaces: on, off, replaced, and all of them or none.

In native mode where the driver can, in generic mode where it must. Never over somebody else's.
"""

import errno
import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from loader import bpf
from loader.errors import ShuntError
from loader.links import Link, link_of, mode_of
from loader.maps import versioned
from loader.pinned_set import LOADING, PROGRAM, pinned_sets, program_ids, remove_folder
from loader.types import Mode

__all__ = [
    "PROGRAM_NAME",
    "Attachment",
    "Carriers",
    "attach",
    "attached_mode",
    "attached_programs",
    "check",
    "program_name",
    "unload",
]

log = logging.getLogger(__name__)

PROGRAM_NAME = "shunt"  # as the kernel knows it

_FLAG_BARE_ONLY, _FLAG_GENERIC, _FLAG_NATIVE, _FLAG_REPLACE = 1 << 0, 1 << 1, 1 << 2, 1 << 4

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


def check(pins: Path, interfaces: Iterable[str]) -> "Carriers":
    """The interfaces, bare or with a program of the relay that is pinned below *pins*.

    Raises ShuntError if one is missing, unusable, or carries somebody else's program.
    """
    ours = program_ids(pins)
    named: list[tuple[str, _Carrier]] = []
    with IPRoute() as netlink:
        for name in interfaces:
            carrier = _carrier(netlink, name)
            _mode, id = _attached(netlink, carrier.ifindex)
            if id and id not in ours and program_name(id) != PROGRAM_NAME:
                raise _somebody_elses(carrier.name, id)
            named.append((name, carrier))
    return Carriers(pins, named, ours)


def attach(pins: Path, interfaces: list[str]) -> list[Attachment]:
    """Put the pinned program on each interface, replacing an earlier one of ours in one step.

    All or nothing: if one fails, all carry again what they did. Raises ShuntError if one is
    missing, carries somebody else's program, or takes none.
    """
    return check(pins, interfaces).attach(versioned(pins))


class Carriers:
    """Interfaces that may carry the program; see `check`."""

    def __init__(self, pins: Path, named: list[tuple[str, "_Carrier"]], ours: set[int]) -> None:
        self._pins = pins
        self._named = named
        self._ours = ours

    def attach(self, folder: Path) -> list[Attachment]:
        """Put the program that is pinned in *folder* on all of them, or on none: then each
        carries again what it did. Raises ShuntError."""
        carried: dict[int, tuple[Mode, str]] = {}  # the parent of several VLANs is attached once
        done: list[Attachment] = []
        with IPRoute() as netlink, ExitStack() as held, ExitStack() as undo:
            program = held.enter_context(_pinned(folder / PROGRAM))
            before = _Before(self._pins, held)
            for name, carrier in self._named:
                if carrier.ifindex not in carried:
                    mode, id = _attached(netlink, carrier.ifindex)
                    old = before.descriptor(carrier, id)
                    carried[carrier.ifindex] = _attach(netlink, program, carrier, old)
                    undo.callback(_put_back, netlink, carrier, old, mode, program)
                mode, why = carried[carrier.ifindex]
                done.append(
                    Attachment(
                        name,
                        carrier.ifindex,
                        mode,
                        why,
                        carrier.vlan,
                        carrier.mtu,
                        carrier.veth,
                        bpf.program_info(program).id,
                    )
                )
            undo.pop_all()
        return done

    def leave_others(self) -> None:
        """Take our program off interfaces that are not among these, and used to be; also one whose
        pins are gone by now."""
        ours = self._ours | program_ids(self._pins)
        mine = {carrier.ifindex for _name, carrier in self._named}
        with IPRoute() as netlink:
            for link in netlink.get_links():
                mode, id = _xdp_of(link)
                if id in ours and link["index"] not in mine:
                    log.warning(
                        "%s is not the relay's any more: the program is taken off",
                        link.get_attr("IFLA_IFNAME"),
                    )
                    _set_program(netlink, link["index"], -1, mode)


class _Before:
    """Programs that interfaces carry, by descriptors that are closed with *stack*."""

    def __init__(self, pins: Path, stack: ExitStack) -> None:
        self._pins = {each.program: each.folder / PROGRAM for each in pinned_sets(pins)}
        self._stack = stack

    def descriptor(self, carrier: "_Carrier", id: int) -> int | None:
        """Of the program of that id, or None if there is none (0). Raises ShuntError for one that
        cannot be had: then it could not be put back."""
        if not id:
            return None
        with suppress(PermissionError, FileNotFoundError):
            if id in self._pins:
                return self._stack.enter_context(_pinned(self._pins[id]))
            descriptor = bpf.program_by_id(id)
            self._stack.callback(os.close, descriptor)
            return descriptor
        raise _somebody_elses(carrier.name, id)


@contextmanager
def _pinned(pin: Path) -> Iterator[int]:
    descriptor = bpf.pinned(pin)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _somebody_elses(interface: str, id: int) -> ShuntError:
    name = program_name(id)
    return ShuntError(
        f"{interface} already carries another XDP program: {name or 'one'} (id {id})",
        f"Take it off first: `ip link set dev {interface} xdp off`.",
    )


def program_name(id: int) -> str | None:
    """A loaded program's name, if we may ask (CAP_SYS_ADMIN)."""
    try:
        descriptor = bpf.program_by_id(id)
    except (PermissionError, FileNotFoundError):
        return None
    try:
        return bpf.program_info(descriptor).name
    finally:
        os.close(descriptor)


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


def _attach(
    netlink: IPRoute, descriptor: int, carrier: _Carrier, old: int | None
) -> tuple[Mode, str]:
    """In the place of *old*, and of nothing else."""
    name, ifindex = carrier.name, carrier.ifindex
    try:
        _set_program(netlink, ifindex, descriptor, Mode.NATIVE, instead_of=old)
        return Mode.NATIVE, ""
    except NetlinkError as native:
        why = _NATIVE_FAILURES.get(native.code, str(native))
    try:
        _set_program(netlink, ifindex, descriptor, Mode.GENERIC, instead_of=old)
    except NetlinkError as generic:
        raise ShuntError(
            f"{name} takes no XDP program: natively: {why}; generic: {generic}",
            "Use another interface, or a kernel with XDP.",
        ) from None
    return Mode.GENERIC, why


def _put_back(
    netlink: IPRoute, carrier: _Carrier, old: int | None, mode: Mode, program: int
) -> None:
    """What the interface carried before *program*, or nothing."""
    with suppress(NetlinkError):  # an interface that is gone carries nothing
        if old is None:
            mode, _id = _attached(netlink, carrier.ifindex)
            _set_program(netlink, carrier.ifindex, -1, mode)
        else:
            _set_program(netlink, carrier.ifindex, old, mode, instead_of=program)


def _set_program(
    netlink: IPRoute, ifindex: int, descriptor: int, mode: Mode, *, instead_of: int | None = None
) -> None:
    """Attach in one step, but only in the place of *instead_of*, or if there is none. A
    *descriptor* of -1 takes off whatever is there."""
    flags = _FLAG_NATIVE if mode is Mode.NATIVE else _FLAG_GENERIC
    attributes = [("IFLA_XDP_FD", descriptor)]
    if instead_of is not None:
        flags |= _FLAG_REPLACE
        attributes.append(("IFLA_XDP_EXPECTED_FD", instead_of))
    elif descriptor >= 0:
        flags |= _FLAG_BARE_ONLY
    attributes.append(("IFLA_XDP_FLAGS", flags))
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


def attached_programs() -> set[int]:
    """Ids of the XDP programs on this network namespace's interfaces."""
    with IPRoute() as netlink:
        return {id for link in netlink.get_links() if (id := _xdp_of(link)[1])}


def unload(pins: Path) -> None:
    """Take the program off every interface of this network namespace and remove the pins.

    What is not there is no error. Flows end with it.
    """
    ours = program_ids(pins)
    with IPRoute() as netlink:
        for link in netlink.get_links():
            mode, id = _xdp_of(link)
            if id and (id in ours or program_name(id) == PROGRAM_NAME):
                _set_program(netlink, link["index"], -1, mode)
    for folder in {each.folder for each in pinned_sets(pins)} | {versioned(pins), pins / LOADING}:
        if folder.is_dir():
            remove_folder(folder)
    # Another version's may be there; and a folder that root has made for the agent's user stays.
    if pins.is_dir() and not any(pins.iterdir()) and pins.stat().st_uid == os.geteuid():
        pins.rmdir()
