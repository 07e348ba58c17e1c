"""The processes that a bench asks: agents, each in a network namespace of its own, and what the
maps are filled with that one of them finds when it starts."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pyroute2 import IPRoute, netns

from loader import datapath, types
from loader.errors import ShuntError
from loader.flows import ticks
from loader.leases import write_lease
from loader.maps import Maps
from loader.pinned_set import remove_pins
from loader.table import LEASE_SECONDS, Lease, instance_number
from loader.types import State
from tools.bench.asking import ask, ask_all, request
from tools.bench.subject import FIRST_PORT, LAST_PORT
from tools.netns import RUN_DIR, create, run_in

__all__ = [
    "INSTANCE",
    "TRANSCEIVERS",
    "Agent",
    "Fill",
    "Server",
    "carry",
    "fill",
    "keep_alive",
    "serve",
]

INSTANCE = "the-one-process-of-this-bench"
TRANSCEIVERS = 64
_READY_SECONDS = 300.0
_HEARD_FOR = 3600.0  # seconds that flows' last packets lie ahead: none ends, however long it takes
_VIP = "198.18.0.1"


class Server:
    """A process that serves HTTP at a Unix socket, and stands still but while it is asked, so that
    of several on one CPU none is measured with another's work."""

    def __init__(
        self, arguments: list[str], folder: Path, *, namespace: str | None, cpu: int
    ) -> None:
        self.socket, self.log = folder / "socket", folder / "log"

        def start() -> "subprocess.Popen[bytes]":
            os.sched_setaffinity(0, {cpu})  # this thread's, and its children's
            with self.log.open("wb") as output:
                return subprocess.Popen([sys.executable, "-m", *arguments], stderr=output)

        before = os.sched_getaffinity(0)
        try:
            self.process = run_in(namespace, start) if namespace else start()
        finally:
            os.sched_setaffinity(0, before)

    def wait(self) -> None:
        """Until it serves."""
        deadline = time.monotonic() + _READY_SECONDS
        while "ready: " not in self.log.read_text():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise ShuntError(
                    f"a process of the bench does not serve: {self.log.read_text()[-500:]}"
                )
            time.sleep(0.02)

    def end(self) -> None:
        with suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGCONT)
            self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def stop(self) -> None:
        """Stand still."""
        self.process.send_signal(signal.SIGSTOP)

    @contextmanager
    def going(self) -> Iterator[None]:
        """Not standing still."""
        self.process.send_signal(signal.SIGCONT)
        try:
            yield
        finally:
            self.stop()

    def cpu_seconds(self) -> float:
        """That all its threads have used."""
        tasks = Path(f"/proc/{self.process.pid}/task").glob("*/schedstat")
        return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9

    def resident_bytes(self) -> int:
        """Its own memory, without the maps."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(r"RssAnon:\s+(\d+) kB", text)
        assert found
        return 1024 * int(found[1])


class Agent(Server):
    """An agent with so many inside addresses, on interfaces that lead nowhere but to 64 addresses
    of transceivers, which it knows the way to."""

    def __init__(self, name: str, pins: Path, folder: Path, *, inside: int, cpu: int) -> None:
        self.namespace = f"bench-agent-{name}"
        self.pins = pins
        folder.mkdir()
        _remove(self.namespace)
        create(self.namespace)
        run_in(self.namespace, lambda: _connect(inside))
        addresses = [f"198.18.1.{number + 1}" for number in range(inside)]
        config = folder / "agent.toml"
        config.write_text(
            "\n".join(
                [
                    "[relay]",
                    'public = ["public"]',
                    'inside = ["inside"]',
                    f'vips = ["{_VIP}:3478"]',
                    f"inside_addresses = {addresses}",
                    f'inside_ports = "{FIRST_PORT}-{LAST_PORT}"',
                    f'pins = "{pins}"',
                    "[api]",
                    f'socket = "{folder / "socket"}"',
                    "[transceivers]",
                    "max_routes = 100000",
                ]
            )
        )
        arguments = ["tools", "agent", "run", "--config", str(config)]
        super().__init__(arguments, folder, namespace=self.namespace, cpu=cpu)

    def adopted_seconds(self) -> float:
        """What it says that adopting has taken."""
        found = re.search(r"adopted .* in ([0-9.]+) s", self.log.read_text())
        if not found:
            raise ShuntError("the agent does not say how long adopting took")
        return float(found[1])

    def period_seconds(self) -> float:
        """From one housekeeping pass to the next: it rests for a second in between."""
        _status, text = ask(self.socket, request("GET", "/metrics", instance=INSTANCE))
        name = rb"shunt_housekeeping_pass_duration_seconds"
        values = [re.search(name + rb"_%s (\S+)" % each, text) for each in (b"sum", b"count")]
        total, count = (float(found[1]) if found else 0.0 for found in values)
        return 1.0 + total / max(1.0, count)

    def end(self) -> None:
        super().end()
        remove_pins(self.pins)
        _remove(self.namespace)


def serve(folder: Path, *, cpu: int) -> Server:
    """The server that does nothing."""
    folder.mkdir()
    arguments = ["tools.bench.trivial", str(folder / "socket")]
    return Server(arguments, folder, namespace=None, cpu=cpu)


def keep_alive(agent: Agent) -> None:
    """Renew the leases of all transceivers, or make them."""
    requests = [
        request(
            "PUT",
            f"/v1/transceivers/{_id(index)}",
            instance=INSTANCE,
            body=(
                f'{{"instance": "{INSTANCE}", "address": "{_address(index)}", "port": 40000, '
                f'"http": "http://{_address(index)}:8080", "capacity": 100000}}'
            ).encode(),
        )
        for index in range(TRANSCEIVERS)
    ]
    ask_all(agent.socket, requests)


@dataclass(frozen=True, slots=True)
class Fill:
    """What an agent finds: so many routes, and flows, which the routes have in turn."""

    routes: int = 0
    flows: int = 0


def fill(pins: Path, inside: int, wanted: Fill) -> None:
    """Make the maps, as an agent would have left them."""
    remove_pins(pins)
    datapath.make_room(pins)
    datapath.load(pins, inside)
    now = time.monotonic()
    with Maps(pins, writable=True) as maps:
        for index in range(TRANSCEIVERS):
            lease = Lease(
                id=_id(index),
                index=index,
                instance=instance_number(INSTANCE),
                address=_address(index),
                port=40000,
                http="",
                capacity=100000,
                expires=now + LEASE_SECONDS,
            )
            write_lease(maps, lease, new=True)
        for number in range(wanted.routes):
            maps.add_route(f"there{number:07}", id=number + 1, transceiver=number % TRANSCEIVERS)
        slots = _ports(len(maps.slots))[: wanted.flows]
        routes = np.arange(len(slots)) % max(1, wanted.routes) + 1
        there, back, book = (maps.slots[name] for name in ("to_transceiver", "to_client", "book"))
        book["route"][slots] = routes
        book["since"][slots] = ticks(now)
        there["seen"][slots] = ticks(now + _HEARD_FOR)
        for half in (there, back):
            half["transceiver"][slots] = (routes - 1) % TRANSCEIVERS
        back["proven"][slots] = 1
        back["client"][slots, 10:12] = 0xFF
        back["client"][slots, 12:] = slots.astype(">u4").view(np.uint8).reshape(-1, 4)
        back["client_port"][slots] = 50000
        for half in (there, back):
            half["state"][slots] = State.ESTABLISHED


def carry(maps: Maps) -> None:
    """As if each flow had just had 50 packets each way."""
    there, back = maps.slots["to_transceiver"], maps.slots["to_client"]
    used = np.flatnonzero(there["state"])
    there["seen"][used] = ticks(time.monotonic() + _HEARD_FOR)
    for half in (there, back):
        half["packets"][used] += np.uint64(50)
        half["bytes"][used] += np.uint64(5000)


def _ports(slots: int) -> "np.ndarray[tuple[int], np.dtype[np.intp]]":
    """Slots of all addresses in turn, as they are handed out."""
    ports = np.arange(FIRST_PORT, LAST_PORT + 1)
    addresses = np.arange(slots // types.PORTS) << types.PORT_BITS
    return (ports[:, None] + addresses).reshape(-1)


def _id(index: int) -> str:
    return f"x{index}"


def _address(index: int) -> str:
    return f"198.18.1.{101 + index}"


def _mac(index: int) -> str:
    return f"02:00:00:00:00:{index:02x}"


def _connect(inside: int) -> None:
    """The interfaces of the namespace that this is called in."""
    with IPRoute() as netlink:
        for name, network, count in (("public", 0, 1), ("inside", 1, inside)):
            netlink.link("add", ifname=name, kind="veth", peer={"ifname": f"{name}-end"})
            for end in (name, f"{name}-end"):
                (index,) = netlink.link_lookup(ifname=end)
                netlink.link("set", index=index, state="up")
            (index,) = netlink.link_lookup(ifname=name)
            for number in range(count):
                netlink.addr(
                    "add", index=index, address=f"198.18.{network}.{number + 1}", prefixlen=24
                )
        for number in range(TRANSCEIVERS):
            netlink.neigh(
                "replace",
                dst=_address(number),
                lladdr=_mac(number),
                ifindex=index,
                state=0x80,  # NUD_PERMANENT
            )


def _remove(namespace: str) -> None:
    if (RUN_DIR / namespace).exists():
        netns.remove(namespace)
