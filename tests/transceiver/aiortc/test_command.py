"""`python -m transceiver.aiortc` runs a program as Python would, with Shunt installed."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PROGRAM = """
import sys
import beside
from aiortc.rtcpeerconnection import RTCIceGatherer
print(__name__, sys.argv[1:], RTCIceGatherer.__module__)
"""
SAID = "__main__ ['--loud', 'x'] transceiver.aiortc.installation\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "bot.py").write_text(PROGRAM)
    (tmp_path / "beside.py").touch()
    return tmp_path


def run(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "transceiver.aiortc", "--id", "bot", *arguments]
    environment = {"PYTHONPATH": f"{ROOT}:{folder}"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, cwd="/")


def test_a_script(folder: Path) -> None:
    script = str(folder / "bot.py")
    assert run(folder, "--udp", "10.0.0.7:40000", script, "--loud", "x").stdout == SAID


def test_a_module(folder: Path) -> None:
    assert run(folder, "--udp", "10.0.0.7:40000", "-m", "bot", "--loud", "x").stdout == SAID


def test_what_makes_no_sense_is_told_in_a_sentence(folder: Path) -> None:
    ended = run(folder, "--udp", "10.0.0.7", "bot.py")
    assert ended.returncode == 1
    assert ended.stderr == "udp '10.0.0.7' is not IP:PORT\nWrite e.g. 10.0.0.7:40000.\n"
