"""Facts of the relay that is pinned here, and of its agent."""

import asyncio
import os
import re
import time
from dataclasses import replace
from pathlib import Path

from loader.client import AgentClient, AgentRefused, AgentUnavailable
from loader.datapath import pinned_program
from loader.errors import ShuntError
from loader.flows import FlowTable
from loader.maps import Maps, versioned
from loader.pinned_set import PARTS
from loader.types import PIN_VERSION, TRANSCEIVERS, Settings, text_address
from tools.doctor.facts import AgentFacts, Loaded, Plan, RelayFacts

__all__ = ["ask_agent", "pinned"]

_VERSION = re.compile(r"v\d+")  # beside which there is what is being loaded


def pinned(pins: Path, *, moment: float) -> RelayFacts:
    """What is pinned at *pins*. *moment*: how long to watch the counters, in seconds."""
    try:
        names = sorted(entry.name for entry in pins.iterdir() if entry.is_dir())
    except FileNotFoundError:
        return RelayFacts(pins=pins)
    except PermissionError:
        return RelayFacts(pins=pins, versions=None)
    versions = tuple(name for name in names if _VERSION.fullmatch(name))
    programs = frozenset(int(entry.name.removeprefix(PARTS)) for entry in pins.glob(f"*/{PARTS}*"))
    found = RelayFacts(pins=pins, versions=versions, programs=programs)
    if PIN_VERSION not in versions:
        return found
    try:
        with Maps(pins) as maps:
            return replace(found, loaded=_loaded(pins, maps, moment))
    except PermissionError:
        return replace(found, versions=None)
    except ShuntError as error:
        return replace(found, why=error.what)


def _loaded(pins: Path, maps: Maps, moment: float) -> Loaded:
    before = maps.counters().dropped
    settings, interfaces = maps.settings(), tuple(maps.interfaces())
    plan = _plan(settings, tuple(interface.name for interface in interfaces))
    transceivers = [
        (bytes(entry.id).rstrip(b"\0").decode(), text_address(bytes(entry.address)), entry.resolved)
        for _index, entry in maps.transceivers()
    ]
    flows, routes = FlowTable(maps).count(), sum(1 for _ in maps.routes())
    time.sleep(moment)
    after = maps.counters().dropped
    return Loaded(
        program=_program(pins),
        interfaces=interfaces,
        plan=plan,
        flows=flows,
        room=sum(entry.used for entry in settings.inside) * (plan.ports[1] - plan.ports[0] + 1),
        routes=routes,
        routes_room=maps.sizes.routes,
        transceivers=len(transceivers),
        transceivers_room=TRANSCEIVERS,
        unresolved=tuple((id, address) for id, address, resolved in transceivers if not resolved),
        dropped=before,
        dropping={reason: after[reason] - count for reason, count in before.items()},
    )


def _program(pins: Path) -> int:
    try:
        return pinned_program(versioned(pins)).id
    except FileNotFoundError:
        return 0


def _plan(settings: Settings, interfaces: tuple[str, ...]) -> Plan:
    inside = [bytes(packed) for entry in settings.inside for packed in (entry.ipv4, entry.ipv6)]
    return Plan(
        interfaces=interfaces,
        vips=tuple(
            (text_address(bytes(vip.address)), int(vip.port)) for vip in settings.vips if vip.port
        ),
        inside_addresses=tuple(text_address(packed) for packed in inside if any(packed)),
        ports=(settings.first_port, settings.last_port),
    )


def ask_agent(socket: str) -> AgentFacts:
    """Ask the agent behind *socket* whether it is ready."""
    there = os.path.exists(socket)

    async def ask() -> None:
        async with AgentClient(socket) as agent:
            await agent.health()

    try:
        asyncio.run(ask())
    except AgentRefused as refused:
        forbidden = refused.status in (401, 403)
        return AgentFacts(
            socket=socket, there=there, reached=True, forbidden=forbidden, why=refused.what
        )
    except AgentUnavailable as unavailable:
        return AgentFacts(socket=socket, there=there, why=unavailable.what)
    return AgentFacts(socket=socket, there=there, reached=True, ready=True)
