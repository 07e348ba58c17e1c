"""What the loader's tests share: the program compiled once, its maps emptied for each test, and a
relay host of two namespaces (the relay's, and one where clients and transceivers are)."""

import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pytest

from loader import datapath, types
from loader.agent import AgentConfig
from loader.client import Vip
from loader.daemon import unload
from loader.maps import Maps, versioned
from tools import netns

T = TypeVar("T")

ROOT = Path(__file__).resolve().parent.parent.parent
PINS = Path(f"/sys/fs/bpf/shunt-tl-{os.getpid()}")
FIRST_PORT, LAST_PORT = 20000, 20063
VIP = Vip("198.18.0.1", 3478)
RELAY_INSIDE = "198.18.1.1"
TRANSCEIVER = "198.18.1.11"
INSTANCE = "0123456789abcdef-first"
OTHER_INSTANCE = "fedcba9876543210-second"


def eventually(what: str, holds: Callable[[], bool], *, within: float = 5.0) -> None:
    """Wait until *holds*; fail saying *what* did not come true *within* seconds."""
    deadline = time.monotonic() + within
    while not holds():
        if time.monotonic() > deadline:
            pytest.fail(f"after {within} s still not so: {what}")
        time.sleep(0.01)


# The maps, without interfaces.


@pytest.fixture(scope="session")
def pins() -> Iterator[Path]:
    """The program and its maps, pinned for this run of the suite; attached nowhere."""
    datapath.load(PINS)
    yield PINS
    remove_pins(PINS)


def remove_pins(pins: Path) -> None:
    """Remove pins without a look at any interface, which might be another relay's."""
    for entry in versioned(pins).iterdir():
        entry.unlink()
    versioned(pins).rmdir()
    pins.rmdir()


@pytest.fixture
def maps(pins: Path) -> Iterator[Maps]:
    """The maps, as if just made, and configured for ports FIRST_PORT to LAST_PORT."""
    with Maps(pins, writable=True) as opened:
        empty(opened)
        opened.configure(settings())
        yield opened


def empty(maps: Maps) -> None:
    """Bring the maps back to their first state, counters apart."""
    for ufrag, _route in list(maps.routes()):
        maps.remove_route(ufrag)
    for index, _entry in list(maps.transceivers()):
        maps.set_transceiver(index, types.Transceiver())
    for port in (int(port) for port in maps.slots["to_transceiver"]["since"].nonzero()[0]):
        maps.forget_checks(port)
    for client, port in list(maps.flows4()):
        maps.forget_client(client, port=port)
    while maps.take_free() is not None:
        pass
    maps.slots[:] = types.Slot()
    maps.set_interfaces([])


def settings(first_port: int = FIRST_PORT, last_port: int = LAST_PORT) -> types.Settings:
    """Settings of a relay with VIP and RELAY_INSIDE."""
    made = types.Settings(
        inside_address=types.packed_address(RELAY_INSIDE),
        first_port=first_port,
        last_port=last_port,
    )
    made.vips[0] = types.Vip(types.packed_address(VIP.address), VIP.port)
    return made


# Packets, as few as the loader's tests need: those that make a slot.


def binding_request(ufrag: str, *, transaction: int = 1) -> bytes:
    """A STUN Binding Request with nothing but a USERNAME (RFC 8489 5)."""
    username = f"{ufrag}:client".encode()
    padded = username + b"\0" * (-len(username) % 4)
    attribute = struct.pack(">HH", 0x0006, len(username)) + padded
    return (
        struct.pack(">HHI12s", 1, len(attribute), 0x2112A442, transaction.to_bytes(12, "big"))
        + attribute
    )


def frame(payload: bytes, *, client: str = "198.18.0.10", port: int = 50000) -> bytes:
    """*payload* in a UDP datagram without a checksum, from the client to the VIP."""
    udp = struct.pack(">HHHH", port, VIP.port, 8 + len(payload), 0) + payload
    addresses = socket.inet_aton(client) + socket.inet_aton(VIP.address)
    ip = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(udp), 0, 0x4000, 64, 17, 0) + addresses
    return bytes.fromhex("020000000001 020000000002 0800") + ip + udp


# A relay host.


