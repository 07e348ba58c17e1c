"""Debian's Firefox, headless and with a microphone that hums, inside a network namespace.

Driven by WebDriver BiDi, which Firefox speaks itself on a WebSocket: no driver between.
"""

import asyncio
import contextlib
import json
import os
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tools.netns import run_in

__all__ = ["HUM", "Firefox", "PageError", "firefox_in"]

HUM = 550
"""Hz, of the tone that Firefox has for a microphone."""

READY_S = 60.0
ANSWER_S = 30.0

_PREFERENCES = {
    "media.navigator.streams.fake": True,
    "media.navigator.audio.fake_frequency": HUM,
    "media.navigator.permission.disabled": True,
    "media.autoplay.default": 0,
    "media.autoplay.blocking_policy": 0,
    # The namespace leads nowhere but into the lab: nothing to call home to.
    "app.normandy.enabled": False,
    "app.update.enabled": False,
    "browser.region.update.enabled": False,
    "browser.safebrowsing.downloads.remote.enabled": False,
    "browser.safebrowsing.malware.enabled": False,
    "browser.safebrowsing.phishing.enabled": False,
    "browser.shell.checkDefaultBrowser": False,
    "browser.startup.homepage_override.mstone": "ignore",
    "browser.startup.page": 0,
    "datareporting.policy.dataSubmissionEnabled": False,
    "dom.push.enabled": False,
    "extensions.update.enabled": False,
    "media.gmp-manager.updateEnabled": False,
    "network.captive-portal-service.enabled": False,
    "network.connectivity-service.enabled": False,
    "services.settings.server": "data:,",
    "toolkit.telemetry.reportingpolicy.firstRun": False,
}


class PageError(Exception):
    """A script in the page raised this."""


class Firefox:
    """A tab, by its BiDi connection."""

    def __init__(self, connection: aiohttp.ClientWebSocketResponse) -> None:
        self._connection = connection
        self._commands = 0
        self._tab = ""

    async def start(self) -> None:
        await self._command("session.new", {"capabilities": {}})
        tree = await self._command("browsingContext.getTree", {})
        self._tab = tree["contexts"][0]["context"]

    async def open(self, url: str) -> None:
        """Load a page, whole."""
        there = {"context": self._tab, "url": url, "wait": "complete"}
        await self._command("browsingContext.navigate", there)

    async def run(self, body: str, **arguments: Any) -> Any:
        """What the async function with this *body* returns in the page, by way of JSON.

        Raises PageError with what it raises.
        """
        names, values = ", ".join(arguments), [json.dumps(v) for v in arguments.values()]
        function = f"async (...given) => JSON.stringify(await (async ({names}) => {{ {body} }})"
        told = await self._command(
            "script.callFunction",
            {
                "functionDeclaration": function + "(...given.map(JSON.parse)) ?? null)",
                "arguments": [{"type": "string", "value": value} for value in values],
                "target": {"context": self._tab},
                "awaitPromise": True,
                "userActivation": True,
            },
        )
        if told["type"] == "exception":
            raise PageError(told["exceptionDetails"]["text"])
        return json.loads(told["result"]["value"])

    async def _command(self, method: str, parameters: dict[str, Any]) -> dict[str, Any]:
        self._commands += 1
        id = self._commands
        await self._connection.send_json({"id": id, "method": method, "params": parameters})
        async with asyncio.timeout(ANSWER_S):
            while (answer := await self._connection.receive_json()).get("id") != id:
                pass  # an event
        if answer["type"] == "error":
            pytest.fail(f"Firefox: {method}: {answer['message']}")
        result: dict[str, Any] = answer["result"]
        return result


@contextlib.asynccontextmanager
async def firefox_in(namespace: str, *, scratch: Path, host: str) -> AsyncIterator[Firefox]:
    """A Firefox in *namespace*, whose profile is made in *scratch*, with one empty tab.

    It takes what *host* serves, which is plain HTTP, for secure.
    """
    profile = scratch / "profile"
    profile.mkdir()
    preferences = _PREFERENCES | {"dom.securecontext.allowlist": host}
    lines = (f"user_pref({json.dumps(n)}, {json.dumps(v)});\n" for n, v in preferences.items())
    (profile / "user.js").write_text("".join(lines))
    process = run_in(namespace, partial(_spawn, profile))
    try:
        address = await _address(profile, process)
        connector = aiohttp.TCPConnector(
            socket_factory=lambda info: run_in(namespace, partial(socket.socket, *info[:3]))
        )
        async with (
            aiohttp.ClientSession(connector=connector) as http,
            http.ws_connect(f"{address}/session", max_msg_size=0) as connection,
        ):
            firefox = Firefox(connection)
            await firefox.start()
            yield firefox
    finally:
        process.kill()  # its own way to end takes many seconds, without a network
        await asyncio.to_thread(process.wait)


def _spawn(profile: Path) -> "subprocess.Popen[bytes]":
    program = shutil.which("firefox-esr")
    if program is None:
        if "ID=ubuntu" in Path("/etc/os-release").read_text().splitlines():
            pytest.skip("Ubuntu has Firefox as a snap only, which starts in no namespace of ours")
        pytest.fail("no firefox-esr: run ./provision.sh test")
    flags = ["--headless", "--no-remote", "--remote-debugging-port", "0"]
    return subprocess.Popen(
        [program, *flags, "--profile", str(profile), "about:blank"],
        env=os.environ | {"HOME": str(profile), "MOZ_CRASHREPORTER_DISABLE": "1"},
        stdout=subprocess.DEVNULL,
        stderr=(profile / "log").open("wb"),
    )


async def _address(profile: Path, process: "subprocess.Popen[bytes]") -> str:
    """Where Firefox listens, which it writes down once it does."""
    file = profile / "WebDriverBiDiServer.json"
    async with asyncio.timeout(READY_S):
        while True:
            if process.poll() is not None:
                pytest.fail(f"Firefox ended: {(profile / 'log').read_text()}")
            with contextlib.suppress(FileNotFoundError, json.JSONDecodeError):
                told = json.loads(file.read_text())
                return f"ws://{told['ws_host']}:{told['ws_port']}"
            await asyncio.sleep(0.05)
