"""What is not the relay's is left to the kernel, untouched."""

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoRequest, ICMPv6ND_NS, IPv6
from scapy.layers.l2 import ARP, Dot1AD, Dot1Q, Ether
from scapy.packet import Packet, Raw

from tests.packets import messages
from tests.packets.frames import tagged
from tests.packets.relay import (
    CLIENT,
    CLIENT6,
    INSIDE_ADDRESS,
    INSIDE_ADDRESS6,
    PORTS,
    VIP,
    VIP6,
    X1,
    Endpoint,
    Relay,
    client_frame,
)

LINK = Ether(src=CLIENT.mac, dst=VIP.mac)
TO_VIP = IP(src=CLIENT.address, dst=VIP.address)
TO_VIP6 = IPv6(src=CLIENT6.address, dst=VIP6.address)
ASK = Raw(bytes(messages.request("ufragOfX1/session")))

NOT_THE_RELAYS = {
    "SSH to the VIP's address": LINK / TO_VIP / TCP(dport=22),
    "TCP to the VIP's port": LINK / TO_VIP / TCP(sport=CLIENT.port, dport=VIP.port),
    "ping of the VIP": LINK / TO_VIP / ICMP(),
    "UDP to another port of the VIP's address": LINK / TO_VIP / UDP(dport=53) / ASK,
    "UDP to another VIP's port": LINK / TO_VIP / UDP(dport=3479) / ASK,
    "UDP to another address": LINK / IP(dst="198.18.0.7") / UDP(dport=VIP.port) / ASK,
    "UDP to port 0 of no address": LINK / IP(dst="0.0.0.0") / UDP(dport=0) / ASK,
    "UDP below the inside ports": (
        LINK / IP(dst=INSIDE_ADDRESS) / UDP(dport=PORTS.start - 1) / ASK
    ),
    "UDP above the inside ports": LINK / IP(dst=INSIDE_ADDRESS) / UDP(dport=PORTS.stop) / ASK,
    "first fragment to another address": (
        LINK / IP(dst="198.18.0.7", flags="MF") / UDP(dport=VIP.port) / ASK
    ),
    "later fragment to another address": (
        LINK / IP(dst="198.18.0.7", proto=17, frag=64) / messages.dtls()
    ),
    "later fragment to the inside address": (
        LINK / IP(dst=INSIDE_ADDRESS, proto=17, frag=64) / messages.dtls()
    ),
    "first fragment to another port": LINK / IP(dst=VIP.address, flags="MF") / UDP(dport=53) / ASK,
    "ARP": LINK / ARP(psrc=CLIENT.address, pdst=VIP.address),
    "two tags": LINK / Dot1Q(vlan=7) / Dot1Q(vlan=8) / TO_VIP / UDP(dport=VIP.port) / ASK,
    "a provider's tag": (LINK / Dot1AD(vlan=7) / TO_VIP / UDP(dport=VIP.port) / ASK),
    "ARP in a VLAN": LINK / Dot1Q(vlan=7) / ARP(psrc=CLIENT.address, pdst=VIP.address),
    "a bare tag": LINK / Dot1Q(vlan=7, type=0x0800) / Raw(),
    "SSH to the VIP's IPv6 address": LINK / TO_VIP6 / TCP(dport=22),
    "ping of the VIP's IPv6 address": LINK / TO_VIP6 / ICMPv6EchoRequest(),
    "neighbour discovery": LINK / TO_VIP6 / ICMPv6ND_NS(tgt=VIP6.address),
    "UDP to another port of the IPv6 address": LINK / TO_VIP6 / UDP(dport=53) / ASK,
    "UDP to another IPv6 address": LINK / IPv6(dst="2001:db8:18::7") / UDP(dport=VIP.port) / ASK,
    "UDP to the unspecified address": LINK / IPv6(dst="::") / UDP(dport=0) / ASK,
    "UDP to the VIP's address as IPv4-mapped": (
        LINK / IPv6(src=CLIENT6.address, dst=f"::ffff:{VIP.address}") / UDP(dport=VIP.port) / ASK
    ),
    "UDP to the inside address as IPv4-mapped": (
        LINK / IPv6(dst=f"::ffff:{INSIDE_ADDRESS}") / UDP(dport=PORTS.start) / ASK
    ),
    "UDP to the VIP's address as IPv4-compatible": (
        LINK / IPv6(src=CLIENT6.address, dst=f"::{VIP.address}") / UDP(dport=VIP.port) / ASK
    ),
    "UDP-Lite to the VIP": LINK / IPv6(dst=VIP6.address, nh=136) / UDP(dport=VIP.port) / ASK,
    "IPv6 below the inside ports": (
        LINK / IPv6(dst=INSIDE_ADDRESS6) / UDP(dport=PORTS.start - 1) / ASK
    ),
    "IPv6 above the inside ports": (LINK / IPv6(dst=INSIDE_ADDRESS6) / UDP(dport=PORTS.stop) / ASK),
    "IPv6 that says it is version 4": (
        LINK / IPv6(dst=VIP6.address, version=4) / UDP(dport=VIP.port) / ASK
    ),
    "IPv4 under IPv6's EtherType": (
        Ether(src=CLIENT.mac, dst=VIP.mac, type=0x86DD) / TO_VIP / UDP(dport=VIP.port) / ASK
    ),
    "IPv4 that says it is version 6": (
        LINK / IP(dst=VIP.address, version=6) / UDP(dport=VIP.port) / ASK
    ),
    "IPv4 with a header shorter than a header": (
        LINK / IP(dst=VIP.address, ihl=4) / UDP(dport=VIP.port) / ASK
    ),
    "a bare Ethernet header": LINK / Raw(),
    "an unknown EtherType": Ether(src=CLIENT.mac, dst=VIP.mac, type=0x88CC) / Raw(bytes(64)),
}


