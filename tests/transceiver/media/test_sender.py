"""What a client gets, tick by tick."""

from collections.abc import Sequence
from dataclasses import astuple

import pytest

from tests.transceiver.media.speech import frames, level
from transceiver.media import opus, rtp
from transceiver.media.playout import BacklogFull
from transceiver.media.sender import AudioSender

FRAME = 0.02


class Ticking:
    """A sender, ticked in time, and what it sent: (tick, packet)."""

    def __init__(
        self,
        *,
        dtx: bool = False,
        passthrough: bool = False,
        fec: bool = False,
        limit: float = 60.0,
        timestamp: int = 0,
        sequence: int = 0,
    ) -> None:
        self.sender = AudioSender(
            ssrc=9,
            payload_type=111,
            rate=24000,
            passthrough=passthrough,
            fec=fec,
            dtx=dtx,
            limit=limit,
            timestamp=timestamp,
            sequence=sequence,
        )
        self.now = 50.0
        self.ticks = 0
        self.sent: list[tuple[int, rtp.Parsed]] = []

    def tick(self, times: int = 1, *, listening: bool = True) -> None:
        for _ in range(times):
            packet = self.sender.tick(self.now, listening=listening)
            if packet is not None:
                self.sent.append((self.ticks, rtp.parse(packet)))
            self.ticks += 1
            self.now += FRAME

    def skip(self, times: int) -> None:
        """Ticks that do not come."""
        self.ticks += times
        self.now += times * FRAME

    @property
    def payloads(self) -> list[bytes]:
        return [packet[5] for _, packet in self.sent]

    @property
    def stamps(self) -> list[int]:
        return [packet[3] for _, packet in self.sent]

    @property
    def markers(self) -> list[int]:
        """Ticks whose packets carry the marker."""
        return [tick for tick, packet in self.sent if packet[1]]


def say(ticking: Ticking, spoken: Sequence[bytes]) -> None:
    for frame in spoken:
        ticking.sender.say(frame)


def test_speech_goes_out_frame_by_frame() -> None:
    ticking = Ticking()
    say(ticking, frames(24000)[:50])

    ticking.tick(50)

    decoder = opus.Decoder(24000)
    heard = b"".join(map(decoder.decode, ticking.payloads))
    assert level(heard) == pytest.approx(level(b"".join(frames(24000)[:50])), rel=0.1)
    assert [packet[2] for _, packet in ticking.sent] == list(range(50))
    assert ticking.stamps == [960 * number for number in range(50)]
    assert {packet[0] for _, packet in ticking.sent} == {111}
    assert {packet[4] for _, packet in ticking.sent} == {9}
    assert (ticking.sender.packets, ticking.sender.octets) == (
        50,
        sum(map(len, ticking.payloads)),
    )


def test_numbers_wrap() -> None:
    ticking = Ticking(sequence=0xFFFF, timestamp=0xFFFFFFFF)

    ticking.tick(2)

    assert [packet[2] for _, packet in ticking.sent] == [0xFFFF, 0]
    assert ticking.stamps == [0xFFFFFFFF, 959]


def test_the_end_of_an_utterance_comes_out_whole() -> None:
    ticking = Ticking(dtx=True)
    tone = [(b"\x00\x40" * 24 + b"\x00\xc0" * 24) * 10] * 10  # 500 Hz

    say(ticking, tone)
    ticking.tick(14)

    decoder = opus.Decoder(24000)
    heard = b"".join(map(decoder.decode, ticking.payloads))
    assert level(heard[10 * 960 : 10 * 960 + 240]) > 2000  # Opus is 6.5 ms behind
    assert level(heard[12 * 960 :]) < 100  # of 16384


# While nothing is said.


def test_without_dtx_silence_is_sent_all_the_time_and_encoded_only_at_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ticking = Ticking()
    say(ticking, frames(24000)[:10])
    ticking.tick(13)
    assert ticking.sender._encoder is not None
    monkeypatch.setattr(ticking.sender._encoder, "encode", None)

    ticking.tick(100)

    assert [tick for tick, _ in ticking.sent] == list(range(113))
    assert len(set(ticking.payloads[13:])) == 1
    decoder = opus.Decoder(24000)
    heard = [decoder.decode(payload) for payload in ticking.payloads]
    assert level(b"".join(heard[14:])) < 10  # of 32768
    assert ticking.markers == [0]


