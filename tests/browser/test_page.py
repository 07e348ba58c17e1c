"""The page in a real browser, behind the relay, seen through getStats()."""

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.browser.chromium import browser_in
from tools.labstate import Lab

SETUP_MS = 20_000
GROWTH_S = 10.0
NUMBER = re.compile(r"^[\d.,]+$")
STATS = "async () => Array.from((await window.shunt.pc.getStats()).values())"
Opens = Callable[[str], Page]


@pytest.fixture
def open_page(lab: Lab, tmp_path: Path) -> Iterator[Opens]:
    """Opens x1's page in the client's namespace, with the given fragment."""
    origin = lab.transceivers[0].http
    raised: list[str] = []
    with browser_in(lab.client_namespace, scratch=tmp_path, origin=origin) as browser:

        def opens(fragment: str) -> Page:
            page = browser.new_page()
            page.on("pageerror", lambda error: raised.append(str(error)))
            page.goto(f"{origin}/#{fragment}")
            return page

        yield opens
    assert not raised


@pytest.fixture
def calling(open_page: Opens, lab: Lab) -> Page:
    """The page in a call that is connected."""
    page = open_page(f"key={lab.api_key}")
    page.get_by_role("button", name="Call").click()
    expect(page.locator("body")).to_have_attribute("data-state", "connected", timeout=SETUP_MS)
    return page


def one(stats: list[dict[str, Any]], **facts: object) -> dict[str, Any]:
    [found] = [s for s in stats if all(s.get(name) == value for name, value in facts.items())]
    return found


def packets(page: Page) -> tuple[int, int]:
    """Audio packets sent and received so far; none where there are no figures yet."""
    count = {"packetsSent": 0, "packetsReceived": 0}
    for entry in page.evaluate(STATS):
        if entry["type"] in ("outbound-rtp", "inbound-rtp") and entry["kind"] == "audio":
            count |= {name: entry[name] for name in count if name in entry}
    return count["packetsSent"], count["packetsReceived"]


def wait_for_packets(page: Page, sent: int, received: int) -> None:
    """Until that many went each way. (wait_for_function takes an async predicate for true.)"""
    deadline = time.monotonic() + GROWTH_S
    while (have := packets(page))[0] < sent or have[1] < received:
        assert time.monotonic() < deadline, f"{have} packets, not {(sent, received)}"
        page.wait_for_timeout(100)


def test_audio_goes_both_ways(calling: Page) -> None:
    wait_for_packets(calling, 20, 20)
    sent, received = packets(calling)
    wait_for_packets(calling, sent + 50, received + 50)


def test_what_comes_back_is_heard(calling: Page) -> None:
    """The fake microphone beeps; silence of any kind leaves the meter below this."""
    calling.wait_for_function(
        "() => document.getElementById('level-in').ariaValueNow > 50", timeout=SETUP_MS
    )


def selected(page: Page) -> dict[str, Any]:
    """The remote candidate of the pair in use."""
    stats = page.evaluate(STATS)
    pair = one(stats, id=one(stats, type="transport")["selectedCandidatePairId"])
    return one(stats, id=pair["remoteCandidateId"])


def test_the_selected_remote_candidate_is_a_vip(calling: Page, lab: Lab) -> None:
    """Of which family, is the browser's to choose."""
    remote = selected(calling)
    assert remote["protocol"] == "udp"
    assert (remote["address"], remote["port"]) in (lab.vip, lab.vip6)


def test_the_answer_offers_one_vip_of_each_family_and_prefers_ipv6(calling: Page, lab: Lab) -> None:
    stats = calling.evaluate(STATS)
    remote = [entry for entry in stats if entry["type"] == "remote-candidate"]
    by_priority = sorted(remote, key=lambda candidate: -int(candidate["priority"]))
    assert [(c["address"], c["port"]) for c in by_priority] == [lab.vip6, lab.vip]


def test_the_page_shows_the_path_and_the_round_trips(calling: Page, lab: Lab) -> None:
    by_ipv6 = selected(calling)["address"] == lab.vip6[0]
    remote = f"[{lab.vip6[0]}]:{lab.vip6[1]}" if by_ipv6 else f"{lab.vip[0]}:{lab.vip[1]}"
    expect(calling.locator("#remote")).to_have_text(remote)
    expect(calling.locator("#local")).to_contain_text(
        "[2001:db8:18::10]:" if by_ipv6 else "198.18.0.10:"
    )
    expect(calling.locator("#inside")).to_contain_text("198.18.1.1:")
    for figure in ("#ice-rtt", "#channel-rtt", "#sent", "#received"):
        expect(calling.locator(figure)).to_have_text(NUMBER, timeout=SETUP_MS)


def test_hanging_up_ends_the_session(calling: Page) -> None:
    with calling.expect_response(lambda response: response.request.method == "DELETE"):
        calling.get_by_role("button", name="Hang up").click()
    expect(calling.locator("body")).to_have_attribute("data-state", "ended")
    assert calling.evaluate("window.shunt.pc.connectionState") == "closed"


def test_the_key_leaves_the_address_bar(open_page: Opens, lab: Lab) -> None:
    page = open_page(f"key={lab.api_key}")
    expect(page.get_by_label("API key")).to_be_hidden()
    assert page.url == f"{lab.transceivers[0].http}/"


def test_a_wrong_key_is_named_and_asked_for_again(open_page: Opens) -> None:
    page = open_page("key=wrong")
    page.get_by_role("button", name="Call").click()
    expect(page.get_by_role("alert")).to_contain_text("The API key was refused")
    expect(page.get_by_label("API key")).to_be_visible()
