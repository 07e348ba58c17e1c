from typing import Any

from tools.rates import Snapshot, rates


def flow(port: int, client: str, to_client: int) -> dict[str, Any]:
    return {
        "slot": port,
        "client": client,
        "ufrag": "abcd",
        "to_transceiver": {"packets": 0, "bytes": 0},
        "to_client": {"packets": to_client, "bytes": 0},
    }


def snapshot(at: float, *flows: dict[str, Any], to_client: int = 0, drops: int = 0) -> Snapshot:
    nothing = {"packets": 0, "bytes": 0}
    counters = {
        "mode": {},
        "to_transceiver": nothing,
        "to_client": {"packets": to_client, "bytes": 0},
        "passed": nothing,
        "dropped": {"no_route": drops},
    }
    return Snapshot(at=at, routes=[], flows=list(flows), flow_count=len(flows), counters=counters)


def test_a_rate_is_the_difference_by_the_time_between() -> None:
    found = rates(
        snapshot(10.0, flow(7, "c:1", 100), to_client=100, drops=1),
        snapshot(12.0, flow(7, "c:1", 200), to_client=200, drops=4),
    )

    assert (found.flows[7]["to_client"], found.traffic["to_client"]) == (50.0, 50.0)
    assert found.dropped == {"no_route": 1.5}


def test_a_new_flow_started_from_zero() -> None:
    assert rates(snapshot(0.0), snapshot(1.0, flow(7, "c:1", 30))).flows[7]["to_client"] == 30.0


def test_a_port_that_went_to_another_client_is_not_compared_with_the_old_one() -> None:
    found = rates(snapshot(0.0, flow(7, "c:1", 900)), snapshot(1.0, flow(7, "d:2", 30)))

    assert found.flows[7]["to_client"] == 30.0


def test_counters_that_were_reset_do_not_run_backwards() -> None:
    assert rates(snapshot(0.0, to_client=5), snapshot(1.0)).traffic["to_client"] == 0.0


def test_without_time_between_nothing_moves() -> None:
    assert rates(snapshot(1.0), snapshot(1.0, to_client=9)).traffic["to_client"] == 0.0


def test_a_flow_whose_route_has_gone_is_still_the_same_flow() -> None:
    before, after = flow(7, "c:1", 100), flow(7, "c:1", 110) | {"ufrag": None}

    assert rates(snapshot(0.0, before), snapshot(1.0, after)).flows[7]["to_client"] == 10.0
