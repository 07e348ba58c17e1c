"""`shunt doctor`: gather, examine, show."""

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from loader.client import DEFAULT_SOCKET
from loader.config import AgentConfig
from loader.configfile import Sources
from loader.maps import DEFAULT_PINS
from tools.doctor.checks import examine
from tools.doctor.facts import Plan
from tools.doctor.findings import Verdict
from tools.doctor.gather import facts_of_this_host
from tools.doctor.show import show, to_json
from tools.doctor.trial import attempt

__all__ = ["run"]


def run(
    *,
    interfaces: Sequence[str] = (),
    config: Path | None = None,
    socket: str | None = None,
    pins: Path | None = None,
    try_it: bool = False,
    as_json: bool = False,
) -> int:
    """Exit status 1 if there is a failure, else 0; warnings are not. *config*: an agent's file;
    *socket* and *pins* are its, if they are not given. Raises ShuntError for a bad file."""
    agent = Sources(file=config, environment=os.environ).read().config if config else None
    facts = facts_of_this_host(
        names=interfaces,
        plan=_plan(agent) if agent else None,
        pins=pins or (agent.pins if agent else DEFAULT_PINS),
        agent=socket or (str(agent.socket) if agent else DEFAULT_SOCKET),
    )
    if try_it:
        facts = replace(facts, trial=attempt(facts.host))
    diagnoses = examine(facts)
    if as_json:
        print(json.dumps(to_json(diagnoses), indent=2))
    else:
        show(diagnoses)
    return int(any(each.finding.verdict is Verdict.FAILURE for each in diagnoses))


def _plan(config: AgentConfig) -> Plan:
    return Plan(
        interfaces=tuple(config.interfaces),
        vips=tuple((vip.address, vip.port) for vip in config.vips),
        inside_addresses=config.inside_addresses,
        ports=(config.first_port, config.last_port),
    )
