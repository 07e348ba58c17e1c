"""One history: clients, transceivers, an agent and attackers, doing anything at all in any order,
before the model and the program alike."""

import ipaddress
import random
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, replace

from tests.model import frames
from tests.model.bench import Bench, Links, Seen
from tests.model.checksums import of_ipv4
from tests.model.frames import End, Style
from tests.model.walk import (
    CLOSING,
    ESTABLISHED,
    FREE,
    MAPPED,
    PENDING,
    Hop,
    Outcome,
    Route,
    Slot,
    Transceiver,
    Walk,
)

__all__ = ["STEPS", "Difference", "Tied", "World"]

_TICK_BITS = 27
_PORTS = range(20000, 20012)
_UFRAGS = ["ufrag-of-A", "restart-of-A", "ufrag-of-B", "ufrag-of-6", "restart-of-6", "no-checks"]
_UFRAGS += ["crowded/A", "z" * 32]
_TOLERANCE = 3


class Difference(AssertionError):
    """Model and program disagree; the text says where."""


class Tied(Exception):
    """The program took another of several equally old slots: where the document leaves open which,
    the history ends."""


def _address(text: str) -> bytes:
    address = ipaddress.ip_address(text)
    return (MAPPED if address.version == 4 else b"") + address.packed


def _mac(last: int) -> bytes:
    return bytes([2, 0, 0, 0, 0, last])


VIP, VIP_OTHER, VIP6 = (_address(a) for a in ("198.18.0.1", "198.18.0.2", "2001:db8:18::1"))
VIP6_OTHER = _address("2001:db8:18::2")
INSIDE = [
    (_address("198.18.1.1"), _address("2001:db8:19::1")),
    (_address("198.18.1.2"), _address("2001:db8:19::2")),
]
ENDS = [
    ("198.18.1.11", 40000), ("198.18.1.12", 40000), ("2001:db8:19::16", 40006),
    ("2001:db8:19::17", 40000), ("198.18.1.11", 40001),
]  # fmt: skip
CLIENTS = [End(_address(f"203.0.113.{n}"), 5000 + n % 3) for n in range(1, 12)]
CLIENTS += [End(_address(f"2001:db8:66::{n}"), 5000 + n % 3) for n in range(1, 8)]
CLIENTS += [End(CLIENTS[0].address, 7000), End(_address("255.255.255.255"), 9)]
IMPOSSIBLE = [
    End(_address(text), 5000)
    for text in (
        "0.1.2.3", "127.0.0.1", "224.0.0.1", "240.1.1.1", "198.18.0.1", "198.18.1.1", "::", "::1",
        "ff02::1", "fe80::1", "febf::1", "2001:db8:18::1", "2001:db8:19::2",
    )
] + [End(b"\0" * 10 + b"\xff\xff" + bytes([203, 0, 113, 1]), 5001)]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Asked:
    """A request, or a check, that went through."""

    slot: int
    transaction: bytes
    client: End
    vip: int
    door: int


