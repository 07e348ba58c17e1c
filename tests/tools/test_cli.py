import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from loader.client import Vip
from loader.config import AgentConfig
from tools.cli import main
from tools.processes import ROOT

AGENT_RUN = [
    *("agent", "run", "--config", "/dev/null", "--public", "a", "--inside", "b,a.100"),
    *("--inside-address", "10.0.0.1", "--inside-address", "fd00::1"),
]


def shunt(
    *argv: str, before: tuple[str, ...] = (), env: dict[str, str] | None = None
) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*before, sys.executable, "-m", "tools", *argv],
        cwd=ROOT,
        env={**os.environ, **(env or {})},
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
        [*AGENT_RUN, "--vip", "x"],
        [*AGENT_RUN, "--inside-ports", "0-1"],
        [*AGENT_RUN, "--vip", "2001:db8::1:3478"],
        [*AGENT_RUN, "--vip", "[198.18.0.1]:3478"],
        [*AGENT_RUN, "--vip", "[2001:db8::1]"],
        [*AGENT_RUN, "--uid", "somebody"],
    ],
)
def test_wrong_usage_exits_with_2(argv: list[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(argv)

    assert exit_.value.code == 2


@pytest.fixture
def configured(monkeypatch: pytest.MonkeyPatch) -> list[AgentConfig]:
    """What an agent would have run with: first, and when it reads that again."""
    configs: list[AgentConfig] = []

    def run(config: AgentConfig, *, read: Callable[[], AgentConfig]) -> None:
        configs.extend([config, read()])

    monkeypatch.setattr("loader.daemon.run", run)
    monkeypatch.setattr("loader.logs.configure", lambda *how: None)
    return configs


def test_an_agent_takes_vips_and_inside_addresses_of_both_families(
    configured: list[AgentConfig],
) -> None:
    assert main([*AGENT_RUN, "--vip", "198.18.0.1:3478", "--vip", "[2001:db8::1]:3479"]) == 0

    config = configured[0]
    assert config.vips == (Vip("198.18.0.1", 3478), Vip("2001:db8::1", 3479))
    assert config.inside_addresses == ("10.0.0.1", "fd00::1")
    assert config.interfaces == ["a", "b", "a.100"]


def test_an_agent_takes_every_option_as_the_key_it_stands_for(
    configured: list[AgentConfig],
) -> None:
    argv = [*AGENT_RUN, "--vip", "198.18.0.1:3478", "--inside-ports", "20000-20063"]
    argv += ["--socket", "here.sock", "--pins", "/pins", "--uid", "7", "--uid", "8"]

    assert main(argv) == 0

    first, again = configured
    assert first == again
    assert (first.first_port, first.last_port) == (20000, 20063)
    assert (first.socket, first.pins) == (Path("here.sock"), Path("/pins"))
    assert first.uids == {7, 8}


def test_an_agent_reads_the_file_and_the_environment_and_options_win(
    configured: list[AgentConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "agent.toml"
    file.write_text('[relay]\npublic = ["file"]\nvips = ["198.18.0.1:1"]\n[log]\nlevel = "error"')
    monkeypatch.setenv("SHUNT_AGENT_RELAY_VIPS", "198.18.0.2:2")

    assert main([*AGENT_RUN, "--config", str(file)]) == 0

    config = configured[0]
    assert config.public == ("a",)
    assert config.vips == (Vip("198.18.0.2", 2),)
    assert config.log_level == "error"
    assert config.config_file == file


def test_an_agent_that_lacks_something_says_what(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(AGENT_RUN) == 1

    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "shunt: /dev/null: vips in [relay] is missing"
    assert "--vip" in lines[1]


def test_an_agent_that_logs_json_says_in_json_why_it_ends() -> None:
    argv = [*AGENT_RUN, "--vip", "198.18.0.1:1", "--pins", "/nowhere"]

    done = shunt(*argv, env={"SHUNT_AGENT_LOG_FORMAT": "json"})

    assert done.returncode == 1
    line = json.loads(done.stderr)
    assert (line["level"], line["message"]) == ("error", "/nowhere is not in bpffs")
    assert line["facts"]["cure"]


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


TRANSCEIVER_RUN = [
    *("transceiver", "run", "--id", "x1", "--udp", "127.0.0.1:0", "--http", "127.0.0.1:0"),
]


@pytest.mark.parametrize("workers", [1, 3])
def test_a_transceivers_options_reach_it(monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
    from ipaddress import ip_network

    from transceiver.server import TransceiverConfig
    from transceiver.signaling import Limits
    from transceiver.signaling.limits import Rate

    started: list[tuple[TransceiverConfig, int]] = []
    monkeypatch.setenv("SHUNT_API_KEY", "k")
    monkeypatch.setattr("transceiver.server.run", lambda config: started.append((config, 1)))
    monkeypatch.setattr(
        "transceiver.workers.run", lambda config, count: started.append((config, count))
    )
    options = ["--workers", str(workers), "--address-rate", "3:9", "--api-key-rate", "7"]
    options += ["--trusted-proxy", "10.0.0.0/8", "--trusted-proxy", "fd00::/8"]
    assert main([*TRANSCEIVER_RUN, *options]) == 0
    ((config, count),) = started
    assert count == workers
    limits = config.request_limits
    assert limits.address == Rate(3, 9)
    assert limits.api_key == Rate(7, 7)
    assert limits.ephemeral_key == Limits().ephemeral_key
    assert limits.proxies == (ip_network("10.0.0.0/8"), ip_network("fd00::/8"))


@pytest.mark.parametrize(
    "option",
    [["--address-rate", "0"], ["--api-key-rate", "often"], ["--trusted-proxy", "10.0.0.1/8"]],
)
def test_a_transceivers_options_must_make_sense(
    option: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit:
        main([*TRANSCEIVER_RUN, *option])
    assert exit.value.code == 2
    assert option[0] in capsys.readouterr().err
