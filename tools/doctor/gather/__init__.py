"""Gathers the facts, in this thread's network namespace and without changing anything."""

import os
from collections.abc import Sequence
from pathlib import Path

from loader.client import DEFAULT_SOCKET
from loader.maps import DEFAULT_PINS
from tools.doctor.facts import Facts, Plan
from tools.doctor.gather import addresses, host, interfaces, relay

__all__ = ["facts_of_this_host"]


def facts_of_this_host(
    *,
    names: Sequence[str] = (),
    plan: Plan | None = None,
    pins: Path = DEFAULT_PINS,
    agent: str = DEFAULT_SOCKET,
    moment: float = 1.0,
) -> Facts:
    """Look at everything. *names*: the interfaces to look at; without any, those of the *plan*,
    or of the relay that is pinned, or those that look like a relay's. *plan*: what the relay is
    to be, if not what is pinned. *agent*: its socket. *moment*: seconds for which a relay's
    counters are watched."""
    found = relay.pinned(pins, moment=moment)
    plan = plan or (found.loaded.plan if found.loaded else Plan())
    links = interfaces.all_links()
    carriers = tuple(i.ifindex for i in found.loaded.interfaces) if found.loaded else ()
    looked, missing = interfaces.look_at(links, names or plan.interfaces, and_at=carriers)
    return Facts(
        host=host.look(),
        network=addresses.look(),
        interfaces=looked,
        missing=missing,
        plan=plan,
        relay=found,
        agent=relay.ask_agent(agent) if os.path.exists(agent) or found.loaded else None,
    )
