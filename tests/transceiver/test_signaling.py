"""The HTTP side: who may call, what is refused and how it is said, CORS, the page."""

import asyncio
import os
import random
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest

from loader.problems import Refused
from tests.transceiver.agent import FakeAgent
from tests.transceiver.caller import eventually
from tests.transceiver.conftest import KEY
from tests.transceiver.sdp.samples import AUDIO, DATA, VIDEO, offer
from transceiver.server import Transceiver, TransceiverConfig
from transceiver.session import Limits
from transceiver.signaling.legacy import _page_files

GOOD = offer(AUDIO, DATA)
HEADERS = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/sdp"}


@pytest.fixture
async def http(transceiver: Transceiver) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(transceiver.http_url) as http:
        yield http


@pytest.mark.parametrize("path", ["/v1/realtime/calls", "/whip"])
async def test_a_call_is_made_and_deleted(
    http: aiohttp.ClientSession, agent: FakeAgent, path: str
) -> None:
    async with http.post(path, data=GOOD, headers=HEADERS) as response:
        assert response.status == 201
        assert response.content_type == "application/sdp"
        location = response.headers["Location"]
        assert location.startswith(path + "/")
        assert response.headers["Access-Control-Expose-Headers"].startswith("Location")
    assert len(agent.routes) == 1
    async with http.delete(location, headers=HEADERS) as response:
        assert response.status == 200
    assert not agent.routes


async def test_video_is_answered_but_rests(http: aiohttp.ClientSession) -> None:
    text = offer(AUDIO, VIDEO, bundle="0 2")
    async with http.post("/whip", data=text, headers=HEADERS) as response:
        answer = await response.text()
    audio, video = answer.split("m=")[1:]
    assert "a=sendrecv" in audio
    assert "a=inactive" in video


@pytest.mark.parametrize("given", [None, "Bearer wrong", KEY, "Bearer ", "Bearer käse"])
async def test_nobody_calls_or_hangs_up_without_the_key(
    http: aiohttp.ClientSession, agent: FakeAgent, given: str | None
) -> None:
    headers = HEADERS | {"Authorization": given} if given else {"Content-Type": "application/sdp"}
    for method, path in (("POST", "/whip"), ("DELETE", "/whip/x")):
        async with http.request(method, path, data=GOOD, headers=headers) as response:
            assert response.status == 401
            assert "key" in (await response.json())["error"]
            assert response.headers["Access-Control-Allow-Origin"] == "*"
    assert not agent.added


@pytest.mark.parametrize(
    ("body", "content_type", "status"),
    [
        (b"hello", "application/sdp", 400),
        (b"", "application/sdp", 400),
        (b"\xff\xfe", "application/sdp", 400),
        (GOOD.encode(), "text/plain", 415),
        (GOOD.encode(), "multipart/form-data", 415),
        (b"v=0\r\n" + b"a" * (65 << 10), "application/sdp", 413),
    ],
)
async def test_bad_bodies_are_refused_with_a_sentence(
    http: aiohttp.ClientSession, body: bytes, content_type: str, status: int
) -> None:
    headers = HEADERS | {"Content-Type": content_type}
    async with http.post("/whip", data=body, headers=headers) as response:
        assert response.status == status
        assert (await response.json())["error"]


async def test_no_offer_makes_the_server_fail(
    http: aiohttp.ClientSession, transceiver: Transceiver
) -> None:
    for text in mutations(200):
        async with http.post("/whip", data=text.encode(), headers=HEADERS) as response:
            assert response.status in (201, 400, 422), text
            if response.status == 201:
                async with http.delete(response.headers["Location"], headers=HEADERS) as deleted:
                    assert deleted.status == 200
    assert len(transceiver.sessions) == 0


async def test_an_agent_that_refuses_makes_503_and_a_time_to_retry(
    http: aiohttp.ClientSession, agent: FakeAgent
) -> None:
    agent.refuse_routes = Refused("quota-exceeded", "no more routes")
    async with http.post("/whip", data=GOOD, headers=HEADERS) as response:
        assert response.status == 503
        assert int(response.headers["Retry-After"]) >= 1
        assert "no more routes" in (await response.json())["error"]


