"""What a receiver delivers, and when, for scripted packets."""

import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.transceiver.media.speech import level
from tests.transceiver.media.stream import FRAME, SSRC, Heard, packet, payloads
from transceiver.media import opus, rtcp, rtp
from transceiver.media.receiver import AudioReceiver

DTX = b"\x08"  # SILK, 20 ms, a header alone


def numbers(heard: Heard, *, fec: bool = False) -> list[int | None]:
    """Which packets were delivered, for a passthrough receiver; None: a lost one."""
    spoken = payloads(fec=fec)
    return [spoken.index(each.pcm) if each.pcm else None for each in heard.delivered]


# In order.


def test_what_is_next_is_delivered_at_once() -> None:
    heard = Heard()

    for number in range(50):
        heard.get(packet(number), FRAME)
        assert heard.delivered[-1].time == heard.now

    assert len(heard.delivered) == 50
    assert heard.end == 50 * 480
    assert heard.receiver.next_deadline() is None


def test_it_is_what_a_decoder_makes_of_it() -> None:
    heard, decoder = Heard(), opus.Decoder(24000)

    for number in range(50):
        heard.get(packet(number), FRAME)

    assert [each.pcm for each in heard.delivered] == [
        decoder.decode(payload) for payload in payloads()[:50]
    ]


@pytest.mark.parametrize("first", [0, 65530, 40000])
def test_sequence_numbers_and_timestamps_wrap(first: int) -> None:
    heard = Heard()

    for number in range(50):
        stamp = 0xFFFFFFFF - 5 * 960 + number * 960
        heard.get(packet(first + number, payload=payloads()[number], timestamp=stamp), FRAME)

    assert heard.end == 50 * 480
    assert not any(heard.guessed)
    assert heard.receiver.lost == 0


@pytest.mark.parametrize("rate", opus.RATES)
def test_any_rate_of_opus_can_be_had(rate: int) -> None:
    heard = Heard(rate)

    for number in range(10):
        heard.get(packet(number), FRAME)

    assert heard.end == 10 * rate // 50


def test_another_rate_is_refused() -> None:
    with pytest.raises(ValueError, match="44100"):
        Heard(44100)


# One is lost.


def test_a_lost_packet_costs_its_own_frame_and_leaves_no_delay() -> None:
    heard = Heard()

    for number in [*range(10), *range(11, 30)]:
        heard.get(packet(number), FRAME if number != 11 else 2 * FRAME)
    heard.wait(FRAME)

    assert heard.end == 30 * 480
    assert heard.guessed == [number == 10 for number in range(30)]
    # Of those behind the gap only the first waits, and not until the next one comes.
    assert heard.delivered[11].time - heard.delivered[9].time < 3 * FRAME
    assert [each.time for each in heard.delivered[12:]] == pytest.approx(
        [100 + (number + 1) * FRAME for number in range(12, 30)]
    )
    assert (heard.receiver.lost, heard.receiver.concealed) == (1, 1)


def test_a_lost_packet_is_recovered_from_the_next_ones_fec() -> None:
    heard, whole = Heard(), opus.Decoder(24000)
    spoken = payloads(fec=True)
    wanted = [whole.decode(payload) for payload in spoken[:60]]
    loud = max(range(10, 50), key=lambda number: level(wanted[number]))

    for number in range(60):
        if number != loud:
            heard.get(packet(number, fec=True), FRAME)
    heard.wait(1)

    assert not any(heard.guessed)
    assert heard.end == 60 * 480
    assert level(heard.delivered[loud].pcm) == pytest.approx(level(wanted[loud]), rel=0.5)
    assert (heard.receiver.recovered, heard.receiver.concealed) == (1, 0)


def test_of_several_lost_the_last_is_recovered_and_the_others_are_concealed() -> None:
    heard = Heard()

    for number in [*range(40), *range(44, 60)]:
        heard.get(packet(number, fec=True), FRAME)
    heard.wait(1)

    assert heard.end == 60 * 480
    assert [number for number, each in enumerate(heard.guessed) if each] == [40, 41, 42]
    assert heard.receiver.recovered == 1


