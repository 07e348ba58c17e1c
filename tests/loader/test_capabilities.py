"""The agent without root: what it needs, that it is enough, and what is said when it is missing."""

import os
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from loader.cache import SWITCH
from loader.capabilities import Capability, held
from loader.client import AgentClient
from loader.maps import Maps
from loader.pinned_set import LOADING, remove_pins
from loader.upgrade import STAGE
from tests.loader.conftest import (
    INSTANCE,
    PINS,
    ROOT,
    VIP,
    AgentProcess,
    Host,
    agent_arguments,
    binding_request,
    eventually,
    make_host,
    register_x1,
    remove_host,
)
from tests.loader.test_datapath import attach_a_strangers_program
from tools import netns

STRANGER = 65533
RUNS = (Capability.BPF, Capability.NET_ADMIN)
LOADS = (*RUNS, Capability.PERFMON)


def may_read_the_tree(uid: int) -> bool:
    """Not if it lies below /root, for instance."""
    asked = [*with_only(uid), sys.executable, "-c", "import loader"]
    return (
        subprocess.run(asked, cwd="/", env={"PYTHONPATH": str(ROOT)}, check=False).returncode == 0
    )


def with_only(uid: int, *capabilities: Capability) -> tuple[str, ...]:
    """As systemd starts a service of its own user, with `AmbientCapabilities=`,
    `CapabilityBoundingSet=` and `NoNewPrivileges=`."""
    words = ",".join(["-all", *(f"+{each.name.lower()}" for each in capabilities)])
    return (
        *("setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "--no-new-privs"),
        *(f"--inh-caps={words}", f"--ambient-caps={words}", f"--bounding-set={words}"),
    )


@dataclass(frozen=True, slots=True)
class User:
    """Somebody with a folder in bpffs, and one for sockets and compiled programs."""

    uid: int
    pins: Path
    folder: Path


@pytest.fixture(scope="module")
def user() -> Iterator[User]:
    """A stranger, or root without root's capabilities where strangers cannot read this tree."""
    made = User(
        STRANGER if may_read_the_tree(STRANGER) else 0,
        PINS.with_name(f"{PINS.name}-user"),
        Path(tempfile.mkdtemp(prefix="shunt-user-")),
    )
    made.pins.mkdir(mode=0o700)
    for folder in (made.pins, made.folder):
        os.chown(folder, made.uid, made.uid)
    made.folder.chmod(0o755)
    yield made
    shutil.rmtree(made.folder)
    if made.pins.is_dir():
        remove_pins(made.pins)


def shunt(user: User, host: Host, verb: str, *capabilities: Capability) -> tuple[int, str]:
    """`shunt agent VERB` in the relay's namespace; its exit status and what it says."""
    arguments = agent_arguments(user.folder / "agent.sock", user.pins)
    if verb == "unload":
        arguments = ["--pins", str(user.pins)]
    before = with_only(user.uid, *capabilities)

    def call() -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [*before, sys.executable, "-m", "tools", "agent", verb, *arguments],
            cwd=ROOT,
            env=os.environ | {SWITCH: str(user.folder / "programs")},
            capture_output=True,
            text=True,
            check=False,
        )

    done = host.run(call)
    return done.returncode, done.stderr


@pytest.fixture(scope="module")
def user_host() -> Iterator[Host]:
    made = make_host(f"{os.getpid()}-user")
    yield made
    remove_host(made)


@pytest.fixture(scope="module")
def loaded(user: User, user_host: Host) -> User:
    """The user, who has loaded the program."""
    assert shunt(user, user_host, "load", *LOADS)[0] == 0
    return user


@pytest.fixture(scope="module")
def agent(loaded: User, user_host: Host) -> Iterator[AgentProcess]:
    """The user's agent, with two capabilities."""
    started = AgentProcess(
        user_host, loaded.folder, loaded.pins, before=with_only(loaded.uid, *RUNS)
    )
    yield started
    started.stop()


def capability_sets(pid: int) -> dict[str, set[int]]:
    sets = {}
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("Cap"):
            name, bits = line.split(":")
            sets[name] = {each for each in range(64) if int(bits, 16) >> each & 1}
    return sets


def test_root_holds_all_of_them() -> None:
    assert held() == set(Capability)


def test_sys_admin_stands_for_those_that_were_split_from_it() -> None:
    script = "from loader.capabilities import held; print(*sorted(map(str, held())))"
    before = with_only(0, Capability.SYS_ADMIN)

    said = subprocess.check_output([*before, sys.executable, "-c", script], cwd=ROOT, text=True)

    assert said.split() == ["CAP_BPF", "CAP_PERFMON", "CAP_SYS_ADMIN"]


@pytest.mark.parametrize(
    ("verb", "has", "missing"),
    [
        ("run", (), "CAP_BPF and CAP_NET_ADMIN"),
        ("load", RUNS, "CAP_PERFMON"),
        ("unload", (Capability.BPF,), "CAP_NET_ADMIN"),
    ],
)
def test_a_missing_capability_is_named_and_so_is_how_to_give_it(
    user: User, user_host: Host, verb: str, has: tuple[Capability, ...], missing: str
) -> None:
    status, said = shunt(user, user_host, verb, *has)

    assert status == 1
    what, cure = said.splitlines()
    assert what.endswith(f"; missing: {missing}")
    assert "sudo" in cure
    assert "--ambient-caps=+" in cure
    assert not list(user.pins.iterdir()) or verb != "run"


