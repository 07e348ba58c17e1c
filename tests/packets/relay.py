"""A bench for the compiled program: frames in, what became of them out, by test runs.

`Relay.receive` holds every single packet to the rules that have no exception: exactly one counter
moves, by one packet and the right number of bytes; what is not sent on is not touched either.
"""

import ctypes
import os
import socket
import struct
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from pyroute2 import IPRoute
from scapy.packet import Packet

from loader import bpf, types
from loader.flows import ticks
from loader.maps import Interface, Maps, ufrag_key, versioned
from loader.pinned_set import PROGRAM
from tests.packets import messages
from tests.packets.buckets import first_bucket
from tests.packets.frames import (
    CLIENT,
    CLIENT6,
    COMBINATIONS,
    INSIDE,
    INSIDE_ADDRESS,
    INSIDE_ADDRESS6,
    INSIDE_MAC,
    OTHER_VIP,
    PORTS,
    SECOND_PORTS,
    STRANGER,
    STRANGER6,
    TRANSCEIVERS,
    UFRAG,
    UFRAG6,
    VIP,
    VIP6,
    VIPS,
    X1,
    X2,
    X6,
    Endpoint,
    Pair,
    client_frame,
    correct_checksums,
    partial,
    transceiver_frame,
    vip_for,
)
from tests.packets.outcome import Outcome, Verdict, account
from tools.netns import CLONE_NEWNET, RUN_DIR, run_in

__all__ = [
    "CLIENT",
    "CLIENT6",
    "COMBINATIONS",
    "INSIDE_ADDRESS",
    "INSIDE_ADDRESS6",
    "INSIDE_MAC",
    "MTU",
    "OTHER_VIP",
    "PORTS",
    "SECOND_PORTS",
    "STRANGER",
    "STRANGER6",
    "UFRAG",
    "UFRAG6",
    "VIP",
    "VIP6",
    "X1",
    "X2",
    "X6",
    "Endpoint",
    "Interfaces",
    "Outcome",
    "Pair",
    "Relay",
    "Verdict",
    "client_frame",
    "correct_checksums",
    "partial",
    "slot_of",
    "transceiver_frame",
]

MTU = 20000
"""Of the bench's interfaces: more than a test run takes."""

_libc = ctypes.CDLL(None, use_errno=True)
_GENERIC = 1 << 1  # XDP_FLAGS_SKB_MODE
_ETH_P_ALL = 3


@dataclass(frozen=True, slots=True)
class Interfaces:
    """Indexes of interfaces that exist in the bench's namespace."""

    public: int
    inside: int


