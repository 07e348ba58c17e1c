"""A backend in a thread of its own: the same contract, and its own trouble what it does wrong."""

import asyncio
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from loader.errors import ShuntError
from tests.transceiver.backends.conversation import FakeConversation
from tests.transceiver.backends.sound import frames, noise, speech
from tests.transceiver.backends.waiting import until
from transceiver.backends import (
    PCM_24000,
    AudioFormat,
    Backend,
    BacklogFull,
    Conversation,
    Factory,
    Flushed,
)
from transceiver.backends import isolation as isolating
from transceiver.backends.isolation import MAX_LEFT, MAX_MESSAGES, Bounds, isolated

FRAME = noise(0.02)


class Author:
    """A backend of somebody else; tests say what it does in each call."""

    audio = PCM_24000

    def __init__(self) -> None:
        self.conversation: Conversation | None = None
        self.heard: list[int] = []
        self.threads: set[threading.Thread] = set()

    def say(self) -> Conversation:
        assert self.conversation is not None
        return self.conversation

    def start(self, conversation: Conversation) -> None:
        self.threads.add(threading.current_thread())
        self.conversation = conversation

    def hear(self, pcm: bytes, at: int, concealed: bool) -> None:
        self.threads.add(threading.current_thread())
        self.heard.append(at)
        self.say().say(pcm)

    def channel_opened(self, label: str) -> None:
        self.receive(label, "opened")

    def receive(self, label: str, message: str | bytes) -> None:
        self.threads.add(threading.current_thread())
        self.say().send(message, label)

    async def close(self) -> None:
        self.threads.add(threading.current_thread())


@dataclass
class Session:
    """A session on the test's loop."""

    backend: Backend
    conversation: FakeConversation = field(default_factory=FakeConversation)
    at: int = 0

    def hear(self, pcm: bytes) -> None:
        for frame in frames(pcm):
            self.backend.hear(frame, self.at, False)
            self.at += len(frame) // 2

    async def answers(self) -> None:
        """Fail, by the test's timeout, unless what is said to it comes back."""
        before = len(self.conversation.played)
        for _ in range(20):
            self.hear(FRAME)
            await until(lambda: self.conversation.backlog)
            self.conversation.play(0.02)
        assert self.conversation.played[before:] == FRAME * 20


@asynccontextmanager
async def session_of(factory: Factory) -> AsyncIterator[Session]:
    session = Session(factory())
    session.backend.start(session.conversation)
    try:
        yield session
    finally:
        await session.backend.close()


def doing(**members: object) -> type[Author]:
    """An Author with those members."""
    return type("Doing", (Author,), members)


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """What a backend hangs at, until the test is over."""
    gate = threading.Event()
    yield gate
    gate.set()


# The contract


async def test_audio_and_messages_go_both_ways_in_order() -> None:
    pcm = speech(1.0)
    async with session_of(isolated("author", Author)) as session:
        session.backend.channel_opened("chat")
        for number in range(100):
            session.backend.receive("chat", str(number))
        session.hear(pcm)
        await until(lambda: session.conversation.backlog >= 1.0)
        session.conversation.play(1.0)
    assert bytes(session.conversation.played) == pcm
    assert session.conversation.sent == [("chat", "opened")] + [
        ("chat", str(n)) for n in range(100)
    ]


async def test_all_of_a_session_is_called_on_one_thread_that_ends_with_it() -> None:
    made: list[Author] = []

    def factory() -> Author:
        made.append(Author())
        return made[-1]

    async with session_of(isolated("author", factory)) as session:
        await session.answers()
    (thread,) = made[-1].threads
    assert thread is not threading.current_thread()
    thread.join()


async def test_what_a_backend_asks_of_its_session_is_answered() -> None:
    found: list[object] = []

    def start(self: Author, conversation: Conversation) -> None:
        conversation.on_drained = lambda: found.append("drained")
        found.extend([conversation.rate, dict(conversation.configuration)])
        conversation.say(bytes(48000))
        found.append(conversation.backlog)
        found.append(conversation.send("x", "no such channel"))
        found.append(conversation.flush())
        conversation.say(bytes(48000))
        self.task = asyncio.create_task(wait(conversation))  # type: ignore[attr-defined]

    async def wait(conversation: Conversation) -> None:
        await conversation.wait_backlog(0.5)
        found.append("waited")

    session = Session(isolated("author", doing(start=start))())
    session.conversation.configuration = {"voice": "a"}
    session.backend.start(session.conversation)
    await until(lambda: len(found) == 5)
    assert found[:4] == [24000, {"voice": "a"}, 1.0, False]
    assert session.conversation.flushed == [found[4]]
    await until(lambda: session.conversation._waiting)
    session.conversation.play(0.6)
    await until(lambda: "waited" in found)
    session.conversation.play(0.4)
    await until(lambda: "drained" in found)
    await session.backend.close()


