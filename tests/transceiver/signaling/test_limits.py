"""Token buckets: how often, how much at once, and how little they remember."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transceiver.signaling.limits import Limiter, Rate


def test_a_burst_is_let_through_and_then_the_rate() -> None:
    limiter = Limiter(Rate(2, 5))
    assert [limiter.take("a", 0.0) for _ in range(5)] == [0.0] * 5
    assert limiter.take("a", 0.0) == pytest.approx(0.5)
    assert limiter.take("a", 0.5) == 0.0
    assert limiter.take("a", 0.5) > 0


def test_what_was_refused_does_not_count() -> None:
    limiter = Limiter(Rate(1, 1))
    limiter.take("a", 0.0)
    for _ in range(100):
        limiter.take("a", 0.5)
    assert limiter.take("a", 1.0) == 0.0


def test_one_does_not_use_up_what_is_anothers() -> None:
    limiter = Limiter(Rate(1, 1))
    limiter.take("a", 0.0)
    assert limiter.take("b", 0.0) == 0.0


def test_a_pause_gives_no_more_than_a_burst() -> None:
    limiter = Limiter(Rate(1, 3))
    taken = [limiter.take("a", 1000.0) for _ in range(4)]
    assert taken[:3] == [0.0] * 3
    assert taken[3] > 0


def test_many_names_take_no_more_memory_than_there_is_and_get_one_bucket_together() -> None:
    limiter = Limiter(Rate(1, 2), room=10)
    let_through = sum(limiter.take(str(n), 0.0) == 0 for n in range(100_000))
    assert len(limiter) == 10
    assert let_through == 10 + 2


def test_and_who_was_known_before_keeps_its_own() -> None:
    limiter = Limiter(Rate(1, 2), room=10)
    limiter.take("a", 0.0)
    for n in range(1000):
        limiter.take(str(n), 0.0)
    assert limiter.take("a", 0.0) == 0.0
    assert limiter.take("a", 0.0) > 0


def test_full_buckets_are_forgotten() -> None:
    limiter = Limiter(Rate(1, 2), room=1000)
    for n in range(1000):
        limiter.take(str(n), 0.0)
    for n in range(1000):
        limiter.take(f"later {n}", 10.0)
    assert len(limiter) <= 1000
    assert limiter.take("one more", 10.0) == 0.0
    assert limiter.take("one more", 10.0) == 0.0


@given(st.lists(st.floats(0, 0.3), min_size=1, max_size=300))
def test_no_window_has_more_than_the_burst_and_the_rate(pauses: list[float]) -> None:
    limiter, now, passed = Limiter(Rate(5, 3)), 0.0, []
    for pause in pauses:
        now += pause
        if limiter.take("a", now) == 0:
            passed.append(now)
    for i, start in enumerate(passed):
        for count, end in enumerate(passed[i:], 1):
            assert count <= 3 + 5 * (end - start) + 1e-6


@pytest.mark.parametrize(
    ("text", "rate"),
    [("5", Rate(5, 5)), ("0.5", Rate(0.5, 1)), ("5:20", Rate(5, 20)), ("1000:1", Rate(1000, 1))],
)
def test_rates_are_read(text: str, rate: Rate) -> None:
    assert Rate.parse(text) == rate


@pytest.mark.parametrize("text", ["", "0", "-1", "1:0", "1:", "a", "1e9", "1:2:3", "inf", "٣"])
def test_nonsense_is_no_rate(text: str) -> None:
    with pytest.raises(ValueError, match="no rate"):
        Rate.parse(text)
