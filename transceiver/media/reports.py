"""RTCP of a session with one stream each way: what is told of ours, and learnt of the client's.

Reports come every 5 s on the average, as RFC 3550 section 6.2 has it for so few participants. A
client needs them for its statistics and to bring sound and picture together; we, to know the loss
that our encoder has to expect, and the round trip.
"""

import random
from collections.abc import Callable

from transceiver.media import rtcp
from transceiver.media.receiver import AudioReceiver
from transceiver.media.sender import AudioSender

__all__ = ["Reports"]

INTERVAL = 5.0
"""Seconds between two reports, each drawn from half to one and a half of it (RFC 3550 section
6.3.1)."""


class Reports:
    """Makes and reads the compound packets of one session. No I/O; *now* is monotonic seconds,
    *wall* tells those since 1970. *is_full*: whether there is no CPU to spare. FEC takes two to
    three times as much, so what a client loses is then not made up for: a bad moment of the
    network's must not become an overload, and that one everybody's."""

    def __init__(
        self,
        *,
        sender: AudioSender,
        receiver: AudioReceiver | None,
        cname: str,
        wall: Callable[[], float],
        is_full: Callable[[], bool] = lambda: False,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self.rtt: float | None = None
        """Round trip, seconds, as the client's last report tells."""
        self.loss = 0.0
        """The part of our packets that the client missed of late, 0 to 1."""
        self.malformed = 0
        self._sender = sender
        self._receiver = receiver
        self._cname = cname
        self._wall = wall
        self._is_full = is_full
        self._draw = draw
        self._due_at: float | None = None
        self._sent_before = 0

    def poll(self, now: float) -> bytes | None:
        """A compound packet if one is due. The first is half an interval after the first call."""
        if self._due_at is None:
            self._due_at = now + INTERVAL / 2 * (self._draw() + 0.5)
        if now < self._due_at:
            return None
        self._due_at = now + INTERVAL * (self._draw() + 0.5)
        return rtcp.build([self._report(now), self._name()])

    def farewell(self, now: float) -> bytes:
        """The last packet: BYE, after a report (RFC 3550 section 6.6)."""
        return rtcp.build([self._report(now), self._name(), rtcp.Bye((self._sender.ssrc,))])

    def receive(self, data: bytes, now: float) -> None:
        """What the client tells, after SRTCP."""
        try:
            packets = rtcp.parse(data)
        except rtcp.RtcpError:
            self.malformed += 1
            return
        for packet in packets:
            if (
                isinstance(packet, rtcp.SenderReport)
                and self._receiver is not None
                and packet.ssrc == self._receiver.ssrc
            ):
                self._receiver.sender_reported(packet.ntp, now)
            if isinstance(packet, rtcp.SenderReport | rtcp.ReceiverReport):
                for block in packet.blocks:
                    if block.ssrc == self._sender.ssrc:
                        self._learn(block)

    def _learn(self, block: rtcp.ReportBlock) -> None:
        self.loss = block.fraction_lost
        self._sender.set_loss(0.0 if self._is_full() else block.fraction_lost)
        rtt = rtcp.round_trip(block, rtcp.ntp(self._wall()))
        if rtt is not None:
            self.rtt = rtt

    def _report(self, now: float) -> rtcp.Packet:
        sender = self._sender
        block = None if self._receiver is None else self._receiver.report_block(now)
        blocks = () if block is None else (block,)
        if sender.packets == self._sent_before:
            return rtcp.ReceiverReport(sender.ssrc, blocks)
        self._sent_before = sender.packets
        return rtcp.SenderReport(
            ssrc=sender.ssrc,
            ntp=rtcp.ntp(self._wall()),
            timestamp=sender.timestamp(now),
            packets=sender.packets,
            octets=sender.octets,
            blocks=blocks,
        )

    def _name(self) -> rtcp.Packet:
        return rtcp.SourceDescription(self._sender.ssrc, self._cname)
