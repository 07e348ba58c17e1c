"""The systemd units and their installer, as far as they show where systemd is not process 1."""

import os
import shlex
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from loader.maps import DEFAULT_PINS

ROOT = Path(__file__).parents[1]
INSTALL = ROOT / "packaging" / "install.sh"
UNITS = ("shunt-agent.service", "shunt-program.service")
MOST_EXPOSURE = 20  # tenths; of 100

Unit = dict[str, list[str]]


def install(destination: Path, *words: str) -> None:
    done = subprocess.run(
        [INSTALL, *words],
        env={**os.environ, "DESTDIR": str(destination)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A machine's root folder, after installing twice."""
    destination = tmp_path_factory.mktemp("machine")
    install(destination)
    install(destination)
    return destination


@pytest.fixture(scope="module")
def units(installed: Path) -> dict[str, Unit]:
    """What they say, by directive."""
    return {name: directives(unit_file(installed, name).read_text()) for name in UNITS}


def unit_file(installed: Path, name: str) -> Path:
    return installed / "etc" / "systemd" / "system" / name


def directives(text: str) -> Unit:
    found = defaultdict(list)
    for line in text.splitlines():
        name, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            found[name].append(value)
    return dict(found)


def test_systemd_finds_nothing_to_say_of_the_units(installed: Path) -> None:
    files = [str(unit_file(installed, name)) for name in UNITS]

    done = subprocess.run(
        ["systemd-analyze", "verify", *files], capture_output=True, text=True, check=False
    )

    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", UNITS)
def test_the_units_are_little_exposed(installed: Path, name: str) -> None:
    done = subprocess.run(
        [
            *("systemd-analyze", "security", "--no-pager", "--offline=true"),
            *(f"--threshold={MOST_EXPOSURE}", str(unit_file(installed, name))),
        ],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout


def test_the_agent_has_two_capabilities_and_only_loading_a_third(units: dict[str, Unit]) -> None:
    for name in ("AmbientCapabilities", "CapabilityBoundingSet"):
        assert units["shunt-agent.service"][name] == ["CAP_BPF CAP_NET_ADMIN"]
        assert units["shunt-program.service"][name] == ["CAP_BPF CAP_NET_ADMIN CAP_PERFMON"]


def test_both_are_of_the_same_user_and_shut_in_alike(units: dict[str, Unit]) -> None:
    agent, program = (units[name] for name in UNITS)
    own = {"AmbientCapabilities", "CapabilityBoundingSet", "Description", "After", "Wants", "Type"}

    shared = {
        name
        for name in agent.keys() & program.keys() - own
        if not name.startswith(("Exec", "Time"))
    }

    assert agent["User"] == ["shunt"]
    assert len(shared) > 25
    assert {n: agent[n] for n in shared} == {n: program[n] for n in shared}
    assert program.keys() - agent.keys() == {"CacheDirectory", "CacheDirectoryMode"}


def test_the_agent_is_a_notifying_service_that_is_started_again(units: dict[str, Unit]) -> None:
    agent = units["shunt-agent.service"]

    assert agent["Type"] == ["notify"]
    assert float(agent["WatchdogSec"][0]) > 6  # twice what a loop may stand still at least
    assert agent["Restart"] == ["on-failure"]
    assert agent["After"][0].split() == ["network-online.target", "shunt-program.service"]


@pytest.mark.parametrize("name", UNITS)
def test_the_units_start_this_checkout(units: dict[str, Unit], name: str) -> None:
    [command] = units[name]["ExecStart"]
    program, *words = shlex.split(command)
    noun, verb, *options = words

    known = subprocess.check_output(
        [sys.executable, "-P", "-m", "tools", noun, verb, "--help"], text=True
    )

    assert program == str(ROOT / "shunt")
    assert os.access(program, os.X_OK)
    assert options == ["--config", "/etc/shunt/agent.toml"]
    assert "--config" in known


def test_the_user_is_made_once_and_may_not_log_in(installed: Path) -> None:
    lines = (installed / "etc" / "passwd").read_text().splitlines()
    [user] = [line.split(":") for line in lines if line.startswith("shunt:")]

    assert user[2] != "0"
    assert user[-1].endswith("nologin")


def test_the_folder_for_pins_is_made_for_the_user_and_bound_into_the_units(
    installed: Path, units: dict[str, Unit]
) -> None:
    rules = (installed / "etc" / "tmpfiles.d" / "shunt.conf").read_text().splitlines()
    (rule,) = (line.split() for line in rules if not line.startswith("#"))

    assert rule == ["d", str(DEFAULT_PINS), "0700", "shunt", "shunt", "-"]
    for unit in units.values():
        assert unit["BindPaths"] == [str(DEFAULT_PINS)]
        assert unit["ReadOnlyPaths"] == ["/proc/sys /sys"]
        # With it, systemd 252 mounts bpffs, which is root's to enter, over the empty folder.
        assert "ProtectKernelTunables" not in unit


def test_a_configuration_that_is_there_stays(tmp_path: Path) -> None:
    install(tmp_path)
    file = tmp_path / "etc" / "shunt" / "agent.toml"
    assert file.read_bytes() == (ROOT / "packaging" / "agent.toml").read_bytes()
    file.write_text("mine")

    install(tmp_path)
    install(tmp_path, "remove")

    assert file.read_text() == "mine"
    assert not list(tmp_path.rglob("*.service"))
    install(tmp_path, "remove")
