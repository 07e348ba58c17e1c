"""STUN and TURN servers that clients are told of, where the operator has any.

The relay needs none: its address is public. But a client whose network lets no UDP out at all can
reach it through a TURN server over TCP or TLS, and a client has to be told of that by somebody.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from loader.errors import ShuntError

__all__ = ["IceServer", "links", "read", "to_json"]

URL = re.compile(r"(?:stuns?:|turns?:)[A-Za-z0-9.\-\[\]:]+(?:\?transport=(?:udp|tcp))?")
"""RFC 7064, RFC 7065."""
QUOTABLE = re.compile(r"[ -~]*")

CURE = 'write what a browser takes as iceServers: [{"urls": ["turn:…"], "username": …}]'


class IceServer(msgspec.Struct, forbid_unknown_fields=True, frozen=True, omit_defaults=True):
    """One server, as RTCIceServer has it (WebRTC section 4.2.2)."""

    urls: str | list[str]
    username: str = ""
    credential: str = ""

    def __post_init__(self) -> None:
        for url in self.all_urls:
            if not URL.fullmatch(url):
                raise ValueError(f"{url!r} is no URL of a STUN or TURN server")
            if url.startswith("turn") and not (self.username and self.credential):
                raise ValueError(f"{url} needs a username and a credential")
        for text in (self.username, self.credential):
            if not QUOTABLE.fullmatch(text):
                raise ValueError("a username and a credential are of printable ASCII")

    @property
    def all_urls(self) -> list[str]:
        return [self.urls] if isinstance(self.urls, str) else self.urls


def read(path: Path) -> tuple[IceServer, ...]:
    """The servers in a file of JSON; ShuntError for what is none."""
    try:
        return tuple(msgspec.json.decode(path.read_bytes(), type=list[IceServer]))
    except OSError as error:
        raise ShuntError(f"cannot read {path}: {error.strerror}", CURE) from error
    except (msgspec.DecodeError, ValueError) as error:
        raise ShuntError(f"{path}: {error}", CURE) from error


def links(servers: Sequence[IceServer]) -> str:
    """The value of a Link header (RFC 9725 section 4.6)."""
    found = []
    for server in servers:
        named = ""
        if server.username:
            named = f'; username="{_quoted(server.username)}"'
            named += f'; credential="{_quoted(server.credential)}"; credential-type="password"'
        found += [f'<{url}>; rel="ice-server"{named}' for url in server.all_urls]
    return ", ".join(found)


def to_json(servers: Sequence[IceServer]) -> list[Any]:
    """As a browser takes them."""
    built: list[Any] = msgspec.to_builtins(list(servers))
    return built


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')
