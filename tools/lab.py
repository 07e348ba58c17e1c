"""The lab: its network with an agent and transceivers running in it, up and down.

The network is `topology`'s, starting and ending processes `processes`', the facts and their file
`labstate`'s; here are the order, the lock and what counts as ready.
"""

import asyncio
import fcntl
import os
import secrets
import shutil
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Any

from loader.client import AgentClient, AgentRefused, AgentUnavailable
from loader.daemon import unload
from loader.errors import ShuntError
from tools import topology
from tools.labstate import AGENT_SOCKET, RUN_DIR, Lab, LabTransceiver, current, forget, record
from tools.netns import pids_in, run_in
from tools.processes import UNPRIVILEGED, Process, alive, end, identify, spawn, tail

__all__ = ["agent_is_ready", "down", "healthy", "namespace_of", "status", "up"]

LOCK, LOGS = RUN_DIR / "lab.lock", RUN_DIR / "log"
UDP_PORT = 40000
READY_S = (
    120.0  # an emulated machine takes a minute to compile; a process that ends is seen at once
)


def up(*, transceivers: int = 2, host: bool = False, ipv6_transceivers: bool = False) -> Lab:
    """Bring the lab up, or return the one that is up if it is healthy and the same.

    With *ipv6_transceivers* their UDP sockets are IPv6's; clients have both families either way.
    Raises ShuntError, with everything taken down again, if a step fails.
    """
    wanted_key = os.environ.get("SHUNT_API_KEY")
    wanted = tuple(_transceiver(n, ipv6=ipv6_transceivers) for n in range(1, transceivers + 1))
    with _locked():
        found = current()
        if (
            found
            and (found.transceivers, found.host) == (wanted, host)
            and wanted_key in (None, "", found.api_key)
            and _healthy(found)
        ):
            return found
        _take_down()
        lab = Lab(
            transceivers=wanted,
            api_key=wanted_key or secrets.token_hex(24),
            host=host,
        )
        try:
            topology.up(transceivers=transceivers, host=host)
            return _start(lab)
        except BaseException:
            _take_down()
            raise


def healthy() -> Lab | None:
    """The lab that is up and whole, if there is one."""
    lab = current()
    return lab if lab and _healthy(lab) else None


def down() -> None:
    """Take the lab down, or what is left of one. Raises nothing if there is none."""
    with _locked():
        _take_down()
        # Last of all, and still locked: whoever waits for this file finds that it is no more.
        LOCK.unlink()
        with suppress(OSError):  # something else lives there too
            RUN_DIR.rmdir()


def status() -> dict[str, Any]:
    """Whether the lab is up and healthy, and each process: its pid and whether it runs."""
    lab = current()
    if lab is None:
        return {"up": False, "healthy": False, "leftovers": topology.present(), "processes": []}
    return {
        "up": True,
        "healthy": _healthy(lab),
        "host": lab.host,
        "processes": [
            {"name": process.name, "pid": process.pid, "running": alive(process)}
            for process in lab.processes
        ],
    }


def namespace_of(name: str) -> str:
    """`x1` or `shunt-x1` → `shunt-x1`. Raises ShuntError if the lab has no such place."""
    full = name if name.startswith("shunt-") else f"shunt-{name}"
    there = topology.present()
    if full not in there:
        known = ", ".join(place.removeprefix("shunt-") for place in there)
        cure = f"There are: {known}." if known else "Bring it up with `shunt lab up`."
        raise ShuntError(f"the lab has no namespace {full}", cure)
    return full


def _transceiver(number: int, *, ipv6: bool) -> LabTransceiver:
    address = topology.transceiver_address(number)
    media = f"[{topology.transceiver_address6(number)}]" if ipv6 else address
    return LabTransceiver(
        id=f"x{number}",
        namespace=f"shunt-x{number}",
        http=f"http://{address}:{topology.HTTP_PORT}",
        udp=f"{media}:{UDP_PORT}",
    )


@contextmanager
def _locked() -> Iterator[None]:
    """One `up` or `down` at a time; the others wait. `down` removes the lock file as well, so
    whoever waited makes sure that what he locked is still the file that others would lock."""
    while True:
        RUN_DIR.mkdir(exist_ok=True)
        try:
            lock = LOCK.open("w")
        except FileNotFoundError:  # the folder went between the two lines
            continue
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            try:
                if not os.path.samestat(os.fstat(lock.fileno()), LOCK.stat()):
                    continue
            except FileNotFoundError:
                continue
            yield
            return


