"""The one UDP socket of a transceiver: what the kernel, asyncio and aiortc's tasks need of it.

Which session a datagram belongs to is `transceiver.demultiplexer`'s to say, what it means
`transceiver.ice`'s.
"""

import asyncio
import logging
import socket
from collections import deque
from typing import Self

from transceiver.demultiplexer import Demultiplexer
from transceiver.ice import ConsentLost, Credentials, Event, IceSession, IceTiming, Selected
from transceiver.stun import Address, text

__all__ = ["Channel", "SharedSocket"]

RECEIVE_BUFFER = 4 << 20
SEND_BUFFER_LIMIT = 1 << 20
QUEUE_LIMIT = 256
"""Datagrams that wait for a session: more than a second of media, or one burst of SCTP."""

# Of linux/in.h and linux/in6.h; Python's socket module has none of them.
IP_MTU_DISCOVER = (socket.IPPROTO_IP, 10)
IPV6_MTU_DISCOVER = (socket.IPPROTO_IPV6, 23)
PMTUDISC_PROBE = 3  # never fragment, and do not ask what the kernel has learned

log = logging.getLogger(__name__)


class SharedSocket(asyncio.DatagramProtocol):
    """Carries the datagrams of all sessions. Made by `open`, ended by `close`."""

    def __init__(self, timing: IceTiming) -> None:
        self.demultiplexer = Demultiplexer()
        self._timing = timing
        self._channels: dict[IceSession, Channel] = {}
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.DatagramTransport | None = None

    @classmethod
    async def open(cls, address: Address, timing: IceTiming | None = None) -> Self:
        """Bind *address*; raises OSError if that cannot be."""
        loop = asyncio.get_running_loop()
        _, self = await loop.create_datagram_endpoint(
            lambda: cls(timing or IceTiming()), local_addr=address
        )
        return self

    @property
    def address(self) -> Address:
        """The address bound, with the port the kernel chose if it was asked to."""
        assert self._transport is not None
        host, port = self._transport.get_extra_info("sockname")[:2]
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
        """End all channels and the socket."""
        for channel in list(self._channels.values()):
            channel.close()
        if self._transport is not None:
            self._transport.close()

    def add(self, channel: "Channel") -> None:
        """Let *channel* have its datagrams; ValueError if its ufrag is in use."""
        self.demultiplexer.add(channel.ice)
        self._channels[channel.ice] = channel

    def remove(self, channel: "Channel") -> None:
        """Let *channel* have no more datagrams."""
        self.demultiplexer.remove(channel.ice)
        self._channels.pop(channel.ice, None)

    def send(self, data: bytes, destination: Address) -> None:
        """Send now, or drop and count: what cannot go out in time had better not go at all."""
        assert self._transport is not None
        buffered: int = self._transport.get_write_buffer_size()  # type: ignore[attr-defined]
        if buffered > SEND_BUFFER_LIMIT:
            self.dropped["send_full"] += 1
        else:
            self._transport.sendto(data, destination)

    def connection_made(self, transport: asyncio.DatagramTransport) -> None:  # type: ignore[override]
        self._transport = transport
        raw: socket.socket = transport.get_extra_info("socket")
        # The kernel keeps one path MTU for an inside address, that is, for all clients behind it,
        # and would cut to it what is longer; the relay takes no fragments.
        is_ipv6 = raw.family == socket.AF_INET6
        level, option = IPV6_MTU_DISCOVER if is_ipv6 else IP_MTU_DISCOVER
        raw.setsockopt(level, option, PMTUDISC_PROBE)
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
        granted = raw.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // 2  # the kernel doubles it
        if granted < RECEIVE_BUFFER:
            log.warning(
                "UDP receive buffer: %d KiB, not %d: raise net.core.rmem_max to lose less",
                granted >> 10,
                RECEIVE_BUFFER >> 10,
            )

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        source = addr[0], addr[1]
        delivery = self.demultiplexer.receive(data, source, self._loop.time())
        if delivery is None:
            return
        channel = self._channels[delivery.session]
        if delivery.data is not None:
            channel.deliver(delivery.data)
        else:
            channel.advance(delivery.events)

    def error_received(self, exc: Exception) -> None:
        self.dropped["send_error"] += 1


class Channel:
    """One session's share of the socket: a bounded queue in, the selected path out."""

    def __init__(self, shared: SharedSocket, ice: IceSession) -> None:
        self.ice = ice
        self.consent_lost = False
        self._shared = shared
        self._loop = asyncio.get_running_loop()
        self._queue: deque[bytes] = deque()
        self._arrived = asyncio.Event()
        self._selected = asyncio.Event()
        self._closed = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None

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
        if self.ice.selected is None:
            self._shared.dropped["not_selected"] += 1
        else:
            self._shared.send(data, self.ice.selected)

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

    def deliver(self, data: bytes) -> None:
        """Queue a datagram for `receive`, or drop it if the queue is full."""
        if len(self._queue) >= QUEUE_LIMIT:
            self._shared.dropped["queue_full"] += 1
        else:
            self._queue.append(data)
            self._arrived.set()

    def advance(self, events: list[Event]) -> None:
        """Carry out what ICE wants after it took a message or the time."""
        for data, destination in self.ice.take_datagrams():
            self._shared.send(data, destination)
        for event in events:
            if isinstance(event, Selected):
                log.info("%s: media goes to %s", self.ice.local.ufrag, text(event.address))
                self._selected.set()
            elif isinstance(event, ConsentLost):
                self.consent_lost = True
                self.close()
                return
        self._schedule()

    def _schedule(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        deadline = self.ice.next_deadline()
        self._timer = None if deadline is None else self._loop.call_at(deadline, self._poll)

    def _poll(self) -> None:
        self.ice.poll(self._loop.time())
        self.advance(self.ice.take_events())

    def _check_open(self) -> None:
        if self._closed.is_set():
            raise ConnectionError("closed")
