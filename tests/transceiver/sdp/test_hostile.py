"""Whatever comes, parsing raises its own error alone, soon, and what it takes can be answered."""

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.transceiver.sdp.samples import (
    AUDIO,
    DATA,
    GOOD,
    LOCAL,
    RECORDED,
    VIDEO,
    check_answer,
    offer,
)
from tests.transceiver.sdp.test_fragment import IN_THE_SECTION, IN_THE_SESSION
from tests.transceiver.sdp.test_offer import BUNDLE_ONLY, LEGACY_DATA, NEW_KIND
from transceiver.sdp import fragment
from transceiver.sdp.answer import write
from transceiver.sdp.offer import OfferError, parse

PIECES = [
    *("", " ", "  ", ":", ";", "=", "/", ",", "\r", "\n", "\t", "\0", "é", "\u2028", "\ud800"),
    *("0", "-1", "65536", "9" * 30, "1e9", "0x10", "٣", "*", "opus/48000/2", "BUNDLE"),
    *(
        "a=bundle-only",
        "a=inactive",
        "a=setup:active",
        "a=ice-ufrag:abcd",
        "a=rtcp-mux",
        "m=",
        "a=",
    ),
    *("a=group:BUNDLE", "a=group:BUNDLE 0 0", "a=mid:0", "m=audio 0 RTP/AVP 0", "a=ice-lite"),
]


@st.composite
def spoiled(draw: st.DrawFn, texts: list[str]) -> str:
    """One of the texts, with some lines lost, doubled, moved or spoiled."""
    lines = draw(st.sampled_from(texts)).splitlines()
    for _ in range(draw(st.integers(1, 6))):
        if not lines:
            break
        at = draw(st.integers(0, len(lines) - 1))
        change = draw(st.sampled_from(["drop", "double", "move", "spoil", "insert"]))
        if change == "drop":
            del lines[at]
        elif change == "double":
            lines.insert(draw(st.integers(0, len(lines))), lines[at])
        elif change == "move":
            lines.insert(draw(st.integers(0, len(lines) - 1)), lines.pop(at))
        elif change == "insert":
            lines.insert(at, draw(st.sampled_from(PIECES)))
        else:
            cut = draw(st.integers(0, len(lines[at])))
            end = draw(st.integers(cut, len(lines[at])))
            lines[at] = lines[at][:cut] + draw(st.sampled_from(PIECES)) + lines[at][end:]
    return draw(st.sampled_from(["\r\n", "\n"])).join([*lines, ""])


@st.composite
def assembled(draw: st.DrawFn) -> str:
    """Sound sections in any number, order and bundle, some disabled, some without lines."""
    kinds = st.sampled_from([AUDIO, DATA, VIDEO, LEGACY_DATA, BUNDLE_ONLY, NEW_KIND])
    sections = []
    mids = []
    for number, section in enumerate(draw(st.lists(kinds, max_size=18))):
        mid = draw(st.sampled_from([str(number), str(number), str(number), "0", ""]))
        lines = [line for line in section if not line.startswith("a=mid")]
        if mid:
            mids.append(mid)
            lines.append(f"a=mid:{mid}")
        if draw(st.integers(0, 5)) == 0:
            lines[0] = lines[0].replace(" 9 ", " 0 ")
        if len(lines) > 1 and draw(st.integers(0, 3)) == 0:
            del lines[draw(st.integers(1, len(lines) - 1))]
        sections.append(lines)
    bundle = draw(st.none() | st.permutations(mids) | st.lists(st.sampled_from([*mids, "9"])))
    return offer(*sections, bundle=None if bundle is None else " ".join(bundle))


def check_sentence(message: str) -> None:
    """That it can be shown: it quotes little of what came, and nothing that does harm."""
    assert message
    assert message.isprintable()
    assert len(message) < 300


def answer_if_it_parses(text: str) -> None:
    try:
        read = parse(text)
    except OfferError as error:
        check_sentence(str(error))
    else:
        check_answer(read, write(read, LOCAL))


@given(spoiled([GOOD, offer(VIDEO, AUDIO, DATA, bundle="2 0 1"), *RECORDED.values()]))
@settings(max_examples=1000, deadline=None)
@example(GOOD.replace("m=audio", "m=au\tdio"))
def test_spoiled_offers_are_answered_or_refused(text: str) -> None:
    answer_if_it_parses(text)


@given(assembled())
@settings(max_examples=500, deadline=None)
@example(offer())
def test_sections_of_all_sorts_are_answered_or_refused(text: str) -> None:
    answer_if_it_parses(text)


