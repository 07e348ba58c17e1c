"""The board on which workers tell their loads, and who takes a call by it."""

import os
from collections.abc import Iterator

import pytest

from transceiver.placement import STALE_SECONDS, Board, Place

NAMES = ("a", "b", "c")


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def board(clock: Clock) -> Iterator[Board]:
    board = Board.create(NAMES, clock=clock)
    yield board
    board.close()


def test_at_first_all_are_away(board: Board) -> None:
    assert [board.load(name) for name in NAMES] == [None] * 3
    assert board.least(NAMES) is None
    assert Place(board, "a").better() is None


def test_who_has_fewest_takes_the_next(board: Board) -> None:
    places = {name: Place(board, name) for name in NAMES}
    for name, load in (("a", 2), ("b", 1), ("c", 1)):
        places[name].tell(load)
    assert places["a"].better() == "b"
    assert places["b"].better() is None
    assert places["c"].better() is None


def test_who_has_left_takes_none_and_hands_its_own_on(board: Board) -> None:
    a, b = Place(board, "a"), Place(board, "b")
    a.tell(0)
    b.tell(5)
    a.leave()
    a.tell(0)
    assert b.better() is None
    assert a.better() == "b"


def test_who_stands_still_takes_none(board: Board, clock: Clock) -> None:
    a, b = Place(board, "a"), Place(board, "b")
    a.tell(5)
    b.tell(0)
    assert a.better() == "b"
    clock.now += STALE_SECONDS + 0.1
    a.beat()
    assert a.better() is None
    assert board.silence("b") == pytest.approx(STALE_SECONDS + 0.1)
    b.beat()
    assert a.better() == "b"


def test_another_process_sees_the_same(board: Board, clock: Clock) -> None:
    Place(board, "b").tell(7)
    other = Board(os.dup(board.descriptor), NAMES, clock=clock)
    assert other.load("b") == 7
    other.close()
