"""Answers: what each says of its offer."""

import dataclasses

import pytest

from tests.transceiver.sdp.samples import (
    AUDIO,
    CANDIDATES,
    DATA,
    GOOD,
    LOCAL,
    RECORDED,
    VIDEO,
    attributes,
    check_answer,
    offer,
    replace,
    without,
)
from tests.transceiver.sdp.test_offer import BUNDLE_ONLY, LEGACY_DATA, SERVED
from transceiver.sdp.answer import by_preference, candidates, role, write
from transceiver.sdp.offer import parse


def answer(text: str) -> list[list[str]]:
    """The lines of the answer's session and of each section, once found to be sound."""
    read = parse(text)
    written = write(read, LOCAL)
    check_answer(read, written)
    return attributes(written)


@pytest.mark.parametrize("name", RECORDED)
def test_offers_of_real_stacks_get_a_sound_answer(name: str) -> None:
    answer(RECORDED[name])


@pytest.mark.parametrize("name", SERVED)
def test_whatever_is_served_gets_a_sound_answer(name: str) -> None:
    answer(SERVED[name][0])


def test_an_answer_in_full() -> None:
    transport = [
        "a=ice-ufrag:LocalUfragLocalU",
        "a=ice-pwd:LocalPasswordLocalPasswo",
        "a=setup:active",
        f"a=fingerprint:sha-256 {LOCAL.fingerprint}",
    ]
    text = offer(AUDIO, DATA, VIDEO).replace("t=0 0", "t=0 0\r\na=ice-options:trickle")
    assert answer(text) == [
        [
            "v=0",
            "o=- 8169763887871482873 1 IN IP4 127.0.0.1",
            "s=-",
            "t=0 0",
            "a=group:BUNDLE 0 1",
            "a=ice-options:trickle",
        ],
        [
            "m=audio 3478 UDP/TLS/RTP/SAVPF 111",
            "c=IN IP4 198.18.0.1",
            "a=mid:0",
            *transport,
            "a=sendrecv",
            "a=rtcp-mux",
            "a=rtpmap:111 opus/48000/2",
            "a=fmtp:111 minptime=10;useinbandfec=1",
            "a=msid:cname-of-ours cname-of-ours",
            "a=ssrc:3735928559 cname:cname-of-ours",
            *CANDIDATES,
        ],
        [
            "m=application 3478 UDP/DTLS/SCTP webrtc-datachannel",
            "c=IN IP4 198.18.0.1",
            "a=mid:1",
            *transport,
            "a=sctp-port:5000",
            "a=max-message-size:262144",
            *CANDIDATES,
        ],
        [
            "m=video 0 UDP/TLS/RTP/SAVPF 96",
            "c=IN IP4 0.0.0.0",
            "a=mid:2",
            *transport,
            "a=inactive",
            "a=rtcp-mux",
            "a=rtpmap:96 VP8/90000",
        ],
    ]


@pytest.mark.parametrize(
    ("offered", "answered", "sends"),
    [
        ("sendrecv", "sendrecv", True),
        ("sendonly", "recvonly", False),
        ("recvonly", "sendonly", True),
        ("inactive", "inactive", False),
    ],
)
def test_a_direction_is_answered_by_its_counterpart(
    offered: str, answered: str, sends: bool
) -> None:
    _, lines = answer(offer(replace(AUDIO, "sendrecv", offered), bundle=None))
    assert f"a={answered}" in lines
    assert any(line.startswith("a=msid") for line in lines) == sends


@pytest.mark.parametrize(
    ("offered", "is_client", "answered"),
    [("actpass", True, "active"), ("passive", True, "active"), ("active", False, "passive")],
)
def test_we_are_the_dtls_client_unless_the_offerer_is(
    offered: str, is_client: bool, answered: str
) -> None:
    text = offer(replace(AUDIO, "actpass", offered), bundle=None)
    assert role(parse(text)) == is_client
    _, lines = answer(text)
    assert f"a=setup:{answered}" in lines


def test_dtx_is_taken_up_where_offered() -> None:
    _, lines = answer(offer(replace(AUDIO, "useinbandfec=1", "usedtx=1"), bundle=None))
    assert "a=fmtp:111 minptime=10;useinbandfec=1;usedtx=1" in lines


def test_stereo_is_answered_as_mono() -> None:
    _, lines = answer(offer(replace(AUDIO, "minptime=10", "stereo=1;sprop-stereo=1"), bundle=None))
    assert "a=fmtp:111 minptime=10;useinbandfec=1" in lines


def test_data_as_the_drafts_had_it_is_answered_so() -> None:
    _, lines = answer(offer(LEGACY_DATA, bundle=None))
    assert lines[0] == "m=application 3478 DTLS/SCTP 5000"
    assert "a=sctpmap:5000 webrtc-datachannel 65535" in lines
    assert "a=sctp-port:5000" not in lines


def test_the_group_is_in_the_offerers_order() -> None:
    session, *_ = answer(offer(AUDIO, DATA, bundle="1 0"))
    assert "a=group:BUNDLE 1 0" in session


def test_the_roles_of_an_association_stay_whatever_the_next_offer_says() -> None:
    again = write(parse(GOOD), LOCAL, is_client=False)
    assert "a=setup:passive" in again
    assert "a=setup:active" not in again


def test_bundle_only_sections_get_a_port() -> None:
    answer(offer(AUDIO, BUNDLE_ONLY))


def test_without_a_mid_none_is_answered() -> None:
    session, lines = answer(offer(without(AUDIO, "a=mid"), bundle=None))
    assert not any(line.startswith(("a=mid", "a=group")) for line in session + lines)


def test_old_names_of_the_profile_are_answered_as_they_are() -> None:
    _, lines = answer(offer(replace(AUDIO, "UDP/TLS/RTP/SAVPF", "RTP/SAVPF"), bundle=None))
    assert lines[0] == "m=audio 3478 RTP/SAVPF 111"


def test_a_vip_of_ipv6_alone_is_the_default_destination() -> None:
    local = dataclasses.replace(LOCAL, vips=(("2001:db8:18::1", 3478),))
    assert "c=IN IP6 2001:db8:18::1\r\n" in write(parse(GOOD), local)


def test_ipv6_is_preferred_and_the_families_take_turns() -> None:
    vips = [("192.0.2.1", 1), ("192.0.2.2", 2), ("2001:db8::1", 3), ("2001:db8::2", 4)]
    assert [port for _, port in by_preference(vips)] == [3, 1, 4, 2]
    ports = {int(candidate.split()[3]): candidate.split()[5] for candidate in candidates(vips)}
    assert [ports[priority] for priority in sorted(ports, reverse=True)] == ["3", "1", "4", "2"]


def test_ipv4_is_written_first_for_who_reads_one_line() -> None:
    vips = [("2001:db8::1", 3), ("192.0.2.1", 1), ("192.0.2.2", 2)]
    assert [candidate.split()[5] for candidate in candidates(vips)] == ["1", "2", "3"]


def test_video_in_the_bundle_is_answered_as_inactive() -> None:
    h264 = [*replace(VIDEO, "VP8", "H264"), "a=fmtp:96 profile-level-id=42e01f"]
    session, video, *_ = answer(offer(h264, AUDIO, DATA, bundle="2 0 1"))
    assert "a=group:BUNDLE 2 0 1" in session
    assert video[0] == "m=video 3478 UDP/TLS/RTP/SAVPF 96"
    assert {"a=inactive", "a=rtpmap:96 H264/90000", "a=fmtp:96 profile-level-id=42e01f"} <= {*video}
