"""The frame generator: templates and plans for `generator.c`, and the numbers that it works by."""

import ctypes
import os
import struct
from collections.abc import Sequence
from enum import IntFlag
from pathlib import Path
from typing import Any

from loader import bpf
from loader.source import compiler_flags, kernel_source
from tools.bench.frames import checksum_words, network_offset, pseudo_header

__all__ = [
    "CLIENT_PORTS",
    "Generator",
    "Plan",
    "Programs",
    "Vary",
    "bare_programs",
    "client",
    "template",
    "ufrag",
]

_FOLDER = Path(__file__).resolve().parent
_HEAD = 112
_DRAWS = 10
_IPV6 = 128
CLIENT_PORTS = 64512
_UFRAG_AT, _TRANSACTION_AT = 24, 16  # in a STUN message


class Vary(IntFlag):
    """What differs from frame to frame; `SHUNT_VARY_…`."""

    NOTHING = 0
    CLIENT = 1
    PORT = 2
    STRANGER = 4
    SLOT = 8
    UFRAG = 16
    GUESS = 32
    TRANSACTION = 64


class _Template(ctypes.Structure):
    _fields_ = [
        ("head", ctypes.c_uint8 * _HEAD),
        ("length", ctypes.c_uint32),
        ("vary", ctypes.c_uint32),
        ("ip_sum", ctypes.c_uint32),
        ("udp_sum", ctypes.c_uint32),
    ]


class Plan(ctypes.Structure):
    """`struct shunt_plan`."""

    _fields_ = [
        (name, ctypes.c_uint32)
        for name in (
            *("numbers", "next", "ifindex", "routed", "routes", "transceivers"),
            *("transceiver", "inside", "first_port", "ports"),
        )
    ]


def client(number: int) -> tuple[int, int]:
    """The address, as a number, and the port of the number's client."""
    address = 0x10000000 + (number * 0x9E3779B1 & 0x3FFFFFFF)
    mixed = (number * 0x85EBCA6B & 0xFFFFFFFF) >> 16
    return address, 1024 + (mixed * CLIENT_PORTS >> 16)


_LETTERS = str.maketrans("0123456789abcdef", "abcdefghijklmnop")


def ufrag(route: int, rest: str) -> str:
    """The ufrag of a route: eight letters for its number, the lowest first, and the *rest*."""
    return f"{route:08x}"[::-1].translate(_LETTERS) + rest


def template(octets: bytes, vary: Vary = Vary.NOTHING) -> bytes:
    """A frame as `generator.c` wants it: what varies, and both checksums, zero."""
    frame = bytearray(octets)
    ipv6, udp = network_offset(octets)
    if vary:
        _blank(frame, udp, vary)
        frame[udp + 6 : udp + 8] = b"\0\0"
        if not ipv6:
            frame[24:26] = b"\0\0"
    blank = bytes(frame)
    made = _Template(
        length=len(octets),
        vary=vary | (_IPV6 if ipv6 and vary else 0),
        ip_sum=0 if ipv6 else checksum_words(blank[14:34]),
        udp_sum=checksum_words(pseudo_header(blank) + blank[udp:]),
    )
    ctypes.memmove(made.head, blank, _HEAD)
    return bytes(made)


def _blank(frame: bytearray, udp: int, vary: Vary) -> None:
    fields: list[tuple[int, int]] = []
    if vary & (Vary.CLIENT | Vary.STRANGER):
        fields += [(26, 4), (udp, 2)]
    if vary & Vary.PORT:
        fields += [(udp, 2)]
    if vary & Vary.SLOT:
        fields += [(26, 8), (udp + 2, 2)]
    if vary & (Vary.UFRAG | Vary.GUESS):
        fields += [(udp + 8 + _UFRAG_AT, 8)]
    if vary & Vary.TRANSACTION:
        fields += [(udp + 8 + _TRANSACTION_AT, 4)]
    for place, size in fields:
        frame[place : place + size] = bytes(size)


class Programs:
    """A C file of this folder, compiled; its programs and maps live as long as this does."""

    def __init__(self, name: str, *flags: str) -> None:
        os.environ["BCC_KERNEL_SOURCE"] = str(kernel_source())
        from bcc import BPF  # it looks for kernel headers once, when imported

        text = (_FOLDER / name).read_text().encode()
        self._compiled: Any = BPF(text=text, cflags=[*compiler_flags(_FOLDER), *flags])
        self._kind = BPF.XDP

    def program(self, name: str) -> int:
        """A descriptor, not the caller's to close."""
        loaded: int = self._compiled.load_func(name.encode(), self._kind).fd
        return loaded

    def map(self, name: str) -> bpf.Map:
        """One of the maps, not the caller's to close."""
        return bpf.Map(self._compiled[name.encode()].get_fd())


def bare_programs(public: int, inside: int, *, few: int = 1, lines: int = 1) -> Programs:
    """`bare.c` between two interfaces; what touches memory touches one of *few* lines, or of all
    *lines*."""
    given = {"PUBLIC": public, "INSIDE": inside, "FEW": few, "LINES": lines}
    return Programs("bare.c", *(f"-D{name}={value}" for name, value in given.items()))


class Generator:
    """Writes frames: to an interface (`generate`), or for another program (`restore`)."""

    def __init__(self) -> None:
        self._programs = Programs("generator.c")
        self.generate = self._programs.program("generate")
        self.restore = self._programs.program("restore")
        self._templates = self._programs.map("templates")
        self._draws = self._programs.map("draws")
        self._plan = self._programs.map("plan")
        self._after = self._programs.map("after")

    def write(self, templates: Sequence[bytes], plan: Plan) -> None:
        """What comes next: one of the *templates*, each as likely as it is often there. There are
        1, 2, 5 or 10."""
        if not templates or _DRAWS % len(templates):
            raise ValueError(f"{len(templates)} templates are not drawn evenly")
        for place, made in enumerate(templates):
            self._templates.update(_u32(place), made)
        for draw in range(_DRAWS):
            self._draws.update(_u32(draw), _u32(draw % len(templates)))
        self._plan.update(_u32(0), bytes(plan))

    def then(self, program: int) -> None:
        """The program that `restore` hands its frame on to."""
        self._after.update(_u32(0), _u32(program))


def _u32(number: int) -> bytes:
    return struct.pack("=I", number)
