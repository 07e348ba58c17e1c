"""The table of established flows, `bpf/flows.h`, once more: for an index that has to be made anew
because its size or shape has changed."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from loader.maps import Maps
from loader.types import BUCKET_ENTRIES, SLOT_BITS, State

__all__ = ["CHOICES", "flow_hash", "place", "rebuild"]

CHOICES = 4
"""Buckets that a hash is looked for in (SHUNT_BUCKET_CHOICES)."""

_SLOT_MASK = np.uint32((1 << SLOT_BITS) - 1)
_HALF = np.uint64(32)

Words = npt.NDArray[np.uint64]


def flow_hash(
    seed: Sequence[int], addresses: Words, ports: npt.ArrayLike, vips: npt.ArrayLike
) -> Words:
    """Of clients: *addresses* of two 64-bit halves each, as they stand in memory, shape (n, 2);
    *ports* as they stand there too (big-endian), *vips* by index."""
    low, high = addresses[:, 0], addresses[:, 1]
    hashed: Words = (high ^ np.uint64(seed[0])) * np.uint64(0x9E3779B97F4A7C15)
    other = (low ^ np.uint64(seed[1])) * np.uint64(0xBF58476D1CE4E5B9)
    hashed ^= hashed >> _HALF
    hashed += other << _HALF | other >> _HALF
    hashed ^= np.asarray(ports, np.uint64) | np.asarray(vips, np.uint64) << np.uint64(16)
    hashed *= np.uint64(0x94D049BB133111EB)
    hashed ^= hashed >> _HALF
    return hashed


def place(hashes: Words, choice: int, buckets: int) -> npt.NDArray[np.intp]:
    """The bucket that each is looked for in, the *choice*-th time."""
    step = hashes >> _HALF | np.uint64(1)
    return ((hashes + np.uint64(choice) * step) & np.uint64(buckets - 1)).astype(np.intp)


def rebuild(maps: Maps) -> int:
    """Put every established flow into the index, which is empty; how many found no place.

    For maps that no program uses yet."""
    slots = np.flatnonzero(maps.slots["to_transceiver"]["state"] == State.ESTABLISHED)
    return insert(maps, slots)


def insert(maps: Maps, slots: npt.NDArray[np.intp]) -> int:
    """Put these flows into the index, if they are not in it; how many found no place. Whoever finds
    none is put in by the program at its client's next check."""
    clients = maps.slots["to_client"][slots]
    addresses = np.ascontiguousarray(clients["client"]).view(np.uint64).reshape(-1, 2)
    ports = clients["client_port"].astype(">u2").view("<u2")
    hashes = flow_hash(maps.settings().seed, addresses, ports, clients["vip"])
    entries = (hashes >> _HALF).astype(np.uint32) & ~_SLOT_MASK | slots.astype(np.uint32)
    buckets = maps.buckets()
    table, overflowed = buckets["entries"], buckets["overflowed"]
    changed = []
    left = np.arange(len(slots))
    for choice in range(CHOICES):
        bucket = place(hashes[left], choice, len(table))
        there = (table[bucket] == entries[left, None]).any(axis=1)
        left, bucket = left[~there], bucket[~there]
        order = np.argsort(bucket, kind="stable")
        left, bucket = left[order], bucket[order]
        starts = np.flatnonzero(np.diff(bucket, prepend=-1))
        rank = np.arange(len(bucket)) - np.repeat(starts, np.diff(np.append(starts, len(bucket))))
        used = np.count_nonzero(table[bucket], axis=1)
        position = used + rank
        fits = position < BUCKET_ENTRIES
        table[bucket[fits], position[fits]] = entries[left[fits]]
        overflowed[bucket[~fits]] = 1
        changed.append(bucket)
        left = left[~fits]
    touched = np.unique(np.concatenate(changed))
    maps.set_buckets(touched, buckets[touched])
    return len(left)
