"""Allocation: equation (1) in exact integers, and what it does where the slots or the loads run out."""

import math
from fractions import Fraction

import pytest
from hypothesis import given, settings, strategies as st

from artifact.elastic_moe import allocate


def as_written(loads, num_slots, min_replicas):
    """Equation (1) with fractions, term by term."""
    order = sorted(range(len(loads)), key=lambda expert: (loads[expert], expert))
    given_out = {}
    for place, expert in enumerate(order):
        rest = sum(Fraction(loads[other]) for other in order[place:])
        share = Fraction(loads[expert]) / rest * (num_slots - sum(given_out.values()))
        given_out[expert] = max(math.floor(share), min_replicas)
    return [given_out[expert] for expert in range(len(loads))]


CASES = st.lists(st.integers(0, 50), min_size=1, max_size=12).flatmap(
    lambda loads: st.tuples(st.just(loads), st.integers(len(loads), 80), st.integers(1, 5))
)


@given(CASES)
@settings(deadline=None)
def test_it_is_equation_1_wherever_that_is_defined(case):
    loads, num_slots, min_replicas = case
    if any(loads) and len(loads) * min_replicas <= num_slots:
        assert allocate(loads, num_slots, min_replicas) == as_written(loads, num_slots, min_replicas)


@given(CASES)
@settings(deadline=None)
def test_all_slots_are_given_out_at_least_f_each_and_more_to_more_load(case):
    loads, num_slots, min_replicas = case
    replicas = allocate(loads, num_slots, min_replicas)
    assert sum(replicas) == num_slots
    assert min(replicas) >= min(min_replicas, num_slots // len(loads))
    by_load = sorted(range(len(loads)), key=lambda expert: (loads[expert], expert))
    rising = [replicas[expert] for expert in by_load]
    assert rising == sorted(rising)


@given(CASES, st.integers(-40, 40))
@settings(deadline=None)
def test_the_unit_of_the_load_does_not_matter(case, power):
    loads, num_slots, min_replicas = case
    scaled = [load * 2.0**power for load in loads]
    assert allocate(scaled, num_slots, min_replicas) == allocate(loads, num_slots, min_replicas)


def test_a_case_worked_by_hand():
    # 1/16 of 12 is 0, so f = 2; 5/15 of 10 is 3; the rest is 7.
    assert allocate([10, 5, 1], 12, 2) == [7, 3, 2]


def test_a_share_that_is_whole_is_not_rounded_away():
    assert 1 / 49 * 98 < 2  # in doubles
    assert allocate([1] * 49, 98) == [2] * 49
    # One part in 10**30 more or less than a third of the load, which no double tells apart.
    assert allocate([10**30, 2 * 10**30 - 1], 3) == [1, 2]
    assert allocate([10**30, 2 * 10**30 + 1], 3) == [1, 2]
    assert allocate([10**30, 2 * 10**30], 6) == [2, 4]
    assert allocate([10**30, 2 * 10**30 + 1], 6) == [1, 5]


@pytest.mark.parametrize(
    ("loads", "replicas"),
    [
        ([1 / (rank + 1) for rank in range(8)], [24, 12, 7, 5, 4, 3, 3, 2]),
        ([0.435] * 2 + [0.13 / 14] * 14, [16, 16] + [2] * 14),
    ],
)
def test_skewed_loads_of_the_papers_cluster_keep_two_replicas_each(loads, replicas):
    assert allocate(loads, 60, 2) == replicas


def test_where_slots_run_short_f_is_what_they_hold():
    """5 nodes x 6 slots hold one replica of 16 experts, not two (Lazarus, section 4.1)."""
    replicas = allocate([100, 50] + [1] * 14, 30, 2)
    assert sum(replicas) == 30
    assert min(replicas) == 1
    assert allocate([7, 1, 1, 1], 4, 2) == [1, 1, 1, 1]


def test_without_any_load_experts_count_the_same():
    assert allocate([0, 0, 0, 0], 10, 2) == [2, 2, 3, 3]
    assert allocate([0.0], 5) == [5]


def test_an_expert_without_load_keeps_its_minimum():
    assert allocate([0, 0, 8], 10, 2) == [2, 2, 6]


@pytest.mark.parametrize(
    ("loads", "num_slots", "min_replicas", "message"),
    [
        ([], 4, 1, "at least one expert, got none"),
        ([3, -1], 4, 1, "not negative, got -1"),
        ([3, float("nan")], 4, 1, "finite"),
        ([3, float("inf")], 4, 1, "finite"),
        ([1, 1, 1], 2, 1, "got 2 for 3 experts"),
        ([1, 1], 4, 0, "min_replicas must be at least 1, got 0"),
    ],
)
def test_wrong_input_is_refused_with_its_value(loads, num_slots, min_replicas, message):
    with pytest.raises(ValueError, match=message):
        allocate(loads, num_slots, min_replicas)
