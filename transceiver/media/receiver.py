"""From a client's RTP to PCM in order: the jitter buffer of a server, which plays nothing.

A loudspeaker needs a frame every 20 ms, so a client's buffer delays all that a late one may still
be played. A voice server needs the frames in order, and soon. So the packet that is next in order
is decoded and delivered at once. Only behind a gap do packets wait, for as long as packets of this
client have lately been late; then the missing ones are recovered from the in-band FEC of their
successor, or concealed, and all that waited follows at once. No delay stays, and as nothing here
has a pace of its own, the two clocks cannot drift apart.

A client that sends nothing is a stall, in which nothing is made up; unless its last packet told
that it is silent from there on (DTX): then comfort noise goes on in real time, for a voice
detector needs to hear the silence.

Samples are counted as the client's clock does, without a gap: what was lost or was silence is
filled in, as long as that is no more than could have been heard in the time that has passed.
"""

import math
from collections.abc import Callable

from transceiver.media import opus, rtp
from transceiver.media.rtcp import ReportBlock

__all__ = ["AudioReceiver", "Deliver"]

Deliver = Callable[[bytes, int, bool], None]
"""(PCM or packet, index of its first sample, whether it is a guess)"""

_CLOCK = opus.CLOCK
_FRAME = _CLOCK // 50
_LEAST_WAIT = 0.010
_MOST_WAIT = 0.080
_JITTER_WAIT = 0.040  # at most, of what jitter alone makes a gap wait
_HALF_LIFE = 10.0  # s, of what was learnt about lateness
_MOST_WAITING = 40  # packets
_MISORDER = 500  # packets; whichever is further behind begins something new
_DROPOUT = 3000  # packets; likewise ahead (RFC 3550 appendix A.1)
_REMEMBERED = 128  # packets that were missed, to be told from duplicates when they come late
_GUESSED = 10 * _FRAME  # ticks of a gap; beyond that libopus's guess is silence anyway
_LEAST_FILL = 120  # ticks, Opus's shortest frame: clients' timestamps are not always exact
_FILLED = 5 * _CLOCK  # ticks; a longer pause is left out
_BUDGET = 10.0  # s of audio that a client may be ahead of the time
_BUDGET_RATE = 1.25  # s of audio a second, in the long run
_RETIRED = 1.0  # s of silence after which an SSRC that was left may come back
_ABANDONED = 30.0  # s of DTX without any packet


def _drop(_pcm: bytes, _at: int, _concealed: bool) -> None:
    pass


