"""The one UDP socket of a transceiver: what the kernel and the event loop need of it.

Which session a datagram belongs to is `transceiver.demultiplexer`'s to say, what it means
`transceiver.ice`'s. From the socket to `Channel.on_datagram` is one chain of calls.

asyncio's own datagram transport is not used: it takes one datagram for each turn of the loop, and
allocates 256 KiB for each (docs/performance.md has what that costs).

Bound to `::`, the socket takes IPv4 too. The kernel then shows an IPv4 client as ::ffff:a.b.c.d;
it is one client whichever way it is shown, and its XOR-MAPPED-ADDRESS must be of the family that
it sees itself (RFC 8445 section 5.1.1.2 compares them). So that form ends here, at the socket.
"""

import asyncio
import logging
import socket
from collections import deque
from collections.abc import Callable
from typing import Self

from transceiver.demultiplexer import Demultiplexer
from transceiver.ice import ConsentLost, Credentials, Event, IceSession, IceTiming, Selected
from transceiver.stun import Address, text

__all__ = ["Channel", "SharedSocket"]

RECEIVE_BUFFER = 4 << 20
SEND_BUFFER = 1 << 20
MAX_BATCH = 64
"""Datagrams read before the loop may turn to something else."""
LOOK = 0.002
"""Seconds between two looks at a busy socket: a step of the metronome. What comes one by one, and
often, is fetched and not waited for: a turn of the loop for each costs a seventh of all CPU."""
HASTE = 50
"""Datagrams in a row that came within `LOOK` of each other before the socket counts as busy, and
looks that found one or none before it does not."""
MAX_DATAGRAM = 2048
"""Bytes read of one. WebRTC's are below 1280 bytes; what is longer is cut off, and then is not
authentic, whatever it is."""
QUEUE_LIMIT = 256
"""Datagrams that wait for a session: more than a second of media, or one burst of SCTP."""

# Of linux/in.h and linux/in6.h; Python's socket module has none of them.
IP_MTU_DISCOVER = (socket.IPPROTO_IP, 10)
IPV6_MTU_DISCOVER = (socket.IPPROTO_IPV6, 23)
MAPPED = "::ffff:"
PMTUDISC_PROBE = 3  # never fragment, and do not ask what the kernel has learned

log = logging.getLogger(__name__)


