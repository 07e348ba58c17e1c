"""`echo`: sends back what it hears, and each message. The instrument for all that lies before it.

It takes the client's audio through the decoder and the encoder, so that a client hears what a model
would: with concealment for lost packets, and without the client's own jitter.
"""

import re

import numpy as np

from transceiver.backends import PCM_48000, Conversation

__all__ = ["Echo"]

RESERVED_LABELS = frozenset({"oai-events", "chat"})
"""Data channels with a protocol of their own, which an echo would confuse."""

PING = re.compile(r"ping: \d{1,20}", re.ASCII)
"""What Pipecat's client sends every second, with its time in ms, on a channel of any label."""

SLACK = 0.06
"""Seconds that may wait to go out: with more, the client's silence is not sent back.

Clocks that drift apart and bursts after a stall must not become delay. What nobody hears is the
best thing to leave out; 60 ms is more than a clean network ever needs.
"""

MOST = 0.2
"""Seconds after which the oldest goes, whatever it is: for audio without silence."""

QUIET = 200
"""The peak below which 20 ms count as silence: -44 dBFS."""


class Echo:
    """Sends back the audio, and each message of the data channels that are not reserved.

    A message for a client that does not read is dropped.
    """

    audio = PCM_48000
    _conversation: Conversation

    def start(self, conversation: Conversation) -> None:
        self._conversation = conversation

    def hear(self, pcm: bytes, at: int, concealed: bool) -> None:
        backlog = self._conversation.backlog
        if backlog > MOST:
            self._conversation.flush()
        elif backlog > SLACK and is_quiet(pcm):
            return
        self._conversation.say(pcm)

    def channel_opened(self, label: str) -> None:
        pass

    def receive(self, label: str, message: str | bytes) -> None:
        if label in RESERVED_LABELS or (isinstance(message, str) and PING.fullmatch(message)):
            return
        self._conversation.send(message, label)

    async def close(self) -> None:
        pass


def is_quiet(pcm: bytes) -> bool:
    samples = np.frombuffer(pcm, "<i2")
    return not len(samples) or bool(max(samples.max(), -int(samples.min())) < QUIET)
