"""The maps follow the network: next hops to transceivers, and the relay's own interfaces."""

import ctypes
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import replace

from loader import types
from loader.datapath import Attachment
from loader.events import EventLog
from loader.maps import Interface, Maps
from loader.network import Network, News
from loader.nexthop import NextHop, Way
from loader.table import Lease

__all__ = ["Follower"]

log = logging.getLogger(__name__)

_RETRY_SECONDS = 1.0  # for transceivers whose MAC address the kernel does not know yet
_LOOK_SECONDS = 15.0  # for what no event tells of: routes, and programs attached by other means


class Follower:
    """Keeps the maps' next hops and interfaces as the kernel's are. *leases*: those to follow;
    *inside*: interfaces by which transceivers' packets may come in. `clock` gives monotonic
    seconds."""

    def __init__(
        self,
        maps: Maps,
        network: Network,
        events: EventLog,
        *,
        leases: Callable[[], Iterable[Lease]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._maps = maps
        self._network = network
        self._events = events
        self._leases = leases
        self._clock = clock
        self._interfaces: list[Interface] = []
        self._ways: dict[str, Way] = {}  # by transceiver's id
        self.turned = clock()
        """When `follow` last came round; it does so once a second."""

    @property
    def interfaces(self) -> list[Interface]:
        """The relay's interfaces, as they were last seen."""
        return self._interfaces

    def begin(self, attachments: Iterable[Attachment], *, inside: Iterable[str]) -> None:
        """Write the interfaces that carry the program into the map."""
        self._interfaces = [
            Interface(
                name=attachment.interface,
                ifindex=attachment.ifindex,
                inside=attachment.interface in inside,
                mode=attachment.mode,
                vlan=attachment.vlan,
                mtu=attachment.mtu,
            )
            for attachment in attachments
        ]
        self._maps.set_interfaces(self._interfaces)

    def not_ready(self) -> str | None:
        """Why the relay cannot do its work, or None if it can."""
        for interface in self._interfaces:
            if interface.mode is types.Mode.DETACHED:
                return f"{interface.name} no longer carries the XDP program"
        return None

    def forget(self, lease: Lease) -> None:
        """The transceiver is gone."""
        self._ways.pop(lease.id, None)

    async def watch(self) -> None:
        """Forever: hear what changes, for `follow`."""
        await self._network.watch()

    async def follow(self) -> None:
        """Forever: keep the maps' next hops and interfaces as the kernel's are."""
        look_at = self._clock()
        news = News()
        while True:
            if news.missed or self._clock() >= look_at:
                look_at = self._clock() + _LOOK_SECONDS
                await self._network.look()
                self._ways.clear()
            self._follow_interfaces()
            for lease in self._leases():
                found = self._ways.get(lease.id)
                if (
                    news.links
                    or found is None
                    or not found.hop
                    or found.neighbour in news.neighbours
                ):
                    await self.resolve(lease)
            self.turned = self._clock()
            news = await self._network.news(within=_RETRY_SECONDS)

    def _follow_interfaces(self) -> None:
        found = [self._as_it_is(interface) for interface in self._interfaces]
        if found != self._interfaces:
            log.warning(
                "interfaces are now: %s",
                ", ".join(f"{i.name} {i.mode.name.lower()}, MTU {i.mtu}" for i in found),
            )
            self._interfaces = found
            self._maps.set_interfaces(found)

    def _as_it_is(self, interface: Interface) -> Interface:
        links = self._network.links
        link, carrier = links.named(interface.name), (interface.ifindex, interface.vlan)
        if link is None or links.carrier(link.ifindex) != carrier:
            return replace(interface, mode=types.Mode.DETACHED)
        below = links.get(interface.ifindex)
        assert below is not None
        return replace(interface, mode=below.mode, mtu=link.mtu)

    async def resolve(self, lease: Lease) -> None:
        found = await self._network.way(lease.address)
        entry = self._maps.transceiver(lease.index)
        # The entry may have come to another transceiver, or to none, while the kernel was asked.
        if bytes(entry.address) != bytes(types.packed_address(lease.address)):
            return
        if found is None:
            self._ways.pop(lease.id, None)
            return
        self._ways[lease.id] = found
        # The last next hop stands while the kernel knows none: better than none at all.
        if found.hop is None:
            return
        hop = _packed(found.hop)
        if entry.resolved and bytes(entry.hop) == bytes(hop):
            return
        entry.hop, entry.resolved = hop, 1
        self._maps.set_transceiver(lease.index, entry)
        log.info("transceiver %s is at %s", lease.id, found.hop.mac.hex(":"))


def _packed(hop: NextHop) -> types.NextHop:
    packed = types.NextHop(ifindex=hop.ifindex, vlan=hop.vlan, mtu=hop.mtu)
    ctypes.memmove(packed.mac, hop.mac, len(hop.mac))
    ctypes.memmove(packed.source_mac, hop.source_mac, len(hop.source_mac))
    return packed
