"""The route table: who may route, for how long, and what is never given out twice."""

from dataclasses import replace
from itertools import chain

import pytest

from loader.digest import digest, written
from loader.problems import Refused
from loader.routeids import INDEXES
from loader.table import (
    GRACE_SECONDS,
    LEASE_SECONDS,
    Drain,
    Lease,
    Registered,
    Route,
    RouteTable,
    instance_number,
)

FIRST = "first-process-of-x1"
SECOND = "second-process-of-x1"
STRANGER = "process-of-another-one"


@pytest.fixture
def table() -> RouteTable:
    return RouteTable(indexes=8)


def register(
    table: RouteTable,
    id: str = "x1",
    *,
    instance: str = FIRST,
    address: str = "198.18.1.11",
    port: int = 40000,
    capacity: int = 100,
    now: float = 0.0,
) -> Registered:
    return table.register(
        id,
        instance=instance,
        address=address,
        port=port,
        http="http://x",
        capacity=capacity,
        now=now,
    )


def add_route(table: RouteTable, ufrag: str = "abcd", *, checks: bool = True) -> Route:
    """A route of x1 that is not there yet."""
    route = table.add_route(ufrag, transceiver="x1", instance=FIRST, checks=checks)
    assert route is not None
    return route


def refusal(error: pytest.ExceptionInfo[Refused]) -> str:
    """The name of the problem, which must be told in a sentence."""
    assert str(error.value) == error.value.detail
    return error.value.name


# Leases.


def test_the_first_registration_makes_a_lease(table: RouteTable) -> None:
    registered = register(table, now=100.0)

    assert registered.new
    assert registered.lease.expires == 100.0 + LEASE_SECONDS
    assert table.leases() == [registered.lease]


def test_renewing_prolongs_the_lease_and_keeps_its_routes_and_index(table: RouteTable) -> None:
    lease = register(table).lease
    table.add_route("abcd", transceiver="x1", instance=FIRST)

    renewed = register(table, capacity=7, now=14.0)

    assert not renewed.new
    assert renewed.ended == ()
    assert renewed.lease is lease
    assert lease.expires == 14.0 + LEASE_SECONDS
    assert lease.capacity == 7
    assert table.owner("abcd") is lease


@pytest.mark.parametrize(("now", "left"), [(14.999, 1), (15.0, 0), (3600.0, 0)])
def test_a_lease_ends_after_its_time(table: RouteTable, now: float, left: int) -> None:
    register(table, now=0.0)

    ended = table.expire(now=now)

    assert len(table.leases()) == left
    assert len(ended) == 1 - left


def test_routes_end_with_the_lease_and_others_stay(table: RouteTable) -> None:
    register(table, "x1")
    register(table, "x2", instance=STRANGER, port=40001, now=10.0)
    table.add_route("one+", transceiver="x1", instance=FIRST)
    kept = table.add_route("two/", transceiver="x2", instance=STRANGER)

    (ended,) = table.expire(now=LEASE_SECONDS)

    assert list(ended.routes) == ["one+"]
    assert table.owner("one+") is None
    assert kept is not None
    assert len(table.ids) == 1
    assert kept.id in table.ids


def test_deregistering_ends_the_lease_and_can_be_repeated(table: RouteTable) -> None:
    lease = register(table).lease

    assert table.deregister("x1", instance=FIRST) is lease
    assert table.deregister("x1", instance=FIRST) is None


def test_only_its_own_process_deregisters_a_transceiver(table: RouteTable) -> None:
    register(table)

    with pytest.raises(Refused) as error:
        table.deregister("x1", instance=STRANGER)

    assert refusal(error) == "not-yours"
    assert len(table.leases()) == 1


# Superseding.


def test_a_new_instance_takes_over_without_the_old_routes(table: RouteTable) -> None:
    old = register(table).lease
    table.add_route("abcd", transceiver="x1", instance=FIRST)

    registered = register(table, instance=SECOND)

    assert registered.new
    assert registered.ended == (old,)
    assert list(old.routes) == ["abcd"], "the caller needs them to clear the maps"
    assert table.leases() == [registered.lease]
    assert table.owner("abcd") is None
    assert len(table.ids) == 0


def test_a_superseded_instance_is_refused_whatever_it_asks(table: RouteTable) -> None:
    register(table)
    register(table, instance=SECOND)
    table.add_route("abcd", transceiver="x1", instance=SECOND)

    for ask in (
        lambda: register(table),
        lambda: table.add_route("efgh", transceiver="x1", instance=FIRST),
        lambda: table.remove_route("abcd", instance=FIRST),
        lambda: table.deregister("x1", instance=FIRST),
    ):
        with pytest.raises(Refused) as error:
            ask()
        assert refusal(error) == "superseded"
    assert table.owner("abcd") is not None


