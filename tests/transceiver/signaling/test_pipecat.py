"""Pipecat's small WebRTC transport, with the messages that its JavaScript client sends."""

from typing import Any

import aiohttp
import pytest

from tests.transceiver.agent import FakeAgent
from tests.transceiver.sdp.samples import AUDIO, DATA, VIDEO, offer
from tests.transceiver.signaling.conftest import BEARER, GOOD
from transceiver.server import Transceiver

OFFER = "/api/offer"
CANDIDATES = [
    {"candidate": "candidate:1 1 udp 1 192.0.2.1 9 typ host", "sdp_mid": "0", "sdp_mline_index": 0},
    {"candidate": "", "sdp_mid": None, "sdp_mline_index": None},
]


async def post(http: aiohttp.ClientSession, path: str = OFFER, **asked: Any) -> dict[str, str]:
    body = {"sdp": GOOD, "type": "offer", "pc_id": None, "restart_pc": False} | asked
    async with http.post(path, json=body, headers=BEARER) as response:
        assert response.status == 200, await response.text()
        answer: dict[str, str] = await response.json()
    assert answer.keys() == {"sdp", "type", "pc_id"}
    assert answer["type"] == "answer"
    return answer


def ufrag(sdp: str) -> str:
    return sdp.split("a=ice-ufrag:")[1].split("\r\n")[0]


async def test_an_offer_is_answered_and_candidates_are_taken(
    http: aiohttp.ClientSession, agent: FakeAgent
) -> None:
    answer = await post(http)
    assert ufrag(answer["sdp"]) in agent.routes
    body = {"pc_id": answer["pc_id"], "candidates": CANDIDATES}
    async with http.patch(OFFER, json=body, headers=BEARER) as response:
        assert response.status == 200
        assert await response.json() == {"status": "success"}


@pytest.mark.parametrize("name", ["request_data", "requestData"])
async def test_what_comes_along_is_the_sessions_configuration(
    http: aiohttp.ClientSession, transceiver: Transceiver, name: str
) -> None:
    asked: dict[str, Any] = {name: {"voice": "ash"}}
    await post(http, **asked)
    assert transceiver.sessions.all()[0].configuration == {"voice": "ash"}


async def test_it_may_be_anything(http: aiohttp.ClientSession, transceiver: Transceiver) -> None:
    await post(http, request_data=["x"])
    assert transceiver.sessions.all()[0].configuration == {"request_data": ["x"]}


async def test_a_session_is_negotiated_anew(
    http: aiohttp.ClientSession, transceiver: Transceiver
) -> None:
    first = await post(http)
    second = await post(http, pc_id=first["pc_id"], sdp=GOOD.replace("a=sendrecv", "a=sendonly"))
    assert second["pc_id"] == first["pc_id"]
    assert ufrag(second["sdp"]) == ufrag(first["sdp"])
    assert "a=recvonly" in second["sdp"]
    assert len(transceiver.sessions) == 1


async def test_with_other_credentials_that_is_an_ice_restart(
    http: aiohttp.ClientSession, transceiver: Transceiver, agent: FakeAgent
) -> None:
    first = await post(http)
    second = await post(http, pc_id=first["pc_id"], sdp=GOOD.replace("abcd", "wxyz"))
    assert second["pc_id"] == first["pc_id"]
    assert ufrag(second["sdp"]) != ufrag(first["sdp"])
    assert ufrag(second["sdp"]) in agent.routes
    assert len(transceiver.sessions) == 1


async def test_a_new_peer_connection_makes_a_new_session_in_place_of_the_old(
    http: aiohttp.ClientSession, transceiver: Transceiver
) -> None:
    first = await post(http)
    second = await post(
        http, pc_id=first["pc_id"], restart_pc=True, sdp=GOOD.replace("AB:AB", "CD:CD")
    )
    assert second["pc_id"] != first["pc_id"]
    assert [session.id for session in transceiver.sessions.all()] == [second["pc_id"]]


