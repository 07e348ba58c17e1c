"""How soon the maps follow the kernel: a follower at its work, and changes of the network timed
from the system call to the map's entry."""

import asyncio
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute, netns

from loader import types
from loader.carriers import Attachment
from loader.errors import ShuntError
from loader.events import EventLog
from loader.follow import Follower
from loader.maps import Maps
from loader.network import Network
from loader.table import Lease
from tools.netns import create, run_in

__all__ = ["measure"]

_NAMESPACE, _LINK = "bench-follow", "follow0"
_BEHIND = "10.78.0.0/16"  # by a gateway
_GATEWAYS = ("10.77.0.1", "10.77.0.2")
_ON_LINK = "10.77.1.1"
_FIXED = 0x80  # NUD_PERMANENT: whoever had the address, it is there now, and nobody is asked
_STORM_RATE = 10_000  # neighbour events a second
_STORM_BATCH = 1_000
_PATIENCE = 30.0  # seconds, after which a change is taken for lost
_GLANCE = 0.0002  # seconds between looks at the map


def measure(maps: Maps, *, transceivers: int = 1000, rounds: int = 50) -> dict[str, Any]:
    """Milliseconds from a change in the kernel to the map's entry, with so many transceivers, in a
    namespace of its own. The maps are to be nobody else's: their transceivers are overwritten.

    `mac`: one transceiver's MAC, median and worst of *rounds*. `gateway_ms`, `link_ms`,
    `route_ms`: until all transceivers have followed their gateway's MAC, the relay's own MAC, and
    their route to another gateway. `storm`: 10,000 events a second about other neighbours, what
    share of a CPU they cost the follower, and `mac` in their midst. Raises ShuntError if a change
    is not followed.
    """
    with _scene(maps, transceivers) as scene:
        return {
            "transceivers": transceivers,
            "rounds": rounds,
            "mac": _spread(scene.move_one(number) for number in range(rounds)),
            "gateway_ms": scene.move_gateway(),
            "link_ms": scene.change_own_mac(),
            "route_ms": scene.change_route(),
            "storm": scene.storm(rounds),
            "overflows": scene.following.follower.overflows,
        }


def _spread(times: Iterable[float]) -> dict[str, float]:
    milliseconds = list(times)
    return {"median_ms": statistics.median(milliseconds), "worst_ms": max(milliseconds)}


@contextmanager
def _scene(maps: Maps, transceivers: int) -> Iterator["_Scene"]:
    with suppress(FileNotFoundError):  # of a bench that was killed
        netns.remove(_NAMESPACE)
    create(_NAMESPACE)
    try:
        run_in(_NAMESPACE, _lay)
        following = run_in(_NAMESPACE, lambda: _Following(maps, _leases(maps, transceivers)))
        try:
            yield _Scene(maps, following, range(1, transceivers))
        finally:
            following.stop()
            for index in range(transceivers):
                maps.set_transceiver(index, types.Transceiver())
    finally:
        netns.remove(_NAMESPACE)


def _lay() -> None:
    with IPRoute() as netlink:
        netlink.link("add", ifname=_LINK, kind="veth", peer={"ifname": "follow1"})
        for name in (_LINK, "follow1"):
            netlink.link("set", index=netlink.link_lookup(ifname=name)[0], state="up")
        (index,) = netlink.link_lookup(ifname=_LINK)
        netlink.addr("add", index=index, address="10.77.0.254", prefixlen=16)
        netlink.route("add", dst=_BEHIND, gateway=_GATEWAYS[0])
    _put_all()


def _put_all() -> None:
    with IPRoute() as netlink:
        for number, address in enumerate((*_GATEWAYS, _ON_LINK)):
            _put(netlink, address, f"02:00:00:00:00:{number:02x}")


def _put(netlink: IPRoute, address: str, mac: str) -> None:
    (index,) = netlink.link_lookup(ifname=_LINK)
    netlink.neigh("replace", dst=address, lladdr=mac, ifindex=index, state=_FIXED)


def _leases(maps: Maps, count: int) -> list[Lease]:
    """The first transceiver is on the link, the others are behind the gateway."""
    leases = []
    for index in range(count):
        address = f"10.78.{index // 250}.{1 + index % 250}" if index else _ON_LINK
        leases.append(Lease(f"x{index}", index, 1, address, 40000, "", 4, expires=1e9))
        entry = types.Transceiver(address=types.packed_address(address), port=40000)
        maps.set_transceiver(index, entry)
    return leases


