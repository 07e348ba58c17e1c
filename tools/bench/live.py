"""`shunt bench live`: packets a second, by live frames (`BPF_F_TEST_XDP_LIVE_FRAMES`) over veth.

The generator writes all headers of each frame afresh, for a flow drawn at random, and sends it at
one end; the relay, or what it is held against, is attached natively in the middle; at the other end
an XDP program counts and drops. One CPU does all three, so that a packet's time is the sum of what
they take, and nothing waits in between. Every burst is held to the counters at its way: how many
packets were lost is in the report.

There are two relays: one with one inside address, 60,000 flows open, and one with sixteen and a
million. All flows are opened through the program, by a Binding Request and its answer each.
"""

import ipaddress
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from loader import bpf, carriers
from loader.errors import ShuntError
from loader.types import Mode
from tools.bench import frames
from tools.bench.alone import alone
from tools.bench.cables import (
    INSIDE_END,
    PUBLIC_END,
    RELAY,
    Cables,
    arrived,
    cables,
    kept_ready,
    put,
)
from tools.bench.facts import machine, map_memory
from tools.bench.frames import Endpoint
from tools.bench.generator import Generator, Plan, Vary, bare_programs, client, template, ufrag
from tools.bench.report import Case, Report
from tools.bench.subject import FIRST_PORT, PORTS, Subject, context, moved
from tools.netns import run_in

__all__ = ["run"]

_TRANSCEIVERS = 16
_ROUTED = 8  # flows of a route
_REST = "/bench+l"
_SMALL, _LARGE = 60_000, 1_000_000
_LARGE_INSIDE = 16
_VIP = Endpoint("198.18.0.1", 3478, frames.PUBLIC_MAC)
_FIRST_INSIDE = Endpoint("198.19.0.1", FIRST_PORT, frames.INSIDE_MAC)
_FIRST_TRANSCEIVER = Endpoint("198.18.1.16", 40000, frames.TRANSCEIVER_MAC)
_ANYBODY = Endpoint("192.0.2.1", 9, frames.CLIENT_MAC)  # the generator writes over it
_WARM_UP = 4  # the part of a burst that is sent before it
_SETTLE = 0.5  # seconds for a burst's last packets to be counted
_NO_ROOM = 1e-4  # the part of the flows that may find no room in the table, at most,
_WITHOUT_ROOM = {"no_flow", "not_established"}  # and what becomes of their packets
_HOSTILE_REASONS = {"no_route", "no_flow", "class", "stun_malformed", "length"}


@dataclass(frozen=True, slots=True)
class _Effort:
    """How long to measure: rounds, and packets of a burst."""

    rounds: int
    packets: int


_FULL, _QUICK = _Effort(rounds=11, packets=1_000_000), _Effort(rounds=3, packets=100_000)


@dataclass(frozen=True, slots=True)
class _Way:
    """A direction: the namespace and interface that frames are sent from, the relay's interface
    that they come in by, and the counter of those that go on."""

    name: str
    text: str
    source: str
    source_end: int
    entry: int


@dataclass(slots=True)
class _Burst:
    """One case: what is sent which way, through which relay, or which bare program."""

    name: str
    what: str
    way: _Way
    flows: int
    templates: Sequence[bytes]
    subject: Subject | None = None
    bare: str = ""
    hostile: bool = False
    rates: list[float] = field(default_factory=list)
    sent: int = 0
    lost: int = 0

    def through(self) -> str:
        """What has to be attached."""
        return self.bare or str(self.subject and self.subject.pins)

    def explains(self, counted: Mapping[str, int], came: int) -> bool:
        """Whether the relay's counters are those of what was sent."""
        if sum(counted.values()) != came:
            return False
        if self.hostile:
            return set(counted) == {self.way.name, *_HOSTILE_REASONS}
        return (
            set(counted) <= {self.way.name, *_WITHOUT_ROOM}
            and counted[self.way.name] >= (1 - _NO_ROOM) * came
        )


def run(pins: Path, *, quick: bool, progress: Callable[[str], None]) -> Report:
    """Measure. Raises ShuntError if anything is not as the measurement supposes."""
    effort = _QUICK if quick else _FULL
    with ExitStack() as stack:
        cpu = stack.enter_context(alone(progress))
        small = stack.enter_context(Subject(pins.with_name(f"{pins.name}-small"), inside=1))
        large = stack.enter_context(
            Subject(pins.with_name(f"{pins.name}-large"), inside=_LARGE_INSIDE)
        )
        bench = _Bench(stack.enter_context(cables()))
        setup = []
        for subject, flows in ((small, _SMALL), (large, _LARGE)):
            progress(f"bench live: opening {flows:,} flows")
            setup.append(bench.open_flows(subject, flows))
        stack.enter_context(kept_ready([bench.generate]))
        bursts = bench.bursts(small, large)
        for number in range(effort.rounds):
            progress(f"bench live: round {number + 1} of {effort.rounds}")
            for burst in sorted(bursts, key=_Burst.through):
                bench.send(burst, effort.packets)
        facts = {
            **machine(small.pins, cpu),
            "lost": {burst.name: burst.lost / burst.sent for burst in bursts},
            "setup": setup,
            "memory": [map_memory(each.pins, each.maps.sizes) for each in (small, large)],
        }
    cases = [Case(burst.name, burst.what, tuple(burst.rates), "live frames") for burst in bursts]
    return Report("live", "packets a second", tuple(cases), facts)


