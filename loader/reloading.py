"""A reload: the configuration is read again, and what can change changes, all of it or nothing."""

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress

from loader import logs
from loader.config import AgentConfig
from loader.configfile import BadConfig, Reloaded, reload
from loader.errors import ShuntError

__all__ = ["Prepare", "Reloading"]

log = logging.getLogger(__name__)

Prepare = Callable[[AgentConfig], Callable[[], None]]
"""What a part does about another configuration: read and check all that it needs of it, raising
ShuntError if that fails, and give back what makes it so, which cannot fail. It is called in a
thread, and also if no key has changed: a file may have."""


class Reloading:
    """Reads the configuration again when asked to. *read* is called in a thread; *parts* are
    prepared for what it gives, in their order, before anything changes, and then changed. *wall*
    gives Unix time."""

    def __init__(
        self,
        config: AgentConfig,
        read: Callable[[], AgentConfig],
        *,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.config = config
        self.failed = False
        """Whether what was read last was not taken."""
        self.taken_at = wall()
        """When the configuration that is in force was read, in Unix time."""
        self._wall = wall
        self.parts: list[Prepare] = [_logs]
        self._read = read
        self._asked = asyncio.Event()
        self._one_at_a_time = asyncio.Lock()

    def ask(self) -> None:
        """Reload soon, as `keep` does; asking twice before it has begun is asking once."""
        self._asked.set()

    async def keep(
        self, *, during: Callable[[], AbstractContextManager[None]] = nullcontext
    ) -> None:
        """Forever: reload when asked to, each time within a context of *during*. What is wrong is
        in the log."""
        while True:
            await self._asked.wait()
            self._asked.clear()
            with during(), suppress(ShuntError):
                await self.reload()

    async def reload(self) -> Reloaded:
        """Reload now. Raises ShuntError, after which everything is as it was."""
        async with self._one_at_a_time:
            try:
                reloaded, changes = await asyncio.to_thread(self._prepare)
            except ShuntError as error:
                self.failed = True
                _log_refusal(error)
                raise
            for change in changes:
                change()
            self.config = reloaded.config
            self.failed, self.taken_at = False, self._wall()
        log.info("the configuration was read again", extra={"facts": {"changed": reloaded.changed}})
        if reloaded.restart:
            log.warning(
                "some of it needs a restart, which loses no packet",
                extra={"facts": {"keys": reloaded.restart}},
            )
        return reloaded

    def _prepare(self) -> tuple[Reloaded, list[Callable[[], None]]]:
        reloaded = reload(self.config, self._read())
        return reloaded, [prepare(reloaded.config) for prepare in self.parts]


def _logs(config: AgentConfig) -> Callable[[], None]:
    return lambda: logs.configure(config.log_level, config.log_format)


def _log_refusal(error: ShuntError) -> None:
    if isinstance(error, BadConfig):
        faults = [(str(fault), fault.cure) for fault in error.faults]
    else:
        faults = [(error.what, error.cure)]
    for what, cure in faults:
        log.error("%s", what, extra={"facts": {"cure": cure} if cure else {}})
    log.error("the configuration stays as it was: errors: %d", len(faults))
