"""What an operator writes, what it comes to, and every way to get it wrong."""

import os
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loader.client import Vip
from loader.config import AgentConfig, TcpConfig
from loader.configfile import BadConfig, Fault, Sources, reload
from loader.configkeys import KEYS, SECTIONS, config

RELAY = """\
[relay]
public = ["eth0"]
inside = ["eth1"]
vips = ["203.0.113.5:3478"]
inside_addresses = ["10.0.0.1"]
"""
TCP = TcpConfig(address="127.0.0.1", port=8443, token_file=Path("/t"))

Read = Callable[..., AgentConfig]
Faults = Callable[..., list[str]]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "agent.toml"


@pytest.fixture
def read(path: Path) -> Read:
    """Read a file of that text."""

    def read(text: str | bytes = RELAY, **sources: Any) -> AgentConfig:
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return Sources(file=path, **sources).read().config

    return read


@pytest.fixture
def faults(read: Read, path: Path) -> Faults:
    """What is wrong with a file of that text, a line for each, with `agent.toml` for its path."""

    def faults(text: str | bytes = RELAY, **sources: Any) -> list[str]:
        with pytest.raises(BadConfig) as error:
            read(text, **sources)
        return [str(fault).replace(str(path), "agent.toml") for fault in error.value.faults]

    return faults


# What is right.


def test_a_file_with_nothing_but_what_it_must_have(read: Read, path: Path) -> None:
    assert read() == AgentConfig(
        public=("eth0",),
        inside=("eth1",),
        vips=(Vip("203.0.113.5", 3478),),
        inside_addresses=("10.0.0.1",),
        config_file=path,
    )


def test_a_file_with_everything(read: Read, path: Path) -> None:
    text = """\
        relay.public = ["eth0", "eth0.100"]
        relay.inside = ["eth1"]
        relay.vips = ["203.0.113.5:3478", "[2001:DB8::5]:3479"]
        relay.inside_addresses = ["10.0.0.1", "fd00:0::1"]
        relay.inside_ports = "20000-30000"
        relay.pins = "/sys/fs/bpf/elsewhere"
        relay.reattach = true
        [api]
        socket = "/run/elsewhere.sock"
        users = [1001, "daemon", "1002"]
        tcp = { listen = "[::]:8443", token_file = "/t", certificate = "/c", "key" = '/k' }
        [transceivers]
        prefixes = ["10.0.0.0/24", "FD00::/64"]
        max_routes = 100
        [log]
        level = "debug"
        format = "json"
        """

    assert read(text) == AgentConfig(
        public=("eth0", "eth0.100"),
        inside=("eth1",),
        vips=(Vip("203.0.113.5", 3478), Vip("2001:db8::5", 3479)),
        inside_addresses=("10.0.0.1", "fd00::1"),
        first_port=20000,
        last_port=30000,
        pins=Path("/sys/fs/bpf/elsewhere"),
        reattach=True,
        socket=Path("/run/elsewhere.sock"),
        uids=frozenset({1001, 1002, 1}),
        tcp=TcpConfig(
            address="::",
            port=8443,
            token_file=Path("/t"),
            certificate=Path("/c"),
            key=Path("/k"),
        ),
        transceiver_prefixes=("10.0.0.0/24", "fd00::/64"),
        max_routes=100,
        log_level="debug",
        log_format="json",
        config_file=path,
    )


def test_an_option_wins_over_the_environment_and_that_over_the_file(path: Path) -> None:
    path.write_text(f'{RELAY}reattach = true\n[log]\nlevel = "error"\n')

    read = Sources(
        file=path,
        environment={
            "SHUNT_AGENT_RELAY_PUBLIC": "eth7",
            "SHUNT_AGENT_RELAY_VIPS": "198.18.0.1:3478, [2001:db8:18::1]:3478",
            "SHUNT_AGENT_LOG_LEVEL": "debug",
            "HOME": "/",
            "SHUNT_API_KEY": "not the agent's",
        },
        options={"relay.public": ("eth9",)},
    ).read()

    assert read.config.public == ("eth9",)
    assert read.config.vips == (Vip("198.18.0.1", 3478), Vip("2001:db8:18::1", 3478))
    assert read.config.log_level == "debug"
    assert {given.key.name: str(given.origin) for given in read.values} == {
        **dict.fromkeys((key.name for key in KEYS), "default"),
        "relay.public": "--public",
        "relay.inside": f"{path}:3",
        "relay.vips": "SHUNT_AGENT_RELAY_VIPS",
        "relay.inside_addresses": f"{path}:5",
        "relay.reattach": f"{path}:6",
        "log.level": "SHUNT_AGENT_LOG_LEVEL",
    }


