"""The relay as its pinned maps show it, in the shapes of the agent's API; it needs no agent."""

import time

from loader.flows import Flow, FlowTable
from loader.maps import Counters, Maps, Rate
from loader.types import State, Transceiver, text_address
from tools.rates import Snapshot

__all__ = ["look", "route_count", "vip_ports"]


def look() -> Snapshot:
    """One picture. Raises ShuntError if no relay is loaded, or one of another version."""
    with Maps() as maps:
        now = time.monotonic()
        ids = {index: _id(entry) for index, entry in maps.transceivers()}
        vips = [f"{text_address(bytes(vip.address))}:{vip.port}" for vip in maps.settings().vips]
        flows = FlowTable(maps).flows(now=now)
        routes = list(maps.routes())
        ufrags = {route.id: ufrag for ufrag, route in routes}
        return Snapshot(
            at=now,
            routes=[
                {
                    "ufrag": ufrag,
                    "transceiver": ids.get(route.transceiver),
                    "slots": [
                        flow.port
                        for flow in flows
                        if flow.route == route.id and flow.state != State.CLOSING
                    ],
                }
                for ufrag, route in routes
            ],
            flows=[
                {
                    "port": flow.port,
                    "state": flow.state.name.lower(),
                    "client": _endpoint(flow),
                    "vip": vips[flow.vip],
                    "ufrag": ufrags.get(flow.route),
                    "transceiver": ids.get(flow.transceiver),
                    "idle_s": round(flow.idle_s, 1),
                    "validated": flow.proven,
                    "to_transceiver": _traffic(Rate(*flow.to_transceiver)),
                    "to_client": _traffic(Rate(*flow.to_client)),
                }
                for flow in flows
            ],
            counters=_counters(maps.counters())
            | {"mode": {each.name: each.mode.name.lower() for each in maps.interfaces()}},
        )


def route_count() -> int:
    """Routes in the map."""
    with Maps() as maps:
        return sum(1 for _ in maps.routes())


def vip_ports() -> set[int]:
    """UDP ports on which the program takes clients' packets."""
    with Maps() as maps:
        return {int(vip.port) for vip in maps.settings().vips if vip.port}


def _id(entry: Transceiver) -> str:
    return bytes(entry.id).rstrip(b"\0").decode()


def _endpoint(flow: Flow) -> str:
    host = f"[{flow.client}]" if ":" in flow.client else flow.client
    return f"{host}:{flow.client_port}"


def _traffic(rate: Rate) -> dict[str, int]:
    return {"packets": rate.packets, "bytes": rate.bytes}


def _counters(counters: Counters) -> dict[str, object]:
    return {
        "to_transceiver": _traffic(counters.to_transceiver),
        "to_client": _traffic(counters.to_client),
        "passed": _traffic(counters.passed),
        "dropped": counters.dropped,
    }
