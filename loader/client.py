"""The agent's HTTP API from the other side: what transceivers and tools call."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import aiohttp
import msgspec

from loader.errors import ShuntError
from loader.problems import PROBLEMS, problem_uri

__all__ = [
    "DEFAULT_SOCKET",
    "AgentClient",
    "AgentRefused",
    "AgentUnavailable",
    "Lease",
    "Vip",
]

DEFAULT_SOCKET = "/run/shunt/agent.sock"
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


class AgentClient:
    """A connection to the agent on this host; an async context manager.

    Every call raises AgentUnavailable or AgentRefused.
    """

    def __init__(self, socket: str = DEFAULT_SOCKET) -> None:
        self._socket = socket
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.UnixConnector(path=self._socket), timeout=_TIMEOUT
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
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
        return Lease(answer["lease_s"], vips, draining=answer.get("draining", False))

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

    async def routes(self, *, transceiver: str | None = None) -> dict[str, Any]:
        """`GET /v1/routes`, of one transceiver if its id is given."""
        query = f"?transceiver={_segment(transceiver)}" if transceiver else ""
        return await self._call("GET", f"/v1/routes{query}")

    async def flows(self) -> dict[str, Any]:
        """`GET /v1/flows`: `flows`, not all if there are very many, and their `count`."""
        return await self._call("GET", "/v1/flows")

    async def counters(self) -> dict[str, Any]:
        """`GET /v1/counters`."""
        return await self._call("GET", "/v1/counters")

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
        if self._session is None:
            raise RuntimeError("use AgentClient as an async context manager")
        headers = {} if instance is None else {"Shunt-Instance": instance}
        try:
            async with self._session.request(
                method, f"http://agent{path}", headers=headers, json=body
            ) as response:
                text = await response.read()
                if response.status >= 400:
                    raise _refusal(response.status, str(response.reason), text)
                answer = msgspec.json.decode(text) if text else {}
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            raise AgentUnavailable(
                f"cannot reach the agent at {self._socket}: {error or type(error).__name__}",
                "Is it running? `shunt agent run`, or `shunt lab up`.",
            ) from error
        return dict(answer)


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
