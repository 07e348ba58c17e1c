"""`shunt NOUN VERB`: reads the arguments, calls the part that does it, prints the outcome.

Each command imports what it needs when it is called, so that `shunt --help` is there at once.
"""

import argparse
import asyncio
import json
import os
import signal
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loader.errors import ShuntError

if TYPE_CHECKING:
    from loader.client import AgentClient

if TYPE_CHECKING:
    from loader.configfile import Sources
    from transceiver.signaling.addresses import Network
    from transceiver.signaling.limits import Rate

__all__ = ["main"]

Command = Callable[[argparse.Namespace], int]
AGENT_SOCKET = "/run/shunt/agent.sock"
PINS = "/sys/fs/bpf/shunt"
CONFIG = "/etc/shunt/agent.toml"


def main(argv: list[str] | None = None) -> int:
    """Run one command. Exit status 0, or 1 for a failure; argparse exits with 2 for usage."""
    argv = sys.argv[1:] if argv is None else argv
    parser = _parser()
    arguments, others = parser.parse_known_args(argv)
    if arguments.command is _test:
        arguments.others = argv[1:]  # in the order given, options of pytest's own among them
    elif others:
        parser.error(f"unrecognized arguments: {' '.join(others)}")
    # Ending by signal must run the `finally`s: the demo's takes the lab down.
    for name in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, _leave)
    try:
        if arguments.root and os.geteuid() != 0:
            raise ShuntError("this needs root", "Run it again with `sudo`.")
        command: Command = arguments.command
        return command(arguments)
    except ShuntError as error:
        print(f"shunt: {error.what}", file=sys.stderr)
        if error.cure:
            print(textwrap.indent(error.cure, "  "), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `shunt … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _leave(number: int, _frame: object) -> None:
    raise SystemExit(128 + number)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="shunt", description="A WebRTC front door for voice AI, with its relay in the kernel."
    )
    nouns = parser.add_subparsers(metavar="NOUN", required=True)

    demo = _command(nouns, "demo", _demo, "build the lab, place calls, serve a page", root=True)
    demo.add_argument("--once", action="store_true", help="calls only, then take the lab down")
    demo.add_argument("--port", type=_port, default=8080, help="of the page on localhost")
    _output(demo)

    test = _command(nouns, "test", _test, "run the test suite; arguments go to pytest")
    test.add_argument("others", nargs="*", metavar="…")

    lab = _noun(nouns, "lab", "the lab of network namespaces")
    up = _command(lab, "up", _lab_up, "bring it up, or show it if it is up", root=True)
    up.add_argument("--transceivers", type=_size, default=2, metavar="N")
    up.add_argument("--host", action="store_true", help="the host joins, as a client")
    up.add_argument("--ipv6-transceivers", action="store_true", help="their UDP sockets are IPv6")
    _output(up)
    _command(lab, "down", _lab_down, "take it down; repeatable", root=True)
    _output(_command(lab, "status", _lab_status, "is it up and healthy", root=True))
    execute = _command(lab, "exec", _lab_exec, "run a command in a namespace", root=True)
    execute.add_argument("name", help="client, relay, x1, …")
    execute.add_argument("argv", nargs=argparse.REMAINDER, metavar="CMD …")

    agent = _noun(nouns, "agent", "the daemon on a relay host")
    run = _command(agent, "run", _agent_run, "load, attach and serve, in the foreground")
    _agent_options(run)
    load = _command(
        agent, "load", _agent_load, "load only, for an agent without CAP_PERFMON; same options"
    )
    _agent_options(load)
    text = "say how it would take over from the relay that runs; same options"
    planning = _command(agent, "plan", _agent_plan, text)
    _agent_options(planning)
    _output(planning)
    unload = _command(agent, "unload", _agent_unload, "detach the program, remove the pins")
    unload.add_argument("--pins", default=PINS, metavar="DIR")
    text = "no new routes on this relay; existing sessions go on"
    _draining(_command(agent, "drain", _drain, text))

    configuration = _noun(nouns, "config", "the agent's configuration")
    check = _command(configuration, "check", _config_check, "what it comes to, or all its errors")
    check.add_argument("path", nargs="?", type=Path, metavar="PATH", help=f"default {CONFIG}")
    _output(check)

    transceiver = _noun(nouns, "transceiver", "the process that terminates WebRTC")
    run = _command(transceiver, "run", _transceiver_run, "serve calls, in the foreground")
    run.add_argument("--id", required=True)
    run.add_argument("--agent", default=AGENT_SOCKET, metavar="PATH|URL")
    _credentials(run)
    run.add_argument("--udp", required=True, metavar="ADDR:PORT")
    run.add_argument("--http", required=True, metavar="ADDR:PORT")
    run.add_argument(
        "--workers",
        type=int,
        default=1,
        metavar="N",
        help="so many processes: ids ID-1 …, UDP ports from the one given, HTTP ones after it",
    )
    run.add_argument(
        "--capacity", type=int, default=100, metavar="N", help="sessions, of each worker"
    )
    for name, what in (
        ("address", "client address"),
        ("ephemeral-key", "ephemeral key"),
        ("api-key", "API key"),
    ):
        run.add_argument(
            f"--{name}-rate",
            type=_rate,
            metavar="R[:BURST]",
            help=f"requests a second that signaling takes of one {what}",
        )
    run.add_argument(
        "--trusted-proxy",
        type=_network,
        action="append",
        default=[],
        metavar="NETWORK",
        help="whose X-Forwarded-For is believed; repeatable",
    )
    run.add_argument("--backend", default="echo", metavar="NAME")
    run.add_argument(
        "--backend-option",
        action="append",
        default=[],
        type=_option,
        metavar="NAME=VALUE",
        help="what the backend is told; may be given several times",
    )
    run.add_argument(
        "--ice-servers",
        type=Path,
        metavar="FILE",
        help="JSON of the STUN and TURN servers that clients are told of, as browsers have it",
    )
    run.add_argument(
        "--drain-limit",
        type=float,
        default=30.0,
        metavar="S",
        help="seconds that calls may go on after SIGTERM",
    )

    for noun in ("routes", "flows", "transceivers"):
        verbs = _noun(nouns, noun, f"the agent's {noun}")
        if noun == "transceivers":
            text = "no new routes to a transceiver; its sessions go on"
            drain = _command(verbs, "drain", _drain, text)
            drain.add_argument("id")
            _draining(drain)
        _asking(_command(verbs, "list", _list, f"list the {noun}"), noun)
    _asking(
        _command(nouns, "counters", _list, "packets relayed, and dropped by reason"), "counters"
    )

    events = _command(nouns, "events", _events, "what befalls sessions, as it does")
    events.add_argument("--follow", action="store_true", help="go on with what is yet to come")
    events.add_argument("--kinds", type=_names, default=(), metavar="KIND[,…]")
    _of_an_agent(events)
    _output(events)

    text = "what is known of a session, and what that comes to"
    explain = _command(nouns, "explain", _explain, text)
    explain.add_argument("whom", metavar="UFRAG|CLIENT", help="of the answer; or ADDR or ADDR:PORT")
    explain.add_argument("--key", help="the transceivers' API key; default SHUNT_API_KEY")
    _of_an_agent(explain)
    _output(explain)

    top = _command(nouns, "top", _top, "live view of the pinned maps", root=True)
    top.add_argument("--once", action="store_true", help="one picture, then exit")
    top.add_argument("--interval", type=float, default=1.0, metavar="S")
    _output(top)

    doctor = _command(
        nouns, "doctor", _doctor, "what keeps the relay from working here, and the cure; read-only"
    )
    doctor.add_argument(
        "--interface", action="append", default=[], metavar="IFACE", help="repeatable"
    )
    doctor.add_argument("--config", type=Path, metavar="PATH", help="an agent's, to be checked for")
    doctor.add_argument("--socket", metavar="PATH", help=f"the agent's; {AGENT_SOCKET}")
    doctor.add_argument("--pins", type=Path, metavar="DIR", help=f"in bpffs; {PINS}")
    doctor.add_argument(
        "--try",
        dest="try_it",
        action="store_true",
        help="load and attach the program, in a network namespace of its own",
    )
    _output(doctor)

    benches = _noun(nouns, "bench", "what Shunt costs, and its baselines, in one run")
    for name, text in (
        ("dataplane", "nanoseconds a packet, by test runs"),
        ("live", "packets a second over veth, with up to a million flows"),
        ("survival", "packets lost when the agent ends, or the program changes, amid traffic"),
        ("agent", "routes a second through its socket, and what a million slots cost it"),
        ("transceiver", "sessions a core, delay and setup, against stock aiortc and libopus"),
        ("media", "microseconds of CPU for a packet of audio, part by part, and libopus alone"),
        ("jitter", "delay and loss that a jitter buffer adds, ours and stock aiortc's"),
    ):
        bench = _command(benches, name, _bench, text, root=name not in ("media", "jitter"))
        bench.set_defaults(bench=name)
        bench.add_argument("--quick", action="store_true", help="shorter, with wider spread")
        bench.add_argument("--check", action="store_true", help="hold it to bench-targets.toml")
        _output(bench)

    call = _command(nouns, "call", _call, "place a call and measure it")
    call.add_argument("url", help="e.g. http://198.18.1.11:8080")
    call.add_argument("--key", help="bearer token; default SHUNT_API_KEY, or the lab's in the lab")
    call.add_argument("--audio", type=Path, metavar="FILE.wav", help="say this; default a tone")
    call.add_argument("--duration", type=float, metavar="S")
    call.add_argument("--family", choices=["ipv4", "ipv6", "any"], default="any", help="of media")
    call.add_argument("--save", type=Path, metavar="OUT.wav", help="keep what comes back")
    _output(call)
    return parser


def _agent_options(parser: argparse.ArgumentParser) -> None:
    """What wins over the configuration's file and the environment; see `configkeys`."""
    parser.add_argument("--config", type=Path, metavar="PATH", help=f"default {CONFIG}")
    parser.add_argument("--public", type=_names, metavar="IFACE[,…]")
    parser.add_argument("--inside", type=_names, metavar="IFACE[,…]")
    parser.add_argument(
        "--vip",
        type=_endpoint,
        action="append",
        metavar="ADDR:PORT",
        help="repeatable; [IPV6]:PORT for IPv6",
    )
    parser.add_argument(
        "--inside-address", action="append", metavar="ADDR", help="repeatable; IPv4 and IPv6"
    )
    parser.add_argument("--inside-ports", type=_port_range, metavar="A-B")
    parser.add_argument("--socket", type=Path, metavar="PATH")
    parser.add_argument("--uid", type=int, action="append", help="may use the socket")
    parser.add_argument("--pins", type=Path, metavar="DIR", help="in bpffs")


def _noun(nouns: Any, name: str, text: str) -> Any:
    parser = nouns.add_parser(name, help=text, description=text)
    return parser.add_subparsers(metavar="VERB", required=True)


def _command(
    place: Any, name: str, command: Command, text: str, *, root: bool = False
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = place.add_parser(name, help=text, description=text)
    parser.set_defaults(command=command, root=root)
    return parser


def _output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", dest="output", choices=["table", "json"], default="table")


def _asking(parser: argparse.ArgumentParser, what: str) -> None:
    _of_an_agent(parser)
    parser.set_defaults(what=what)
    _output(parser)


def _draining(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--deadline", type=_seconds, metavar="S", help="then what is left ends")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--wait", action="store_true", help="show progress until it is over")
    how.add_argument("--cancel", action="store_true", help="call the drain off")
    _of_an_agent(parser)
    parser.set_defaults(id=None)
    _output(parser)


def _of_an_agent(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        *("--agent", "--socket"), default=AGENT_SOCKET, metavar="PATH|URL", help="whom to ask"
    )
    _credentials(parser)


def _credentials(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--agent-token-file", type=Path, metavar="FILE", help="default: SHUNT_AGENT_TOKEN"
    )
    parser.add_argument("--agent-ca", type=Path, metavar="FILE", help="who signs for the agent")


def _rate(text: str) -> "Rate":
    from transceiver.signaling.limits import Rate

    try:
        return Rate.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _network(text: str) -> "Network":
    import ipaddress

    try:
        return ipaddress.ip_network(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _seconds(text: str) -> float:
    if not 0 <= (seconds := float(text)) < float("inf"):
        raise ValueError(text)
    return seconds


def _port(text: str) -> int:
    if not 0 < (port := int(text)) < 65536:
        raise ValueError(text)
    return port


def _size(text: str) -> int:
    from tools.topology import MAX_TRANSCEIVERS

    if not 1 <= (size := int(text)) <= MAX_TRANSCEIVERS:
        raise argparse.ArgumentTypeError(f"must be 1 to {MAX_TRANSCEIVERS}, not {text}")
    return size


def _names(text: str) -> tuple[str, ...]:
    return tuple(name for name in text.split(",") if name)


def _port_range(text: str) -> tuple[int, int]:
    first, _, last = text.partition("-")
    return _port(first), _port(last)


def _endpoint(text: str) -> tuple[str, int]:
    address, colon, port = text.rpartition(":")
    if not (address and colon and port.isdigit() and 0 < int(port) < 65536):
        raise argparse.ArgumentTypeError(f"must be ADDR:PORT, not {text}")
    if bracketed := address.startswith("[") and address.endswith("]"):
        address = address[1:-1]
    if bracketed != (":" in address):
        raise argparse.ArgumentTypeError(f"must be ADDR:PORT or [IPV6]:PORT, not {text}")
    return address, int(port)


def _print_json(value: object) -> None:
    print(json.dumps(value, indent=2))


def _demo(arguments: argparse.Namespace) -> int:
    from tools import demo

    return demo.run(once=arguments.once, port=arguments.port, as_json=arguments.output == "json")


def _test(arguments: argparse.Namespace) -> int:
    from tools import suite

    return suite.run(arguments.others)


def _lab_up(arguments: argparse.Namespace) -> int:
    from tools import lab, tables

    up = lab.up(
        transceivers=arguments.transceivers,
        host=arguments.host,
        ipv6_transceivers=arguments.ipv6_transceivers,
    )
    if arguments.output == "json":
        _print_json(up.to_json())
    else:
        tables.show_lab(up)
    return 0


def _lab_down(_arguments: argparse.Namespace) -> int:
    from tools import lab

    lab.down()
    return 0


def _lab_status(arguments: argparse.Namespace) -> int:
    from tools import lab, tables

    status = lab.status()
    if arguments.output == "json":
        _print_json(status)
    else:
        tables.show_status(status)
    return 0 if status["healthy"] else 1


def _lab_exec(arguments: argparse.Namespace) -> int:
    from pyroute2 import netns

    from tools.lab import namespace_of

    argv = arguments.argv[1:] if arguments.argv[:1] == ["--"] else arguments.argv
    if not argv:
        raise ShuntError("no command to run", "For instance: shunt lab exec relay ip route")
    netns.setns(namespace_of(arguments.name), flags=0)
    try:
        os.execvp(argv[0], argv)
    except OSError as error:
        raise ShuntError(f"cannot run {argv[0]}: {error.strerror}") from None


def _agent_run(arguments: argparse.Namespace) -> int:
    import logging

    from loader import logs
    from loader.daemon import run

    sources = _agent_sources(arguments)
    config = sources.read().config
    logs.configure(config.log_level, config.log_format)
    try:
        run(config, read=lambda: sources.read().config)
    except ShuntError as error:
        if config.log_format == "text":
            raise
        facts = {"cure": error.cure} if error.cure else {}
        logging.getLogger("loader.daemon").error("%s", error.what, extra={"facts": facts})
        return 1
    return 0


def _agent_load(arguments: argparse.Namespace) -> int:
    from loader import logs
    from loader.daemon import load

    config = _agent_sources(arguments).read().config
    logs.configure(config.log_level, config.log_format)
    load(config)
    return 0


def _agent_plan(arguments: argparse.Namespace) -> int:
    from loader.daemon import plan

    found = plan(_agent_sources(arguments).read().config)
    if arguments.output == "json":
        running = found.running
        _print_json(
            {
                "running": running and {"folder": str(running.folder), "program": running.program},
                "program": "kept" if found.same_program else "replaced" if running else "made",
                "maps": {name: str(fate) for name, fate in found.maps.items()},
                "slots_in_use": found.slots,
            }
        )
    else:
        print(found.words)
    return 0


def _agent_sources(arguments: argparse.Namespace) -> "Sources":
    from loader.client import Vip
    from loader.configfile import Sources

    vips = arguments.vip and tuple(Vip(address, port) for address, port in arguments.vip)
    options = {
        "relay.public": arguments.public,
        "relay.inside": arguments.inside,
        "relay.vips": vips,
        "relay.inside_addresses": arguments.inside_address and tuple(arguments.inside_address),
        "relay.inside_ports": arguments.inside_ports,
        "relay.pins": arguments.pins,
        "api.socket": arguments.socket,
        "api.users": arguments.uid and tuple(arguments.uid),
    }
    return Sources(
        file=arguments.config,
        environment=os.environ,
        options={name: value for name, value in options.items() if value is not None},
    )


def _config_check(arguments: argparse.Namespace) -> int:
    from tools import configcheck

    return configcheck.run(arguments.path, as_json=arguments.output == "json")


def _agent_unload(arguments: argparse.Namespace) -> int:
    from loader.daemon import unload

    unload(Path(arguments.pins))
    return 0


def _option(text: str) -> tuple[str, str]:
    name, is_one, value = text.partition("=")
    if not is_one or not name:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name, value


def _transceiver_run(arguments: argparse.Namespace) -> int:
    from transceiver import server, signaling, workers
    from transceiver.signaling import iceservers

    rates = {
        "address": arguments.address_rate,
        "ephemeral_key": arguments.ephemeral_key_rate,
        "api_key": arguments.api_key_rate,
    }
    config = server.TransceiverConfig(
        id=arguments.id,
        agent=arguments.agent,
        agent_token=_token(arguments),
        agent_ca=arguments.agent_ca,
        udp=arguments.udp,
        http=arguments.http,
        capacity=arguments.capacity,
        backend=arguments.backend,
        backend_options=dict(arguments.backend_option),
        ice_servers=iceservers.read(arguments.ice_servers) if arguments.ice_servers else (),
        drain_limit=arguments.drain_limit,
        request_limits=signaling.Limits(
            proxies=tuple(arguments.trusted_proxy),
            **{name: rate for name, rate in rates.items() if rate is not None},
        ),
    )
    if arguments.workers == 1:
        server.run(config)
    else:
        workers.run(config, arguments.workers)
    return 0


def _client(arguments: argparse.Namespace) -> "AgentClient":
    from loader.client import AgentClient

    return AgentClient(arguments.agent, token=_token(arguments), ca=arguments.agent_ca)


def _token(arguments: argparse.Namespace) -> str | None:
    """The first token of the file, or the environment's."""
    from loader.client import TOKEN_VARIABLE

    if arguments.agent_token_file is None:
        return os.environ.get(TOKEN_VARIABLE)
    try:
        lines = arguments.agent_token_file.read_text("ascii").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ShuntError(f"cannot read {arguments.agent_token_file}: {error}") from None
    return next((line.strip() for line in lines if line.strip() and line[0] != "#"), None)


def _drain(arguments: argparse.Namespace) -> int:
    from tools import drain

    return drain.run(
        _client(arguments),
        arguments.id,
        deadline_s=arguments.deadline,
        wait=arguments.wait,
        cancel=arguments.cancel,
        as_json=arguments.output == "json",
    )


def _events(arguments: argparse.Namespace) -> int:
    from tools import events

    return events.run(
        _client(arguments),
        kinds=arguments.kinds,
        follow=arguments.follow,
        as_json=arguments.output == "json",
    )


def _list(arguments: argparse.Namespace) -> int:
    async def ask() -> dict[str, Any]:
        async with _client(arguments) as agent:
            answer: dict[str, Any] = await getattr(agent, arguments.what)()
            return answer

    answer = asyncio.run(ask())
    if arguments.output == "json":
        _print_json(answer)
        return 0
    from tools import tables

    if arguments.what == "counters":
        tables.show_counters(answer)
    else:
        tables.show_list(arguments.what, answer[arguments.what], count=answer.get("count"))
    return 0


def _explain(arguments: argparse.Namespace) -> int:
    from tools import explain

    key = arguments.key or os.environ.get("SHUNT_API_KEY") or _key_of_the_lab(arguments.agent)
    found = explain.run(_client(arguments), arguments.whom, key=key)
    if arguments.output == "json":
        _print_json([known.to_json() for known in found])
    else:
        explain.show(found)
    return 0


def _top(arguments: argparse.Namespace) -> int:
    from tools import top

    return top.run(
        once=arguments.once, interval_s=arguments.interval, as_json=arguments.output == "json"
    )


def _doctor(arguments: argparse.Namespace) -> int:
    from tools.doctor.run import run

    return run(
        interfaces=arguments.interface,
        config=arguments.config,
        socket=arguments.socket,
        pins=arguments.pins,
        try_it=arguments.try_it,
        as_json=arguments.output == "json",
    )


def _bench(arguments: argparse.Namespace) -> int:
    from tools.bench.run import run

    return run(
        arguments.bench,
        quick=arguments.quick,
        check=arguments.check,
        as_json=arguments.output == "json",
    )


def _call(arguments: argparse.Namespace) -> int:
    from tools.call import place_call

    key = arguments.key or os.environ.get("SHUNT_API_KEY") or _lab_key(arguments.url)
    report = asyncio.run(
        place_call(
            arguments.url,
            key=key,
            audio=arguments.audio,
            duration_s=arguments.duration,
            save=arguments.save,
            family=arguments.family,
        )
    )
    if arguments.output == "json":
        _print_json(report.to_json())
        return 0
    from tools import tables

    tables.show_call(report)
    return 0


def _key_of_the_lab(agent: str) -> str | None:
    """The lab's key, if the agent asked is the lab's; no other's transceivers are shown it."""
    from tools.labstate import current

    lab = current()
    return lab.api_key if lab and agent == lab.agent_socket else None


def _lab_key(url: str) -> str | None:
    """The lab's key, if the URL is one of the lab's transceivers; nobody else is shown it."""
    from tools.labstate import current

    lab = current()
    if lab and any(url == t.http or url.startswith(f"{t.http}/") for t in lab.transceivers):
        return lab.api_key
    return None
