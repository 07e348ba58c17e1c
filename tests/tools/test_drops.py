"""Drops of the kernel's own are told by name and place."""

import os
import socket
from collections.abc import Iterator
from contextlib import closing, suppress

import pytest
from pyroute2 import IPRoute, netns

from tools.bench.drops import dropped, since
from tools.netns import create, run_in


@pytest.fixture
def namespace() -> Iterator[str]:
    """One with nothing but a loopback interface."""
    name = f"t-drops-{os.getpid()}"
    create(name)
    yield name
    netns.remove(name)


def moved(before: dict[str, int], after: dict[str, int]) -> dict[str, int]:
    """Without what the whole machine shares."""
    return {name: n for name, n in since(before, after).items() if not name.startswith("softnet")}


@pytest.mark.parametrize(
    ("family", "address", "udp"),
    [(socket.AF_INET, "127.0.0.1", "Udp"), (socket.AF_INET6, "::1", "Udp6")],
)
def test_a_receiver_that_is_too_small_is_named(
    namespace: str, family: socket.AddressFamily, address: str, udp: str
) -> None:
    def overflow() -> int:
        with IPRoute() as netlink:
            netlink.link("set", index=1, state="up")
        with (
            closing(socket.socket(family, socket.SOCK_DGRAM)) as sink,
            closing(socket.socket(family, socket.SOCK_DGRAM)) as source,
        ):
            sink.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
            sink.bind((address, 0))
            for _ in range(100):
                source.sendto(bytes(1000), sink.getsockname())
            sink.setblocking(False)
            came = 0
            with suppress(BlockingIOError):
                while sink.recv(1000):
                    came += 1
            return came

    before = dropped({"here": namespace})
    came = run_in(namespace, overflow)
    found = moved(before, dropped({"here": namespace}))

    assert 0 < came < 100
    assert found[f"here {udp}RcvbufErrors"] == 100 - came
    assert set(found) == {f"here {udp}RcvbufErrors", f"here {udp}InErrors"}


def test_each_interface_is_asked(namespace: str) -> None:
    counters = dropped({"here": namespace})

    assert {"here lo rx_dropped", "here lo tx_dropped", "softnet dropped"} <= set(counters)
    assert moved(counters, dropped({"here": namespace})) == {}
