"""A transceiver on loopback whose "VIP" is its own socket: calls need no relay."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.transceiver.agent import FakeAgent
from transceiver.ice import IceTiming
from transceiver.server import Transceiver, TransceiverConfig
from transceiver.session import Limits

KEY = "test-key"


@pytest.fixture
async def agent(tmp_path: Path) -> AsyncIterator[FakeAgent]:
    async with FakeAgent(tmp_path / "agent.sock") as agent:
        yield agent


@pytest.fixture
def config(agent: FakeAgent) -> TransceiverConfig:
    """Consent and setup run out soon, so that tests need not wait."""
    return TransceiverConfig(
        id="x1",
        udp="127.0.0.1:0",
        http="127.0.0.1:0",
        agent=agent.socket,
        api_key=KEY,
        capacity=4,
        limits=Limits(path=5.0, dtls=5.0, media=5.0),
        drain_limit=0.0,
        ice=IceTiming(consent_interval=0.4, consent_timeout=2.0),
    )


@pytest.fixture
async def transceiver(config: TransceiverConfig) -> AsyncIterator[Transceiver]:
    async with Transceiver(config) as transceiver:
        async with asyncio.timeout(5):
            await transceiver.registration.registered.wait()
        yield transceiver
