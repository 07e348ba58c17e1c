"""Whose datagram is it? One UDP socket, many sessions (RFC 7983, then ufrag, transaction, source).

No I/O: bytes, source and `now` come in, the session they belong to comes out. Relay ports are
used again by other clients, so an address belongs to the session that authenticated there last.
"""

from transceiver import stun
from transceiver.ice import (
    Authenticated,
    Credentials,
    Event,
    Forgotten,
    IceSession,
    Restarted,
    Validated,
)
from transceiver.stun import Address, Class

__all__ = ["DROP_REASONS", "IN_USE", "Demultiplexer"]

IN_USE = 5.0
"""An address that its session heard from within so many seconds stays with it."""

DROP_REASONS = {
    "not_webrtc": "first byte is neither STUN's, DTLS's nor RTP's (RFC 7983)",
    "malformed_stun": "a STUN class byte, but no well-formed Binding message",
    "no_ufrag": "a Binding Request without a USERNAME that names a session",
    "unknown_ufrag": "a Binding Request for a session that is not here (any more)",
    "unknown_transaction": "a Binding Response to nothing we asked lately",
    "refused_stun": "a Binding message that its session refused or ignored",
    "unbound_source": "media or DTLS from an address that no session authenticated from",
    "queue_full": "the session's receive queue was full: it does not keep up",
    "not_selected": "sent before a path was validated, or after consent was lost",
    "send_full": "the socket's send buffer was full",
    "send_error": "the kernel refused a send",
    "receive_error": "the kernel reported an error, such as an ICMP one, instead of a datagram",
}
"""Why a datagram was not delivered or not sent."""


class Demultiplexer:
    """The tables of one socket: sessions by ufrag, checks by transaction, sessions by address."""

    def __init__(self) -> None:
        self.transactions: dict[bytes, IceSession] = {}
        """Checks in flight, for the `IceSession`s to fill."""
        self.dropped = dict.fromkeys(DROP_REASONS, 0)
        self._sessions: dict[str, IceSession] = {}
        self._bound: dict[Address, IceSession] = {}
        self._held: dict[IceSession, set[Address]] = {}

    def add(self, session: IceSession) -> None:
        """Let *session* have the packets for its ufrag; ValueError if one with that is here."""
        if self._sessions.setdefault(session.local.ufrag, session) is not session:
            raise ValueError(f"ufrag {session.local.ufrag} is taken")
        self._held.setdefault(session, set())

    def remove(self, session: IceSession) -> None:
        """Forget *session*, its addresses and its checks; harmless if it is not here."""
        session.close()
        for ufrag in session.ufrags:
            if self._sessions.get(ufrag) is session:
                del self._sessions[ufrag]
        for address in self._held.pop(session, ()):
            del self._bound[address]

    def restart(
        self, session: IceSession, local: Credentials, remote: Credentials, now: float
    ) -> None:
        """Begin an ICE restart of *session*; ValueError as with `add`, or if it was not added."""
        if session not in self._held:
            raise ValueError(f"session {session.local.ufrag} does not take part")
        if local.ufrag in self._sessions:
            raise ValueError(f"ufrag {local.ufrag} is taken")
        self._sessions[local.ufrag] = session
        told = len(session.events)
        session.restart(local, remote, now)
        self._note(session, told, now)

    def poll(self, session: IceSession, now: float) -> None:
        """Let *session* do what is due (`IceSession.poll`)."""
        told = len(session.events)
        session.poll(now)
        self._note(session, told, now)

    def receive(self, data: bytes, source: Address, now: float) -> IceSession | None:
        """The session of a datagram; None if it was dropped, which `dropped` then counts.

        It is the session's media or DTLS if its first byte is above 3. Else it was STUN, and the
        session has taken it: see what it wants to send and to tell.
        """
        first = data[0] if data else 255
        if first <= 3:
            return self._receive_stun(data, source, now)
        if not (20 <= first <= 63 or 128 <= first <= 191):
            return self._drop("not_webrtc")
        session = self._bound.get(source)
        if session is None:
            return self._drop("unbound_source")
        session.heard(source, now)
        return session

    def _receive_stun(self, data: bytes, source: Address, now: float) -> IceSession | None:
        """Whose it is shows before anything dear is done with it: parsing in full, HMAC."""
        try:
            cls, transaction = stun.header(data)
            if cls is Class.REQUEST:
                username = stun.username(data)
                if username is None:
                    return self._drop("no_ufrag")
                session = self._sessions.get(username.partition(":")[0])
                missing = "unknown_ufrag"
            elif cls is Class.INDICATION:
                session = self._bound.get(source)
                missing = "unbound_source"
            else:
                session = self.transactions.get(transaction)
                missing = "unknown_transaction"
            if session is None:
                return self._drop(missing)
            message = stun.parse(data)
        except stun.StunError:
            return self._drop("malformed_stun")

        told = len(session.events)
        if not session.receive(message, source, now):
            self.dropped["refused_stun"] += 1
        self._note(session, told, now)
        return session

    def _note(self, session: IceSession, told: int, now: float) -> None:
        """Keep the tables in agreement with what *session* tells beyond the first *told* events."""
        for event in session.events[told:]:
            if isinstance(event, Restarted):
                del self._sessions[event.old_ufrag]
            else:
                self._bind(session, event, now)

    def _bind(self, session: IceSession, event: Event, now: float) -> None:
        """Security-critical: a source address can be forged by somebody with a session of his own.

        An address that its session was answered from, and that is in use, moves only to one that
        was *answered* from there, too, which a forger never is. Any other moves at once: its port
        may be another client's now, or who has it may be a forger.
        """
        if isinstance(event, Validated):
            self._hold(event.address, session)
        elif isinstance(event, Authenticated):
            holder = self._bound.get(event.address)
            if holder is None or holder is session or not _in_use(holder, event.address, now):
                self._hold(event.address, session)
        elif isinstance(event, Forgotten) and self._bound.get(event.address) is session:
            del self._bound[event.address]
            self._held[session].discard(event.address)

    def _hold(self, address: Address, session: IceSession) -> None:
        holder = self._bound.get(address)
        if holder is not session:
            if holder is not None:
                self._held[holder].discard(address)
            self._bound[address] = session
            self._held[session].add(address)

    def _drop(self, reason: str) -> IceSession | None:
        """Count, and deliver nothing."""
        self.dropped[reason] += 1
        return None


def _in_use(holder: IceSession, address: Address, now: float) -> bool:
    heard_at = holder.heard_from(address)
    return holder.has_answered(address) and heard_at is not None and now - heard_at < IN_USE
