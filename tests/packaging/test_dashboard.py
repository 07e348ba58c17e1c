"""The dashboard has the shape that Grafana asks of one, and says what it shows."""

import json
from collections import Counter
from collections.abc import Iterator
from itertools import combinations
from typing import Any

import pytest

from tests.loader.conftest import ROOT

DASHBOARD: dict[str, Any] = json.loads((ROOT / "packaging/grafana/shunt.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
ROWS = ["Traffic", "Refusals by reason", "Flows and fill", "Transceivers", "Agent"]
UNITS = {"bps", "bytes", "none", "ops", "percentunit", "pps", "reqps", "s", "short"}
"""Of Grafana's own names for units, those that fit what we measure in."""

each_panel = pytest.mark.parametrize("panel", PANELS, ids=[panel["title"] for panel in PANELS])


def inside(value: Any, key: str) -> Iterator[Any]:
    """All that is called so, however deep."""
    if isinstance(value, dict):
        if key in value:
            yield value[key]
        for each in value.values():
            yield from inside(each, key)
    elif isinstance(value, list):
        for each in value:
            yield from inside(each, key)


def test_it_can_be_imported() -> None:
    assert DASHBOARD["id"] is None, "Grafana gives it a number"
    assert DASHBOARD["uid"] == "shunt-relays"
    assert DASHBOARD["schemaVersion"] >= 39
    assert DASHBOARD["title"]
    assert "__inputs" not in DASHBOARD, "provisioning from a file cannot ask"


def test_its_rows_are_what_an_operator_looks_for() -> None:
    assert [panel["title"] for panel in DASHBOARD["panels"] if panel["type"] == "row"] == ROWS


def test_every_source_of_data_is_the_one_chosen_above() -> None:
    (chosen,) = (v for v in DASHBOARD["templating"]["list"] if v["type"] == "datasource")
    assert (chosen["name"], chosen["query"]) == ("datasource", "prometheus")

    sources = list(inside(DASHBOARD, "datasource"))

    assert len(sources) > 2 * len(PANELS)
    assert all(each == {"type": "prometheus", "uid": "${datasource}"} for each in sources)


def test_panels_have_numbers_and_titles_of_their_own() -> None:
    for key in ("id", "title"):
        counts = Counter(panel[key] for panel in DASHBOARD["panels"] if panel["type"] != "row")
        assert max(counts.values()) == 1, counts.most_common(1)


def test_panels_lie_side_by_side_on_the_grid_of_24() -> None:
    places = [panel["gridPos"] for panel in DASHBOARD["panels"]]
    for place in places:
        assert place["h"] > 0
        assert place["x"] >= 0
        assert 0 < place["x"] + place["w"] <= 24
    for one, other in combinations(places, 2):
        apart = (
            one["x"] + one["w"] <= other["x"]
            or other["x"] + other["w"] <= one["x"]
            or one["y"] + one["h"] <= other["y"]
            or other["y"] + other["h"] <= one["y"]
        )
        assert apart, (one, other)


@each_panel
def test_a_panel_says_what_it_shows_and_in_what_unit(panel: dict[str, Any]) -> None:
    assert len(panel["description"]) > 20
    assert panel["description"].endswith(".")
    assert panel["fieldConfig"]["defaults"]["unit"] in UNITS


@each_panel
def test_a_panel_asks_for_the_relays_chosen_above_and_over_an_interval_that_fits(
    panel: dict[str, Any],
) -> None:
    assert [target["refId"] for target in panel["targets"]] == list("ABCD")[: len(panel["targets"])]
    for target in panel["targets"]:
        assert 'job="$job",instance=~"$instance"' in target["expr"]
        assert target["expr"].count("[") == target["expr"].count("[$__rate_interval]")
