"""IPv6 extension headers and fragments: the relay takes none, and leaves others' to the kernel."""

import struct
from collections.abc import Callable

import pytest
from scapy.layers.inet import UDP
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
)
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from tests.packets import messages
from tests.packets.frames import SECOND_INSIDE_ADDRESS6, tagged
from tests.packets.relay import (
    CLIENT6,
    INSIDE_ADDRESS6,
    INSIDE_MAC,
    PORTS,
    UFRAG6,
    VIP6,
    X6,
    Relay,
)

ASK = Raw(bytes(messages.request(UFRAG6)))
KINDS: dict[str, Callable[[], Packet]] = {
    "hop-by-hop": IPv6ExtHdrHopByHop,
    "routing": IPv6ExtHdrRouting,
    "destination options": IPv6ExtHdrDestOpt,
}
FIRST, ATOMIC = IPv6ExtHdrFragment(m=1), IPv6ExtHdrFragment()
UDP_NEXT = {"nh": 17}


def to_vip(*headers: Packet, dport: int = VIP6.port, address: str = VIP6.address) -> Packet:
    """A client's request behind these headers."""
    frame = Ether(src=CLIENT6.mac, dst=VIP6.mac) / IPv6(src=CLIENT6.address, dst=address)
    for header in headers:
        frame /= header
    return frame / UDP(sport=CLIENT6.port, dport=dport) / ASK


def to_inside(*headers: Packet, dport: int = PORTS[0], address: str = INSIDE_ADDRESS6) -> Packet:
    """A transceiver's packet behind these headers."""
    frame = Ether(src=X6.mac, dst=INSIDE_MAC) / IPv6(src=X6.address, dst=address)
    for header in headers:
        frame /= header
    return frame / UDP(sport=X6.port, dport=dport) / ASK


@pytest.mark.parametrize("kind", KINDS)
def test_any_one_before_udp_to_the_vip_is_dropped(relay: Relay, kind: str) -> None:
    assert relay.receive(to_vip(KINDS[kind]())).reason == "ip_options"


@pytest.mark.parametrize("kind", KINDS)
def test_also_in_an_established_flow(relay: Relay, kind: str) -> None:
    slot = relay.proven(CLIENT6, UFRAG6)
    assert relay.receive(to_vip(KINDS[kind]())).reason == "ip_options"
    outcome = relay.receive(to_inside(KINDS[kind](), dport=slot), on=relay.interfaces.inside)
    assert outcome.reason == "ip_options"


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_up_to_four_are_read(relay: Relay, count: int) -> None:
    headers = [IPv6ExtHdrDestOpt() for _ in range(count)]
    assert relay.receive(to_vip(*headers)).reason == "ip_options"
    assert relay.receive(to_vip(*headers, dport=53)).passed
    other = "2001:db8:18::7"
    assert relay.receive(to_vip(*headers, address=other)).passed


@pytest.mark.parametrize("count", [5, 6, 20])
@pytest.mark.parametrize("address", [VIP6.address, INSIDE_ADDRESS6, SECOND_INSIDE_ADDRESS6])
def test_more_than_four_to_an_address_of_the_relay_are_dropped(
    relay: Relay, count: int, address: str
) -> None:
    headers = [IPv6ExtHdrDestOpt() for _ in range(count)]
    assert relay.receive(to_vip(*headers, address=address, dport=53)).reason == "ip_options"


def test_more_than_four_to_another_address_are_the_kernels(relay: Relay) -> None:
    headers = [IPv6ExtHdrDestOpt() for _ in range(5)]
    assert relay.receive(to_vip(*headers, address="2001:db8:18::7")).passed


@pytest.mark.parametrize("size", [1, 2, 10, 31])
def test_long_headers_are_stepped_over(relay: Relay, size: int) -> None:
    options = [struct.pack("!BB", 30, 8 * size - 2) + bytes(8 * size - 2)]
    header = IPv6ExtHdrDestOpt(len=size, nh=17) / Raw(bytes(options[0]))
    assert len(bytes(header)) == 8 * (size + 1)
    frame = Ether(src=CLIENT6.mac, dst=VIP6.mac) / IPv6(
        src=CLIENT6.address, dst=VIP6.address, nh=60
    )
    raw = bytes(header)[: 8 * (size + 1)]
    behind = bytes(UDP(sport=1, dport=VIP6.port, chksum=1) / ASK)
    assert relay.receive(frame / Raw(raw + behind)).reason == "ip_options"
    behind = bytes(UDP(sport=1, dport=53, chksum=1) / ASK)
    assert relay.receive(frame / Raw(raw + behind)).passed


