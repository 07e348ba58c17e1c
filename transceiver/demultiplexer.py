"""Whose datagram is it? One UDP socket, many sessions (RFC 7983, then ufrag, transaction, source).

No I/O: bytes, source and `now` come in, the session they belong to comes out. Relay ports are
used again by other clients, so an address belongs to the session that authenticated there last.
"""

from transceiver import stun
from transceiver.ice import Authenticated, Event, Forgotten, IceSession, Validated
from transceiver.stun import Address, Class

__all__ = ["DROP_REASONS", "IN_USE", "Demultiplexer"]

IN_USE = 5.0
"""A session that heard from its client within so many seconds keeps its addresses."""

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

    def add(self, session: IceSession) -> None:
        """Let *session* have the packets for its ufrag; ValueError if one with that is here."""
        if self._sessions.setdefault(session.local.ufrag, session) is not session:
            raise ValueError(f"ufrag {session.local.ufrag} is taken")

    def remove(self, session: IceSession) -> None:
        """Forget *session*, its addresses and its checks; harmless if it is not here."""
        session.close()
        if self._sessions.get(session.local.ufrag) is session:
            del self._sessions[session.local.ufrag]
        for address in [a for a, holder in self._bound.items() if holder is session]:
            del self._bound[address]

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
        try:
            message = stun.parse(data)
        except stun.StunError:
            return self._drop("malformed_stun")

        if message.cls is Class.REQUEST:
            if message.username is None:
                return self._drop("no_ufrag")
            session = self._sessions.get(message.username.partition(":")[0])
            if session is None:
                return self._drop("unknown_ufrag")
        elif message.cls is Class.INDICATION:
            session = self._bound.get(source)
            if session is None:
                return self._drop("unbound_source")
        else:
            session = self.transactions.get(message.transaction)
            if session is None:
                return self._drop("unknown_transaction")

        told = len(session.events)
        if not session.receive(message, source, now):
            self.dropped["refused_stun"] += 1
        for event in session.events[told:]:
            self._bind(session, event, now)
        return session

    def _bind(self, session: IceSession, event: Event, now: float) -> None:
        """Security-critical: a source address can be forged by somebody with a session of his own.

        An address in use moves only to a session that was *answered* from there, which a forger
        never is. An address not in use moves at once, since its port may be another client's now.
        """
        if isinstance(event, Validated):
            self._bound[event.address] = session
        elif isinstance(event, Authenticated):
            holder = self._bound.get(event.address)
            if holder is None or holder is session or not _in_use(holder, now):
                self._bound[event.address] = session
        elif isinstance(event, Forgotten) and self._bound.get(event.address) is session:
            del self._bound[event.address]

    def _drop(self, reason: str) -> IceSession | None:
        """Count, and deliver nothing."""
        self.dropped[reason] += 1
        return None


def _in_use(session: IceSession, now: float) -> bool:
    return session.heard_at is not None and now - session.heard_at < IN_USE
