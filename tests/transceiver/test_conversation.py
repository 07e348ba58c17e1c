"""What a backend may do with its session: speak, wait, flush, and fail alone."""

import asyncio

import pytest

from transceiver.backends import PCM_24000
from transceiver.conversation import LiveConversation
from transceiver.media.playout import FRAME, BacklogFull, Flushed
from transceiver.media.sender import AudioSender

SECOND = bytes(48000)


class Stage:
    """A conversation with a real sender, and what it asked of its session."""

    def __init__(self) -> None:
        self.sender = AudioSender(
            ssrc=1, payload_type=111, rate=24000, passthrough=False, fec=False, dtx=False, limit=5.0
        )
        self.sent: list[tuple[str, str | bytes]] = []
        self.ends: list[str] = []
        self.guarded = 0
        self.spoken = 0
        self.conversation = LiveConversation(
            audio=PCM_24000,
            configuration={"voice": "x"},
            sender=self.sender,
            send=self._send,
            end=self.ends.append,
            guard=self._guard,
            spoken=self._spoke,
        )

    def tick(self, times: int) -> None:
        for number in range(times):
            self.sender.tick(number * FRAME)

    def _send(self, label: str, message: str | bytes) -> bool:
        self.sent.append((label, message))
        return True

    def _guard(self, call: object) -> None:
        assert callable(call)
        self.guarded += 1
        call()

    def _spoke(self) -> None:
        self.spoken += 1


async def test_what_is_said_waits_and_goes_out_in_real_time() -> None:
    stage = Stage()
    drained: list[float] = []
    stage.conversation.on_drained = lambda: drained.append(stage.conversation.backlog)
    stage.conversation.say(SECOND)
    stage.conversation.say(SECOND)
    assert stage.conversation.backlog == 2.0
    assert stage.spoken == 1
    stage.tick(99)
    assert not drained
    stage.tick(1)
    assert drained == [0.0]
    assert stage.guarded == 1


async def test_too_much_is_refused_and_a_flush_tells_what_was_heard() -> None:
    stage = Stage()
    for _ in range(5):
        stage.conversation.say(SECOND)
    with pytest.raises(BacklogFull):
        stage.conversation.say(SECOND)
    stage.tick(25)
    assert stage.conversation.flush() == Flushed(heard=0.5, dropped=4.5)
    assert stage.conversation.backlog == 0.0


async def test_who_waits_for_room_goes_on_as_soon_as_there_is_some() -> None:
    stage = Stage()
    stage.conversation.say(bytes(48000 // 10))  # 0.1 s
    await stage.conversation.wait_backlog(0.2)  # no wait at all

    waiting = asyncio.create_task(stage.conversation.wait_backlog(0.1))
    await asyncio.sleep(0)
    assert not waiting.done()
    stage.tick(1)
    async with asyncio.timeout(2):
        await waiting


async def test_a_flush_wakes_who_waits_at_once() -> None:
    stage = Stage()
    for _ in range(4):
        stage.conversation.say(SECOND)
    waiting = asyncio.create_task(stage.conversation.wait_backlog(0.5))
    cancelled = asyncio.create_task(stage.conversation.wait_backlog(0.5))
    await asyncio.sleep(0)
    cancelled.cancel()
    stage.conversation.flush()
    async with asyncio.timeout(1):
        await waiting


async def test_messages_and_the_end_are_the_sessions_matter() -> None:
    stage = Stage()
    assert stage.conversation.send("{}")
    assert stage.conversation.send(b"x", "other")
    stage.conversation.end("enough")
    assert stage.sent == [("oai-events", "{}"), ("other", b"x")]
    assert stage.ends == ["enough"]
    assert stage.conversation.configuration == {"voice": "x"}
    assert stage.conversation.rate == 24000
