"""What who runs a transceiver can see: numbers, and the story of a session."""

from pathlib import Path

import aiohttp
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from tests.transceiver.caller import Caller, eventually
from tests.transceiver.conftest import KEY
from tests.transceiver.sdp.samples import VIDEO, offer
from tests.transceiver.signaling.conftest import BEARER, GOOD, SDP, secret
from transceiver.backends import Conversation
from transceiver.backends.echo import Echo
from transceiver.server import Transceiver
from transceiver.sessionid import fresh

OPENMETRICS = "application/openmetrics-text; version=1.0.0"


async def samples(http: aiohttp.ClientSession) -> dict[tuple[str, str], float]:
    """Values by name and the values of the labels."""
    async with http.get("/metrics", headers={**BEARER, "Accept": OPENMETRICS}) as response:
        assert response.status == 200
        assert response.content_type == "application/openmetrics-text"
        text = await response.text()
    return {
        (sample.name, ",".join(v for k, v in sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)  # type: ignore[no-untyped-call]
        for sample in family.samples
    }


async def test_the_document_has_every_metric(http: aiohttp.ClientSession) -> None:
    text = (Path(__file__).parents[3] / "docs" / "signaling.md").read_text()
    async with http.get("/metrics", headers=BEARER) as response:
        lines = (await response.text()).splitlines()
    names = {line.split()[2] for line in lines if line.startswith("# TYPE ")}
    for name in names - {name for name in names if name.startswith("process_")}:
        assert f"`{name}`" in text


async def test_sessions_are_counted_by_state_and_by_how_far_they_came(
    http: aiohttp.ClientSession, transceiver: Transceiver
) -> None:
    before = await samples(http)
    assert before["shunt_sessions", "connected"] == 0
    assert before["shunt_sessions_capacity", ""] == transceiver.config.capacity
    assert before["shunt_sessions_ended_total", "connected"] == 0
    assert before["shunt_lease_held", ""] == 1
    async with Caller(transceiver.http_url, KEY) as caller:
        await caller.connected()
        during = await samples(http)
        assert during["shunt_sessions", "connected"] == 1
        assert during["shunt_sessions_opened_total", "openai"] == 1
        for phase in ("route", "first_check", "selected", "dtls", "setup"):
            assert during["shunt_session_phase_duration_seconds_count", phase] == 1
        again = await samples(http)
        assert again["shunt_session_phase_duration_seconds_count", "dtls"] == 1
        assert await caller.delete() == 200
    async with http.post("/whip", data=GOOD, headers=SDP) as response:
        location = response.headers["Location"]
    async with http.delete(location, headers=BEARER) as response:
        assert response.status == 200
    after = await samples(http)
    assert after["shunt_sessions", "connected"] == 0
    assert after["shunt_sessions_ended_total", "connected"] == 1
    assert after["shunt_sessions_ended_total", "connecting"] == 1
    assert after["shunt_session_phase_duration_seconds_count", "dtls"] == 1
    assert after["shunt_session_phase_duration_seconds_count", "route"] == 2


async def test_what_is_refused_is_counted_by_why(
    http: aiohttp.ClientSession, transceiver: Transceiver
) -> None:
    async with http.post("/whip", data=GOOD) as response:
        assert response.status == 401
    async with http.post("/whip", data=offer(VIDEO, bundle=None), headers=SDP) as response:
        assert response.status == 422
    for _ in range(transceiver.config.capacity + 1):
        async with http.post("/whip", data=GOOD, headers=SDP) as response:
            status = response.status
    assert status == 503
    found = await samples(http)
    assert found["shunt_signaling_refused_total", "unauthorized"] == 1
    assert found["shunt_offers_refused_total", "full"] == 1
    assert found["shunt_signaling_requests_total", "POST /whip,201"] == 4
    assert found["shunt_signaling_requests_total", "POST /whip,503"] == 1
    assert found["shunt_signaling_request_duration_seconds_count", "POST /whip"] == 7


class _Broken(Echo):
    def start(self, conversation: Conversation) -> None:
        raise ValueError("no model today")


async def test_backends_that_fail_are_counted(
    http: aiohttp.ClientSession, transceiver: Transceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transceiver.sessions, "_backend", _Broken)
    async with Caller(transceiver.http_url, KEY):
        await eventually(lambda: transceiver.sessions.by_state()["connecting"] == 0)
        await eventually(lambda: len(transceiver.sessions) == 0)
    found = await samples(http)
    assert found["shunt_backend_failures_total", "raised"] == 1
    assert found["shunt_sessions_ended_total", "connected"] == 1


async def test_drops_of_the_socket_are_told_by_reason(
    http: aiohttp.ClientSession, transceiver: Transceiver
) -> None:
    found = await samples(http)
    for reason in transceiver.shared.dropped:
        assert found["shunt_socket_dropped_datagrams_total", reason] == 0


async def test_strangers_make_no_series(http: aiohttp.ClientSession) -> None:
    for number in range(5):
        await (await http.post(f"/nothing/{number}")).read()
        await (await http.request(f"MAKE{number}", "/whip")).read()
        await (await http.delete(f"/whip/{number}")).read()
    names = {label for name, label in await samples(http) if name.endswith("requests_total")}
    assert names <= {
        "unmatched,405", "unmatched,404", "DELETE /whip/{id},401", "GET /metrics,200"
    }  # fmt: skip


async def test_older_scrapers_get_the_older_text(http: aiohttp.ClientSession) -> None:
    async with http.get("/metrics", headers=BEARER) as response:
        assert response.content_type == "text/plain"
        assert "shunt_sessions_opened_total" in await response.text()


async def test_the_story_of_a_session_is_told_by_ufrag_and_by_id_also_when_it_is_over(
    http: aiohttp.ClientSession, transceiver: Transceiver
) -> None:
    async with Caller(transceiver.http_url, KEY) as caller:
        await caller.connected()
        (session,) = transceiver.sessions.all()
        ufrag = session.ufrags[0]
        for name in (ufrag, session.id):
            async with http.get(f"/v1/sessions/{name}", headers=BEARER) as response:
                assert response.status == 200
                told = await response.json()
            assert told["state"] == "connected"
            moments = [entry["what"] for entry in told["timeline"]]
            assert moments[:2] == ["offer", "route"]
            assert "dtls" in moments
        assert await caller.delete() == 200
    await eventually(lambda: len(transceiver.sessions) == 0)
    for name in (ufrag, session.id):
        async with http.get(f"/v1/sessions/{name}", headers=BEARER) as response:
            assert response.status == 200
            told = await response.json()
        assert told["timeline"][-1]["what"] == "end"


@pytest.mark.parametrize("name", ["nobody", "a/b+c", fresh("x1"), fresh("x9")])
async def test_of_others_there_is_none(http: aiohttp.ClientSession, name: str) -> None:
    async with http.get(f"/v1/sessions/{name}", headers=BEARER) as response:
        assert response.status == 404


async def test_only_who_has_the_api_key_may_look(http: aiohttp.ClientSession) -> None:
    key = {"Authorization": f"Bearer {await secret(http)}"}
    for path in ("/metrics", "/v1/sessions/x"):
        async with http.get(path) as response:
            assert response.status == 401
        async with http.get(path, headers=key) as response:
            assert response.status == 403