class _Following:
    """A follower at its work, in a thread of its own and the namespace of the one that makes it."""

    def __init__(self, maps: Maps, leases: list[Lease]) -> None:
        self._begun = threading.Event()
        self._leases = leases
        self._maps = maps
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))
        self._thread.start()
        if not self._begun.wait(_PATIENCE):
            raise ShuntError("the follower has not begun to follow")

    async def _run(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        with Network() as network:
            await network.look()
            self.follower = Follower(
                *(self._maps, network, EventLog(clock=time.time)),
                leases=lambda: self._leases,
                reattach=_never,
                look_seconds=1e6,
            )
            async with asyncio.TaskGroup() as tasks:
                work = [
                    tasks.create_task(self.follower.follow()),
                    tasks.create_task(self.follower.watch()),
                ]
                while not self._all_resolved():  # noqa: ASYNC110 - the follower does not tell
                    await asyncio.sleep(0.01)
                self._begun.set()
                await self._stop.wait()
                for task in work:
                    task.cancel()

    def _all_resolved(self) -> bool:
        return all(self._maps.transceiver(each.index).resolved for each in self._leases)

    def cpu(self) -> float:
        """Seconds of CPU that it has used."""

        async def read() -> float:
            return time.thread_time()

        return asyncio.run_coroutine_threadsafe(read(), self._loop).result(_PATIENCE)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()


def _never(interface: str) -> Attachment:
    raise ShuntError(f"{interface} is none of this bench's")


@dataclass(frozen=True, slots=True)
class _Scene:
    """What can change, each in milliseconds until it is followed."""

    maps: Maps
    following: _Following
    behind: range

    def move_one(self, number: int) -> float:
        mac = f"02:00:01:00:{number // 256:02x}:{number % 256:02x}"
        return self._until(range(1), "mac", mac, lambda netlink: _put(netlink, _ON_LINK, mac))

    def move_gateway(self) -> float:
        mac = "02:00:02:00:00:00"
        return self._until(
            self.behind, "mac", mac, lambda netlink: _put(netlink, _GATEWAYS[0], mac)
        )

    def change_own_mac(self) -> float:
        mac = "02:00:03:00:00:00"

        def change(netlink: IPRoute) -> None:
            netlink.link("set", index=netlink.link_lookup(ifname=_LINK)[0], address=mac)

        took = self._until(self.behind, "source_mac", mac, change)
        run_in(_NAMESPACE, _put_all)  # with its own MAC the kernel forgets all neighbours' there
        return took

    def change_route(self) -> float:
        def change(netlink: IPRoute) -> None:
            netlink.route("replace", dst=_BEHIND, gateway=_GATEWAYS[1])

        return self._until(self.behind, "mac", "02:00:00:00:00:01", change)

    def storm(self, rounds: int) -> dict[str, Any]:
        over, sent = threading.Event(), [0]
        thread = threading.Thread(target=_blow, args=(over, sent))
        cpu, began = self.following.cpu(), time.perf_counter()
        thread.start()
        try:
            spread = _spread(self.move_one(256 + number) for number in range(rounds))
        finally:
            over.set()
            thread.join()
        lasted = time.perf_counter() - began
        return {
            "events_per_s": sent[0] / lasted,
            "cpu_share": (self.following.cpu() - cpu) / lasted,
            "mac": spread,
        }

    def _until(
        self, indexes: range, which: str, mac: str, change: Callable[[IPRoute], None]
    ) -> float:
        wanted = bytes.fromhex(mac.replace(":", ""))
        began = run_in(_NAMESPACE, lambda: _changed(change))
        waiting = list(indexes)
        while waiting:
            hop = self.maps.transceiver(waiting[-1]).hop
            if bytes(getattr(hop, which)) == wanted:
                waiting.pop()
                continue
            if time.perf_counter() > began + _PATIENCE:
                raise ShuntError(
                    f"the map has not followed within {_PATIENCE:.0f} s: {which} {mac}"
                )
            time.sleep(_GLANCE)
        return 1000 * (time.perf_counter() - began)


def _changed(change: Callable[[IPRoute], None]) -> float:
    """Make it; when that began."""
    with IPRoute() as netlink:
        began = time.perf_counter()
        change(netlink)
    return began


def _blow(over: threading.Event, sent: list[int]) -> None:
    """Events about neighbours that are on nobody's way, until *over*, counted in *sent*."""
    lines = (
        f"neigh replace 10.77.200.{number % 100} lladdr 02:00:05:00:{number // 100:02x}:00 "
        f"dev {_LINK} nud permanent\n"
        for number in range(_STORM_BATCH)
    )
    with tempfile.TemporaryDirectory() as folder:
        batch = Path(folder) / "batch"
        batch.write_text("".join(lines))
        began = time.perf_counter()
        while not over.is_set():
            subprocess.run(["ip", "-n", _NAMESPACE, "-b", str(batch)], check=True)
            sent[0] += _STORM_BATCH
            over.wait(max(0.0, began + sent[0] / _STORM_RATE - time.perf_counter()))
