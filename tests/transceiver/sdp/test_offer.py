"""Offers: good ones of real stacks, and all that can be wrong with one."""

import pytest

from tests.transceiver.sdp.samples import (
    AUDIO,
    DATA,
    GOOD,
    RECORDED,
    UNBUNDLED,
    VIDEO,
    offer,
    replace,
    without,
)
from transceiver.ice import Credentials
from transceiver.sdp.offer import Offer, OfferError, UnsupportedError, parse

BUNDLE_ONLY = [
    line.replace(" 9 ", " 0 ")
    for line in DATA
    if not line.startswith(("a=ice", "a=setup", "a=fingerprint"))
] + ["a=bundle-only"]
NEW_KIND = ["m=x-new 9 NEW 1", "a=mid:2"]
LEGACY_DATA = [
    *without(replace(DATA, "UDP/DTLS/SCTP webrtc-datachannel", "DTLS/SCTP 5001"), "a=sctp-port"),
    "a=sctpmap:5001 webrtc-datachannel 1024",
]


def opus(*lines: str) -> list[str]:
    return [*without(AUDIO, "a=fmtp"), *lines]


# What is read


@pytest.mark.parametrize("name", RECORDED)
def test_offers_of_real_stacks_are_served(name: str) -> None:
    read = parse(RECORDED[name])
    _, *offered = name.split("-")
    assert (read.audio is None) == ("data" in offered)
    assert (read.data is None) == ("whip" in offered)


def test_an_offer_is_read() -> None:
    read = parse(GOOD)
    assert read.remote == Credentials("abcd", "0123456789012345678901")
    assert read.fingerprints == (("sha-256", b"\xab" * 32),)
    assert (read.setup, read.bundled, read.trickle) == ("actpass", True, False)
    assert read.mids == ("0", "1")
    assert read.sections == (read.audio, read.data)


def test_the_audio_is_read() -> None:
    fmtp = "a=fmtp:111 minptime=10; UseInbandFEC=1;usedtx=1;stereo=1;maxaveragebitrate=20000"
    audio = parse(offer(opus(fmtp, "a=maxptime:60"), bundle=None)).audio
    assert audio is not None
    assert (audio.payload_type, audio.direction) == (111, "sendrecv")
    assert (audio.fec, audio.dtx, audio.stereo) == (True, True, True)
    assert (audio.max_ptime, audio.max_bitrate) == (60, 20000)


def test_what_is_not_said_of_the_audio_has_its_default() -> None:
    audio = parse(offer(without(opus(), "a=sendrecv"), bundle=None)).audio
    assert audio is not None
    assert audio.direction == "sendrecv"
    assert (audio.fec, audio.dtx, audio.stereo) == (False, False, False)
    assert (audio.max_ptime, audio.max_bitrate) == (None, None)


@pytest.mark.parametrize("value", ["0", "-5", "many", "9" * 50, "1e9", ""])
def test_wishes_that_make_no_sense_are_none(value: str) -> None:
    lines = opus(f"a=fmtp:111 maxaveragebitrate={value}", f"a=maxptime:{value}")
    audio = parse(offer(lines, bundle=None)).audio
    assert audio is not None
    assert (audio.max_ptime, audio.max_bitrate) == (None, None)


def test_of_several_opus_formats_the_preferred_is_taken() -> None:
    lines = opus("a=rtpmap:96 OPUS/48000/2", "a=fmtp:96 usedtx=1", "a=fmtp:111 usedtx=0")
    audio = parse(offer(replace(lines, "SAVPF 111 0", "SAVPF 0 96 111"), bundle=None)).audio
    assert audio is not None
    assert (audio.payload_type, audio.dtx) == (96, True)


def test_opus_on_a_number_that_rtcp_has_is_passed_over() -> None:
    lines = opus("a=rtpmap:72 opus/48000/2")
    audio = parse(offer(replace(lines, "SAVPF 111 0", "SAVPF 72 111"), bundle=None)).audio
    assert audio is not None
    assert audio.payload_type == 111


def test_the_data_section_is_read() -> None:
    data = parse(offer(replace(DATA, "sctp-port:5000", "sctp-port:5001"), bundle=None)).data
    assert data is not None
    assert (data.sctp_port, data.max_message_size, data.legacy) == (5001, 262144, False)


def test_what_is_not_said_of_data_has_its_default() -> None:
    lines = without(without(DATA, "a=sctp-port"), "a=max-message-size")
    data = parse(offer(lines, bundle=None)).data
    assert data is not None
    assert (data.sctp_port, data.max_message_size) == (5000, 65536)


