"""ICE for one session (RFC 8445, RFC 7675): a controlled agent that gathers and probes nothing.

It answers the client's checks, checks back where they came from, chooses the address that media
goes to, and keeps consent. No I/O and no clock: messages and `now` (monotonic seconds) come in;
`take_datagrams`, `take_events` and `next_deadline` say what is to be done.

The addresses. Each source of an authenticated check is a *path*. A path is *valid* once our own
check to it was answered from there, signed with the client's password; media only ever goes to
a valid path, the *selected* one:

1. The path on which the client sent USE-CANDIDATE last, validated no longer than `quiet` before.
2. A client that moves without USE-CANDIDATE (aioice does: its NAT rebinds and only its consent
   checks go on) is followed when it has left the selected path. It has left if nothing at all
   came from there for `quiet` seconds; or no authenticated check for `check_silence` seconds,
   whatever else arrives, for anyone may send that with a forged source. We then take the path
   that was validated last, if that was not before the silence began (less `quiet`, for packets
   that overtake each other). A stale address cannot come back: only a fresh check counts.

The roles. A client that makes an offer is controlling. Should it think otherwise, our tie-breaker
of 0 makes it lose every conflict to us, that is: it becomes controlling (RFC 8445 section 7.3.1.1).
"""

import random
import secrets
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass, field

from transceiver import stun
from transceiver.stun import Address, Class

__all__ = [
    "Authenticated",
    "ConsentLost",
    "Credentials",
    "Event",
    "Forgotten",
    "IceSession",
    "IceTiming",
    "Selected",
    "Validated",
]

MAX_PATHS = 8
"""Remote addresses a session keeps; the relay gives a route as many slots."""

MAX_TRANSMISSIONS = 7
"""Rc of RFC 8489 section 6.2.1."""

LAST_WAIT = 16
"""Rm of RFC 8489 section 6.2.1, in RTOs."""

TIE_BREAKER = 0
PRIORITY = 110 << 24 | 65535 << 8 | 255  # peer-reflexive, component 1 (RFC 8445 section 5.1.2.1)

ICE_CHARACTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"


@dataclass(frozen=True, slots=True)
class Credentials:
    """One side's ICE ufrag and password (RFC 8445 section 5.3)."""

    ufrag: str
    password: str = field(repr=False)

    @classmethod
    def fresh(cls) -> "Credentials":
        """96 random bits of ufrag, 144 of password."""
        return cls(
            ufrag="".join(secrets.choice(ICE_CHARACTERS) for _ in range(16)),
            password="".join(secrets.choice(ICE_CHARACTERS) for _ in range(24)),
        )


@dataclass(frozen=True, slots=True)
class IceTiming:
    """All in seconds. Defaults are the RFCs'; tests hurry."""

    retransmit: float = 0.5
    """First retransmission of a check, doubling each time (RFC 8489 section 6.2.1)."""
    consent_interval: float = 5.0
    """Mean time between consent checks, each drawn ±20 % (RFC 7675 section 5.1)."""
    consent_timeout: float = 30.0
    """Without a success for so long, sending must stop (RFC 7675 section 5.1)."""
    quiet: float = 1.0
    """Silence after which the selected path counts as left, and least time between two checks
    of a valid path."""
    check_silence: float = 10.0
    """The same for authenticated checks alone."""


@dataclass(frozen=True, slots=True)
class Authenticated:
    """The client sent an authentic check from *address*."""

    address: Address


@dataclass(frozen=True, slots=True)
class Validated:
    """The client answered our own check to *address*."""

    address: Address


@dataclass(frozen=True, slots=True)
class Selected:
    """Media now goes to *address*."""

    address: Address


@dataclass(frozen=True, slots=True)
class Forgotten:
    """*address* made room for another one."""

    address: Address


@dataclass(frozen=True, slots=True)
class ConsentLost:
    """The client has not answered for the consent timeout: send nothing more."""


Event = Authenticated | Validated | Selected | Forgotten | ConsentLost


@dataclass(slots=True)
class _Path:
    address: Address
    heard_at: float
    """Last packet of any kind."""
    asked_at: float
    """Last authenticated check."""
    validated_at: float | None = None
    nominated_at: float | None = None


@dataclass(slots=True)
class _Check:
    path: _Path
    request: bytes
    sent_at: float
    wait: float
    due_at: float
    transmissions: int = 1
    is_consent: bool = False


