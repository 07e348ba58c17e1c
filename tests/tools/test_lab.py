"""The lab as people and tests use it: network, agent and transceivers, up and down."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pyroute2 import netns

from loader.errors import ShuntError
from tools import lab as labs
from tools import topology
from tools.labstate import Lab, current
from tools.netns import pids_in, run_in
from tools.pinned import look
from tools.processes import ROOT, alive

PINS = Path("/sys/fs/bpf/shunt")


def shunt(*argv: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "tools", *argv],
        cwd=ROOT,
        env=os.environ | environment,
        text=True,
        capture_output=True,
        check=False,
    )


def wait_until(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s in vain"
        time.sleep(0.005)


def nothing_is_left() -> bool:
    return (
        topology.present() == []
        and current() is None
        and not PINS.exists()
        and not Path("/run/shunt").exists()
    )


def test_lab_up_prints_the_designs_object(lab: Lab) -> None:
    done = shunt("lab", "up", "-o", "json")

    assert json.loads(done.stdout) == {
        "vip": {"ipv4": "198.18.0.1", "ipv6": "2001:db8:18::1", "port": 3478},
        "client_namespace": "shunt-client",
        "transceivers": [
            {
                "id": f"x{n}",
                "namespace": f"shunt-x{n}",
                "http": f"http://198.18.1.1{n}:8080",
                "udp": f"198.18.1.1{n}:40000",
            }
            for n in (1, 2)
        ],
        "api_key": lab.api_key,
        "agent_socket": "/run/shunt/agent.sock",
    }
    assert not lab.api_key.startswith("-"), "or `--key KEY` takes it for an option"


def test_up_twice_is_the_same_lab(lab: Lab) -> None:
    assert labs.up() == lab


def test_up_replaces_a_lab_whose_agent_has_died(lab: Lab) -> None:
    agent = next(process for process in lab.processes if process.name == "agent")
    os.kill(agent.pid, signal.SIGKILL)
    wait_until(lambda: not alive(agent))

    again = labs.up()

    assert labs.status()["healthy"]
    assert not {process.pid for process in again.processes} & {p.pid for p in lab.processes}


def test_the_state_file_is_for_root_alone(lab: Lab) -> None:
    assert Path("/run/shunt/lab.json").stat().st_mode & 0o777 == 0o600


def test_a_transceiver_has_no_capability_at_all(lab: Lab) -> None:
    process = next(process for process in lab.processes if process.name == "x1")

    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()

    assert {line.split()[1] for line in lines if line.startswith("Cap")} == {"0" * 16}


def test_down_leaves_nothing(lab: Lab) -> None:
    labs.down()

    assert nothing_is_left()
    assert not any(alive(process) for process in lab.processes)


def test_down_without_a_lab_is_no_error(no_lab: None) -> None:
    assert shunt("lab", "down").returncode == 0


def test_down_ends_what_people_run_in_the_lab(lab: Lab) -> None:
    argv = [sys.executable, "-m", "tools", "lab", "exec", "client", "sleep", "60"]
    with subprocess.Popen(argv, cwd=ROOT) as sleeper:
        wait_until(lambda: sleeper.pid in pids_in([lab.client_namespace]))

        labs.down()

        assert sleeper.wait(5) == -signal.SIGTERM


def test_down_clears_a_lab_that_is_half_torn_down(lab: Lab) -> None:
    netns.remove(lab.relay_namespace)

    labs.down()

    assert nothing_is_left()
    assert not any(alive(process) for process in lab.processes)


@pytest.mark.parametrize("stage", ["network", "agent", "transceivers"])
def test_down_clears_what_a_killed_up_left(no_lab: None, stage: str) -> None:
    reached: dict[str, Callable[[], bool]] = {
        "network": lambda: topology.RELAY in topology.present(),
        "agent": lambda: bool(pids_in([topology.RELAY])),
        "transceivers": lambda: bool(pids_in(["shunt-x2"])),
    }
    with subprocess.Popen([sys.executable, "-m", "tools", "lab", "up"], cwd=ROOT) as building:
        wait_until(reached[stage])
        building.kill()

    labs.down()

    assert nothing_is_left()


def test_a_terminated_up_takes_everything_down_itself(no_lab: None) -> None:
    with subprocess.Popen([sys.executable, "-m", "tools", "lab", "up"], cwd=ROOT) as building:
        wait_until(lambda: bool(pids_in([topology.RELAY])))
        building.terminate()

    assert topology.present() == []
    assert current() is None


def test_two_ups_at_once_make_one_lab(no_lab: None) -> None:
    argv = [sys.executable, "-m", "tools", "lab", "up", "-o", "json"]
    first = subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE)
    second = subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE)

    printed = [json.loads(up.communicate()[0]) for up in (first, second)]

    assert printed[0] == printed[1]
    assert labs.status()["healthy"]


def test_a_step_that_fails_takes_everything_down_and_shows_the_log(
    no_lab: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(topology, "INSIDE_ADDRESS", "not-an-address")
    monkeypatch.setattr(topology, "up", network_with_the_right_address)

    with pytest.raises(ShuntError, match="the agent is not ready: it ended") as failure:
        labs.up()

    assert "not-an-address" in failure.value.cure
    assert topology.present() == []


def network_with_the_right_address(**shape: Any) -> None:
    subprocess.run(
        [sys.executable, "-c", f"from tools import topology; topology.up(**{shape!r})"],
        cwd=ROOT,
        check=True,
    )


def test_the_api_key_is_the_environments_if_it_has_one(no_lab: None) -> None:
    done = shunt("lab", "up", "--transceivers", "1", "-o", "json", SHUNT_API_KEY="mine-alone")

    assert json.loads(done.stdout)["api_key"] == "mine-alone"


def test_exec_runs_in_the_namespace_and_hands_on_the_status(lab: Lab) -> None:
    script = "import os; print(os.stat('/proc/self/ns/net').st_ino); raise SystemExit(7)"

    done = shunt("lab", "exec", "x1", sys.executable, "-c", script)

    inode = run_in("shunt-x1", lambda: os.stat("/proc/thread-self/ns/net").st_ino)
    assert (done.returncode, done.stdout.strip()) == (7, str(inode))


def test_exec_names_the_places_there_are(lab: Lab) -> None:
    done = shunt("lab", "exec", "x9", "true")

    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "shunt: the lab has no namespace shunt-x9",
        "  There are: client, relay, switch, x1, x2.",
    ]


def test_a_call_from_the_clients_namespace_goes_to_the_vip(lab: Lab) -> None:
    url = lab.transceivers[1].http

    done = shunt(
        *("lab", "exec", "client", sys.executable, "-m", "tools"),
        *("call", url, "--duration", "1", "-o", "json"),
    )

    report = json.loads(done.stdout)
    assert report["remote_candidate"] in ("198.18.0.1:3478", "[2001:db8:18::1]:3478")
    assert min(report["audio"].values()) >= 40
    assert set(report) == {
        *("url", "ufrag", "setup_ms", "audio", "datachannel_rtt_ms", "remote_candidate")
    }


def test_top_shows_the_relay_without_asking_the_agent(lab: Lab) -> None:
    shown = json.loads(shunt("top", "--once", "-o", "json", "--interval", "0.1").stdout)

    assert shown["interfaces"].keys() == {"public", "inside"}
    assert set(shown["interfaces"].values()) <= {"native", "generic"}


def test_top_agrees_with_the_agent_during_a_call(lab: Lab) -> None:
    argv = [sys.executable, "-m", "tools", "lab", "exec", "client", sys.executable, "-m", "tools"]
    argv += ["call", lab.transceivers[0].http, "--duration", "20"]
    with subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.DEVNULL) as calling:
        try:
            wait_until(lambda: flow_of_a_call() is not None)
            flow = flow_of_a_call()
            asked = json.loads(shunt("flows", "list", "-o", "json").stdout)["flows"]
            same = next(entry for entry in asked if flow and entry["port"] == flow["port"])
        finally:
            calling.kill()

    assert flow is not None
    named = ("state", "client", "vip", "ufrag", "transceiver", "validated")
    assert {name: flow[name] for name in named} == {name: same[name] for name in named}
    assert flow["transceiver"] == "x1"


def flow_of_a_call() -> dict[str, Any] | None:
    established = [flow for flow in look().flows if flow["state"] == "established"]
    return established[0] if established else None


def test_top_without_a_relay_says_what_to_do(no_lab: None) -> None:
    done = shunt("top", "--once")

    assert done.returncode == 1
    assert done.stderr.startswith("shunt: no relay is loaded")


def test_demo_once_proves_its_calls_and_leaves_nothing(no_lab: None) -> None:
    done = shunt("demo", "--once", "-o", "json")

    outcome = json.loads(done.stdout)
    assert done.returncode == 0, done.stderr
    assert [call["transceiver"] for call in outcome["calls"]] == ["x1", "x2"]
    assert (outcome["public_udp_ports"], outcome["routes_after"]) == (1, 0)
    assert nothing_is_left()


def test_demo_with_its_port_in_use_builds_nothing(no_lab: None) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = shunt("demo", "--port", str(taken.getsockname()[1]))

    assert done.returncode == 1
    assert "is in use" in done.stderr
    assert topology.present() == []
