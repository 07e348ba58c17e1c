"""A backend in a process of its own: the same contract, and not even its death is anybody's."""

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loader.errors import ShuntError
from tests.transceiver.backends.conftest import Install
from tests.transceiver.backends.conversation import FakeConversation
from tests.transceiver.backends.sound import frames, noise, speech
from tests.transceiver.backends.waiting import until
from transceiver.backends import AudioFormat, Backend, Options, make
from transceiver.backends import processes as processing
from transceiver.backends.isolation import Bounds
from transceiver.backends.process_wire import Flush, FrameError, Say, frame
from transceiver.backends.process_wire import frames as frames_of
from transceiver.backends.processes import in_processes

FRAME = noise(0.02)

AUTHOR = """
import asyncio, json, os, signal, sys, time
from loader.errors import ShuntError
from transceiver.backends import OPUS, PCM_24000, AudioFormat, BacklogFull

class Author:
    audio = PCM_24000
    def __init__(self, options): self.options = options
    def start(self, conversation):
        self.conversation = conversation
        conversation.send(str(os.getpid()))
        {start}
    def hear(self, pcm, at, concealed):
        {hear}
    def channel_opened(self, label): self.receive(label, "opened")
    def receive(self, label, message):
        {receive}
    async def close(self):
        {close}

def backend(options):
    {backend}
    return lambda: Author(options)
"""
"""A module of somebody else, with holes."""


def author(**holes: str) -> str:
    every = {
        "start": "pass",
        "hear": "self.conversation.say(pcm)",
        "receive": "self.conversation.send(message, label)",
        "close": "pass",
        "backend": "pass",
    }
    return AUTHOR.format(**{**every, **holes})


