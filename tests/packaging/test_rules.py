"""Each alert fires for what it is there for, and for nothing less: by `promtool test rules`."""

import json
import re
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from tests.loader.conftest import ROOT

RULES = ROOT / "packaging/prometheus/shunt.rules.yml"
DROPPED = "shunt_relay_dropped_packets_total"
ANSWERED = "shunt_api_requests_total"
INSTALL = "PUT /v1/routes/{ufrag}"


class Series(NamedTuple):
    """A series of a relay, scraped once a minute. Values in promtool's notation: `0x9` is ten times
    0, and `0+5x9` grows nine times by 5."""

    name: str
    values: str
    labels: dict[str, str]

    def of(self, instance: str) -> dict[str, str]:
        """As promtool takes it, of that relay."""
        every = {"job": "shunt", "instance": instance, **self.labels}
        labels = ",".join(f"{label}={json.dumps(value)}" for label, value in every.items())
        return {"series": f"{self.name}{{{labels}}}", "values": self.values}


def series(name: str, values: str, **labels: str) -> Series:
    return Series(name, values, labels)


UP = series("up", "1x90")


@dataclass(frozen=True, slots=True)
class Case:
    """What is scraped of a relay, and whether the alert fires for it at a minute: no other does."""

    alert: str
    fires: bool
    minute: int
    scraped: tuple[Series, ...]


def groups(cases: Sequence[Case]) -> Iterator[dict[str, Any]]:
    """Cases as promtool's test groups: many relays side by side are quicker than one by one. But
    an alert that there is no relay at all must be by itself."""
    alone = [case for case in cases if not case.scraped]
    beside = [case for case in cases if case.scraped]
    for group in (beside, *([case] for case in alone)):
        yield {
            "interval": "1m",
            "input_series": [
                scraped.of(f"r{number}")
                for number, case in enumerate(group)
                for scraped in case.scraped
            ],
            "promql_expr_test": [
                {
                    "expr": f'group by (alertname) (ALERTS{{alertstate="firing",{of}}})',
                    "eval_time": f"{case.minute}m",
                    "exp_samples": [{"labels": f'{{alertname="{case.alert}"}}', "value": 1}]
                    if case.fires
                    else [],
                }
                for number, case in enumerate(group)
                for of in [f'instance="r{number}"' if case.scraped else 'instance=""']
            ],
        }


def fires(alert: str, minute: int, *scraped: Series) -> Case:
    return Case(alert, True, minute, scraped)


def quiet(alert: str, minute: int, *scraped: Series) -> Case:
    return Case(alert, False, minute, scraped)


def dropped(reason: str, values: str) -> tuple[Series, ...]:
    return UP, series(DROPPED, values, reason=reason)


def installs(*, slow: int, minutes: int) -> tuple[Series, ...]:
    """100 route installs a minute, so many of which take longer than 50 ms."""
    buckets = {"0.001": 100 - slow, "0.05": 100 - slow, "0.1": 100, "+Inf": 100}
    return UP, *(
        series(
            "shunt_api_request_duration_seconds_bucket",
            f"0+{count}x{minutes}",
            operation=INSTALL,
            le=bound,
        )
        for bound, count in buckets.items()
    )


def passes(seconds: float) -> tuple[Series, ...]:
    """A pass a second, each of so many seconds."""
    name = "shunt_housekeeping_pass_duration_seconds"
    return (
        UP,
        series(f"{name}_sum", f"0+{60 * seconds}x30"),
        series(f"{name}_count", "0+60x30"),
    )


def filled(map: str, entries: int) -> tuple[Series, ...]:
    return (
        UP,
        series("shunt_map_entries", f"{entries}x20", map=map),
        series("shunt_map_capacity_entries", "1000x20", map=map),
    )


def holds(routes: int) -> tuple[Series, ...]:
    return (
        UP,
        series("shunt_transceiver_routes", f"{routes}x10", transceiver="x1"),
        series("shunt_transceiver_quota_routes", "200x10", transceiver="x1"),
    )


def descriptors(count: int) -> tuple[Series, ...]:
    return UP, series("process_open_fds", f"{count}x9"), series("process_max_fds", "1024x9")


def state(name: str, values: str) -> tuple[Series, ...]:
    return UP, series("shunt_interface_state", values, interface="eth1", state=name)


def attached(values: str, mode: str = "native") -> tuple[Series, ...]:
    return UP, *(
        series(
            "shunt_interface_attached",
            values if each == mode else "0x30",
            interface="eth1",
            mode=each,
        )
        for each in ("native", "generic", "offloaded")
    )


def sessions(*, added: int, checked: int, established: int) -> tuple[Series, ...]:
    """So many of each kind a minute."""
    kinds = {"route_added": added, "first_check": checked, "established": established}
    return UP, *(
        series("shunt_agent_events_total", f"0+{count}x40", kind=kind)
        for kind, count in kinds.items()
    )


