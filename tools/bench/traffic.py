"""Numbered traffic through a relay, both ways at once, over many flows at a set rate.

    with stream(ends, flows=16, rate=50_000) as running:
        running.carry(25_000)
        …                      # what shall lose no packet
        running.carry(25_000)
        report = running.stop()

At both ends are ordinary sockets, and two processes, one that sends and one that receives. The
flows are made as a client and a transceiver make them, by STUN through the relay's agent, and the
transceiver renews its lease. Every packet's fate is known: `numbered` says how, `sender` and
`receiver` what keeps this machine from losing any itself, and `Report.drops` whether it did.
"""

import asyncio
import json
import mmap
import os
import secrets
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from loader.client import AgentClient, AgentRefused, AgentUnavailable
from loader.errors import ShuntError
from tools.bench import drops, receiver, sender
from tools.bench.mmsg import stamped
from tools.bench.numbered import DIRECTIONS, FLOWS, Flow
from tools.netns import run_in
from tools.processes import ROOT
from transceiver import stun

__all__ = [
    "ID",
    "Ends",
    "Lease",
    "Report",
    "Stream",
    "Way",
    "establish",
    "open_socket",
    "stream",
]

T = TypeVar("T")

ID = "traffic"
"""The transceiver's, as the agent knows it."""

_SIZE = 100  # bytes of a packet's payload: 20 ms of Opus at 32 kb/s
_RECEIVE_BUFFER = 1 << 27  # a packet from a veth takes up to 5 kB of it: half a second's
_SO_RCVBUFFORCE = 33  # of asm/socket.h; it goes beyond net.core.rmem_max
_ANSWER = 2.0  # seconds
_TRIES = 3
_LIMIT = 300.0  # seconds of traffic
_RENEW_EVERY = 3.0  # seconds
_PATIENCE = 30.0  # seconds for a process to start, or to end


@dataclass(frozen=True, slots=True)
class Ends:
    """Where the traffic goes from and to: *clients*, pairs of a client's address and the VIP that
    it sends to, and the transceiver's address and port; the namespaces that they and the relay are
    in, the agent's *socket*, and where the program and its maps are pinned."""

    clients: tuple[tuple[str, tuple[str, int]], ...]
    transceiver: tuple[str, int]
    client_namespace: str
    transceiver_namespace: str
    relay_namespace: str
    socket: str
    pins: Path

    def dropped(self) -> dict[str, int]:
        """Counters of drops on the way, by name."""
        named = {
            self.client_namespace: "client",
            self.transceiver_namespace: "transceiver",
            self.relay_namespace: "relay",
        }
        places = {place: namespace for namespace, place in named.items()}
        return drops.dropped(places) | drops.dropped_by_program(self.pins)


@dataclass(frozen=True, slots=True)
class Way:
    """What became of the packets of one direction.

    Seconds: *seconds* from the first to the last one sent, *longest_gap* in which none arrived,
    *longest_pause* in which none was sent, *skipped* by which the sender stayed behind its
    schedule. *errors*: of the sender's system calls, by name; what they refused was sent again.
    """

    direction: str
    flows: tuple[Flow, ...]
    corrupted: int
    astray: int
    seconds: float
    longest_gap: float
    longest_pause: float
    skipped: float
    errors: dict[str, int]

    @property
    def sent(self) -> int:
        return sum(flow.sent for flow in self.flows)

    @property
    def received(self) -> int:
        return sum(flow.received for flow in self.flows)

    @property
    def lost(self) -> int:
        return sum(flow.lost_packets for flow in self.flows)

    @property
    def duplicated(self) -> int:
        return sum(flow.duplicated for flow in self.flows)

    @property
    def reordered(self) -> int:
        return sum(flow.reordered for flow in self.flows)

    @property
    def rate(self) -> float:
        """Packets sent in a second."""
        return self.sent / self.seconds if self.seconds else 0.0


