"""The diagnosis for people: a table of what was found, then what is to be done about it."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tools.doctor.findings import Diagnosis, Verdict

__all__ = ["show", "to_json"]

_STYLES = {
    Verdict.FAILURE: "bold red",
    Verdict.WARNING: "yellow",
    Verdict.UNKNOWN: "cyan",
    Verdict.OK: "green",
    Verdict.NOT_APPLICABLE: "dim",
}
_TO_MEND = (Verdict.FAILURE, Verdict.WARNING, Verdict.UNKNOWN)


def show(diagnoses: Sequence[Diagnosis], console: Console | None = None) -> None:
    """Print it: what is well stays in the table, the rest is explained below it."""
    console = console or Console()
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="dim")
    for column in ("", "check", "about"):
        table.add_column(column, no_wrap=True)
    table.add_column("finding", overflow="fold")
    for each in diagnoses:
        verdict = each.finding.verdict
        if verdict is not Verdict.NOT_APPLICABLE:
            row = (each.check.name, each.finding.about, Text(each.finding.found))
            table.add_row(Text(verdict, _STYLES[verdict]), *row)
    console.print(table)
    for verdict in _TO_MEND:
        for each in diagnoses:
            if each.finding.verdict is verdict:
                _explain(console, each)
    spared = dict.fromkeys(
        each.check.name for each in diagnoses if each.finding.verdict is Verdict.NOT_APPLICABLE
    )
    console.print(Text(f"\n{Verdict.NOT_APPLICABLE}: {', '.join(spared) or 'none'}", "dim"))
    counts = Counter(each.finding.verdict for each in diagnoses)
    console.print(
        ", ".join(f"{counts[verdict]} {verdict}" for verdict in Verdict if counts[verdict])
    )


def _explain(console: Console, each: Diagnosis) -> None:
    finding = each.finding
    title = Text(f"\n{finding.verdict}: {each.check.name}", _STYLES[finding.verdict])
    console.print(title.append(f" {finding.about}" if finding.about else "", ""))
    console.print(Text(f"  {finding.found[:1].upper()}{finding.found[1:]}.\n  {each.check.why}"))
    if finding.cure:  # in one line, however long: it is to be copied
        console.print(Text(f"  → {finding.cure}", "bold"), soft_wrap=True)


def to_json(diagnoses: Sequence[Diagnosis]) -> dict[str, Any]:
    """`-o json`: the names of checks and verdicts are stable, the words are not."""
    counts = Counter(each.finding.verdict for each in diagnoses)
    return {
        "findings": [
            {
                "check": each.check.name,
                "about": each.finding.about,
                "verdict": each.finding.verdict,
                "found": each.finding.found,
                "why": each.check.why,
                "cure": each.finding.cure,
            }
            for each in diagnoses
        ],
        "counts": {verdict: counts[verdict] for verdict in Verdict},
    }
