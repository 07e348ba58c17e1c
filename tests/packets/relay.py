"""A bench for the compiled program: scapy frames in, what became of them out, by test runs.

`Relay.receive` holds every single packet to the rules that have no exception: exactly one counter
moves, by one packet and the right number of bytes; what is not sent on is not touched either.
"""

import ctypes
import os
import socket
import struct
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

from pyroute2 import IPRoute
from scapy.layers.inet import IP, UDP, in4_chksum
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw
from scapy.utils import checksum

from loader import bpf, types
from loader.compile import PROGRAM
from loader.flows import ticks
from loader.maps import Counters, Maps, ufrag_key, versioned
from tests.packets import messages
from tools.netns import CLONE_NEWNET, RUN_DIR, run_in

__all__ = [
    "CLIENT",
    "INSIDE_ADDRESS",
    "OTHER_VIP",
    "PORTS",
    "STRANGER",
    "UFRAG",
    "VIP",
    "X1",
    "X2",
    "Endpoint",
    "Interfaces",
    "Outcome",
    "Relay",
    "Verdict",
    "client_frame",
    "correct_checksums",
    "partial",
    "transceiver_frame",
]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where packets come from or go to, and the neighbour on the way there."""

    address: str
    port: int
    mac: str


CLIENT = Endpoint("198.18.0.10", 50000, "02:00:00:00:00:10")
STRANGER = Endpoint("203.0.113.66", 6666, "02:00:00:00:00:66")
VIP = Endpoint("198.18.0.1", 3478, "02:00:00:00:00:01")
OTHER_VIP = Endpoint("198.18.0.2", 3479, "02:00:00:00:00:01")
INSIDE_ADDRESS = "198.18.1.1"
INSIDE_MAC = "02:00:00:00:01:01"
X1 = Endpoint("198.18.1.11", 40000, "02:00:00:00:01:11")
X2 = Endpoint("198.18.1.12", 40000, "02:00:00:00:01:12")
TRANSCEIVERS = [X1, X2]
UFRAG = "ufragOfX1/session"
PORTS = range(20000, 20016)

_HEADERS = 14 + 20 + 8  # Ethernet, IPv4, UDP
_libc = ctypes.CDLL(None, use_errno=True)
_GENERIC = 1 << 1  # XDP_FLAGS_SKB_MODE


class Verdict(IntEnum):
    """`enum xdp_action`."""

    ABORTED = 0
    DROP = 1
    PASS = 2
    TX = 3
    REDIRECT = 4


@dataclass(frozen=True, slots=True)
class Interfaces:
    """Indexes of interfaces that exist in the bench's namespace."""

    public: int
    inside: int


def client_frame(
    payload: Packet | bytes,
    *,
    client: Endpoint = CLIENT,
    vip: Endpoint = VIP,
    ip: Mapping[str, Any] | None = None,
    udp: Mapping[str, Any] | None = None,
) -> Packet:
    """A frame from *client* to *vip*; *ip* and *udp* override header fields."""
    return _frame(payload, client, vip, ip, udp)


def transceiver_frame(
    payload: Packet | bytes,
    *,
    to: int,
    transceiver: Endpoint = X1,
    ip: Mapping[str, Any] | None = None,
    udp: Mapping[str, Any] | None = None,
) -> Packet:
    """A frame from *transceiver* to the inside port *to*."""
    return _frame(payload, transceiver, Endpoint(INSIDE_ADDRESS, to, INSIDE_MAC), ip, udp)


def _frame(
    payload: Packet | bytes,
    source: Endpoint,
    destination: Endpoint,
    ip: Mapping[str, Any] | None,
    udp: Mapping[str, Any] | None,
) -> Packet:
    return (
        Ether(src=source.mac, dst=destination.mac)
        / IP(**{"src": source.address, "dst": destination.address, "id": 0x1234, **(ip or {})})
        / UDP(**{"sport": source.port, "dport": destination.port, **(udp or {})})
        / Raw(bytes(payload))
    )


def correct_checksums(frame: bytes) -> tuple[int, int]:
    """The IP and UDP checksums that the frame ought to have, worked out by scapy from scratch."""
    header = bytearray(frame[14:34])
    datagram = bytearray(frame[34 : 14 + int.from_bytes(header[2:4], "big")])
    header[10:12] = datagram[6:8] = b"\0\0"
    of_udp = in4_chksum(17, IP(frame[14:34]), bytes(datagram))
    return checksum(bytes(header)), of_udp or 0xFFFF