class SharedSocket:
    """Carries the datagrams of all sessions. Made by `open`, ended by `close`."""

    def __init__(self, bound: socket.socket, timing: IceTiming) -> None:
        """*bound*: a UDP socket, which is then ours to close."""
        self.demultiplexer = Demultiplexer()
        self._timing = timing
        self._channels: dict[IceSession, Channel] = {}
        self._loop = asyncio.get_running_loop()
        self._socket = bound
        self._batch = 1
        self._read_at = 0.0
        self._haste = 0
        self._looking: asyncio.TimerHandle | None = None
        self._is_ipv6 = bound.family == socket.AF_INET6
        bound.setblocking(False)
        _set_options(bound)
        self._loop.add_reader(bound.fileno(), self._read)

    @classmethod
    async def open(cls, address: Address, timing: IceTiming | None = None) -> Self:
        """Bind *address*; raises OSError if that cannot be."""
        loop = asyncio.get_running_loop()
        ((family, kind, protocol, _, resolved), *_) = await loop.getaddrinfo(
            *address, type=socket.SOCK_DGRAM, flags=socket.AI_PASSIVE
        )
        bound = socket.socket(family, kind, protocol)
        try:
            if family == socket.AF_INET6:
                bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            bound.bind(resolved)
        except OSError:
            bound.close()
            raise
        return cls(bound, timing or IceTiming())

    @property
    def address(self) -> Address:
        """The address bound, with the port the kernel chose if it was asked to."""
        host, port = self._socket.getsockname()[:2]
        return host, port

    @property
    def dropped(self) -> dict[str, int]:
        """Datagrams dropped, by reason (`demultiplexer.DROP_REASONS`)."""
        return self.demultiplexer.dropped

    def channel(self, credentials: Credentials) -> "Channel":
        """A session's share of the socket; takes part once it is opened."""
        ice = IceSession(
            credentials, transactions=self.demultiplexer.transactions, timing=self._timing
        )
        return Channel(self, ice)

    def close(self) -> None:
        """End all channels and the socket. May be called again."""
        for channel in list(self._channels.values()):
            channel.close()
        if self._looking is not None:
            self._looking.cancel()
        if self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket.fileno())
            self._socket.close()

    def add(self, channel: "Channel") -> None:
        """Let *channel* have its datagrams; ValueError if its ufrag is in use."""
        self.demultiplexer.add(channel.ice)
        self._channels[channel.ice] = channel

    def remove(self, channel: "Channel") -> None:
        """Let *channel* have no more datagrams."""
        self.demultiplexer.remove(channel.ice)
        self._channels.pop(channel.ice, None)

    def restart(self, channel: "Channel", local: Credentials, remote: Credentials) -> None:
        """Let *channel* have the datagrams of a new generation too; ValueError as with `add`."""
        self.demultiplexer.restart(channel.ice, local, remote, self._loop.time())

    def poll(self, channel: "Channel") -> None:
        """Let *channel*'s ICE do what is due."""
        self.demultiplexer.poll(channel.ice, self._loop.time())

    def send(self, data: bytes, destination: Address) -> None:
        """Send now, or drop and count: what cannot go out in time had better not go at all."""
        if self._is_ipv6 and ":" not in destination[0]:
            destination = MAPPED + destination[0], destination[1]
        try:
            self._socket.sendto(data, destination)
        except BlockingIOError:
            self.dropped["send_full"] += 1
        except OSError:
            self.dropped["send_error"] += 1

    def _read(self) -> None:
        """The socket is readable: take what the last turn suggests that there is.

        Asking an empty socket costs a third of a turn of the loop, so one that brings single
        datagrams is asked in vain only every other time.
        """
        now = self._loop.time()
        self._haste = self._haste + 1 if now - self._read_at < LOOK else 0
        self._read_at = now
        taken = self._take(self._batch)
        self._batch = min(2 * taken, MAX_BATCH) if taken == self._batch else max(1, taken)
        if self._haste == HASTE and self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket.fileno())
            self._looking = self._loop.call_at(now + LOOK, self._look)

    def _look(self) -> None:
        """Take what there is on a busy socket, or go back to being told when there is something."""
        now = self._loop.time()
        taken = self._take(MAX_BATCH)
        if self._socket.fileno() < 0:
            return
        self._haste = min(self._haste + 1, HASTE) if taken > 1 else self._haste - 1
        if self._haste > 0:
            pause = 0.0 if taken == MAX_BATCH else LOOK
            self._looking = self._loop.call_at(now + pause, self._look)
        else:
            self._looking = None
            self._loop.add_reader(self._socket.fileno(), self._read)

    def _take(self, most: int) -> int:
        """Hand on at most *most* datagrams; how many there were."""
        for count in range(most):
            try:
                data, source = self._socket.recvfrom(MAX_DATAGRAM)
            except BlockingIOError:
                return count
            except OSError:
                self.dropped["receive_error"] += 1
                continue
            self._receive(data, _plain(*source[:2]) if self._is_ipv6 else source)
            if self._socket.fileno() < 0:
                return count  # closed by who got it
        return most

    def _receive(self, data: bytes, source: Address) -> None:
        now = self._loop.time()
        session = self.demultiplexer.receive(data, source, now)
        if session is None:
            return
        channel = self._channels[session]
        if data[0] > 3:
            channel.deliver(data, now)
            if session.datagrams:  # media from another path may raise a question
                channel.advance()
        else:
            channel.advance()


