"""What a session talks to: a backend hears the client's audio and messages, and answers in kind.

Here is the contract between the two, and the backends by name. A backend knows nothing of ICE, SDP
or the session that it serves; a session knows nothing of turns or models.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from loader.errors import ShuntError
from transceiver.media.playout import BacklogFull, Flushed

__all__ = [
    "BACKENDS",
    "OPUS",
    "PCM_24000",
    "PCM_48000",
    "AudioFormat",
    "Backend",
    "BacklogFull",
    "Conversation",
    "Factory",
    "Flushed",
    "Options",
    "make",
]


log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class AudioFormat:
    """How audio passes between session and backend, both ways.

    PCM is s16le, mono, of *rate* Hz: 24000 or 48000 (8000 and 16000 work too). With *passthrough*
    it is Opus packets instead, as they come, and *rate* is that of their timestamps.
    """

    rate: int
    passthrough: bool = False


PCM_24000 = AudioFormat(24000)
PCM_48000 = AudioFormat(48000)
OPUS = AudioFormat(48000, passthrough=True)


class Conversation(Protocol):
    """The session as its backend sees it. To be used on the event loop that calls the backend."""

    @property
    def rate(self) -> int:
        """Hz of the audio, both ways; of the timestamps of Opus packets."""

    @property
    def configuration(self) -> Mapping[str, object]:
        """The `session` that the client posted with its offer; empty if it posted none."""

    @property
    def backlog(self) -> float:
        """Seconds of audio that wait to go out."""

    on_drained: Callable[[], None] | None
    """Set by the backend: called when the last of the audio that waited has gone out."""

    def say(self, pcm: bytes) -> None:
        """Queue audio for the client, any amount of it; BacklogFull if there is no room.

        It goes out in real time, 20 ms by 20 ms.
        """

    def say_packet(self, packet: bytes) -> None:
        """The same for one Opus packet, where the format is OPUS."""

    def flush(self) -> Flushed:
        """Throw away what waits to go out: not one more frame of it is sent."""

    async def wait_backlog(self, below: float) -> None:
        """Return when less than *below* seconds wait to go out."""

    def send(self, message: str | bytes, label: str = "oai-events") -> bool:
        """Send on the data channel with that *label*.

        False, and it is lost, if no such channel is open or the client does not read what is sent.
        """

    def end(self, reason: str) -> None:
        """End the session; *reason* goes into its timeline."""


class Backend(Protocol):
    """One session's partner, made when the session is. Any exception out of it ends the session.

    All is called on one event loop, and that is the session's for those that come with Shunt: all
    but `close` must return within a millisecond or so there, because every other session waits
    meanwhile. Others' have a loop in a thread of their own (`transceiver.backends.isolation`).
    """

    @property
    def audio(self) -> AudioFormat:
        """The format of `hear` and `say`; asked once, before `start`."""

    def start(self, conversation: Conversation) -> None:
        """Called once, when the client is connected, and before the first `hear`."""

    def hear(self, pcm: bytes, at: int, concealed: bool) -> None:
        """Take audio of the client, 2.5 to 120 ms of it.

        *at*: the index of its first sample in the client's stream, by the client's clock.
        *concealed*: whether the decoder had to make it up. Of Opus, *pcm* is the packet, or empty
        for one that was lost.
        """

    def channel_opened(self, label: str) -> None:
        """Know that the client has opened a data channel."""

    def receive(self, label: str, message: str | bytes) -> None:
        """Take a message of the client on the data channel with that *label*."""

    async def close(self) -> None:
        """Stop all that was begun, also if `start` was never called. The session waits 3 s."""


Options = Mapping[str, str]
"""What the operator tells a backend: `--backend-option NAME=VALUE`."""

Factory = Callable[[], Backend]
"""Makes a backend for one session."""


def _echo(options: Options) -> Factory:
    from transceiver.backends.echo import Echo

    for name in options:
        raise ShuntError(f"backend echo has no option {name!r}", "it has none")
    return Echo


def _parrot(options: Options) -> Factory:
    from transceiver.backends.parrot import Parrot

    return Parrot.of(options)


def _realtime(options: Options) -> Factory:
    from transceiver.backends.realtime import Realtime

    return Realtime.of(options)


BACKENDS: dict[str, Callable[[Options], Factory]] = {
    "echo": _echo,
    "parrot": _parrot,
    "realtime": _realtime,
}
"""Those that are built in, by the name they have on the command line.

Each takes options or raises ShuntError; what a backend is made of is imported when it is asked for.
"""


ISOLATIONS = ("loop", "thread", "process")
"""Where a backend runs, option `isolation`: on the event loop of the session; in a thread and on a
loop of its own, where it can hold nobody up, which is what others' get if not told else; in a
process, where it can do nothing to anybody."""


def make(name: str, options: Options | None = None) -> Factory:
    """What makes a backend for each session; ShuntError if there is none or it refuses *options*.

    Called once a process, so that options that make no sense are known at its start. A name that is
    built in is never another's.
    """
    from transceiver.backends import entrypoints

    given = dict(options or {})
    isolation = given.pop("isolation", "loop" if name in BACKENDS else "thread")
    if isolation not in ISOLATIONS:
        raise ShuntError(
            f"isolation={isolation} makes no sense", f"it is one of: {', '.join(ISOLATIONS)}"
        )
    installed = entrypoints.names()
    if name in BACKENDS and name in installed:
        log.warning("the installed backend %s is not used: that name is built in", name)
    elif name not in BACKENDS and name not in installed:
        every = ", ".join([*BACKENDS, *(each for each in installed if each not in BACKENDS)])
        raise ShuntError(f"there is no backend {name!r}", f"use one of: {every}")
    if isolation == "process":
        from transceiver.backends.processes import in_processes

        return in_processes(name, given)
    factory = BACKENDS[name](given) if name in BACKENDS else entrypoints.load(name, given)
    if isolation == "loop":
        return factory
    from transceiver.backends.isolation import isolated

    return isolated(name, factory)
