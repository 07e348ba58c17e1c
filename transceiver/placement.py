"""Which of the worker processes of one command takes a new call: the one that has the fewest.

Whichever worker a connection happens to reach, its calls last for minutes, so chance would leave
some workers full beside others that are idle. Each tells its load on a board in shared memory, and
whoever is asked for a new call reads all of it. Each also tells that it lives: one whose event loop
stands still is left out.
"""

import mmap
import os
import time
from collections.abc import Callable, Sequence
from typing import Self

__all__ = ["Board", "Place"]

AWAY = -1
"""The load of who takes no calls."""
WORD = 8
"""Bytes of a number: aligned, it is read and written as one."""

BEAT_SECONDS = 0.5
"""How often each tells that it lives."""
STALE_SECONDS = 3.0
"""After which somebody that tells nothing is taken to be away."""


class Board:
    """The loads of workers by name, in shared memory: the file *descriptor*, which is theirs.

    *clock*: seconds of a clock that is the same in all processes, and does not go back.
    """

    def __init__(
        self,
        descriptor: int,
        names: Sequence[str],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.descriptor = descriptor
        self.names = tuple(names)
        self._clock = clock
        self._map = mmap.mmap(descriptor, 2 * WORD * len(self.names))
        self._words = memoryview(self._map).cast("q")
        self._loads = self._words[: len(self.names)]
        self._beats = self._words[len(self.names) :]

    @classmethod
    def create(cls, names: Sequence[str], *, clock: Callable[[], float] = time.monotonic) -> Self:
        """A board on which all are away."""
        descriptor = os.memfd_create("shunt-placement")
        os.ftruncate(descriptor, 2 * WORD * len(names))
        board = cls(descriptor, names, clock=clock)
        for name in names:
            board.withdraw(name)
        return board

    def close(self) -> None:
        """Give the memory and the descriptor back."""
        for view in (self._loads, self._beats, self._words):
            view.release()
        self._map.close()
        os.close(self.descriptor)

    def tell(self, name: str, load: int) -> None:
        """*name* lives, and has *load* calls."""
        self.beat(name)
        self._loads[self.names.index(name)] = load

    def beat(self, name: str) -> None:
        """*name* lives."""
        self._beats[self.names.index(name)] = int(1000 * self._clock())

    def silence(self, name: str) -> float:
        """Seconds since *name* was last told to live."""
        return self._clock() - self._beats[self.names.index(name)] / 1000

    def withdraw(self, name: str) -> None:
        """*name* takes no calls."""
        self.tell(name, AWAY)

    def load(self, name: str) -> int | None:
        """How many calls *name* has; None if it takes no more, or has told nothing of late."""
        load = self._loads[self.names.index(name)]
        return None if load == AWAY or self.silence(name) > STALE_SECONDS else load

    def least(self, among: Sequence[str]) -> str | None:
        """Who of *among* has the fewest calls, the first of equals; None if all are away."""
        loads = [(load, name) for name in among if (load := self.load(name)) is not None]
        return min(loads, key=lambda each: each[0])[1] if loads else None


class Place:
    """One worker's place on a board."""

    def __init__(self, board: Board, name: str) -> None:
        self._board = board
        self._name = name
        self._others = tuple(other for other in board.names if other != name)
        self._leaving = False

    def tell(self, load: int) -> None:
        """This one has *load* calls."""
        if not self._leaving:
            self._board.tell(self._name, load)

    def beat(self) -> None:
        """This one lives."""
        self._board.beat(self._name)

    def leave(self) -> None:
        """This one takes no more calls, whatever it tells."""
        self._leaving = True
        self._board.withdraw(self._name)

    def better(self) -> str | None:
        """The name of another that should rather take a call; None if it is this one."""
        other = self._board.least(self._others)
        mine = self._board.load(self._name)
        if other is None or mine is None:
            return other
        theirs = self._board.load(other)
        return other if theirs is not None and theirs < mine else None
