"""The agent: what a relay host's owner of the maps does when asked, when time passes, and when the
network changes.

Decisions are `table`'s (who may route) and `flows`' (which slots end); here they meet the maps,
the clock and netlink. What it leaves in the maps outlives it: a new agent adopts it. `api` is how
it is asked, `daemon` the process around it.
"""

import asyncio
import ctypes
import errno
import ipaddress
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pyroute2 import AsyncIPRoute, IPRoute

from loader import datapath, types
from loader.client import DEFAULT_SOCKET, Vip
from loader.errors import ShuntError
from loader.flows import FlowTable
from loader.maps import DEFAULT_PINS, Interface, Maps, Rate
from loader.nexthop import NEIGHBOUR_EVENTS, next_hop
from loader.table import Lease, Refused, Registered, RouteTable

__all__ = ["Agent", "AgentConfig"]

log = logging.getLogger(__name__)

_SWEEP_SECONDS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentConfig:
    """How a relay host is set up.

    *public* and *inside* are interfaces; one may be both. Ports *first_port* to *last_port* of the
    inside address are slots; by default they lie below the kernel's own ephemeral ports. *uids*
    may use the socket, besides root and the agent's own.
    """

    public: tuple[str, ...]
    inside: tuple[str, ...]
    vips: tuple[Vip, ...]
    inside_address: str
    socket: Path = Path(DEFAULT_SOCKET)
    pins: Path = DEFAULT_PINS
    first_port: int = 10000
    last_port: int = 32767
    uids: frozenset[int] = field(default_factory=frozenset)

    def __post_init__(self) -> None:
        """Raises ShuntError for what cannot work."""
        if not self.public or not self.inside:
            raise ShuntError("the relay needs a public and an inside interface")
        if len(self.interfaces) > types.INTERFACES:
            raise ShuntError(f"the relay takes at most {types.INTERFACES} interfaces")
        if not 1 <= len(self.vips) <= types.VIPS:
            raise ShuntError(f"the relay takes 1 to {types.VIPS} VIPs")
        for what, address in [("VIP", vip.address) for vip in self.vips] + [
            ("inside address", self.inside_address)
        ]:
            try:
                version = ipaddress.ip_address(address).version
            except ValueError:
                raise ShuntError(f"the {what} {address!r} is no IP address") from None
            if version != 4:
                raise ShuntError(f"the {what} {address} is not IPv4, and IPv6 is not built yet")
        if not all(1 <= vip.port <= 65535 for vip in self.vips):
            raise ShuntError("a VIP's port is 1 to 65535")
        if not 1024 <= self.first_port <= self.last_port <= 65535:
            raise ShuntError("the inside ports must be a range within 1024 to 65535")
        if any(
            vip.address == self.inside_address and self.first_port <= vip.port <= self.last_port
            for vip in self.vips
        ):
            raise ShuntError("a VIP's port is among the inside ports of the same address")

    @property
    def interfaces(self) -> list[str]:
        """Every interface once, the public ones first."""
        return list(dict.fromkeys(self.public + self.inside))


