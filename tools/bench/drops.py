"""Where packets were dropped, by name: by the kernel itself, for which no relay is to blame, or by
the relay's program, and why."""

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from pyroute2 import IPRoute

from loader import bpf
from loader.maps import versioned
from loader.reasons import REASONS
from tools.netns import run_in

__all__ = ["dropped", "dropped_by_program", "since"]

_OF_LINKS = ("rx_dropped", "tx_dropped", "rx_errors", "tx_errors")
_OF_UDP = re.compile(r"Udp6?(InErrors|NoPorts|RcvbufErrors|SndbufErrors|InCsumErrors|MemErrors)")


def dropped(namespaces: Mapping[str, str]) -> dict[str, int]:
    """Counters of drops, those of each CPU's backlog first, then those of the namespaces: their
    interfaces' and their UDP's. *namespaces*: by the names that the counters shall go by."""
    found = {"softnet dropped": _of_backlogs()}
    for place, namespace in namespaces.items():
        read = run_in(namespace, lambda: {**_of_links(), **_of_udp()})
        found |= {f"{place} {name}": count for name, count in read.items()}
    return found


def dropped_by_program(pins: Path) -> dict[str, int]:
    """By reason, of the relay that is pinned below *pins*, however the rest of its maps is laid
    out."""
    with bpf.Map.open(versioned(pins) / "drops") as opened:
        each_cpu = np.frombuffer(opened.values(), np.uint64).reshape(opened.info.max_entries, -1)
    totals = each_cpu.sum(axis=1)
    return {f"program {reason.name}": int(totals[reason.number]) for reason in REASONS}


def since(before: Mapping[str, int], after: Mapping[str, int]) -> dict[str, int]:
    """What two readings differ by; only what has moved."""
    moved = {name: count - before.get(name, 0) for name, count in after.items()}
    return {name: count for name, count in moved.items() if count}


def _of_backlogs() -> int:
    lines = Path("/proc/net/softnet_stat").read_text().splitlines()
    return sum(int(line.split()[1], 16) for line in lines)


def _of_links() -> dict[str, int]:
    found = {}
    with IPRoute() as netlink:
        for link in netlink.get_links():
            statistics = link.get_attr("IFLA_STATS64")
            for counter in _OF_LINKS:
                found[f"{link.get_attr('IFLA_IFNAME')} {counter}"] = int(statistics[counter])
    return found


def _of_udp() -> dict[str, int]:
    """Of this thread's namespace, which /proc/net is not."""
    names, values = (
        line.split()[1:]
        for line in Path("/proc/thread-self/net/snmp").read_text().splitlines()
        if line.startswith("Udp:")
    )
    found = {f"Udp{name}": int(value) for name, value in zip(names, values, strict=True)}
    for line in Path("/proc/thread-self/net/snmp6").read_text().splitlines():
        name, value = line.split()
        found[name] = int(value)
    return {name: count for name, count in found.items() if _OF_UDP.fullmatch(name)}
