"""What systemd hears of the agent (sd_notify(3)): that it is ready, reloads, stops, and lives.

It lives as long as its loops turn. One that has died ends the process by itself; this is for one
that stands still, waiting for what never comes or busy without end: systemd then hears nothing
more, and starts another agent. Without systemd nobody is told, and what stands still is logged all
the same.
"""

import asyncio
import logging
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from systemd_watchdog.systemd_watchdog import WatchDog

__all__ = ["Supervision"]

log = logging.getLogger(__name__)

_MOST_PATIENCE = 10.0  # seconds that a loop may stand still, whatever systemd would bear
_LEAST_PATIENCE = 3.0  # a loop that is well turns once a second


class Supervision:
    """One agent's line to systemd, by `$NOTIFY_SOCKET` and `$WATCHDOG_USEC`. Telling never waits
    and never fails: what systemd does not take is not told. `clock` gives monotonic seconds."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._systemd = WatchDog(self._socket)
        self._status = ""
        self._late: set[str] = set()
        asked = self._systemd.timeout_td.total_seconds() / 2
        self._patience = min(max(asked, _LEAST_PATIENCE), _MOST_PATIENCE)

    def close(self) -> None:
        self._socket.close()

    def ready(self, status: str) -> None:
        """The relay is attached and the API answers. *status*: one line for `systemctl status`."""
        self._tell(status, "READY=1")

    def status(self, status: str) -> None:
        """The line for `systemctl status`, told if it is another one."""
        if status != self._status:
            self._tell(status)

    @contextmanager
    def reloading(self) -> Iterator[None]:
        """The configuration is read again; ready as before when that is over, well or not."""
        before = self._status
        since = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._tell("reading the configuration again", "RELOADING=1", f"MONOTONIC_USEC={since}")
        try:
            yield
        finally:
            self._tell(before, "READY=1")

    def stopping(self, why: str) -> None:
        """The agent ends; the relay goes on."""
        self._tell(why, "STOPPING=1")

    async def watch(
        self, loops: Mapping[str, Callable[[], float]], *, status: Callable[[], str]
    ) -> None:
        """Forever: `look` at *loops*, by name, which say when they turned last, and tell the
        *status*."""
        while True:
            if self.look({name: turned() for name, turned in loops.items()}):
                self.status(status())
            await asyncio.sleep(self._patience / 4)

    def look(self, turned: Mapping[str, float]) -> bool:
        """Whether each loop, by name, has turned lately; if so, tell that the agent lives."""
        now = self._clock()
        late = {name for name, at in turned.items() if now - at > self._patience}
        for name in late - self._late:
            log.error("%s stands still for %.1f s", name, now - turned[name])
        for name in self._late - late:
            log.warning("%s goes on", name)
        self._late = late
        if not late:
            self._send(self._systemd.notify)
        return not late

    def _tell(self, status: str, *words: str) -> None:
        self._status = status
        # Assignments of one message are taken together, and this method of the library's takes any.
        self._send(lambda: self._systemd.status("\n".join([status, *words])))

    def _send(self, send: Callable[[], None]) -> None:
        try:
            send()
        except OSError as error:
            log.warning("systemd does not hear us: %s", error)
