"""The agent's HTTP API from the other side: what transceivers and tools call."""

import asyncio
import ssl
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote, urlencode

import aiohttp
import msgspec

from loader.addresses import http_url
from loader.errors import ShuntError
from loader.problems import PROBLEMS, problem_uri, quoted
from loader.unix_http import Response, UnixHttp

__all__ = [
    "DEFAULT_SOCKET",
    "TOKEN_VARIABLE",
    "AgentClient",
    "AgentRefused",
    "AgentUnavailable",
    "Lease",
    "Vip",
]

DEFAULT_SOCKET = "/run/shunt/agent.sock"
TOKEN_VARIABLE = "SHUNT_AGENT_TOKEN"
"""The environment variable that commands take the token from, for agents on other hosts."""

_PAGE = 10_000
_SILENCE_SECONDS = 45.0
_TIMEOUT = aiohttp.ClientTimeout(total=5.0)


class AgentUnavailable(ShuntError):
    """The agent cannot be reached, or does not answer in time."""


class AgentRefused(ShuntError):
    """The agent said no: an HTTP *status*, the *type* of problem (a name of
    `loader.problems.PROBLEMS`; empty if it did not say), a sentence of *detail*, and the *members*
    that problems of that type have besides."""

    def __init__(
        self, status: int, type: str, detail: str, members: Mapping[str, Any] | None = None
    ) -> None:
        cure = PROBLEMS[type].to_do if type in PROBLEMS else ""
        super().__init__(f"the agent refuses: {detail}", cure)
        self.status = status
        self.type = type
        self.detail = detail
        self.members = dict(members or {})


@dataclass(frozen=True, slots=True)
class Vip:
    """A public address and UDP port that clients send to."""

    address: str
    port: int


@dataclass(frozen=True, slots=True)
class Lease:
    """How long a registration holds, and what to put into SDP answers."""

    seconds: float
    vips: tuple[Vip, ...]
    draining: bool = False
    """Whether the relay makes no new routes to this transceiver: it should take no new sessions."""
    digest: str | None = None
    """Of the routes that the agent holds for it; see `loader.digest`."""


