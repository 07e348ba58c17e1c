"""A digest of a set of ufrags: by it both sides of the API see that they hold the same routes."""

import hashlib
from collections.abc import Iterable
from functools import reduce
from operator import xor

__all__ = ["digest", "digest_of", "written"]


def digest_of(ufrag: str) -> int:
    """Of one ufrag: 64 bits. Those of a set are combined by exclusive or, in whatever order."""
    return int.from_bytes(hashlib.blake2b(ufrag.encode(), digest_size=8).digest(), "big")


def digest(ufrags: Iterable[str]) -> str:
    """Of a set."""
    return written(reduce(xor, map(digest_of, ufrags), 0))


def written(combined: int) -> str:
    """As the API has it."""
    return f"{combined:016x}"
