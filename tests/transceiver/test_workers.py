"""Several transceivers by one command: processes that share a port, and what keeps them running."""

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio

from loader.errors import ShuntError
from tests.transceiver.agent import FakeAgent
from tests.transceiver.caller import Caller, eventually
from tests.transceiver.conftest import KEY
from tests.transceiver.sdp.samples import AUDIO, DATA, offer
from transceiver import workers
from transceiver.server import TransceiverConfig
from transceiver.stun import text
from transceiver.workers import Supervisor, assignments, supervise

SDP = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/sdp"}
OFFER = offer(AUDIO, DATA)
START_SECONDS = 30.0

with_two = pytest.mark.asyncio(loop_scope="module")


class Running:
    """Two workers, and what can be asked of them."""

    def __init__(self, supervisor: Supervisor, task: asyncio.Task[None], agent: FakeAgent) -> None:
        self.supervisor = supervisor
        self.task = task
        self.agent = agent
        self.url = f"http://{text(supervisor.listener.getsockname()[:2])}"
        self.calls: list[str] = []
        """URLs of sessions that were made."""

    def pid(self, number: int) -> int:
        process = self.supervisor.workers[number].process
        assert process is not None
        return process.pid

    async def call(self) -> str:
        """Place a call by a connection of its own; the session's URL."""
        async with (
            aiohttp.ClientSession() as http,
            http.post(f"{self.url}/whip", data=OFFER, headers=SDP) as response,
        ):
            assert response.status == 201, await response.text()
            self.calls.append(self.url + response.headers["Location"])
            return self.calls[-1]

    async def hang_up(self, url: str) -> int:
        async with aiohttp.ClientSession() as http, http.delete(url, headers=SDP) as response:
            return response.status


