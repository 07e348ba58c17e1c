"""The asking side of a bench: HTTP over kept connections to a Unix socket, each answer timed.

No HTTP library: what is measured is the agent, and that would take longer than it does.
"""

import selectors
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from loader.errors import ShuntError

__all__ = ["Answers", "ask", "ask_all", "request"]

_PATIENCE = 60.0  # seconds without any answer


@dataclass(frozen=True, slots=True)
class Answers:
    """How long each took, in milliseconds, and all of them together, in seconds."""

    milliseconds: tuple[float, ...]
    seconds: float

    def __add__(self, other: "Answers") -> "Answers":
        return Answers(self.milliseconds + other.milliseconds, self.seconds + other.seconds)


def request(method: str, path: str, *, instance: str, body: bytes = b"") -> bytes:
    """As it goes over the wire."""
    lines = [
        f"{method} {path} HTTP/1.1",
        "Host: agent",
        f"Shunt-Instance: {instance}",
        f"Content-Length: {len(body)}",
        *(["Content-Type: application/json"] if body else []),
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body


def ask(path: Path, wanted: bytes) -> tuple[int, bytes]:
    """One request, on a connection of its own: status and body."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(_PATIENCE)
        connection.connect(str(path))
        connection.sendall(wanted)
        answer = b""
        while (end := _end(answer)) is None:
            answer += _more(connection)
        return _status(answer), answer[answer.index(b"\r\n\r\n") + 4 : end]


def ask_all(
    path: Path, requests: Sequence[bytes], *, status: int | None = None, connections: int = 1
) -> Answers:
    """Each request once, over so many connections, each of which asks again when it has its
    answer. Raises ShuntError for an answer of another *status*."""
    left = iter(requests)
    taken: list[float] = []
    with ExitStack() as stack:
        selector = stack.enter_context(selectors.DefaultSelector())
        begun = time.perf_counter()
        for _ in range(connections):
            opened = stack.enter_context(socket.socket(socket.AF_UNIX))
            opened.connect(str(path))
            asking = _Asking(opened, left, status, taken)
            if asking.ask():
                selector.register(opened, selectors.EVENT_READ, asking)
        while selector.get_map():
            ready = selector.select(_PATIENCE)
            if not ready:
                raise ShuntError(f"{path} has not answered for {_PATIENCE:.0f} s")
            for key, _events in ready:
                if not key.data.hear():
                    selector.unregister(key.fileobj)
        return Answers(tuple(taken), time.perf_counter() - begun)


class _Asking:
    """A connection that asks, and asks again."""

    def __init__(
        self,
        opened: socket.socket,
        requests: Iterator[bytes],
        status: int | None,
        taken: list[float],
    ) -> None:
        self._socket = opened
        self._requests = requests
        self._status = status
        self._taken = taken

    def ask(self) -> bool:
        """False: there is nothing left to ask."""
        wanted = next(self._requests, None)
        if wanted is None:
            return False
        self._answer = b""
        self._asked = time.perf_counter()
        self._socket.sendall(wanted)
        return True

    def hear(self) -> bool:
        self._answer += _more(self._socket)
        if _end(self._answer) is None:
            return True
        self._taken.append(1e3 * (time.perf_counter() - self._asked))
        if self._status is not None and _status(self._answer) != self._status:
            raise ShuntError(
                f"the bench was answered {self._answer!r}", "The bench is broken; please report it."
            )
        return self.ask()


def _more(connection: socket.socket) -> bytes:
    piece = connection.recv(65536)
    if not piece:
        raise ShuntError("the bench's connection was closed", "Look at the agent's log.")
    return piece


def _status(answer: bytes) -> int:
    return int(answer[9:12])


def _end(answer: bytes) -> int | None:
    """Where the answer ends; None if it has not come to that yet."""
    headers = answer.find(b"\r\n\r\n")
    if headers < 0:
        return None
    place = answer[:headers].lower().find(b"\r\ncontent-length:")
    length = int(answer[place + 17 : headers].split(b"\r\n", 1)[0]) if place >= 0 else 0
    return headers + 4 + length if len(answer) >= headers + 4 + length else None