class AudioReceiver:
    """One incoming stream of Opus. All times are of one monotonic clock, in seconds.

    *rate*: of the PCM, one of `opus.RATES`. *deliver* gets (pcm, at, concealed): mono s16le, the
    index of its first sample, which is the end of what came before, and whether it is a guess. With
    *passthrough* it gets Opus packets in place of PCM, and b"" for one that was lost (concealed) or
    that the client had no need to send (not concealed). What *deliver* raises, `receive` and `poll`
    raise. Not to be called by two threads at once.

    Counters: packets `received`, and of these `late` for their turn, `reordered`, `duplicates` and
    `malformed`; packets that were ignored, as `malformed`, `foreign` (of another payload type, or a
    stray SSRC or number) or `excess` (far more than real time); frames `recovered` by FEC and
    `concealed`; `sources`: how often another stream has begun.
    """

    def __init__(
        self, *, payload_type: int, rate: int, passthrough: bool, deliver: Deliver
    ) -> None:
        if rate not in opus.RATES:
            raise ValueError(f"{rate} Hz is no rate of Opus")
        self.received = 0
        self.late = 0
        self.reordered = 0
        self.duplicates = 0
        self.malformed = 0
        self.foreign = 0
        self.excess = 0
        self.recovered = 0
        self.concealed = 0
        self.sources = 0
        self.ssrc: int | None = None
        self._payload_type = payload_type
        self._deliver = deliver
        self._decoder = None if passthrough else opus.Decoder(rate)
        self._step = _CLOCK // rate  # ticks a sample
        self._at = 0
        self._frame = _FRAME  # ticks of the last packet
        self._ahead = 0  # ticks of silence delivered beyond `_timestamp`; negative: yet to come
        self._arrival = 0.0
        self._budget = _BUDGET
        self._learnt = 0.0
        self._learnt_at = 0.0
        self._retired: int | None = None
        self._lost_before = 0
        # By sequence number, made to go on above 65535.
        self._waiting: dict[int, tuple[int, bytes, float]] = {}
        self._gap_since = 0.0
        self._deadline = 0.0
        self._silence_due = 0.0
        self._missed: dict[int, float] = {}
        self._begin(0, 0)

    def close(self) -> None:
        """Deliver nothing from now on, and let go of who was delivered to."""
        self._deliver = _drop

    # What a stream has of its own.

    def _begin(self, sequence: int, timestamp: int) -> None:
        """A stream begins with this packet. `at` goes on."""
        self._first = self._next = sequence
        self._timestamp = timestamp  # of what is next
        self._dtx = False
        self._missed.clear()
        self._suspect: tuple[int, int, bytes] | None = None
        self._transit = float("-inf")
        self._jitter = 0.0  # ticks
        self._received_before = self.received
        self._reported = 0, 0  # packets expected, and lost, as of the last report
        self._sender_report: tuple[int, float] | None = None

    def _begin_anew(self, sequence: int, timestamp: int) -> None:
        self._lost_before += self._lost()
        self._begin(sequence, timestamp)
        self.sources += 1
        if self._decoder is not None:
            self._decoder.reset()

    # A packet comes.

    def receive(self, packet: bytes, now: float) -> None:
        """One RTP packet, decrypted. Whatever it is, it is handled or counted."""
        try:
            payload_type, _, sequence, timestamp, ssrc, payload = rtp.parse(packet)
        except rtp.RtpError:
            self.malformed += 1
            return
        if payload_type != self._payload_type:
            self.foreign += 1
            return
        if ssrc != self.ssrc and not self._turn_to(ssrc, sequence, timestamp, now):
            self.foreign += 1
            return
        budget = self._budget + (now - self._arrival) * _BUDGET_RATE
        self._budget = budget if budget < _BUDGET else _BUDGET
        self._arrival = now
        if budget < 0:
            self.excess += 1
            return
        self.received += 1

        transit = now * _CLOCK - timestamp  # RFC 3550 appendix A.8
        change = abs(transit - self._transit)
        self._transit = transit
        if change < _BUDGET * _CLOCK:  # no wrap, and no restart
            self._jitter += (change - self._jitter) / 16

        ahead = (sequence - self._next) & 0xFFFF
        if ahead == 0:
            if self._waiting:
                self.reordered += 1
                self._learn(now - self._gap_since, now)
                self._take(timestamp, payload, now)
                self._follow(now)
            else:
                self._take(timestamp, payload, now)
        elif ahead <= _DROPOUT:
            self._hold(self._next + ahead, timestamp, payload, now)
        elif ahead >= 0x10000 - _MISORDER:
            self._behind(self._next + ahead - 0x10000, now)
        else:
            self._far(sequence, timestamp, payload, now)

    def _turn_to(self, ssrc: int, sequence: int, timestamp: int, now: float) -> bool:
        """Whether another SSRC than the last packet's is to be heard from now on."""
        if self.ssrc is None:
            self._arrival = now
        elif ssrc == self._retired and now - self._arrival < _RETIRED:
            return False
        self._release(now)
        self._retired, self.ssrc = self.ssrc, ssrc
        self._begin_anew(sequence, timestamp)
        return True

    def _take(self, timestamp: int, payload: bytes, now: float) -> None:
        """The packet that is next in order."""
        self._next += 1
        size = len(payload)
        if size == 0:  # padding alone: no audio, no time
            return
        apart = (timestamp - self._timestamp) & 0xFFFFFFFF
        if apart:
            self._pause(apart)
        decoder = self._decoder
        try:
            if decoder is None:
                pcm, ticks = payload, opus.duration(payload)
                samples = ticks // self._step
            else:
                pcm = decoder.decode(payload)
                samples = len(pcm) >> 1
                ticks = samples * self._step
        except opus.OpusError:
            self.malformed += 1
            self._guess(self._frame, 0)
            self._timestamp = (timestamp + self._frame) & 0xFFFFFFFF
            return
        self._frame = ticks
        self._timestamp = (timestamp + ticks) & 0xFFFFFFFF
        self._budget -= ticks / _CLOCK
        if size <= 2:  # opus.is_dtx
            self._dtx = True
            self._silence_due = now + (ticks + self._ahead) / _CLOCK + self._wait(now)
        elif self._dtx:
            # After a pause it may be a refresh only, whose closing packet can get lost: silence
            # goes on, but not so soon that it could get into what is said.
            self._dtx = apart != 0
            self._silence_due = now + (4 * ticks + self._ahead) / _CLOCK + self._wait(now)
        at = self._at
        self._at = at + samples
        self._deliver(pcm, at, False)

    def _hold(self, number: int, timestamp: int, payload: bytes, now: float) -> None:
        """A packet behind a gap."""
        waiting = self._waiting
        if number in waiting:
            self.duplicates += 1
            return
        if not waiting:
            self._gap_since = now
            self._deadline = now + self._wait(now)
        elif number < max(waiting):
            self.reordered += 1
        waiting[number] = timestamp, payload, now
        most = min(_MOST_WAITING, 1 + int(_MOST_WAIT * _CLOCK) // self._frame)
        while waiting and (now >= self._deadline or len(waiting) > most):
            self._give_up(now)

    def _behind(self, number: int, now: float) -> None:
        """A packet whose turn is over."""
        since = self._missed.pop(number, None)
        if since is not None:
            self.late += 1
            self._learn(now - since, now)
        elif number < self._first:
            self.late += 1
        else:
            self.duplicates += 1

    def _far(self, sequence: int, timestamp: int, payload: bytes, now: float) -> None:
        """A packet that fits nowhere: if its successor comes too, the client has begun anew
        (RFC 3550 appendix A.1)."""
        self.received -= 1
        suspect, self._suspect = self._suspect, (sequence, timestamp, payload)
        if suspect is None or (suspect[0] + 1) & 0xFFFF != sequence:
            self.foreign += 1
            return
        self._release(now)
        self._begin_anew(suspect[0], suspect[1])
        self.foreign -= 1
        self.received += 2
        self._take(suspect[1], suspect[2], now)
        self._take(timestamp, payload, now)

    # Time passes.

    def poll(self, now: float) -> None:
        """What is due by time alone: the end of a wait, and comfort noise in DTX."""
        while self._waiting and now >= self._deadline:
            self._give_up(now)
        if self._dtx and now - self._arrival > _ABANDONED:
            self._dtx = False
        while self._dtx and not self._waiting and now >= self._silence_due:
            self._silence_due += _FRAME / _CLOCK
            self._ahead += _FRAME
            self._quiet(_FRAME)

    def next_deadline(self) -> float | None:
        """When `poll` has something to do, unless a packet comes before."""
        if self._waiting:
            return self._deadline
        return self._silence_due if self._dtx else None

    # Gaps.

    def _wait(self, now: float) -> float:
        """How long a gap keeps what is behind it: s."""
        learnt = self._learnt * math.exp2((self._learnt_at - now) / _HALF_LIFE)
        jitter = min(_JITTER_WAIT, 1.5 * self._jitter / _CLOCK)
        return max(_LEAST_WAIT, learnt, jitter)

    def _learn(self, lateness: float, now: float) -> None:
        """A packet came *lateness* seconds after one that is behind it."""
        if lateness > 2 * _MOST_WAIT:
            return  # to wait for such would harm more than it helps
        wanted = min(_MOST_WAIT, 1.25 * lateness + 0.002)
        if wanted > self._wait(now):
            self._learnt, self._learnt_at = wanted, now

    def _give_up(self, now: float) -> None:
        """Make up for what is missing in the first gap; what waited behind it follows."""
        number = min(self._waiting)
        missing = number - self._next
        missed = self._missed
        for each in range(max(self._next, number - _REMEMBERED), number):
            missed[each] = self._gap_since
        while len(missed) > _REMEMBERED:
            del missed[next(iter(missed))]
        timestamp, payload, _ = self._waiting[number]
        self._make_up(missing, timestamp, payload)
        self._next = number
        self._follow(now)

    def _follow(self, now: float) -> None:
        """Deliver what waited and is in order now."""
        waiting = self._waiting
        while held := waiting.pop(self._next, None):
            self._take(held[0], held[1], now)
        if waiting:
            self._gap_since = min(arrived for _, _, arrived in waiting.values())
            self._deadline = self._gap_since + self._wait(now)

    def _release(self, now: float) -> None:
        while self._waiting:
            self._give_up(now)

    def _make_up(self, missing: int, timestamp: int, payload: bytes) -> None:
        """Fill the time up to the packet with this *timestamp* and *payload*, of which *missing*
        packets should have told."""
        apart = self._to_fill((timestamp - self._timestamp) & 0xFFFFFFFF)
        self._timestamp = timestamp
        if not apart:
            return
        frame = min(self._frame, apart // missing)
        if frame < 120:
            missing = 0
        silence = apart - missing * frame
        # In DTX, it is speech's first packets that are missing; else those before the silence.
        if silence and self._dtx:
            self._quiet(silence)
        adjoining = not silence or self._dtx
        for number in range(missing):
            last = number == missing - 1
            if not (last and adjoining and self._recover(payload, frame)):
                self._guess(frame, number * frame)
        if silence and not self._dtx:
            self._quiet(silence)

    def _pause(self, apart: int) -> None:
        """The packet that is next has a timestamp that is *apart* from the expected one."""
        fill = self._to_fill(apart)
        if fill:
            self._quiet(fill)

    def _to_fill(self, apart: int) -> int:
        """How many ticks of the time that has passed in the client are to be delivered still.

        None, if they go back, or are so many that this is a jump; or not yet, if they are too few
        to be worth it.
        """
        if apart >= 0x80000000:
            return 0
        fill = apart - self._ahead
        if fill < _LEAST_FILL:
            self._ahead = -fill
            return 0
        self._ahead = 0
        if fill > _FILLED or fill > self._budget * _CLOCK:
            return 0
        self._budget -= fill / _CLOCK
        return fill

    def _recover(self, payload: bytes, ticks: int) -> bool:
        """Whether the packet before the one with *payload* could be had from its FEC."""
        if self._decoder is None or ticks % 120 or not opus.has_fec(payload):
            return False
        try:
            pcm = self._decoder.decode_fec(payload, ticks // self._step)
        except opus.OpusError:
            return False
        self.recovered += 1
        self._emit(pcm, ticks, False)
        return True

    def _guess(self, ticks: int, before: int) -> None:
        """Deliver something for *ticks* that are lost, after *before* that were guessed too."""
        self.concealed += 1
        self._emit(self._made_up(ticks, before < _GUESSED), ticks, True)

    def _quiet(self, ticks: int) -> None:
        """Deliver *ticks* of silence, or of noise if the client does DTX."""
        for start in range(0, ticks, _FRAME):
            each = min(_FRAME, ticks - start)
            self._emit(self._made_up(each, self._dtx), each, False)

    def _made_up(self, ticks: int, by_libopus: bool) -> bytes:
        if self._decoder is None:
            return b""
        if by_libopus and ticks % 120 == 0:
            return self._decoder.conceal(ticks // self._step)
        return bytes(2 * (ticks // self._step))

    def _emit(self, pcm: bytes, ticks: int, concealed: bool) -> None:
        at = self._at
        self._at = at + ticks // self._step
        self._deliver(pcm, at, concealed)

    # What RTCP tells the client.

    @property
    def jitter(self) -> float:
        """Interarrival jitter (RFC 3550 section 6.4.1), seconds."""
        return self._jitter / _CLOCK

    @property
    def lost(self) -> int:
        """Packets that have not come, or not yet, of all streams; a duplicate makes up for one."""
        return self._lost_before + self._lost()

    def sender_reported(self, ntp: int, now: float) -> None:
        """A sender report of this SSRC came; *ntp*: its time stamp, 64 bits."""
        self._sender_report = ntp >> 16 & 0xFFFFFFFF, now

    def report_block(self, now: float) -> ReportBlock | None:
        """Of the stream that is heard, since the last report (RFC 3550 appendix A.3); None if there
        is none yet."""
        if self.ssrc is None:
            return None
        expected, lost = self._expected(), self._lost()
        expected_lately = expected - self._reported[0]
        lost_lately = lost - self._reported[1]
        self._reported = expected, lost
        fraction = 0.0
        if expected_lately > 0 and lost_lately > 0:
            fraction = min(1.0, lost_lately / expected_lately)
        last, delay = 0, 0.0
        if self._sender_report is not None:
            # What is reported is of a tick's due time, and a report may have come after that.
            last, delay = self._sender_report[0], max(0.0, now - self._sender_report[1])
        return ReportBlock(
            ssrc=self.ssrc,
            fraction_lost=fraction,
            lost=lost,
            highest=(self._first + expected - 1) & 0xFFFFFFFF,
            jitter=int(self._jitter),
            last_report=last,
            delay=delay,
        )

    def _expected(self) -> int:
        return max(self._waiting, default=self._next - 1) - self._first + 1

    def _lost(self) -> int:
        return self._expected() - (self.received - self._received_before)
