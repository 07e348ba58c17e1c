"""Sessions, as those who ask by HTTP may have them: who may, how often, and whose is it."""

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from aiohttp import hdrs, web

from transceiver.sdp.offer import OfferError, UnsupportedError
from transceiver.session import Session, UnavailableError
from transceiver.sessionid import owner_of
from transceiver.sessions import Sessions
from transceiver.signaling.addresses import Network, told_site
from transceiver.signaling.http import Refused
from transceiver.signaling.keys import Asker, Keys
from transceiver.signaling.limits import Limiter, Rate
from transceiver.stun import Address

__all__ = ["Calls", "Elsewhere", "Limits", "refusal_of"]

ADDRESS_RATE = Rate(10, 100)
EPHEMERAL_KEY_RATE = Rate(5, 50)
API_KEY_RATE = Rate(1000, 2000)
"""A call is one request with OpenAI's clients, and two to five with those that trickle; so an
address is good for some ten clients that call at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How often somebody may ask."""

    address: Rate = ADDRESS_RATE
    """From one client address, /64 of IPv6. What comes with the API key does not count."""
    ephemeral_key: Rate = EPHEMERAL_KEY_RATE
    """With one ephemeral key."""
    api_key: Rate = API_KEY_RATE
    """With the API key, by all that have it."""
    connections: int = 1000
    """From one client address at a time."""
    proxies: Sequence[Network] = ()
    """Whose X-Forwarded-For is believed."""


class Elsewhere(Exception):
    """The session is another transceiver's, or had better be: if *or_here*, it can be made here
    all the same."""

    def __init__(self, owner: str, *, or_here: bool = False) -> None:
        super().__init__(owner)
        self.owner = owner
        self.or_here = or_here


class Placement(Protocol):
    """Who takes new calls, where there are several that could: `transceiver.placement.Place`."""

    def tell(self, load: int) -> None:
        """This one has *load* calls."""

    def better(self) -> str | None:
        """The id of another that should rather take a call; None if it is this one."""


