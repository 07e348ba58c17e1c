"""`shunt demo`: the lab, one measured call to each transceiver, then a page to try by hand."""

import asyncio
import ipaddress
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from rich.console import Console

from loader.client import AgentClient
from loader.errors import ShuntError
from tools import lab as labs
from tools import page_proxy
from tools.labstate import Lab, LabTransceiver
from tools.netns import run_in
from tools.pinned import route_count, vip_ports
from tools.processes import ROOT
from tools.tables import grid

__all__ = ["proc_address", "proved", "run", "udp_ports", "worth"]

CALL_S = 3.0
ROUTES_GO_S = 10.0


def run(*, once: bool, port: int, as_json: bool) -> int:
    """Exit status: 0 only if every call carried media both ways through XDP."""
    sockets = [] if once else page_proxy.listen(port)
    # Somebody's lab is used and left as it was found, or their calls would end with our demo.
    found = labs.healthy()
    try:
        if found and (once or found.host):
            lab = found
        else:
            _say("building the lab")
            lab = labs.up(host=True)
        outcome = measure(lab)
        good = proved(outcome)
        if as_json:
            print(json.dumps(outcome), flush=True)
        else:
            _show(outcome)
        if not good:
            _say("NOT every call carried media both ways through XDP")
        if not once:
            url = f"http://localhost:{port}/#key={quote(lab.api_key, safe='')}"
            _say(f"talk to it: {url}   (Ctrl-C takes the lab down)")
            asyncio.run(page_proxy.serve(sockets, lab.transceivers[0].http))
        return 0 if good else 1
    finally:
        for listening in sockets:
            listening.close()
        if found:
            _say("the lab stays up, as it was")
        else:
            _say("taking the lab down")
            labs.down()


def measure(lab: Lab) -> dict[str, Any]:
    """Place the calls, one after the other; issue 1's object."""
    before = asyncio.run(_counters(lab))
    calls = []
    for transceiver in lab.transceivers:
        _say(f"calling {transceiver.id} from {lab.client_namespace}")
        calls.append(_call(lab, transceiver))
    routes_after = _routes_after()
    after = asyncio.run(_counters(lab))
    listening = run_in(lab.relay_namespace, _public_sockets(lab))
    return {
        "calls": calls,
        "relay": worth(before, after),
        "public_udp_ports": len(listening | vip_ports()),
        "routes_after": routes_after,
    }


def worth(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """What the relay did between two readings of its counters, in packets."""
    modes = set(after["mode"].values())
    dropped = {
        reason: count - before["dropped"].get(reason, 0)
        for reason, count in after["dropped"].items()
    }
    directions = {
        name: after[name]["packets"] - before[name]["packets"]
        for name in ("to_transceiver", "to_client")
    }
    return {
        # As slow as its slowest interface.
        "mode": "native" if modes == {"native"} else ", ".join(sorted(modes - {"native"})),
        **directions,
        "dropped": dropped,
    }


def proved(outcome: Mapping[str, Any]) -> bool:
    """Whether each call had media both ways, and the relay's counters account for all of it."""
    calls, relay = outcome["calls"], outcome["relay"]
    sent = sum(call["audio"]["sent"] for call in calls)
    received = sum(call["audio"]["received"] for call in calls)
    return bool(
        calls
        and all(
            call["audio"]["sent"]
            and call["audio"]["received"]
            and call["datachannel_rtt_ms"] is not None
            for call in calls
        )
        and relay["mode"] in ("native", "generic")
        and relay["to_transceiver"] + sum(relay["dropped"].values()) >= sent
        and relay["to_client"] >= received
    )


def udp_ports(table: str, addresses: Iterable[str]) -> set[int]:
    """Local ports in the text of /proc/net/udp or udp6 that are bound to one of *addresses* (in
    the file's hex) or to all."""
    wanted = set(addresses)
    ports = set()
    for line in table.splitlines()[1:]:
        address, _, port = line.split()[1].partition(":")
        if address in wanted or not address.strip("0"):
            ports.add(int(port, 16))
    return ports


def proc_address(address: str) -> str:
    """As /proc/net prints it: each four bytes as a number of the machine's byte order."""
    packed = ipaddress.ip_address(address).packed
    words = (packed[at : at + 4] for at in range(0, len(packed), 4))
    return "".join(f"{int.from_bytes(word, sys.byteorder):08X}" for word in words)


def _public_sockets(lab: Lab) -> Any:
    addresses = [proc_address(lab.vip[0]), proc_address(lab.vip6[0])]

    def read() -> set[int]:
        tables = [Path(f"/proc/thread-self/net/{name}") for name in ("udp", "udp6")]
        return set().union(*(udp_ports(t.read_text(), addresses) for t in tables))

    return read


async def _counters(lab: Lab) -> dict[str, Any]:
    async with AgentClient(lab.agent_socket) as agent:
        counters: dict[str, Any] = await agent.counters()
        return counters


def _routes_after() -> int:
    """The map's count once it is zero, or as it is when that takes too long."""
    deadline = time.monotonic() + ROUTES_GO_S
    while (count := route_count()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return count


def _call(lab: Lab, transceiver: LabTransceiver) -> dict[str, Any]:
    argv = [sys.executable, "-m", "tools", "call", transceiver.http]
    argv += ["--duration", str(CALL_S), "-o", "json"]
    done = run_in(
        lab.client_namespace,
        lambda: subprocess.run(
            argv,
            cwd=ROOT,
            env={**os.environ, "SHUNT_API_KEY": lab.api_key},
            capture_output=True,
            text=True,
            check=False,
        ),
    )
    if done.returncode:
        said = re.sub(r"^shunt: ", "", done.stderr.strip())
        what, _, cure = said.partition("\n")
        what = what or f"it ended with status {done.returncode}"
        raise ShuntError(f"the call to {transceiver.id} failed: {what}", cure.strip())
    report = json.loads(done.stdout)
    kept = ("ufrag", "setup_ms", "audio", "datachannel_rtt_ms")
    return {"transceiver": transceiver.id} | {name: report[name] for name in kept}


def _show(outcome: Mapping[str, Any]) -> None:
    console = Console()
    rows = [
        (
            call["transceiver"],
            call["ufrag"],
            f"{call['setup_ms']:.0f} ms",
            call["audio"]["sent"],
            call["audio"]["received"],
            "no answer"
            if call["datachannel_rtt_ms"] is None
            else f"{call['datachannel_rtt_ms']} ms",
        )
        for call in outcome["calls"]
    ]
    columns = ("transceiver", "ufrag", "setup", "audio sent", "received", "data channel")
    console.print(grid("calls", columns, rows))
    relay = outcome["relay"]
    dropped = ", ".join(f"{n} {name}" for name, n in relay["dropped"].items() if n) or "none"
    console.print(
        f"relay: XDP {relay['mode']}, {relay['to_transceiver']} packets to transceivers, "
        f"{relay['to_client']} to clients, dropped: {dropped}\n"
        f"public UDP ports: {outcome['public_udp_ports']}, "
        f"routes left: {outcome['routes_after']}"
    )


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
