"""What a bench prints for people; docs/performance.md has these tables."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console

from tools.bench.report import Case, Held, Report
from tools.tables import grid

__all__ = ["show"]


def show(console: Console, report: Report, held: Sequence[Held]) -> None:
    """The cases, what else was found, and the targets."""
    if report.bench == "survival":
        _show_events(console, report)
    else:
        _show_cases(console, report)
    _show_facts(console, report)
    if held:
        _show_targets(console, held)


def _show_cases(console: Console, report: Report) -> None:
    live = report.bench == "live"
    base, last = ("redirect", "lost") if live else ("swap", "how")
    columns = ["case", "what", "median", "least", "most", f"× {base}", last]
    rows = []
    for case in report.cases:
        last = f"{report.facts['lost'][case.name]:.2%}" if live else case.method
        ratio = f"{report.ratio(case.name, _base(report, case)).median:.2f}"
        rows.append((case.name, case.what, *_numbers(case, live), ratio, last))
    unit = "million packets a second" if live else report.unit
    console.print(grid(f"{report.bench}: {unit}, {_rounds(report)}", columns, rows))


def _show_events(console: Console, report: Report) -> None:
    rows = [
        (
            each["what"],
            each["sent"],
            round(each["packets_per_second"]),
            ", ".join(f"{count} {name}" for name, count in each["faults"].items()) or "none",
            f"{each['longest_gap'] * 1e3:.1f}",
            f"{each['longest_pause'] * 1e3:.1f}",
        )
        for each in report.facts["events"]
    ]
    columns = (
        *("event", "packets sent", "a second", "lost, or not as sent"),
        *("longest gap, ms", "longest pause in sending, ms"),
    )
    title = f"survival: {report.facts['flows']} flows both ways, {report.facts['rounds']} rounds"
    console.print(grid(title, columns, rows))


def _base(report: Report, case: Case) -> str:
    """What the case is compared with: live, the redirect its way."""
    if report.bench == "dataplane":
        return "bare.swap"
    return "to_client.redirect" if case.name.startswith("to_client") else "to_transceiver.redirect"


def _rounds(report: Report) -> str:
    return f"{len(report.cases[0].rounds)} rounds"


def _numbers(case: Case, live: bool) -> tuple[str, ...]:
    spread = case.spread
    scale, digits = (1e6, 2) if live else (1, 1)
    return tuple(
        f"{value / scale:.{digits}f}" for value in (spread.median, spread.low, spread.high)
    )


def _show_facts(console: Console, report: Report) -> None:
    facts = report.facts
    console.print(
        grid(
            "program",
            ("part", "instructions verified", "instructions", "bytes of machine code"),
            [(p["name"], p["verified"], p["xlated"] // 8, p["jited"]) for p in facts["program"]],
        )
    )
    if "memory" in facts:
        console.print(
            grid(
                "memory of the maps",
                ("slots", "bytes a slot", "routes", "bytes a route", "MB in all"),
                [_memory(each) for each in facts["memory"]],
            )
        )
        console.print(
            grid(
                "opening the flows through the program",
                ("flows", "established", "routes", "seconds for routes", "for flows"),
                [_setup(each) for each in facts["setup"]],
            )
        )
    console.print(
        f"Linux {facts['kernel']}, {facts['cpus']} × {facts['cpu']}{_place(facts)}; load average "
        f"{facts['load_average']:.2f}"
    )


def _place(facts: Mapping[str, Any]) -> str:
    cpu = facts["pinned_to_cpu"]
    return "" if cpu is None else f", all on CPU {cpu}"


def _memory(each: Mapping[str, Any]) -> tuple[object, ...]:
    a_slot, a_route = round(each["bytes_per_slot"]), round(each["bytes_per_route"])
    return each["slots"], a_slot, each["routes"], a_route, each["total_bytes"] // 10**6


def _setup(each: Mapping[str, Any]) -> tuple[object, ...]:
    times = (f"{each[f'seconds_for_{what}']:.2f}" for what in ("routes", "flows"))
    return each["flows"], each["established"], each["routes"], *times


def _show_targets(console: Console, held: Sequence[Held]) -> None:
    rows = [
        (
            each.target.name,
            f"{each.value.median:.2f} ({each.value.low:.2f}–{each.value.high:.2f})",
            each.target.text,
            "yes" if each.met else "NO",
        )
        for each in held
    ]
    console.print(grid("targets", ("name", "value", "target", "met"), rows))
