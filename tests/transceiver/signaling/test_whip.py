"""WHIP, by the RFC, and as the clients of whip-whep, OBS and GStreamer use it."""

import asyncio
import re

import aiohttp
import pytest

from tests.transceiver.agent import FakeAgent
from tests.transceiver.caller import eventually
from tests.transceiver.prober import Prober
from tests.transceiver.sdp.samples import AUDIO, DATA, VIDEO, offer
from tests.transceiver.signaling.conftest import BEARER, GOOD, SDP, secret
from transceiver.ice import Credentials
from transceiver.server import Transceiver

FRAGMENT = {**BEARER, "Content-Type": "application/trickle-ice-sdpfrag"}
CANDIDATE = "a=candidate:1 1 udp 2122260223 192.0.2.1 61764 typ host generation 0\r\n"
CLIENT = "a=ice-ufrag:abcd\r\na=ice-pwd:0123456789012345678901\r\n"
TRICKLE = f"{CLIENT}m=audio 9 UDP/TLS/RTP/SAVPF 0\r\na=mid:0\r\n{CANDIDATE}a=end-of-candidates\r\n"


def restart(ufrag: str = "wxyz") -> str:
    return f"a=ice-ufrag:{ufrag}\r\na=ice-pwd:{ufrag}567890123456789012\r\n"


class Call:
    """A session made by POST, and what one needs to go on with it."""

    def __init__(self, http: aiohttp.ClientSession, url: str, etag: str, answer: str) -> None:
        self.http = http
        self.url = url
        self.etag = etag
        self.answer = answer

    async def patch(
        self, body: str, if_match: str | None, **headers: str
    ) -> aiohttp.ClientResponse:
        extra = {} if if_match is None else {"If-Match": if_match}
        response = await self.http.patch(self.url, data=body, headers=FRAGMENT | extra | headers)
        await response.read()
        return response


@pytest.fixture
async def call(http: aiohttp.ClientSession) -> Call:
    async with http.post("/whip", data=GOOD, headers=SDP) as response:
        assert response.status == 201
        location, etag = response.headers["Location"], response.headers["ETag"]
        return Call(http, location, etag, await response.text())


async def test_a_session_is_made_and_deleted(http: aiohttp.ClientSession, agent: FakeAgent) -> None:
    async with http.post("/whip", data=GOOD, headers=SDP) as response:
        assert response.status == 201
        assert response.content_type == "application/sdp"
        assert re.fullmatch('"[!#-~]+"', response.headers["ETag"])
        assert "Link" not in response.headers
        location = response.headers["Location"]
    assert location.startswith("/whip/")
    assert len(agent.routes) == 1
    async with http.delete(location, headers={**BEARER, "If-Match": '"stale"'}) as response:
        assert response.status == 200
    assert not agent.routes
    async with http.delete(location, headers=BEARER) as response:
        assert response.status == 410
    async with http.delete("/whip/x", headers=BEARER) as response:
        assert response.status == 404


async def test_video_rests_in_the_answer_and_audio_is_served(http: aiohttp.ClientSession) -> None:
    async with http.post("/whip", data=offer(AUDIO, VIDEO, bundle="0 2"), headers=SDP) as response:
        assert response.status == 201
        answer = await response.text()
    audio, video = answer.split("m=")[1:]
    assert not audio.startswith("audio 0")
    assert "a=inactive" in video


async def test_candidates_are_taken(call: Call) -> None:
    response = await call.patch(TRICKLE, call.etag)
    assert response.status == 204
    assert "ETag" not in response.headers


async def test_candidates_without_credentials_are_taken(call: Call) -> None:
    assert (
        await call.patch(f"m=audio 9 RTP/AVP 0\r\na=mid:0\r\n{CANDIDATE}", call.etag)
    ).status == 204


async def test_a_patch_must_say_which_ice_session_it_means(call: Call) -> None:
    assert (await call.patch(TRICKLE, None)).status == 428


@pytest.mark.parametrize("tag", ['"other"', "W/{etag}", "", '"a", "b"'])
async def test_another_ice_session_is_not_it(call: Call, tag: str) -> None:
    assert (await call.patch(TRICKLE, tag.format(etag=call.etag))).status == 412


async def test_one_tag_of_several_is_enough(call: Call) -> None:
    assert (await call.patch(TRICKLE, f'"other", {call.etag}')).status == 204


