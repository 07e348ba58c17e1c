"""What a bench prints for people; docs/performance.md has these tables."""

import math
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
    elif report.bench == "transceiver":
        _show_calls(console, report)
    elif report.bench == "jitter":
        _show_delays(console, report)
    else:
        _show_cases(console, report)
    _show_facts(console, report)
    if held:
        _show_targets(console, held)


def _show_cases(console: Console, report: Report) -> None:
    bench = report.bench
    last = {"live": ("lost",), "dataplane": ("how",)}.get(bench, ())
    columns = ["case", "what", "median", "least", "most", f"× {_BASES[bench]}", *last]
    rows = []
    for case in report.cases:
        base = _base(report, case)
        ratio = f"{report.ratio(case.name, base).median:.2f}" if base else ""
        more = (_last(report, case),) if last else ()
        rows.append((case.name, case.what, *_numbers(case, bench), ratio, *more))
    unit = "million packets a second" if bench == "live" else report.unit
    console.print(grid(f"{bench}: {unit}, {_rounds(report)}", columns, rows))


_BASES = {"dataplane": "swap", "live": "redirect", "agent": "none", "media": "libopus"}
_DIGITS = {"dataplane": 1, "live": 2, "agent": 3, "media": 2}


def _last(report: Report, case: Case) -> str:
    return f"{report.facts['lost'][case.name]:.2%}" if report.bench == "live" else case.method


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


def _show_calls(console: Console, report: Report) -> None:
    facts = report.facts
    console.print(
        grid(
            f"transceiver, {_rounds(report)}",
            ("case", "what", "unit", "median", "least", "most", "× stock"),
            [_call(report, case) for case in report.cases],
        )
    )
    loads = facts["loads"].items()
    console.print(
        grid(
            "while sessions were counted",
            ("who", "calls", "of its core"),
            [
                (who, _range(each, "calls", ".0f"), _range(each, "share", ".0%"))
                for who, each in loads
            ],
        )
    )
    codec = [_range(facts["codec"], f"{what}_us", ".0f") for what in ("decoding", "encoding")]
    console.print(f"libopus takes {codec[0]} µs to decode a packet, {codec[1]} µs to encode one")
    points = facts["come_and_gone"]
    console.print(
        grid(
            "memory of the transceiver",
            ("sessions come and gone", "MiB", "tasks", "descriptors"),
            [
                (p["sessions"], f"{p['bytes'] / 2**20:.1f}", p["tasks"], p["descriptors"])
                for p in points
            ],
        )
    )


def _call(report: Report, case: Case) -> tuple[str, ...]:
    who, _, rest = case.name.partition(".")
    stock, ratio = f"stock.{rest}", ""
    if who != "stock" and any(each.name == stock for each in report.cases):
        ratio = f"{report.ratio(case.name, stock).median:.2f}"
    spread = case.spread
    values = (f"{value:,.1f}" for value in (spread.median, spread.low, spread.high))
    return (case.name, case.what, case.unit, *values, ratio)


def _range(found: Sequence[Mapping[str, float]], key: str, form: str) -> str:
    """The least and the most."""
    least, most = (format(end(each[key] for each in found), form) for end in (min, max))
    return least if least == most else f"{least}–{most}"


_BARS = " ▁▂▃▄▅▆▇█"
_FULL = 320.0  # ms, of a whole bar


def _show_delays(console: Console, report: Report) -> None:
    """A line for each receiver on each trace; in the chart, a character is a second."""
    delays, frames = [], []
    for each in report.facts["lag"]:
        trace, who = each["trace"], each["receiver"]

        def values(*keys: str, digits: int, of: str = f"{trace}.{who}") -> list[str]:
            found = (report.case(f"{of}.{key}").spread.median for key in keys)
            return [f"{round(value, digits) + 0.0:.{digits}f}" for value in found]

        numbers = values("p50", "p95", "p99", "left", digits=1)
        delays.append((trace, who, *numbers, _bars(each["ms_by_second"])))
        what = each["what"] if who == "shunt" else ""
        counts = values("recovered", "concealed", "missing", "spoiled", digits=0)
        frames.append((trace, what, who, *counts))
    columns = ("trace", "who", "p50", "p95", "p99", "left", f"by the second, █ {_FULL:g} ms")
    console.print(grid(f"jitter: added delay, ms, {_rounds(report)}", columns, delays))
    kinds = ("recovered", "concealed", "missing", "spoiled")
    console.print(grid("frames, of 30 s", ("trace", "what", "who", *kinds), frames))


