"""One bench from start to exit status: measured, printed, held to its targets."""

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tools.bench.report import Held, Report, hold, read_targets

__all__ = ["run"]

_PINS = Path("/sys/fs/bpf/shunt-bench")


def run(name: str, *, quick: bool, check: bool, as_json: bool) -> int:
    """Exit status: 1 if *check* is asked for and a target is missed. Raises ShuntError."""
    targets = read_targets(name) if check else []
    report = _bench(name)(_PINS.with_name(f"{_PINS.name}-{name}"), quick=quick, progress=_say)
    held = hold(report, targets)
    if as_json:
        print(json.dumps(_to_json(report, held), indent=2))
    else:
        _show(report, held)
    return 0 if all(each.met for each in held) else 1


def _bench(name: str) -> Callable[..., Report]:
    # Each imports what the others do not need, and BCC.
    if name == "live":
        from tools.bench import live

        return live.run
    if name == "survival":
        from tools.bench import survival

        return survival.run
    if name == "agent":
        from tools.bench import agent

        return agent.run
    if name == "transceiver":
        from tools.bench import transceiver

        return transceiver.run
    if name == "media":
        from tools.bench import media

        return media.run
    if name == "jitter":
        from tools.bench import jitter

        return jitter.run
    from tools.bench import dataplane

    return dataplane.run


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _to_json(report: Report, held: Sequence[Held]) -> dict[str, Any]:
    value = report.to_json()
    if held:
        value["targets"] = [each.to_json() for each in held]
    return value


def _show(report: Report, held: Sequence[Held]) -> None:
    from rich.console import Console

    from tools.bench.show import show

    show(Console(), report, held)
