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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import pytest
import trustme

from loader import datapath, types
from loader.client import AgentClient, Vip
from loader.config import AgentConfig
from loader.daemon import unload
from loader.flows import ticks
from loader.maps import Maps
from loader.pinned_set import remove_pins
from loader.types import State
from tools import netns

T = TypeVar("T")

ROOT = Path(__file__).resolve().parent.parent.parent
PINS = Path(f"/sys/fs/bpf/shunt-tl-{os.getpid()}")
FIRST_PORT, LAST_PORT = 20000, 20063
VIP, VIP6 = Vip("198.18.0.1", 3478), Vip("2001:db8:18::1", 3478)
RELAY_INSIDE = "198.18.1.1"
TRANSCEIVER = "198.18.1.11"
RELAY_INSIDE6 = "2001:db8:118::1"
TRANSCEIVER6 = "2001:db8:118::11"
TCP_PORT = 8443
TCP_URL = f"https://{RELAY_INSIDE}:{TCP_PORT}"
TOKEN = "a-token-of-the-tests-0123456789abcdef"
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


@pytest.fixture
def maps(pins: Path) -> Iterator[Maps]:
    """The maps, as if just made, and configured for ports FIRST_PORT to LAST_PORT."""
    with Maps(pins, writable=True) as opened:
        empty(opened)
        opened.configure(settings())
        yield opened


@pytest.fixture
def many_ports(maps: Maps) -> Maps:
    """The maps, with more ports than usual: 20000 to 23999."""
    maps.configure(settings(last_port=23999))
    return maps


def empty(maps: Maps) -> None:
    """Bring the maps back to their first state, counters apart."""
    for ufrag, _route in list(maps.routes()):
        maps.remove_route(ufrag)
    for index, _entry in list(maps.transceivers()):
        maps.set_transceiver(index, types.Transceiver())
    maps.forget_free()
    maps.slots.clear(0, len(maps.slots))
    maps.set_interfaces([])
    about = maps.about()
    maps.set_about(types.About(length=about.length, source=about.source, layout=about.layout))


def config(folder: Path, pins: Path) -> AgentConfig:
    """How an agent runs on a host of `make_host`."""
    return AgentConfig(
        public=("public",),
        inside=("inside",),
        vips=(VIP, VIP6),
        inside_addresses=(RELAY_INSIDE, RELAY_INSIDE6),
        socket=folder / "agent.sock",
        pins=pins,
        first_port=FIRST_PORT,
        last_port=LAST_PORT,
    )


def settings(first_port: int = FIRST_PORT, last_port: int = LAST_PORT) -> types.Settings:
    """Settings as such an agent writes them."""
    made = replace(config(Path(), Path()), first_port=first_port, last_port=last_port)
    return made.settings([])


# Slots.


def put(
    maps: Maps,
    slot: int,
    state: State = State.ESTABLISHED,
    *,
    route: int = 1,
    next_route: int = 0,
    seen: float = 1000.0,
    since: float = 1000.0,
    transceiver: int = 0,
    vip: int = 0,
    client: str = "198.18.0.10",
) -> None:
    """A slot as the program would have left it."""
    there, back, book = maps.slots.at(slot).values()
    for half in (there, back):
        half["transceiver"], half["state"] = transceiver, state
    back["client"], back["client_port"] = list(types.packed_address(client)), 50000
    back["vip"] = vip
    there["seen"] = ticks(seen)
    book["route"], book["next_route"], book["since"] = route, next_route, ticks(since)


def state(maps: Maps, slot: int) -> State:
    """A slot's state, which both of its halves must hold."""
    there, back, _book = maps.slots.at(slot).values()
    assert there["state"] == back["state"]
    return State(int(back["state"]))


