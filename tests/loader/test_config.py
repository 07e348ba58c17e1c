"""What an agent can be told, what it refuses, and what of it the program reads."""

import ipaddress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from loader import types
from loader.client import Vip
from loader.config import (
    ROUTES_LIMIT,
    AgentConfig,
    Impossible,
    InsideEntry,
    TcpConfig,
    outdated,
)
from loader.errors import ShuntError

CONFIG = AgentConfig(
    public=("public",),
    inside=("inside",),
    vips=(Vip("198.18.0.1", 3478), Vip("2001:db8:18::1", 3478)),
    inside_addresses=("198.18.1.1", "2001:db8:118::1"),
    first_port=20000,
    last_port=20063,
)
VIP = CONFIG.vips[0]
TCP = TcpConfig(address="127.0.0.1", port=8443, token_file=Path("/etc/shunt/token"))


def many(prefix: str, count: int) -> tuple[str, ...]:
    return tuple(f"{prefix}{number}" for number in range(1, count + 1))


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"public": ()}, "needs a public interface"),
        ({"inside": ()}, "needs an inside interface"),
        ({"inside": many("i", 16)}, "at most 16 interfaces"),
        ({"vips": ()}, "1 to 16 VIPs"),
        ({"vips": tuple(Vip("198.18.0.1", n) for n in range(1, 18))}, "1 to 16 VIPs"),
        ({"vips": (Vip("198.18.0", 1),)}, "the VIP 198.18.0 is no IP address"),
        ({"vips": (Vip("198.18.0.1", 0),)}, "port is 1 to 65535"),
        ({"vips": (Vip("198.18.0.1", 65536),)}, "port is 1 to 65535"),
        ({"vips": (VIP, Vip("198.18.0.1", 3478))}, "198.18.0.1:3478 is given twice"),
        (
            {"vips": (Vip("2001:db8::1", 1), Vip("2001:DB8:0::1", 1))},
            r"\[2001:db8::1\]:1 is given twice",
        ),
        ({"vips": (Vip("198.18.1.1", 20005),)}, "198.18.1.1:20005 is among the inside ports"),
        ({"vips": (Vip("2001:db8:118::1", 20063),)}, "is among the inside ports"),
        ({"vips": (Vip("::ffff:198.18.0.1", 1),)}, "is IPv4-mapped"),
        ({"vips": (Vip("fe80::1", 1),)}, "is a link-local address"),
        ({"vips": (Vip("224.0.0.1", 1),)}, "is a multicast address"),
        ({"vips": (Vip("127.0.0.1", 1),)}, "is a loopback address"),
        ({"vips": (Vip("::", 1),)}, "is the unspecified address"),
        ({"inside_addresses": ()}, "needs an inside address"),
        ({"inside_addresses": ("inside",)}, "the inside address inside is no IP address"),
        ({"inside_addresses": ("::ffff:10.0.0.1",)}, "is IPv4-mapped"),
        ({"inside_addresses": ("10.0.0.1", "10.0.0.1")}, "10.0.0.1 is given twice"),
        ({"inside_addresses": ("fd00::1", "fd00:0::1")}, "fd00::1 is given twice"),
        (
            {"inside_addresses": ("10.0.0.1", "10.0.0.2", "fd00::1")},
            "2 inside IPv4 addresses, but 1 inside IPv6",
        ),
        ({"inside_addresses": many("10.0.0.", 17)}, "at most 16 inside addresses"),
        ({"inside_addresses": many("fd00::", 17)}, "at most 16 inside addresses"),
        ({"first_port": 1023}, "range within 1024 to 65535"),
        ({"first_port": 30000, "last_port": 29999}, "range within 1024 to 65535"),
        ({"last_port": 65536}, "range within 1024 to 65535"),
        ({"transceiver_prefixes": ("10.0.0.0",)}, "the prefix 10.0.0.0 is no prefix"),
        ({"transceiver_prefixes": ("10.0.0.9/24",)}, "give 10.0.0.0/24"),
        (
            {"transceiver_prefixes": ("fd00::/64", "FD00:0::/64")},
            "the prefix fd00::/64 is given twice",
        ),
        (
            {"inside_addresses": ("10.0.0.1",), "transceiver_prefixes": ("fd00::/64",)},
            "the prefix fd00::/64 is IPv6, but the relay has no such inside address",
        ),
        ({"max_routes": 0}, "limited to 1 to 1048576"),
        ({"max_routes": ROUTES_LIMIT + 1}, "limited to 1 to 1048576"),
        ({"tcp": replace(TCP, address="api.example")}, "api.example is no IP address"),
        ({"tcp": replace(TCP, port=0)}, "the API's port is 1 to 65535"),
        ({"tcp": replace(TCP, port=65536)}, "the API's port is 1 to 65535"),
        ({"tcp": replace(TCP, certificate=Path("c.pem"))}, "a TLS certificate, but no key"),
        ({"tcp": replace(TCP, key=Path("k.pem"))}, "a TLS key, but no certificate"),
        ({"tcp": replace(TCP, address="10.0.0.1")}, "would send its token in the clear"),
        ({"tcp": replace(TCP, address="0.0.0.0")}, "would send its token in the clear"),
        ({"log_level": "loud"}, "a log level is one of debug, info"),
        ({"log_format": "xml"}, "a log format is one of text, json"),
    ],
)
def test_a_configuration_that_cannot_work_is_refused(change: dict[str, Any], what: str) -> None:
    with pytest.raises(ShuntError, match=what):
        replace(CONFIG, **change)


