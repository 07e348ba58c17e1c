"""Two pictures of the relay's maps and the time between them: how fast each counter moves."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["DIRECTIONS", "Rates", "Snapshot", "rates"]

DIRECTIONS = ("to_transceiver", "to_client")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The relay at one moment, in the shapes of the agent's API."""

    at: float  # seconds, monotonic
    routes: list[dict[str, Any]]
    flows: list[dict[str, Any]]
    flow_count: int  # of all, if `flows` are only some
    counters: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Rates:
    """Packets a second."""

    flows: dict[int, dict[str, float]]  # by slot, then by direction
    traffic: dict[str, float]  # by direction, and "passed"
    dropped: dict[str, float]  # by reason


def rates(before: Snapshot, after: Snapshot) -> Rates:
    """Nothing moves if no time has passed. A flow that was not there before began at zero, and
    so did one that counts less than before: its port was given anew in between."""
    seconds = after.at - before.at

    def speed(now: int, then: int) -> float:
        return (now - then if now >= then else now) / seconds if seconds > 0 else 0.0

    earlier = {_identity(flow): flow for flow in before.flows}
    return Rates(
        flows={
            flow["slot"]: {
                way: speed(
                    flow[way]["packets"],
                    earlier[_identity(flow)][way]["packets"] if _identity(flow) in earlier else 0,
                )
                for way in DIRECTIONS
            }
            for flow in after.flows
        },
        traffic={
            way: speed(after.counters[way]["packets"], before.counters[way]["packets"])
            for way in (*DIRECTIONS, "passed")
        },
        dropped={
            reason: speed(count, before.counters["dropped"].get(reason, 0))
            for reason, count in after.counters["dropped"].items()
        },
    )


def _identity(flow: Mapping[str, Any]) -> tuple[Any, ...]:
    # Not its ufrag: a flow outlives its route, closing, and may take another at an ICE restart.
    return flow["slot"], flow["client"]