def _bars(values: Sequence[float]) -> str:
    most = len(_BARS) - 1
    return "".join(_BARS[min(most, math.ceil(most * value / _FULL))] for value in values)


def _base(report: Report, case: Case) -> str | None:
    """What the case is compared with: live, the redirect its way, and of media, libopus; of the
    agent, the one that has nothing."""
    if report.bench == "dataplane":
        return "bare.swap"
    if report.bench == "media":
        return f"{case.name.partition('.')[0]}.libopus"
    if report.bench == "agent":
        rest = case.name.split(".")[1:]
        same = ".".join(("none", *rest))
        return same if any(each.name == same for each in report.cases) else None
    return "to_client.redirect" if case.name.startswith("to_client") else "to_transceiver.redirect"


def _rounds(report: Report) -> str:
    return f"{max(len(case.rounds) for case in report.cases)} rounds"


def _numbers(case: Case, bench: str) -> tuple[str, ...]:
    spread, scale, digits = case.spread, 1e6 if bench == "live" else 1, _DIGITS[bench]
    return tuple(
        f"{value / scale:.{digits}f}" for value in (spread.median, spread.low, spread.high)
    )


def _show_facts(console: Console, report: Report) -> None:
    facts = report.facts
    if "program" in facts:
        console.print(
            grid(
                "program",
                ("part", "instructions verified", "instructions", "bytes of machine code"),
                [
                    (p["name"], p["verified"], p["xlated"] // 8, p["jited"])
                    for p in facts["program"]
                ],
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
    if "setup" in facts:
        console.print(
            grid(
                "opening the flows through the program",
                ("flows", "established", "routes", "seconds for routes", "for flows"),
                [_setup(each) for each in facts["setup"]],
            )
        )
    if "agents" in facts:
        _show_agents(console, report)
    console.print(
        f"Linux {facts['kernel']}, {facts['cpus']} × {facts['cpu']}{_place(facts)}; load average "
        f"{facts['load_average']:.2f}"
    )


def _show_agents(console: Console, report: Report) -> None:
    facts = report.facts
    rows = []
    for each in facts["agents"]:
        name = each["name"]
        times = [report.case(f"{name}{several}.put.each").spread.median for several in ("", ".8")]
        rows.append(
            (
                *(name, each["routes"], each["flows"]),
                *(f"{1e3 / milliseconds:,.0f}" for milliseconds in times),
                *(f"{each['adoption_s']:.2f}", each["resident_bytes"] // 10**6),
            )
        )
    columns = ("agent", "routes", "flows", "routes a second", "8 at once", "s to adopt", "MB")
    console.print(grid("agents", columns, rows))
    console.print(
        f"an agent's own memory: {facts['bytes_per_route']:.0f} bytes a route, "
        f"{facts['bytes_per_slot']:.0f} a slot in use"
    )
    following = facts["following"]
    mac, storm = following["mac"], following["storm"]["mac"]
    rows = [
        ("a transceiver's MAC address", f"{mac['median_ms']:.1f}", f"{mac['worst_ms']:.1f}"),
        *(
            (f"{what} {following['transceivers']} transceivers", "", f"{following[key]:.1f}")
            for what, key in (
                ("the gateway's MAC address, for", "gateway_ms"),
                ("the relay's own, for", "link_ms"),
                ("another route, for", "route_ms"),
            )
        ),
        (
            "a MAC address amid 10,000 events a second about others",
            *(f"{storm[key]:.1f}" for key in ("median_ms", "worst_ms")),
        ),
    ]
    title = "from a change in the kernel to the map, ms"
    console.print(grid(title, ("change", "median", "worst, or all"), rows))


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