def test_data_may_be_offered_as_the_drafts_had_it() -> None:
    data = parse(offer(LEGACY_DATA, bundle=None)).data
    assert data is not None
    assert (data.sctp_port, data.legacy) == (5001, True)


def test_lines_may_end_in_lf_alone_and_in_blanks() -> None:
    assert parse(GOOD.replace("\r\n", "\n")) == parse(GOOD)
    assert parse(GOOD.replace("\r\n", " \r\n")) == parse(GOOD)
    assert parse(GOOD + "\r\n") == parse(GOOD)


@pytest.mark.parametrize("direction", ["sendrecv", "sendonly", "recvonly", "inactive"])
def test_a_direction_may_be_the_sessions(direction: str) -> None:
    lines = without(AUDIO, "a=sendrecv")
    text = offer(lines, bundle=None).replace("t=0 0", f"t=0 0\r\na={direction}")
    audio = parse(text).audio
    assert audio is not None
    assert audio.direction == direction


# The transport


def with_session_transport() -> str:
    bare = [line for line in AUDIO if not line.startswith(("a=ice", "a=setup", "a=finger"))]
    transport = [line for line in AUDIO if line.startswith(("a=ice", "a=setup", "a=finger"))]
    return offer(bare, BUNDLE_ONLY).replace("t=0 0", "\r\n".join(["t=0 0", *transport]))


def test_the_transport_may_be_the_sessions() -> None:
    assert parse(with_session_transport()) == parse(offer(AUDIO, BUNDLE_ONLY))


def test_a_section_comes_before_the_session() -> None:
    lines = replace(AUDIO, "abcd", "efgh")
    text = offer(lines, bundle=None).replace("t=0 0", "t=0 0\r\na=ice-ufrag:abcd")
    assert parse(text).remote.ufrag == "efgh"


def test_the_transport_is_the_one_of_the_groups_first_section_that_is_served() -> None:
    audio, data = replace(AUDIO, "abcd", "efgh"), replace(DATA, "abcd", "ijkl")
    assert parse(offer(NEW_KIND, audio, data, bundle="2 1 0")).remote.ufrag == "ijkl"
    assert parse(offer(NEW_KIND, audio, data, bundle="2 1 0")).mids == ("1", "0")
    assert parse(offer(NEW_KIND, audio, data, bundle="2 0 1")).mids == ("0", "1")


def test_bundle_only_sections_have_the_transport_of_whoever_has_one() -> None:
    bare = [line for line in AUDIO if not line.startswith(("a=ice", "a=setup", "a=finger"))]
    bundle_only = [*replace(bare, "audio 9", "audio 0"), "a=bundle-only"]
    tagged = [*NEW_KIND, *(line for line in AUDIO if line not in bare)]
    read = parse(offer(tagged, bundle_only, BUNDLE_ONLY, bundle="2 0 1"))
    assert read.remote.ufrag == "abcd"
    assert read.mids == ("0", "1")


def test_video_that_is_tagged_has_the_transport() -> None:
    read = parse(offer(VIDEO, replace(AUDIO, "abcd", "efgh"), DATA, bundle="2 0 1"))
    assert read.inactive == (read.sections[0],)
    assert read.remote.ufrag == "abcd"
    assert read.mids == ("0", "1")
    assert read.bundle == ("2", "0", "1")


@pytest.mark.parametrize(
    "video",
    [
        replace(VIDEO, "video 9", "video 0"),
        replace(VIDEO, "UDP/TLS/RTP/SAVPF", "NEW"),
        without(VIDEO, "a=rtcp-mux"),
        without(VIDEO, "a=rtpmap:96"),
        replace(VIDEO, "VP8/90000", "VP8/a lot"),
        replace(VIDEO, "96", "72"),
    ],
    ids=["disabled", "no RTP", "no rtcp-mux", "no rtpmap", "a malformed rtpmap", "a type of RTCP"],
)
def test_video_that_cannot_be_answered_is_refused(video: list[str]) -> None:
    read = parse(offer(video, AUDIO, DATA, bundle="2 0 1"))
    assert read.inactive == ()
    assert read.bundle == ("0", "1")


def test_video_that_is_not_bundled_is_refused() -> None:
    assert parse(offer(VIDEO, AUDIO, DATA)).inactive == ()
    read = parse(offer(VIDEO, AUDIO, bundle=None))
    assert read.inactive == ()
    assert (read.mids, read.bundle) == (("0",), ())


