"""Many clients in one thread: their sockets, their timers, and a packet of each every 20 ms.

All that costs something is in C: `sendto`, `recv`, SRTP; nothing is encoded or decoded. This
process has a CPU of its own, and says how late its packets went.
"""

import http.client
import io
import select
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from loader.errors import ShuntError
from tools.bench.calls.client import Call, State
from tools.netns import run_in
from transceiver.dtls import Certificate
from transceiver.stun import Address

__all__ = ["Callee", "Clients", "Line", "Spoken"]

_PATIENCE = 10.0  # s for a call to be connected
_RETRY = 0.25  # s until a call that was refused is placed again
_TRIES = 40
_FRAME = 0.020
_LEAST_NAP = 5e-5  # s; what is less is not worth a system call
_MAX_DATAGRAM = 2048


@dataclass(frozen=True, slots=True)
class Callee:
    """Where offers are posted to."""

    address: Address
    path: str
    headers: dict[str, str] = field(default_factory=dict)

    def request(self, offer: str) -> bytes:
        """As it goes over the wire."""
        body = offer.encode()
        host, port = self.address
        lines = [
            f"POST {self.path} HTTP/1.1",
            f"Host: {host}:{port}",
            "Content-Type: application/sdp",
            f"Content-Length: {len(body)}",
            "Connection: close",
            *(f"{name}: {value}" for name, value in self.headers.items()),
        ]
        return "\r\n".join([*lines, "", ""]).encode() + body


class Line:
    """A call and its sockets."""

    __slots__ = ("answer", "call", "media", "posting", "receive", "refusal", "send", "tries")

    def __init__(self, call: Call, media: socket.socket) -> None:
        self.call = call
        self.media = media
        self.send = media.send
        self.receive = media.recv
        self.posting: socket.socket | None = None
        self.answer = b""
        self.refusal = ""
        self.tries = 1

    def take(self, now: float) -> None:
        """All datagrams that have come."""
        receive, call = self.receive, self.call
        try:
            while True:
                call.receive(receive(_MAX_DATAGRAM), now)
        except (BlockingIOError, ConnectionRefusedError):
            pass
        if call.outgoing:
            self.flush()

    def flush(self) -> None:
        outgoing, self.call.outgoing = self.call.outgoing, []
        for data in outgoing:
            self.give(data)

    def give(self, data: bytes) -> None:
        try:
            self.send(data)
        except (BlockingIOError, ConnectionRefusedError):
            return  # lost, as it would be on any network


@dataclass(frozen=True, slots=True)
class Spoken:
    """What a stretch of talk came to. *heard*: packets of each call, in *seconds*; *latest*: the
    most that a packet went after its time, seconds; *closed*: calls that did not last."""

    seconds: float
    heard: tuple[int, ...]
    latest: float
    closed: int

    @property
    def slowest(self) -> float:
        """Packets a second of the call that heard the fewest."""
        return min(self.heard) / self.seconds


