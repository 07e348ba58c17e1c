"""The launcher and the provisioning script, in a copy of the tree whose locks are empty.

So they install nothing, need no network, and never touch the environment the suite runs in.
"""

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
LOCKS = ("requirements.lock", "requirements-dev.lock")

Done = subprocess.CompletedProcess[str]


@contextmanager
def copy_of_the_tree() -> Iterator[Path]:
    """Where anybody may read, unlike pytest's own folders."""
    with tempfile.TemporaryDirectory(prefix="shunt-tree-") as name:
        tree = Path(name)
        tree.chmod(0o755)
        for program in ("shunt", "provision.sh"):
            shutil.copy(ROOT / program, tree)
        for lock in LOCKS:
            (tree / lock).touch()
        yield tree


@pytest.fixture
def tree() -> Iterator[Path]:
    with copy_of_the_tree() as tree:
        yield tree


@pytest.fixture(scope="module")
def provisioned() -> Iterator[Path]:
    """One for all, since it takes seconds to make: each test leaves it as good as it was."""
    with copy_of_the_tree() as tree:
        assert provision(tree).returncode == 0
        yield tree


def provision(tree: Path, packages: str = "run") -> Done:
    return run(str(tree / "provision.sh"), packages)


def run(*argv: str, path: Path | None = None) -> Done:
    """*path* is a folder of programs that stand in for the system's."""
    found = os.environ["PATH"] if path is None else f"{path}:{os.environ['PATH']}"
    # No index: an empty lock needs none, and a wrong one fails at once.
    environment = os.environ | {"PATH": found, "PIP_NO_INDEX": "1"}
    return subprocess.run(argv, env=environment, capture_output=True, text=True, check=False)


def stand_in(folder: Path, **programs: str) -> Path:
    folder.mkdir()
    folder.chmod(0o755)
    for name, script in programs.items():
        file = folder / name.replace("_", "-")
        file.write_text(f"#!/bin/sh\n{script}\n")
        file.chmod(0o755)
    return folder


def on_distribution(tree: Path, os_release: str) -> Done:
    """Provision under another /etc/os-release, which only that process sees."""
    release = tree / "os-release"
    release.write_text(os_release)
    script = f"mount --bind {release} /etc/os-release && exec {tree}/provision.sh run"
    return run("unshare", "--mount", "sh", "-c", script)


def site_packages(tree: Path) -> Path:
    [found] = tree.glob(".venv/lib/python3.*/site-packages")
    return found


# ── The launcher ────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def launcher(tree: Path) -> Path:
    """With a provisioning script and a Python that only say how they were called."""
    (tree / "provision.sh").write_text('#!/bin/sh\necho "provision $*"\n')
    (tree / ".venv/bin").mkdir(parents=True)
    (tree / ".venv/bin/python").write_text('#!/bin/sh\necho "$PWD: python $*"\n')
    (tree / ".venv/bin/python").chmod(0o755)
    return tree / "shunt"


