"""HTTP to a transceiver on loopback, with a key or without."""

from collections.abc import AsyncIterator

import aiohttp
import pytest

from tests.transceiver.conftest import KEY
from tests.transceiver.sdp.samples import AUDIO, DATA, offer
from transceiver.server import Transceiver

GOOD = offer(AUDIO, DATA)
BEARER = {"Authorization": f"Bearer {KEY}"}
SDP = {**BEARER, "Content-Type": "application/sdp"}


@pytest.fixture
async def http(transceiver: Transceiver) -> AsyncIterator[aiohttp.ClientSession]:
    """Relative URLs are the transceiver's."""
    async with aiohttp.ClientSession(transceiver.http_url) as http:
        yield http


async def secret(http: aiohttp.ClientSession, **asked: object) -> str:
    """An ephemeral key."""
    async with http.post("/v1/realtime/client_secrets", json=asked, headers=BEARER) as response:
        assert response.status == 200, await response.text()
        value: str = (await response.json())["value"]
        return value
