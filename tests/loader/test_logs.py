"""What is logged, how, and what never is."""

import io
import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from loader import logs
from loader.events import KINDS, EventLog
from loader.logs import EventLines, configure
from tests.loader.conftest import ROOT

log = logging.getLogger("loader.test")


@pytest.fixture
def stream(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """Where `configure` may log to; afterwards all is as it was."""
    root, ours = logging.getLogger(), logging.getLogger("loader")
    before = root.level, ours.level, list(root.handlers)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(logs, "_handler", None)
    yield io.StringIO()
    root.handlers = before[2]
    root.setLevel(before[0])
    ours.setLevel(before[1])
    logging.captureWarnings(False)


def objects(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_is_an_object_with_its_time_in_utc(stream: io.StringIO) -> None:
    configure("info", "json", stream=stream)

    log.warning("%d of %s", 3, "three", extra={"facts": {"transceiver": "x1", "routes": 3}})

    (line,) = objects(stream)
    assert line.pop("time").endswith("Z")
    assert line == {
        "level": "warning",
        "logger": "loader.test",
        "message": "3 of three",
        "facts": {"transceiver": "x1", "routes": 3},
    }


def test_the_time_is_the_record_s(stream: io.StringIO) -> None:
    configure("info", "json", stream=stream)
    record = log.makeRecord(log.name, logging.INFO, __file__, 1, "then", (), None)
    record.created = 1777895400.25

    log.handle(record)

    assert objects(stream)[0]["time"] == "2026-05-04T11:50:00.250000Z"
    assert datetime.fromisoformat(objects(stream)[0]["time"]) == datetime.fromtimestamp(
        1777895400.25, UTC
    )


def test_whatever_is_logged_is_one_line_of_ascii(stream: io.StringIO) -> None:
    configure("info", "json", stream=stream)

    log.info("two\nlines \u2028 \udc80", extra={"facts": {"ufrag": "ü\n", "what": object()}})

    assert stream.getvalue().isascii()
    assert objects(stream)[0]["message"] == "two\nlines \u2028 \udc80"


def test_an_exception_is_in_the_object(stream: io.StringIO) -> None:
    configure("info", "json", stream=stream)
    try:
        raise OSError("no\nway")
    except OSError:
        log.exception("it failed")

    exception = objects(stream)[0]["exception"]
    assert (exception["type"], exception["message"]) == ("OSError", "no\nway")
    assert "test_logs.py" in exception["trace"]


def test_text_is_a_line_for_people_with_the_facts_behind(stream: io.StringIO) -> None:
    configure("info", "text", stream=stream)

    facts = {"ufrag": "a b", "why": "", "routes": 3, "id": "x1", "ids": ["x"], "on": True}
    log.info("gone", extra={"facts": facts})

    assert stream.getvalue().endswith(
        'INFO loader.test: gone ufrag="a b" why="" routes=3 id=x1 ids=["x"] on=true\n'
    )


def test_only_our_own_modules_are_heard_below_info(stream: io.StringIO) -> None:
    configure("debug", "json", stream=stream)

    log.debug("ours")
    logging.getLogger("asyncio").debug("theirs")
    logging.getLogger("asyncio").info("theirs, but of use")

    assert [line["message"] for line in objects(stream)] == ["ours", "theirs, but of use"]


def test_level_and_format_can_change_and_no_line_comes_twice(stream: io.StringIO) -> None:
    configure("info", "text", stream=stream)
    configure("error", "json", stream=stream)

    log.warning("no longer")
    log.error("once")

    assert [line["message"] for line in objects(stream)] == ["once"]


@pytest.mark.parametrize(("format", "is_json"), [("json", True), ("text", False)])
def test_a_bug_that_ends_the_process_is_logged_like_all_else(format: str, is_json: bool) -> None:
    script = f"from loader.logs import configure; configure('info', {format!r}); 1 / 0"

    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )

    assert done.returncode == 1
    if is_json:
        (line,) = done.stderr.splitlines()
        assert json.loads(line)["exception"]["type"] == "ZeroDivisionError"
    else:
        assert done.stderr.startswith("Traceback")


# Events.


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def events(stream: io.StringIO) -> EventLog:
    configure("info", "json", stream=stream)
    log = EventLog(clock=lambda: 0.0)
    log.listen(EventLines(clock=Clock()))
    return log


def test_an_event_is_a_line_of_its_kind(events: EventLog, stream: io.StringIO) -> None:
    events.tell("route_added", ufrag="abcd", transceiver="x1")

    (line,) = objects(stream)
    assert (line["level"], line["message"]) == ("info", "route_added")
    assert line["facts"] == {"event": 1, "ufrag": "abcd", "transceiver": "x1"}


@pytest.mark.parametrize(
    "address",
    [
        *("198.18.0.10", "198.18.0.10:50000", "2001:db8::10", "[2001:db8::10]:50000"),
        *("::ffff:198.18.0.10", "fe80::1%eth0"),
    ],
)
def test_a_client_s_address_is_in_no_line(
    events: EventLog, stream: io.StringIO, address: str
) -> None:
    for kind in KINDS:
        events.tell(
            kind, client=address, was=[address], nested={"at": address}, ufrag="abcd", routes=1
        )

    assert address not in stream.getvalue()
    assert all(line["facts"].keys() == {"event", "ufrag", "routes"} for line in objects(stream))


def test_the_relay_s_and_the_transceivers_addresses_are(
    events: EventLog, stream: io.StringIO
) -> None:
    events.tell("transceiver_registered", address="10.0.0.9", vip="[2001:db8::5]:3478")

    assert objects(stream)[0]["facts"]["address"] == "10.0.0.9"
    assert objects(stream)[0]["facts"]["vip"] == "[2001:db8::5]:3478"


@pytest.mark.parametrize("text", ["a:b", "1.2.3", "a.b.c.d", "03:00", "x1", "10:20:30", "a+/b"])
def test_what_is_no_address_is_logged(events: EventLog, stream: io.StringIO, text: str) -> None:
    events.tell("route_added", ufrag=text)

    assert objects(stream)[0]["facts"]["ufrag"] == text


def test_who_asks_for_debug_sees_clients(events: EventLog, stream: io.StringIO) -> None:
    configure("debug", "json", stream=stream)

    events.tell("roamed", client="198.18.0.10:50000")

    assert objects(stream)[0]["facts"]["client"] == "198.18.0.10:50000"


def test_a_flood_of_events_is_a_bounded_number_of_lines(stream: io.StringIO) -> None:
    configure("info", "json", stream=stream)
    clock = Clock()
    events = EventLog(clock=lambda: 0.0)
    events.listen(EventLines(clock=clock))

    for _ in range(1000):
        events.tell("route_added")
    events.tell("adopted")
    clock.now = 1.0
    for _ in range(1000):
        events.tell("route_added")

    lines = objects(stream)
    assert [line["message"] for line in lines].count("adopted") == 1, "another kind's own budget"
    assert len(lines) == 200 + 1 + 100
    assert lines[201]["facts"]["left_out"] == 800
    assert [line["facts"]["event"] for line in lines[200:202]] == [1001, 1002]
    assert all("left_out" not in line["facts"] for line in lines[:201] + lines[202:])