def test_every_key_can_be_given_by_its_variable(path: Path) -> None:
    path.touch()
    environment = {
        "SHUNT_AGENT_RELAY_PUBLIC": "eth0,eth2",
        "SHUNT_AGENT_RELAY_INSIDE": "eth1",
        "SHUNT_AGENT_RELAY_VIPS": "198.18.0.1:3478",
        "SHUNT_AGENT_RELAY_INSIDE_ADDRESSES": "10.0.0.1",
        "SHUNT_AGENT_RELAY_INSIDE_PORTS": "20000-20063",
        "SHUNT_AGENT_RELAY_PINS": "/pins",
        "SHUNT_AGENT_RELAY_REATTACH": "true",
        "SHUNT_AGENT_API_SOCKET": "/s",
        "SHUNT_AGENT_API_USERS": "daemon,7",
        "SHUNT_AGENT_API_TCP_LISTEN": "10.0.0.1:8443",
        "SHUNT_AGENT_API_TCP_TOKEN_FILE": "/t",
        "SHUNT_AGENT_API_TCP_CERTIFICATE": "/c",
        "SHUNT_AGENT_API_TCP_KEY": "/k",
        "SHUNT_AGENT_API_TCP_PLAINTEXT": "true",
        "SHUNT_AGENT_TRANSCEIVERS_PREFIXES": "10.0.0.0/8",
        "SHUNT_AGENT_TRANSCEIVERS_MAX_ROUTES": "10",
        "SHUNT_AGENT_LOG_LEVEL": "error",
        "SHUNT_AGENT_LOG_FORMAT": "json",
    }
    assert set(environment) == {key.variable for key in KEYS}

    read = Sources(file=path, environment=environment).read()

    assert {str(given.origin) for given in read.values} == set(environment)
    for given_ in read.values:
        assert given_.value != given_.key.default, given_.key.name
    assert read.config.uids == {1, 7}


def test_an_empty_variable_is_an_empty_list(read: Read) -> None:
    text = f'{RELAY}[transceivers]\nprefixes = ["10.0.0.0/8"]'

    config = read(text, environment={"SHUNT_AGENT_TRANSCEIVERS_PREFIXES": ""})

    assert config.transceiver_prefixes == ()


def test_without_the_default_file_options_are_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loader.configfile.DEFAULT_FILE", Path("/nowhere/agent.toml"))
    options = {
        "relay.public": ("eth0",),
        "relay.inside": ("eth1",),
        "relay.vips": (Vip("198.18.0.1", 3478),),
        "relay.inside_addresses": ("10.0.0.1",),
    }

    assert Sources(options=options).read().config.config_file is None


