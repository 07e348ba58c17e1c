"""From what a backend says to RTP packets, one every 20 ms at most.

While nothing is said, nothing is encoded: after an utterance the encoder gets some silence, so that
what it holds back comes out, and then rests. With DTX the client is told of the silence, and told
again now and then; without, the last packet of silence is sent again and again. Timestamps follow
the time, whether something is sent or not (RFC 3550 section 5.1, RFC 7587 section 4.1).
"""

from collections.abc import Callable

from transceiver.media import opus, rtp
from transceiver.media.playout import FRAME, Flushed, PacketPlayout, PcmPlayout

__all__ = ["BITRATE", "COMPLEXITY", "AudioSender"]

BITRATE = 64000
"""Bit/s, unless the client says that it wants less."""
COMPLEXITY = 10

_FRAME_TICKS = opus.CLOCK // 50
_TAIL = 3  # frames of silence that are encoded after the last one said
_COMFORT = 20  # frames from one comfort packet to the next, as libopus's own DTX has it
_UTTERANCE = 25  # frames of silence, after which what is said is another utterance
_CATCH_UP = 3  # frames that the time may be ahead of the ticks before it counts as a pause


class AudioSender:
    """One outgoing stream of Opus, mono.

    `say` takes PCM at *rate*, one of `opus.RATES`; with *passthrough* there is no encoder, and
    `say_packet` takes packets. *fec* and *dtx*: whether the client has negotiated them; *bitrate*
    in bit/s; *complexity* 0 to 10; *limit*: seconds that may wait. *sequence* and *timestamp* are
    the first packet's, to be chosen at random (RFC 3550 section 5.1). Not to be called by two
    threads at once.

    Counters for sender reports: `packets`, and `octets` of payload. `on_drained` is called, within
    `tick`, when the last that was said has been taken to be sent; not after `flush`.
    """

    def __init__(
        self,
        *,
        ssrc: int,
        payload_type: int,
        rate: int,
        passthrough: bool,
        fec: bool,
        dtx: bool,
        bitrate: int = BITRATE,
        complexity: int = COMPLEXITY,
        limit: float = 60.0,
        sequence: int = 0,
        timestamp: int = 0,
    ) -> None:
        self.ssrc = ssrc
        self.packets = 0
        self.octets = 0
        self.on_drained: Callable[[], None] | None = None
        self._payload_type = payload_type
        self._dtx = dtx
        self._fec = fec
        self._encoder: opus.Encoder | None = None
        if passthrough:
            self._queue: PcmPlayout | PacketPlayout = PacketPlayout(limit)
        else:
            self._queue = PcmPlayout(rate, limit)
            self._encoder = opus.Encoder(
                rate, bitrate=bitrate, complexity=complexity, fec=fec, dtx=dtx
            )
        self._nothing = bytes(rate // 50 * 2)
        self._silence = opus.SILENCE  # 20 ms of it, that suit what was sent last
        self._sequence = sequence
        self._origin = timestamp
        self._started: float | None = None
        self._ticks = 0  # frames since then
        self._idle = _UTTERANCE  # frames since something was said
        self._comforted = _COMFORT  # frames since the client was told of silence
        self._paused = True  # nothing was sent in the last tick: a talkspurt begins with the next
        self._hushed = False  # the encoder has told of silence

    # What backends do.

    def say(self, pcm: bytes) -> None:
        """Mono s16le, any number of samples, to be heard after what waits already. Raises
        BacklogFull, and TypeError if packets are passed through."""
        if not isinstance(self._queue, PcmPlayout):
            raise TypeError("packets are passed through here: say_packet")
        self._queue.say(pcm)

    def say_packet(self, packet: bytes, samples48k: int) -> None:
        """A packet of Opus that lasts *samples48k*. Raises BacklogFull, OpusError for one that is
        none or lasts something else, and TypeError if PCM is wanted."""
        if not isinstance(self._queue, PacketPlayout):
            raise TypeError("PCM is encoded here: say")
        self._queue.say(packet, samples48k)

    def flush(self) -> Flushed:
        """Drop what waits: the next tick sends nothing of it. What is said from now on is another
        utterance."""
        return self._queue.flush()

    @property
    def backlog(self) -> float:
        """Seconds that wait to be sent."""
        return self._queue.backlog

    @property
    def heard(self) -> float:
        """Seconds of the current utterance that have been sent. An utterance ends with `flush`, and
        with half a second in which nothing is said."""
        return self._queue.heard

    # What the session does.

    def set_loss(self, fraction: float) -> None:
        """What part of the packets gets lost, as the client reports, 0 to 1."""
        if self._fec and self._encoder is not None:
            self._encoder.expect_loss(fraction)

    def timestamp(self, now: float) -> int:
        """The RTP timestamp of an instant, for sender reports."""
        elapsed = 0.0 if self._started is None else now - self._started
        return (self._origin + round(elapsed * opus.CLOCK)) & 0xFFFFFFFF

    def tick(self, now: float, *, listening: bool = True) -> bytes | None:
        """To be called every 20 ms: the RTP packet that is to be sent, or None.

        *now*: when the tick was due, or is. If ticks have been left out, time has passed all the
        same. While the client is not *listening*, what is said takes its time, and nothing is
        encoded.
        """
        self._advance(now)
        taken = self._queue.take()
        if not listening:
            self._pass_over(taken)
            return None
        if taken is None:
            return self._rest()
        if not taken:  # a packet of more than 20 ms, that is not over
            return None
        self._idle = 0
        self._comforted = _COMFORT
        self._tell_drained()
        return self._packet(taken) if self._encoder is None else self._encoded(taken)

    def _advance(self, now: float) -> None:
        if self._started is None:
            self._started = now
        else:
            self._ticks += 1
            late = (now - self._started) / FRAME - self._ticks
            if late > _CATCH_UP:
                self._ticks += round(late)
                self._paused = True

    def _tell_drained(self) -> None:
        if self._queue.empty and self.on_drained is not None:
            self.on_drained()

    def _pass_over(self, taken: bytes | None) -> None:
        """Nobody listens: when somebody does again, a talkspurt begins, and with all of it."""
        self._paused = True
        self._comforted = _COMFORT
        if taken is None:
            self._idle += 1
            if self._idle == _UTTERANCE:
                self._queue.flush()
        elif taken:
            self._idle = 0
            self._tell_drained()

    def _rest(self) -> bytes | None:
        """Nothing is said in this tick."""
        self._idle += 1
        if self._idle == _UTTERANCE:
            self._queue.flush()
        if self._idle <= _TAIL and self._encoder is not None:
            return self._encoded(self._nothing)
        if not self._dtx:
            return self._packet(self._silence)
        self._comforted += 1
        if self._comforted < _COMFORT:
            self._paused = True
            return None
        self._comforted = 0
        self._paused = False  # it begins no talkspurt
        # A header alone, of the kind that was sent last; at the very first, a whole packet.
        packet = self._packet(self._silence[:1] if self.packets else self._silence)
        self._paused = True
        return packet

    def _encoded(self, frame: bytes) -> bytes | None:
        """The packet of one frame; None if the encoder says that it is silence, and has said so."""
        assert self._encoder is not None
        payload = self._encoder.encode(frame)
        if len(payload) > 2:  # not opus.is_dtx
            self._hushed = False
            if frame is self._nothing:
                self._silence = payload
        elif self._hushed:
            self._paused = True
            return None
        else:
            self._hushed = True
        return self._packet(payload)

    def _packet(self, payload: bytes) -> bytes:
        second = self._payload_type | 0x80 if self._paused else self._payload_type
        self._paused = False
        sequence = self._sequence
        self._sequence = (sequence + 1) & 0xFFFF
        self.packets += 1
        self.octets += len(payload)
        timestamp = (self._origin + self._ticks * _FRAME_TICKS) & 0xFFFFFFFF
        return rtp.HEADER.pack(0x80, second, sequence, timestamp, self.ssrc) + payload