class Relay:
    """The program, pinned with maps of its own, and a namespace whose interfaces it sees."""

    def __init__(self, pins: Path, namespace: str) -> None:
        """*pins*: where `loader.compile` has put program and maps for two inside entries.
        *namespace*: an empty one."""
        folder = versioned(pins)
        self.pins = pins
        self._namespace = namespace
        self._here = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        self._there = os.open(RUN_DIR / namespace, os.O_RDONLY)
        self.interfaces = run_in(namespace, _make_interfaces)
        self.program = bpf.pinned(folder / PROGRAM)
        self.maps = Maps(pins, writable=True)
        names = ("routes", "checks", "handshakes", "flows", "free_head", "free_tail")
        self._opened = {name: bpf.Map.open(folder / name) for name in names}
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
        """As a fresh agent leaves it: three VIPs, three transceivers, a route to the first and one
        to the last, and the slots of the first inside entry free.

        What stays: counters, for outcomes are told by differences; and entries of `flows`, which
        lead nowhere.
        """
        for key, _ in list(self._opened["routes"].items()):
            self._opened["routes"].delete(key)
        self.forget_checks()
        for slots in (PORTS, SECOND_PORTS):
            self.maps.slots.clear(slots.start, slots.stop)
            for slot in slots:
                self._opened["handshakes"].update(_u32(slot), bytes(types.Handshake()))
        self.offer(PORTS)
        self.configure()
        self.set_mtu()
        for index, transceiver in enumerate(TRANSCEIVERS):
            self.set_transceiver(index, transceiver)
        self._next_route = 1
        self.counters = self.maps.counters()
        self.add_route(UFRAG)
        self.add_route(UFRAG6, to=X6)

    # Arranging.

    def configure(
        self,
        *,
        inside: Sequence[int | tuple[int, int]] | None = None,
        vips: Sequence[Endpoint] = VIPS,
        entries: Sequence[tuple[str | None, str | None]] = INSIDE,
        ports: range = PORTS,
    ) -> None:
        """Write the settings. *inside*: the links that transceivers' packets may come in by:
        ifindex, or ifindex and VLAN. *entries*: IPv4 and IPv6 inside addresses."""
        settings = types.Settings(first_port=ports.start, last_port=ports.stop - 1)
        for number, vip in enumerate(vips):
            entry = settings.vips[number]
            entry.address = types.packed_address(vip.address)
            entry.port = vip.port
            entry.number = number
        for number, (ipv4, ipv6) in enumerate(entries):
            pair = settings.inside[number]
            pair.ipv4 = types.packed_address(ipv4) if ipv4 else types.Address()
            pair.ipv6 = types.packed_address(ipv6) if ipv6 else types.Address()
            pair.first_slot = number << types.PORT_BITS
            pair.used = 1
        for place, link in enumerate([self.interfaces.inside] if inside is None else inside):
            ifindex, vlan = (link, 0) if isinstance(link, int) else link
            settings.inside_links[place].ifindex = ifindex
            settings.inside_links[place].vlan = vlan
        self.maps.configure(settings)

    def set_mtu(self, *, public: int = MTU, inside: int = MTU, vlans: Iterable[int] = ()) -> None:
        """MTUs of the interfaces, which slots take from here when they are opened; *vlans*: those
        that also exist on the public one, with an MTU of 4 less each."""
        native = types.Mode.NATIVE
        links = [
            Interface("public", self.interfaces.public, False, native, mtu=public),
            Interface("inside", self.interfaces.inside, True, native, mtu=inside),
        ]
        for place, vlan in enumerate(vlans, 1):
            link = self.interfaces.public
            mtu = public - 4 * place
            links.append(Interface(f"vlan{vlan}", link, False, native, vlan=vlan, mtu=mtu))
        self.maps.set_interfaces(links)

    def set_transceiver(
        self,
        index: int,
        transceiver: Endpoint,
        *,
        resolved: bool = True,
        ifindex: int | None = None,
        mtu: int = MTU,
    ) -> None:
        """Write a transceiver's entry; port 0 makes it one that is not in use."""
        entry = types.Transceiver(
            address=types.packed_address(transceiver.address),
            port=transceiver.port,
            resolved=resolved,
        )
        entry.hop.mac[:] = _mac(transceiver.mac)
        entry.hop.source_mac[:] = _mac(INSIDE_MAC)
        entry.hop.ifindex = self.interfaces.inside if ifindex is None else ifindex
        entry.hop.vlan = transceiver.vlan
        entry.hop.mtu = mtu
        self.maps.set_transceiver(index, entry)

    def set_client_mtu(self, slot: int, mtu: int) -> None:
        """Of the way from the slot to its client; 0: not known."""
        self.slot(slot)["to_client"]["hop"]["mtu"] = mtu

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
        """Have the client ask; returns the slot that this opens."""
        slot, _ = self.asked(client, ufrag)
        assert self.state(slot) is types.State.PENDING
        return slot

    def asked(
        self, client: Endpoint = CLIENT, ufrag: str = UFRAG, *, vip: Endpoint | None = None
    ) -> tuple[int, int]:
        """Have the client ask; returns the slot that its request goes through, and the
        transaction."""
        transaction = messages.transaction()
        request = messages.request(ufrag, transaction_id=transaction)
        outcome = self.from_client(request, client=client, vip=vip)
        assert outcome.forwarded, outcome
        return slot_of(outcome), transaction

    def established(
        self,
        client: Endpoint = CLIENT,
        ufrag: str = UFRAG,
        *,
        transceiver: Endpoint | None = None,
        vip: Endpoint | None = None,
    ) -> int:
        """Have the client ask and *transceiver*, or the route's own, answer; returns the slot."""
        slot, asked = self.asked(client, ufrag, vip=vip)
        who = transceiver or TRANSCEIVERS[self.route(ufrag).transceiver]
        self.from_transceiver(messages.success(asked), to=slot, transceiver=who)
        assert self.state(slot) is types.State.ESTABLISHED
        return slot

    def proven(
        self,
        client: Endpoint = CLIENT,
        ufrag: str = UFRAG,
        *,
        transceiver: Endpoint | None = None,
        vip: Endpoint | None = None,
    ) -> int:
        """The same, and have the client answer a check of the transceiver."""
        slot = self.established(client, ufrag, transceiver=transceiver, vip=vip)
        who = transceiver or TRANSCEIVERS[self.route(ufrag).transceiver]
        checked = messages.transaction()
        self.from_transceiver(messages.check(checked), to=slot, transceiver=who)
        assert self.from_client(messages.success(checked), client=client, vip=vip).forwarded
        return slot

    def let_idle(self, slot: int, seconds: float) -> None:
        """Let the client's last packet, and the slot's last change, be so long ago."""
        then = ticks(time.monotonic() - seconds)
        self.maps.slots["to_transceiver"]["seen"][slot] = then
        self.maps.slots["book"]["since"][slot] = then

    def close_slot(self, slot: int) -> None:
        """What the agent does when a session ends."""
        self.set_state(slot, types.State.CLOSING)

    def free_slot(self, slot: int) -> None:
        """What the agent does when a slot has rested."""
        self.set_state(slot, types.State.FREE)
        self.maps.free(slot)

    def set_state(self, slot: int, state: types.State) -> None:
        """Write both halves' state."""
        self.maps.slots["to_client"]["state"][slot] = state
        self.maps.slots["to_transceiver"]["state"][slot] = state

    def forget_checks(self) -> None:
        """Let newer ones push out all checks under way through pending slots."""
        for key, _ in list(self._opened["checks"].items()):
            self._opened["checks"].delete(key)

    def offer(self, slots: Iterable[int]) -> None:
        """Let just these slots be opened, in this order."""
        # Nobody takes one meanwhile, so that there is nobody to be waited for.
        self.turn_ring(0)
        self.maps.free_slots(list(slots))

    def turn_ring(self, head: int) -> None:
        """Empty the ring of free slots, with its head and tail at *head*."""
        self.set_tail(head)
        self._opened["free_head"].update(_u32(0), bytes(types.FreeHead(head=head)))

    def set_tail(self, tail: int) -> None:
        """Where the agent would add to the ring of free slots."""
        self._opened["free_tail"].update(_u32(0), _u32(tail))

    def bucket_of(self, client: Endpoint, *, vip: Endpoint | None = None) -> int:
        """The bucket that the client's established flow is looked for in first."""
        number = VIPS.index(vip or vip_for(client))
        address = np.frombuffer(bytes(types.packed_address(client.address)), dtype="<u8")
        port = np.array([client.port])
        seed = list(self.maps.settings().seed)
        return int(first_bucket(seed, address, port, number, self.maps.sizes.buckets)[0])

    def bucket(self, index: int) -> types.Bucket:
        """A bucket as the map holds it."""
        value = self._opened["flows"].lookup(_u32(index))
        assert value is not None
        return types.Bucket.from_buffer_copy(value)

    def write_bucket(self, index: int, bucket: types.Bucket) -> None:
        """Put it into the map."""
        self._opened["flows"].update(_u32(index), bytes(bucket))

    # Acting.

    def from_client(
        self,
        payload: Packet | bytes,
        *,
        client: Endpoint = CLIENT,
        vip: Endpoint | None = None,
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
        transceiver: Endpoint | None = None,
        ip: Mapping[str, Any] | None = None,
        udp: Mapping[str, Any] | None = None,
        on: int | None = None,
    ) -> Outcome:
        """Receive a packet of *transceiver*, or of the slot's own."""
        if transceiver is None:
            transceiver = TRANSCEIVERS[int(self.slot(to)["to_client"]["transceiver"])]
        return self.receive(
            transceiver_frame(payload, to=to, transceiver=transceiver, ip=ip, udp=udp),
            on=self.interfaces.inside if on is None else on,
        )

    def receive(
        self, frame: Packet | bytes, *, on: int | None = None, metadata: int = 0
    ) -> Outcome:
        """Run the program on a frame that comes in by interface *on* (the public one if None).
        *metadata*: bytes that a driver has put in front of it, so much less room is left."""
        octets = bytes(frame)
        verdict, after = self.run(octets, on=on, metadata=metadata)
        before, self.counters = self.counters, self.maps.counters()
        return account(verdict, octets, after, before, self.counters)

    def run(
        self, octets: bytes, *, on: int | None = None, metadata: int = 0
    ) -> tuple[Verdict, bytes]:
        """The same, and nothing is checked; for tests that send thousands."""
        ifindex = self.interfaces.public if on is None else on
        octets = bytes(metadata) + octets
        # struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex
        context = struct.pack("=6I", metadata, len(octets), 0, ifindex, 0, 0)
        # Interfaces are those of the calling thread's namespace. A thread for each packet, as
        # `run_in` has it, costs more than all the rest.
        _enter(self._there)
        try:
            run = bpf.test_run(self.program, octets, context=context)
        finally:
            _enter(self._here)
        return Verdict(run.verdict), run.frame[metadata:]

    def on_the_wire(self, frame: Packet | bytes) -> tuple[str, bytes]:
        """Receive a frame by the public interface with the program attached in generic mode, for
        frames too large for a test run.

        What counted it (a reason, or the direction it went), and if it went to a transceiver,
        how it arrived at the other end: at the public interface again, for the two are one veth.
        """
        return run_in(self._namespace, lambda: self._on_the_wire(bytes(frame)))

    def _on_the_wire(self, octets: bytes) -> tuple[str, bytes]:
        sender = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
        sink = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
        with IPRoute() as netlink, sender, sink:
            sender.bind(("inside", 0))
            sink.bind(("public", _ETH_P_ALL))
            sink.settimeout(5)
            self._attach(netlink, self.program)
            try:
                sender.send(octets)
                counted = self._what_counted()
                return counted, _arrived(sink) if counted == "to_transceiver" else b""
            finally:
                self._attach(netlink, -1)
                self.counters = self.maps.counters()

    def _what_counted(self) -> str:
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            counters = self.maps.counters()
            if counters.to_transceiver != self.counters.to_transceiver:
                return "to_transceiver"
            for name, count in counters.dropped.items():
                if count != self.counters.dropped[name]:
                    return name
        raise AssertionError("the frame did not arrive")

    def _attach(self, netlink: IPRoute, program: int) -> None:
        attributes = [("IFLA_XDP_FD", program), ("IFLA_XDP_FLAGS", _GENERIC)]
        netlink.link("set", index=self.interfaces.public, xdp={"attrs": attributes})

    # Looking.

    def slot(self, slot: int) -> dict[str, Any]:
        """The slot's two halves, live."""
        return self.maps.slots.at(slot)

    def snapshot(self, slot: int) -> bytes:
        """All that the slot holds, to be compared."""
        return b"".join(half.tobytes() for half in self.slot(slot).values())

    def state(self, slot: int) -> types.State:
        """Of a slot; both its halves agree, or this raises AssertionError."""
        there, back = (
            int(self.slot(slot)[half]["state"]) for half in ("to_transceiver", "to_client")
        )
        assert there == back
        return types.State(there)

    def in_state(self, state: types.State) -> list[int]:
        """The slots in this state."""
        return [slot for slot in (*PORTS, *SECOND_PORTS) if self.state(slot) is state]

    def flow_of(self, client: Endpoint = CLIENT, *, vip: Endpoint | None = None) -> int | None:
        """The client's established slot; there are never two, or this raises AssertionError."""
        number = VIPS.index(vip or vip_for(client))
        address = bytes(types.packed_address(client.address))
        found = [
            slot
            for slot in self.in_state(types.State.ESTABLISHED)
            if _client_of(self.slot(slot)["to_client"]) == (address, client.port, number)
        ]
        assert len(found) <= 1
        return found[0] if found else None

    def checks(self) -> dict[int, int]:
        """Transceivers' checks under way through pending slots: transaction id, slot."""
        return {
            int.from_bytes(key, "big"): int.from_bytes(slot, sys.byteorder)
            for key, slot in self._opened["checks"].items()
        }

    def handshake(self, slot: int) -> types.Handshake:
        """The part of a slot that STUN alone touches."""
        value = self._opened["handshakes"].lookup(_u32(slot))
        assert value is not None
        return types.Handshake.from_buffer_copy(value)

    def route(self, ufrag: str = UFRAG) -> types.Route:
        """The route as the map holds it."""
        value = self._opened["routes"].lookup(ufrag_key(ufrag))
        assert value is not None
        return types.Route.from_buffer_copy(value)