# What is wrong, and where.


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        (
            RELAY.replace("inside_addresses", "inside_adresses"),
            ['5: unknown key "inside_adresses" in [relay]; did you mean "inside_addresses"?'],
        ),
        (
            f"{RELAY}inside_adresses = ['ten']\n[rely]\nvips = 7\n",
            [
                '6: unknown key "inside_adresses" in [relay]; did you mean "inside_addresses"?',
                "7: unknown section [rely]; did you mean [relay]?",
            ],
        ),
        (
            RELAY.replace("[relay]", "[rely]"),
            ["1: unknown section [rely]; did you mean [relay]?"],
        ),
        (
            f'{RELAY}"pin s" = 1\nzzz = 2\n',
            [
                '6: unknown key "pin s" in [relay]; did you mean "pins"?',
                "6: pins in [relay] must be a path, as text, not a number",
                '7: unknown key "zzz" in [relay]',
            ],
        ),
        (
            f"{RELAY}socket = '/s'\n",
            ['6: unknown key "socket" in [relay]; did you mean "socket" in [api]?'],
        ),
        (
            f"{RELAY}[api]\nuids = [7]\n",
            ['7: unknown key "uids" in [api]; did you mean "users" in [api]?'],
        ),
        (
            f"{RELAY}[tcp]\nlisten = '[::1]:1'\ntoken_file = '/t'\n",
            ["6: unknown section [tcp]; did you mean [api.tcp]?"],
        ),
        (
            f"log_level = 'info'\n{RELAY}",
            ['1: unknown key "log_level"; did you mean "level" in [log]?'],
        ),
        (
            f"{RELAY}[what.ever]\na = 1\n['a\"b']\n",
            ["6: unknown section [what]", '8: unknown section ["a\\"b"]'],
        ),
        (
            f'{RELAY}[log]\nlevel.x = "info"',
            ["7: level in [log] must be one of debug, info, warning, error, not a table"],
        ),
        (
            f'log = "json"\n{RELAY}',
            ["1: [log] must be a section, not text"],
        ),
        (f"{RELAY}[[api]]\nusers = [7]\n", ["6: [api] must be a section, not a list"]),
        (
            f"{RELAY}[api.tcp]\nlisten = '127.0.0.1:8443'\n",
            ["6: token_file in [api.tcp] is missing"],
        ),
        (
            f"{RELAY}[api]\ntcp.token_file = '/t'\n",
            ["7: listen in [api.tcp] is missing"],
        ),
        (
            f"{RELAY}[api.tcp]\n",
            ["6: listen in [api.tcp] is missing", "6: token_file in [api.tcp] is missing"],
        ),
        (
            "# nothing\n[relay]\n",
            [
                f"2: {name} in [relay] is missing"
                for name in ("public", "inside", "vips", "inside_addresses")
            ],
        ),
        (
            f"{RELAY}[transceivers]\nprefixes = [ '10.0.0.0/8',\n'10.0.0.9/24', '11.0.0.0/8',\n 7]",
            [
                '8: "10.0.0.9/24" has bits beyond its length: give 10.0.0.0/24',
                "9: prefixes in [transceivers] must be a list of prefixes: a number is among them",
            ],
        ),
        (f"{RELAY}reattach = 1", ["6: reattach in [relay] must be true or false, not a number"]),
        (
            f"{RELAY}[transceivers]\nmax_routes = true",
            ["7: max_routes in [transceivers] must be a whole number, not true or false"],
        ),
        (
            f"{RELAY}[transceivers]\nmax_routes = 1e3",
            ["7: max_routes in [transceivers] must be a whole number, not one with a fraction"],
        ),
        (
            f"{RELAY}[transceivers]\nmax_routes = 0",
            ["7: a transceiver's routes are limited to 1 to 1048576"],
        ),
        (
            f"{RELAY}[log]\nformat = 1979-05-27",
            ["7: format in [log] must be one of text, json, not a date or time"],
        ),
        (f"{RELAY}[log]\nlevel = 'loud'", ['7: "loud" is not one of debug, info, warning, error']),
        (f"{RELAY}inside_ports = '1-2-3'", ['6: "1-2-3" is not FIRST-LAST, as 10000-32767']),
        (
            f"{RELAY}inside_ports = '80-90'",
            ["6: the inside ports must be a range within 1024 to 65535"],
        ),
        (f"{RELAY}[api]\nsocket = 'agent.sock'", ["7: socket in [api] is not an absolute path"]),
        (
            f"{RELAY}[api]\nusers = ['nobody at all',\n-1]",
            ['7: "nobody at all" is no user of this host', "8: -1 is no user's number"],
        ),
        (RELAY.replace("eth0", "eth0/1"), ['2: "eth0/1" is no interface\'s name']),
        (RELAY.replace(":3478", ""), ['4: "203.0.113.5" is not ADDR:PORT, or [IPV6]:PORT']),
        (
            RELAY.replace("203.0.113.5", "2001:db8::5"),
            ['4: "2001:db8::5:3478" is not ADDR:PORT, or [IPV6]:PORT'],
        ),
        (
            RELAY.replace("203.0.113.5", "[1.2.3.4]"),
            ['4: "[1.2.3.4]:3478" is not ADDR:PORT, or [IPV6]:PORT'],
        ),
        (RELAY.replace(":3478", ":0"), ['4: "203.0.113.5:0" is not ADDR:PORT, or [IPV6]:PORT']),
        (
            RELAY.replace("203.0.113.5", "224.0.0.5"),
            ['4: "224.0.0.5:3478" is a multicast address: give one that can be routed'],
        ),
        (RELAY.replace('["eth0"]', "[]"), ["2: the relay needs a public interface"]),
        (
            RELAY.replace('["10.0.0.1"]', '["10.0.0.1",\n"10.0.0.2", "10.0.0.1"]'),
            ["6: the inside address 10.0.0.1 is given twice"],
        ),
        (
            RELAY.replace("203.0.113.5:3478", "10.0.0.1:20000"),
            ["4: the VIP 10.0.0.1:20000 is among the inside ports 10000-32767 of the same address"],
        ),
        (
            f"{RELAY}[api.tcp]\nlisten = '10.0.0.1:8443'\ntoken_file = '/t'\n",
            ["7: the API would send its token in the clear: 10.0.0.1 is not a loopback address"],
        ),
        (
            f"{RELAY}[api.tcp]\nlisten = '127.0.0.1:1'\ntoken_file = '/t'\n\nkey = '/k'",
            ["10: the API has a TLS key, but no certificate"],
        ),
        (
            f"{RELAY}[transceivers]\nprefixes = ['10.0.0.0/8', 'fd00::/8']",
            ["7: the prefix fd00::/8 is IPv6, but the relay has no such inside address"],
        ),
    ],
)
def test_a_fault_is_told_with_its_line(faults: Faults, text: str, wrong: list[str]) -> None:
    assert faults(text) == [f"agent.toml:{one}" for one in wrong]


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("[relay]\npublic [", "2: no TOML: expected '=' after a key in a key/value pair"),
        ("[relay]\npublic = [\n1,\n", "3: no TOML: invalid value"),
        ('a = 1\nb = "x\nc = 2', "2: no TOML: illegal character '\\n'"),
        ("a = 1\r\nb = \rc", "2: no TOML: invalid value"),
        (RELAY + "vips = []\n", '6: "relay.vips" is given again; it was in line 4 already'),
        (RELAY + "[log]\n[relay]\n", '7: "relay" is given again; it was in line 1 already'),
        (b"a = 1\nb = '\xff'\n", "2: not UTF-8"),
        ("a = " + "[" * 5000, "nested too deeply"),
        ("a = " + "1" * 5000, "Exceeds the limit (4300 digits)"),
    ],
)
def test_what_is_no_toml_is_told_with_its_line(
    faults: Faults, text: str | bytes, wrong: str
) -> None:
    (fault,) = faults(text)

    assert fault.startswith("agent.toml:")
    assert wrong in fault


