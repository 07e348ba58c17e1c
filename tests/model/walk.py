"""The walk of a packet once more, from docs/packet-walk.md alone, in plain Python.

Shares nothing with the program: no checksum is changed by a delta, all are worked out from scratch;
flows are found by looking at all slots. Addresses are 16 bytes, IPv4 as IPv4-mapped IPv6.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from tests.model import checksums

__all__ = [
    "CLOSING",
    "DROP",
    "ESTABLISHED",
    "FREE",
    "IDLE_TICKS",
    "MAPPED",
    "PASS",
    "PENDING",
    "REDIRECT",
    "TX",
    "Hop",
    "Key",
    "Outcome",
    "Route",
    "Slot",
    "Transceiver",
    "Walk",
]

DROP, PASS, TX, REDIRECT = 1, 2, 3, 4
FREE, PENDING, ESTABLISHED, CLOSING = 0, 1, 2, 3
MAPPED = b"\0" * 10 + b"\xff\xff"
IDLE_TICKS = int(5e9 / 2**27)
"""5 s, in ticks of the slots' coarse time."""

_UDP, _ICMP, _ICMP6 = 17, 1, 58
_EXTENSIONS = (0, 43, 44, 60)
_FRAGMENT = 44
_ERRORS = {4: (3, 11, 12), 6: (1, 2, 3, 4)}
_QUOTES = {4: 548, 6: 1232}
_REQUEST, _SUCCESS, _ERROR = 0x0001, 0x0101, 0x0111
_NO_TRANSACTION = bytes(12)
_PADDING = 46

Key = tuple[bytes, int, int]
"""A client: address, port, index of the VIP that it talks to."""


@dataclass(frozen=True, slots=True)
class Hop:
    """Where a packet goes on the link layer. *mtu*: of IP packets; 0: not known."""

    mac: bytes
    source_mac: bytes
    ifindex: int
    vlan: int = 0
    mtu: int = 0

    @property
    def way(self) -> tuple[bytes, bytes, int, int]:
        """All but the MTU."""
        return self.mac, self.source_mac, self.ifindex, self.vlan


@dataclass(slots=True)
class Transceiver:
    """An entry of the transceivers' table; *present*: whether it is in use."""

    address: bytes
    port: int
    hop: Hop
    present: bool = True
    resolved: bool = True


@dataclass(slots=True)
class Route:
    """What a ufrag leads to; *places*: the slots that are, or were, its flows'."""

    id: int
    transceiver: int
    no_checks: bool = False
    places: list[int] = field(default_factory=lambda: [0] * 8)


@dataclass(slots=True)
class Slot:
    """A flow's place. *asked*: the last requests for the next route, any of whose answers
    changes the route."""

    state: int = FREE
    client: Key = (bytes(16), 0, 0)
    transceiver: int = 0
    route: int = 0
    next_route: int = 0
    seen: int = 0
    since: int = 0
    packets_in: int = 0
    bytes_in: int = 0
    packets_out: int = 0
    bytes_out: int = 0
    proven: bool = False
    hop: Hop = field(default_factory=lambda: Hop(bytes(6), bytes(6), 0))
    requests: list[bytes] = field(default_factory=list)
    checks: list[bytes] = field(default_factory=list)
    hop_request: bytes = b""
    next_hop: Hop | None = None
    asked: list[bytes] = field(default_factory=list)

    @property
    def is_live(self) -> bool:
        return self.state in (PENDING, ESTABLISHED)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What becomes of a frame. *counted*: direction and bytes, of what is not dropped.
    *id_at*: where in the frame an IPv4 ID stands that is random."""

    verdict: int
    frame: bytes
    reason: str | None = None
    counted: tuple[str, int] | None = None
    id_at: int | None = None
    kind: str = ""


class _Dropped(Exception):
    """The packet's way ends; the reason."""


@dataclass(slots=True)
class _Packet:
    """What is read of a frame."""

    frame: bytes
    ifindex: int
    vlan: int
    ip: int
    version: int = 0
    transport: int = 0
    protocol: int = 0
    source: bytes = b""
    destination: bytes = b""
    length: int = 0
    """Of the IP packet, as its header says."""

    @property
    def end(self) -> int:
        return self.ip + self.length

    def number(self, at: int, size: int = 2) -> int:
        return int.from_bytes(self.frame[at : at + size], "big")

    @property
    def ttl(self) -> int:
        return self.frame[self.ip + (7 if self.version == 6 else 8)]

    @property
    def tos(self) -> int:
        if self.version == 6:
            return self.number(self.ip) >> 4 & 0xFF
        return self.frame[self.ip + 1]

    @property
    def has_options(self) -> bool:
        return self.transport != self.ip + (40 if self.version == 6 else 20)

    @property
    def is_fragment(self) -> bool:
        return self.version == 4 and bool(self.number(self.ip + 6) & 0x3FFF)


