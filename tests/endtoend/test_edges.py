"""What the relay keeps out, and what it leaves alone, on the real interfaces."""

import os
import socket
import struct
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from loader.maps import Maps
from tests.endtoend.waiting import eventually
from tools.labstate import Lab
from tools.netns import run_in

families = pytest.mark.parametrize(
    "family", [socket.AF_INET, socket.AF_INET6], ids=["IPv4", "IPv6"]
)


def binding_request(ufrag: str) -> bytes:
    """As a client's first packet, but for the integrity that the relay cannot check."""
    username = f"{ufrag}:abcd".encode()
    attribute = struct.pack("!HH", 6, len(username)) + username.ljust(-(-len(username) // 4) * 4)
    return struct.pack("!HHI", 1, len(attribute), 0x2112A442) + os.urandom(12) + attribute


def vip_of(lab: Lab, family: socket.AddressFamily) -> tuple[str, int]:
    return lab.vip if family == socket.AF_INET else lab.vip6


def client_socket(lab: Lab, family: socket.AddressFamily) -> socket.socket:
    """A UDP socket of the client's, which remembers errors (ICMP) of what it sent."""

    def make() -> socket.socket:
        made = socket.socket(family, socket.SOCK_DGRAM)
        made.settimeout(0.5)
        made.connect(vip_of(lab, family))
        return made

    return run_in(lab.client_namespace, make)


@pytest.mark.parametrize(
    ("datagram", "reason"),
    [
        (binding_request("nosuchufrag"), "no_route"),
        (b"\x80\x00" + bytes(170), "no_flow"),  # RTP
        (b"\x16\xfe\xfd" + bytes(50), "no_flow"),  # DTLS
        (b"GET / HTTP/1.1\r\n\r\n", "class"),
    ],
    ids=["unknown ufrag", "media", "handshake", "noise"],
)
@families
def test_a_stranger_gets_nothing(
    lab: Lab, maps: Maps, family: socket.AddressFamily, datagram: bytes, reason: str
) -> None:
    before = maps.counters()
    with client_socket(lab, family) as stranger:
        stranger.send(datagram)
        eventually(
            "the drop is counted",
            lambda: maps.counters().dropped[reason] == before.dropped[reason] + 1,
        )
        with pytest.raises(TimeoutError):
            stranger.recv(2048)
    after = maps.counters()
    assert after.to_transceiver == before.to_transceiver
    assert after.to_client == before.to_client


def test_a_transceivers_udp_port_is_reached_through_the_vip_alone(lab: Lab) -> None:
    address, port = lab.transceivers[0].udp.split(":")

    def knock() -> bytes:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as direct:
            direct.settimeout(0.5)
            direct.connect((address, int(port)))
            direct.send(binding_request("whatever"))
            return direct.recv(2048)

    with pytest.raises(TimeoutError):
        run_in(lab.client_namespace, knock)


@families
def test_tcp_to_the_relay_host_goes_on(lab: Lab, family: socket.AddressFamily) -> None:
    """As SSH would: the VIP's own address, the interface that carries the program."""
    payload = os.urandom(1 << 20)
    echoed = _through_tcp(
        lab,
        family,
        lambda connection: connection.sendall(_read(connection, len(payload))),
        payload,
    )
    assert echoed == payload


def _through_tcp(
    lab: Lab,
    family: socket.AddressFamily,
    serve: Callable[[socket.socket], None],
    payload: bytes,
) -> bytes:
    place = vip_of(lab, family)[0], 2222
    listener = run_in(lab.relay_namespace, lambda: socket.create_server(place, family=family))
    listener.settimeout(10)

    def accept() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(10)
            serve(connection)

    with listener:
        server = threading.Thread(target=accept)
        server.start()

        def talk() -> bytes:
            with socket.create_connection(place, timeout=10) as connection:
                writer = threading.Thread(target=connection.sendall, args=(payload,))
                writer.start()
                received = _read(connection, len(payload))
                writer.join()
                return received

        try:
            return run_in(lab.client_namespace, talk)
        finally:
            server.join(15)


def _read(connection: socket.socket, length: int) -> bytes:
    received = bytearray()
    while len(received) < length:
        piece = connection.recv(1 << 16)
        if not piece:
            break
        received += piece
    return bytes(received)


def test_a_transceiver_has_no_privilege(lab: Lab) -> None:
    for process in lab.processes:
        if process.name.startswith("x"):
            status = Path(f"/proc/{process.pid}/status").read_text()
            sets = {
                line.split()[0]: line.split()[1] for line in status.splitlines() if "Cap" in line
            }
            assert set(sets.values()) == {"0" * 16}


def test_a_transceiver_loads_no_bcc(lab: Lab) -> None:
    for process in lab.processes:
        if process.name.startswith("x"):
            assert "libbcc" not in Path(f"/proc/{process.pid}/maps").read_text()
