"""Every key of the agent's configuration, once: what it means, how it is written, what it fills.

The reading (`configfile`), the example file and the documentation (`tools.configdocs`) go by this
table; defaults are `AgentConfig`'s own. No I/O, but that a user's name is looked up.
"""

import dataclasses
import json
import pwd
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loader.addresses import endpoint, host_address, prefix
from loader.client import Vip
from loader.config import LOG_FORMATS, LOG_LEVELS, AgentConfig, TcpConfig

__all__ = ["KEYS", "SECTIONS", "VARIABLES", "Key", "Kind", "config", "quoted"]

_MAX_UID = (1 << 32) - 2  # the last is "no user" to the kernel


@dataclass(frozen=True, slots=True)
class Kind:
    """How a value is written. *form* says it to people; *types* are TOML's for it, or for each
    element if it is a list (*many*). *read* makes the value of what is written, or raises
    ValueError with the rest of a sentence; *write* is the way back. Unless it is *quotable*, no
    message repeats it: somebody may have put a secret where its file's path should be."""

    form: str
    types: tuple[type, ...]
    read: Callable[[Any], Any]
    write: Callable[[Any], Any] = lambda value: value
    many: bool = False
    quotable: bool = True


@dataclass(frozen=True, slots=True)
class Key:
    """A key: its *name* with its section's before it, the *fields* of AgentConfig that it fills,
    and what it is for, in Markdown. *live*: a reload can change it. *required*: in its section
    there is no default for it. *option*: of `shunt agent run`, which wins."""

    name: str
    kind: Kind
    fields: tuple[str, ...]
    text: str
    live: bool
    required: bool = False
    option: str = ""
    example: str = ""

    @property
    def section(self) -> str:
        """`api.tcp` of `api.tcp.listen`."""
        return self.name.rpartition(".")[0]

    @property
    def last(self) -> str:
        """`listen` of `api.tcp.listen`."""
        return self.name.rpartition(".")[2]

    @property
    def variable(self) -> str:
        """The environment variable that overrides it."""
        return f"SHUNT_AGENT_{self.name.upper().replace('.', '_')}"

    @property
    def default(self) -> Any:
        """What it is when it is not given; None if there is no default."""
        values = tuple(_DEFAULTS.get(field) for field in self.fields)
        return values[0] if len(values) == 1 or values[0] is None else values

    def value(self, of: AgentConfig) -> Any:
        """What a configuration has for it; None if nothing."""
        values = tuple(_field(of, field) for field in self.fields)
        if self.section == "api.tcp" and values[0] is False:
            return None  # what is off has nothing to say of whether there is a server at all
        return values[0] if len(values) == 1 or values[0] is None else values

    def written(self, value: Any) -> Any:
        """The value as JSON and TOML have it: text, a number, a truth value, or a list of them."""
        if value is None:
            return None
        if self.kind.many:
            elements = sorted(value) if isinstance(value, frozenset) else value
            return [self.kind.write(one) for one in elements]
        return self.kind.write(value)


def quoted(text: object) -> str:
    """Text of others in a message: in quotes, without anything that a terminal would obey."""
    shown = "".join(
        c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode()
        for c in json.dumps(text, ensure_ascii=False)
    )
    return shown if len(shown) <= 80 else f'{shown[:76]}…"'


# How values are written.


def _interface(text: str) -> str:
    raw = text.encode("utf-8", "surrogateescape")
    if (
        not 1 <= len(raw) <= 15
        or text in (".", "..")
        or any(c in "/:" or c.isspace() for c in text)
    ):
        raise ValueError("is no interface's name")
    return text


def _endpoint(text: str) -> tuple[str, int]:
    address, colon, port = text.rpartition(":")
    if bracketed := address.startswith("[") and address.endswith("]"):
        address = address[1:-1]
    if (
        not (colon and port.isascii() and port.isdecimal() and len(port) <= 5)
        or not 1 <= int(port) <= 65535
        or bracketed != (":" in address)
    ):
        raise ValueError("is not ADDR:PORT, or [IPV6]:PORT")
    return address, int(port)


def _vip(text: str) -> Vip:
    address, port = _endpoint(text)
    return Vip(str(host_address(address)), port)


