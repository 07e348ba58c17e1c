"""A client's SDP offer, read and judged (RFC 8866, 8829, 8839, 8842, 9143, 7587, 8841).

Only what decides about a session is read; candidates are not, as the client's checks tell where it
is. What we serve is one transport with at most one audio section (Opus) and at most one data
channel section. So we answer as JSEP's policy "max-bundle" has it (RFC 8829 section 4.1.1):

- Audio and video in the same BUNDLE group that are not served are answered as inactive: no packet
  is to come or go. Refusing them (port 0) would be as right, but not all can live with it. The
  JavaScript of Pipecat and others finds its transceivers by their index, and browsers take refused
  ones off the list. aiortc knows no refusal, and never opens its data channel. Where the refused
  section is the tagged one, another had to be tagged (RFC 9143 section 7.3.1): Chromium, with
  "max-bundle", "failed to setup RTCP mux", and GStreamer never begins ICE.
- All else that is not served is refused: what is not bundled (whether it has a mid does not matter,
  then), a second data section, protocols and kinds that are not ours.
- Audio and a data channel that would both be served, but are not in one BUNDLE group, are an
  error. JSEP would have the second refused, which is silent: the client would have half of its
  call, and nobody to tell its developer that one line is missing. A section that is served alone
  needs no group.
- The attributes of the transport are those of the section that is tagged in the answer, the first
  of its group that is not refused; or else the session's; or else, since bundle-only sections have
  none, those of the first in the group that has some.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from transceiver.ice import Credentials
from transceiver.sdp import grammar
from transceiver.sdp.grammar import NUMBER, TOKEN, Level, MalformedError

__all__ = ["Audio", "Data", "Offer", "OfferError", "Section", "UnsupportedError", "parse"]

_DIRECTIONS = ("sendrecv", "sendonly", "recvonly", "inactive")

_START = re.compile("v=0[ \t]*\r?\n")
_MEDIA = re.compile(
    rf"({TOKEN}{{1,32}}) ([0-9]{{1,5}})(?:/[0-9]{{1,5}})? "
    rf"({TOKEN}{{1,16}}(?:/{TOKEN}{{1,16}}){{0,4}}) "
    rf"({TOKEN}{{1,64}}(?: {TOKEN}{{1,64}})*)"
)
_WORD = re.compile("[^ ,]+")  # libdatachannel has commas between its options
_ENCODING = re.compile(f"{TOKEN}{{1,32}}/[0-9]{{1,9}}(?:/[0-9]{{1,3}})?")
_PARAMETERS = re.compile("[ -~]{1,256}")
_DIGEST = re.compile("[0-9A-Fa-f]{2}(?::[0-9A-Fa-f]{2})*")
_DIGEST_BYTES = {"sha-256": 32, "sha-384": 48, "sha-512": 64}

# RFC 8829 section 5.1.2: any of these is meant to be what WebRTC does, and to be answered as it is.
_RTP_PROTOCOL = re.compile("(?:(?:UDP/TLS|TCP/DTLS|TCP/TLS)/)?RTP/S?AVPF?")
_DATA_PROTOCOLS = frozenset({"UDP/DTLS/SCTP", "TCP/DTLS/SCTP"})
_LEGACY_DATA_PROTOCOL = "DTLS/SCTP"  # of the drafts of RFC 8841: the SCTP port is the format
_DATA_FORMAT = "webrtc-datachannel"

_DEFAULT_SCTP_PORT = 5000
_DEFAULT_MAX_MESSAGE_SIZE = 65536  # RFC 8841 section 6

# Most lines of an offer are none of these.
_READ = frozenset(
    {
        "bundle-only",
        "fingerprint",
        "fmtp",
        "group",
        "ice-lite",
        "ice-options",
        "ice-pwd",
        "ice-ufrag",
        "max-message-size",
        "maxptime",
        "mid",
        "rtcp-mux",
        "rtpmap",
        "sctp-port",
        "setup",
        *_DIRECTIONS,
    }
)


class OfferError(ValueError):
    """The offer cannot be answered; the message says why, in a sentence for the client's
    developer."""


class UnsupportedError(OfferError):
    """The offer is sound, but asks for what is not served here, or lacks what is needed."""


@dataclass(frozen=True, slots=True)
class Section:
    """A media section (m= line) of any kind."""

    kind: str
    mid: str | None
    protocol: str
    formats: tuple[str, ...]
    encoding: str | None
    """Of the first format, e.g. "H264/90000", if it is told."""
    parameters: str | None
    """Of the first format, e.g. "profile-level-id=42e01f", if it has some."""


@dataclass(frozen=True, slots=True)
class Audio(Section):
    """The audio section that is served, with what the client wants as a receiver of Opus."""

    payload_type: int
    direction: str
    """Of the offer: "sendrecv", "sendonly", "recvonly" or "inactive"."""
    fec: bool
    """It makes use of in-band FEC (useinbandfec=1)."""
    dtx: bool
    """It would rather not be sent silence (usedtx=1)."""
    stereo: bool
    max_ptime: int | None
    """The most audio in a packet, ms."""
    max_bitrate: int | None
    """The most that it wants to be sent on average, bit/s (maxaveragebitrate)."""


@dataclass(frozen=True, slots=True)
class Data(Section):
    """The data channel section that is served."""

    sctp_port: int
    max_message_size: int
    """The longest message that the client takes, bytes; 0 for any."""
    legacy: bool
    """As the drafts of RFC 8841 had it: the port is the format, and there is an a=sctpmap."""


@dataclass(frozen=True, slots=True)
class Offer:
    """An offer that can be answered."""

    remote: Credentials
    fingerprints: tuple[tuple[str, bytes], ...]
    """Of the client's certificate: "sha-256", "sha-384" or "sha-512", and the digest. At least
    one."""
    setup: str
    """"actpass", "active" or "passive"."""
    trickle: bool
    """The client knows trickle ICE (RFC 8838)."""
    mids: tuple[str, ...]
    """Of what is served, in the order of the group; a section that has none is left out."""
    bundle: tuple[str, ...]
    """Of what is not refused, the tagged section first; empty if there is no BUNDLE group."""
    sections: tuple[Section, ...]
    """All, in their order; those that are not in the next three are to be refused."""
    audio: Audio | None
    data: Data | None
    inactive: tuple[Section, ...]
    """Audio and video that is not served, but is in the bundle."""

    @property
    def bundled(self) -> bool:
        """Whether the answer has a BUNDLE group."""
        return bool(self.bundle)


def parse(text: str) -> Offer:
    """Read an offer. Raises `OfferError`, whatever *text* is, in time linear to its length."""
    if not _START.match(text):
        raise OfferError("the body is not an SDP offer: it does not start with v=0")
    try:
        return _judge(*grammar.split(text, _READ))
    except MalformedError as error:
        raise OfferError(str(error)) from error


def _judge(session: Level, *levels: Level) -> Offer:
    if not levels:
        raise OfferError("the offer has no media section")
    if any("ice-lite" in level.attributes for level in (session, *levels)):
        raise UnsupportedError("the offer is from an ICE lite agent: nobody would make the checks")
    level_of = _by_mid(levels)
    bundle_of = _bundles(session, level_of)

    sections: list[Section] = []
    audio: Audio | None = None
    data: Data | None = None
    answered: list[tuple[Section, Level]] = []
    others: list[tuple[Section, Level]] = []
    for level in levels:
        section, port = _section(level)
        if port != 0 or ("bundle-only" in level.attributes and section.mid in bundle_of):
            if audio is None and (audio := _audio(section, level, session)) is not None:
                section = audio
                answered.append((section, level))
            elif data is None and (data := _data(section, level)) is not None:
                section = data
                answered.append((section, level))
            else:
                others.append((section, level))
        sections.append(section)
    for section, level in others:
        if section.kind == "audio" and audio is None:
            raise UnsupportedError(f"{level.name} does not offer Opus by RTP (opus/48000/2)")
    if not answered:
        raise UnsupportedError("the offer has neither audio nor a data channel")

    bundle = bundle_of.get(answered[0][0].mid or "", ())
    if len(answered) == 2 and answered[1][0].mid not in bundle:
        raise UnsupportedError(
            "audio and the data channel are not in one a=group:BUNDLE, and there is but one"
            " transport here: offer them bundled (policy max-bundle)"
        )
    inactive = [each for each in others if each[0].mid in bundle and _can_be_inactive(*each)]
    kept = [*answered, *inactive]
    if bundle:
        answered.sort(key=lambda each: bundle.index(each[0].mid or ""))
        kept.sort(key=lambda each: bundle.index(each[0].mid or ""))
    tagged = kept[0][1]
    transport = [tagged, session, *(level_of[mid] for mid in bundle)]
    if audio is not None and not any("rtcp-mux" in level.attributes for level in transport):
        raise UnsupportedError(f"{tagged.name} has no a=rtcp-mux: RTCP has no port of its own here")
    return Offer(
        remote=_credentials(transport),
        fingerprints=_fingerprints(transport),
        setup=_setup(transport),
        trickle=any("trickle" in _WORD.findall(each) for each in _find(transport, "ice-options")),
        mids=tuple(section.mid for section, _ in answered if section.mid is not None),
        bundle=tuple(section.mid for section, _ in kept if bundle and section.mid is not None),
        sections=tuple(sections),
        audio=audio,
        data=data,
        inactive=tuple(section for section, _ in inactive),
    )


def _can_be_inactive(section: Section, level: Level) -> bool:
    """Whether the section is one of RTP that can be answered with its first format."""
    return (
        section.kind in ("audio", "video")
        and _is_usable(section.formats[0])
        and section.encoding is not None
        and _RTP_PROTOCOL.fullmatch(section.protocol) is not None
        and ("rtcp-mux" in level.attributes or "bundle-only" in level.attributes)
    )


def _by_mid(levels: Sequence[Level]) -> dict[str, Level]:
    level_of: dict[str, Level] = {}
    for level in levels:
        mid = level.mid()
        if mid in level_of:
            raise OfferError(f"{level_of[mid].name} and {level.name} have the same a=mid")
        if mid is not None:
            level_of[mid] = level
    return level_of


def _bundles(session: Level, level_of: Mapping[str, Level]) -> dict[str, tuple[str, ...]]:
    """The BUNDLE group that a mid is in."""
    found: dict[str, tuple[str, ...]] = {}
    for group in session.all("group"):
        semantics, *mids = group.split() or [""]
        if semantics != "BUNDLE":
            continue
        # FFmpeg bundles "0 1" always, also where it has audio alone.
        bundle = tuple(mid for mid in mids if mid in level_of)
        for mid in bundle:
            if mid in found:
                raise OfferError("a=group:BUNDLE names an a=mid twice")
            found[mid] = bundle
    return found


def _section(level: Level) -> tuple[Section, int]:
    """A section as it shows in its m= line, and the port."""
    match = _MEDIA.fullmatch(level.media)
    if match is None or int(match[2]) > 65535:
        raise OfferError(f"{level.name} has a malformed m= line")
    kind, port, protocol, formats = match.groups()
    first, *others = formats.split(" ")
    section = Section(
        kind=kind,
        mid=level.first("mid"),
        protocol=protocol,
        formats=(first, *others),
        encoding=_of_format(first, level.all("rtpmap"), _ENCODING),
        parameters=_of_format(first, level.all("fmtp"), _PARAMETERS),
    )
    return section, int(port)


def _of_format(format: str, values: Sequence[str], grammar: re.Pattern[str]) -> str | None:
    """What an a=rtpmap or a=fmtp says of a format, if that is in the grammar."""
    for value in values:
        payload, _, text = value.partition(" ")
        if payload == format:
            return text if grammar.fullmatch(text) else None
    return None


def _audio(section: Section, level: Level, session: Level) -> Audio | None:
    """The section if it is audio with Opus."""
    if section.kind != "audio" or not _RTP_PROTOCOL.fullmatch(section.protocol):
        return None
    payloads = set()
    for rtpmap in level.all("rtpmap"):
        payload, _, encoding = rtpmap.partition(" ")
        if encoding.strip().lower() == "opus/48000/2":
            payloads.add(payload)
    chosen = next((each for each in section.formats if each in payloads and _is_usable(each)), None)
    if chosen is None:
        return None
    parameters: dict[str, str] = {}
    for fmtp in level.all("fmtp"):
        payload, _, text = fmtp.partition(" ")
        if payload == chosen:
            for parameter in text.split(";"):
                key, _, value = parameter.partition("=")
                parameters[key.strip().lower()] = value.strip()
    return Audio(
        kind=section.kind,
        mid=section.mid,
        protocol=section.protocol,
        formats=section.formats,
        encoding=section.encoding,
        parameters=section.parameters,
        payload_type=int(chosen),
        direction=_direction(level, session),
        fec=parameters.get("useinbandfec") == "1",
        dtx=parameters.get("usedtx") == "1",
        stereo=parameters.get("stereo") == "1",
        max_ptime=_positive(level.first("maxptime")),
        max_bitrate=_positive(parameters.get("maxaveragebitrate")),
    )


def _is_usable(payload_type: str) -> bool:
    """Whether RTP of that type is told from RTCP on the same port (RFC 5761 section 4)."""
    if not NUMBER.fullmatch(payload_type) or len(payload_type) > 3:
        return False
    number = int(payload_type)
    return number < 64 or 96 <= number < 128


def _positive(text: str | None) -> int | None:
    """A wish of the client; one that makes no sense is none."""
    return int(text) or None if text is not None and NUMBER.fullmatch(text) else None


def _direction(*levels: Level) -> str:
    for level in levels:
        for direction in _DIRECTIONS:
            if direction in level.attributes:
                return direction
    return "sendrecv"  # RFC 8866 section 6.7


def _data(section: Section, level: Level) -> Data | None:
    """The section if it is one of data channels."""
    if section.kind != "application":
        return None
    legacy = section.protocol == _LEGACY_DATA_PROTOCOL
    if legacy:
        port = section.formats[0]
    elif section.protocol in _DATA_PROTOCOLS and _DATA_FORMAT in section.formats:
        port = level.first("sctp-port") or str(_DEFAULT_SCTP_PORT)
    else:
        return None
    if not NUMBER.fullmatch(port) or not 0 < int(port) < 65536:
        raise OfferError(f"{level.name} has no valid SCTP port (a=sctp-port)")
    size = level.first("max-message-size") or str(_DEFAULT_MAX_MESSAGE_SIZE)
    if not NUMBER.fullmatch(size):
        raise OfferError(f"{level.name} has no valid a=max-message-size")
    return Data(
        kind=section.kind,
        mid=section.mid,
        protocol=section.protocol,
        formats=section.formats,
        encoding=section.encoding,
        parameters=section.parameters,
        sctp_port=int(port),
        max_message_size=int(size),
        legacy=legacy,
    )


def _find(transport: Sequence[Level], attribute: str) -> Sequence[str]:
    """The values at the first level that has the attribute."""
    for level in transport:
        if attribute in level.attributes:
            return level.attributes[attribute]
    return ()


def _credentials(transport: Sequence[Level]) -> Credentials:
    # Both of one level: a ufrag and another section's password are no pair.
    for level in transport:
        if "ice-ufrag" in level.attributes:
            return level.credentials()
    return transport[0].credentials()


def _fingerprints(transport: Sequence[Level]) -> tuple[tuple[str, bytes], ...]:
    tagged = transport[0].name
    found: dict[tuple[str, bytes], None] = {}
    values = _find(transport, "fingerprint")
    if not values:
        raise OfferError(f"{tagged} has no a=fingerprint: nothing but DTLS-SRTP is served")
    for value in values:
        algorithm, _, text = value.partition(" ")
        size = _DIGEST_BYTES.get(algorithm.lower())
        if size is None:
            continue
        if len(text) != 3 * size - 1 or not _DIGEST.fullmatch(text):
            raise OfferError(f"{tagged} has an a=fingerprint that is no digest of {algorithm}")
        found[algorithm.lower(), bytes.fromhex(text.replace(":", ""))] = None
    if not found:
        raise UnsupportedError(f"{tagged} has no a=fingerprint of {', '.join(_DIGEST_BYTES)}")
    return tuple(found)


def _setup(transport: Sequence[Level]) -> str:
    values = _find(transport, "setup")
    if not values or values[0] not in ("actpass", "active", "passive"):
        raise OfferError(f"{transport[0].name} has no a=setup of actpass, active or passive")
    return values[0]
