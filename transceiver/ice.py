"""ICE for one session (RFC 8445, RFC 7675): a controlled agent that gathers and probes nothing.

It answers the client's checks, checks back where they came from, chooses the address that media
goes to, and keeps consent. No I/O and no clock: messages and `now` (monotonic seconds) come in;
`take_datagrams`, `take_events` and `next_deadline` say what is to be done.

Evidence. Each source of an authentic check is a *path*. Three things are known of one:

    heard      a packet came from there     anybody can forge that
    asked      an authentic check did       anybody who saw one can replay it, from any source
    answered   our own check was answered   only who knows the password, and is there now

Media goes to one address, the *selected* path, and to none that has not answered. What moves it:

1. Nomination. The client sends USE-CANDIDATE on a path, and the path answers: selected, if the
   nomination is not older than the selected path's own. One round trip.
2. Contest. A client may turn up elsewhere and not nominate: its NAT gave it another port, and it
   knows nothing of it (aioice, or any browser's routine check). Then another path asks while the
   selected one is silent or is not. Whether the client has left is not to be told by what is
   heard, so we ask: the selected path is checked at once, and again, together with the other. If
   it answers, it stays, and the other is a spare one. If it has not answered for `quiet` (or one
   and a half of its round trips), nor been heard for so long, the path that answered last takes
   its place. What is heard can put that off until `hold`, and no longer. Media from a spare path
   while the selected one is silent begins a contest, too.
   Should the path that was left answer later on, its nomination is still the client's last
   word: rule 1 brings media back.

So from the client's first check on a new path to media there, it takes the longer of `quiet` and
a round trip, or a round trip alone if the client nominates. The time before is out of our hands:
what comes from an unknown address is nobody's until a check says whose.

What an attacker can do who forges sources and replays checks, but does not know the passwords:
he cannot move media, since no answer comes from where he claims to be; who also sits between
and hands our check on to the client, and the client's answer to us, is a NAT like any other, and
gets what is encrypted. He cannot hold media at an address that the client left for longer than
`hold`. He can begin contests: one in `quiet`, some hundred bytes to the client each. He cannot
use up paths that have answered (those that have not go first), nor room: there are `MAX_PATHS`,
each with one triggered check in flight, and 30 s after he ends nothing is left of him. He cannot
make us loud: a request that is not authentic gets at most one answer no longer than itself, ten a
second for a session; a path that is not selected gets at most three times the bytes of its own
authentic requests, answers and checks and repetitions together, and a session begins at most
`1 / PACE` checks a second.

Generations. An ICE restart (RFC 8445 section 9) brings new credentials on both sides. Checks of
both generations are answered, each with its own password, and media and consent go on as they
were. When the client is selected by the rules above on a path that answered in the newer one,
the older is forgotten (`Restarted`). If that never comes, the older one keeps working until its
consent ends; then media stops, and the session waits for the newer one as long as `consent_timeout`
from its beginning. A restart during a restart takes the place of the one that was not done.

The roles. A client that makes an offer is controlling. Should it think otherwise, our tie-breaker
of 0 makes it lose every conflict to us, that is: it becomes controlling (RFC 8445 section 7.3.1.1).
"""

import random
import secrets
from base64 import b64encode
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
    "Restarted",
    "Selected",
    "Validated",
]

MAX_PATHS = 8
"""Remote addresses a session keeps; the relay gives a route as many slots."""

MAX_TRANSMISSIONS = 7
"""Rc of RFC 8489 section 6.2.1."""

LAST_WAIT = 16
"""Rm of RFC 8489 section 6.2.1, in RTOs."""

PACE = 0.05
"""Seconds between checks begun on the average, Ta of RFC 8445 section 14.2."""

SHORTEST_WAIT = 0.1
"""Seconds before a first repetition, where the round-trip time is known to be short."""

AMPLIFICATION = 3
"""Bytes sent to a path that is not selected for each byte of authentic STUN that came from it."""

ERRORS_PER_SECOND = 10
"""Error responses of a session, at most, to refuse requests with."""

