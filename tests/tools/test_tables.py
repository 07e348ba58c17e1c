"""What the commands print for people."""

from typing import Any

import pytest

from tools.tables import show_list

FLOW: dict[str, Any] = {
    "slot": 85537,
    "port": 20001,
    "inside": "[2001:db8:118::1]:20001",
    "state": "established",
    "client": "[2001:db8:18::10]:50000",
    "vip": "[2001:db8:18::1]:3478",
    "ufrag": "abcd",
    "transceiver": "x1",
    "idle_s": 0.1,
    "validated": True,
    "to_transceiver": {"packets": 7, "bytes": 700},
    "to_client": {"packets": 9, "bytes": 900},
}


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")


def test_a_flow_is_shown_with_both_its_ends(capsys: pytest.CaptureFixture[str]) -> None:
    show_list("flows", [FLOW], count=1)

    title, _columns, _rule, row = capsys.readouterr().out.rstrip().splitlines()
    assert title.strip() == "flows"
    assert row.split() == [
        *("[2001:db8:118::1]:20001", "established", "[2001:db8:18::10]:50000"),
        *("abcd", "x1", "7", "9", "0.1"),
    ]


def test_a_list_cut_short_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    show_list("flows", [FLOW], count=12000)

    assert capsys.readouterr().out.splitlines()[0].strip() == "flows: 1 of 12000"


@pytest.mark.parametrize("what", ["routes", "flows", "transceivers"])
def test_an_empty_list_is_said_in_words(what: str, capsys: pytest.CaptureFixture[str]) -> None:
    show_list(what, [], count=0 if what == "flows" else None)

    assert capsys.readouterr().out == f"no {what}\n"
