"""The reasons for dropping a packet, read from `bpf/reasons.h`, where each is written once."""

import re
from dataclasses import dataclass

from loader.source import BPF_FOLDER

__all__ = ["REASONS", "Reason"]

_ENTRY = re.compile(r'X\((\d+),[\s\\]*(\w+),[\s\\]*"([^"]+)"\)')


@dataclass(frozen=True, slots=True)
class Reason:
    """Why packets are dropped: its index in the map `drops`, its stable name, its meaning."""

    number: int
    name: str
    meaning: str


REASONS: tuple[Reason, ...] = tuple(
    Reason(int(number), name, meaning)
    for number, name, meaning in _ENTRY.findall((BPF_FOLDER / "reasons.h").read_text())
)