class Agent:
    """The running agent, between the maps and the API. `clock` gives monotonic seconds."""

    def __init__(
        self,
        config: AgentConfig,
        maps: Maps,
        netlink: AsyncIPRoute,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.config = config
        self._maps = maps
        self._netlink = netlink
        self._netlink_turn = asyncio.Lock()
        self._clock = clock
        self._interfaces: list[Interface] = []
        self._table = RouteTable(indexes=types.TRANSCEIVERS)
        self._neighbours_changed = asyncio.Event()

    # Start.

    def configure(self, attachments: list[datapath.Attachment]) -> None:
        """Write settings and interfaces into the maps. The program may be attached already."""
        self._interfaces = [
            Interface(
                name=attachment.interface,
                ifindex=attachment.ifindex,
                inside=attachment.interface in self.config.inside,
                mode=attachment.mode,
            )
            for attachment in attachments
        ]
        settings = types.Settings(
            inside_address=types.packed_address(self.config.inside_address),
            first_port=self.config.first_port,
            last_port=self.config.last_port,
        )
        for entry, vip in zip(settings.vips, self.config.vips, strict=False):
            entry.address = types.packed_address(vip.address)
            entry.port = vip.port
        inside = [interface.ifindex for interface in self._interfaces if interface.inside]
        for place, ifindex in enumerate(inside):
            settings.inside_interfaces[place] = ifindex
        before = self._maps.settings()
        self._maps.configure(settings)
        self._maps.set_interfaces(self._interfaces)
        self._flows = FlowTable(self._maps)
        if (bytes(before.vips), bytes(before.inside_address)) != (
            bytes(settings.vips),
            bytes(settings.inside_address),
        ):
            # What a slot adds to checksums is worked out for the addresses it was opened with.
            closed = self._flows.close_all(now=self._clock())
            if closed:
                log.warning("the relay has other addresses than before: %d flows closed", closed)

    def adopt(self) -> None:
        """Take over the transceivers, routes and flows that an earlier agent left in the maps."""
        now = self._clock()
        leases = {}
        for index, entry in self._maps.transceivers():
            leases[index] = Lease(
                id=bytes(entry.id).rstrip(b"\0").decode(),
                index=index,
                instance=entry.instance,
                address=types.text_address(bytes(entry.address)),
                port=entry.port,
                http="",
                capacity=types.ROUTES,
                expires=now,
            )
        for ufrag, route in list(self._maps.routes()):
            if route.transceiver in leases:
                leases[route.transceiver].routes[ufrag] = route.id
            else:
                self._maps.remove_route(ufrag)
        for lease in leases.values():
            self._table.adopt(lease, now=now)
        self._table.adopt_route_ids(self._flows.highest_route())
        self._table.adopt_indexes(self._flows.transceivers() - set(leases))
        free = self._flows.rebuild_free()
        log.info(
            "adopted %d transceivers, %d routes; %d ports are free",
            len(leases),
            len(self._table.route_ids()),
            free,
        )

    # What the API asks for.

    async def register(self, id: str, body: dict[str, Any]) -> tuple[Registered, bool]:
        """Make or renew a lease; the transceiver's entry is in the map when this returns."""
        try:
            registered = self._table.register(
                id,
                instance=_typed(body, "instance", str),
                address=_unicast(_typed(body, "address", str)),
                port=_typed(body, "port", int),
                http=_typed(body, "http", str),
                capacity=_typed(body, "capacity", int),
                now=self._clock(),
            )
        except KeyError as error:
            raise Refused(400, f"{error.args[0]} is missing") from None
        except TypeError as error:
            raise Refused(400, str(error)) from None
        for ended in registered.ended:
            self._end(ended, "superseded")
        lease = registered.lease
        if registered.new:
            log.info("transceiver %s at %s:%d", lease.id, lease.address, lease.port)
            self._write(lease)
        await self._resolve(lease)
        return registered, bool(self._maps.transceiver(lease.index).resolved)

    def deregister(self, id: str, instance: str) -> None:
        """End a lease."""
        lease = self._table.deregister(id, instance=instance)
        if lease:
            self._end(lease, "deregistered")

    def add_route(self, ufrag: str, *, transceiver: str, instance: str) -> None:
        """Make a route; the map holds it when this returns."""
        id = self._table.add_route(ufrag, transceiver=transceiver, instance=instance)
        if id is None:
            return
        lease = self._table.owner(ufrag)
        assert lease is not None
        try:
            self._maps.add_route(ufrag, id=id, transceiver=lease.index)
        except ShuntError as full:
            self._table.remove_route(ufrag, instance=instance)
            raise Refused(507, full.what) from None

    def remove_route(self, ufrag: str, *, instance: str) -> None:
        """Remove a route and close its flows."""
        id = self._table.remove_route(ufrag, instance=instance)
        if id is not None:
            self._maps.remove_route(ufrag)
            self._flows.close_routes([id], known=self._table.route_ids(), now=self._clock())

    def transceivers(self) -> dict[str, Any]:
        """`GET /v1/transceivers`."""
        now = self._clock()
        return {
            "transceivers": [
                {
                    "id": lease.id,
                    "address": lease.address,
                    "port": lease.port,
                    "http": lease.http,
                    "capacity": lease.capacity,
                    "routes": len(lease.routes),
                    "lease_s": round(lease.expires - now, 3),
                    "reachable": bool(self._maps.transceiver(lease.index).resolved),
                }
                for lease in self._table.leases()
            ]
        }

    def routes(self, transceiver: str | None = None) -> dict[str, Any]:
        """`GET /v1/routes`, of one transceiver if its id is given."""
        slots: dict[int, list[int]] = {}
        for flow in self._flows.flows(now=self._clock()):
            if flow.state is not types.State.CLOSING:
                slots.setdefault(flow.route, []).append(flow.port)
        return {
            "routes": [
                {"ufrag": ufrag, "transceiver": lease.id, "slots": slots.get(id, [])}
                for lease in self._table.leases()
                if transceiver in (None, lease.id)
                for ufrag, id in lease.routes.items()
            ]
        }

    def flows(self) -> dict[str, Any]:
        """`GET /v1/flows`."""
        ufrags = {id: u for lease in self._table.leases() for u, id in lease.routes.items()}
        ids = {lease.index: lease.id for lease in self._table.leases()}
        return {
            "flows": [
                {
                    "port": flow.port,
                    "state": flow.state.name.lower(),
                    "client": f"{flow.client}:{flow.client_port}",
                    "vip": _vip_text(self.config.vips, flow.vip),
                    "ufrag": ufrags.get(flow.route),
                    "transceiver": ids.get(flow.transceiver),
                    "idle_s": round(flow.idle_s, 1),
                    "validated": flow.proven,
                    "to_transceiver": _rate(Rate(*flow.to_transceiver)),
                    "to_client": _rate(Rate(*flow.to_client)),
                }
                for flow in self._flows.flows(now=self._clock())
            ]
        }

    def counters(self) -> dict[str, Any]:
        """`GET /v1/counters`."""
        counters = self._maps.counters()
        return {
            "mode": {i.name: i.mode.name.lower() for i in self._interfaces},
            "to_transceiver": _rate(counters.to_transceiver),
            "to_client": _rate(counters.to_client),
            "passed": _rate(counters.passed),
            "dropped": counters.dropped,
        }

    def not_ready(self) -> str | None:
        """Why the relay cannot do its work, or None if it can."""
        for interface in self._interfaces:
            if interface.mode is types.Mode.DETACHED:
                return f"{interface.name} no longer carries the XDP program"
        return None

    # What time and the network ask for.

    async def keep(self) -> None:
        """Forever: end leases, close and free slots, follow the neighbours and the interfaces."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(_SWEEP_SECONDS):
                    await self._neighbours_changed.wait()
            self.sweep()
            changed = self._neighbours_changed.is_set()
            self._neighbours_changed.clear()
            for lease in self._table.leases():
                if changed or not self._maps.transceiver(lease.index).resolved:
                    await self._resolve(lease)
            await self._look_at_interfaces()

    def sweep(self) -> None:
        """One round of everything that ends by time."""
        now = self._clock()
        for lease in self._table.expire(now=now):
            self._end(lease, "lease ended")
        self._flows.sweep(self._table.route_ids(), now=now)
        in_use = self._flows.transceivers()
        for index in self._table.resting_indexes():
            if index not in in_use:
                self._table.release_index(index)

    async def watch_neighbours(self) -> None:
        """Forever: wake `keep` when a MAC address changes."""
        async with AsyncIPRoute() as netlink:
            await netlink.bind(NEIGHBOUR_EVENTS)
            while True:
                try:
                    async for _message in netlink.get():  # ends with each message
                        self._neighbours_changed.set()
                except OSError as error:
                    if error.errno != errno.ENOBUFS:
                        raise
                    self._neighbours_changed.set()  # some were lost, so anything may have changed

    async def _resolve(self, lease: Lease) -> None:
        async with self._netlink_turn:
            hop = await next_hop(self._netlink, lease.address)
        entry = self._maps.transceiver(lease.index)
        # The last next hop stands while the kernel knows none: better than none at all. The entry
        # may have come to another transceiver, or to none, while the kernel was asked.
        if hop is None or bytes(entry.address) != bytes(types.packed_address(lease.address)):
            return
        if entry.resolved and (entry.ifindex, bytes(entry.mac), bytes(entry.source_mac)) == (
            hop.ifindex,
            hop.mac,
            hop.source_mac,
        ):
            return
        ctypes.memmove(entry.mac, hop.mac, 6)
        ctypes.memmove(entry.source_mac, hop.source_mac, 6)
        entry.ifindex, entry.resolved = hop.ifindex, 1
        self._maps.set_transceiver(lease.index, entry)
        log.info("transceiver %s is at %s", lease.id, hop.mac.hex(":"))

    async def _look_at_interfaces(self) -> None:
        modes = await asyncio.to_thread(_modes, [i.ifindex for i in self._interfaces])
        changed = [
            Interface(name=i.name, ifindex=i.ifindex, inside=i.inside, mode=mode)
            for i, mode in zip(self._interfaces, modes, strict=True)
        ]
        if changed != self._interfaces:
            log.warning("XDP on interfaces is now: %s", {i.name: i.mode.name for i in changed})
            self._interfaces = changed
            self._maps.set_interfaces(changed)

    def _write(self, lease: Lease) -> None:
        entry = types.Transceiver(
            address=types.packed_address(lease.address), port=lease.port, instance=lease.instance
        )
        ctypes.memmove(entry.id, lease.id.encode(), len(lease.id))
        self._maps.set_transceiver(lease.index, entry)

    def _end(self, lease: Lease, why: str) -> None:
        log.info("transceiver %s: %s; %d routes go", lease.id, why, len(lease.routes))
        for ufrag in lease.routes:
            self._maps.remove_route(ufrag)
        self._flows.close_routes(
            lease.routes.values(), known=self._table.route_ids(), now=self._clock()
        )
        self._maps.set_transceiver(lease.index, types.Transceiver())


def _modes(ifindexes: list[int]) -> list[types.Mode]:
    with IPRoute() as netlink:
        return [datapath.attached_mode(netlink, ifindex) for ifindex in ifindexes]


def _typed(body: dict[str, Any], name: str, kind: type[Any]) -> Any:
    value = body[name]
    if type(value) is not kind:
        raise TypeError(f"{name} must be {'a number' if kind is int else 'text'}")
    return value


def _unicast(text: str) -> str:
    try:
        address = ipaddress.IPv4Address(text)
    except ipaddress.AddressValueError:
        raise Refused(400, "address is not an IPv4 address") from None
    if address.is_unspecified or address.is_loopback or address.is_multicast or address.is_reserved:
        raise Refused(400, f"no transceiver can have the address {address}")
    return str(address)


def _rate(rate: Rate) -> dict[str, int]:
    return {"packets": rate.packets, "bytes": rate.bytes}


def _vip_text(vips: tuple[Vip, ...], index: int) -> str | None:
    return f"{vips[index].address}:{vips[index].port}" if index < len(vips) else None