@pytest.mark.parametrize(
    "change",
    [
        {"inside": many("i", 15)},
        {"vips": tuple(Vip("198.18.0.1", n) for n in range(1, 17))},
        {"vips": (Vip("198.18.1.1", 3478),)},
        {"vips": (Vip("198.18.1.1", 20064), Vip("198.18.1.1", 19999))},
        {"inside_addresses": many("10.0.0.", 16) + many("fd00::", 16)},
        {"inside_addresses": ("fd00::1",)},
        {"transceiver_prefixes": ("198.18.1.0/24", "2001:db8::/32")},
        {"max_routes": ROUTES_LIMIT},
        {"tcp": TCP},
        {"tcp": replace(TCP, address="::1")},
        {"tcp": replace(TCP, address="::", certificate=Path("c.pem"), key=Path("k.pem"))},
    ],
    ids=[
        *("interfaces", "VIPs", "shared address", "next to the ports", "16 pairs", "IPv6 only"),
        *("prefixes", "routes", "TCP on loopback", "TCP on IPv6 loopback", "TLS anywhere"),
    ],
)
def test_what_just_works_is_taken(change: dict[str, Any]) -> None:
    replace(CONFIG, **change)


def test_all_problems_are_told_at_once_each_with_its_field_and_place() -> None:
    with pytest.raises(Impossible) as error:
        replace(
            CONFIG,
            public=(),
            vips=(VIP, Vip("x", 1), Vip("x", 1)),  # twice the same, but that is not the point
            transceiver_prefixes=("10.0.0.0/8", "10.0.0.0/8"),
            tcp=replace(TCP, port=0),
        )

    assert [(problem.field, problem.place) for problem in error.value.problems] == [
        *(("vips", 1), ("vips", 2), ("public", None)),
        *(("transceiver_prefixes", 1), ("tcp.port", None)),
    ]


def test_an_interface_that_is_both_public_and_inside_is_one() -> None:
    assert replace(CONFIG, inside=("inside", "public")).interfaces == ["public", "inside"]


def test_addresses_are_known_by_one_text() -> None:
    config = replace(CONFIG, vips=(Vip("2001:DB8:18:0::1", 3478),), inside_addresses=("FD00:0::1",))

    assert config.vips == (Vip("2001:db8:18::1", 3478),)
    assert config.inside_addresses == ("fd00::1",)


def test_the_nth_addresses_of_both_families_share_their_slots() -> None:
    config = replace(CONFIG, inside_addresses=("fd00::1", "10.0.0.1", "10.0.0.2", "fd00::2"))

    assert config.inside_entries == (
        InsideEntry("10.0.0.1", "fd00::1"),
        InsideEntry("10.0.0.2", "fd00::2"),
    )


@pytest.mark.parametrize(
    ("addresses", "entry"),
    [(("10.0.0.1",), InsideEntry("10.0.0.1", None)), (("fd00::1",), InsideEntry(None, "fd00::1"))],
)
def test_one_family_alone_is_an_entry(addresses: tuple[str, ...], entry: InsideEntry) -> None:
    assert replace(CONFIG, inside_addresses=addresses).inside_entries == (entry,)


# What the program reads.