@contextlib.asynccontextmanager
async def running(config: TransceiverConfig, agent: FakeAgent) -> AsyncIterator[Running]:
    loop = asyncio.get_running_loop()
    started: asyncio.Future[Supervisor] = loop.create_future()
    task = asyncio.create_task(supervise(config, 2, on_started=started.set_result))
    await asyncio.wait((started, task), return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        await task
    supervisor = started.result()
    try:
        await eventually(lambda: len(agent.transceivers) == 2)
        yield Running(supervisor, task, agent)
    finally:
        supervisor.stop()
        async with asyncio.timeout(START_SECONDS):
            await asyncio.wait((task,))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pair(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    """Started once for all tests that leave two workers behind."""
    async with FakeAgent(tmp_path_factory.mktemp("pair") / "agent.sock") as agent:
        config = TransceiverConfig(
            id="x1",
            udp="127.0.0.1:0",
            http="127.0.0.1:0",
            agent=agent.socket,
            api_key=KEY,
            capacity=3,
            drain_limit=0.0,
        )
        async with running(config, agent) as both:
            yield both


@pytest_asyncio.fixture(loop_scope="module")
async def two(pair: Running) -> AsyncIterator[Running]:
    """Two workers without calls, before and after."""
    yield pair
    async with aiohttp.ClientSession() as http:
        for url in pair.calls:
            async with http.delete(url, headers=SDP) as response:
                assert response.status in (200, 404, 410)
    pair.calls.clear()
    await eventually(lambda: not pair.agent.routes)


@with_two
async def test_calls_are_spread_evenly_and_ended_by_any_worker(two: Running) -> None:
    agent = two.agent
    assert set(agent.transceivers) == {"x1-1", "x1-2"}
    urls = [await two.call() for _ in range(6)]
    assert Counter(agent.routes.values()) == {"x1-1": 3, "x1-2": 3}
    async with (
        aiohttp.ClientSession() as http,
        http.post(f"{two.url}/whip", data=OFFER, headers=SDP) as response,
    ):
        assert response.status == 503  # only now is all taken
    assert [await two.hang_up(url) for url in urls] == [200] * 6
    assert not agent.routes


@with_two
async def test_a_burst_takes_all_that_there_is(two: Running) -> None:
    urls = await asyncio.gather(*(two.call() for _ in range(6)))
    assert len(set(urls)) == 6
    assert Counter(two.agent.routes.values()) == {"x1-1": 3, "x1-2": 3}


@with_two
async def test_forms_and_secrets_are_handed_on_too(two: Running) -> None:
    agent = two.agent
    async with aiohttp.ClientSession(two.url) as http:
        async with http.post(
            "/v1/realtime/client_secrets", headers={"Authorization": SDP["Authorization"]}
        ) as response:
            key = (await response.json())["value"]
        for _ in range(4):
            form = aiohttp.FormData(default_to_multipart=True)
            form.add_field("sdp", OFFER)
            headers = {"Authorization": f"Bearer {key}"}
            async with http.post("/v1/realtime/calls", data=form, headers=headers) as response:
                assert response.status == 201, await response.text()
                two.calls.append(two.url + response.headers["Location"])
        for _ in range(2):
            body = {"sdp": OFFER, "type": "offer"}
            async with http.post("/api/offer", json=body, headers=headers) as response:
                assert response.status == 200
                pc_id = (await response.json())["pc_id"]
                two.calls.append(f"{two.url}/whip/{pc_id}")
        again = body | {"pc_id": pc_id, "restart_pc": True}
        async with http.post("/api/offer", json=again, headers=headers) as response:
            assert response.status == 200
            two.calls[-1] = f"{two.url}/whip/{(await response.json())['pc_id']}"
    assert Counter(agent.routes.values()) == {"x1-1": 3, "x1-2": 3}


@with_two
async def test_audio_and_data_flow_whichever_worker_has_the_call(two: Running) -> None:
    async with Caller(two.url, KEY) as one, Caller(two.url, KEY) as other:
        for caller in (one, other):
            await caller.connected()
            assert caller.channel is not None
            caller.channel.send("hello")
        await eventually(lambda: one.messages == other.messages == ["hello"])


@with_two
async def test_a_worker_that_dies_is_replaced_while_the_other_takes_the_calls(
    two: Running,
) -> None:
    agent = two.agent
    dead, before = two.pid(0), agent.transceivers["x1-1"]
    os.kill(dead, signal.SIGKILL)
    await eventually(lambda: two.supervisor.board.load("x1-1") is None)
    assert len({await two.call() for _ in range(2)}) == 2
    await eventually(lambda: agent.transceivers["x1-1"] != before, within=START_SECONDS)
    assert two.pid(0) != dead
    await eventually(lambda: two.supervisor.board.load("x1-1") == 0)
    url = await two.call()
    assert url.endswith(".x1-1")
    assert not two.supervisor.workers[0].failed


@with_two
async def test_a_worker_that_is_terminated_alone_drains_and_is_replaced(two: Running) -> None:
    agent = two.agent
    before = agent.transceivers["x1-2"]
    os.kill(two.pid(1), signal.SIGTERM)
    await eventually(lambda: agent.transceivers.get("x1-2", before) != before, within=START_SECONDS)
    await eventually(lambda: two.supervisor.board.load("x1-2") == 0)
    assert not two.task.done()


async def test_one_that_stands_still_is_replaced(
    config: TransceiverConfig, agent: FakeAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "HUNG_SECONDS", 3.0)
    async with running(config, agent) as two:
        still, before = two.pid(0), agent.transceivers["x1-1"]
        os.kill(still, signal.SIGSTOP)
        await eventually(lambda: agent.transceivers["x1-1"] != before, within=START_SECONDS)
        assert two.pid(0) != still


async def test_one_whose_id_another_process_takes_is_not_started_again(
    config: TransceiverConfig, agent: FakeAgent
) -> None:
    agent.lease = 0.6
    async with running(config, agent) as two:
        agent.superseded_ids.add("x1-2")
        await eventually(lambda: bool(two.supervisor.workers[1].failed), within=START_SECONDS)
        assert (await two.call()).endswith(".x1-1")
        two.supervisor.stop()
        with pytest.raises(ShuntError, match="x1-2 cannot be"):
            await two.task


async def test_what_keeps_one_from_its_start_keeps_all(
    config: TransceiverConfig, agent: FakeAgent
) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as first:
        first.bind(("127.0.0.1", 0))
        port = first.getsockname()[1]
        with pytest.raises(ShuntError, match="cannot be"):
            await supervise(replace(config, udp=f"127.0.0.1:{port}"), 2)
    await eventually(lambda: not agent.transceivers)


PROGRAM = """
from transceiver.server import TransceiverConfig
from transceiver.workers import run
run(TransceiverConfig(
    id="x1", udp="127.0.0.1:0", http="127.0.0.1:{http}", agent={agent!r}, drain_limit={drain}
), 2)
"""


def three_free_ports() -> int:
    """The first of them: the command's, and the two after it that are the workers' own."""
    while True:
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError, OverflowError):
            first = stack.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1]
            for port in (first + 1, first + 2):
                stack.enter_context(socket.create_server(("127.0.0.1", port)))
            return int(first)