class World:
    """A model, the program set up alike, and what the two have been sent so far."""

    def __init__(self, bench: Bench, links: Links, seed: int, coverage: "Counter[str]") -> None:
        self.bench, self.links, self.coverage = bench, links, coverage
        self.dice = random.Random(seed)
        self.history: list[str] = []
        self.packets = 0
        self.transactions = 0
        self.sent: deque[tuple[bytes, int]] = deque(maxlen=40)
        self.asked: deque[Asked] = deque(maxlen=12)
        self.checked: deque[Asked] = deque(maxlen=12)
        self.next_route = 1
        self.walk = self._settings()
        self.indexes = [entry << 16 | port for entry in (0, 1) for port in _PORTS]
        bench.begin(self.walk, links, self.indexes)
        for ufrag in _UFRAGS[:-1]:
            self._add_route(ufrag)

    def _settings(self) -> Walk:
        dice, links = self.dice, self.links
        vips = [(VIP, 3478), (VIP, 3479), (VIP_OTHER, 3478), (VIP6, 3478), (VIP6_OTHER, 3480)]
        dice.shuffle(vips)
        inside: list[tuple[bytes | None, bytes | None]] = list(INSIDE)
        mtu = dice.choice([0, 0, 1300, 1500, 20000])
        mtus = {
            (links.public, 0): mtu,
            (links.public, 7): max(0, mtu - 4),
            (links.other_public, 0): dice.choice([0, 1280, 1500]),
            (links.inside, 0): 1500,
        }
        one_armed = dice.random() < 0.3
        ifindex = links.public if one_armed else links.inside
        vlan = 9 if one_armed else 0
        self.inside_doors = [(ifindex, vlan), (ifindex, 8)]
        transceivers = {}
        for index, (address, port) in enumerate(ENDS):
            tag = 8 if index % 2 else vlan
            mtu = dice.choice([0, 1500, 1500, 1280, 1400, 20000])
            hop = Hop(_mac(0x11 + index), _mac(0x10), ifindex, tag, mtu)
            transceivers[index] = Transceiver(_address(address), port, hop)
        few = dice.random() < 0.3
        order = [entry << 16 | port for port in _PORTS for entry in (0, 1)]
        return Walk(
            vips=vips,
            inside=inside,
            inside_links=set(self.inside_doors),
            ports=_PORTS,
            mtus=mtus,
            transceivers=transceivers,
            free=deque(order[:6] if few else order),
            now=_tick(),
        )

    # Sending.

    def send(self, frame: bytes, ifindex: int, note: str) -> Outcome:
        """Have both receive a frame, and hold them to each other."""
        frame = frame.ljust(14, b"\0")[:3400]
        self.packets += 1
        self.sent.append((frame, ifindex))
        expected = self.walk.receive(frame, ifindex)
        seen = self.bench.receive(frame, ifindex)
        self.history.append(
            f"{note}: {frame.hex()} on {ifindex} -> {expected.reason or expected.kind}"
        )
        self.coverage[expected.reason or "-"] += 1
        self.coverage[f"kind {expected.kind}"] += 1
        try:
            self._compare(expected, seen)
        except Difference:
            if not self.walk.was_tied:
                raise
            self.coverage["tied"] += 1
            raise Tied from None
        self._set_the_clock()
        return expected

    def _set_the_clock(self) -> None:
        """The tick may have changed between the two: what was just written is as the model has it,
        or that alone would decide which of two slots is older."""
        index = self.walk.through
        slot = None if index is None else self.walk.slots.get(index)
        if index is None or slot is None or not slot.is_live:
            return
        off = self.bench.seen(index) - slot.seen
        if not self._may_be_off(off):
            raise Difference(f"slot {index}: seen is off by {off} ticks")
        if off:
            self.bench.write_age(index, slot.seen, slot.since)

    def _may_be_off(self, ticks: int) -> bool:
        """The model's clock stands during a step, and the program's goes on: also while this
        process waits for a CPU."""
        return -_TOLERANCE <= ticks <= _TOLERANCE + _tick() - self.walk.now

    def _compare(self, expected: Outcome, seen: Seen) -> None:
        if expected.reason:
            counted: tuple[tuple[str, int, int], ...] = ((expected.reason, 1, 0),)
        else:
            assert expected.counted is not None
            direction, octets = expected.counted
            counted = ((direction, 1, octets),)
        frame = expected.frame
        if expected.id_at is not None and len(seen.frame) == len(frame):
            frame = _with_id(frame, expected.id_at, seen.frame[expected.id_at :][:2])
        same = frame == seen.frame or _same_but_for_zero(frame, seen.frame)
        if (expected.verdict, counted) != (seen.verdict, seen.counted) or not same:
            raise Difference(
                f"expected {expected.verdict} {counted}\n   {frame.hex()}\n"
                f"got      {seen.verdict} {seen.counted}\n   {seen.frame.hex()}"
            )

    def check(self) -> None:
        """Hold the tables to each other."""
        for index in self.indexes:
            self._check_slot(index, self.walk.slots.get(index, Slot()), self.bench.slot(index))
        if self.bench.free_count() != len(self.walk.free):
            raise Difference(f"free: expected {len(self.walk.free)}, got {self.bench.free_count()}")

    def _check_slot(self, index: int, slot: Slot, seen: dict[str, object]) -> None:
        expected: dict[str, object] = {"state": slot.state, "state of the other half": slot.state}
        if slot.state != FREE:
            expected |= {
                "client": slot.client,
                "transceiver": (slot.transceiver, slot.transceiver),
                "route": slot.route,
                "next_route": slot.next_route,
                "in": (slot.packets_in, slot.bytes_in),
                "out": (slot.packets_out, slot.bytes_out),
                "proven": slot.proven,
                "hop": slot.hop,
            }
            for name, then in (("seen", slot.seen), ("since", slot.since)):
                off = seen[name] - then  # type: ignore[operator]
                if not self._may_be_off(off):
                    raise Difference(f"slot {index}: {name} is off by {off} ticks")
        for name, value in expected.items():
            if seen[name] != value:
                raise Difference(f"slot {index}: {name}: expected {value}, got {seen[name]}")

    # A step.

    def step(self, number: int) -> None:
        """What this number stands for; 0 is nothing."""
        if not number:
            return
        self._let_the_clock_stand()
        self.dice = random.Random(number)
        kind = self.dice.choice(_DECK)
        kind(self)

    def _let_the_clock_stand(self) -> None:
        """Real time must not decide what is idle: slots age by `age` alone."""
        gone = _tick() - self.walk.now
        if gone:
            self.walk.now += gone
            for index, slot in self.walk.slots.items():
                slot.seen += gone
                slot.since += gone
                self.bench.write_age(index, slot.seen, slot.since)

    def _note(self, text: str) -> None:
        self.history.append(text)

    # Who, whence and how.

    def _door(self, number: int) -> tuple[int, int | None, bytes, bytes]:
        """A way in for clients: ifindex, tag, MAC addresses to and from."""
        links = self.links
        return [
            (links.public, None, _mac(1), _mac(0x20)),
            (links.public, None, _mac(1), _mac(0x21)),
            (links.public, 7, _mac(1), _mac(0x20)),
            (links.other_public, None, _mac(2), _mac(0x20)),
            (links.public, 0x6000, _mac(1), _mac(0x22)),
        ][number]

    def _who(self) -> tuple[End, int, int]:
        """A client, a VIP of its family, and its way in."""
        dice = self.dice
        client = dice.choice(CLIENTS[:5] if dice.random() < 0.5 else CLIENTS)
        if dice.random() < 0.02:
            client = dice.choice(IMPOSSIBLE)
        if dice.random() < 0.01:
            client = End(client.address, 0)
        vips = [n for n, (address, _) in enumerate(self.walk.vips)
                if (address[:12] == MAPPED) == (client.version == 4)]  # fmt: skip
        if client.address[:12] == MAPPED and client in IMPOSSIBLE[-1:]:
            vips = [n for n, (address, _) in enumerate(self.walk.vips) if address[:12] == MAPPED]
        vip = vips[0] if dice.random() < 0.85 else dice.choice(vips)
        return client, vip, dice.choice([0] * 10 + [1, 2, 3, 4])

    def _style(self) -> Style:
        dice = self.dice
        if dice.random() < 0.4:
            return Style()
        return Style(
            ttl=dice.choice([64, 2, 255, 1, 0, 128]) if dice.random() < 0.3 else 64,
            tos=dice.randrange(256),
            id=dice.randrange(65536),
            flags=dice.choice([0, 0x4000, 0x4000, 0x8000, 0x2000, 0x0001])
            if dice.random() < 0.3
            else 0x4000 * dice.randrange(2),
            label=dice.randrange(1 << 20),
            checksum=dice.choice(["whole", "whole", "partial", "partial", "none", "wrong"]),
            ip_off=dice.choice([0, 0, 0, 1, 0x1234, 0xFFFE]),
            trailer=dice.randbytes(dice.choice([0, 0, 0, 1, 18, 46, 47])),
        )

    def _from_client(
        self,
        client: End,
        vip: int,
        door: int,
        payload: bytes,
        note: str,
        style: Style | None = None,
    ) -> Outcome:
        ifindex, tci, mac, source_mac = self._door(door)
        address, port = self.walk.vips[vip]
        frame = frames.udp_frame(
            (mac, source_mac), client, End(address, port), payload, tci=tci, style=style
        )
        return self.send(frame, ifindex, f"{note}, {client}, vip {vip}, door {door}")

    def _inside_end(self, slot: int, version: int) -> End:
        address = INSIDE[slot >> 16][version == 6]
        return End(address, slot & 0xFFFF)

    def _inside_door(self) -> tuple[int, int | None]:
        dice = self.dice
        ifindex, vlan = dice.choice(self.inside_doors)
        if dice.random() < 0.03:
            ifindex, vlan = dice.choice(
                [(self.links.public, 0), (self.links.inside, 5), (self.links.neither, 0)]
            )
        return ifindex, vlan or None

    def _from_transceiver(
        self,
        slot: int,
        payload: bytes,
        note: str,
        *,
        who: int | None = None,
        style: Style | None = None,
    ) -> Outcome:
        if who is None:
            who = self.walk.slots.get(slot, Slot()).transceiver
        there = self.walk.transceivers[who]
        source = End(there.address, there.port)
        ifindex, tci = self._inside_door()
        to = self._inside_end(slot, source.version)
        macs = there.hop.source_mac, there.hop.mac
        frame = frames.udp_frame(macs, source, to, payload, tci=tci, style=style)
        return self.send(frame, ifindex, f"{note}, transceiver {who}, slot {slot}")

    def _transaction(self) -> bytes:
        self.transactions += 1  # none twice in a history, also if hypothesis repeats a step
        return self.dice.randbytes(8) + self.transactions.to_bytes(4, "big")

    def _slots(self, *states: int) -> list[int]:
        return [index for index, slot in self.walk.slots.items() if slot.state in states]

    # Steps: sessions.

    def ask(self, who: tuple[End, int, int] | None = None, ufrag: str = "") -> Asked | None:
        """A client's Binding Request."""
        client, vip, door = who or self._who()
        ufrag = ufrag or self.dice.choice(_UFRAGS[:4] if self.dice.random() < 0.5 else _UFRAGS)
        transaction = self._transaction()
        if self.asked and self.dice.random() < 0.05:
            transaction = self.dice.choice(self.asked).transaction
        text = frames.message("request", ufrag)
        payload = text[:8] + transaction + text[20:]
        self._from_client(client, vip, door, payload, f"asks for {ufrag}", self._plain())
        if self.walk.through is None:
            return None
        asked = Asked(self.walk.through, transaction, client, vip, door)
        self.asked.append(asked)
        return asked

    def _plain(self) -> Style | None:
        """How packets are sent that are to get through, mostly."""
        if self.dice.random() < 0.1:
            return self._style()
        if self.dice.random() < 0.2:
            return Style(checksum="partial", tos=self.dice.randrange(256))
        return None

    def answer(self, asked: Asked | None = None) -> None:
        """A transceiver answers a request."""
        if asked is None:
            if not self.asked:
                return
            asked = self.dice.choice(self.asked)
        kind = "error" if self.dice.random() < 0.1 else "success"
        text = frames.message(kind)
        payload = text[:8] + asked.transaction + text[20:]
        self._from_transceiver(asked.slot, payload, kind, style=self._plain())

    def make_check(self, asked: Asked | None = None) -> Asked | None:
        """A transceiver's own check."""
        if asked is None:
            if not self.asked:
                return None
            asked = self.dice.choice(self.asked)
        transaction = self._transaction()
        text = frames.message("check")
        payload = text[:8] + transaction + text[20:]
        outcome = self._from_transceiver(asked.slot, payload, "checks", style=self._plain())
        if outcome.reason:
            return None
        checked = replace(asked, transaction=transaction)
        self.checked.append(checked)
        return checked

    def answer_check(self, checked: Asked | None = None) -> None:
        """A client answers, or somebody else, or again."""
        dice = self.dice
        if checked is None:
            if not self.checked:
                return
            checked = dice.choice(self.checked)
        client, door = checked.client, checked.door
        if dice.random() < 0.05:
            client = dice.choice([c for c in CLIENTS if c.version == client.version])
        if dice.random() < 0.15:
            door = dice.randrange(5)
        kind = "error" if dice.random() < 0.1 else "success"
        text = frames.message(kind)
        payload = text[:8] + checked.transaction + text[20:]
        self._from_client(client, checked.vip, door, payload, kind, self._plain())

    def session(self) -> None:
        """All that it takes, and media."""
        asked = self.ask()
        if asked is None:
            return
        self.answer(asked)
        if self.dice.random() < 0.7:
            checked = self.make_check(asked)
            if checked:
                self.answer_check(checked)
        self._talk(asked.slot, 4)

    def restart(self) -> None:
        """A client with a flow asks for another route, from elsewhere sometimes."""
        live = self._slots(ESTABLISHED)
        if not live:
            return
        slot = self.walk.slots[self.dice.choice(live)]
        address, port, vip = slot.client
        client = End(address, port)
        asked = self.ask((client, vip, self.dice.choice([0, 0, 0, 1, 2, 3, 4])))
        if asked and self.dice.random() < 0.7:
            self.answer(asked)
        if asked and self.dice.random() < 0.3:
            checked = self.make_check(asked)
            if checked:
                self.answer_check(checked)

    def crowd(self) -> None:
        """Many clients of one route."""
        ufrag = self.dice.choice(["crowded/A", "ufrag-of-6", "ufrag-of-A"])
        for client in self.dice.sample(CLIENTS[:18], 10):
            vips = [n for n, (a, _) in enumerate(self.walk.vips)
                    if (a[:12] == MAPPED) == (client.version == 4)]  # fmt: skip
            asked = self.ask((client, vips[0], 0), ufrag)
            if asked and self.dice.random() < 0.6:
                self.answer(asked)

    # Steps: media.

    def media(self) -> None:
        live = self._slots(ESTABLISHED)
        if live:
            self._talk(self.dice.choice(live), 8)
        else:
            self.stray()

    def _payload(self) -> bytes:
        dice = self.dice
        match dice.randrange(10):
            case 0:
                return frames.message("dtls")
            case 1:
                return frames.message("indication")
            case 2:
                return dice.randbytes(dice.randrange(60))
            case 3:
                return b"\x80" + dice.randbytes(
                    dice.choice(
                        [
                            1171,
                            1199,
                            1200,
                            1211,
                            1212,
                            1220,
                            1232,
                            1251,
                            1252,
                            1253,
                            1271,
                            1272,
                            1472,
                            1473,
                        ]
                    )
                )
            case 4:
                return bytes(
                    [dice.choice([3, 4, 19, 20, 63, 64, 127, 128, 191, 192])]
                ) + dice.randbytes(30)
            case 5:
                return b"\x80" + dice.randbytes(dice.randrange(1500, 3200))
            case _:
                return b"\x80" + dice.randbytes(dice.randrange(200))

    def _talk(self, index: int, count: int) -> None:
        for _ in range(self.dice.randrange(1, count + 1)):
            slot = self.walk.slots.get(index)
            if slot is None:
                return
            style = self._style()
            if self.dice.random() < 0.5:
                address, port, vip = slot.client
                door = self.dice.choice([0, 0, 0, 1, 2])
                self._from_client(End(address, port), vip, door, self._payload(), "media", style)
            else:
                who = self.dice.randrange(len(ENDS)) if self.dice.random() < 0.05 else None
                self._from_transceiver(index, self._payload(), "media", who=who, style=style)

    def stray(self) -> None:
        """From nobody, or to nowhere."""
        for _ in range(3):
            client, vip, door = self._who()
            self._from_client(client, vip, door, self._payload(), "stray", self._style())
            slot = self.dice.choice(self.indexes)
            who = self.dice.randrange(len(ENDS))
            self._from_transceiver(slot, self._payload(), "stray", who=who, style=self._style())

    # Steps: hostile.

    def odd(self) -> None:
        """STUN of any kind."""
        for _ in range(6):
            client, vip, door = self._who()
            payload = frames.odd_stun(self.dice, _UFRAGS, self._transaction())
            self._from_client(client, vip, door, payload, "odd")
        live = self._slots(PENDING, ESTABLISHED)
        if live:
            payload = frames.odd_stun(self.dice, _UFRAGS, self._transaction())
            self._from_transceiver(self.dice.choice(live), payload, "odd")

    def mutilate(self) -> None:
        """What was sent before, with bits flipped, cut, or grown."""
        dice = self.dice
        for _ in range(8):
            if not self.sent:
                return
            frame, ifindex = dice.choice(self.sent)
            changed = bytearray(frame)
            note = ""
            match dice.randrange(8):
                case 0:
                    note, changed = "cut", changed[: dice.randrange(14, len(changed) + 1)]
                case 1:
                    note = "grown"
                    changed += dice.randbytes(dice.randrange(1, 60))
                case 2:
                    note = "other door"
                    ifindex = dice.choice(
                        [self.links.public, self.links.inside, self.links.neither]
                    )
                case 3:
                    note = "byte"
                    changed[dice.randrange(len(changed))] = dice.choice([0, 1, 4, 17, 44, 58, 255])
                case 4:
                    note = "replay"
                case 5:
                    note = "link"
                    changed[dice.choice([0, 6, 5, 11])] ^= dice.choice([1, 2, 4])
                case _:
                    note = "bits"
                    reach = dice.choice([min(len(changed), 70), len(changed)])
                    for _ in range(dice.choice([1, 1, 1, 2, 3, 8])):
                        changed[dice.randrange(reach)] ^= 1 << dice.randrange(8)
            octets = bytes(changed)
            if dice.random() < 0.3:
                octets = frames.resummed(octets)
            self.send(octets, ifindex, note)

    def tags(self) -> None:
        """One more tag, of any protocol."""
        for _ in range(4):
            if self.sent:
                frame, ifindex = self.dice.choice(self.sent)
                protocol = self.dice.choice([b"\x81\x00", b"\x81\x00", b"\x88\xa8", b"\x91\x00"])
                tci = self.dice.choice([0, 7, 8, 9, 0x6007, 0xFFFF, 0x1000])
                self.send(frames.tagged(frame, tci, protocol), ifindex, "tagged")

    def options(self) -> None:
        """IP options and extension headers in front of anything."""
        dice = self.dice
        for _ in range(5):
            if not self.sent:
                return
            frame, ifindex = dice.choice(self.sent)
            at = 18 if frame[12:14] == b"\x81\x00" else 14
            packet = frame[at:]
            if frame[at - 2 : at] == b"\x08\x00" and len(packet) > 28:
                packet = frames.ip_options(packet, dice)
            elif frame[at - 2 : at] == b"\x86\xdd" and len(packet) > 48:
                packet = frames.chain(packet, dice)
            self.send(frame[:at] + packet, ifindex, "options")

    def lengths(self) -> None:
        """Lengths that lie."""
        dice = self.dice
        for _ in range(4):
            if not self.sent:
                return
            frame, ifindex = dice.choice(self.sent)
            at = 18 if frame[12:14] == b"\x81\x00" else 14
            if len(frame) < at + 48:
                continue
            is_ipv6 = frame[at] >> 4 == 6
            lie = dice.choice([0, 1, 7, 8, 20, 28, 0xFFFF, len(frame), dice.randrange(1500)])
            fields = [at + 4, at + 44] if is_ipv6 else [at + 2, at + 24]
            chosen = dice.choice([fields, fields[:1], fields[1:]])
            changed = bytearray(frame)
            for field in chosen:
                changed[field : field + 2] = (lie & 0xFFFF).to_bytes(2, "big")
            octets = bytes(changed)
            self.send(frames.resummed(octets) if dice.random() < 0.5 else octets, ifindex, "length")

    def noise(self) -> None:
        """Random bytes."""
        for _ in range(2):
            octets = self.dice.randbytes(self.dice.randrange(14, 200))
            self.send(octets, self.links.public, "noise")
            kind = self.dice.choice([b"\x08\x00", b"\x86\xdd", b"\x81\x00", b"\x08\x06"])
            self.send(octets[:12] + kind + octets[14:], self.links.public, "noise")

    def errors(self) -> None:
        """ICMP errors about a flow's packets, right and wrong."""
        live = self._slots(ESTABLISHED, PENDING, CLOSING)
        for _ in range(6):
            if not live:
                return
            index = self.dice.choice(live)
            if self.dice.random() < 0.5:
                self._error_of_client_side(index)
            else:
                self._error_of_inside(index)

    def _error_of_client_side(self, index: int) -> None:
        dice, slot = self.dice, self.walk.slots[index]
        address, port, vip = slot.client
        sender = End(*self.walk.vips[vip])
        target = End(address, port)
        if dice.random() < 0.1:
            target = End(address, port + 1)
        if dice.random() < 0.1:
            sender = End(sender.address, dice.choice([3478, 3479, 53]))
        ifindex, tci, mac, source_mac = self._door(dice.choice([0, 0, 0, 2, 3]))
        self._send_error((mac, source_mac), sender, target, ifindex, tci, f"icmp, slot {index}")

    def _error_of_inside(self, index: int) -> None:
        dice, slot = self.dice, self.walk.slots[index]
        there = self.walk.transceivers[slot.transceiver]
        target = End(there.address, there.port)
        if dice.random() < 0.1:
            address, port = dice.choice(ENDS)
            target = End(_address(address), port)
        if dice.random() < 0.1:
            index = dice.choice(self.indexes)
        sender = self._inside_end(index, target.version)
        if dice.random() < 0.05:
            sender = End(sender.address, dice.choice([53, _PORTS.start - 1, _PORTS.stop]))
        ifindex, tci = self._inside_door()
        macs = there.hop.source_mac, there.hop.mac
        self._send_error(macs, sender, target, ifindex, tci, f"icmp inside, slot {index}")

    def _send_error(
        self,
        macs: tuple[bytes, bytes],
        sender: End,
        target: End,
        ifindex: int,
        tci: int | None,
        note: str,
    ) -> None:
        dice = self.dice
        version = sender.version
        payload = b"\x80" + dice.randbytes(dice.choice([0, 1, 30, 31, 500, 1200, 1400]))
        quote = frames.udp_packet(sender, target, payload, self._style())
        if dice.random() < 0.3:
            quote = quote[: dice.randrange(len(quote) + 1)]
        elif dice.random() < 0.6:
            quote = quote[: (1232 if version == 6 else 548)]
        if dice.random() < 0.15 and quote:
            lies = bytearray(quote)
            for _ in range(dice.choice([1, 1, 2])):
                lies[dice.randrange(min(len(lies), 60))] ^= 1 << dice.randrange(8)
            quote = bytes(lies)
        types = (1, 2, 3, 4) if version == 6 else (3, 11, 12)
        type = dice.choice(types) if dice.random() < 0.97 else dice.randrange(256)
        code = dice.choice([0, 0, 1, 2, 3, 4, 4, 4, 5, dice.randrange(18), dice.randrange(256)])
        mtu = dice.choice([0, 68, 1279, 1280, 1281, 1400, 1500, 65515, 65535, 65536, 0xFFFFFFFF])
        rest = mtu.to_bytes(4, "big") if dice.random() < 0.8 else dice.randbytes(4)
        router = _address("2001:db8:fe::fe" if version == 6 else "192.0.2.254")
        head = bytes([type, code, 0, 0]) + rest
        frame = frames.error_frame(
            macs, router, sender.address, head, quote, tci=tci, style=self._style()
        )
        self.send(frame, ifindex, note)

    # Steps: the agent, and time.

    def close_one(self) -> None:
        live = self._slots(PENDING, ESTABLISHED)
        if live:
            index = self.dice.choice(live)
            slot = self.walk.slots[index]
            slot.state, slot.since = CLOSING, self.walk.now
            self.bench.write_state(index, CLOSING)
            self.bench.write_age(index, slot.seen, slot.since)
            self._note(f"close slot {index}")

    def free_all(self) -> None:
        for index in self._slots(CLOSING):
            self.walk.slots[index].state = FREE
            self.walk.free.append(index)
            self.bench.free(index)
            self._note(f"free slot {index}")

    def _add_route(self, ufrag: str) -> None:
        to = {"ufrag-of-B": 1, "ufrag-of-6": 2, "restart-of-6": 2, "no-checks": 3, "z" * 32: 4}
        route = Route(self.next_route, to.get(ufrag, 0), no_checks=ufrag == "no-checks")
        self.next_route += 1
        self.walk.routes[ufrag.encode()] = route
        self.bench.write_route(self.walk, ufrag.encode())
        self._note(f"route {ufrag} to {route.transceiver} is {route.id}")

    def change_route(self) -> None:
        ufrag = self.dice.choice(_UFRAGS)
        if ufrag.encode() not in self.walk.routes:
            self._add_route(ufrag)
        elif self.dice.random() < 0.5:
            del self.walk.routes[ufrag.encode()]
            self.bench.write_route(self.walk, ufrag.encode())
            self._note(f"no route {ufrag}")

    def change_transceiver(self) -> None:
        dice = self.dice
        index = dice.randrange(len(ENDS))
        there = self.walk.transceivers[index]
        if not there.present or not there.resolved:
            there.present = there.resolved = True
        else:
            match dice.randrange(4):
                case 0:
                    there.present = False
                case 1:
                    there.resolved = False
                case 2:
                    there.hop = replace(there.hop, mac=_mac(dice.choice([0x11 + index, 0x31])))
                case _:
                    there.hop = replace(there.hop, mtu=dice.choice([0, 1280, 1300, 1400, 20000]))
        self.bench.write_transceiver(self.walk, index)
        self._note(f"transceiver {index}: {there}")

    def age(self) -> None:
        """Time goes by for some."""
        dice = self.dice
        for index in self._slots(PENDING, ESTABLISHED):
            if dice.random() < 0.5:
                ago = dice.choice([8, 15, 22, 60, 100, 150])
                slot = self.walk.slots[index]
                slot.seen, slot.since = self.walk.now - ago, self.walk.now - ago - dice.randrange(9)
                self.bench.write_age(index, slot.seen, slot.since)
                self._note(f"slot {index} is {ago} ticks old")