def drained(maps: Maps) -> list[int]:
    """All slots that may be opened, taken out in their order."""
    slots = []
    while (slot := maps.take_free()) is not None:
        slots.append(slot)
    return slots


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
    with `client` (198.18.0.10, 2001:db8:18::10) and `behind` (198.18.1.11, 2001:db8:118::11)."""

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
        prefix4, prefix6 = f"198.18.{network}.", f"2001:db8:{network or ''}18::"
        for end, name, number in ((host.relay, interface, 1), (host.outside, peer, 10 + network)):
            ip(f"-n {end} addr add {prefix4}{number}/24 dev {name}")
            ip(f"-n {end} addr add {prefix6}{number}/64 dev {name} nodad")
            ip(f"-n {end} link set {name} up")
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
def vlans(host: Host) -> Host:
    """The host with VLAN 100 between `inside.100` and `behind.100`: 198.18.3.0/24 and
    2001:db8:318::/64, .1 and .11 of each."""
    for namespace, below, number in ((host.relay, "inside", 1), (host.outside, "behind", 11)):
        vlan = f"{below}.100"
        added = subprocess.run(
            f"ip -n {namespace} link add link {below} name {vlan} type vlan id 100".split(),
            capture_output=True,
            text=True,
            check=False,
        )
        if "Unknown device type" in added.stderr:
            pytest.skip("this kernel has no VLAN interfaces (CONFIG_VLAN_8021Q)")
        assert added.returncode == 0, added.stderr
        ip(f"-n {namespace} addr add 198.18.3.{number}/24 dev {vlan}")
        ip(f"-n {namespace} addr add 2001:db8:318::{number}/64 dev {vlan} nodad")
        ip(f"-n {namespace} link set {vlan} up")
    return host


@pytest.fixture
def own_pins() -> Iterator[Path]:
    """Where a test may pin what it likes; it unloads itself, or leaves nothing but pins."""
    path = PINS.with_name(f"{PINS.name}-copy")
    yield path
    if path.is_dir():
        remove_pins(path)


# The agent as a process.


async def register_x1(client: AgentClient) -> None:
    """A transceiver for ten sessions at the usual place."""
    await client.register(
        "x1",
        instance=INSTANCE,
        address=TRANSCEIVER,
        port=40000,
        http="http://198.18.1.11:8080",
        capacity=10,
    )


def agent_arguments(
    socket: Path,
    pins: Path,
    *,
    ports: str = f"{FIRST_PORT}-{LAST_PORT}",
    config: str = "/dev/null",
) -> list[str]:
    """Of an agent on a host of `make_host`."""
    return [
        *("--public", "public", "--inside", "inside"),
        *("--vip", f"{VIP.address}:{VIP.port}", "--inside-address", RELAY_INSIDE),
        *("--vip", f"[{VIP6.address}]:{VIP6.port}", "--inside-address", RELAY_INSIDE6),
        *("--inside-ports", ports),
        *("--socket", str(socket), "--pins", str(pins), "--config", config),
    ]


class AgentProcess:
    """A running agent. *ports*: of inside addresses; *before*: what starts the process, with its
    arguments. What its arguments leave open can be written into its configuration file, which is
    *config* at the start."""

    def __init__(
        self,
        host: Host,
        folder: Path,
        pins: Path,
        *,
        ports: str = f"{FIRST_PORT}-{LAST_PORT}",
        before: tuple[str, ...] = (),
        config: str = "",
    ) -> None:
        self.host = host
        self.pins = pins
        self._ports = ports
        self._before = before
        self.socket = folder / "agent.sock"
        self.config = folder / "agent.toml"
        self.config.write_text(config)
        self._log = folder / "agent.log"
        self.start()

    def start(self, *, tree: Path = ROOT) -> None:
        """Start, or start again, and wait until it serves; the code is that below *tree*."""
        self.process = self.spawn(log=self._log, tree=tree)
        try:
            eventually("the agent is ready", self._ready, within=100)
        except BaseException:
            self.kill()
            raise

    def spawn(
        self, *more: str, log: Path, socket: Path | None = None, tree: Path = ROOT
    ) -> "subprocess.Popen[bytes]":
        """Start a process with this agent's arguments and *more*, whatever comes of it."""
        arguments = agent_arguments(
            socket or self.socket, self.pins, ports=self._ports, config=str(self.config)
        )

        def start() -> "subprocess.Popen[bytes]":
            with log.open("wb") as output:
                return subprocess.Popen(
                    [
                        *(*self._before, sys.executable, "-m", "tools", "agent", "run"),
                        *(*arguments, *more),
                    ],
                    cwd=tree,
                    stderr=output,
                )

        return self.host.run(start)

    def _ready(self) -> bool:
        assert self.process.poll() is None, self.log()
        return "ready: " in self.log()

    def log(self) -> str:
        """What it has logged since it was started."""
        return self._log.read_text()

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
    """An agent in a host of its own that tests may ask anything, but not break; over TCP too, at
    `TCP_URL`, with `TOKEN`, its certificate signed by `ca.pem` beside its socket."""
    yield from _agent("shared", tmp_path_factory, tcp=True)


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


def serving_tcp(folder: Path) -> str:
    """The configuration of an agent that serves TCP; its files are in *folder*."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.pem")
    certificate = authority.issue_cert(RELAY_INSIDE)
    certificate.cert_chain_pems[0].write_to_path(folder / "tls.crt")
    secrets = {"tls.key": certificate.private_key_pem.bytes(), "tokens": f"{TOKEN}\n".encode()}
    for name, secret in secrets.items():
        (folder / name).touch(mode=0o600)
        (folder / name).write_bytes(secret)
    return (
        f'[api.tcp]\nlisten = "{RELAY_INSIDE}:{TCP_PORT}"\ntoken_file = "{folder}/tokens"\n'
        f'certificate = "{folder}/tls.crt"\nkey = "{folder}/tls.key"\n'
    )


def _agent(
    name: str, folders: pytest.TempPathFactory, *, tcp: bool = False
) -> Iterator[AgentProcess]:
    host = make_host(f"{os.getpid()}-{name}")
    pins = PINS.with_name(f"{PINS.name}-{name}")
    try:
        folder = folders.mktemp(name)
        agent = AgentProcess(host, folder, pins, config=serving_tcp(folder) if tcp else "")
        yield agent
        agent.stop()
    finally:
        host.run(lambda: unload(pins))
        remove_host(host)