@dataclass(frozen=True, slots=True)
class Report:
    """What became of the traffic. *drops*: what the kernel and the relay's program have counted
    meanwhile, by name."""

    ways: tuple[Way, ...]
    drops: dict[str, int]

    @property
    def sent(self) -> int:
        return sum(way.sent for way in self.ways)

    @property
    def lost(self) -> int:
        return sum(way.lost for way in self.ways)

    @property
    def rate(self) -> float:
        """Packets sent in a second, both directions together."""
        return sum(way.rate for way in self.ways)

    @property
    def faults(self) -> dict[str, int]:
        """What should be nothing: lost, duplicated, reordered, corrupted and astray packets."""
        kinds = ("lost", "duplicated", "reordered", "corrupted", "astray")
        counts = {
            f"{way.direction} {kind}": int(getattr(way, kind))
            for way in self.ways
            for kind in kinds
        }
        return {name: count for name, count in counts.items() if count}

    def __str__(self) -> str:
        lines = [f"{self.sent} packets, {self.rate:.0f} a second; drops: {self.drops or 'none'}"]
        for way in self.ways:
            lines.append(
                f"{way.direction}: {way.sent} sent, {way.received} received, {way.lost} lost, "
                f"{way.duplicated} duplicated, {way.reordered} reordered, {way.corrupted} "
                f"corrupted, {way.astray} astray; longest gap {way.longest_gap * 1e3:.1f} ms, "
                f"longest pause {way.longest_pause * 1e3:.1f} ms; errors: {way.errors or 'none'}"
            )
            lines += [
                f"  flow {number}: lost {_ranges(flow.lost)} of {flow.sent}"
                for number, flow in enumerate(way.flows)
                if flow.lost
            ]
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        return {
            "sent": self.sent,
            "lost": self.lost,
            "packets_per_second": self.rate,
            "drops": self.drops,
            "ways": [
                {
                    **asdict(way),
                    **{name: getattr(way, name) for name in ("sent", "received", "lost")},
                }
                for way in self.ways
            ],
        }


def _ranges(lost: Sequence[tuple[int, int]]) -> str:
    shown = [str(first) if first == last else f"{first}–{last}" for first, last in lost[:8]]
    return ", ".join(shown) + (", …" if len(lost) > 8 else "")


class Stream:
    """Traffic that runs, made by `stream`."""

    def __init__(
        self, ends: Ends, *, lease: "Lease", ports: tuple[int, ...], workers: "_Workers"
    ) -> None:
        self.ends = ends
        self.ports = ports
        """The flows' inside ports."""
        self.ufrags = tuple(lease.ufrag(number) for number in range(len(ports)))
        """Of the flows' routes, in the order of the flows."""
        self._lease = lease
        self._workers = workers

    def add_route(self, ufrag: str) -> None:
        """One more route, which no traffic uses. Raises AgentUnavailable or AgentRefused."""
        self._lease.add_route(ufrag)

    def remove_route(self, ufrag: str) -> None:
        """End a route, and its flow if it has one."""
        self._lease.remove_route(ufrag)

    def carry(self, packets: int) -> None:
        """Return when so many more packets have come through each way. Raises ShuntError if they
        do not come."""
        self._workers.carry(packets)

    def stop(self) -> Report:
        """Stop sending, and wait for the outcome; to be called once."""
        return self._workers.stop(self.ends)


@contextmanager
def stream(ends: Ends, *, flows: int = 16, rate: float = 50_000) -> Iterator[Stream]:
    """Traffic over so many *flows* that were made for it, *rate* packets a second in all, half of
    them each way. It runs for five minutes at most. Raises ShuntError if a flow does not come
    about.

    The agent may go and come meanwhile. When this ends, the flows are over.
    """
    if not 0 < flows <= FLOWS:
        raise ValueError(f"{flows} flows")
    with ExitStack() as stack:
        lease = stack.enter_context(Lease(ends))
        transceiver = stack.enter_context(
            closing(run_in(ends.transceiver_namespace, partial(open_socket, ends.transceiver)))
        )
        clients: list[socket.socket] = []
        peers: list[tuple[str, int]] = []
        for number in range(flows):
            local, vip = ends.clients[number % len(ends.clients)]
            client = run_in(ends.client_namespace, partial(open_socket, (local, 0)))
            stack.callback(client.close)
            client.connect(vip)
            lease.add_route(lease.ufrag(number))
            peers.append(establish(lease.ufrag(number), client, transceiver))
            clients.append(client)
        for each in (*clients, transceiver):
            _make_ready(each)
        workers = stack.enter_context(_Workers(clients, transceiver, peers, rate))
        workers.start(ends)
        yield Stream(
            ends, lease=lease, ports=tuple(port for _address, port in peers), workers=workers
        )


# Flows.


