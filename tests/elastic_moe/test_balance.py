"""Replica counts for balance alone: the published example, and no counts with a smaller largest replica."""

from itertools import product

import pytest
from hypothesis import given, settings, strategies as st

from figures.lazarus.planners import allocate_balanced


def test_counts_of_eplb_under_zipf_loads():
    assert allocate_balanced([1 / rank for rank in range(1, 9)], 60) == [21, 11, 7, 6, 5, 4, 3, 3]
    assert allocate_balanced([43.5, 43.5] + [13 / 14] * 14, 60) == [23, 23] + [1] * 14


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 50), min_size=1, max_size=4), st.integers(0, 6), st.integers(1, 2))
def test_no_counts_have_a_smaller_largest_replica(loads, more, floor):
    num_slots = floor * len(loads) + more
    found = allocate_balanced(loads, num_slots, floor)
    assert sum(found) == num_slots and min(found) >= floor
    every = product(range(floor, floor + more + 1), repeat=len(loads))
    least = min(
        max(map(lambda load, count: load / count, loads, counts)) for counts in every if sum(counts) == num_slots
    )
    assert max(load / count for load, count in zip(loads, found, strict=True)) == least


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], 3), "at least one expert, got none"),
        (([1, -2], 3), "must not be negative, got -2"),
        (([1], 3, 0), "min_replicas must be at least 1, got 0"),
        (([1, 1], 3, 2), "num_slots must be at least 4, 2 for each of 2 experts, got 3"),
    ],
)
def test_what_cannot_be_allocated_is_refused_by_name(arguments, message):
    with pytest.raises(ValueError, match=message):
        allocate_balanced(*arguments)