def test_with_dtx_the_client_is_told_of_the_silence_and_reminded() -> None:
    ticking = Ticking(dtx=True)
    say(ticking, frames(24000)[:10])

    ticking.tick(100)

    assert [tick for tick, _ in ticking.sent] == [*range(13), 13, 33, 53, 73, 93]
    assert all(map(opus.is_dtx, ticking.payloads[13:]))
    assert ticking.stamps[13:] == [960 * tick for tick in (13, 33, 53, 73, 93)]
    assert ticking.markers == [0]


def test_before_anything_is_said_the_client_gets_a_packet() -> None:
    ticking = Ticking(dtx=True)

    ticking.tick(30)

    assert [tick for tick, _ in ticking.sent] == [0, 20]
    assert ticking.payloads[0] == opus.SILENCE


def test_a_talkspurt_begins_with_a_marker() -> None:
    ticking = Ticking(dtx=True)
    for _ in range(3):
        say(ticking, frames(24000)[10:20])
        ticking.tick(30)

    assert ticking.markers == [0, 30, 60]
    assert ticking.stamps == [960 * tick for tick, _ in ticking.sent]


def test_silence_that_is_said_is_not_sent_either() -> None:
    ticking = Ticking(dtx=True)
    say(ticking, [bytes(960)] * 100)

    ticking.tick(100)

    assert len(ticking.sent) < 30
    assert not any(
        opus.is_dtx(one) and opus.is_dtx(other)
        for one, other in zip(ticking.payloads, ticking.payloads[1:], strict=False)
    )
    assert ticking.stamps == [960 * tick for tick, _ in ticking.sent]


# Time.


@pytest.mark.parametrize("missed", [4, 50, 5000])
def test_timestamps_follow_the_time_when_ticks_are_left_out(missed: int) -> None:
    ticking = Ticking()
    ticking.tick(10)

    ticking.skip(missed)
    ticking.tick(10)

    assert ticking.stamps == [960 * tick for tick, _ in ticking.sent]
    assert ticking.markers == [0, 10 + missed]


def test_timestamps_are_even_when_ticks_are_not() -> None:
    ticking = Ticking()
    for tick in range(50):
        ticking.now = 50 + FRAME * tick + (0.035 if tick % 3 else 0)
        ticking.tick()

    assert ticking.stamps == [960 * tick for tick in range(50)]


def test_a_report_is_stamped_by_the_same_clock() -> None:
    ticking = Ticking(timestamp=1000)
    assert ticking.sender.timestamp(ticking.now) == 1000

    ticking.tick(50)

    assert ticking.sender.timestamp(51.0) == 1000 + 48000


# Barge-in.


def test_after_a_flush_nothing_of_it_goes_out() -> None:
    ticking = Ticking()
    say(ticking, [frames(24000)[20]] * 100)
    ticking.tick(10)

    flushed = ticking.sender.flush()
    ticking.tick(5)

    assert astuple(flushed) == pytest.approx((0.2, 1.8))
    decoder = opus.Decoder(24000)
    heard = [level(decoder.decode(payload)) for payload in ticking.payloads]
    assert min(heard[3:10]) > 100
    assert max(heard[11:]) < 30  # in the next frame there is what the encoder held back: 6.5 ms
    assert ticking.sender.backlog == 0


def test_what_is_said_after_half_a_second_is_another_utterance() -> None:
    ticking = Ticking()
    say(ticking, frames(24000)[:10])
    ticking.tick(10 + 24)
    assert ticking.sender.heard == pytest.approx(0.2)

    ticking.tick(1)
    say(ticking, frames(24000)[:5])
    ticking.tick(2)

    assert astuple(ticking.sender.flush()) == pytest.approx((0.04, 0.06))


def test_a_short_gap_does_not_end_an_utterance() -> None:
    ticking = Ticking()
    for _ in range(3):
        say(ticking, frames(24000)[:5])
        ticking.tick(20)

    assert ticking.sender.heard == pytest.approx(0.3)


