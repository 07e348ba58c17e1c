"""`shunt test` without arguments: lanes first, then what is to be alone, and one exit status."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tools import suite
from tools.processes import ROOT

_OPTIONS = """
[pytest]
addopts = -p xdist
markers = alone: not in lanes
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Two files for lanes, and a test that is to be alone."""
    (tmp_path / "pytest.ini").write_text(_OPTIONS)
    (tmp_path / "tests").mkdir()
    for name in ("test_one.py", "test_two.py"):
        (tmp_path / "tests" / name).write_text(
            "import os\n\ndef test_in_a_lane():\n    assert os.environ['PYTEST_XDIST_WORKER']\n"
        )
    (tmp_path / "tests" / "test_alone.py").write_text(
        "import os\nimport pytest\n\n@pytest.mark.alone\ndef test_alone():\n"
        "    assert 'PYTEST_XDIST_WORKER' not in os.environ\n"
    )
    return tmp_path


def run(project: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """In a process of its own, as no pytest that runs another."""
    script = (
        "import sys; from pathlib import Path; from tools import suite; "
        f"suite.ROOT = Path({str(project)!r}); sys.exit(suite.run(sys.argv[1:]))"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # they take longer than all the rest
    return subprocess.run(
        [sys.executable, "-c", script, *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def outcomes(output: str) -> list[str]:
    return re.findall(r"=+ (\d+ \w+(?:, \d+ \w+)*) in ", output)


def test_files_go_side_by_side_and_what_is_to_be_alone_after_them(project: Path) -> None:
    done = run(project)

    assert done.returncode == 0, done.stdout
    assert outcomes(done.stdout) == ["2 passed", "1 passed"]
    assert done.stdout.count("slowest 25 durations") == 2


def test_a_failure_of_what_is_alone_is_a_failure(project: Path) -> None:
    with (project / "tests" / "test_alone.py").open("a") as text:
        text.write("    assert False\n")

    done = run(project)

    assert done.returncode == 1
    assert outcomes(done.stdout) == ["2 passed", "1 failed"]


def test_with_arguments_pytest_does_what_they_say(project: Path) -> None:
    done = run(project, "tests/test_alone.py", "-q")

    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout
    assert "slowest" not in done.stdout


def test_there_is_a_lane_more_than_there_are_cpus_within_reason() -> None:
    assert [suite.lanes(cpus) for cpus in (1, 2, 3, 64)] == [2, 3, 4, 4]


def test_a_failure_in_a_lane_is_a_failure_also_with_text_that_is_no_unicode(project: Path) -> None:
    shutil.copy(ROOT / "tests" / "conftest.py", project / "tests")
    with (project / "tests" / "test_one.py").open("a") as text:
        text.write("    print('\\udcff'); assert '\\udcfe' == ''\n")

    done = run(project)

    assert done.returncode == 1
    assert outcomes(done.stdout) == ["1 failed, 1 passed", "1 passed"]
    assert "'\\udcfe' == ''" in done.stdout
