"""Internet checksums from scratch, and how far a given one is off."""

__all__ = ["difference", "internet", "of_ipv4", "total", "transport", "with_difference"]


def total(octets: bytes) -> int:
    """The one's-complement sum of 16-bit words (RFC 1071), modulo 0xffff: 0 to 0xfffe."""
    value = int.from_bytes(octets, "big")
    return (value << 8 if len(octets) % 2 else value) % 0xFFFF


def internet(octets: bytes) -> int:
    """The checksum of bytes that are not all zero: 0 to 0xfffe."""
    return -total(octets) % 0xFFFF


def of_ipv4(header: bytes) -> int:
    """Of an IPv4 header; what its own field holds does not count."""
    return internet(header[:10] + header[12:])


def transport(addresses: bytes, protocol: int, segment: bytes, field: int) -> int:
    """Of a UDP datagram or ICMPv6 message behind its pseudo-header. *addresses*: source and
    destination; *field*: where in the segment its own checksum stands, which does not count."""
    pseudo = total(addresses) + len(segment) + protocol
    return -(pseudo + total(segment[:field] + b"\0\0" + segment[field + 2 :])) % 0xFFFF


def difference(found: int, right: int) -> int:
    """How far *found* is off, in one's complement: 0 if not at all."""
    return (found - right) % 0xFFFF


def with_difference(right: int, off: int) -> int:
    """A checksum that is off as another was."""
    return (right + off) % 0xFFFF
