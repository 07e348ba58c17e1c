"""STUN Binding messages as ICE uses them (RFC 8489, RFC 8445 section 7), bytes in and bytes out.

Says whether a message is well formed and authentic; what to do about it is `transceiver.ice`'s.
"""

import hashlib
import hmac
import ipaddress
import re
import socket
import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum

__all__ = [
    "Address",
    "Class",
    "Message",
    "StunError",
    "binding_error",
    "binding_request",
    "binding_success",
    "endpoint",
    "header",
    "parse",
    "text",
    "username",
]

Address = tuple[str, int]
"""IP address as text, UDP port."""


def text(address: Address) -> str:
    """HOST:PORT, IPv6 in brackets."""
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def endpoint(text: str) -> Address:
    """The address that IP:PORT is, IPv6 in brackets; ValueError if it is none. The reverse of
    `text`."""
    host, _, port = text.rpartition(":")
    address = ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
    if not re.fullmatch("[0-9]{1,5}", port) or int(port) > 65535:
        raise ValueError(f"not a port: {port!r}")
    return str(address), int(port)


MAGIC_COOKIE = 0x2112A442
HEADER = struct.Struct("!HHI12s")
ATTRIBUTE = struct.Struct("!HH")
INTEGRITY_BYTES = hashlib.sha1().digest_size
FINGERPRINT_XOR = 0x5354554E
CLASS_BITS = 0x0110
BINDING = 0x0001

USERNAME = 0x0006
MESSAGE_INTEGRITY = 0x0008
ERROR_CODE = 0x0009
UNKNOWN_ATTRIBUTES = 0x000A
XOR_MAPPED_ADDRESS = 0x0020
PRIORITY = 0x0024
USE_CANDIDATE = 0x0025
FINGERPRINT = 0x8028
ICE_CONTROLLED = 0x8029
ICE_CONTROLLING = 0x802A

# Attributes below this number must be understood or the request refused (RFC 8489 section 14).
COMPREHENSION_OPTIONAL = 0x8000
UNDERSTOOD = {USERNAME, MESSAGE_INTEGRITY, ERROR_CODE, UNKNOWN_ATTRIBUTES, XOR_MAPPED_ADDRESS}
UNDERSTOOD |= {PRIORITY, USE_CANDIDATE}

REASONS = {
    400: "Bad Request",
    401: "Unauthenticated",
    420: "Unknown Attribute",
    487: "Role Conflict",
}


class StunError(ValueError):
    """These bytes are not a well-formed STUN Binding message."""


class Class(IntEnum):
    """The class bits of a message type (RFC 8489 section 5)."""

    REQUEST = 0x0000
    INDICATION = 0x0010
    SUCCESS = 0x0100
    ERROR = 0x0110


@dataclass(frozen=True, slots=True)
class Message:
    """A parsed Binding message; what stood behind MESSAGE-INTEGRITY is not in it."""

    cls: Class
    transaction: bytes
    username: str | None = None
    use_candidate: bool = False
    controlled: int | None = None
    error: int | None = None
    mapped: Address | None = None
    unknown: tuple[int, ...] = ()
    size: int = 0
    """Bytes of the datagram."""
    covered: bytes = b""
    digest: bytes | None = None

    def authentic(self, password: str) -> bool:
        """Whether MESSAGE-INTEGRITY is there and was made with *password*."""
        if self.digest is None:
            return False
        return hmac.compare_digest(self.digest, _integrity(self.covered, password))


def header(data: bytes) -> tuple[Class, bytes]:
    """Class and transaction id of what may be a Binding message, for a few comparisons.

    Raises `StunError` if it is none for certain.
    """
    if len(data) < HEADER.size:
        raise StunError("shorter than a header")
    kind, length, cookie, transaction = HEADER.unpack_from(data)
    if cookie != MAGIC_COOKIE:
        raise StunError("not the magic cookie")
    if kind & ~CLASS_BITS != BINDING:
        raise StunError(f"message type {kind:#06x} is not Binding")
    if length % 4 or HEADER.size + length != len(data):
        raise StunError("length field disagrees with the datagram")
    return Class(kind & CLASS_BITS), transaction