def test_a_ufrag_and_a_password_of_two_sections_are_no_pair() -> None:
    with pytest.raises(OfferError, match="a=ice-pwd"):
        parse(offer(without(AUDIO, "a=ice-pwd"), DATA))


def test_fingerprints_of_hashes_that_we_have_are_read() -> None:
    lines = [
        *without(AUDIO, "a=fingerprint"),
        "a=fingerprint:sha-1 " + ":".join(["01"] * 20),
        "a=fingerprint:SHA-512 " + ":".join(["ef"] * 64),
        "a=fingerprint:sha-256 " + ":".join(["AB"] * 32),
        "a=fingerprint:sha-256 " + ":".join(["ab"] * 32),
    ]
    assert parse(offer(lines, bundle=None)).fingerprints == (
        ("sha-512", b"\xef" * 64),
        ("sha-256", b"\xab" * 32),
    )


@pytest.mark.parametrize("setup", ["actpass", "active", "passive"])
def test_each_setup_can_be_offered(setup: str) -> None:
    assert parse(offer(replace(AUDIO, "actpass", setup), bundle=None)).setup == setup


@pytest.mark.parametrize("where", ["t=0 0", "a=mid:0"])
def test_trickle_may_be_the_sessions_or_a_sections(where: str) -> None:
    text = GOOD.replace(where, f"{where}\r\na=ice-options:renomination trickle")
    assert parse(text).trickle


@pytest.mark.parametrize("options", ["trickle", "ice2 trickle", "ice2,trickle"])
def test_trickle_is_found_among_other_options(options: str) -> None:
    assert parse(GOOD.replace("t=0 0", f"t=0 0\r\na=ice-options:{options}")).trickle


@pytest.mark.parametrize("options", ["", "ice2", "trickled"])
def test_trickle_is_not_found_in_other_options(options: str) -> None:
    assert not parse(GOOD.replace("t=0 0", f"t=0 0\r\na=ice-options:{options}")).trickle


# What is served, and what is refused


def kinds(read: Offer) -> list[str]:
    return [type(section).__name__ for section in read.sections]


SERVED = {
    "audio and video without a group": (offer(AUDIO, VIDEO, bundle=None), "Audio Section"),
    "no mids": (
        offer(without(AUDIO, "a=mid"), without(VIDEO, "a=mid"), bundle=None),
        "Audio Section",
    ),
    "a disabled section": (
        offer(replace(VIDEO, "video 9", "video 0"), AUDIO, DATA),
        "Section Audio Data",
    ),
    "disabled audio": (offer(replace(AUDIO, "audio 9", "audio 0"), DATA), "Section Data"),
    "a second audio section": (
        offer(AUDIO, DATA, replace(AUDIO, "a=mid:0", "a=mid:3"), bundle="0 1 3"),
        "Audio Data Section",
    ),
    "audio without Opus first": (
        offer(replace(replace(AUDIO, "opus", "opium"), "a=mid:0", "a=mid:3"), AUDIO, bundle="3 0"),
        "Section Audio",
    ),
    "a second data section": (
        offer(DATA, replace(DATA, "a=mid:1", "a=mid:3"), bundle="1 3"),
        "Data Section",
    ),
    "another use of application": (
        offer(["m=application 9 UDP/BFCP *", "a=mid:7"], DATA, bundle="1"),
        "Section Data",
    ),
    "a kind that nobody knows": (offer(NEW_KIND, AUDIO, bundle=None), "Section Audio"),
    "a group with mids that there are not": (offer(AUDIO, bundle="0 1"), "Audio"),
    "an empty group": (offer(AUDIO, bundle=""), "Audio"),
    "other groups": (GOOD.replace("t=0 0", "t=0 0\r\na=group:LS 0 1"), "Audio Data"),
}


@pytest.mark.parametrize("name", SERVED)
def test_what_can_be_served_is(name: str) -> None:
    text, expected = SERVED[name]
    assert kinds(parse(text)) == expected.split()


def test_bundle_only_is_offered_in_a_group_alone() -> None:
    assert kinds(parse(offer(AUDIO, BUNDLE_ONLY))) == ["Audio", "Data"]
    assert kinds(parse(offer(AUDIO, BUNDLE_ONLY, bundle="0"))) == ["Audio", "Section"]


