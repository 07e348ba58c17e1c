"""A relay host and numbered traffic through it, for tests of what shall lose no packet.

with stream(agent, flows=16) as running:
    running.carry(25_000)
    agent.kill()
    …
    report = running.stop()
assert_nothing_lost(report)
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from pyroute2.ethtool.ioctl import IoctlEthtool

from loader.daemon import unload
from tests.loader.conftest import (
    PINS,
    TRANSCEIVER,
    VIP,
    VIP6,
    AgentProcess,
    make_host,
    remove_host,
)
from tools.bench import traffic
from tools.bench.traffic import Ends, Report, Stream
from tools.netns import run_in

__all__ = ["RATE", "assert_nothing_lost", "ends", "relay_host", "stream"]

RATE = 50_000
"""Packets a second that the issue asks for at least, both directions together."""
_TO_SPARE = 1.1  # so that a moment in which the machine did something else does not matter
_PORTS = "20000-21023"  # a closed slot rests for ten seconds, and each stream has its own flows


@contextmanager
def relay_host(name: str, folder: Path) -> Iterator[AgentProcess]:
    """A host whose clients and transceivers the program's packets reach, and its agent."""
    host = make_host(name)
    try:
        run_in(host.outside, _batch_for_xdp)
        pins = PINS.with_name(f"shunt-{name}")
        agent = AgentProcess(host, folder, pins, ports=_PORTS)
        try:
            yield agent
        finally:
            agent.stop()
            host.run(lambda: unload(pins))
    finally:
        remove_host(host)


def _batch_for_xdp() -> None:
    """A veth delivers what XDP_REDIRECT sends it only if its other end has NAPI."""
    for interface in ("client", "behind"):
        ethtool = IoctlEthtool(interface)
        try:
            ethtool.set_offload_flag("generic-receive-offload", 1)
        finally:
            ethtool.close()


def stream(agent: AgentProcess, *, flows: int = 16) -> AbstractContextManager[Stream]:
    """Traffic through the host of *agent*, at RATE or a little more, half of it each way. See
    `tools.bench.traffic.stream`."""
    return traffic.stream(ends(agent), flows=flows, rate=RATE * _TO_SPARE)


def ends(agent: AgentProcess) -> Ends:
    """Of the host of *agent*; every second client is an IPv6 one."""
    return Ends(
        clients=(
            ("198.18.0.10", (VIP.address, VIP.port)),
            ("2001:db8:18::10", (VIP6.address, VIP6.port)),
        ),
        transceiver=(TRANSCEIVER, 40000),
        client_namespace=agent.host.outside,
        transceiver_namespace=agent.host.outside,
        relay_namespace=agent.host.relay,
        socket=str(agent.socket),
        pins=agent.pins,
    )


def assert_nothing_lost(report: Report) -> None:
    """Not a packet, of as many as the issue asks for."""
    assert report.faults == {}, f"\n{report}"
    assert report.rate >= RATE, f"the machine did not carry it:\n{report}"
