"""What the agent logs, to stderr: lines for people, or one JSON object a line.

Anything is logged as usual; what a line is about goes with it, as in
`log.info("…", extra={"facts": {"transceiver": "x1"}})`, and stands in an object of its own, so that
no fact can be taken for the line's own time or level.

Logs are kept longer, and read by more people, than anything else of the relay: whoever reads them
may learn which sessions there were, but not from where. So from INFO on no line has a client's
address in it, and none of any level a token.
"""

import ipaddress
import json
import logging
import sys
import time
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, TextIO

from loader.events import Event

__all__ = ["EventLines", "JsonLines", "TextLines", "configure"]

log = logging.getLogger(__name__)

_A_SECOND = 100
"""Events of a kind that are logged a second; each is in the event stream, however many."""

_BURST = 200

_OURS = frozenset({"address", "inside", "neighbour", "vip"})
"""Facts whose addresses are the relay's or a transceiver's. Any other address may be a client's."""


class TextLines(logging.Formatter):
    """A line for people, in local time, the facts behind it; below it the trace of an exception."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """The line without its exception."""
        facts = getattr(record, "facts", {})
        return " ".join(
            [super().formatMessage(record), *(f"{name}={_word(facts[name])}" for name in facts)]
        )


class JsonLines(logging.Formatter):
    """An object a line: `time` (RFC 3339, UTC), `level`, `logger`, `message`; `facts` and
    `exception` (`type`, `message`, `trace`) if there are any. All of it ASCII."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC)
            .isoformat(timespec="microseconds")
            .replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if facts := getattr(record, "facts", None):
            line["facts"] = facts
        if record.exc_info and record.exc_info[1]:
            error = record.exc_info[1]
            line["exception"] = {
                "type": type(error).__qualname__,
                "message": str(error),
                "trace": "".join(traceback.format_exception(error)),
            }
        return json.dumps(line, default=str)


_FORMATS: dict[str, Callable[[], logging.Formatter]] = {"text": TextLines, "json": JsonLines}
_handler: logging.Handler | None = None


def configure(level: str, format: str, *, stream: TextIO | None = None) -> None:
    """Log in this way from now on, whatever it was before; *stream* is stderr by default.

    Below INFO are only our own modules: what libraries say there is about their insides.
    """
    global _handler
    handler = logging.StreamHandler(stream)
    handler.setFormatter(_FORMATS[format]())
    number = logging.getLevelNamesMapping()[level.upper()]
    root = logging.getLogger()
    root.addHandler(handler)
    if _handler:
        root.removeHandler(_handler)
    _handler = handler
    root.setLevel(max(number, logging.INFO))
    logging.getLogger("loader").setLevel(number)
    logging.captureWarnings(True)
    sys.excepthook = sys.__excepthook__ if format == "text" else _log_uncaught


def _log_uncaught(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    if isinstance(error, Exception):
        log.critical("the agent ends by a bug", exc_info=(kind, error, trace))
    else:
        sys.__excepthook__(kind, error, trace)


class EventLines:
    """Logs events, each as a line whose message is its kind: `EventLog.listen(EventLines())`.

    No more than a hundred a second of a kind, two hundred at once; the next line of that kind
    says in `left_out` how many are missing. `clock` gives monotonic seconds.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._budgets: dict[str, tuple[float, float]] = {}  # by kind: lines left, and since when
        self._left_out: dict[str, int] = {}

    def __call__(self, event: Event) -> None:
        """Log the event, unless there are too many."""
        now = self._clock()
        left, since = self._budgets.get(event.kind, (float(_BURST), now))
        left = min(_BURST, left + (now - since) * _A_SECOND)
        if left < 1:
            self._budgets[event.kind] = left, now
            self._left_out[event.kind] = self._left_out.get(event.kind, 0) + 1
            return
        self._budgets[event.kind] = left - 1, now
        facts = {"event": event.number, **event.facts}
        if not log.isEnabledFor(logging.DEBUG):
            facts = {name: value for name, value in facts.items() if _is_public(name, value)}
        if left_out := self._left_out.pop(event.kind, 0):
            facts["left_out"] = left_out
        log.info("%s", event.kind, extra={"facts": facts})


def _is_public(name: str, value: object) -> bool:
    """Whether no client's address is in it."""
    if isinstance(value, dict):
        return all(_is_public(str(inner), one) for inner, one in value.items())
    if isinstance(value, list | tuple):
        return all(_is_public(name, one) for one in value)
    return name in _OURS or not (isinstance(value, str) and _is_address(value))


def _is_address(text: str) -> bool:
    """Also with a port, or in brackets."""
    if ":" not in text and text.count(".") != 3:
        return False
    host = text.rpartition(":")[0] if text.count(":") == 1 or "]:" in text else text
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    return True


def _word(value: object) -> str:
    """A fact's value: a plain word, or as JSON has it."""
    if isinstance(value, str) and value and value.isprintable() and not set(value) & set(' "='):
        return value
    return json.dumps(value, default=str)
