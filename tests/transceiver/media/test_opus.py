"""libopus as Shunt binds it, on speech, on what is lost, and on bytes that are no packets."""

import math
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loader.errors import ShuntError
from tests.transceiver.media.speech import frames, level
from transceiver.media import opus


def encoder(rate: int = 24000, *, fec: bool = False, dtx: bool = False) -> opus.Encoder:
    return opus.Encoder(rate, bitrate=32000, complexity=5, fec=fec, dtx=dtx)


def likeness(heard: bytes, said: bytes, rate: int) -> float:
    """Correlation of the two, at the delay that suits them best (Opus looks ahead by 6.5 ms)."""
    size = min(len(heard), len(said)) & ~1
    a, b = (np.frombuffer(pcm[:size], dtype="<i2").astype(float) for pcm in (heard, said))
    best = 0.0
    for delay in range(rate // 100):
        x, y = a[delay:], b[: len(b) - delay]
        best = max(best, float(np.dot(x, y) / math.sqrt(np.dot(x, x) * np.dot(y, y))))
    return best


def test_the_library_tells_its_version() -> None:
    assert opus.version().startswith("libopus 1.")


@pytest.mark.parametrize("rate", [8000, 16000, 24000, 48000])
def test_speech_comes_through(rate: int) -> None:
    said = frames(rate)[:100]
    coder, decoder = encoder(rate), opus.Decoder(rate)

    heard = b"".join(decoder.decode(coder.encode(frame)) for frame in said)

    assert len(heard) == sum(map(len, said))
    assert likeness(heard, b"".join(said), rate) > 0.9


def test_a_decoder_of_another_rate_hears_the_same() -> None:
    coder, decoder = encoder(48000), opus.Decoder(24000)

    heard = b"".join(decoder.decode(coder.encode(frame)) for frame in frames(48000)[:50])

    assert likeness(heard, b"".join(frames(24000)[:50]), 24000) > 0.9


@pytest.mark.parametrize("ms", [2.5, 5, 10, 20, 40, 60])
def test_a_packet_tells_how_long_it_lasts(ms: float) -> None:
    packet = encoder().encode(frames(24000, ms)[10])

    assert opus.duration(packet) == ms * 48
    assert len(opus.Decoder(48000).decode(packet)) == ms * 48 * 2


@pytest.mark.parametrize("size", [0, 1, 958, 961, 962, 2880 * 2 + 2])
def test_what_is_no_frame_is_not_encoded(size: int) -> None:
    with pytest.raises(ValueError, match="no frame"):
        encoder().encode(bytes(size))


def test_a_rate_that_opus_has_not_is_refused() -> None:
    with pytest.raises(ValueError, match="44100 Hz"):
        opus.Decoder(44100)
    with pytest.raises(ValueError, match="44100 Hz"):
        encoder(44100)


def test_fec_recovers_a_lost_frame_better_than_concealing_it() -> None:
    coder = encoder(fec=True)
    coder.expect_loss(0.2)
    said = frames(24000)
    packets = [coder.encode(frame) for frame in said]
    whole, with_fec, without = (opus.Decoder(24000) for _ in range(3))
    wanted = [whole.decode(packet) for packet in packets]

    recovered: list[float] = []
    concealed: list[float] = []
    for number, packet in enumerate(packets[:-1]):
        if number % 5 == 4 and level(wanted[number]) > 300:
            following = packets[number + 1]
            assert opus.has_fec(following)
            for found, pcm in (
                (recovered, with_fec.decode_fec(following, 480)),
                (concealed, without.conceal(480)),
            ):
                found.append(abs(level(pcm) - level(wanted[number])) / level(wanted[number]))
                assert len(pcm) == 960
        else:
            with_fec.decode(packet)
            without.decode(packet)

    assert len(recovered) > 20
    assert np.mean(recovered) < 0.5 * np.mean(concealed)


def test_without_expected_loss_a_packet_has_no_fec() -> None:
    coder = encoder(fec=True)

    assert not any(opus.has_fec(coder.encode(frame)) for frame in frames(24000)[:50])


@pytest.mark.parametrize("ms", [10, 20, 40, 60])
def test_fec_is_seen_in_packets_of_every_length(ms: int) -> None:
    coder = encoder(16000, fec=True)
    coder.expect_loss(0.3)
    packets = [coder.encode(frame) for frame in frames(16000, ms)]

    assert sum(map(opus.has_fec, packets)) > len(packets) // 2


@pytest.mark.parametrize("bitrate", [24000, 64000])
def test_dtx_makes_silence_a_header(bitrate: int) -> None:
    coder = opus.Encoder(24000, bitrate=bitrate, complexity=10, dtx=True)

    packets = [coder.encode(bytes(960)) for _ in range(50)]

    assert not opus.is_dtx(packets[0])
    assert sum(map(opus.is_dtx, packets)) > 30


def test_concealment_fades() -> None:
    coder, decoder = encoder(), opus.Decoder(24000)
    loud = max(range(20, 100), key=lambda number: level(frames(24000)[number]))
    for frame in frames(24000)[: loud + 1]:
        last = decoder.decode(coder.encode(frame))

    guessed = [decoder.conceal(480) for _ in range(20)]

    assert level(guessed[0]) > 0.2 * level(last)
    assert level(guessed[-1]) < 0.1 * level(last)


def test_stereo_is_mixed_down() -> None:
    import av

    codec = av.CodecContext.create("libopus", "w")
    assert isinstance(codec, av.AudioCodecContext)
    codec.layout, codec.format, codec.sample_rate = "stereo", "s16", 48000
    tone = np.sin(np.arange(960 * 20) * 2 * np.pi * 440 / 48000)
    left = np.stack([tone * 20000, np.zeros_like(tone)], axis=1).astype("<i2")
    packets = []
    for start in range(0, len(left), 960):
        frame = av.AudioFrame.from_ndarray(
            left[start : start + 960].reshape(1, -1), format="s16", layout="stereo"
        )
        frame.sample_rate = 48000
        packets += [bytes(packet) for packet in codec.encode(frame)]
    decoder = opus.Decoder(48000)

    heard = [decoder.decode(packet) for packet in packets]

    assert packets[-1][0] & 4  # it is stereo
    assert {len(pcm) for pcm in heard} == {960 * 2}
    assert level(heard[-1]) == pytest.approx(20000 / 2 / math.sqrt(2), rel=0.1)


@given(st.binary(max_size=400))
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_pcm_or_an_error(packet: bytes) -> None:
    decoder = opus.Decoder(24000)
    for attempt in (decoder.decode, lambda data: decoder.decode_fec(data, 480)):
        try:
            pcm = attempt(packet)
        except opus.OpusError:
            continue
        assert len(pcm) <= 24000 * 120 // 1000 * 2
    opus.has_fec(packet)
    assert len(decoder.conceal(480)) == 960


@given(st.binary(min_size=1, max_size=200))
@settings(max_examples=300, deadline=None)
def test_the_duration_told_is_the_duration_decoded(packet: bytes) -> None:
    try:
        pcm = opus.Decoder(48000).decode(packet)
    except opus.OpusError:
        return

    assert opus.duration(packet) == len(pcm) // 2


@pytest.mark.parametrize("packet", [b"", b"\x03", b"\x03\x00", b"\x1b\x03", b"\xfb\x31"])
def test_no_packet_has_no_duration(packet: bytes) -> None:
    with pytest.raises(opus.OpusError):
        opus.duration(packet)


def test_short_packets_merge_into_one() -> None:
    coder, decoder = encoder(), opus.Decoder(24000)
    short = [coder.encode(frame) for frame in frames(24000, 10)[50:52]]

    merged = opus.merge(short)

    assert opus.duration(merged) == 960
    one_by_one = opus.Decoder(24000)
    assert decoder.decode(merged) == b"".join(map(one_by_one.decode, short))


def test_packets_of_different_kinds_do_not_merge() -> None:
    with pytest.raises(opus.OpusError):
        opus.merge([opus.SILENCE, encoder().encode(frames(24000, 10)[50])])


def test_a_decoder_that_is_reset_is_as_new() -> None:
    packets = [coder.encode(frame) for coder in [encoder()] for frame in frames(24000)[:20]]
    used, fresh = opus.Decoder(24000), opus.Decoder(24000)
    for packet in packets:
        used.decode(packet)

    used.reset()

    assert used.decode(packets[0]) == fresh.decode(packets[0])


def test_without_any_library_the_error_tells_the_cure() -> None:
    with pytest.raises(ShuntError, match="no libopus") as raised:
        opus._Library(["libno-such-opus.so.0"])

    assert "libopus0" in raised.value.cure


def test_the_library_comes_from_the_wheel_before_the_systems() -> None:
    first, *_, last = opus._candidates()

    assert "av.libs" in first
    assert last == "libopus.so.0"


def test_the_systems_library_will_do() -> None:
    system = opus._Library(["libopus.so.0"])

    assert system.ffi.string(system.lib.opus_get_version_string()).startswith(b"libopus 1.")


def test_silence_is_silence_for_any_decoder() -> None:
    decoder = opus.Decoder(24000)

    assert level(decoder.decode(opus.SILENCE)) == 0
    assert opus.duration(opus.SILENCE) == 960


# Which of the two coders it is: the configuration in a packet's first five bits (RFC 6716 section
# 3.1) is 16 or more for CELT, and less for SILK, alone or with CELT above it.


def coders(coder: opus.Encoder) -> set[str]:
    return {"CELT" if coder.encode(frame)[0] >> 3 >= 16 else "SILK" for frame in speech_frames()}


def speech_frames() -> list[bytes]:
    return frames(24000)[:20]


def test_while_nothing_is_lost_it_is_the_cheap_coder() -> None:
    assert coders(opus.Encoder(24000, bitrate=64000, complexity=10, fec=True)) == {"CELT"}


def test_loss_brings_the_coder_that_has_fec_and_its_end_the_other_one_back() -> None:
    coder = opus.Encoder(24000, bitrate=64000, complexity=10, fec=True)
    coder.expect_loss(0.01)
    coders(coder)  # the first packets are of the change
    assert coders(coder) == {"SILK"}
    assert any(opus.has_fec(coder.encode(frame)) for frame in speech_frames())
    coder.expect_loss(0.0)
    coders(coder)
    assert coders(coder) == {"CELT"}


def test_a_client_without_fec_gets_the_cheap_coder_whatever_is_lost() -> None:
    coder = opus.Encoder(24000, bitrate=64000, complexity=10, fec=False)
    coder.expect_loss(0.2)
    coders(coder)
    assert coders(coder) == {"CELT"}


def test_for_few_bits_it_is_the_coder_of_speech() -> None:
    assert coders(opus.Encoder(24000, bitrate=24000, complexity=10, fec=True)) == {"SILK"}


def test_nothing_is_heard_of_the_change_between_them() -> None:
    coder = opus.Encoder(24000, bitrate=64000, complexity=10, fec=True)
    decoder = opus.Decoder(24000)
    tone = frames_of_a_tone(60)
    heard = b""
    for number, frame in enumerate(tone):
        coder.expect_loss(0.05 if 20 <= number < 40 else 0.0)
        heard += decoder.decode(coder.encode(frame))
    levels = [level(heard[at : at + 960]) for at in range(4 * 960, len(heard), 960)]
    assert max(levels) / min(levels) < 1.3


def frames_of_a_tone(count: int) -> list[bytes]:
    """440 Hz."""
    samples = range(count * 480)
    wave = [round(8000 * math.sin(2 * math.pi * 440 * at / 24000)) for at in samples]
    sound = struct.pack(f"<{len(wave)}h", *wave)
    return [sound[at : at + 960] for at in range(0, len(sound), 960)]
