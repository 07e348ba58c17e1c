"""Waiting for a condition, in place of a sleep."""

import time
from collections.abc import Callable

import pytest

__all__ = ["eventually"]


def eventually(what: str, holds: Callable[[], bool], *, within: float = 5.0) -> None:
    """Wait until *holds*; fail saying *what* did not come true *within* seconds."""
    deadline = time.monotonic() + within
    while not holds():
        if time.monotonic() > deadline:
            pytest.fail(f"after {within} s still not so: {what}")
        time.sleep(0.02)
