"""A WHIP client that runs in any browser, and restarts ICE; and what the relay has of it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from loader.maps import Maps
from tests.endtoend.conftest import ufrags
from tests.endtoend.waiting import eventually

__all__ = ["SCRIPT", "moved"]

SCRIPT = Path(__file__).with_suffix(".js").read_text()


@contextmanager
def moved(maps: Maps, old: str, new: str) -> Iterator[None]:
    """In the relay, the *new* route takes the *old* one's place, until the call is over."""
    assert new != old
    assert new in ufrags(maps)
    eventually("the client has come to the new one", lambda: old not in ufrags(maps), within=10)
    yield
    eventually("the new one is gone, too", lambda: new not in ufrags(maps))
