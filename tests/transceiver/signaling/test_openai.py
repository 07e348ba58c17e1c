"""OpenAI's dialect, as its SDKs speak it: the Python one, the JavaScript one, and plain pages."""

import time
from collections.abc import Callable

import aiohttp
import pytest

from tests.transceiver.agent import FakeAgent
from tests.transceiver.caller import Caller, eventually
from tests.transceiver.conftest import KEY
from tests.transceiver.sdp.samples import AUDIO, VIDEO, offer
from tests.transceiver.signaling.conftest import BEARER, GOOD, SDP, secret
from transceiver.server import Transceiver
from transceiver.signaling.keys import Keys

CALLS = "/v1/realtime/calls"
SECRETS = "/v1/realtime/client_secrets"


def form(sdp: str = GOOD, session: str = "{}") -> aiohttp.MultipartWriter:
    """As `openai` for Python has it: each part with its media type."""
    writer = aiohttp.MultipartWriter("form-data")
    for name, content, kind in (
        ("sdp", sdp, "application/sdp"),
        ("session", session, "application/json"),
    ):
        part = writer.append(content, {"Content-Type": kind})
        part.set_content_disposition("form-data", name=name)
    return writer


async def test_a_call_is_made_and_hung_up(http: aiohttp.ClientSession, agent: FakeAgent) -> None:
    async with http.post(CALLS, data=GOOD, headers=SDP) as response:
        assert response.status == 201
        assert response.content_type == "application/sdp"
        location = response.headers["Location"]
    assert location.startswith(f"{CALLS}/rtc_")
    assert len(agent.routes) == 1
    async with http.post(f"{location}/hangup", headers=BEARER) as response:
        assert response.status == 200
    assert not agent.routes
    async with http.post(f"{location}/hangup", headers=BEARER) as response:
        assert response.status == 410


async def test_a_call_is_ended_by_delete_too(http: aiohttp.ClientSession, agent: FakeAgent) -> None:
    async with http.post(CALLS, data=GOOD, headers=SDP) as response:
        location = response.headers["Location"]
    async with http.delete(location, headers=BEARER) as response:
        assert response.status == 200
    assert not agent.routes


async def test_the_sessions_configuration_comes_with_the_offer(
    http: aiohttp.ClientSession, transceiver: Transceiver
) -> None:
    session = '{"type": "realtime", "instructions": "Be kind.", "model": "m"}'
    async with http.post(CALLS, data=form(session=session), headers=BEARER) as response:
        assert response.status == 201, await response.text()
    (made,) = transceiver.sessions.all()
    assert made.configuration == {"type": "realtime", "instructions": "Be kind.", "model": "m"}


async def test_pages_post_the_form_that_browsers_make(
    http: aiohttp.ClientSession, transceiver: Transceiver
) -> None:
    data = aiohttp.FormData(default_to_multipart=True)
    data.add_field("sdp", GOOD)
    data.add_field("session", '{"voice": "ash"}')
    async with http.post(CALLS, data=data, headers=BEARER) as response:
        assert response.status == 201, await response.text()
    assert transceiver.sessions.all()[0].configuration == {"voice": "ash"}


async def test_the_model_may_stand_in_the_query(
    http: aiohttp.ClientSession, transceiver: Transceiver
) -> None:
    async with http.post(f"{CALLS}?model=gpt-realtime", data=GOOD, headers=SDP) as response:
        assert response.status == 201
    assert transceiver.sessions.all()[0].configuration == {"model": "gpt-realtime"}