def test_all_faults_come_at_once_those_of_the_file_first(faults: Faults) -> None:
    text = RELAY.replace("eth0", "eth 0").replace("10.0.0.1", "ten") + "reatach = true\n"

    assert faults(
        text,
        environment={
            "SHUNT_AGENT_RELAY_VIP": "x",
            "SHUNT_AGENT_TRANSCEIVERS_PREFIXES": "10.0.0.0/8,10.0.0.0/8",
            "SHUNT_AGENT_TRANSCEIVERS_MAX_ROUTES": "many",
        },
    ) == [
        'agent.toml:2: "eth 0" is no interface\'s name',
        'agent.toml:5: "ten" is no IP address: give an IPv4 or IPv6 address, not a name',
        'agent.toml:6: unknown key "reatach" in [relay]; did you mean "reattach"?',
        "SHUNT_AGENT_RELAY_VIP: unknown variable; did you mean SHUNT_AGENT_RELAY_VIPS?",
        "SHUNT_AGENT_TRANSCEIVERS_MAX_ROUTES: the value must be a whole number, not text",
        "SHUNT_AGENT_TRANSCEIVERS_PREFIXES: the prefix 10.0.0.0/8 is given twice",
    ]


def test_a_fault_of_an_option_names_it(faults: Faults) -> None:
    options = {"relay.vips": (Vip("198.18.0.1", 1), Vip("198.18.0.1", 1))}

    assert faults(options=options) == ["--vip: the VIP 198.18.0.1:1 is given twice"]


def test_a_broken_file_does_not_hide_what_else_is_wrong(faults: Faults) -> None:
    (syntax, variable) = faults("[", environment={"SHUNT_AGENT_LOG_LEVEL": "loud"})

    assert syntax.startswith("agent.toml:1: no TOML")
    assert variable.startswith('SHUNT_AGENT_LOG_LEVEL: "loud" is not one of')


