"""RTP packets: what is parsed, what is refused, and that both ways agree."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transceiver.media import rtp

PLAIN = bytes.fromhex("806f 0001 00000002 00000003".replace(" ", ""))


def test_a_plain_packet() -> None:
    assert rtp.parse(PLAIN + b"opus") == (111, False, 1, 2, 3, b"opus")


def test_the_marker_is_not_of_the_payload_type() -> None:
    assert rtp.parse(b"\x80\xef" + PLAIN[2:])[:2] == (111, True)


@pytest.mark.parametrize(
    ("first", "rest"),
    [
        pytest.param(0x82, bytes(8) + b"opus", id="contributors"),
        pytest.param(0x90, b"\xbe\xde\x00\x02" + bytes(8) + b"opus", id="an extension"),
        pytest.param(0x90, b"\xbe\xde\x00\x00" + b"opus", id="an empty extension"),
        pytest.param(0xA0, b"opus\x00\x00\x03", id="padding"),
        pytest.param(0xB1, bytes(4) + b"\x10\x00\x00\x01abcdopus\x01", id="all of them"),
    ],
)
def test_what_surrounds_the_payload_is_left_out(first: int, rest: bytes) -> None:
    assert rtp.parse(bytes([first]) + PLAIN[1:] + rest)[5] == b"opus"


def test_a_packet_may_be_all_padding() -> None:
    assert rtp.parse(b"\xa0" + PLAIN[1:] + b"\x00\x00\x03")[5] == b""


@pytest.mark.parametrize(
    "packet",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(PLAIN[:11], id="a header cut short"),
        pytest.param(b"\x40" + PLAIN[1:] + b"opus", id="version 1"),
        pytest.param(b"\x81" + PLAIN[1:] + b"abc", id="a contributor cut short"),
        pytest.param(b"\x90" + PLAIN[1:] + b"\xbe\xde\x00", id="an extension's header cut short"),
        pytest.param(b"\x90" + PLAIN[1:] + b"\xbe\xde\x00\x02abcd", id="an extension cut short"),
        pytest.param(b"\x90" + PLAIN[1:] + b"\xbe\xde\xff\xffabcd", id="a huge extension"),
        pytest.param(b"\xa0" + PLAIN[1:], id="padding of nothing"),
        pytest.param(b"\xa0" + PLAIN[1:] + b"ab\x00", id="padding of none"),
        pytest.param(b"\xa0" + PLAIN[1:] + b"ab\x04", id="more padding than payload"),
    ],
)
def test_what_is_no_packet_is_refused(packet: bytes) -> None:
    with pytest.raises(rtp.RtpError):
        rtp.parse(packet)


@given(st.binary(max_size=80))
def test_any_bytes_are_parsed_or_refused(packet: bytes) -> None:
    try:
        payload = rtp.parse(packet)[5]
    except rtp.RtpError:
        return
    assert payload in packet


@given(
    st.binary(max_size=50),
    st.integers(0, 127),
    st.integers(0, 0xFFFF),
    st.integers(0, 0xFFFFFFFF),
    st.integers(0, 0xFFFFFFFF),
    st.booleans(),
)
def test_what_is_built_is_parsed(
    payload: bytes, payload_type: int, sequence: int, timestamp: int, ssrc: int, marker: bool
) -> None:
    packet = rtp.build(
        payload,
        payload_type=payload_type,
        sequence=sequence,
        timestamp=timestamp,
        ssrc=ssrc,
        marker=marker,
    )

    assert rtp.parse(packet) == (payload_type, marker, sequence, timestamp, ssrc, payload)


@pytest.mark.parametrize(
    ("packet", "is_rtcp"),
    [(b"\x80\xc8", True), (b"\x81\xcf", True), (PLAIN, False), (b"\x80\xef", False), (b"", False)],
)
def test_rtcp_is_told_from_rtp(packet: bytes, is_rtcp: bool) -> None:
    assert rtp.is_rtcp(packet) is is_rtcp
