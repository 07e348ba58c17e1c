"""What is not the relay's is left to the kernel, untouched."""

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.packet import Packet, Raw

from tests.packets import messages
from tests.packets.relay import (
    CLIENT,
    INSIDE_ADDRESS,
    PORTS,
    VIP,
    X1,
    Endpoint,
    Relay,
    client_frame,
)

LINK = Ether(src=CLIENT.mac, dst=VIP.mac)
TO_VIP = IP(src=CLIENT.address, dst=VIP.address)
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
    "IPv6": LINK / IPv6(dst="2001:db8:18::1") / UDP(dport=VIP.port) / ASK,
    "IPv4 in a VLAN": LINK / Dot1Q(vlan=7) / TO_VIP / UDP(dport=VIP.port) / ASK,
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
