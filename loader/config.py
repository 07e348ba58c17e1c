"""What an agent is told when it starts, and what of it cannot work. No I/O.

How it is written, in a file, in the environment or as options, is `configfile`'s.
"""

import ipaddress
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import TypeVar

from loader import types
from loader.addresses import HostAddress, Prefix, endpoint, host_address, prefix
from loader.client import DEFAULT_SOCKET, Vip
from loader.errors import ShuntError
from loader.maps import DEFAULT_PINS
from loader.problems import Refused

__all__ = [
    "LOG_FORMATS",
    "LOG_LEVELS",
    "ROUTES_LIMIT",
    "AgentConfig",
    "Impossible",
    "InsideEntry",
    "Problem",
    "TcpConfig",
    "outdated",
]

T = TypeVar("T", bound=Hashable)

LOG_LEVELS = ("debug", "info", "warning", "error")
LOG_FORMATS = ("text", "json")
ROUTES_LIMIT = 1 << 20
"""No relay holds more routes than this, so no transceiver's quota is above it."""


@dataclass(frozen=True, slots=True)
class Problem:
    """What cannot work, and the *cure*. *field* is the one to change (`vips`, `tcp.certificate`),
    *place* the element of it, if it is one element's fault."""

    what: str
    cure: str = ""
    field: str = ""
    place: int | None = None