async def test_what_its_session_refuses_is_raised_where_it_was_asked() -> None:
    refused: list[Exception] = []

    def hear(self: Author, pcm: bytes, at: int, concealed: bool) -> None:
        try:
            self.say().say(bytes(70 * 48000))
        except BacklogFull as error:
            refused.append(error)

    async with session_of(isolated("author", doing(hear=hear))) as session:
        session.hear(FRAME)
        await until(lambda: refused)
        assert session.conversation.backlog == 0


async def test_when_its_session_is_over_nothing_it_does_has_an_effect() -> None:
    closed: list[Author] = []

    async def close(self: Author) -> None:
        if self.conversation is None:  # made to see what audio it wants
            return
        self.conversation.say(FRAME)
        assert not self.conversation.send("late")
        assert self.conversation.flush().dropped == 0
        await self.conversation.wait_backlog(0.0)
        closed.append(self)

    async with session_of(isolated("author", doing(close=close))) as session:
        await session.answers()
        played = len(session.conversation.played)
    assert closed
    session.conversation.play(1.0)
    assert session.conversation.sent == []
    assert len(session.conversation.played) == played


async def test_a_session_that_never_began_has_no_thread() -> None:
    factory = isolated("author", Author)
    before = threading.active_count()
    backend = factory()
    await backend.close()
    assert threading.active_count() == before


# Those that hang


async def test_who_hangs_harms_no_other_session(gate: threading.Event) -> None:
    hung = threading.Event()

    def hear(self: Author, pcm: bytes, at: int, concealed: bool) -> None:
        hung.set()
        gate.wait()

    good = isolated("good", Author)
    bad = isolated("bad", doing(hear=hear), Bounds(hang=0.1, close=0.05))
    async with session_of(good) as other, session_of(bad) as session:
        session.hear(FRAME)
        await until(hung.is_set)
        await other.answers()
        while session.conversation.ended is None:
            session.hear(FRAME)
            await asyncio.sleep(0.01)
        assert session.conversation.ended == "backend bad has taken nothing for 0.1 s"
        await other.answers()
        assert other.conversation.ended is None


async def test_who_computes_without_end_is_ended_with_its_thread() -> None:
    def hear(self: Author, pcm: bytes, at: int, concealed: bool) -> None:
        while True:
            pass

    bad = isolated("bad", doing(hear=hear), Bounds(hang=0.1, close=0.05))
    before = set(threading.enumerate())  # those of the tests before may still be ending
    async with session_of(isolated("good", Author)) as other, session_of(bad) as session:
        threads = [each for each in threading.enumerate() if each.name == "backend bad"]
        (thread,) = set(threads) - before
        while session.conversation.ended is None:
            session.hear(FRAME)
            await asyncio.sleep(0.01)
        await other.answers()
    thread.join()
    await bad().close()


async def test_who_hangs_in_start_is_ended_too(gate: threading.Event) -> None:
    def start(self: object, conversation: object) -> None:
        gate.wait()

    bad = isolated("bad", doing(start=start), Bounds(hang=0.1, close=0.05))
    async with session_of(bad) as session:
        while session.conversation.ended is None:
            session.hear(FRAME)
            await asyncio.sleep(0.01)


async def test_who_sleeps_for_a_moment_hears_the_newest_and_knows_what_it_missed() -> None:
    gate, asleep = threading.Event(), threading.Event()
    made: list[Author] = []

    def start(self: Author, conversation: Conversation) -> None:
        self.conversation = conversation
        made.append(self)
        asleep.set()
        gate.wait()

    async with session_of(isolated("author", doing(start=start), Bounds(audio=10))) as session:
        await until(asleep.is_set)
        session.hear(FRAME * 500)
        gate.set()
        await until(lambda: len(made[0].heard) == 10)
    assert made[0].heard == [480 * number for number in range(490, 500)]


async def test_messages_that_are_not_taken_end_the_session(gate: threading.Event) -> None:
    def receive(self: object, label: str, message: str | bytes) -> None:
        gate.wait()

    bad = isolated("bad", doing(receive=receive), Bounds(close=0.05))
    async with session_of(bad) as session:
        for _ in range(MAX_MESSAGES + 2):
            session.backend.receive("chat", "hello?")
        assert session.conversation.ended == "backend bad does not take the client's messages"


async def test_no_more_sessions_are_begun_than_may_hang(gate: threading.Event) -> None:
    begun: list[object] = []

    def start(self: object, conversation: object) -> None:
        begun.append(conversation)
        gate.wait()

    bad = isolated("bad", doing(start=start), Bounds(close=0.01))
    for _ in range(MAX_LEFT):
        begun.clear()
        async with session_of(bad):
            await until(lambda: begun)
    with pytest.raises(ShuntError, match=f"{MAX_LEFT} sessions of backend bad"):
        bad()
    gate.set()
    for thread in threading.enumerate():
        if thread.name == "backend bad":
            thread.join()
    await bad().close()


