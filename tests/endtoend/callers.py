"""Clients that come while something happens: each opens a flow, and keeps it."""

import socket
import threading
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, replace
from functools import partial

from loader.errors import ShuntError
from tools.bench.traffic import Ends, Lease, establish, open_socket
from tools.netns import run_in

__all__ = ["Callers"]

_PORT = 40001  # of their transceiver, which is not that of the traffic
_ROUTES, _OF_A_ROUTE = 32, 8
_EVERY = 0.1  # seconds
_MEDIA = b"\x80" + bytes(99)


@dataclass(frozen=True, slots=True)
class _Call:
    client: socket.socket
    peer: tuple[str, int]  # the client as the transceiver sees it


class Callers:
    """They come one every tenth of a second, in a thread of their own, until `hang_up` or until
    there are 256. All send media as often, so that their flows are in use. A context."""

    def __init__(self, ends: Ends) -> None:
        self._ends = replace(ends, transceiver=(ends.transceiver[0], _PORT))
        self._stack = ExitStack()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._call, name="callers")
        self._calls: list[_Call] = []
        self._refused: list[str] = []

    def __enter__(self) -> "Callers":
        with ExitStack() as stack:
            lease = stack.enter_context(Lease(self._ends, id="callers"))
            where = self._ends.transceiver_namespace
            self._transceiver = stack.enter_context(
                closing(run_in(where, partial(open_socket, self._ends.transceiver)))
            )
            self._ufrags = [lease.ufrag(number) for number in range(_ROUTES)]
            for ufrag in self._ufrags:
                lease.add_route(ufrag)
            self._stack = stack.pop_all()
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._over.set()
        self._thread.join()
        self._stack.close()

    def _call(self) -> None:
        calls = (ufrag for _ in range(_OF_A_ROUTE) for ufrag in self._ufrags)
        while not self._over.wait(_EVERY):
            if ufrag := next(calls, None):
                self._place(ufrag)
            for call in self._calls:
                with suppress(ConnectionRefusedError):  # by a relay that has lost its program
                    call.client.send(_MEDIA)

    def _place(self, ufrag: str) -> None:
        local, vip = self._ends.clients[len(self._calls) % len(self._ends.clients)]
        client = run_in(self._ends.client_namespace, partial(open_socket, (local, 0)))
        self._stack.callback(client.close)
        client.connect(vip)
        try:
            self._calls.append(_Call(client, establish(ufrag, client, self._transceiver)))
        except (ShuntError, ConnectionRefusedError) as error:
            self._refused.append(f"{ufrag}: {error}")

    def hang_up(self) -> tuple[int, list[str]]:
        """How many calls there are, and of what was wrong with any of them."""
        self._over.set()
        self._thread.join()
        self._transceiver.setblocking(False)
        with suppress(BlockingIOError):
            while self._transceiver.recv(1 << 11):
                pass
        self._transceiver.settimeout(2.0)
        troubles = list(self._refused)
        for number, call in enumerate(self._calls):
            try:
                call.client.send(_MEDIA)
                if (source := self._transceiver.recvfrom(1 << 11)[1][:2]) != call.peer:
                    troubles.append(f"call {number} was {call.peer} and is {source}")
                self._transceiver.sendto(_MEDIA, call.peer)
                call.client.recv(1 << 11)
            except (TimeoutError, ConnectionRefusedError):
                troubles.append(f"call {number} is no more")
        return len(self._calls), troubles
