"""Which bucket a client's flow is in: the hash of `bpf/flows.h` once more, for many at a time."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

__all__ = ["SLOT_MASK", "choices", "first_bucket", "flow_hash"]

SLOT_MASK = (1 << 20) - 1
"""The bits of an entry that are the slot's index; those above are of the hash."""


_Words = npt.NDArray[np.uint64]


def flow_hash(
    seed: Sequence[int], address: npt.NDArray[np.uint64], ports: npt.ArrayLike, vip: int
) -> _Words:
    """Of one client address (two 64-bit halves as they stand in memory) and many of its ports."""
    ports = np.asarray(ports, dtype=np.uint16)
    low, high = (np.array([int(half)], dtype=np.uint64) for half in address)
    hashed = (high ^ np.uint64(seed[0])) * np.uint64(0x9E3779B97F4A7C15)
    other = (low ^ np.uint64(seed[1])) * np.uint64(0xBF58476D1CE4E5B9)
    hashed ^= hashed >> np.uint64(32)
    hashed += other << np.uint64(32) | other >> np.uint64(32)
    result: _Words = hashed ^ (ports.byteswap().astype(np.uint64) | np.uint64(vip << 16))
    result *= np.uint64(0x94D049BB133111EB)
    result ^= result >> np.uint64(32)
    return result


def first_bucket(
    seed: Sequence[int],
    address: npt.NDArray[np.uint64],
    ports: npt.ArrayLike,
    vip: int,
    buckets: int,
) -> _Words:
    """The first bucket that each is looked for in."""
    result: _Words = flow_hash(seed, address, ports, vip) & np.uint64(buckets - 1)
    return result


def choices(hashed: int, buckets: int) -> list[int]:
    """All buckets that a hash is looked for in, in order."""
    step = hashed >> 32 | 1
    return [(hashed + choice * step) % 2**32 % buckets for choice in range(4)]
