"""The command: exit status, words, JSON, and what it makes of little privilege."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tools.doctor.checks import CHECKS
from tools.doctor.findings import Diagnosis, failure, not_applicable, ok, warning
from tools.doctor.run import run
from tools.doctor.show import show, to_json
from tools.labstate import Lab
from tools.netns import run_in
from tools.processes import ROOT

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
    assert run(interfaces=["nowhere0"], pins=Path("/nowhere"), socket="/nowhere", as_json=True) == 1

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


# Words.

DIAGNOSES = [
    Diagnosis(KERNEL, ok("Linux 6.1")),
    Diagnosis(MTU, warning("too much", "sudo ip link set dev eth0 mtu 1500", about="eth0")),
    Diagnosis(MTU, failure("far too much", f"sudo {'x' * 200}", about="eth1")),
    Diagnosis(CHECKS[0], not_applicable("nothing")),
]


def words(width: int = 60) -> str:
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
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
