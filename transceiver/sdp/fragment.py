"""SDP fragments (RFC 8840 section 9) as WHIP has them (RFC 9725 section 4.3): a client trickles its
candidates or restarts ICE, and a restart is answered.

Candidates are counted and not read: the client's checks tell where it is.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from transceiver.ice import Credentials
from transceiver.sdp import grammar
from transceiver.sdp.answer import candidates
from transceiver.sdp.grammar import MalformedError
from transceiver.stun import Address

__all__ = ["MEDIA_TYPE", "Fragment", "FragmentError", "parse", "write"]

MEDIA_TYPE = "application/trickle-ice-sdpfrag"

_READ = frozenset({"candidate", "end-of-candidates", "ice-pwd", "ice-ufrag", "mid"})

_MEDIA = "m=audio 9 RTP/AVP 0"
"""Only the a=mid below it means anything (RFC 8840 section 9.1)."""


class FragmentError(ValueError):
    """The fragment is malformed; the message says how, in a sentence for the client's developer."""


@dataclass(frozen=True, slots=True)
class Fragment:
    """What a client says about ICE after its offer."""

    credentials: Credentials | None
    """Of the generation that it is about: a restart, if they are not those that the session knows.
    """
    mids: tuple[str, ...]
    """Of the sections that it is about."""
    candidates: int
    """How many there are."""
    end_of_candidates: bool

    @property
    def mid(self) -> str | None:
        """Of the first section, if it has one."""
        return self.mids[0] if self.mids else None


def parse(text: str) -> Fragment:
    """Read a fragment. Raises `FragmentError`, whatever *text* is, in time linear to its length."""
    try:
        levels = grammar.split(text, _READ)
        mids = tuple(mid for level in levels if (mid := level.mid()) is not None)
        found = {
            level.credentials(): level.name
            for level in levels
            if "ice-ufrag" in level.attributes or "ice-pwd" in level.attributes
        }
    except MalformedError as error:
        raise FragmentError(str(error)) from error
    if len(found) > 1:
        first, second, *_ = found.values()
        raise FragmentError(f"{first} and {second} differ in a=ice-ufrag or a=ice-pwd")
    if len(set(mids)) != len(mids):
        raise FragmentError("two sections have the same a=mid")
    fragment = Fragment(
        credentials=next(iter(found), None),
        mids=mids,
        candidates=sum(len(level.all("candidate")) for level in levels),
        end_of_candidates=any("end-of-candidates" in level.attributes for level in levels),
    )
    if not (fragment.credentials or fragment.candidates or fragment.end_of_candidates):
        raise FragmentError(f"the body says nothing about ICE that {MEDIA_TYPE} could say")
    return fragment


def write(
    credentials: Credentials, mids: Sequence[str], vips: Sequence[Address], *, bundled: bool
) -> str:
    """The answer to a restart: the new local *credentials* and the VIPs, with CRLF.

    *mids* are those of the sections that are served, the tagged one first, which stands for all
    that are *bundled* with it.
    """
    lines = [f"a=group:BUNDLE {' '.join(mids)}"] if bundled else []
    lines.append(_MEDIA)
    lines += [f"a=mid:{mid}" for mid in mids[:1]]
    lines += [f"a=ice-ufrag:{credentials.ufrag}", f"a=ice-pwd:{credentials.password}"]
    lines += [f"a={candidate}" for candidate in candidates(vips)]
    return "\r\n".join([*lines, "a=end-of-candidates", ""])