OVERDUE = 1.5
"""Consent intervals without an answer, after which the client's checks are checked back again. A
consent check is sent once (RFC 7675 section 5.1): with 20 % of loss each way, so many in a row
fail that a call would end every half hour. A check of RFC 8445 is repeated."""

TIE_BREAKER = 1
"""Of a role conflict, which we always lose. Not 0: libjuice (libdatachannel, OBS) takes that for no
role at all, and refuses the check."""

PRIORITY = 110 << 24 | 65535 << 8 | 255  # peer-reflexive, component 1 (RFC 8445 section 5.1.2.1)


@dataclass(frozen=True, slots=True)
class Credentials:
    """One side's ICE ufrag and password (RFC 8445 section 5.3)."""

    ufrag: str
    password: str = field(repr=False)

    @classmethod
    def fresh(cls) -> "Credentials":
        """96 random bits of ufrag, 144 of password. Base64 has just the characters of ICE."""
        return cls(
            ufrag=b64encode(secrets.token_bytes(12)).decode(),
            password=b64encode(secrets.token_bytes(18)).decode(),
        )


@dataclass(frozen=True, slots=True)
class IceTiming:
    """All in seconds. Defaults are the RFCs' where they have one; tests hurry."""

    retransmit: float = 0.5
    """First retransmission of a check, doubling each time (RFC 8489 section 6.2.1)."""
    consent_interval: float = 5.0
    """Mean time between consent checks, each drawn ±20 % (RFC 7675 section 5.1)."""
    consent_timeout: float = 30.0
    """Without a success for so long, sending must stop (RFC 7675 section 5.1)."""
    quiet: float = 0.2
    """Neither an answer nor anything else for so long: in a contest, the client has left. Also the
    least time between two checks of a spare path, and between two contests."""
    hold: float = 1.0
    """No answer for so long: the client has left, whatever else is heard."""


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
    """*address* made room for another one, or nothing came from there for the consent timeout."""

    address: Address


@dataclass(frozen=True, slots=True)
class Restarted:
    """*old_ufrag* leads here no more: the client is selected on a newer generation, or a newer
    one took the place of one that it had not come to."""

    old_ufrag: str


@dataclass(frozen=True, slots=True)
class ConsentLost:
    """The client has not answered for the consent timeout: send nothing more."""


Event = Authenticated | Validated | Selected | Forgotten | Restarted | ConsentLost


@dataclass(slots=True, eq=False)
class _Generation:
    """The credentials between one ICE restart and the next."""

    number: int
    local: Credentials
    remote: Credentials | None
    began_at: float

    @property
    def asked_as(self) -> str | None:
        """USERNAME of the client's checks."""
        return None if self.remote is None else f"{self.local.ufrag}:{self.remote.ufrag}"


@dataclass(slots=True, eq=False)
class _Path:
    address: Address
    heard_at: float
    """Last packet of any kind."""
    asked_at: float
    """Last authentic check."""
    asked_in: int = 0
    """Generation of that check."""
    answered_at: float | None = None
    """Last success to a check of ours."""
    answered_in: int = -1
    """Newest generation that such a success was of."""
    nomination: tuple[int, float] = (-1, 0.0)
    """Generation and time of the last USE-CANDIDATE."""
    rtt: float = 0.0
    """Round-trip time in seconds, of the last check answered at its first transmission."""
    credit: int = 0
    """Bytes that may yet be sent while the path is not selected."""


@dataclass(slots=True, eq=False)
class _Check:
    path: _Path
    generation: _Generation
    request: bytes
    sent_at: float
    waits: list[float]
    """Seconds to the transmissions to come, the next one last; the first of all, to giving up."""
    due_at: float
    sent_last_at: float
    transmissions: int = 1
    is_triggered: bool = False