@pytest.mark.parametrize("count", [2, 5, 9, 25, 100])
def test_a_burst_of_losses_costs_its_own_frames_and_leaves_no_delay(count: int) -> None:
    heard = Heard()
    lost = range(50, 50 + count)

    for number in range(250):
        if number in lost:
            heard.wait(FRAME)
        else:
            heard.get(packet(number), FRAME)

    assert heard.end == 250 * 480
    assert [number for number, each in enumerate(heard.guessed) if each] == list(lost)
    behind = heard.delivered[lost.stop + 2 :]
    assert [each.time for each in behind] == pytest.approx(
        [100 + (number + 1) * FRAME for number in range(lost.stop + 2, 250)]
    )


def test_what_is_made_up_in_a_long_burst_fades_to_silence() -> None:
    heard = Heard()

    for number in [*range(50), *range(150, 160)]:
        heard.get(packet(number), FRAME if number != 150 else 101 * FRAME)
    heard.wait(1)

    made_up = [level(each.pcm) for each in heard.delivered if each.concealed]
    assert len(made_up) == 100
    assert made_up[0] > 0
    assert max(made_up[10:]) < max(made_up[:2])
    assert set(made_up[20:]) == {0}


# Out of order, late, twice.


def test_packets_that_swap_places_are_put_in_order() -> None:
    heard = Heard(passthrough=True)

    for number in [0, 1, 3, 2, 4]:
        heard.get(packet(number), 0.005)

    assert numbers(heard) == [0, 1, 2, 3, 4]
    assert (heard.receiver.reordered, heard.receiver.lost) == (1, 0)


def test_a_packet_after_its_turn_is_dropped_and_counted() -> None:
    heard = Heard(passthrough=True)

    for number in [0, 1, 3]:
        heard.get(packet(number), FRAME)
    heard.wait(0.1)
    heard.get(packet(2))
    heard.get(packet(4))

    assert numbers(heard) == [0, 1, None, 3, 4]
    assert (heard.receiver.late, heard.receiver.duplicates, heard.receiver.lost) == (1, 0, 0)


def test_a_receiver_learns_to_wait_for_packets_that_come_late() -> None:
    heard = Heard(passthrough=True)

    def swap(number: int) -> None:
        heard.get(packet(number + 1), 0.04)
        heard.get(packet(number), 0.03)

    heard.get(packet(0))
    for number in range(1, 21, 2):
        swap(number)

    assert heard.receiver.late == 1
    assert numbers(heard) == [0, None, *range(2, 21)]


def test_what_was_learnt_is_forgotten() -> None:
    heard = Heard(passthrough=True)
    for number in [0, 2]:
        heard.get(packet(number), FRAME)
    heard.get(packet(1), 0.05)
    for number in range(3, 3003):
        heard.get(packet(number), FRAME)

    heard.get(packet(3004), FRAME)
    arrived = heard.now
    due = heard.receiver.next_deadline()

    assert due is not None
    assert due - arrived < 0.015


@pytest.mark.parametrize("copies", [2, 3])
def test_a_packet_that_comes_again_is_delivered_once(copies: int) -> None:
    heard = Heard(passthrough=True)

    for number in [0, 1, 3, 2, 4]:
        for _ in range(copies):
            heard.get(packet(number), 0.001)

    assert numbers(heard) == [0, 1, 2, 3, 4]
    assert heard.receiver.duplicates == 5 * (copies - 1)


