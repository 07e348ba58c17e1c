"""How much of the time a loop takes that always has work."""

import pytest

from loader.pace import Pace


def test_what_one_change_asks_for_is_done_without_a_pause() -> None:
    pace = Pace()

    assert [pace.rest(began=t / 100, ended=t / 100 + 0.01) for t in range(1000, 1010)] == [0.0] * 10


def test_work_without_end_gets_half_of_the_time() -> None:
    pace, now, worked = Pace(), 1000.0, 0.0

    while now < 1060.0:
        worked += 0.01
        now += 0.01 + pace.rest(began=now, ended=now + 0.01)

    assert worked / 60 == pytest.approx(0.5, abs=0.01)


def test_after_a_pause_it_may_work_at_once_again() -> None:
    pace = Pace()
    assert pace.rest(began=1000.0, ended=1005.0) > 0

    assert pace.rest(began=1010.0, ended=1010.05) == 0
