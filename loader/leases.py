"""Leases and drains as the maps keep them, for the agent that comes after this one."""

import ctypes

from loader import types
from loader.maps import Maps
from loader.table import Drain, Lease

__all__ = ["lease_of", "relay_drain", "write_lease", "write_relay_drain"]

_NS = 1e9


def write_lease(maps: Maps, lease: Lease, *, new: bool = False) -> None:
    """Write what a successor must know of the lease. The entry of one that is *new* begins
    afresh, without the next hop of whoever had it before."""
    entry = types.Transceiver() if new else maps.transceiver(lease.index)
    entry.address = types.packed_address(lease.address)
    entry.port, entry.instance, entry.capacity = lease.port, lease.instance, lease.capacity
    _set_text(entry.id, lease.id)
    _set_text(entry.http, lease.http)
    entry.expires = int(lease.expires * _NS)
    entry.flags = types.TRANSCEIVER_DRAINING if lease.drain else 0
    entry.drain_since, entry.drain_until = _times(lease.drain)
    maps.set_transceiver(lease.index, entry)


def lease_of(index: int, entry: types.Transceiver) -> Lease:
    """The lease that an earlier agent has written, without its routes."""
    draining = entry.flags & types.TRANSCEIVER_DRAINING
    return Lease(
        id=_text(entry.id),
        index=index,
        instance=entry.instance,
        address=types.text_address(bytes(entry.address)),
        port=entry.port,
        http=_text(entry.http),
        capacity=entry.capacity,
        expires=entry.expires / _NS,
        drain=_drain(entry.drain_since, entry.drain_until) if draining else None,
    )


def write_relay_drain(maps: Maps, drain: Drain | None) -> None:
    """Note the relay's drain, or that there is none."""
    about = maps.about()
    about.draining = drain is not None
    about.drain_since, about.drain_until = _times(drain)
    maps.set_about(about)


def relay_drain(maps: Maps) -> Drain | None:
    """The relay's drain that an earlier agent has noted, if there is one."""
    about = maps.about()
    return _drain(about.drain_since, about.drain_until) if about.draining else None


def _times(drain: Drain | None) -> tuple[int, int]:
    if drain is None:
        return 0, 0
    return int(drain.since * _NS), 0 if drain.until is None else int(drain.until * _NS)


def _drain(since: int, until: int) -> Drain:
    return Drain(since / _NS, until / _NS if until else None)


def _set_text(place: "ctypes.Array[ctypes.c_uint8]", text: str) -> None:
    written = text.encode().ljust(len(place), b"\0")
    ctypes.memmove(place, written, len(place))


def _text(place: "ctypes.Array[ctypes.c_uint8]") -> str:
    return bytes(place).rstrip(b"\0").decode()
