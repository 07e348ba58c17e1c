"""Offers to take apart, and what an answer to one must be, whoever made it."""

import re
from pathlib import Path

from aiortc.sdp import SessionDescription

from transceiver.ice import Credentials
from transceiver.sdp.answer import Local
from transceiver.sdp.offer import Audio, Offer, Section

__all__ = [
    "AUDIO",
    "DATA",
    "GOOD",
    "LOCAL",
    "RECORDED",
    "UNBUNDLED",
    "VIDEO",
    "attributes",
    "check_answer",
    "offer",
    "replace",
    "without",
]

RECORDED = {
    path.stem: path.read_bytes().decode()
    for path in sorted((Path(__file__).parent / "offers").glob("*.sdp"))
}
"""Of real stacks, by name and what they offer; see offers/README.md."""
UNBUNDLED = RECORDED.pop("gstreamer-unbundled")
"""Audio and a data channel, each with a transport of its own."""

FINGERPRINT = "a=fingerprint:sha-256 " + ":".join(["AB"] * 32)
TRANSPORT = [
    "a=ice-ufrag:abcd",
    "a=ice-pwd:0123456789012345678901",
    FINGERPRINT,
    "a=setup:actpass",
]
AUDIO = [
    "m=audio 9 UDP/TLS/RTP/SAVPF 111 0",
    "c=IN IP4 0.0.0.0",
    *TRANSPORT,
    "a=mid:0",
    "a=sendrecv",
    "a=rtcp-mux",
    "a=rtpmap:111 opus/48000/2",
    "a=fmtp:111 minptime=10;useinbandfec=1",
    "a=rtpmap:0 PCMU/8000",
]
DATA = [
    "m=application 9 UDP/DTLS/SCTP webrtc-datachannel",
    "c=IN IP4 0.0.0.0",
    *TRANSPORT,
    "a=mid:1",
    "a=sctp-port:5000",
    "a=max-message-size:262144",
]
VIDEO = [
    "m=video 9 UDP/TLS/RTP/SAVPF 96 97",
    "c=IN IP4 0.0.0.0",
    *TRANSPORT,
    "a=mid:2",
    "a=sendrecv",
    "a=rtcp-mux",
    "a=rtpmap:96 VP8/90000",
    "a=rtpmap:97 rtx/90000",
    "a=fmtp:97 apt=96",
]

LOCAL = Local(
    credentials=Credentials("LocalUfragLocalU", "LocalPasswordLocalPasswo"),
    fingerprint=":".join(["CD"] * 32),
    ssrc=3735928559,
    cname="cname-of-ours",
    vips=(("198.18.0.1", 3478), ("2001:db8:18::1", 3478)),
    session_id=8169763887871482873,
    version=1,
)

TRANSPORT_OF_OURS = {
    "a=ice-ufrag:LocalUfragLocalU",
    "a=ice-pwd:LocalPasswordLocalPasswo",
    f"a=fingerprint:sha-256 {LOCAL.fingerprint}",
}
CANDIDATES = [
    "a=candidate:1 1 udp 2130706175 198.18.0.1 3478 typ host",
    "a=candidate:0 1 udp 2130706431 2001:db8:18::1 3478 typ host",
    "a=end-of-candidates",
]


def offer(*sections: list[str], bundle: str | None = "0 1") -> str:
    head = ["v=0", "o=- 1 2 IN IP4 127.0.0.1", "s=-", "t=0 0"]
    if bundle is not None:
        head.append(f"a=group:BUNDLE {bundle}")
    return "\r\n".join([*head, *(line for section in sections for line in section)]) + "\r\n"


def without(lines: list[str], start: str) -> list[str]:
    return [line for line in lines if not line.startswith(start)]


def replace(lines: list[str], old: str, new: str) -> list[str]:
    assert any(old in line for line in lines)
    return [line.replace(old, new) for line in lines]


GOOD = offer(AUDIO, DATA)


def attributes(answer: str) -> list[list[str]]:
    """The lines of the session and of each section."""
    levels: list[list[str]] = [[]]
    for line in answer.removesuffix("\r\n").split("\r\n"):
        if line.startswith("m="):
            levels.append([])
        levels[-1].append(line)
    return levels


