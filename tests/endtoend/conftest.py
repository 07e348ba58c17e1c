"""What the end-to-end tests share: waiting for a condition, the maps, the counters."""

import time
from collections.abc import Callable, Iterator

import pytest

from loader.maps import Maps


@pytest.fixture
def maps() -> Iterator[Maps]:
    """The lab's pinned maps; ask for `lab` first."""
    with Maps() as opened:
        yield opened


def eventually(what: str, holds: Callable[[], bool], *, within: float = 5.0) -> None:
    """Wait until *holds*; fail saying *what* did not come true *within* seconds."""
    deadline = time.monotonic() + within
    while not holds():
        if time.monotonic() > deadline:
            pytest.fail(f"after {within} s still not so: {what}")
        time.sleep(0.02)


def ufrags(maps: Maps) -> set[str]:
    """What the relay routes."""
    return {ufrag for ufrag, _route in maps.routes()}
