"""`shunt config check`: what an agent would run with, or everything that is wrong with it."""

import json
import os
import sys
from pathlib import Path
from typing import Any

from loader.configfile import BadConfig, Configuration, Fault, Origin, Sources
from tools import tables

__all__ = ["run"]


def run(path: Path | None, *, as_json: bool) -> int:
    """Check a file, or the default one, with the environment as it is. The exit status."""
    try:
        read = Sources(file=path, environment=os.environ).read()
    except BadConfig as bad:
        if as_json:
            print(json.dumps({"ok": False, "errors": [_fault(f) for f in bad.faults]}, indent=2))
        else:
            _print_faults(bad.faults)
        return 1
    file = read.config.config_file
    if as_json:
        shown = {"ok": True, "file": file and str(file), "values": _values(read)}
        print(json.dumps(shown, indent=2))
    else:
        tables.show_config(f"OK: {file or 'without a file'}", _values(read))
    return 0


def _print_faults(faults: tuple[Fault, ...]) -> None:
    """A line for each, as editors and compilers have them, and what to do below it."""
    for fault in faults:
        print(fault, file=sys.stderr)
        if fault.cure:
            print(f"  {fault.cure}", file=sys.stderr)


def _values(read: Configuration) -> list[dict[str, Any]]:
    return [
        {
            "key": given.key.name,
            "value": given.key.written(given.value),
            "from": _origin(given.origin),
        }
        for given in read.values
    ]


def _fault(fault: Fault) -> dict[str, Any]:
    return {
        "what": fault.what,
        "cure": fault.cure,
        "key": fault.key,
        "from": fault.origin and _origin(fault.origin),
    }


def _origin(origin: Origin) -> dict[str, Any]:
    return {"kind": origin.kind, "name": origin.name, "line": origin.line}