def _ports(text: str) -> tuple[int, int]:
    first, dash, last = text.partition("-")
    if not (dash and all(p.isascii() and p.isdecimal() and len(p) <= 5 for p in (first, last))):
        raise ValueError("is not FIRST-LAST, as 10000-32767")
    return int(first), int(last)


def _path(text: str) -> Path:
    if not text.startswith("/") or not text.isprintable():
        raise ValueError("is not an absolute path")
    return Path(text)


def _user(name: str | int) -> int:
    if isinstance(name, int):
        if not 0 <= name <= _MAX_UID:
            raise ValueError("is no user's number")
        return name
    if name.isascii() and name.isdecimal() and len(name) <= 10:
        return _user(int(name))
    try:
        return pwd.getpwnam(name).pw_uid
    except (KeyError, ValueError):
        raise ValueError("is no user of this host") from None


def _one_of(choices: Iterable[str]) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in choices:
            raise ValueError(f"is not one of {', '.join(choices)}")
        return text

    return read


def _same(value: Any) -> Any:
    return value


_INTERFACES = Kind("a list of interfaces", (str,), _interface, many=True)
_VIPS = Kind(
    "a list of ADDR:PORT", (str,), _vip, lambda vip: endpoint(vip.address, vip.port), many=True
)
_ADDRESSES = Kind(
    "a list of addresses", (str,), lambda text: str(host_address(text)), str, many=True
)
_PREFIXES = Kind("a list of prefixes", (str,), lambda text: str(prefix(text)), many=True)
_USERS = Kind("a list of users, by name or number", (str, int), _user, many=True)
_PORTS = Kind("FIRST-LAST, as text", (str,), _ports, lambda ports: f"{ports[0]}-{ports[1]}")
_LISTEN = Kind("ADDR:PORT, as text", (str,), _endpoint, lambda where: endpoint(*where))
_PATH = Kind("a path, as text", (str,), _path, str, quotable=False)
_SWITCH = Kind("true or false", (bool,), _same)
_NUMBER = Kind("a whole number", (int,), _same)

SECTIONS: Mapping[str, str] = {
    "relay": "The relay's interfaces and addresses.",
    "api": "The API on its Unix socket.",
    "api.tcp": "The API over TCP as well. Without this section there is none.",
    "transceivers": "What transceivers may have.",
    "log": "What the agent logs, to stderr.",
}
"""Every section and what it is about."""

