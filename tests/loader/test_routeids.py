"""Ids of routes: none twice, and those that are no more are known as such."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loader.routeids import INDEXES, Ids, RouteIds, index_of

SHARED = [5, 5 + INDEXES, 5 + 7 * INDEXES]
"""As an earlier version gave them: three at one index."""


def known(ids: RouteIds, *asked: int) -> list[bool]:
    found: list[bool] = ids.known(np.array(asked, dtype=np.uint32)).tolist()
    assert found == [id in ids for id in asked], "one by one it is the same"
    return found


def take(ids: RouteIds, count: int = 1) -> list[int]:
    taken = [ids.take() for _ in range(count)]
    assert None not in taken
    return [id for id in taken if id is not None]


def all_but(*free: int) -> Ids:
    """An id at every index but those."""
    return np.delete(np.arange(INDEXES, dtype=np.uint32), [0, *free])


def test_ids_are_known_until_they_are_given_back() -> None:
    ids = RouteIds()
    first, second = take(ids, 2)

    assert known(ids, first, second, first + INDEXES, 99) == [True, True, False, False]
    ids.give_back(first)
    assert known(ids, first, second) == [False, True]
    assert len(ids) == 1


def test_no_route_is_never_known() -> None:
    ids = RouteIds()

    assert known(ids, 0) == [False]
    ids.adopt([INDEXES])
    assert known(ids, 0, INDEXES) == [False, True]


def test_an_id_that_is_not_given_out_cannot_be_given_back() -> None:
    ids = RouteIds()
    (id,) = take(ids)
    ids.give_back(id)

    for unknown in (id, id + INDEXES, 0):
        with pytest.raises(KeyError):
            ids.give_back(unknown)
    assert len(ids) == 0


def test_an_index_comes_again_after_all_others_and_with_another_count() -> None:
    ids = RouteIds()
    ids.adopt(all_but(*range(1, 100)))
    (first,) = take(ids)
    ids.give_back(first)

    others = take(ids, 98)
    assert index_of(first) not in map(index_of, others)
    (again,) = take(ids)
    assert index_of(again) == index_of(first)
    assert again != first


def test_with_all_indexes_in_use_there_is_no_id() -> None:
    ids = RouteIds()
    ids.adopt(all_but())
    assert len(ids) == INDEXES - 1

    assert ids.take() is None
    ids.give_back(77)
    assert take(ids) == [77 + INDEXES]


def test_an_id_comes_again_after_4096_others_at_its_index_and_is_never_0() -> None:
    ids = RouteIds()
    ids.adopt(all_but(9))

    seen = []
    for _ in range(4097):
        (id,) = take(ids)
        seen.append(id)
        ids.give_back(id)
    assert len(set(seen[:4096])) == 4096
    assert seen[4096] == seen[0]


# Adoption.


def test_adopted_ids_are_known_and_not_given_out() -> None:
    ids = RouteIds()
    ids.adopt([1, 3, 2 + 4095 * INDEXES])

    assert known(ids, 1, 2, 3, 2 + 4095 * INDEXES) == [True, False, True, True]
    assert not {1, 2, 3} & set(map(index_of, take(ids, 1000)))


def test_ids_that_share_an_index_are_all_known_and_end_one_by_one() -> None:
    ids = RouteIds()
    ids.adopt(SHARED)
    assert len(ids) == 3
    assert sum(ids.is_extra(id) for id in SHARED) == 2

    left = set(SHARED)
    for id in SHARED:
        assert known(ids, *SHARED) == [other in left for other in SHARED]
        ids.give_back(id)
        left.remove(id)
    assert known(ids, *SHARED) == [False] * 3


@pytest.mark.parametrize("last", SHARED)
def test_a_shared_index_is_free_when_all_of_its_ids_are_gone(last: int) -> None:
    ids = RouteIds()
    ids.adopt(np.concatenate((SHARED, all_but(5))).astype(np.uint32))

    for id in SHARED:
        if id != last:
            ids.give_back(id)
            assert ids.take() is None
    ids.give_back(last)
    (id,) = take(ids)
    assert index_of(id) == 5
    assert id not in SHARED


@pytest.mark.parametrize("named", [[9], [9, 9 + INDEXES], [9 + INDEXES, 9], [9 + 4095 * INDEXES]])
def test_what_slots_name_is_no_new_route(named: list[int]) -> None:
    ids = RouteIds()
    ids.adopt(all_but(9), named=named)

    assert not any(known(ids, *named))
    for _ in range(3):
        (id,) = take(ids)
        assert id not in named
        ids.give_back(id)


def test_indexes_that_slots_name_are_the_last_to_be_used() -> None:
    ids = RouteIds()
    ids.adopt([1], named=[0, 1, 2, 3 + INDEXES])

    assert take(ids, 2) == [4, 5]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 2**32 - 1), max_size=30), st.data())
def test_what_is_known_is_what_is_given_out(live: list[int], data: st.DataObject) -> None:
    """Against a set, for ids of any kind, so that many share an index."""
    live = [id % (3 * INDEXES) // 2**18 * 2**18 + 1 if id % 2 else id for id in live if id]
    ids, model = RouteIds(), set(live)
    ids.adopt(sorted(model))
    for gives_back in data.draw(st.lists(st.booleans(), max_size=20)):
        if model and gives_back:
            gone = data.draw(st.sampled_from(sorted(model)))
            ids.give_back(gone)
            model.remove(gone)
        else:
            (id,) = take(ids)
            assert id not in model
            model.add(id)
    assert len(ids) == len(model)
    asked = [*live, *model, 0]
    assert known(ids, *asked) == [id in model for id in asked]
