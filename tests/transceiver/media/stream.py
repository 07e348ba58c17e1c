"""A client's stream of packets, and a receiver whose deliveries are kept."""

import functools
from dataclasses import dataclass

from tests.transceiver.media.speech import frames
from transceiver.media import opus, rtp
from transceiver.media.receiver import AudioReceiver

__all__ = ["FRAME", "PAYLOAD_TYPE", "SSRC", "Delivered", "Heard", "packet", "payloads"]

PAYLOAD_TYPE = 111
SSRC = 0x5EED
FRAME = 0.02


@functools.cache
def payloads(*, fec: bool = False) -> list[bytes]:
    """Speech in packets of 20 ms, with or without in-band FEC."""
    coder = opus.Encoder(24000, bitrate=32000, complexity=5, fec=fec)
    coder.expect_loss(0.3 if fec else 0)
    return [coder.encode(frame) for frame in frames(24000)]


def packet(
    number: int,
    *,
    payload: bytes | None = None,
    timestamp: int | None = None,
    ssrc: int = SSRC,
    fec: bool = False,
) -> bytes:
    """The *number*th of a stream: sequence and timestamp follow from it."""
    if payload is None:
        spoken = payloads(fec=fec)
        payload = spoken[number % len(spoken)]
    return rtp.build(
        payload,
        payload_type=PAYLOAD_TYPE,
        sequence=number & 0xFFFF,
        timestamp=(960 * number if timestamp is None else timestamp) & 0xFFFFFFFF,
        ssrc=ssrc,
    )


@dataclass(frozen=True, slots=True)
class Delivered:
    """What a backend got, and when."""

    pcm: bytes
    at: int
    concealed: bool
    time: float


class Heard:
    """A receiver at 24 kHz, the clock it is asked by, and what it has delivered."""

    def __init__(self, rate: int = 24000, *, passthrough: bool = False) -> None:
        self.now = 100.0
        self.delivered: list[Delivered] = []
        self.receiver = AudioReceiver(
            payload_type=PAYLOAD_TYPE, rate=rate, passthrough=passthrough, deliver=self._deliver
        )

    def _deliver(self, pcm: bytes, at: int, concealed: bool) -> None:
        self.delivered.append(Delivered(pcm, at, concealed, self.now))

    def get(self, data: bytes, after: float = 0.0) -> None:
        """It arrives *after* so many seconds; what is due before happens before."""
        self.wait(after)
        self.receiver.receive(data, self.now)

    def wait(self, seconds: float) -> None:
        """Time passes, with a poll at each deadline."""
        end = self.now + seconds
        while (due := self.receiver.next_deadline()) is not None and due <= end:
            self.now = max(self.now, due)
            self.receiver.poll(self.now)
        self.now = end

    @property
    def ats(self) -> list[int]:
        return [each.at for each in self.delivered]

    @property
    def guessed(self) -> list[bool]:
        return [each.concealed for each in self.delivered]

    @property
    def end(self) -> int:
        """The index of the sample that is next; asserts that there is no gap before."""
        at = 0
        for each in self.delivered:
            assert each.at == at
            at += len(each.pcm) // 2
        return at