# Those that die


def fail(*args: object) -> None:
    raise LookupError("no\nmodel")


async def fail_later(*args: object) -> None:
    raise LookupError("no\nmodel")


@pytest.mark.parametrize("where", ["start", "hear", "receive", "channel_opened"])
async def test_whatever_it_raises_ends_its_session_only(where: str) -> None:
    good = isolated("good", Author)
    async with (
        session_of(good) as other,
        session_of(isolated("bad", doing(**{where: fail}))) as bad,
    ):
        bad.backend.channel_opened("chat")
        bad.backend.receive("chat", "hello")
        bad.hear(FRAME)
        await until(lambda: bad.conversation.ended)
        assert bad.conversation.ended == "backend bad failed: LookupError: no model"
        await other.answers()


async def test_who_exits_ends_its_session_only() -> None:
    good = isolated("good", Author)
    bad = isolated("bad", doing(hear=lambda *args: sys.exit(1)))
    async with session_of(good) as other, session_of(bad) as session:
        session.hear(FRAME)
        await until(lambda: session.conversation.ended)
        assert session.conversation.ended == "backend bad failed: SystemExit: 1"
        await other.answers()


async def test_who_fails_to_close_is_closed() -> None:
    probed = False

    async def close(self: Author) -> None:
        nonlocal probed
        if probed:
            fail()
        probed = True

    async with session_of(isolated("bad", doing(close=close))) as session:
        await session.answers()
    assert session.conversation.ended is None


# Those that flood


@pytest.mark.parametrize("call", ["say", "send", "flush"])
async def test_who_floods_is_held_up_and_nobody_else_is(call: str) -> None:
    calls = 0

    class Counting(FakeConversation):
        def say(self, pcm: bytes) -> None:
            nonlocal calls
            calls += 1

        def send(self, message: str | bytes, label: str = "oai-events") -> bool:
            nonlocal calls
            calls += 1
            return False

        def flush(self) -> Flushed:
            nonlocal calls
            calls += 1
            return super().flush()

    over = threading.Event()

    def hear(self: Author, pcm: bytes, at: int, concealed: bool) -> None:
        conversation = self.say()
        while not over.is_set():
            match call:
                case "say":
                    conversation.say(b"")
                case "send":
                    conversation.send("spam")
                case "flush":
                    conversation.flush()

    bounds = Bounds(calls=100, burst=50)
    good = isolated("good", Author)
    bad = isolated("bad", doing(hear=hear), bounds)
    async with session_of(good) as other:
        session = Session(bad(), Counting())
        session.backend.start(session.conversation)
        began = time.monotonic()
        session.hear(FRAME)
        await until(lambda: calls > 50)
        await other.answers()
        assert calls <= 50 + 100 * (time.monotonic() - began) + 1
        over.set()
        await session.backend.close()


async def test_who_says_more_than_there_is_room_for_is_told() -> None:
    def hear(self: Author, pcm: bytes, at: int, concealed: bool) -> None:
        while True:
            self.say().say(bytes(48000))

    async with session_of(isolated("bad", doing(hear=hear))) as session:
        session.hear(FRAME)
        await until(lambda: session.conversation.ended)
        assert session.conversation.backlog == 60.0
        assert "BacklogFull" in str(session.conversation.ended)


# Those that cannot be made


@pytest.mark.parametrize(
    ("factory", "what"),
    [
        (doing(__init__=fail), "LookupError"),
        (doing(__init__=lambda self: sys.exit("no licence")), "SystemExit: no licence"),
        (doing(close=fail_later), "LookupError"),
        (doing(audio=None), "None"),
        (doing(audio=AudioFormat(44100)), "44100"),
    ],
)
async def test_what_cannot_be_made_is_known_at_once(factory: Factory, what: str) -> None:
    with pytest.raises(ShuntError, match=what) as refused:
        isolated("bad", factory)
    assert refused.value.cure


async def test_what_takes_too_long_to_make_is_refused(
    monkeypatch: pytest.MonkeyPatch, gate: threading.Event
) -> None:
    monkeypatch.setattr(isolating, "PROBE", 0.05)
    with pytest.raises(ShuntError, match=r"within 0\.05 s"):
        isolated("bad", doing(__init__=lambda self: gate.wait() and None))
    # It fails then, as it has no threads to note, and is not to do so beside other tests.
    gate.set()
    for thread in threading.enumerate():
        if thread.name == "probe of backend bad":
            thread.join()