def username(data: bytes) -> str | None:
    """The first USERNAME of a message whose `header` was read, before anything dear is done.

    None if it is not there; raises `StunError` if it is not UTF-8, or an attribute runs past the
    end.
    """
    at = HEADER.size
    while at < len(data):
        name, size = ATTRIBUTE.unpack_from(data, at)
        if name == MESSAGE_INTEGRITY:
            return None  # what follows anybody may have put there
        if at + 4 + size > len(data):
            raise StunError(f"attribute {name:#06x} runs past the end")
        if name == USERNAME:
            return _text(data[at + 4 : at + 4 + size])
        at += 4 + (size + 3 & ~3)
    return None


def parse(data: bytes) -> Message:
    """Read one datagram; raises `StunError`, and nothing else, on anything but a Binding message.

    Of an attribute that is there twice the first counts (RFC 8489 section 14). FINGERPRINT may be
    missing, but must be right and last if it is there.
    """
    cls, transaction = header(data)
    attributes: dict[int, bytes] = {}
    covered = b""
    digest = None
    at = HEADER.size
    while at < len(data):
        name, size = ATTRIBUTE.unpack_from(data, at)
        value = data[at + 4 : at + 4 + size]
        end = at + 4 + (size + 3 & ~3)
        if end > len(data):
            raise StunError(f"attribute {name:#06x} runs past the end")
        if name == FINGERPRINT:
            _check_fingerprint(data[:at], value, is_last=end == len(data))
        elif digest is not None:
            pass  # not covered by the integrity: anybody may have put it there
        elif name == MESSAGE_INTEGRITY:
            if size != INTEGRITY_BYTES:
                raise StunError("MESSAGE-INTEGRITY is not 20 bytes")
            digest = value
            covered = _with_length(data[:at], end)
        else:
            attributes.setdefault(name, value)
        at = end

    return Message(
        cls=cls,
        transaction=transaction,
        username=_text(attributes.get(USERNAME)),
        use_candidate=USE_CANDIDATE in attributes,
        controlled=_unsigned(attributes.get(ICE_CONTROLLED), size=8),
        error=_error_code(attributes.get(ERROR_CODE)),
        mapped=_unxor(attributes.get(XOR_MAPPED_ADDRESS), transaction),
        unknown=tuple(
            name for name in attributes if name < COMPREHENSION_OPTIONAL and name not in UNDERSTOOD
        ),
        size=len(data),
        covered=covered,
        digest=digest,
    )


def binding_request(
    transaction: bytes,
    *,
    username: str,
    password: str,
    priority: int,
    controlled: int | None = None,
    controlling: int | None = None,
    use_candidate: bool = False,
) -> bytes:
    """A connectivity check (RFC 8445 section 7.2.2), signed with the *peer's* password.

    *controlled* or *controlling* is the sender's tie-breaker, under its role's name.
    """
    attributes = [(USERNAME, username.encode()), (PRIORITY, struct.pack("!I", priority))]
    if controlled is not None:
        attributes.append((ICE_CONTROLLED, struct.pack("!Q", controlled)))
    if controlling is not None:
        attributes.append((ICE_CONTROLLING, struct.pack("!Q", controlling)))
    if use_candidate:
        attributes.append((USE_CANDIDATE, b""))
    return _build(Class.REQUEST, transaction, attributes, password)


def binding_success(transaction: bytes, *, mapped: Address, password: str) -> bytes:
    """The answer to an authentic check that came from *mapped*, signed with our own password."""
    attributes = [(XOR_MAPPED_ADDRESS, _xor(mapped, transaction))]
    return _build(Class.SUCCESS, transaction, attributes, password)


