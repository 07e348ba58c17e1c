"""`shunt bench survival`: what it costs the traffic when the agent ends, or the program changes.

An agent of its own runs between two cables; numbered traffic goes through, both ways at once, from
a second before each event until a second after it. Nothing may be lost: the report says how much
was, and the longest time in which nothing arrived, beside the longest in which nothing was sent.
"""

import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute
from pyroute2.ethtool.ioctl import IoctlEthtool

from loader.daemon import unload
from loader.errors import ShuntError
from tools.bench.alone import alone
from tools.bench.cables import INSIDE_END, PUBLIC_END, RELAY, cables
from tools.bench.facts import machine
from tools.bench.report import Case, Report
from tools.bench.traffic import Ends, stream
from tools.bench.traffic import Report as Carried
from tools.lab import agent_is_ready
from tools.netns import run_in
from tools.processes import ROOT

__all__ = ["EVENTS", "Event", "report", "run"]

_ASKED = 50_000.0
_RATE = 55_000
_FLOWS = 64
_AROUND = 25_000  # packets that go each way before an event, and after it
_FULL, _QUICK = 5, 1  # rounds
_CODE = ("bpf", "loader", "tools", "transceiver")
_PATIENCE = 120.0  # seconds for an agent to start, or to end
_VIP, _CLIENT = "198.18.0.1", "198.18.0.10"
_INSIDE, _MORE_INSIDE, _TRANSCEIVER = "198.18.1.1", "198.18.1.2", "198.18.1.11"


class _Agent:
    """The agent's process; its code is that below *tree*."""

    def __init__(self, pins: Path, folder: Path) -> None:
        self.pins = pins
        self.socket = str(folder / "agent.sock")
        self._log = folder / "agent.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *more: str, tree: Path = ROOT) -> None:
        """Raises ShuntError if it does not come to serve."""
        arguments = [
            *("--public", "public", "--inside", "inside", "--vip", f"{_VIP}:3478"),
            *("--inside-address", _INSIDE, "--socket", self.socket, "--pins", str(self.pins)),
            *more,
        ]

        def spawn() -> "subprocess.Popen[bytes]":
            with self._log.open("wb") as output:
                return subprocess.Popen(
                    [sys.executable, "-m", "tools", "agent", "run", *arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    cwd=tree,
                )

        self._process = run_in(RELAY, spawn)
        deadline = time.monotonic() + _PATIENCE
        while not agent_is_ready(self.socket):
            if self._process.poll() is not None or time.monotonic() > deadline:
                lines = self._log.read_text(errors="replace").splitlines()
                raise ShuntError("the agent does not start:\n" + "\n".join(lines[-8:]))
            time.sleep(0.05)

    def end(self, number: int) -> None:
        """By a signal; no error if none runs."""
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(_PATIENCE)
            self._process = None


@dataclass(frozen=True, slots=True)
class Event:
    """What happens amid the traffic."""

    name: str
    what: str
    happen: Callable[[_Agent, Path], None]
    """With the agent, and the root of another build's code."""


def _nothing(_agent: _Agent, _another: Path) -> None:
    return


def _killed(agent: _Agent, _another: Path) -> None:
    agent.end(signal.SIGKILL)
    agent.start()


def _restarted(agent: _Agent, _another: Path) -> None:
    agent.end(signal.SIGTERM)
    agent.start()


def _another_program(agent: _Agent, another: Path) -> None:
    agent.end(signal.SIGTERM)
    agent.start(tree=another)
    _restarted(agent, another)


def _other_maps(agent: _Agent, another: Path) -> None:
    agent.end(signal.SIGTERM)
    agent.start("--inside-address", _MORE_INSIDE)
    _restarted(agent, another)


EVENTS = (
    Event("nothing", "nothing happens", _nothing),
    Event("kill", "kill -9 of the agent, and a new one", _killed),
    Event("restart", "the agent is restarted", _restarted),
    Event("program", "another build's program takes over, and back", _another_program),
    Event("maps", "maps of another size take over, and back", _other_maps),
)


def run(pins: Path, *, quick: bool, progress: Callable[[str], None]) -> Report:
    """Measure. Raises ShuntError if a flow does not come about, or an agent does not start."""
    rounds = _QUICK if quick else _FULL
    carried: dict[str, list[Carried]] = {event.name: [] for event in EVENTS}
    with ExitStack() as stack:
        stack.enter_context(alone(progress, pinned=False))
        stack.enter_context(cables())
        for namespace, interface, address in (
            (PUBLIC_END, "end", _CLIENT),
            (RELAY, "public", _VIP),
            (RELAY, "inside", _INSIDE),
            (INSIDE_END, "end", _TRANSCEIVER),
        ):
            run_in(namespace, partial(_address, interface, address))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="shunt-bench-")))
        another = _another_build(folder / "another")
        agent = stack.enter_context(_agent(pins, folder))
        for number in range(rounds):
            for event in EVENTS:
                progress(f"bench survival: round {number + 1} of {rounds}: {event.what}")
                carried[event.name].append(_around(event, agent, another))
        facts = {
            **machine(pins, None),
            "flows": _FLOWS,
            "rounds": rounds,
        }
    return report(carried, facts=facts)


