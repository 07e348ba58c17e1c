"""The maps follow the network: next hops to transceivers, the relay's own interfaces, addresses."""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping

from loader.carriers import Attachment
from loader.events import EventLog
from loader.interfaces import Interfaces, State
from loader.links import Link
from loader.maps import Interface, Maps
from loader.network import EVERYWHERE, Change, Network, News
from loader.own_addresses import OwnAddresses
from loader.pace import Pace
from loader.table import Lease
from loader.ways import Ways

__all__ = ["Follower"]

log = logging.getLogger(__name__)

_TURN_SECONDS = 1.0
_LOOK_SECONDS = 15.0  # between looks for what no event tells of
_IN_TURN = 256  # transceivers that each look is for
_AT_ONCE = 64  # of them or their neighbours, before others on the loop have their turn


class Follower:
    """Keeps the maps' next hops and interfaces as the kernel's are. *leases*: those to follow;
    *addresses*: the relay's own, with the interface that each belongs on; *reattach* and
    *mending*: see `Interfaces`; *look_seconds* between looks for what no event tells of. `clock`
    gives monotonic seconds."""

    def __init__(
        self,
        maps: Maps,
        network: Network,
        events: EventLog,
        *,
        leases: Callable[[], Iterable[Lease]],
        addresses: Mapping[str, str] | None = None,
        reattach: Callable[[str], Attachment],
        mending: bool = False,
        look_seconds: float = _LOOK_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._network = network
        self._leases = leases
        self._look_seconds = look_seconds
        self._clock = clock
        self.turned = clock()
        """When `follow` last came round; it does so once a second."""
        self.looks = 0
        """How often everything was looked at, since it was not known what had changed."""
        self._interfaces = Interfaces(
            maps, network, events, reattach=reattach, mending=mending, clock=clock
        )
        self._addresses = OwnAddresses(network, events, addresses or {})
        self._ways = Ways(maps, network, events)

    # What there is to see.

    @property
    def interfaces(self) -> list[Interface]:
        """The relay's interfaces, as they were last seen."""
        return self._interfaces.interfaces

    @property
    def interface_states(self) -> dict[str, State]:
        """How each of them is, by name."""
        return self._interfaces.states

    @property
    def addresses(self) -> dict[str, bool]:
        """The relay's own addresses: whether the kernel has them."""
        return self._addresses.present

    @property
    def unreachable(self) -> dict[str, str]:
        """By id, the transceivers that there is no way to, and why."""
        return self._ways.unreachable

    @property
    def reattached(self) -> int:
        """How often the program was put back on an interface that had lost it."""
        return self._interfaces.mended

    @property
    def overflows(self) -> int:
        """How often the kernel told of more changes than could be read; all was looked at then."""
        return self._network.overflows

    def not_ready(self) -> str | None:
        """Why the relay cannot do its work and what to do about it, or None if it can."""
        for trouble in self._interfaces.troubles:
            return f"{trouble.what}: {trouble.cure}"
        for address in self._addresses.lost:
            return f"the kernel has lost {address}: {self._addresses.cure(address)}"
        return None

    # What is done.

    def mend(self, mending: bool) -> None:
        """From now on, put the program back where it was lost, or leave that to people."""
        self._interfaces.mending = mending

    def begin(self, attachments: Iterable[Attachment], *, inside: Iterable[str]) -> None:
        """Write the interfaces that carry the program into the map."""
        self._interfaces.begin(attachments, inside=inside)
        self._addresses.begin()

    def resolve(self, lease: Lease) -> None:
        """A transceiver is there: write its next hop, if the kernel knows it."""
        try:
            self._ways.follow(lease)
        except OSError as error:  # it has no memory; at the next look there is another try
            log.warning("the kernel does not say where %s is: %s", lease.id, error)

    def forget(self, lease: Lease) -> None:
        """The transceiver is gone."""
        self._ways.forget(lease)

    async def watch(self) -> None:
        """Forever: hear what changes, for `follow`."""
        await self._network.watch()

    async def follow(self) -> None:
        """Forever: keep the maps' next hops and interfaces as the kernel's are."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._interfaces.mend())
            tasks.create_task(self._follow())

    async def _follow(self) -> None:
        pace, others_left = Pace(), True
        look_at = self._clock() + self._look_seconds
        while True:
            # The first that `watch` says is that all of it is unknown.
            within = min(look_at - self._clock(), _TURN_SECONDS)
            within = 0.0 if self._ways.due else max(0.0, within)
            try:
                news = await self._network.news(within=within)
                self.turned = self._clock()
                began = time.perf_counter()
                if news.missed or self._clock() >= look_at:
                    look_at = self._clock() + self._look_seconds
                    await self._look(everything=news.missed)
                self._take(news)
                self._ways.work(_AT_ONCE)
                if others_left and self.looks and not self._ways.due:
                    self._ways.release_others()
                    others_left = False
            except OSError as error:  # it has no memory
                log.warning("the kernel does not say what has changed: %s", error)
                self._network.miss()
                await asyncio.sleep(_TURN_SECONDS)
            else:
                await asyncio.sleep(pace.rest(began=began, ended=time.perf_counter()))

    async def _look(self, *, everything: bool) -> None:
        self.looks += everything
        self._take_links(await self._network.look())
        self._interfaces.follow()
        self._addresses.follow([EVERYWHERE])
        self._ways.expect(self._leases())
        if everything:
            self._ways.all_may_have_changed()
        else:
            self._ways.some_in_turn(_IN_TURN)

    def _take(self, news: News) -> None:
        if news.links:
            self._interfaces.follow()
        self._take_links(news.links)
        for ifindex in news.exits:
            self._ways.exit_changed(ifindex)
        self._ways.routes_changed(news.spans)
        self._ways.neighbours_changed(news.neighbours)
        self._addresses.follow([EVERYWHERE] if news.links or news.exits else news.spans)

    def _take_links(self, links: Mapping[int, Change]) -> None:
        for ifindex, (before, after) in links.items():
            if _runs(before) == _runs(after):
                self._ways.link_changed(ifindex)
                continue
            self._ways.exit_changed(ifindex)
            if _runs(after):
                self._ways.exit_opened(ifindex)


def _runs(link: Link | None) -> bool:
    return link is not None and link.up and link.running