class Lease:
    """A transceiver's standing with the agent, renewed while the agent answers; a context."""

    def __init__(self, ends: Ends, *, id: str = ID) -> None:
        self._ends = ends
        self._id = id
        self._instance = secrets.token_urlsafe(18)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lease")

    def __enter__(self) -> "Lease":
        deadline = time.monotonic() + _ANSWER
        while not self._reachable():
            if time.monotonic() > deadline:
                raise ShuntError(
                    f"the relay does not find {self._ends.transceiver[0]}",
                    "Is its interface up, and on the relay's inside network?",
                )
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._over.set()
        self._thread.join()
        with suppress(AgentUnavailable, AgentRefused):
            self._ask(lambda agent: agent.deregister(self._id, instance=self._instance))

    def ufrag(self, number: int) -> str:
        """Of the flow of that number; nobody else's."""
        return f"{self._instance[:8].replace('-', '/').replace('_', '+')}{number:05d}"

    def add_route(self, ufrag: str) -> None:
        """Raises AgentUnavailable or AgentRefused."""
        self._ask(
            lambda agent: agent.add_route(ufrag, transceiver=self._id, instance=self._instance)
        )

    def remove_route(self, ufrag: str) -> None:
        """Raises AgentUnavailable or AgentRefused."""
        self._ask(lambda agent: agent.remove_route(ufrag, instance=self._instance))

    def _renew(self) -> None:
        while not self._over.wait(_RENEW_EVERY):
            with suppress(AgentUnavailable):
                self._ask(self._register)

    def _reachable(self) -> bool:
        async def ask(agent: AgentClient) -> bool:
            await self._register(agent)
            listed = (await agent.transceivers())["transceivers"]
            return any(entry["id"] == self._id and entry["reachable"] for entry in listed)

        return self._ask(ask)

    async def _register(self, agent: AgentClient) -> None:
        address, port = self._ends.transceiver
        await agent.register(
            self._id,
            instance=self._instance,
            address=address,
            port=port,
            http=f"http://{address}:{port}",
            capacity=FLOWS,
        )

    def _ask(self, question: Callable[[AgentClient], Awaitable[T]]) -> T:
        async def put() -> T:
            async with AgentClient(self._ends.socket) as agent:
                return await question(agent)

        return asyncio.run(put())


def open_socket(local: tuple[str, int]) -> socket.socket:
    """A UDP socket of this thread's namespace; waits for a moment, and holds seconds of traffic."""
    family = socket.AF_INET6 if ":" in local[0] else socket.AF_INET
    made = socket.socket(family, socket.SOCK_DGRAM)
    made.settimeout(_ANSWER)
    made.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BUFFER)
    stamped(made)
    made.bind(local)
    return made


def establish(ufrag: str, client: socket.socket, transceiver: socket.socket) -> tuple[str, int]:
    """A check of the client's and one of the transceiver's, both answered; the client as the
    transceiver sees it. Repeated if an answer is lost. Raises ShuntError."""
    for _ in range(_TRIES):
        try:
            return _handshake(ufrag, client, transceiver)
        except TimeoutError:
            continue
    raise ShuntError(
        f"the client {client.getsockname()[0]} reaches no transceiver by {client.getpeername()[0]}",
        "Look at `shunt counters` for why the relay drops its packets.",
    )


def _handshake(ufrag: str, client: socket.socket, transceiver: socket.socket) -> tuple[str, int]:
    asks, checks = secrets.token_bytes(12), secrets.token_bytes(12)
    client.send(
        stun.binding_request(
            asks, username=f"{ufrag}:clnt", password="traffic", priority=1, controlling=1
        )
    )
    peer = _await(transceiver, asks)
    transceiver.sendto(stun.binding_success(asks, mapped=peer, password="traffic"), peer)
    _await(client, asks)
    transceiver.sendto(
        stun.binding_request(
            checks, username=f"clnt:{ufrag}", password="traffic", priority=1, controlled=2
        ),
        peer,
    )
    _await(client, checks)
    client.send(stun.binding_success(checks, mapped=client.getpeername()[:2], password="traffic"))
    _await(transceiver, checks)
    return peer


def _await(receiver: socket.socket, transaction: bytes) -> tuple[str, int]:
    """The message of that transaction, whatever comes before it; where it is from."""
    while True:
        octets, source = receiver.recvfrom(1 << 11)
        if octets[8:20] == transaction:
            return source[0], source[1]


def _make_ready(made: socket.socket) -> None:
    """For a process that counts what it gets, and waits to send."""
    made.setblocking(False)
    with suppress(BlockingIOError):
        while made.recv(1 << 11):
            pass  # of a handshake that was repeated
    made.setblocking(True)


# Processes.