def report(carried: Mapping[str, Sequence[Carried]], *, facts: Mapping[str, Any]) -> Report:
    """Of what was carried around each event, by round."""
    cases = [Case("asked.rate", "packets a second that are asked for", (_ASKED,))]
    events = []
    for event in EVENTS:
        cases += _cases(event, carried[event.name])
        events.append(_fact(event, carried[event.name]))
    return Report("survival", "packets", tuple(cases), {**facts, "events": events})


@contextmanager
def _agent(pins: Path, folder: Path) -> Iterator[_Agent]:
    agent = _Agent(pins, folder)
    try:
        agent.start()
        yield agent
    finally:
        agent.end(signal.SIGTERM)
        run_in(RELAY, lambda: unload(pins))


def _around(event: Event, agent: _Agent, another: Path) -> Carried:
    """The traffic from before the event until after it."""
    ends = Ends(
        clients=((_CLIENT, (_VIP, 3478)),),
        transceiver=(_TRANSCEIVER, 40000),
        client_namespace=PUBLIC_END,
        transceiver_namespace=INSIDE_END,
        relay_namespace=RELAY,
        socket=agent.socket,
        pins=agent.pins,
    )
    with stream(ends, flows=_FLOWS, rate=_RATE) as running:
        running.carry(_AROUND)
        event.happen(agent, another)
        running.carry(_AROUND)
        return running.stop()


def _cases(event: Event, carried: Sequence[Carried]) -> list[Case]:
    """Of all rounds together, since a single packet counts: sent, and lost or not as sent; and the
    least rate of any of them."""
    what = f"while {event.what}"
    return [
        Case(f"{event.name}.sent", f"packets sent {what}", (float(_sent(carried)),)),
        Case(f"{event.name}.faults", f"lost, or not as sent, {what}", (float(_faulty(carried)),)),
        Case(
            f"{event.name}.rate", f"packets a second {what}", (min(each.rate for each in carried),)
        ),
    ]


def _sent(carried: Sequence[Carried]) -> int:
    return sum(each.sent for each in carried)


def _faults(carried: Sequence[Carried]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for each in carried:
        total.update(each.faults)
    return dict(total)


def _faulty(carried: Sequence[Carried]) -> int:
    return sum(_faults(carried).values())


def _fact(event: Event, carried: Sequence[Carried]) -> dict[str, Any]:
    """All rounds together; *longest_gap* and *longest_pause*, of any of them, in seconds."""
    ways = [way for each in carried for way in each.ways]
    return {
        "name": event.name,
        "what": event.what,
        "sent": _sent(carried),
        "faults": _faults(carried),
        "packets_per_second": min(each.rate for each in carried),
        "longest_gap": max(way.longest_gap for way in ways),
        "longest_pause": max(way.longest_pause for way in ways),
        "drops": [each.drops for each in carried],
    }


def _address(interface: str, address: str) -> None:
    """An address, and NAPI, without which a veth does not deliver what XDP_REDIRECT sends it."""
    with IPRoute() as netlink:
        (index,) = netlink.link_lookup(ifname=interface)
        netlink.addr("add", index=index, address=address, prefixlen=24)
    ethtool = IoctlEthtool(interface)
    try:
        ethtool.set_offload_flag("generic-receive-offload", 1)
    finally:
        ethtool.close()


def _another_build(folder: Path) -> Path:
    """This code, with a word more in the program's source, so that its agent compiles it anew."""
    for name in _CODE:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    with (folder / "bpf/shunt.c").open("a") as source:
        source.write("/* another build */\n")
    return folder
