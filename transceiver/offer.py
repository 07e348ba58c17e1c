"""An SDP offer, read and judged before aiortc sees it (RFC 8866, 8829, 8839, 8842, 9725).

Whatever a client may get wrong is found here and said in one sentence; no I/O.
"""

import re
from dataclasses import dataclass

from aiortc import sdp
from aiortc.codecs import CODECS
from aiortc.rtcpeerconnection import find_common_codecs

__all__ = ["Offer", "OfferError", "parse"]

MAX_LINES = 1000
MAX_SECTIONS = 16
ICE_CHARACTERS = r"[A-Za-z0-9+/]"
UFRAG = re.compile(f"{ICE_CHARACTERS}{{4,256}}")
PASSWORD = re.compile(f"{ICE_CHARACTERS}{{22,256}}")
MID = re.compile(r"[!#-'*+\-.0-9A-Z^-~]{1,64}")
DIGEST_BYTES = {"sha-256": 32, "sha-384": 48, "sha-512": 64}
KINDS = ("audio", "video", "application")

# aiortc's parser has no error of its own: on bad text it fails wherever its code trips.
PARSER_FAILURES = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    StopIteration,
    TypeError,
    ValueError,
)


class OfferError(ValueError):
    """The offer cannot be answered; the message says why, for the client's developer."""


@dataclass(frozen=True, slots=True)
class Offer:
    """An offer that aiortc can answer."""

    sdp: str
    """The text without its candidates, which a transceiver never uses."""
    audio_mid: str | None
    """The section to talk on: the first of audio."""


def parse(text: str) -> Offer:
    """Read an offer; raises `OfferError`."""
    lines = text.splitlines()
    if not lines or not lines[0].startswith("v=0"):
        raise OfferError("the body is not an SDP offer: it does not start with v=0")
    if len(lines) > MAX_LINES:
        raise OfferError(f"the offer has more than {MAX_LINES} lines")
    if any(line.startswith("a=ice-lite") for line in lines):
        raise OfferError("the offer is from an ICE lite agent: nobody would make the checks")
    kept = "\r\n".join(line for line in lines if not line.startswith("a=candidate:")) + "\r\n"
    try:
        description = sdp.SessionDescription.parse(kept)
    except PARSER_FAILURES as error:
        raise OfferError("the offer is malformed SDP") from error

    sections = description.media
    if not 1 <= len(sections) <= MAX_SECTIONS:
        raise OfferError(f"the offer has {len(sections)} media sections, not 1 to {MAX_SECTIONS}")
    for section in sections:
        _check_section(section)
    if not any(section.kind in ("audio", "application") for section in sections):
        raise OfferError("the offer has neither audio nor a data channel")
    if sum(section.kind == "application" for section in sections) > 1:
        raise OfferError("the offer has more than one data channel section")
    _check_bundle(description)
    audio = next((section.rtp.muxId for section in sections if section.kind == "audio"), None)
    return Offer(sdp=kept, audio_mid=audio)


def _check_section(section: sdp.MediaDescription) -> None:
    name = f"m={section.kind}"
    if section.kind not in KINDS:
        raise OfferError(f"{name} is neither audio, video nor application")
    if section.port == 0:
        raise OfferError(f"{name} is disabled (port 0)")
    if not MID.fullmatch(section.rtp.muxId or ""):
        raise OfferError(f"{name} has no a=mid")
    assert section.ice is not None
    if not UFRAG.fullmatch(section.ice.usernameFragment or ""):
        raise OfferError(f"{name} has no valid a=ice-ufrag")
    if not PASSWORD.fullmatch(section.ice.password or ""):
        raise OfferError(f"{name} has no valid a=ice-pwd")
    if section.dtls is None:
        raise OfferError(f"{name} has no a=setup")
    if not any(_is_digest(f.algorithm, f.value) for f in section.dtls.fingerprints):
        raise OfferError(f"{name} has no a=fingerprint of sha-256, sha-384 or sha-512")
    if section.kind == "application":
        if section.profile not in ("UDP/DTLS/SCTP", "DTLS/SCTP", "TCP/DTLS/SCTP"):
            raise OfferError(f"{name} is not a data channel: its profile is {section.profile}")
        legacy = section.profile == "DTLS/SCTP"
        port = str(section.fmt[0] if legacy else section.sctp_port)
        if not re.fullmatch("[0-9]{1,5}", port) or not 0 < int(port) < 65536:
            raise OfferError(f"{name} has no valid a=sctp-port")
        if section.sctpCapabilities is not None and section.sctpCapabilities.maxMessageSize < 0:
            raise OfferError(f"{name} has a negative a=max-message-size")
    else:
        if not section.rtcp_mux:
            raise OfferError(f"{name} has no a=rtcp-mux")
        try:
            known = find_common_codecs(CODECS[section.kind], section.rtp.codecs)
        except PARSER_FAILURES as error:
            raise OfferError(f"{name} has malformed codec parameters") from error
        if not known:
            raise OfferError(f"{name} has no codec in common with us (for audio: Opus)")


def _is_digest(algorithm: str, value: str) -> bool:
    size = DIGEST_BYTES.get(algorithm.lower())
    return size is not None and bool(
        re.fullmatch(f"[0-9A-Fa-f]{{2}}(:[0-9A-Fa-f]{{2}}){{{size - 1}}}", value)
    )


def _check_bundle(description: sdp.SessionDescription) -> None:
    mids = [section.rtp.muxId for section in description.media]
    if len(set(mids)) != len(mids):
        raise OfferError("two media sections have the same a=mid")
    bundles = [group.items for group in description.group if group.semantic == "BUNDLE"]
    if not bundles and len(mids) == 1:
        return
    if len(bundles) != 1 or sorted(map(str, bundles[0])) != sorted(mids):
        raise OfferError("the offer does not bundle all its media sections (a=group:BUNDLE)")