def test_capabilities_of_a_user_namespace_are_said_not_to_count(host: Host) -> None:
    pins = PINS.with_name(f"{PINS.name}-container")
    pins.mkdir()
    arguments = agent_arguments(Path("/nowhere/agent.sock"), pins)

    done = subprocess.run(
        [
            *("unshare", "--user", "--map-root-user"),
            *(sys.executable, "-m", "tools", "agent", "load", *arguments),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )

    remove_pins(pins)
    assert done.returncode == 1
    assert "the kernel does not let us load BPF programs" in done.stderr
    assert "user namespaces" in done.stderr


def test_of_bpffs_the_folder_for_pins_is_enough(user: User) -> None:
    """As the units arrange it: below an empty /sys/fs/bpf, that folder alone."""
    pins = str(user.pins)
    arrange = (
        f"mount --bind {pins} /mnt && mount -t tmpfs -o mode=755 none /sys/fs/bpf && "
        f"mkdir {pins} && mount --move /mnt {pins} && mount -o remount,bind,ro /sys/fs/bpf && "
    )
    script = f"from loader.datapath import *; make_room(__import__('pathlib').Path({pins!r}))"
    command = shlex.join([*with_only(user.uid, *RUNS), sys.executable, "-c", script])

    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", f"{arrange} exec {command}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )

    assert (done.returncode, done.stderr) == (0, "")


def test_pins_that_are_another_users_are_said_to_be(loaded: User, host: Host) -> None:
    if loaded.uid == 0:
        pytest.skip("strangers cannot read this tree, and without them all pins are root's")
    pin = loaded.pins / STAGE / "routes"
    os.chown(pin, 0, 0)
    status, said = shunt(loaded, host, "run", *RUNS)
    os.chown(pin, loaded.uid, loaded.uid)

    assert status == 1
    assert f"the pins at {loaded.pins} are another user's" in said
    assert "sudo chown -R USER" in said


def test_a_folder_for_pins_that_is_another_users_is_said_to_be(user: User, host: Host) -> None:
    if user.uid == 0:
        pytest.skip("strangers cannot read this tree")
    theirs = User(user.uid, PINS.with_name(f"{PINS.name}-theirs"), user.folder)
    theirs.pins.mkdir(mode=0o755)
    status, said = shunt(theirs, host, "run", *RUNS)
    theirs.pins.rmdir()

    assert status == 1
    assert f"cannot make {theirs.pins / LOADING}: Permission denied" in said
    assert f"sudo install -d -o USER -m 700 {theirs.pins}" in said


def test_somebody_elses_program_is_left_alone_and_told_by_its_id(loaded: User, host: Host) -> None:
    id = attach_a_strangers_program(host, "inside")

    status, said = shunt(loaded, host, "run", *RUNS)

    assert status == 1
    assert f"inside already carries another XDP program: one (id {id})" in said
    assert host.xdp("inside") == f"xdp {id}"


def test_without_a_program_it_says_who_loads_it(user: User, host: Host) -> None:
    elsewhere = User(user.uid, user.pins / "elsewhere", user.folder)

    status, said = shunt(elsewhere, host, "run", *RUNS)

    assert status == 1
    assert f"no program of this version is loaded at {elsewhere.pins}" in said
    assert "shunt agent load" in said
    remove_pins(elsewhere.pins)


def test_two_capabilities_and_another_user_are_enough_to_run(agent: AgentProcess) -> None:
    sets = capability_sets(agent.process.pid)

    assert sets["CapEff"] == sets["CapPrm"] == sets["CapBnd"] == set(RUNS)
    assert agent.host.xdp("public").startswith("xdp ")
    assert agent.host.xdp("inside").startswith("xdp ")


async def test_it_routes_and_its_successor_adopts(agent: AgentProcess) -> None:
    async with AgentClient(str(agent.socket)) as client:
        await register_x1(client)
        await client.add_route("mine", transceiver="x1", instance=INSTANCE)
    before = agent.host.xdp("public")

    def packets() -> int:
        with Maps(agent.pins) as maps:
            return maps.counters().to_transceiver.packets

    def knock() -> bool:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as outside:
            outside.sendto(binding_request("mine"), (VIP.address, VIP.port))
        return packets() > 0

    eventually("it is routed", lambda: netns.run_in(agent.host.outside, knock))

    agent.kill()
    agent.start()

    async with AgentClient(str(agent.socket)) as client:
        (route,) = (await client.routes())["routes"]
        assert (route["ufrag"], len(route["slots"])) == ("mine", 1)
        await client.remove_route("mine", instance=INSTANCE)
    assert agent.host.xdp("public") == before, "without CAP_PERFMON the program is as it was"


def test_the_user_unloads_it_again(agent: AgentProcess, loaded: User, user_host: Host) -> None:
    assert agent.stop() == 0

    status, said = shunt(loaded, user_host, "unload", Capability.NET_ADMIN)

    assert (status, said) == (0, "")
    assert user_host.xdp("public") == user_host.xdp("inside") == "none"
    assert not loaded.pins.exists()


def test_what_the_user_compiles_is_kept_for_the_user(user: User, user_host: Host) -> None:
    keeps = User(user.uid, PINS.with_name(f"{PINS.name}-keeps"), user.folder / "keeps")
    keeps.folder.mkdir()
    os.chown(keeps.folder, user.uid, user.uid)
    place = keeps.folder / "programs"

    def load() -> str:
        keeps.pins.mkdir(mode=0o700)
        os.chown(keeps.pins, user.uid, user.uid)
        status, said = shunt(keeps, user_host, "load", *LOADS)
        remove_pins(keeps.pins)
        assert status == 0
        return said

    assert "taken from" not in load()
    assert {each.stat().st_uid for each in (place, *place.iterdir())} == {user.uid}
    assert f"compiled before, and is taken from {place}" in load()
