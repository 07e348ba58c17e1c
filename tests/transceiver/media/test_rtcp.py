"""RTCP packets: made, parsed, and agreed upon with aiortc."""

import pytest
from aiortc.rtp import RtcpByePacket, RtcpPacket, RtcpRrPacket, RtcpSdesPacket, RtcpSrPacket
from hypothesis import given
from hypothesis import strategies as st

from transceiver.media import rtcp

BLOCK = rtcp.ReportBlock(
    ssrc=1, fraction_lost=0.25, lost=-3, highest=70000, jitter=99, last_report=0xABCD, delay=1.5
)
SENDER = rtcp.SenderReport(
    ssrc=7, ntp=0x1122334455667788, timestamp=960, packets=50, octets=4000, blocks=(BLOCK,)
)
COMPOUND: list[rtcp.Packet] = [
    SENDER,
    rtcp.ReceiverReport(ssrc=8, blocks=(BLOCK, BLOCK)),
    rtcp.SourceDescription(ssrc=7, cname="shunt"),
    rtcp.Bye((7, 8)),
]


def test_what_is_built_is_parsed() -> None:
    assert rtcp.parse(rtcp.build(COMPOUND)) == COMPOUND


@pytest.mark.parametrize("name", ["", "a", "ab", "abc", "abcd", "ä" * 127])
def test_a_name_of_any_length(name: str) -> None:
    description = rtcp.SourceDescription(ssrc=7, cname=name)

    packets: list[rtcp.Packet] = [description, rtcp.Bye(())]

    assert rtcp.parse(rtcp.build(packets)) == packets


def test_aiortc_reads_it_alike() -> None:
    sr, rr, sdes, bye = RtcpPacket.parse(rtcp.build(COMPOUND))

    assert isinstance(sr, RtcpSrPacket)
    assert (sr.ssrc, sr.sender_info.ntp_timestamp) == (7, SENDER.ntp)
    assert (sr.reports[0].packets_lost, sr.reports[0].fraction_lost) == (-3, 64)
    assert sr.reports[0].dlsr == 1.5 * 65536
    assert isinstance(rr, RtcpRrPacket)
    assert len(rr.reports) == 2
    assert isinstance(sdes, RtcpSdesPacket)
    assert sdes.chunks[0].items == [(1, b"shunt")]
    assert isinstance(bye, RtcpByePacket)
    assert bye.sources == [7, 8]


def test_what_aiortc_makes_is_read_alike() -> None:
    made = b"".join(bytes(packet) for packet in RtcpPacket.parse(rtcp.build(COMPOUND)))

    assert rtcp.parse(made) == COMPOUND


def test_other_types_are_skipped() -> None:
    feedback = bytes.fromhex("81ce00020000000100000002")

    assert rtcp.parse(rtcp.build([SENDER]) + feedback) == [SENDER]


def test_padding_is_left_out() -> None:
    assert rtcp.parse(bytes.fromhex("a1cb000200000007 00000004".replace(" ", ""))) == [
        rtcp.Bye((7,))
    ]


@pytest.mark.parametrize(
    "data",
    [
        pytest.param("", id="nothing"),
        pytest.param("80c800", id="a header cut short"),
        pytest.param("40c90001 00000001", id="version 1"),
        pytest.param("80c90002 00000001", id="longer than the datagram"),
        pytest.param("81c90001 00000001", id="a block too few"),
        pytest.param("80c80001 00000001", id="no sender information"),
        pytest.param("82cb0001 00000001", id="a farewell too few"),
        pytest.param("a0c90001 00000000", id="padding of none"),
        pytest.param("a0c90001 00000009", id="more padding than packet"),
        pytest.param("a0c90000", id="padding of nothing"),
        pytest.param("a0c90001 00000004 80c90001 00000001", id="padding before the last"),
        pytest.param("81ca0002 00000001 01ff6161", id="a name too long"),
        pytest.param("82ca0002 00000001 00000000", id="a description too few"),
    ],
)
def test_what_is_no_rtcp_is_refused(data: str) -> None:
    with pytest.raises(rtcp.RtcpError):
        rtcp.parse(bytes.fromhex(data))


@given(st.binary(max_size=100))
def test_any_bytes_are_parsed_or_refused(data: bytes) -> None:
    try:
        packets = rtcp.parse(data)
    except rtcp.RtcpError:
        return
    assert isinstance(packets, list)


@given(
    st.integers(0, 31),
    st.integers(200, 203),
    st.binary(max_size=80).map(lambda body: body[: len(body) & ~3]),
)
def test_any_body_is_parsed_or_refused(count: int, kind: int, body: bytes) -> None:
    header = bytes([0x80 | count, kind]) + (len(body) // 4).to_bytes(2, "big")
    try:
        rtcp.parse(header + body)
    except rtcp.RtcpError:
        return


@pytest.mark.parametrize(("lost", "told"), [(1 << 30, (1 << 23) - 1), (-(1 << 30), -(1 << 23))])
def test_a_count_that_overflows_is_cut_off(lost: int, told: int) -> None:
    block = rtcp.ReportBlock(1, 1.0, lost, 0, 0, 0, 1e9)

    (report,) = rtcp.parse(rtcp.build([rtcp.ReceiverReport(1, (block,))]))

    assert isinstance(report, rtcp.ReceiverReport)
    assert report.blocks[0].lost == told
    assert report.blocks[0].fraction_lost == 255 / 256


def test_a_round_trip() -> None:
    sent = rtcp.ntp(1_800_000_000.0)
    block = rtcp.ReportBlock(1, 0, 0, 0, 0, last_report=sent >> 16 & 0xFFFFFFFF, delay=0.25)

    found = rtcp.round_trip(block, rtcp.ntp(1_800_000_000.3))

    assert found == pytest.approx(0.05, abs=1e-4)


def test_no_round_trip_without_a_report_of_ours() -> None:
    assert rtcp.round_trip(rtcp.ReportBlock(1, 0, 0, 0, 0, 0, 0), rtcp.ntp(1.8e9)) is None


@pytest.mark.parametrize(("later", "delay"), [(-5.0, 0.0), (0.1, 0.2)])
def test_a_round_trip_is_not_negative(later: float, delay: float) -> None:
    block = rtcp.ReportBlock(1, 0, 0, 0, 0, rtcp.ntp(1.8e9) >> 16 & 0xFFFFFFFF, delay)

    assert rtcp.round_trip(block, rtcp.ntp(1.8e9 + later)) == 0


def test_ntp_counts_from_1900() -> None:
    assert rtcp.ntp(0.5) == (2_208_988_800 << 32) + (1 << 31)