@dataclass(slots=True)
class Walk:
    """The relay: what it is configured with, and its tables."""

    vips: list[tuple[bytes, int]]
    inside: list[tuple[bytes | None, bytes | None]]
    inside_links: set[tuple[int, int]]
    ports: range
    mtus: dict[tuple[int, int], int]
    transceivers: dict[int, Transceiver]
    routes: dict[bytes, Route] = field(default_factory=dict)
    slots: dict[int, Slot] = field(default_factory=dict)
    free: deque[int] = field(default_factory=deque)
    now: int = 0
    _packet: _Packet = field(default_factory=lambda: _Packet(b"", 0, 0, 0))
    through: int | None = None
    """The slot that the last packet was found to belong to."""
    was_tied: bool = False
    """Whether it took over one of several slots that were equally old; the document leaves open
    which."""

    def receive(self, frame: bytes, ifindex: int) -> Outcome:
        """What becomes of a frame."""
        self.through, self.was_tied = None, False
        try:
            outcome = self._walk(frame, ifindex)
        except _TooLong as dropped:
            return self._too_long(self._packet, dropped.mtu)
        except _Dropped as dropped:
            return Outcome(DROP, frame, reason=str(dropped), kind="drop")
        return outcome or Outcome(PASS, frame, counted=("passed", len(frame)), kind="pass")

    # Whose is it?

    def _walk(self, frame: bytes, ifindex: int) -> Outcome | None:
        vlan, ip = 0, 14
        kind = frame[12:14]
        if kind == b"\x81\x00":
            vlan, ip, kind = int.from_bytes(frame[14:16], "big") & 0xFFF, 18, frame[16:18]
        packet = self._packet = _Packet(frame, ifindex, vlan, ip)
        if kind == b"\x08\x00":
            return self._ipv4(packet)
        if kind == b"\x86\xdd":
            return self._ipv6(packet)
        return None

    def _ipv4(self, packet: _Packet) -> Outcome | None:
        frame, ip = packet.frame, packet.ip
        if len(frame) < ip + 20 or frame[ip] >> 4 != 4 or frame[ip] & 15 < 5:
            return None
        packet.version, packet.protocol = 4, frame[ip + 9]
        packet.source, packet.destination = (
            MAPPED + frame[ip + 12 : ip + 16],
            MAPPED + frame[ip + 16 : ip + 20],
        )
        packet.length = packet.number(ip + 2)
        packet.transport = ip + (frame[ip] & 15) * 4
        if packet.protocol == _UDP:
            if packet.number(ip + 6) & 0x1FFF:
                if self._is_vip(packet.destination):
                    raise _Dropped("fragment")
                return None
            return self._udp(packet)
        if packet.protocol == _ICMP and not packet.is_fragment and not packet.has_options:
            return self._icmp(packet)
        return None

    def _ipv6(self, packet: _Packet) -> Outcome | None:
        frame, ip = packet.frame, packet.ip
        if len(frame) < ip + 40 or frame[ip] >> 4 != 6:
            return None
        packet.version, packet.protocol = 6, frame[ip + 6]
        packet.source, packet.destination = frame[ip + 8 : ip + 24], frame[ip + 24 : ip + 40]
        packet.length = 40 + packet.number(ip + 4)
        packet.transport = ip + 40
        if packet.destination[:8] == bytes(8):
            return None
        if packet.protocol == _UDP:
            return self._udp(packet)
        if packet.protocol == _ICMP6:
            return self._icmp(packet)
        if packet.protocol in _EXTENSIONS:
            return self._extended(packet)
        return None

    def _extended(self, packet: _Packet) -> Outcome | None:
        at, kind, has_fragment = packet.transport, packet.protocol, False
        for _ in range(4):
            if kind not in _EXTENSIONS:
                break
            if len(packet.frame) < at + 8:
                return None
            following, size = packet.frame[at], 8 * (packet.frame[at + 1] + 1)
            if kind == _FRAGMENT:
                size, has_fragment = 8, True
                if packet.number(at + 2) >> 3:
                    if following == _UDP and self._is_vip(packet.destination):
                        raise _Dropped("fragment")
                    return None
            at, kind = at + size, following
        if kind in _EXTENSIONS:
            if self._is_vip(packet.destination) or self._is_inside(packet.destination):
                raise _Dropped("ip_options")
            return None
        if kind != _UDP or len(packet.frame) < at + 8:
            return None
        port = packet.number(at + 2)
        slot = self._slot_of(packet.destination, port)
        if (packet.destination, port) not in self.vips:
            if slot is None:
                return None
            self._check_interface(packet)
        raise _Dropped("fragment" if has_fragment else "ip_options")

    def _udp(self, packet: _Packet) -> Outcome | None:
        if len(packet.frame) < packet.transport + 8:
            return None
        port = packet.number(packet.transport + 2)
        if (packet.destination, port) in self.vips:
            return self._from_client(packet, self.vips.index((packet.destination, port)))
        slot = self._slot_of(packet.destination, port)
        if slot is not None:
            return self._from_transceiver(packet, slot)
        return None

    def _is_vip(self, address: bytes) -> bool:
        return any(address == vip for vip, _ in self.vips)

    def _is_inside(self, address: bytes) -> bool:
        return any(address in pair for pair in self.inside)

    def _slot_of(self, address: bytes, port: int) -> int | None:
        """The index that an inside address and port mean."""
        for entry, pair in enumerate(self.inside):
            if address in pair and port in self.ports:
                return entry << 16 | port
        return None

    def _check_interface(self, packet: _Packet) -> None:
        if (packet.ifindex, packet.vlan) not in self.inside_links:
            raise _Dropped("wrong_interface")

    # Headers.

    def _check_headers(self, packet: _Packet) -> None:
        if packet.is_fragment:
            raise _Dropped("fragment")
        if packet.has_options:
            raise _Dropped("ip_options")
        udp_length = packet.number(packet.transport + 4)
        if udp_length < 8 or udp_length != packet.end - packet.transport:
            raise _Dropped("length")
        self._check_frame(packet)
        if packet.version == 6 and not packet.number(packet.transport + 6):
            raise _Dropped("no_checksum")

    def _check_frame(self, packet: _Packet) -> None:
        if not 0 <= len(packet.frame) - packet.end <= _PADDING:
            raise _Dropped("length")
        if packet.ttl < 2:
            raise _Dropped("ttl")

    # Client → VIP.

    def _from_client(self, packet: _Packet, vip: int) -> Outcome:
        self._check_headers(packet)
        payload = packet.frame[packet.transport + 8 : packet.end]
        client = (packet.source, packet.number(packet.transport), vip)
        kind = _class(payload)
        if kind is None:
            raise _Dropped("class")
        flow = self._flow(client)
        if kind == "stun":
            _check_stun(payload)
            type, transaction = int.from_bytes(payload[:2], "big"), payload[8:20]
            if type == _REQUEST:
                return self._request(packet, client, payload, transaction)
            if type in (_SUCCESS, _ERROR):
                return self._response(packet, client, transaction, type == _SUCCESS)
        if flow is None:
            raise _Dropped("no_flow")
        return self._to_transceiver(packet, flow)

    def _flow(self, client: Key) -> int | None:
        """The client's established flow."""
        for index, slot in self.slots.items():
            if slot.state == ESTABLISHED and slot.client == client:
                return index
        return None

    def _request(self, packet: _Packet, client: Key, message: bytes, transaction: bytes) -> Outcome:
        route = self.routes.get(_ufrag(message))
        if route is None:
            raise _Dropped("no_route")
        if not self.transceivers[route.transceiver].present:
            raise _Dropped("transceiver_gone")
        flow = self._flow(client)
        asks_for = 0
        if flow is not None and self.slots[flow].route == route.id:
            index = flow
        elif flow is not None and self.slots[flow].transceiver == route.transceiver:
            index = flow
            asks_for = route.id
            if self.slots[flow].next_route != route.id and _is_multicast(packet):
                raise _Dropped("link_address")
            self._join(route, flow)
        else:
            index = self._pending(packet, client, route)
        slot = self.slots[index]
        hop = self._arrival(packet)
        if transaction not in slot.requests:
            slot.requests = [*slot.requests, transaction][-4:]
        if asks_for:
            if slot.next_route != asks_for:
                slot.next_route, slot.asked = asks_for, []
            if transaction not in slot.asked:
                slot.asked = [*slot.asked, transaction][-4:]
        if hop.way != slot.hop.way and not asks_for and not _is_multicast(packet):
            slot.hop_request, slot.next_hop = transaction, hop
        return self._to_transceiver(packet, index)

    def _arrival(self, packet: _Packet) -> Hop:
        """The next hop that leads back to where a packet came from."""
        of_link = self.mtus.get((packet.ifindex, 0), 0)
        mtu = self.mtus.get((packet.ifindex, packet.vlan), of_link)
        return Hop(packet.frame[6:12], packet.frame[:6], packet.ifindex, packet.vlan, mtu)

    def _members(self, route: Route) -> Iterator[tuple[int, Slot]]:
        """Places of a route that its flows hold."""
        for place, index in enumerate(route.places):
            slot = self.slots.get(index)
            if slot and slot.is_live and route.id in (slot.route, slot.next_route):
                yield place, slot

    def _pending(self, packet: _Packet, client: Key, route: Route) -> int:
        if _is_multicast(packet):
            raise _Dropped("link_address")
        for place, slot in self._members(route):
            if slot.state == PENDING and slot.client == client and slot.route == route.id:
                return route.places[place]
        if client[1] == 0 or self._is_impossible(packet):
            raise _Dropped("source")
        place, taken_over = self._place(route)
        index = taken_over if taken_over is not None else self._open(route, place)
        self.slots[index] = Slot(
            state=PENDING,
            client=client,
            transceiver=route.transceiver,
            route=route.id,
            seen=self.now,
            since=self.now,
            proven=route.no_checks,
            hop=self._arrival(packet),
        )
        route.places[place] = index
        return index

    def _open(self, route: Route, place: int) -> int:
        """A free slot, for a place whose flow ends, or has only asked for the route."""
        if not self.free:
            raise _Dropped("table_full")
        before = dict(self._members(route)).get(place)
        if before is not None:
            self._give_up(before, route)
        return self.free.popleft()

    def _give_up(self, slot: Slot, route: Route) -> None:
        if slot.route == route.id:
            self._close(slot)
        else:
            slot.next_route = 0

    def _close(self, slot: Slot) -> None:
        slot.state, slot.since = CLOSING, self.now

    def _place(self, route: Route) -> tuple[int, int | None]:
        """The place for a new flow, and the pending slot that is taken over, if one is."""
        members = dict(self._members(route))
        for place in range(8):
            if place not in members:
                return place, None
        for place, slot in members.items():
            if slot.route != route.id:
                return place, None
        pending = {place: slot for place, slot in members.items() if slot.state == PENDING}
        if pending:
            place = min(pending, key=lambda place: self._age(pending[place].since))
            since = pending[place].since
            oldest = [slot for slot in pending.values() if slot.since - since <= 1]
            self.was_tied = len(oldest) > 1
            return place, route.places[place]
        for place, slot in members.items():
            if self._is_idle(slot):
                return place, None
        raise _Dropped("route_full")

    def _age(self, then: int) -> int:
        """For `min`: what is longest ago comes first."""
        return then - self.now

    def _is_idle(self, slot: Slot) -> bool:
        return self.now - slot.seen >= IDLE_TICKS

    def _join(self, route: Route, index: int) -> None:
        """A restart: the flow becomes one of the new route's, too."""
        if index in (route.places[place] for place, _ in self._members(route)):
            return
        place, _ = self._place(route)
        before = dict(self._members(route)).get(place)
        if before is not None:
            self._give_up(before, route)
        route.places[place] = index

    def _is_impossible(self, packet: _Packet) -> bool:
        """Whether no client can have this source address."""
        source = packet.source
        if self._is_vip(source) or self._is_inside(source):
            return True
        if packet.version == 4:
            return source[12] in (0, 127) or source[12] >= 224
        none = source in (bytes(16), bytes(15) + b"\1") or source[:12] == MAPPED
        return none or source[0] == 0xFF or (source[0] == 0xFE and source[1] & 0xC0 == 0x80)

    def _response(
        self, packet: _Packet, client: Key, transaction: bytes, is_success: bool
    ) -> Outcome:
        index = next(
            (
                index
                for index, slot in self.slots.items()
                if slot.is_live and slot.client == client and transaction in slot.checks
            ),
            None,
        )
        if index is None:
            raise _Dropped("unexpected_response")
        slot = self.slots[index]
        if is_success:
            slot.proven = True
            hop = self._arrival(packet)
            if hop.way != slot.hop.way and not _is_multicast(packet):
                slot.hop = hop
            if slot.state == PENDING:
                self._establish(slot, is_proof=True)
        return self._to_transceiver(packet, index)

    def _establish(self, slot: Slot, *, is_proof: bool) -> None:
        flow = self._flow(slot.client)
        if flow is not None:
            before = self.slots[flow]
            if not self._is_idle(before) and not is_proof:
                return
            self._close(before)
        slot.state, slot.since = ESTABLISHED, self.now

    # Transceiver → inside address:port.

    def _from_transceiver(self, packet: _Packet, index: int) -> Outcome:
        self._check_interface(packet)
        self._check_headers(packet)
        slot = self.slots.get(index, Slot())
        if slot.state == FREE:
            raise _Dropped("slot_free")
        if slot.state == CLOSING:
            raise _Dropped("slot_closing")
        transceiver = self.transceivers[slot.transceiver]
        if not transceiver.present:
            raise _Dropped("transceiver_gone")
        source = (packet.source, packet.number(packet.transport))
        if source != (transceiver.address, transceiver.port) or (
            packet.version == 6 and packet.source[:12] == MAPPED
        ):
            raise _Dropped("wrong_transceiver")
        self.through = index
        payload = packet.frame[packet.transport + 8 : packet.end]
        is_stun = _is_stun(payload)
        if slot.state != ESTABLISHED and _class(payload) != "stun":
            raise _Dropped("not_established")
        length = self._length_out(packet, slot)
        self._check_amplification(slot, length)
        hop, takes_hop = slot.hop, False
        type, transaction = int.from_bytes(payload[:2], "big"), payload[8:20]
        is_success = is_stun and type == _SUCCESS
        is_answer = is_success and transaction in (*slot.requests, *slot.asked)
        if is_success and slot.hop_request == transaction and slot.next_hop:
            hop, takes_hop = slot.next_hop, True
        self._check_mtu(packet, slot, length, hop)
        if takes_hop:
            slot.hop, slot.hop_request, slot.next_hop = hop, b"", None
        if is_answer:
            self._answered(slot, transaction)
        if is_stun and type == _REQUEST and transaction not in slot.checks:
            slot.checks = [*slot.checks, transaction][-2:]
        address, port, vip = slot.client
        slot.packets_out += 1
        slot.bytes_out += length
        vip_address, vip_port = self.vips[vip]
        return self._send(
            packet, (vip_address, vip_port), (address, port), hop, ("to_client", length)
        )

    def _answered(self, slot: Slot, transaction: bytes) -> None:
        if slot.state == PENDING:
            self._establish(slot, is_proof=False)
        elif transaction in slot.asked and slot.next_route:
            slot.route, slot.next_route = slot.next_route, slot.route
            slot.asked = []

    def _length_out(self, packet: _Packet, slot: Slot) -> int:
        """Of the IP packet as the client gets it."""
        return packet.length + 10 * (self._client_version(slot) - packet.version)

    def _client_version(self, slot: Slot) -> int:
        return _version(self.vips[slot.client[2]][0])

    def _check_amplification(self, slot: Slot, length: int) -> None:
        if not slot.proven and slot.bytes_out + length > 3 * slot.bytes_in:
            raise _Dropped("amplification")

    # Sending on.

    def _check_way_in(self, packet: _Packet, index: int) -> Transceiver:
        """Whatever may speak against a packet's going to the transceiver of its slot."""
        slot = self.slots[index]
        transceiver = self.transceivers[slot.transceiver]
        if not transceiver.present:
            raise _Dropped("transceiver_gone")
        if not transceiver.resolved:
            raise _Dropped("neighbour")
        length = packet.length + 10 * (_version(transceiver.address) - packet.version)
        self._check_mtu(packet, slot, length, transceiver.hop)
        return transceiver

    def _to_transceiver(self, packet: _Packet, index: int) -> Outcome:
        slot = self.slots[index]
        self.through = index
        transceiver = self._check_way_in(packet, index)
        slot.seen = self.now
        slot.packets_in += 1
        slot.bytes_in += packet.length
        return self._send(
            packet,
            self._inside_end(index),
            (transceiver.address, transceiver.port),
            transceiver.hop,
            ("to_transceiver", packet.length),
        )

    def _inside_end(self, index: int) -> tuple[bytes, int]:
        """The inside address and port that a slot's packets come from."""
        transceiver = self.transceivers[self.slots[index].transceiver]
        address = self.inside[index >> 16][_version(transceiver.address) == 6]
        assert address is not None
        return address, index & 0xFFFF

    def _check_mtu(self, packet: _Packet, slot: Slot, length: int, hop: Hop) -> None:
        if not hop.mtu or length <= hop.mtu:
            return
        told = hop.mtu + packet.length - length
        if packet.protocol != _UDP:
            raise _Dropped("mtu")
        allowed = packet.version == 6 or packet.number(packet.ip + 6) & 0x4000
        if slot.state != ESTABLISHED or not allowed or packet.length < _QUOTES[packet.version]:
            raise _Dropped("mtu")
        raise _TooLong(told)

    def _send(
        self,
        packet: _Packet,
        source: tuple[bytes, int],
        destination: tuple[bytes, int],
        hop: Hop,
        counted: tuple[str, int],
    ) -> Outcome:
        """The frame as it goes on: from and to these addresses and ports."""
        datagram = packet.frame[packet.transport : packet.end]
        found = int.from_bytes(datagram[6:8], "big")
        version = _version(destination[0])
        before = _addresses(packet.version, packet.source, packet.destination)
        after = _addresses(version, source[0], destination[0])
        ports = source[1].to_bytes(2, "big") + destination[1].to_bytes(2, "big")
        fresh = ports + datagram[4:]
        if not found and version == 4:
            checksum = 0
        else:
            off = 0
            if found:
                pseudo = checksums.total(before) + len(datagram) + _UDP
                is_partial = found % 0xFFFF == pseudo % 0xFFFF
                right = checksums.transport(before, _UDP, datagram, 6)
                off = 0 if is_partial else checksums.difference(found, right)
            right = checksums.transport(after, _UDP, fresh, 6)
            checksum = checksums.with_difference(right, off) or 0xFFFF
        fresh = fresh[:6] + checksum.to_bytes(2, "big") + fresh[8:]
        header, is_random = self._header(packet, version, after, len(fresh), _UDP)
        return self._out(packet, header, fresh, hop, counted, is_random)

    def _header(
        self, packet: _Packet, version: int, addresses: bytes, size: int, protocol: int
    ) -> tuple[bytes, bool]:
        """The IP header in front of *size* bytes; whether its ID is random."""
        was = packet.frame[packet.ip : packet.transport]
        ttl = packet.ttl - 1
        if version == 6:
            first = (
                int.from_bytes(was[:4], "big")
                if packet.version == 6
                else 6 << 28 | packet.tos << 20
            )
            start = first.to_bytes(4, "big") + size.to_bytes(2, "big") + bytes([protocol, ttl])
            return start + addresses, False
        length = (20 + size).to_bytes(2, "big")
        off, is_random = 0, False
        if packet.version == 4:
            id_and_flags = was[4:8]
            off = checksums.difference(int.from_bytes(was[10:12], "big"), checksums.of_ipv4(was))
        else:
            is_random = 20 + size <= 1260
            id_and_flags = b"\0\0\0\0" if is_random else b"\0\0\x40\0"
        start = bytes([0x45, packet.tos]) + length + id_and_flags + bytes([ttl, protocol])
        right = checksums.of_ipv4(start + b"\0\0" + addresses)
        checksum = checksums.with_difference(right, off)
        return start + checksum.to_bytes(2, "big") + addresses, is_random

    def _out(
        self,
        packet: _Packet,
        header: bytes,
        content: bytes,
        hop: Hop,
        counted: tuple[str, int],
        is_random: bool,
    ) -> Outcome:
        version = header[0] >> 4
        link = hop.mac + hop.source_mac
        if hop.vlan:
            link += b"\x81\x00" + hop.vlan.to_bytes(2, "big")
        link += b"\x86\xdd" if version == 6 else b"\x08\x00"
        verdict = TX if hop.ifindex == packet.ifindex else REDIRECT
        frame = link + header + content + packet.frame[packet.end :]
        return Outcome(
            verdict,
            frame,
            counted=counted,
            id_at=len(link) + 4 if is_random else None,
            kind=f"{packet.version}-{version}",
        )

    def _too_long(self, packet: _Packet, mtu: int) -> Outcome:
        """Dropped, and its sender is told."""
        frame = packet.frame
        addresses = _addresses(packet.version, packet.destination, packet.source)
        quote = frame[packet.ip : packet.ip + _QUOTES[packet.version]]
        if packet.version == 6:
            message = b"\2\0\0\0" + max(1280, mtu).to_bytes(4, "big") + quote
            header = (
                b"\x60\0\0\0" + len(message).to_bytes(2, "big") + bytes([_ICMP6, 64]) + addresses
            )
        else:
            message = b"\3\4\0\0\0\0" + mtu.to_bytes(2, "big") + quote
            length = (20 + len(message)).to_bytes(2, "big")
            header = b"\x45\xc0" + length + bytes(4) + bytes([64, _ICMP, 0, 0]) + addresses
        checksum = _icmp_checksum(packet.version, addresses, message).to_bytes(2, "big")
        link = frame[6:12] + frame[:6] + frame[12 : packet.ip]
        told = link + header + message[:2] + checksum + message[4:]
        id_at = None if packet.version == 6 else len(link) + 4
        return Outcome(TX, told, reason="mtu", id_at=id_at, kind=f"told {packet.version}")

    # ICMP errors.

    def _icmp(self, packet: _Packet) -> Outcome | None:
        at = packet.transport
        size = 40 if packet.version == 6 else 20
        if len(packet.frame) < at + 8 + size + 8:
            return None
        if packet.frame[at] not in _ERRORS[packet.version]:
            return None
        quote = packet.frame[at + 8 : max(packet.end, at + 8 + size + 8)]
        if packet.version == 4:
            if quote[0] != 0x45 or quote[9] != _UDP or int.from_bytes(quote[6:8], "big") & 0x1FFF:
                return None
            source, destination = MAPPED + quote[12:16], MAPPED + quote[16:20]
        else:
            if quote[0] >> 4 != 6 or quote[6] != _UDP:
                return None
            source, destination = quote[8:24], quote[24:40]
        if source != packet.destination:
            return None
        source_port = int.from_bytes(quote[size : size + 2], "big")
        port = int.from_bytes(quote[size + 2 : size + 4], "big")
        is_mapped = packet.version == 6 and destination[:12] == MAPPED
        if (source, source_port) in self.vips:
            self._check_error(packet, size)
            vip = self.vips.index((source, source_port))
            flow = None if is_mapped else self._flow((destination, port, vip))
            if flow is None:
                raise _Dropped("icmp")
            return self._error_to_transceiver(packet, flow, quote)
        index = self._slot_of(source, source_port)
        if index is None:
            return None
        self._check_error(packet, size)
        self._check_interface(packet)
        slot = self.slots.get(index, Slot())
        transceiver = self.transceivers.get(slot.transceiver)
        if (
            slot.state != ESTABLISHED
            or transceiver is None
            or not transceiver.present
            or is_mapped
            or (transceiver.address, transceiver.port) != (destination, port)
        ):
            raise _Dropped("icmp")
        return self._error_to_client(packet, index, quote)

    def _check_error(self, packet: _Packet, size: int) -> None:
        self._check_frame(packet)
        if packet.end < packet.transport + 8 + size + 8:
            raise _Dropped("length")

    def _error_to_transceiver(self, packet: _Packet, index: int, quote: bytes) -> Outcome:
        slot = self.slots[index]
        self.through = index
        transceiver = self.transceivers[slot.transceiver]
        if not transceiver.present:
            raise _Dropped("transceiver_gone")
        if not transceiver.resolved:
            raise _Dropped("neighbour")
        ends = self._inside_end(index), (transceiver.address, transceiver.port)
        counted = ("to_transceiver", packet.length)
        return self._error(packet, quote, ends, transceiver.hop, counted, None)

    def _error_to_client(self, packet: _Packet, index: int, quote: bytes) -> Outcome:
        slot = self.slots[index]
        self.through = index
        ends = self.vips[slot.client[2]], slot.client[:2]
        length = self._length_out_of_error(packet, self._client_version(slot))
        return self._error(packet, quote, ends, slot.hop, ("to_client", length), slot)

    def _length_out_of_error(self, packet: _Packet, version: int) -> int:
        return packet.length + 20 * (version - packet.version)

    def _error(
        self,
        packet: _Packet,
        quote: bytes,
        ends: tuple[tuple[bytes, int], tuple[bytes, int]],
        hop: Hop,
        counted: tuple[str, int],
        limited: Slot | None,
    ) -> Outcome:
        """The error as the relay tells *ends[1]*, from *ends[0]*."""
        (teller, _), (receiver, _) = ends
        version = _version(receiver)
        message = packet.frame[packet.transport : packet.end]
        length = self._length_out_of_error(packet, version)
        if (hop.mtu and length > hop.mtu) or (version == 6 and length > 1280):
            raise _Dropped("mtu")
        if limited is not None:
            self._check_amplification(limited, length)
        head = _told(packet.version, version, message[:8])
        addresses = _addresses(version, teller, receiver)
        # The quoted packet went the other way: the receiver had sent it to the teller.
        quoted = _quoted(packet.version, version, quote, ends)
        before = _addresses(packet.version, packet.source, packet.destination)
        found = int.from_bytes(message[2:4], "big")
        off = checksums.difference(found, _icmp_checksum(packet.version, before, message))
        fresh = head + quoted
        checksum = checksums.with_difference(_icmp_checksum(version, addresses, fresh), off)
        fresh = fresh[:2] + checksum.to_bytes(2, "big") + fresh[4:]
        protocol = _ICMP6 if version == 6 else _ICMP
        header, is_random = self._header(packet, version, addresses, len(fresh), protocol)
        if limited is not None:
            limited.packets_out += 1
            limited.bytes_out += length
        outcome = self._out(packet, header, fresh, hop, counted, is_random)
        return replace(outcome, kind="icmp " + outcome.kind)


