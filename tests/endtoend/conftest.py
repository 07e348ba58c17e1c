"""What the end-to-end tests share: the maps, and a relay between routers."""

import os
from collections.abc import Iterator

import pytest

from loader.maps import Maps
from tests.endtoend.chain import Chain, Shape, chain
from tests.endtoend.traffic import relay_host
from tests.loader.conftest import AgentProcess


@pytest.fixture
def maps() -> Iterator[Maps]:
    """The lab's pinned maps; ask for `lab` first."""
    with Maps() as opened:
        yield opened


@pytest.fixture(scope="session")
def two_armed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chain]:
    """The plain chain. It stays up for the next test that asks; leave it as it was."""
    with chain(Shape(), tmp_path_factory.mktemp("chain")) as made:
        yield made


@pytest.fixture(scope="session")
def _busy_relay(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AgentProcess]:
    with relay_host(f"{os.getpid()}-busy", tmp_path_factory.mktemp("busy")) as made:
        yield made


@pytest.fixture
def busy_relay(_busy_relay: AgentProcess) -> AgentProcess:
    """A relay that carries traffic, and its agent, which tests may kill: it runs again for the
    next one."""
    if _busy_relay.process.poll() is not None:
        _busy_relay.start()
    return _busy_relay


def ufrags(maps: Maps) -> set[str]:
    """What the relay routes."""
    return {ufrag for ufrag, _route in maps.routes()}
