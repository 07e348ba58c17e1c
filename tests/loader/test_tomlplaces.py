"""Where keys and elements stand, held to what tomllib reads."""

import sys
import tomllib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loader.tomlplaces import Path, places

TEXT = '''\
first = 1 # a [comment] = with marks

[relay]
vips = [ "a", # one
  """b
  \\""" ] still
  """, [ 'c',
    2 ], { q = 1, "r.s" = [
  3 ] },
]
"quoted \\u0061" = "]"
 dotted . 'key' = 'x'
dotted.more = true

[[table]]
key = 1
[[ table ]]
key = """"two quotes at the end"""""
  [table.below]
  key = 1979-05-27 07:32:00
[api . "tcp"]
key = {}
'''

PLACES: dict[Path, int] = {
    ("first",): 1,
    ("relay",): 3,
    ("relay", "vips"): 4,
    ("relay", "vips", 0): 4,
    ("relay", "vips", 1): 5,
    ("relay", "vips", 2): 7,
    ("relay", "vips", 2, 0): 7,
    ("relay", "vips", 2, 1): 8,
    ("relay", "vips", 3): 8,
    ("relay", "vips", 3, "q"): 8,
    ("relay", "vips", 3, "r.s"): 8,
    ("relay", "vips", 3, "r.s", 0): 9,
    ("relay", "quoted a"): 11,
    ("relay", "dotted"): 12,
    ("relay", "dotted", "key"): 12,
    ("relay", "dotted", "more"): 13,
    ("table",): 15,
    ("table", 0): 15,
    ("table", 0, "key"): 16,
    ("table", 1): 17,
    ("table", 1, "key"): 18,
    ("table", 1, "below"): 19,
    ("table", 1, "below", "key"): 20,
    ("api",): 21,
    ("api", "tcp"): 21,
    ("api", "tcp", "key"): 22,
}


def paths(value: Any, path: Path = ()) -> set[Path]:
    """Every path in what tomllib has read."""
    if isinstance(value, dict):
        below = list(value.items())
    elif isinstance(value, list):
        below = list(enumerate(value))
    else:
        return set()
    return {(*path, key) for key, _value in below}.union(
        *(paths(value, (*path, key)) for key, value in below)
    )


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_every_key_and_element_has_its_line(newline: str) -> None:
    text = TEXT.replace("\n", newline)
    assert set(PLACES) == paths(tomllib.loads(text)), "the table above is whole"

    assert places(text).lines == PLACES


@pytest.mark.parametrize(
    ("text", "repeated"),
    [
        ("[a]\nk = 1\n[b]\nk = 2\n", []),
        ("[a]\nk = 1\nk = [\n2]\n", [(("a", "k"), 3)]),
        ("[a]\nb.c = 1\nb.d = 2\n'b'.\"c\" = 3\n", [(("a", "b", "c"), 4)]),
        ("[a]\n[b]\n[ 'a' ]\n", [(("a",), 3)]),
        ("[[a]]\nk = 1\n[[a]]\nk = 1\n", []),
        ("k = { a = 1,\n a = 2 }\n", [(("k", "a"), 2)]),
    ],
)
def test_what_is_given_twice_is_told(text: str, repeated: list[tuple[Path, int]]) -> None:
    assert places(text).repeated == repeated


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a = 1\nb\nc = 1", {("a",): 1}),
        ("a = 1\n[b\n", {("a",): 1}),
        ("a = 1\n'\\x' 3", {("a",): 1}),
        ('a = [1, "\n', {("a",): 1, ("a", 0): 1, ("a", 1): 1}),
        ("a = ", {("a",): 1}),
        ('"\\x" = 1', {}),
    ],
)
def test_of_a_broken_text_it_tells_what_was_before(text: str, found: dict[Path, int]) -> None:
    assert places(text).lines == found


def test_nesting_may_be_deep() -> None:
    deep = 2 * sys.getrecursionlimit()

    assert len(places("a = " + "[" * deep + "]" * deep).lines) == deep


# Texts of any kind: keys, and values of one or several lines.

KEYS = st.one_of(
    st.sampled_from(["a", "b", "a-b", "7"]),
    st.sampled_from(['"a"', "'b'", '"a.b"', '""', "'\"'", '"\\""', '"#"', "'['", '"\\u0061b"']),
)
DOTTED = st.lists(KEYS, min_size=1, max_size=3).map(" . ".join)
SCALARS = st.sampled_from(
    [
        *("1", "-0.5", "true", "1979-05-27 07:32:00", "inf", '"#"', "'\"'", '"\\"]"', '""'),
        *('"""\n"\n"""', '""" "" """""', "'''\n'\n'''''", '"""\\\n  """', "''''''", '"""\\""""'),
    ]
)
GAPS = st.sampled_from(["", " ", "\n", "# a = [\n", "\t\n\n"])
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(st.tuples(GAPS, inner, GAPS), max_size=3).map(
            lambda items: "[" + ",".join(a + v + b for a, v, b in items) + "]"
        ),
        st.lists(st.tuples(DOTTED, inner), max_size=3).map(
            lambda pairs: "{" + ", ".join(f"{k} = {v}" for k, v in pairs) + "}"
        ),
    ),
    max_leaves=6,
)
LINES = st.one_of(
    st.tuples(DOTTED, VALUES).map(lambda pair: f"{pair[0]} = {pair[1]}"),
    DOTTED.map(lambda key: f"[ {key} ]"),
    DOTTED.map(lambda key: f"[[{key}]] # again"),
    st.sampled_from(["", "# [a]"]),
)


def loaded(lines: list[str]) -> dict[str, Any] | None:
    try:
        return tomllib.loads("\n".join(lines))
    except tomllib.TOMLDecodeError:
        return None


@settings(deadline=None)
@given(st.lists(LINES, max_size=8))
def test_it_finds_what_tomllib_finds_and_nothing_else(drawn: list[str]) -> None:
    lines: list[str] = []
    for line in drawn:  # those that go together: two of three documents would be refused
        if loaded([*lines, line]) is not None:
            lines.append(line)
    text = "\n".join(lines)

    found = places(text)

    assert set(found.lines) == paths(tomllib.loads(text))
    assert found.repeated == []


@settings(deadline=None)
@given(st.lists(LINES, max_size=6), DOTTED)
def test_a_line_is_where_the_text_has_it(before: list[str], key: str) -> None:
    """A table of a name of its own, put after any document, is on the line after it."""
    lines = [line for line in before if loaded([line]) is not None]
    while loaded(lines) is None:
        lines.pop()
    text = "\n".join(lines)

    found = places(f"{text}\n[own]\n\n{key} = 0").lines

    line = text.count("\n") + 2
    assert found[("own",)] == line
    assert {at for path, at in found.items() if path[:1] == ("own",)} == {line, line + 2}


@settings(deadline=None)
@given(st.text(alphabet="ab[]{}=,.\"'\\#\n \t1", max_size=40))
def test_no_text_is_too_strange(text: str) -> None:
    assert all(1 <= line <= text.count("\n") + 1 for line in places(text).lines.values())
