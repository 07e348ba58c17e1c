"""The lab, for every test that needs real namespaces, an agent and transceivers."""

from collections.abc import Iterator

import pytest

from tools import lab as labs
from tools import topology
from tools.labstate import Lab, current


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
