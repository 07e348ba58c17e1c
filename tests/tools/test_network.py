"""The lab's network by itself, in real namespaces: no agent, no transceivers."""

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pyroute2 import IPRoute, netns
from pyroute2.ethtool.ioctl import IoctlEthtool

from loader.errors import ShuntError
from tools import topology
from tools.netns import RUN_DIR, create, run_in
from tools.processes import ROOT

X1, X1_IPV6 = "198.18.1.11", "2001:db8:118::11"
CLIENT, CLIENT_IPV6 = "198.18.0.10", "2001:db8:18::10"
LINK_SCOPE = 253


@pytest.fixture
def network(no_lab: None) -> Iterator[None]:
    topology.up()
    yield
    topology.down()


def interfaces(namespace: str) -> dict[str, list[str]]:
    def read() -> dict[str, list[str]]:
        with IPRoute() as ip:
            names = {link["index"]: link.get("ifname") for link in ip.get_links()}
            found: dict[str, list[str]] = {name: [] for name in names.values()}
            for entry in ip.get_addr():
                if entry["scope"] != LINK_SCOPE:
                    address = f"{entry.get('address')}/{entry['prefixlen']}"
                    found[names[entry["index"]]].append(address)
        return found

    return run_in(namespace, read)


def host_interfaces() -> set[str]:
    with IPRoute() as ip:
        return {link.get("ifname") for link in ip.get_links()}


def bound(kind: int, port: int) -> Callable[[], socket.socket]:
    def bind() -> socket.socket:
        opened = socket.socket(socket.AF_INET6, kind)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        opened.bind(("::", port))
        opened.settimeout(2)
        if kind == socket.SOCK_STREAM:
            opened.listen()
        return opened

    return bind


def test_each_place_has_its_address_and_nothing_else(network: None) -> None:
    assert interfaces("shunt-client")["eth0"] == ["198.18.0.10/24", "2001:db8:18::10/64"]
    assert interfaces("shunt-x2")["eth0"] == ["198.18.1.12/24", "2001:db8:118::12/64"]
    relay = interfaces("shunt-relay")
    assert relay["public"] == ["198.18.0.1/24", "2001:db8:18::1/64"]
    assert relay["inside"] == ["198.18.1.1/24", "2001:db8:118::1/64"]
    assert relay["lo"] == ["127.0.0.1/8", "::1/128"]


def test_no_address_is_tentative(network: None) -> None:
    def tentative() -> list[str]:
        with IPRoute() as ip:
            return [str(entry.get("address")) for entry in ip.get_addr() if entry["flags"] & 0x40]

    assert [run_in(name, tentative) for name in topology.present()] == [[], [], [], [], []]


def test_the_switch_says_nothing_of_its_own(network: None) -> None:
    found = interfaces("shunt-switch")
    assert [addresses for name, addresses in found.items() if name != "lo" and addresses] == []


@pytest.mark.parametrize(("namespace", "forwards"), [("relay", 1), ("client", 0), ("x1", 0)])
def test_only_the_relay_forwards(network: None, namespace: str, forwards: int) -> None:
    def read() -> list[int]:
        keys = ("ipv4/ip_forward", "ipv6/conf/all/forwarding")
        return [int(Path(f"/proc/sys/net/{key}").read_text()) for key in keys]

    assert run_in(f"shunt-{namespace}", read) == [forwards, forwards]


def test_up_twice_is_as_up_once(network: None) -> None:
    topology.up()

    assert set(topology.present()) == set(topology.namespaces(2))


def test_down_twice_leaves_nothing(network: None) -> None:
    topology.down()
    topology.down()

    assert topology.present() == []


def test_a_smaller_lab_takes_the_place_of_a_larger(network: None) -> None:
    topology.up(transceivers=1)

    assert set(topology.present()) == set(topology.namespaces(1))


def test_up_mends_a_lab_that_is_half_torn_down(network: None) -> None:
    netns.remove("shunt-relay")
    netns.remove("shunt-x1")
    (RUN_DIR / "shunt-x1").touch()  # a name that leads to no namespace

    topology.up()

    assert interfaces("shunt-x1")["eth0"] == [f"{X1}/24", f"{X1_IPV6}/64"]


def test_down_clears_what_a_killed_up_left(no_lab: None) -> None:
    script = "from tools import topology; topology.up(transceivers=60, host=True)"
    building = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT)
    deadline = time.monotonic() + 20
    while "shunt-x30" not in topology.present() and time.monotonic() < deadline:
        time.sleep(0.005)
    building.send_signal(signal.SIGKILL)
    building.wait()
    assert "shunt-x30" in topology.present()

    topology.down()

    assert topology.present() == []
    assert topology.HOST_INTERFACE not in host_interfaces()


