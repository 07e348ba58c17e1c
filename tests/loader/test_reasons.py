"""The reasons that Python reads out of `bpf/reasons.h`: all of them, each at its own number."""

import re

from loader.reasons import REASONS
from loader.source import BPF_FOLDER

# Numbers are stable: dashboards and pinned counters outlive a release. Add at the end; never edit.
NUMBERS = {
    "fragment": 1,
    "ip_options": 2,
    "length": 3,
    "ttl": 4,
    "class": 5,
    "stun_malformed": 6,
    "stun_username": 7,
    "no_route": 8,
    "no_flow": 9,
    "unexpected_response": 10,
    "source": 11,
    "table_full": 12,
    "route_full": 13,
    "route_busy": 14,
    "transceiver_gone": 15,
    "neighbour": 16,
    "checksum": 17,
    "wrong_interface": 18,
    "slot_free": 19,
    "slot_closing": 20,
    "wrong_transceiver": 21,
    "not_established": 22,
    "amplification": 23,
    "no_checksum": 24,
    "mtu": 25,
    "headroom": 26,
    "link_address": 27,
    "icmp": 28,
    "program": 29,
}


def test_each_reason_has_the_number_that_it_always_had() -> None:
    assert {reason.name: reason.number for reason in REASONS} == NUMBERS


def test_numbers_follow_each_other_from_one() -> None:
    assert [reason.number for reason in REASONS] == list(range(1, len(REASONS) + 1))


def test_each_reason_says_what_it_means() -> None:
    assert all(len(reason.meaning) > 20 for reason in REASONS)


def test_a_meaning_is_one_line_of_plain_text() -> None:
    assert not any(re.search(r'[\\\n\t"]|  ', reason.meaning) for reason in REASONS)


def test_the_program_drops_for_every_reason_and_for_no_other() -> None:
    sources = "".join(path.read_text() for path in BPF_FOLDER.glob("*.[ch]"))
    used = set(re.findall(r"\bSHUNT_DROP_(\w+)\b", sources.replace("SHUNT_DROP_##name", "")))
    assert used == set(NUMBERS)
