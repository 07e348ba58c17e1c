"""What documents list is what the code has."""

import ast
import re
from pathlib import Path

from loader.reasons import REASONS

ROOT = Path(__file__).resolve().parent.parent


def test_the_packet_walk_lists_every_reason_as_it_is() -> None:
    rows = re.findall(
        r"^\| (\d+) \| `(\w+)` \| (.+) \|$", (ROOT / "docs/packet-walk.md").read_text(), re.M
    )
    assert rows == [(str(r.number), r.name, r.meaning) for r in REASONS]


def test_every_link_in_a_document_leads_somewhere() -> None:
    for document in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name} → {target}"


def test_every_attack_names_reasons_and_tests_that_exist() -> None:
    relay, transceiver = (ROOT / "docs/attacks.md").read_text().split("## At the transceiver")
    for text, folder in ((relay, "tests/packets"), (transceiver, "tests/transceiver")):
        rows = [
            [cell.strip() for cell in line.strip("|").split("|")]
            for line in text.splitlines()
            if line.startswith("| ")
        ][1:]
        assert rows
        for row in rows:
            attack, *_, limit, tests = row
            assert len(row) == 5, attack
            assert set(re.findall(r"`(\w+)`", limit)) <= {reason.name for reason in REASONS}, attack
            named = re.findall(r"`([\w/]+\.py)::(\w+)`", tests)
            assert named, attack
            for file, name in named:
                assert name in _tests_of(ROOT / folder / file), f"{file}::{name}"


def _tests_of(file: Path) -> set[str]:
    """What pytest would collect: functions of the module itself."""
    return {
        node.name
        for node in ast.parse(file.read_text()).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.name.startswith("test_")
    }