class Session:
    """A session on the test's loop."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.conversation = FakeConversation(configuration={"voice": "a"})
        self.at = 0

    def hear(self, pcm: bytes) -> None:
        for each in frames(pcm):
            self.backend.hear(each, self.at, False)
            self.at += len(each) // 2

    async def pid(self) -> int:
        await until(lambda: self.conversation.sent)
        return int(self.conversation.sent[0][1])

    async def ended(self) -> str:
        """Why, if it does while audio comes in real time."""
        while self.conversation.ended is None:
            self.hear(FRAME)
            await asyncio.sleep(0.02)
        return self.conversation.ended


@asynccontextmanager
async def session_of(
    install: Install, source: str, options: Options | None = None, bounds: Bounds | None = None
) -> AsyncIterator[Session]:
    install("shunt-author", {"author": "author:backend"}, module="author", source=source)
    session = Session(in_processes("author", options or {}, bounds)())
    session.backend.start(session.conversation)
    try:
        yield session
    finally:
        await session.backend.close()


def is_alive(pid: int) -> bool:
    """Whether it runs; one that is dead and not buried does not."""
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


# The contract


async def test_audio_and_messages_go_both_ways_in_order(install: Install) -> None:
    pcm = speech(1.0)
    async with session_of(install, author()) as session:
        pid = await session.pid()
        session.backend.channel_opened("chat")
        messages: list[str | bytes] = ["text", b"bytes", "", "ü"]
        for message in messages:
            session.backend.receive("chat", message)
        session.hear(pcm)
        await until(lambda: session.conversation.backlog >= 1.0)
        session.conversation.play(1.0)
        assert pid != os.getpid()
    assert bytes(session.conversation.played) == pcm
    assert session.conversation.sent[1:] == [("chat", each) for each in ["opened", *messages]]
    assert not is_alive(pid)
    assert session.conversation.ended is None


async def test_what_a_backend_asks_of_its_session_is_answered(install: Install) -> None:
    source = author(
        start="""
        found = [conversation.rate, conversation.configuration, self.options]
        conversation.say(bytes(48000))
        found.append(conversation.backlog)
        found.append(conversation.send("x", "no such channel"))
        flushed = conversation.flush()
        found.append([flushed.heard, flushed.dropped])
        try:
            conversation.say(bytes(70 * 48000))
        except BacklogFull:
            found.append("full")
        conversation.send(json.dumps(found))
        conversation.say(bytes(48000))
        conversation.on_drained = lambda: conversation.send('"drained"')
        async def wait():
            await conversation.wait_backlog(0.5)
            conversation.send('"waited"')
        self.task = asyncio.create_task(wait())
        """
    )
    async with session_of(install, source, {"volume": "11"}) as session:
        sent = session.conversation.sent
        await until(lambda: len(sent) == 2)
        assert json.loads(sent[1][1]) == [
            24000,
            {"voice": "a"},
            {"volume": "11"},
            1.0,
            False,
            [0.0, 1.0],
            "full",
        ]
        await until(lambda: session.conversation._waiting)
        session.conversation.play(0.6)
        await until(lambda: ("oai-events", '"waited"') in sent)
        session.conversation.play(0.4)
        await until(lambda: ("oai-events", '"drained"') in sent)


async def test_it_may_end_its_session(install: Install) -> None:
    async with session_of(install, author(hear="self.conversation.end('good\\nbye')")) as session:
        assert await session.ended() == "good bye"


async def test_it_is_told_to_close(install: Install, tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    source = author(close=f"open({str(closed)!r}, 'a').write('x')")
    async with session_of(install, source) as session:
        await session.pid()
    assert closed.read_text() == "xx"  # once for the one that was made to know its audio


async def test_a_session_that_never_began_has_no_process(install: Install) -> None:
    install("shunt-author", {"author": "author:backend"}, module="author", source=author())
    await in_processes("author", {})().close()


async def test_a_session_that_ends_before_its_process_has_begun_leaves_none(
    install: Install,
) -> None:
    async with session_of(install, author()) as session:
        pass
    assert session.conversation.ended is None
    assert session.conversation.played == b""


async def test_nothing_of_it_is_imported_here(install: Install) -> None:
    async with session_of(install, author()) as session:
        await session.pid()
        assert "author" not in sys.modules


async def test_one_that_is_built_in_can_have_a_process_too() -> None:
    session = Session(make("parrot", {"isolation": "process", "vad": "energy"})())
    session.conversation.configuration = {}
    session.backend.start(session.conversation)
    session.backend.channel_opened("oai-events")
    await until(lambda: session.conversation.types == ["session.created"])
    await session.backend.close()


# Those that die, hang and flood


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("raise LookupError('no\\nmodel')", "failed: LookupError: no model"),
        ("sys.exit(3)", "failed: SystemExit: 3"),
        ("os._exit(3)", "has ended its process with 3"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "has died of SIGSEGV"),
    ],
)
async def test_who_dies_ends_its_session_only(install: Install, code: str, why: str) -> None:
    async with session_of(install, author(hear=code)) as session:
        pid = await session.pid()
        assert await session.ended() == f"backend author {why}"
        await until(lambda: not is_alive(pid))


@pytest.mark.parametrize(
    ("where", "code"),
    [("start", "time.sleep(3600)"), ("hear", "while True: pass"), ("receive", "time.sleep(3600)")],
)
async def test_who_hangs_is_killed(install: Install, where: str, code: str) -> None:
    bounds = Bounds(hang=1.0, close=0.1)
    async with session_of(install, author(**{where: code}), bounds=bounds) as session:
        pid = await session.pid()
        session.backend.receive("chat", "hello?")
        assert await session.ended() == "backend author has taken nothing for 1 s"
    assert not is_alive(pid)


async def test_who_sleeps_for_a_moment_hears_the_newest(install: Install, tmp_path: Path) -> None:
    wakes = tmp_path / "wakes"
    source = author(
        start=f"""
        while not os.path.exists({str(wakes)!r}): time.sleep(0.01)
        """,
        hear="self.conversation.send(str(at))",
    )
    async with session_of(install, source, bounds=Bounds(audio=10)) as session:
        await session.pid()
        session.hear(FRAME * 500)
        wakes.touch()
        await until(lambda: session.conversation.sent[-1][1] == str(499 * 480))
        heard = [int(at) // 480 for _, at in session.conversation.sent[1:]]
    assert heard[-10:] == list(range(490, 500))
    assert len(heard) < 200


@pytest.mark.parametrize("call", ["say(b'')", "backlog"])
async def test_who_floods_is_held_up(install: Install, call: str) -> None:
    source = author(
        hear=f"""
        n = 0
        while True:
            self.conversation.{call}
            n += 1
            if n % 10 == 0: self.conversation.send("ten")
        """
    )
    bounds = Bounds(calls=100, burst=50, close=0.1)
    async with session_of(install, source, bounds=bounds) as session:
        await session.pid()
        began = time.monotonic()
        session.hear(FRAME)
        tens: list[object] = []

        def count() -> int:
            tens[:] = [each for each in session.conversation.sent if each[1] == "ten"]
            return len(tens)

        await until(lambda: count() >= 10)
        assert len(tens) * 11 <= 50 + 100 * (time.monotonic() - began) + 11


@pytest.mark.parametrize(
    "code",
    [
        "conversation._calls.sendall(b'\\xff' * 100)",
        "conversation._calls.sendall(b'\\0\\0\\0\\1\\xc0' * 100)",
        "[conversation._calls.sendall(b'\\0\\0\\0\\2\\x91\\xa7Backlog') for _ in range(99)]",
    ],
)
async def test_who_breaks_the_protocol_is_ended(install: Install, code: str) -> None:
    async with session_of(install, author(start=code)) as session:
        assert (await session.ended()).startswith("backend author breaks the protocol")


async def test_messages_that_are_not_taken_end_the_session(install: Install) -> None:
    bounds = Bounds(close=0.1)
    async with session_of(install, author(start="time.sleep(3600)"), bounds=bounds) as session:
        await session.pid()
        while session.conversation.ended is None:
            session.backend.receive("chat", "x" * 100_000)
        assert session.conversation.ended == "backend author does not take the client's messages"


async def test_it_ends_with_a_transceiver_that_is_killed(install: Install, tmp_path: Path) -> None:
    source = author(start="while True: pass")
    install("shunt-author", {"author": "author:backend"}, module="author", source=source)
    told = tmp_path / "pid"
    transceiver = f"""