@pytest.mark.parametrize(
    ("make", "status", "parameter"),
    [
        (lambda: form(session="[]"), 400, "session"),
        (lambda: form(session="{"), 400, "session"),
        (lambda: form(session='{"a":' * 10_000), 400, "session"),
        (lambda: form(session="\udcff".encode("utf-8", "surrogateescape").decode("latin1")), 400,
         "session"),
        (lambda: form(sdp="hello"), 400, "sdp"),
        (lambda: form(sdp=offer(VIDEO, bundle=None)), 422, "sdp"),
        (lambda: form(sdp="v=0\r\n" + "a" * (65 << 10)), 413, None),
        (lambda: form(session='{"a": "' + "x" * (200 << 10) + '"}'), 413, None),
    ],
)  # fmt: skip
async def test_bad_forms_are_refused(
    http: aiohttp.ClientSession,
    make: Callable[[], aiohttp.MultipartWriter],
    status: int,
    parameter: str | None,
) -> None:
    async with http.post(CALLS, data=make(), headers=BEARER) as response:
        assert response.status == status
        error = (await response.json())["error"]
    assert error["param"] == parameter
    assert error["message"]


B = "multipart/form-data; boundary=b"


def part(head: str, body: str) -> str:
    return f"--b\r\n{head}\r\n\r\n{body}\r\n"


NAMED = 'Content-Disposition: form-data; name="sdp"'


@pytest.mark.parametrize(
    ("content_type", "body", "status"),
    [
        ("multipart/form-data", "", 400),
        ("multipart/form-data; boundary=" + "b" * 100, "", 400),
        (B, "", 400),
        (B, "nothing of the kind", 400),
        (B, "--b--\r\n", 400),
        (B, "--b\r\n", 400),
        (B, part("Content-Disposition: form-data", "x") + "--b--\r\n", 400),
        (B, part(NAMED, "x") * 2 + "--b--\r\n", 400),
        (B, part(f"{NAMED}\r\nContent-Encoding: gzip", "x") + "--b--\r\n", 415),
        (B, part(f"{NAMED}\r\nContent-Transfer-Encoding: base64", "!") + "--b--\r\n", 415),
        (B, part(f"{NAMED}\r\nContent-Type: multipart/mixed; boundary=c", "x") + "--b--\r\n", 400),
        (B, part(f"{NAMED}\r\nContent-Length: 99999", "x") + "--b--\r\n", 400),
        (B, part(f"{NAMED}\r\nContent-Length: -1", "x") + "--b--\r\n", 400),
        (B, part(NAMED + "\r\nX: y" * 1000, "x") + "--b--\r\n", 400),
        (B, part("X: " + "y" * 100_000, "x") + "--b--\r\n", 400),
        (B, part(NAMED, GOOD), 400),
        (B, "".join(part(NAMED.replace("sdp", str(n)), "") for n in range(1500)), 400),
    ],
)
async def test_hostile_forms_are_refused_too(
    http: aiohttp.ClientSession,
    transceiver: Transceiver,
    content_type: str,
    body: str,
    status: int,
) -> None:
    headers = {**BEARER, "Content-Type": content_type}
    async with http.post(CALLS, data=body, headers=headers) as response:
        assert response.status == status, await response.text()
        assert (await response.json())["error"]["message"]
    assert len(transceiver.sessions) == 0


async def test_errors_have_openais_shape(http: aiohttp.ClientSession) -> None:
    async with http.post(CALLS, data=GOOD) as response:
        assert response.status == 401
        error = (await response.json())["error"]
    assert error.keys() == {"message", "type", "code", "param"}
    assert error["code"] == "invalid_api_key"
    async with http.get(f"{CALLS}/nothing/there", headers=BEARER) as response:
        assert response.status == 404
        assert (await response.json())["error"]["message"]


async def test_a_secret_places_a_call_with_the_session_it_was_made_for(
    http: aiohttp.ClientSession, transceiver: Transceiver
) -> None:
    asked = {"session": {"type": "realtime", "instructions": "Be brief.", "model": "m"}}
    async with http.post(SECRETS, json=asked, headers=BEARER) as response:
        assert response.status == 200
        assert response.headers["Cache-Control"] == "no-store"
        made = await response.json()
    assert made["value"].startswith("ek_")
    assert 590 < made["expires_at"] - time.time() <= 600
    assert made["session"]["instructions"] == "Be brief."

    async with Caller(transceiver.http_url, made["value"]) as caller:
        await caller.connected()
        (session,) = transceiver.sessions.all()
        assert session.configuration["instructions"] == "Be brief."


