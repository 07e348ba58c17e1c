"""rtnetlink(7), as much of it as the agent must have fast: messages, questions, events.

pyroute2 reads what is rare. Of what can come 10,000 times a second, or once for each of 4,096
transceivers, it takes 30 µs for a message and 0.3 ms for a question; this takes a tenth of it.
"""

import errno
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from types import TracebackType
from typing import NamedTuple

__all__ = ["Message", "Rtnetlink", "attribute", "attributes", "group"]

_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr
_ATTRIBUTE = struct.Struct("=HH")  # struct nlattr
_ERRNO = struct.Struct("=i")
_NOOP, _ERROR, _DONE = 1, 2, 3
_REQUEST, _ACK, _DUMP = 0x01, 0x04, 0x300
_KIND = 0x3FFF  # of an attribute's type, without its flags
_SO_RCVBUFFORCE = 33
_LARGEST = 128 * 1024  # bytes; the kernel puts no more than half of that into one datagram
_REPLIES_BUFFER, _EVENTS_BUFFER = 1 << 20, 8 << 20


class Message(NamedTuple):
    """A message of the kernel's: its *kind* (`RTM_…`), what follows the header, and all of it."""

    kind: int
    body: bytes
    whole: bytes


def group(*numbers: int) -> int:
    """The bits of multicast groups (`RTNLGRP_…`, up to 32) for `Rtnetlink`."""
    return sum(1 << (number - 1) for number in numbers)


def attribute(kind: int, value: bytes) -> bytes:
    """An attribute, padded for the next."""
    return _ATTRIBUTE.pack(4 + len(value), kind) + value + b"\0" * (-len(value) % 4)


def attributes(data: bytes, start: int = 0) -> dict[int, bytes]:
    """The attributes from *start*, by kind; of a malformed rest, nothing."""
    found = {}
    while start + 4 <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, start)
        if length < 4 or start + length > len(data):
            break
        found[kind & _KIND] = data[start + 4 : start + length]
        start += (length + 3) & ~3
    return found


class Rtnetlink:
    """A netlink socket in the network namespace of the thread that makes it.

    For questions, or, with *groups*, for what the kernel tells of itself. The kernel answers
    a question before the system call that sends it ends, so there is nothing to wait for.
    """

    def __init__(self, groups: int = 0) -> None:
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE
        )
        self._sequence = 0
        self._buffer = bytearray(_LARGEST)
        try:
            size = _EVENTS_BUFFER if groups else _REPLIES_BUFFER
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)
            with suppress(PermissionError):  # beyond rmem_max with CAP_NET_ADMIN only
                self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, size)
            self._socket.setblocking(False)
            self._socket.bind((0, groups))
        except BaseException:
            self._socket.close()
            raise

    def fileno(self) -> int:
        """The descriptor, to wait for events."""
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> "Rtnetlink":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def get(self, kind: int, body: bytes) -> Message:
        """The one thing that is asked for. Raises OSError with the kernel's word."""
        self._send(kind, 0, body)
        return next(self._answers())

    def change(self, kind: int, flags: int, body: bytes) -> None:
        """Have something changed. Raises OSError with the kernel's word."""
        self._send(kind, _ACK | flags, body)
        for _ in self._answers():
            pass

    def dump(self, kind: int, body: bytes) -> list[Message]:
        """All there is. Raises OSError."""
        self._send(kind, _DUMP, body)
        return list(self._answers())

    def told(self, limit: int) -> list[Message]:
        """What the kernel has told since the last call, *limit* datagrams of it at most. Raises
        OSError(ENOBUFS) where some was lost: then the kernel tells nothing more, and not that it
        does not, until `skip` has come to the end of what it told before."""
        messages: list[Message] = []
        with suppress(BlockingIOError):
            for _ in range(limit):
                messages += (message for _sequence, message in self._receive())
        return messages

    def skip(self, limit: int) -> bool:
        """Pass over *limit* datagrams, or all there are; whether there may be more."""
        try:
            for _ in range(limit):
                self._socket.recv_into(self._buffer)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno != errno.ENOBUFS:  # once more too many
                raise
        return True

    def _send(self, kind: int, flags: int, body: bytes) -> None:
        self._sequence += 1
        length = _HEADER.size + len(body)
        header = _HEADER.pack(length, kind, _REQUEST | flags, self._sequence, 0)
        self._socket.send(header + body)

    def _answers(self) -> Iterator[Message]:
        while True:
            for sequence, message in self._receive():
                if sequence != self._sequence:
                    continue  # left of an earlier question
                if message.kind in (_DONE, _ERROR):
                    (code,) = _ERRNO.unpack_from(message.body)
                    if code:
                        raise OSError(-code, os.strerror(-code))
                    return
                yield message

    def _receive(self) -> list[tuple[int, Message]]:
        """The messages of the next datagram, with their sequence numbers. Raises
        BlockingIOError if there is none."""
        length = self._socket.recv_into(self._buffer)
        return list(_messages(bytes(memoryview(self._buffer)[:length])))


def _messages(data: bytes) -> Iterator[tuple[int, Message]]:
    start = 0
    while start + _HEADER.size <= len(data):
        length, kind, _flags, sequence, _port = _HEADER.unpack_from(data, start)
        if length < _HEADER.size or start + length > len(data):
            raise OSError(errno.EBADMSG, "netlink: a message longer than its datagram")
        whole = data[start : start + length]
        if kind != _NOOP:
            yield sequence, Message(kind, whole[_HEADER.size :], whole)
        start += (length + 3) & ~3
