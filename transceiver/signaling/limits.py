"""How often somebody may ask: token buckets, as many as there are askers, in bounded memory.

Kept as the generic cell rate algorithm has it (ITU-T I.371): one time for each asker, at which its
bucket will be full again. A full bucket is like none, so that it can be forgotten.
"""

import re
from collections import OrderedDict
from dataclasses import dataclass
from typing import Self

__all__ = ["Limiter", "Rate"]


@dataclass(frozen=True, slots=True)
class Rate:
    """So many requests a second, and *burst* at once after a pause."""

    per_second: float
    burst: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """PER_SECOND or PER_SECOND:BURST; ValueError if it is neither."""
        found = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,3})?)(?::([0-9]{1,9}))?", text)
        if found is None or float(found[1]) == 0 or found[2] == "0":
            raise ValueError(f"{text!r} is no rate: write requests a second, e.g. 5, or 5:20")
        per_second = float(found[1])
        return cls(per_second, int(found[2]) if found[2] else max(1, round(per_second)))


class Limiter:
    """Holds each asker to *rate*; knows at most *room* of them by name.

    When there are more that have asked lately, those who come new share one bucket. So nobody gets
    a fresh one by pushing his own out with many names, and those who are known keep theirs.
    """

    def __init__(self, rate: Rate, *, room: int = 10_000) -> None:
        self._step = 1 / rate.per_second
        self._depth = rate.burst / rate.per_second
        self._room = room
        self._full_at: OrderedDict[str, float] = OrderedDict()
        self._strangers_full_at = 0.0

    def __len__(self) -> int:
        return len(self._full_at)

    def take(self, asker: str, now: float) -> float:
        """0, and one request of *asker* is counted; or the seconds until it may ask again.

        *now*: seconds of any clock that does not go back.
        """
        known = asker in self._full_at
        if not known:
            self._forget(now)
        full_at = self._full_at.get(asker, now)
        shared = not known and len(self._full_at) >= self._room
        if shared:
            full_at = self._strangers_full_at
        full_at = max(full_at, now) + self._step
        if (wait := full_at - now - self._depth) > 1e-9:
            return wait
        if shared:
            self._strangers_full_at = full_at
        else:
            self._full_at[asker] = full_at
            self._full_at.move_to_end(asker)
        return 0.0

    def _forget(self, now: float) -> None:
        """Forget full buckets, the two that were used least lately at most: so never many at once,
        and more than come in."""
        for _ in range(2):
            if not self._full_at:
                return
            asker, full_at = next(iter(self._full_at.items()))
            if full_at > now:
                return
            del self._full_at[asker]