CASES = [
    fires("ShuntAgentDown", 4, series("up", "1 0x9")),
    quiet("ShuntAgentDown", 4, series("up", "1 0 0 1x9")),
    fires("ShuntAgentAbsent", 6),
    quiet("ShuntAgentAbsent", 4),
    quiet("ShuntAgentAbsent", 9, UP),
    fires("ShuntAgentFlapping", 30, UP, series("shunt_agent_adoptions_total", "9x5 10+1x4 14x30")),
    quiet("ShuntAgentFlapping", 30, UP, series("shunt_agent_adoptions_total", "9x9 11x40")),
    # promtool's clock begins at 0.
    fires(
        "ShuntHousekeepingStalled",
        4,
        UP,
        series("shunt_housekeeping_last_success_timestamp_seconds", "0 60 60x9"),
    ),
    quiet(
        "ShuntHousekeepingStalled",
        9,
        UP,
        series("shunt_housekeeping_last_success_timestamp_seconds", "0+60x9"),
    ),
    fires("ShuntHousekeepingSlow", 20, *passes(0.3)),
    quiet("ShuntHousekeepingSlow", 20, *passes(0.2)),
    fires("ShuntApiSlow", 12, *installs(slow=2, minutes=20)),
    quiet("ShuntApiSlow", 12, *installs(slow=1, minutes=20)),
    quiet("ShuntApiSlow", 8, *installs(slow=2, minutes=20)),
    fires("ShuntApiFailing", 8, UP, series(ANSWERED, "0+1x9", operation=INSTALL, status="507")),
    quiet("ShuntApiFailing", 8, UP, series(ANSWERED, "0+9x9", operation=INSTALL, status="503")),
    quiet("ShuntApiFailing", 8, UP, series(ANSWERED, "0+9x9", operation=INSTALL, status="429")),
    fires("ShuntDescriptorsNearlyOut", 6, *descriptors(900)),
    quiet("ShuntDescriptorsNearlyOut", 6, *descriptors(800)),
    fires("ShuntReloadFailed", 6, UP, series("shunt_agent_config_last_reload_successful", "1 0x9")),
    quiet(
        "ShuntReloadFailed",
        9,
        UP,
        series("shunt_agent_config_last_reload_successful", "0 0 0 1x9"),
    ),
    fires("ShuntNotAttached", 3, *state("lost_program", "0 1x9")),
    fires("ShuntNotAttached", 3, *state("other_program", "0 1x9")),
    quiet("ShuntNotAttached", 3, *state("lost_program", "0 1 0x9")),
    fires("ShuntInterfaceDown", 3, *state("down", "0 1x9")),
    fires("ShuntInterfaceDown", 3, *state("no_carrier", "0 1x9")),
    fires("ShuntInterfaceDown", 3, *state("gone", "0 1x9")),
    quiet("ShuntInterfaceDown", 9, *state("working", "1x9")),
    fires("ShuntAddressLost", 3, UP, series("shunt_address_present", "1 0x9", address="a")),
    quiet("ShuntAddressLost", 9, UP, series("shunt_address_present", "0x9", address="a")),
    fires("ShuntProgramTakenOff", 9, UP, series("shunt_interface_reattachments_total", "0 0 1x9")),
    quiet("ShuntProgramTakenOff", 9, UP, series("shunt_interface_reattachments_total", "7x9")),
    fires("ShuntGenericMode", 16, *attached("1x30", mode="generic")),
    quiet("ShuntGenericMode", 14, *attached("1x30", mode="generic")),
    fires("ShuntMapNearlyFull", 11, *filled("slots", 801)),
    fires("ShuntMapNearlyFull", 11, *filled("routes", 1000)),
    quiet("ShuntMapNearlyFull", 11, *filled("slots", 800)),
    fires("ShuntFlowsRefused", 4, *dropped("table_full", "0 0 1x9")),
    quiet("ShuntFlowsRefused", 9, *dropped("table_full", "7x9")),
    fires("ShuntRouteFull", 16, *dropped("route_full", "0+61x20")),
    quiet("ShuntRouteFull", 16, *dropped("route_full", "0+59x20")),
    fires("ShuntNoRouteBurst", 72, *dropped("no_route", "0+60x60 3600+1200x20")),
    quiet("ShuntNoRouteBurst", 72, *dropped("no_route", "0+60x60 3600+500x20")),
    quiet("ShuntNoRouteBurst", 72, *dropped("no_route", "0+1200x80")),
    fires("ShuntTransceiverGone", 11, *dropped("transceiver_gone", "0+660x20")),
    quiet("ShuntTransceiverGone", 11, *dropped("transceiver_gone", "0 900x20")),
    fires("ShuntProgramBroken", 4, *dropped("program", "0 0 1x9")),
    quiet("ShuntProgramBroken", 9, *dropped("program", "1x9")),
    fires("ShuntAmplification", 16, *dropped("amplification", "0+6060x20")),
    quiet("ShuntAmplification", 16, *dropped("amplification", "0+3000x20")),
    fires("ShuntPacketsTooLong", 16, *dropped("mtu", "0+61x20")),
    fires("ShuntPacketsTooLong", 16, *dropped("headroom", "0+61x20")),
    quiet("ShuntPacketsTooLong", 16, *dropped("mtu", "0+59x20")),
    fires("ShuntStrangerInside", 11, *dropped("wrong_interface", "0+61x20")),
    fires("ShuntStrangerInside", 11, *dropped("wrong_transceiver", "0+61x20")),
    quiet("ShuntStrangerInside", 11, *dropped("slot_free", "0+61x20")),
    fires("ShuntNoTransceiver", 6, UP, series("shunt_transceivers", "1 0x9")),
    quiet("ShuntNoTransceiver", 6, UP, series("shunt_transceivers", "0 0 1x9")),
    fires(
        "ShuntTransceiverUnreachable",
        2,
        UP,
        series("shunt_transceiver_reachable", "0x9", transceiver="x1"),
    ),
    quiet(
        "ShuntTransceiverUnreachable",
        2,
        UP,
        series("shunt_transceiver_reachable", "0 1x9", transceiver="x1"),
    ),
    fires(
        "ShuntLeaseLost",
        5,
        UP,
        series("shunt_agent_leases_ended_total", "3 3 4x20", why="expired"),
    ),
    quiet("ShuntLeaseLost", 5, UP, series("shunt_agent_leases_ended_total", "4x20", why="expired")),
    quiet(
        "ShuntLeaseLost",
        5,
        UP,
        series("shunt_agent_leases_ended_total", "0+1x20", why="deregistered"),
    ),
    fires("ShuntClientsDoNotCome", 30, *sessions(added=100, checked=19, established=19)),
    quiet("ShuntClientsDoNotCome", 30, *sessions(added=100, checked=21, established=21)),
    quiet("ShuntClientsDoNotCome", 30, *sessions(added=1, checked=0, established=0)),
    fires("ShuntTransceiversDoNotAnswer", 30, *sessions(added=100, checked=90, established=44)),
    quiet("ShuntTransceiversDoNotAnswer", 30, *sessions(added=100, checked=90, established=46)),
    quiet("ShuntTransceiversDoNotAnswer", 30, *sessions(added=1, checked=1, established=0)),
    fires("ShuntNeighbourUnknown", 11, *dropped("neighbour", "0+61x20")),
    quiet("ShuntNeighbourUnknown", 11, *dropped("neighbour", "0 200x20")),
    fires(
        "ShuntDrainingForLong",
        62,
        UP,
        series("shunt_transceiver_draining", "0 1x80", transceiver="x1"),
    ),
    fires("ShuntDrainingForLong", 62, UP, series("shunt_agent_draining", "0 1x80")),
    quiet("ShuntDrainingForLong", 62, UP, series("shunt_agent_draining", "1x50 0 1x80")),
    fires("ShuntQuotaNearlyReached", 6, *holds(181)),
    quiet("ShuntQuotaNearlyReached", 6, *holds(180)),
]