class AgentClient:
    """A connection to an agent: of this host by the path of its Unix socket, of another by a URL
    of http or https, with one of its tokens. *ca*: certificates (PEM) that the agent's must be
    signed by, instead of the system's. An async context manager.

    Raises ShuntError for what cannot be. Every call raises AgentUnavailable or AgentRefused.
    """

    def __init__(
        self, agent: str = DEFAULT_SOCKET, *, token: str | None = None, ca: Path | None = None
    ) -> None:
        self._agent = agent
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._session: aiohttp.ClientSession | None = None
        self._local: UnixHttp | None = None
        self._remote = "://" in agent
        if not self._remote:
            self._base, self._tls = "http://agent", None
            return
        try:
            self._base = http_url(agent).rstrip("/")
        except ValueError as error:
            raise ShuntError(f"the agent's URL {quoted(agent)} {error}") from None
        if not token or not token.isascii() or not token.isprintable() or " " in token:
            raise ShuntError(
                f"the agent at {agent} asks for a token, and there is "
                f"{'none' if not token else 'one that fits in no header'}",
                f"Set {TOKEN_VARIABLE}, or give --agent-token-file.",
            )
        self._tls = _trusting(ca) if self._base.startswith("https:") else None

    async def __aenter__(self) -> Self:
        connector: aiohttp.BaseConnector
        if self._remote:
            connector = aiohttp.TCPConnector(ssl=self._tls or True)
        else:
            connector = aiohttp.UnixConnector(path=self._agent)
            self._local = UnixHttp(self._agent)
        self._session = aiohttp.ClientSession(
            connector=connector, timeout=_TIMEOUT, headers=self._headers
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._local is not None:
            self._local.close()
            self._local = None
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def register(
        self, id: str, *, instance: str, address: str, port: int, http: str, capacity: int
    ) -> Lease:
        """Make or renew the lease of transceiver *id*; *instance* names this process."""
        answer = await self._call(
            "PUT",
            f"/v1/transceivers/{_segment(id)}",
            body={
                "instance": instance,
                "address": address,
                "port": port,
                "http": http,
                "capacity": capacity,
            },
        )
        vips = tuple(Vip(vip["address"], vip["port"]) for vip in answer["vips"])
        return Lease(answer["lease_s"], vips, answer["draining"], answer["digest"])

    async def deregister(self, id: str, *, instance: str) -> None:
        """End the lease; the transceiver's routes go with it."""
        await self._call("DELETE", f"/v1/transceivers/{_segment(id)}", instance=instance)

    async def add_route(
        self,
        ufrag: str,
        *,
        transceiver: str,
        instance: str,
        checks: bool = True,
        restarts: str | None = None,
    ) -> None:
        """Route *ufrag*; when this returns, the relay steers by it. Repeating does no harm.

        *checks*: whether the transceiver makes ICE checks of its own. If it does not, no client
        can prove by an answer that it is there, and the relay asks for none. *restarts*: after an
        ICE restart, the ufrag that the session has had until now; so that it may go on during a
        drain.
        """
        body: dict[str, Any] = {"transceiver": transceiver, "checks": checks}
        if restarts is not None:
            body["restarts"] = restarts
        await self._call(
            "PUT",
            f"/v1/routes/{_segment(ufrag)}",
            instance=instance,
            body=body,
        )

    async def remove_route(self, ufrag: str, *, instance: str) -> None:
        """Remove the route and close its flows; no error if there is none."""
        await self._call("DELETE", f"/v1/routes/{_segment(ufrag)}", instance=instance)

    async def drain(
        self, transceiver: str | None = None, *, deadline_s: float | None = None
    ) -> dict[str, Any]:
        """Give a transceiver, or without an id the whole relay, no new routes; after *deadline_s*
        seconds, if given, what remains is ended. How far that is."""
        body = {} if deadline_s is None else {"deadline_s": deadline_s}
        return await self._call("POST", _drain_path(transceiver), body=body)

    async def drain_progress(self, transceiver: str | None = None) -> dict[str, Any]:
        """How far a drain is: of a transceiver, or of the relay."""
        return await self._call("GET", _drain_path(transceiver))

    async def call_off_drain(self, transceiver: str | None = None) -> None:
        """End a drain, of a transceiver or of the relay; no error if there is none."""
        await self._call("DELETE", _drain_path(transceiver))

    async def transceivers(self) -> dict[str, Any]:
        """`GET /v1/transceivers`."""
        return await self._call("GET", "/v1/transceivers")

    async def routes(self, *, transceiver: str | None = None, slots: bool = True) -> dict[str, Any]:
        """`GET /v1/routes`, all pages of it; of one transceiver if its id is given. Without
        *slots*, nothing is told that only those know."""
        query = {"slots": "true" if slots else "false"}
        if transceiver is not None:
            query["transceiver"] = transceiver
        return await self._all("routes", query)

    async def flows(self) -> dict[str, Any]:
        """`GET /v1/flows`, all pages of it; `count`: how many there were at last."""
        return await self._all("flows", {})

    async def _all(self, name: str, query: dict[str, str]) -> dict[str, Any]:
        found: list[Any] = []
        answer: dict[str, Any] = {"next": 0}
        while (after := answer["next"]) is not None:
            page = urlencode({**query, "limit": _PAGE, "after": after})
            answer = await self._call("GET", f"/v1/{name}?{page}")
            found += answer[name]
        del answer["next"]
        return {**answer, name: found}

    async def events(
        self,
        *,
        kinds: Iterable[str] = (),
        follow: bool = True,
        last: str | None = None,
    ) -> AsyncGenerator[dict[str, Any], None]:
        """`GET /v1/events`: each event, with its `id`, as it comes; `kind` is `missed` where some
        were forgotten before they could be told. *kinds*: only these. Without *follow*, it ends
        with what is known. *last*: the id of the last event that one has."""
        query = [("follow", "true" if follow else "false")]
        if wanted := ",".join(kinds):
            query.append(("kinds", wanted))
        headers = {} if last is None else {"Last-Event-ID": last}
        # A line now and then says that the stream is alive; without, it is not.
        timeout = aiohttp.ClientTimeout(total=None, sock_read=_SILENCE_SECONDS)
        try:
            async with self._request(
                "GET", f"/v1/events?{urlencode(query)}", headers=headers, timeout=timeout
            ) as response:
                if response.status >= 400:
                    raise _refusal(response.status, str(response.reason), await response.read())
                fields: dict[str, str] = {}
                async for line in response.content:
                    name, _, value = line.decode().rstrip("\n").partition(": ")
                    if name:
                        fields[name] = value
                    elif "data" in fields:
                        told = msgspec.json.decode(fields["data"], type=dict[str, Any])
                        yield {"id": fields.get("id"), "kind": fields["event"], **told}
                        fields = {}
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            raise self._unavailable(error) from error

    async def counters(self) -> dict[str, Any]:
        """`GET /v1/counters`."""
        return await self._call("GET", "/v1/counters")

    async def reload(self) -> dict[str, Any]:
        """Have the agent read its configuration again."""
        return await self._call("POST", "/v1/reload")

    async def health(self) -> dict[str, Any]:
        """`GET /readyz`; raises AgentRefused while the relay is not ready."""
        return await self._call("GET", "/readyz")

    async def _call(
        self,
        method: str,
        path: str,
        *,
        instance: str | None = None,
        body: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        headers = {} if instance is None else {"Shunt-Instance": instance}
        try:
            answer = await self._ask(method, path, headers, body)
            if answer.status >= 400:
                raise _refusal(answer.status, answer.reason, answer.body)
            return dict(msgspec.json.decode(answer.body) if answer.body else {})
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            raise self._unavailable(error) from error

    async def _ask(
        self, method: str, path: str, headers: dict[str, str], body: dict[str, Any] | None
    ) -> Response:
        if self._local is not None:
            if body is not None:
                headers["Content-Type"] = "application/json"
            text = b"" if body is None else msgspec.json.encode(body)
            async with asyncio.timeout(_TIMEOUT.total):
                return await self._local.request(method, path, headers | self._headers, text)
        async with self._request(method, path, headers=headers, json=body) as response:
            return Response(response.status, str(response.reason), await response.read())

    def _request(
        self, method: str, path: str, **more: Any
    ) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        if self._session is None:
            raise RuntimeError("use AgentClient as an async context manager")
        return self._session.request(method, f"{self._base}{path}", allow_redirects=False, **more)

    def _unavailable(self, error: Exception) -> AgentUnavailable:
        return AgentUnavailable(
            f"cannot reach the agent at {self._agent}: {error or type(error).__name__}",
            "Is it running? `shunt agent run`, or `shunt lab up`.",
        )


def _trusting(ca: Path | None) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=ca)
    except OSError as error:  # also ssl.SSLError, for what is no PEM
        raise ShuntError(
            f"cannot read certificates from {ca}: {error.strerror or error}",
            "Give a PEM file with the certificate of the authority that signed the agent's.",
        ) from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _refusal(status: int, reason: str, body: bytes) -> AgentRefused:
    """What a problem says (RFC 9457); of what is none, a proxy's say, the status line."""
    try:
        problem = msgspec.json.decode(body, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError):
        return AgentRefused(status, "", reason)
    name = str(problem.pop("type", "")).removeprefix(problem_uri(""))
    detail = problem.pop("detail", None) or problem.get("title") or reason
    members = {key: value for key, value in problem.items() if key not in ("title", "status")}
    return AgentRefused(status, name, str(detail), members)


def _drain_path(transceiver: str | None) -> str:
    return f"/v1/transceivers/{_segment(transceiver)}/drain" if transceiver else "/v1/drain"


def _segment(text: str) -> str:
    return quote(text, safe="")
