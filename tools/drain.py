"""`shunt transceivers drain` and `shunt agent drain`: begins a drain, shows how far it is, or calls
it off."""

import asyncio
import json
from typing import Any

from loader.client import AgentClient

__all__ = ["run"]

_LOOK_SECONDS = 1.0


def run(
    agent: AgentClient,
    transceiver: str | None,
    *,
    deadline_s: float | None,
    wait: bool,
    cancel: bool,
    as_json: bool,
) -> int:
    """Of the transceiver with that id, or of the relay. With *wait*, return when it is over, or
    was called off: then the exit status is 1."""

    async def drain() -> dict[str, Any]:
        async with agent:
            if cancel:
                await agent.call_off_drain(transceiver)
                return await agent.drain_progress(transceiver)
            progress = await agent.drain(transceiver, deadline_s=deadline_s)
            while wait and progress["draining"] and not progress["over"]:
                if not as_json:
                    print(_sentence(progress), flush=True)
                await asyncio.sleep(_LOOK_SECONDS)
                progress = await agent.drain_progress(transceiver)
            return progress

    progress = asyncio.run(drain())
    print(json.dumps(progress, indent=2) if as_json else _sentence(progress))
    return 0 if cancel or progress["draining"] else 1


def _sentence(progress: dict[str, Any]) -> str:
    if not progress["draining"]:
        return "not draining: new sessions are taken"
    left = f"{progress['routes']} routes, {progress['flows']} flows left"
    lasts = f"for {progress['since_s']:.0f} s"
    if progress["over"]:
        return f"drained: {left}"
    if progress["deadline_s"] is None:
        return f"draining {lasts}: {left}, no deadline"
    return f"draining {lasts}: {left}, they end in {progress['deadline_s']:.0f} s"
