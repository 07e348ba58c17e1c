"""Where live frames run: three namespaces in a row, and two cables.

    bench-public ══ public │ bench-relay │ inside ══ bench-inside

A frame that the generator sends at one end goes through the relay's namespace to the other.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from pyroute2 import IPRoute, netns

from tools.netns import RUN_DIR, create, run_in

__all__ = ["INSIDE_END", "PUBLIC_END", "RELAY", "Cables", "arrived", "cables", "kept_ready", "put"]

PUBLIC_END, RELAY, INSIDE_END = "bench-public", "bench-relay", "bench-inside"
_READY = "bench-ready"
_FLAG_GENERIC, _FLAG_NATIVE = 1 << 1, 1 << 2


@dataclass(frozen=True, slots=True)
class Cables:
    """Indexes of interfaces: the relay's two, and those at the other ends."""

    public: int
    inside: int
    public_end: int
    inside_end: int


@contextmanager
def cables() -> Iterator[Cables]:
    """Make them, also if a bench that was killed has left its own, and take them down."""
    names = (PUBLIC_END, RELAY, INSIDE_END)
    _remove(*names)
    try:
        for namespace in names:
            create(namespace)
            run_in(namespace, _silence)
        public, public_end = run_in(RELAY, lambda: _cable("public", PUBLIC_END))
        inside, inside_end = run_in(RELAY, lambda: _cable("inside", INSIDE_END))
        yield Cables(public, inside, public_end, inside_end)
    finally:
        _remove(*names)


def _silence() -> None:
    """No IPv6 of the kernel's own: its router solicitations would be counted."""
    for place in ("all", "default"):
        Path(f"/proc/sys/net/ipv6/conf/{place}/disable_ipv6").write_text("1")


def _cable(name: str, there: str) -> tuple[int, int]:
    """Of the relay's namespace, to *there*; the interfaces at both ends."""
    with IPRoute() as netlink, (RUN_DIR / there).open() as namespace:
        netlink.link(
            "add", ifname=name, kind="veth", peer={"ifname": "end", "net_ns_fd": namespace.fileno()}
        )
        (here,) = netlink.link_lookup(ifname=name)
        netlink.link("set", index=here, state="up")
    return here, run_in(there, _raise)


def _raise() -> int:
    with IPRoute() as netlink:
        (end,) = netlink.link_lookup(ifname="end")
        netlink.link("set", index=end, state="up")
        return int(end)


def _remove(*namespaces: str) -> None:
    for namespace in namespaces:
        with suppress(FileNotFoundError):
            netns.remove(namespace)


@contextmanager
def kept_ready(programs: Sequence[int]) -> Iterator[None]:
    """Keep these programs on interfaces that nothing ever comes in by.

    The kernel calls XDP programs through a dispatcher that it patches when one becomes used or
    unused, which takes it some 20 ms, and each test run of a program that is on no interface does
    both.
    """
    _remove(_READY)
    try:
        create(_READY)
        run_in(_READY, lambda: _keep(programs))
        yield
    finally:
        _remove(_READY)


def _keep(programs: Sequence[int]) -> None:
    with IPRoute() as netlink:
        for number, program in enumerate(programs):
            name = f"ready{number}"
            netlink.link("add", ifname=name, kind="veth", peer={"ifname": f"{name}-end"})
            (ifindex,) = netlink.link_lookup(ifname=name)
            _set_program(netlink, ifindex, program, _FLAG_GENERIC)


def put(namespace: str, ifindex: int, program: int) -> None:
    """Attach an XDP program natively, in place of another; -1 takes it off."""

    def attach() -> None:
        with IPRoute() as netlink:
            _set_program(netlink, ifindex, program, _FLAG_NATIVE)

    run_in(namespace, attach)


def _set_program(netlink: IPRoute, ifindex: int, program: int, flags: int) -> None:
    attributes = [("IFLA_XDP_FD", program), ("IFLA_XDP_FLAGS", flags)]
    netlink.link("set", index=ifindex, xdp={"attrs": attributes})


def arrived(namespace: str, ifindex: int) -> int:
    """Packets that have reached an interface's XDP program so far."""

    def ask() -> int:
        with IPRoute() as netlink:
            statistics = netlink.get_links(ifindex)[0].get_attr("IFLA_STATS64")
        return int(statistics["rx_packets"])

    return run_in(namespace, ask)