@settings(deadline=None)
@given(st.text() | st.binary().map(lambda data: data.decode("latin-1")))
@example("v=0\r\n")
@example("v=0\nm=")
@example("v=0\na=")
def test_any_text_is_refused(text: str) -> None:
    for each in (text, "v=0\r\n" + text, GOOD + text):
        answer_if_it_parses(each)


@given(spoiled(["\r\n".join(IN_THE_SECTION), "\r\n".join(IN_THE_SESSION)]) | st.text())
@settings(max_examples=500, deadline=None)
def test_any_fragment_is_read_or_refused(text: str) -> None:
    try:
        read = fragment.parse(text)
    except fragment.FragmentError as error:
        check_sentence(str(error))
    else:
        assert read.credentials or read.candidates or read.end_of_candidates


# Time: Python's own steps are counted; the patterns have no choice that could be taken back.


def with_lines(line: str, where: str = "t=0 0") -> Callable[[int], str]:
    """An offer with *line* that many times."""
    return lambda count: GOOD.replace(where, "\r\n".join([where, *[line] * count]))


MANY: dict[str, Callable[[int], str]] = {
    "lines": with_lines("b=AS:1"),
    "groups": with_lines("a=group:LS 0 1"),
    "empty groups": with_lines("a=group:BUNDLE"),
    "mids of a group": lambda count: GOOD.replace("BUNDLE 0", "BUNDLE" + " x" * count),
    "the same mid in a group": lambda count: GOOD.replace("BUNDLE 0 1", "BUNDLE" + " 0" * count),
    "a mid in groups": with_lines("a=group:BUNDLE 0 1"),
    "fingerprints": with_lines("a=fingerprint:sha-256 " + ":".join(["AB"] * 32), "a=mid:0"),
    "unknown fingerprints": with_lines("a=fingerprint:md5 AB", "a=mid:0"),
    "mids": with_lines("a=mid:1", "a=mid:0"),
    "rtpmaps": with_lines("a=rtpmap:111 opus/48000/2", "a=mid:0"),
    "fmtps": with_lines("a=fmtp:111 usedtx=1", "a=mid:0"),
    "parameters": lambda count: GOOD.replace("minptime=10", ";a=b" * count),
    "formats": lambda count: GOOD.replace("SAVPF 111", "SAVPF" + " 1" * count + " 111"),
    "options": lambda count: GOOD.replace("a=mid:0", "a=mid:0\r\na=ice-options:" + "x " * count),
    "sections": with_lines("m=audio 9 UDP/TLS/RTP/SAVPF 111"),
    "candidates": with_lines("a=candidate:1 1 udp 1 192.0.2.1 1 typ host", "a=mid:0"),
}


def steps(text: str) -> int:
    """The lines of Python that run while the text is parsed."""
    count = 0

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal count
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        parse(text)
    except OfferError:
        pass
    finally:
        sys.settrace(before)
    return count


@pytest.mark.parametrize("what", MANY)
def test_twice_as_much_takes_no_more_than_twice_as_long(what: str) -> None:
    once, twice = (steps(MANY[what](count)) for count in (400, 800))
    assert twice <= 2 * once


LONG = 65_000  # characters, near the bound
HUGE = {
    "no line": "v=0\r\n" + "x" * LONG,
    "one line": "v=0\r\na=" + "x" * LONG,
    "blanks": "v=0\r\n" + " " * LONG,
    "blank lines": "v=0" + "\n" * LONG,
    "colons": "v=0\r\na=" + ":" * LONG,
    "a kind": "v=0\r\nm=" + "a" * LONG,
    "formats": "v=0\r\nm=audio 9 RTP/AVP" + " 1" * (LONG // 2),
    "formats that go wrong in the end": "v=0\r\nm=audio 9 RTP/AVP" + " 1" * (LONG // 2) + " /",
    "a protocol": "v=0\r\nm=audio 9 " + "A/" * (LONG // 2) + " 0",
    "a port": "v=0\r\nm=audio " + "9" * LONG + " RTP/AVP 0",
    "a digest": GOOD.replace("AB:AB", "AB:" * (LONG // 4)),
    "a ufrag": GOOD.replace("abcd", "a" * (LONG // 2)),
    "a password": GOOD.replace("0123456789012345678901", "a" * (LONG // 2)),
    "a mid": GOOD.replace("a=mid:0", "a=mid:" + "0" * LONG),
    "a number": GOOD.replace("a=sctp-port:5000", "a=sctp-port:" + "9" * LONG),
    "a size": GOOD.replace("size:262144", "size:" + "9" * LONG),
    "too much": GOOD + "a" * 10_000_000,
    "too many lines": GOOD + "a=x\n" * 100_000,
}


@pytest.mark.parametrize("what", HUGE)
def test_huge_offers_are_refused(what: str) -> None:
    with pytest.raises(OfferError):
        parse(HUGE[what])
