"""Requests for another transceiver's sessions: handed on, once, to where the agent says it is."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace

import aiohttp
import pytest

from tests.transceiver.agent import FakeAgent
from tests.transceiver.signaling.conftest import BEARER, GOOD, SDP, secret
from transceiver.server import Transceiver, TransceiverConfig
from transceiver.sessionid import fresh
from transceiver.signaling import Limits, forwarding
from transceiver.signaling.limits import Rate

FRAGMENT = "application/trickle-ice-sdpfrag"
CANDIDATE = "m=audio 9 RTP/AVP 0\r\na=mid:0\r\na=candidate:1 1 udp 1 192.0.2.1 9 typ host\r\n"


@pytest.fixture
async def other(
    config: TransceiverConfig, transceiver: Transceiver
) -> AsyncIterator[aiohttp.ClientSession]:
    """HTTP to a second transceiver of the same relay; `http` is to the first."""
    async with (
        Transceiver(replace(config, id="x2")) as second,
        aiohttp.ClientSession(second.http_url) as http,
    ):
        async with asyncio.timeout(5):
            await second.registration.registered.wait()
        yield http


async def test_a_session_is_reached_through_any_transceiver(
    http: aiohttp.ClientSession, other: aiohttp.ClientSession, transceiver: Transceiver
) -> None:
    async with http.post("/whip", data=GOOD, headers=SDP) as response:
        location, etag = response.headers["Location"], response.headers["ETag"]
    headers = {**BEARER, "Content-Type": FRAGMENT, "If-Match": etag}
    async with other.patch(location, data=CANDIDATE, headers=headers) as response:
        assert response.status == 204
        assert "Access-Control-Allow-Origin" in response.headers
    restart = "a=ice-ufrag:wxyz\r\na=ice-pwd:wxyz567890123456789012\r\n"
    async with other.patch(location, data=restart, headers=headers) as response:
        assert response.status == 200
        assert response.headers["ETag"] != etag
        assert response.content_type == FRAGMENT
        assert "a=ice-pwd:" in await response.text()
    async with other.patch(location, data=CANDIDATE, headers=headers) as response:
        assert response.status == 412
        assert response.content_type == "application/problem+json"
    async with other.delete(location, headers=BEARER) as response:
        assert response.status == 200
    assert len(transceiver.sessions) == 0
    async with other.delete(location, headers=BEARER) as response:
        assert response.status == 410


async def test_in_every_dialect(
    http: aiohttp.ClientSession, other: aiohttp.ClientSession, transceiver: Transceiver
) -> None:
    async with http.post("/v1/realtime/calls", data=GOOD, headers=SDP) as response:
        location = response.headers["Location"]
    async with other.post(f"{location}/hangup", headers=BEARER) as response:
        assert response.status == 200

    body = {"sdp": GOOD, "type": "offer"}
    async with http.post("/api/offer", json=body, headers=BEARER) as response:
        answer = await response.json()
    candidates = {"pc_id": answer["pc_id"], "candidates": []}
    async with other.patch("/api/offer", json=candidates, headers=BEARER) as response:
        assert await response.json() == {"status": "success"}
    async with other.post("/api/offer", json={**body, **answer, "type": "offer", "sdp": GOOD},
                          headers=BEARER) as response:  # fmt: skip
        assert (await response.json())["pc_id"] == answer["pc_id"]
    assert len(transceiver.sessions) == 1


async def test_the_owner_judges_by_the_same_key(
    http: aiohttp.ClientSession, other: aiohttp.ClientSession
) -> None:
    mine, stranger = [{"Authorization": f"Bearer {await secret(http)}"} for _ in range(2)]
    async with other.post("/whip", data=GOOD, headers={**SDP, **mine}) as response:
        location = response.headers["Location"]
    async with http.delete(location, headers=stranger) as response:
        assert response.status == 403
    async with http.delete(location) as response:
        assert response.status == 401
    async with http.delete(location, headers=mine) as response:
        assert response.status == 200


async def test_a_secret_made_here_places_a_call_there(
    http: aiohttp.ClientSession, other: aiohttp.ClientSession
) -> None:
    headers = {**SDP, "Authorization": f"Bearer {await secret(http)}"}
    async with other.post("/v1/realtime/calls", data=GOOD, headers=headers) as response:
        assert response.status == 201


async def test_a_transceiver_that_nobody_knows_is_404(http: aiohttp.ClientSession) -> None:
    async with http.delete(f"/whip/{fresh('x9')}", headers=BEARER) as response:
        assert response.status == 404


async def test_its_pipecat_clients_begin_anew(
    http: aiohttp.ClientSession, transceiver: Transceiver
) -> None:
    body = {"sdp": GOOD, "type": "offer", "pc_id": fresh("x9")}
    async with http.post("/api/offer", json=body, headers=BEARER) as response:
        assert response.status == 200
        assert (await response.json())["pc_id"].endswith(".x1")


async def test_one_that_has_come_since_is_found(
    config: TransceiverConfig, http: aiohttp.ClientSession
) -> None:
    async with http.delete(f"/whip/{fresh('x2')}", headers=BEARER) as response:
        assert response.status == 404
    async with Transceiver(replace(config, id="x2")) as second:
        async with asyncio.timeout(5):
            await second.registration.registered.wait()
        async with (
            aiohttp.ClientSession(second.http_url) as other,
            other.post("/whip", data=GOOD, headers=SDP) as response,
        ):
            location = response.headers["Location"]
        async with http.delete(location, headers=BEARER) as response:
            assert response.status == 200


@contextlib.asynccontextmanager
async def listening(answer: bytes) -> AsyncIterator[tuple[str, list[bytes]]]:
    """A server that answers so to whatever; its URL, and what it was sent."""
    heard: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(answer)
        with contextlib.suppress(ConnectionError):
            await writer.drain()
        if answer:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        host, port = server.sockets[0].getsockname()
        yield f"http://{host}:{port}", heard


def pretend(agent: FakeAgent, id: str, url: str) -> str:
    """Have the agent name *url* as transceiver *id*'s; the id of a session there."""
    agent.transceivers[id] = {"http": url, "address": "127.0.0.1", "port": 9, "capacity": 1}
    return fresh(id)