@pytest.mark.parametrize("if_match", ["*", "{etag}"])
async def test_ice_is_restarted(call: Call, agent: FakeAgent, if_match: str) -> None:
    response = await call.patch(restart(), if_match.format(etag=call.etag))
    assert response.status == 200
    assert response.content_type == "application/trickle-ice-sdpfrag"
    assert response.headers["ETag"] != call.etag
    body = await response.text()
    (ufrag,) = re.findall("a=ice-ufrag:(.*)\r\n", body)
    assert ufrag not in call.answer
    assert re.findall("a=ice-pwd:(.*)\r\n", body)
    assert re.findall("a=candidate:(.*)\r\n", body)
    assert ufrag in agent.routes

    assert (await call.patch(TRICKLE, call.etag)).status == 412
    again = f"{restart()}m=audio 9 RTP/AVP 0\r\na=mid:0\r\n{CANDIDATE}"
    assert (await call.patch(again, response.headers["ETag"])).status == 204


async def test_the_new_path_is_answered_and_the_old_route_goes(
    call: Call, transceiver: Transceiver, agent: FakeAgent
) -> None:
    response = await call.patch(restart(), "*")
    body = await response.text()
    theirs = Credentials(
        re.findall("a=ice-ufrag:(.*)\r\n", body)[0], re.findall("a=ice-pwd:(.*)\r\n", body)[0]
    )
    ours = Credentials("wxyz", "wxyz567890123456789012")
    async with Prober(transceiver.shared.address, ours, theirs) as client:
        async with asyncio.timeout(5):
            await client.answered.wait()
        await eventually(lambda: set(agent.routes) == {theirs.ufrag})


async def test_a_restart_whose_answer_was_lost_is_answered_again(
    call: Call, agent: FakeAgent
) -> None:
    first = await call.patch(restart(), "*")
    second = await call.patch(restart(), "*")
    assert (second.status, await second.text()) == (200, await first.text())
    assert second.headers["ETag"] == first.headers["ETag"]
    assert len(agent.added) == 2


async def test_a_restart_that_the_relay_refuses_leaves_the_session_as_it_was(
    call: Call, agent: FakeAgent, transceiver: Transceiver
) -> None:
    from loader.problems import Refused

    agent.refuse_routes = Refused("quota-exceeded", "no more routes")
    response = await call.patch(restart(), "*")
    assert response.status == 503
    assert int(response.headers["Retry-After"]) >= 1
    assert len(transceiver.sessions) == 1
    assert (await call.patch(TRICKLE, call.etag)).status == 204


async def test_restarts_at_once_are_each_answered_with_what_holds(call: Call) -> None:
    responses = await asyncio.gather(*(call.patch(restart(name * 4), "*") for name in "abcdefgh"))
    assert {response.status for response in responses} == {200}
    tags = [response.headers["ETag"] for response in responses]
    assert len(set(tags)) == 8
    statuses = [(await call.patch(CANDIDATE_ONLY, tag)).status for tag in tags]
    assert sorted(statuses) == [204] + [412] * 7


CANDIDATE_ONLY = f"m=audio 9 RTP/AVP 0\r\na=mid:0\r\n{CANDIDATE}"


@pytest.mark.parametrize(
    ("body", "content_type", "status"),
    [
        ("hello", "application/trickle-ice-sdpfrag", 400),
        ("", "application/trickle-ice-sdpfrag", 400),
        ("a=ice-ufrag:abcd\r\n", "application/trickle-ice-sdpfrag", 400),
        (CANDIDATE * 1500, "application/trickle-ice-sdpfrag", 413),
        (TRICKLE, "application/sdp", 415),
        (TRICKLE, "text/plain", 415),
    ],
)
async def test_bad_fragments_are_refused(
    call: Call, body: str, content_type: str, status: int
) -> None:
    response = await call.patch(body, call.etag, **{"Content-Type": content_type})
    assert response.status == status
    if status == 415:
        assert response.headers["Accept-Patch"] == "application/trickle-ice-sdpfrag"


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ("hello", 400),
        (offer(VIDEO, bundle=None), 422),
        (GOOD.replace("t=0 0", "t=0 0\r\na=ice-lite"), 422),
    ],
)
async def test_offers_that_cannot_be_served_are_refused_as_problems(
    http: aiohttp.ClientSession, agent: FakeAgent, body: str, status: int
) -> None:
    async with http.post("/whip", data=body, headers=SDP) as response:
        assert response.status == status
        assert response.content_type == "application/problem+json"
        problem = await response.json(content_type=None)
    assert problem["status"] == status
    assert problem["title"]
    assert not agent.routes


