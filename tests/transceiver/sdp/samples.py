"""Offers to take apart, and what an answer to one must be, whoever made it."""

from pathlib import Path

from aiortc.sdp import MediaDescription, SessionDescription

from transceiver.ice import Credentials
from transceiver.sdp.answer import Local
from transceiver.sdp.offer import Offer, Section

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

Served = list[tuple[Section, MediaDescription, list[str]]]

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
    assert answer.isascii()
    session, *levels = attributes(answer)
    assert [line[0] for line in session[:4]] == ["v", "o", "s", "t"]
    described = SessionDescription.parse(answer)
    assert len(described.media) == len(levels) == len(read.sections)
    served: Served = []
    for section, media, lines in zip(read.sections, described.media, levels, strict=True):
        assert (media.kind, media.profile) == (section.kind, section.protocol)
        assert lines[1].startswith("c=IN IP")
        assert lines.count(f"a=mid:{section.mid}") == (section.mid is not None)
        assert media.ice is not None
        # GStreamer and aiortc want all of these also where the section is refused.
        assert media.ice.usernameFragment == LOCAL.credentials.ufrag
        assert media.ice.password == LOCAL.credentials.password
        assert lines.count("a=setup:" + ("passive" if read.setup == "active" else "active")) == 1
        assert media.dtls is not None
        assert [(f.algorithm, f.value) for f in media.dtls.fingerprints] == [
            ("sha-256", LOCAL.fingerprint)
        ]
        if not any(section is each for each in (read.audio, read.data, read.anchor)):
            assert media.port == 0
            assert not any(line.startswith("a=candidate") for line in lines)
            continue
        assert media.port == 3478
        served.append((section, media, lines))
    _check_bundle(read, described, served)
    _check_audio(read, served)


def _check_bundle(read: Offer, described: SessionDescription, served: Served) -> None:
    groups = [group.items for group in described.group]
    assert groups == ([list(read.mids)] if read.bundled else [])
    assert sorted(read.mids) == sorted(s.mid for s, _, _ in served if s.mid is not None)
    for _, media, lines in served:
        assert lines.count("a=end-of-candidates") == 1
        assert [(c.ip, c.port, c.type) for c in media.ice_candidates] == [
            ("2001:db8:18::1", 3478, "host"),
            ("198.18.0.1", 3478, "host"),
        ]


def _check_audio(read: Offer, served: Served) -> None:
    for section, media, lines in served:
        if section is not read.audio or read.audio is None:
            continue
        assert media.fmt == [read.audio.payload_type]
        assert [codec.mimeType for codec in media.rtp.codecs] == ["audio/opus"]
        assert media.rtcp_mux
        assert not any(line.startswith(("a=extmap", "a=rtcp-fb")) for line in lines)
        sends = read.audio.direction in ("sendrecv", "recvonly")
        assert [ssrc.ssrc for ssrc in media.ssrc] == [LOCAL.ssrc] * sends