async def test_what_comes_with_the_call_wins_over_the_secrets_session(
    http: aiohttp.ClientSession, transceiver: Transceiver
) -> None:
    key = await secret(http, session={"voice": "ash", "model": "m"})
    headers = {"Authorization": f"Bearer {key}"}
    data = form(session='{"voice": "sage"}')
    async with http.post(CALLS, data=data, headers=headers) as response:
        assert response.status == 201
    configuration = transceiver.sessions.all()[0].configuration
    assert configuration == {"type": "realtime", "voice": "sage", "model": "m"}


async def test_a_secret_needs_no_body(http: aiohttp.ClientSession) -> None:
    async with http.post(SECRETS, headers=BEARER) as response:
        assert response.status == 200


@pytest.mark.parametrize(
    ("asked", "status"),
    [
        ({"expires_after": {"seconds": 9}}, 400),
        ({"expires_after": {"seconds": 7201}}, 400),
        ({"expires_after": {"seconds": "soon"}}, 400),
        ({"expires_after": {"anchor": "tomorrow", "seconds": 60}}, 400),
        ({"session": "x"}, 400),
        ({"session": {"instructions": "x" * 10_000}}, 413),
    ],
)
async def test_secrets_that_cannot_be_are_refused(
    http: aiohttp.ClientSession, asked: dict[str, object], status: int
) -> None:
    async with http.post(SECRETS, json=asked, headers=BEARER) as response:
        assert response.status == status
        assert (await response.json())["error"]["message"]


async def test_a_secret_makes_no_secrets(http: aiohttp.ClientSession) -> None:
    headers = {"Authorization": f"Bearer {await secret(http)}"}
    async with http.post(SECRETS, json={}, headers=headers) as response:
        assert response.status == 403


async def test_a_secret_hangs_up_the_calls_it_placed_and_no_others(
    http: aiohttp.ClientSession, transceiver: Transceiver
) -> None:
    mine, other = [{"Authorization": f"Bearer {await secret(http)}"} for _ in range(2)]
    async with http.post(CALLS, data=GOOD, headers={**SDP, **mine}) as response:
        location = response.headers["Location"]
    async with http.post(f"{location}/hangup", headers=other) as response:
        assert response.status == 403
    assert len(transceiver.sessions) == 1
    async with http.post(f"{location}/hangup", headers=mine) as response:
        assert response.status == 200


async def test_an_expired_secret_places_no_call_but_hangs_up_its_own(
    http: aiohttp.ClientSession,
) -> None:
    key = Keys(KEY).make(1, {})
    headers = {**SDP, "Authorization": f"Bearer {key.value}"}
    async with http.post(CALLS, data=GOOD, headers=headers) as response:
        assert response.status == 201
        location = response.headers["Location"]
    await eventually(lambda: time.time() >= key.expires_at)
    async with http.post(CALLS, data=GOOD, headers=headers) as response:
        assert response.status == 401
        assert (await response.json())["error"]["code"] == "expired_api_key"
    async with http.post(f"{location}/hangup", headers=headers) as response:
        assert response.status == 200


async def test_a_page_of_another_origin_may_send_what_the_sdk_sends_and_read_the_location(
    http: aiohttp.ClientSession,
) -> None:
    asked = {
        "Origin": "https://app.example",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type,x-openai-agents-sdk",
    }
    async with http.options(CALLS, headers=asked) as response:
        assert response.status == 204
        allowed = response.headers["Access-Control-Allow-Headers"].lower().split(", ")
        assert response.headers["Access-Control-Allow-Origin"] == "*"
    for header in (
        "authorization", "content-type", "x-openai-agents-sdk", "openai-beta",
        "openai-safety-identifier", "openai-organization", "openai-project",
    ):  # fmt: skip
        assert header in allowed
    async with http.post(CALLS, data=GOOD, headers=SDP) as response:
        assert "Location" in response.headers["Access-Control-Expose-Headers"]


async def test_an_audio_only_call_is_made(http: aiohttp.ClientSession) -> None:
    async with http.post(CALLS, data=offer(AUDIO, bundle=None), headers=SDP) as response:
        assert response.status == 201
