"""This transceiver's standing with the relay: its lease, and the routes that its sessions need.

What the agent holds is compared with what is live at each renewal, so that a route that was lost
(the agent started afresh) comes back, and one that could not be removed goes.
"""

import asyncio
import contextlib
import logging
import secrets
from collections.abc import AsyncIterator

from loader.client import AgentClient, AgentRefused
from loader.digest import digest
from loader.errors import ShuntError
from transceiver.stun import Address, text

__all__ = ["Registration"]

FIRST_RETRY = 0.25
LAST_RETRY = 2.0
"""Seconds between tries. An agent that comes back gives its leases at least 5 s to be renewed."""

CALL_LIMIT = 3.0
"""Seconds that the agent gets to answer while somebody waits."""

RENEWAL_LIMIT = 5.0
"""Seconds for one renewal; what routes it did not get to, the next one does."""

DRAINING, SUPERSEDED = "draining", "superseded"
"""Problems, by type: we get no new routes; we are no longer the transceiver of our id."""

log = logging.getLogger(__name__)


class Registration:
    """Keeps the lease while `run` runs; carries the routes of the sessions (`session.Routes`)."""

    def __init__(
        self, client: AgentClient, *, id: str, udp: Address, http: str, capacity: int
    ) -> None:
        self.registered = asyncio.Event()
        """Set while the agent knows us, as far as we know."""
        self._client = client
        self._id = id
        self._instance = secrets.token_urlsafe(24)
        self._udp = udp
        self._http = http
        self._capacity = capacity
        self._vips: tuple[Address, ...] = ()
        self._draining = False
        self._live: set[str] = set()

    @property
    def vips(self) -> tuple[Address, ...]:
        """Where clients send to, as the agent said last."""
        return self._vips

    @property
    def draining(self) -> bool:
        """Whether the relay makes no new routes to us, as the agent said last."""
        return self._draining

    async def run(self) -> None:
        """Register and renew, until cancelled; ShuntError if another process takes our id."""
        retry = FIRST_RETRY
        complained = False
        while True:
            try:
                async with _within(RENEWAL_LIMIT):
                    delay = await self._renew()
            except ShuntError as error:
                if isinstance(error, AgentRefused) and error.type == SUPERSEDED:
                    raise ShuntError(
                        f"another process registered as transceiver {self._id}",
                        "give each transceiver an --id of its own",
                    ) from error
                self.registered.clear()
                if not complained:
                    log.warning("no lease from the relay agent, trying on: %s", error)
                complained = True
                delay, retry = retry, min(2 * retry, LAST_RETRY)
            else:
                if not self.registered.is_set():
                    vips = ", ".join(map(text, self._vips))
                    log.info("transceiver %s ready: clients send to %s", self._id, vips)
                self.registered.set()
                retry, complained = FIRST_RETRY, False
            await asyncio.sleep(delay)

    async def add(self, ufrag: str, *, restarts: str | None = None) -> None:
        """Return once the relay steers *ufrag* here; ShuntError if not, then `remove` it.

        *restarts*: the ufrag whose place this one takes, which is allowed during a drain.
        """
        self._live.add(ufrag)
        async with _within(CALL_LIMIT):
            await self._client.add_route(
                ufrag, transceiver=self._id, instance=self._instance, restarts=restarts
            )

    async def remove(self, ufrag: str) -> None:
        """Take the route back; if the agent is away, at the next renewal or with the lease."""
        self._live.discard(ufrag)
        try:
            async with _within(CALL_LIMIT):
                await self._client.remove_route(ufrag, instance=self._instance)
        except ShuntError as error:
            log.warning("route %s stays until the next renewal: %s", ufrag, error)

    async def leave(self) -> None:
        """Give the lease back; if that fails it runs out."""
        try:
            async with _within(CALL_LIMIT):
                await self._client.deregister(self._id, instance=self._instance)
        except ShuntError as error:
            log.warning("the lease was not given back, it will run out: %s", error)

    async def _renew(self) -> float:
        """One renewal and comparison; returns the seconds until the next."""
        host, port = self._udp
        lease = await self._client.register(
            self._id,
            instance=self._instance,
            address=host,
            port=port,
            http=self._http,
            capacity=self._capacity,
        )
        self._vips = tuple((vip.address, vip.port) for vip in lease.vips)
        if lease.draining != self._draining:
            log.info("draining: no new sessions" if lease.draining else "the drain was called off")
        self._draining = lease.draining
        if lease.digest != digest(self._live):
            await self._reconcile()
        seconds: float = lease.seconds
        return seconds / 3

    async def _reconcile(self) -> None:
        """Have the agent hold the routes that are live, and no other."""
        told = await self._client.routes(transceiver=self._id, slots=False)
        held = {route["ufrag"] for route in told["routes"]}
        for ufrag in self._live - held:
            await self._restore(ufrag)
        for ufrag in held - self._live:
            await self._client.remove_route(ufrag, instance=self._instance)

    async def _restore(self, ufrag: str) -> None:
        try:
            await self._client.add_route(ufrag, transceiver=self._id, instance=self._instance)
        except AgentRefused as refused:
            if refused.type != DRAINING:
                raise
            # Its route was ended at the drain's deadline; the session ends for want of consent.
            log.warning("route %s is not restored: %s", ufrag, refused.detail)


@contextlib.asynccontextmanager
async def _within(seconds: float) -> AsyncIterator[None]:
    """An agent that does not answer is as one that cannot be reached."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as error:
        raise ShuntError("the relay agent does not answer", "see its log") from error
