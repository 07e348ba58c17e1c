"""The test client against a stock aiortc peer on this machine: no lab, no relay."""

import wave
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from aiortc import RTCConfiguration, RTCDataChannel, RTCPeerConnection, RTCSessionDescription

from loader.errors import ShuntError
from tools.call import RATE, only_family, place_call, signaling_url

KEY = "a-key"


class Answerer:
    """Echoes audio and messages, with its own ICE; `mute` connects and says nothing."""

    def __init__(self) -> None:
        self.mute = False
        self.hung_up: list[str] = []
        self._peers: list[RTCPeerConnection] = []

    async def call(self, request: web.Request) -> web.Response:
        if request.headers.get("Authorization") != f"Bearer {KEY}":
            return web.Response(status=401)
        pc = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        self._peers.append(pc)

        @pc.on("track")
        def on_track(track: Any) -> None:
            if not self.mute:
                pc.addTrack(track)

        @pc.on("datachannel")
        def on_channel(channel: RTCDataChannel) -> None:
            channel.on("message", channel.send)

        await pc.setRemoteDescription(RTCSessionDescription(sdp=await request.text(), type="offer"))
        await pc.setLocalDescription(await pc.createAnswer())
        return web.Response(
            status=201, text=pc.localDescription.sdp, headers={"Location": f"{request.path}/7"}
        )

    async def hang_up(self, request: web.Request) -> web.Response:
        self.hung_up.append(request.path)
        return web.Response()

    async def close(self) -> None:
        for pc in self._peers:
            await pc.close()


@pytest.fixture
async def answerer(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Answerer, str]]:
    # aioice leaves loopback out; here both ends stay on it, on any machine.
    monkeypatch.setattr("aioice.ice.get_host_addresses", lambda **_: ["127.0.0.1"])
    answerer = Answerer()
    app = web.Application()
    app.router.add_post("/v1/realtime/calls", answerer.call)
    app.router.add_delete("/v1/realtime/calls/{id}", answerer.hang_up)
    async with TestServer(app) as server:
        yield answerer, f"http://127.0.0.1:{server.port}"
        await answerer.close()


async def test_a_call_reports_what_it_measured(answerer: tuple[Answerer, str]) -> None:
    report = await place_call(answerer[1], key=KEY, duration_s=1.0)

    assert report.sent >= 40
    assert report.received >= 40
    assert 0 < report.setup_ms < 5000
    assert report.datachannel_rtt_ms is not None
    assert len(report.ufrag) >= 4
    assert report.remote_candidate.rpartition(":")[2].isdigit()


async def test_a_call_hangs_up_at_its_location(answerer: tuple[Answerer, str]) -> None:
    await place_call(answerer[1], key=KEY, duration_s=0.1)

    assert answerer[0].hung_up == ["/v1/realtime/calls/7"]


async def test_what_comes_back_of_a_file_is_saved(
    answerer: tuple[Answerer, str], tmp_path: Path
) -> None:
    said, heard = tmp_path / "said.wav", tmp_path / "heard.wav"
    at = np.arange(16000) / 16000
    write_wav(said, (np.sin(2 * np.pi * 1000 * at) * 12000).astype(np.int16), rate=16000)

    await place_call(answerer[1], key=KEY, audio=said, save=heard)

    samples, rate = read_wav(heard)
    spectrum = np.abs(np.fft.rfft(samples))
    assert rate == RATE
    assert abs(np.argmax(spectrum) * rate / len(samples) - 1000) < 20


async def test_a_wrong_key_is_said_to_be_one(answerer: tuple[Answerer, str]) -> None:
    with pytest.raises(ShuntError, match="API key"):
        await place_call(answerer[1], key="another")


async def test_silence_ends_the_call_with_an_error_and_a_hangup(
    answerer: tuple[Answerer, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tools.call.FIRST_MEDIA_S", 0.3)
    answerer[0].mute = True

    with pytest.raises(ShuntError, match="heard nothing"):
        await place_call(answerer[1], key=KEY)

    assert answerer[0].hung_up


async def test_an_answer_without_the_family_asked_for_is_said_to_be_one(
    answerer: tuple[Answerer, str],
) -> None:
    """The answerer is on IPv4 alone."""
    with pytest.raises(ShuntError, match="no IPv6 candidate"):
        await place_call(answerer[1], key=KEY, family="ipv6")

    assert answerer[0].hung_up


def test_a_family_alone_is_what_stays_of_a_description() -> None:
    head = "v=0\r\nm=audio 3478 UDP/TLS/RTP/SAVPF 111\r\nc=IN IP6 2001:db8:18::1\r\n"
    ipv4 = "a=candidate:1 1 udp 2113929471 198.18.0.1 3478 typ host\r\n"
    ipv6 = "a=candidate:0 1 udp 2113929727 2001:db8:18::1 3478 typ host\r\n"
    name = "a=candidate:2 1 udp 2113929727 6e8f1c2a.local 3478 typ host\r\n"
    tail = "a=end-of-candidates\r\n"
    whole = head + ipv6 + ipv4 + name + tail

    assert only_family(whole, "ipv4") == head + ipv4 + tail
    assert only_family(whole, "ipv6") == head + ipv6 + tail
    assert only_family(whole, "any") == whole


async def test_nobody_there_is_said_to_be_so() -> None:
    with pytest.raises(ShuntError, match="cannot be reached"):
        await place_call("http://127.0.0.1:9", key=KEY)


async def test_a_file_that_is_no_sound_is_refused_before_the_call(tmp_path: Path) -> None:
    text = tmp_path / "not.wav"
    text.write_text("not sound")

    with pytest.raises(ShuntError, match=r"cannot read audio from .*not\.wav"):
        await place_call("http://127.0.0.1:9", audio=text)


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ("http://198.18.1.11:8080", "http://198.18.1.11:8080/v1/realtime/calls"),
        ("http://198.18.1.11:8080/", "http://198.18.1.11:8080/v1/realtime/calls"),
        ("http://198.18.1.11:8080/whip", "http://198.18.1.11:8080/whip"),
    ],
)
def test_a_bare_origin_gets_the_default_path(given: str, used: str) -> None:
    assert signaling_url(given) == used


def test_a_url_without_a_scheme_is_refused() -> None:
    with pytest.raises(ShuntError, match="not an HTTP URL"):
        signaling_url("198.18.1.11:8080")


def write_wav(path: Path, samples: "np.ndarray", *, rate: int) -> None:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples.tobytes())


def read_wav(path: Path) -> tuple["np.ndarray", int]:
    with wave.open(str(path), "rb") as file:
        data = file.readframes(file.getnframes())
        return np.frombuffer(data, dtype=np.int16), file.getframerate()