@pytest.mark.parametrize("lateness", [0.03, 0.07, 0.15, 1.0])
def test_late_packets_delay_no_other_by_more_than_the_most_wait(lateness: float) -> None:
    """One in ten is late, for two minutes; what is on time is never held for longer than 80 ms."""
    arrivals = sorted(
        (number * FRAME + (lateness if number % 10 == 5 else 0.0), number) for number in range(6000)
    )
    heard, arrived = Heard(passthrough=True), {}

    for at, number in arrivals:
        heard.get(packet(number, payload=number.to_bytes(4)), 100 + at - heard.now)
        arrived[number] = heard.now

    delays = {
        int.from_bytes(each.pcm): each.time - arrived[int.from_bytes(each.pcm)]
        for each in heard.delivered
        if each.pcm
    }
    assert max(delays.values()) <= 0.0801
    caught_up = sum(number in delays for number in range(5, 6000, 10))
    assert caught_up > 590 if lateness < 0.08 else caught_up < 10


# Clocks.


@pytest.mark.parametrize("ppm", [200, -200])
def test_an_hour_of_a_clock_that_is_wrong_adds_no_delay_and_loses_nothing(ppm: int) -> None:
    """The worst quartz is off by 200 ppm, a virtual machine's clock by more."""
    random.seed(ppm)
    every = FRAME / (1 + ppm / 1e6)
    heard = Heard(passthrough=True)
    count, last, worst = 180_000, 0.0, 0.0

    for number in range(count):
        last = max(last, number * every + random.uniform(0, 0.004))
        heard.get(packet(number, payload=opus.SILENCE), 100 + last - heard.now)
        worst = max(worst, heard.now - heard.delivered[-1].time)

    assert worst == 0
    assert len(heard.delivered) == count
    assert heard.ats == list(range(0, 480 * count, 480))
    assert not any(heard.guessed)
    assert heard.receiver.excess == 0


@pytest.mark.parametrize("ppm", [200, -200])
def test_comfort_noise_of_our_clock_and_speech_of_theirs_do_not_drift_apart(ppm: int) -> None:
    """Half an hour of five seconds of speech, five of DTX: where speech is counted to be does not
    go away from the client's own count."""
    every = FRAME / (1 + ppm / 1e6)
    heard = Heard(passthrough=True)
    apart = []
    number = 0

    def arrive(frame: int, payload: bytes) -> None:
        nonlocal number
        at = 100 + frame * every
        heard.get(packet(number, payload=payload, timestamp=960 * frame), at - heard.now)
        number += 1

    for turn in range(180):
        for frame in range(500 * turn, 500 * turn + 250):
            arrive(frame, opus.SILENCE)
            apart.append(heard.delivered[-1].at - 480 * frame)
        for frame in range(500 * turn + 250, 500 * turn + 500, 20):
            arrive(frame, DTX)

    assert max(apart) <= 3 * 480
    assert min(apart) >= 0
    assert max(apart[-250:]) <= max(apart[:500])


# Stalls.


def test_in_a_stall_nothing_is_made_up_and_then_all_follows_at_once() -> None:
    heard = Heard()
    for number in range(10):
        heard.get(packet(number), FRAME)

    heard.wait(2)
    assert len(heard.delivered) == 10
    for number in range(10, 110):
        heard.get(packet(number))

    assert heard.end == 110 * 480
    assert not any(heard.guessed)


def test_what_a_stall_has_swallowed_is_filled_in() -> None:
    heard = Heard()
    for number in range(10):
        heard.get(packet(number), FRAME)

    heard.wait(0.3)
    for number in range(25, 35):
        heard.get(packet(number), FRAME)
    heard.wait(0.1)

    assert heard.end == 35 * 480
    assert sum(heard.guessed) == 15


# DTX.


def test_in_dtx_silence_goes_on_in_real_time() -> None:
    heard = Heard()
    for number in range(20):
        heard.get(packet(number), FRAME)
    heard.get(packet(20, payload=DTX), FRAME)

    heard.wait(10 * FRAME)

    assert heard.end in (30 * 480, 31 * 480)
    assert not any(heard.guessed)


def test_after_dtx_samples_are_where_the_clients_clock_has_them() -> None:
    heard = Heard()
    for number in range(20):
        heard.get(packet(number), FRAME)
    heard.get(packet(20, payload=DTX), FRAME)
    heard.get(packet(21, timestamp=960 * 40), 20 * FRAME)

    assert heard.delivered[-1].at == 40 * 480
    assert heard.delivered[-1].time == heard.now