HUGE = b"HTTP/1.1 200 OK\r\nContent-Length: 10000000\r\n\r\n" + bytes(1_000_000)


@pytest.mark.parametrize("answer", [b"", b"SSH-2.0-x\r\n", b"HTTP/1.1 200 OK\r\n\r", HUGE])
async def test_one_that_does_not_answer_as_it_should_makes_503(
    http: aiohttp.ClientSession, agent: FakeAgent, answer: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forwarding, "ANSWER_SECONDS", 0.5)
    async with listening(answer) as (url, _):
        session = pretend(agent, "x3", url)
        async with http.delete(f"/whip/{session}", headers=BEARER) as response:
            assert response.status == 503
            assert response.headers["Retry-After"] == "1"


async def test_one_that_does_not_listen_makes_503(
    http: aiohttp.ClientSession, agent: FakeAgent
) -> None:
    async with listening(b"") as (url, _):
        pass
    async with http.delete(f"/whip/{pretend(agent, 'x3', url)}", headers=BEARER) as response:
        assert response.status == 503


async def test_its_redirects_and_cookies_are_not_followed(
    http: aiohttp.ClientSession, agent: FakeAgent
) -> None:
    async with listening(b"") as (elsewhere, heard):
        answer = b"HTTP/1.1 307 x\r\nLocation: %b\r\nSet-Cookie: a=b\r\n\r\n" % elsewhere.encode()
        async with listening(answer) as (url, asked):
            path = f"/whip/{pretend(agent, 'x3', url)}"
            async with http.delete(path, headers=BEARER, allow_redirects=False) as response:
                assert response.status == 307
                assert "Set-Cookie" not in response.headers
            assert len(asked) == 1
            assert not heard


async def test_only_what_the_other_needs_to_know_is_passed_on(
    http: aiohttp.ClientSession, agent: FakeAgent
) -> None:
    async with listening(b"HTTP/1.1 204 No Content\r\n\r\n") as (url, asked):
        path = f"/whip/{pretend(agent, 'x3', url)}"
        headers = {**BEARER, "Cookie": "a=b", "X-Forwarded-For": "192.0.2.1", "If-Match": '"x"'}
        async with http.patch(path, data=CANDIDATE, headers=headers) as response:
            assert response.status == 204
    head = asked[0].decode().lower()
    assert "cookie" not in head
    assert "x-forwarded-for" not in head
    assert 'if-match: "x"' in head
    assert head.count("shunt-hop") == 1


async def test_a_request_is_handed_on_once(
    http: aiohttp.ClientSession, transceiver: Transceiver, agent: FakeAgent
) -> None:
    """Even if the agent takes one transceiver for another."""
    path = f"/whip/{pretend(agent, 'x3', transceiver.http_url)}"
    async with http.delete(path, headers=BEARER) as response:
        assert response.status == 404


async def test_a_marker_of_ones_own_making_lifts_no_limit(config: TransceiverConfig) -> None:
    limits = Limits(address=Rate(0.1, 1))
    async with (
        Transceiver(replace(config, request_limits=limits)) as transceiver,
        aiohttp.ClientSession(transceiver.http_url) as http,
    ):
        for marker in ("", "x2", "x2 0 00", "x2 1800000000 " + "0" * 64, "x2 ٣ é"):
            async with http.delete("/whip/x", headers={"Shunt-Hop": marker}) as response:
                assert response.status == (429 if marker else 401)


async def test_what_was_counted_at_the_first_is_not_counted_again(
    config: TransceiverConfig, http: aiohttp.ClientSession, transceiver: Transceiver
) -> None:
    limits = Limits(api_key=Rate(0.1, 1))
    async with Transceiver(replace(config, id="x2", request_limits=limits)) as second:
        async with asyncio.timeout(5):
            await second.registration.registered.wait()
        for _ in range(3):
            async with http.delete(f"/whip/{fresh('x2')}", headers=BEARER) as response:
                assert response.status == 404


async def test_an_agent_that_is_away_makes_503(
    http: aiohttp.ClientSession, agent: FakeAgent
) -> None:
    await agent.stop()
    async with http.delete(f"/whip/{fresh('x2')}", headers=BEARER) as response:
        assert response.status == 503


async def test_the_agent_is_not_asked_for_each_request(
    http: aiohttp.ClientSession, other: aiohttp.ClientSession, agent: FakeAgent
) -> None:
    for _ in range(20):
        async with http.delete(f"/whip/{fresh('x2')}", headers=BEARER) as response:
            assert response.status == 404
    assert agent.asked_for_transceivers == 1
