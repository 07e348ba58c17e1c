"""Fragments: what WHIP clients send, and what may come instead."""

import pytest

from transceiver.ice import Credentials
from transceiver.sdp.fragment import Fragment, FragmentError, parse, write

CREDENTIALS = Credentials("EsAw", "P2uYro0UCOQ4zxjKXaWCBui1")
CANDIDATE = (
    "a=candidate:1387637174 1 udp 2122260223 192.0.2.1 61764 typ host generation 0 ufrag EsAw"
)

# As RFC 9725 has it: all in the section.
IN_THE_SECTION = [
    "a=group:BUNDLE 0 1",
    "m=audio 9 UDP/TLS/RTP/SAVPF 111",
    "a=mid:0",
    "a=ice-ufrag:EsAw",
    "a=ice-pwd:P2uYro0UCOQ4zxjKXaWCBui1",
    CANDIDATE,
    CANDIDATE.replace("192.0.2.1", "2001:db8::1"),
    "a=end-of-candidates",
]
# As RFC 8840, medooze's and MediaMTX's clients have it: the credentials are the session's.
IN_THE_SESSION = [
    "a=ice-ufrag:EsAw",
    "a=ice-pwd:P2uYro0UCOQ4zxjKXaWCBui1",
    "m=audio 9 RTP/AVP 0",
    "a=mid:0",
    CANDIDATE,
    "m=video 9 RTP/AVP 0",
    "a=mid:1",
    CANDIDATE,
]


def text(lines: list[str]) -> str:
    return "\r\n".join(lines) + "\r\n"


def test_a_fragment_with_all_in_its_section_is_read() -> None:
    assert parse(text(IN_THE_SECTION)) == Fragment(CREDENTIALS, ("0",), 2, True)


def test_a_fragment_with_credentials_of_the_session_is_read() -> None:
    assert parse(text(IN_THE_SESSION)) == Fragment(CREDENTIALS, ("0", "1"), 2, False)


def test_lines_may_end_in_lf_alone() -> None:
    assert parse("\n".join(IN_THE_SECTION)) == parse(text(IN_THE_SECTION))


def test_candidates_may_come_alone() -> None:
    fragment = parse(CANDIDATE)
    assert fragment == Fragment(None, (), 1, False)
    assert fragment.mid is None


def test_the_end_of_candidates_may_come_alone() -> None:
    assert parse("m=audio 9 RTP/AVP 0\r\na=mid:1\r\na=end-of-candidates\r\n").end_of_candidates


def test_an_answer_to_a_restart_is_read_back() -> None:
    vips = [("198.18.0.1", 3478), ("2001:db8:18::1", 3478)]
    answer = write(CREDENTIALS, ("0", "1"), vips, bundled=True)
    assert parse(answer) == Fragment(CREDENTIALS, ("0",), 2, True)
    assert answer.split("\r\n") == [
        "a=group:BUNDLE 0 1",
        "m=audio 9 RTP/AVP 0",
        "a=mid:0",
        "a=ice-ufrag:EsAw",
        "a=ice-pwd:P2uYro0UCOQ4zxjKXaWCBui1",
        "a=candidate:1 1 udp 2130706175 198.18.0.1 3478 typ host",
        "a=candidate:0 1 udp 2130706431 2001:db8:18::1 3478 typ host",
        "a=end-of-candidates",
        "",
    ]


def test_an_answer_may_be_about_a_section_without_a_mid() -> None:
    answer = write(CREDENTIALS, (), [("198.18.0.1", 3478)], bundled=False)
    assert parse(answer) == Fragment(CREDENTIALS, (), 1, True)


BAD = {
    "says nothing about ICE": "",
    "line 1 of the SDP is malformed": '{"candidate": null}',
    "more than 65536 characters": CANDIDATE + "x" * 65536,
    "more than 1000 lines": "a=candidate:1\r\n" * 1001,
    "more than 16 media sections": "m=audio 9 RTP/AVP 0\r\n" * 17 + CANDIDATE,
    "not printable ASCII": CANDIDATE + "\0",
    "no valid a=ice-pwd": "a=ice-ufrag:EsAw",
    "the session has no valid a=ice-ufrag": "a=ice-pwd:P2uYro0UCOQ4zxjKXaWCBui1",
    "no valid a=ice-ufrag": text(IN_THE_SECTION).replace("frag:EsAw", "frag:" + "E" * 257),
    "no valid a=mid": text(IN_THE_SECTION).replace("mid:0", "mid:("),
    "the same a=mid": text(IN_THE_SESSION).replace("mid:1", "mid:0"),
    r"the session and section 2 \(m=video\) differ": text([*IN_THE_SESSION, *IN_THE_SESSION[:2]])
    .replace("EsAw", "other", 1)
    .replace("ufrag EsAw", ""),
}


@pytest.mark.parametrize("complaint", BAD)
def test_a_bad_fragment_is_refused_with_what_is_wrong(complaint: str) -> None:
    with pytest.raises(FragmentError, match=complaint):
        parse(BAD[complaint])
