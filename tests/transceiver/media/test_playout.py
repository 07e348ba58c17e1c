"""What waits to be heard: bounded, in frames, flushed with an account of it."""

from dataclasses import astuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transceiver.media import opus
from transceiver.media.playout import (
    MAX_PACKET,
    BacklogFull,
    Flushed,
    PacketPlayout,
    PcmPlayout,
)

FRAME = 960  # bytes of 20 ms at 24 kHz


def pcm(frames: float) -> bytes:
    return b"\1\0" * int(frames * 480)


def test_pcm_comes_out_in_frames_of_20_ms() -> None:
    playout = PcmPlayout(24000, 1.0)

    playout.say(pcm(2.5))

    assert [playout.take() for _ in range(4)] == [pcm(1), pcm(1), pcm(0.5) + bytes(480), None]


@given(st.lists(st.one_of(st.integers(0, 2000), st.none()), max_size=50))
def test_nothing_is_lost_or_changed(says: list[int | None]) -> None:
    playout = PcmPlayout(24000, 10.0)
    said = heard = b""

    for number, samples in enumerate(says):
        if samples is None:
            backlog = playout.backlog
            if frame := playout.take():
                heard += frame[: round(backlog * 24000) * 2]
        else:
            piece = bytes([number % 255 + 1, 0]) * samples
            playout.say(piece)
            said += piece
    while (backlog := playout.backlog) > 0:
        frame = playout.take()
        assert frame is not None
        assert len(frame) == FRAME
        heard += frame[: round(backlog * 24000) * 2]

    assert heard == said
    assert playout.heard == pytest.approx(len(said) / 48000)


def test_more_than_the_limit_is_refused_whole() -> None:
    playout = PcmPlayout(24000, 0.1)
    playout.say(pcm(5))

    with pytest.raises(BacklogFull):
        playout.say(b"\0\0")

    assert playout.backlog == pytest.approx(0.1)


def test_half_a_sample_is_refused() -> None:
    with pytest.raises(ValueError, match="3 bytes"):
        PcmPlayout(24000, 1.0).say(b"abc")


def test_a_flush_tells_what_was_heard_and_what_was_not() -> None:
    playout = PcmPlayout(24000, 1.0)
    playout.say(pcm(10))
    playout.take()
    playout.take()

    assert astuple(playout.flush()) == pytest.approx((0.04, 0.16))
    assert playout.take() is None
    assert playout.flush() == Flushed(0, 0)


def test_packets_come_out_as_they_went_in() -> None:
    playout = PacketPlayout(1.0)
    playout.say(opus.SILENCE, 960)
    playout.say(opus.SILENCE, 960)

    assert [playout.take() for _ in range(3)] == [opus.SILENCE, opus.SILENCE, None]
    assert playout.heard == pytest.approx(0.04)


@pytest.mark.parametrize(("frames", "pauses"), [(2, 1), (3, 2), (6, 5)])
def test_a_longer_packet_takes_as_many_ticks_as_it_lasts(frames: int, pauses: int) -> None:
    playout = PacketPlayout(1.0)
    packet = opus.merge([opus.SILENCE] * frames)
    playout.say(packet, 960 * frames)
    playout.say(packet, 960 * frames)

    assert [playout.take() for _ in range(2 * frames + 1)] == [
        *[packet, *[b""] * pauses],
        *[packet, *[b""] * pauses],
        None,
    ]


@pytest.mark.parametrize(("toc", "ticks"), [(b"\xf0", 480), (b"\xe8", 240), (b"\xe0", 120)])
def test_shorter_packets_come_out_together(toc: bytes, ticks: int) -> None:
    playout = PacketPlayout(1.0)

    for _ in range(2 * 960 // ticks):
        playout.say(toc + b"\xff\xfe", ticks)
    first, second, none = (playout.take() for _ in range(3))

    assert first is not None
    assert second is not None
    assert opus.duration(first) == opus.duration(second) == 960
    assert none is None


def test_a_short_packet_that_stays_alone_comes_out_alone() -> None:
    playout = PacketPlayout(1.0)

    playout.say(b"\xf0\xff\xfe", 480)

    assert playout.take() == b"\xf0\xff\xfe"
    assert playout.take() is None
    assert playout.empty


def test_packets_that_no_datagram_holds_are_refused() -> None:
    playout = PacketPlayout(1.0)

    playout.say(b"\x08".ljust(MAX_PACKET), 960)
    with pytest.raises(opus.OpusError, match="1201 bytes"):
        playout.say(b"\x08".ljust(MAX_PACKET + 1), 960)

    assert playout.backlog == 0.02


def test_short_packets_that_are_too_long_together_come_out_by_themselves() -> None:
    playout = PacketPlayout(1.0)
    half = b"\x00".ljust(MAX_PACKET // 2 + 1)

    playout.say(half, 480)
    playout.say(half, 480)

    assert [playout.take() for _ in range(3)] == [half, half, None]


def test_short_packets_that_cannot_share_one_come_out_in_order() -> None:
    playout = PacketPlayout(1.0)

    playout.say(b"\xf0\xff\xfe", 480)
    playout.say(b"\x08\xff\xfe", 960)

    taken = [playout.take() for _ in range(4)]

    assert [each for each in taken if each] == [b"\xf0\xff\xfe", b"\x08\xff\xfe"]


def test_a_packet_that_lasts_something_else_is_refused() -> None:
    with pytest.raises(opus.OpusError):
        PacketPlayout(1.0).say(opus.SILENCE, 480)


def test_packets_beyond_the_limit_are_refused() -> None:
    playout = PacketPlayout(0.04)
    playout.say(opus.SILENCE, 960)
    playout.say(opus.SILENCE, 960)

    with pytest.raises(BacklogFull):
        playout.say(opus.SILENCE, 960)


def test_a_flush_of_packets_tells_the_same() -> None:
    playout = PacketPlayout(1.0)
    for _ in range(10):
        playout.say(opus.SILENCE, 960)
    playout.take()

    assert astuple(playout.flush()) == pytest.approx((0.02, 0.18))
    assert playout.take() is None
