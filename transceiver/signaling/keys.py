"""Who asks: by the API key, or by an ephemeral key that somebody who has that key asked for.

An ephemeral key (`ek_…`, what OpenAI calls a client secret) is good on its own: all that there is
to know about it is in it, sealed with the API key. So every transceiver with the same API key takes
it, and none has to remember it. It is signed and not encrypted: who has it can read the session
configuration in it, as its session tells it anyway (`session.created`).
"""

import base64
import hmac
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

__all__ = ["EPHEMERAL", "OPERATOR", "Asker", "EphemeralKey", "Keys", "Seal", "TooLarge"]

EPHEMERAL = "ek_"
OPERATOR = "operator"

SEALED_CHARACTERS = 7000
"""The longest text that is sealed. It has to fit into a header or a URL, and most servers take
8 KiB of either."""
MAC_BYTES = 32


class TooLarge(ValueError):
    """What was to be sealed does not fit."""


class Claims(msgspec.Struct, array_like=True, forbid_unknown_fields=True, frozen=True):
    """What a sealed text says."""

    expires_at: int
    """Unix seconds."""
    nonce: str
    configuration: dict[str, Any]
    """Of a session."""


class Seal:
    """Makes and reads texts that nobody without *api_key* can make. *purpose*: a text sealed for
    one is none for another."""

    def __init__(self, api_key: str, purpose: bytes) -> None:
        self._key = hmac.digest(api_key.encode(), b"shunt, version 1: " + purpose, "sha256")

    def make(self, expires_at: int, configuration: Mapping[str, object]) -> str:
        """A text of A-Z a-z 0-9 - _; TooLarge if that would be over 7000 characters."""
        claims = msgspec.json.encode(
            Claims(expires_at, secrets.token_urlsafe(12), dict(configuration))
        )
        text = base64.urlsafe_b64encode(claims + self._mac(claims)).rstrip(b"=").decode()
        if len(text) > SEALED_CHARACTERS:
            raise TooLarge(
                f"the configuration of a session may have about {SEALED_CHARACTERS * 3 // 4} bytes "
                f"here, and has {len(claims)}"
            )
        return text

    def read(self, text: str) -> Claims | None:
        """What *text* says; None if we did not make it. Whether it has expired is not asked."""
        if len(text) > SEALED_CHARACTERS:
            return None
        try:
            sealed = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        except ValueError:
            return None
        claims, mac = sealed[:-MAC_BYTES], sealed[-MAC_BYTES:]
        if not hmac.compare_digest(mac, self._mac(claims)):
            return None
        return msgspec.json.decode(claims, type=Claims)

    def _mac(self, claims: bytes) -> bytes:
        return hmac.digest(self._key, claims, "sha256")


@dataclass(frozen=True, slots=True)
class Asker:
    """Who is behind a request."""

    name: str
    """What requests are counted by, and whose a session is: OPERATOR, or the ephemeral key's."""
    expired: bool = False
    """Whether it is too late to place a call with this key; those that were placed go on."""
    configuration: Mapping[str, object] = field(default_factory=dict)
    """Of the session that the key was made for."""
    is_handed_on: bool = False
    """Whether another transceiver has handed the request on to this one."""

    @property
    def is_operator(self) -> bool:
        """Whether it was the API key, by which all sessions may be seen and ended."""
        return self.name == OPERATOR


@dataclass(frozen=True, slots=True)
class EphemeralKey:
    """A key that was made, and until when it places calls, in Unix seconds."""

    value: str
    expires_at: int


class Keys:
    """The API key, and the ephemeral ones that come of it. *wall*: gives Unix time."""

    def __init__(self, api_key: str, *, wall: Callable[[], float] = time.time) -> None:
        self._expected = api_key.encode()
        self._seal = Seal(api_key, b"ephemeral key")
        self._wall = wall

    def make(self, seconds: int, configuration: Mapping[str, object]) -> EphemeralKey:
        """An ephemeral key good for *seconds*; TooLarge if *configuration* does not fit."""
        expires_at = int(self._wall()) + seconds
        return EphemeralKey(EPHEMERAL + self._seal.make(expires_at, configuration), expires_at)

    def asker(self, authorization: str) -> Asker | None:
        """Who asks with that Authorization header; None if nobody that we know."""
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer":
            return None
        token = token.strip()
        if hmac.compare_digest(token.encode("utf-8", "surrogateescape"), self._expected):
            return Asker(OPERATOR)
        if not token.startswith(EPHEMERAL):
            return None
        claims = self._seal.read(token.removeprefix(EPHEMERAL))
        if claims is None:
            return None
        expired = self._wall() >= claims.expires_at
        return Asker(EPHEMERAL + claims.nonce, expired, claims.configuration)
