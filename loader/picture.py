"""What the maps hold, in the shapes of the agent's API: for the agent itself, and for those who
look at the pinned maps without one."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from loader.accounts import Account
from loader.addresses import endpoint
from loader.flows import Flow
from loader.maps import Counters, Interface, Rate
from loader.types import Inside, Settings, Transceiver, Vip, text_address

__all__ = [
    "FLOWS_SHOWN",
    "Routed",
    "picture_of_account",
    "picture_of_counters",
    "picture_of_flows",
    "picture_of_routes",
    "picture_of_routes_alone",
]

FLOWS_SHOWN = 10_000  # a tenth of a second's work; of more than that, nobody reads the list


class Routed(NamedTuple):
    """A route with its id, its transceiver's, and whether that makes checks of its own."""

    ufrag: str
    id: int
    transceiver: str | None
    checks: bool


def picture_of_flows(
    flows: Iterable[Flow],
    *,
    settings: Settings,
    ufrags: Mapping[int, str | None],
    transceivers: Mapping[int, Transceiver],
) -> list[dict[str, Any]]:
    """Of `GET /v1/flows`. *ufrags* by route id, *transceivers* by index; null where there is none.

    `inside` is what the transceiver sees as the client: null if it is gone, or the address is.
    """
    vips = [_vip(vip) for vip in settings.vips]
    inside = [_inside(entry) for entry in settings.inside]
    addresses = {index: text_address(bytes(each.address)) for index, each in transceivers.items()}
    ids = {index: bytes(each.id).rstrip(b"\0").decode() for index, each in transceivers.items()}

    def seen(flow: Flow) -> str | None:
        there = addresses.get(flow.transceiver)
        here = inside[flow.inside].get(":" in there) if there else None
        return endpoint(here, flow.port) if here else None

    return [
        {
            "slot": flow.slot,
            "port": flow.port,
            "inside": seen(flow),
            "state": flow.state.name.lower(),
            "client": endpoint(flow.client, flow.client_port),
            "vip": vips[flow.vip],
            "ufrag": ufrags.get(flow.route),
            "transceiver": ids.get(flow.transceiver),
            "idle_s": round(flow.idle_s, 1),
            "validated": flow.proven,
            "to_transceiver": _rate(Rate(*flow.to_transceiver)),
            "to_client": _rate(Rate(*flow.to_client)),
        }
        for flow in flows
    ]


def _vip(vip: Vip) -> str | None:
    return endpoint(text_address(bytes(vip.address)), vip.port) if vip.port else None


def _inside(entry: Inside) -> dict[bool, str]:
    """An entry's addresses by whether they are IPv6."""
    both = {False: bytes(entry.ipv4), True: bytes(entry.ipv6)}
    return {family: text_address(packed) for family, packed in both.items() if any(packed)}


def picture_of_routes(
    routes: Iterable[Routed], *, slots: Mapping[int, list[int]], accounts: Iterable[Account]
) -> list[dict[str, Any]]:
    """Of `GET /v1/routes`; *slots* by route id, *accounts* in the order of the routes."""
    return [
        {
            "ufrag": route.ufrag,
            "transceiver": route.transceiver,
            "checks": route.checks,
            "slots": slots.get(route.id, []),
            **picture_of_account(account),
        }
        for route, account in zip(routes, accounts, strict=True)
    ]


def picture_of_routes_alone(routes: Iterable[Routed]) -> list[dict[str, Any]]:
    """The same without what the slots know."""
    return [
        {"ufrag": route.ufrag, "transceiver": route.transceiver, "checks": route.checks}
        for route in routes
    ]


def picture_of_account(account: Account) -> dict[str, dict[str, int]]:
    """Of a route, or a transceiver."""
    return {
        "to_transceiver": _rate(account.to_transceiver),
        "to_client": _rate(account.to_client),
    }


def picture_of_counters(counters: Counters, interfaces: Iterable[Interface]) -> dict[str, Any]:
    """Of `GET /v1/counters`."""
    return {
        "mode": {interface.name: interface.mode.name.lower() for interface in interfaces},
        "to_transceiver": _rate(counters.to_transceiver),
        "to_client": _rate(counters.to_client),
        "passed": _rate(counters.passed),
        "dropped": counters.dropped,
    }


def _rate(rate: Rate) -> dict[str, int]:
    return {"packets": rate.packets, "bytes": rate.bytes}