def partial(frame: Packet) -> Packet:
    """The frame as an ordinary socket sends it over veth: the sum of the pseudo-header alone."""
    octets = bytes(frame)
    headers = Ether(octets[:_HEADERS])
    header, udp = headers[IP], headers[UDP]
    pseudo = struct.pack("!4s4sHH", _packed(header.src), _packed(header.dst), 17, udp.len)
    udp.chksum = ~checksum(pseudo) & 0xFFFF
    return headers / Raw(octets[_HEADERS:])


def _packed(address: str) -> bytes:
    return bytes(int(part) for part in address.split("."))


@dataclass(frozen=True)
class Outcome:
    """What became of a frame."""

    verdict: Verdict
    reason: str | None
    """Why it was dropped."""
    received: bytes
    frame: bytes
    """As it left the program."""

    @property
    def passed(self) -> bool:
        """Left to the kernel."""
        return self.verdict is Verdict.PASS

    @property
    def forwarded(self) -> bool:
        return self.verdict in (Verdict.TX, Verdict.REDIRECT)

    @cached_property
    def ethernet(self) -> Packet:
        return Ether(self.frame[:_HEADERS])  # or scapy takes whatever follows for STUN

    @cached_property
    def ip(self) -> Packet:
        found: Packet = self.ethernet[IP]
        return found

    @cached_property
    def udp(self) -> Packet:
        found: Packet = self.ethernet[UDP]
        return found

    @property
    def payload(self) -> bytes:
        """Of the UDP datagram."""
        return self.frame[_HEADERS : 14 + self.ip.len]

    @property
    def addresses(self) -> tuple[str, int, str, int]:
        """Source and destination."""
        return self.ip.src, self.udp.sport, self.ip.dst, self.udp.dport

    @property
    def checksums(self) -> tuple[int, int]:
        """Of IP and UDP, as they are in the frame."""
        return self.ip.chksum, self.udp.chksum


