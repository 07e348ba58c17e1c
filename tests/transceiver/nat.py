"""A NAT on loopback, of real sockets, that can forget its mapping."""

import asyncio
import contextlib
import socket
from typing import Self

from transceiver.stun import Address

__all__ = ["Nat"]


class Nat:
    """Between one client and *server*. The client takes `address` for the server; the server sees
    `public`, until `rebind`."""

    def __init__(self, server: Address) -> None:
        self._server = server
        self._loop = asyncio.get_running_loop()
        self._inside = self._socket()
        self._outside = self._socket()
        self._client: Address | None = None
        self._loop.add_reader(self._inside, self._from_client)
        self._loop.add_reader(self._outside, self._from_server)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._close(self._inside)
        self._close(self._outside)

    @property
    def address(self) -> Address:
        return self._address(self._inside)

    @property
    def public(self) -> Address:
        return self._address(self._outside)

    def rebind(self) -> None:
        """Take a new port outside; nothing is behind the old one any more."""
        old, self._outside = self._outside, self._socket()
        self._loop.add_reader(self._outside, self._from_server)
        self._close(old)

    def _socket(self) -> socket.socket:
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        made.bind(("127.0.0.1", 0))
        made.setblocking(False)
        return made

    def _address(self, bound: socket.socket) -> Address:
        host, port = bound.getsockname()
        return host, port

    def _close(self, open: socket.socket) -> None:
        self._loop.remove_reader(open)
        open.close()

    def _from_client(self) -> None:
        data, self._client = self._inside.recvfrom(2048)
        self._outside.sendto(data, self._server)

    def _from_server(self) -> None:
        # An ICMP error for what was sent is no datagram.
        with contextlib.suppress(ConnectionRefusedError):
            data = self._outside.recv(2048)
            if self._client is not None:
                self._inside.sendto(data, self._client)
