"""Stock aiortc as its users write it: an aiohttp server, a peer connection for each offer, a bot.

    python -m tools.bench.calls.stock --http ADDR:PORT --control PATH

Nothing of aiortc is changed, and its bot is Shunt's: it takes and gives mono PCM at 24 kHz, as
speech models do. So what is heard is resampled by PyAV, as bots on aiortc do it; what is said is
resampled by aiortc itself. One thing is to its advantage: there are no STUN servers, as its
default ones cannot be reached here.
"""

import argparse
import asyncio
import fractions
import signal
import time
from pathlib import Path

from aiohttp import web
from aiortc import (
    MediaStreamTrack,
    RTCConfiguration,
    RTCPeerConnection,
    RTCSessionDescription,
)
from aiortc.mediastreams import MediaStreamError
from av import AudioFrame, AudioResampler

from tools.bench.calls.bots import Answering, Bots, Habit, utterance

_RATE = 24000
_FRAME = _RATE // 50


class _Voice(MediaStreamTrack):
    """Speaks in real time, as aiortc's own AudioStreamTrack does."""

    kind = "audio"

    def __init__(self, frames: list[bytes]) -> None:
        super().__init__()
        self._frames = frames
        self._spoken = 0
        self._started = 0.0

    async def recv(self) -> AudioFrame:
        if self.readyState != "live":
            raise MediaStreamError
        if self._spoken:
            await asyncio.sleep(self._started + self._spoken * _FRAME / _RATE - time.time())
        else:
            self._started = time.time()
        frame = AudioFrame(format="s16", layout="mono", samples=_FRAME)
        frame.planes[0].update(self._frames[self._spoken % len(self._frames)])
        frame.pts = self._spoken * _FRAME
        frame.sample_rate = _RATE
        frame.time_base = fractions.Fraction(1, _RATE)
        self._spoken += 1
        return frame


class _Mute(MediaStreamTrack):
    """Has nothing to say."""

    kind = "audio"

    async def recv(self) -> AudioFrame:
        await asyncio.Event().wait()
        raise MediaStreamError


class _Server:
    def __init__(self) -> None:
        self.bots = Bots()
        self.peers: set[RTCPeerConnection] = set()
        self._frames = utterance(_RATE)
        self._tasks: set[asyncio.Task[None]] = set()

    async def offer(self, request: web.Request) -> web.Response:
        offer = RTCSessionDescription(sdp=await request.text(), type="offer")
        peer = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        self.peers.add(peer)

        @peer.on("connectionstatechange")
        async def changed() -> None:
            if peer.connectionState in ("failed", "closed"):
                await peer.close()
                self.peers.discard(peer)

        @peer.on("track")
        def heard(track: MediaStreamTrack) -> None:
            task = asyncio.create_task(self._hear(track))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        silent = self.bots.habit is Habit.SILENT
        peer.addTrack(_Mute() if silent else _Voice(self._frames))
        await peer.setRemoteDescription(offer)
        await peer.setLocalDescription(await peer.createAnswer())
        return web.Response(text=peer.localDescription.sdp, content_type="application/sdp")

    async def _hear(self, track: MediaStreamTrack) -> None:
        ear = self.bots.begin(_RATE)
        resampler = AudioResampler(format="s16", layout="mono", rate=_RATE)
        try:
            while True:
                frame = await track.recv()
                assert isinstance(frame, AudioFrame)
                for resampled in resampler.resample(frame):
                    ear.hear(resampled.to_ndarray().tobytes())
        except MediaStreamError:
            pass
        finally:
            self.bots.end(ear)


async def _serve(http: str, control: Path) -> None:
    server = _Server()
    app = web.Application()
    app.router.add_post("/offer", server.offer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    host, _, port = http.rpartition(":")
    await web.TCPSite(runner, host, int(port)).start()
    answering = Answering(server.bots, lambda: len(server.peers))
    await answering.start(control)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await stop.wait()
    answering.close()
    await runner.cleanup()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--http", required=True)
    parser.add_argument("--control", type=Path, required=True)
    arguments = parser.parse_args()
    asyncio.run(_serve(arguments.http, arguments.control))


if __name__ == "__main__":
    main()
