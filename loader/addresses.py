"""Which addresses VIPs, inside addresses and transceivers can have, and how they are written."""

import ipaddress
from urllib.parse import urlsplit

__all__ = ["HostAddress", "Prefix", "endpoint", "host_address", "http_url", "prefix"]

HostAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
Prefix = ipaddress.IPv4Network | ipaddress.IPv6Network

_NOT_OF_A_HOST = (ipaddress.ip_network("0.0.0.0/8"), ipaddress.ip_network("240.0.0.0/4"))


def host_address(text: str) -> HostAddress:
    """An address that a host on a network can have, and the relay can send to without more.

    Raises ValueError with the rest of a sentence that begins with the address.
    """
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        raise ValueError("is no IP address: give an IPv4 or IPv6 address, not a name") from None
    if address.version == 6 and address.ipv4_mapped:
        raise ValueError(f"is IPv4-mapped: give {address.ipv4_mapped} itself")
    if address.is_unspecified:
        raise ValueError("is the unspecified address: give the one that is meant")
    for kind, so in (
        ("loopback", address.is_loopback),
        ("multicast", address.is_multicast),
        ("link-local", address.is_link_local),
    ):
        if so:
            raise ValueError(f"is a {kind} address: give one that can be routed")
    if any(address in network for network in _NOT_OF_A_HOST):
        raise ValueError("is a reserved address: give one that a host can have")
    if address.version == 6 and address.scope_id:
        raise ValueError("names an interface: give the address alone")
    return address


def prefix(text: str) -> Prefix:
    """A network that addresses are in, as `10.0.0.0/24` or `fd00::/64`.

    Raises ValueError with the rest of a sentence that begins with the prefix.
    """
    address, slash, length = text.partition("/")
    try:
        host = ipaddress.ip_address(address)
        if not slash or not length.isdecimal() or not length.isascii() or "%" in address:
            raise ValueError(text)
        network = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise ValueError("is no prefix: give one as 10.0.0.0/24 or fd00::/64") from None
    if network.network_address != host:
        raise ValueError(f"has bits beyond its length: give {network}")
    if host.version == 6 and host.ipv4_mapped:
        raise ValueError("is IPv4-mapped: give the IPv4 prefix itself")
    return network


def endpoint(address: str, port: int) -> str:
    """`198.18.0.1:3478`, or `[2001:db8::1]:3478`."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def http_url(text: str) -> str:
    """An http or https URL with a host, and nothing in it that is for somebody's eyes only.

    Raises ValueError with the rest of a sentence that begins with the URL.
    """
    if not (text.isascii() and text.isprintable() and " " not in text):
        raise ValueError("is no URL: write it in printable ASCII, without spaces")
    try:
        url = urlsplit(text)
        host, port = url.hostname, url.port
    except ValueError as error:  # brackets that hold no IPv6 address, ports beyond 65535
        raise ValueError(f"is no URL: {error}") from None
    if url.scheme not in ("http", "https") or not host or port == 0:
        raise ValueError("is no URL of http or https: give one as http://198.18.1.11:8080")
    if url.username is not None or url.query or url.fragment:
        raise ValueError("has more than scheme, host, port and path: leave the rest out")
    return text
