"""What stands in for aioice's connection in aiortc's peer connections.

aiortc asks nothing of its ICE connection but the seven methods and nine attributes that
`Connection` has. Which side makes the offer shows only after it was made: a peer connection that
answers goes through the shared socket; one that offers, or whose client is ICE lite, is
controlling, and has aioice's.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

import aioice

from transceiver.ice import Credentials
from transceiver.sdp.answer import candidates
from transceiver.shared_socket import Channel, SharedSocket
from transceiver.stun import Address

__all__ = ["Connection", "Transceiver"]

CONNECT_LIMIT = 30.0
"""Seconds that a client has from the answer to its first path."""


class Transceiver(Protocol):
    """What a connection needs: the socket, and routes to it."""

    shared: SharedSocket

    @property
    def vips(self) -> tuple[Address, ...]:
        """Where clients send to."""

    async def add(self, ufrag: str) -> None:
        """Return once the relay steers *ufrag* here; else ShuntError."""

    async def remove(self, ufrag: str) -> None:
        """Take the route back; never raises."""


class Connection:
    """Made with each media section, all of a peer connection with the same credentials; aiortc
    closes all but one when it bundles. So it takes part only from `connect` on."""

    def __init__(
        self,
        plain: aioice.Connection,
        transceiver: Callable[[], Awaitable[Transceiver]],
    ) -> None:
        """*plain* has the credentials, and is used should we be controlling. *transceiver* is
        called once it is known that we are not."""
        self.ice_controlling = False
        self.remote_is_lite = False
        self.remote_username: str | None = None
        self.remote_password: str | None = None
        self.remote_candidates: list[aioice.Candidate] = []
        self.local_username = plain.local_username
        self.local_password = plain.local_password
        self.local_candidates: list[aioice.Candidate] = []
        self._plain = plain
        self._find_transceiver = transceiver
        self._transceiver: Transceiver | None = None
        self._channel: Channel | None = None

    async def gather_candidates(self) -> None:
        """There is nothing to gather: the VIPs are the candidates, and the route is made.

        aiortc awaits this in `setLocalDescription`, so that is what raises ShuntError if no route
        can be had.
        """
        if self.ice_controlling:
            self._plain.ice_controlling = True
            await self._plain.gather_candidates()
            self.local_candidates = self._plain.local_candidates
            return
        transceiver = await self._find_transceiver()
        await transceiver.add(self.local_username)
        self._transceiver = transceiver
        self._channel = transceiver.shared.channel(
            Credentials(self.local_username, self.local_password)
        )
        self.local_candidates = [
            aioice.Candidate.from_sdp(line.removeprefix("candidate:"))
            for line in candidates(transceiver.vips)
        ]

    async def add_remote_candidate(self, remote_candidate: aioice.Candidate | None) -> None:
        """Ignored: the client's checks tell its addresses, and nothing else is to be believed."""
        if self.ice_controlling:
            await self._plain.add_remote_candidate(remote_candidate)
            self.remote_candidates = self._plain.remote_candidates

    async def connect(self) -> None:
        """Wait until media can go out; ConnectionError if that does not come in time."""
        if self.ice_controlling:
            self._plain.remote_is_lite = self.remote_is_lite
            self._plain.remote_username = self.remote_username
            self._plain.remote_password = self.remote_password
            await self._plain.connect()
            return
        channel = self._shared_channel()
        if self.remote_username is None or self.remote_password is None:
            raise ConnectionError("the client has given no ICE credentials")
        channel.set_remote(Credentials(self.remote_username, self.remote_password))
        channel.open()
        try:
            async with asyncio.timeout(CONNECT_LIMIT):
                await channel.wait_selected()
        except TimeoutError as error:
            await self.close()
            raise ConnectionError(f"no check in {CONNECT_LIMIT:g} s") from error

    async def recv(self) -> bytes:
        if self.ice_controlling:
            return await self._plain.recv()
        return await self._shared_channel().receive()

    async def send(self, data: bytes) -> None:
        if self.ice_controlling:
            await self._plain.send(data)
        else:
            self._shared_channel().send(data)

    async def get_event(self) -> object:
        """`ConnectionClosed` once it is, by either side or for want of consent."""
        if self.ice_controlling:
            return await self._plain.get_event()
        await self._shared_channel().wait_closed()
        await self._remove_route()
        return aioice.ConnectionClosed()

    async def close(self) -> None:
        """End, and take the route back. May be called again."""
        if self.ice_controlling:
            await self._plain.close()
            return
        if self._channel is not None:
            self._channel.close()
        await self._remove_route()

    async def _remove_route(self) -> None:
        transceiver, self._transceiver = self._transceiver, None
        if transceiver is not None:
            await transceiver.remove(self.local_username)

    def _shared_channel(self) -> Channel:
        if self._channel is None:
            raise ConnectionError("no candidates were gathered")
        return self._channel
