import sys
from copy import deepcopy
from typing import Any

import pytest

from tools.demo import proc_address, proved, udp_ports, worth

GOOD: dict[str, Any] = {
    "calls": [
        {
            "transceiver": "x1",
            "ufrag": "u" * 16,
            "setup_ms": 30.0,
            "audio": {"sent": 150, "received": 148},
            "datachannel_rtt_ms": 2.0,
        }
    ],
    "relay": {
        "mode": "native",
        "to_transceiver": 200,
        "to_client": 190,
        "dropped": {"no_route": 0},
    },
    "public_udp_ports": 1,
    "routes_after": 0,
}

# Real lines; 0100 12C6 is 198.18.0.1 on a little-endian machine.
UDP = """  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout
  100: 010012C6:0D96 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 1
  101: 010112C6:9C40 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 2
  102: 00000000:0044 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 3
"""


def test_media_both_ways_that_the_counters_account_for_is_proof() -> None:
    assert proved(GOOD)


@pytest.mark.parametrize(
    ("where", "value"),
    [
        (("calls", 0, "audio", "sent"), 0),
        (("calls", 0, "audio", "received"), 0),
        (("calls", 0, "datachannel_rtt_ms"), None),
        (("relay", "mode"), ""),
        (("relay", "to_transceiver"), 149),
        (("relay", "to_client"), 147),
        (("calls",), []),
    ],
)
def test_nothing_less_is_proof(where: tuple[Any, ...], value: object) -> None:
    outcome = deepcopy(GOOD)
    place = outcome
    for step in where[:-1]:
        place = place[step]
    place[where[-1]] = value

    assert not proved(outcome)


def test_ports_count_when_bound_to_the_public_address_or_to_all() -> None:
    assert udp_ports(UDP, ["010012C6"]) == {3478, 68}


@pytest.mark.skipif(sys.byteorder == "big", reason="the lines are of a little-endian machine")
@pytest.mark.parametrize(
    ("address", "printed"),
    [
        ("198.18.0.1", "010012C6"),
        ("2001:db8:18::1", "B80D0120000018000000000001000000"),
    ],
)
def test_an_address_is_looked_for_as_proc_prints_it(address: str, printed: str) -> None:
    assert proc_address(address) == printed


def _counters(to_client: int, mode: str, no_route: int) -> dict[str, Any]:
    return {
        "mode": {"public": "native", "inside": mode},
        "to_transceiver": {"packets": 5, "bytes": 500},
        "to_client": {"packets": to_client, "bytes": 0},
        "dropped": {"no_route": no_route},
    }


def test_the_relays_part_is_the_difference_of_two_readings() -> None:
    relay = worth(_counters(10, "native", 1), _counters(17, "native", 4))

    assert relay == {
        "mode": "native",
        "to_transceiver": 0,
        "to_client": 7,
        "dropped": {"no_route": 3},
    }


def test_one_generic_interface_makes_the_relay_generic() -> None:
    assert worth(_counters(0, "native", 0), _counters(0, "generic", 0))["mode"] == "generic"
