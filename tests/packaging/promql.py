"""What a PromQL expression names, as far as is needed to see that it is there: not a parser."""

import re
from dataclasses import dataclass

__all__ = ["Selector", "labels_named", "selectors"]

_STRING = r'"(?:[^"\\]|\\.)*"'
_GROUPING = re.compile(r"\b(by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)")
_NO_NAMES = re.compile(rf"\[[^\]]*\]|\boffset\s+\w+|\b(?:and|or|unless|bool)\b|{_GROUPING.pattern}")
_SELECTOR = re.compile(
    rf"(?<![\w:])(?P<name>[a-zA-Z_:][\w:]*)(?![\w:]|\s*\()"
    rf"(?:\s*\{{(?P<matchers>(?:[^}}\"]|{_STRING})*)\}})?"
)
_MATCHER = re.compile(rf"(?P<label>\w+)\s*(?P<operator>=~|!~|!=|=)\s*(?P<value>{_STRING})")


@dataclass(frozen=True, slots=True)
class Selector:
    """A metric, and what is asked of its labels: label, operator, value in its quotes."""

    name: str
    matchers: tuple[tuple[str, str, str], ...] = ()

    def of_each_value(self) -> "list[Selector]":
        """Itself; if it matches one label by `a|b|c`, one with `a`, one with `b`, one with `c`."""
        for index, (label, operator, value) in enumerate(self.matchers):
            if operator == "=~" and "|" in value:
                before, after = self.matchers[:index], self.matchers[index + 1 :]
                return [
                    Selector(self.name, (*before, (label, "=", f'"{each}"'), *after))
                    for each in value.strip('"').split("|")
                ]
        return [self]

    def __str__(self) -> str:
        return f"{self.name}{{{','.join(''.join(matcher) for matcher in self.matchers)}}}"


def selectors(expression: str) -> list[Selector]:
    """All that the expression selects."""
    return [
        Selector(
            found["name"],
            tuple(
                (each["label"], each["operator"], each["value"])
                for each in _MATCHER.finditer(found["matchers"] or "")
            ),
        )
        for found in _SELECTOR.finditer(_NO_NAMES.sub(" ", expression))
    ]


def labels_named(expression: str, *, kept: bool = False) -> set[str]:
    """Labels by which the expression groups or matches; only those of its `by`, if only such as
    are *kept*."""
    return {
        label.strip()
        for grouping in _GROUPING.finditer(expression)
        for label in grouping[2].split(",")
        if label.strip() and (grouping[1] == "by" or not kept)
    }
