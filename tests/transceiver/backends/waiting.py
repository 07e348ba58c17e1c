"""Waiting for a condition on the event loop, in place of a sleep."""

import asyncio
from collections.abc import Callable

__all__ = ["until"]


async def until(holds: Callable[[], object]) -> None:
    """Return when it holds; the test's own timeout is for what never does."""
    while not holds():  # noqa: ASYNC110 - any condition, also one that nobody signals
        await asyncio.sleep(0.002)
