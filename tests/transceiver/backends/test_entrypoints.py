"""Backends that other distributions offer: found, refused, and the one that the document shows."""

import logging
import re
import threading
import tomllib
import wave
from pathlib import Path

import pytest

from loader.errors import ShuntError
from tests.transceiver.backends.conftest import Install
from tests.transceiver.backends.conversation import FakeConversation
from tests.transceiver.backends.sound import speech
from tests.transceiver.backends.waiting import until
from transceiver.backends import Backend, make
from transceiver.backends.echo import Echo
from transceiver.backends.entrypoints import names

ROOT = Path(__file__).resolve().parents[3]


def example() -> tuple[dict[str, object], str]:
    """What docs/backends.md shows: pyproject.toml, and the module."""
    text = (ROOT / "docs/backends.md").read_text()
    (project,) = re.findall(r"^```toml\n(# pyproject\.toml\n.*?)^```", text, re.M | re.S)
    (module,) = re.findall(r"^```python\n(# announcement\.py.*?)^```", text, re.M | re.S)
    return tomllib.loads(project)["project"], module


def record(path: Path, pcm: bytes, rate: int = 24000) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, rate, 0, "NONE", ""))
        file.writeframes(pcm)
    return path


async def test_the_example_of_the_document_works(install: Install, tmp_path: Path) -> None:
    project, source = example()
    entries = project["entry-points"]
    assert isinstance(entries, dict)
    install(str(project["name"]), entries["shunt.backends"], module="announcement", source=source)
    pcm = speech(3.3)
    factory = make("announcement", {"file": str(record(tmp_path / "hello.wav", pcm))})
    backend: Backend = factory()
    conversation = FakeConversation()

    backend.start(conversation)
    while conversation.ended is None:
        await until(lambda: conversation.backlog or conversation.ended)
        conversation.play(0.5)
    await backend.close()

    assert bytes(conversation.played) == pcm
    assert conversation.ended == "the announcement is over"


async def test_the_example_refuses_a_file_that_is_no_such_audio(
    install: Install, tmp_path: Path
) -> None:
    _, source = example()
    install("x", {"announcement": "announcement:backend"}, module="announcement", source=source)
    file = record(tmp_path / "hello.wav", speech(0.1), rate=8000)
    with pytest.raises(ShuntError, match="24 kHz"):
        make("announcement", {"file": str(file)})
    with pytest.raises(ShuntError, match="KeyError: 'file'"):
        make("announcement")


def test_the_example_is_as_short_as_it_is_said_to_be() -> None:
    _, source = example()
    assert len([line for line in source.splitlines() if line.strip()]) <= 30


def test_what_is_installed_is_listed(install: Install) -> None:
    install("shunt-loud", {"loud": "loud:backend"})
    assert "loud" in names()
    with pytest.raises(ShuntError) as refused:
        make("quiet")
    assert refused.value.cure == "use one of: " + ", ".join(
        ["echo", "parrot", "realtime", *names()]
    )


def test_nothing_is_imported_that_nobody_asked_for(install: Install) -> None:
    install("shunt-loud", {"loud": "loud:backend"}, module="loud", source="raise SystemError")
    make("echo")


def test_a_name_that_is_built_in_is_nobody_elses(
    install: Install, caplog: pytest.LogCaptureFixture
) -> None:
    install("shunt-echo", {"echo": "loud:backend"}, module="loud", source="raise SystemError")
    with caplog.at_level(logging.WARNING):
        assert make("echo") is Echo
    assert "that name is built in" in caplog.text


def test_a_name_that_two_offer_is_refused(install: Install) -> None:
    install("shunt-loud", {"loud": "loud:backend"})
    install("louder", {"loud": "louder:backend"})
    with pytest.raises(ShuntError, match=r"louder 1\.0 and shunt-loud 1\.0 both offer") as refused:
        make("loud")
    assert "uninstall" in refused.value.cure


@pytest.mark.parametrize(
    ("source", "what"),
    [
        ("import nonsense_that_is_not_there", "cannot be loaded: ModuleNotFoundError"),
        ("x = 1", "cannot be loaded: AttributeError"),
        ("backend = 7", "does not take its options: TypeError"),
        ("def backend(options): return 1 / 0", "does not take its options: ZeroDivisionError"),
        ("def backend(options): return 7", "makes nothing that makes backends, but int"),
        ("def backend(options): return lambda: 7", "cannot be made: AttributeError"),
    ],
)
def test_what_is_wrong_with_it_is_said(install: Install, source: str, what: str) -> None:
    install("shunt-loud", {"loud": "loud:backend"}, module="loud", source=source)
    with pytest.raises(ShuntError, match=what) as refused:
        make("loud")
    assert "loud" in refused.value.what
    assert refused.value.cure


def test_its_own_error_is_shown_as_it_is(install: Install) -> None:
    source = (
        "from loader.errors import ShuntError\n"
        "def backend(options): raise ShuntError('it is too loud', 'turn it down')"
    )
    install("shunt-loud", {"loud": "loud:backend"}, module="loud", source=source)
    with pytest.raises(ShuntError, match="it is too loud") as refused:
        make("loud")
    assert refused.value.cure == "turn it down"


@pytest.mark.parametrize(
    ("isolation", "in_thread"), [(None, True), ("thread", True), ("loop", False)]
)
async def test_others_run_in_a_thread_unless_told_otherwise(
    install: Install, isolation: str | None, in_thread: bool
) -> None:
    source = (
        "import threading\n"
        "from transceiver.backends.echo import Echo\n"
        "class Loud(Echo):\n"
        "    def start(self, conversation):\n"
        "        conversation.send(threading.current_thread().name)\n"
        "def backend(options): return Loud"
    )
    install("shunt-loud", {"loud": "loud:backend"}, module="loud", source=source)
    backend = make("loud", {"isolation": isolation} if isolation else {})()
    conversation = FakeConversation()
    backend.start(conversation)
    await until(lambda: conversation.sent)
    await backend.close()
    own = threading.current_thread().name
    assert conversation.sent == [("oai-events", "backend loud" if in_thread else own)]


async def test_one_that_is_built_in_can_have_a_thread_too() -> None:
    backend = make("parrot", {"isolation": "thread", "vad": "energy"})()
    conversation = FakeConversation()
    backend.start(conversation)
    backend.channel_opened("oai-events")
    await until(lambda: conversation.types == ["session.created"])
    await backend.close()


def test_another_isolation_is_refused() -> None:
    with pytest.raises(ShuntError, match="isolation=virtual"):
        make("echo", {"isolation": "virtual"})