def test_another_id_at_the_same_address_and_port_supersedes(table: RouteTable) -> None:
    old = register(table, "x1").lease

    registered = register(table, "x2", instance=STRANGER)

    assert registered.ended == (old,)
    assert [lease.id for lease in table.leases()] == ["x2"]


@pytest.mark.parametrize("other", [{"address": "198.18.1.12"}, {"port": 40001}])
def test_a_neighbour_at_another_address_or_port_does_not(
    table: RouteTable, other: dict[str, object]
) -> None:
    register(table, "x1")

    assert register(table, "x2", instance=STRANGER, **other).ended == ()  # type: ignore[arg-type]


def test_one_registration_may_end_two_leases(table: RouteTable) -> None:
    register(table, "x1", port=1)
    register(table, "x2", instance=STRANGER, port=2)

    registered = register(table, "x1", instance=SECOND, port=2)

    assert {lease.port for lease in registered.ended} == {1, 2}
    assert table.leases() == [registered.lease]


def test_a_process_that_moves_starts_a_lease_anew_and_is_not_superseded(table: RouteTable) -> None:
    old = register(table, address="198.18.1.11").lease

    moved = register(table, address="198.18.1.99")

    assert moved.new
    assert moved.ended == (old,)
    assert moved.lease.index != old.index, "packets under way still lead to the old address"
    assert not register(table, address="198.18.1.99").new


# Routes.


def test_a_route_leads_to_its_transceiver(table: RouteTable) -> None:
    lease = register(table).lease

    route = add_route(table)

    assert table.owner("abcd") is lease
    assert len(table.ids) == 1
    assert route.id in table.ids
    assert lease.routes == {"abcd": route}


def test_making_a_route_again_does_no_harm(table: RouteTable) -> None:
    register(table)
    route = add_route(table)

    assert table.add_route("abcd", transceiver="x1", instance=FIRST) is None
    assert len(table.ids) == 1
    assert route.id in table.ids


def test_a_route_says_whether_its_transceiver_makes_checks(table: RouteTable) -> None:
    register(table)

    assert add_route(table, "with").checks
    assert not add_route(table, "without", checks=False).checks


@pytest.mark.parametrize("checks", [True, False])
def test_a_route_is_not_changed_by_making_it_again(table: RouteTable, checks: bool) -> None:
    lease = register(table).lease
    route = add_route(table, checks=checks)

    with pytest.raises(Refused, match="remove it first") as error:
        table.add_route("abcd", transceiver="x1", instance=FIRST, checks=not checks)

    assert refusal(error) == "route-differs"
    assert lease.routes == {"abcd": route}


def test_a_route_is_removed_once(table: RouteTable) -> None:
    register(table)
    route = add_route(table)

    assert table.remove_route("abcd", instance=FIRST) == route
    assert table.remove_route("abcd", instance=FIRST) is None


def test_an_unknown_transceiver_cannot_route(table: RouteTable) -> None:
    with pytest.raises(Refused) as error:
        table.add_route("abcd", transceiver="x1", instance=FIRST)

    assert refusal(error) == "unknown-transceiver"


def test_a_lease_that_ended_cannot_route(table: RouteTable) -> None:
    register(table)
    table.expire(now=LEASE_SECONDS)

    with pytest.raises(Refused) as error:
        table.add_route("abcd", transceiver="x1", instance=FIRST)

    assert refusal(error) == "unknown-transceiver"


def test_a_transceiver_routes_only_to_itself(table: RouteTable) -> None:
    register(table, "x1")
    register(table, "x2", instance=STRANGER, port=40001)

    with pytest.raises(Refused) as error:
        table.add_route("abcd", transceiver="x1", instance=STRANGER)

    assert refusal(error) == "not-yours"


def test_a_ufrag_of_another_transceiver_is_taken(table: RouteTable) -> None:
    register(table, "x1")
    register(table, "x2", instance=STRANGER, port=40001)
    table.add_route("abcd", transceiver="x1", instance=FIRST)

    with pytest.raises(Refused) as error:
        table.add_route("abcd", transceiver="x2", instance=STRANGER)

    assert refusal(error) == "ufrag-taken"
    assert table.owner("abcd") is table.leases()[0]


