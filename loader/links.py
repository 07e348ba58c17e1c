"""The links of a network namespace, in memory. No sockets here: the kernel's messages come in."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from loader.types import Mode

__all__ = ["Link", "Links", "link_of", "mode_of", "vlan_of"]

_8021Q = 0x8100
_UP, _RUNNING = 0x1, 0x40  # IFF_…
_MODES = {"xdp": Mode.NATIVE, "xdpgeneric": Mode.GENERIC, "xdpoffload": Mode.OFFLOADED}


@dataclass(frozen=True, slots=True)
class Link:
    """An interface. *mtu*: bytes of an IP packet; *mac*: empty if it has none. *up*: it is to be
    used; *running*: it can be (RFC 2863's ifOperStatus), which takes a carrier too. *program*: the
    id of the XDP program on it, or 0.

    *below* and *vlan* are the parent's ifindex and the VLAN's number if it is an 802.1Q VLAN
    interface; *vlan* is 0 of any other interface, and None of a VLAN interface that the relay
    cannot use: of another protocol, or with its parent in another namespace.
    """

    ifindex: int
    name: str
    mac: bytes
    mtu: int
    mode: Mode
    up: bool = True
    running: bool = True
    program: int = 0
    below: int = 0
    vlan: int | None = 0
    veth: bool = False


def _kind(message: Any) -> str | None:
    info = message.get_attr("IFLA_LINKINFO")
    kind: str | None = info and info.get_attr("IFLA_INFO_KIND")
    return kind


def vlan_of(message: Any) -> tuple[int, int] | None:
    """A VLAN interface's number and EtherType, of its link message; None of any other's."""
    if _kind(message) != "vlan":
        return None
    data = message.get_attr("IFLA_LINKINFO").get_attr("IFLA_INFO_DATA")
    return data.get_attr("IFLA_VLAN_ID"), data.get_attr("IFLA_VLAN_PROTOCOL")


def mode_of(message: Any) -> Mode:
    """How the interface carries an XDP program, of its link message."""
    xdp = message.get_attr("IFLA_XDP")
    return (
        Mode.DETACHED
        if xdp is None
        else _MODES.get(xdp.get_attr("IFLA_XDP_ATTACHED"), Mode.DETACHED)
    )


def _program_of(message: Any) -> int:
    xdp = message.get_attr("IFLA_XDP")
    return (xdp and xdp.get_attr("IFLA_XDP_PROG_ID")) or 0


def link_of(message: Any) -> Link:
    """What a link message (RTM_NEWLINK) says."""
    below: int = 0
    vlan: int | None = 0
    if (tag := vlan_of(message)) is not None:
        number, protocol = tag
        below = message.get_attr("IFLA_LINK")
        elsewhere = message.get_attr("IFLA_LINK_NETNSID") is not None
        vlan = None if elsewhere or protocol != _8021Q else number
    return Link(
        ifindex=message["index"],
        name=message.get_attr("IFLA_IFNAME"),
        mac=bytes.fromhex((message.get_attr("IFLA_ADDRESS") or "").replace(":", "")),
        mtu=message.get_attr("IFLA_MTU"),
        mode=mode_of(message),
        up=bool(message["flags"] & _UP),
        running=bool(message["flags"] & _RUNNING),
        program=_program_of(message),
        below=below,
        vlan=vlan,
        veth=_kind(message) == "veth",
    )


class Links:
    """All links, by ifindex and by name."""

    def __init__(self) -> None:
        self._links: dict[int, Link] = {}
        self._names: dict[str, int] = {}

    def replace(self, messages: Iterable[Any]) -> None:
        """Take over a whole dump."""
        self._links = {link.ifindex: link for link in map(link_of, messages)}
        self._names = {link.name: link.ifindex for link in self._links.values()}

    def take(self, message: Any) -> None:
        """Take over what the kernel says of one link."""
        link = link_of(message)
        self.forget(link.ifindex)
        self._links[link.ifindex] = link
        self._names[link.name] = link.ifindex

    def forget(self, ifindex: int) -> None:
        """The kernel knows no such link any more."""
        link = self._links.pop(ifindex, None)
        if link and self._names.get(link.name) == ifindex:
            del self._names[link.name]

    def get(self, ifindex: int) -> Link | None:
        """A link, or None if there is none of that index."""
        return self._links.get(ifindex)

    def named(self, name: str) -> Link | None:
        """The link of that name, or None."""
        ifindex = self._names.get(name)
        return None if ifindex is None else self._links[ifindex]

    def indexes(self) -> set[int]:
        """All there are."""
        return set(self._links)

    def carrier(self, ifindex: int) -> tuple[int, int] | None:
        """Where XDP sends packets that are to leave by this link: the ifindex, which is the
        parent's of a VLAN interface, and the VLAN's number or 0. None if it cannot: the relay
        makes one 802.1Q tag."""
        link = self._links.get(ifindex)
        if link is None or link.vlan is None:
            return None
        if not link.vlan:
            return ifindex, 0
        below = self._links.get(link.below)
        return (link.below, link.vlan) if below and below.vlan == 0 else None

    def obstacle(self, ifindex: int) -> str:
        """Why nothing can be sent by this link, in words that follow its name; else empty."""
        link = self._links.get(ifindex)
        if link is None:
            return "is gone"
        if not link.up:
            return "is down"
        if not link.running:
            return "has no carrier"
        if self.carrier(ifindex) is None:
            return "is a VLAN interface that the relay has no tag for"
        return "" if link.mac else "has no MAC address"
