"""What all dialects share: who may, how much, how slow, how often, and what strangers can do."""

import asyncio
import contextlib
import gzip
import logging
import random
from collections.abc import AsyncIterator
from dataclasses import replace
from ipaddress import ip_network

import aiohttp
import pytest

from loader.problems import Refused
from tests.transceiver.agent import FakeAgent
from tests.transceiver.caller import eventually
from tests.transceiver.conftest import KEY
from tests.transceiver.sdp.samples import RECORDED
from tests.transceiver.signaling.conftest import BEARER, GOOD, SDP, secret
from transceiver.server import Transceiver, TransceiverConfig
from transceiver.session import Limits as SessionLimits
from transceiver.signaling import Limits
from transceiver.signaling import http as signaling_http
from transceiver.signaling.limits import Rate

POSTS = ["/v1/realtime/calls", "/whip", "/api/offer"]


@contextlib.asynccontextmanager
async def serving(
    config: TransceiverConfig, limits: Limits
) -> AsyncIterator[tuple[Transceiver, aiohttp.ClientSession]]:
    async with (
        Transceiver(replace(config, request_limits=limits)) as transceiver,
        aiohttp.ClientSession(transceiver.http_url) as http,
    ):
        async with asyncio.timeout(5):
            await transceiver.registration.registered.wait()
        yield transceiver, http


@pytest.mark.parametrize("given", [None, "Bearer wrong", KEY, "Bearer ", "Bearer käse", "Basic x"])
@pytest.mark.parametrize("path", POSTS)
async def test_nobody_calls_without_a_key(
    http: aiohttp.ClientSession, agent: FakeAgent, path: str, given: str | None
) -> None:
    headers = {"Content-Type": "application/sdp"} | ({"Authorization": given} if given else {})
    async with http.post(path, data=GOOD, headers=headers) as response:
        assert response.status == 401
        assert "key" in await response.text()
        assert response.headers["Access-Control-Allow-Origin"] == "*"
        assert response.headers["WWW-Authenticate"] == "Bearer"
    assert not agent.added


@pytest.mark.parametrize(
    ("body", "content_type", "status"),
    [
        (b"hello", "application/sdp", 400),
        (b"", "application/sdp", 400),
        (b"\xff\xfe", "application/sdp", 400),
        (GOOD.encode(), "text/plain", 415),
        (b"v=0\r\n" + b"a" * (65 << 10), "application/sdp", 413),
        (b"v=0\r\n" + b"a" * (1 << 20), "application/sdp", 413),
    ],
)
@pytest.mark.parametrize("path", POSTS[:2])
async def test_bad_bodies_are_refused_with_a_sentence(
    http: aiohttp.ClientSession, path: str, body: bytes, content_type: str, status: int
) -> None:
    headers = BEARER | {"Content-Type": content_type}
    async with http.post(path, data=body, headers=headers) as response:
        assert response.status == status
        assert await response.json(content_type=None)


@pytest.mark.parametrize("path", POSTS)
async def test_what_is_compressed_is_not_unpacked(http: aiohttp.ClientSession, path: str) -> None:
    bomb = gzip.compress(bytes(10 << 20))
    kind = "application/json" if path == "/api/offer" else "application/sdp"
    headers = BEARER | {"Content-Type": kind, "Content-Encoding": "gzip"}
    async with http.post(path, data=bomb, headers=headers) as response:
        assert response.status == 415


async def test_offers_of_real_stacks_are_answered(http: aiohttp.ClientSession) -> None:
    for name, text in RECORDED.items():
        async with http.post("/whip", data=text.encode(), headers=SDP) as response:
            assert response.status in (201, 422), name
            if response.status == 201:
                async with http.delete(response.headers["Location"], headers=SDP) as deleted:
                    assert deleted.status == 200


async def test_no_offer_makes_the_server_fail(
    http: aiohttp.ClientSession, transceiver: Transceiver
) -> None:
    chance = random.Random(1)
    for _ in range(200):
        text = bytearray(GOOD.encode())
        for _ in range(chance.randrange(1, 20)):
            at = chance.randrange(len(text))
            text[at : at + chance.randrange(9)] = chance.randbytes(chance.randrange(4))
        async with http.post("/whip", data=bytes(text), headers=SDP) as response:
            assert response.status in (201, 400, 422), text
            if response.status == 201:
                async with http.delete(response.headers["Location"], headers=SDP) as deleted:
                    assert deleted.status == 200
    assert len(transceiver.sessions) == 0


HOSTILE = {
    "thousands of lines": "v=0\r\n" + "a=x\r\n" * 10_000,
    "thousands of sections": GOOD + "m=audio 9 UDP/TLS/RTP/SAVPF 111\r\n" * 1500,
    "a cyclic group": GOOD.replace("BUNDLE 0 1", "BUNDLE 0 1 0 1 0 1"),
    "groups without end": GOOD.replace("a=group", "a=group:BUNDLE 0 1\r\na=group" * 1),
    "a group of thousands": GOOD.replace("BUNDLE 0 1", "BUNDLE " + "0 1 " * 10_000),
    "a line without end": "v=0\r\na=" + "x" * 60_000,
    "letters that are none": GOOD.replace("s=-", "s=\u202e\U0001f4a9\x00"),
    "digits that are none": GOOD.replace("m=audio 9", "m=audio ٩"),
}


