"""What the kernels at both ends learn of the path through the relay: its MTU, and who is not there.

Nothing here is simulated: routers, sockets and their error queues are the kernel's.
"""

import errno
import select
import socket
import struct
from collections.abc import Callable

import pytest

from tests.endtoend.chain import FAMILIES, MIXES, Chain, Family, between, path_mtu
from tests.endtoend.waiting import eventually
from tests.packets import messages

NARROW = 1400  # bytes of an IP packet, on one link; all others take 1500

# Values of linux/in.h, linux/in6.h and linux/errqueue.h; Python's socket module has none of them.
IP_RECVERR, IPV6_RECVERR = 11, 25
ORIGIN_ICMP = {4: 2, 6: 3}
PORT_UNREACHABLE = {4: (3, 3), 6: (1, 4)}  # type, code


@pytest.fixture
def path(two_armed: Chain) -> Chain:
    """The chain, with nothing learned of the path so far."""
    two_armed.forget_path_mtus()
    return two_armed


def as_seen(mtu: int, *, on: Family, by: Family) -> int:
    """An MTU of one family's packets, in packets of the other: headers differ by 20 bytes."""
    return mtu - on.header + by.header


def test_a_path_is_as_wide_as_its_links_before_anything_is_learned(path: Chain) -> None:
    for family in FAMILIES:
        assert path_mtu(path, "transceiver", family, family.inside) == 1500
        assert path_mtu(path, "client", family, family.vip) == 1500


@between
def test_a_transceiver_learns_of_a_narrow_link_before_the_client(
    path: Chain, client: Family, transceiver: Family
) -> None:
    narrow = path.mtu(NARROW, ("outer", "client"), ("client", "outer"))
    with path.flow(client, transceiver) as flow, narrow:
        seen = as_seen(NARROW, on=client, by=transceiver)
        too_long = media(transceiver.payload(seen) + 1)
        learns(lambda: flow.transceiver.sendto(too_long, flow.peer))
        assert path_mtu(path, "transceiver", transceiver, transceiver.inside) == seen
        flow.down(media(transceiver.payload(seen)))


@between
def test_a_client_learns_of_a_narrow_link_before_the_transceiver(
    path: Chain, client: Family, transceiver: Family
) -> None:
    narrow = path.mtu(NARROW, ("inner", "transceiver"), ("transceiver", "inner"))
    with path.flow(client, transceiver) as flow, narrow:
        seen = as_seen(NARROW, on=transceiver, by=client)
        too_long = media(client.payload(seen) + 1)
        learns(lambda: flow.client.sendto(too_long, flow.vip))
        assert path_mtu(path, "client", client, client.vip) == seen
        flow.up(media(client.payload(seen)))


@between
def test_a_transceiver_learns_of_the_relays_own_narrow_link(
    path: Chain, client: Family, transceiver: Family
) -> None:
    with path.relay_mtu(NARROW, "public"), path.flow(client, transceiver) as flow:
        seen = as_seen(NARROW, on=client, by=transceiver)
        too_long = media(transceiver.payload(seen) + 1)
        learns(lambda: flow.transceiver.sendto(too_long, flow.peer))
        assert path_mtu(path, "transceiver", transceiver, transceiver.inside) == seen
        flow.down(media(transceiver.payload(seen)))


@between
def test_a_client_learns_of_the_relays_own_narrow_link(
    path: Chain, client: Family, transceiver: Family
) -> None:
    with path.relay_mtu(NARROW, "inside"), path.flow(client, transceiver) as flow:
        seen = as_seen(NARROW, on=transceiver, by=client)
        too_long = media(client.payload(seen) + 1)
        learns(lambda: flow.client.sendto(too_long, flow.vip))
        assert path_mtu(path, "client", client, client.vip) == seen
        flow.up(media(client.payload(seen)))


@pytest.mark.parametrize(
    ("client", "transceiver"), [mix for mix in MIXES if mix[0] is not mix[1]], ids=str
)
def test_between_families_the_relay_itself_is_the_narrow_place(
    path: Chain, client: Family, transceiver: Family
) -> None:
    """An IPv4 packet that fills its link is 20 bytes too long for the next one as IPv6."""
    short, long = sorted((client, transceiver), key=lambda family: family.header)
    seen = as_seen(1500, on=long, by=short)
    with path.flow(client, transceiver) as flow:
        if client is short:
            learns(lambda: flow.client.sendto(media(client.payload(1500)), flow.vip))
            assert path_mtu(path, "client", client, client.vip) == seen
        else:
            payload = media(transceiver.payload(1500))
            learns(lambda: flow.transceiver.sendto(payload, flow.peer))
            assert path_mtu(path, "transceiver", transceiver, transceiver.inside) == seen


@between
def test_a_transceiver_hears_that_its_client_is_gone(
    path: Chain, client: Family, transceiver: Family
) -> None:
    with path.flow(client, transceiver) as flow:
        flow.transceiver.setsockopt(*transceiver.option(IP_RECVERR, IPV6_RECVERR), 1)
        flow.client.close()
        flow.transceiver.sendto(media(100), flow.peer)
        assert refusal(flow.transceiver, transceiver) == (
            *(ORIGIN_ICMP[transceiver.version], *PORT_UNREACHABLE[transceiver.version]),
            *(transceiver.inside, flow.peer[1]),
        )


@between
def test_a_client_hears_that_its_transceiver_is_gone(
    path: Chain, client: Family, transceiver: Family
) -> None:
    with path.flow(client, transceiver) as flow:
        flow.client.setsockopt(*client.option(IP_RECVERR, IPV6_RECVERR), 1)
        flow.transceiver.close()
        flow.client.sendto(media(100), flow.vip)
        assert refusal(flow.client, client) == (
            *(ORIGIN_ICMP[client.version], *PORT_UNREACHABLE[client.version]),
            *(client.vip, 3478),
        )


def media(size: int) -> bytes:
    """An RTP packet of *size* bytes in all."""
    return bytes(messages.rtp(size - 12))


def learns(send: Callable[[], object]) -> None:
    """Until the kernel refuses: what it has learned comes a moment after the first packet."""

    def refused() -> bool:
        try:
            send()
        except OSError as error:
            if error.errno == errno.EMSGSIZE:
                return True
            raise
        return False

    eventually("the kernel has learned the path's MTU", refused)


def refusal(of: socket.socket, family: Family) -> tuple[int, int, int, str, int]:
    """The first entry of the socket's error queue: origin, type and code; who said it; and the port
    that it is about. Every entry is of a refused connection."""
    poll = select.poll()
    poll.register(of, 0)
    assert poll.poll(5000), "no ICMP error came"
    _data, ancillary, _flags, about = of.recvmsg(2048, 512, socket.MSG_ERRQUEUE)
    [said] = [
        data
        for level, kind, data in ancillary
        if (level, kind) == family.option(IP_RECVERR, IPV6_RECVERR)
    ]
    number, origin, kind, code = struct.unpack_from("=IBBB", said)
    assert number == errno.ECONNREFUSED
    offender = said[16:]  # struct sockaddr_in or sockaddr_in6
    packed = offender[4:8] if family.version == 4 else offender[8:24]
    return origin, kind, code, socket.inet_ntop(family.domain, packed), about[1]