def test_a_packet_that_comes_late_after_dtx_is_heard_whole_and_the_next_pause_makes_up() -> None:
    heard = Heard()
    heard.get(packet(0))
    heard.get(packet(1, payload=DTX), FRAME)
    heard.get(packet(2, timestamp=960 * 2), 6 * FRAME)
    shifted = heard.delivered[-1].at
    heard.get(packet(3, payload=DTX, timestamp=960 * 3), FRAME)
    heard.get(packet(4, timestamp=960 * 20), 17 * FRAME)

    assert shifted > 2 * 480
    assert heard.delivered[-1].at == 20 * 480
    assert heard.end == 21 * 480


def test_a_refresh_whose_closing_packet_is_lost_does_not_stop_the_silence() -> None:
    heard = Heard()
    heard.get(packet(0))
    heard.get(packet(1, payload=DTX), FRAME)
    heard.get(packet(2, timestamp=960 * 21), 20 * FRAME)

    heard.wait(20 * FRAME)

    assert heard.end > 35 * 480


def test_speech_after_dtx_ends_it() -> None:
    heard = Heard()
    heard.get(packet(0))
    heard.get(packet(1, payload=DTX), FRAME)
    heard.get(packet(2, timestamp=960 * 10), 9 * FRAME)
    heard.get(packet(3, timestamp=960 * 11), FRAME)

    assert heard.receiver.next_deadline() is None


def test_silence_ends_when_nobody_is_there() -> None:
    heard = Heard()
    heard.get(packet(0, payload=DTX))

    heard.wait(100)

    assert 29 < heard.delivered[-1].time - 100 < 31
    assert heard.receiver.next_deadline() is None


def test_a_pause_without_dtx_is_filled_with_silence_when_it_is_over() -> None:
    heard = Heard()
    heard.get(packet(0))
    heard.get(packet(1, timestamp=960 * 11), 11 * FRAME)

    assert heard.end == 12 * 480
    assert level(heard.delivered[5].pcm) == 0
    assert not any(heard.guessed)


# Another stream.


def test_a_client_that_begins_anew_is_heard_from_its_second_packet_on() -> None:
    heard = Heard(passthrough=True)
    for number in range(10):
        heard.get(packet(number), FRAME)

    for number in range(10, 20):
        data = packet(
            30000 + number, payload=payloads()[number], timestamp=7_000_000 + 960 * number
        )
        heard.get(data, FRAME)

    assert numbers(heard) == list(range(20))
    assert heard.ats == [480 * number for number in range(20)]
    assert heard.receiver.sources == 2


def test_one_stray_number_is_ignored() -> None:
    heard = Heard(passthrough=True)
    for number in range(10):
        heard.get(packet(number), FRAME)

    heard.get(packet(30000))
    for number in range(10, 20):
        heard.get(packet(number), FRAME)

    assert numbers(heard) == list(range(20))
    assert (heard.receiver.foreign, heard.receiver.lost) == (1, 0)


def test_another_ssrc_is_heard_at_once() -> None:
    heard = Heard(passthrough=True)
    for number in range(10):
        heard.get(packet(number), FRAME)

    for number in range(10, 20):
        data = packet(
            500 + number, payload=payloads()[number], timestamp=77 + 960 * number, ssrc=SSRC + 1
        )
        heard.get(data, FRAME)

    assert numbers(heard) == list(range(20))
    assert heard.ats == [480 * number for number in range(20)]
    assert heard.receiver.ssrc == SSRC + 1


def test_what_waited_is_heard_before_another_ssrc() -> None:
    heard = Heard(passthrough=True)

    for number in [0, 1, 3]:
        heard.get(packet(number), FRAME)
    heard.get(packet(900, payload=payloads()[4], ssrc=SSRC + 1))

    assert numbers(heard) == [0, 1, None, 3, 4]


