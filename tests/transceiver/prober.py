"""A client's ICE alone, over a real socket: it checks, nominates, and answers checks."""

import asyncio
import secrets
from typing import Self

from transceiver import stun
from transceiver.ice import Credentials
from transceiver.stun import Address, Class

INTERVAL = 0.05
"""Seconds between two checks of a client that has not been answered."""


class Prober(asyncio.DatagramProtocol):
    """Checks *server* until `answered`; it nominates each time, and answers what it is asked."""

    def __init__(self, server: Address, ours: Credentials, theirs: Credentials) -> None:
        self.answered = asyncio.Event()
        self.media: list[bytes] = []
        """What came that is not STUN."""
        self._server = server
        self._ours = ours
        self._theirs = theirs
        self._transport: asyncio.DatagramTransport | None = None
        self._checking: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._transport, _ = await loop.create_datagram_endpoint(
            lambda: self, local_addr=("127.0.0.1", 0)
        )
        self._checking = asyncio.create_task(self._check())
        return self

    async def __aexit__(self, *exc: object) -> None:
        assert self._checking is not None
        assert self._transport is not None
        self._checking.cancel()
        await asyncio.wait((self._checking,))
        self._transport.close()

    async def _check(self) -> None:
        while not self.answered.is_set():
            check = stun.binding_request(
                secrets.token_bytes(12),
                username=f"{self._theirs.ufrag}:{self._ours.ufrag}",
                password=self._theirs.password,
                priority=1,
                controlling=1,
                use_candidate=True,
            )
            self.send(check)
            await asyncio.sleep(INTERVAL)

    def send(self, data: bytes) -> None:
        assert self._transport is not None
        self._transport.sendto(data, self._server)

    def datagram_received(self, data: bytes, addr: Address) -> None:
        if data[0] > 3:
            self.media.append(data)
            return
        message = stun.parse(data)
        if message.cls is Class.SUCCESS:
            self.answered.set()
        elif message.cls is Class.REQUEST and message.authentic(self._ours.password):
            self.send(
                stun.binding_success(message.transaction, mapped=addr, password=self._ours.password)
            )
