"""Debian's Chromium, headless and with a fake microphone, inside a network namespace."""

import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright

__all__ = ["ARGUMENTS", "browser_in", "find_chromium"]

ARGUMENTS = (
    "--no-sandbox",  # the tests are root
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    # The namespace leads nowhere but into the lab: nothing to call home to.
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
)


@contextmanager
def browser_in(namespace: str, *, scratch: Path, origin: str) -> Iterator[Browser]:
    """A browser in *namespace* that takes *origin*, which is plain HTTP, for a secure one.

    *scratch* is a folder for the start script: Playwright starts a program, and its driver stays
    outside the namespace (they talk through a pipe).
    """
    start = scratch / "chromium"
    command = shlex.join(["nsenter", f"--net=/run/netns/{namespace}", find_chromium()])
    start.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
    start.chmod(0o700)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=start,
            args=[*ARGUMENTS, f"--unsafely-treat-insecure-origin-as-secure={origin}"],
        )
        try:
            yield browser
        finally:
            browser.close()


def find_chromium() -> str:
    found = shutil.which("chromium")
    if found and not found.startswith("/snap/"):
        return found
    if "ID=ubuntu" in Path("/etc/os-release").read_text().splitlines():
        pytest.skip("Ubuntu has Chromium as a snap only, which starts in no namespace of ours")
    pytest.fail("no chromium: run ./provision.sh test")