def test_stragglers_of_an_ssrc_that_was_left_do_not_bring_it_back() -> None:
    heard = Heard(passthrough=True)
    heard.get(packet(0))
    heard.get(packet(10, ssrc=SSRC + 1), FRAME)

    heard.get(packet(1), 0.005)
    assert heard.receiver.ssrc == SSRC + 1
    heard.get(packet(2), 2.0)

    assert heard.receiver.ssrc == SSRC


def test_a_timestamp_that_jumps_shifts_the_origin() -> None:
    heard = Heard()

    heard.get(packet(0))
    heard.get(packet(1, timestamp=2_000_000_000), FRAME)
    heard.get(packet(2, timestamp=1_000_000_000), FRAME)

    assert heard.ats == [0, 480, 960]


# Packets of other lengths, and what is no audio.


@pytest.mark.parametrize("ms", [2.5, 5, 10, 40, 60])
def test_packets_of_any_length_are_taken(ms: float) -> None:
    from tests.transceiver.media.speech import frames

    coder = opus.Encoder(24000, bitrate=32000, complexity=1)
    spoken = [coder.encode(frame) for frame in frames(24000, ms)[:30]]
    ticks = int(ms * 48)
    heard = Heard()

    for number, payload in enumerate(spoken):
        if number != 20:
            heard.get(packet(number, payload=payload, timestamp=ticks * number), ms / 1000)
    heard.wait(1)

    assert heard.end == 30 * ticks // 2
    assert heard.receiver.concealed == 1


def test_a_packet_of_120_ms_is_taken() -> None:
    heard = Heard()

    heard.get(packet(0, payload=opus.merge([opus.SILENCE] * 6)))

    assert heard.end == 6 * 480


def test_a_packet_of_padding_alone_takes_its_number_and_no_time() -> None:
    heard = Heard()

    heard.get(packet(0))
    heard.get(packet(1, payload=b"", timestamp=0))
    heard.get(packet(2, timestamp=960))

    assert heard.end == 2 * 480
    assert heard.receiver.malformed == 0


def test_a_payload_that_is_no_opus_is_concealed() -> None:
    heard = Heard()

    heard.get(packet(0))
    heard.get(packet(1, payload=b"\x03\x00\x00"), FRAME)
    heard.get(packet(2), FRAME)

    assert heard.end == 3 * 480
    assert heard.guessed == [False, True, False]
    assert heard.receiver.malformed == 1


@pytest.mark.parametrize("data", [b"", b"\x80", bytes(12), b"\x90" + packet(0)[1:12]])
def test_what_is_no_rtp_is_counted(data: bytes) -> None:
    heard = Heard()

    heard.get(data)

    assert heard.receiver.malformed == 1


def test_another_payload_type_is_counted() -> None:
    heard = Heard()

    heard.get(rtp.build(b"\0", payload_type=126, sequence=0, timestamp=0, ssrc=SSRC))

    assert heard.receiver.foreign == 1
    assert heard.receiver.ssrc is None


# Limits.


def test_a_client_cannot_say_much_more_than_there_is_time() -> None:
    heard = Heard()
    longest = opus.merge([opus.SILENCE] * 6)

    for number in range(1000):
        heard.get(packet(number, payload=longest, timestamp=5760 * number), 0.001)

    assert heard.end / 24000 < 13
    assert heard.receiver.excess > 800


def test_a_client_cannot_have_much_silence_made_up() -> None:
    heard = Heard()

    for number in range(1000):
        heard.get(packet(number, timestamp=200_000 * number), 0.001)

    assert heard.end / 24000 < 40


TIMESTAMPS: dict[str, Callable[[int], int]] = {
    "standing still": lambda number: 5,
    "backwards": lambda number: -960 * number,
    "to and fro": lambda number: 960 * number + (1 << 31) * (number % 2),
    "far behind and far ahead": lambda number: 960 * number + (0x7FFFFFFF, -0x7FFFFFFF)[number % 2],
    "four seconds each": lambda number: 4 * 48000 * number,
    "odd": lambda number: 961 * number + number % 7,
    "one too many": lambda number: 961 * number,
    "one too few": lambda number: 959 * number,
}