def test_nobody_removes_a_strangers_route(table: RouteTable) -> None:
    register(table, "x1")
    register(table, "x2", instance=STRANGER, port=40001)
    table.add_route("abcd", transceiver="x1", instance=FIRST)

    with pytest.raises(Refused) as error:
        table.remove_route("abcd", instance=STRANGER)

    assert refusal(error) == "not-yours"
    assert table.owner("abcd") is not None


def test_routes_beyond_the_quota_are_refused_until_one_goes(table: RouteTable) -> None:
    register(table, capacity=2)
    for number in range(4):
        table.add_route(f"ufrag{number}", transceiver="x1", instance=FIRST)

    with pytest.raises(Refused) as error:
        table.add_route("ufrag4", transceiver="x1", instance=FIRST)
    assert refusal(error) == "quota-exceeded"

    table.remove_route("ufrag0", instance=FIRST)
    assert table.add_route("ufrag4", transceiver="x1", instance=FIRST)


def test_a_boast_of_capacity_does_not_raise_the_quota_without_end(table: RouteTable) -> None:
    assert table.quota(register(table, capacity=10**9).lease) == 8192


def test_the_configured_limit_holds_too_and_at_once(table: RouteTable) -> None:
    register(table, capacity=100)
    table.max_routes = 1
    add_route(table)

    with pytest.raises(Refused) as error:
        table.add_route("efgh", transceiver="x1", instance=FIRST)

    assert refusal(error) == "quota-exceeded"
    assert error.value.members == {"transceiver": "x1", "quota": 1}


@pytest.mark.parametrize(
    "ufrag", ["abc", "a" * 33, "", "ab-c", "ab_c", "ab:c", "ab c", "abcä", "abc\0", "①②③④"]
)
def test_what_is_no_ufrag_is_refused_in_a_sentence(table: RouteTable, ufrag: str) -> None:
    register(table)

    with pytest.raises(Refused) as error:
        table.add_route(ufrag, transceiver="x1", instance=FIRST)

    assert refusal(error) == "bad-ufrag"
    assert error.value.detail.startswith("a ufrag has ")


@pytest.mark.parametrize("ufrag", ["abcd", "a" * 32, "+/+/", "AZaz09+/"])
def test_every_ufrag_that_fits_is_taken(table: RouteTable, ufrag: str) -> None:
    register(table)

    assert table.add_route(ufrag, transceiver="x1", instance=FIRST)


@pytest.mark.parametrize("id", ["", "x" * 64, "x/1", "x 1", "é", "x\n", ".", "..", "-x"])
def test_what_is_no_id_is_refused(table: RouteTable, id: str) -> None:
    with pytest.raises(Refused) as error:
        register(table, id)

    assert refusal(error) == "bad-id"
    assert table.leases() == []


# Lists.


def pages(table: RouteTable, limit: int, transceiver: str | None = None) -> list[list[str]]:
    """All routes, as they come page by page."""
    found, place = [], 0
    while page := table.routes_after(place, limit=limit, transceiver=transceiver):
        found.append([ufrag for _, _, ufrag in page])
        place = page[-1][0]
    return found


@pytest.mark.parametrize(("limit", "count"), [(1, 5), (2, 3), (5, 1), (9, 1)])
def test_pages_hold_every_route_once(table: RouteTable, limit: int, count: int) -> None:
    register(table, "x1")
    register(table, "x2", instance=STRANGER, port=40001)
    wanted = ["abcd", "efgh", "ijkl"]
    for ufrag in wanted:
        add_route(table, ufrag)
    for ufrag in ("mnop", "qrst"):
        table.add_route(ufrag, transceiver="x2", instance=STRANGER)

    found = pages(table, limit)

    assert len(found) == count
    assert sorted(chain.from_iterable(found)) == [*wanted, "mnop", "qrst"]
    assert sorted(chain.from_iterable(pages(table, limit, "x1"))) == wanted
    assert pages(table, limit, "x3") == []


def test_who_lists_while_routes_come_and_go_misses_none_that_stays(table: RouteTable) -> None:
    register(table)
    stay = [f"stay{number}" for number in range(6)]
    for number, ufrag in enumerate(stay):
        add_route(table, ufrag)
        add_route(table, f"goes{number}")
    found, place = [], 0
    for number in range(6):
        page = table.routes_after(place, limit=2)
        found += [ufrag for _, _, ufrag in page]
        place = page[-1][0] if page else place
        table.remove_route(f"goes{number}", instance=FIRST)
        add_route(table, f"come{number}")

    assert [ufrag for ufrag in found if ufrag.startswith("stay")] == stay


