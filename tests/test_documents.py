"""What documents list is what the code has."""

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
