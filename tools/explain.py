"""`shunt explain`: all that is known of one session, from the relay and from its transceiver, and
what that comes to."""

import asyncio
import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import aiohttp
from rich.console import Console

from loader.client import AgentClient
from loader.errors import ShuntError
from tools.events import line
from tools.tables import grid

__all__ = ["Known", "ask", "run", "show", "verdict"]

_TIMEOUT = aiohttp.ClientTimeout(total=5.0)


@dataclass(slots=True)
class Known:
    """What there is to be known of one session."""

    ufrag: str
    route: Mapping[str, Any] | None = None
    flows: Sequence[Mapping[str, Any]] = ()
    events: Sequence[Mapping[str, Any]] = ()
    session: Mapping[str, Any] | None = None
    """As its transceiver tells it."""
    silent: Mapping[str, str] = field(default_factory=dict)
    """Transceivers that told nothing, and why."""

    def to_json(self) -> dict[str, Any]:
        """All of it, and the verdict."""
        return {
            "ufrag": self.ufrag,
            "route": self.route,
            "flows": list(self.flows),
            "events": list(self.events),
            "session": self.session,
            "silent": dict(self.silent),
            "verdict": verdict(self),
        }


def run(agent: AgentClient, whom: str, *, key: str | None) -> list[Known]:
    """What is known of the session with the ufrag *whom*, or of those of the client at the address
    (and port) *whom*. *key*: the transceivers' API key. ShuntError if nothing is."""
    return asyncio.run(ask(agent, whom, key=key))


async def ask(agent: AgentClient, whom: str, *, key: str | None) -> list[Known]:
    """`run`, on a loop that there is."""
    async with agent:
        routes = (await agent.routes())["routes"]
        flows = (await agent.flows())["flows"]
        transceivers = (await agent.transceivers())["transceivers"]
        events = [event async for event in agent.events(follow=False)]
    places: dict[str, str] = {each["id"]: each["http"] for each in transceivers}
    found = []
    async with aiohttp.ClientSession(timeout=_TIMEOUT) as http:
        for ufrag in _ufrags(whom, flows):
            known = Known(
                ufrag,
                route=next((route for route in routes if route["ufrag"] == ufrag), None),
                flows=[flow for flow in flows if flow["ufrag"] == ufrag],
                events=[e for e in events if e.get("ufrag") == ufrag],
            )
            at = known.route["transceiver"] if known.route else None
            asked = {at: places[at]} if at in places else places
            known.session, known.silent = await _stories(http, asked, ufrag, key)
            if known.route or known.flows or known.events or known.session:
                found.append(known)
    if not found:
        raise ShuntError(
            f"neither the relay nor a transceiver knows {whom}",
            "Give the ufrag of the answer (a=ice-ufrag), or a client's address that `shunt flows "
            "list` shows. What is long over is forgotten.",
        )
    return found


def _ufrags(whom: str, flows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Of the sessions meant: those of a client, or *whom* itself."""
    try:
        address = str(ipaddress.ip_address(whom.removeprefix("[").removesuffix("]")))
    except ValueError:
        address = ""
    ufrags = {
        flow["ufrag"]: None
        for flow in flows
        if flow["ufrag"] is not None
        and (flow["client"] == whom or (address and _host(flow["client"]) == address))
    }
    return list(ufrags) or [whom]


def _host(endpoint: str) -> str:
    return endpoint.rpartition(":")[0].removeprefix("[").removesuffix("]")


async def _stories(
    http: aiohttp.ClientSession, places: Mapping[str, str], ufrag: str, key: str | None
) -> tuple[Mapping[str, Any] | None, dict[str, str]]:
    """The session as the transceiver tells that has it, and why others tell nothing."""
    silent: dict[str, str] = {}
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    for id, url in places.items():
        path = f"{url.rstrip('/')}/v1/sessions/{quote(ufrag, safe='')}"
        try:
            async with http.get(path, headers=headers, allow_redirects=False) as response:
                if response.status == 200:
                    told: Mapping[str, Any] = await response.json()
                    return told, silent
                if response.status == 401:
                    silent[id] = "it wants the API key: set SHUNT_API_KEY, or give --key"
                elif response.status != 404:
                    silent[id] = f"it answers {response.status}"
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            silent[id] = f"{url} does not answer: {error or 'in time'}"
    return None, silent


def verdict(known: Known) -> str:
    """What it comes to, and where to look on: one or two sentences."""
    if known.session is None:
        if known.flows:
            return "The relay has the client's flow; the transceiver tells nothing of the session."
        if known.route:
            return (
                "The relay has a route, and no packet of the client has come by it: see what is "
                "dropped (`shunt counters`), and whether UDP gets from the client to the VIP."
            )
        return "The session is over, and only the relay's events remain."
    had = {entry["what"] for entry in known.session["timeline"]}
    reason = known.session.get("reason")
    end = f" It has ended: {reason}." if reason else ""
    if "route" not in had:
        return f"The relay took no route.{end}"
    if "first check" not in had:
        if known.flows:
            return (
                "The client's checks pass the relay, and none has come to the transceiver: look at "
                f"the inside network, and at what its socket drops (/metrics).{end}"
            )
        return (
            "No check of the client has come to the relay: see what it drops (`shunt counters`), "
            f"and whether UDP gets from the client to the VIP.{end}"
        )
    if "selected" not in had:
        return (
            "The client's checks come, and it answers none of ours: nothing gets back to it, or "
            f"its password is another (an answer that it did not take).{end}"
        )
    if "dtls" not in had:
        return f"There is a path, and the DTLS handshake has not come to its end.{end}"
    if "first audio in" not in had and "data" not in had:
        return f"It was connected, and the client has sent neither audio nor data.{end}"
    return f"The call was set up as it should.{end}" if end else "The call runs as it should."


def show(found: Sequence[Known]) -> None:
    """For people."""
    console = Console()
    for known in found:
        _show_one(console, known)


def _show_one(console: Console, known: Known) -> None:
    session = known.session
    if session is not None:
        title = f"session {session['id']}, by {session['dialect']}: {session['state']}"
        rows = [
            (
                f"{entry['after_s']:.3f} s" if "after_s" in entry else "",
                entry["what"],
                " ".join(f"{k}={v}" for k, v in entry.items() if k not in ("after_s", "what")),
            )
            for entry in session["timeline"]
        ]
        console.print(grid(title, ("after", "moment", ""), rows))
    if known.flows:
        columns = ("inside", "state", "client", "to_transceiver", "to_client", "idle_s")
        rows_of_flows = [[flow[column] for column in columns] for flow in known.flows]
        console.print(grid(f"flows of {known.ufrag}", columns, rows_of_flows))
    if known.events:
        console.print("events of the relay", style="bold")
        for event in known.events:
            console.print(line(dict(event)), markup=False, highlight=False, soft_wrap=True)
    for id, why in known.silent.items():
        console.print(f"transceiver {id}: {why}", markup=False)
    console.print(verdict(known), markup=False)
