"""Numbered packets: whatever happens to one of them on the way is told, and as what it is."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest

from tools.bench.numbered import Flow, Tally, compose, template

SIZE = 40
DIRECTION = 1


def packets(flow: int, numbers: Sequence[int]) -> npt.NDArray[np.uint8]:
    """Of one flow, with the byte behind them that receivers have room for."""
    made = template(len(numbers), SIZE)
    compose(made, DIRECTION, flow, numbers)
    return np.pad(made, ((0, 0), (0, 1)))


def note(
    tally: Tally,
    rows: npt.NDArray[np.uint8],
    *,
    way: int = 0,
    length: int = SIZE,
    times: Sequence[float] | None = None,
) -> None:
    count = len(rows)
    at = np.zeros(count) if times is None else np.asarray(times, dtype=np.float64)
    tally.note(rows, np.full(count, length), np.full(count, way), at)


def outcome(numbers: Sequence[int], *, sent: int) -> Flow:
    """Of a single flow of which these came."""
    tally = Tally(DIRECTION, 1, SIZE)
    note(tally, packets(0, numbers))
    (flow,) = tally.flows([sent])
    assert tally.received == flow.received
    assert (tally.corrupted, tally.astray) == (0, 0)
    return flow


def test_media_is_what_it_begins_like() -> None:
    first = packets(0, [7])[0, 0]
    assert 128 <= first <= 191, "RTP's class (RFC 7983)"


def test_all_that_was_sent_has_come() -> None:
    assert outcome(range(5000), sent=5000) == Flow(5000, 5000, (), 0, 0, 0.0)


@pytest.mark.parametrize(
    ("came", "lost"),
    [
        ([1, 2, 3, 4], ((0, 0),)),
        ([0, 1, 2], ((3, 4),)),
        ([0, 2, 4], ((1, 1), (3, 3))),
        ([4], ((0, 3),)),
        ([0], ((1, 4),)),
    ],
)
def test_what_did_not_come_is_lost_by_its_number(
    came: list[int], lost: tuple[tuple[int, int], ...]
) -> None:
    flow = outcome(came, sent=5)

    assert flow.lost == lost
    assert flow.received + flow.lost_packets == 5


def test_a_flow_of_which_nothing_came_is_lost_whole() -> None:
    tally = Tally(DIRECTION, 2, SIZE)
    note(tally, packets(0, range(3)))

    assert [flow.lost for flow in tally.flows([3, 3])] == [(), ((0, 2),)]


def test_a_packet_that_comes_again_is_a_duplicate_and_not_another_one() -> None:
    tally = Tally(DIRECTION, 1, SIZE)
    for numbers in ([0, 1, 1, 2], [2, 0]):
        note(tally, packets(0, numbers))

    (flow,) = tally.flows([3])
    assert (flow.received, flow.duplicated, flow.lost) == (3, 3, ())
    assert tally.received == 3


def test_what_comes_behind_a_later_one_is_reordered() -> None:
    tally = Tally(DIRECTION, 1, SIZE)
    for numbers in ([0, 2, 1, 3], [5], [4, 6]):
        note(tally, packets(0, numbers))

    (flow,) = tally.flows([7])
    assert (flow.reordered, flow.duplicated, flow.lost) == (2, 0, ())


@pytest.mark.parametrize("place", range(SIZE))
@pytest.mark.parametrize("bit", range(8))
def test_no_bit_changes_unseen(place: int, bit: int) -> None:
    tally = Tally(DIRECTION, 3, SIZE)
    (row,) = packets(1, [70_000])
    row[place] ^= 1 << bit

    note(tally, row[np.newaxis], way=1)

    assert tally.corrupted + tally.astray == 1
    assert tally.received == 0


@pytest.mark.parametrize("length", [SIZE - 1, SIZE + 1])
def test_a_packet_of_another_length_is_corrupted(length: int) -> None:
    tally = Tally(DIRECTION, 1, SIZE)

    note(tally, packets(0, [0]), length=length)

    assert (tally.corrupted, tally.received) == (1, 0)


def test_a_whole_packet_by_another_flows_way_is_astray() -> None:
    tally = Tally(DIRECTION, 2, SIZE)

    note(tally, packets(1, [0]), way=0)

    assert (tally.astray, tally.corrupted, tally.received) == (1, 0, 0)
    assert tally.flows([0, 1])[1].lost == ((0, 0),)


def test_the_longest_gap_is_a_flows_own_and_that_of_all() -> None:
    tally = Tally(DIRECTION, 2, SIZE)
    note(tally, packets(0, [0, 1]), times=[1.0, 1.5])
    note(tally, packets(1, [0]), times=[2.0], way=1)
    note(tally, packets(0, [2]), times=[3.0])
    note(tally, packets(1, [1]), times=[2.75], way=1)

    assert [flow.longest_gap for flow in tally.flows([3, 2])] == [1.5, 0.75]
    assert tally.longest_gap == 1.0
