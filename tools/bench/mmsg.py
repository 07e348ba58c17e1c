"""Many datagrams by one system call: sendmmsg(2) and recvmmsg(2), which Python does not have.

A `Batch` is the memory that both work on, as numpy arrays: payloads, their lengths, the addresses
that they go to or come from, and when the kernel took them in.
"""

import ctypes
import os
import socket
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Batch", "pack_address", "stamped"]

_NAME = 28
"""Bytes of an address: a `struct sockaddr_in6`, which a `sockaddr_in` fits into."""

# Where pointers have 64 bits: struct iovec, struct mmsghdr with the msghdr that it begins with, and
# what the kernel says beside a datagram if it is asked for times: a cmsghdr, and a timespec.
_VECTOR = np.dtype([("base", "=u8"), ("length", "=u8")])
_HEADER = np.dtype(
    {
        "names": [
            *("name", "name_length", "vectors", "vector_count"),
            *("control", "control_length", "flags", "length"),
        ],
        "formats": ["=u8", "=u4", "=u8", "=u8", "=u8", "=u8", "=i4", "=u4"],
        "offsets": [0, 8, 16, 24, 32, 40, 48, 56],
        "itemsize": 64,
    }
)
_CONTROL = np.dtype(
    [("length", "=u8"), ("level", "=i4"), ("kind", "=i4"), ("s", "=i8"), ("ns", "=i8")]
)
_MSG_DONTWAIT = 0x40
_SO_TIMESTAMPNS = 35

_libc = ctypes.CDLL(None, use_errno=True)


class Batch:
    """Room for *count* datagrams of up to *size* bytes each."""

    def __init__(self, count: int, size: int) -> None:
        self.payloads: npt.NDArray[np.uint8] = np.zeros((count, size), np.uint8)
        self.names: npt.NDArray[np.uint8] = np.zeros((count, _NAME), np.uint8)
        """Where each goes to, or, once received, comes from."""
        self._size = size
        self._vectors = np.zeros(count, _VECTOR)
        self._vectors["base"] = _places(self.payloads)
        self._vectors["length"] = size
        self._headers = np.zeros(count, _HEADER)
        self._headers["vectors"] = _places(self._vectors)
        self._headers["vector_count"] = 1
        self._own_names = _places(self.names)
        self._control = np.zeros(count, _CONTROL)
        self._own_control = _places(self._control)

    @property
    def times(self) -> npt.NDArray[np.float64]:
        """When each came in, in seconds, once received by a `stamped` socket. It is the kernel's
        real time, whatever this process was doing then."""
        times: npt.NDArray[np.float64] = self._control["s"] + self._control["ns"] * 1e-9
        return times

    @property
    def lengths(self) -> npt.NDArray[np.uint32]:
        """Bytes of each, once received; what is longer than *size* is cut off there."""
        lengths: npt.NDArray[np.uint32] = self._headers["length"]
        return lengths

    def address(self, destination: npt.NDArray[np.uint8], first: int, count: int) -> None:
        """So many from *first* on go to an address, as `pack_address` makes it; else they go to
        the socket's peer."""
        places = slice(first, first + count)
        self.names[places, : len(destination)] = destination
        self._headers["name"][places] = self._own_names[places]
        self._headers["name_length"][places] = len(destination)

    def send(self, descriptor: int, first: int, count: int) -> int:
        """Send those from *first* on; how many went. Raises OSError if none did."""
        return self._call(_libc.sendmmsg, descriptor, first, count, 0)

    def receive(self, descriptor: int, first: int, count: int) -> int:
        """Receive up to *count* into the places from *first* on, without waiting; how many came.
        Raises OSError, BlockingIOError among others."""
        places = slice(first, first + count)
        self._headers["name"][places] = self._own_names[places]
        self._headers["name_length"][places] = _NAME
        self._headers["control"][places] = self._own_control[places]
        self._headers["control_length"][places] = _CONTROL.itemsize
        return self._call(_libc.recvmmsg, descriptor, first, count, _MSG_DONTWAIT, None)

    def _call(
        self, call: Callable[..., int], descriptor: int, first: int, count: int, *rest: Any
    ) -> int:
        if not 0 <= first <= first + count <= len(self._headers):
            raise IndexError(f"{count} from {first} on, of {len(self._headers)}")
        headers = self._headers.ctypes.data + first * _HEADER.itemsize
        done = call(descriptor, ctypes.c_void_p(headers), count, *rest)
        if done < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        return done


def _places(array: npt.NDArray[Any]) -> npt.NDArray[np.uint64]:
    """The address in memory of each row."""
    return (array.ctypes.data + np.arange(len(array)) * array.strides[0]).astype(np.uint64)


def stamped(made: socket.socket) -> None:
    """Have the kernel say when a datagram came in."""
    made.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)


def pack_address(address: str, port: int) -> npt.NDArray[np.uint8]:
    """A `sockaddr_in` or `sockaddr_in6`, as the kernel fills it in."""
    if ":" in address:
        packed = socket.inet_pton(socket.AF_INET6, address)
        octets = _family(socket.AF_INET6) + struct.pack("!HI16s", port, 0, packed) + bytes(4)
    else:
        packed = socket.inet_pton(socket.AF_INET, address)
        octets = _family(socket.AF_INET) + struct.pack("!H4s", port, packed) + bytes(8)
    return np.frombuffer(octets, np.uint8).copy()


def _family(family: socket.AddressFamily) -> bytes:
    return struct.pack("=H", family)