KEYS: tuple[Key, ...] = (
    Key(
        "relay.public",
        _INTERFACES,
        ("public",),
        "Interfaces by which clients' packets come in. VLAN interfaces too; an interface may be "
        "both public and inside; 16 in all.",
        live=False,
        required=True,
        option="--public",
        example='["eth0"]',
    ),
    Key(
        "relay.inside",
        _INTERFACES,
        ("inside",),
        "Interfaces by which transceivers' packets come in.",
        live=False,
        required=True,
        option="--inside",
        example='["eth1"]',
    ),
    Key(
        "relay.vips",
        _VIPS,
        ("vips",),
        "Public addresses and UDP ports that clients send to, up to 16, IPv4 and IPv6.",
        live=False,
        required=True,
        option="--vip",
        example='["203.0.113.5:3478", "[2001:db8::5]:3478"]',
    ),
    Key(
        "relay.inside_addresses",
        _ADDRESSES,
        ("inside_addresses",),
        "Addresses of the relay that only transceivers see, up to 16 of a family, each with "
        "65,536 slots. The first of each family share their slots, then the second, and so on.",
        live=False,
        required=True,
        option="--inside-address",
        example='["10.0.0.1", "fd00::1"]',
    ),
    Key(
        "relay.inside_ports",
        _PORTS,
        ("first_port", "last_port"),
        "Ports of the inside addresses that are slots, within 1024 to 65535; by default below the "
        "kernel's ephemeral ports.",
        live=False,
        option="--inside-ports",
    ),
    Key(
        "relay.pins",
        _PATH,
        ("pins",),
        "Where in bpffs the program and its maps are pinned.",
        live=False,
        option="--pins",
    ),
    Key(
        "relay.reattach",
        _SWITCH,
        ("reattach",),
        "Whether the program is put back on an interface that has lost it, for instance by "
        "somebody else's `ip link set xdp off`. That it was lost is reported in any case.",
        live=True,
    ),
    Key(
        "api.socket",
        _PATH,
        ("socket",),
        "The Unix socket. The caller's user decides what is answered, not the file's mode.",
        live=False,
        option="--socket",
    ),
    Key(
        "api.users",
        _USERS,
        ("uids",),
        "Users who may use the socket, besides root and the agent's own.",
        live=True,
        option="--uid",
    ),
    Key(
        "api.tcp.listen",
        _LISTEN,
        ("tcp.address", "tcp.port"),
        "Where it listens. Without TLS only a loopback address will do, as the token would be "
        "anybody's on the way, unless `plaintext` is set.",
        live=False,
        required=True,
        example='"10.0.0.1:8443"',
    ),
    Key(
        "api.tcp.token_file",
        _PATH,
        ("tcp.token_file",),
        "A file with bearer tokens, one a line; every request must carry one of them. Others than "
        "its user and group must not be able to read it. A reload reads it again, whatever its "
        "path.",
        live=True,
        required=True,
        example='"/etc/shunt/token"',
    ),
    Key(
        "api.tcp.certificate",
        _PATH,
        ("tcp.certificate",),
        "The TLS certificate with its chain, PEM. A reload reads it again, whatever its path.",
        live=True,
        example='"/etc/shunt/tls.crt"',
    ),
    Key(
        "api.tcp.key",
        _PATH,
        ("tcp.key",),
        "The certificate's private key, PEM.",
        live=True,
        example='"/etc/shunt/tls.key"',
    ),
    Key(
        "api.tcp.plaintext",
        _SWITCH,
        ("tcp.plaintext",),
        "Whether it may listen without TLS on an address that is not loopback: only where nobody "
        "else is on that network.",
        live=False,
        example="false",
    ),
    Key(
        "transceivers.prefixes",
        _PREFIXES,
        ("transceiver_prefixes",),
        "Networks that transceivers' addresses must be in. With none, any address will do for "
        "which the relay has an inside address of the same family.",
        live=True,
    ),
    Key(
        "transceivers.max_routes",
        _NUMBER,
        ("max_routes",),
        "Routes that one transceiver may hold at most, however large its capacity.",
        live=True,
    ),
    Key(
        "log.level",
        Kind(f"one of {', '.join(LOG_LEVELS)}", (str,), _one_of(LOG_LEVELS)),
        ("log_level",),
        "The least level that is logged. From `info` on, no line has a client's address in it.",
        live=True,
    ),
    Key(
        "log.format",
        Kind(f"one of {', '.join(LOG_FORMATS)}", (str,), _one_of(LOG_FORMATS)),
        ("log_format",),
        "Lines for people, or one JSON object a line.",
        live=True,
    ),
)
"""Every key, in the order in which files have them."""

VARIABLES: Mapping[str, Key] = {key.variable: key for key in KEYS}
"""Keys by the environment variables that override them."""

_DEFAULTS: dict[str, Any] = {
    field.name: field.default
    if field.default_factory is dataclasses.MISSING
    else field.default_factory()
    for field in dataclasses.fields(AgentConfig)
    if field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
}


def config(values: Mapping[str, Any], *, config_file: Path | None = None) -> AgentConfig:
    """The configuration of values by key; keys that are not there have their defaults.

    Raises Impossible for what cannot work.
    """
    fields: dict[str, Any] = {"config_file": config_file}
    for key in KEYS:
        if key.name in values:
            value = values[key.name]
            fields.update(zip(key.fields, (value,) if len(key.fields) == 1 else value, strict=True))
    fields["uids"] = frozenset(fields.get("uids", ()))
    tcp = {name[4:]: fields.pop(name) for name in list(fields) if name.startswith("tcp.")}
    return AgentConfig(**fields, tcp=TcpConfig(**tcp) if tcp else None)


def _field(of: AgentConfig, name: str) -> Any:
    value: Any = of
    for part in name.split("."):
        value = None if value is None else getattr(value, part)
    return value
