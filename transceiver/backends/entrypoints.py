"""Backends of other people: what distributions offer as entry points of `shunt.backends`.

    [project.entry-points."shunt.backends"]
    shout = "shout:backend"

An entry point leads to a function that takes the options and returns what makes a backend for each
session. Nothing of it is imported until it is asked for by name.
"""

import logging
from importlib.metadata import EntryPoint, entry_points

from loader.errors import ShuntError
from transceiver.backends import Factory, Options

__all__ = ["GROUP", "load", "names"]

GROUP = "shunt.backends"

log = logging.getLogger(__name__)


def names() -> list[str]:
    """Of all that are installed."""
    return sorted({entry.name for entry in entry_points(group=GROUP)})


def load(name: str, options: Options) -> Factory:
    """Import the backend of that name and have it take *options*; ShuntError, whatever goes wrong,
    and if two distributions offer one."""
    entry = _only(name)
    what = f"backend {name!r} of {_whose(entry)}"
    try:
        make = entry.load()
    except Exception as error:
        log.exception("%s cannot be loaded", what)
        raise ShuntError(
            f"{what} cannot be loaded: {type(error).__name__}: {error}",
            f"mend its installation, or what {entry.value!r} is",
        ) from error
    try:
        factory = make(options)
    except ShuntError:
        raise
    except Exception as error:
        log.exception("%s does not take its options", what)
        raise ShuntError(
            f"{what} does not take its options: {type(error).__name__}: {error}",
            "see its documentation for those it has",
        ) from error
    if not callable(factory):
        raise ShuntError(
            f"{what} makes nothing that makes backends, but {type(factory).__name__}",
            f"{entry.value!r} takes the options and returns what makes a backend",
        )
    checked: Factory = factory
    return checked


def _only(name: str) -> EntryPoint:
    found = list(entry_points(group=GROUP, name=name))
    if len(found) > 1:
        whose = " and ".join(sorted(_whose(entry) for entry in found))
        raise ShuntError(f"{whose} both offer a backend {name!r}", "uninstall one of them")
    return found[0]


def _whose(entry: EntryPoint) -> str:
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist is not None else entry.value
