"""What the agent costs: how fast it makes routes with none and with half a million there, what a
housekeeping pass over a million slots takes, and how soon the maps follow the network
(`following`).

Three agents, and a server that does nothing, answer in turn over their Unix sockets; whoever is
not asked stands still. Each round asks all of them, so that what disturbs a round disturbs all.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from loader.errors import ShuntError
from loader.maps import Maps
from tools.bench import following
from tools.bench.agents import (
    INSTANCE,
    TRANSCEIVERS,
    Agent,
    Fill,
    Server,
    carry,
    fill,
    keep_alive,
    serve,
)
from tools.bench.alone import alone
from tools.bench.asking import Answers, ask_all, request
from tools.bench.facts import machine, map_memory
from tools.bench.report import Case, Report
from tools.bench.subject import FIRST_PORT, LAST_PORT

__all__ = ["Scale", "run"]

_CONNECTIONS = 8
_AT_ONCE = 250  # requests, before leases are renewed
_UPDATES = 2000


@dataclass(frozen=True, slots=True)
class Scale:
    """How much there is, and how long it is measured. *asked*: requests of each kind in a round;
    *idle_s*: seconds in which an agent is only watched; *followed*: transceivers whose next hops
    follow the network, *follow_rounds* times."""

    inside: int = 16
    routes: int = 500_000
    rounds: int = 11
    asked: int = 2000
    idle_s: float = 5.0
    followed: int = 1000
    follow_rounds: int = 50

    @property
    def flows(self) -> int:
        """All there can be."""
        return self.inside * (LAST_PORT - FIRST_PORT + 1)


_QUICK = Scale(rounds=3, asked=1000, idle_s=3.0)


@dataclass(slots=True)
class _Rounds:
    """What was measured, by case."""

    values: dict[str, list[float]] = field(default_factory=dict)

    def add(self, name: str, value: float) -> None:
        self.values.setdefault(name, []).append(value)

    def add_answers(self, name: str, answers: Answers) -> None:
        percentiles = statistics.quantiles(answers.milliseconds, n=100)
        self.add(f"{name}.p50", percentiles[49])
        self.add(f"{name}.p99", percentiles[98])
        self.add(f"{name}.each", 1e3 * answers.seconds / len(answers.milliseconds))


def run(
    pins: Path, *, quick: bool, progress: Callable[[str], None], scale: Scale | None = None
) -> Report:
    """Measure; *pins*: where, as a beginning of names. Raises ShuntError."""
    wanted = scale or (_QUICK if quick else Scale())
    cpus = os.sched_getaffinity(0)
    with alone(progress) as cpu, tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        subjects = _Subjects(pins, Path(folder), wanted, min(cpus - {cpu}, default=cpu))
        stack.callback(subjects.end)
        subjects.start(progress)
        rounds = _Rounds()
        for number in range(wanted.rounds):
            progress(f"round {number + 1} of {wanted.rounds}")
            subjects.measure(rounds, number)
        return Report("agent", "ms", _cases(rounds, wanted), subjects.facts(cpu))


class _Subjects:
    """Those that are asked."""

    def __init__(self, pins: Path, folder: Path, scale: Scale, cpu: int) -> None:
        self._pins = pins
        self._folder = folder
        self._scale = scale
        self._cpu = cpu
        self._servers: dict[str, Server] = {}
        self._agents: dict[str, Agent] = {}
        self._filled = {
            "none": Fill(),
            "routes": Fill(scale.routes),
            "flows": Fill(scale.routes, scale.flows),
        }
        self._names = count()

    def start(self, progress: Callable[[str], None]) -> None:
        scale = self._scale
        self._servers["trivial"] = serve(self._folder / "trivial", cpu=self._cpu)
        self._servers["trivial"].wait()
        self._servers["trivial"].stop()
        for name, wanted in self._filled.items():
            progress(f"an agent with {wanted.routes} routes and {wanted.flows} flows")
            pins = self._pins.with_name(f"{self._pins.name}-{name}")
            fill(pins, scale.inside, wanted)
            agent = Agent(name, pins, self._folder / name, inside=scale.inside, cpu=self._cpu)
            self._servers[name] = self._agents[name] = agent
            agent.wait()
            keep_alive(agent)
            agent.stop()

    def end(self) -> None:
        for server in self._servers.values():
            server.end()

    def measure(self, rounds: _Rounds, number: int) -> None:
        """One round. They take turns at being first."""
        order = list(self._servers)
        place = number % len(order)
        for name in order[place:] + order[:place]:
            for kind, connections in (("", 1), (f".{_CONNECTIONS}", _CONNECTIONS)):
                for what, requests, status in self._requests():
                    with self._going(name):
                        answers = self._ask(name, requests, status, connections)
                    rounds.add_answers(f"{name}{kind}.{what}", answers)
        rounds.add("map.update", self._update_map())
        for name, agent in self._agents.items():
            with self._going(name):
                keep_alive(agent)
                rounds.add(f"{name}.pass", self._watch(agent, self._filled[name]))

    @contextmanager
    def _going(self, name: str) -> Iterator[None]:
        """As `Server.going`, with flows that were just heard."""
        agent = self._agents.get(name)
        if agent:
            with Maps(agent.pins, writable=True) as maps:
                carry(maps)
        with self._servers[name].going():
            yield

    def _requests(self) -> Iterator[tuple[str, list[bytes], int]]:
        """Routes made, and removed again."""
        asked = self._scale.asked
        paths = [f"/v1/routes/new{next(self._names):09}" for _ in range(asked)]
        bodies = [b'{"transceiver": "x%d"}' % (place % TRANSCEIVERS) for place in range(asked)]
        yield (
            "put",
            [
                request("PUT", path, instance=INSTANCE, body=body)
                for path, body in zip(paths, bodies, strict=True)
            ],
            201,
        )
        yield "delete", [request("DELETE", path, instance=INSTANCE) for path in paths], 204

    def _ask(self, name: str, requests: list[bytes], status: int, connections: int) -> Answers:
        answers = Answers((), 0.0)
        for place in range(0, len(requests), _AT_ONCE):
            if name in self._agents:
                keep_alive(self._agents[name])
            answers += ask_all(
                self._servers[name].socket,
                requests[place : place + _AT_ONCE],
                status=status,
                connections=connections,
            )
        return answers

    def _update_map(self) -> float:
        """Milliseconds for a route in the map, and nothing else."""
        with Maps(self._agents["none"].pins, writable=True) as maps:
            names = [f"bare{number:07}" for number in range(_UPDATES)]
            begun = time.perf_counter()
            for number, name in enumerate(names):
                maps.add_route(name, id=number + 1, transceiver=0)
            taken = time.perf_counter() - begun
            maps.remove_routes(names)
        return 1e3 * taken / _UPDATES

    def _watch(self, agent: Agent, filled: Fill) -> float:
        """CPU of an agent that nobody asks, milliseconds from one housekeeping pass to the next."""
        period = agent.period_seconds()
        before, begun = agent.cpu_seconds(), time.monotonic()
        deadline = begun + self._scale.idle_s
        with Maps(agent.pins, writable=True) as maps:
            while (left := deadline - time.monotonic()) > 0:
                time.sleep(min(left, 1.0))
                carry(maps)
            flows = int(np.count_nonzero(maps.slots["to_client"]["state"]))
            if flows != filled.flows:
                raise ShuntError(
                    f"{flows} flows are there, not {filled.flows}",
                    "The bench measures something else than it says; please report this.",
                )
        used = agent.cpu_seconds() - before
        return 1e3 * used / (time.monotonic() - begun) * period

    def facts(self, cpu: int) -> dict[str, Any]:
        """What is no time of a round; for the end, as an agent's transceivers are written over."""
        scale, agent = self._scale, self._agents["none"]
        resident = {name: each.resident_bytes() for name, each in self._agents.items()}
        with Maps(agent.pins, writable=True) as maps:
            memory = map_memory(agent.pins, maps.sizes)
            follows = following.measure(
                maps, transceivers=scale.followed, rounds=scale.follow_rounds
            )
        return {
            **machine(agent.pins, cpu),
            "agents_on_cpu": self._cpu,
            "agents": [
                {
                    **{"name": name, "routes": filled.routes, "flows": filled.flows},
                    "adoption_s": self._agents[name].adopted_seconds(),
                    "resident_bytes": resident[name],
                }
                for name, filled in self._filled.items()
            ],
            "memory": [memory],
            "bytes_per_route": (resident["routes"] - resident["none"]) / scale.routes,
            "bytes_per_slot": (resident["flows"] - resident["routes"]) / scale.flows,
            "following": follows,
        }


def _cases(rounds: _Rounds, scale: Scale) -> tuple[Case, ...]:
    there = {
        "trivial": "a server that does nothing",
        "none": "no other routes",
        "routes": f"{scale.routes:,} routes",
        "flows": f"{scale.routes:,} routes, {scale.flows:,} flows",
    }
    asked = {"put": "a route made", "delete": "a route removed"}
    which = {"p50": "half are faster", "p99": "99 of 100 are faster", "each": "time for each"}

    def what(name: str) -> str:
        if name == "map.update":
            return "a route in the map, and nothing else"
        subject, *rest = name.split(".")
        if rest == ["pass"]:
            return f"CPU a housekeeping pass, {there[subject]}"
        several = f", {rest[0]} at once" if rest[0].isdigit() else ""
        return f"{asked[rest[-2]]}{several}, {there[subject]}: {which[rest[-1]]}"

    return tuple(Case(name, what(name), tuple(values)) for name, values in rounds.values.items())
