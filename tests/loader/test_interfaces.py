"""What is told of the relay's interfaces, and when the program is put back. Without a kernel."""

from itertools import pairwise
from typing import Any

import pytest

from loader.interfaces import Patience, State, trouble
from loader.maps import Interface
from loader.types import Mode
from tests.loader.test_links import RUNNING, UP, known, message, vlan

OURS, THEIRS = 77, 78


def xdp(program: int, mode: int = 1) -> dict[str, Any]:
    return {"attrs": [("IFLA_XDP_ATTACHED", mode), ("IFLA_XDP_PROG_ID", program)]}


WORKING = message(7, "eth0", xdp=xdp(OURS))


@pytest.mark.parametrize(
    ("links", "state", "cure"),
    [
        ([WORKING], None, ""),
        ([], State.GONE, "make the interface again"),
        ([message(8, "eth1", xdp=xdp(OURS))], State.GONE, "make the interface again"),
        ([message(7, "eth0")], State.LOST_PROGRAM, "`systemctl restart shunt-agent`"),
        ([message(7, "eth0", flags=0)], State.LOST_PROGRAM, "`systemctl restart shunt-agent`"),
        (
            [message(7, "eth0", xdp=xdp(THEIRS))],
            State.OTHER_PROGRAM,
            "`ip link set dev eth0 xdpdrv off`",
        ),
        (
            [message(7, "eth0", xdp=xdp(THEIRS, mode=2))],
            State.OTHER_PROGRAM,
            "`ip link set dev eth0 xdpgeneric off`",
        ),
        ([message(7, "eth0", xdp=xdp(OURS), flags=0)], State.DOWN, "`ip link set dev eth0 up`"),
        ([message(7, "eth0", xdp=xdp(OURS), flags=UP)], State.NO_CARRIER, "cable"),
    ],
)
def test_what_is_wrong_with_an_interface_is_told_with_its_cure(
    links: list[Any], state: State | None, cure: str
) -> None:
    found = trouble(known(*links), Interface("eth0", 7, inside=True, mode=Mode.NATIVE), OURS)

    assert (found and found.state) == state
    assert found is None or cure in found.cure


@pytest.mark.parametrize(
    ("parent", "flags", "state"),
    [
        (WORKING, UP | RUNNING, None),
        (WORKING, UP, State.NO_CARRIER),
        (message(7, "eth0"), UP | RUNNING, State.LOST_PROGRAM),
        (message(7, "eth0", xdp=xdp(OURS), flags=0), UP | RUNNING, State.DOWN),
    ],
)
def test_of_a_vlan_the_parent_carries_the_program(
    parent: Any, flags: int, state: State | None
) -> None:
    links = known(parent, vlan(9, "eth0.100", below=7, id=100, flags=flags))

    interface = Interface("eth0.100", 7, inside=True, mode=Mode.NATIVE, vlan=100)
    found = trouble(links, interface, OURS)

    assert (found and found.state) == state


def test_a_vlan_without_a_tag_of_ours_is_of_no_use() -> None:
    links = known(WORKING, vlan(9, "odd", below=7, id=5, protocol=0x88A8))

    found = trouble(links, Interface("odd", 7, inside=True, mode=Mode.NATIVE, vlan=5), OURS)

    assert found is not None
    assert found.state is State.UNUSABLE


def attempts(patience: Patience, *, until: float, undone_after: float) -> list[float]:
    """When it is tried, if somebody undoes it each time after so many seconds."""
    now, tried = 100.0, []
    while now < until:
        tried.append(now)
        patience.tried(now)
        now = max(now + undone_after, patience.at)
    return tried


def test_who_undoes_it_at_once_is_not_fought() -> None:
    tried = attempts(Patience(), until=1100.0, undone_after=0.0)

    waits = [after - before for before, after in pairwise(tried)]
    assert waits[:7] == [1, 2, 4, 8, 16, 32, 64]
    assert set(waits[6:]) == {64}


def test_what_happens_now_and_then_is_mended_at_once() -> None:
    tried = attempts(Patience(), until=1100.0, undone_after=100.0)

    assert tried == [100.0 * n for n in range(1, 11)]
