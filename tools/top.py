"""`shunt top`: the relay, live, read from the pinned maps; it needs no agent."""

import json
import os
import select
import sys
import termios
import time
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from tools.pinned import look
from tools.rates import Rates, Snapshot, rates
from tools.tables import grid

__all__ = ["picture", "run"]


def run(*, once: bool, interval_s: float, as_json: bool) -> int:
    """Show the relay every *interval_s* seconds until q or Ctrl-C; with *once*, one picture of
    one interval. Raises ShuntError if nothing is pinned."""
    before = look()
    if once or as_json:
        while True:
            time.sleep(interval_s)
            after = look()
            speeds = rates(before, after)
            if as_json:
                print(json.dumps(_as_json(after, speeds)), flush=True)
            else:
                Console().print(picture(after, speeds, rows=None))
            if once:
                return 0
            before = after
    console = Console()
    speeds = rates(before, before)
    with (
        _keys() as keys,
        Live(console=console, screen=True, auto_refresh=False) as live,
    ):
        while True:
            # Two rows are the screen's own; the console asks for the terminal's size each time.
            live.update(picture(before, speeds, rows=console.size.height), refresh=True)
            if _quit_within(keys, interval_s):
                return 0
            after = look()
            speeds, before = rates(before, after), after


def picture(now: Snapshot, speeds: Rates, *, rows: int | None) -> RenderableType:
    """One screen of it. With *rows*, only as many flows as fit, the busiest first."""
    counters = now.counters
    modes = ", ".join(f"{name} ({mode})" for name, mode in counters["mode"].items())
    head = Text.assemble(
        ("shunt", "bold"),
        f"   XDP on {modes or 'no interface'}   {len(now.routes)} routes   {now.flow_count} flows",
    )
    traffic = grid(
        "traffic",
        ("direction", "packets", "bytes", "packets/s"),
        (
            (way.replace("_", " "), counters[way]["packets"], counters[way]["bytes"], speed)
            for way, speed in speeds.traffic.items()
        ),
    )
    reasons = [
        (reason, count, speeds.dropped[reason])
        for reason, count in counters["dropped"].items()
        if count
    ]
    dropped: RenderableType = (
        grid("dropped", ("reason", "packets", "packets/s"), reasons)
        if reasons
        else Text("no drops")
    )
    busiest = sorted(now.flows, key=lambda flow: -sum(speeds.flows[flow["slot"]].values()))
    waiting = [route for route in now.routes if not route["slots"]]
    if rows is not None:
        room = max(1, rows - 20 - len(reasons))
        busiest, waiting = busiest[:room], waiting[: max(1, room - len(busiest))]
    flows = grid(
        "flows",
        ("inside", "state", "client", "ufrag", "to", "in/s", "out/s", "idle s"),
        (
            (
                flow["inside"],
                flow["state"],
                flow["client"],
                flow["ufrag"],
                flow["transceiver"],
                speeds.flows[flow["slot"]]["to_transceiver"],
                speeds.flows[flow["slot"]]["to_client"],
                float(flow["idle_s"]),
            )
            for flow in busiest
        ),
    )
    routes = grid(
        "routes without a flow",
        ("ufrag", "transceiver"),
        ((route["ufrag"], route["transceiver"]) for route in waiting),
    )
    parts: list[RenderableType] = [head, traffic, dropped]
    return Group(*parts, *([flows] if busiest else []), *([routes] if waiting else []))


def _as_json(now: Snapshot, speeds: Rates) -> dict[str, Any]:
    counters = dict(now.counters)
    return {
        "interfaces": counters.pop("mode"),
        "routes": now.routes,
        "flows": [flow | {"packets_per_s": speeds.flows[flow["slot"]]} for flow in now.flows],
        **counters,
        "packets_per_s": {"traffic": speeds.traffic, "dropped": speeds.dropped},
    }


@contextmanager
def _keys() -> Iterator[int | None]:
    """Single key presses from the terminal, without echo; None where stdin is no terminal."""
    if not sys.stdin.isatty():
        yield None
        return
    descriptor = sys.stdin.fileno()
    kept = termios.tcgetattr(descriptor)
    try:
        tty.setcbreak(descriptor)
        yield descriptor
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, kept)


def _quit_within(keys: int | None, seconds: float) -> bool:
    if keys is None:
        time.sleep(seconds)
        return False
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        if select.select([keys], [], [], left)[0] and os.read(keys, 1) in (b"q", b"Q", b""):
            return True
    return False