class IceSession:
    """The ICE state of one session.

    *transactions* is the table of checks in flight that all sessions of one socket share: it
    leads a Binding Response, which names no session, to the one that asked.
    """

    def __init__(
        self,
        local: Credentials,
        *,
        transactions: "MutableMapping[bytes, IceSession]",
        timing: IceTiming | None = None,
        jitter: Callable[[], float] = lambda: random.uniform(0.8, 1.2),
    ) -> None:
        self.local = local
        self.rtt: float | None = None
        """Round-trip time in seconds, of the last check answered at its first transmission."""
        self._remote: Credentials | None = None
        self._transactions = transactions
        self._timing = timing or IceTiming()
        self._jitter = jitter
        self._paths: dict[Address, _Path] = {}
        self._checks: dict[bytes, _Check] = {}
        self._selected: _Path | None = None
        self._consent_due_at = 0.0
        self._closed = False
        self._datagrams: list[tuple[bytes, Address]] = []
        self.events: list[Event] = []
        """What has happened and was not taken yet, oldest first."""

    @property
    def selected(self) -> Address | None:
        """Where media goes, or None before the first path was validated and after the end."""
        return self._selected.address if self._selected else None

    @property
    def heard_at(self) -> float | None:
        """When anything last came from the client, on any path."""
        return max((path.heard_at for path in self._paths.values()), default=None)

    def set_remote(self, remote: Credentials) -> None:
        """Take the client's credentials; new ones (an ICE restart) void the checks in flight.

        The paths stay: media goes on until the client nominates anew (RFC 8445 section 9).
        """
        if remote != self._remote:
            self._remote = remote
            self._drop_checks(list(self._checks))

    def receive(self, message: stun.Message, source: Address, now: float) -> bool:
        """Take a Binding message meant for this session; False if it was refused or ignored."""
        if self._closed or self._remote is None:
            return False
        if message.cls is Class.REQUEST:
            return self._receive_request(message, source, now)
        if message.cls is Class.INDICATION:
            return False  # a keepalive proves nothing
        return self._receive_response(message, source, now)

    def heard(self, source: Address, now: float) -> None:
        """Note that a packet which is not STUN came from *source*."""
        path = self._paths.get(source)
        if path is not None:
            path.heard_at = now

    def poll(self, now: float) -> None:
        """Do what is due: retransmit, give checks up, check consent, follow the client."""
        if self._closed:
            return
        for transaction, check in list(self._checks.items()):
            if check.due_at <= now:
                self._retransmit(transaction, check, now)
        self._follow(now)
        if self._selected is None:
            return
        assert self._selected.validated_at is not None
        if now >= self._selected.validated_at + self._timing.consent_timeout:
            self.close()
            self.events.append(ConsentLost())
        elif now >= self._consent_due_at:
            self._start_check(self._selected, now, is_consent=True)
            self._schedule_consent(now)

    def next_deadline(self) -> float | None:
        """When `poll` wants to be called, at the latest."""
        deadlines = [check.due_at for check in self._checks.values()]
        if self._selected is not None:
            assert self._selected.validated_at is not None
            deadlines.append(self._consent_due_at)
            deadlines.append(self._selected.validated_at + self._timing.consent_timeout)
            if self._successor(self._selected.heard_at) is not None:
                deadlines.append(self._selected.heard_at + self._timing.quiet)
        return min(deadlines, default=None)

    def take_datagrams(self) -> list[tuple[bytes, Address]]:
        """What is to be sent, and where to."""
        taken, self._datagrams = self._datagrams, []
        return taken

    def take_events(self) -> list[Event]:
        """What has happened, oldest first."""
        taken, self.events = self.events, []
        return taken

    def close(self) -> None:
        """Answer, check and select nothing from now on."""
        self._closed = True
        self._drop_checks(list(self._checks))
        self._selected = None
        self._paths.clear()

    # The client's checks (RFC 8445 section 7.3)

    def _receive_request(self, message: stun.Message, source: Address, now: float) -> bool:
        refusal = self._refusal(message)
        if refusal is not None:
            self._datagrams.append((refusal, source))
            return False

        answer = stun.binding_success(
            message.transaction, mapped=source, password=self.local.password
        )
        self._datagrams.append((answer, source))
        path = self._path(source, now)
        path.heard_at = path.asked_at = now
        self.events.append(Authenticated(source))
        if message.use_candidate:
            path.nominated_at = now
            self._nominate()
        if self._wants_check(path, now):
            self._start_check(path, now)
        return True

    def _refusal(self, message: stun.Message) -> bytes | None:
        """The error response that RFC 8489 section 9.1.3 and RFC 8445 section 7.3 ask for."""
        assert self._remote is not None
        if message.username is None or message.digest is None:
            return stun.binding_error(message.transaction, 400)
        if message.username != f"{self.local.ufrag}:{self._remote.ufrag}":
            return stun.binding_error(message.transaction, 401)
        if not message.authentic(self.local.password):
            return stun.binding_error(message.transaction, 401)
        if message.unknown:
            return stun.binding_error(
                message.transaction, 420, password=self.local.password, unknown=message.unknown
            )
        if message.controlled is not None:
            return stun.binding_error(message.transaction, 487, password=self.local.password)
        return None

    def _path(self, address: Address, now: float) -> _Path:
        path = self._paths.get(address)
        if path is None:
            if len(self._paths) >= MAX_PATHS:
                self._forget_one()
            path = self._paths[address] = _Path(address, heard_at=now, asked_at=now)
        return path

    def _forget_one(self) -> None:
        """Make room: paths never validated go first, then the one validated longest ago."""
        path = min(
            (path for path in self._paths.values() if path is not self._selected),
            key=lambda path: (path.validated_at or float("-inf"), path.asked_at),
        )
        del self._paths[path.address]
        self._drop_checks([key for key, check in self._checks.items() if check.path is path])
        self.events.append(Forgotten(path.address))

    # Our own checks

    def _wants_check(self, path: _Path, now: float) -> bool:
        if any(check.path is path and not check.is_consent for check in self._checks.values()):
            return False
        if path.validated_at is None:
            return True
        return path is not self._selected and now - path.validated_at >= self._timing.quiet

    def _start_check(self, path: _Path, now: float, *, is_consent: bool = False) -> None:
        assert self._remote is not None
        transaction = secrets.token_bytes(12)
        request = stun.binding_request(
            transaction,
            username=f"{self._remote.ufrag}:{self.local.ufrag}",
            password=self._remote.password,
            priority=PRIORITY,
            controlled=TIE_BREAKER,
        )
        # A consent check is sent once (RFC 7675 section 5.1): the next one takes its place.
        wait = self._timing.consent_timeout if is_consent else self._timing.retransmit
        self._checks[transaction] = _Check(
            path, request, sent_at=now, wait=wait, due_at=now + wait, is_consent=is_consent
        )
        self._transactions[transaction] = self
        self._datagrams.append((request, path.address))

    def _retransmit(self, transaction: bytes, check: _Check, now: float) -> None:
        if check.is_consent or check.transmissions >= MAX_TRANSMISSIONS:
            self._drop_checks([transaction])
            return
        check.transmissions += 1
        check.wait *= 2
        is_last = check.transmissions == MAX_TRANSMISSIONS
        check.due_at = now + (LAST_WAIT * self._timing.retransmit if is_last else check.wait)
        self._datagrams.append((check.request, check.path.address))

    def _drop_checks(self, transactions: list[bytes]) -> None:
        for transaction in transactions:
            del self._checks[transaction]
            del self._transactions[transaction]

    def _receive_response(self, message: stun.Message, source: Address, now: float) -> bool:
        assert self._remote is not None
        check = self._checks.get(message.transaction)
        # An answer from elsewhere, or one not signed, may be anybody's: the check goes on.
        if check is None or source != check.path.address:
            return False
        if not message.authentic(self._remote.password):
            return False
        self._drop_checks([message.transaction])
        if message.cls is not Class.SUCCESS:
            return False
        if check.transmissions == 1:
            self.rtt = now - check.sent_at
        path = check.path
        path.heard_at = path.validated_at = now
        self.events.append(Validated(path.address))
        self._nominate()
        self._follow(now)
        return True

    # The selected path

    def _nominate(self) -> None:
        """Rule 1: of the paths with USE-CANDIDATE the latest, once a fresh check of it succeeded.

        Validity of old does not do: the client may have left that address to somebody else.
        """
        nominated = [path for path in self._paths.values() if path.nominated_at is not None]
        if not nominated:
            return
        latest = max(nominated, key=lambda path: path.nominated_at or 0.0)
        assert latest.nominated_at is not None
        if latest is self._selected or (
            latest.validated_at is not None
            and latest.validated_at > latest.nominated_at - self._timing.quiet
        ):
            for path in nominated:
                path.nominated_at = None
            self._select(latest)

    def _follow(self, now: float) -> None:
        """Rule 2: go after a client that has left the selected path."""
        if self._selected is None:
            return
        if now - self._selected.heard_at >= self._timing.quiet:
            left_at = self._selected.heard_at
        elif now - self._selected.asked_at >= self._timing.check_silence:
            left_at = self._selected.asked_at
        else:
            return
        successor = self._successor(left_at)
        if successor is not None:
            self._select(successor)

    def _successor(self, left_at: float) -> _Path | None:
        since = left_at - self._timing.quiet
        return max(
            (
                path
                for path in self._paths.values()
                if path is not self._selected
                and path.validated_at is not None
                and path.validated_at > since
            ),
            key=lambda path: path.validated_at or 0.0,
            default=None,
        )

    def _select(self, path: _Path) -> None:
        if path is not self._selected:
            assert path.validated_at is not None
            self._selected = path
            self._schedule_consent(path.validated_at)
            self.events.append(Selected(path.address))

    def _schedule_consent(self, now: float) -> None:
        self._consent_due_at = now + self._timing.consent_interval * self._jitter()