def test_the_settings_hold_each_address_at_its_place() -> None:
    config = replace(CONFIG, inside_addresses=("10.0.0.1", "10.0.0.2", "fd00::1", "fd00::2"))

    written = config.settings([(7, 0), (9, 100)])

    assert [(v.port, v.number) for v in written.vips][:3] == [(3478, 0), (3478, 1), (0, 0)]
    assert [types.text_address(bytes(v.address)) for v in written.vips][:2] == [
        "198.18.0.1",
        "2001:db8:18::1",
    ]
    assert [(i.used, i.first_slot) for i in written.inside][:3] == [(1, 0), (1, 65536), (0, 0)]
    assert types.text_address(bytes(written.inside[1].ipv4)) == "10.0.0.2"
    assert types.text_address(bytes(written.inside[1].ipv6)) == "fd00::2"
    assert [(link.ifindex, link.vlan) for link in written.inside_links][:3] == [
        *((7, 0), (9, 100)),
        (0, 0),
    ]
    assert (written.first_port, written.last_port) == (20000, 20063)
    assert list(written.seed) == [0, 0], "the maps keep the seed"


def test_a_family_that_is_not_there_is_all_zero() -> None:
    (entry, *_) = replace(CONFIG, inside_addresses=("10.0.0.1",)).settings([]).inside

    assert not any(entry.ipv6)
    assert any(entry.ipv4)


@pytest.mark.parametrize(
    ("change", "vips", "entries"),
    [
        ({}, [], []),
        ({"vips": (*CONFIG.vips, Vip("198.18.0.2", 3478))}, [], []),
        ({"vips": CONFIG.vips[:1]}, [1], []),
        ({"vips": (VIP, Vip("2001:db8:18::1", 3479))}, [1], []),
        ({"vips": CONFIG.vips[::-1]}, [0, 1], []),
        ({"inside_addresses": ("198.18.1.2", "2001:db8:118::1")}, [], [0]),
        ({"inside_addresses": ("198.18.1.1", "2001:db8:118::2")}, [], [0]),
        ({"inside_addresses": ("198.18.1.1",)}, [], [0]),
        (
            {"inside_addresses": (*CONFIG.inside_addresses, "198.18.1.2", "2001:db8:118::2")},
            [],
            [],
        ),
        ({"last_port": 20100}, [], []),
        ({"inside": ("inside", "more")}, [], []),
    ],
)
def test_what_changed_is_told_and_what_only_came_is_not(
    change: dict[str, Any], vips: list[int], entries: list[int]
) -> None:
    before, after = CONFIG.settings([]), replace(CONFIG, **change).settings([])

    assert outdated(before, after) == (vips, entries)


def test_the_first_settings_of_all_make_nothing_outdated() -> None:
    assert outdated(types.Settings(), CONFIG.settings([])) == ([], [])


# Transceivers.


@pytest.mark.parametrize(
    ("inside", "address", "why"),
    [
        (("10.0.0.1", "fd00::1"), "10.0.0.1", "the relay's own"),
        (("10.0.0.1", "fd00::1"), "198.18.0.1", "the relay's own"),
        (("10.0.0.1", "fd00::1"), "2001:db8:18::1", "the relay's own"),
        (("10.0.0.1",), "fd00::9", "give an IPv4 one"),
        (("fd00::1",), "10.0.0.9", "give an IPv6 one"),
    ],
)
def test_an_address_that_no_transceiver_of_this_relay_can_have(
    inside: tuple[str, ...], address: str, why: str
) -> None:
    config = replace(CONFIG, inside_addresses=inside)

    assert why in str(config.why_not_transceiver(ipaddress.ip_address(address)))


@pytest.mark.parametrize(
    ("address", "fits"),
    [("198.18.1.11", True), ("198.18.2.11", False), ("2001:db8:118::11", True), ("fd00::9", False)],
)
def test_prefixes_say_which_addresses_transceivers_may_have(address: str, fits: bool) -> None:
    config = replace(CONFIG, transceiver_prefixes=("198.18.1.0/24", "2001:DB8:118::/64"))

    why = config.why_not_transceiver(ipaddress.ip_address(address))

    assert (why is None) == fits
    if why:
        assert why.name == "address-not-allowed"
        assert why.members["prefixes"] == ["198.18.1.0/24", "2001:db8:118::/64"]


def test_the_relay_s_own_address_is_refused_within_the_prefixes_too() -> None:
    config = replace(CONFIG, transceiver_prefixes=("198.18.1.0/24",))

    assert "the relay's own" in str(config.why_not_transceiver(ipaddress.ip_address("198.18.1.1")))


@pytest.mark.parametrize("address", ["10.0.0.9", "fd00::9"])
def test_a_transceiver_may_be_of_either_family_that_there_is(address: str) -> None:
    assert CONFIG.why_not_transceiver(ipaddress.ip_address(address)) is None
