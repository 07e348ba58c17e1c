"""Ticks, on a loop whose time is told to it."""

import heapq
import itertools
from collections.abc import Callable

import pytest

from transceiver.media.metronome import Metronome


class FakeTimer:
    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        self.callback = None


class FakeLoop:
    """Runs what is due when the time is moved; keeps what was raised."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.raised: list[BaseException] = []
        self.wakes = 0
        self._timers: list[tuple[float, int, FakeTimer]] = []
        self._numbers = itertools.count()

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, callback: Callable[[], None], /) -> FakeTimer:
        timer = FakeTimer(callback)
        heapq.heappush(self._timers, (when, next(self._numbers), timer))
        return timer

    @property
    def timers(self) -> int:
        return len(self._timers)

    def run(self, seconds: float) -> None:
        """Time passes, and timers run when they are due."""
        end = self.now + seconds
        while self._timers and self._timers[0][0] <= end:
            self.now = max(self.now, self._timers[0][0])
            self._step()
        self.now = end

    def stall(self, seconds: float) -> None:
        """Time passes, and nothing runs; then all that is due."""
        self.now += seconds
        while self._timers and self._timers[0][0] <= self.now:
            self._step()

    def _step(self) -> None:
        _, _, timer = heapq.heappop(self._timers)
        if timer.callback is not None:
            self.wakes += 1
            try:
                timer.callback()
            except ZeroDivisionError as error:
                self.raised.append(error)


@pytest.fixture
def loop() -> FakeLoop:
    return FakeLoop()


def test_a_member_is_called_every_20_ms_without_drift(loop: FakeLoop) -> None:
    ticks: list[float] = []
    Metronome(loop).add(ticks.append)

    loop.run(10.0)

    assert len(ticks) == 500
    first = ticks[0]
    assert ticks == pytest.approx([first + 0.02 * number for number in range(500)], abs=1e-9)


def test_members_are_spread_over_the_20_ms(loop: FakeLoop) -> None:
    metronome = Metronome(loop)
    ticks: list[float] = []
    for _ in range(100):
        metronome.add(ticks.append)

    loop.run(0.0201)  # the first is ticking
    ticks.clear()
    loop.run(0.02)

    at_once = {due: ticks.count(due) for due in ticks}
    assert len(ticks) == 100
    assert set(at_once.values()) == {10}


def test_phases_that_are_empty_wake_nobody(loop: FakeLoop) -> None:
    Metronome(loop).add(lambda now: None)

    loop.run(1.0)

    assert loop.wakes == 50


def test_a_member_that_has_left_is_not_called(loop: FakeLoop) -> None:
    metronome = Metronome(loop)
    ticks: list[float] = []
    handle = metronome.add(ticks.append)
    loop.run(0.1)
    called = len(ticks)

    handle.cancel()
    handle.cancel()
    loop.run(1.0)

    assert len(ticks) == called
    assert len(metronome) == 0
    assert loop.timers == 0


def test_it_starts_again_after_the_last_has_left(loop: FakeLoop) -> None:
    metronome = Metronome(loop)
    metronome.add(lambda now: None).cancel()
    loop.run(5.0)
    ticks: list[float] = []

    metronome.add(ticks.append)
    loop.run(0.2)

    assert len(ticks) == 10
    assert min(ticks) >= 1005.0


def test_a_member_may_leave_and_others_may_come_within_a_tick(loop: FakeLoop) -> None:
    metronome = Metronome(loop)
    ticks: list[float] = []

    def replace(now: float) -> None:
        handle.cancel()
        metronome.add(ticks.append)

    handle = metronome.add(replace)
    loop.run(0.1)

    assert 4 <= len(ticks) <= 5


def test_a_member_that_another_has_sent_away_is_not_called(loop: FakeLoop) -> None:
    metronome = Metronome(loop)
    ticks: list[float] = []
    handles = [metronome.add(lambda now: handles[10].cancel()) for _ in range(10)]
    handles.append(metronome.add(ticks.append))  # of the phase of the first

    loop.run(0.1)

    assert ticks == []


@pytest.mark.parametrize(("stall", "made_up"), [(0.03, 1), (0.05, 2), (0.5, 3), (60, 3)])
def test_after_a_stall_a_few_ticks_are_made_up_for(
    loop: FakeLoop, stall: float, made_up: int
) -> None:
    ticks: list[float] = []
    Metronome(loop).add(ticks.append)
    loop.run(0.1)
    before = len(ticks)

    loop.stall(stall)

    assert made_up <= len(ticks) - before <= made_up + 1
    assert loop.now - ticks[-1] <= 0.02
    loop.run(1.0)
    assert len(ticks) - before - made_up in (49, 50, 51)


def test_what_a_member_raises_harms_no_other(loop: FakeLoop) -> None:
    metronome = Metronome(loop)
    ticks: list[float] = []

    def fail(now: float) -> None:
        raise ZeroDivisionError

    for _ in range(10):
        metronome.add(fail)
    for _ in range(10):
        metronome.add(ticks.append)

    loop.run(0.1)

    assert len(loop.raised) == pytest.approx(50, abs=10)
    assert len(ticks) == len(loop.raised)
    assert sorted(ticks) == ticks


def burden(loop: FakeLoop, metronome: Metronome, seconds: float) -> None:
    """From now on each 20 ms bring so much work."""

    def work(now: float) -> None:
        loop.now += seconds

    metronome.add(work)


def test_a_loop_that_keeps_pace_is_not_behind(loop: FakeLoop) -> None:
    metronome = Metronome(loop)
    for _ in range(9):
        burden(loop, metronome, 0.002)  # 90 % of the time there is

    loop.run(10.0)

    assert not metronome.is_behind
    assert metronome.lateness < 0.002


def test_a_loop_with_more_to_do_than_there_is_time_is_behind(loop: FakeLoop) -> None:
    metronome = Metronome(loop)
    for _ in range(11):
        burden(loop, metronome, 0.002)

    loop.run(10.0)

    assert metronome.is_behind
    assert metronome.lateness > 0.010


def test_one_hiccup_does_not_make_it_behind(loop: FakeLoop) -> None:
    metronome = Metronome(loop)
    metronome.add(lambda now: None)
    loop.run(1.0)

    loop.stall(0.08)

    assert metronome.lateness > 0
    assert not metronome.is_behind


def test_it_is_behind_until_lateness_is_clearly_gone(loop: FakeLoop) -> None:
    metronome = Metronome(loop)
    metronome.add(lambda now: None)
    loop.run(1.0)
    loop.stall(2.0)
    assert metronome.is_behind

    seen = []
    for _ in range(500):
        loop.run(0.02)
        seen.append((metronome.is_behind, metronome.lateness))

    ended = [late for is_behind, late in seen if not is_behind]
    assert ended
    assert ended[0] < 0.004
    assert min(late for is_behind, late in seen if is_behind) >= 0.004


def test_without_members_nothing_is_late(loop: FakeLoop) -> None:
    metronome = Metronome(loop)
    handle = metronome.add(lambda now: None)
    loop.run(1.0)
    loop.stall(2.0)

    handle.cancel()
    loop.run(0.1)

    assert not metronome.is_behind
    assert metronome.lateness == 0


def test_time_without_members_is_not_lateness(loop: FakeLoop) -> None:
    metronome = Metronome(loop)
    metronome.add(lambda now: None).cancel()
    loop.run(3600)

    metronome.add(lambda now: None)
    loop.run(0.1)

    assert metronome.lateness == pytest.approx(0, abs=1e-9)


def test_closed_it_calls_nobody_and_takes_nobody(loop: FakeLoop) -> None:
    metronome = Metronome(loop)
    ticks: list[float] = []
    handles = [metronome.add(ticks.append) for _ in range(20)]
    loop.run(0.1)
    ticks.clear()

    metronome.close()
    metronome.close()
    loop.run(1.0)

    assert ticks == []
    assert len(metronome) == 0
    assert loop.timers == 0
    handles[0].cancel()
    with pytest.raises(RuntimeError):
        metronome.add(ticks.append)


def test_it_may_be_closed_in_a_tick(loop: FakeLoop) -> None:
    metronome = Metronome(loop)
    ticks: list[float] = []
    metronome.add(lambda now: metronome.close())
    for _ in range(20):
        metronome.add(ticks.append)

    loop.run(0.1)

    assert len(ticks) <= 18  # those of the phases before
    assert loop.timers == 0


def test_the_share_is_what_the_thread_has_used_of_late(loop: FakeLoop) -> None:
    used = 0.0
    metronome = Metronome(loop, cpu=lambda: used)
    metronome.add(lambda at: None)
    for _ in range(500):
        loop.run(0.02)
        used += 0.005
    assert metronome.share == pytest.approx(0.25, abs=0.02)
    for _ in range(500):
        loop.run(0.02)
    assert metronome.share == pytest.approx(0.0, abs=0.02)


def test_the_thread_is_asked_for_its_time_ten_times_a_second_at_most(loop: FakeLoop) -> None:
    asked: list[float] = []

    def cpu() -> float:
        asked.append(loop.now)
        return 0.0

    metronome = Metronome(loop, cpu=cpu)
    for _ in range(100):
        metronome.add(lambda at: None)

    loop.run(10.0)

    assert 90 <= len(asked) <= 101