def test_the_launcher_runs_the_cli_in_the_callers_folder(launcher: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(launcher)
    said = subprocess.check_output([link, "routes", "list x"], cwd=tmp_path, text=True)
    assert said == f"provision run\n{tmp_path}: python -P -m tools routes list x\n"


def test_only_the_test_command_provisions_for_tests(launcher: Path) -> None:
    assert run(str(launcher), "test", "-k", "x").stdout.startswith("provision test\n")
    assert run(str(launcher)).stdout.startswith("provision run\n")


def test_what_cannot_be_provisioned_is_not_run(launcher: Path) -> None:
    (launcher.parent / "provision.sh").write_text("#!/bin/sh\nexit 1\n")
    done = run(str(launcher), "demo")
    assert (done.returncode, done.stdout) == (1, "")


# ── The environment ─────────────────────────────────────────────────────────────────────────────


def test_the_second_time_is_quiet_and_quick(provisioned: Path) -> None:
    began = time.monotonic()
    done = provision(provisioned)
    took = time.monotonic() - began
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert took < 1.0  # 0.03 s on a machine with nothing else to do


def test_bcc_is_debians_and_nothing_else_of_debians_is_in(provisioned: Path) -> None:
    script = "import bcc, sys; print(bcc.__file__); print(*sys.path, sep='\\n')"
    said = run(str(provisioned / ".venv/bin/python"), "-P", "-c", script).stdout.splitlines()
    assert said[0] == f"{site_packages(provisioned)}/bcc/__init__.py"
    assert Path(said[0]).resolve().is_relative_to("/usr/lib/python3/dist-packages")
    assert str(provisioned) in said
    assert [entry for entry in said if entry.endswith("dist-packages")] == []


def test_the_set_for_tests_is_added_to_the_one_for_running(provisioned: Path) -> None:
    kept = site_packages(provisioned) / "of-the-set-for-running"
    kept.touch()
    assert provision(provisioned, "test").returncode == 0
    assert kept.exists()
    assert provision(provisioned, "run").stderr == ""


def test_an_environment_that_was_not_finished_is_begun_afresh(provisioned: Path) -> None:
    for stamp in provisioned.glob(".venv/*.stamp"):
        stamp.unlink()
    half = site_packages(provisioned) / "half-installed"
    half.touch()
    assert provision(provisioned).returncode == 0
    assert not half.exists()


def test_a_changed_lock_makes_the_environment_anew(provisioned: Path) -> None:
    old = site_packages(provisioned) / "of-the-old-lock"
    old.touch()
    (provisioned / LOCKS[0]).write_text("# changed\n")
    assert "making the Python environment" in provision(provisioned).stderr
    assert not old.exists()


def test_of_two_at_once_one_waits_for_the_other(tree: Path) -> None:
    both = [
        subprocess.Popen([tree / "provision.sh"], stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = sorted(process.communicate()[1] for process in both)
    assert [process.returncode for process in both] == [0, 0]
    assert "waiting" in said[0]
    assert "making" not in said[0]
    assert "making the Python environment" in said[1]


def test_a_failing_pip_is_told_with_the_logs_end(tree: Path) -> None:
    (tree / LOCKS[0]).write_text(f"nothing-of-the-kind==1 --hash=sha256:{'0' * 64}\n")
    done = provision(tree)
    assert done.returncode == 1
    assert "shunt: pip could not install" in done.stderr
    assert "| ERROR: No matching distribution found" in done.stderr
    assert not list((tree / ".venv").glob("*.stamp"))


# ── Packages and distributions ──────────────────────────────────────────────────────────────────


def test_without_root_missing_packages_are_named(tree: Path, tmp_path: Path) -> None:
    programs = stand_in(tree / "programs", dpkg_query="echo installed nftables")
    done = run(*NOBODY, str(tree / "provision.sh"), "run", path=programs)
    assert done.returncode == 1
    assert done.stderr == (
        "shunt: Debian packages are missing: python3-venv python3-bpfcc linux-libc-dev iproute2\n"
        "  Run it once with sudo, which installs them.\n"
    )


def test_without_root_an_old_environment_of_roots_is_left_alone(provisioned: Path) -> None:
    lock = provisioned / LOCKS[0]
    before = lock.read_text()
    lock.write_text(f"{before}# changed again\n")
    done = run(*NOBODY, str(provisioned / "provision.sh"), "run")
    lock.write_text(before)
    assert done.returncode == 1
    assert done.stderr.endswith("not yours to change.\n  Run it once with sudo.\n")


def test_a_failing_apt_is_told_with_the_logs_end(tree: Path) -> None:
    programs = stand_in(
        tree / "programs", dpkg_query="true", dpkg="true", apt_get="echo no route to it; exit 100"
    )
    done = run(str(tree / "provision.sh"), "run", path=programs)
    assert done.returncode == 1
    assert "shunt: apt-get update failed." in done.stderr
    assert "| no route to it" in done.stderr


def test_lists_are_fetched_only_if_a_package_cannot_be_had_without(
    provisioned: Path, tree: Path
) -> None:
    asked = tree / "asked"
    programs = stand_in(
        tree / "programs",
        dpkg_query="true",
        apt_get=f"for word; do case $word in install|update) echo $word >>{asked};; esac; done",
    )
    assert run(str(provisioned / "provision.sh"), "run", path=programs).returncode == 0
    assert asked.read_text() == "install\n"


def test_an_unknown_distribution_is_told_which_are_known(tree: Path) -> None:
    done = on_distribution(tree, 'ID=fedora\nVERSION_ID=43\nPRETTY_NAME="Fedora Linux 43"\n')
    assert done.returncode == 1
    assert done.stderr.splitlines()[0] == (
        "shunt: cannot provision Fedora Linux 43: the ones known are Debian 12 and Ubuntu 24.04."
    )


def test_ubuntu_2404_is_known(provisioned: Path) -> None:
    done = on_distribution(provisioned, 'ID=ubuntu\nVERSION_ID="24.04"\n')
    assert done.returncode == 0, done.stderr


def test_a_set_that_does_not_exist_is_a_usage_error(tree: Path) -> None:
    assert provision(tree, "everything").returncode == 2
