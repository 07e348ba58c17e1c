"""What a call costs: Shunt's transceiver, stock aiortc as its users write it, and libopus alone.

One client, on a CPU of its own, calls both over a cable between two namespaces; the servers have
another CPU, and one is idle while the other is called. Each round asks all of them everything, so
that what disturbs a round disturbs all. docs/performance.md says what each number means.
"""

import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from loader.errors import ShuntError
from tools.bench.alone import alone
from tools.bench.calls import ours, speech
from tools.bench.calls.bots import Habit
from tools.bench.calls.load import Callee, Clients, Line
from tools.bench.calls.place import CALLED_HOST, CALLER_HOST, CALLERS, Agent, Server, State, place
from tools.bench.facts import machine
from tools.bench.report import Case, Report
from tools.processes import ROOT

__all__ = ["LEAST_RATE", "Carried", "Scale", "delays", "growth", "next_load", "run"]

LEAST_RATE = 49.5
"""Packets a second, each way, of the slowest call, or there were too many."""

_SUBJECTS = ("stock", "ours")
_FULL_LOAD = 0.9  # of a core: what the calls are to take while their cost is measured
_NEAR = 0.06
_FIRST = {"stock": 1.0, "ours": 4.0}  # so many times as many calls, to find how many there can be
_TRIES = 3  # with fewer calls each time, if they come too slowly
_FEWER = 0.93
_STEPS, _EARLY = 10, 2  # of sessions come and gone: the heap has its size after the second


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is measured. *talk_s*: seconds that calls are counted, after *settle_s* that they
    are not, and *probe_s* to find how many there can be; *setups*: calls placed by each subject in
    a round, one after the other and again *at_once* at a time; *watched*: calls with marks; *idle*:
    sessions whose memory is taken; *gone*: sessions that come and go; *first* and *most*: calls,
    of stock aiortc until it is known how many it takes, and of anybody."""

    rounds: int = 7
    settle_s: float = 1.0
    probe_s: float = 1.5
    talk_s: float = 6.0
    setups: int = 24
    at_once: int = 8
    watched: int = 8
    idle: int = 200
    gone: int = 10_000
    codec_s: float = 1.5
    first: int = 8
    most: int = 500


_QUICK = Scale(rounds=2, talk_s=3.0, setups=10, gone=500, codec_s=0.7)


@dataclass(frozen=True, slots=True)
class Carried:
    """So many *calls*, of which each way the slowest had so many packets a second, took a *share*
    of one core."""

    calls: int
    share: float
    heard_by_clients: float
    heard_by_bots: float
    latest_ms: float = 0.0

    @property
    def slowest(self) -> float:
        return min(self.heard_by_clients, self.heard_by_bots)

    @property
    def sessions_a_core(self) -> float:
        return self.calls / self.share


def next_load(carried: Carried) -> int:
    """How many calls would take nine tenths of a core, by what these took."""
    return max(1, math.floor(carried.calls * _FULL_LOAD / carried.share))


def delays(marks: Sequence[float], onsets: Sequence[float]) -> list[float]:
    """From each mark's packet leaving the client to its PCM at the bot, seconds.

    The last marks may be on their way still. Raises ShuntError if marks were missed or made up.
    """
    if not len(marks) - 2 <= len(onsets) <= len(marks):
        raise ShuntError(
            f"{len(marks)} marks were sent, and {len(onsets)} heard",
            "Run the bench again; if that stays so, please report it.",
        )
    return [heard - sent for sent, heard in zip(marks, onsets, strict=False)]


def growth(sessions: Sequence[float], sizes: Sequence[float]) -> float:
    """Bytes by which memory grows a session come and gone: the slope through the later half of
    the points, as caches and the heap are filling before."""
    half = len(sessions) // 2
    return statistics.linear_regression(sessions[half:], sizes[half:]).slope


@dataclass(slots=True)
class _Rounds:
    """What was measured, by case."""

    values: dict[str, list[float]] = field(default_factory=dict)

    def add(self, name: str, value: float) -> None:
        self.values.setdefault(name, []).append(value)


def run(
    _pins: Path, *, quick: bool, progress: Callable[[str], None], scale: Scale | None = None
) -> Report:
    """Measure. Raises ShuntError if a call does not come about, or is not what it should be."""
    wanted = scale or (_QUICK if quick else Scale())
    cpus = os.sched_getaffinity(0)
    with ExitStack() as stack:
        cpu = stack.enter_context(alone(progress))
        stack.enter_context(place())
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="shunt-bench-")))
        bench = _Bench(wanted, folder, min(cpus - {cpu}, default=cpu), stack, progress)
        rounds = _Rounds()
        bench.start(rounds)
        for number in range(wanted.rounds):
            progress(f"bench transceiver: round {number + 1} of {wanted.rounds}")
            bench.measure(rounds, number)
        points = bench.come_and_go(rounds)
        facts = {
            **machine(None, cpu),
            "servers_on_cpu": bench.cpu,
            "calls": wanted.watched,
            "refused": bench.refused,
            "loads": bench.loads,
            "codec": bench.codec,
            "come_and_gone": points,
            "idle": wanted.idle,
        }
    return Report("transceiver", "each its own", _cases(rounds), facts)


class _Bench:
    """The servers, and the clients that call them."""

    def __init__(
        self,
        scale: Scale,
        folder: Path,
        cpu: int,
        stack: ExitStack,
        progress: Callable[[str], None],
    ) -> None:
        self.cpu = cpu
        self.loads: dict[str, list[dict[str, float]]] = {name: [] for name in _SUBJECTS}
        self.codec: list[dict[str, float]] = []
        self._scale = scale
        self._folder = folder
        self._stack = stack
        self._progress = progress
        self._calls: dict[str, int] = {}
        self._servers: dict[str, Server] = {}
        self._clients = Clients(CALLER_HOST, CALLERS)
        stack.callback(self._clients.close)

    def start(self, rounds: _Rounds) -> None:
        self._progress("bench transceiver: a server of each kind")
        for name in _SUBJECTS:
            self._servers[name] = self._serve(name)
        for server in self._servers.values():
            server.ready()
        self.take_idle(rounds)
        for name in _SUBJECTS:
            self._progress(f"bench transceiver: how many calls {name} takes")
            self._find(name)

    @property
    def refused(self) -> int:
        """Offers that were, and were made again."""
        return self._clients.refused

    def _serve(self, name: str) -> Server:
        if name == "stock":
            callee = Callee((CALLED_HOST, 8081), "/offer")
            more: list[str] = []
        else:
            headers = {"Authorization": f"Bearer {ours.KEY}"}
            callee = Callee((CALLED_HOST, 8082), "/v1/realtime/calls", headers)
            udp, agent = f"{CALLED_HOST}:40000", self._folder / "agent.sock"
            self._stack.callback(Agent(agent, udp).end)
            more = ["--udp", udp, "--agent", str(agent)]
        server = Server(name, self._folder, callee=callee, cpu=self.cpu, more=more)
        self._stack.callback(server.end)
        return server

    # Sessions a core.

    def _find(self, name: str) -> None:
        """How many calls take about nine tenths of a core."""
        calls = min(round(_FIRST[name] * self._scale.first), self._scale.most)
        for _ in range(_TRIES):
            carried = self._carry(name, calls, self._scale.probe_s)
            calls = min(next_load(carried), self._scale.most)
            if calls == self._scale.most or abs(carried.share - _FULL_LOAD) < _NEAR:
                break
        self._calls[name] = calls

    def _carry(self, name: str, calls: int, seconds: float) -> Carried:
        server = self._servers[name]
        lines = self._clients.connect(
            server.callee, calls, at_once=4, packets=speech.packets(), or_fewer=True
        )
        if not lines:
            raise ShuntError(
                f"{name} takes no call at all", "Run the bench on a machine that is not busy."
            )
        spoken = self._clients.talk(
            lines,
            settle=self._scale.settle_s,
            seconds=seconds,
            at_start=server.ask,
            at_end=server.ask,
        )
        before, after = server.answer(), server.answer()
        self._hang_up(server, lines)
        return Carried(
            calls=len(lines),
            share=(after.cpu - before.cpu) / (after.at - before.at),
            heard_by_clients=spoken.slowest,
            heard_by_bots=_slowest_ear(before, after),
            latest_ms=1e3 * spoken.latest,
        )

    def _hang_up(self, server: Server, lines: Sequence[Line]) -> State:
        """Until nothing is left of these calls, on either side."""
        self._clients.hang_up(lines)
        state = server.wait_until_empty(lambda: self._clients.hang_up(lines))
        self._clients.leave(lines)
        return state

    def _load(self, name: str, rounds: _Rounds) -> None:
        for _ in range(_TRIES):
            carried = self._carry(name, self._calls[name], self._scale.talk_s)
            if carried.slowest >= LEAST_RATE:
                break
            self._calls[name] = max(1, math.floor(_FEWER * self._calls[name]))
        rounds.add(f"{name}.sessions", carried.sessions_a_core)
        rounds.add(f"{name}.slowest", carried.slowest)
        self.loads[name].append(
            {
                "calls": carried.calls,
                "share": carried.share,
                "slowest": carried.slowest,
                "latest_ms": carried.latest_ms,
            }
        )

    def _measure_codec(self, rounds: _Rounds) -> None:
        arguments = [
            *("taskset", "--cpu-list", str(self.cpu)),
            *(sys.executable, "-m", "tools.bench.calls.codec"),
            *("--sessions", str(self._calls["ours"]), "--seconds", str(self._scale.codec_s)),
        ]
        done = subprocess.run(arguments, cwd=ROOT, check=True, capture_output=True)
        found = json.loads(done.stdout)
        self.codec.append(found)
        rounds.add("codec.sessions", found["sessions_a_core"])

    # Setting up.

    def _set_up(self, name: str, rounds: _Rounds) -> None:
        server, scale = self._servers[name], self._scale
        before = server.state()
        lines: list[Line] = []
        for _ in range(scale.setups):
            self._clients.hang_up(lines[-1:])
            lines += self._clients.connect(server.callee, 1, at_once=1, packets=())
        after = self._hang_up(server, lines)
        rounds.add(f"{name}.setup.p50", statistics.median(_setup_ms(lines)))
        rounds.add(f"{name}.setup.cpu", 1e3 * (after.cpu - before.cpu) / scale.setups)
        lines = self._clients.connect(
            server.callee, scale.setups, at_once=scale.at_once, packets=()
        )
        rounds.add(f"{name}.setup.{scale.at_once}.p50", statistics.median(_setup_ms(lines)))
        self._hang_up(server, lines)

    # Delay.

    def _watch(self, name: str, rounds: _Rounds) -> None:
        server, calls = self._servers[name], self._scale.watched
        first = server.become(Habit.WATCHING).begun
        marks: list[list[float]] = [[] for _ in range(calls)]

        def sent(line: int, packet: int, at: float) -> None:
            if packet % speech.MARK_EVERY == 0:
                marks[line].append(at)

        lines = self._clients.connect(server.callee, calls, at_once=1, packets=speech.marked())
        spoken = self._clients.talk(
            lines, settle=self._scale.settle_s, seconds=self._scale.talk_s, on_sent=sent
        )
        ears = server.become(Habit.SPEAKING).ears
        self._hang_up(server, lines)
        found = []
        for number, sent_at in enumerate(marks):
            each = delays(sent_at, ears[first + number].onsets)
            found += each[math.ceil(self._scale.settle_s / 0.02 / speech.MARK_EVERY) :]
        percentiles = statistics.quantiles(found, n=100)
        rounds.add(f"{name}.delay.p50", 1e3 * percentiles[49])
        rounds.add(f"{name}.delay.p99", 1e3 * percentiles[98])
        if spoken.closed:
            raise ShuntError(f"{spoken.closed} calls of the bench did not last")

    def measure(self, rounds: _Rounds, number: int) -> None:
        """One round. They take turns at being first."""
        order = _SUBJECTS[:: 1 if number % 2 == 0 else -1]
        self._measure_codec(rounds)
        for step in (self._load, self._set_up, self._watch):
            for name in order:
                step(name, rounds)

    # Memory.

    def take_idle(self, rounds: _Rounds) -> None:
        """Memory of an idle session. To be asked first: later, sessions take what others left."""
        for name, server in self._servers.items():
            self._progress(f"bench transceiver: memory, {name}")
            server.become(Habit.SILENT)
            self._come(server, 1)
            before = server.memory_bytes()
            lines = self._clients.connect(
                server.callee, self._scale.idle, at_once=self._scale.at_once, packets=()
            )
            each = (server.memory_bytes() - before) / self._scale.idle
            self._hang_up(server, lines)
            server.become(Habit.SPEAKING)
            rounds.add(f"{name}.memory", each / 1024)

    def come_and_go(self, rounds: _Rounds) -> list[dict[str, float]]:
        """What stays, as sessions come and go."""
        server, scale = self._servers["ours"], self._scale
        server.become(Habit.SILENT)
        each = scale.gone // _STEPS
        points: list[dict[str, float]] = []
        for step in range(_STEPS + 1):
            self._progress(f"bench transceiver: {step * each:,} sessions have come and gone")
            state = self._come(server, each) if step else server.state()
            points.append(
                {
                    "sessions": step * each,
                    "bytes": server.memory_bytes(),
                    "tasks": state.tasks,
                    "descriptors": server.descriptors(),
                }
            )
        rounds.add("ours.memory.early", points[_EARLY]["bytes"] / 2**20)
        rounds.add("ours.memory.late", points[-1]["bytes"] / 2**20)
        slope = growth([each["sessions"] for each in points], [each["bytes"] for each in points])
        rounds.add("ours.growth", slope)
        for what in ("tasks", "descriptors"):
            rounds.add(f"ours.left.{what}", points[-1][what] - points[_EARLY][what])
        return points

    def _come(self, server: Server, count: int) -> State:
        batch = 5 * self._scale.at_once
        for begun in range(0, count, batch):
            lines = self._clients.connect(
                server.callee,
                min(batch, count - begun),
                at_once=self._scale.at_once,
                packets=(),
            )
            state = self._hang_up(server, lines)
        return state


def _slowest_ear(before: State, after: State) -> float:
    """Packets a second of the bot that heard the fewest, by the audio that it heard."""
    heard = [
        ear.seconds - before.ears[number].seconds
        for number, ear in after.ears.items()
        if number in before.ears
    ]
    return min(heard, default=0.0) / (after.at - before.at) * 50


def _setup_ms(lines: Sequence[Line]) -> list[float]:
    return [1e3 * (line.call.connected_at - line.call.began_at) for line in lines]


_WHAT = {
    "sessions": ("sessions a core", "sessions"),
    "slowest": ("of these, the slowest, either way", "packets/s"),
    "delay.p50": ("from client to bot, p50", "ms"),
    "delay.p99": ("from client to bot, p99", "ms"),
    "setup.p50": ("from POST to connected, p50", "ms"),
    "setup.cpu": ("CPU of a session set up and ended", "ms"),
    "memory": ("memory of an idle session", "KiB"),
    "memory.early": ("memory of the process, early", "MiB"),
    "memory.late": ("after five times as many sessions", "MiB"),
    "growth": ("memory a session leaves behind", "bytes"),
    "left.tasks": ("tasks that sessions leave behind", "tasks"),
    "left.descriptors": ("descriptors that they leave", "descriptors"),
}


def _cases(rounds: _Rounds) -> tuple[Case, ...]:
    cases = []
    for name, values in rounds.values.items():
        rest = name.partition(".")[2]
        if rest in _WHAT:
            what, unit = _WHAT[rest]
        else:  # setup.N.p50
            what, unit = f"{rest.split('.')[1]} at once", "ms"
        cases.append(Case(name, what, tuple(values), unit=unit))
    return tuple(cases)