def check_answer(read: Offer, answer: str) -> None:
    """That an answer says of each section what RFC 3264, 8829, 8842 and 9143 ask for, and that a
    parser that is not ours reads the same of it."""
    assert answer.endswith("\r\n")
    assert re.fullmatch(r"[ -~\r\n]+", answer)
    assert answer.count("\r") == answer.count("\n") == answer.count("\r\n")
    session, *levels = attributes(answer)
    assert [line[0] for line in session[:4]] == ["v", "o", "s", "t"]
    assert len(levels) == len(read.sections)
    groups = [line for line in session if line.startswith("a=group")]
    assert groups == [f"a=group:BUNDLE {' '.join(read.bundle)}"] * read.bundled
    kept = []
    for section, lines in zip(read.sections, levels, strict=True):
        kind, port, protocol, format = lines[0].removeprefix("m=").split(" ")
        assert (kind, protocol) == (section.kind, section.protocol)
        assert [line for line in lines if line.startswith("a=mid")] == (
            [] if section.mid is None else [f"a=mid:{section.mid}"]
        )
        # GStreamer and aiortc want all of these also where the section is refused.
        assert set(lines) >= TRANSPORT_OF_OURS
        assert f"a=setup:{'passive' if read.setup == 'active' else 'active'}" in lines
        if kind in ("audio", "video"):
            assert "a=rtcp-mux" in lines
        if any(section is each for each in (read.audio, read.data, *read.inactive)):
            kept.append(section.mid)
            assert port == "3478"
            assert lines[-3:] == CANDIDATES
        else:
            assert port == "0"
            assert not set(CANDIDATES) & set(lines)
        if section in read.inactive:
            assert "a=inactive" in lines
        if section is not read.data:
            assert format in section.formats
        if section is read.audio:
            check_audio(read.audio, format, lines)
    assert sorted(read.bundle) == sorted(mid for mid in kept if mid is not None and read.bundled)
    assert list(read.mids) == [
        mid
        for mid in read.bundle or kept
        if mid is not None and mid not in {section.mid for section in read.inactive}
    ]
    if all(is_known_to_aiortc(section) for section in read.sections):
        check_with_aiortc(read, answer)


def check_audio(audio: Audio, format: str, lines: list[str]) -> None:
    assert format == str(audio.payload_type)
    assert f"a=rtpmap:{format} opus/48000/2" in lines
    assert not any(line.startswith(("a=extmap", "a=rtcp-fb")) for line in lines)
    sends = audio.direction in ("sendrecv", "recvonly")
    assert sends == (f"a=ssrc:{LOCAL.ssrc} cname:{LOCAL.cname}" in lines)
    assert sends == any(line.startswith("a=msid:") for line in lines)


def is_known_to_aiortc(section: Section) -> bool:
    """aiortc's parser takes what aiortc offers, and trips over other kinds and parameters."""
    if section.kind == "application":
        return section.protocol.endswith("DTLS/SCTP")
    return (
        section.kind in ("audio", "video")
        and re.fullmatch("[A-Z/]+", section.protocol) is not None
        and section.formats[0].isdigit()
        and section.parameters is None
    )


def check_with_aiortc(read: Offer, answer: str) -> None:
    described = SessionDescription.parse(answer)
    assert [(m.kind, m.profile, m.rtp.muxId or None) for m in described.media] == [
        (section.kind, section.protocol, section.mid) for section in read.sections
    ]
    for section, media in zip(read.sections, described.media, strict=True):
        assert media.ice is not None
        assert media.ice.usernameFragment == LOCAL.credentials.ufrag
        assert media.ice.password == LOCAL.credentials.password
        assert media.dtls is not None
        assert [(f.algorithm, f.value) for f in media.dtls.fingerprints] == [
            ("sha-256", LOCAL.fingerprint)
        ]
        if section is read.audio:
            assert [codec.mimeType for codec in media.rtp.codecs] == ["audio/opus"]
        if section is read.data and not read.data.legacy:
            assert media.sctp_port == 5000