UNSUPPORTED = {
    "ICE lite": GOOD.replace("t=0 0", "t=0 0\r\na=ice-lite"),
    "neither audio nor a data channel": offer(VIDEO, bundle=None),
    "does not offer Opus": GOOD.replace("opus/", "opium/"),
    "does not offer Opus .*RTP": GOOD.replace("UDP/TLS/RTP/SAVPF", "UDP/DTLS/SCTP"),
    "no a=rtcp-mux": offer(without(AUDIO, "a=rtcp-mux"), DATA),
    "not in one a=group:BUNDLE": offer(AUDIO, DATA, bundle=None),
    "one a=group:BUNDLE, and": offer(AUDIO, DATA, bundle="0").replace(
        "BUNDLE 0", "BUNDLE 0\r\na=group:BUNDLE 1"
    ),
    "policy max-bundle": UNBUNDLED,
    "not in one a=group:BUNDLE,": offer(without(AUDIO, "a=mid"), DATA),
    "one transport": offer(without(AUDIO, "a=mid"), without(DATA, "a=mid"), bundle=None),
    "no a=fingerprint of sha-256": GOOD.replace("sha-256", "md5"),
}


@pytest.mark.parametrize("complaint", UNSUPPORTED)
def test_a_sound_offer_of_what_is_not_served_is_told_apart(complaint: str) -> None:
    with pytest.raises(UnsupportedError, match=complaint):
        parse(UNSUPPORTED[complaint])


BAD = {
    "not an SDP offer": "hello",
    "not start with v=0": "",
    "start with v=0": "v=0x" + GOOD,
    "more than 65536 characters": GOOD + "a=x:" + "x" * 65536,
    "more than 1000 lines": GOOD + "a=x\r\n" * 1000,
    "line 3 of the SDP is malformed": GOOD.replace("s=-", "s"),
    "not printable ASCII, '.x00'": GOOD.replace("s=-", "s=\0"),
    "not printable ASCII, '.xe9'": GOOD.replace("s=-", "s=é"),
    "not printable ASCII, '.u2028'": GOOD.replace("s=-", "s=\u2028"),
    "not printable ASCII, '.ud800'": GOOD.replace("s=-", "s=\ud800"),
    "no media section": offer(bundle=None),
    "more than 16 media sections": offer(*[["m=audio 9 RTP/AVP 0"]] * 17, bundle=None),
    r"section 1 \(m=audio\) has a malformed m= line": GOOD.replace("m=audio 9", "m=audio nine"),
    r"has a malformed m= line": GOOD.replace("m=audio 9", "m=audio 65536"),
    "no valid a=mid": GOOD.replace("a=mid:0", "a=mid:" + "0" * 65),
    "have the same a=mid": GOOD.replace("a=mid:1", "a=mid:0"),
    "names an a=mid twice": offer(AUDIO, DATA, bundle="0 1 0"),
    "mid twice": offer(AUDIO, DATA).replace("BUNDLE 0 1", "BUNDLE 0 1\r\na=group:BUNDLE 1 0"),
    "no valid a=ice-ufrag": GOOD.replace("ufrag:abcd", "ufrag:ab-d"),
    r"no valid a=ice-ufrag \(4": GOOD.replace("ufrag:abcd", "ufrag:" + "a" * 257),
    "no valid a=ice-pwd": offer(without(AUDIO, "a=ice-pwd"), without(DATA, "a=ice-pwd")),
    "no a=setup": GOOD.replace("actpass", "holdconn"),
    "no a=fingerprint": offer(without(AUDIO, "a=finger"), without(DATA, "a=finger")),
    "no digest of sha-256": GOOD.replace("AB:AB", "AB", 1),
    "no digest of sha-512": GOOD.replace("sha-256", "sha-512"),
    "no valid SCTP port": GOOD.replace("a=sctp-port:5000", "a=sctp-port:70000"),
    r"SCTP port \(a=sctp-port\)": offer(
        replace(LEGACY_DATA, "DTLS/SCTP 5001", "DTLS/SCTP x"), bundle=None
    ),
    "max-message-size": GOOD.replace("size:262144", "size:-1"),
    "no valid a=max-message-size": GOOD.replace("size:262144", "size:" + "9" * 21),
}


@pytest.mark.parametrize("complaint", BAD)
def test_a_bad_offer_is_refused_with_what_is_wrong(complaint: str) -> None:
    with pytest.raises(OfferError, match=complaint) as raised:
        parse(BAD[complaint])
    assert type(raised.value) is OfferError
