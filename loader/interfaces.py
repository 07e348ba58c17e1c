"""The relay's own interfaces: whether they carry the program and can be used, and the program put
back on those that have lost it."""

import asyncio
import logging
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import Enum

from loader import types
from loader.carriers import Attachment, program_name
from loader.errors import ShuntError
from loader.events import EventLog
from loader.links import Links
from loader.maps import Interface, Maps
from loader.network import Network

__all__ = ["Interfaces", "Patience", "State", "Trouble", "trouble"]

log = logging.getLogger(__name__)

_FIRST_WAIT, _LONGEST_WAIT = 1.0, 64.0
_XDP_OFF = {
    types.Mode.NATIVE: "xdpdrv",
    types.Mode.GENERIC: "xdpgeneric",
    types.Mode.OFFLOADED: "xdpoffload",
}


class State(Enum):
    """How an interface of the relay is."""

    WORKING = "working"
    GONE = "gone"
    UNUSABLE = "unusable"
    LOST_PROGRAM = "lost_program"
    OTHER_PROGRAM = "other_program"
    DOWN = "down"
    NO_CARRIER = "no_carrier"


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why an interface does not do its work, and the *cure*: what a person can do about it."""

    state: State
    what: str
    cure: str


def trouble(links: Links, interface: Interface, program: int) -> Trouble | None:
    """What keeps an interface from relaying, if it is to carry that *program* (its id)."""
    name, link = interface.name, links.named(interface.name)
    if link is None:
        return Trouble(
            State.GONE, f"{name} is gone", f"make the interface again; {_restart(name, 'it')}"
        )
    carrier = links.carrier(link.ifindex)
    below = links.get(carrier[0]) if carrier else None
    if below is None:
        return Trouble(
            State.UNUSABLE,
            f"{name} is a VLAN interface that the relay has no tag for",
            "the relay knows 802.1Q tags (0x8100) only, on an interface of this namespace",
        )
    if below.mode is types.Mode.DETACHED:
        return Trouble(
            State.LOST_PROGRAM,
            f"{name} no longer carries the XDP program",
            _restart(name, "the interface"),
        )
    if below.program != program:
        return Trouble(
            State.OTHER_PROGRAM,
            f"{name} carries another XDP program: {_called(below.program)}",
            f"take it off (`ip link set dev {below.name} {_XDP_OFF[below.mode]} off`); "
            + _restart(name, "the interface"),
        )
    if not (link.up and below.up):
        return Trouble(State.DOWN, f"{name} is down", f"`ip link set dev {name} up`")
    if not link.running:
        return Trouble(
            State.NO_CARRIER, f"{name} has no carrier", "look at the cable and its other end"
        )
    return None


def _restart(name: str, what: str) -> str:
    return (
        f"`systemctl restart shunt-agent` puts the program on {what}, "
        "as the agent does by itself with `reattach = true`"
    )


def _called(program: int) -> str:
    name = program_name(program)
    return f"{name} (id {program})" if name else f"id {program}"


class Patience:
    """When to try again what may be undone again: at once, then after 1 s, and after twice as
    long each time; at once again when it has lasted as long as the next wait would have been.
    Times are seconds of any clock."""

    def __init__(self) -> None:
        self.at = 0.0
        """Not before."""
        self._wait = 0.0

    def tried(self, now: float) -> None:
        """It was tried just now."""
        lasted = now - self.at
        calm = not self._wait or lasted > 2 * self._wait
        self._wait = _FIRST_WAIT if calm else min(2 * self._wait, _LONGEST_WAIT)
        self.at = now + self._wait


class Interfaces:
    """Keeps the map's word on the relay's interfaces true. *reattach* puts the program on one that
    carries none, and is called in a thread, if *mending*. *clock* gives monotonic seconds."""

    def __init__(
        self,
        maps: Maps,
        network: Network,
        events: EventLog,
        *,
        reattach: Callable[[str], Attachment],
        mending: bool,
        clock: Callable[[], float],
    ) -> None:
        self._maps = maps
        self._network = network
        self._events = events
        self._reattach = reattach
        self._mending = mending
        self._clock = clock
        self._program = 0
        self._interfaces: list[Interface] = []
        self._troubles: dict[str, Trouble] = {}
        self._patience: dict[str, Patience] = {}
        self._changed = asyncio.Event()
        self.mended = 0
        """How often the program was put back."""

    @property
    def interfaces(self) -> list[Interface]:
        """As they were last seen."""
        return self._interfaces

    @property
    def states(self) -> dict[str, State]:
        """How each of them is, by name."""
        return {
            each.name: t.state if (t := self._troubles.get(each.name)) else State.WORKING
            for each in self._interfaces
        }

    @property
    def troubles(self) -> list[Trouble]:
        """Of those that do not do their work."""
        return list(self._troubles.values())

    @property
    def mending(self) -> bool:
        """Whether the program is put back where it was lost."""
        return self._mending

    @mending.setter
    def mending(self, mending: bool) -> None:
        self._mending = mending
        self._changed.set()

    def begin(self, attachments: Iterable[Attachment], *, inside: Iterable[str]) -> None:
        """Write the interfaces that carry the program into the map."""
        inside = frozenset(inside)
        self._interfaces = []
        for attachment in attachments:
            self._program = attachment.program
            self._interfaces.append(
                Interface(
                    name=attachment.interface,
                    ifindex=attachment.ifindex,
                    inside=attachment.interface in inside,
                    mode=attachment.mode,
                    vlan=attachment.vlan,
                    mtu=attachment.mtu,
                )
            )
        self._maps.set_interfaces(self._interfaces)

    def follow(self) -> None:
        """Take over how the network's links are now."""
        found = [self._as_it_is(interface) for interface in self._interfaces]
        if found != self._interfaces:
            log.info(
                "interfaces are now: %s",
                ", ".join(f"{i.name} {i.mode.name.lower()}, MTU {i.mtu}" for i in found),
            )
            self._interfaces = found
            self._maps.set_interfaces(found)
        self._write_settings()
        for interface in found:
            self._judge(interface)

    async def mend(self) -> None:
        """Forever: put the program back where it was lost, unless another is there."""
        while True:
            self._changed.clear()
            lost = [
                name
                for name, trouble in self._troubles.items()
                if self._mending and trouble.state is State.LOST_PROGRAM
            ]
            now = self._clock()
            for name in lost:
                patience = self._patience.setdefault(name, Patience())
                if now >= patience.at:
                    patience.tried(now)
                    await self._mend(name)
            waits = [self._patience[name].at - now for name in lost]
            with suppress(TimeoutError):
                async with asyncio.timeout(min(waits, default=None)):
                    await self._changed.wait()

    async def _mend(self, name: str) -> None:
        try:
            attachment = await asyncio.to_thread(self._reattach, name)
        except ShuntError as error:
            log.warning("the XDP program cannot be put back: %s: %s", error.what, error.cure)
            return
        self.mended += 1
        why = f" ({attachment.why})" if attachment.why else ""
        log.warning("the XDP program is back on %s: %s%s", name, attachment.mode.name.lower(), why)
        self._network.look_at(attachment.ifindex)
        self.follow()

    def _as_it_is(self, interface: Interface) -> Interface:
        links = self._network.links
        link = links.named(interface.name)
        carrier = links.carrier(link.ifindex) if link else None
        below = links.get(carrier[0]) if carrier else None
        if link is None or carrier is None or below is None:
            return replace(interface, mode=types.Mode.DETACHED)
        mode = below.mode if below.program == self._program else types.Mode.DETACHED
        return replace(interface, ifindex=carrier[0], vlan=carrier[1], mode=mode, mtu=link.mtu)

    def _write_settings(self) -> None:
        """Whose packets come from the inside. An interface that is gone is none of them: another
        may come to its number."""
        links = self._network.links
        there = [each for each in self._interfaces if links.named(each.name)]
        settings = self._maps.settings()
        before = bytes(settings)
        inside = [(each.ifindex, each.vlan) for each in there if each.inside]
        for index in range(types.INTERFACES):
            link = inside[index] if index < len(inside) else (0, 0)
            settings.inside_links[index] = types.Link(*link)
        veths = (links.get(each.ifindex) for each in there)
        settings.no_tx = any(link is not None and link.veth for link in veths)
        if bytes(settings) != before:
            self._maps.configure(settings)

    def _judge(self, interface: Interface) -> None:
        name = interface.name
        before = self._troubles.get(name)
        now = trouble(self._network.links, interface, self._program)
        if now:
            self._troubles[name] = now
        else:
            self._troubles.pop(name, None)
        if before == now:
            return
        self._changed.set()
        if now:
            log.warning("%s: %s", now.what, now.cure)
        else:
            log.warning("%s works again", name)
        self._events.tell(
            "interface_changed",
            interface=name,
            state=(now.state if now else State.WORKING).value,
            mode=interface.mode.name.lower(),
            why=now.what if now else None,
        )
