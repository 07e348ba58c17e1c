"""Backends in real sessions: an aiortc client, a transceiver on loopback, and what is behind it."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace

import numpy as np
import pytest
from aiohttp import web

from tests.transceiver.backends.realtime_server import RealtimeServer
from tests.transceiver.backends.sound import noise, speech
from tests.transceiver.caller import Caller, Samples, eventually
from tests.transceiver.conftest import KEY
from transceiver.backends import PCM_24000, Conversation
from transceiver.backends.isolation import Bounds, isolated
from transceiver.server import Transceiver, TransceiverConfig
from transceiver.session import State


@pytest.fixture
async def server() -> AsyncIterator[RealtimeServer]:
    async with RealtimeServer() as server:
        yield server


@asynccontextmanager
async def before(config: TransceiverConfig, server: RealtimeServer) -> AsyncIterator[Transceiver]:
    """A transceiver with that server behind it."""
    config = replace(config, backend="realtime", backend_options={"url": server.url})
    async with Transceiver(config) as transceiver:
        async with asyncio.timeout(5):
            await transceiver.registration.registered.wait()
        yield transceiver


def said(pcm: bytes) -> Samples:
    """At the caller's 48 kHz."""
    return np.frombuffer(pcm, "<i2").repeat(2)


def is_tone(samples: Samples) -> bool:
    """Whether it is mostly the server's 440 Hz, and not silence or an echo."""
    spectrum = np.abs(np.fft.rfft(samples.astype(np.float64)))
    peak = float(np.fft.rfftfreq(len(samples), 1 / 48000)[spectrum.argmax()])
    return bool(np.abs(samples).max() > 1000) and abs(peak - 440) < 60


def events(caller: Caller) -> list[dict[str, object]]:
    return [json.loads(message) for message in caller.messages]


def types(caller: Caller) -> list[object]:
    return [event["type"] for event in events(caller)]


async def test_a_caller_talks_with_a_model_and_interrupts_it(
    config: TransceiverConfig, server: RealtimeServer
) -> None:
    server.answer = 20.0
    speaks = noise(0.5) + speech(1.0) + noise(2.5) + speech(1.0) + noise(1.0)
    async with (
        before(config, server) as transceiver,
        Caller(transceiver.http_url, KEY, samples=said(speaks), label="oai-events") as caller,
    ):
        await caller.connected()
        await eventually(lambda: "conversation.item.truncated" in types(caller), within=15)
        truncate = server.connections[0].event("conversation.item.truncate")
        on_its_way = len(caller.heard) + 25
        await eventually(lambda: len(caller.heard) > on_its_way + 10)
        tones = [is_tone(samples) for samples in caller.heard[: on_its_way + 10]]
    assert types(caller)[:4] == [
        "session.created",
        "input_audio_buffer.speech_started",
        "input_audio_buffer.speech_stopped",
        "response.created",
    ]
    assert "output_audio_buffer.cleared" in types(caller)
    assert "response.output_audio.delta" not in types(caller)
    assert not any(tones[on_its_way:])
    assert truncate["audio_end_ms"] == pytest.approx(sum(tones) * 20, abs=150)
    await eventually(lambda: server.connections[0].closed_by_client == 1000)


async def test_a_server_that_refuses_ends_the_call_with_the_reason(
    config: TransceiverConfig, server: RealtimeServer
) -> None:
    server.refusal = web.Response(status=401)
    async with (
        before(config, server) as transceiver,
        Caller(transceiver.http_url, KEY, label="oai-events"),
    ):
        (session,) = transceiver.sessions.all()
        await eventually(lambda: session.state is State.CLOSED)
        assert session.reason == "realtime: the server refuses the session: 401 Unauthorized"


class Hangs:
    """Blocks its thread when it hears something."""

    audio = PCM_24000
    hangs = threading.Event()
    gate = threading.Event()

    def start(self, conversation: Conversation) -> None: ...

    def hear(self, pcm: bytes, at: int, concealed: bool) -> None:
        self.hangs.set()
        self.gate.wait()

    def channel_opened(self, label: str) -> None: ...

    def receive(self, label: str, message: str | bytes) -> None: ...

    async def close(self) -> None: ...


@pytest.fixture
def hangs() -> Iterator[type[Hangs]]:
    Hangs.gate.clear()
    Hangs.hangs.clear()
    yield Hangs
    Hangs.gate.set()


async def test_who_hangs_ends_its_own_call_and_others_are_heard(
    transceiver: Transceiver, hangs: type[Hangs], monkeypatch: pytest.MonkeyPatch
) -> None:
    factory = isolated("bad", hangs, Bounds(hang=2.0, close=0.5))
    speaks = np.tile(said(speech(1.8)), 12)

    async def is_heard(caller: Caller) -> None:
        caller.heard.clear()
        await eventually(
            lambda: sum(np.abs(samples).max() > 1000 for samples in caller.heard) > 20, within=10
        )

    async with Caller(transceiver.http_url, KEY, samples=speaks) as good:
        await good.connected()
        monkeypatch.setattr(transceiver.sessions, "_backend", factory)
        async with Caller(transceiver.http_url, KEY, samples=speaks):
            session = transceiver.sessions.all()[-1]
            await eventually(hangs.hangs.is_set)
            await is_heard(good)
            await eventually(lambda: session.state is State.CLOSED, within=10)
            assert session.reason == "backend bad has taken nothing for 2 s"
            await is_heard(good)