@pytest.mark.parametrize("name", HOSTILE)
async def test_hostile_offers_are_refused_and_leave_nothing(
    http: aiohttp.ClientSession, transceiver: Transceiver, name: str
) -> None:
    async with http.post("/whip", data=HOSTILE[name].encode(), headers=SDP) as response:
        assert response.status in (400, 422), await response.text()
    assert len(transceiver.sessions) == 0


async def test_an_agent_that_refuses_makes_503_and_a_time_to_retry(
    http: aiohttp.ClientSession, agent: FakeAgent
) -> None:
    agent.refuse_routes = Refused("quota-exceeded", "no more routes")
    async with http.post("/whip", data=GOOD, headers=SDP) as response:
        assert response.status == 503
        assert int(response.headers["Retry-After"]) >= 1
        assert "no more routes" in await response.text()


@pytest.fixture
def renewals(agent: FakeAgent) -> None:
    """Transceivers that start after this one renew their lease ten times a second."""
    agent.lease = 0.3


async def test_a_draining_transceiver_sends_new_calls_away_until_the_drain_is_called_off(
    renewals: None, http: aiohttp.ClientSession, agent: FakeAgent, transceiver: Transceiver
) -> None:
    agent.draining = True
    await eventually(lambda: transceiver.registration.draining)
    for path in POSTS[:2]:
        async with http.post(path, data=GOOD, headers=SDP) as response:
            assert response.status == 503
            assert int(response.headers["Retry-After"]) >= 1
            assert "draining" in await response.text()

    agent.draining = False
    await eventually(lambda: not transceiver.registration.draining)
    async with http.post("/whip", data=GOOD, headers=SDP) as response:
        assert response.status == 201


async def test_an_agent_that_is_away_makes_503(
    http: aiohttp.ClientSession, agent: FakeAgent, transceiver: Transceiver
) -> None:
    await agent.stop()
    async with http.post("/whip", data=GOOD, headers=SDP) as response:
        assert response.status == 503
    assert len(transceiver.sessions) == 0


async def test_a_client_that_leaves_during_signaling_leaves_no_session(
    config: TransceiverConfig, agent: FakeAgent
) -> None:
    config = replace(config, limits=SessionLimits(path=0.3))
    async with serving(config, Limits()) as (transceiver, _):
        _, writer = await asyncio.open_connection(*transceiver.http_url[7:].split(":"))
        head = f"POST /whip HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"
        head += f"Content-Type: application/sdp\r\nContent-Length: {len(GOOD)}\r\n\r\n"
        writer.write((head + GOOD).encode())
        writer.close()
        await eventually(lambda: len(agent.added) == 1)
        await eventually(lambda: len(transceiver.sessions) == 0 and not agent.routes)


async def test_a_body_that_does_not_come_is_not_waited_for(
    transceiver: Transceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signaling_http, "BODY_SECONDS", 0.2)
    for path, kind in (("/whip", "application/sdp"), ("/api/offer", "application/json")):
        reader, writer = await asyncio.open_connection(*transceiver.http_url[7:].split(":"))
        request = f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"
        request += f"Content-Type: {kind}\r\nContent-Length: 1000\r\n\r\nv=0"
        writer.write(request.encode())
        async with asyncio.timeout(5):
            head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 408 ")
        assert b"Connection: close" in head
        writer.close()


ASKED = (
    f"POST /whip HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"
    "Content-Type: application/sdp\r\n"
)
NO_HTTP = {
    "a chunk of no size": ASKED + "Transfer-Encoding: chunked\r\n\r\nzz\r\nfoo\r\n",
    "a chunk of negative size": ASKED + "Transfer-Encoding: chunked\r\n\r\n-1\r\nfoo\r\n",
    "both lengths": ASKED + "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "two lengths": ASKED + "Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
    "a long header": ASKED + "X: " + "a" * 20_000 + "\r\n\r\n",
    "many headers": ASKED + "X: a\r\n" * 500 + "\r\n",
    "a long path": "GET /" + "a" * 20_000 + " HTTP/1.1\r\nHost: x\r\n\r\n",
    "TLS": "\x16\x03\x01\x02\x00\x01\x00",
}


