"""A reload: all of what can change, or nothing."""

import asyncio
import json
import logging
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from loader import logs
from loader.client import AgentClient, AgentRefused, Vip
from loader.config import AgentConfig
from loader.configfile import BadConfig, Fault
from loader.errors import ShuntError
from loader.reloading import Reloading
from tests.loader.conftest import INSTANCE, TRANSCEIVER, AgentProcess, eventually

CONFIG = AgentConfig(
    public=("eth0",),
    inside=("eth1",),
    vips=(Vip("203.0.113.5", 3478),),
    inside_addresses=("10.0.0.1",),
)


class Part:
    """Takes part in reloads; *fails* to be prepared for one."""

    def __init__(self, fails: bool = False) -> None:
        self.fails = fails
        self.prepared: list[AgentConfig] = []
        self.config = CONFIG

    def __call__(self, config: AgentConfig) -> Callable[[], None]:
        if self.fails:
            raise ShuntError("the token file is empty", "Write a token into it.")
        self.prepared.append(config)
        return partial(self._take, config)

    def _take(self, config: AgentConfig) -> None:
        self.config = config


@pytest.fixture(autouse=True)
def logged(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """How to log, as it was last said; the test's own logs stay as they are."""
    configured: list[tuple[str, str]] = []
    monkeypatch.setattr(logs, "configure", lambda *how: configured.append(how))
    return configured


def reloading(new: AgentConfig, *parts: Part) -> Reloading:
    made = Reloading(CONFIG, lambda: new)
    made.parts += parts
    return made


async def test_every_part_takes_what_is_new(logged: list[tuple[str, str]]) -> None:
    new, parts = replace(CONFIG, log_level="debug"), (Part(), Part())
    subject = reloading(new, *parts)

    reloaded = await subject.reload()

    assert reloaded.changed == ("log.level",)
    assert [part.config for part in parts] == [new, new]
    assert logged == [("debug", "text")]
    assert subject.config == new


async def test_it_is_known_when_the_last_one_failed_and_since_when_what_is_in_force_is() -> None:
    times, broken = iter((100.0, 200.0)), Part(fails=True)
    subject = Reloading(CONFIG, lambda: CONFIG, wall=lambda: next(times))
    assert (subject.failed, subject.taken_at) == (False, 100.0)

    subject.parts.append(broken)
    with pytest.raises(ShuntError):
        await subject.reload()
    assert (subject.failed, subject.taken_at) == (True, 100.0)

    broken.fails = False
    await subject.reload()
    assert (subject.failed, subject.taken_at) == (False, 200.0)


async def test_a_part_that_cannot_be_ready_keeps_all_from_changing(
    caplog: pytest.LogCaptureFixture, logged: list[tuple[str, str]]
) -> None:
    first, last = Part(), Part(fails=True)
    subject = reloading(replace(CONFIG, max_routes=7), first, last)

    with pytest.raises(ShuntError, match="the token file is empty"):
        await subject.reload()

    assert first.prepared, "it was asked first"
    assert first.config == subject.config == CONFIG
    assert logged == []
    assert "the token file is empty" in caplog.text
    assert "stays as it was" in caplog.text


async def test_every_fault_of_a_file_is_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    def read() -> AgentConfig:
        raise BadConfig([Fault(None, "the first"), Fault(None, "the second")])

    with pytest.raises(BadConfig):
        await Reloading(CONFIG, read).reload()

    errors = [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR]
    assert errors == ["the first", "the second", "the configuration stays as it was: errors: 2"]


async def test_what_needs_a_restart_is_said_and_the_parts_do_not_see_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    part = Part()
    new = replace(CONFIG, max_routes=7, public=("eth7",), vips=(Vip("203.0.113.6", 3478),))

    reloaded = await reloading(new, part).reload()

    assert reloaded.restart == ("relay.public", "relay.vips")
    assert part.config == replace(CONFIG, max_routes=7)
    (warning,) = (record for record in caplog.records if record.levelno == logging.WARNING)
    assert "needs a restart, which loses no packet" in warning.getMessage()
    assert vars(warning)["facts"] == {"keys": ("relay.public", "relay.vips")}


async def test_without_a_change_the_parts_are_asked_all_the_same() -> None:
    """A certificate may be another under the path that it had."""
    part = Part()

    reloaded = await reloading(CONFIG, part).reload()

    assert reloaded.changed == reloaded.restart == ()
    assert part.prepared == [CONFIG]


async def test_it_goes_on_after_a_file_with_errors() -> None:
    subject = Reloading(CONFIG, lambda: next(news)())
    done = asyncio.Event()
    subject.parts.append(lambda config: done.set)
    loop = asyncio.get_running_loop()

    def wrong() -> AgentConfig:
        loop.call_soon_threadsafe(subject.ask)  # and again, while the first is under way
        raise BadConfig([Fault(None, "wrong")])

    def right() -> AgentConfig:
        return replace(CONFIG, max_routes=7)

    news = iter((wrong, right))
    keeping = asyncio.create_task(subject.keep())
    subject.ask()

    async with asyncio.timeout(5):
        await done.wait()

    keeping.cancel()
    assert next(news, None) is None, "both were read"


# A real agent.


async def register(client: AgentClient, id: str, instance: str = INSTANCE) -> None:
    await client.register(
        id, instance=instance, address=TRANSCEIVER, port=40000, http="http://x", capacity=10
    )


async def test_a_running_agent_takes_a_new_file_by_sighup(own_agent: AgentProcess) -> None:
    told = partial(lambda text: text in own_agent.log())

    async def hup(text: str, *, until: str) -> None:
        own_agent.config.write_text(text)
        own_agent.process.send_signal(signal.SIGHUP)
        await asyncio.to_thread(eventually, f"it has logged {until!r}", partial(told, until))

    async with AgentClient(str(own_agent.socket)) as client:
        await register(client, "x1")

        await hup(
            '[transceivers]\nprefixes = ["10.0.0.0/8"]\n[log]\nfromat = "json"\n',
            until="the configuration stays as it was",
        )
        assert f'{own_agent.config}:4: unknown key "fromat" in [log]' in own_agent.log()
        await register(client, "x1")  # the prefixes of a file with errors do not hold

        await hup(
            '[transceivers]\nprefixes = ["10.0.0.0/8"]\n[log]\nformat = "json"\n'
            '[api.tcp]\nlisten = "127.0.0.1:8443"\ntoken_file = "/etc/shunt/token"\n',
            until="needs a restart",
        )
        with pytest.raises(AgentRefused, match="none of the transceivers' prefixes"):
            await register(client, "x1")
        lines = [json.loads(line) for line in own_agent.log().splitlines() if line[:1] == "{"]
        facts = {line["message"]: line["facts"] for line in lines}
        assert facts["the configuration was read again"] == {
            "changed": ["transceivers.prefixes", "log.format"]
        }
        assert facts["some of it needs a restart, which loses no packet"] == {
            "keys": ["api.tcp.listen", "api.tcp.token_file"]
        }

        await hup("", until="INFO loader.reloading: the configuration was read again")
        await register(client, "x1")
        await client.deregister("x1", instance=INSTANCE)


def test_a_sighup_while_it_starts_is_not_lost(own_agent: AgentProcess, tmp_path: Path) -> None:
    """Nor does it end the agent, as it would end any other program."""
    own_agent.stop()
    log = tmp_path / "agent.log"
    process = own_agent.spawn(log=log)

    def has_its_pins_open() -> bool:
        for link in Path(f"/proc/{process.pid}/fd").iterdir():
            with suppress(FileNotFoundError):  # closed since
                if os.readlink(link) == str(own_agent.pins):
                    return True
        return False

    eventually("it has come as far as to open its pins", has_its_pins_open, within=60)
    assert "ready: " not in log.read_text()
    process.send_signal(signal.SIGHUP)

    done = "the configuration was read again"
    try:
        eventually("it has reloaded", lambda: done in log.read_text(), within=60)
    finally:
        print(log.read_text())
        process.kill()
        process.wait()
