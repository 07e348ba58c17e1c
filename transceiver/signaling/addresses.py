"""Where clients are, as far as limits go by it."""

import ipaddress
from collections.abc import Iterable

__all__ = ["Network", "parsed", "site_of", "told_site"]

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

IPV6_SITE = 64
"""Bits of an IPv6 address that tell somebody from others; the rest are his to choose."""


def site_of(peer: str, proxies: Iterable[Network]) -> str | None:
    """Who is at the address *peer*; None if that is a proxy, for whoever is behind it."""
    address = parsed(peer)
    if address is not None and any(address in network for network in proxies):
        return None
    return _site(address)


def told_site(peer: str, forwarded: str, proxies: Iterable[Network]) -> str:
    """Who asks through *peer*, by an X-Forwarded-For of *forwarded* as far as proxies wrote it."""
    proxies = tuple(proxies)
    told = [hop.strip() for hop in forwarded.split(",")]
    address = parsed(peer)
    while address is not None and told and any(address in network for network in proxies):
        # Each proxy appends whom it heard it from: the nearest is last.
        further = parsed(told.pop())
        if further is None:
            break
        address = further
    return _site(address)


def parsed(text: str) -> Address | None:
    """An address, IPv4 as such whichever way it is shown; None if *text* is none."""
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    mapped: Address | None = getattr(address, "ipv4_mapped", None)
    return mapped or address


def _site(address: Address | None) -> str:
    if isinstance(address, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((address, IPV6_SITE), strict=False))
    return str(address)
