"""The process: configuration that makes no sense, ports in use, and signals."""

import asyncio
import contextlib
import os
import signal
import socket
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest

from loader.errors import ShuntError
from tests.transceiver.agent import FakeAgent
from tests.transceiver.caller import Caller, eventually
from tests.transceiver.conftest import KEY
from transceiver.server import Transceiver, TransceiverConfig


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"id": "no spaces"}, "id 'no spaces' is not valid"),
        ({"udp": "40000"}, "--udp '40000' is not IP:PORT"),
        ({"udp": "127.0.0.1:70000"}, "is not IP:PORT"),
        ({"http": "localhost:8080"}, "--http 'localhost:8080' is not IP:PORT"),
        ({"capacity": 0}, "capacity is 0"),
        ({"drain_limit": -1.0}, "drain limit is -1"),
        ({"api_key": ""}, "no API key"),
        ({"api_key": "two words"}, "does not fit in a header"),
    ],
)
def test_nonsense_is_refused_with_a_cure(change: dict[str, object], what: str) -> None:
    good = TransceiverConfig(id="x1", udp="127.0.0.1:0", http="[::1]:0", api_key="k")
    with pytest.raises(ShuntError, match=what.replace("(", r"\(")) as refused:
        replace(good, **change)  # type: ignore[arg-type]
    assert refused.value.cure


def test_the_key_comes_from_the_environment_and_is_not_shown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SHUNT_API_KEY", "sesame")
    config = TransceiverConfig(id="x1", udp="127.0.0.1:0", http="127.0.0.1:0")
    assert config.api_key == "sesame"
    assert "sesame" not in repr(config)


async def test_a_backend_that_there_is_not_is_said_before_anything_is_touched(
    config: TransceiverConfig, agent: FakeAgent
) -> None:
    with pytest.raises(ShuntError, match="no backend 'oracle'"):
        await Transceiver(replace(config, backend="oracle")).__aenter__()
    with pytest.raises(ShuntError, match="no option 'x'"):
        await Transceiver(replace(config, backend_options={"x": "1"})).__aenter__()
    assert not agent.registered


@pytest.mark.parametrize(("kind", "option"), [("DGRAM", "udp"), ("STREAM", "http")])
async def test_a_port_in_use_is_said_and_nothing_is_left(
    config: TransceiverConfig, agent: FakeAgent, kind: str, option: str
) -> None:
    with socket.socket(socket.AF_INET, socket.SocketKind[f"SOCK_{kind}"]) as taken:
        taken.bind(("127.0.0.1", 0))
        if kind == "STREAM":
            taken.listen()
        change = {option: f"127.0.0.1:{taken.getsockname()[1]}"}
        with pytest.raises(ShuntError, match="is in use"):
            await Transceiver(replace(config, **change)).__aenter__()  # type: ignore[arg-type]
    assert not agent.transceivers
    assert [task for task in asyncio.all_tasks() if task.get_name() == "lease"] == []


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


@contextlib.asynccontextmanager
async def running(agent: FakeAgent, drain_limit: float) -> AsyncIterator[tuple[Process, str]]:
    """A transceiver process that has its lease, and the URL of its signaling."""
    http = free_port()
    program = (
        "from transceiver.server import *; run(TransceiverConfig("
        f"id='x1', udp='127.0.0.1:0', http='127.0.0.1:{http}', agent={agent.socket!r}, "
        f"drain_limit={drain_limit}))"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        program,
        cwd=Path(__file__).parents[2],
        env=os.environ | {"SHUNT_API_KEY": KEY},
    )
    try:
        await eventually(lambda: "x1" in agent.transceivers, within=20)
        yield process, f"http://127.0.0.1:{http}"
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def test_an_interrupt_ends_calls_and_process_cleanly(agent: FakeAgent) -> None:
    async with running(agent, drain_limit=60.0) as (process, url):
        async with Caller(url, KEY) as caller:
            await caller.connected()
            process.send_signal(signal.SIGINT)
            await eventually(lambda: caller.peer.connectionState == "closed")
            async with asyncio.timeout(5):
                assert await process.wait() == 0
        assert not agent.routes
        assert not agent.transceivers
        with pytest.raises(aiohttp.ClientConnectionError):
            await Caller(url, KEY).__aenter__()


async def test_after_sigterm_calls_go_on_and_new_ones_are_sent_away(agent: FakeAgent) -> None:
    async with running(agent, drain_limit=60.0) as (process, url):
        async with Caller(url, KEY) as caller:
            await caller.connected()
            process.send_signal(signal.SIGTERM)
            late = Caller(url, KEY)
            await refused(late)
            assert caller.channel is not None
            caller.channel.send("still there?")
            await eventually(lambda: caller.messages == ["still there?"])
        async with asyncio.timeout(5):  # the last call has ended, and so does the process
            assert await process.wait() == 0
        assert not agent.transceivers


async def test_the_end_of_the_drain_and_a_second_sigterm_end_calls(agent: FakeAgent) -> None:
    for drain_limit, signals in ((0.3, 1), (60.0, 2)):
        async with running(agent, drain_limit) as (process, url), Caller(url, KEY) as caller:
            await caller.connected()
            process.send_signal(signal.SIGTERM)
            if signals == 2:
                await refused(Caller(url, KEY))
                process.send_signal(signal.SIGTERM)
            await eventually(lambda: caller.peer.connectionState == "closed")
            async with asyncio.timeout(5):
                assert await process.wait() == 0


async def refused(caller: Caller) -> None:
    """Return once *caller* is sent away because of a drain; what was taken before is hung up."""
    async with asyncio.timeout(5):
        while True:
            try:
                await caller.__aenter__()
            except AssertionError as error:
                assert "draining" in str(error)  # noqa: PT017
                break
            await caller.delete()
            await caller.peer.close()
            caller = Caller(caller.url, caller.key)
    await caller.peer.close()
