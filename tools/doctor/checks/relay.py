"""Checks of a relay that is loaded: is it attached, asked, full, and whom it cannot reach."""

from collections.abc import Callable, Iterator

from loader.carriers import PROGRAM_NAME
from loader.maps import Interface
from loader.types import PIN_VERSION, Mode
from tools.doctor.checks import drivers
from tools.doctor.facts import Facts, InterfaceFacts, Loaded
from tools.doctor.findings import (
    Check,
    Finding,
    Verdict,
    failure,
    not_applicable,
    ok,
    unknown,
    warning,
)

__all__ = ["ALARMING", "CHECKS"]

_RESTART = "sudo systemctl restart shunt-agent  # or: shunt agent run, as it was started"
_HIGH = 0.8

ALARMING: dict[str, tuple[Verdict, str, str]] = {
    "neighbour": (
        Verdict.FAILURE,
        "a transceiver's MAC address is not known",
        "ip neigh; shunt transceivers list  # its network, or its --udp address",
    ),
    "table_full": (
        Verdict.FAILURE,
        "no free slot: new clients are refused",
        "shunt agent run … --inside-ports 1024-65535  # or one more --inside-address",
    ),
    "program": (Verdict.FAILURE, "a part of the program is missing", _RESTART),
    "transceiver_gone": (
        Verdict.WARNING,
        "routes lead to a transceiver that is no longer registered",
        "shunt transceivers list",
    ),
    "route_full": (
        Verdict.WARNING,
        "somebody hammers one ufrag from many addresses",
        "shunt routes list  # routes with 8 slots",
    ),
    "amplification": (
        Verdict.WARNING,
        "clients that never answer checks: they cannot receive, or their addresses are forged",
        "shunt flows list  # flows that are not validated",
    ),
    "wrong_interface": (
        Verdict.WARNING,
        "somebody sends to inside ports from outside",
        "sudo tcpdump -ni IFACE udp portrange 10000-32767  # before the program: on the switch",
    ),
    "wrong_transceiver": (
        Verdict.WARNING,
        "a host inside sends to ports of another transceiver's flows",
        "shunt flows list",
    ),
    "checksum": (
        Verdict.WARNING,
        "datagrams too long to make their partial checksum whole",
        "sudo ethtool -K PEER tx off  # at the sender, on this host",
    ),
    "headroom": (
        Verdict.WARNING,
        "the driver leaves no room to make headers longer (IPv4 to IPv6, VLAN tags)",
        "Use transceivers of the clients' family, or another NIC (gve in GQI mode has 2 bytes).",
    ),
    "mtu": (
        Verdict.WARNING,
        "packets that do not fit into the way on",
        "ip link  # give the inside an MTU at least 20 above the public one",
    ),
}
"""Reasons for drops that are not normal on a public port: how bad, what it means, what to do."""


def _pins(facts: Facts) -> Iterator[Finding]:
    relay = facts.relay
    if relay.versions is None:
        yield unknown(f"{relay.pins} may not be read", "sudo shunt doctor")
    elif not relay.versions:
        yield not_applicable(f"no relay is loaded: nothing is pinned at {relay.pins}")
    elif relay.why:
        yield failure(relay.why, "sudo shunt agent unload  # calls end with that")
    else:
        others = [version for version in relay.versions if version != PIN_VERSION]
        if PIN_VERSION in relay.versions:
            yield ok(f"{relay.pins}/{PIN_VERSION}, as this version writes them")
        for version in others:
            yield warning(
                f"{relay.pins}/{version} is of another version of Shunt, and holds its memory",
                f"sudo rm -r {relay.pins}/{version}"
                if PIN_VERSION in relay.versions
                else "sudo shunt agent run …  # takes the flows over, or says that it cannot",
            )


def _not_loaded(facts: Facts) -> Finding:
    return not_applicable(
        "no relay is loaded" if facts.relay.versions is not None else "the pins may not be read"
    )


def _attached(facts: Facts) -> Iterator[Finding]:
    loaded = facts.relay.loaded
    if loaded is None:
        yield _not_loaded(facts)
        return
    if not loaded.interfaces:
        yield failure("the program is loaded, but was never attached", _RESTART)
    for interface in loaded.interfaces:
        found = next((i for i in facts.interfaces if i.ifindex == interface.ifindex), None)
        finding = _attachment(facts, loaded, interface, found)
        yield Finding(finding.verdict, finding.found, finding.cure, interface.name)