@dataclass(frozen=True, slots=True)
class Host:
    """A namespace with the relay's interfaces `public` and `inside`, and one at their other ends
    with `client` (198.18.0.10) and `behind` (198.18.1.11)."""

    relay: str
    outside: str

    def run(self, work: Callable[[], T]) -> T:
        """Call *work* in the relay's namespace."""
        return netns.run_in(self.relay, work)

    def ip(self, command: str, *, outside: bool = False) -> str:
        """`ip COMMAND` in the relay's namespace, or in the other."""
        return ip(f"-n {self.outside if outside else self.relay} {command}")

    def xdp(self, interface: str) -> str:
        """What `ip link` says of an interface's XDP: its mode and its program's id."""
        words = self.ip(f"-d link show dev {interface}").split()
        mode = next((word for word in words if word in ("xdp", "xdpgeneric")), "none")
        if mode == "none":
            return mode
        return f"{mode} {words[words.index('prog/xdp') + 2]}"

    def config(self, folder: Path, pins: Path) -> AgentConfig:
        """How an agent runs here."""
        return AgentConfig(
            public=("public",),
            inside=("inside",),
            vips=(VIP,),
            inside_address=RELAY_INSIDE,
            socket=folder / "agent.sock",
            pins=pins,
            first_port=FIRST_PORT,
            last_port=LAST_PORT,
        )


def ip(command: str) -> str:
    """Run `ip`; what it prints."""
    done = subprocess.run(["ip", *command.split()], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"ip {command}: {done.stderr}"
    return done.stdout


def make_host(name: str) -> Host:
    """A fresh host; the caller takes it down with `remove_host`."""
    host = Host(relay=f"t-loader-{name}-r", outside=f"t-loader-{name}-o")
    for namespace in (host.relay, host.outside):
        netns.create(namespace)
        ip(f"-n {namespace} link set lo up")
    for interface, peer, network in (("public", "client", 0), ("inside", "behind", 1)):
        host.ip(f"link add {interface} type veth peer name {peer} netns {host.outside}")
        host.ip(f"addr add 198.18.{network}.1/24 dev {interface}")
        host.ip(f"link set {interface} up")
        host.ip(f"addr add 198.18.{network}.{10 + network}/24 dev {peer}", outside=True)
        host.ip(f"link set {peer} up", outside=True)
    return host


def remove_host(host: Host) -> None:
    """Take a host down."""
    for namespace in (host.relay, host.outside):
        ip(f"netns del {namespace}")


@pytest.fixture
def host(request: pytest.FixtureRequest) -> Iterator[Host]:
    """A host to oneself."""
    made = make_host(f"{os.getpid()}")
    yield made
    remove_host(made)


@pytest.fixture
def own_pins() -> Iterator[Path]:
    """Where a test may pin what it likes; it unloads itself, or leaves nothing but pins."""
    path = PINS.with_name(f"{PINS.name}-copy")
    yield path
    if path.is_dir():
        remove_pins(path)


# The agent as a process.


class AgentProcess:
    """A running agent."""

    def __init__(self, host: Host, folder: Path, pins: Path) -> None:
        self.host = host
        self.pins = pins
        self.socket = folder / "agent.sock"
        self._log = folder / "agent.log"
        self.start()

    def start(self) -> None:
        """Start, or start again, and wait until it serves."""
        self.process = self.spawn(log=self._log)
        eventually("the agent is ready", self._ready, within=20)

    def spawn(self, *, log: Path, socket: Path | None = None) -> "subprocess.Popen[bytes]":
        """Start a process with this agent's arguments, whatever comes of it."""
        arguments = [
            *("--public", "public", "--inside", "inside"),
            *("--vip", f"{VIP.address}:{VIP.port}", "--inside-address", RELAY_INSIDE),
            *("--inside-ports", f"{FIRST_PORT}-{LAST_PORT}"),
            *("--socket", str(socket or self.socket), "--pins", str(self.pins)),
        ]

        def start() -> "subprocess.Popen[bytes]":
            with log.open("wb") as output:
                return subprocess.Popen(
                    [sys.executable, "-m", "tools", "agent", "run", *arguments],
                    cwd=ROOT,
                    stderr=output,
                )

        return self.host.run(start)

    def _ready(self) -> bool:
        assert self.process.poll() is None, self._log.read_text()
        return "ready: " in self._log.read_text()

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """SIGTERM; the exit status."""
        with suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=5)


@pytest.fixture(scope="session")
def shared_agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AgentProcess]:
    """An agent in a host of its own that tests may ask anything, but not break."""
    yield from _agent("shared", tmp_path_factory)


@pytest.fixture(scope="session")
def _own_agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AgentProcess]:
    yield from _agent("own", tmp_path_factory)


@pytest.fixture
def own_agent(_own_agent: AgentProcess) -> AgentProcess:
    """An agent to kill, running and with nothing registered; leave the interfaces there."""
    if _own_agent.process.poll() is not None:
        with Maps(_own_agent.pins, writable=True) as maps:
            empty(maps)
        _own_agent.start()
    return _own_agent


def _agent(name: str, folders: pytest.TempPathFactory) -> Iterator[AgentProcess]:
    host = make_host(f"{os.getpid()}-{name}")
    pins = PINS.with_name(f"{PINS.name}-{name}")
    agent = AgentProcess(host, folders.mktemp(name), pins)
    yield agent
    agent.stop()
    host.run(lambda: unload(pins))
    remove_host(host)
