"""Netlink messages, and the socket's ways with a real kernel."""

import errno
import socket
from pathlib import Path

import pytest
from pyroute2.netlink.rtnl import RTM_GETLINK, RTM_GETNEIGH, RTNLGRP_NEIGH

from loader import nexthop, rtnetlink
from loader.rtnetlink import Rtnetlink, attribute, attributes, group
from tests.loader.conftest import Host


def test_attributes_are_read_as_they_were_written() -> None:
    written = attribute(1, b"\1") + attribute(0x8000 | 7, b"four") + attribute(9, b"")

    assert attributes(b"head" + written, 4) == {1: b"\1", 7: b"four", 9: b""}


@pytest.mark.parametrize("cut", range(1, 12))
def test_of_attributes_that_are_cut_short_the_whole_ones_are_read(cut: int) -> None:
    written = attribute(1, b"four") + attribute(2, b"12345678")

    assert attributes(written[:-cut]) == {1: b"four"}


def test_an_attribute_of_no_length_is_no_endless_loop() -> None:
    assert attributes(bytes(64)) == {}


def test_groups_are_bits() -> None:
    assert group(1, 3, 32) == 0x80000005


def test_the_kernels_refusal_is_an_error_with_its_number(host: Host) -> None:
    def ask() -> None:
        with Rtnetlink() as netlink, pytest.raises(OSError) as error:
            netlink.get(RTM_GETLINK, bytes(4) + (9999).to_bytes(4, "little") + bytes(8))
        assert error.value.errno == errno.ENODEV

    host.run(ask)


def test_a_dump_of_more_than_a_datagram_is_read_to_its_end(host: Host, tmp_path: Path) -> None:
    batch = tmp_path / "batch"
    lines = (
        f"neigh add 198.18.1.{n} lladdr 02:00:00:00:00:01 dev inside\n" for n in range(20, 240)
    )
    batch.write_text("".join(lines))
    host.ip(f"-b {batch}")

    def ask() -> None:
        with Rtnetlink() as netlink:
            found = netlink.dump(RTM_GETNEIGH, bytes([socket.AF_INET]) + bytes(11))
            assert len(found) >= 220
            assert sum(len(each.whole) for each in found) > 16384
            assert nexthop.has_address(netlink, "198.18.1.1")

    host.run(ask)


def test_after_an_overflow_the_kernel_is_heard_again_once_all_is_read(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rtnetlink, "_EVENTS_BUFFER", 4096)

    def change(number: int) -> None:
        host.ip(f"neigh replace 198.18.1.99 lladdr 02:00:00:00:00:{number:02x} dev inside")

    def heard(events: Rtnetlink) -> list[str]:
        return [nexthop.entry_of(each.body)[1].mac.hex() for each in events.told(100)]

    def listen() -> None:
        with Rtnetlink(group(RTNLGRP_NEIGH)) as events:
            for number in range(30):
                change(number)
            with pytest.raises(OSError) as error:
                heard(events)
            assert error.value.errno == errno.ENOBUFS
            change(77)  # is never told
            while events.skip(1):
                pass
            change(78)
            assert heard(events) == ["02000000004e"]

    host.run(listen)