def _attachment(
    facts: Facts, loaded: Loaded, interface: Interface, found: InterfaceFacts | None
) -> Finding:
    if found is None:
        return unknown(
            "not in this network namespace, or gone",
            "sudo nsenter --net --target $(pgrep -of 'agent run') shunt doctor",
        )
    if found.xdp.mode is Mode.DETACHED:
        return failure("the program is no longer attached: nothing is relayed", _RESTART)
    if found.xdp.id != loaded.program:
        if found.xdp.id not in facts.relay.programs and found.xdp.name != PROGRAM_NAME:
            return failure(f"carries program {found.xdp.id}, which is not the relay's", _RESTART)
        return warning(f"carries an older program (id {found.xdp.id})", _RESTART)
    if found.xdp.mode is not Mode.GENERIC:
        return ok(f"attached in {found.xdp.mode.name.lower()} mode")
    generic = "attached in generic mode, which costs several times as much"
    if found.features is not None and not found.features & drivers.BASIC:
        return warning(f"{generic}: the driver has no native XDP", "Use another NIC.")
    for obstacle in drivers.obstacles(facts.host, found):
        return warning(f"{generic}: {obstacle.what}", obstacle.cure)
    return warning(
        f"{generic}; nothing that we know speaks against native mode now",
        "sudo shunt agent unload, then start the agent  # calls end; dmesg, if it is so again",
    )


def _agent(facts: Facts) -> Iterator[Finding]:
    agent = facts.agent
    if agent is None or (not agent.there and facts.relay.loaded is None):
        yield _not_loaded(facts)
    elif agent.ready:
        yield ok(f"ready, at {agent.socket}")
    elif agent.forbidden:
        yield unknown("the agent does not answer this user", "sudo shunt doctor")
    elif agent.reached:
        yield failure(f"not ready: {agent.why}", "journalctl -u shunt-agent -n 20")
    else:
        yield failure(
            f"cannot be reached at {agent.socket}: {agent.why}; established calls go on, new ones "
            "are refused",
            "sudo systemctl start shunt-agent  # or: shunt agent run",
        )


def _flow_table(facts: Facts) -> Iterator[Finding]:
    # cilium#23604: ports that run out show themselves as failures of something else.
    yield _fill(
        facts,
        lambda loaded: (loaded.flows, loaded.room),
        "slots are in use",
        "shunt agent run … --inside-ports 1024-65535  # or one more --inside-address",
    )


def _route_map(facts: Facts) -> Iterator[Finding]:
    yield _fill(
        facts,
        lambda loaded: (loaded.routes, loaded.routes_room),
        "routes are made",
        "shunt transceivers list  # whose routes they are; more room comes with more "
        "--inside-address, or another relay",
    )


def _transceivers(facts: Facts) -> Iterator[Finding]:
    yield _fill(
        facts,
        lambda loaded: (loaded.transceivers, loaded.transceivers_room),
        "transceivers are registered",
        "Add another relay.",
    )


def _fill(facts: Facts, of: Callable[[Loaded], tuple[int, int]], what: str, cure: str) -> Finding:
    loaded = facts.relay.loaded
    if loaded is None:
        return _not_loaded(facts)
    used, room = of(loaded)
    found = f"{used} of {room} {what}"
    # cilium#20069: a full map drops packets, and nobody saw it fill.
    if used >= room:
        return failure(f"{found}: new ones are refused", cure)
    return warning(found, cure) if used >= _HIGH * room else ok(found)


def _neighbours(facts: Facts) -> Iterator[Finding]:
    loaded = facts.relay.loaded
    if loaded is None:
        yield _not_loaded(facts)
        return
    for id, address in loaded.unresolved:
        yield failure(
            f"no MAC address is known on the way to {address}",
            f"ip route get {address}; ping -c 1 {address}; ip neigh show {address}",
            about=id,
        )
    if not loaded.unresolved:
        yield ok("the next hop to every transceiver is known")


def _drops(facts: Facts) -> Iterator[Finding]:
    loaded = facts.relay.loaded
    if loaded is None:
        yield _not_loaded(facts)
        return
    for reason, (verdict, meaning, cure) in ALARMING.items():
        if more := loaded.dropping.get(reason, 0):
            yield Finding(verdict, f"{more} more within a second: {meaning}", cure, reason)
    still = [
        f"{reason} {count}"
        for reason, count in loaded.dropped.items()
        if reason in ALARMING and count and not loaded.dropping.get(reason, 0)
    ]
    yield ok(f"not now, but before: {', '.join(still)}" if still else "none that are not normal")


CHECKS = (
    Check(
        "pins",
        "Maps of another version are not read; what is pinned holds memory until it is removed.",
        _pins,
    ),
    Check("attached", "Only where the program is attached are packets relayed.", _attached),
    Check(
        "agent",
        "Without its agent a relay takes no new routes, and frees no ports.",
        _agent,
    ),
    Check("flow_table", "At full table new flows are refused (`table_full`).", _flow_table),
    Check("route_map", "At full map new calls are refused (507).", _route_map),
    Check("transceivers", "At full map no more transceivers can register.", _transceivers),
    Check("neighbours", "Packets to a transceiver without a next hop are dropped.", _neighbours),
    Check(
        "drops",
        "Scans are dropped on every public port; these reasons are not of that kind.",
        _drops,
    ),
)
