"""`shunt explain`: what relay and transceiver know of a session, put together and judged."""

import json
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import aiohttp
import pytest

from loader.client import AgentClient
from loader.errors import ShuntError
from tests.transceiver.agent import FakeAgent
from tests.transceiver.caller import Caller, eventually
from tests.transceiver.conftest import KEY, agent, config, transceiver
from tests.transceiver.sdp.samples import AUDIO, DATA, offer
from tools.explain import Known, ask, show, verdict
from transceiver.server import Transceiver, TransceiverConfig

__all__ = ["agent", "config", "transceiver"]  # fixtures

RATE = {"packets": 1, "bytes": 100}


def flow(ufrag: str, client: str = "198.18.0.10:5000") -> dict[str, object]:
    return {
        "slot": 1,
        "port": 1025,
        "inside": "198.18.1.1:1025",
        "state": "established",
        "client": client,
        "vip": "198.18.0.1:3478",
        "ufrag": ufrag,
        "transceiver": "x1",
        "idle_s": 0.1,
        "validated": True,
        "to_transceiver": RATE,
        "to_client": RATE,
    }


async def explain(agent: FakeAgent, whom: str, key: str | None = KEY) -> list[Known]:
    return await ask(AgentClient(agent.socket), whom, key=key)


async def test_a_call_that_runs_is_told_from_both_sides(
    transceiver: Transceiver,
    agent: FakeAgent,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    async with Caller(transceiver.http_url, KEY) as caller:
        await caller.connected()
        await eventually(lambda: len(caller.heard) > 2)
        (ufrag,) = agent.routes
        agent.flows = [flow(ufrag), flow("other")]
        agent.events = [
            {"kind": "route_added", "time": "12:00", "ufrag": ufrag, "transceiver": "x1"},
            {"kind": "route_added", "time": "12:01", "ufrag": "other", "transceiver": "x1"},
        ]
        for whom in (ufrag, "198.18.0.10:5000", "198.18.0.10"):
            known = next(k for k in await explain(agent, whom) if k.ufrag == ufrag)
            assert known.session is not None
            assert known.session["state"] == "connected"
            assert known.route is not None
            assert [each["ufrag"] for each in known.flows] == [ufrag]
            assert [each["ufrag"] for each in known.events] == [ufrag]
            assert verdict(known) == "The call runs as it should."
    json.dumps(known.to_json())
    show([known])
    printed = capsys.readouterr().out
    for word in ("dtls", "198.18.0.10:5000", "route_added", "as it should"):
        assert word in printed


async def test_a_call_that_is_over_is_found_at_whatever_transceiver_had_it(
    transceiver: Transceiver, agent: FakeAgent, config: TransceiverConfig
) -> None:
    async with (
        Transceiver(replace(config, id="x2")) as second,
        aiohttp.ClientSession(second.http_url) as http,
    ):
        await eventually(second.registration.registered.is_set)
        headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/sdp"}
        async with http.post("/whip", data=offer(AUDIO, DATA), headers=headers) as response:
            location = response.headers["Location"]
        (ufrag,) = agent.routes
        async with http.delete(location, headers=headers) as response:
            assert response.status == 200
        (known,) = await explain(agent, ufrag)
    assert known.session is not None
    assert known.session["reason"]
    assert "No check of the client has come to the relay" in verdict(known)


async def test_without_the_key_the_relays_side_is_told(
    transceiver: Transceiver, agent: FakeAgent
) -> None:
    async with Caller(transceiver.http_url, KEY):
        (ufrag,) = agent.routes
        for key in (None, "wrong"):
            (known,) = await explain(agent, ufrag, key)
            assert known.session is None
            assert "SHUNT_API_KEY" in known.silent["x1"]


async def test_a_transceiver_that_does_not_answer_is_named(agent: FakeAgent) -> None:
    agent.transceivers["x1"] = {"http": "http://127.0.0.1:9"}
    agent.routes["abcd"] = "x1"
    (known,) = await explain(agent, "abcd")
    assert "does not answer" in known.silent["x1"]
    assert "no packet of the client" in verdict(known)


async def test_whom_nobody_knows_is_said(agent: FakeAgent) -> None:
    with pytest.raises(ShuntError, match="knows nobody"):
        await explain(agent, "nobody")


def story(*moments: str, reason: str | None = None) -> dict[str, Any]:
    return {"timeline": [{"what": moment} for moment in moments], "reason": reason}


@pytest.mark.parametrize(
    ("moments", "flows", "word"),
    [
        (["offer"], [], "took no route"),
        (["offer", "route"], [], "No check"),
        (["offer", "route"], [flow("a")], "inside network"),
        (["offer", "route", "first check"], [flow("a")], "answers none of ours"),
        (["offer", "route", "first check", "selected"], [], "DTLS"),
        (["offer", "route", "first check", "selected", "dtls"], [], "neither audio nor data"),
    ],
)
def test_where_it_stopped_is_where_to_look(
    moments: Iterable[str], flows: list[dict[str, object]], word: str
) -> None:
    known = Known("a", session=story(*moments, reason="no path in time"), flows=flows)
    assert word in verdict(known)
    assert "no path in time" in verdict(known)