class Relay:
    """The program, pinned with maps of its own, and a namespace whose interfaces it sees."""

    def __init__(self, pins: Path, namespace: str) -> None:
        """*pins*: where `loader.compile` has put program and maps. *namespace*: an empty one."""
        folder = versioned(pins)
        self._namespace = namespace
        self._here = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        self._there = os.open(RUN_DIR / namespace, os.O_RDONLY)
        self.interfaces = run_in(namespace, _make_interfaces)
        self.program = bpf.pinned(folder / PROGRAM)
        self.maps = Maps(pins, writable=True)
        self._opened = {
            name: bpf.Map.open(folder / name)
            for name in ("routes", "flows4", "checks", "handshakes", "drops", "traffic")
        }
        self.reset()

    def close(self) -> None:
        for opened in self._opened.values():
            opened.close()
        self.maps.close()
        os.close(self.program)
        os.close(self._here)
        os.close(self._there)

    def __enter__(self) -> "Relay":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def reset(self) -> None:
        """As a fresh agent leaves it: two VIPs, two transceivers, one route, all ports free.

        The one state that stays is the counters': outcomes are told by differences.
        """
        for name in ("routes", "flows4", "checks"):
            for key, _ in list(self._opened[name].items()):
                self._opened[name].delete(key)
        self.maps.slots[PORTS.start : PORTS.stop] = 0
        while self.maps.take_free() is not None:
            pass
        for port in PORTS:
            self._opened["handshakes"].update(_u32(port), bytes(types.Handshake()))
            self.maps.free(port)
        self.configure()
        for index, transceiver in enumerate(TRANSCEIVERS):
            self.set_transceiver(index, transceiver)
        self._next_route = 1
        self.counters = self.maps.counters()
        self.add_route(UFRAG)

    # Arranging.

    def configure(self, *, inside: list[int] | None = None) -> None:
        """Write the settings; *inside*: ifindexes that transceivers' packets may come in by."""
        settings = types.Settings(
            inside_address=types.packed_address(INSIDE_ADDRESS),
            first_port=PORTS.start,
            last_port=PORTS.stop - 1,
        )
        for entry, vip in zip(settings.vips, (VIP, OTHER_VIP), strict=False):
            entry.address = types.packed_address(vip.address)
            entry.port = vip.port
        for place, ifindex in enumerate([self.interfaces.inside] if inside is None else inside):
            settings.inside_interfaces[place] = ifindex
        self.maps.configure(settings)

    def set_transceiver(
        self,
        index: int,
        transceiver: Endpoint,
        *,
        resolved: bool = True,
        ifindex: int | None = None,
    ) -> None:
        """Write a transceiver's entry; port 0 makes it one that is not in use."""
        entry = types.Transceiver(
            address=types.packed_address(transceiver.address),
            port=transceiver.port,
            resolved=resolved,
            ifindex=self.interfaces.inside if ifindex is None else ifindex,
        )
        entry.mac[:] = _mac(transceiver.mac)
        entry.source_mac[:] = _mac(INSIDE_MAC)
        self.maps.set_transceiver(index, entry)

    def add_route(
        self, ufrag: str, *, to: Endpoint = X1, makes_checks: bool = True, busy: bool = False
    ) -> int:
        """Make a route; returns its id."""
        route = types.Route(
            id=self._next_route,
            transceiver=TRANSCEIVERS.index(to),
            flags=0 if makes_checks else types.ROUTE_NO_CHECKS,
            busy=busy,
        )
        self._opened["routes"].update(ufrag_key(ufrag), bytes(route))
        self._next_route += 1
        id: int = route.id
        return id

    def pending(self, client: Endpoint = CLIENT, ufrag: str = UFRAG) -> int:
        """Have the client ask; returns the port of the slot that this opens."""
        outcome = self.from_client(messages.request(ufrag), client=client)
        assert outcome.forwarded, outcome
        port: int = outcome.udp.sport
        assert self.state(port) is types.State.PENDING
        return port

    def established(
        self, client: Endpoint = CLIENT, ufrag: str = UFRAG, *, transceiver: Endpoint = X1
    ) -> int:
        """Have the client ask and the transceiver answer; returns the slot's port."""
        asked = messages.transaction()
        port: int = self.from_client(
            messages.request(ufrag, transaction_id=asked), client=client
        ).udp.sport
        self.from_transceiver(messages.success(asked), to=port, transceiver=transceiver)
        assert self.state(port) is types.State.ESTABLISHED
        return port

    def proven(
        self, client: Endpoint = CLIENT, ufrag: str = UFRAG, *, transceiver: Endpoint = X1
    ) -> int:
        """The same, and have the client answer a check of the transceiver."""
        port = self.established(client, ufrag, transceiver=transceiver)
        checked = messages.transaction()
        self.from_transceiver(messages.check(checked), to=port, transceiver=transceiver)
        assert self.from_client(messages.success(checked), client=client).forwarded
        return port

    def let_idle(self, port: int, seconds: float) -> None:
        """Let the client's last packet, and the slot's last change, be so long ago."""
        half = self.maps.slots["to_transceiver"]
        for field in ("seen", "since"):
            half[field][port] = ticks(time.monotonic() - seconds)

    def close_slot(self, port: int) -> None:
        """What the agent does when a session ends."""
        self.set_state(port, types.State.CLOSING)

    def free_slot(self, port: int) -> None:
        """What the agent does when a port has rested."""
        self.set_state(port, types.State.FREE)
        self.maps.free(port)

    def set_state(self, port: int, state: types.State) -> None:
        """Write both halves' state."""
        self.maps.slots["to_client"]["state"][port] = state
        self.maps.slots["to_transceiver"]["state"][port] = state

    # Acting.

    def from_client(
        self,
        payload: Packet | bytes,
        *,
        client: Endpoint = CLIENT,
        vip: Endpoint = VIP,
        ip: Mapping[str, Any] | None = None,
        udp: Mapping[str, Any] | None = None,
        on: int | None = None,
    ) -> Outcome:
        """Receive a client's packet."""
        return self.receive(client_frame(payload, client=client, vip=vip, ip=ip, udp=udp), on=on)

    def from_transceiver(
        self,
        payload: Packet | bytes,
        *,
        to: int,
        transceiver: Endpoint = X1,
        ip: Mapping[str, Any] | None = None,
        udp: Mapping[str, Any] | None = None,
        on: int | None = None,
    ) -> Outcome:
        """Receive a transceiver's packet."""
        return self.receive(
            transceiver_frame(payload, to=to, transceiver=transceiver, ip=ip, udp=udp),
            on=self.interfaces.inside if on is None else on,
        )

    def receive(self, frame: Packet | bytes, *, on: int | None = None) -> Outcome:
        """Run the program on a frame that comes in by interface *on* (the public one if None)."""
        octets = bytes(frame)
        ifindex = self.interfaces.public if on is None else on
        # struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex
        context = struct.pack("=6I", 0, len(octets), 0, ifindex, 0, 0)
        # Interfaces are those of the calling thread's namespace. A thread for each packet, as
        # `run_in` has it, costs more than all the rest.
        _enter(self._there)
        try:
            run = bpf.test_run(self.program, octets, context=context)
        finally:
            _enter(self._here)
        before, self.counters = self.counters, self.maps.counters()
        return _account(Verdict(run.verdict), octets, run.frame, before, self.counters)

    def on_the_wire(self, frame: Packet) -> str:
        """Receive a frame by the public interface with the program attached in generic mode, for
        frames too large for a test run. What counted it: a reason, or the direction it went."""
        return run_in(self._namespace, lambda: self._on_the_wire(bytes(frame)))

    def _on_the_wire(self, octets: bytes) -> str:
        wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
        with IPRoute() as netlink, wire:
            wire.bind(("inside", 0))
            self._attach(netlink, self.program)
            try:
                wire.send(octets)
                deadline = time.monotonic() + 5
                while time.monotonic() < deadline:
                    counters = self.maps.counters()
                    if counters.to_transceiver != self.counters.to_transceiver:
                        return "to_transceiver"
                    for name, count in counters.dropped.items():
                        if count != self.counters.dropped[name]:
                            return name
                raise AssertionError("the frame did not arrive")
            finally:
                self._attach(netlink, -1)
                self.counters = self.maps.counters()

    def _attach(self, netlink: IPRoute, program: int) -> None:
        attributes = [("IFLA_XDP_FD", program), ("IFLA_XDP_FLAGS", _GENERIC)]
        netlink.link("set", index=self.interfaces.public, xdp={"attrs": attributes})

    # Looking.

    def slot(self, port: int) -> Any:
        """The slot, live."""
        return self.maps.slots[port]

    def state(self, port: int) -> types.State:
        """Of a slot; both its halves agree, or this raises AssertionError."""
        there, back = (
            int(self.slot(port)[half]["state"]) for half in ("to_transceiver", "to_client")
        )
        assert there == back
        return types.State(there)

    def in_state(self, state: types.State) -> list[int]:
        """Ports of the slots in this state."""
        return [port for port in PORTS if self.state(port) is state]

    def flow_of(self, client: Endpoint = CLIENT) -> int | None:
        """The port of the client's established flow."""
        address = int.from_bytes(_packed(client.address), "big")
        found = [
            port
            for key, port in self.maps.flows4()
            if (key.address, key.port) == (address, client.port)
        ]
        return found[0] if found else None

    def checks(self) -> dict[int, int]:
        """Transceivers' checks under way: transaction id, port."""
        return {
            int.from_bytes(key, "big"): int.from_bytes(port, sys.byteorder)
            for key, port in self._opened["checks"].items()
        }

    def route(self, ufrag: str = UFRAG) -> types.Route:
        """The route as the map holds it."""
        value = self._opened["routes"].lookup(ufrag_key(ufrag))
        assert value is not None
        return types.Route.from_buffer_copy(value)