@pytest.mark.parametrize("what", NOT_THE_RELAYS)
def test_it_is_left_to_the_kernel(relay: Relay, what: str) -> None:
    assert relay.receive(NOT_THE_RELAYS[what]).passed


@pytest.mark.parametrize("size", range(14, 42))
def test_a_runt_is_left_to_the_kernel(relay: Relay, size: int) -> None:
    assert relay.receive(bytes(client_frame(ASK))[:size]).passed


@pytest.mark.parametrize("size", range(14, 62))
def test_so_is_one_of_ipv6(relay: Relay, size: int) -> None:
    assert relay.receive(bytes(client_frame(ASK, client=CLIENT6))[:size]).passed


@pytest.mark.parametrize("size", range(14, 46))
def test_so_is_one_in_a_vlan(relay: Relay, size: int) -> None:
    assert relay.receive(tagged(client_frame(ASK), 7)[:size]).passed


def test_a_header_with_options_that_leave_no_room_for_udp_is_left_to_the_kernel(
    relay: Relay,
) -> None:
    frame = bytearray(bytes(client_frame(b"")))
    frame[14] = 0x4F
    assert relay.receive(bytes(frame)).passed


def test_a_relay_without_settings_leaves_everything_to_the_kernel(relay: Relay) -> None:
    relay.maps.configure(type(relay.maps.settings())())
    assert relay.from_client(ASK).passed


@pytest.mark.parametrize("destination", ["0.0.0.0", VIP.address])
def test_an_unused_vip_entry_matches_nothing(relay: Relay, destination: str) -> None:
    frame = client_frame(ASK, vip=Endpoint(destination, 0, VIP.mac))
    assert relay.receive(frame).passed


def test_a_transceivers_other_traffic_is_left_to_the_kernel(relay: Relay) -> None:
    frame: Packet = Ether() / IP(src=X1.address, dst="198.51.100.1") / UDP(sport=X1.port) / ASK
    assert relay.receive(frame, on=relay.interfaces.inside).passed


def test_the_inside_ports_are_no_ports_of_the_vip(relay: Relay) -> None:
    port = relay.established()
    assert relay.from_client(messages.rtp(), vip=Endpoint(VIP.address, port, VIP.mac)).passed


@pytest.mark.parametrize("ihl", range(5))
def test_nothing_is_read_behind_a_header_shorter_than_a_header(relay: Relay, ihl: int) -> None:
    """Where its end would be, the destination address stands: here it spells a VIP's port."""
    vip = Endpoint("198.18.13.150", 0x0D96, VIP.mac)
    relay.configure(vips=[vip])
    frame = client_frame(ASK, vip=vip, ip={"ihl": ihl, "flags": "MF"})
    assert relay.receive(frame).passed
