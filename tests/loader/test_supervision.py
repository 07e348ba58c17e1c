"""What systemd hears: on a real datagram socket, from the class and from agents that run."""

import asyncio
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from loader.capabilities import Capability
from loader.client import AgentClient
from loader.supervision import Supervision
from tests.loader.conftest import AgentProcess, Host, eventually, make_host, remove_host
from tests.loader.test_capabilities import with_only

# An agent whose housekeeping stands still, or dies, as soon as a file says so.
TROUBLED = """
import sys, time
from pathlib import Path
from loader.housekeeping import Housekeeping
from tools.cli import main
trouble, steps = Path(sys.argv[1]), Housekeeping.steps
def troubled_steps(self):
    if trouble.exists():
        if trouble.read_text() == "die":
            raise RuntimeError("the sweep has a bug")
        time.sleep(3600)
    return steps(self)
Housekeeping.steps = troubled_steps
sys.exit(main(sys.argv[sys.argv.index("tools") + 1:]))
"""


AGAIN = ["RELOADING", "READY"]


class Systemd:
    """Its end of the line. *said*: messages, in their order, each as its assignments."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.said: list[dict[str, str]] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.setblocking(False)

    def close(self) -> None:
        self._socket.close()

    def listen(self) -> list[dict[str, str]]:
        """All messages until now."""
        with suppress(BlockingIOError):
            while True:
                lines = self._socket.recv(4096).decode().splitlines()
                self.said.append(dict(line.split("=", 1) for line in lines if line))
        return self.said

    def words(self, *wanted: str) -> list[str]:
        """Of the words that are wanted, those that were said, in their order."""
        return [word for message in self.listen() for word in message if word in wanted]

    def heard(self, word: str) -> bool:
        return bool(self.words(word))


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[Systemd]:
    with closing(Systemd(tmp_path / "notify")) as made:
        yield made


@dataclass(slots=True)
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def supervision(
    systemd: Systemd, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Supervision]:
    """With `WatchdogSec=8`: a loop may stand still for 4 s."""
    monkeypatch.setenv("NOTIFY_SOCKET", str(systemd.path))
    monkeypatch.setenv("WATCHDOG_USEC", "8000000")
    with closing(Supervision(clock=clock)) as made:
        yield made


def test_ready_and_stopping_come_with_a_line_for_people(
    systemd: Systemd, supervision: Supervision
) -> None:
    supervision.ready("at work")
    supervision.stopping("enough")

    assert systemd.listen() == [
        {"STATUS": "at work", "READY": "1"},
        {"STATUS": "enough", "STOPPING": "1"},
    ]


def test_a_status_is_told_when_it_changes(systemd: Systemd, supervision: Supervision) -> None:
    for status in ("one", "one", "two", "two", "one"):
        supervision.status(status)

    assert [message["STATUS"] for message in systemd.listen()] == ["one", "two", "one"]


@pytest.mark.parametrize("fails", [False, True])
def test_a_reload_begins_at_a_time_and_ends_as_ready_as_before(
    systemd: Systemd, supervision: Supervision, fails: bool
) -> None:
    supervision.ready("at work")
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    with suppress(ValueError), supervision.reloading():
        reloading = dict(systemd.listen()[-1])
        if fails:
            raise ValueError
    after = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000

    assert reloading["RELOADING"] == "1"
    assert before <= int(reloading["MONOTONIC_USEC"]) <= after
    assert systemd.listen()[-1] == {"STATUS": "at work", "READY": "1"}


def test_it_lives_only_while_all_loops_turn(
    systemd: Systemd,
    supervision: Supervision,
    clock: Clock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert supervision.look({"one": 996.0, "other": 999.0})
    assert systemd.listen() == [{"WATCHDOG": "1"}]

    clock.now += 1
    assert not supervision.look({"one": 996.0, "other": 1000.5})
    assert not supervision.look({"one": 996.0, "other": 1000.5})
    assert systemd.listen() == [{"WATCHDOG": "1"}], "nothing more"
    assert caplog.messages == ["one stands still for 5.0 s"], "once"

    with caplog.at_level(logging.WARNING):
        assert supervision.look({"one": 1001.0, "other": 1000.5})
    assert systemd.listen() == [{"WATCHDOG": "1"}] * 2
    assert caplog.messages[1:] == ["one goes on"]


@pytest.mark.parametrize(("watchdog", "patience"), [("1000000", 3), ("600000000", 10), (None, 10)])
def test_patience_is_half_of_systemds_within_reason(
    supervision: Supervision,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    watchdog: str | None,
    patience: float,
) -> None:
    if watchdog:
        monkeypatch.setenv("WATCHDOG_USEC", watchdog)
    else:
        monkeypatch.delenv("WATCHDOG_USEC")
    with closing(Supervision(clock=clock)) as other:
        assert other.look({"a loop": clock.now - patience})
        assert not other.look({"a loop": clock.now - patience - 0.01})


def test_another_processs_watchdog_is_not_ours(
    supervision: Supervision, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid() + 1))
    with closing(Supervision(clock=clock)) as other:
        assert other.look({"a loop": clock.now - 9})


def test_without_systemd_nobody_is_told(
    systemd: Systemd, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    with closing(Supervision(clock=clock)) as alone:
        alone.ready("at work")
        alone.stopping("enough")
        assert alone.look({"a loop": clock.now})

    assert systemd.listen() == []


def test_a_systemd_that_does_not_listen_keeps_nobody_waiting(
    systemd: Systemd, supervision: Supervision, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(10000):  # more than the socket holds
        supervision.status(str(number))
        if caplog.messages:
            break
    assert caplog.messages == [
        "systemd does not hear us: [Errno 11] Resource temporarily unavailable"
    ]

    systemd.close()
    supervision.stopping("enough")
    assert "Connection refused" in caplog.messages[-1]


# Agents that run.


@pytest.fixture(scope="module")
def relay() -> Iterator[Host]:
    made = make_host(f"{os.getpid()}-supervised")
    yield made
    remove_host(made)


@pytest.fixture
def supervised(
    relay: Host, pins: Path, systemd: Systemd, tmp_path: Path
) -> Iterator[Callable[..., AgentProcess]]:
    """Starts an agent as systemd does, on pins that hold a program."""
    started: list[AgentProcess] = []

    def start(*before: str) -> AgentProcess:
        line = ("env", f"NOTIFY_SOCKET={systemd.path}", "WATCHDOG_USEC=4000000")
        two = with_only(0, Capability.BPF, Capability.NET_ADMIN)
        agent = AgentProcess(relay, tmp_path, pins, before=(*line, *two, *before))
        started.append(agent)
        return agent

    yield start
    for agent in started:
        agent.kill()


def troubled(trouble: Path) -> tuple[str, ...]:
    return (sys.executable, "-c", TROUBLED, str(trouble))


async def test_systemd_hears_of_an_agents_life_in_order(
    supervised: Callable[..., AgentProcess], systemd: Systemd
) -> None:
    agent = supervised()
    eventually("it is ready", lambda: systemd.heard("READY"))
    async with AgentClient(str(agent.socket)) as client:
        assert await client.health() == {"ready": True}
    assert agent.host.xdp("inside").startswith("xdp ")
    eventually("it lives", lambda: systemd.heard("WATCHDOG"))

    agent.process.send_signal(signal.SIGHUP)
    await asyncio.to_thread(
        eventually, "it has reloaded", lambda: systemd.words("READY", "RELOADING")[1:] == AGAIN
    )

    agent.host.ip("link set inside xdp off")
    await asyncio.to_thread(
        eventually,
        "what it lacks is told",
        lambda: systemd.listen()[-1].get("STATUS", "").startswith("inside no longer carries"),
        within=25,
    )
    assert agent.stop() == 0

    assert systemd.words("READY", "RELOADING", "STOPPING") == ["READY", *AGAIN, "STOPPING"]
    assert systemd.said[:2] == [
        {"STATUS": "taking over the relay"},
        {"STATUS": "the relay is at work", "READY": "1"},
    ]
    assert not agent.socket.exists()


def test_one_that_stands_still_is_not_said_to_live_and_says_where_it_stood(
    supervised: Callable[..., AgentProcess], systemd: Systemd, tmp_path: Path
) -> None:
    trouble = tmp_path / "trouble"
    agent = supervised(*troubled(trouble))
    eventually("it lives", lambda: systemd.heard("WATCHDOG"))

    trouble.write_text("stand still")
    standing = Path(f"/proc/{agent.process.pid}/wchan")
    eventually("it sleeps", lambda: "nanosleep" in standing.read_text())
    heard = len(systemd.listen())
    with pytest.raises(subprocess.TimeoutExpired):
        agent.process.wait(timeout=2)  # more than two signs of life
    assert len(systemd.listen()) == heard

    agent.process.send_signal(signal.SIGABRT)  # as systemd does
    assert agent.process.wait(timeout=5) == -signal.SIGABRT
    assert "in troubled_steps" in (tmp_path / "agent.log").read_text()


def test_one_whose_loop_dies_ends_with_the_trace(
    supervised: Callable[..., AgentProcess], systemd: Systemd, tmp_path: Path
) -> None:
    trouble = tmp_path / "trouble"
    agent = supervised(*troubled(trouble))

    trouble.write_text("die")

    assert agent.process.wait(timeout=5) == 1
    said = (tmp_path / "agent.log").read_text()
    assert "Traceback" in said
    assert "in troubled_steps" in said
    assert systemd.listen()[-1] == {
        "STATUS": "ended by a bug: RuntimeError('the sweep has a bug')",
        "STOPPING": "1",
    }
    assert not agent.socket.exists()


async def test_a_second_sigterm_waits_for_nobody(
    supervised: Callable[..., AgentProcess], systemd: Systemd
) -> None:
    agent = supervised()
    _reader, writer = await asyncio.open_unix_connection(str(agent.socket))
    writer.write(b"PUT /v1/transceivers/slow HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n{")
    await writer.drain()
    async with AgentClient(str(agent.socket)) as client:
        await client.health()  # and so the other's request has been begun

    agent.process.send_signal(signal.SIGTERM)
    eventually("it stops", lambda: systemd.heard("STOPPING"))
    agent.process.send_signal(signal.SIGTERM)

    assert agent.process.wait(timeout=5) == -signal.SIGTERM
    writer.close()
