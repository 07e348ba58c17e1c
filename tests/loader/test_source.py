"""The flattened source: complete, each header once, and errors that point at the right file."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from loader import source
from tests.loader.conftest import ROOT


def test_every_header_is_laid_in_once_and_before_it_is_used() -> None:
    text = source.entry_source()
    starts = re.findall(r'^#line 1 "bpf/(\w+\.[ch])"$', text, re.MULTILINE)

    assert starts[0] == "shunt.c"
    assert sorted(starts) == sorted(path.name for path in source.BPF_FOLDER.glob("*.[ch]"))
    assert not re.search(r'^#include "', text, re.MULTILINE)


def test_line_marks_name_the_file_and_line_each_line_came_from() -> None:
    name, number, checked = "", 0, 0
    for line in source.entry_source().splitlines():
        mark = re.fullmatch(r'#line (\d+) "bpf/(.+)"', line)
        if mark:
            number, name = int(mark[1]), mark[2]
            continue
        original = (source.BPF_FOLDER / name).read_text().splitlines()[number - 1]
        assert line == original or (original == "#pragma once" and line == "")
        number += 1
        checked += 1
    assert checked > 500


def test_the_include_tree_is_there() -> None:
    assert (source.kernel_source() / "include/linux/kconfig.h").is_file()


def test_each_part_is_a_function_of_the_program_at_its_own_index() -> None:
    text = "".join(path.read_text() for path in source.BPF_FOLDER.glob("*.[ch]"))
    programs = set(re.findall(r"^int (shunt\w*)\(struct xdp_md \*ctx\)", text, re.MULTILINE))

    assert set(source.parts().values()) | {"shunt"} == programs
    assert list(source.parts()) == list(range(len(source.parts())))


def test_no_entry_of_a_list_is_overlooked() -> None:
    """However clang-format breaks its lines."""
    for header in ("reasons.h", "parts.h"):
        written = (source.BPF_FOLDER / header).read_text()
        assert len(source.entries(header)) == len(re.findall(r"\bX\(\d+,", written)) > 0


@pytest.mark.parametrize("file", ["shunt.c", "slot.h", "types.h"])
def test_a_compile_error_names_the_file_and_line_to_edit(tmp_path: Path, file: str) -> None:
    shutil.copytree(ROOT / "loader", tmp_path / "loader")
    shutil.copytree(ROOT / "bpf", tmp_path / "bpf")
    broken = tmp_path / "bpf" / file
    lines = broken.read_text().splitlines()
    lines.append("static_assertion_of_nothing;")
    broken.write_text("\n".join(lines) + "\n")
    pins = tmp_path / "pins"

    compiled = subprocess.run(
        [sys.executable, "-m", "loader.compile", str(pins), "1", str(os.getpid())],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )

    assert compiled.returncode != 0
    assert f"bpf/{file}:{len(lines)}:" in compiled.stderr