def test_ids_that_share_an_index_are_listed_too(table: RouteTable) -> None:
    routes = {"abcd": Route(INDEXES + 17), "efgh": Route(17), "ijkl": Route(2 * INDEXES + 17)}
    table.adopt([adopted(routes=routes, expires=15.0)], now=0.0)

    for transceiver in (None, "x1"):
        assert sorted(chain.from_iterable(pages(table, 1, transceiver))) == ["abcd", "efgh", "ijkl"]


def test_a_digest_is_that_of_the_routes_whatever_has_come_and_gone(table: RouteTable) -> None:
    lease = register(table).lease
    assert written(lease.digest) == digest([])
    for ufrag in ("abcd", "efgh", "ijkl"):
        add_route(table, ufrag)
    assert written(lease.digest) == digest(["ijkl", "abcd", "efgh"])

    table.remove_route("efgh", instance=FIRST)
    add_route(table, "mnop")
    assert written(lease.digest) == digest(["abcd", "ijkl", "mnop"])

    table.end_routes(lease)
    assert written(lease.digest) == digest([])


def test_an_adopted_lease_has_the_digest_of_its_routes(table: RouteTable) -> None:
    lease = adopted(routes={"abcd": Route(17), "efgh": Route(18)})
    table.adopt([lease], now=0.0)

    assert written(lease.digest) == digest(["efgh", "abcd"])


def test_other_routes_have_another_digest() -> None:
    assert digest(["abcd"]) != digest(["abce"])
    assert digest(["abcd", "efgh"]) != digest(["abcd"])


# Drains.


def test_a_draining_transceiver_gets_no_new_routes_and_keeps_its_own(table: RouteTable) -> None:
    lease = register(table).lease
    add_route(table)
    lease.drain = Drain(since=0.0)

    with pytest.raises(Refused, match="x1 is draining") as error:
        table.add_route("efgh", transceiver="x1", instance=FIRST)

    assert refusal(error) == "draining"
    assert error.value.members["retry_after_s"] > 0
    assert table.add_route("abcd", transceiver="x1", instance=FIRST) is None, "it is there"
    assert list(lease.routes) == ["abcd"]


def test_a_drain_of_the_relay_is_one_of_every_transceiver(table: RouteTable) -> None:
    lease = register(table).lease
    table.drain = Drain(since=0.0)

    with pytest.raises(Refused, match="the relay is draining") as error:
        table.add_route("abcd", transceiver="x1", instance=FIRST)

    assert refusal(error) == "draining"
    assert table.drain_of(lease) is table.drain


def test_a_session_may_restart_during_a_drain(table: RouteTable) -> None:
    lease = register(table).lease
    add_route(table)
    lease.drain = Drain(since=0.0)

    route = table.add_route("efgh", transceiver="x1", instance=FIRST, restarts="abcd")

    assert route
    assert lease.routes["efgh"] == route


@pytest.mark.parametrize("draining", [True, False])
def test_only_a_route_of_its_own_can_restart(table: RouteTable, draining: bool) -> None:
    lease = register(table).lease
    register(table, "x2", instance=STRANGER, port=40001)
    table.add_route("abcd", transceiver="x2", instance=STRANGER)
    lease.drain = Drain(since=0.0) if draining else None

    with pytest.raises(Refused) as error:
        table.add_route("efgh", transceiver="x1", instance=FIRST, restarts="abcd")

    assert refusal(error) == "unknown-route"


def test_a_new_process_is_there_to_take_sessions(table: RouteTable) -> None:
    register(table).lease.drain = Drain(since=0.0)

    assert register(table, instance=SECOND).lease.drain is None


def test_renewing_does_not_end_a_drain(table: RouteTable) -> None:
    register(table).lease.drain = Drain(since=0.0)

    assert register(table, now=5.0).lease.drain is not None


def test_ended_routes_leave_the_lease_and_nothing_else(table: RouteTable) -> None:
    lease = register(table).lease
    for ufrag in ("abcd", "efgh"):
        add_route(table, ufrag)

    assert list(table.end_routes(lease)) == ["abcd", "efgh"]
    assert (lease.routes, table.owner("abcd"), len(table.ids)) == ({}, None, 0)
    assert table.leases() == [lease]


# What is never given out too early.


def test_route_ids_are_never_used_twice(table: RouteTable) -> None:
    register(table)
    seen = set()
    for _ in range(50):
        seen.add(add_route(table).id)
        table.remove_route("abcd", instance=FIRST)

    assert len(seen) == 50
    assert 0 not in seen, "0 stands for no route in a slot"