import asyncio, sys
sys.path[:] = {sys.path!r}
from tests.transceiver.backends.conversation import FakeConversation
from transceiver.backends.processes import in_processes

async def main():
    conversation = FakeConversation()
    backend = in_processes("author", {{}})()
    backend.start(conversation)
    while not conversation.sent:
        await asyncio.sleep(0.01)
    open({str(told)!r}, "w").write(conversation.sent[0][1] + "\\n")
    await asyncio.Event().wait()

asyncio.run(main())
"""
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", transceiver)
    await until(lambda: told.exists() and told.read_text().endswith("\n"))
    pid = int(told.read_text())
    assert is_alive(pid)
    process.kill()
    await process.wait()
    await until(lambda: not is_alive(pid))


# Those that cannot be made


@pytest.mark.parametrize(
    ("holes", "what"),
    [
        ({"backend": "raise ShuntError('too loud', 'turn it down')"}, "too loud"),
        ({"backend": "return 7"}, "makes nothing that makes backends"),
        ({"backend": "return lambda: 1 / 0"}, "cannot be made: ZeroDivisionError"),
        ({"backend": "os._exit(1)"}, "cannot be made: its process ended"),
        ({"close": "1 / 0"}, "cannot be made: ZeroDivisionError"),
        ({"backend": "Author.audio = None"}, "cannot be made: TypeError"),
        ({"backend": "Author.audio = AudioFormat(44100)"}, "44100"),
    ],
)
async def test_what_cannot_be_made_is_known_at_once(
    install: Install, holes: dict[str, str], what: str
) -> None:
    install("shunt-author", {"author": "author:backend"}, module="author", source=author(**holes))
    with pytest.raises(ShuntError, match=what) as refused:
        in_processes("author", {})
    assert refused.value.cure


async def test_what_takes_too_long_to_make_is_refused(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processing, "PROBE", 0.2)
    source = author(backend="time.sleep(3600)")
    install("shunt-author", {"author": "author:backend"}, module="author", source=source)
    with pytest.raises(ShuntError, match="cannot be made within"):
        in_processes("author", {})


async def test_it_wants_audio_as_it_says(install: Install) -> None:
    source = author(backend="Author.audio = OPUS")
    install("shunt-author", {"author": "author:backend"}, module="author", source=source)
    assert in_processes("author", {})().audio == AudioFormat(48000, passthrough=True)


# Frames


@settings(deadline=None)
@given(st.lists(st.binary(max_size=300), max_size=10), st.data())
def test_frames_are_whole_however_they_are_cut(audio: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(frame(Say(each, False)) for each in audio)
    received, found = bytearray(), []
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        received += stream[:size]
        stream = stream[size:]
        found += frames_of(received)
    assert [frame(Say(each, False))[4:] for each in audio] == found
    assert not received


def test_a_frame_that_is_too_long_is_refused_before_it_is_there() -> None:
    with pytest.raises(FrameError):
        frames_of(bytearray(b"\xff\xff\xff\xff"))
    assert frames_of(bytearray(frame(Flush())[:-1])) == []
