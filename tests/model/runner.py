"""Histories by hypothesis, before model and program alike, until so many packets have been sent.

`python -m tests.model.runner PINS PACKETS SEED` does it with what is pinned below PINS, in a
network namespace of its own, and prints what came of it as JSON.
"""

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tests.model.bench import Bench, Links, enter_namespace
from tests.model.world import Difference, Tied, World

__all__ = ["Report", "explore"]

_STEPS = 60
_EXAMPLES = 400
"""Histories for each seed, before the next: hypothesis keeps what it has tried."""

_step = st.binary(min_size=6, max_size=6).map(lambda octets: int.from_bytes(octets, "big"))
_history = st.tuples(st.integers(0, 2**32 - 1), st.lists(_step, min_size=1, max_size=2 * _STEPS))
_long = st.tuples(st.integers(0, 2**32 - 1), st.lists(_step, min_size=_STEPS, max_size=_STEPS))


@dataclass(slots=True)
class Report:
    """What came of it. *coverage*: how often packets met each reason (- for none) and each kind of
    end; *difference*: the shortest history found at the end of which the two differ."""

    seed: int
    packets: int
    seconds: float
    coverage: dict[str, int]
    difference: str | None


def explore(bench: Bench, links: Links, first_seed: int, packets: int) -> Report:
    """Send at least so many packets, or find a difference."""
    began = time.monotonic()
    coverage: Counter[str] = Counter()
    sent, number = 0, first_seed
    difference: str | None = None

    def play(of: int, steps: list[int]) -> None:
        nonlocal sent
        world = World(bench, links, of, coverage)
        try:
            for step in steps:
                world.step(step)
                world.check()
        except Tied:
            return
        except Difference as found:
            raise Difference("\n".join([*world.history, str(found)])) from None
        finally:
            sent += world.packets

    def receive(example: tuple[int, list[int]]) -> None:
        nonlocal difference
        if difference is not None:
            raise Difference(difference)
        try:
            play(*example)
        except Difference as found:
            difference = _shortest(play, *example, str(found))
            raise Difference(difference) from None

    while sent < packets and difference is None:
        run = seed(number)(
            settings(
                max_examples=min(_EXAMPLES, 20 + (packets - sent) // 200),
                database=None,
                deadline=None,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
                report_multiple_bugs=False,
                print_blob=False,
            )(given(_long | _history)(receive))
        )
        with suppress(Difference):
            run()
        number += 1
    return Report(first_seed, sent, time.monotonic() - began, dict(coverage), difference)


def _shortest(play: Callable[[int, list[int]], None], of: int, steps: list[int], text: str) -> str:
    """What is left when no more steps can be taken out without the difference going, too.

    Steps draw what they do from their number, so that hypothesis's own shrinking, which tries
    smaller numbers, takes minutes to find little.
    """
    size = len(steps) // 2
    while size:
        start = 0
        while start < len(steps):
            fewer = steps[:start] + steps[start + size :]
            try:
                play(of, fewer)
            except Difference as found:
                steps, text = fewer, str(found)
            else:
                start += size
        size //= 2
    return text


class _Faulty(Bench):
    """A program that now and then sends on what it has half changed: to test the comparison."""

    def receive(self, frame: bytes, ifindex: int):  # type: ignore[no-untyped-def]
        seen = super().receive(frame, ifindex)
        if seen.frame != frame and seen.frame[-1] == 7:
            return type(seen)(seen.verdict, frame[:20] + seen.frame[20:], seen.counted)
        return seen


def _main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("pins", type=Path)
    parser.add_argument("packets", type=int)
    parser.add_argument("seed", type=int)
    parser.add_argument("--faulty", action="store_true", help="compare with a faulty program")
    arguments = parser.parse_args()
    links = enter_namespace()
    bench = (_Faulty if arguments.faulty else Bench)(arguments.pins)
    try:
        report = explore(bench, links, arguments.seed, arguments.packets)
    finally:
        bench.close()
    json.dump(asdict(report), sys.stdout)


if __name__ == "__main__":
    _main()
