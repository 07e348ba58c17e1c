"""`shunt demo`, as a stranger runs it."""

import json
import subprocess
import sys

from tools import lab as labs
from tools.labstate import Lab


def test_a_demo_in_somebodys_lab_proves_itself_and_leaves_the_lab_up(lab: Lab) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tools", "demo", "--once", "-o", "json"],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout)
    assert [call["transceiver"] for call in outcome["calls"]] == ["x1", "x2"]
    assert all(min(call["audio"].values()) > 100 for call in outcome["calls"])
    assert outcome["relay"]["mode"] == "native"
    assert outcome["relay"]["to_client"] >= sum(c["audio"]["received"] for c in outcome["calls"])
    dropped = {reason for reason, count in outcome["relay"]["dropped"].items() if count}
    assert dropped <= {"no_flow"}  # what a client still sends while its hanging up is carried out
    assert (outcome["public_udp_ports"], outcome["routes_after"]) == (1, 0)
    found = labs.healthy()
    assert found is not None
    assert found.api_key == lab.api_key