@pytest.mark.parametrize("name", NO_HTTP)
async def test_what_is_no_http_is_refused_and_fills_no_log(
    transceiver: Transceiver, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    reader, writer = await asyncio.open_connection(*transceiver.http_url[7:].split(":"))
    writer.write(NO_HTTP[name].encode("latin1"))
    async with asyncio.timeout(5):
        status = await reader.readline()
    assert status.split()[1] == b"400"
    writer.close()
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_nor_does_a_client_that_leaves_amid_its_body(
    transceiver: Transceiver, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "transceiver.signaling")
    _, writer = await asyncio.open_connection(*transceiver.http_url[7:].split(":"))
    writer.write(f"{ASKED}Content-Length: 100\r\n\r\nv=0".encode())
    await writer.drain()
    writer.close()
    await eventually(lambda: "a client left while it asked" in caplog.messages)
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_who_asks_too_often_is_told_when_to_ask_again(
    config: TransceiverConfig, agent: FakeAgent
) -> None:
    limits = Limits(address=Rate(0.1, 3), api_key=Rate(0.1, 4))
    async with serving(config, limits) as (_, http):
        for path in ("/whip", "/v1/realtime/calls", "/api/offer"):
            async with http.post(path, data=GOOD) as response:
                assert response.status == 401
        async with http.post("/whip", data=GOOD) as response:
            assert response.status == 429
            assert 1 <= int(response.headers["Retry-After"]) <= 11
        # Who has the API key is not kept out by what strangers do at its address.
        for status in (404, 404, 404, 404, 429):
            async with http.delete("/whip/x", headers=BEARER) as response:
                assert response.status == status
    assert not agent.added


async def test_an_ephemeral_key_has_a_rate_of_its_own(config: TransceiverConfig) -> None:
    limits = Limits(ephemeral_key=Rate(0.1, 2))
    async with serving(config, limits) as (_, http):
        for _ in range(2):
            headers = {"Authorization": f"Bearer {await secret(http)}"}
            for status in (404, 404, 429):
                async with http.delete("/whip/x", headers=headers) as response:
                    assert response.status == status


async def test_clients_behind_a_proxy_that_is_trusted_are_told_apart(
    config: TransceiverConfig,
) -> None:
    limits = Limits(address=Rate(0.1, 1), proxies=[ip_network("127.0.0.0/8")])
    async with serving(config, limits) as (_, http):
        for forwarded, status in (
            ("192.0.2.1", 401),
            ("192.0.2.1", 429),
            ("192.0.2.2", 401),
            ("192.0.2.3, 192.0.2.2", 429),  # what a client wrote itself is further away
            ("192.0.2.4, 127.0.0.9", 401),
            ("2001:db8:1:2::1", 401),
            ("2001:db8:1:2::2", 429),
            ("nonsense", 401),
            ("nonsense", 429),
        ):
            headers = {"X-Forwarded-For": forwarded}
            async with http.post("/whip", data=GOOD, headers=headers) as response:
                assert response.status == status, forwarded


async def test_others_say_in_vain_for_whom_they_ask(config: TransceiverConfig) -> None:
    async with serving(config, Limits(address=Rate(0.1, 1))) as (_, http):
        for number, status in enumerate((401, 429, 429)):
            headers = {"X-Forwarded-For": f"192.0.2.{number}"}
            async with http.post("/whip", data=GOOD, headers=headers) as response:
                assert response.status == status


async def test_one_address_has_so_many_connections_and_no_more(config: TransceiverConfig) -> None:
    async with serving(config, Limits(connections=3)) as (transceiver, _):
        where = transceiver.http_url[7:].split(":")
        held = [await asyncio.open_connection(*where) for _ in range(3)]
        reader, writer = await asyncio.open_connection(*where)
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
        writer.close()
        held.pop()[1].close()
        async with aiohttp.ClientSession() as http:

            async def is_let_in() -> bool:
                try:
                    async with http.get(f"{transceiver.http_url}/healthz") as response:
                        return response.status == 200
                except aiohttp.ClientConnectionError:
                    return False

            async with asyncio.timeout(5):
                while not await is_let_in():
                    pass
        for _, writer in held:
            writer.close()


async def test_those_of_a_proxy_are_not_counted(config: TransceiverConfig) -> None:
    limits = Limits(connections=1, proxies=[ip_network("127.0.0.1")])
    async with serving(config, limits) as (transceiver, http):
        where = transceiver.http_url[7:].split(":")
        held = [await asyncio.open_connection(*where) for _ in range(3)]
        async with http.get("/healthz") as response:
            assert response.status == 200
        for _, writer in held:
            writer.close()


async def test_preflights_are_answered_without_a_key(http: aiohttp.ClientSession) -> None:
    for path in (
        *POSTS,
        "/v1/realtime/calls/x/hangup",
        "/whip/x",
        "/start",
        "/sessions/x/api/offer",
    ):
        async with http.options(path) as response:
            assert response.status in (200, 204)
            assert "Authorization" in response.headers["Access-Control-Allow-Headers"]
            assert "DELETE" in response.headers["Access-Control-Allow-Methods"]


async def test_what_is_not_there_is_said_with_cors(http: aiohttp.ClientSession) -> None:
    async with http.post("/nothing", headers=BEARER) as response:
        assert response.status == 405
        assert response.headers["Access-Control-Allow-Origin"] == "*"


async def test_health_tells_sessions_and_standing(http: aiohttp.ClientSession) -> None:
    async with http.get("/healthz") as response:
        assert await response.json() == {"sessions": 0, "registered": True}
