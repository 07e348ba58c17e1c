"""What a backend has said and the client has not got yet: bounded queues, of PCM and of packets.

Both give out what is next each 20 ms, and know how much of the current utterance has gone out.
Coding and sending it is `transceiver.media.sender`'s.
"""

from collections import deque
from dataclasses import dataclass

from transceiver.media import opus

__all__ = ["FRAME", "MAX_PACKET", "BacklogFull", "Flushed", "PacketPlayout", "PcmPlayout"]

FRAME = 0.020
"""Seconds between two takes."""

MAX_PACKET = 1200
"""Bytes of an Opus packet that fit what every path takes (RFC 8200 section 5), with the headers of
RTP, UDP and IPv6 and SRTP's tag."""

_FRAME_TICKS = opus.CLOCK // 50


class BacklogFull(OverflowError):
    """More is said than the queue may hold; nothing of it was taken."""


@dataclass(frozen=True, slots=True)
class Flushed:
    """Of the utterance that was cut off, seconds: *heard*, those that had gone out to the client,
    and *dropped*, those that had not."""

    heard: float
    dropped: float


class PcmPlayout:
    """Mono s16le at *rate*, at most *limit* seconds of it, taken out in frames of 20 ms."""

    def __init__(self, rate: int, limit: float) -> None:
        self._rate = rate
        self._size = rate // 50 * 2
        self._limit = int(limit * rate) * 2
        self._pcm = bytearray()
        self._heard = 0  # bytes

    def say(self, pcm: bytes) -> None:
        """Any number of samples. Raises BacklogFull, and ValueError for half a sample."""
        if len(pcm) & 1:
            raise ValueError(f"{len(pcm)} bytes are no whole number of samples")
        if len(self._pcm) + len(pcm) > self._limit:
            raise BacklogFull(f"more than {self._limit / 2 / self._rate:g} s wait to be heard")
        self._pcm += pcm

    def take(self) -> bytes | None:
        """The next frame, None if there is nothing. What is less than a frame at the end is padded
        with silence: if more should follow after all, it is heard that much later."""
        pcm = self._pcm
        if not pcm:
            return None
        size = self._size
        frame = bytes(pcm[:size])
        del pcm[:size]
        self._heard += len(frame)
        return frame if len(frame) == size else frame.ljust(size, b"\0")

    def flush(self) -> Flushed:
        """Drop what waits. What is said from now on is another utterance."""
        flushed = Flushed(self.heard, self.backlog)
        self._pcm.clear()
        self._heard = 0
        return flushed

    @property
    def empty(self) -> bool:
        return not self._pcm

    @property
    def backlog(self) -> float:
        """Seconds that wait."""
        return len(self._pcm) / 2 / self._rate

    @property
    def heard(self) -> float:
        """Seconds of the current utterance that have gone out."""
        return self._heard / 2 / self._rate


class PacketPlayout:
    """Opus packets, at most *limit* seconds of them, taken out one each 20 ms or more."""

    def __init__(self, limit: float) -> None:
        self._limit = int(limit * opus.CLOCK)
        self._packets: deque[tuple[bytes, int]] = deque()
        self._short: list[bytes] = []  # packets of less than 20 ms, until they are as long together
        self._short_ticks = 0
        self._waiting = 0  # ticks
        self._heard = 0  # ticks
        self._playing = 0  # ticks of the packet taken last that are not over

    def say(self, packet: bytes, ticks: int) -> None:
        """A packet that lasts *ticks* of 1/48000 s. Raises BacklogFull, and OpusError.

        Such of less than 20 ms go out together, if they fit.
        """
        if len(packet) > MAX_PACKET:
            raise opus.OpusError(f"a packet of {len(packet)} bytes: no more than {MAX_PACKET} fit")
        if ticks != opus.duration(packet):
            raise opus.OpusError(f"a packet of {opus.duration(packet)} ticks said to have {ticks}")
        if self._waiting + ticks > self._limit:
            raise BacklogFull(f"more than {self._limit / opus.CLOCK:g} s wait to be heard")
        self._waiting += ticks
        if ticks >= _FRAME_TICKS and not self._short:
            self._packets.append((packet, ticks))
            return
        self._short.append(packet)
        self._short_ticks += ticks
        if self._short_ticks >= _FRAME_TICKS:
            self._close()

    def _close(self) -> None:
        """What is in `_short` becomes one packet, or several if it cannot."""
        try:
            merged = opus.merge(self._short)
            if len(merged) > MAX_PACKET:
                raise opus.OpusError("too long together")
            self._packets.append((merged, self._short_ticks))
        except opus.OpusError:
            self._packets.extend((each, opus.duration(each)) for each in self._short)
        self._short.clear()
        self._short_ticks = 0

    def take(self) -> bytes | None:
        """The next packet; b"" while the last one goes on; None if there is nothing."""
        if self._playing > _FRAME_TICKS // 2:
            self._playing -= _FRAME_TICKS
            return b""
        if not self._packets:
            if not self._short:
                self._playing = 0
                return None
            self._close()
        packet, ticks = self._packets.popleft()
        self._waiting -= ticks
        self._heard += ticks
        self._playing += ticks - _FRAME_TICKS
        return packet

    def flush(self) -> Flushed:
        """Drop what waits. What is said from now on is another utterance."""
        flushed = Flushed(self.heard, self.backlog)
        self._packets.clear()
        self._short.clear()
        self._short_ticks = self._waiting = self._heard = self._playing = 0
        return flushed

    @property
    def empty(self) -> bool:
        return not self._waiting

    @property
    def backlog(self) -> float:
        """Seconds that wait."""
        return self._waiting / opus.CLOCK

    @property
    def heard(self) -> float:
        """Seconds of the current utterance that have gone out."""
        return self._heard / opus.CLOCK