class _Workers:
    """The four processes, two each way."""

    def __init__(
        self,
        clients: Sequence[socket.socket],
        transceiver: socket.socket,
        peers: Sequence[tuple[str, int]],
        rate: float,
    ) -> None:
        self._live = os.memfd_create("traffic")
        os.ftruncate(self._live, mmap.PAGESIZE)
        self._counts = np.frombuffer(mmap.mmap(self._live, 0), np.uint64)
        cpus = sorted(os.sched_getaffinity(0))
        of_clients = [client.fileno() for client in clients]
        of_transceiver = [transceiver.fileno()]
        nobody: Sequence[tuple[str, int]] = ()  # a socket knows its peer
        ways = (
            (of_clients, nobody, of_transceiver, peers),
            (of_transceiver, peers, of_clients, nobody),
        )
        self._stack = ExitStack()
        self._stack.callback(os.close, self._live)
        self._senders: list[_Worker] = []
        self._receivers: list[_Worker] = []
        with ExitStack() as undo:
            undo.push(self._stack)
            for direction, (sources, targets, sinks, known) in enumerate(ways):
                to_send = sender.Order(
                    direction=direction,
                    sockets=sources,
                    targets=list(targets),
                    rate=rate / len(ways),
                    size=_SIZE,
                    cpu=cpus[direction % len(cpus)],
                    live=self._live,
                    place=direction,
                    limit_s=_LIMIT,
                )
                to_receive = receiver.Order(
                    direction=direction,
                    sockets=sinks,
                    sources=list(known),
                    size=_SIZE,
                    cpus=cpus,
                    live=self._live,
                    place=len(ways) + direction,
                )
                self._senders.append(self._spawn("sender", to_send, sources))
                self._receivers.append(self._spawn("receiver", to_receive, sinks))
            undo.pop_all()

    def _spawn(self, name: str, order: Any, sockets: list[int]) -> "_Worker":
        worker = _Worker(name, json.dumps(asdict(order)), [*sockets, self._live])
        self._stack.callback(worker.end)
        return worker

    def __enter__(self) -> "_Workers":
        return self

    def __exit__(self, *_error: object) -> None:
        self._stack.close()

    def start(self, ends: Ends) -> None:
        """Wait until all are ready, and let them begin."""
        for worker in (*self._senders, *self._receivers):
            worker.expect("ready")
        self._drops = ends.dropped()
        for worker in self._senders:
            worker.tell("go")

    def carry(self, packets: int) -> None:
        goal = self._received() + packets
        last, deadline = self._received(), time.monotonic() + _PATIENCE
        while (last < goal).any():
            for worker in (*self._senders, *self._receivers):
                worker.check()
            time.sleep(0.005)
            came = self._received()
            if (came > last)[came < goal].all():
                last, deadline = came, time.monotonic() + _PATIENCE
            elif time.monotonic() > deadline:
                raise ShuntError(
                    f"for {_PATIENCE:.0f} s nothing comes to "
                    + " and ".join(np.array(["the transceiver", "the clients"])[came <= last]),
                    "Look at `shunt counters` for what the relay drops.",
                )

    def _received(self) -> "np.ndarray[Any, np.dtype[np.int64]]":
        return self._counts[2:4].astype(np.int64)

    def stop(self, ends: Ends) -> Report:
        for worker in self._senders:
            worker.finish()
        sent = [sender.Sent(**json.loads(worker.result())) for worker in self._senders]
        for worker, each in zip(self._receivers, sent, strict=True):
            worker.tell(json.dumps(each.flows))
        received = [receiver.parse(worker.result()) for worker in self._receivers]
        return Report(
            ways=tuple(map(_way, DIRECTIONS, sent, received)),
            drops=drops.since(self._drops, ends.dropped()),
        )


def _way(direction: str, sent: sender.Sent, received: receiver.Received) -> Way:
    return Way(
        direction=direction,
        flows=tuple(received.flows),
        corrupted=received.corrupted,
        astray=received.astray,
        seconds=sent.seconds,
        longest_gap=received.longest_gap,
        longest_pause=sent.longest_pause,
        skipped=sent.skipped,
        errors=sent.errors,
    )


class _Worker:
    """One process, spoken to by lines."""

    def __init__(self, name: str, order: str, descriptors: list[int]) -> None:
        self._name = name
        self._process = subprocess.Popen(
            [sys.executable, "-m", f"tools.bench.{name}", order],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=descriptors,
            cwd=ROOT,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._in, self._out = self._process.stdin, self._process.stdout

    def tell(self, line: str) -> None:
        self._in.write(f"{line}\n".encode())
        self._in.flush()

    def finish(self) -> None:
        """No more lines."""
        self._in.close()

    def expect(self, line: str) -> None:
        """Raises ShuntError if it says something else, or nothing."""
        if self.result() != line:
            self._fail()

    def result(self) -> str:
        """The next line. Raises ShuntError if none comes."""
        poll = select.poll()
        poll.register(self._out, select.POLLIN | select.POLLHUP)
        if not poll.poll(_PATIENCE * 1000):
            self._fail()
        return self._out.readline().decode().rstrip("\n") or self._fail()

    def check(self) -> None:
        """Raises ShuntError if it has ended."""
        if self._process.poll() is not None:
            self._fail()

    def _fail(self) -> Any:
        raise ShuntError(
            f"the {self._name} of the traffic has failed", "Its own words stand above."
        )

    def end(self) -> None:
        with suppress(BrokenPipeError):
            self._in.close()
        try:
            self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._out.close()
