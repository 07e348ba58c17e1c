"""Where in a TOML text each key and each element of an array stands. No I/O.

`tomllib` reads and judges the text, but says nothing of lines. This walks over a text that
`tomllib` has accepted, so it asks only where things begin and end; what a key means, quotes and
escapes and all, is again asked of `tomllib`. The tests hold the two together.
"""

import re
import tomllib
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count

__all__ = ["Path", "Places", "places"]

Path = tuple[str | int, ...]
"""Keys from the top of the document, and the indexes of elements: `("relay", "vips", 0)`."""

_PART = r"""(?:[A-Za-z0-9_-]+|"(?:\\.|[^"\\\n])*"|'[^'\n]*')"""
_KEY = re.compile(rf"[ \t]*{_PART}(?:[ \t]*\.[ \t]*{_PART})*[ \t]*")
_BLANK = re.compile(r"(?:[ \t\n]+|#[^\n]*)*")
_STRING = re.compile(
    r'"""(?:\\.|[^\\])*?"""(?:"{0,2})'  # up to two quotes may stand before the three that end it
    r"|'''.*?'''(?:'{0,2})"
    r'|"(?:\\.|[^"\\\n])*"'
    r"|'[^'\n]*'",
    re.DOTALL,
)
_SCALAR = re.compile(r"[^\[\]{},#\n]+")


@dataclass(frozen=True, slots=True)
class Places:
    """*lines*: where each path stands first, counted from 1. *repeated*: paths of keys that are
    given again, with the line of that; in a text that `tomllib` accepts there are none."""

    lines: dict[Path, int] = field(default_factory=dict)
    repeated: list[tuple[Path, int]] = field(default_factory=list)


def places(text: str) -> Places:
    """The places of a text. In one that `tomllib` refuses: those before it no longer looks like
    TOML."""
    walk = _Walk(text.replace("\r\n", "\n"))
    with suppress(_LostError):  # `tomllib` says what is wrong, and where
        walk.document()
    return walk.found


class _LostError(Exception):
    """The text is no TOML."""


class _Walk:
    def __init__(self, text: str) -> None:
        self.found = Places()
        self._text = text
        self._at = 0
        self._newlines = [match.start() for match in re.finditer("\n", text)]
        self._elements: dict[Path, int] = {}  # of arrays of tables: how many there are so far
        self._headers: set[Path] = set()

    def document(self) -> None:
        table: Path = ()
        while self._peek_after_blank():
            if self._take("[["):
                line, key = self._line(), self._key()
                self._must_take("]]")
                path = self._place_of(key[:-1]) + key[-1:]
                self._note(path, line)
                table = (*path, self._elements.setdefault(path, 0))
                self._elements[path] += 1
                self._note(table, line)
            elif self._take("["):
                line, key = self._line(), self._key()
                self._must_take("]")
                table = self._place_of(key)
                if table in self._headers:
                    self.found.repeated.append((table, line))
                self._headers.add(table)
                self._note(table, line)
            else:
                self._value(self._pair(table))

    def _place_of(self, key: Path) -> Path:
        """A header's path: of an array of tables it means the last."""
        path: Path = ()
        for part in key:
            path = (*path, part)
            if path in self._elements:
                path = (*path, self._elements[path] - 1)
        return path

    def _pair(self, table: Path) -> Path:
        """Over `key =`; the key's path."""
        line = self._line()
        path = table + self._key()
        self._must_take("=")
        if path in self.found.lines:
            self.found.repeated.append((path, line))
        self._note(path, line)
        return path

    def _value(self, path: Path) -> None:
        around: list[tuple[Path, Iterator[int] | None]] = []  # arrays, and inline tables
        while True:
            first = self._peek_after_blank()
            if self._take("["):
                around.append((path, count()))
            elif self._take("{"):
                around.append((path, None))
            else:
                self._over(_STRING if first in ('"', "'") else _SCALAR)
            while around and (mark := self._peek_after_blank()) in (",", "]", "}"):
                self._must_take(mark)
                if mark != ",":
                    around.pop()
            if not around:
                return
            inside, indexes = around[-1]
            if indexes is None:
                path = self._pair(inside)
            else:
                path = (*inside, next(indexes))
                self._note(path, self._line())

    def _key(self) -> Path:
        raw = self._over(_KEY)
        try:
            tree = tomllib.loads(f"{raw}=0")
        except ValueError:
            raise _LostError from None
        path: Path = ()
        while isinstance(tree, dict):
            ((part, tree),) = tree.items()
            path = (*path, part)
        return path

    def _note(self, path: Path, line: int) -> None:
        for length in range(len(path), 0, -1):
            if path[:length] in self.found.lines:
                break  # and so are all before it
            self.found.lines[path[:length]] = line

    def _line(self) -> int:
        return bisect_right(self._newlines, self._at - 1) + 1

    def _peek_after_blank(self) -> str:
        self._over(_BLANK)
        return self._text[self._at : self._at + 1]

    def _take(self, mark: str) -> bool:
        if not self._text.startswith(mark, self._at):
            return False
        self._at += len(mark)
        return True

    def _must_take(self, mark: str) -> None:
        if not self._take(mark):
            raise _LostError

    def _over(self, pattern: re.Pattern[str]) -> str:
        match = pattern.match(self._text, self._at)
        if not match:
            raise _LostError
        self._at = match.end()
        return match.group()
