"""What the end-to-end tests share: the maps, and a relay between routers."""

from collections.abc import Iterator

import pytest

from loader.maps import Maps
from tests.endtoend.chain import Chain, Shape, chain


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


def ufrags(maps: Maps) -> set[str]:
    """What the relay routes."""
    return {ufrag for ufrag, _route in maps.routes()}