class _Bucket:
    """So many things a second, and *burst* at a time."""

    def __init__(self, rate: float, burst: int) -> None:
        self._rate = rate
        self._burst = burst
        self._level = float(burst)
        self._filled_at = 0.0

    def take(self, now: float) -> bool:
        """Whether there may be one more."""
        self._level = min(self._burst, self._level + (now - self._filled_at) * self._rate)
        self._filled_at = now
        if self._level < 1:
            return False
        self._level -= 1
        return True


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
        self.rtt: float | None = None
        """Round-trip time in seconds, of the last check answered at its first transmission."""
        self.datagrams: list[tuple[bytes, Address]] = []
        """What is to be sent and was not taken yet."""
        self.events: list[Event] = []
        """What has happened and was not taken yet, oldest first."""
        self._generations = [_Generation(0, local, None, 0.0)]  # at most two, the newest last
        self._restarts = 0
        self._waits_for_restart = False
        self._transactions = transactions
        self._timing = timing or IceTiming()
        self._jitter = jitter
        self._paths: dict[Address, _Path] = {}
        self._checks: dict[bytes, _Check] = {}
        self._begun = _Bucket(1 / PACE, MAX_PATHS)
        self._refused = _Bucket(ERRORS_PER_SECOND, ERRORS_PER_SECOND)
        self._selected: _Path | None = None
        self._consent_due_at = 0.0
        self._contested_at: float | None = None
        self._contest_due_at: float | None = None
        self._contest_began_at = float("-inf")
        self._judge_at = 0.0
        self._closed = False

    @property
    def local(self) -> Credentials:
        """Our own credentials, the newest generation's."""
        return self._generations[-1].local

    @property
    def ufrags(self) -> list[str]:
        """Our ufrags by which the client may come: more than one while a restart is under way."""
        return [generation.local.ufrag for generation in self._generations]

    @property
    def selected(self) -> Address | None:
        """Where media goes, or None before the first path was validated and after the end."""
        return self._selected.address if self._selected else None

    @property
    def paths(self) -> list[Address]:
        """Where authentic checks came from, the selected one among them; at most `MAX_PATHS`."""
        return list(self._paths)

    def heard_from(self, source: Address) -> float | None:
        """When anything last came from *source*; None if it is no path."""
        path = self._paths.get(source)
        return None if path is None else path.heard_at

    def has_answered(self, source: Address) -> bool:
        """Whether a check of ours to *source* was ever answered from there."""
        path = self._paths.get(source)
        return path is not None and path.answered_at is not None

    def set_remote(self, remote: Credentials) -> None:
        """Take the client's credentials of the newest generation, and void its checks in flight."""
        newest = self._generations[-1]
        if remote != newest.remote:
            newest.remote = remote
            self._drop_checks_of(newest)

    def restart(self, local: Credentials, remote: Credentials, now: float) -> None:
        """Begin a new generation (RFC 8445 section 9); `Restarted` tells when the old one is over.

        Does nothing after `close`.
        """
        if self._closed:
            return
        if len(self._generations) == 2:
            self._forget_generation(self._generations.pop())
        self._restarts += 1
        self._generations.append(_Generation(self._restarts, local, remote, now))

    def receive(self, message: stun.Message, source: Address, now: float) -> bool:
        """Take a Binding message meant for this session; False if it was refused or ignored."""
        if self._closed or self._generations[-1].remote is None:
            return False
        if message.cls is Class.REQUEST:
            return self._receive_request(message, source, now)
        if message.cls is Class.INDICATION:
            return False  # a keepalive proves nothing
        return self._receive_response(message, source, now)

    def heard(self, source: Address, now: float) -> None:
        """Note that a packet which is not STUN came from *source*."""
        path = self._paths.get(source)
        if path is None:
            return
        path.heard_at = now
        if path is not self._selected:
            self._heard_elsewhere(path, now)

    def poll(self, now: float) -> None:
        """Do what is due: repeat checks or give them up, follow the client, check consent."""
        if self._closed:
            return
        for transaction, check in list(self._checks.items()):
            if check.due_at <= now:
                self._repeat(transaction, check, now)
        if self._contest_due_at is not None and self._contest_due_at <= now:
            self._begin_contest(now)
        self._judge(now)
        self._keep_consent(now)
        self._forget_the_silent(now)

    def next_deadline(self) -> float | None:
        """When `poll` wants to be called, at the latest."""
        deadlines = [check.due_at for check in self._checks.values()]
        if self._contest_due_at is not None:
            deadlines.append(self._contest_due_at)
        if self._contested_at is not None:
            deadlines.append(self._judge_at)
        if self._selected is not None:
            deadlines.append(self._consent_due_at)
        if (end := self._consent_ends_at()) is not None:
            deadlines.append(end)
        deadlines += [self._silent_from(path) for path in self._spare()]
        return min(deadlines, default=None)

    def take_datagrams(self) -> list[tuple[bytes, Address]]:
        """What is to be sent, and where to."""
        taken, self.datagrams = self.datagrams, []
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
        self._contested_at = self._contest_due_at = None
        self._waits_for_restart = False
        self._paths.clear()

    # The client's checks (RFC 8445 section 7.3)

    def _receive_request(self, message: stun.Message, source: Address, now: float) -> bool:
        generation = self._asked_generation(message)
        refusal = self._refusal(message, generation)
        if refusal is not None:
            # RFC 8489 section 9.1.3 wants an answer; it is not to be had to flood somebody with.
            if len(refusal) <= message.size and self._refused.take(now):
                self.datagrams.append((refusal, source))
            return False
        assert generation is not None

        answer = stun.binding_success(
            message.transaction, mapped=source, password=generation.local.password
        )
        self.datagrams.append((answer, source))
        path = self._path(source, now)
        path.heard_at = path.asked_at = now
        path.asked_in = generation.number
        path.credit += AMPLIFICATION * message.size - len(answer)
        self.events.append(Authenticated(source))
        if message.use_candidate:
            path.nomination = generation.number, now
            self._nominate(path, now)
        self._check_back(path, now)
        if self._selected is not None and path is not self._selected:
            self._contest(now)
        return True

    def _asked_generation(self, message: stun.Message) -> _Generation | None:
        for generation in self._generations:
            if message.username is not None and message.username == generation.asked_as:
                return generation
        return None

    def _refusal(self, message: stun.Message, generation: _Generation | None) -> bytes | None:
        """The error response that RFC 8489 section 9.1.3 and RFC 8445 section 7.3 ask for."""
        if message.username is None or message.digest is None:
            return stun.binding_error(message.transaction, 400)
        if generation is None or not message.authentic(generation.local.password):
            return stun.binding_error(message.transaction, 401)
        password = generation.local.password
        if message.unknown:
            return stun.binding_error(
                message.transaction, 420, password=password, unknown=message.unknown
            )
        if message.controlled is not None:
            return stun.binding_error(message.transaction, 487, password=password)
        return None

    def _path(self, address: Address, now: float) -> _Path:
        path = self._paths.get(address)
        if path is None:
            if len(self._paths) >= MAX_PATHS:
                self._forget_one()
            path = self._paths[address] = _Path(address, heard_at=now, asked_at=now)
        return path

    def _forget_one(self) -> None:
        """Make room: paths that never answered go first, then the one that did longest ago."""
        self._forget(
            min(
                self._spare(),
                key=lambda path: (path.answered_at or float("-inf"), path.asked_at),
            )
        )

    def _forget_the_silent(self, now: float) -> None:
        """The relay has closed their slots by now, or nobody was ever there."""
        for path in self._spare():
            if now >= self._silent_from(path):
                self._forget(path)

    def _silent_from(self, path: _Path) -> float:
        return path.heard_at + self._timing.consent_timeout

    def _spare(self) -> list[_Path]:
        return [path for path in self._paths.values() if path is not self._selected]

    def _forget(self, path: _Path) -> None:
        del self._paths[path.address]
        self._drop_checks([key for key, check in self._checks.items() if check.path is path])
        self.events.append(Forgotten(path.address))

    # Our own checks

    def _check_back(self, path: _Path, now: float) -> None:
        """A triggered check (RFC 8445 section 7.3.1.4), unless the path has just answered one.

        If one is in flight it is repeated: the client asks again since its own was lost.
        """
        generation = self._generation(path.asked_in)
        for check in self._checks.values():
            if check.path is path and check.is_triggered and check.generation is generation:
                if now - check.sent_last_at >= PACE and check.transmissions < MAX_TRANSMISSIONS:
                    self._transmit(check, now)
                return
        if self._is_proven(path, now):
            return
        # Who has answered before is not to suffer from a flood of those who have not.
        if path.answered_at is not None or self._begun.take(now):
            first = self._timing.retransmit
            if self.rtt is not None and self._selected is not None:
                first = min(first, max(SHORTEST_WAIT, 2 * self.rtt))
            waits = [first * 2**doubled for doubled in range(MAX_TRANSMISSIONS - 1)]
            waits.append(first * LAST_WAIT)
            self._start_check(path, generation, waits[::-1], now, is_triggered=True)

    def _is_proven(self, path: _Path, now: float) -> bool:
        """Whether it has answered in the generation that it was asked in, and lately: just now, or,
        where consent checks see to that, when the last of them were due."""
        if path.answered_at is None or path.answered_in < path.asked_in:
            return False
        if path is self._selected:
            return now - path.answered_at < OVERDUE * self._timing.consent_interval
        return now - path.answered_at < self._timing.quiet

    def _generation(self, number: int) -> _Generation:
        """The generation of that number, or the newest if it is over."""
        for generation in self._generations:
            if generation.number == number:
                return generation
        return self._generations[-1]

    def _start_check(
        self,
        path: _Path,
        generation: _Generation,
        waits: list[float],
        now: float,
        *,
        is_triggered: bool = False,
    ) -> None:
        remote = generation.remote
        assert remote is not None
        transaction = secrets.token_bytes(12)
        request = stun.binding_request(
            transaction,
            username=f"{remote.ufrag}:{generation.local.ufrag}",
            password=remote.password,
            priority=PRIORITY,
            controlled=TIE_BREAKER,
        )
        check = _Check(
            *(path, generation, request),
            sent_at=now,
            waits=waits,
            due_at=now + waits.pop(),
            sent_last_at=now,
            is_triggered=is_triggered,
        )
        if not self._may_send(check):
            return
        self._checks[transaction] = check
        self._transactions[transaction] = self
        self.datagrams.append((request, path.address))

    def _repeat(self, transaction: bytes, check: _Check, now: float) -> None:
        if not check.waits:
            self._drop_checks([transaction])
            return
        check.due_at = now + check.waits.pop()
        self._transmit(check, now)

    def _transmit(self, check: _Check, now: float) -> None:
        if self._may_send(check):
            check.transmissions += 1
            check.sent_last_at = now
            self.datagrams.append((check.request, check.path.address))

    def _may_send(self, check: _Check) -> bool:
        """Whether the path has earned so many bytes, which are then spent."""
        if check.path is self._selected:
            return True
        if check.path.credit < len(check.request):
            return False
        check.path.credit -= len(check.request)
        return True

    def _drop_checks(self, transactions: list[bytes]) -> None:
        for transaction in transactions:
            del self._checks[transaction]
            del self._transactions[transaction]

    def _drop_checks_of(self, generation: _Generation) -> None:
        self._drop_checks(
            [k for k, check in self._checks.items() if check.generation is generation]
        )

    def _receive_response(self, message: stun.Message, source: Address, now: float) -> bool:
        check = self._checks.get(message.transaction)
        # An answer from elsewhere, or one not signed, may be anybody's: the check goes on.
        if check is None or source != check.path.address:
            return False
        assert check.generation.remote is not None
        if not message.authentic(check.generation.remote.password):
            return False
        self._drop_checks([message.transaction])
        if message.cls is not Class.SUCCESS:
            return False
        path = check.path
        if check.transmissions == 1:
            self.rtt = path.rtt = now - check.sent_at
        path.heard_at = path.answered_at = now
        path.answered_in = max(path.answered_in, check.generation.number)
        path.credit += AMPLIFICATION * message.size
        self.events.append(Validated(path.address))
        if path is self._selected:
            self._contested_at = None
        self._nominate(path, now)
        self._judge(now)
        return True

    # Rule 1, nomination

    def _nominate(self, path: _Path, now: float) -> None:
        """Select *path*, which has just answered or been nominated, if both is so.

        An answer of old does not do: the client may have left that address to somebody else.
        """
        number, _ = path.nomination
        if path.answered_at is None or now - path.answered_at > self._timing.quiet:
            return
        if number < self._generations[0].number or path.answered_in < number:
            return
        if self._selected is None or path.nomination >= self._selected.nomination:
            self._select(path, number)

    def _select(self, path: _Path, number: int) -> None:
        """Send media to *path*, which was proven in the generation of that number."""
        if path is not self._selected:
            assert path.answered_at is not None
            self._selected = path
            self._contested_at = None
            self._waits_for_restart = False
            self._schedule_consent(path.answered_at)
            self.events.append(Selected(path.address))
        if len(self._generations) == 2 and number >= self._generations[-1].number:
            self._forget_generation(self._generations.pop(0))

    def _forget_generation(self, generation: _Generation) -> None:
        self._drop_checks_of(generation)
        self.events.append(Restarted(generation.local.ufrag))

    # Rule 2, contest

    def _heard_elsewhere(self, path: _Path, now: float) -> None:
        """Media from a spare path may mean that the client is there now; if it can, it answers."""
        selected = self._selected
        if selected is None or path.answered_at is None or self._contested_at is not None:
            return
        if now - selected.heard_at >= self._timing.quiet and self._contest_due_at is None:
            self._check_back(path, now)
            self._contest(now)

    def _contest(self, now: float) -> None:
        """Ask the selected path whether the client is still there, now or when that may be."""
        if self._contested_at is None and self._contest_due_at is None:
            self._contest_due_at = max(now, self._contest_began_at + self._timing.quiet)
            if self._contest_due_at <= now:
                self._begin_contest(now)

    def _begin_contest(self, now: float) -> None:
        self._contest_due_at = None
        if self._selected is None:
            return
        self._contested_at = self._contest_began_at = now
        self._judge_at = now + self._timing.quiet
        third = self._timing.quiet / 3
        waits = [self._timing.hold, self._timing.quiet, third, third]
        self._start_check(self._selected, self._generation(self._selected.answered_in), waits, now)

    def _judge(self, now: float) -> None:
        """End the contest if the client has left the selected path and is elsewhere."""
        selected, began_at = self._selected, self._contested_at
        if selected is None or began_at is None:
            return
        over_at = began_at + 2 * self._timing.hold
        # An answer takes a round trip: where that is long, so is the wait for one.
        quiet = max(self._timing.quiet, 1.5 * selected.rtt)
        left_at = min(max(began_at, selected.heard_at) + quiet, began_at + self._timing.hold)
        others = [
            path
            for path in self._spare()
            if path.answered_at is not None and path.answered_at >= began_at - self._timing.quiet
        ]
        if now >= over_at:
            self._contested_at = None
        elif now < left_at:
            self._judge_at = left_at
        elif others:
            latest = max(others, key=lambda path: path.answered_at or 0.0)
            self._select(latest, latest.answered_in)
        else:
            self._judge_at = over_at

    # Consent (RFC 7675)

    def _consent_ends_at(self) -> float | None:
        """When sending must stop, or the wait for a restarted client is over."""
        if self._selected is not None:
            assert self._selected.answered_at is not None
            return self._selected.answered_at + self._timing.consent_timeout
        if self._waits_for_restart:  # a new agreement takes a restart (RFC 7675 section 5.1)
            return self._generations[-1].began_at + self._timing.consent_timeout
        return None

    def _keep_consent(self, now: float) -> None:
        ends_at = self._consent_ends_at()
        if ends_at is not None and now >= ends_at:
            self._end_consent(now)
        elif self._selected is not None and now >= self._consent_due_at:
            # Sent once (RFC 7675 section 5.1): the next one takes its place.
            waits = [self._timing.consent_timeout]
            generation = self._generation(self._selected.answered_in)
            self._start_check(self._selected, generation, waits, now)
            self._schedule_consent(now)

    def _end_consent(self, now: float) -> None:
        newest = self._generations[-1]
        if len(self._generations) == 2 and now < newest.began_at + self._timing.consent_timeout:
            self._selected = None
            self._contested_at = self._contest_due_at = None
            self._waits_for_restart = True
            self._forget_generation(self._generations.pop(0))
        else:
            self.close()
            self.events.append(ConsentLost())

    def _schedule_consent(self, now: float) -> None:
        self._consent_due_at = now + self._timing.consent_interval * self._jitter()
