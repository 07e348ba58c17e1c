"""Firefox (ICE, DTLS and SCTP that are not libwebrtc's) calls through the relay, from the page."""

import base64
import io
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import numpy as np
import pytest
import pytest_asyncio

from loader.maps import Maps
from tests.endtoend.conftest import ufrags
from tests.endtoend.waiting import eventually
from tests.interop.firefox import HUM, Firefox, firefox_in
from tests.interop.whip import SCRIPT, moved
from tests.speech import RATE, Samples, read
from tools import lab as labs
from tools.labstate import Lab

pytestmark = pytest.mark.asyncio(loop_scope="module")

UNTIL = """
    const until = async (what, holds) => {
      for (const end = performance.now() + 20_000; !(await holds()); ) {
        if (performance.now() > end) throw new Error(`still not so: ${what}`);
        await new Promise((resolve) => setTimeout(resolve, 50));
      }
    };
"""
CALL = """
    document.getElementById("call").click();
    await until("connected", () => document.body.dataset.state === "connected");
"""
RECORD = """
    const recorder = new MediaRecorder(new MediaStream([shunt.pc.getReceivers()[0].track]));
    const parts = [];
    recorder.ondataavailable = ({ data }) => parts.push(data);
    const stopped = new Promise((resolve) => (recorder.onstop = resolve));
    recorder.start();
    await new Promise((resolve) => setTimeout(resolve, seconds * 1000));
    recorder.stop();
    await stopped;
    const bytes = new Uint8Array(await new Blob(parts).arrayBuffer());
    return btoa(Array.from(bytes, (byte) => String.fromCharCode(byte)).join(""));
"""
EXCHANGE = """
    const channel = shunt.pc.createDataChannel("firefox");
    channel.binaryType = "arraybuffer";
    const back = [];
    channel.onmessage = ({ data }) =>
      back.push(typeof data === "string" ? data : Array.from(new Uint8Array(data)));
    await until("the channel is open", () => channel.readyState === "open");
    channel.send(text);
    channel.send(new Uint8Array(bytes));
    await until("both came back", () => back.length === 2);
    return back;
"""
UFRAG = "return /^a=ice-ufrag:(.+)$/m.exec(shunt.pc.remoteDescription.sdp)[1].trim();"
REMOTE = """
    const stats = await shunt.pc.getStats();
    const pair = [...stats.values()].find((s) => s.type === "candidate-pair" && s.selected);
    const { address, port } = stats.get(pair.remoteCandidateId);
    return [address, port];
"""


@pytest.fixture(scope="module")
def first_lab(lab_to_ourselves: None) -> Lab:
    """As `lab`, which is asked for by each test besides."""
    return labs.up()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def firefox(
    first_lab: Lab, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Firefox]:
    """Firefox in the client's namespace, once for all tests here: it takes long to start."""
    host = str(urlsplit(first_lab.transceivers[0].http).hostname)
    scratch = tmp_path_factory.mktemp("firefox")
    async with firefox_in(first_lab.client_namespace, scratch=scratch, host=host) as firefox:
        yield firefox


def pitch(samples: Samples) -> tuple[float, float]:
    """The strongest frequency, in Hz, and what part of the power is within 10 Hz of it."""
    power = np.abs(np.fft.rfft(samples * np.hanning(len(samples)))) ** 2
    peak, reach = int(power.argmax()), 10 * len(samples) // RATE
    near = power[max(0, peak - reach) : peak + reach + 1]
    return peak * RATE / len(samples), float(near.sum() / power.sum())


async def test_a_call_from_the_page(firefox: Firefox, lab: Lab, maps: Maps) -> None:
    await firefox.open(f"{lab.transceivers[0].http}/#key={lab.api_key}")
    await firefox.run(UNTIL + CALL)

    recorded = base64.b64decode(await firefox.run(RECORD, seconds=2.0))
    frequency, purity = pitch(read(io.BytesIO(recorded))[-RATE // 2 :])
    assert frequency == pytest.approx(HUM, abs=5)
    assert purity > 0.9

    said = ["grüß Gott", list(range(256)) * 40]
    assert await firefox.run(UNTIL + EXCHANGE, text=said[0], bytes=said[1]) == said

    assert tuple(await firefox.run(REMOTE)) in (lab.vip, lab.vip6)

    ufrag = await firefox.run(UFRAG)
    assert ufrag in ufrags(maps)
    await firefox.run('document.getElementById("hang-up").click();')
    eventually("its route is gone", lambda: ufrag not in ufrags(maps))
    assert await firefox.run("return document.body.dataset.state;") == "ended"


async def test_ice_is_restarted_during_a_call(firefox: Firefox, lab: Lab, maps: Maps) -> None:
    origin = lab.transceivers[0].http
    await firefox.open(origin)
    await firefox.run(SCRIPT)
    old = await firefox.run("return whip.call(url, key);", url=f"{origin}/whip", key=lab.api_key)
    assert await firefox.run('return whip.talk("before");') == "before"
    new = await firefox.run("return whip.restart();")
    with moved(maps, old, new):
        assert await firefox.run('return whip.talk("after");') == "after"
        await firefox.run("await whip.hangUp();")