@contextlib.asynccontextmanager
async def command(
    agent: FakeAgent, drain: float = 0.0
) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """The command as a process of its own, once its workers have registered; and its URL."""
    http = three_free_ports()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", PROGRAM.format(http=http, agent=agent.socket, drain=drain)),
        cwd=Path(__file__).parents[2],
        env=os.environ | {"SHUNT_API_KEY": KEY},
    )
    try:
        await eventually(lambda: len(agent.transceivers) == 2, within=START_SECONDS)
        yield process, f"http://127.0.0.1:{http}"
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def test_sigterm_lets_calls_end_and_then_the_command(agent: FakeAgent) -> None:
    async with command(agent, drain=30.0) as (process, url), Caller(url, KEY) as caller:
        await caller.connected()
        process.send_signal(signal.SIGTERM)
        # The worker without a call goes at once.
        await eventually(lambda: len(agent.transceivers) == 1)
        assert caller.peer.connectionState == "connected"
        await caller.peer.close()
        async with asyncio.timeout(START_SECONDS):
            assert await process.wait() == 0
    assert not agent.transceivers
    assert not agent.routes


async def test_a_second_one_ends_them(agent: FakeAgent) -> None:
    async with command(agent, drain=30.0) as (process, url), Caller(url, KEY) as caller:
        await caller.connected()
        process.send_signal(signal.SIGTERM)
        await eventually(lambda: len(agent.transceivers) == 1)
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(START_SECONDS):
            assert await process.wait() == 0
        await eventually(lambda: caller.peer.connectionState == "closed")
    assert not agent.routes


async def test_workers_go_with_a_supervisor_that_is_killed(agent: FakeAgent) -> None:
    async with command(agent) as (process, _):
        process.kill()
        await eventually(lambda: not agent.transceivers, within=START_SECONDS)


def config_for(**change: object) -> TransceiverConfig:
    config = TransceiverConfig(
        id="x1", udp="198.18.1.11:40000", http="198.18.1.11:8080", api_key="k"
    )
    return replace(config, **change)  # type: ignore[arg-type]


def test_workers_have_ids_and_ports_by_number() -> None:
    found = [(each.id, each.udp, each.http) for each in assignments(config_for(), 2)]
    assert found == [
        ("x1-1", "198.18.1.11:40000", "198.18.1.11:8081"),
        ("x1-2", "198.18.1.11:40001", "198.18.1.11:8082"),
    ]


@pytest.mark.parametrize("http", ["0.0.0.0:8080", "[::]:8080"])
def test_what_the_others_are_told_is_no_unspecified_address(http: str) -> None:
    assert assignments(config_for(http=http), 1)[0].http == "198.18.1.11:8081"


def test_ipv6_addresses_keep_their_brackets() -> None:
    (one,) = assignments(config_for(udp="[2001:db8::1]:4000", http="[2001:db8::1]:80"), 1)
    assert (one.udp, one.http) == ("[2001:db8::1]:4000", "[2001:db8::1]:81")


def test_any_port_stays_any() -> None:
    two = assignments(config_for(udp="127.0.0.1:0", http="127.0.0.1:0"), 2)
    assert {(each.udp, each.http) for each in two} == {("127.0.0.1:0", "127.0.0.1:0")}


@pytest.mark.parametrize(
    ("change", "count"),
    [
        ({}, 0),
        ({}, workers.MAX_WORKERS + 1),
        ({"udp": "127.0.0.1:65535"}, 2),
        ({"http": "127.0.0.1:65534"}, 2),
        ({"id": "x" * 62}, 2),
    ],
)
def test_what_cannot_be_is_refused(change: dict[str, object], count: int) -> None:
    with pytest.raises(ShuntError):
        assignments(config_for(**change), count)
