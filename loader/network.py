"""What the kernel knows of links and ways, and word of what changes: the agent's ear at netlink."""

import asyncio
import errno
import logging
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from pyroute2 import AsyncIPRoute
from pyroute2.netlink.exceptions import NetlinkError

from loader.links import Links
from loader.nexthop import EVENTS, Neighbour, Way, neighbour_of, way

__all__ = ["Network", "News"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class News:
    """What changed: whether any link did, the neighbours that did, or whether that is not known
    as some words were *missed*."""

    links: bool = False
    neighbours: frozenset[Neighbour] = frozenset()
    missed: bool = False


class Network:
    """The network namespace that *netlink* was opened in. Questions are asked one by one."""

    def __init__(self, netlink: AsyncIPRoute) -> None:
        self.links = Links()
        """As of the last `look` or `news`."""
        self._netlink = netlink
        self._turn = asyncio.Lock()
        # What nobody has asked about yet.
        self._told = asyncio.Event()
        self._told_of_links: set[int] = set()
        self._told_of_neighbours: set[Neighbour] = set()
        self._missed_some = False

    async def look(self) -> None:
        """Read all links."""
        async with self._turn:
            self.links.replace([message async for message in await self._netlink.get_links()])

    async def way(self, address: str) -> Way | None:
        """The way to an address; see `nexthop`."""
        async with self._turn:
            return await way(self._netlink, self.links, address)

    async def watch(self) -> None:
        """Forever: gather `news`."""
        async with AsyncIPRoute() as events:
            await events.bind(EVENTS)
            self._miss()  # whatever changed before
            while True:
                try:
                    async for message in events.get():  # ends with each message
                        self._tell(message)
                except OSError as error:
                    if error.errno != errno.ENOBUFS:
                        raise
                    self._miss()

    async def news(self, *, within: float) -> News:
        """What has changed since the last call. Waits for it for *within* seconds at most."""
        with suppress(TimeoutError):
            async with asyncio.timeout(within):
                await self._told.wait()
        self._told.clear()
        links, self._told_of_links = self._told_of_links, set()
        neighbours, self._told_of_neighbours = self._told_of_neighbours, set()
        missed, self._missed_some = self._missed_some, False
        changed = [ifindex for ifindex in links if await self._look_at(ifindex)]
        return News(bool(changed), frozenset(neighbours), missed)

    def _tell(self, message: Any) -> None:
        # Of a link, only which: events may be old by the time they are read, or say but half.
        if message["event"] in ("RTM_NEWLINK", "RTM_DELLINK"):
            self._told_of_links.add(message["index"])
        else:
            self._told_of_neighbours.add(neighbour_of(message))
        self._told.set()

    def _miss(self) -> None:
        self._missed_some = True
        self._told.set()

    async def _look_at(self, ifindex: int) -> bool:
        before = self.links.get(ifindex)
        async with self._turn:
            try:
                (message,) = await self._netlink.link("get", index=ifindex)
            except NetlinkError as error:
                log.debug("link %d is gone: %s", ifindex, error)
                self.links.forget(ifindex)
            else:
                self.links.take(message)
        return before != self.links.get(ifindex)