class Calls:
    """What all dialects ask of the sessions.

    *is_handed_on*: whether a request comes from another transceiver, which has counted it.
    """

    def __init__(
        self,
        sessions: Sessions,
        *,
        keys: Keys,
        limits: Limits,
        is_handed_on: Callable[[web.Request], bool] = lambda request: False,
        placement: Placement | None = None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self.keys = keys
        self.refused: Counter[str] = Counter()
        """Requests turned away before a session was asked for, by reason."""
        self.opened: Counter[str] = Counter()
        """Sessions that were made, by dialect."""
        self._sessions = sessions
        self._is_handed_on = is_handed_on
        self._placement = placement
        self._clock = clock or asyncio.get_running_loop().time
        self._proxies = tuple(limits.proxies)
        self._by_address = Limiter(limits.address)
        self._by_key = Limiter(limits.ephemeral_key)
        self._by_api_key = Limiter(limits.api_key, room=1)
        self._placed_by: dict[str, str] = {}

    @property
    def owner(self) -> str:
        """The transceiver whose sessions these are."""
        return self._sessions.owner

    @property
    def vips(self) -> Sequence[Address]:
        """Where clients send to."""
        return self._sessions.vips

    def asker(self, request: web.Request) -> Asker:
        """Who asks; Refused if nobody that we know (401), or too often (429)."""
        asker = self.keys.asker(request.headers.get(hdrs.AUTHORIZATION, ""))
        is_handed_on = self._is_handed_on(request)
        if not is_handed_on:
            self._count(request, asker)
        if asker is None:
            self.refused["unauthorized"] += 1
            raise Refused(
                401,
                "this needs the API key, or an ephemeral key made with it, as a bearer token",
                code="invalid_api_key",
                headers={hdrs.WWW_AUTHENTICATE: "Bearer"},
            )
        return replace(asker, is_handed_on=is_handed_on)

    def operator(self, request: web.Request) -> Asker:
        """Who asks, with the API key; Refused as by `asker`, and for ephemeral keys (403)."""
        asker = self.asker(request)
        if not asker.is_operator:
            raise Refused(403, "an ephemeral key is not enough for this", code="forbidden")
        return asker

    async def open(
        self,
        asker: Asker,
        offer: str,
        *,
        dialect: str,
        configuration: Mapping[str, object] | None = None,
    ) -> Session:
        """A new session for *asker*, whose own configuration *configuration* adds to.

        Refused if the offer is bad (400) or asks for what is not served (422), the key has expired
        (401), or no session can be had now (503). Elsewhere if another should rather make it.
        """
        if asker.expired:
            self.refused["expired"] += 1
            raise Refused(
                401,
                "the ephemeral key has expired: ask for another",
                code="expired_api_key",
                headers={hdrs.WWW_AUTHENTICATE: 'Bearer error="invalid_token"'},
            )
        better = None if self._placement is None else self._placement.better()
        if better is not None and not asker.is_handed_on:
            raise Elsewhere(better, or_here=True)
        self._tell_load(1)
        try:
            session = await self._sessions.open(
                offer,
                dialect=dialect,
                configuration={**asker.configuration, **(configuration or {})},
            )
        except (OfferError, UnavailableError) as error:
            raise refusal_of(error) from error
        finally:
            self._tell_load()
        self.opened[dialect] += 1
        if self._sessions.find(session.id) is not None:  # else it has ended already
            self._placed_by[session.id] = asker.name
        return session

    def find(self, asker: Asker, id: str) -> Session:
        """The live session *id*; Elsewhere if it is another transceiver's.

        Refused if it has ended (410), was never here (404), or is none of *asker*'s (403).
        """
        owner = owner_of(id)
        if owner is not None and owner != self._sessions.owner:
            raise Elsewhere(owner)
        session = self._sessions.find(id)
        if session is None:
            if self._sessions.has_ended(id):
                raise Refused(410, "the session has ended", code="session_ended")
            raise Refused(404, "there is no such session", code="session_not_found")
        if not asker.is_operator and self._placed_by.get(id) != asker.name:
            raise Refused(403, "another key has placed this call", code="forbidden")
        return session

    def forget(self, session: Session) -> None:
        """Know that *session* has ended."""
        self._placed_by.pop(session.id, None)
        self._tell_load()

    def _tell_load(self, more: int = 0) -> None:
        if self._placement is not None:
            self._placement.tell(len(self._sessions) + more)

    def _count(self, request: web.Request, asker: Asker | None) -> None:
        """Who has the API key is not held to an address: all calls of an application may come from
        one. Nor can somebody else there use up what it may have."""
        now = self._clock()
        if asker is not None and asker.is_operator:
            wait = self._by_api_key.take(asker.name, now)
        else:
            wait = self._by_address.take(self._address(request), now)
            if not wait and asker is not None:
                wait = self._by_key.take(asker.name, now)
        if wait:
            self.refused["rate"] += 1
            raise Refused(
                429,
                "too many requests: wait, and then ask less often",
                code="rate_limit_exceeded",
                headers={hdrs.RETRY_AFTER: _whole_seconds(wait)},
            )

    def _address(self, request: web.Request) -> str:
        """Where the client is, as far as we can know."""
        forwarded = request.headers.get("X-Forwarded-For", "")
        return told_site(request.remote or "", forwarded, self._proxies)


def refusal_of(error: Exception) -> Refused:
    """The answer to what sessions raise: OfferError, UnavailableError."""
    match error:
        case UnsupportedError():
            return Refused(422, str(error), code="unsupported_offer", parameter="sdp")
        case OfferError():
            return Refused(400, str(error), code="invalid_offer", parameter="sdp")
        case UnavailableError():
            return Refused(
                503,
                str(error),
                code="unavailable",
                headers={hdrs.RETRY_AFTER: str(error.retry_after)},
            )
        case _:
            raise TypeError(error)


def _whole_seconds(wait: float) -> str:
    return str(max(1, round(wait + 0.5)))
