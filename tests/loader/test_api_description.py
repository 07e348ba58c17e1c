"""The API is as it is described: nothing more, nothing less, and whatever is asked of it."""

import asyncio
import re
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
import requests
import schemathesis
from aiohttp import web
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import Case, GenerationMode
from schemathesis.checks import CHECKS

from loader import shapes
from loader.agent import Agent
from loader.api import application
from loader.api.description import describe
from loader.api.operations import OPERATIONS
from loader.client import AgentClient
from loader.events import KINDS, EventLog
from loader.metrics import Metrics
from loader.problems import PROBLEMS
from tests.loader.conftest import (
    INSTANCE,
    ROOT,
    TCP_URL,
    TOKEN,
    TRANSCEIVER,
    AgentProcess,
)
from tools import netns

BODY: dict[str, Any] = {
    "instance": INSTANCE,
    "address": TRANSCEIVER,
    "port": 40000,
    "http": "http://198.18.1.11:8080",
    "capacity": 100,
}
EXAMPLES = 12
CHECKED = (
    *("status_code_conformance", "content_type_conformance", "response_headers_conformance"),
    *("response_schema_conformance", "missing_required_header", "unsupported_method"),
    *("allow_header_conformance", "negative_data_rejection", "ignored_auth"),
)
OPERATION_NAMES = [operation.name for operation in OPERATIONS]


def strict(description: dict[str, Any]) -> dict[str, Any]:
    """The description as it would be if answers could have no members that it does not name, so
    that one that it forgets is found."""
    for schema in description["components"]["schemas"].values():
        if schema.get("type") == "object" and schema["title"] != "Problem":
            schema["additionalProperties"] = False
    return description


@pytest.fixture
def description(shared_agent: AgentProcess) -> Iterator[dict[str, Any]]:
    """As the agent serves it; with a transceiver and routes to ask about."""

    async def prepare() -> dict[str, Any]:
        async with AgentClient(str(shared_agent.socket)) as client:
            await client.register("x1", **BODY)
            for ufrag in ("abcd", "a/+d"):
                await client.add_route(ufrag, transceiver="x1", instance=INSTANCE)
            return await client._call("GET", "/openapi.json")

    async def leave() -> None:
        async with AgentClient(str(shared_agent.socket)) as client:
            await client.call_off_drain()
            for transceiver in (await client.transceivers())["transceivers"]:
                await client.register(transceiver["id"], **BODY)  # its place is ours then
            for transceiver in (await client.transceivers())["transceivers"]:
                await client.deregister(transceiver["id"], instance=INSTANCE)

    yield asyncio.run(prepare())
    asyncio.run(leave())


def test_every_route_of_the_server_is_described_and_no_other() -> None:
    served = {
        (route.method, route.resource.canonical)
        for route in application(unasked()).router.routes()
        if route.resource and route.method != "HEAD"
    }
    described = {
        (method.upper(), path)
        for path, methods in describe()["paths"].items()
        for method in methods
    }

    assert served == described


def unasked() -> Agent:
    """An agent that nobody asks anything: enough for an application to be made."""
    agent = object.__new__(Agent)
    agent.metrics, agent.events = object.__new__(Metrics), EventLog(clock=lambda: 0.0)
    return agent


def test_what_can_be_read_can_be_read_by_head_too() -> None:
    routes = application(unasked()).router.routes()
    methods: dict[str, set[str]] = {}
    for route in routes:
        assert isinstance(route.resource, web.Resource)
        methods.setdefault(route.resource.canonical, set()).add(route.method)

    assert all(("GET" in each) == ("HEAD" in each) for each in methods.values())


def test_names_of_operations_and_their_problems_are_no_inventions() -> None:
    assert len(set(OPERATION_NAMES)) == len(OPERATION_NAMES)
    for operation in OPERATIONS:
        assert set(operation.problems) <= set(PROBLEMS), operation.name


def test_every_problem_belongs_to_an_operation_or_to_the_server() -> None:
    described = set(re.findall(r"/problems/([a-z-]+)", str(describe()["paths"])))

    assert set(PROBLEMS) - described == {"method-not-allowed", "expectation-failed"}


def test_the_page_of_the_api_names_every_operation_and_every_problem_and_no_other() -> None:
    page = (ROOT / "docs" / "api.md").read_text()

    operations = set(re.findall(r"^\| `([A-Z]+ /\S+)` \|", page, re.MULTILINE))
    problems = set(re.findall(r"^\| (\d{3}) \| `([a-z-]+)` \|", page, re.MULTILINE))
    events = set(re.findall(r"^\| `([a-z_]+)` \|", page, re.MULTILINE))

    assert operations == {f"{each.method} {each.path}" for each in OPERATIONS}
    assert problems == {(str(each.status), each.name) for each in PROBLEMS.values()}
    assert events == {*KINDS, "missed"}


@pytest.mark.parametrize("name", OPERATION_NAMES)
def test_whatever_is_asked_the_answer_is_as_described(
    shared_agent: AgentProcess, description: dict[str, Any], name: str
) -> None:
    """Over TCP and TLS, from where transceivers are: what is right, and what is not."""
    schema = schemathesis.openapi.from_dict(strict(description))
    operation = schema.find_operation_by_id(name)
    checks: list[Any] = list(CHECKS.get_by_names(CHECKED))
    ca = str(shared_agent.socket.parent / "ca.pem")
    session = requests.Session()
    session.headers["Authorization"] = f"Bearer {TOKEN}"
    session.trust_env = False  # which could name other authorities

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        derandomize=True,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy() | operation.as_strategy(GenerationMode.NEGATIVE))
    def ask(case: Case[Any]) -> None:
        if name == "events" and (case.query or {}).get("follow") in (None, True, "true"):
            case.query = {**(case.query or {}), "follow": "false"}  # or it would never end
        response = case.call(base_url=TCP_URL, session=session, verify=ca)
        status = response.status_code
        assert status < 500 or PROBLEMS[problem(response.content)].status == status, response.text
        case.validate_response(response, checks=checks, transport_kwargs={"verify": ca})

    netns.run_in(shared_agent.host.outside, ask)


def problem(body: bytes) -> str:
    """The name of the problem that the agent says it has: never that it failed."""
    name = msgspec.json.decode(body, type=shapes.Problem).type.removeprefix("/problems/")
    assert name != "internal-error"
    return name
