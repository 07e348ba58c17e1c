"""The SDP answer to an offer (RFC 3264, 8829, 8839, 8842, 9143, 7587, 8841).

Short, and what every stack takes. Where they differ:

- In a refused section, too, GStreamer wants a=mid and the attributes of the transport, and aiortc
  wants a=rtcp-mux and a codec that it knows; nor does it look for the transport in the session. So
  all is repeated.
- Candidates are in each section, though one would do (RFC 9143 section 10): aiortc takes those of
  the last section that shares the transport, and no others.
- Opus is answered as mono by saying nothing: the defaults of stereo and sprop-stereo are 0
  (RFC 7587 section 6.1), and a client is free to send stereo, which is mixed down here.
- Neither header extensions, nor RTCP feedback, nor reduced-size RTCP are taken up; nor is there an
  a=rtcp, which means nothing once RTCP shares the port (RFC 8035).
"""

import functools
import ipaddress
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from transceiver.ice import Credentials
from transceiver.sdp.offer import Audio, Data, Offer, Section
from transceiver.stun import Address

__all__ = [
    "MAX_MESSAGE_SIZE",
    "SCTP_PORT",
    "Local",
    "by_preference",
    "candidates",
    "role",
    "write",
]

SCTP_PORT = 5000
MAX_MESSAGE_SIZE = 262_144
"""The longest message that we take on a data channel, bytes."""

_HOST_PRIORITY = 126 << 24 | 255
"""Host candidate, component 1, least local preference (RFC 8445 section 5.1.2.1)."""

_STREAMS = 65535
"""Of an association, each way; only the drafts of RFC 8841 ask."""

_NOWHERE = "c=IN IP4 0.0.0.0\r\n"

_REVERSE = {
    "sendrecv": "sendrecv",
    "sendonly": "recvonly",
    "recvonly": "sendonly",
    "inactive": "inactive",
}


@dataclass(frozen=True, slots=True)
class Local:
    """What a session answers with."""

    credentials: Credentials
    fingerprint: str
    """SHA-256 of our certificate, as "AA:BB:…"."""
    ssrc: int
    cname: str
    vips: tuple[Address, ...]
    """At least one."""
    session_id: int
    """Of the o= line; the same in all answers of a session, below 2**63."""
    version: int
    """Of the o= line; one more in each answer of a session that says something else."""


def role(offer: Offer) -> bool:
    """Whether we are the DTLS client (RFC 8842 section 5.3): whenever the client leaves it to us,
    as its first flight then follows the ICE check that proved the path."""
    return offer.setup != "active"


def write(offer: Offer, local: Local, *, is_client: bool | None = None) -> str:
    """The answer, with CRLF after each line. *is_client*: our role in DTLS, where the association
    is there already and keeps its roles (RFC 8842 section 5.5).

    A section for each of the offer's, in their order: those that are served, and those that
    are inactive, with the VIPs as the only candidates, the others refused (port 0).
    """
    if is_client is None:
        is_client = role(offer)
    port, connection, candidate_lines = _addresses(local.vips)
    transport = (
        f"a=ice-ufrag:{local.credentials.ufrag}\r\n"
        f"a=ice-pwd:{local.credentials.password}\r\n"
        f"a=setup:{'active' if is_client else 'passive'}\r\n"
        f"a=fingerprint:sha-256 {local.fingerprint}\r\n"
    )
    parts = [f"v=0\r\no=- {local.session_id} {local.version} IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\n"]
    if offer.bundled:
        parts.append(f"a=group:BUNDLE {' '.join(offer.bundle)}\r\n")
    if offer.trickle:
        parts.append("a=ice-options:trickle\r\n")
    for section in offer.sections:
        format = section.formats[0]
        own = _inactive(section) if section.kind in ("audio", "video") else ""
        if section is offer.audio:
            format = str(offer.audio.payload_type)
            own = _audio(offer.audio, local)
        elif section is offer.data:
            format = _data_format(offer.data)
            own = _data(offer.data)
        if section is offer.audio or section is offer.data or section in offer.inactive:
            place, where, end = port, connection, candidate_lines
        else:
            place, where, end = 0, _NOWHERE, ""
        mid = "" if section.mid is None else f"a=mid:{section.mid}\r\n"
        parts.append(
            f"m={section.kind} {place} {section.protocol} {format}\r\n"
            f"{where}{mid}{transport}{own}{end}"
        )
    return "".join(parts)


def _audio(audio: Audio, local: Local) -> str:
    payload = audio.payload_type
    direction = _REVERSE[audio.direction]
    dtx = ";usedtx=1" if audio.dtx else ""
    lines = (
        f"a={direction}\r\n"
        "a=rtcp-mux\r\n"
        f"a=rtpmap:{payload} opus/48000/2\r\n"
        f"a=fmtp:{payload} minptime=10;useinbandfec=1{dtx}\r\n"
    )
    if direction in ("recvonly", "inactive"):
        return lines
    return (
        f"{lines}a=msid:{local.cname} {local.cname}\r\na=ssrc:{local.ssrc} cname:{local.cname}\r\n"
    )


def _data_format(data: Data) -> str:
    return str(SCTP_PORT) if data.legacy else "webrtc-datachannel"


def _data(data: Data) -> str:
    if data.legacy:
        port = f"a=sctpmap:{SCTP_PORT} webrtc-datachannel {_STREAMS}"
    else:
        port = f"a=sctp-port:{SCTP_PORT}"
    return f"{port}\r\na=max-message-size:{MAX_MESSAGE_SIZE}\r\n"


def _inactive(section: Section) -> str:
    """RTP of which there will be none, in the format that the client likes best."""
    format = section.formats[0]
    rtpmap = fmtp = ""
    if section.encoding is not None:
        rtpmap = f"a=rtpmap:{format} {section.encoding}\r\n"
        if section.parameters is not None:
            fmtp = f"a=fmtp:{format} {section.parameters}\r\n"
    return f"a=inactive\r\na=rtcp-mux\r\n{rtpmap}{fmtp}"


def candidates(vips: Sequence[Address]) -> list[str]:
    """The VIPs as host candidates, "candidate:…", the preferred one with the highest priority.

    IPv4 stands first, whatever the priorities: FFmpeg takes the first line, and no other.
    """
    numbered = sorted(enumerate(by_preference(vips)), key=lambda each: ":" in each[1][0])
    return [
        f"candidate:{index} 1 udp {_HOST_PRIORITY | (65535 - index) << 8} {host} {port} typ host"
        for index, (host, port) in numbered
    ]


def by_preference(vips: Sequence[Address]) -> list[Address]:
    """IPv6 and IPv4 by turns, IPv6 first (RFC 8421 section 4): a client for which one family leads
    nowhere soon tries the other."""
    turns = {6: itertools.count(0, 2), 4: itertools.count(1, 2)}
    numbered = [(next(turns[ipaddress.ip_address(vip[0]).version]), vip) for vip in vips]
    return [vip for _, vip in sorted(numbered)]


@functools.lru_cache(maxsize=16)
def _addresses(vips: tuple[Address, ...]) -> tuple[int, str, str]:
    """The default destination's port and c= line, and the lines of the candidates.

    The default is for who does no ICE, so IPv4 if there is any (RFC 8839 section 4.2).
    """
    families = {ipaddress.ip_address(vip[0]).version: vip for vip in reversed(vips)}
    family = min(families)
    host, port = families[family]
    lines = [f"a={candidate}\r\n" for candidate in candidates(vips)]
    return port, f"c=IN IP{family} {host}\r\n", "".join([*lines, "a=end-of-candidates\r\n"])
