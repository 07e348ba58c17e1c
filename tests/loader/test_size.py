"""The size of the program's parts, always shown: they grow until a kernel refuses them."""

from pathlib import Path

import pytest

from loader.source import parts
from tools.bench.facts import program_sizes

GIVES_UP = 1_000_000  # instructions that the verifier walks through, and that a program may have


def test_the_verifier_has_room_for_each_part(
    pins: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = program_sizes(pins)

    with capsys.disabled():
        print("\n  part             verified  instructions  machine code")
        for size in sizes:
            instructions = size.xlated // 8
            print(f"  {size.name:15} {size.verified:9}  {instructions:12}  {size.jited:10} B")

    assert len(sizes) == 1 + len(parts())
    assert all(0 < size.verified < GIVES_UP // 2 for size in sizes)
    assert all(0 < size.xlated // 8 < GIVES_UP // 2 for size in sizes)
