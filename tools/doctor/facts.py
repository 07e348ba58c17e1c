"""What `shunt doctor` knows of a host when it judges: facts, and no judgement.

None stands for what could not be seen; what is not there is an empty value or False.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from loader.capabilities import Capability
from loader.maps import DEFAULT_PINS, Interface
from loader.types import Mode

__all__ = [
    "Address",
    "AgentFacts",
    "Bcc",
    "Channels",
    "Facts",
    "HostFacts",
    "InterfaceFacts",
    "Loaded",
    "NetworkFacts",
    "Offload",
    "Peer",
    "Plan",
    "RelayFacts",
    "Socket",
    "Trial",
    "Xdp",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bcc:
    """BCC as the interpreter that compiles would import it. *module*: the package's folder, ""
    if there is none; *genuine*: that it is the BPF Compiler Collection and not PyPI's `bcc`;
    *library*: that the linker finds libbcc.so.0."""

    module: str
    genuine: bool
    version: str
    library: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class HostFacts:
    """The kernel, this process and what is installed.

    *jit*, *jit_harden*, *unprivileged_bpf*: the sysctls. *memlock*: soft RLIMIT_MEMLOCK in bytes,
    -1 for unlimited. *capabilities*: effective ones. *steal*: share of CPU
    time since boot that the hypervisor gave to others.
    """

    release: str
    kernel: tuple[int, int]
    machine: str
    page: int
    cpus: int
    uid: int
    capabilities: frozenset[Capability]
    btf: bool
    jit: int | None
    jit_harden: int | None
    unprivileged_bpf: int | None
    memlock: int
    bpffs: bool
    bpffs_writable: bool
    bcc: Bcc
    headers: Mapping[str, bool]
    clocksource: str
    synchronised: bool | None
    steal: float


@dataclass(frozen=True, slots=True)
class Offload:
    """An offload, in ethtool's words: on or off, and *fixed* if nobody can change that."""

    on: bool
    fixed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Channels:
    """Queues, as `ethtool -l` shows them."""

    rx: int = 0
    tx: int = 0
    combined: int = 0
    max_rx: int = 0
    max_tx: int = 0
    max_combined: int = 0


@dataclass(frozen=True, slots=True)
class Xdp:
    """The XDP program that an interface carries; *name* None if the kernel does not tell us."""

    mode: Mode = Mode.DETACHED
    id: int = 0
    name: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """A veth's other end, in whatever network namespace (*where*: "" if in this one)."""

    name: str
    where: str
    mtu: int
    xdp: Xdp
    offloads: Mapping[str, Offload]
    channels: Channels | None


@dataclass(frozen=True, slots=True, kw_only=True)
class InterfaceFacts:
    """An interface.

    *features*: bits of `enum netdev_xdp_act`, None before Linux 6.3, which does not tell.
    *virtio*: numbers of the feature bits that driver and device agreed on, None of other devices.
    *below*: a VLAN interface's parent; *vlans*: VLAN interfaces on this one that the relay uses.
    *rp_filter*, *arp_ignore*: the interface's own values, before `conf.all` is counted in.
    *irq_cpus*: CPUs that serve its receive interrupts, None if that cannot be told.
    """

    name: str
    ifindex: int
    kind: str = ""
    driver: str = ""
    up: bool = True
    carrier: bool = True
    mtu: int = 1500
    xdp: Xdp = field(default_factory=Xdp)
    features: int | None = None
    offloads: Mapping[str, Offload] | None = None
    channels: Channels | None = None
    virtio: frozenset[int] | None = None
    peer: Peer | None = None
    below: str = ""
    vlans: tuple[str, ...] = ()
    rp_filter: int = 0
    arp_ignore: int = 0
    irq_cpus: frozenset[int] | None = None


@dataclass(frozen=True, slots=True)
class Address:
    """An address on an interface. *tentative* and *duplicate*: of IPv6's own detection."""

    interface: str
    address: str
    prefix: int
    tentative: bool = False
    duplicate: bool = False


@dataclass(frozen=True, slots=True)
class Socket:
    """A bound UDP socket of this network namespace; the unspecified address for any."""

    address: str
    port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkFacts:
    """The network namespace: addresses, UDP sockets, sysctls. *ephemeral*: first and last port
    of `ip_local_port_range`; *reserved*: ranges that the kernel leaves out of it."""

    addresses: tuple[Address, ...] = ()
    sockets: tuple[Socket, ...] = ()
    ephemeral: tuple[int, int] = (32768, 60999)
    reserved: tuple[tuple[int, int], ...] = ()
    rp_filter: int = 0
    arp_ignore: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What the relay is to be, or is: of a configuration, or of the pinned maps. *vips*: address
    and port; *ports*: first and last inside port."""

    interfaces: tuple[str, ...] = ()
    vips: tuple[tuple[str, int], ...] = ()
    inside_addresses: tuple[str, ...] = ()
    ports: tuple[int, int] = (10000, 32767)


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentFacts:
    """What became of asking the agent at its socket: *reached*, *ready*, and *why* not. *there*:
    whether the socket exists; *forbidden*: the agent does not talk to this user."""

    socket: str
    there: bool = False
    reached: bool = False
    forbidden: bool = False
    ready: bool = False
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A loaded relay, as its maps show it.

    *program*: the pinned one's id. *interfaces*: as the agent last wrote them. *room*: slots that
    can be opened; *unresolved*: ids and addresses of transceivers without a next hop. *dropped*:
    packets by reason since the maps were made, *dropping*: how many more within a second.
    """

    program: int
    interfaces: tuple[Interface, ...]
    plan: Plan
    flows: int
    room: int
    routes: int
    routes_room: int
    transceivers: int
    transceivers_room: int
    unresolved: tuple[tuple[str, str], ...] = ()
    dropped: Mapping[str, int] = field(default_factory=dict)
    dropping: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayFacts:
    """Whether a relay is loaded. *versions*: of the maps' shape, as pinned; None if the folder
    may not be read. *programs*: ids of all that its agents have pinned. *why*: what kept us from
    reading maps that are there."""

    pins: Path = DEFAULT_PINS
    versions: tuple[str, ...] | None = ()
    programs: frozenset[int] = frozenset()
    loaded: Loaded | None = None
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """What became of loading and attaching the program in a namespace of its own. *trouble* and
    *cure*: what went wrong; *why_not*: why it was not even tried. *instructions*: that the verifier
    went through for the entry; *bytes* of its machine code; *mode*: in which a veth took it."""

    why_not: str = ""
    trouble: str = ""
    cure: str = ""
    instructions: int = 0
    bytes: int = 0
    mode: Mode = Mode.DETACHED
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """All of it. *missing*: names of interfaces that were asked for and are not here."""

    host: HostFacts
    network: NetworkFacts = field(default_factory=NetworkFacts)
    interfaces: tuple[InterfaceFacts, ...] = ()
    missing: tuple[str, ...] = ()
    plan: Plan = field(default_factory=Plan)
    relay: RelayFacts = field(default_factory=RelayFacts)
    agent: AgentFacts | None = None
    trial: Trial | None = None

    def interface(self, name: str) -> InterfaceFacts | None:
        """The interface of that name, if it was looked at."""
        return next((each for each in self.interfaces if each.name == name), None)
