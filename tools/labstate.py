"""The facts of a lab that is up, and the file that keeps them from one command to the next."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tools import topology
from tools.processes import Process

__all__ = [
    "AGENT_SOCKET",
    "RUN_DIR",
    "Lab",
    "LabTransceiver",
    "current",
    "forget",
    "record",
]

RUN_DIR = Path("/run/shunt")
STATE, FRESH = RUN_DIR / "lab.json", RUN_DIR / "lab.json.new"
AGENT_SOCKET = RUN_DIR / "agent.sock"
VIP_PORT = 3478


@dataclass(frozen=True, slots=True)
class LabTransceiver:
    id: str
    namespace: str
    http: str
    udp: str  # of the one socket; IPv6 in brackets


@dataclass(frozen=True, slots=True)
class Lab:
    """What a test or a person needs to know of a lab that is up."""

    transceivers: tuple[LabTransceiver, ...]
    api_key: str
    host: bool
    processes: tuple[Process, ...] = ()
    client_namespace: str = topology.CLIENT
    relay_namespace: str = topology.RELAY
    agent_socket: str = str(AGENT_SOCKET)
    vip: tuple[str, int] = (topology.VIP_ADDRESS, VIP_PORT)
    vip6: tuple[str, int] = (topology.VIP_ADDRESS6, VIP_PORT)

    def to_json(self) -> dict[str, Any]:
        """DESIGN's object."""
        return {
            "vip": {"ipv4": self.vip[0], "ipv6": self.vip6[0], "port": self.vip[1]},
            "client_namespace": self.client_namespace,
            "transceivers": [asdict(transceiver) for transceiver in self.transceivers],
            "api_key": self.api_key,
            "agent_socket": self.agent_socket,
        }


def current() -> Lab | None:
    """The lab that was brought up last and not taken down, working or not."""
    try:
        state = json.loads(STATE.read_text())
        return Lab(
            transceivers=tuple(LabTransceiver(**entry) for entry in state["transceivers"]),
            api_key=state["api_key"],
            host=state["host"],
            processes=tuple(Process(**entry) for entry in state["processes"]),
        )
    except (FileNotFoundError, PermissionError, ValueError, KeyError, TypeError):
        return None  # none, or none of ours, or of another version: nothing to go on


def record(lab: Lab) -> None:
    """Replace the file in one step; it holds the API key, so only root reads it."""
    state = lab.to_json() | {
        "host": lab.host,
        "processes": [asdict(process) for process in lab.processes],
    }
    descriptor = os.open(FRESH, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump(state, file)
    FRESH.replace(STATE)


def forget() -> None:
    for path in (STATE, FRESH):
        path.unlink(missing_ok=True)
