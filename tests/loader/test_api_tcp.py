"""The agent asked over TCP and TLS, from where transceivers are."""

import asyncio
import http.client
import json
import ssl
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from loader.client import AgentClient, AgentRefused, AgentUnavailable
from loader.errors import ShuntError
from tests.loader.conftest import (
    INSTANCE,
    RELAY_INSIDE,
    ROOT,
    TCP_PORT,
    TCP_URL,
    TOKEN,
    TRANSCEIVER,
    AgentProcess,
    eventually,
)
from tools import netns

T = TypeVar("T")
OTHER_TOKEN = "another-token-of-the-tests-0123456789"


def files(agent: AgentProcess) -> Path:
    """Where the files of its server are."""
    return agent.socket.parent


def asked(
    agent: AgentProcess,
    question: Callable[[AgentClient], Awaitable[T]],
    *,
    token: str = TOKEN,
    ca: Path | None = None,
) -> T:
    """Ask over TLS, from the namespace of the transceivers."""

    async def ask() -> T:
        trusted = ca or files(agent) / "ca.pem"
        async with AgentClient(TCP_URL, token=token, ca=trusted) as client:
            return await question(client)

    return netns.run_in(agent.host.outside, lambda: asyncio.run(ask()))


def answer(agent: AgentProcess, path: str, **headers: str) -> tuple[http.client.HTTPResponse, Any]:
    """A request of no client of ours; the answer and what it holds."""

    def ask() -> tuple[http.client.HTTPResponse, Any]:
        context = ssl.create_default_context(cafile=files(agent) / "ca.pem")
        connection = http.client.HTTPSConnection(RELAY_INSIDE, TCP_PORT, context=context)
        connection.request("GET", path, headers=headers)
        response = connection.getresponse()
        body = json.loads(response.read())
        connection.close()
        return response, body

    return netns.run_in(agent.host.outside, ask)


def test_with_a_token_all_can_be_asked(shared_agent: AgentProcess) -> None:
    async def question(client: AgentClient) -> list[str]:
        await client.register(
            "remote",
            instance=INSTANCE,
            address=TRANSCEIVER,
            port=40000,
            http="http://198.18.1.11:8080",
            capacity=10,
        )
        await client.add_route("remo", transceiver="remote", instance=INSTANCE)
        routes = (await client.routes(transceiver="remote"))["routes"]
        await client.deregister("remote", instance=INSTANCE)
        return [route["ufrag"] for route in routes]

    assert asked(shared_agent, question) == ["remo"]


@pytest.mark.parametrize("path", ["/v1/routes", "/healthz", "/metrics", "/openapi.json", "/none"])
@pytest.mark.parametrize(
    "authorization", [None, "", f"Basic {TOKEN}", f"Bearer {TOKEN[:-1]}", f"Bearer x{TOKEN}"]
)
def test_without_it_nothing_can(
    shared_agent: AgentProcess, path: str, authorization: str | None
) -> None:
    headers = {} if authorization is None else {"Authorization": authorization}

    response, body = answer(shared_agent, path, **headers)

    assert response.status == 401
    assert response.headers["WWW-Authenticate"] == 'Bearer realm="shunt agent"'
    assert response.headers["Connection"] == "close"
    assert body["type"] == "/problems/unauthorized"
    assert TOKEN not in str(body)


def test_a_wrong_token_is_told_by_the_client(shared_agent: AgentProcess) -> None:
    with pytest.raises(AgentRefused) as error:
        asked(shared_agent, lambda client: client.health(), token="wrong")

    assert (error.value.status, error.value.type) == (401, "unauthorized")


def test_a_client_trusts_nobody_but_whom_it_was_told_to(
    shared_agent: AgentProcess, tmp_path: Path
) -> None:
    def ask() -> None:
        async def question() -> None:
            async with AgentClient(TCP_URL, token=TOKEN) as client:  # the system's authorities
                await client.health()

        asyncio.run(question())

    with pytest.raises(AgentUnavailable, match="certificate verify failed"):
        netns.run_in(shared_agent.host.outside, ask)


