"""What an agent is told when it starts, and what of it cannot work. No I/O."""

import ipaddress
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import TypeVar

from loader import types
from loader.addresses import HostAddress, endpoint, host_address
from loader.client import DEFAULT_SOCKET, Vip
from loader.errors import ShuntError
from loader.maps import DEFAULT_PINS

__all__ = ["AgentConfig", "InsideEntry", "outdated"]

T = TypeVar("T", bound=Hashable)


@dataclass(frozen=True, slots=True)
class InsideEntry:
    """An inside address, or one of each family, which share 65,536 slots."""

    ipv4: str | None
    ipv6: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentConfig:
    """How a relay host is set up.

    *public* and *inside* are interfaces; one may be both, and any may be an 802.1Q VLAN interface.
    *vips* and *inside_addresses* are IPv4 and IPv6, in any order; the first inside address of each
    family share their slots, then the second of each, and so on. Ports *first_port* to
    *last_port* of the inside addresses are slots; by default they lie below the kernel's own
    ephemeral ports. *uids* may use the socket, besides root and the agent's own.
    """

    public: tuple[str, ...]
    inside: tuple[str, ...]
    vips: tuple[Vip, ...]
    inside_addresses: tuple[str, ...]
    socket: Path = Path(DEFAULT_SOCKET)
    pins: Path = DEFAULT_PINS
    first_port: int = 10000
    last_port: int = 32767
    uids: frozenset[int] = field(default_factory=frozenset)

    def __post_init__(self) -> None:
        """Write addresses in one way only. Raises ShuntError for what cannot work."""
        if not self.public or not self.inside:
            raise ShuntError("the relay needs a public and an inside interface")
        if len(self.interfaces) > types.INTERFACES:
            raise ShuntError(f"the relay takes at most {types.INTERFACES} interfaces")
        if not 1 <= len(self.vips) <= types.VIPS:
            raise ShuntError(f"the relay takes 1 to {types.VIPS} VIPs")
        if not all(1 <= vip.port <= 65535 for vip in self.vips):
            raise ShuntError("a VIP's port is 1 to 65535")
        if not 1024 <= self.first_port <= self.last_port <= 65535:
            raise ShuntError("the inside ports must be a range within 1024 to 65535")
        vips = tuple(Vip(_canonical("VIP", vip.address), vip.port) for vip in self.vips)
        inside = tuple(_canonical("inside address", text) for text in self.inside_addresses)
        object.__setattr__(self, "vips", vips)
        object.__setattr__(self, "inside_addresses", inside)
        self._check_vips()
        self._check_inside()

    def _check_vips(self) -> None:
        if twice := _twice((vip.address, vip.port) for vip in self.vips):
            raise ShuntError(f"the VIP {endpoint(*twice)} is given twice")
        for vip in self.vips:
            if (
                vip.address in self.inside_addresses
                and self.first_port <= vip.port <= self.last_port
            ):
                raise ShuntError(
                    f"the VIP {endpoint(vip.address, vip.port)} is among the inside ports "
                    f"{self.first_port}-{self.last_port} of the same address",
                    "Choose other --inside-ports, or another VIP port.",
                )

    def _check_inside(self) -> None:
        if not self.inside_addresses:
            raise ShuntError("the relay needs an inside address")
        if twice := _twice(self.inside_addresses):
            raise ShuntError(f"the inside address {twice} is given twice")
        ipv4, ipv6 = self._inside(4), self._inside(6)
        if ipv4 and ipv6 and len(ipv4) != len(ipv6):
            raise ShuntError(
                f"there are {len(ipv4)} inside IPv4 addresses, but {len(ipv6)} inside IPv6 ones",
                "They share slots pair by pair: give as many of each family, or of one only.",
            )
        if max(len(ipv4), len(ipv6)) > types.INSIDE_ADDRESSES:
            raise ShuntError(
                f"the relay takes at most {types.INSIDE_ADDRESSES} inside addresses of a family"
            )

    @property
    def interfaces(self) -> list[str]:
        """Every interface once, the public ones first."""
        return list(dict.fromkeys(self.public + self.inside))

    @property
    def inside_entries(self) -> tuple[InsideEntry, ...]:
        """The inside addresses as they share slots: 65,536 for each entry."""
        pairs = zip_longest(self._inside(4), self._inside(6))
        return tuple(InsideEntry(ipv4, ipv6) for ipv4, ipv6 in pairs)

    def why_not_transceiver(self, address: HostAddress) -> str | None:
        """Why no transceiver of this relay can have the address, or None if one can: the rest of
        a sentence that begins with the address."""
        text = str(address)
        if text in self.inside_addresses or any(vip.address == text for vip in self.vips):
            return "is the relay's own: give the transceiver's"
        if not self._inside(address.version):
            has = 10 - address.version
            return (
                f"is IPv{address.version}, but the relay has no such inside address: "
                f"give an IPv{has} one, or add an --inside-address"
            )
        return None

    def settings(self, inside_links: Iterable[tuple[int, int]]) -> types.Settings:
        """What the program reads of this. *inside_links*: ifindex and VLAN of the links by which
        transceivers' packets may come in."""
        settings = types.Settings(first_port=self.first_port, last_port=self.last_port)
        for index, vip in enumerate(self.vips):
            settings.vips[index] = types.Vip(types.packed_address(vip.address), vip.port, index)
        for index, entry in enumerate(self.inside_entries):
            inside = settings.inside[index]
            inside.first_slot, inside.used = index << types.PORT_BITS, 1
            if entry.ipv4:
                inside.ipv4 = types.packed_address(entry.ipv4)
            if entry.ipv6:
                inside.ipv6 = types.packed_address(entry.ipv6)
        for index, (ifindex, vlan) in enumerate(inside_links):
            settings.inside_links[index] = types.Link(ifindex, vlan)
        return settings

    def _inside(self, version: int) -> list[str]:
        return [
            text for text in self.inside_addresses if ipaddress.ip_address(text).version == version
        ]


def outdated(before: types.Settings, after: types.Settings) -> tuple[list[int], list[int]]:
    """VIPs and inside entries, by index, whose flows cannot go on: what a slot adds to checksums
    was worked out for the addresses that it was opened with."""
    vips = [
        index
        for index, (old, new) in enumerate(zip(before.vips, after.vips, strict=True))
        if old.port and bytes(old) != bytes(new)
    ]
    entries = [
        index
        for index, (old, new) in enumerate(zip(before.inside, after.inside, strict=True))
        if any(
            any(had) and bytes(had) != bytes(has)
            for had, has in ((old.ipv4, new.ipv4), (old.ipv6, new.ipv6))
        )
    ]
    return vips, entries


def _canonical(what: str, text: str) -> str:
    try:
        return str(host_address(text))
    except ValueError as why:
        raise ShuntError(f"the {what} {text} {why}") from None


def _twice(things: Iterable[T]) -> T | None:
    """The first of them that was there before."""
    seen = set()
    for thing in things:
        if thing in seen:
            return thing
        seen.add(thing)
    return None
