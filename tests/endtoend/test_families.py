"""Whole calls of clients on each address family with transceivers on each."""

import json
import subprocess
import sys
from typing import Any

import pytest

from loader.maps import Maps
from tools import lab as labs
from tools.labstate import Lab
from tools.netns import run_in
from tools.processes import ROOT


@pytest.fixture(params=[False, True], ids=["IPv4 transceiver", "IPv6 transceiver"])
def either_lab(request: pytest.FixtureRequest, lab_to_ourselves: None) -> Lab:
    lab = labs.up(ipv6_transceivers=request.param)
    assert all(t.udp.startswith("[") == request.param for t in lab.transceivers)
    return lab


@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
def test_a_call_over_either_family_reaches_a_transceiver_of_either(
    either_lab: Lab, family: str
) -> None:
    lab = either_lab
    with Maps() as maps:
        before = maps.counters()
        report = call(lab, "--family", family)
        after = maps.counters()
    address, port = lab.vip if family == "ipv4" else lab.vip6
    shown = f"{address}:{port}" if family == "ipv4" else f"[{address}]:{port}"
    assert report["remote_candidate"] == shown
    assert min(report["audio"].values()) > 40
    assert report["datachannel_rtt_ms"] is not None
    to_transceiver = after.to_transceiver.packets - before.to_transceiver.packets
    to_client = after.to_client.packets - before.to_client.packets
    assert to_transceiver >= report["audio"]["sent"]
    assert to_client >= report["audio"]["received"]
    dropped = {reason for reason in after.dropped if after.dropped[reason] > before.dropped[reason]}
    assert dropped <= {"no_flow"}  # what a client still sends while its hanging up is carried out


def call(lab: Lab, *options: str) -> dict[str, Any]:
    """A call from the client's namespace to x1, as a person places it."""
    argv = [sys.executable, "-m", "tools", "call", lab.transceivers[0].http]
    argv += ["--key", lab.api_key, "--duration", "1", "-o", "json", *options]
    done = run_in(
        lab.client_namespace,
        lambda: subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False),
    )
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return report
