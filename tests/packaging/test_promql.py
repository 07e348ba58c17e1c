"""The reader of PromQL that other tests lean on finds what is there."""

import pytest

from tests.packaging.promql import Selector, labels_named, selectors


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("up", ["up{}"]),
        ('absent(up{job="shunt"})', ['up{job="shunt"}']),
        ("time() - a_seconds > 30", ["a_seconds{}"]),
        ('rate(a{x="1", y=~"b|c"}[5m]) > 0', ['a{x="1",y=~"b|c"}']),
        ('rate(a{op="PUT /r/{u}"}[5m] offset 5m) / b', ['a{op="PUT /r/{u}"}', "b{}"]),
        ("a:b:rate5m > 0.5 and c unless d", ["a:b:rate5m{}", "c{}", "d{}"]),
        ("sum by (x, le) (rate(a[1m])) > bool 1e3", ["a{}"]),
        ("max without (x) (a) * on (x) group_left (y) b", ["a{}", "b{}"]),
        ("histogram_quantile(0.99, sum by (le)\n(rate(a_bucket[5m])))", ["a_bucket{}"]),
        ("100 * (1 - (a / b))", ["a{}", "b{}"]),
    ],
)
def test_it_finds_what_is_selected(expression: str, expected: list[str]) -> None:
    assert [str(selector) for selector in selectors(expression)] == expected


def test_it_finds_the_labels() -> None:
    expression = "sum by (a, b) (x) / on (c) group_left () y"

    assert labels_named(expression) == {"a", "b", "c"}
    assert labels_named(expression, kept=True) == {"a", "b"}


def test_a_match_of_several_values_is_taken_apart() -> None:
    several = Selector("a", (("x", "=~", '"b|c"'), ("y", "=", '"d"')))

    assert [str(one) for one in several.of_each_value()] == ['a{x="b",y="d"}', 'a{x="c",y="d"}']