class Impossible(ShuntError):
    """A configuration that cannot work, with every problem that it has."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__(
            "; ".join(problem.what for problem in self.problems),
            "\n".join(problem.cure for problem in self.problems if problem.cure),
        )


@dataclass(frozen=True, slots=True)
class InsideEntry:
    """An inside address, or one of each family, which share 65,536 slots."""

    ipv4: str | None
    ipv6: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TcpConfig:
    """The API over TCP, besides the Unix socket: where it listens, the file with the bearer tokens
    that it asks for, and the PEM files of TLS. Without TLS only on a loopback address, as the
    token would be anybody's on the way; or with *plaintext*, where nobody is on the way."""

    address: str
    port: int
    token_file: Path
    certificate: Path | None = None
    key: Path | None = None
    plaintext: bool = False

    def problems(self) -> Iterator[Problem]:
        """Why it cannot work."""
        try:
            address = ipaddress.ip_address(self.address)
        except ValueError:
            yield Problem(
                f"the API's address {self.address} is no IP address",
                "Give an IPv4 or IPv6 address of this host.",
                "tcp.address",
            )
            return
        if not 1 <= self.port <= 65535:
            yield Problem("the API's port is 1 to 65535", field="tcp.port")
        if (self.certificate is None) != (self.key is None):
            has, lacks = ("key", "certificate") if self.key else ("certificate", "key")
            yield Problem(
                f"the API has a TLS {has}, but no {lacks}", "Give both, or none.", f"tcp.{has}"
            )
        elif self.certificate is None and not (address.is_loopback or self.plaintext):
            yield Problem(
                f"the API would send its token in the clear: {self.address} is not a loopback "
                "address",
                "Give a TLS certificate and key, listen on 127.0.0.1 or [::1], or say `plaintext` "
                "if nobody else is on that network.",
                "tcp.address",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentConfig:
    """How a relay host is set up.

    *public* and *inside* are interfaces; one may be both, and any may be an 802.1Q VLAN interface.
    *vips* and *inside_addresses* are IPv4 and IPv6, in any order; the first inside address of each
    family share their slots, then the second of each, and so on. Ports *first_port* to
    *last_port* of the inside addresses are slots; by default they lie below the kernel's own
    ephemeral ports. With *reattach*, the program is put back on an interface that has lost it.
    *uids* may use the socket, besides root and the agent's own. Transceivers' addresses are in
    one of *transceiver_prefixes*, if there are any, and none holds more than *max_routes* routes.
    *config_file* is where this was read from, if it was.
    """

    public: tuple[str, ...]
    inside: tuple[str, ...]
    vips: tuple[Vip, ...]
    inside_addresses: tuple[str, ...]
    socket: Path = Path(DEFAULT_SOCKET)
    pins: Path = DEFAULT_PINS
    first_port: int = 10000
    last_port: int = 32767
    reattach: bool = False
    uids: frozenset[int] = field(default_factory=frozenset)
    tcp: TcpConfig | None = None
    transceiver_prefixes: tuple[str, ...] = ()
    max_routes: int = 8192
    log_level: str = "info"
    log_format: str = "text"
    config_file: Path | None = None
    _prefixes: tuple[Prefix, ...] = field(init=False, repr=False, compare=False, default=())

    def __post_init__(self) -> None:
        """Write addresses in one way only. Raises Impossible for what cannot work."""
        problems: list[Problem] = []
        vips, inside, prefixes = [], [], []
        for place, vip in enumerate(self.vips):
            try:
                vips.append(Vip(str(host_address(vip.address)), vip.port))
            except ValueError as why:
                problems.append(Problem(f"the VIP {vip.address} {why}", "", "vips", place))
                vips.append(vip)
        for place, text in enumerate(self.inside_addresses):
            try:
                inside.append(str(host_address(text)))
            except ValueError as why:
                what = f"the inside address {text} {why}"
                problems.append(Problem(what, "", "inside_addresses", place))
                inside.append(text)
        for place, text in enumerate(self.transceiver_prefixes):
            try:
                prefixes.append(prefix(text))
            except ValueError as why:
                what = f"the prefix {text} {why}"
                problems.append(Problem(what, "", "transceiver_prefixes", place))
        object.__setattr__(self, "vips", tuple(vips))
        object.__setattr__(self, "inside_addresses", tuple(inside))
        object.__setattr__(self, "_prefixes", tuple(prefixes))
        malformed = {problem.field for problem in problems}
        for problem in self._problems():
            if problem.field not in malformed:  # whose consequences would only be noise
                problems.append(problem)
        if problems:
            raise Impossible(problems)
        object.__setattr__(self, "transceiver_prefixes", tuple(map(str, prefixes)))

    def _problems(self) -> Iterator[Problem]:
        for name in ("public", "inside"):
            interfaces = getattr(self, name)
            if not interfaces:
                article = "an" if name == "inside" else "a"
                yield Problem(f"the relay needs {article} {name} interface", "", name)
        if len(self.interfaces) > types.INTERFACES:
            yield Problem(f"the relay takes at most {types.INTERFACES} interfaces", "", "inside")
        yield from self._problems_of_ports()
        yield from self._problems_of_vips()
        yield from self._problems_of_inside()
        yield from self._problems_of_transceivers()
        if self.tcp:
            yield from self.tcp.problems()
        if self.log_level not in LOG_LEVELS:
            yield Problem(f"a log level is one of {', '.join(LOG_LEVELS)}", "", "log_level")
        if self.log_format not in LOG_FORMATS:
            yield Problem(f"a log format is one of {', '.join(LOG_FORMATS)}", "", "log_format")

    def _problems_of_ports(self) -> Iterator[Problem]:
        if not 1024 <= self.first_port <= self.last_port <= 65535:
            what = "the inside ports must be a range within 1024 to 65535"
            yield Problem(what, field="first_port")

    def _problems_of_vips(self) -> Iterator[Problem]:
        if not 1 <= len(self.vips) <= types.VIPS:
            yield Problem(f"the relay takes 1 to {types.VIPS} VIPs", field="vips")
        for place in _repeated((vip.address, vip.port) for vip in self.vips):
            vip = self.vips[place]
            what = f"the VIP {endpoint(vip.address, vip.port)} is given twice"
            yield Problem(what, "", "vips", place)
        for place, vip in enumerate(self.vips):
            if not 1 <= vip.port <= 65535:
                yield Problem("a VIP's port is 1 to 65535", "", "vips", place)
            elif (
                vip.address in self.inside_addresses
                and self.first_port <= vip.port <= self.last_port
            ):
                yield Problem(
                    f"the VIP {endpoint(vip.address, vip.port)} is among the inside ports "
                    f"{self.first_port}-{self.last_port} of the same address",
                    "Choose other inside ports, or another VIP port.",
                    "vips",
                    place,
                )

    def _problems_of_inside(self) -> Iterator[Problem]:
        if not self.inside_addresses:
            yield Problem("the relay needs an inside address", field="inside_addresses")
        for place in _repeated(self.inside_addresses):
            what = f"the inside address {self.inside_addresses[place]} is given twice"
            yield Problem(what, "", "inside_addresses", place)
        ipv4, ipv6 = self._inside(4), self._inside(6)
        if ipv4 and ipv6 and len(ipv4) != len(ipv6):
            yield Problem(
                f"there are {len(ipv4)} inside IPv4 addresses, but {len(ipv6)} inside IPv6 ones",
                "They share slots pair by pair: give as many of each family, or of one only.",
                "inside_addresses",
            )
        if max(len(ipv4), len(ipv6)) > types.INSIDE_ADDRESSES:
            yield Problem(
                f"the relay takes at most {types.INSIDE_ADDRESSES} inside addresses of a family",
                field="inside_addresses",
            )

    def _problems_of_transceivers(self) -> Iterator[Problem]:
        for place in _repeated(self._prefixes):
            what = f"the prefix {self._prefixes[place]} is given twice"
            yield Problem(what, "", "transceiver_prefixes", place)
        for place, allowed in enumerate(self._prefixes):
            if self.inside_addresses and not self._inside(allowed.version):
                yield Problem(
                    f"the prefix {allowed} is IPv{allowed.version}, but the relay has no such "
                    "inside address",
                    "No transceiver in it could be reached: add such an address, or leave it out.",
                    "transceiver_prefixes",
                    place,
                )
        if not 1 <= self.max_routes <= ROUTES_LIMIT:
            what = f"a transceiver's routes are limited to 1 to {ROUTES_LIMIT}"
            yield Problem(what, field="max_routes")

    @property
    def interfaces(self) -> list[str]:
        """Every interface once, the public ones first."""
        return list(dict.fromkeys(self.public + self.inside))

    @property
    def own_addresses(self) -> dict[str, str]:
        """The relay's addresses, each with an interface where the kernel may have it."""
        vips = dict.fromkeys((vip.address for vip in self.vips), self.public[0])
        return dict.fromkeys(self.inside_addresses, self.inside[0]) | vips

    @property
    def inside_entries(self) -> tuple[InsideEntry, ...]:
        """The inside addresses as they share slots: 65,536 for each entry."""
        pairs = zip_longest(self._inside(4), self._inside(6))
        return tuple(InsideEntry(ipv4, ipv6) for ipv4, ipv6 in pairs)

    def why_not_transceiver(self, address: HostAddress) -> Refused | None:
        """Why no transceiver of this relay can have the address, or None if one can."""
        text = str(address)
        if text in self.inside_addresses or any(vip.address == text for vip in self.vips):
            return Refused(
                "address-of-the-relay",
                f"the address {text} is the relay's own: give the transceiver's",
                address=text,
            )
        if not self._inside(address.version):
            has = 10 - address.version
            return Refused(
                "address-not-served",
                f"the address {text} is IPv{address.version}, but the relay has no such inside "
                f"address: give an IPv{has} one, or add an inside address",
                address=text,
            )
        if self._prefixes and not any(address in allowed for allowed in self._prefixes):
            return Refused(
                "address-not-allowed",
                f"the address {text} is in none of the transceivers' prefixes: give one that is, "
                "or add a prefix",
                address=text,
                prefixes=list(self.transceiver_prefixes),
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
        return [text for text in self.inside_addresses if (":" in text) == (version == 6)]


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


def _repeated(things: Iterable[T]) -> Iterator[int]:
    """The places of those that were there before."""
    seen = set()
    for place, thing in enumerate(things):
        if thing in seen:
            yield place
        seen.add(thing)
