"""Applications of aiortc that know nothing of Shunt, behind the lab's relay (docs/aiortc-apps.md).

Pipecat and FastRTC have an environment of their own, since they pin other versions, and bring a lot
with them.
"""

import asyncio
import os
import re
import secrets
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from loader.maps import Maps
from tests.endtoend.conftest import ufrags
from tests.endtoend.waiting import eventually
from tests.speech import RATE, SENTENCE, Samples, likeness_of_pieces, speech
from tests.transceiver.caller import Caller
from tests.transceiver.caller import eventually as eventually_so
from tools.labstate import Lab
from tools.netns import run_in
from tools.processes import UNPRIVILEGED
from tools.topology import HTTP_PORT

ROOT = Path(__file__).parents[2]
PROGRAMS = Path(__file__).parent / "programs"
APPS_PYTHON = ROOT / ".venv-apps/bin/python"
HOST = "198.18.1.100"  # in x1's namespace, since the relay host forwards one TCP port alone
UDP_PORT = 40000
START_S = 60.0


@dataclass(frozen=True, slots=True)
class App:
    """A program, where it takes offers, and what it has for a message."""

    program: str
    path: str
    message: str
    reply: str
    python: Path = APPS_PYTHON


PLAIN = App("plain_app", "/offer", "hello", "hello", Path(sys.executable))
PIPECAT = App("pipecat_bot", "/api/offer", '{"label": "rtvi-ai", "type": "hi"}', '"type": "hi"')
FASTRTC = App("fastrtc_app", "/webrtc/offer", "hello", "Server received: hello")

installed = pytest.mark.skipif(
    not APPS_PYTHON.exists(), reason="./provision.sh apps has not been run"
)


@contextmanager
def running(app: App, lab: Lab, scratch: Path) -> Iterator[str]:
    """The program beside transceiver x1, run by the command that installs Shunt; its URL."""
    place = lab.transceivers[0]
    command = [*UNPRIVILEGED, str(app.python), "-m", "transceiver.aiortc", "--id", app.program]
    command += ["--udp", f"{HOST}:{UDP_PORT}", "--agent", lab.agent_socket]
    command += [str(PROGRAMS / f"{app.program}.py")]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HOST": HOST, "PORT": str(HTTP_PORT)}
    # None of them has a network to call home by.
    environment |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1"}
    log = scratch / "log"
    address = [f"{HOST}/24", "dev", "eth0"]
    subprocess.run(["ip", "-n", place.namespace, "address", "replace", *address], check=True)
    with log.open("wb") as output:
        process = run_in(
            place.namespace,
            partial(
                subprocess.Popen,
                command,
                env=environment,
                cwd=scratch,
                stdout=output,
                stderr=subprocess.STDOUT,
            ),
        )
    url = f"http://{HOST}:{HTTP_PORT}"

    def answers() -> bool:
        assert process.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(f"{url}/openapi.json", timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    try:
        eventually(
            f"{app.program} answers", partial(run_in, lab.client_namespace, answers), within=START_S
        )
        yield url
    except BaseException:
        print(log.read_text())
        raise
    finally:
        process.terminate()
        process.wait(10)
        subprocess.run(["ip", "-n", place.namespace, "address", "delete", *address], check=True)


@dataclass
class AppCaller(Caller):
    """Signals in JSON, as their own clients do."""

    path: str = ""

    async def signal(self, http: aiohttp.ClientSession, offer: str) -> str:
        asked = {"sdp": offer, "type": "offer", "webrtc_id": secrets.token_hex(8)}
        response = await http.post(f"{self.url}{self.path}", json=asked)
        answer: dict[str, Any] = await response.json()
        assert "sdp" in answer, answer
        return str(answer["sdp"])


def call(
    lab: Lab, maps: Maps, caller: AppCaller, said: Samples, message: str
) -> tuple[Samples, set[str]]:
    """Say *said*, send *message*, and hang up once something came back for both; what was heard,
    and the relay's routes during the call."""

    async def talk() -> set[str]:
        async with caller:
            await caller.connected()
            routes = ufrags(maps)
            assert caller.channel is not None
            caller.channel.send(message)
            await eventually_so(lambda: bool(caller.messages), within=20)
            await eventually_so(lambda: len(caller.audio) > len(said) + 2 * RATE, within=30)
        return routes

    routes = run_in(lab.client_namespace, lambda: asyncio.run(talk()))
    return caller.audio, routes


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    "app",
    [
        pytest.param(PLAIN, id="plain"),
        pytest.param(PIPECAT, id="pipecat", marks=installed),
        pytest.param(FASTRTC, id="fastrtc", marks=installed),
    ],
)
def test_an_unmodified_application_takes_a_call_through_the_relay(
    app: App, lab: Lab, maps: Maps, tmp_path: Path
) -> None:
    said = speech(SENTENCE)
    with running(app, lab, tmp_path) as url:
        caller = AppCaller(url, "", samples=said, path=app.path)
        heard, routes = call(lab, maps, caller, said, app.message)
        [ufrag] = set(re.findall("^a=ice-ufrag:(.+)$", caller.answer.replace("\r", ""), re.M))
        assert ufrag in routes
        vips = {f"{host} {port}" for host, port in (lab.vip, lab.vip6)}
        offered = [line for line in caller.answer.splitlines() if line.startswith("a=candidate:")]
        assert {" ".join(line.split()[4:6]) for line in offered} == vips
        assert likeness_of_pieces(said, heard) >= 0.9  # Pipecat may put in a silence
        assert any(app.reply in str(message) for message in caller.messages), caller.messages
        eventually("the route is gone", lambda: ufrag not in ufrags(maps), within=10)
