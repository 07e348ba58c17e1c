"""Many datagrams by one call, over loopback."""

import socket
from collections.abc import Iterator
from contextlib import closing

import numpy as np
import pytest

from tools.bench.mmsg import Batch, pack_address, stamped

LOOPBACK = {"127.0.0.1": socket.AF_INET, "::1": socket.AF_INET6}


@pytest.fixture(params=LOOPBACK)
def ends(request: pytest.FixtureRequest) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two sockets of a family."""
    family = LOOPBACK[request.param]
    with (
        closing(socket.socket(family, socket.SOCK_DGRAM)) as one,
        closing(socket.socket(family, socket.SOCK_DGRAM)) as other,
    ):
        for end in (one, other):
            end.bind((request.param, 0))
        stamped(other)
        yield one, other


def test_all_of_a_batch_arrive_with_their_lengths_and_their_source(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    one, other = ends
    outgoing, incoming = Batch(4, 20), Batch(8, 32)
    outgoing.payloads[:] = np.arange(80).reshape(4, 20)
    outgoing.address(pack_address(*other.getsockname()[:2]), 0, 4)

    assert outgoing.send(one.fileno(), 0, 4) == 4
    assert incoming.receive(other.fileno(), 2, 6) == 4

    came = slice(2, 6)
    assert (incoming.payloads[came, :20] == outgoing.payloads).all()
    assert incoming.lengths[came].tolist() == [20] * 4
    source = pack_address(*one.getsockname()[:2])
    assert (incoming.names[came, : len(source)] == source).all()
    assert (np.diff(incoming.times[came]) >= 0).all()
    assert (incoming.times[came] > 0).all()
    assert not incoming.payloads[:2].any()


def test_a_connected_socket_needs_no_address(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    one, other = ends
    one.connect(other.getsockname())
    outgoing = Batch(2, 20)

    assert outgoing.send(one.fileno(), 1, 1) == 1
    assert len(other.recv(100)) == 20


def test_where_nothing_waits_it_does_not_wait(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    with pytest.raises(BlockingIOError):
        Batch(1, 20).receive(ends[1].fileno(), 0, 1)


@pytest.mark.parametrize(("first", "count"), [(0, 5), (4, 1), (-1, 1)])
def test_more_than_there_is_room_for_is_refused(first: int, count: int) -> None:
    with pytest.raises(IndexError):
        Batch(4, 20).receive(-1, first, count)
