"""`shunt doctor`: gather, examine, show."""

import json
from collections.abc import Sequence
from pathlib import Path

from loader.client import DEFAULT_SOCKET
from loader.maps import DEFAULT_PINS
from tools.doctor.checks import examine
from tools.doctor.findings import Verdict
from tools.doctor.gather import facts_of_this_host
from tools.doctor.show import show, to_json

__all__ = ["run"]


def run(
    *,
    interfaces: Sequence[str] = (),
    socket: str = DEFAULT_SOCKET,
    pins: Path = DEFAULT_PINS,
    as_json: bool = False,
) -> int:
    """Exit status 1 if there is a failure, else 0; warnings are not."""
    diagnoses = examine(facts_of_this_host(names=interfaces, pins=pins, agent=socket))
    if as_json:
        print(json.dumps(to_json(diagnoses), indent=2))
    else:
        show(diagnoses)
    return int(any(each.finding.verdict is Verdict.FAILURE for each in diagnoses))