@pytest.mark.parametrize("name", TIMESTAMPS)
def test_whatever_timestamps_say_audio_is_delivered_at_once_and_no_more_than_time(
    name: str,
) -> None:
    heard = Heard()
    start = heard.now

    for number in range(1500):
        heard.get(packet(number, timestamp=TIMESTAMPS[name](number)), FRAME)
        assert heard.delivered[-1].time == heard.now
    heard.wait(1)

    assert heard.end / 24000 <= 1.25 * (heard.now - start) + 10
    assert sum(len(each.pcm) == 960 for each in heard.delivered) >= 1500


def test_timestamps_that_are_not_quite_exact_are_made_up_for_now_and_then() -> None:
    heard = Heard()

    for number in range(1500):
        heard.get(packet(number, timestamp=961 * number), FRAME)

    assert all(len(each.pcm) >= 120 for each in heard.delivered)
    assert len(heard.delivered) - 1500 == 1500 // 120
    assert abs(heard.delivered[-1].at - 961 * 1499 // 2) <= 60


@pytest.mark.parametrize("name", TIMESTAMPS)
def test_and_with_every_third_packet_lost_too(name: str) -> None:
    heard = Heard()
    start = heard.now

    for number in range(1500):
        heard.wait(FRAME)
        if number % 3:
            heard.get(packet(number, timestamp=TIMESTAMPS[name](number)))
    heard.wait(1)

    assert heard.end / 24000 <= 1.25 * (heard.now - start) + 10
    assert heard.receiver.next_deadline() is None


# Passthrough.


def test_packets_are_passed_through_as_they_are() -> None:
    heard = Heard(passthrough=True)

    for number in [0, 1, 3, 4]:
        heard.get(packet(number), FRAME)
    heard.wait(0.1)

    assert numbers(heard) == [0, 1, None, 3, 4]
    assert heard.guessed == [False, False, True, False, False]
    assert heard.ats == [0, 480, 960, 1440, 1920]


def test_in_dtx_a_passthrough_is_told_that_nothing_is_sent() -> None:
    heard = Heard(passthrough=True)
    heard.get(packet(0))
    heard.get(packet(1, payload=DTX), FRAME)

    heard.wait(5 * FRAME)

    silence = heard.delivered[2:]
    assert {each.pcm for each in silence} == {b""}
    assert not any(each.concealed for each in silence)
    assert [each.at for each in silence] == [480 * (2 + n) for n in range(len(silence))]
    assert len(silence) in (3, 4)


# Reports.


def test_there_is_nothing_to_report_before_the_first_packet() -> None:
    assert Heard().receiver.report_block(0.0) is None


def test_a_report_tells_what_was_lost_since_the_last() -> None:
    heard = Heard()
    for number in range(100):
        if number % 4 != 2:
            heard.get(packet(65500 + number, payload=payloads()[number]), FRAME)
    first = heard.receiver.report_block(heard.now)
    for number in range(100, 200):
        heard.get(packet(65500 + number, payload=payloads()[number]), FRAME)
    second = heard.receiver.report_block(heard.now)

    assert first is not None
    assert second is not None
    assert first.ssrc == SSRC
    assert first.fraction_lost == pytest.approx(0.25)
    assert second.fraction_lost == 0
    assert first.lost == second.lost == 25
    assert second.highest == 65500 + 199  # one cycle
    assert second.last_report == 0


def test_jitter_is_that_of_the_rfc() -> None:
    heard = Heard()
    random.seed(1)
    at, expected, last = 0.0, 0.0, None

    for number in range(200):
        arrival = number * FRAME + random.uniform(0, 0.01)
        heard.get(packet(number), max(0.0, arrival - at))
        at = arrival
        transit = heard.now - number * FRAME
        if last is not None:
            expected += (abs(transit - last) - expected) / 16
        last = transit

    assert heard.receiver.jitter == pytest.approx(expected, rel=1e-6)
    report = heard.receiver.report_block(heard.now)
    assert report is not None
    assert report.jitter == int(expected * 48000)


def test_a_report_refers_to_the_last_one_of_the_sender() -> None:
    heard = Heard()
    heard.get(packet(0))
    heard.receiver.sender_reported(0x1122334455667788, heard.now)

    report = heard.receiver.report_block(heard.now + 1.5)

    assert report is not None
    assert report.last_report == 0x33445566
    assert report.delay == pytest.approx(1.5)


def test_a_sender_report_that_came_after_the_tick_was_due_is_reported_as_just_now() -> None:
    heard = Heard()
    heard.get(packet(0))
    heard.receiver.sender_reported(0x1122334455667788, heard.now + 0.003)

    report = heard.receiver.report_block(heard.now)

    assert report is not None
    assert report.delay == 0
    assert rtcp.parse(rtcp.build([rtcp.ReceiverReport(1, (report,))]))


# Whatever comes.


@given(
    st.lists(
        st.tuples(
            st.integers(0, 60),
            st.sampled_from([0.0, 0.001, 0.01, 0.02, 0.05, 0.3]),
        ),
        max_size=200,
    )
)
@settings(max_examples=200, deadline=None)
def test_any_order_loss_and_repetition(arrivals: list[tuple[int, float]]) -> None:
    heard = Heard(passthrough=True)
    waiting = 0

    for number, after in arrivals:
        heard.get(packet(number), after)
        waiting = max(waiting, len(heard.receiver._waiting))
    heard.wait(1)

    delivered = [number for number in numbers(heard) if number is not None]
    assert delivered == sorted(set(delivered))
    assert heard.ats == [480 * number for number in range(len(heard.ats))]
    assert waiting <= 6
    assert heard.receiver.next_deadline() is None
    if arrivals:
        assert set(delivered) <= {number for number, _ in arrivals}
        first = arrivals[0][0]
        assert all(each >= first for each in delivered)


@given(
    st.lists(
        st.tuples(
            st.integers(0, 0xFFFF),
            st.integers(0, 0xFFFFFFFF),
            st.sampled_from([SSRC, SSRC, SSRC, SSRC + 1]),
            st.one_of(st.binary(max_size=40), st.sampled_from([DTX, opus.SILENCE])),
            st.sampled_from([0.0, 0.005, 0.02, 0.5]),
        ),
        max_size=100,
    )
)
@settings(max_examples=200, deadline=None)
def test_any_packets_at_all_are_contiguous_and_bounded(
    arrivals: list[tuple[int, int, int, bytes, float]],
) -> None:
    heard = Heard()
    start = heard.now

    for sequence, timestamp, ssrc, payload, after in arrivals:
        heard.get(packet(sequence, timestamp=timestamp, ssrc=ssrc, payload=payload), after)
        assert len(heard.receiver._waiting) <= 40
        assert len(heard.receiver._missed) <= 128
    heard.wait(0.2)

    assert heard.end / 24000 <= 1.25 * (heard.now - start) + 22
    if (report := heard.receiver.report_block(heard.now)) is not None:
        assert rtcp.parse(rtcp.build([rtcp.ReceiverReport(1, (report,))]))


@given(st.lists(st.tuples(st.binary(max_size=60), st.floats(0, 0.1)), max_size=30))
@settings(max_examples=100, deadline=None)
def test_any_bytes_at_all_do_no_harm(arrivals: list[tuple[bytes, float]]) -> None:
    heard = Heard()

    for data, after in arrivals:
        heard.get(data, after)
    heard.get(packet(0, ssrc=1))

    assert heard.delivered


def test_what_a_backend_raises_is_raised() -> None:
    def deliver(pcm: bytes, at: int, concealed: bool) -> None:
        raise RuntimeError("backend")

    receiver = AudioReceiver(payload_type=111, rate=24000, passthrough=False, deliver=deliver)

    with pytest.raises(RuntimeError, match="backend"):
        receiver.receive(packet(0), 0.0)
