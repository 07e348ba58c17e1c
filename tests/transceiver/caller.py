"""A caller made of plain aiortc and aioice, and what tests need of one."""

import asyncio
import fractions
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Self

import aiohttp
import numpy as np
import numpy.typing as npt
from aiortc import (
    RTCBundlePolicy,
    RTCConfiguration,
    RTCDataChannel,
    RTCPeerConnection,
    RTCSessionDescription,
)
from aiortc.mediastreams import MediaStreamError, MediaStreamTrack
from av import AudioFrame

RATE = 48000
FRAME = 960

Samples = npt.NDArray[np.int16]


async def eventually(condition: Callable[[], bool], *, within: float = 5.0) -> None:
    """Return as soon as *condition* holds; TimeoutError after *within* seconds."""
    async with asyncio.timeout(within):
        while not condition():  # noqa: ASYNC110 (what is waited for has no event)
            await asyncio.sleep(0.01)


class Speaker(MediaStreamTrack):
    """Says *samples* (mono, int16, 48 kHz) once, in real time, then silence."""

    kind = "audio"

    def __init__(self, samples: Samples) -> None:
        super().__init__()
        self._samples = samples
        self._position = 0
        self._started: float | None = None

    async def recv(self) -> AudioFrame:
        if self.readyState != "live":
            raise MediaStreamError
        loop = asyncio.get_running_loop()
        self._started = self._started or loop.time()
        await asyncio.sleep(self._started + self._position / RATE - loop.time())
        part = self._samples[self._position : self._position + FRAME]
        part = np.pad(part, (0, FRAME - len(part)))
        frame = AudioFrame.from_ndarray(part.reshape(1, -1), format="s16", layout="mono")
        frame.sample_rate = RATE
        frame.pts = self._position
        frame.time_base = fractions.Fraction(1, RATE)
        self._position += FRAME
        return frame


@dataclass
class Caller:
    """Calls a transceiver; what came back is in `heard` and `messages`."""

    url: str
    key: str
    samples: Samples | None = None
    label: str | None = "test"
    heard: list[Samples] = field(default_factory=list)
    messages: list[str | bytes] = field(default_factory=list)
    location: str = ""
    answer: str = ""

    def __post_init__(self) -> None:
        configuration = RTCConfiguration(iceServers=[], bundlePolicy=RTCBundlePolicy.MAX_BUNDLE)
        self.peer = RTCPeerConnection(configuration)
        self.channel: RTCDataChannel | None = None
        self._listener: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        samples = np.zeros(0, dtype=np.int16) if self.samples is None else self.samples
        self.peer.addTrack(Speaker(samples))
        self.peer.on("track", self._listen)
        if self.label is not None:
            self.channel = self.peer.createDataChannel(self.label)
            self.channel.on("message", self.messages.append)
        await self.peer.setLocalDescription()
        async with aiohttp.ClientSession() as http:
            self.answer = await self.signal(http, self.peer.localDescription.sdp)
        await self.peer.setRemoteDescription(RTCSessionDescription(self.answer, "answer"))
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.peer.close()
        if self._listener is not None:
            self._listener.cancel()
            await asyncio.wait((self._listener,))

    async def signal(self, http: aiohttp.ClientSession, offer: str) -> str:
        """The answer to an offer. For others to override."""
        response = await http.post(
            f"{self.url}/v1/realtime/calls",
            data=offer,
            headers={"Authorization": f"Bearer {self.key}", "Content-Type": "application/sdp"},
        )
        answer = await response.text()
        assert response.status == 201, answer
        self.location = response.headers["Location"]
        return answer

    async def connected(self) -> Self:
        await eventually(lambda: self.peer.connectionState == "connected")
        if self.channel is not None:
            channel = self.channel
            await eventually(lambda: channel.readyState == "open")
        return self

    async def delete(self) -> int:
        async with aiohttp.ClientSession() as http:
            response = await http.delete(
                self.url + self.location, headers={"Authorization": f"Bearer {self.key}"}
            )
            return response.status

    def vanish(self) -> None:
        """Be gone as a killed process is: nothing is sent or answered from now on."""
        for transport in self.peer._RTCPeerConnection__iceTransports:  # type: ignore[attr-defined]
            for protocol in transport._connection._protocols:
                protocol.transport.sendto = lambda data, address: None

    @property
    def offer(self) -> str:
        """What was sent."""
        return self.peer.localDescription.sdp

    @property
    def audio(self) -> Samples:
        """All that was heard, mono."""
        return np.concatenate(self.heard) if self.heard else np.zeros(0, dtype=np.int16)

    def _listen(self, track: MediaStreamTrack) -> None:
        self._listener = asyncio.create_task(self._hear(track))

    async def _hear(self, track: MediaStreamTrack) -> None:
        while True:
            try:
                frame = await track.recv()
            except MediaStreamError:
                return
            assert isinstance(frame, AudioFrame)
            self.heard.append(frame.to_ndarray().reshape(-1, 2)[:, 0].astype(np.int16))
