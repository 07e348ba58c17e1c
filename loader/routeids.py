"""The ids of routes: given out, taken back, and told from those that are no more. No I/O.

    31        20 19                    0
    ┌───────────┬───────────────────────┐
    │   count   │         index         │    never 0, which means "no route" in a slot
    └───────────┴───────────────────────┘

Whether a slot's route is there still is asked a million times a second, so that it is one array
compare: what stands at the id's index must be the id. The index is that of what is kept for each
route in arrays, too. It goes to the next route only after all others that are free, and the count
tells the one from the next: an id comes again after 4,096 routes at its index, billions in all.

Earlier versions gave ids in turn. They are adopted as they are: of two that share an index, one is
an *extra*, and its index is free only when both are gone.
"""

from collections import Counter
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

__all__ = ["INDEXES", "NO_ROUTE", "Ids", "RouteIds", "index_of", "indexes_of"]

Ids = npt.NDArray[np.uint32]

NO_ROUTE = 0
INDEX_BITS = 20
INDEXES = 1 << INDEX_BITS
"""Places of an array by index; that of 0 stays empty."""

_MASK = np.uint32(INDEXES - 1)
_NOBODY = 1  # at index 0, since it is no id with that index
_COUNTS = 1 << 32 - INDEX_BITS


def index_of(id: int) -> int:
    """The index in an id."""
    return id & (INDEXES - 1)


def indexes_of(ids: Ids) -> npt.NDArray[np.intp]:
    """The index in each id."""
    return (ids & _MASK).astype(np.intp)


class RouteIds:
    """The ids that are given out and not taken back."""

    def __init__(self) -> None:
        self._ids = np.zeros(INDEXES, dtype=np.uint32)
        self._ids[0] = _NOBODY
        self._counts = np.full(INDEXES, _COUNTS - 1, dtype=np.uint16)  # of the last id
        self._free = np.zeros(INDEXES, dtype=np.uint32)  # a ring, from head to tail
        self._head = self._tail = 0
        # One element of an array is read and written twice as fast this way.
        self._id_at, self._count_at = self._ids.data, self._counts.data
        self._free_at = self._free.data
        self._extras: set[int] = set()
        self._extras_at: Counter[int] = Counter()
        self._named: set[int] = set()
        self._size = 0
        self._find_free()

    def __len__(self) -> int:
        return self._size

    def __contains__(self, id: int) -> bool:
        return self._id_at[index_of(id)] == id or id in self._extras

    def known(self, ids: Ids) -> npt.NDArray[np.bool_]:
        """Of each id whether it is given out."""
        found = self.placed(ids)
        if self._extras:
            found |= np.isin(ids, np.fromiter(self._extras, dtype=np.uint32))
        return found

    def placed(self, ids: Ids) -> npt.NDArray[np.bool_]:
        """Of each id whether it is given out and has its index for itself: extras have not, so
        that in arrays by index nothing is kept of them."""
        found: npt.NDArray[np.bool_] = self._ids.take(ids & _MASK) == ids
        return found

    def place(self, id: int) -> int:
        """Where an id that is given out stands in the order of `after`."""
        return INDEXES + id if id in self._extras else index_of(id)

    def after(self, place: int, limit: int) -> list[int]:
        """The ids that are given out and stand after that place, *limit* of them at most: by
        index, and the extras last. An id does not move, so that who goes on where he was misses
        none that is there all the time. 0: from the beginning."""
        first = min(place + 1, INDEXES)
        found = self._ids[first:]
        ids: list[int] = found[np.flatnonzero(found)[:limit]].tolist()
        if len(ids) < limit and self._extras:
            ids += sorted(id for id in self._extras if INDEXES + id > place)[: limit - len(ids)]
        return ids

    def is_extra(self, id: int) -> bool:
        """Whether it is one."""
        return id in self._extras

    def take(self) -> int | None:
        """A new id; None if all are given out."""
        if self._head == self._tail:
            return None
        index = self._free_at[self._head % INDEXES]
        self._head += 1
        id = NO_ROUTE
        while id == NO_ROUTE or id in self._named:
            count = (self._count_at[index] + 1) % _COUNTS
            self._count_at[index] = count
            id = count << INDEX_BITS | index
        self._id_at[index] = id
        self._size += 1
        return id

    def give_back(self, id: int) -> None:
        """An id's route is no more. Raises KeyError for one that is not given out."""
        if id not in self:
            raise KeyError(id)
        index = index_of(id)
        if id in self._extras:
            self._extras.remove(id)
            self._extras_at[index] -= 1
        else:
            self._id_at[index] = NO_ROUTE
        self._size -= 1
        if index and self._id_at[index] == NO_ROUTE and not self._extras_at[index]:
            self._free_at[self._tail % INDEXES] = index
            self._tail += 1

    def adopt(self, live: Iterable[int] | Ids, *, named: Iterable[int] | Ids = ()) -> None:
        """Take over ids that an earlier agent gave out, before any is given out here: those of
        *live* routes, and those that slots *named*, which are no new route's."""
        given, seen = _array(live), _array(named)
        seen = seen[seen != NO_ROUTE]
        self._counts[seen & _MASK] = seen >> INDEX_BITS
        self._ids[given & _MASK] = given
        self._ids[0] = _NOBODY
        self._counts[given & _MASK] = given >> INDEX_BITS
        for id in given[self._ids[given & _MASK] != given].tolist():
            self._extras.add(id)
            self._extras_at[index_of(id)] += 1
        # Where one place was not enough for all that are named.
        other = seen[self._counts[seen & _MASK] != seen >> INDEX_BITS]
        self._named = set(other.tolist())
        self._size = int(np.count_nonzero(self._ids[1:])) + len(self._extras)
        self._find_free(after=seen & _MASK)

    def _find_free(self, after: Ids | None = None) -> None:
        """Every index that no id has, those *after* the others."""
        free = self._ids == NO_ROUTE
        free[[0, *self._extras_at]] = False
        late = np.zeros(INDEXES, dtype=bool)
        if after is not None:
            late[after] = True
        order = np.concatenate((np.flatnonzero(free & ~late), np.flatnonzero(free & late)))
        self._free[: len(order)] = order
        self._head, self._tail = 0, len(order)


def _array(ids: Iterable[int] | Ids) -> Ids:
    return ids if isinstance(ids, np.ndarray) else np.fromiter(ids, dtype=np.uint32)