@pytest.mark.parametrize(
    ("url", "token", "why"),
    [
        (TCP_URL, None, "asks for a token, and there is none"),
        (TCP_URL, "", "asks for a token, and there is none"),
        (TCP_URL, "two words", "there is one that fits in no header"),
        ("ftp://relay", TOKEN, "is no URL of http or https"),
        ("https://", TOKEN, "is no URL of http or https"),
    ],
)
def test_what_cannot_be_is_told_before_anybody_is_asked(
    url: str, token: str | None, why: str
) -> None:
    with pytest.raises(ShuntError, match=why):
        AgentClient(url, token=token)


def test_authorities_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("no certificate")

    with pytest.raises(ShuntError, match="cannot read certificates from"):
        AgentClient(TCP_URL, token=TOKEN, ca=tmp_path / "ca.pem")


@pytest.fixture
def token_file(shared_agent: AgentProcess) -> Iterator[Path]:
    """The agent's; as it was afterwards."""
    path = files(shared_agent) / "tokens"
    before = path.read_text()
    yield path
    path.write_text(before)
    path.chmod(0o600)
    reload(shared_agent)


def reload(agent: AgentProcess) -> dict[str, Any]:
    """Over the Unix socket."""

    async def ask() -> dict[str, Any]:
        async with AgentClient(str(agent.socket)) as client:
            return await client.reload()

    return asyncio.run(ask())


def test_a_token_is_rotated_by_a_reload(shared_agent: AgentProcess, token_file: Path) -> None:
    token_file.write_text(f"{TOKEN}\n{OTHER_TOKEN}\n")
    assert reload(shared_agent) == {"changed": [], "restart": []}
    for token in (TOKEN, OTHER_TOKEN):
        assert asked(shared_agent, lambda client: client.health(), token=token) == {"ready": True}

    token_file.write_text(f"{OTHER_TOKEN}\n")
    asked(shared_agent, lambda client: client.reload(), token=TOKEN)

    assert asked(shared_agent, lambda client: client.health(), token=OTHER_TOKEN)
    with pytest.raises(AgentRefused):
        asked(shared_agent, lambda client: client.health(), token=TOKEN)


def test_a_reload_that_finds_a_bad_file_says_so_and_changes_nothing(
    shared_agent: AgentProcess, token_file: Path
) -> None:
    token_file.write_text(OTHER_TOKEN)
    token_file.chmod(0o644)

    with pytest.raises(AgentRefused) as error:
        reload(shared_agent)

    assert (error.value.status, error.value.type) == (422, "configuration-refused")
    (fault,) = error.value.members["faults"]
    assert fault["what"].startswith("anybody can read the token file")
    assert fault["cure"] == f"chmod o= {token_file}"
    assert asked(shared_agent, lambda client: client.health(), token=TOKEN) == {"ready": True}


def test_a_transceiver_on_another_host_registers_over_tls(
    shared_agent: AgentProcess, tmp_path: Path
) -> None:
    (tmp_path / "token").write_text(f"# ours\n{TOKEN}\n")
    arguments = [
        *("transceiver", "run", "--id", "distant", "--agent", TCP_URL),
        *("--agent-token-file", str(tmp_path / "token")),
        *("--agent-ca", str(files(shared_agent) / "ca.pem")),
        *("--udp", f"{TRANSCEIVER}:41000", "--http", f"{TRANSCEIVER}:8081"),
    ]
    log = tmp_path / "log"

    def start() -> "subprocess.Popen[bytes]":
        with log.open("wb") as output:
            return subprocess.Popen(
                [sys.executable, "-m", "tools", *arguments],
                cwd=ROOT,
                env={"SHUNT_API_KEY": "a-key", "PATH": "/usr/bin:/bin"},
                stderr=output,
            )

    process = netns.run_in(shared_agent.host.outside, start)
    try:
        eventually("it is ready", lambda: "distant ready" in log.read_text(), within=60)
        told = asked(shared_agent, lambda client: client.transceivers())["transceivers"]
        assert [(each["id"], each["port"]) for each in told] == [("distant", 41000)]
    finally:
        process.terminate()
        process.wait(timeout=30)
    assert asked(shared_agent, lambda client: client.transceivers()) == {"transceivers": []}
