"""aiortc's own peer connection offers, and takes what is answered."""

import dataclasses
from collections.abc import Callable

import pytest
from aiortc import RTCPeerConnection, RTCSessionDescription

from tests.transceiver.caller import Caller
from tests.transceiver.conftest import KEY
from tests.transceiver.sdp.samples import LOCAL
from transceiver.sdp.answer import write
from transceiver.sdp.offer import parse
from transceiver.server import Transceiver

HERE = dataclasses.replace(LOCAL, vips=(("127.0.0.1", 9),))
"""With a VIP where nobody is, and nothing leaves the host."""


def add_audio(client: RTCPeerConnection) -> None:
    client.addTransceiver("audio")


def add_video(client: RTCPeerConnection) -> None:
    client.addTransceiver("video")


def add_data(client: RTCPeerConnection) -> None:
    client.createDataChannel("chat")


@pytest.mark.parametrize(
    ("parts", "directions"),
    [
        ([add_audio, add_data], ["sendrecv"]),
        ([add_audio], ["sendrecv"]),
        ([add_data], []),
        ([add_audio, add_video, add_data], ["sendrecv", "inactive"]),
        ([add_video, add_audio, add_data], ["inactive", "sendrecv"]),
    ],
    ids=["voice", "audio", "data", "video", "video first"],
)
async def test_aiortc_takes_the_answer(
    parts: list[Callable[[RTCPeerConnection], None]], directions: list[str]
) -> None:
    client = RTCPeerConnection()
    try:
        for add in parts:
            add(client)
        await client.setLocalDescription(await client.createOffer())
        answer = write(parse(client.localDescription.sdp), HERE)
        await client.setRemoteDescription(RTCSessionDescription(answer, "answer"))
        assert client.signalingState == "stable"
        assert [each.currentDirection for each in client.getTransceivers()] == directions
    finally:
        await client.close()


@pytest.mark.parametrize("kinds", [("audio", "video"), ("video", "audio")])
async def test_a_call_with_video_connects_and_has_its_data_channel(
    transceiver: Transceiver, kinds: tuple[str, ...]
) -> None:
    caller = Caller(transceiver.http_url, KEY)
    for kind in kinds:
        caller.peer.addTransceiver(kind)
    async with caller:
        await caller.connected()