def _account(
    verdict: Verdict, received: bytes, frame: bytes, before: Counters, after: Counters
) -> Outcome:
    """The outcome, held to what is true of every packet."""
    moved = {name: n - before.dropped[name] for name, n in after.dropped.items()}
    reasons = [name for name, n in moved.items() for _ in range(n)]
    counted = {
        name: (now.packets - was.packets, now.bytes - was.bytes)
        for name, now, was in (
            ("passed", after.passed, before.passed),
            ("to_transceiver", after.to_transceiver, before.to_transceiver),
            ("to_client", after.to_client, before.to_client),
        )
        if now != was
    }
    outcome = Outcome(verdict, reasons[0] if reasons else None, received, frame)
    assert len(reasons) + len(counted) == 1, (reasons, counted)
    if outcome.forwarded:
        (traffic,) = counted.items()
        assert traffic[0] in ("to_transceiver", "to_client")
        assert traffic[1] == (1, int.from_bytes(received[16:18], "big"))
        assert len(frame) == len(received)
        return outcome
    assert frame == received, "changed, but not sent on"
    if outcome.passed:
        assert counted == {"passed": (1, len(received))}
    else:
        assert verdict is Verdict.DROP
        assert not counted
    return outcome


def _enter(namespace: int) -> None:
    if _libc.setns(namespace, CLONE_NEWNET) < 0:
        raise OSError(ctypes.get_errno(), "cannot enter the network namespace")


def _make_interfaces() -> Interfaces:
    """The two ends of one veth pair; nothing is ever sent between them by a test run."""
    with IPRoute() as netlink:
        netlink.link("add", ifname="public", kind="veth", peer={"ifname": "inside"})
        public, inside = (netlink.link_lookup(ifname=name)[0] for name in ("public", "inside"))
        for ifindex in (public, inside):
            netlink.link("set", index=ifindex, mtu=9000, state="up")
    return Interfaces(public, inside)


def _mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def _u32(number: int) -> bytes:
    return number.to_bytes(4, sys.byteorder)