def slot_of(outcome: Outcome) -> int:
    """The slot whose inside address and port a forwarded packet of a client comes from."""
    address, port, _, _ = outcome.addresses
    (entry,) = (number for number, pair in enumerate(INSIDE) if address in pair)
    return entry << types.PORT_BITS | port


def _client_of(half: Any) -> tuple[bytes, int, int]:
    return half["client"].tobytes(), int(half["client_port"]), int(half["vip"])


def _arrived(sink: socket.socket) -> bytes:
    """The frame that came from the relay's inside, whatever else the kernel sends meanwhile."""
    while True:
        octets, (_, _, kind, _, _) = sink.recvfrom(1 << 16)
        if kind != socket.PACKET_OUTGOING and octets[6:12] == _mac(INSIDE_MAC):
            return octets


def _enter(namespace: int) -> None:
    if _libc.setns(namespace, CLONE_NEWNET) < 0:
        raise OSError(ctypes.get_errno(), "cannot enter the network namespace")


def _make_interfaces() -> Interfaces:
    """The two ends of one veth pair; nothing is ever sent between them by a test run."""
    with IPRoute() as netlink:
        netlink.link("add", ifname="public", kind="veth", peer={"ifname": "inside"})
        public, inside = (netlink.link_lookup(ifname=name)[0] for name in ("public", "inside"))
        for ifindex in (public, inside):
            netlink.link("set", index=ifindex, mtu=MTU, state="up")
    return Interfaces(public, inside)


def _mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def _u32(number: int) -> bytes:
    return number.to_bytes(4, sys.byteorder)