async def test_a_client_whose_session_is_gone_gets_a_new_one(
    http: aiohttp.ClientSession, transceiver: Transceiver
) -> None:
    first = await post(http)
    await transceiver.sessions.all()[0].end("gone")
    second = await post(http, pc_id=first["pc_id"])
    assert second["pc_id"] != first["pc_id"]
    assert (await post(http, pc_id="nonsense"))["pc_id"] != "nonsense"


async def test_candidates_for_what_is_not_there_are_refused(http: aiohttp.ClientSession) -> None:
    body = {"pc_id": "nonsense", "candidates": CANDIDATES}
    async with http.patch(OFFER, json=body, headers=BEARER) as response:
        assert response.status == 404
        assert (await response.json())["detail"]


async def test_a_bot_is_started_and_then_offered_to(
    http: aiohttp.ClientSession, transceiver: Transceiver
) -> None:
    body = {"transport": "webrtc", "enableDefaultIceServers": True, "body": {"voice": "ash"}}
    async with http.post("/start", json=body, headers=BEARER) as response:
        assert response.status == 200
        started = await response.json()
    assert started["iceConfig"] == {"iceServers": []}
    path = f"/sessions/{started['sessionId']}{OFFER}"
    answer = await post(http, path, requestData={"model": "m"})
    assert transceiver.sessions.all()[0].configuration == {"voice": "ash", "model": "m"}
    body = {"pc_id": answer["pc_id"], "candidates": CANDIDATES}
    async with http.patch(path, json=body, headers=BEARER) as response:
        assert response.status == 200


async def test_what_was_not_started_is_not_there(http: aiohttp.ClientSession) -> None:
    body = {"sdp": GOOD, "type": "offer"}
    for session in ("x", "a" * 8000):
        async with http.post(f"/sessions/{session}{OFFER}", json=body, headers=BEARER) as response:
            assert response.status in (400, 404)


async def test_a_start_needs_no_body_and_another_transport_is_refused(
    http: aiohttp.ClientSession,
) -> None:
    async with http.post("/start", headers=BEARER) as response:
        assert response.status == 200
    async with http.post("/start", json={"transport": "daily"}, headers=BEARER) as response:
        assert response.status == 400
    async with http.post("/start", json={"body": {"x": "y" * 9000}}, headers=BEARER) as response:
        assert response.status == 413


@pytest.mark.parametrize(
    ("asked", "status"),
    [
        ({}, 400),
        ({"sdp": 1, "type": "offer"}, 400),
        ({"sdp": GOOD, "type": "answer"}, 400),
        ({"sdp": "hello", "type": "offer"}, 400),
        ({"sdp": offer(VIDEO, bundle=None), "type": "offer"}, 422),
        ([], 400),
    ],
)
async def test_bad_requests_are_refused(
    http: aiohttp.ClientSession, transceiver: Transceiver, asked: object, status: int
) -> None:
    async with http.post(OFFER, json=asked, headers=BEARER) as response:
        assert response.status == status
        assert (await response.json())["detail"]
    assert len(transceiver.sessions) == 0


async def test_nobody_asks_without_a_key(http: aiohttp.ClientSession) -> None:
    for method, path in (("POST", OFFER), ("PATCH", OFFER), ("POST", "/start")):
        async with http.request(method, path, json={}) as response:
            assert response.status == 401
            assert (await response.json())["detail"]


async def test_another_certificate_is_no_renegotiation(
    http: aiohttp.ClientSession, transceiver: Transceiver
) -> None:
    first = await post(http)
    body = {"sdp": GOOD.replace("AB:AB", "CD:CD"), "type": "offer", "pc_id": first["pc_id"]}
    async with http.post(OFFER, json=body, headers=BEARER) as response:
        assert response.status == 400
    assert len(transceiver.sessions) == 1


async def test_audio_alone_is_served(http: aiohttp.ClientSession) -> None:
    await post(http, sdp=offer(AUDIO, bundle=None))
    await post(http, sdp=offer(DATA, bundle=None))
