"""The reasons for dropping a packet, read from `bpf/reasons.h`, where each is written once."""

from dataclasses import dataclass

from loader.source import entries

__all__ = ["REASONS", "Reason"]


@dataclass(frozen=True, slots=True)
class Reason:
    """Why packets are dropped: its index in the map `drops`, its stable name, its meaning."""

    number: int
    name: str
    meaning: str


REASONS: tuple[Reason, ...] = tuple(Reason(*entry) for entry in entries("reasons.h"))
