"""What clients and transceivers send: STUN messages (scapy's own layers), RTP and DTLS payloads."""

import itertools
from collections.abc import Sequence

from scapy.contrib.stun import STUN, STUNGenericTlv, STUNUsername
from scapy.layers.rtp import RTP
from scapy.packet import Packet, Raw

__all__ = [
    "ERROR",
    "INDICATION",
    "REQUEST",
    "SUCCESS",
    "attribute",
    "check",
    "dtls",
    "error",
    "indication",
    "request",
    "rtp",
    "stun",
    "success",
    "transaction",
    "username",
]

REQUEST, INDICATION, SUCCESS, ERROR = 0x0001, 0x0011, 0x0101, 0x0111

_SOFTWARE = 0x8022
_transactions = itertools.count(0x5368756E745368756E74_0000)


def transaction() -> int:
    """A transaction id that no other message has."""
    return next(_transactions)


def attribute(value: bytes = b"", *, type: int = _SOFTWARE, length: int | None = None) -> Packet:
    """An attribute, padded; *length* may lie."""
    return STUNGenericTlv(type=type, value=value, length=length)


def username(value: str | bytes, *, length: int | None = None) -> Packet:
    """A USERNAME; *length* may lie."""
    return STUNUsername(username=value, length=length)


def stun(
    type: int,
    *attributes: Packet,
    transaction_id: int | None = None,
    length: int | None = None,
    cookie: int = 0x2112A442,
) -> Packet:
    """A STUN message; *length* and *cookie* may lie."""
    return STUN(
        stun_message_type=type,
        length=length,
        magic_cookie=cookie,
        transaction_id=transaction() if transaction_id is None else transaction_id,
        attributes=list(attributes),
    )


def request(ufrag: str, *, transaction_id: int | None = None) -> Packet:
    """A client's Binding Request, as browsers make it: USERNAME first, PRIORITY next."""
    return stun(
        REQUEST,
        username(f"{ufrag}:clnt"),
        attribute(b"\x6e\x7f\x1e\xff", type=0x0024),
        transaction_id=transaction_id,
    )


def check(transaction_id: int) -> Packet:
    """A transceiver's own Binding Request."""
    return stun(REQUEST, username("clnt:server"), transaction_id=transaction_id)


def success(transaction_id: int) -> Packet:
    """A Binding Success Response."""
    return stun(SUCCESS, transaction_id=transaction_id)


def error(transaction_id: int) -> Packet:
    """A Binding Error Response: 401."""
    return stun(ERROR, attribute(b"\0\0\x04\x01", type=0x0009), transaction_id=transaction_id)


def indication() -> Packet:
    """A Binding Indication: a keepalive."""
    return stun(INDICATION)


def rtp(size: int = 100) -> Packet:
    """An RTP packet whose payload has *size* bytes."""
    return RTP(payload_type=111, sequence=7, timestamp=960, sourcesync=1) / Raw(filler(size))


def dtls() -> Packet:
    """As much of a DTLS ClientHello as a relay sees."""
    return Raw(b"\x16\xfe\xfd" + filler(60))


def filler(size: int) -> bytes:
    """Bytes that are neither all alike nor cheap to sum by accident."""
    return bytes((7 * place + place // 251) & 0xFF for place in range(size))


def payloads(first_bytes: Sequence[int]) -> list[bytes]:
    """One payload for each first byte."""
    return [bytes([first]) + filler(40) for first in first_bytes]