def _start(lab: Lab) -> Lab:
    LOGS.mkdir(parents=True, exist_ok=True)
    environment = {name: v for name, v in os.environ.items() if name != "SHUNT_API_KEY"}
    environment["PYTHONUNBUFFERED"] = "1"
    shunt = [sys.executable, "-m", "tools"]
    relay = [
        ("--config", "/dev/null"),
        ("--public", "public"),
        ("--inside", "inside"),
        ("--vip", f"{lab.vip[0]}:{lab.vip[1]}"),
        ("--vip", f"[{lab.vip6[0]}]:{lab.vip6[1]}"),
        ("--inside-address", topology.INSIDE_ADDRESS),
        ("--inside-address", topology.INSIDE_ADDRESS6),
        ("--socket", lab.agent_socket),
    ]
    agent = spawn(
        "agent",
        [*shunt, "agent", "run", *chain.from_iterable(relay)],
        namespace=topology.RELAY,
        log=LOGS / "agent.log",
        environment=environment,
    )
    lab = _with(lab, agent)
    _await("the agent is not ready", agent, lambda: agent_is_ready(lab.agent_socket))
    for transceiver in lab.transceivers:
        flags = {
            "--id": transceiver.id,
            "--agent": lab.agent_socket,
            "--udp": transceiver.udp,
            "--http": transceiver.http.removeprefix("http://"),
            "--drain-limit": "3",  # `lab down` kills what has not gone after 5
        }
        process = spawn(
            transceiver.id,
            [*UNPRIVILEGED, *shunt, "transceiver", "run", *chain.from_iterable(flags.items())],
            namespace=transceiver.namespace,
            log=LOGS / f"{transceiver.id}.log",
            environment=environment | {"SHUNT_API_KEY": lab.api_key},
        )
        lab = _with(lab, process)
    started = {process.name: process for process in lab.processes}
    for transceiver in lab.transceivers:
        _await(
            f"transceiver {transceiver.id} is not ready",
            started[transceiver.id],
            partial(_transceiver_ready, lab, transceiver),
        )
    return lab


def _with(lab: Lab, process: Process) -> Lab:
    """The lab with one process more, written down at once: a crash of ours leaves no orphan."""
    lab = replace(lab, processes=(*lab.processes, process))
    record(lab)
    return lab


def _await(complaint: str, process: Process, ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + READY_S
    while not ready():
        ended = not alive(process)
        if ended or time.monotonic() > deadline:
            why = "it ended" if ended else f"waited {READY_S:.0f} s"
            raise ShuntError(f"{complaint}: {why}", f"Its log ends:\n{tail(process)}")
        time.sleep(0.02)


def agent_is_ready(socket: str) -> bool:
    """Whether the agent there answers, and its relay can do its work."""

    async def ask() -> None:
        async with AgentClient(socket) as agent:
            await agent.health()

    try:
        asyncio.run(ask())
    except (AgentUnavailable, AgentRefused):
        return False
    return True


def _transceiver_ready(lab: Lab, transceiver: LabTransceiver) -> bool:
    """Registered with the agent, which knows its MAC address, and its HTTP answers a client
    through the relay's kernel."""

    async def registered() -> bool:
        async with AgentClient(lab.agent_socket) as agent:
            answer = await agent.transceivers()
        return transceiver.id in {e["id"] for e in answer["transceivers"] if e["reachable"]}

    def answers() -> bool:
        with urllib.request.urlopen(f"{transceiver.http}/healthz", timeout=2) as answer:
            return bool(answer.status == 200)

    try:
        return asyncio.run(registered()) and run_in(lab.client_namespace, answers)
    except (AgentUnavailable, AgentRefused, OSError):
        return False


def _healthy(lab: Lab) -> bool:
    places = set(topology.namespaces(len(lab.transceivers)))
    return (
        places <= set(topology.present())
        and all(alive(process) for process in lab.processes)
        and len(lab.processes) == 1 + len(lab.transceivers)
        and agent_is_ready(lab.agent_socket)
        and all(_transceiver_ready(lab, transceiver) for transceiver in lab.transceivers)
    )


def _take_down() -> None:
    lab = current()
    recorded = list(lab.processes) if lab else []
    # Transceivers first: they say good-bye to the agent.
    end(process for process in recorded if process.name != "agent")
    end(process for process in recorded if process.name == "agent")
    # What a crash left unrecorded, and whatever else people run in the lab's namespaces.
    there = topology.present()
    end(process for pid in pids_in(there) if (process := identify(pid)))
    if lab or there:
        _unload(there)
    topology.down()
    shutil.rmtree(LOGS, ignore_errors=True)
    AGENT_SOCKET.unlink(missing_ok=True)
    forget()


def _unload(there: list[str]) -> None:
    """Remove the relay's program and pins, from inside its namespace: on the host's own
    interfaces there may be a relay that is none of the lab's."""
    for name in sorted(there, key=lambda name: name != topology.RELAY):
        with suppress(OSError):  # a leftover name without a namespace behind it
            run_in(name, unload)
            return
    unload()