class _Bench:
    def __init__(self, laid: Cables) -> None:
        self._laid = laid
        self._bare = bare_programs(laid.public, laid.inside, few=_SMALL, lines=_LARGE)
        self._arrived = self._bare.map("arrived")
        self._generator = Generator()
        self.generate = self._generator.generate
        self._attached = ""
        for namespace, ifindex in ((PUBLIC_END, laid.public_end), (INSIDE_END, laid.inside_end)):
            put(namespace, ifindex, self._bare.program("sink"))

    # Flows.

    def open_flows(self, subject: Subject, count: int) -> dict[str, Any]:
        """Open *count* flows through the program; what it took."""
        laid = self._laid
        inside: list[tuple[str | None, str | None]] = [
            (_following(_FIRST_INSIDE, place).address, None) for place in range(subject.inside)
        ]
        subject.configure([_VIP], inside, laid.inside)
        for index in range(_TRANSCEIVERS):
            transceiver = _following(_FIRST_TRANSCEIVER, index)
            subject.set_transceiver(index, transceiver, link=laid.inside, source=frames.INSIDE_MAC)
        routes = -(-count // _ROUTED)
        began = time.monotonic()
        subject.add_routes(_REST, routes, list(range(_TRANSCEIVERS)))
        routed = time.monotonic()
        with subject.counted("opening flows", {"to_transceiver": count, "to_client": count}):
            self._number_by_number(subject, count, _asking(), laid.public)
            self._number_by_number(subject, count, _answering(), laid.inside)
        opened = time.monotonic()
        established = _check_flows(subject, count)
        return {
            "flows": count,
            "established": established,
            "routes": routes,
            "seconds_for_routes": routed - began,
            "seconds_for_flows": opened - routed,
        }

    def _number_by_number(self, subject: Subject, count: int, made: bytes, entry: int) -> None:
        """One frame for each number, given to the program as if it came in by the interface."""
        octets = _blank()
        self._generator.write([made], _plan())
        self._generator.then(subject.program)
        how = context(len(octets), entry)
        run_in(
            RELAY,
            lambda: bpf.test_run(self._generator.restore, octets, repeat=count, context=how),
        )

    # Bursts.

    def bursts(self, small: Subject, large: Subject) -> list[_Burst]:
        """In the order of the report."""
        laid = self._laid
        way_in = _Way(
            "to_transceiver", "client → transceiver", PUBLIC_END, laid.public_end, laid.public
        )
        way_out = _Way(
            "to_client", "transceiver → client", INSIDE_END, laid.inside_end, laid.inside
        )
        tables = ((small, 1), (small, 10_000), (small, _SMALL), (large, _LARGE))
        made = []
        for way, octets in ((way_in, _from_client()), (way_out, _to_slot())):
            made += [
                _Burst(f"{way.name}.{bare}", f"bare {bare}, {way.text}", way, _SMALL, [octets])
                for bare in ("drop", "redirect")
            ]
            for burst in made[-2:]:
                burst.bare = f"bare_{burst.name.split('.')[1]}"
            for subject, flows in tables:
                what = f"{flows:,} {'flow' if flows == 1 else 'flows'}, {way.text}"
                made.append(_Burst(f"{way.name}.{flows}", what, way, flows, [octets], subject))
        for bare, flows in (("touch_few", _SMALL), ("touch_many", _LARGE)):
            what = f"bare redirect, touching one line of {flows:,}"
            touching = _Burst(f"touch.{flows}", what, way_in, flows, [_from_client()])
            touching.bare = bare
            made.append(touching)
        for subject, flows in (tables[2], tables[3]):
            what = f"{flows:,} flows, 9 of 10 packets hostile"
            burst = _Burst(f"hostile.{flows}", what, way_in, flows, _hostile(), subject)
            burst.hostile = True
            made.append(burst)
        return made

    def send(self, burst: _Burst, packets: int) -> None:
        """One burst: adds what was handled in a second to its rates, and what was lost."""
        self._attach(burst)
        self._generator.write(burst.templates, _plan(burst.flows, burst.way.source_end))
        before = burst.subject.maps.counters() if burst.subject else None
        ends, entered = self._at_ends(), arrived(RELAY, burst.way.entry)
        self._generate(burst, packets // _WARM_UP)  # into the caches what this case works with
        nanoseconds = self._generate(burst, packets)
        packets += packets // _WARM_UP
        deadline = time.monotonic() + _SETTLE
        while True:
            came = arrived(RELAY, burst.way.entry) - entered
            sent_on = self._at_ends() - ends
            counted = (
                moved(before, burst.subject.maps.counters())
                if burst.subject and before
                else {burst.way.name: sent_on}
            )
            dropped = sum(n for name, n in counted.items() if name != burst.way.name)
            handled = came if burst.bare == "bare_drop" else sent_on + dropped
            if handled == packets or time.monotonic() > deadline:
                break
        if burst.subject and not burst.explains(counted, came):
            raise ShuntError(
                f"{burst.what}: the relay counted {counted}, and {came} packets came",
                "The bench measures something else than it says; please report this.",
            )
        if not 0 < handled <= packets:
            raise ShuntError(
                f"{burst.what}: of {packets} packets {handled} were handled",
                "Does something else send into the namespaces bench-*?",
            )
        burst.sent += packets
        burst.lost += packets - handled
        burst.rates.append(handled / packets * 1e9 / nanoseconds)

    def _generate(self, burst: _Burst, packets: int) -> int:
        """Send so many; nanoseconds for each."""
        return run_in(
            burst.way.source,
            lambda: bpf.live_run(self.generate, _blank(), repeat=packets),
        )

    def _at_ends(self) -> int:
        value = self._arrived.lookup(b"\0" * 4)
        return int(np.frombuffer(value or b"", dtype=np.uint64).sum())

    def _attach(self, burst: _Burst) -> None:
        """What the burst goes through, on both interfaces of the relay's namespace."""
        wanted = burst.through()
        if wanted == self._attached:
            return
        both = (self._laid.public, self._laid.inside)
        for ifindex in both:
            put(RELAY, ifindex, -1 if burst.subject else self._bare.program(burst.bare))
        if burst.subject:
            pins = burst.subject.pins
            for attachment in run_in(RELAY, lambda: carriers.attach(pins, ["public", "inside"])):
                if attachment.mode is not Mode.NATIVE:
                    raise ShuntError(f"veth took the program {attachment.why}", "Report this.")
        self._attached = wanted


def _plan(numbers: int = 0, ifindex: int = 0) -> Plan:
    """*numbers* drawn at random, or, with none, counted up from zero."""
    return Plan(
        numbers=numbers,
        ifindex=ifindex,
        routed=_ROUTED,
        routes=2**32 - 1,
        transceivers=_TRANSCEIVERS,
        transceiver=_as_number(_FIRST_TRANSCEIVER),
        inside=_as_number(_FIRST_INSIDE),
        first_port=FIRST_PORT,
        ports=PORTS,
    )


def _as_number(endpoint: Endpoint) -> int:
    return int(ipaddress.IPv4Address(endpoint.address))


def _following(endpoint: Endpoint, place: int) -> Endpoint:
    address = str(ipaddress.IPv4Address(_as_number(endpoint) + place))
    return Endpoint(address, endpoint.port, endpoint.mac)


# What is sent.


def _blank() -> bytes:
    return frames.frame(_ANYBODY, _VIP, frames.media())


def _asking() -> bytes:
    octets = frames.frame(_ANYBODY, _VIP, frames.stun_request(ufrag(0, _REST)))
    return template(octets, Vary.CLIENT | Vary.UFRAG | Vary.TRANSACTION)


def _answering() -> bytes:
    octets = frames.frame(_FIRST_TRANSCEIVER, _FIRST_INSIDE, frames.stun_success())
    return template(octets, Vary.SLOT | Vary.TRANSACTION)


def _from_client() -> bytes:
    return template(_blank(), Vary.CLIENT)


def _to_slot() -> bytes:
    return template(frames.frame(_FIRST_TRANSCEIVER, _FIRST_INSIDE, frames.media()), Vary.SLOT)


def _hostile() -> list[bytes]:
    """Of ten packets one of a client's; three guess ufrags, three have no flow, and three are
    malformed."""
    guess = frames.frame(_ANYBODY, _VIP, frames.stun_request(ufrag(0, "/guessed")))
    lying = frames.frame(_ANYBODY, _VIP, frames.media(), lie=4)
    malformed = (frames.frame(_ANYBODY, _VIP, p) for p in (frames.junk(), frames.lying_stun()))
    return [
        _from_client(),
        *[template(guess, Vary.STRANGER | Vary.GUESS | Vary.TRANSACTION)] * 3,
        *[template(_blank(), Vary.STRANGER)] * 3,
        *(template(octets, Vary.STRANGER) for octets in (*malformed, lying)),
    ]


def _check_flows(subject: Subject, count: int) -> int:
    """How many are established, and that they are those that the generator will draw. In a table
    so full, a few of a million may not find room. Raises ShuntError."""
    found = subject.established()
    if not count * (1 - _NO_ROOM) <= found <= count:
        raise ShuntError(f"{found} flows were established, not {count}", "Please report this.")
    half = subject.maps.slots["to_client"]
    for number in (0, 1, count // 2, count - 1):
        slot = number // PORTS * 65536 + FIRST_PORT + number % PORTS
        address = int.from_bytes(bytes(half["client"][slot])[12:], "big")
        if (address, int(half["client_port"][slot])) != client(number):
            raise ShuntError(f"slot {slot} is not client {number}'s", "Please report this.")
    return found