class Clients:
    """Those that call. *host*: the address of all of them, in *namespace*."""

    def __init__(self, host: str, namespace: str) -> None:
        self.refused = 0
        """Offers that were, of calls that were placed again."""
        self._host = host
        self._namespace = namespace
        self._certificate = Certificate.fresh()
        self._epoll = select.epoll()
        self._by_descriptor: dict[int, Line] = {}

    def close(self) -> None:
        for line in set(self._by_descriptor.values()):
            self._end(line)
        self._epoll.close()

    # Coming and going.

    def connect(
        self,
        callee: Callee,
        count: int,
        *,
        at_once: int,
        packets: Sequence[bytes],
        or_fewer: bool = False,
    ) -> list[Line]:
        """So many calls, connected, *at_once* of them on their way at a time; their order is that
        in which they began. With *or_fewer*, as many as the server takes; else those that it
        refuses try again.

        Raises ShuntError if one is not connected in 10 s, or refused for longer.
        """
        unused = self._sockets(count)
        lines: list[Line] = []
        pending: list[Line] = []
        while unused or pending:
            while unused and len(pending) < at_once:
                pending.append(self._begin(callee, packets, *unused.pop()))
                lines.append(pending[-1])
            self._wait(pending)
            for line in [each for each in pending if each.refusal]:
                self._end(line)
                if or_fewer:
                    lines.remove(line)
                    _close(unused)
                else:
                    lines[lines.index(line)] = again = self._again(callee, packets, line)
                    pending.append(again)
            pending = [
                each
                for each in pending
                if each.call.state is not State.CONNECTED and not each.refusal
            ]
        return lines

    def _again(self, callee: Callee, packets: Sequence[bytes], refused: Line) -> Line:
        """As a client does that is told to come later. Raises ShuntError if it was told often."""
        self.refused += 1
        if refused.tries >= _TRIES:
            raise ShuntError(refused.refusal, "Run the bench on a machine that is not busy.")
        time.sleep(_RETRY)
        (sockets,) = self._sockets(1)
        line = self._begin(callee, packets, *sockets)
        line.tries = refused.tries + 1
        return line

    def hang_up(self, lines: Sequence[Line]) -> None:
        """Say goodbye; again, if it was said. A server that is behind may have lost it."""
        for line in lines:
            line.call.hang_up()
            for data in line.call.farewell:
                line.give(data)

    def leave(self, lines: Sequence[Line]) -> None:
        """Close what was hung up."""
        for line in lines:
            self._end(line)

    def _sockets(self, count: int) -> list[tuple[socket.socket, socket.socket]]:
        """For media and for the offer, of each call."""

        def make() -> list[tuple[socket.socket, socket.socket]]:
            return [(socket.socket(type=socket.SOCK_DGRAM), socket.socket()) for _ in range(count)]

        return run_in(self._namespace, make)

    def _begin(
        self,
        callee: Callee,
        packets: Sequence[bytes],
        media: socket.socket,
        posting: socket.socket,
    ) -> Line:
        media.bind((self._host, 0))
        media.setblocking(False)
        host, port = media.getsockname()
        call = Call(self._certificate, source=(host, port), packets=packets)
        line = Line(call, media)
        line.posting = posting
        call.began_at = time.monotonic()
        posting.settimeout(_PATIENCE)
        posting.connect(callee.address)
        posting.sendall(callee.request(call.offer))
        posting.setblocking(False)
        for each in (media, posting):
            self._by_descriptor[each.fileno()] = line
            self._epoll.register(each.fileno(), select.EPOLLIN)
        return line

    def _end(self, line: Line) -> None:
        for each in (line.media, line.posting):
            if each is not None and each.fileno() >= 0:
                self._epoll.unregister(each.fileno())
                del self._by_descriptor[each.fileno()]
                each.close()

    def _wait(self, pending: Sequence[Line]) -> None:
        """Until something happens, and do it."""
        now = time.monotonic()
        due = min(
            (due for each in pending if (due := each.call.next_deadline()) is not None),
            default=now + 0.1,
        )
        for descriptor, _ in self._epoll.poll(max(0.0, due - now)):
            line = self._by_descriptor[descriptor]
            if line.posting is not None and line.posting.fileno() == descriptor:
                self._read_answer(line)
            else:
                line.take(time.monotonic())
        now = time.monotonic()
        for line in pending:
            line.call.poll(now)
            line.flush()
            if line.refusal:
                continue
            if line.call.state is State.CLOSED or now - line.call.began_at > _PATIENCE:
                raise ShuntError(
                    f"a call of the bench is {line.call.state} "
                    f"{now - line.call.began_at:.1f} s after its offer, not connected"
                )

    def _read_answer(self, line: Line) -> None:
        posting = line.posting
        assert posting is not None
        piece = posting.recv(65536)
        line.answer += piece
        if piece and not _is_whole(line.answer):
            return
        self._epoll.unregister(posting.fileno())
        del self._by_descriptor[posting.fileno()]
        posting.close()
        line.posting = None
        status, body = _response(line.answer)
        if status not in (200, 201):
            line.refusal = f"an offer of the bench was answered {status}: {body[:500]}"
            return
        now = time.monotonic()
        line.call.answered(body, now)
        line.media.connect(line.call.destination)
        line.flush()

    # Talk.

    def talk(
        self,
        lines: Sequence[Line],
        *,
        settle: float,
        seconds: float,
        at_start: Callable[[], None] = lambda: None,
        at_end: Callable[[], None] = lambda: None,
        on_sent: Callable[[int, int, float], None] | None = None,
    ) -> Spoken:
        """A packet of each call every 20 ms, evenly spread, for *settle* seconds and then for
        *seconds* in which all is counted. *at_start* and *at_end* are called around these;
        *on_sent* with the number of the line, that of the packet, and when it went."""
        count = len(lines)
        spacing = _FRAME / count
        begun = time.monotonic()
        starts, ends = begun + settle, begun + settle + seconds
        started = 0.0
        before: list[int] = []
        latest = 0.0
        step = 0
        next_poll = begun
        while True:
            now = time.monotonic()
            if not before and now >= starts:
                at_start()
                started = now
                latest = 0.0
                before = [line.call.heard for line in lines]
            if now >= ends:
                break
            due = begun + step * spacing
            while due <= now:
                latest = max(latest, now - due)
                line = lines[step % count]
                if line.call.state is State.CONNECTED:
                    line.give(line.call.speak())
                    if on_sent is not None:
                        on_sent(step % count, line.call.spoken - 1, time.monotonic())
                step += 1
                due = begun + step * spacing
            for descriptor, _ in self._epoll.poll(0):
                self._by_descriptor[descriptor].take(now)
            if now >= next_poll:
                next_poll = now + 0.1
                for line in lines:
                    line.call.poll(now)
                    line.flush()
            nap = due - time.monotonic()
            if nap > _LEAST_NAP:
                time.sleep(nap)
        after = [line.call.heard for line in lines]
        at_end()
        return Spoken(
            seconds=now - started,
            heard=tuple(b - a for a, b in zip(before, after, strict=True)),
            latest=latest,
            closed=sum(line.call.state is not State.CONNECTED for line in lines),
        )


def _close(sockets: list[tuple[socket.socket, socket.socket]]) -> None:
    """Those that are not needed any more."""
    while sockets:
        for each in sockets.pop():
            each.close()


def _is_whole(answer: bytes) -> bool:
    """Whether a response with Content-Length has come to its end."""
    head, found, body = answer.partition(b"\r\n\r\n")
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return bool(found) and len(body) >= int(value)
    return False


class _Wire(io.BytesIO):
    """What `http.client` reads a response from."""

    def makefile(self, _mode: str) -> io.BytesIO:
        return self


def _response(answer: bytes) -> tuple[int, str]:
    """Status and body."""
    response = http.client.HTTPResponse(_Wire(answer))  # type: ignore[arg-type]
    response.begin()
    return response.status, response.read().decode()
