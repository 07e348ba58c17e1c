"""Shunt's transceiver as it is, with a bot for its backend.

    python -m tools.bench.calls.ours --http ADDR:PORT --control PATH --udp ADDR:PORT \\
        --agent PATH

All but the backend is what `shunt transceiver run` runs, its logging and its requests to the
agent too. The bot takes and gives PCM at 24 kHz, as speech models do.
"""

import argparse
import asyncio
import logging
import signal
from itertools import cycle
from pathlib import Path

from tools.bench.calls.bots import Answering, Bots, Ear, Habit, utterance
from transceiver.backends import BACKENDS, PCM_24000, Conversation
from transceiver.server import Transceiver, TransceiverConfig

__all__ = ["KEY"]

KEY = "the-key-of-the-bench"

_CAPACITY = 5000
_CHUNK = 10  # frames said at once, 200 ms


class _Bot:
    audio = PCM_24000

    def __init__(self, bots: Bots, chunks: list[bytes]) -> None:
        self._bots = bots
        self._chunks = cycle(chunks)
        self._ear: Ear | None = None

    def start(self, conversation: Conversation) -> None:
        self._ear = self._bots.begin(self.audio.rate)
        self._conversation = conversation
        if self._bots.habit is not Habit.SILENT:
            conversation.on_drained = self._speak
            self._speak()

    def _speak(self) -> None:
        self._conversation.say(next(self._chunks))

    def hear(self, pcm: bytes, at: int, concealed: bool) -> None:
        assert self._ear is not None
        if not concealed:
            self._ear.hear(pcm)

    def channel_opened(self, label: str) -> None:
        pass

    def receive(self, label: str, message: str | bytes) -> None:
        pass

    async def close(self) -> None:
        if self._ear is not None:
            self._bots.end(self._ear)


async def _serve(arguments: argparse.Namespace) -> None:
    bots = Bots()
    frames = utterance(PCM_24000.rate)
    chunks = [b"".join(frames[at : at + _CHUNK]) for at in range(0, len(frames), _CHUNK)]
    BACKENDS["bench"] = lambda _options: lambda: _Bot(bots, chunks)
    config = TransceiverConfig(
        id="bench",
        udp=arguments.udp,
        http=arguments.http,
        agent=arguments.agent,
        api_key=KEY,
        capacity=_CAPACITY,
        backend="bench",
    )
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with Transceiver(config) as transceiver:
        await transceiver.registration.registered.wait()
        answering = Answering(bots, lambda: len(transceiver.sessions))
        await answering.start(arguments.control)
        await stop.wait()
        answering.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--http", required=True)
    parser.add_argument("--control", type=Path, required=True)
    parser.add_argument("--udp", required=True)
    parser.add_argument("--agent", required=True)
    # As `shunt transceiver run` has it.
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    asyncio.run(_serve(parser.parse_args()))


if __name__ == "__main__":
    main()
