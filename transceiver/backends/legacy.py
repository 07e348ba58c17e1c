"""What a session talks to: a backend hears decoded audio and events, and gives the same back.

`echo` for sessions on aiortc's peer connection; it goes when they do.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import Protocol

from aiortc import RTCDataChannel
from aiortc.mediastreams import MediaStreamError, MediaStreamTrack
from av import AudioFrame

__all__ = ["BACKENDS", "Backend", "Echo"]

RESERVED_LABELS = frozenset({"oai-events", "chat"})
"""Data channels with a protocol of their own, which an echo would confuse."""

MAX_BACKLOG = 25
"""Frames (of 20 ms) that may wait to be sent; older ones are dropped, so that delay cannot grow."""

MAX_BUFFERED = 4 << 20
"""Bytes of echo a client may leave unread on a data channel before we close it."""

log = logging.getLogger(__name__)


class Backend(Protocol):
    """One session's partner. Made when the session starts, closed when it ends."""

    def converse(self, heard: MediaStreamTrack) -> MediaStreamTrack:
        """Take the client's audio; return the audio to send it."""

    def open_channel(self, channel: RTCDataChannel) -> None:
        """Take a data channel that the client has opened."""

    async def close(self) -> None:
        """Stop all that was begun."""


class Echo:
    """Sends back the audio, and each message of the data channels that are not reserved."""

    def __init__(self) -> None:
        self._tracks: list[_EchoTrack] = []

    def converse(self, heard: MediaStreamTrack) -> MediaStreamTrack:
        track = _EchoTrack(heard)
        self._tracks.append(track)
        return track

    def open_channel(self, channel: RTCDataChannel) -> None:
        if channel.label in RESERVED_LABELS:
            return

        def send_back(message: str | bytes) -> None:
            if channel.readyState != "open":
                return
            if channel.bufferedAmount > MAX_BUFFERED:
                log.warning("closing data channel %r: the client does not read", channel.label)
                channel.close()
            else:
                channel.send(message)

        channel.on("message", send_back)

    async def close(self) -> None:
        for track in self._tracks:
            await track.close()


class _EchoTrack(MediaStreamTrack):
    """Hands frames on as they come.

    Reads all the time, also while nobody sends, because aiortc's queue of received frames has
    no bound.
    """

    kind = "audio"

    def __init__(self, heard: MediaStreamTrack) -> None:
        super().__init__()
        self._frames: deque[AudioFrame] = deque(maxlen=MAX_BACKLOG)
        self._changed = asyncio.Event()
        self._reader = asyncio.create_task(self._read(heard), name="echo reader")

    async def recv(self) -> AudioFrame:
        while not self._frames:
            if self.readyState != "live":
                raise MediaStreamError
            self._changed.clear()
            await self._changed.wait()
        return self._frames.popleft()

    def stop(self) -> None:
        super().stop()
        self._changed.set()

    async def close(self) -> None:
        self.stop()
        self._reader.cancel()
        await asyncio.gather(self._reader, return_exceptions=True)

    async def _read(self, heard: MediaStreamTrack) -> None:
        try:
            while True:
                frame = await heard.recv()
                assert isinstance(frame, AudioFrame)
                self._frames.append(frame)
                self._changed.set()
        except MediaStreamError:
            self.stop()


BACKENDS: dict[str, Callable[[], Backend]] = {"echo": Echo}
"""How to make a backend for a session, by the name it has on the command line."""
