"""SRTP and SRTCP of one session (RFC 3711, RFC 7714), over libsrtp: bytes in, bytes out."""

from enum import StrEnum

from pylibsrtp import Error, Policy, Session

from transceiver.dtls import Keys

__all__ = ["MAX_SOURCES", "Reason", "Srtp", "SrtpError"]

WINDOW = 1024
"""Packets that replay protection looks back, 20 s of audio; it takes a bit for each."""

MAX_SOURCES = 16
"""SSRCs that a peer may use in a session. libsrtp sets up a stream of some kilobytes for each."""


class Reason(StrEnum):
    AUTHENTICATION = "authentication"
    """Not made with the peer's key, or changed on the way."""
    REPLAY = "replay"
    """Was here before, or is too old to tell."""
    SOURCES = "sources"
    """Of one SSRC too many."""
    OTHER = "other"
    """No such packet at all, most often."""


class SrtpError(Exception):
    """A packet that is to be dropped; *reason* is for the counters."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


_REASONS = {
    "authentication failure": Reason.AUTHENTICATION,
    "replay check failed (bad index)": Reason.REPLAY,
    "replay check failed (index too old)": Reason.REPLAY,
}
"""By what pylibsrtp says; it has no other way to tell."""


class Srtp:
    """Both directions. Packets must be bytes; what is longer than 1,500 bytes is refused."""

    def __init__(self, keys: Keys) -> None:
        self._inbound = Session(_policy(keys.profile, keys.remote, Policy.SSRC_ANY_INBOUND))
        self._outbound = Session(_policy(keys.profile, keys.local, Policy.SSRC_ANY_OUTBOUND))
        self._sources: set[bytes] = set()

    def protect(self, rtp: bytes) -> bytes:
        """Raises SrtpError for what is not RTP, and for a sequence number that went before:
        a second packet with the same one would give the key away."""
        try:
            return self._outbound.protect(rtp)
        except (Error, ValueError) as error:
            raise _refusal(error) from error

    def protect_rtcp(self, rtcp: bytes) -> bytes:
        """Raises SrtpError for what is not RTCP."""
        try:
            return self._outbound.protect_rtcp(rtcp)
        except (Error, ValueError) as error:
            raise _refusal(error) from error

    def unprotect(self, srtp: bytes) -> bytes:
        """The RTP packet. Raises SrtpError, and nothing else."""
        source = srtp[8:12]
        if source not in self._sources:
            self._check_sources()
        try:
            rtp = self._inbound.unprotect(srtp)
        except (Error, ValueError) as error:
            raise _refusal(error) from error
        self._sources.add(source)
        return rtp

    def unprotect_rtcp(self, srtcp: bytes) -> bytes:
        """The compound RTCP packet. Raises SrtpError, and nothing else."""
        source = srtcp[4:8]
        if source not in self._sources:
            self._check_sources()
        try:
            rtcp = self._inbound.unprotect_rtcp(srtcp)
        except (Error, ValueError) as error:
            raise _refusal(error) from error
        self._sources.add(source)
        return rtcp

    def _check_sources(self) -> None:
        if len(self._sources) == MAX_SOURCES:
            raise SrtpError(Reason.SOURCES, f"more than {MAX_SOURCES} SSRCs")


def _policy(profile: int, key: bytes, sources: int) -> Policy:
    policy = Policy(key=key, ssrc_type=sources, srtp_profile=profile)
    policy.window_size = WINDOW
    return policy


def _refusal(error: Exception) -> SrtpError:
    return SrtpError(_REASONS.get(str(error), Reason.OTHER), str(error))