def test_the_host_joins_and_leaves(no_lab: None) -> None:
    before = host_interfaces()
    topology.up(host=True)
    listening = run_in("shunt-x1", bound(socket.SOCK_STREAM, topology.HTTP_PORT))
    try:
        with (
            listening,
            socket.create_connection((X1, topology.HTTP_PORT), timeout=2) as connection,
        ):
            assert connection.getsockname()[0] == "198.18.0.9"
    finally:
        topology.down()

    assert host_interfaces() == before


def test_the_host_does_not_join_where_the_range_is_taken(no_lab: None) -> None:
    def on_a_host_that_routes_it() -> None:
        with IPRoute() as ip:
            ip.link("set", index=1, state="up")
            ip.route("add", dst="198.19.0.0/16", oif=1)
        topology.up(host=True)

    create("t-tools-host")
    try:
        with pytest.raises(ShuntError, match=r"already routes 198\.19\.0\.0/16 dev lo"):
            run_in("t-tools-host", on_a_host_that_routes_it)
    finally:
        netns.remove("t-tools-host")
    assert topology.present() == []


@pytest.mark.parametrize("address", [X1, X1_IPV6])
def test_a_client_reaches_a_transceivers_http(network: None, address: str) -> None:
    def connect() -> tuple[str, int]:
        with socket.create_connection((address, topology.HTTP_PORT), timeout=2) as connection:
            host, port = connection.getpeername()[:2]
            return host, port

    with run_in("shunt-x1", bound(socket.SOCK_STREAM, topology.HTTP_PORT)):
        assert run_in("shunt-client", connect) == (address, topology.HTTP_PORT)


@pytest.mark.parametrize("address", [X1, X1_IPV6])
def test_a_client_does_not_reach_another_tcp_port(network: None, address: str) -> None:
    with (
        run_in("shunt-x1", bound(socket.SOCK_STREAM, 8081)),
        pytest.raises(TimeoutError),
    ):
        run_in("shunt-client", lambda: socket.create_connection((address, 8081), timeout=0.3))


@pytest.mark.parametrize(
    ("sender", "receiver", "address"),
    [
        ("shunt-client", "shunt-x1", f"::ffff:{X1}"),
        ("shunt-client", "shunt-x1", X1_IPV6),
        ("shunt-x1", "shunt-client", f"::ffff:{CLIENT}"),
        ("shunt-x1", "shunt-client", CLIENT_IPV6),
    ],
)
def test_udp_between_clients_and_transceivers_is_not_forwarded(
    network: None, sender: str, receiver: str, address: str
) -> None:
    with (
        run_in(receiver, bound(socket.SOCK_DGRAM, 40000)) as hears,
        run_in(sender, bound(socket.SOCK_DGRAM, 50000)) as says,
    ):
        says.sendto(b"anybody there?", (address, 40000))
        wait_until(lambda: dropped_by_the_fence() > 0)
        hears.setblocking(False)
        with pytest.raises(BlockingIOError):
            hears.recv(100)


def dropped_by_the_fence() -> int:
    listed = run_in(
        "shunt-relay", lambda: subprocess.check_output(["nft", "list", "ruleset"], text=True)
    )
    line = next(line for line in listed.splitlines() if '"dropped"' in line)
    return int(line.split("packets ")[1].split()[0])


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline, "waited 5 s in vain"
        time.sleep(0.01)


def offloads(namespace: str, interface: str) -> dict[str, bool]:
    def read() -> dict[str, bool]:
        ethtool = IoctlEthtool(interface)
        try:
            flags: dict[str, bool] = ethtool.get_offload_flags()
            return flags
        finally:
            ethtool.close()

    return run_in(namespace, read)


def lay_a_veth() -> None:
    with IPRoute() as ip:
        ip.link("add", ifname="a", kind="veth", peer={"ifname": "b"})


@pytest.mark.parametrize(
    ("namespace", "interface"),
    [
        ("shunt-client", "eth0"),
        ("shunt-relay", "public"),
        ("shunt-relay", "inside"),
        ("shunt-x1", "eth0"),
    ],
)
def test_every_place_keeps_the_offloads_of_a_veth_as_made(
    network: None, namespace: str, interface: str
) -> None:
    create("t-tools-veth")
    try:
        run_in("t-tools-veth", lay_a_veth)

        assert offloads(namespace, interface) == offloads("t-tools-veth", "a")
    finally:
        netns.remove("t-tools-veth")


@pytest.mark.parametrize("port", ["relay-public", "relay-inside"])
def test_the_switch_takes_redirected_frames_from_the_relay(network: None, port: str) -> None:
    assert offloads("shunt-switch", port)["generic-receive-offload"]
