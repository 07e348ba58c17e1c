"""The other end of a veth, also in another network namespace, as far as one may look there."""

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from tools.doctor.facts import Peer
from tools.doctor.gather import ethtool
from tools.doctor.gather.programs import xdp_of
from tools.netns import RUN_DIR, run_in

__all__ = ["peer_of"]


def peer_of(netlink: IPRoute, link: Any) -> Peer | None:
    """The other end of the veth of a link message; None if it cannot be seen from here."""
    index, elsewhere = link.get_attr("IFLA_LINK"), link.get_attr("IFLA_LINK_NETNSID")
    if elsewhere is None:
        return _peer(index, where="")
    for namespace in _namespaces():
        try:
            descriptor = os.open(namespace, os.O_RDONLY)
        except OSError:
            continue  # ended meanwhile
        try:
            if _id_of(netlink, descriptor) != elsewhere:
                continue
            where = namespace.name if namespace.parent == RUN_DIR else str(namespace)
            return run_in(f"/proc/self/fd/{descriptor}", partial(_peer, index, where=where))
        except OSError:
            return None
        finally:
            os.close(descriptor)
    return None


def _peer(index: int, *, where: str) -> Peer | None:
    with IPRoute() as netlink:
        try:
            (link,) = netlink.get_links(index)
        except NetlinkError:
            return None
    name = link.get_attr("IFLA_IFNAME")
    return Peer(
        name=name,
        where=where,
        mtu=link.get_attr("IFLA_MTU"),
        xdp=xdp_of(link),
        offloads=ethtool.offloads(name) or {},
        channels=ethtool.channels(name),
    )


def _id_of(netlink: IPRoute, descriptor: int) -> int | None:
    """What our namespace calls the one behind *descriptor*; 2^32 - 1 if it has no name for it, None
    if that is no namespace, or not yet: `ip netns add` makes the file first."""
    try:
        id: int = netlink.get_netnsid(fd=descriptor)["nsid"]
    except NetlinkError:
        return None
    return id


def _namespaces() -> Iterator[Path]:
    """Every network namespace that has a name or a process, once."""
    seen = set()
    named = sorted(RUN_DIR.iterdir()) if RUN_DIR.is_dir() else []
    for path in [*named, *(each / "ns/net" for each in Path("/proc").glob("[0-9]*"))]:
        try:
            found = path.stat()
        except OSError:
            continue  # not ours to see, or ended
        if (found.st_dev, found.st_ino) not in seen:
            seen.add((found.st_dev, found.st_ino))
            yield path