@pytest.mark.parametrize(
    ("accept", "status"),
    [
        ("*/*", 201),
        ("application/sdp", 201),
        ("text/html, application/*;q=0.5", 201),
        ("application/json", 406),
        ("*/*, application/sdp;q=0", 406),
        ("application/sdp;q=x", 406),
    ],
)
async def test_who_takes_no_sdp_gets_none(
    http: aiohttp.ClientSession, accept: str, status: int
) -> None:
    async with http.post("/whip", data=GOOD, headers={**SDP, "Accept": accept}) as response:
        assert response.status == status


async def test_an_offer_must_be_sdp(http: aiohttp.ClientSession) -> None:
    async with http.post("/whip", data=GOOD, headers={**SDP, "Content-Type": "x/y"}) as response:
        assert response.status == 415
        assert response.headers["Accept-Post"] == "application/sdp"


async def test_options_tell_what_may_be_posted(http: aiohttp.ClientSession) -> None:
    async with http.options("/whip") as response:
        assert response.status == 200
        assert response.headers["Accept-Post"] == "application/sdp"
        assert "If-Match" in response.headers["Access-Control-Allow-Headers"]
        assert "PATCH" in response.headers["Access-Control-Allow-Methods"]
        for exposed in ("Location", "ETag", "Link"):
            assert exposed in response.headers["Access-Control-Expose-Headers"]
    async with http.options("/whip/x") as response:
        assert response.status == 200
        assert response.headers["Accept-Patch"] == "application/trickle-ice-sdpfrag"


@pytest.mark.parametrize(
    ("path", "methods", "allowed"),
    [
        ("/whip", ["GET", "HEAD", "PUT", "PATCH", "DELETE"], "POST, OPTIONS"),
        ("/whip/x", ["GET", "HEAD", "PUT", "POST"], "PATCH, DELETE, OPTIONS"),
    ],
)
async def test_other_methods_are_reserved(
    http: aiohttp.ClientSession, path: str, methods: list[str], allowed: str
) -> None:
    for method in methods:
        async with http.request(method, path, headers=BEARER) as response:
            assert response.status == 405
            assert response.headers["Allow"] == allowed


async def test_when_all_is_taken_one_is_told_when_to_try_again(
    http: aiohttp.ClientSession, transceiver: Transceiver
) -> None:
    for _ in range(transceiver.config.capacity):
        async with http.post("/whip", data=GOOD, headers=SDP) as response:
            assert response.status == 201
    async with http.post("/whip", data=GOOD, headers=SDP) as response:
        assert response.status == 503
        assert int(response.headers["Retry-After"]) >= 1
    assert len(transceiver.sessions) == transceiver.config.capacity


async def test_an_ephemeral_key_trickles_and_restarts_its_own_session_only(
    http: aiohttp.ClientSession,
) -> None:
    mine, other = [{"Authorization": f"Bearer {await secret(http)}"} for _ in range(2)]
    async with http.post("/whip", data=GOOD, headers={**SDP, **mine}) as response:
        location, etag = response.headers["Location"], response.headers["ETag"]
    for key, status in ((mine, 204), (other, 403)):
        headers = {**FRAGMENT, "If-Match": etag, **key}
        async with http.patch(location, data=TRICKLE, headers=headers) as response:
            assert response.status == status
    async with http.delete(location, headers=other) as response:
        assert response.status == 403
    async with http.delete(location, headers=mine) as response:
        assert response.status == 200


async def test_without_a_key_a_session_is_neither_changed_nor_ended(
    http: aiohttp.ClientSession, call: Call, transceiver: Transceiver
) -> None:
    headers = {"Content-Type": FRAGMENT["Content-Type"], "If-Match": call.etag}
    async with http.patch(call.url, data=TRICKLE, headers=headers) as response:
        assert response.status == 401
    async with http.delete(call.url) as response:
        assert response.status == 401
        assert response.headers["WWW-Authenticate"] == "Bearer"
    assert len(transceiver.sessions) == 1


async def test_data_channels_alone_are_served(http: aiohttp.ClientSession) -> None:
    async with http.post("/whip", data=offer(DATA, bundle=None), headers=SDP) as response:
        assert response.status == 201
