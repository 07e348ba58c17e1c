"""One timer for all the sessions of a loop: each is called every 20 ms, not all at one instant.

Encoding takes a fraction of a millisecond. If a hundred sessions had theirs at once, the loop would
answer nobody for that long; so they are spread over ten phases.
"""

import math
import time
from collections.abc import Callable
from typing import Protocol

from transceiver.media.playout import FRAME

__all__ = ["Handle", "Loop", "Metronome", "Tick"]

Tick = Callable[[float], object]
"""Called with the time at which it was due, which is a little before the time it is."""

OWN_SHARE = 0.3
"""The part of a core that a process must be using to be called full when it does not keep pace: one
that is starved by others has room for another call as soon as they let it."""

_PHASES = 10
_CAUGHT_UP = 3  # ticks
_BEHIND, _IN_PACE = 0.010, 0.004  # s of lateness: half a frame; what a loop under load is used to
_SMOOTHED = 1.0  # s, over which lateness is averaged
_ASKED = 0.1  # s from asking for the thread's time to asking again: that is a slow system call


class Timer(Protocol):
    def cancel(self) -> None: ...


class Loop(Protocol):
    """What is needed of asyncio's."""

    def time(self) -> float: ...

    def call_at(self, when: float, callback: Callable[[], None], /) -> Timer: ...


class Handle:
    """A place in the metronome; `cancel` gives it up and may be called at any time, and again."""

    __slots__ = ("_members", "tick")

    def __init__(self, members: "dict[Handle, None]", tick: Tick) -> None:
        self._members = members
        self.tick: Tick | None = tick

    def cancel(self) -> None:
        self.tick = None
        self._members.pop(self, None)


class Metronome:
    """Calls each of its members once in 20 ms, with no drift.

    If the loop was held up, up to three ticks are made up for at once; those before that are left
    out: members see from the times they are called with. What a member raises goes to the loop's
    exception handler, and the others are called all the same.

    `lateness`: by how many seconds the ticks of about the last second came late, on the average.
    `is_behind`: whether that says that the loop cannot keep pace, so that it should get no more to
    do; true above 10 ms, and from then on until it is below 4. `share`: the part of a core that the
    loop's thread has used meanwhile, by *cpu* (s), since who is late may also be so because of
    others. All three are nothing without members.
    """

    def __init__(self, loop: Loop, cpu: Callable[[], float] = time.thread_time) -> None:
        self.lateness = 0.0
        self.share = 0.0
        self.is_behind = False
        self._loop = loop
        self._cpu = cpu
        self._ran_at = 0.0
        self._asked_at = 0.0
        self._used = 0.0
        self._closed = False
        self._phases: list[dict[Handle, None]] = [{} for _ in range(_PHASES)]
        self._origin = loop.time()
        self._next = 0  # steps of a phase each, from the origin
        self._timer: Timer | None = None
        self._due: list[tuple[Handle, float]] = []  # in reverse

    def __len__(self) -> int:
        return sum(map(len, self._phases))

    @property
    def is_full(self) -> bool:
        """Whether it is behind because of what its own process does: there should be no more."""
        return self.is_behind and self.share > OWN_SHARE

    def add(self, tick: Tick) -> Handle:
        """From now on, or 20 ms later, until the handle is cancelled. RuntimeError once closed."""
        if self._closed:
            raise RuntimeError("the metronome is closed")
        members = min(self._phases, key=len)
        handle = Handle(members, tick)
        members[handle] = None
        if self._timer is None:
            self._ran_at = self._asked_at = self._loop.time()
            self._used = self._cpu()
            self._next = self._step(self._ran_at) + 1
            self._arm()
        return handle

    def close(self) -> None:
        """Call nobody from now on, and give up all members. May be called again, and in a tick."""
        self._closed = True
        for members in self._phases:
            for handle in list(members):
                handle.cancel()
        if self._timer is not None:
            self._timer.cancel()
        self._rest()

    def _step(self, now: float) -> int:
        return int((now - self._origin) * _PHASES / FRAME)

    def _time(self, step: int) -> float:
        return self._origin + step * FRAME / _PHASES

    def _arm(self) -> None:
        """For the next phase that has members."""
        for step in range(self._next, self._next + _PHASES):
            if self._phases[step % _PHASES]:
                self._next = step
                self._timer = self._loop.call_at(self._time(step), self._run)
                return
        self._rest()

    def _rest(self) -> None:
        """There is nobody to call, and so nobody is called late."""
        self._timer = None
        self.lateness = self.share = 0.0
        self.is_behind = False

    def _measure(self, now: float) -> None:
        """Steps were due since `_next`, and come now."""
        elapsed = now - self._ran_at
        if elapsed <= 0:
            return
        self._ran_at = now
        late = max(0.0, now - self._time(self._next))
        self.lateness += _weight(elapsed) * (late - self.lateness)
        self.is_behind = self.lateness > (_IN_PACE if self.is_behind else _BEHIND)
        if now - self._asked_at >= _ASKED:
            elapsed, used = now - self._asked_at, self._cpu()
            self.share += _weight(elapsed) * ((used - self._used) / elapsed - self.share)
            self._asked_at, self._used = now, used

    def _run(self) -> None:
        """All steps that are due."""
        now = self._loop.time()
        self._measure(now)
        last = max(self._next, self._step(now))
        first = max(self._next, last - _CAUGHT_UP * _PHASES + 1)
        self._next = last + 1
        due = [
            (handle, self._time(step))
            for step in range(first, last + 1)
            for handle in self._phases[step % _PHASES]
        ]
        self._due = due[::-1] + self._due
        self._arm()
        self._call()

    def _call(self) -> None:
        due = self._due
        try:
            while due:
                handle, at = due.pop()
                if handle.tick is not None:
                    handle.tick(at)
        finally:
            if due:  # a member has raised: the others have their turn as soon as that is told
                self._loop.call_at(self._loop.time(), self._call)


def _weight(seconds: float) -> float:
    """Of what held for so long, in an average over `_SMOOTHED`."""
    return 1 - math.exp(-seconds / _SMOOTHED)
