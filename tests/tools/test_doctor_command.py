"""The command: exit status, words, JSON, and what it makes of little privilege."""

import io
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from loader.datapath import BPFFS
from tools.doctor.checks import CHECKS
from tools.doctor.findings import Diagnosis, failure, not_applicable, ok, warning
from tools.doctor.gather.host import look
from tools.doctor.run import run
from tools.doctor.show import show, to_json
from tools.doctor.trial import attempt
from tools.labstate import Lab
from tools.netns import run_in
from tools.processes import ROOT

NO_PINS = Path("/nowhere")
KERNEL, MTU = CHECKS[1], next(check for check in CHECKS if check.name == "mtu")


@pytest.fixture(scope="module")
def humble() -> "subprocess.CompletedProcess[str]":
    """The command as a user without privilege runs it, where bpffs is not mounted."""
    nobody = ("setpriv", "--reuid=65534", "--clear-groups", "--inh-caps=-all")
    if subprocess.run([*nobody, "test", "-x", sys.executable], check=False).returncode:
        pytest.skip("nobody else may read this checkout")
    unmounted = ("unshare", "--mount", "sh", "-c", 'umount /sys/fs/bpf; exec "$@"', "sh")
    return subprocess.run(
        [*unmounted, *nobody, sys.executable, "-m", "tools", "doctor", "-o", "json"],
        cwd=ROOT,
        text=True,
        capture_output=True,
        check=False,
    )


def of(text: str, check: str) -> list[dict[str, Any]]:
    return [each for each in json.loads(text)["findings"] if each["check"] == check]


def test_a_failure_is_exit_status_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(interfaces=["nowhere0"], pins=NO_PINS, socket="/nowhere", as_json=True) == 1

    (present,) = of(capsys.readouterr().out, "present")
    assert (present["verdict"], present["about"]) == ("failure", "nowhere0")


def test_bpffs_that_is_not_mounted_is_a_failure(
    humble: "subprocess.CompletedProcess[str]",
) -> None:
    (bpffs,) = of(humble.stdout, "bpffs")

    assert (bpffs["verdict"], bpffs["cure"]) == ("failure", "sudo mount -t bpf bpf /sys/fs/bpf")
    assert humble.returncode == 1


def test_without_privilege_it_says_what_it_could_not_see(
    humble: "subprocess.CompletedProcess[str]",
) -> None:
    found = {each["check"]: each["verdict"] for each in json.loads(humble.stdout)["findings"]}

    assert found["capabilities"] == "unknown"
    assert found["kernel"] == "ok"
    assert [check for check, verdict in found.items() if verdict == "failure"] == ["bpffs"]
    assert humble.stderr == ""


def test_the_labs_relay_is_well(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    status = run_in(lab.relay_namespace, lambda: run(as_json=True))

    out = capsys.readouterr().out
    assert [e for e in json.loads(out)["findings"] if e["verdict"] == "failure"] == []
    assert {e["verdict"] for e in of(out, "attached")} == {"ok"}
    assert [e["found"] for e in of(out, "agent")] == ["ready, at /run/shunt/agent.sock"]
    assert {e["verdict"] for e in of(out, "redirect")} == {"ok"}
    assert {e["about"] for e in of(out, "addresses")} == {
        *("198.18.0.1", "2001:db8:18::1", "198.18.1.1", "2001:db8:118::1")
    }
    assert status == 0


def test_a_relay_whose_agent_is_gone_is_not_well(
    lab: Lab, capsys: pytest.CaptureFixture[str]
) -> None:
    status = run_in(lab.relay_namespace, lambda: run(socket="/nowhere", as_json=True))

    (agent,) = of(capsys.readouterr().out, "agent")
    assert agent["verdict"] == "failure"
    assert agent["cure"].startswith("sudo systemctl start shunt-agent")
    assert status == 1


def test_a_trial_that_fails_is_told_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """PyPI's `bcc`, or what looks like it, in BCC's place."""
    (tmp_path / "bcc.py").write_text("")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    assert run(interfaces=["lo"], pins=NO_PINS, socket="/nowhere", try_it=True, as_json=True) == 1

    (trial,) = of(capsys.readouterr().out, "try")
    assert trial["verdict"] == "failure"
    assert "cannot import name 'BPF'" in trial["found"]
    assert not list(BPFFS.glob(f"shunt-doctor-{os.getpid()}"))


def test_without_bpffs_nothing_is_tried() -> None:
    host = replace(look(), bpffs_writable=False)

    assert attempt(host).why_not.startswith("bpffs is not mounted")


def test_the_addresses_of_a_configuration_are_looked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "agent.toml"
    file.write_text(
        '[relay]\npublic = ["lo"]\ninside = ["nowhere0"]\nvips = ["203.0.113.5:3478"]\n'
        f'inside_addresses = ["10.0.0.1"]\npins = "{tmp_path}/pins"\n'
    )

    status = run(config=file, socket="/nowhere", as_json=True)

    out = capsys.readouterr().out
    assert {e["about"]: e["verdict"] for e in of(out, "addresses")} == {
        "203.0.113.5": "failure",
        "10.0.0.1": "failure",
    }
    assert [e["about"] for e in of(out, "present") if e["verdict"] == "failure"] == ["nowhere0"]
    assert status == 1


# Words.

DIAGNOSES = [
    Diagnosis(KERNEL, ok("Linux 6.1")),
    Diagnosis(MTU, warning("too much", "sudo ip link set dev eth0 mtu 1500", about="eth0")),
    Diagnosis(MTU, failure("far too much", f"sudo {'x' * 200}", about="eth1")),
    Diagnosis(CHECKS[0], not_applicable("nothing")),
]


def words(width: int = 60) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    show(DIAGNOSES, console)
    return console.export_text()


def test_people_read_what_is_bad_first_and_why_and_what_to_do() -> None:
    text = words()

    assert text.index("failure: mtu eth1") < text.index("warning: mtu eth0")
    assert "Far too much." in text
    assert MTU.why.split(";")[0][:40] in text
    assert "not applicable: machine" in text
    assert text.rstrip().endswith("1 failure, 1 warning, 1 ok, 1 not applicable")


def test_a_command_stays_in_one_line_however_narrow_the_terminal() -> None:
    assert f"→ sudo {'x' * 200}\n" in words(width=40)


def test_json_has_every_finding_with_all_its_words() -> None:
    told = to_json(DIAGNOSES)

    assert told["findings"][1] == {
        "check": "mtu",
        "about": "eth0",
        "verdict": "warning",
        "found": "too much",
        "why": MTU.why,
        "cure": "sudo ip link set dev eth0 mtu 1500",
    }
    assert told["counts"]["failure"] == 1
    assert told["counts"]["unknown"] == 0
