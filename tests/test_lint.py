"""The linters, as tests: one command checks all, and CI and a laptop check the same."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
C = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "bpf").glob("*.[ch]"))
SHELL = ["shunt", "provision.sh", "packaging/install.sh", ".ci/run"]

LINTERS = {
    "ruff": [sys.executable, "-m", "ruff", "check", "--quiet"],
    "ruff format": [sys.executable, "-m", "ruff", "format", "--diff", "--quiet"],
    "mypy": [sys.executable, "-m", "mypy", "--no-error-summary"],
    # Not below bpf/kernel: those files present the kernel's own layout.
    "clang-format": [f"{Path(sys.executable).parent}/clang-format", "--dry-run", "-Werror", *C],
    "shellcheck": ["shellcheck", *SHELL],
}


@pytest.mark.timeout(300)  # mypy without its cache, beside other lanes
@pytest.mark.parametrize("name", LINTERS)
def test_linter_finds_nothing(name: str) -> None:
    done = subprocess.run(LINTERS[name], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_lock_names_no_place_to_install_from() -> None:
    """Hashes say what is installed; where from is for each machine's pip to know."""
    for lock in ("requirements.lock", "requirements-dev.lock"):
        text = (ROOT / lock).read_text()
        assert "://" not in text, lock
        assert text.count("==") <= text.count(" \\\n"), lock