@pytest.fixture
def renewals(agent: FakeAgent) -> None:
    """Transceivers that start after this one renew their lease ten times a second."""
    agent.lease = 0.3


async def test_a_draining_transceiver_sends_new_calls_away_until_the_drain_is_called_off(
    renewals: None, http: aiohttp.ClientSession, agent: FakeAgent, transceiver: Transceiver
) -> None:
    agent.draining = True
    await eventually(lambda: transceiver.registration.draining)
    async with http.post("/whip", data=GOOD, headers=HEADERS) as response:
        assert response.status == 503
        assert int(response.headers["Retry-After"]) >= 1
        assert "draining" in (await response.json())["error"]

    agent.draining = False
    await eventually(lambda: not transceiver.registration.draining)
    async with http.post("/whip", data=GOOD, headers=HEADERS) as response:
        assert response.status == 201


async def test_an_agent_that_is_away_makes_503(
    http: aiohttp.ClientSession, agent: FakeAgent, transceiver: Transceiver
) -> None:
    await agent.stop()
    async with http.post("/whip", data=GOOD, headers=HEADERS) as response:
        assert response.status == 503
    assert len(transceiver.sessions) == 0


async def test_a_client_that_leaves_during_signaling_leaves_no_session(
    config: TransceiverConfig, agent: FakeAgent
) -> None:
    config = replace(config, limits=Limits(path=0.3))
    async with Transceiver(config) as transceiver:
        await eventually(transceiver.registration.registered.is_set)
        _, writer = await asyncio.open_connection(*transceiver.http_url[7:].split(":"))
        head = f"POST /whip HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"
        head += f"Content-Type: application/sdp\r\nContent-Length: {len(GOOD)}\r\n\r\n"
        writer.write((head + GOOD).encode())
        writer.close()
        await eventually(lambda: len(agent.added) == 1)
        await eventually(lambda: len(transceiver.sessions) == 0 and not agent.routes)


async def test_preflights_are_answered_without_a_key(http: aiohttp.ClientSession) -> None:
    for path in ("/v1/realtime/calls", "/whip", "/whip/x"):
        async with http.options(path) as response:
            assert response.status == 204
            assert "Authorization" in response.headers["Access-Control-Allow-Headers"]
            assert "DELETE" in response.headers["Access-Control-Allow-Methods"]


async def test_health_tells_sessions_and_standing(http: aiohttp.ClientSession) -> None:
    async with http.get("/healthz") as response:
        assert await response.json() == {"sessions": 0, "registered": True}


async def test_only_files_of_the_page_are_served(http: aiohttp.ClientSession) -> None:
    for path in ("/server.py", "/../server.py", "/%2e%2e/server.py", "/page/", "/.//etc/passwd"):
        async with http.get(path) as response:
            assert response.status == 404


def test_the_page_is_what_lies_in_its_folder_and_of_a_known_kind(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("<p>")
    (tmp_path / "notes.py").write_text("secret")
    (tmp_path / "assets").mkdir()
    (tmp_path / "assets" / "page.js").write_text("1")
    assert _page_files(tmp_path) == {
        "index.html": (b"<p>", "text/html; charset=utf-8"),
        "assets/page.js": (b"1", "text/javascript; charset=utf-8"),
    }


def mutations(count: int) -> list[str]:
    """Offers with lines lost, doubled, swapped, and characters changed."""
    seed = int.from_bytes(os.urandom(4))
    print(f"seed {seed}")
    chance = random.Random(seed)
    found = []
    for _ in range(count):
        lines = offer(AUDIO, DATA, VIDEO, bundle="0 1 2").split("\r\n")
        for _ in range(chance.randrange(1, 4)):
            at = chance.randrange(len(lines))
            match chance.randrange(4):
                case 0:
                    del lines[at]
                case 1:
                    lines.insert(at, chance.choice(lines))
                case 2:
                    other = chance.randrange(len(lines))
                    lines[at], lines[other] = lines[other], lines[at]
                case 3 if lines[at]:
                    cut = chance.randrange(len(lines[at]))
                    new = chance.choice((":", " ", "/", "=", "9" * 20, "", "\x00", "é", ";x="))
                    lines[at] = lines[at][:cut] + new + lines[at][cut + 1 :]
        found.append("\r\n".join(lines))
    return found
