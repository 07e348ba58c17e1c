"""802.1Q VLAN interfaces, and what stands in for them on a kernel that has none (such as CI's).

The stand-in is a macvlan interface named as a VLAN interface would be, and little programs of tc
that add and remove the tag: on the wire it is the same. Only its kind is not, so an agent has to
be told: `agent_command`.
"""

import ctypes
import errno
import os
import socket
import struct
import sys
from functools import cache
from typing import Any

from pyroute2 import IPRoute, netns
from pyroute2.netlink.exceptions import NetlinkError

from tools.netns import create, run_in

__all__ = ["add", "agent_command"]

TAG_PROTOCOL = 0x8100
_INGRESS, _EGRESS = "ffff:fff2", "ffff:fff3"
_LAST = 0x7FFF

_BPF_SYSCALL = 321 if os.uname().machine == "x86_64" else 280
_BPF_PROG_LOAD, _BPF_PROG_TYPE_SCHED_CLS = 5, 3

# The agent's own command line, and a kernel that calls the stand-in a VLAN interface.
_AGENT = """
import sys
from loader import links

def vlan_of(message):
    info, name = message.get_attr("IFLA_LINKINFO"), message.get_attr("IFLA_IFNAME")
    if info is None or info.get_attr("IFLA_INFO_KIND") != "macvlan":
        return None
    return int(name.partition(".")[2]), 0x8100

links.vlan_of = vlan_of
from tools.cli import main
sys.exit(main(sys.argv[1:]))
"""


@cache
def real() -> bool:
    """Whether this kernel makes VLAN interfaces."""
    name = f"t-lab-{os.getpid()}-vlan"

    def make() -> bool:
        with IPRoute() as ip:
            ip.link("add", ifname="below", kind="veth", peer={"ifname": "other"})
            try:
                below = ip.link_lookup(ifname="below")[0]
                ip.link("add", ifname="below.1", kind="vlan", link=below, vlan_id=1)
            except NetlinkError as error:
                if error.code != errno.EOPNOTSUPP:
                    raise
                return False
        return True

    create(name)
    try:
        return run_in(name, make)
    finally:
        netns.remove(name)


def agent_command() -> list[str]:
    """What to run in place of `shunt`."""
    return [sys.executable, "-m", "tools"] if real() else [sys.executable, "-c", _AGENT]


def add(interface: str, vlan: int, *, alone: bool) -> str:
    """Make interface.vlan in this namespace, and bring it up; its name.

    *alone*: nothing untagged is meant for the interface below.
    """
    name = f"{interface}.{vlan}"
    with IPRoute() as ip:
        below = ip.link_lookup(ifname=interface)[0]
        if real():
            ip.link("add", ifname=name, kind="vlan", link=below, vlan_id=vlan)
        else:
            ip.link("add", ifname=name, kind="macvlan", link=below, macvlan_mode="private")
        index = ip.link_lookup(ifname=name)[0]
        ip.link("set", index=index, state="up")
        if not real():
            _filter(ip, below, _INGRESS, _removes(vlan), place=vlan)
            # Where it may be, at the same place as a VLAN interface of the kernel puts the tag on.
            _filter(ip, below if alone else index, _EGRESS, _adds(vlan), place=vlan)
            if alone:
                _filter(ip, below, _INGRESS, _drops(), place=_LAST)
    return name


def _filter(ip: Any, index: int, parent: str, program: bytes, *, place: int) -> None:
    """Attach a program to an interface's clsact, which is made if need be."""
    if not [q for q in ip.get_qdiscs(index) if q.get("kind") == "clsact"]:
        ip.tc("add", "clsact", index)
    descriptor = _load(program)
    try:
        ip.tc(
            *("add-filter", "bpf", index),
            parent=parent,
            prio=place,
            fd=descriptor,
            name="tag",
            direct_action=True,
            classid=1,
        )
    finally:
        os.close(descriptor)


# The programs. Fields of struct __sk_buff, numbers of helpers and TC_ACT_… are of linux/bpf.h and
# linux/pkt_cls.h.


def _instruction(
    code: int, *, to: int = 0, source: int = 0, offset: int = 0, value: int = 0
) -> bytes:
    return struct.pack("=BBhi", code, source << 4 | to, offset, value)


_LOAD, _AND, _SET, _UNLESS, _CALL, _EXIT = 0x61, 0x57, 0xB7, 0x55, 0x85, 0x95
_VLAN_PRESENT, _VLAN_TCI = 20, 24
_VLAN_PUSH, _VLAN_POP = 18, 19
_TC_ACT_UNSPEC, _TC_ACT_OK, _TC_ACT_SHOT = -1, 0, 2


def _returns(action: int) -> bytes:
    return _instruction(_SET, to=0, value=action) + _instruction(_EXIT)


def _adds(vlan: int) -> bytes:
    return (
        _instruction(_SET, to=2, value=socket.htons(TAG_PROTOCOL))
        + _instruction(_SET, to=3, value=vlan)
        + _instruction(_CALL, value=_VLAN_PUSH)
        + _returns(_TC_ACT_OK)
    )


def _removes(vlan: int) -> bytes:
    """Other frames are the next program's."""
    return (
        _instruction(_LOAD, to=2, source=1, offset=_VLAN_PRESENT)
        + _instruction(_UNLESS, to=2, value=1, offset=6)
        + _instruction(_LOAD, to=2, source=1, offset=_VLAN_TCI)
        + _instruction(_AND, to=2, value=0x0FFF)
        + _instruction(_UNLESS, to=2, value=vlan, offset=3)
        + _instruction(_CALL, value=_VLAN_POP)
        + _returns(_TC_ACT_OK)
        + _returns(_TC_ACT_UNSPEC)
    )


def _drops() -> bytes:
    return _returns(_TC_ACT_SHOT)


def _load(program: bytes) -> int:
    """A program of tc's, as a file descriptor."""
    code, licence = ctypes.create_string_buffer(program), ctypes.create_string_buffer(b"GPL")
    attributes = struct.pack(
        "=IIQQ",
        _BPF_PROG_TYPE_SCHED_CLS,
        len(program) // 8,
        ctypes.addressof(code),
        ctypes.addressof(licence),
    ).ljust(120, b"\0")
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor: int = libc.syscall(_BPF_SYSCALL, _BPF_PROG_LOAD, attributes, len(attributes))
    if descriptor < 0:
        raise OSError(ctypes.get_errno(), "the kernel takes no program for tc")
    return descriptor