class _TooLong(_Dropped):
    """Dropped, and its sender is told."""

    def __init__(self, mtu: int) -> None:
        super().__init__("mtu")
        self.mtu = mtu


def _is_multicast(packet: _Packet) -> bool:
    """Whether its way back would be a multicast MAC address, or its way here was."""
    return bool((packet.frame[0] | packet.frame[6]) & 1)


def _version(address: bytes) -> int:
    return 4 if address[:12] == MAPPED else 6


def _addresses(version: int, source: bytes, destination: bytes) -> bytes:
    """As they stand in a header."""
    return source + destination if version == 6 else source[12:] + destination[12:]


def _class(payload: bytes) -> str | None:
    first = payload[0] if payload else 255
    if first <= 3:
        return "stun"
    if 20 <= first <= 63 or 128 <= first <= 191:
        return "media"
    return None


def _is_stun(payload: bytes) -> bool:
    return (
        len(payload) >= 20
        and payload[0] <= 3
        and payload[4:8] == b"\x21\x12\xa4\x42"
        and len(payload) % 4 == 0
        and int.from_bytes(payload[2:4], "big") == len(payload) - 20
    )


def _check_stun(payload: bytes) -> None:
    if not _is_stun(payload):
        raise _Dropped("stun_malformed")


def _ufrag(message: bytes) -> bytes:
    """The ufrag of a Binding Request's USERNAME, of the relay's side."""
    at = 20
    for _ in range(12):
        if at >= len(message) or at > 1500:
            break
        kind = int.from_bytes(message[at : at + 2], "big")
        size = int.from_bytes(message[at + 2 : at + 4], "big")
        if at + 4 + size > len(message):
            raise _Dropped("stun_malformed")
        if kind == 6:
            value = message[at + 4 : at + 4 + size]
            colon = value.find(b":", 0, 33)
            if colon < 0 or size < 2:
                raise _Dropped("stun_username")
            return value[:colon]
        at += 4 + (size + 3) // 4 * 4
    raise _Dropped("stun_username")


