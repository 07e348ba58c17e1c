"""What became of a frame, held to what is true of every packet."""

from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property

from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from loader.maps import Counters, Rate
from tests.packets.frames import UDP_PROTOCOL, Layout, correct_checksums, layout

__all__ = ["Outcome", "Verdict", "account"]

_FAMILIES_DIFFER = 20  # bytes from an IPv4 header to an IPv6 header
_TAG = 4


class Verdict(IntEnum):
    """`enum xdp_action`."""

    ABORTED = 0
    DROP = 1
    PASS = 2
    TX = 3
    REDIRECT = 4


@dataclass(frozen=True)
class Outcome:
    """What became of a frame."""

    verdict: Verdict
    reason: str | None
    """Why it was dropped."""
    received: bytes
    frame: bytes
    """As it left the program."""

    @property
    def passed(self) -> bool:
        """Left to the kernel."""
        return self.verdict is Verdict.PASS

    @property
    def forwarded(self) -> bool:
        return self.reason is None and self.verdict in (Verdict.TX, Verdict.REDIRECT)

    @property
    def answered(self) -> bool:
        """Dropped, and its sender is told by an ICMP error, which is `frame`."""
        return self.reason is not None and self.verdict is Verdict.TX

    @cached_property
    def layout(self) -> Layout:
        return layout(self.frame)

    @cached_property
    def ethernet(self) -> Packet:
        return Ether(self.frame[:14])

    @property
    def tci(self) -> int | None:
        """Of the 802.1Q tag, if there is one."""
        return self.layout.tci

    @cached_property
    def ip(self) -> Packet:
        """The IP header alone."""
        header = self.frame[self.layout.ip : self.layout.transport]
        return IPv6(header) if self.layout.version == 6 else IP(header)

    @cached_property
    def udp(self) -> Packet:
        """The UDP header alone, or scapy takes whatever follows for STUN."""
        return UDP(self.frame[self.layout.transport : self.layout.transport + 8])

    @property
    def packet(self) -> bytes:
        """The IP packet."""
        return self.frame[self.layout.ip : self.layout.end]

    @property
    def payload(self) -> bytes:
        """Of the UDP datagram."""
        return self.frame[self.layout.transport + 8 : self.layout.end]

    @property
    def icmp(self) -> bytes:
        """What follows the IP header."""
        return self.frame[self.layout.transport : self.layout.end]

    @property
    def addresses(self) -> tuple[str, int, str, int]:
        """Source and destination."""
        return self.ip.src, self.udp.sport, self.ip.dst, self.udp.dport

    @property
    def checksums(self) -> tuple[int, int]:
        """Of IP (0 for IPv6) and UDP, as they are in the frame."""
        at = self.layout
        of_ip = self.frame[at.ip + 10 : at.ip + 12] if at.version == 4 else b""
        of_udp = self.frame[at.transport + 6 : at.transport + 8]
        return int.from_bytes(of_ip, "big"), int.from_bytes(of_udp, "big")

    @property
    def is_right(self) -> bool:
        """Whether the checksums are what they ought to be, none (0) not among it."""
        return self.checksums == correct_checksums(self.frame)


def account(
    verdict: Verdict, received: bytes, frame: bytes, before: Counters, after: Counters
) -> Outcome:
    """The outcome. Raises AssertionError unless exactly one counter has moved, by one packet and
    the right number of bytes, and what is not sent on is unchanged."""
    moved = {name: n - before.dropped[name] for name, n in after.dropped.items()}
    reasons = [name for name, n in moved.items() for _ in range(n)]
    counted = {
        name: Rate(now.packets - was.packets, now.bytes - was.bytes)
        for name, now, was in (
            ("passed", after.passed, before.passed),
            ("to_transceiver", after.to_transceiver, before.to_transceiver),
            ("to_client", after.to_client, before.to_client),
        )
        if now != was
    }
    outcome = Outcome(verdict, reasons[0] if reasons else None, received, frame)
    assert len(reasons) + len(counted) == 1, (reasons, counted)
    if outcome.forwarded:
        _check_forwarded(outcome, counted)
        return outcome
    if outcome.answered:
        assert outcome.reason == "mtu"
        return outcome
    assert frame == received, "changed, but not sent on"
    if outcome.passed:
        assert counted == {"passed": Rate(1, len(received))}
    else:
        assert verdict is Verdict.DROP
        assert not counted
    return outcome


def _check_forwarded(outcome: Outcome, counted: dict[str, Rate]) -> None:
    was, now = layout(outcome.received), outcome.layout
    (direction,) = counted
    on_clients_side = {
        "to_transceiver": was.end - was.ip,
        "to_client": now.end - now.ip,
    }
    assert counted[direction] == Rate(1, on_clients_side[direction])
    if outcome.received[was.ip + (6 if was.version == 6 else 9)] != UDP_PROTOCOL:
        return  # a quoted packet may change its length
    longer = (now.version - was.version) // 2 * _FAMILIES_DIFFER
    longer += _TAG * ((now.tci is not None) - (was.tci is not None))
    assert len(outcome.frame) == len(outcome.received) + longer
