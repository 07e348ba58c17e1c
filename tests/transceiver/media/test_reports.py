"""RTCP of a session: when reports go out, what they tell, and what is learnt from the client's."""

import itertools

from tests.transceiver.media.speech import frames
from transceiver.media import opus, rtcp, rtp
from transceiver.media.receiver import AudioReceiver
from transceiver.media.reports import INTERVAL, Reports
from transceiver.media.sender import AudioSender

WALL = 1_700_000_000.0
OURS, THEIRS = 7, 9


def make_sender() -> AudioSender:
    return AudioSender(
        ssrc=OURS, payload_type=111, rate=24000, passthrough=False, fec=True, dtx=False
    )


def make_receiver() -> AudioReceiver:
    return AudioReceiver(
        payload_type=111, rate=24000, passthrough=True, deliver=lambda pcm, at, concealed: None
    )


def make_reports(
    sender: AudioSender,
    receiver: AudioReceiver | None,
    draw: float = 0.5,
    *,
    is_full: bool = False,
) -> Reports:
    return Reports(
        sender=sender,
        receiver=receiver,
        cname="name",
        wall=lambda: WALL,
        is_full=lambda: is_full,
        draw=lambda: draw,
    )


def hear(receiver: AudioReceiver, sequence: int, now: float) -> None:
    packet = rtp.build(
        opus.SILENCE, payload_type=111, sequence=sequence, timestamp=960 * sequence, ssrc=THEIRS
    )
    receiver.receive(packet, now)


def test_reports_come_every_five_seconds_more_or_less() -> None:
    for draw, factor in ((0.0, 0.5), (0.5, 1.0), (1.0, 1.5)):
        reports = make_reports(make_sender(), None, draw)
        sent = [n for n in range(3000) if reports.poll(n / 100) is not None]
        assert sent[0] == 100 * INTERVAL / 2 * factor
        gaps = {after - before for before, after in itertools.pairwise(sent)}
        assert gaps == {100 * INTERVAL * factor}


def test_who_sends_reports_as_a_sender_and_who_has_rested_as_a_receiver() -> None:
    sender = make_sender()
    reports = make_reports(sender, None)
    reports.poll(0.0)
    sender.tick(0.0)
    sender.tick(0.02)

    report, name = rtcp.parse(reports.poll(10.0) or b"")
    assert report == rtcp.SenderReport(
        ssrc=OURS,
        ntp=rtcp.ntp(WALL),
        timestamp=480_000,
        packets=2,
        octets=sender.octets,
    )
    assert name == rtcp.SourceDescription(OURS, "name")

    report, _ = rtcp.parse(reports.poll(20.0) or b"")
    assert report == rtcp.ReceiverReport(OURS)


def test_the_clients_stream_is_reported_and_its_sender_report_answered() -> None:
    receiver = make_receiver()
    reports = make_reports(make_sender(), receiver)
    reports.poll(0.0)
    for sequence in (1, 2, 4):
        hear(receiver, sequence, sequence * 0.02)
    told = rtcp.SenderReport(
        ssrc=THEIRS, ntp=0x1234_5678_9ABC_DEF0, timestamp=0, packets=3, octets=9
    )
    reports.receive(rtcp.build([told]), 1.0)
    reports.receive(rtcp.build([rtcp.SenderReport(1, 5 << 16, 0, 0, 0)]), 1.5)  # a stranger

    report, _ = rtcp.parse(reports.poll(3.0) or b"")
    assert isinstance(report, rtcp.ReceiverReport)
    (block,) = report.blocks
    assert (block.ssrc, block.lost, block.fraction_lost) == (THEIRS, 1, 0.25)
    assert (block.last_report, block.delay) == (0x5678_9ABC, 2.0)


def test_loss_and_round_trip_are_learnt_from_reports_of_our_stream_only() -> None:
    reports = make_reports(make_sender(), None)
    sent_at = rtcp.ntp(WALL - 0.35) >> 16 & 0xFFFFFFFF
    ours = rtcp.ReportBlock(OURS, 0.25, 5, 100, 0, sent_at, 0.25)
    other = rtcp.ReportBlock(1, 1.0, 5, 100, 0, sent_at, 0.0)
    reports.receive(rtcp.build([rtcp.ReceiverReport(THEIRS, (ours, other))]), 1.0)
    assert reports.loss == 0.25
    assert reports.rtt is not None
    assert abs(reports.rtt - 0.1) < 0.001


def test_loss_is_made_up_for_unless_there_is_no_cpu_for_it() -> None:
    """By SILK, whose configurations are below 16 (RFC 6716 section 3.1), as it alone has FEC."""
    lossy = rtcp.build(
        [rtcp.ReceiverReport(THEIRS, (rtcp.ReportBlock(OURS, 0.25, 5, 9, 0, 0, 0),))]
    )
    for is_full, has_fec in ((False, True), (True, False)):
        sender = make_sender()
        reports = make_reports(sender, None, is_full=is_full)
        reports.receive(lossy, 1.0)
        assert reports.loss == 0.25
        sender.say(b"".join(frames(24000)[:30]))
        packets = [sender.tick(number / 50) or b"" for number in range(30)]
        assert all(packet[12] >> 3 < 16 for packet in packets[5:]) is has_fec


def test_garbage_is_counted_and_changes_nothing() -> None:
    reports = make_reports(make_sender(), make_receiver())
    for data in (b"", b"\x80", b"\x80\xc8\x00\x06", bytes(100)):
        reports.receive(data, 1.0)
    assert reports.malformed == 4
    assert (reports.rtt, reports.loss) == (None, 0.0)


def test_the_farewell_is_a_report_a_name_and_a_bye() -> None:
    kinds = [type(packet) for packet in rtcp.parse(make_reports(make_sender(), None).farewell(1.0))]
    assert kinds == [rtcp.ReceiverReport, rtcp.SourceDescription, rtcp.Bye]
