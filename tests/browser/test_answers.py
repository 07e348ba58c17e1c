"""Chromium takes our answers to its offers, whatever it offers; nobody is at the other end."""

import os
from collections.abc import Iterator
from contextlib import suppress

import pytest
from playwright.sync_api import Browser
from pyroute2 import netns

from tests.browser.chromium import browser_in
from tests.transceiver.sdp.samples import LOCAL
from tools.netns import create
from transceiver.sdp.answer import write
from transceiver.sdp.offer import parse

OFFER = """async ([parts, configuration]) => {
  window.client = new RTCPeerConnection(configuration);
  for (const [kind, direction] of parts) {
    if (kind === "data") client.createDataChannel("chat");
    else client.addTransceiver(kind, { direction });
  }
  await client.setLocalDescription();
  return client.localDescription.sdp;
}"""
AGAIN = """async () => {
  client.restartIce();
  await client.setLocalDescription();
  return client.localDescription.sdp;
}"""
ANSWER = """async (sdp) => {
  await client.setRemoteDescription({ type: "answer", sdp });
  return [client.signalingState, client.getTransceivers().map((each) => each.currentDirection)];
}"""
AUDIO, VIDEO, DATA = ("audio", "sendrecv"), ("video", "sendrecv"), ("data", "")
MAX_BUNDLE = {"bundlePolicy": "max-bundle"}

OFFERS = {
    "voice": ([AUDIO, DATA], {}, ["sendrecv"]),
    "data": ([DATA], {}, []),
    "audio to receive": ([("audio", "recvonly"), DATA], {}, ["recvonly"]),
    "WHIP": ([("audio", "sendonly"), ("video", "sendonly")], {}, ["sendonly", "inactive"]),
    "video": ([AUDIO, VIDEO, DATA], {}, ["sendrecv", "inactive"]),
    "video first": ([VIDEO, AUDIO, DATA], {}, ["inactive", "sendrecv"]),
    "video first, max-bundle": ([VIDEO, AUDIO, DATA], MAX_BUNDLE, ["inactive", "sendrecv"]),
    "video in the middle, max-bundle": ([AUDIO, VIDEO, DATA], MAX_BUNDLE, ["sendrecv", "inactive"]),
    "Pipecat": (
        [AUDIO, VIDEO, ("video", "sendonly"), DATA],
        {},
        ["sendrecv", "inactive", "inactive"],
    ),
    "audio twice": ([AUDIO, AUDIO], MAX_BUNDLE, ["sendrecv", "inactive"]),
    "data first": ([DATA, AUDIO], MAX_BUNDLE, ["sendrecv"]),
    "max-compat": ([AUDIO, VIDEO, DATA], {"bundlePolicy": "max-compat"}, ["sendrecv", "inactive"]),
}


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """In a namespace that leads nowhere."""
    namespace = f"t-answers-{os.getpid()}"
    try:
        create(namespace)
        scratch = tmp_path_factory.mktemp("browser")
        with browser_in(namespace, scratch=scratch, origin="http://nowhere.invalid") as browser:
            yield browser
    finally:
        with suppress(FileNotFoundError):
            netns.remove(namespace)


@pytest.mark.parametrize("name", OFFERS)
def test_chromium_takes_the_answer_and_that_to_a_restart(browser: Browser, name: str) -> None:
    parts, configuration, directions = OFFERS[name]
    page = browser.new_page()
    try:
        for script, argument in ((OFFER, [parts, configuration]), (AGAIN, None)):
            offered = parse(page.evaluate(script, argument))
            taken = page.evaluate(ANSWER, write(offered, LOCAL))
            assert taken == ["stable", directions]
    finally:
        page.close()
