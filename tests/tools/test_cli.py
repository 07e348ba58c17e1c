import subprocess
import sys

import pytest

from loader.client import Vip
from loader.config import AgentConfig
from tools.cli import main
from tools.processes import ROOT

AGENT_RUN = [
    *("agent", "run", "--public", "a", "--inside", "b,a.100"),
    *("--inside-address", "10.0.0.1", "--inside-address", "fd00::1"),
]


def shunt(*argv: str, before: tuple[str, ...] = ()) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*before, sys.executable, "-m", "tools", *argv],
        cwd=ROOT,
        text=True,
        capture_output=True,
        check=False,
    )


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["lab"],
        ["fly"],
        ["demo", "--port", "0"],
        ["lab", "up", "--transceivers", "0"],
        ["agent", "run"],
        ["agent", "run", "--public", "a", "--inside", "b", "--vip", "x", "--inside-address", "y"],
        [*AGENT_RUN, "--vip", "2001:db8::1:3478"],
        [*AGENT_RUN, "--vip", "[198.18.0.1]:3478"],
        [*AGENT_RUN, "--vip", "[2001:db8::1]"],
        AGENT_RUN,
    ],
)
def test_wrong_usage_exits_with_2(argv: list[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(argv)

    assert exit_.value.code == 2


def test_an_agent_takes_vips_and_inside_addresses_of_both_families(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    configured: list[AgentConfig] = []
    monkeypatch.setattr("loader.daemon.run", configured.append)

    assert main([*AGENT_RUN, "--vip", "198.18.0.1:3478", "--vip", "[2001:db8::1]:3479"]) == 0

    (config,) = configured
    assert config.vips == (Vip("198.18.0.1", 3478), Vip("2001:db8::1", 3479))
    assert config.inside_addresses == ("10.0.0.1", "fd00::1")
    assert config.interfaces == ["a", "b", "a.100"]


def test_an_error_is_one_line_with_its_cure_below(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["call", "http://127.0.0.1:9"]) == 1

    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("shunt: http://127.0.0.1:9/v1/realtime/calls cannot be reached")
    assert lines[1].startswith("  ")


def test_without_root_the_lab_says_so() -> None:
    nobody = ("setpriv", "--reuid=65534", "--clear-groups")
    if subprocess.run([*nobody, "test", "-x", sys.executable], check=False).returncode:
        pytest.skip("nobody else may read this checkout")

    done = shunt("lab", "up", before=nobody)

    assert (done.returncode, done.stderr.splitlines()[0]) == (1, "shunt: this needs root")


def test_help_imports_nothing_heavy() -> None:
    heavy = "{'aiortc', 'av', 'numpy', 'bcc', 'pyroute2', 'aiohttp', 'rich'}"
    script = f"import sys, tools.cli; print({heavy} & set(sys.modules))"

    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, text=True, capture_output=True, check=True
    )

    assert done.stdout.strip() == "set()"


def test_what_follows_test_goes_to_pytest() -> None:
    done = shunt("test", "--collect-only", "-q", "tests/tools/test_rates.py")

    assert done.returncode == 0, done.stderr
    assert "test_rates.py::" in done.stdout
    assert "tests collected" in done.stdout