def test_the_environment_of_a_pod_is_explained(read: Read) -> None:
    with pytest.raises(BadConfig) as error:
        read(environment={"SHUNT_AGENT_PORT_8443_TCP_ADDR": "10.0.0.7"})

    assert "Kubernetes" in error.value.cure


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda path: None, "No such file or directory"),
        (lambda path: path.mkdir(), "Is a directory"),
        (lambda path: path.symlink_to(path), "Too many levels"),
        (lambda path: path.write_bytes(b"#" * 300_000), "it is larger than 256 KiB"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_fault(
    path: Path, make: Callable[[Path], Any], why: str
) -> None:
    make(path)

    with pytest.raises(BadConfig) as error:
        Sources(file=path).read()

    (fault,) = error.value.faults
    assert str(fault).startswith(f"{path}: cannot be read: {why}")


def test_what_is_missing_says_every_way_to_give_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loader.configfile.DEFAULT_FILE", Path("/nowhere/agent.toml"))

    with pytest.raises(BadConfig) as error:
        Sources(options={"relay.inside": ("eth1",)}).read()

    fault = error.value.faults[0]
    assert str(fault) == "public in [relay] is missing"
    assert fault.cure == (
        'Give public = ["eth0"], SHUNT_AGENT_RELAY_PUBLIC or --public. '
        "There is no /nowhere/agent.toml."
    )


def test_with_nothing_at_all_the_file_is_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loader.configfile.DEFAULT_FILE", Path("/nowhere/agent.toml"))

    with pytest.raises(BadConfig, match=r"/nowhere/agent\.toml: there is no such file"):
        Sources().read()


@pytest.mark.parametrize(
    "text",
    [
        "[api.tcp]\ntoken = 'hunter2'",
        "[api.tcp]\ntoken_file = 'hunter2'",
        "[api.tcp]\ntoken_file = ['hunter2']",
        "[api]\ntcp = 'hunter2'",
        "[api.tcp]\nkey = '-----BEGIN PRIVATE KEY----- hunter2'",
    ],
)
def test_a_secret_in_the_wrong_place_is_not_repeated(read: Read, text: str) -> None:
    with pytest.raises(BadConfig) as error:
        read(
            f"{RELAY}{text}",
            environment={
                "SHUNT_AGENT_API_TCP_TOKEN": "hunter2",
                "SHUNT_AGENT_API_TCP_KEY": "hunter2",
            },
        )

    assert "hunter2" not in error.value.what + error.value.cure


def test_a_message_holds_nothing_that_a_terminal_would_obey(faults: Faults) -> None:
    (fault,) = faults(f'{RELAY}"\\u001b[2J\\u202e{"x" * 200}" = 1')

    assert fault.isprintable()
    assert len(fault) < 200


# Nothing is too strange.

VALUES = st.recursive(
    st.one_of(
        st.booleans(),
        st.integers(),
        st.text(max_size=8),
        st.sampled_from(["10.0.0.1", "[::1]:1", "1.2.3.4:5", "fd00::/8", "1-2", "/x", "info"]),
    ),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=2)
    ),
    max_leaves=5,
)
NAMES = st.one_of(
    st.sampled_from([*SECTIONS, *(key.last for key in KEYS), "tcp", "vip", "uids"]),
    st.text(max_size=6),
)


