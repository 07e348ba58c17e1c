"""Session ids name their owner, and nothing else passes for one."""

import pytest

from transceiver.sessionid import fresh, owner_of


@pytest.mark.parametrize("owner", ["x1", "eu-west.a_1", "X" * 63])
def test_an_id_names_its_owner(owner: str) -> None:
    assert owner_of(fresh(owner)) == owner


def test_no_two_are_alike() -> None:
    assert len({fresh("x1") for _ in range(1000)}) == 1000


@pytest.mark.parametrize(
    "text",
    ["", "rtc_", "x1", "rtc_short.x1", fresh("x1") + "/..", fresh("x1")[:-2], fresh("-x")],
    ids=["nothing", "prefix", "owner", "short", "path", "no owner", "no id"],
)
def test_what_was_never_made_has_no_owner(text: str) -> None:
    assert owner_of(text) is None
