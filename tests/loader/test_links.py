"""Links, from messages as the kernel sends them."""

from typing import Any

import pytest
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg

from loader.links import Link, Links, link_of
from loader.types import Mode

UP, RUNNING = 0x1, 0x40  # IFF_…


def message(index: int, name: str, **attributes: Any) -> Any:
    """A link message on its way through netlink's format."""
    made = ifinfmsg()
    made["index"] = index
    made["flags"] = attributes.pop("flags", UP | RUNNING)
    made["attrs"] = [
        ("IFLA_IFNAME", name),
        ("IFLA_MTU", attributes.pop("mtu", 1500)),
        ("IFLA_ADDRESS", attributes.pop("mac", "02:00:00:00:00:07")),
        *((f"IFLA_{key.upper()}", value) for key, value in attributes.items()),
    ]
    made.encode()
    read = ifinfmsg(made.data)
    read.decode()
    return read


def vlan(index: int, name: str, *, below: int, id: int, protocol: int = 0x8100, **more: Any) -> Any:
    data = {"attrs": [("IFLA_VLAN_ID", id), ("IFLA_VLAN_PROTOCOL", protocol)]}
    info = {"attrs": [("IFLA_INFO_KIND", "vlan"), ("IFLA_INFO_DATA", data)]}
    return message(index, name, link=below, linkinfo=info, **more)


def known(*messages: Any) -> Links:
    links = Links()
    links.replace(messages)
    return links


def test_a_link_is_read_with_what_the_relay_needs_of_it() -> None:
    assert link_of(message(7, "eth0", mtu=1400)) == Link(
        ifindex=7, name="eth0", mac=bytes.fromhex("020000000007"), mtu=1400, mode=Mode.DETACHED
    )


def test_a_link_tells_which_program_it_carries() -> None:
    xdp = {"attrs": [("IFLA_XDP_ATTACHED", 2), ("IFLA_XDP_PROG_ID", 77)]}

    link = link_of(message(7, "eth0", xdp=xdp))

    assert (link.mode, link.program) == (Mode.GENERIC, 77)


@pytest.mark.parametrize(
    ("odd", "why"),
    [
        ({}, ""),
        ({"flags": 0}, "is down"),
        ({"flags": UP}, "has no carrier"),
    ],
)
def test_what_keeps_a_link_from_being_used_is_told(odd: dict[str, Any], why: str) -> None:
    assert known(message(7, "eth0", **odd)).obstacle(7) == why


def test_a_link_that_is_not_there_is_an_obstacle() -> None:
    assert known(message(7, "eth0")).obstacle(8) == "is gone"


def test_names_that_links_exchange_lead_to_the_right_ones() -> None:
    links = known(message(7, "eth0"), message(8, "eth1"))

    links.take(message(7, "other"))
    links.take(message(8, "eth0"))
    links.take(message(7, "eth1"))

    assert (links.named("eth0"), links.named("eth1")) == (links.get(8), links.get(7))
    assert links.named("other") is None


def test_a_link_without_a_mac_has_an_empty_one() -> None:
    made = ifinfmsg()
    made["index"], made["attrs"] = 3, [("IFLA_IFNAME", "tun0"), ("IFLA_MTU", 1500)]

    assert link_of(made).mac == b""


def test_a_vlan_is_sent_through_its_parent_with_its_tag() -> None:
    links = known(message(7, "eth0"), vlan(8, "eth0.100", below=7, id=100))

    assert links.carrier(7) == (7, 0)
    assert links.carrier(8) == (7, 100)


@pytest.mark.parametrize(
    "odd",
    [
        vlan(9, "odd", below=7, id=5, protocol=0x88A8),
        vlan(9, "odd", below=8, id=5),
        vlan(9, "odd", below=70, id=5),
        vlan(9, "odd", below=7, id=5, link_netnsid=3),
    ],
    ids=["802.1ad", "in a VLAN", "parent unknown", "parent in another namespace"],
)
def test_a_vlan_that_takes_more_than_one_tag_on_a_link_of_ours_has_no_carrier(odd: Any) -> None:
    links = known(message(7, "eth0"), vlan(8, "eth0.100", below=7, id=100), odd)

    assert links.named("odd") is not None
    assert links.carrier(9) is None


def test_no_link_carries_what_is_not_there() -> None:
    assert known(message(7, "eth0")).carrier(8) is None


def test_a_message_of_one_link_changes_that_link_only() -> None:
    links = known(message(7, "eth0"), message(8, "eth1"))

    links.take(message(8, "eth1", mtu=1280))

    assert [link.mtu for index in (7, 8) if (link := links.get(index))] == [1500, 1280]


def test_a_link_is_found_by_the_name_it_has_now() -> None:
    links = known(message(7, "eth0"))

    links.take(message(7, "wan"))

    assert links.named("eth0") is None
    assert links.named("wan") == links.get(7)


def test_a_link_that_is_gone_is_forgotten_twice_over() -> None:
    links = known(message(7, "eth0"))

    links.forget(7)
    links.forget(7)

    assert links.get(7) is None


def test_a_dump_leaves_nothing_of_what_was_before() -> None:
    links = known(message(7, "eth0"))

    links.replace([message(8, "eth1")])

    assert links.get(7) is None
    assert links.get(8) is not None
