"""Offers: good ones of browsers and aiortc, and all that can be wrong with one."""

import contextlib
import os
import random

import pytest

from transceiver.offer import OfferError, parse

FINGERPRINT = "a=fingerprint:sha-256 " + ":".join(["AB"] * 32)

AUDIO = [
    "m=audio 9 UDP/TLS/RTP/SAVPF 111 0",
    "c=IN IP4 0.0.0.0",
    "a=rtcp:9 IN IP4 0.0.0.0",
    "a=ice-ufrag:abcd",
    "a=ice-pwd:0123456789012345678901",
    FINGERPRINT,
    "a=setup:actpass",
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
    "a=ice-ufrag:abcd",
    "a=ice-pwd:0123456789012345678901",
    FINGERPRINT,
    "a=setup:actpass",
    "a=mid:1",
    "a=sctp-port:5000",
    "a=max-message-size:262144",
]
VIDEO = [
    line.replace("m=audio", "m=video")
    .replace("UDP/TLS/RTP/SAVPF 111 0", "UDP/TLS/RTP/SAVPF 96")
    .replace("111 opus/48000/2", "96 VP8/90000")
    .replace("a=mid:0", "a=mid:2")
    for line in AUDIO
    if "fmtp" not in line and "PCMU" not in line
]


def offer(*sections: list[str], bundle: str | None = "0 1") -> str:
    head = ["v=0", "o=- 1 2 IN IP4 127.0.0.1", "s=-", "t=0 0"]
    if bundle is not None:
        head.append(f"a=group:BUNDLE {bundle}")
    return "\r\n".join([*head, *(line for section in sections for line in section)]) + "\r\n"


def without(text: str, start: str) -> str:
    return "\r\n".join(line for line in text.split("\r\n") if not line.startswith(start))


def test_audio_and_data_may_be_offered() -> None:
    assert parse(offer(AUDIO, DATA)).audio_mid == "0"


def test_data_may_be_offered_alone() -> None:
    assert parse(offer(DATA, bundle=None)).audio_mid is None


def test_candidates_of_all_kinds_are_left_out_unread() -> None:
    candidates = [
        "a=candidate:1 1 udp 2113937151 6e8f1c2a-1111-4444-8888-000000000000.local 54400 typ host",
        "a=candidate:2 1 tcp 1 10.0.0.1 9 typ host tcptype active",
        "a=candidate:nonsense",
    ]
    assert "a=candidate" not in parse(offer(AUDIO + candidates, DATA)).sdp


GOOD = offer(AUDIO, DATA)
BAD = {
    "v=0": "hello",
    "more than 1000 lines": GOOD + "a=x\r\n" * 1000,
    "ICE lite": GOOD.replace("t=0 0", "t=0 0\r\na=ice-lite"),
    "malformed SDP": GOOD.replace("m=audio 9", "m=audio nine"),
    "0 media sections": offer(bundle=None),
    "17 media sections": offer(*[AUDIO] * 17),
    "neither audio nor": offer(VIDEO, bundle=None),
    "more than one data channel": offer(
        DATA, [line.replace("a=mid:1", "a=mid:0") for line in DATA]
    ),
    "neither audio, video nor application": GOOD.replace("m=audio", "m=text"),
    "port 0": GOOD.replace("m=audio 9", "m=audio 0"),
    "no a=mid": without(GOOD, "a=mid:0"),
    "the same a=mid": GOOD.replace("a=mid:1", "a=mid:0"),
    "no valid a=ice-ufrag": GOOD.replace("ufrag:abcd", "ufrag:ab-d"),
    "no valid a=ice-pwd": without(GOOD, "a=ice-pwd"),
    "no a=setup": without(GOOD, "a=setup"),
    "no a=fingerprint": GOOD.replace("sha-256", "sha-1"),
    "no a=rtcp-mux": without(GOOD, "a=rtcp-mux"),
    "no codec in common": GOOD.replace("opus", "opium").replace("PCMU", "PCMX"),
    "does not bundle": without(GOOD, "a=group"),
    "does not bundle all": offer(DATA, bundle="0 1"),
    "its profile is": GOOD.replace("UDP/DTLS/SCTP", "UDP/TLS/RTP/SAVPF"),
    "a=sctp-port": GOOD.replace("a=sctp-port:5000", "a=sctp-port:70000"),
    "max-message-size": GOOD.replace("size:262144", "size:-1"),
}


@pytest.mark.parametrize("complaint", BAD)
def test_a_bad_offer_is_refused_with_what_is_wrong(complaint: str) -> None:
    with pytest.raises(OfferError, match=complaint):
        parse(BAD[complaint])


def mutations(count: int) -> list[str]:
    """Offers with lines lost, doubled, swapped, and characters changed."""
    seed = int.from_bytes(os.urandom(4))
    print(f"seed {seed}")
    chance = random.Random(seed)
    found = []
    for _ in range(count):
        lines = offer(AUDIO, DATA, VIDEO, bundle="0 1 2").split("\r\n")
        for _ in range(chance.randrange(1, 4)):
            at = chance.randrange(len(lines))
            match chance.randrange(4):
                case 0:
                    del lines[at]
                case 1:
                    lines.insert(at, chance.choice(lines))
                case 2:
                    other = chance.randrange(len(lines))
                    lines[at], lines[other] = lines[other], lines[at]
                case 3 if lines[at]:
                    cut = chance.randrange(len(lines[at]))
                    new = chance.choice((":", " ", "/", "=", "9" * 20, "", "\x00", "é", ";x="))
                    lines[at] = lines[at][:cut] + new + lines[at][cut + 1 :]
        found.append("\r\n".join(lines))
    return found


def test_no_text_raises_anything_else() -> None:
    for text in mutations(3000):
        with contextlib.suppress(OfferError):
            parse(text)
