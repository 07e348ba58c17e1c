"""Chromium restarts ICE; its calls from the page are in tests/browser."""

import json
from pathlib import Path
from typing import Any

from loader.maps import Maps
from tests.browser.chromium import browser_in
from tests.interop.whip import SCRIPT, moved
from tools.labstate import Lab


def test_ice_is_restarted_during_a_call(lab: Lab, maps: Maps, tmp_path: Path) -> None:
    origin = lab.transceivers[0].http
    with browser_in(lab.client_namespace, scratch=tmp_path, origin=origin) as browser:
        page = browser.new_page()
        page.goto(origin)
        page.evaluate(SCRIPT)
        step: Any = page.evaluate
        old = step(f"whip.call({json.dumps(origin + '/whip')}, {json.dumps(lab.api_key)})")
        assert step('whip.talk("before")') == "before"
        new = step("whip.restart()")
        with moved(maps, old, new):
            assert step('whip.talk("after")') == "after"
            step("whip.hangUp()")