def toml(value: Any) -> str:
    """A value as TOML has it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return '"' + "".join(f"\\U{ord(c):08X}" for c in value) + '"'
    if isinstance(value, list):
        return f"[{', '.join(map(toml, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{toml(k)} = {toml(v)}' for k, v in value.items())}}}"
    return str(value)


def read_or_faults(text: str | bytes, environment: dict[str, str]) -> tuple[Fault, ...]:
    """The faults, of a file in memory: hypothesis asks too often for a disk."""
    file = os.memfd_create("agent.toml")
    try:
        os.write(file, text if isinstance(text, bytes) else text.encode())
        Sources(file=Path(f"/proc/self/fd/{file}"), environment=environment).read()
    except BadConfig as error:
        return error.faults
    finally:
        os.close(file)
    return ()


@settings(deadline=None, max_examples=50)
@given(
    st.dictionaries(NAMES, st.dictionaries(NAMES, VALUES, max_size=4) | VALUES, max_size=4),
    st.dictionaries(
        st.sampled_from([key.variable for key in KEYS]),
        st.text(st.characters(blacklist_categories=(), max_codepoint=0x20FF), max_size=8),
        max_size=2,
    ),
)
def test_any_document_is_taken_or_told_with_a_line(
    document: dict[str, Any], environment: dict[str, str]
) -> None:
    text = "\n".join(f"{toml(name)} = {toml(value)}" for name, value in document.items())
    assert tomllib.loads(text) == document

    for fault in read_or_faults(text, environment):
        assert str(fault).isprintable()
        if fault.origin and fault.origin.kind == "file" and "is missing" not in fault.what:
            assert fault.origin.line is not None
            assert 1 <= fault.origin.line <= len(document)


@settings(deadline=None)
@given(st.one_of(st.binary(max_size=60), st.text(alphabet="[]relay.=\"'\n {}1,#", max_size=60)))
def test_any_bytes_are_taken_or_told(raw: bytes | str) -> None:
    assert read_or_faults(raw, {}), "no such text has all that it must"


# What a running agent takes.

OLD = replace(
    config(
        {
            "relay.public": ("eth0",),
            "relay.inside": ("eth1",),
            "relay.vips": (Vip("203.0.113.5", 3478),),
            "relay.inside_addresses": ("10.0.0.1",),
        }
    ),
    tcp=TCP,
)
TLS = replace(OLD, tcp=replace(TCP, certificate=Path("/c"), key=Path("/k")))


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"uids": frozenset({7})}, "api.users"),
        ({"tcp": replace(TCP, token_file=Path("/other"))}, "api.tcp.token_file"),
        ({"transceiver_prefixes": ("10.0.0.0/8",)}, "transceivers.prefixes"),
        ({"max_routes": 7}, "transceivers.max_routes"),
        ({"log_level": "debug"}, "log.level"),
        ({"log_format": "json"}, "log.format"),
        ({"reattach": True}, "relay.reattach"),
    ],
)
def test_what_can_change_is_taken(change: dict[str, Any], name: str) -> None:
    new = replace(OLD, **change)

    reloaded = reload(OLD, new)

    assert (reloaded.config, reloaded.changed, reloaded.restart) == (new, (name,), ())


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"public": ("eth7",)}, "relay.public"),
        ({"inside": ("eth7",)}, "relay.inside"),
        ({"vips": (Vip("203.0.113.6", 3478),)}, "relay.vips"),
        ({"inside_addresses": ("10.0.0.2",)}, "relay.inside_addresses"),
        ({"last_port": 30000}, "relay.inside_ports"),
        ({"pins": Path("/p")}, "relay.pins"),
        ({"socket": Path("/s")}, "api.socket"),
        ({"tcp": replace(TCP, port=1)}, "api.tcp.listen"),
    ],
)
def test_what_needs_a_restart_stays_and_the_rest_is_taken(
    change: dict[str, Any], name: str
) -> None:
    reloaded = reload(OLD, replace(OLD, max_routes=7, **change))

    assert reloaded.config == replace(OLD, max_routes=7)
    assert reloaded.changed == ("transceivers.max_routes",)
    assert reloaded.restart == (name,)


def test_another_certificate_is_taken_but_tls_is_begun_and_ended_by_a_restart() -> None:
    assert TLS.tcp is not None
    other = replace(TLS, tcp=replace(TLS.tcp, certificate=Path("/c2"), key=Path("/k2")))

    assert reload(TLS, other).config == other
    for old, new in ((OLD, TLS), (TLS, OLD)):
        reloaded = reload(old, new)
        assert reloaded.config == old
        assert reloaded.restart == ("api.tcp.certificate", "api.tcp.key")


def test_a_server_over_tcp_is_begun_and_ended_by_a_restart() -> None:
    without = replace(OLD, tcp=None)

    for old, new in ((OLD, without), (without, OLD)):
        reloaded = reload(old, new)
        assert reloaded.config == old
        assert reloaded.restart == ("api.tcp.listen", "api.tcp.token_file")


def test_every_key_says_rightly_whether_it_is_live() -> None:
    """The two tables above are whole."""
    live = {key.name for key in KEYS if key.live}

    assert live == {
        *("api.users", "api.tcp.token_file", "api.tcp.certificate", "api.tcp.key"),
        *("transceivers.prefixes", "transceivers.max_routes", "relay.reattach"),
        *("log.level", "log.format"),
    }


def test_what_does_not_go_with_what_stays_is_refused_whole() -> None:
    new = replace(OLD, inside_addresses=("fd00::1",), transceiver_prefixes=("fd00::/8",))

    with pytest.raises(BadConfig, match="without a restart, the prefix fd00::/8 is IPv6") as error:
        reload(OLD, new)

    assert "restart" in error.value.cure


def test_nothing_new_is_nothing_changed() -> None:
    reloaded = reload(TLS, replace(TLS))

    assert (reloaded.config, reloaded.changed, reloaded.restart) == (TLS, (), ())