def test_the_backend_hears_when_all_has_gone_out_and_may_go_on_without_a_gap() -> None:
    ticking = Ticking(dtx=True)
    drained: list[int] = []

    def go_on() -> None:
        drained.append(ticking.ticks)
        if len(drained) < 3:
            say(ticking, frames(24000)[10:15])

    ticking.sender.on_drained = go_on
    say(ticking, frames(24000)[10:15])
    ticking.tick(30)

    assert drained == [4, 9, 14]
    assert ticking.markers == [0]


def test_a_flush_is_no_drain() -> None:
    ticking = Ticking()
    drained: list[None] = []
    ticking.sender.on_drained = lambda: drained.append(None)
    say(ticking, frames(24000)[:5])
    ticking.tick(2)

    ticking.sender.flush()
    ticking.tick(10)

    assert drained == []


# Limits, and settings.


def test_for_a_client_that_does_not_listen_time_passes_and_nothing_is_sent() -> None:
    ticking = Ticking()
    spoken = frames(24000)[:50]
    drained: list[int] = []
    ticking.sender.on_drained = lambda: drained.append(ticking.ticks)
    for frame in spoken:
        ticking.sender.say(frame)

    ticking.tick(20, listening=False)
    assert ticking.sender.heard == pytest.approx(0.4)
    ticking.tick(10)
    ticking.tick(40, listening=False)

    assert [tick for tick, _ in ticking.sent] == list(range(20, 30))
    assert ticking.markers == [20]
    assert ticking.stamps == [960 * tick for tick in range(20, 30)]
    assert [packet[2] for _, packet in ticking.sent] == list(range(10))
    assert ticking.sender.packets == 10
    assert drained == [49]


def test_a_client_that_does_not_listen_costs_no_encoding(monkeypatch: pytest.MonkeyPatch) -> None:
    ticking = Ticking()
    assert ticking.sender._encoder is not None
    monkeypatch.setattr(ticking.sender._encoder, "encode", None)  # to be called is to fail
    ticking.sender.say(frames(24000)[0])

    ticking.tick(100, listening=False)

    assert ticking.sender.heard == 0  # the utterance is over


def test_the_backlog_is_bounded() -> None:
    ticking = Ticking(limit=1.0)
    say(ticking, [bytes(960)] * 50)

    with pytest.raises(BacklogFull):
        ticking.sender.say(bytes(960))
    assert ticking.sender.backlog == 1.0


def test_reported_loss_turns_fec_on_if_it_is_negotiated() -> None:
    with_fec = {}
    for fec in (True, False):
        ticking = Ticking(fec=fec)
        ticking.sender.set_loss(0.2)
        say(ticking, frames(24000)[:100])
        ticking.tick(100)
        with_fec[fec] = sum(map(opus.has_fec, ticking.payloads))

    assert with_fec[True] > 20
    assert with_fec[False] == 0


# Packets passed through.


def test_packets_are_sent_as_they_are() -> None:
    ticking = Ticking(passthrough=True, dtx=True)
    said = [bytes([0xF8, number]) + b"\xfe" for number in range(5)]
    for payload in said:
        ticking.sender.say_packet(payload, 960)

    ticking.tick(10)

    assert ticking.payloads[:5] == said
    assert ticking.payloads[5:] == [b"\xf8"]
    assert ticking.stamps == [960 * number for number in range(6)]


def test_packets_of_60_ms_are_sent_every_third_tick() -> None:
    ticking = Ticking(passthrough=True)
    long = opus.merge([opus.SILENCE] * 3)
    for _ in range(3):
        ticking.sender.say_packet(long, 2880)

    ticking.tick(9)

    assert [tick for tick, _ in ticking.sent] == [0, 3, 6]
    assert ticking.stamps == [0, 2880, 5760]
    assert ticking.markers == [0]


def test_each_kind_of_sender_takes_its_own() -> None:
    with pytest.raises(TypeError):
        Ticking(passthrough=True).sender.say(bytes(960))
    with pytest.raises(TypeError):
        Ticking().sender.say_packet(opus.SILENCE, 960)


def test_bytes_that_are_no_packet_are_refused() -> None:
    with pytest.raises(opus.OpusError):
        Ticking(passthrough=True).sender.say_packet(b"\x03", 960)