def test_a_route_is_found_by_its_id_until_it_is_removed(table: RouteTable) -> None:
    register(table)
    id = add_route(table).id

    assert table.ufrag(id) == "abcd"
    table.remove_route("abcd", instance=FIRST)
    assert table.ufrag(id) is None
    assert id not in table.ids


def test_the_index_of_an_ended_lease_rests_until_it_is_released(table: RouteTable) -> None:
    index = register(table).lease.index
    table.expire(now=LEASE_SECONDS)

    assert table.resting_indexes() == [index]
    assert register(table, now=20.0).lease.index != index

    table.release_index(index)
    assert register(table, "x2", instance=STRANGER, port=1, now=20.0).lease.index == index


def test_live_transceivers_have_indexes_of_their_own(table: RouteTable) -> None:
    indexes = {
        register(table, f"x{n}", instance=f"{n:016}", port=n + 1).lease.index for n in range(8)
    }

    assert indexes == set(range(8))


def test_a_full_table_refuses_and_changes_nothing(table: RouteTable) -> None:
    for n in range(8):
        register(table, f"x{n}", instance=f"{n:016}", port=n + 1)

    with pytest.raises(Refused) as error:
        register(table, "x0", instance=SECOND, port=1)

    assert refusal(error) == "transceiver-map-full"
    assert not register(table, "x0", instance=f"{0:016}", port=1).new


# After a restart.


def adopted(**change: object) -> Lease:
    lease = Lease(
        id="x1",
        index=3,
        instance=instance_number(FIRST),
        address="198.18.1.11",
        port=40000,
        http="",
        capacity=100,
        expires=0.0,
        routes={"abcd": Route(17)},
    )
    return replace(lease, **change)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("expires", "ends"),
    [
        (1012.0, 1012.0),
        (1003.0, 1000.0 + GRACE_SECONDS),
        (900.0, 1000.0 + GRACE_SECONDS),
        (9000.0, 1000.0 + LEASE_SECONDS),
    ],
    ids=["goes on", "about to end", "ended meanwhile", "longer than any lease"],
)
def test_an_adopted_lease_ends_when_it_would_have_but_not_at_once(
    table: RouteTable, expires: float, ends: float
) -> None:
    table.adopt([adopted(expires=expires)], now=1000.0)

    assert table.expire(now=ends - 0.1) == []
    (ended,) = table.expire(now=ends)
    assert ended.routes == {"abcd": Route(17)}


def test_a_renewal_after_adoption_keeps_routes_and_index(table: RouteTable) -> None:
    table.adopt([adopted()], now=1000.0)

    registered = register(table, now=1001.0)

    assert not registered.new
    assert registered.lease.index == 3
    assert registered.lease.http == "http://x"
    assert 17 in table.ids
    assert table.ufrag(17) == "abcd"


def test_a_new_instance_after_adoption_does_not_keep_them(table: RouteTable) -> None:
    table.adopt([adopted()], now=1000.0)

    registered = register(table, instance=SECOND, now=1001.0)

    assert registered.new
    assert registered.lease.index != 3
    assert len(table.ids) == 0


def test_no_new_route_has_the_id_of_an_adopted_one_or_one_that_a_slot_names(
    table: RouteTable,
) -> None:
    table.adopt([adopted(routes={"abcd": Route(1)})], now=0.0, named=[0, 2, 3])

    assert [add_route(table, ufrag).id for ufrag in ("efgh", "ijkl")] == [4, 5]


def test_routes_that_share_an_index_are_told_apart(table: RouteTable) -> None:
    """Ids of an earlier version, which gave them in turn."""
    table.adopt([adopted(routes={"abcd": Route(5), "efgh": Route(5 + INDEXES)})], now=0.0)

    assert [table.ufrag(id) for id in (5, 5 + INDEXES, 6)] == ["abcd", "efgh", None]
    for ufrag, id in (("efgh", 5 + INDEXES), ("abcd", 5)):
        table.remove_route(ufrag, instance=FIRST)
        assert table.ufrag(id) is None
    assert len(table.ids) == 0


def test_indexes_that_slots_still_name_are_kept_from_new_transceivers(table: RouteTable) -> None:
    table.adopt([adopted(index=1)], now=0.0, resting=[0, 1, 2])

    assert register(table, "x2", instance=STRANGER, port=1).lease.index == 3
    assert table.resting_indexes() == [0, 2]


def test_the_pinned_instance_is_not_the_word_itself() -> None:
    assert instance_number(FIRST) != instance_number(SECOND)
    assert 0 < instance_number(FIRST) < 2**64
    assert FIRST.encode()[:8] != instance_number(FIRST).to_bytes(8, "little")
