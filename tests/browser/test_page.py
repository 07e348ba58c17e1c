"""The page in a real browser, behind the relay, seen through getStats()."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.browser.chromium import browser_in
from tools.labstate import Lab

SETUP_MS = 20_000
NUMBER = re.compile(r"^[\d.,]+$")
STATS = "async () => Array.from((await window.shunt.pc.getStats()).values())"
# Never true until the call is up; then, when both of its directions have carried that much more.
GROWN = """async ([sent, received]) => {
    const stats = Array.from((await window.shunt.pc.getStats()).values());
    const audio = (type) => stats.find((s) => s.type === type && s.kind === "audio");
    return audio("outbound-rtp")?.packetsSent >= sent &&
        audio("inbound-rtp")?.packetsReceived >= received;
}"""

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


def packets(stats: list[dict[str, Any]]) -> tuple[int, int]:
    """Audio packets sent, received."""
    sent = one(stats, type="outbound-rtp", kind="audio")["packetsSent"]
    return sent, one(stats, type="inbound-rtp", kind="audio")["packetsReceived"]


def test_audio_goes_both_ways(calling: Page) -> None:
    calling.wait_for_function(GROWN, arg=[20, 20])
    sent, received = packets(calling.evaluate(STATS))
    calling.wait_for_function(GROWN, arg=[sent + 50, received + 50])


def test_what_comes_back_is_heard(calling: Page) -> None:
    """The fake microphone beeps; silence of any kind leaves the meter below this."""
    calling.wait_for_function(
        "() => document.getElementById('level-in').ariaValueNow > 50", timeout=SETUP_MS
    )


def test_the_selected_remote_candidate_is_the_vip(calling: Page, lab: Lab) -> None:
    stats = calling.evaluate(STATS)
    transport = one(stats, type="transport")
    pair = one(stats, id=transport["selectedCandidatePairId"])
    remote = one(stats, id=pair["remoteCandidateId"])
    assert (remote["address"], remote["port"], remote["protocol"]) == (*lab.vip, "udp")
    assert len([s for s in stats if s["type"] == "remote-candidate"]) == 1


def test_the_page_shows_the_path_and_the_round_trips(calling: Page, lab: Lab) -> None:
    address, port = lab.vip
    expect(calling.locator("#remote")).to_have_text(f"{address}:{port}")
    expect(calling.locator("#local")).to_contain_text("198.18.0.10:")
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
