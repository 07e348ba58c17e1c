"""`shunt events`: what befalls sessions, as the agent tells it."""

import asyncio
import json
import sys
from collections.abc import Sequence
from typing import Any

from loader.client import AgentClient, AgentUnavailable

__all__ = ["line", "run"]

_RETRY_SECONDS = 1.0


def run(agent: AgentClient, *, kinds: Sequence[str], follow: bool, as_json: bool) -> int:
    """Print what is known, and with *follow* what is yet to come, also when the agent has been
    away: a line each. Raises ShuntError."""

    async def tell() -> None:
        last = None
        async with agent:
            while True:
                try:
                    async for event in agent.events(kinds=kinds, follow=follow, last=last):
                        last = event["id"] or last
                        print(json.dumps(event) if as_json else line(event), flush=True)
                except AgentUnavailable as away:
                    if last is None:
                        raise
                    print(f"shunt: {away.what}; trying on", file=sys.stderr)
                if not follow:
                    return
                await asyncio.sleep(_RETRY_SECONDS)

    asyncio.run(tell())
    return 0


def line(event: dict[str, Any]) -> str:
    """An event for people."""
    if event["kind"] == "missed":
        count = event["missed"]
        return f"… {'some' if count is None else count} events were missed"
    facts = {key: value for key, value in event.items() if key not in ("id", "time", "kind")}
    words = " ".join(f"{key}={_text(value)}" for key, value in facts.items())
    return f"{event['time']}  {event['kind']:<22}  {words}"


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
