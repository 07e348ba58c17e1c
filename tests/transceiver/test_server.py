"""The process: configuration that makes no sense, ports in use, and signals."""

import asyncio
import contextlib
import os
import signal
import socket
import sys
import time
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
        ({"backend": "parrot"}, "no backend 'parrot'"),
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


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_calls_and_process_cleanly(
    agent: FakeAgent, number: signal.Signals
) -> None:
    http = free_port()
    program = (
        "from transceiver.server import *; run(TransceiverConfig("
        f"id='x1', udp='127.0.0.1:0', http='127.0.0.1:{http}', agent={agent.socket!r}))"
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
        async with Caller(f"http://127.0.0.1:{http}", KEY) as caller:
            await caller.connected()
            began = time.monotonic()
            process.send_signal(number)
            await eventually(lambda: caller.peer.connectionState == "closed")
            async with asyncio.timeout(5):
                assert await process.wait() == 0
            assert time.monotonic() - began < 3
        assert not agent.routes
        assert not agent.transceivers
        with pytest.raises(aiohttp.ClientConnectionError):
            await Caller(f"http://127.0.0.1:{http}", KEY).__aenter__()
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