def binding_error(
    transaction: bytes, code: int, *, password: str | None = None, unknown: Iterable[int] = ()
) -> bytes:
    """An error answer; without *password* for requests that were not authentic.

    *unknown* lists the attributes a 420 is about (RFC 8489 section 6.3.1).
    """
    reason = struct.pack("!HBB", 0, code // 100, code % 100) + REASONS[code].encode()
    attributes = [(ERROR_CODE, reason)]
    names = tuple(unknown)
    if names:
        attributes.append((UNKNOWN_ATTRIBUTES, struct.pack(f"!{len(names)}H", *names)))
    return _build(Class.ERROR, transaction, attributes, password)


def _build(
    cls: Class, transaction: bytes, attributes: list[tuple[int, bytes]], password: str | None
) -> bytes:
    data = HEADER.pack(BINDING | cls, 0, MAGIC_COOKIE, transaction)
    for name, value in attributes:
        data += ATTRIBUTE.pack(name, len(value)) + value + bytes(-len(value) % 4)
    if password is not None:
        data = _with_length(data, len(data) + ATTRIBUTE.size + INTEGRITY_BYTES)
        data += ATTRIBUTE.pack(MESSAGE_INTEGRITY, INTEGRITY_BYTES) + _integrity(data, password)
    data = _with_length(data, len(data) + 8)
    return data + ATTRIBUTE.pack(FINGERPRINT, 4) + _fingerprint(data)


def _with_length(data: bytes, end: int) -> bytes:
    """The message with a length field that says it ends at *end*, as both checksums want it."""
    return data[:2] + struct.pack("!H", end - HEADER.size) + data[4:]


def _integrity(covered: bytes, password: str) -> bytes:
    return hmac.digest(password.encode(), covered, "sha1")


def _fingerprint(covered: bytes) -> bytes:
    return struct.pack("!I", zlib.crc32(covered) ^ FINGERPRINT_XOR)


def _check_fingerprint(covered: bytes, value: bytes, *, is_last: bool) -> None:
    if not is_last:
        raise StunError("FINGERPRINT is not the last attribute")
    if value != _fingerprint(covered):
        raise StunError("FINGERPRINT does not match")


def _text(value: bytes | None) -> str | None:
    if value is None:
        return None
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise StunError("USERNAME is not UTF-8") from error


def _unsigned(value: bytes | None, *, size: int) -> int | None:
    if value is None:
        return None
    if len(value) != size:
        raise StunError(f"an integer attribute is not {size} bytes")
    return int.from_bytes(value)


def _error_code(value: bytes | None) -> int | None:
    if value is None:
        return None
    if len(value) < 4 or not 3 <= value[2] & 7 <= 6 or value[3] > 99:
        raise StunError("ERROR-CODE is malformed")
    return (value[2] & 7) * 100 + value[3]


def _mask(transaction: bytes) -> bytes:
    return struct.pack("!I", MAGIC_COOKIE) + transaction


def _xor(address: Address, transaction: bytes) -> bytes:
    host, _, _ = address[0].partition("%")  # a link-local address has its link behind it
    is_ipv6 = ":" in host
    plain = socket.inet_pton(socket.AF_INET6 if is_ipv6 else socket.AF_INET, host)
    packed = bytes(a ^ b for a, b in zip(plain, _mask(transaction), strict=False))
    return struct.pack("!HH", 2 if is_ipv6 else 1, address[1] ^ MAGIC_COOKIE >> 16) + packed


def _unxor(value: bytes | None, transaction: bytes) -> Address | None:
    if value is None:
        return None
    if len(value) not in (8, 20) or value[1] != (1 if len(value) == 8 else 2):
        raise StunError("XOR-MAPPED-ADDRESS is malformed")
    packed = bytes(a ^ b for a, b in zip(value[4:], _mask(transaction), strict=False))
    port: int = struct.unpack_from("!H", value, 2)[0] ^ MAGIC_COOKIE >> 16
    return socket.inet_ntop(socket.AF_INET if len(value) == 8 else socket.AF_INET6, packed), port