def _icmp_checksum(version: int, addresses: bytes, message: bytes) -> int:
    if version == 6:
        return checksums.transport(addresses, _ICMP6, message, 2)
    return checksums.internet(message[:2] + b"\0\0" + message[4:])


_TO_IPV6 = {(3, code): (1, 0) for code in (0, 1, 5, 6, 7, 8, 11, 12)}
_TO_IPV6 |= {(3, code): (1, 1) for code in (9, 10, 13, 15)}
_TO_IPV6 |= {(3, 3): (1, 4)} | {(11, code): (3, code) for code in range(256)}
_TO_IPV4 = {(1, 0): (3, 1), (1, 1): (3, 10), (1, 2): (3, 1), (1, 3): (3, 1), (1, 4): (3, 3)}
_TO_IPV4 |= {(3, code): (11, code) for code in range(256)}


def _told(was: int, version: int, head: bytes) -> bytes:
    """The first 8 bytes of an error (RFC 7915 4.2, 5.2), for a receiver of that IP version."""
    type, code = head[0], head[1]
    if (was, type, code) == (4, 3, 4):
        mtu = max(1280, int.from_bytes(head[6:8], "big"))
        if version == 4:
            return head[:6] + mtu.to_bytes(2, "big")
        return bytes([2, 0, 0, 0]) + (mtu + 20).to_bytes(4, "big")
    if (was, type) == (6, 2):
        mtu = min(max(1280, int.from_bytes(head[4:8], "big")), 65535)
        if version == 6:
            return head[:4] + mtu.to_bytes(4, "big")
        return bytes([3, 4, 0, 0, 0, 0]) + (mtu - 20).to_bytes(2, "big")
    if was == version:
        return head
    table = _TO_IPV6 if version == 6 else _TO_IPV4
    if (type, code) not in table:
        raise _Dropped("icmp")
    return bytes(table[type, code]) + bytes(6)


