"""The frames that benches measure with are what clients and transceivers send."""

import ipaddress

import pytest
from scapy.contrib.stun import STUN
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from loader import bpf
from tools.bench import frames
from tools.bench.frames import Endpoint
from tools.bench.generator import Generator, Plan, Vary, client, template, ufrag

REDIRECT = 4
FROM4 = Endpoint("192.0.2.1", 4711, frames.CLIENT_MAC)
TO4 = Endpoint("198.18.0.1", 3478, frames.PUBLIC_MAC)
FROM6 = Endpoint("2001:db8:1::1", 4711, frames.CLIENT_MAC)
TO6 = Endpoint("2001:db8:2::1", 3478, frames.PUBLIC_MAC)
PAYLOADS = {
    "media": frames.media(),
    "request": frames.stun_request(ufrag(0, "/asked+4")),
    "success": frames.stun_success(),
    "junk": frames.junk(),
}


@pytest.fixture(scope="module")
def generator() -> Generator:
    return Generator()


def plan(**fields: int) -> Plan:
    values = {"routed": 8, "routes": 1 << 20, "transceivers": 4, "ports": 1000, "first_port": 2000}
    return Plan(**{**values, **fields})


def write(generator: Generator, made: bytes, how: Plan, before: bytes) -> bytes:
    """One frame, written over the one *before*."""
    generator.write([made], how)
    run = bpf.test_run(generator.generate, before)
    assert run.verdict == REDIRECT
    return run.frame


def parsed(octets: bytes) -> Packet:
    """The frame's headers, after a look at both checksums: scapy works them out itself."""
    packet = Ether(octets)
    network = packet[IPv6] if IPv6 in packet else packet[IP]
    fresh = network.copy()
    if IP in fresh:
        del fresh[IP].chksum
    del fresh[UDP].chksum
    assert bytes(fresh) == bytes(network)
    return packet


@pytest.mark.parametrize("payload", PAYLOADS.values(), ids=PAYLOADS.keys())
@pytest.mark.parametrize(("source", "destination"), [(FROM4, TO4), (FROM6, TO6)], ids=["4", "6"])
def test_a_frame_is_what_scapy_takes_it_for(
    source: Endpoint, destination: Endpoint, payload: bytes
) -> None:
    octets = frames.frame(source, destination, payload)

    packet = parsed(octets)

    network = packet[IPv6] if IPv6 in packet else packet[IP]
    assert (network.src, packet[UDP].sport) == (source.address, source.port)
    assert (network.dst, packet[UDP].dport) == (destination.address, destination.port)
    assert octets.endswith(payload)


@pytest.mark.parametrize("number", [0, 1, 77, 999_999])
def test_a_clients_frames_are_its_numbers(generator: Generator, number: int) -> None:
    octets = frames.frame(FROM4, TO4, frames.stun_request(ufrag(0, "/asked+4")))
    made = template(octets, Vary.CLIENT | Vary.UFRAG | Vary.TRANSACTION)

    packet = parsed(write(generator, made, plan(next=number), octets))

    found = int(ipaddress.IPv4Address(packet[IP].src)), packet[UDP].sport
    assert found == client(number)
    message = STUN(bytes(packet[UDP].payload))
    assert message.transaction_id & 0xFFFFFFFF == int.from_bytes(
        number.to_bytes(4, "little"), "big"
    )
    assert message.attributes[0].username == f"{ufrag(number // 8, '/asked+4')}:clnt".encode()


def test_clients_differ_in_address_and_port() -> None:
    clients = [client(number) for number in range(10_000)]

    assert len({address for address, _ in clients}) == len(clients)
    assert len({port for _, port in clients}) > len(clients) // 2


@pytest.mark.parametrize("number", [0, 999, 1000, 54_321])
def test_a_transceivers_frames_go_to_the_numbers_slot(generator: Generator, number: int) -> None:
    first, inside = (int(ipaddress.IPv4Address(e)) for e in ("198.18.1.16", "198.19.0.1"))
    octets = frames.frame(FROM4, TO4, frames.media())
    how = plan(next=number, transceiver=first, inside=inside)

    packet = parsed(write(generator, template(octets, Vary.SLOT), how, octets))

    assert int(ipaddress.IPv4Address(packet[IP].src)) == first + number // 8 % 4
    assert int(ipaddress.IPv4Address(packet[IP].dst)) == inside + number // 1000
    assert packet[UDP].dport == 2000 + number % 1000


@pytest.mark.parametrize(("source", "destination"), [(FROM4, TO4), (FROM6, TO6)], ids=["4", "6"])
def test_ports_and_ufrags_vary_in_both_families(
    generator: Generator, source: Endpoint, destination: Endpoint
) -> None:
    octets = frames.frame(source, destination, frames.stun_request(ufrag(0, "/asked+4")))
    made = template(octets, Vary.PORT | Vary.UFRAG | Vary.TRANSACTION)

    packet = parsed(write(generator, made, plan(next=4321), octets))

    assert packet[UDP].sport == 1024 + 4321


def test_a_stranger_is_no_client(generator: Generator) -> None:
    octets = frames.frame(FROM4, TO4, frames.stun_request(ufrag(0, "/asked+4")))
    made = template(octets, Vary.STRANGER | Vary.GUESS | Vary.TRANSACTION)

    sources = {parsed(write(generator, made, plan(numbers=100), octets))[IP].src for _ in range(20)}

    assert len(sources) > 10
    assert all(80 <= int(source.split(".")[0]) < 96 for source in sources)
    assert all(16 <= client(number)[0] >> 24 < 80 for number in range(10_000))


@pytest.mark.parametrize("growth", [20, -20])
def test_a_frame_of_another_length_is_restored(generator: Generator, growth: int) -> None:
    octets = frames.frame(FROM4, TO4, frames.media())
    before = bytes(growth) + octets if growth > 0 else octets[-growth:]

    assert write(generator, template(octets), plan(), before) == octets


def test_templates_are_drawn_evenly(generator: Generator) -> None:
    with pytest.raises(ValueError, match="3 templates"):
        generator.write([b""] * 3, plan())