def test_other_protocols_behind_them_are_the_kernels(relay: Relay) -> None:
    frame = Ether(src=CLIENT6.mac, dst=VIP6.mac) / IPv6(src=CLIENT6.address, dst=VIP6.address)
    assert relay.receive(frame / IPv6ExtHdrHopByHop() / ICMPv6EchoRequest()).passed
    assert relay.receive(frame / FIRST / ICMPv6EchoRequest()).passed


@pytest.mark.parametrize("header", [FIRST, ATOMIC], ids=["first", "the only one"])
def test_a_fragment_to_the_vip_is_dropped(relay: Relay, header: Packet) -> None:
    assert relay.receive(to_vip(header)).reason == "fragment"
    assert relay.receive(to_vip(header, dport=53)).passed


def test_a_fragment_behind_other_headers_is_a_fragment(relay: Relay) -> None:
    assert relay.receive(to_vip(IPv6ExtHdrHopByHop(), ATOMIC)).reason == "fragment"
    assert relay.receive(to_vip(FIRST, IPv6ExtHdrDestOpt())).reason == "fragment"


def later(
    address: str, *, next: int = 17, offset: int = 1, m: int = 0, payload: bytes = b"\x80" * 40
) -> Packet:
    """A fragment but the first."""
    return (
        Ether(src=CLIENT6.mac, dst=VIP6.mac)
        / IPv6(src=CLIENT6.address, dst=address)
        / IPv6ExtHdrFragment(offset=offset, m=m, nh=next)
        / Raw(payload)
    )


@pytest.mark.parametrize("m", [0, 1])
@pytest.mark.parametrize("offset", [1, 181, 0x1FFF])
def test_a_later_fragment_of_udp_to_the_vip_is_dropped(relay: Relay, offset: int, m: int) -> None:
    assert relay.receive(later(VIP6.address, offset=offset, m=m)).reason == "fragment"


@pytest.mark.parametrize("next", [6, 44, 58, 60])
def test_a_later_fragment_of_anything_else_is_the_kernels(relay: Relay, next: int) -> None:
    """Not of UDP as far as its header says: in this place nobody can look further."""
    assert relay.receive(later(VIP6.address, next=next)).passed
    looks_like_a_header = b"\x11" + bytes(39)
    assert relay.receive(later(VIP6.address, next=next, payload=looks_like_a_header)).passed


@pytest.mark.parametrize("address", [INSIDE_ADDRESS6, "2001:db8:18::7"])
def test_a_later_fragment_to_another_address_is_the_kernels(relay: Relay, address: str) -> None:
    assert relay.receive(later(address)).passed


@pytest.mark.parametrize("header", [IPv6ExtHdrDestOpt(), ATOMIC], ids=["options", "fragment"])
def test_to_the_inside_the_interface_comes_first(relay: Relay, header: Packet) -> None:
    assert relay.receive(to_inside(header)).reason == "wrong_interface"
    outcome = relay.receive(to_inside(header), on=relay.interfaces.inside)
    assert outcome.reason == ("fragment" if header is ATOMIC else "ip_options")
    outside = to_inside(header, dport=PORTS.stop)
    assert relay.receive(outside, on=relay.interfaces.inside).passed


def test_ipv4_options_to_the_inside_likewise(relay: Relay) -> None:
    slot = relay.proven()
    outcome = relay.from_transceiver(
        messages.rtp(), to=slot, ip={"flags": "MF"}, on=relay.interfaces.public
    )
    assert outcome.reason == "wrong_interface"


def test_a_cut_header_chain_is_the_kernels(relay: Relay) -> None:
    whole = bytes(to_vip(IPv6ExtHdrHopByHop(), ATOMIC, IPv6ExtHdrDestOpt()))
    for size in range(54, 54 + 8 * 3 + 8):
        assert relay.receive(whole[:size]).passed
    assert relay.receive(whole[: 54 + 8 * 3 + 8]).reason == "fragment"


def test_a_header_that_leads_beyond_the_frame_is_the_kernels(relay: Relay) -> None:
    frame = bytearray(bytes(to_vip(IPv6ExtHdrDestOpt())))
    frame[55] = 0xFF
    assert relay.receive(bytes(frame)).passed


def test_in_a_vlan_likewise(relay: Relay) -> None:
    assert relay.receive(tagged(to_vip(IPv6ExtHdrDestOpt()), 7)).reason == "ip_options"


@pytest.mark.parametrize("next", [50, 51, 59, 135, 139, 140])
def test_other_headers_are_the_kernels(relay: Relay, next: int) -> None:
    """ESP, AH, none, mobility, HIP, shim6."""
    frame = Ether(src=CLIENT6.mac, dst=VIP6.mac) / IPv6(
        src=CLIENT6.address, dst=VIP6.address, nh=next
    )
    behind = Raw(bytes([17]) + bytes(7) + bytes(UDP(dport=VIP6.port, chksum=1) / ASK))
    assert relay.receive(frame / behind).passed
