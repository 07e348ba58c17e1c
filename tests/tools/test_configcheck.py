"""`shunt config check`, as an operator and as a pipeline call it."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from loader.configkeys import KEYS
from tools import configdocs
from tools.cli import main
from tools.processes import ROOT

GOOD = """\
[relay]
public = ["eth0"]
inside = ["eth1"]
vips = ["203.0.113.5:3478"]
inside_addresses = ["10.0.0.1"]
[api.tcp]
listen = "127.0.0.1:8443"
token_file = "/etc/shunt/token"
"""
BAD = GOOD.replace("inside_addresses", "inside_adresses").replace("eth0", "eth/0")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "agent.toml"


def test_what_is_right_is_shown_with_where_it_comes_from(
    file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_text(GOOD)
    monkeypatch.setenv("SHUNT_AGENT_LOG_LEVEL", "debug")
    monkeypatch.setenv("COLUMNS", "200")

    assert main(["config", "check", str(file)]) == 0

    out = capsys.readouterr().out
    assert out.startswith(f"OK: {file}")
    lines = [line.split() for line in out.splitlines()]
    assert ["relay.vips", '["203.0.113.5:3478"]', f"{file}:4"] in lines
    assert ["log.level", '"debug"', "SHUNT_AGENT_LOG_LEVEL"] in lines
    assert ["relay.inside_ports", '"10000-32767"', "default"] in lines


def test_what_is_right_is_shown_as_json(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text(GOOD)

    assert main(["config", "check", str(file), "-o", "json"]) == 0

    shown: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert (shown["ok"], shown["file"]) == (True, str(file))
    assert [value["key"] for value in shown["values"]] == [key.name for key in KEYS]
    values = {value["key"]: value for value in shown["values"]}
    assert values["api.tcp.listen"] == {
        "key": "api.tcp.listen",
        "value": "127.0.0.1:8443",
        "from": {"kind": "file", "name": str(file), "line": 7},
    }
    assert values["api.tcp.certificate"]["value"] is None


def test_what_is_wrong_is_a_line_each(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text(BAD)

    assert main(["config", "check", str(file)]) == 1

    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.splitlines() == [
        f'{file}:2: "eth/0" is no interface\'s name',
        f'{file}:5: unknown key "inside_adresses" in [relay]; did you mean "inside_addresses"?',
    ]


def test_what_is_wrong_is_told_as_json(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text(BAD)

    assert main(["config", "check", str(file), "-o", "json"]) == 1

    told = json.loads(capsys.readouterr().out)
    assert told["ok"] is False
    assert told["errors"][0] == {
        "what": '"eth/0" is no interface\'s name',
        "cure": "",
        "key": "relay.public",
        "from": {"kind": "file", "name": str(file), "line": 2},
    }


def test_anybody_may_check() -> None:
    nobody = ("setpriv", "--reuid=65534", "--clear-groups")
    if subprocess.run([*nobody, "test", "-x", sys.executable], check=False).returncode:
        pytest.skip("nobody else may read this checkout")

    done = subprocess.run(
        [*nobody, sys.executable, "-m", "tools", "config", "check", str(configdocs.EXAMPLE)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
