"""`shunt bench dataplane`: nanoseconds a packet, by test runs (`BPF_PROG_TEST_RUN`).

The kernel hands each run the frame that the run before has left; one that is dropped is there
*again*. For those that are changed there are two ways, and each measurement says which it took:

* *itself*, mapped to: the flow's client is the slot's inside address and port, the transceiver's
  address and port are the VIP, so that the frame comes out as it went in. Only its TTL goes down,
  so that a call has at most 250 runs; what a call costs besides is taken off by the difference to
  calls with 50. The relay opens no flow for a client with one of its own addresses: when it does,
  the inside addresses are others, with the same checksum, and are changed then.
* *restored*: a program before it writes the whole frame anew, and goes on to it by a tail call.
  What that costs is measured with bare drop at its end, and taken off. For what changes in length
  it is also measured with a drop that changes it.

Every measurement is held to the relay's counters.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from loader import bpf
from loader.errors import ShuntError
from tools.bench import frames
from tools.bench.alone import alone
from tools.bench.cables import kept_ready
from tools.bench.facts import machine
from tools.bench.frames import Endpoint
from tools.bench.generator import Generator, Plan, Vary, bare_programs, template, ufrag
from tools.bench.report import Case, Report
from tools.bench.subject import FIRST_PORT, PORTS, Subject

__all__ = ["Effort", "run"]

_LOOPBACK = 1  # what a test run without a context comes in by
_DROP, _TX = 1, 3
_MANY, _FEW = 250, 50  # runs of a call; the TTL allows 253
_RESTORED_RUNS = 1000
_FIRST_ROUTES = 1024  # of first STUN, for each transceiver

VIP4 = Endpoint("198.18.1.11", 40000, frames.CLIENT_MAC)  # and a transceiver
VIP6 = Endpoint("2001:db8:118::11", 40000, frames.CLIENT_MAC)
INSIDE4, INSIDE6 = "198.18.1.1", "2001:db8:118::1"
# Of the same checksum, while flows are opened.
OPENING4, OPENING6 = "1.1.198.18", "db8:2001:118::1"
CLIENT4 = Endpoint("203.0.113.10", 50000, frames.CLIENT_MAC)
CLIENT6 = Endpoint("2001:db8:ffff::10", 50000, frames.CLIENT_MAC)
STRANGER4 = Endpoint("203.0.113.66", 6666, frames.CLIENT_MAC)
STRANGER6 = Endpoint("2001:db8:ffff::66", 6666, frames.CLIENT_MAC)
_RESTS = {4: "/bench+4", 6: "/bench+6"}


@dataclass(frozen=True, slots=True)
class Effort:
    """How long to measure: rounds, and calls for each case of a round."""

    rounds: int
    calls: int


FULL, QUICK = Effort(rounds=31, calls=100), Effort(rounds=3, calls=20)


@dataclass(frozen=True, slots=True)
class _Measurement:
    """One case: *once* gives its nanoseconds a packet, of one round."""

    name: str
    what: str
    method: str
    once: Callable[[], float]


def run(pins: Path, *, quick: bool, progress: Callable[[str], None]) -> Report:
    """Measure. Raises ShuntError if anything is not as the measurement supposes."""
    effort = QUICK if quick else FULL
    with ExitStack() as stack:
        cpu = stack.enter_context(alone(progress))
        subject = stack.enter_context(Subject(pins, inside=1))
        bench = _Bench(subject, effort)
        bench.open_flows()
        stack.enter_context(kept_ready(bench.programs()))
        measurements = bench.measurements()
        values: dict[str, list[float]] = {each.name: [] for each in measurements}
        for number in range(effort.rounds):
            progress(f"bench dataplane: round {number + 1} of {effort.rounds}")
            for each in measurements:
                values[each.name].append(each.once())
        facts = machine(pins, cpu)
    cases = [
        Case(each.name, each.what, tuple(values[each.name]), each.method) for each in measurements
    ]
    return Report("dataplane", "ns a packet", tuple(cases), facts)


class _Bench:
    def __init__(self, subject: Subject, effort: Effort) -> None:
        self._subject = subject
        self._effort = effort
        self._bare = bare_programs(_LOOPBACK, _LOOPBACK)
        self._drop = self._bare.program("bare_drop")
        self._generator = Generator()
        self._number = 0  # of the next first STUN
        self._dropped = 0.0  # what bare drop took in this round

    # Arranging.

    def programs(self) -> list[int]:
        """All that are run."""
        bare = ("drop", "swap", "redirect", "grow", "shrink")
        return [
            self._subject.program,
            self._generator.restore,
            *(self._bare.program(f"bare_{name}") for name in bare),
        ]

    def open_flows(self) -> None:
        """Four flows, and the routes that first STUN asks for."""
        subject = self._subject
        for index, vip in enumerate((VIP4, VIP6)):
            subject.set_transceiver(index, vip, link=_LOOPBACK, source=frames.CLIENT_MAC)
        self._configure(OPENING4, OPENING6)
        subject.add_routes("/flows+4", 1, [0])
        subject.add_routes("/flows+6", 1, [1])
        for index, family in enumerate(_RESTS):
            subject.add_routes(_RESTS[family], _FIRST_ROUTES, [index])
        self._self4 = Endpoint(INSIDE4, FIRST_PORT, frames.CLIENT_MAC)
        self._self6 = Endpoint(INSIDE6, FIRST_PORT + 1, frames.CLIENT_MAC)
        self._open(self._self4, VIP4, VIP4, OPENING4, FIRST_PORT)
        self._open(self._self6, VIP6, VIP6, OPENING6, FIRST_PORT + 1)
        self._open(CLIENT4, VIP4, VIP6, OPENING6, FIRST_PORT + 2)
        self._open(CLIENT6, VIP6, VIP4, OPENING4, FIRST_PORT + 3)
        self._configure(INSIDE4, INSIDE6)

    def _configure(self, inside4: str, inside6: str) -> None:
        self._subject.configure([VIP4, VIP6], [(inside4, inside6)], _LOOPBACK)

    def _open(
        self, client: Endpoint, vip: Endpoint, transceiver: Endpoint, inside: str, slot: int
    ) -> None:
        rest = "/flows+6" if ":" in transceiver.address else "/flows+4"
        asks = frames.frame(client, vip, frames.stun_request(ufrag(0, rest), slot))
        there = Endpoint(inside, slot, frames.CLIENT_MAC)
        answers = frames.frame(transceiver, there, frames.stun_success(slot))
        with self._subject.counted("opening a flow", {"to_transceiver": 1, "to_client": 1}):
            for octets in (asks, answers):
                bpf.test_run(self._subject.program, octets)
        if self._subject.maps.slots["to_transceiver"]["state"][slot] != 2:
            raise ShuntError(f"slot {slot} was not established", "Please report this.")

    # What is measured.

    def measurements(self) -> list[_Measurement]:
        """In the order in which a round takes them."""
        return [*self._bare_cases(), *self._family_cases(4), *self._family_cases(6), *self._mixed()]

    def _bare_cases(self) -> list[_Measurement]:
        any_frame = frames.frame(self._self4, VIP4, frames.media())

        def bare(name: str, verdict: int) -> Callable[[], float]:
            program = self._bare.program(f"bare_{name}")
            return lambda: self._slope(f"bare {name}", program, any_frame, verdict)

        def drop() -> float:
            self._dropped = bare("drop", _DROP)()
            return self._dropped

        direct = "again"
        return [
            _Measurement("bare.drop", "bare drop", direct, drop),
            _Measurement("bare.swap", "bare MAC swap + XDP_TX", direct, bare("swap", _TX)),
            _Measurement("bare.redirect", "bare redirect", direct, bare("redirect", 4)),
        ]

    def _family_cases(self, family: int) -> list[_Measurement]:
        four = family == 4
        vip, client = (VIP4, self._self4) if four else (VIP6, self._self6)
        stranger = STRANGER4 if four else STRANGER6
        known, unknown = ufrag(0, f"/flows+{family}"), "aaaaaaaanobody's"[:16]
        media = frames.media()
        to_itself = "itself"
        again = "again"
        cases = (
            ("to_transceiver", "established, client → transceiver", client, vip, media),
            ("to_client", "established, transceiver → client", vip, client, media),
            ("check", "STUN check, established", client, vip, frames.stun_request(known)),
            ("no_route", "unknown ufrag", stranger, vip, frames.stun_request(unknown)),
            ("class", "junk", stranger, vip, frames.junk()),
            ("no_flow", "no flow", stranger, vip, media),
        )
        made = []
        for name, what, source, destination, payload in cases:
            forwarded = name in ("to_transceiver", "to_client", "check")
            counter = "to_transceiver" if name == "check" else name
            octets = frames.frame(source, destination, payload)
            made.append(
                _Measurement(
                    f"ipv{family}.{name}",
                    what,
                    to_itself if forwarded else again,
                    self._direct(f"IPv{family} {what}", octets, counter, forwarded=forwarded),
                )
            )
        first = self._first_stun(f"ipv{family}", stranger, vip, family, adjusts="")
        restored = self._established(
            f"ipv{family}.to_transceiver.restored", client, vip, "to_transceiver", adjusts=""
        )
        made[3:3] = [first]
        return [*made, restored] if four else made

    def _mixed(self) -> list[_Measurement]:
        slot4, slot6 = FIRST_PORT + 3, FIRST_PORT + 2
        to_slot4 = Endpoint(INSIDE4, slot4, frames.CLIENT_MAC)
        to_slot6 = Endpoint(INSIDE6, slot6, frames.CLIENT_MAC)
        to_transceiver, to_client = "to_transceiver", "to_client"
        return [
            self._established("4to6.to_transceiver", CLIENT4, VIP4, to_transceiver, "grow"),
            self._established("4to6.to_client", VIP6, to_slot6, to_client, "shrink"),
            self._first_stun("4to6", STRANGER4, VIP4, 6, "grow"),
            self._established(
                "6to4.to_transceiver",
                CLIENT6,
                VIP6,
                to_transceiver,
                "shrink",
            ),
            self._established("6to4.to_client", VIP4, to_slot4, to_client, "grow"),
            self._first_stun("6to4", STRANGER6, VIP6, 4, "shrink"),
        ]

    # Mapped to itself.

    def _direct(
        self, what: str, octets: bytes, counter: str, *, forwarded: bool
    ) -> Callable[[], float]:
        packets = self._effort.calls * (_MANY + _FEW)

        def once() -> float:
            with self._subject.counted(what, {counter: packets}):
                return self._slope(what, self._subject.program, octets, _TX if forwarded else _DROP)

        return once

    def _slope(self, what: str, program: int, octets: bytes, verdict: int) -> float:
        """Nanoseconds a run, without what a call of many costs by itself."""
        many: list[int] = []
        few: list[int] = []
        for _ in range(self._effort.calls):
            for repeat, times in ((_MANY, many), (_FEW, few)):
                run = bpf.test_run(program, octets, repeat=repeat)
                if run.verdict != verdict or not _the_same(run.frame, octets):
                    raise ShuntError(
                        f"{what}: the last run gave {run.verdict}, not {verdict}, or another frame",
                        "The bench measures something else than it says; please report this.",
                    )
                times.append(run.nanoseconds)
        return (_middle(many) * _MANY - _middle(few) * _FEW) / (_MANY - _FEW)

    # Restored.

    def _established(
        self, name: str, source: Endpoint, destination: Endpoint, counter: str, adjusts: str
    ) -> _Measurement:
        octets = frames.frame(source, destination, frames.media())
        made = template(octets)
        direction = "transceiver → client" if counter == "to_client" else "client → transceiver"
        return _Measurement(
            name,
            f"established, {direction}",
            "restored",
            lambda: self._restored(name, octets, made, counter, adjusts),
        )

    def _first_stun(
        self, name: str, source: Endpoint, vip: Endpoint, transceiver: int, adjusts: str
    ) -> _Measurement:
        octets = frames.frame(source, vip, frames.stun_request(ufrag(0, _RESTS[transceiver])))
        made = template(octets, Vary.PORT | Vary.UFRAG | Vary.TRANSACTION)

        def once() -> float:
            return self._restored(name, octets, made, "to_transceiver", adjusts, opens=True)

        return _Measurement(f"{name}.first_stun", "first STUN, opens a slot", "restored", once)

    def _restored(
        self,
        what: str,
        octets: bytes,
        made: bytes,
        counter: str,
        adjusts: str,
        *,
        opens: bool = False,
    ) -> float:
        """Nanoseconds a run as if there were no restoring; after bare drop, of the same round."""
        calls = self._effort.calls
        with_relay, alone, with_adjusting = [], [], []
        for _ in range(max(calls // 4, 3)):
            with self._subject.counted(what, {counter: _RESTORED_RUNS}):
                with_relay.append(self._restore(what, octets, made, self._subject.program, _TX))
            if opens and self._subject.free_pending() != _RESTORED_RUNS:
                raise ShuntError(f"{what}: not every packet opened a slot", "Please report this.")
            alone.append(self._restore(what, octets, made, self._drop, _DROP))
            if adjusts:
                program = self._bare.program(f"bare_{adjusts}")
                with_adjusting.append(self._restore(what, octets, made, program, _DROP))
        base = _middle(alone)
        if adjusts:  # of two adjustments, one is the restoring's
            base = (base + _middle(with_adjusting)) / 2
        return _middle(with_relay) - base + self._dropped

    def _restore(self, what: str, octets: bytes, made: bytes, program: int, verdict: int) -> int:
        plan = Plan(next=self._number, routed=1, routes=_FIRST_ROUTES, transceivers=1, ports=PORTS)
        self._number += _RESTORED_RUNS
        self._generator.write([made], plan)
        self._generator.then(program)
        run = bpf.test_run(self._generator.restore, octets, repeat=_RESTORED_RUNS)
        if run.verdict != verdict:
            raise ShuntError(
                f"{what}: the last run gave {run.verdict}, not {verdict}",
                "The bench measures something else than it says; please report this.",
            )
        return run.nanoseconds


def _the_same(after: bytes, before: bytes) -> bool:
    """But for MAC addresses, TTL or hop limit, and the IPv4 header's checksum."""
    if before[12:14] == b"\x86\xdd":
        return after[12:21] == before[12:21] and after[22:] == before[22:]
    return after[12:22] == before[12:22] and after[26:] == before[26:]


def _middle(times: Sequence[int]) -> float:
    """The mean of the middle half: the kernel gives whole nanoseconds, and a call that something
    came between counts for nothing."""
    ordered = sorted(times)
    cut = len(ordered) // 4
    kept = ordered[cut : len(ordered) - cut]
    return sum(kept) / len(kept)
