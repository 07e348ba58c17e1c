"""How much of a CPU a loop takes that has work without end: a burst at once, then half of the time.
No I/O; times are seconds of any clock."""

__all__ = ["Pace"]

_BURST_SECONDS = 0.1


class Pace:
    """Of one loop: what follows one change is done without a pause; of a storm of changes, others
    have half of the time."""

    def __init__(self) -> None:
        self._spent = 0.0
        self._ended = 0.0

    def rest(self, *, began: float, ended: float) -> float:
        """How long to rest after work that *began* and *ended* then. 0 is no more than a turn for
        others."""
        idle = began - self._ended
        self._spent = max(0.0, self._spent - idle) + (ended - began)
        self._ended = ended
        return max(0.0, self._spent - _BURST_SECONDS)
