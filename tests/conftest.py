"""What all tests share: a cache of compiled programs, and the lab, for every test that needs real
namespaces, an agent and transceivers."""

import re
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from loader.cache import SWITCH
from tests.isolation import isolate
from tools import lab as labs
from tools import topology
from tools.labstate import Lab, current


def pytest_configure(config: pytest.Config) -> None:
    """Each lane of the suite (pytest-xdist's workers), or the one process that there is."""
    if config.getoption("numprocesses", None) is None or hasattr(config, "workerinput"):
        isolate()


_SESSION_ID = re.compile(r"rtc_[A-Za-z0-9_-]{22}")


def pytest_make_parametrize_id(val: object) -> str | None:
    """Session ids are random, and the names of tests must be the same in every lane."""
    if isinstance(val, str) and _SESSION_ID.search(val):
        return _SESSION_ID.sub("rtc_", val)
    return None


@pytest.hookimpl(wrapper=True)
def pytest_report_to_serializable(
    report: pytest.CollectReport | pytest.TestReport,
) -> Generator[None, Any, Any]:
    """What a lane tells of a test goes over a pipe that takes UTF-8 alone, and tests of hostile
    text print and log what is none."""
    return _encodable((yield))


def _encodable(told: Any) -> Any:
    if isinstance(told, str):
        return told.encode("utf-8", "backslashreplace").decode()
    if isinstance(told, dict):
        return {_encodable(name): _encodable(value) for name, value in told.items()}
    if isinstance(told, list | tuple):
        return type(told)(map(_encodable, told))
    return told


_LONG = (
    "model/test_against_program.py",
    "loader/test_upgrade.py",
    "loader/test_agent_process.py",
    "test_lint.py",
    "endtoend/test_calls.py",
    "tools/test_lab.py",
    "tools/test_bench_agent.py",
    "tools/test_bench.py",
)
"""Files that take half a minute or more, longest first: a lane that began one last would keep the
others waiting."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files in the order of `_LONG`, and then the others as they were."""
    tests = Path(__file__).parent
    order = {tests / name: place for place, name in enumerate(_LONG)}
    items.sort(key=lambda item: order.get(item.path, len(order)))


@pytest.fixture(scope="session", autouse=True)
def suites_cache(
    tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config
) -> Iterator[Path]:
    """Where programs are kept that this run of the suite has compiled, in whatever lane: it takes
    nobody else's, so each that it needs is compiled once or twice."""
    folder = tmp_path_factory.getbasetemp()
    place = (folder.parent if hasattr(pytestconfig, "workerinput") else folder) / "programs"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(SWITCH, str(place))
        yield place


@pytest.fixture(scope="session")
def lab_to_ourselves() -> Iterator[None]:
    """Makes sure that the suite takes down nobody's lab but its own, and leaves none."""
    if current() or topology.present():
        pytest.exit("a lab is up that the suite did not start: run `shunt lab down` first", 1)
    yield
    labs.down()


@pytest.fixture
def lab(lab_to_ourselves: None) -> Lab:
    """The lab, up and healthy. It stays up for the next test that asks: `up` is repeatable, and
    tests that break it, or need it gone, may."""
    return labs.up()


@pytest.fixture
def no_lab(lab_to_ourselves: None) -> Iterator[None]:
    """For tests of the lab itself: none before, none after."""
    labs.down()
    yield
    labs.down()