def _tick() -> int:
    return time.monotonic_ns() >> _TICK_BITS


def _with_id(frame: bytes, at: int, id: bytes) -> bytes:
    """With another IPv4 ID, and the checksum that then is right."""
    ip = at - 4
    header = frame[ip:at] + id + frame[at + 2 : ip + 20]
    checksum = of_ipv4(header).to_bytes(2, "big")
    return frame[:ip] + header[:10] + checksum + header[12:] + frame[ip + 20 :]


def _same_but_for_zero(a: bytes, b: bytes) -> bool:
    """Whether they differ only in a sum that is 0 in one and ffff in the other: the same number."""
    if len(a) != len(b):
        return False
    places = [place for place in range(len(a)) if a[place] != b[place]]
    if not places or len(places) % 2 or len(places) > 6:
        return False
    at = 18 if a[12:14] == b"\x81\x00" else 14
    sums = {at + 10, at + 11}
    if a[at] >> 4 == 4 and a[at + 9] == 1:
        sums |= {at + 22, at + 23, at + 38, at + 39}
    if a[at] >> 4 == 6 and a[at + 6] == 58:
        sums |= {at + 42, at + 43}
    return set(places) <= sums and {(a[p], b[p]) for p in places} <= {(0, 255), (255, 0)}


STEPS: list[tuple[Callable[[World], object], int]] = [
    (World.session, 10),
    (World.ask, 6),
    (World.answer, 6),
    (World.make_check, 5),
    (World.answer_check, 5),
    (World.restart, 6),
    (World.media, 8),
    (World.stray, 2),
    (World.crowd, 2),
    (World.odd, 5),
    (World.mutilate, 10),
    (World.tags, 2),
    (World.options, 3),
    (World.lengths, 3),
    (World.noise, 1),
    (World.errors, 10),
    (World.close_one, 2),
    (World.free_all, 2),
    (World.change_route, 2),
    (World.change_transceiver, 2),
    (World.age, 3),
]
_DECK = [step for step, weight in STEPS for _ in range(weight)]
