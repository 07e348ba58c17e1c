"""A session as its backend sees it (`backends.Conversation`)."""

import asyncio
from collections.abc import Callable, Mapping

from transceiver.backends import AudioFormat, Flushed
from transceiver.media import opus
from transceiver.media.playout import FRAME
from transceiver.media.sender import AudioSender

__all__ = ["LiveConversation"]


class LiveConversation:
    """Joins one backend to the sender and the data channels of one session.

    *guard* calls what the backend has given us, and ends the session if that fails.
    """

    def __init__(
        self,
        *,
        audio: AudioFormat,
        configuration: Mapping[str, object],
        sender: AudioSender,
        send: Callable[[str, str | bytes], bool],
        end: Callable[[str], object],
        guard: Callable[[Callable[[], object]], object],
        spoken: Callable[[], object],
    ) -> None:
        self.on_drained: Callable[[], None] | None = None
        self._audio = audio
        self._configuration = configuration
        self._sender = sender
        self._send = send
        self._end = end
        self._guard = guard
        self._spoken: Callable[[], object] | None = spoken
        self._loop = asyncio.get_running_loop()
        self._waiting: set[asyncio.Future[None]] = set()
        sender.on_drained = self._drained

    @property
    def rate(self) -> int:
        return self._audio.rate

    @property
    def configuration(self) -> Mapping[str, object]:
        return self._configuration

    @property
    def backlog(self) -> float:
        return self._sender.backlog

    def say(self, pcm: bytes) -> None:
        self._sender.say(pcm)
        self._has_spoken()

    def say_packet(self, packet: bytes) -> None:
        self._sender.say_packet(packet, opus.duration(packet))
        self._has_spoken()

    def flush(self) -> Flushed:
        flushed = self._sender.flush()
        for waiter in self._waiting:
            _wake(waiter)
        return flushed

    async def wait_backlog(self, below: float) -> None:
        # What waits goes out in real time, unless it is flushed: no need to look each 20 ms.
        while (ahead := self._sender.backlog - below) >= 0:
            waiter = self._loop.create_future()
            timer = self._loop.call_later(max(FRAME, ahead), _wake, waiter)
            self._waiting.add(waiter)
            try:
                await waiter
            finally:
                timer.cancel()
                self._waiting.discard(waiter)

    def send(self, message: str | bytes, label: str = "oai-events") -> bool:
        return self._send(label, message)

    def end(self, reason: str) -> None:
        self._end(reason)

    def close(self) -> None:
        """Let go of the session: a backend may keep this, and say something to nobody."""
        self.on_drained = self._spoken = None
        self._send = lambda _label, _message: False
        self._end = lambda _reason: None
        self._guard = lambda _call: None

    def _has_spoken(self) -> None:
        if self._spoken is not None:
            spoken, self._spoken = self._spoken, None
            spoken()

    def _drained(self) -> None:
        if self.on_drained is not None:
            self._guard(self.on_drained)


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)