class Channel:
    """One session's share of the socket: the selected path out, and a callback or queue in."""

    def __init__(self, shared: SharedSocket, ice: IceSession) -> None:
        self.ice = ice
        self.on_datagram: Callable[[bytes, float], None] | None = None
        """Gets each datagram that is not STUN, and the loop's time, as it comes; must not block.
        While it is None they wait for `receive`."""
        self.on_event: Callable[[Event], None] | None = None
        """Gets what ICE has to tell, as it happens. After `ConsentLost` the channel is closed."""
        self._shared = shared
        self._loop = asyncio.get_running_loop()
        self._queue: deque[bytes] = deque()
        self._arrived = asyncio.Event()
        self._selected = asyncio.Event()
        self._closed = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None

    @property
    def selected(self) -> Address | None:
        """Where media goes, or None before the first path was validated and after the end."""
        return self.ice.selected

    def set_remote(self, remote: Credentials) -> None:
        """Take the client's credentials; until then its checks are ignored."""
        self.ice.set_remote(remote)

    def open(self) -> None:
        """Start taking part; ConnectionError after `close` or if the ufrag is in use."""
        if self._closed.is_set():
            raise ConnectionError("closed")
        try:
            self._shared.add(self)
        except ValueError as error:
            raise ConnectionError(str(error)) from error

    async def wait_selected(self) -> None:
        """Return once media can go out; ConnectionError if the end comes first."""
        await self._selected.wait()
        self._check_open()

    async def wait_closed(self) -> None:
        """Return once the channel is closed, by whichever side."""
        await self._closed.wait()

    async def receive(self) -> bytes:
        """The next datagram that is not STUN; ConnectionError once closed and empty."""
        while not self._queue:
            self._check_open()
            self._arrived.clear()
            await self._arrived.wait()
        return self._queue.popleft()

    def send(self, data: bytes) -> None:
        """Send to the selected path; ConnectionError once closed, dropped while there is none."""
        self._check_open()
        selected = self.ice.selected
        if selected is None:
            self._shared.dropped["not_selected"] += 1
        else:
            self._shared.send(data, selected)

    def close(self) -> None:
        """End: waiting callers get ConnectionError. May be called again."""
        if self._closed.is_set():
            return
        self._closed.set()
        self._arrived.set()
        self._selected.set()
        if self._timer is not None:
            self._timer.cancel()
        self._shared.remove(self)

    def restart(self, local: Credentials, remote: Credentials) -> None:
        """Begin an ICE restart (RFC 8445 section 9): both our ufrags lead here, and media goes on
        as before, until the event `Restarted` tells which of them is no more.

        ConnectionError if the channel is not open or the ufrag is in use.
        """
        self._check_open()
        try:
            self._shared.restart(self, local, remote)
        except ValueError as error:
            raise ConnectionError(str(error)) from error
        self.advance()

    def deliver(self, data: bytes, now: float) -> None:
        """Hand a datagram on, or queue it for `receive`, or drop it if the queue is full."""
        if self.on_datagram is not None:
            self.on_datagram(data, now)
        elif len(self._queue) >= QUEUE_LIMIT:
            self._shared.dropped["queue_full"] += 1
        else:
            self._queue.append(data)
            self._arrived.set()

    def advance(self) -> None:
        """Carry out what ICE wants after it took a message or the time."""
        for data, destination in self.ice.take_datagrams():
            self._shared.send(data, destination)
        events = self.ice.take_events()
        if not self._closed.is_set():
            self._schedule()
        for event in events:
            if isinstance(event, Selected):
                log.debug("%s: media goes to %s", self.ice.local.ufrag, text(event.address))
                self._selected.set()
            elif isinstance(event, ConsentLost):
                self.close()
            if self.on_event is not None:
                self.on_event(event)

    def _schedule(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        deadline = self.ice.next_deadline()
        self._timer = None if deadline is None else self._loop.call_at(deadline, self._poll)

    def _poll(self) -> None:
        self._shared.poll(self)
        self.advance()

    def _check_open(self) -> None:
        if self._closed.is_set():
            raise ConnectionError("closed")


def _plain(host: str, port: int) -> Address:
    """An IPv4 address as such, though an IPv6 socket showed it."""
    plain = host.removeprefix(MAPPED)
    return (plain if "." in plain and ":" not in plain else host), port


def _set_options(bound: socket.socket) -> None:
    # The kernel keeps one path MTU for an inside address, that is, for all clients behind it,
    # and would cut to it what is longer; the relay takes no fragments.
    bound.setsockopt(*IP_MTU_DISCOVER, PMTUDISC_PROBE)
    if bound.family == socket.AF_INET6:
        bound.setsockopt(*IPV6_MTU_DISCOVER, PMTUDISC_PROBE)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
    granted = bound.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // 2  # the kernel doubles it
    if granted < RECEIVE_BUFFER:
        log.warning(
            "UDP receive buffer: %d KiB, not %d: raise net.core.rmem_max to lose less",
            granted >> 10,
            RECEIVE_BUFFER >> 10,
        )
