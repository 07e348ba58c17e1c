"""`python -m tools.bench.receiver ORDER`: takes numbered packets in, and says which did not come.

The sockets are inherited. A line on standard input says how many were sent, by flow: what is
missing then has a second to come. The outcome is printed as JSON.
"""

import json
import mmap
import select
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tools.bench.mmsg import Batch, pack_address
from tools.bench.numbered import Flow, Tally
from tools.bench.sender import go_first

__all__ = ["Order", "Received", "parse"]

_AT_ONCE = 64
_ROOM = 8192  # packets that can be taken in before they are looked at
_ENOUGH = 1024  # of them to look at, once no socket has more: what came meanwhile is then in order
_QUIET = 1.0  # seconds in which nothing comes any more
_PAUSE = 0.005  # seconds: the sockets hold far more, and to be woken by each packet costs the most


@dataclass(frozen=True, slots=True)
class Order:
    """What to expect: there is a socket for each flow, connected; or one socket for all, and the
    *sources* that they come from, by flow. How many came is written to the *place* of the shared
    memory that *live* is a descriptor of."""

    direction: int
    sockets: list[int]
    sources: list[tuple[str, int]]
    size: int
    cpus: list[int]
    live: int
    place: int


@dataclass(frozen=True, slots=True)
class Received:
    """What came, by flow; see `numbered.Tally`."""

    flows: list[Flow]
    corrupted: int
    astray: int
    longest_gap: float


class _Receiver:
    def __init__(self, order: Order) -> None:
        self._order = order
        flows = max(len(order.sockets), len(order.sources))
        self.tally = Tally(order.direction, flows, order.size)
        # A byte more than is sent, so that what is too long shows.
        self._batch = Batch(_ROOM, order.size + 1)
        self._ways = np.zeros(_ROOM, np.int64)
        self._filled = 0
        self._sources = {
            pack_address(*source).tobytes(): flow for flow, source in enumerate(order.sources)
        }
        self._live = np.frombuffer(mmap.mmap(order.live, 0), np.uint64)
        self._came = 0

    def take(self, flow: int, descriptor: int) -> None:
        """What waits at a socket."""
        with suppress(BlockingIOError, ConnectionRefusedError):
            while True:
                if self._filled + _AT_ONCE > _ROOM:
                    self.look()
                count = self._batch.receive(descriptor, self._filled, _AT_ONCE)
                taken = slice(self._filled, self._filled + count)
                self._ways[taken] = flow
                self._filled += count
                self._came += count
                self._live[self._order.place] = self._came
                if count < _AT_ONCE:
                    return

    def look(self, *, at_least: int = 1) -> None:
        """Count what was taken in, if it is so many."""
        if self._filled < at_least:
            return
        taken = slice(0, self._filled)
        if self._sources:
            self._ways[taken] = self._by_source(self._batch.names[taken])
        self.tally.note(
            self._batch.payloads[taken],
            self._batch.lengths[taken],
            self._ways[taken],
            self._batch.times[taken],
        )
        self._filled = 0

    def _by_source(self, names: npt.NDArray[np.uint8]) -> list[int]:
        size = len(next(iter(self._sources)))
        return [self._sources.get(name.tobytes(), -1) for name in names[:, :size]]


def run(order: Order) -> Received:
    """Take in until all has come that was sent, or nothing comes any more."""
    receiver = _Receiver(order)
    poll = select.epoll()
    sockets = dict(zip(order.sockets, range(len(order.sockets)), strict=True))
    for descriptor in sockets:
        poll.register(descriptor, select.EPOLLIN)
    poll.register(sys.stdin.fileno(), select.EPOLLIN | select.EPOLLHUP)
    print("ready", flush=True)

    sent: list[int] | None = None
    last = time.monotonic()
    while True:
        ready = [descriptor for descriptor, _events in poll.poll(_QUIET / 4)]
        for descriptor in ready:
            if descriptor in sockets:
                receiver.take(sockets[descriptor], descriptor)
                last = time.monotonic()
            elif sent is None:
                sent = json.loads(sys.stdin.readline() or "[]")
                poll.unregister(descriptor)
                last = time.monotonic()
        receiver.look(at_least=_ENOUGH if sent is None else 1)
        if sent is not None and (
            receiver.tally.received >= sum(sent) or time.monotonic() > last + _QUIET
        ):
            break
        time.sleep(_PAUSE)
    tally = receiver.tally
    return Received(tally.flows(sent), tally.corrupted, tally.astray, tally.longest_gap)


def parse(text: str) -> Received:
    """What a receiver has printed."""
    fields: dict[str, Any] = json.loads(text)
    flows = [
        Flow(**{**flow, "lost": tuple((first, last) for first, last in flow["lost"])})
        for flow in fields.pop("flows")
    ]
    return Received(flows, **fields)


if __name__ == "__main__":
    _order = Order(**json.loads(sys.argv[1]))
    go_first(set(_order.cpus), priority=1)
    print(json.dumps(asdict(run(_order))), flush=True)
