"""Where the kernel itself has dropped packets, by name, so that no relay is blamed for it."""

import re
from collections.abc import Mapping
from pathlib import Path

from pyroute2 import IPRoute

from tools.netns import run_in

__all__ = ["dropped", "since"]

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
