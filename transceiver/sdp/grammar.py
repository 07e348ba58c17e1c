"""What offers and fragments have in common: lines, levels, and the grammar of what is read.

Here is where the bounds are: whatever the text, it is read in one pass, and each pattern takes time
linear to what it is given.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from transceiver.ice import Credentials

__all__ = ["MAX_SIZE", "NUMBER", "TOKEN", "Level", "MalformedError", "split"]

MAX_SIZE = 65536
"""Characters of a text. A browser's offer has 700 to 10,000."""
_MAX_LINES = 1000
_MAX_SECTIONS = 16

TOKEN = r"[!#-'*+\-.0-9A-Z^-~]"
"""A character of a token (RFC 8866 section 9)."""
NUMBER = re.compile("[0-9]{1,20}")

_KIND = re.compile(f"{TOKEN}{{1,32}}")
_MID = re.compile(f"{TOKEN}{{1,64}}")
_FOREIGN = re.compile(r"[^\t\r\n -~]")
_UFRAG = re.compile("[A-Za-z0-9+/]{4,256}")  # RFC 8839 section 5.4
_PASSWORD = re.compile("[A-Za-z0-9+/]{22,256}")


class MalformedError(ValueError):
    """The text breaks the grammar; the message says where, for the client's developer."""


@dataclass(slots=True)
class Level:
    """The attributes of a section, or of the session itself."""

    name: str
    """What errors call it."""
    media: str = ""
    """The m= line's value."""
    attributes: dict[str, list[str]] = field(default_factory=dict)

    def all(self, attribute: str) -> Sequence[str]:
        return self.attributes.get(attribute, ())

    def first(self, attribute: str) -> str | None:
        values = self.attributes.get(attribute)
        return values[0] if values else None

    def mid(self) -> str | None:
        """Raises MalformedError for one that is none."""
        mid = self.first("mid")
        if mid is not None and not _MID.fullmatch(mid):
            raise MalformedError(f"{self.name} has no valid a=mid")
        return mid

    def credentials(self) -> Credentials:
        """Raises MalformedError if there are none, or none that are valid."""
        ufrag, password = self.first("ice-ufrag"), self.first("ice-pwd")
        if ufrag is None or not _UFRAG.fullmatch(ufrag):
            raise MalformedError(
                f"{self.name} has no valid a=ice-ufrag (4 to 256 letters, digits, + and /)"
            )
        if password is None or not _PASSWORD.fullmatch(password):
            raise MalformedError(
                f"{self.name} has no valid a=ice-pwd (22 to 256 letters, digits, + and /)"
            )
        return Credentials(ufrag, password)


def split(text: str, read: frozenset[str]) -> list[Level]:
    """The session's level, and those of the sections in their order, with those attributes that
    are to be *read*. Lines end in CRLF or LF. Raises MalformedError.
    """
    if len(text) > MAX_SIZE:
        raise MalformedError(f"the SDP has more than {MAX_SIZE} characters")
    foreign = _FOREIGN.search(text)
    if foreign is not None:
        raise MalformedError(f"the SDP has a character that is not printable ASCII, {foreign[0]!a}")
    lines = text.split("\n")
    if len(lines) > _MAX_LINES:
        raise MalformedError(f"the SDP has more than {_MAX_LINES} lines")
    level = Level("the session")
    levels = [level]
    for number, line in enumerate(lines, 1):
        if line.startswith("a="):
            attribute, _, value = line[2:].rstrip().partition(":")
            if attribute in read:
                level.attributes.setdefault(attribute, []).append(value)
        elif line.startswith("m="):
            media = line[2:].rstrip()
            kind = _KIND.match(media)
            level = Level(f"section {len(levels)} (m={kind[0] if kind else ''})", media)
            levels.append(level)
        elif line[1:2] != "=" and line.strip():
            raise MalformedError(f"line {number} of the SDP is malformed: it is not TYPE=VALUE")
    if len(levels) > 1 + _MAX_SECTIONS:
        raise MalformedError(f"the SDP has more than {_MAX_SECTIONS} media sections")
    return levels
