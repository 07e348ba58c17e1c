"""`python -m tools.bench.sender ORDER`: sends numbered packets at a steady rate until told to stop.

The sockets are inherited, and say by themselves which namespace they send in. A line on standard
input starts it, and the end of standard input stops it; what it has done it prints as JSON.

What must not overflow on the way is a veth's ring of 256 packets. The kernel takes them out on the
CPU that has put them in, before sendmmsg(2) returns: so this process stays on one CPU, sends few at
a time, and goes before those that only compute, or the kernel's own thread would have to take over
and wait for its turn. Behind time, it sends its bursts closer together, but for a moment only.
"""

import errno
import json
import mmap
import os
import select
import sys
import time
from collections import Counter
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from tools.bench.mmsg import Batch, pack_address
from tools.bench.numbered import compose, template

__all__ = ["BURST", "Order", "Sent", "go_first"]

BURST = 16
"""Packets by one system call, all of one flow."""
_BEHIND = 0.05  # seconds that are caught up with
_STUBBORN = 1000  # errors in a row

# With these, sendmmsg has sent nothing, and the same may be sent again: an ICMP error that another
# packet has caused, and a queue that is full.
_PASSING = {errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENOBUFS, errno.EAGAIN}


@dataclass(frozen=True, slots=True)
class Order:
    """What to send: *rate* packets a second over all flows, for *limit_s* seconds at most.

    There is a socket for each flow, connected; or one socket for all, and *targets*. How many were
    sent is written to the *place* of the shared memory that *live* is a descriptor of.
    """

    direction: int
    sockets: list[int]
    targets: list[tuple[str, int]]
    rate: float
    size: int
    cpu: int
    live: int
    place: int
    limit_s: float


@dataclass(frozen=True, slots=True)
class Sent:
    """What was sent: packets by flow, seconds from the first to the last, the longest pause
    between two bursts, by how much the schedule was missed for good, and errors by name."""

    flows: list[int]
    seconds: float
    longest_pause: float
    skipped: float
    errors: dict[str, int]


def run(order: Order) -> Sent:
    """Wait for the start, send, and tell."""
    flows = max(len(order.sockets), len(order.targets))
    packets = flows * BURST
    batch = Batch(packets, order.size)
    batch.payloads[:] = template(packets, order.size)
    for flow, target in enumerate(order.targets):
        batch.address(pack_address(*target), flow * BURST, BURST)
    flow_of, place_of = np.divmod(np.arange(packets), BURST)
    live = np.frombuffer(mmap.mmap(order.live, 0), np.uint64)
    errors: Counter[str] = Counter()
    stop = select.poll()
    stop.register(sys.stdin.fileno(), select.POLLIN | select.POLLHUP)
    print("ready", flush=True)
    sys.stdin.readline()

    interval = BURST / order.rate
    began = last = due = time.monotonic()
    pause = skipped = 0.0
    bursts = 0
    while not stop.poll(0) and last - began < order.limit_s:
        turn, flow = divmod(bursts, flows)
        if flow == 0:
            compose(batch.payloads, order.direction, flow_of, turn * BURST + place_of)
        _send(batch, flow * BURST, order.sockets[flow % len(order.sockets)], errors)
        bursts += 1
        live[order.place] = bursts * BURST
        now = time.monotonic()
        pause, last = max(pause, now - last), now
        due += interval
        if now < due:
            time.sleep(due - now)
        elif now > due + _BEHIND:
            skipped += now - due
            due = now
    turns, more = divmod(bursts, flows)
    sent = [BURST * (turns + (flow < more)) for flow in range(flows)]
    return Sent(sent, last - began, pause, skipped, dict(errors))


def _send(batch: Batch, first: int, descriptor: int, errors: "Counter[str]") -> None:
    """A burst. Raises OSError if it will not go."""
    done = failed = 0
    while done < BURST:
        try:
            done += batch.send(descriptor, first + done, BURST - done)
            failed = 0
        except OSError as error:
            failed += 1
            if error.errno not in _PASSING or failed > _STUBBORN:
                raise
            errors[errno.errorcode[error.errno]] += 1


def go_first(cpus: set[int], *, priority: int) -> None:
    """Stay on these CPUs, and go before every process of less *priority*, if we may."""
    os.sched_setaffinity(0, cpus)
    with suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(priority))


def _parse(text: str) -> Order:
    fields: dict[str, Any] = json.loads(text)
    return Order(**fields)


if __name__ == "__main__":
    _order = _parse(sys.argv[1])
    go_first({_order.cpu}, priority=2)
    print(json.dumps(asdict(run(_order))), flush=True)
