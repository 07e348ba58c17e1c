"""The STUN codec: what we build others read, what others build we read, nothing else gets in."""

import contextlib
import os
import random
import struct
import zlib

import pytest
from aioice import stun as aioice_stun

from transceiver import stun
from transceiver.stun import Class, StunError

ID = bytes(range(12))
PASSWORD = "p" * 24

# RFC 5769 section 2.1: a request with SOFTWARE, PRIORITY, ICE-CONTROLLED, USERNAME.
RFC5769_REQUEST = bytes.fromhex(
    "000100582112a442b7e7a701bc34d686fa87dfae802200105354554e20746573742063"
    "6c69656e74002400046e0001ff80290008932ff9b151263b36000600096576746a3a68"
    "36765920202000080014"
    "9aeaa70cbfd8cb56781ef2b5b2d3f249c1b571a280280004e57a3bcf"
)
RFC5769_PASSWORD = "VOkJxbRl1RmTxUk/WvJxBt"


def request(**more: object) -> bytes:
    arguments: dict[str, object] = {"username": "a:b", "password": PASSWORD, "priority": 1}
    return stun.binding_request(ID, **(arguments | more))  # type: ignore[arg-type]


def message_of(attributes: bytes) -> bytes:
    """A request with these attributes and no more."""
    return stun.HEADER.pack(1, len(attributes), stun.MAGIC_COOKIE, ID) + attributes


def with_attribute(data: bytes, attribute: bytes) -> bytes:
    """*data* without its FINGERPRINT, then *attribute*, then a right FINGERPRINT."""
    data = data[:-8] + attribute
    data = data[:2] + struct.pack("!H", len(data) + 8 - 20) + data[4:]
    return data + struct.pack("!HHI", 0x8028, 4, zlib.crc32(data) ^ 0x5354554E)


def test_the_rfc_5769_request_is_authentic() -> None:
    message = stun.parse(RFC5769_REQUEST)
    assert message.cls is Class.REQUEST
    assert message.username == "evtj:h6vY"
    assert message.controlled == 0x932FF9B151263B36
    assert message.authentic(RFC5769_PASSWORD)
    assert not message.authentic(RFC5769_PASSWORD + "x")


def test_aioice_reads_our_request() -> None:
    message = aioice_stun.parse_message(request(controlling=7, use_candidate=True))
    message.check_message_integrity(PASSWORD.encode())
    assert message.attributes["USERNAME"] == "a:b"
    assert message.attributes["ICE-CONTROLLING"] == 7
    assert "USE-CANDIDATE" in message.attributes


@pytest.mark.parametrize("mapped", [("198.18.0.10", 5000), ("2001:db8:18::10", 65535)])
def test_a_mapped_address_survives(mapped: stun.Address) -> None:
    data = stun.binding_success(ID, mapped=mapped, password=PASSWORD)
    assert stun.parse(data).mapped == mapped
    assert aioice_stun.parse_message(data).attributes["XOR-MAPPED-ADDRESS"] == mapped


def test_an_address_as_text_has_brackets_where_it_needs_them() -> None:
    assert stun.text(("198.18.0.1", 3478)) == "198.18.0.1:3478"
    assert stun.text(("2001:db8:18::1", 3478)) == "[2001:db8:18::1]:3478"


def test_an_error_response_names_its_code_and_attributes() -> None:
    data = stun.binding_error(ID, 420, password=PASSWORD, unknown=(0x0030, 0x0031))
    message = stun.parse(data)
    assert (message.cls, message.error) == (Class.ERROR, 420)
    assert message.authentic(PASSWORD)


@pytest.mark.parametrize("at", range(0, 60, 7))
def test_a_changed_byte_is_noticed(at: int) -> None:
    data = bytearray(request())
    data[at] ^= 0x40
    with pytest.raises(StunError):
        stun.parse(bytes(data))


def test_integrity_does_not_depend_on_what_stands_behind_it() -> None:
    message = stun.parse(with_attribute(request(), struct.pack("!HH", 0x0025, 0)))
    assert message.authentic(PASSWORD)
    assert not message.use_candidate


def test_a_message_without_integrity_is_not_authentic() -> None:
    assert not stun.parse(stun.binding_error(ID, 400)).authentic("")


def test_the_first_of_two_usernames_counts() -> None:
    twice = struct.pack("!HH4s", 6, 3, b"x:y") + struct.pack("!HH4s", 6, 3, b"v:w")
    assert stun.parse(message_of(twice)).username == "x:y"


def test_unknown_attributes_are_listed_only_where_they_matter() -> None:
    unknown = struct.pack("!HHI", 0x0030, 4, 0) + struct.pack("!HHI", 0xC057, 4, 0)
    assert stun.parse(message_of(unknown)).unknown == (0x0030,)


MALFORMED = {
    "empty": b"",
    "half a header": request()[:10],
    "wrong cookie": request()[:4] + b"\0\0\0\0" + request()[8:],
    "wrong method": b"\x00\x03" + request()[2:],
    "a length too long": request()[:2] + b"\x10\x00" + request()[4:],
    "a tail": request() + b"\0\0\0\0",
    "an attribute past the end": message_of(b"\x80\x22\x01\x90"),
    "a short integrity": message_of(b"\0\x08\0\x04abcd"),
    "a short tie-breaker": message_of(b"\x80\x29\0\x04abcd"),
    "a username that is not text": message_of(b"\0\x06\0\x04\xff\xfe\xff\xfe"),
    "an address of no family": message_of(b"\0\x20\0\x08\0\x07abcdef"),
    "an error code out of range": message_of(b"\0\x09\0\x04\0\0\x07\x63"),
    "a wrong fingerprint": message_of(b"\x80\x28\0\x04abcd"),
    "a fingerprint that is not last": message_of(
        struct.pack("!HHI", 0x8028, 4, zlib.crc32(stun.HEADER.pack(1, 16, stun.MAGIC_COOKIE, ID)))
        + b"\x80\x22\0\0"
    ),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_messages_are_refused(name: str) -> None:
    with pytest.raises(StunError):
        stun.parse(MALFORMED[name])


def test_no_bytes_raise_anything_else() -> None:
    seed = int.from_bytes(os.urandom(4))
    print(f"seed {seed}")
    chance = random.Random(seed)
    whole = with_attribute(request(controlled=5), b"")
    answer = stun.binding_success(ID, mapped=("1.2.3.4", 5), password=PASSWORD)
    for _ in range(20_000):
        data = bytearray(chance.choice((whole, answer, RFC5769_REQUEST)))
        for _ in range(chance.randrange(4)):
            data[chance.randrange(20, len(data))] = chance.randrange(256)
        data = data[: chance.choice((len(data), chance.randrange(len(data))))]
        if chance.random() < 0.7:
            data = bytearray(without_fingerprint(data))
        with contextlib.suppress(StunError):
            stun.parse(bytes(data)).authentic(PASSWORD)
        with contextlib.suppress(StunError):
            stun.parse(chance.randbytes(chance.randrange(64)))


def without_fingerprint(data: bytearray) -> bytes:
    """Cut it off and make the length right, so that the fuzz gets past both checks."""
    cut = data[: max(20, (len(data) - 8) // 4 * 4)]
    return bytes(cut[:2]) + struct.pack("!H", max(len(cut) - 20, 0)) + bytes(cut[4:])