def _quoted(
    was: int, version: int, quote: bytes, ends: tuple[tuple[bytes, int], tuple[bytes, int]]
) -> bytes:
    """The packet that the receiver *ends[1]* had sent to *ends[0]*, of which *quote* is what
    the relay made."""
    (teller, teller_port), (receiver, receiver_port) = ends
    size = 40 if was == 6 else 20
    addresses = _addresses(version, receiver, teller)
    before = quote[size - 32 : size] if was == 6 else quote[12:20]
    ports = receiver_port.to_bytes(2, "big") + teller_port.to_bytes(2, "big")
    udp = quote[size:]
    found = int.from_bytes(udp[6:8], "big")
    if found:
        sums = checksums.total(before + udp[:4]) - checksums.total(addresses + ports)
        found = (found + sums) % 0xFFFF or 0xFFFF
    udp = ports + udp[4:6] + found.to_bytes(2, "big") + udp[8:]
    if was == version == 6:
        return quote[:8] + addresses + udp
    if was == version == 4:
        checksum = int.from_bytes(quote[10:12], "big")
        sums = checksums.total(before) - checksums.total(addresses)
        checksum = (checksum + sums) % 0xFFFF
        return quote[:10] + checksum.to_bytes(2, "big") + addresses + udp
    if version == 6:
        length = (int.from_bytes(quote[2:4], "big") - 20) & 0xFFFF
        first = (6 << 28 | quote[1] << 20).to_bytes(4, "big")
        return first + length.to_bytes(2, "big") + bytes([_UDP, quote[8]]) + addresses + udp
    length = (int.from_bytes(quote[4:6], "big") + 20) & 0xFFFF
    tos = int.from_bytes(quote[:2], "big") >> 4 & 0xFF
    start = bytes([0x45, tos]) + length.to_bytes(2, "big") + b"\0\0\x40\0" + bytes([quote[7], _UDP])
    checksum = checksums.of_ipv4(start + b"\0\0" + addresses)
    return start + checksum.to_bytes(2, "big") + addresses + udp
