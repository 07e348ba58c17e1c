"""The API's ear on TCP: so many connections and no more, each with little time to say who it is."""

import asyncio
import logging
import socket
import ssl
from collections import Counter
from collections.abc import Callable

from loader.addresses import endpoint
from loader.api.access import Access
from loader.api.serving import Runner
from loader.config import TcpConfig
from loader.errors import ShuntError

__all__ = ["Listener"]

log = logging.getLogger(__name__)

CONNECTIONS = 256
"""At a time; others wait in the kernel's queue. The Unix socket has its own, so that nobody on the
network can keep those on the host from asking."""

FROM_ONE_ADDRESS = 64
"""Of those: so that one host cannot take them all. More are closed at once."""

HANDSHAKE_SECONDS = 5.0

_BACKLOG = 128
_PAUSE_SECONDS = 1.0


class Listener:
    """Listens at once; serves while `keep` runs. Raises ShuntError."""

    def __init__(self, tcp: TcpConfig, access: Access, runner: Runner) -> None:
        self._address = tcp.address
        self._access = access
        self._runner = runner
        self._room = asyncio.Semaphore(CONNECTIONS)
        self._from: Counter[str] = Counter()
        try:
            self._socket = socket.create_server(
                (tcp.address, tcp.port),
                family=socket.AF_INET6 if ":" in tcp.address else socket.AF_INET,
                backlog=_BACKLOG,
            )
        except OSError as error:
            raise ShuntError(
                f"cannot listen at TCP {tcp.address} port {tcp.port}: {error.strerror}",
                "Choose another address of this host, or another port: [api.tcp] listen.",
            ) from None
        self._socket.setblocking(False)

    def __str__(self) -> str:
        scheme = "https" if self._access.tls else "http"
        return f"{scheme}://{endpoint(self._address, self.port)}"

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._socket.getsockname()[1])

    def close(self) -> None:
        self._socket.close()

    async def keep(self) -> None:
        """Forever: take connections and have them served."""
        loop = asyncio.get_running_loop()
        async with asyncio.TaskGroup() as handshakes:
            while True:
                await self._room.acquire()
                try:
                    connection, peer = await loop.sock_accept(self._socket)
                except OSError as error:  # out of descriptors, or the peer has gone again
                    self._room.release()
                    log.warning("cannot take a connection: %s", error)
                    await asyncio.sleep(_PAUSE_SECONDS)
                    continue
                except asyncio.CancelledError:
                    self._room.release()
                    raise
                if self._from[peer[0]] >= FROM_ONE_ADDRESS:
                    self._room.release()
                    connection.close()
                    continue
                self._from[peer[0]] += 1
                handshakes.create_task(self._begin(connection, self._release(peer[0])))

    async def _begin(self, connection: socket.socket, release: Callable[[], None]) -> None:
        serve = self._runner.protocol(on_lost=release)
        tls = self._access.tls
        seconds = HANDSHAKE_SECONDS if tls else None
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                serve, connection, ssl=tls, ssl_handshake_timeout=seconds
            )
        except (OSError, ssl.SSLError) as error:
            log.debug("no TLS with a client: %s", error)
            connection.close()
            release()

    def _release(self, address: str) -> Callable[[], None]:
        held = True

        def release() -> None:
            nonlocal held
            if held:
                held = False
                self._room.release()
                self._from[address] -= 1
                if not self._from[address]:
                    del self._from[address]

        return release