def rules() -> list[dict[str, Any]]:
    """All rules, recording and alerting."""
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


ALERTS = [rule for rule in rules() if "alert" in rule]


def promtool(*arguments: str) -> None:
    """Run promtool; fail with what it says if it finds anything."""
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_takes_the_rules() -> None:
    promtool("check", "rules", "--lint=all", "--lint-fatal", str(RULES))


def test_every_alert_fires_when_it_should_and_not_when_it_should_not(tmp_path: Path) -> None:
    cases = tmp_path / "cases.yml"
    cases.write_text(json.dumps({"rule_files": [str(RULES)], "tests": list(groups(CASES))}))

    promtool("test", "rules", str(cases))


@pytest.mark.parametrize("alert", [str(rule["alert"]) for rule in ALERTS])
def test_every_alert_has_a_case_of_each_kind(alert: str) -> None:
    assert {case.fires for case in CASES if case.alert == alert} == {True, False}


@pytest.mark.parametrize("rule", ALERTS, ids=[str(rule["alert"]) for rule in ALERTS])
def test_an_alert_says_what_is_wrong_what_to_do_and_where_to_read_on(
    rule: dict[str, Any],
) -> None:
    document, _, anchor = rule["annotations"]["runbook"].partition("#")
    headings = [
        line.lstrip("#").strip()
        for line in (ROOT / document).read_text().splitlines()
        if line.startswith("#")
    ]

    assert rule["labels"]["severity"] in {"critical", "warning"}
    assert set(rule["annotations"]) == {"summary", "description", "runbook"}
    assert anchor == str(rule["alert"]).lower()
    assert str(rule["alert"]) in headings


def test_the_documents_way_to_scrape_is_a_configuration(tmp_path: Path) -> None:
    (block,) = re.findall(
        r"^```yaml\n(.+?)^```", (ROOT / "docs/metrics.md").read_text(), re.M | re.S
    )
    config = tmp_path / "prometheus.yml"
    config.write_text(block)

    promtool("check", "config", "--syntax-only", str(config))

    (job,) = yaml.safe_load(block)["scrape_configs"]
    assert f'job="{job["job_name"]}"' in RULES.read_text()
