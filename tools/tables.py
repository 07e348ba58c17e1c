"""What the commands print for people: rich tables from the same facts that `-o json` prints."""

import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table

from tools.labstate import Lab

if TYPE_CHECKING:  # aiortc takes most of a second to import, and only `call` needs it
    from tools.call import CallReport

__all__ = [
    "grid",
    "show_call",
    "show_config",
    "show_counters",
    "show_lab",
    "show_list",
    "show_status",
]

COLUMNS = {
    "routes": ("ufrag", "transceiver", "slots"),
    "transceivers": ("id", "address", "port", "http", "capacity"),
    "flows": (
        *("inside", "state", "client", "ufrag", "transceiver"),
        *("to_transceiver", "to_client", "idle_s"),
    ),
}


def grid(title: str, columns: Iterable[str], rows: Iterable[Iterable[object]]) -> Table:
    """A table of cells as text; of packets and bytes, it shows the packets."""
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        header_style="dim",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    for column in columns:
        table.add_column(column.replace("_", " "), overflow="fold", no_wrap=column == "ufrag")
    for row in rows:
        table.add_row(*(_text(cell) for cell in row))
    return table


def show_config(title: str, values: Iterable[Mapping[str, Any]]) -> None:
    """Keys, their values, and where each comes from."""
    rows = []
    for entry in values:
        where, value = entry["from"], entry["value"]
        place = where["name"] or where["kind"]
        rows.append(
            (
                entry["key"],
                "" if value is None else json.dumps(value, ensure_ascii=False),
                f"{place}:{where['line']}" if where["line"] else place,
            )
        )
    Console().print(grid(title, ("key", "value", "from"), rows), markup=False)


def show_list(what: str, entries: list[Mapping[str, Any]], *, count: int | None = None) -> None:
    """*count*: how many there are, if these are only some."""
    columns = COLUMNS[what]
    rows = [[entry.get(column, "") for column in columns] for entry in entries]
    title = what if count in (None, len(rows)) else f"{what}: {len(rows)} of {count}"
    Console().print(grid(title, columns, rows) if rows else f"no {what}")


def show_counters(counters: Mapping[str, Any]) -> None:
    console = Console()
    console.print(grid("interfaces", ("interface", "mode"), counters["mode"].items()))
    directions = ("to_transceiver", "to_client", "passed")
    rows = [
        (name.replace("_", " "), counters[name]["packets"], counters[name]["bytes"])
        for name in directions
    ]
    console.print(grid("relayed", ("direction", "packets", "bytes"), rows))
    dropped = [(name, count) for name, count in counters["dropped"].items() if count]
    console.print(grid("dropped", ("reason", "packets"), dropped) if dropped else "dropped: none")


def show_lab(lab: Lab) -> None:
    console = Console()
    rows: list[tuple[str, ...]] = [
        ("client", lab.client_namespace, "198.18.0.10, 2001:db8:18::10"),
        (
            *("relay", lab.relay_namespace),
            f"VIPs {lab.vip[0]}:{lab.vip[1]}, [{lab.vip6[0]}]:{lab.vip6[1]} (UDP)",
        ),
        *((t.id, t.namespace, f"{t.http}, UDP {t.udp}") for t in lab.transceivers),
    ]
    if lab.host:
        rows.append(("host", "", "198.18.0.9, 2001:db8:18::9"))
    console.print(grid("lab", ("place", "namespace", "address"), rows))
    first = lab.transceivers[0].http
    console.print(f"API key: {lab.api_key}\nTry: shunt lab exec client ./shunt call {first}")


def show_status(status: Mapping[str, Any]) -> None:
    console = Console()
    if not status["up"]:
        left = ", ".join(status["leftovers"])
        console.print(f"down, with leftovers: {left}" if left else "down")
        return
    rows = [
        (entry["name"], entry["pid"], "runs" if entry["running"] else "ended")
        for entry in status["processes"]
    ]
    title = "up and healthy" if status["healthy"] else "up, but not healthy"
    console.print(grid(title, ("process", "pid", "state"), rows))


def show_call(report: "CallReport") -> None:
    rtt = report.datachannel_rtt_ms
    rows = [
        ("connected in", f"{report.setup_ms:.0f} ms"),
        ("audio packets sent", report.sent),
        ("audio packets received", report.received),
        ("data channel round trip", "no answer" if rtt is None else f"{rtt:.1f} ms"),
        ("media goes to", report.remote_candidate),
        ("ufrag", report.ufrag),
    ]
    Console().print(grid(report.url, ("", ""), rows))


def _text(cell: object) -> str:
    if isinstance(cell, Mapping) and "packets" in cell:
        return str(cell["packets"])
    if isinstance(cell, list):
        return ", ".join(map(str, cell))
    if cell is None:
        return "–"
    return f"{cell:.1f}" if isinstance(cell, float) else str(cell)
