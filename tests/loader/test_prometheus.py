"""Rules and dashboard before a real Prometheus that scrapes a real agent: they load, each of their
expressions can be worked out, and what they name is there."""

import asyncio
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from loader.client import AgentClient
from tests.loader.conftest import INSTANCE, ROOT, AgentProcess, eventually, register_x1
from tests.loader.prometheus import Prometheus, prometheus
from tests.loader.test_agent_process import knock
from tests.packaging.promql import Selector, labels_named, selectors
from tests.packaging.test_rules import rules

DASHBOARD = json.loads((ROOT / "packaging/grafana/shunt.json").read_text())
VARIABLES = {"$job": "shunt", "$instance": ".+", "$__rate_interval": "1m"}
ONLY_IN_TROUBLE = {"status"}  # of answers that a healthy agent does not give


def panels() -> Iterator[dict[str, Any]]:
    """All panels of the dashboard but the rows."""
    return (panel for panel in DASHBOARD["panels"] if panel["type"] != "row")


def dashboard_expressions() -> dict[str, str]:
    """By their place; with values in place of variables."""
    found = {
        f"{panel['title']} {target['refId']}": target["expr"]
        for panel in panels()
        for target in panel["targets"]
    }
    for annotation in DASHBOARD["annotations"]["list"]:
        found[annotation["name"]] = annotation["expr"]
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "query":
            asked = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]["query"])
            assert asked, variable
            found[f"${variable['name']}"] = f"group by ({asked[2]}) ({asked[1]})"
    for place, expression in found.items():
        for variable, value in VARIABLES.items():
            expression = expression.replace(variable, value)
        assert "$" not in expression, f"{place}: {expression}"
        found[place] = expression
    return found


EXPRESSIONS = {
    **{rule.get("alert") or rule["record"]: rule["expr"] for rule in rules()},
    **dashboard_expressions(),
}
WORDS = {
    **{
        rule["alert"]: set(re.findall(r"\$labels\.(\w+)", str(rule["annotations"])))
        for rule in rules()
        if "alert" in rule
    },
    **{
        f"{panel['title']} {target['refId']}": set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
        for panel in panels()
        for target in panel["targets"]
    },
}
"""Labels that alerts' sentences and panels' legends are made with."""


async def busy(agent: AgentProcess) -> None:
    """Let the agent have a transceiver, a route, a flow."""
    async with AgentClient(str(agent.socket)) as client:
        await register_x1(client)
        await client.add_route("abcd", transceiver="x1", instance=INSTANCE)
        await asyncio.to_thread(knock, agent, "abcd")


async def idle(agent: AgentProcess) -> None:
    """Leave the agent as it was."""
    async with AgentClient(str(agent.socket)) as client:
        await client.deregister("x1", instance=INSTANCE)


@pytest.fixture(scope="module")
def scraping(
    shared_agent: AgentProcess, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Prometheus]:
    """A Prometheus that has scraped an agent with a transceiver, a route and a flow often enough
    for its rules to have something to say."""
    asyncio.run(busy(shared_agent))
    with prometheus(shared_agent, tmp_path_factory.mktemp("prometheus")) as running:
        eventually(
            "it has rates",
            lambda: running.query("instance_direction:shunt_relay_packets:rate5m") != [],
            within=30,
        )
        yield running
    asyncio.run(idle(shared_agent))


def test_prometheus_takes_what_it_scrapes(scraping: Prometheus) -> None:
    (target,) = scraping.get("targets")["activeTargets"]

    assert (target["health"], target["lastError"]) == ("up", "")
    assert scraping.query("scrape_samples_scraped > 100")


def test_the_rules_are_loaded_and_worked_out_without_an_error(scraping: Prometheus) -> None:
    def loaded() -> list[dict[str, Any]]:
        return [rule for group in scraping.get("rules")["groups"] for rule in group["rules"]]

    eventually("all have been worked out", lambda: {r["health"] for r in loaded()} == {"ok"})
    assert {rule["name"] for rule in loaded()} == {r.get("alert") or r["record"] for r in rules()}
    assert not [rule["lastError"] for rule in loaded() if rule.get("lastError")]


@pytest.mark.parametrize("place", EXPRESSIONS)
def test_an_expression_can_be_worked_out_and_names_what_is_there(
    scraping: Prometheus, place: str
) -> None:
    expression = EXPRESSIONS[place]
    scraping.query(expression)

    labels: set[str] = set()
    assert selectors(expression)
    for selector in selectors(expression):
        common = tuple(each for each in selector.matchers if each[0] not in ONLY_IN_TROUBLE)
        for one in Selector(selector.name, common).of_each_value():
            found = scraping.query(f"last_over_time({one}[5m])")
            assert found, f"{one} is not there"
            labels |= set(found[0]["metric"])
    assert labels_named(expression) <= labels
    assert WORDS.get(place, set()) <= (labels_named(expression, kept=True) or labels)
