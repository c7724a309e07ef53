"""`best`: optimal where enumeration can tell, and nowhere worse than any other method."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import combinations, combinations_with_replacement, pairwise, product

import pytest
from hypothesis import given, settings, strategies as st

from artifact.elastic_moe import METHODS, Placement, place, recovery, upper_bound
from artifact.elastic_moe.placement.search import DOUBT, Candidate, SearchProblem

# (slots, replicas, failures, most failure sets that any placement survives), by full enumeration of placements. In all
# but a few, none of the other methods gets there.
OPTIMA = [
    ([4] * 8, (6, 6, 6, 7, 7), 6, 25),
    ([3] * 8, (3,) * 8, 2, 28),
    ([3] * 8, (3,) * 8, 3, 51),
    ([3] * 8, (3,) * 8, 4, 48),
    ([2] * 8, (2, 2, 4, 4, 4), 3, 50),
    ([2] * 8, (2, 2, 4, 4, 4), 4, 52),
    ([2] * 8, (2, 2, 4, 4, 4), 5, 24),
    ([3] * 7, (4, 4, 4, 4, 5), 4, 32),
    ([2] * 4, (2, 3, 3), 2, 5),
    ([6] * 4, (3,) * 8, 1, 4),
    ([4] * 4, (2, 2, 4, 4, 4), 2, 5),
    ([3] * 6, (1, 1, 1, 2, 3, 5, 5), 3, 7),
    ([3] * 6, (1, 2, 3, 3, 3, 3, 3), 2, 10),
    ([3] * 6, (3, 3, 4, 8), 4, 11),
    ([4] * 6, (3, 4, 5, 6, 6), 4, 12),
    ([2] * 7, (1, 2, 3, 4, 4), 3, 19),
    ([3] * 7, (1, 2, 3, 3, 4, 4, 4), 4, 10),
    ([3] * 7, (2, 2, 3, 3, 3, 4, 4), 3, 28),
    ([3] * 7, (2, 3, 7, 9), 5, 11),
    ([4] * 7, (2, 6, 6, 7, 7), 4, 25),
    ([4] * 7, (3, 4, 5, 7, 9), 5, 14),
    ([4] * 7, (4, 4, 4, 8, 8), 4, 34),
    ([2] * 8, (1, 1, 2, 2, 3, 3, 4), 2, 20),
    ([2] * 8, (1, 1, 2, 3, 3, 3, 3), 4, 15),
    ([3] * 8, (2, 2, 2, 3, 3, 4, 8), 3, 49),
    ([3] * 8, (2, 2, 3, 3, 4, 5, 5), 5, 22),
    ([3] * 8, (2, 3, 9, 10), 6, 13),
    ([3] * 8, (3, 3, 3, 3, 3, 3, 6), 4, 54),
    ([3] * 8, (3, 3, 9, 9), 5, 46),
    ([4] * 8, (2, 3, 3, 7, 17), 6, 13),
    ([4] * 8, (3, 3, 6, 6, 6, 8), 6, 16),
    ([4] * 8, (3, 4, 4, 8, 13), 5, 46),
    ([4] * 8, (4, 4, 8, 8, 8), 4, 69),
    # vacant slots
    ([3] * 7, (1, 1, 1, 2, 2, 5, 5), 4, 9),
    ([4] * 7, (2, 2, 4, 7, 11), 5, 11),
    ([2] * 8, (1, 2, 4, 4, 4), 4, 32),
    ([3] * 8, (1, 1, 2, 2, 5, 6, 6), 5, 11),
    ([4] * 8, (2, 2, 4, 5, 6, 11), 3, 50),
    ([4] * 8, (3, 3, 4, 7, 8), 6, 17),
    ([4] * 8, (3, 5, 5, 6, 12), 5, 46),
    # unequal slots
    ([3, 1, 3, 1], (1, 1, 1, 1, 1, 1), 1, 2),
    ([1, 4, 1, 4, 3], (1, 5, 6, 1), 4, 1),
    ([1, 2, 1, 4, 3, 4], (11, 4), 5, 4),
    ([4, 3, 4, 2, 4, 3, 3], (17, 4, 2), 3, 30),
    ([1, 4, 1, 3, 2, 1, 2, 3], (1, 5, 2, 1, 4, 1, 1, 2), 5, 10),
    ([1, 4, 4, 1, 1, 2, 4, 4], (9, 12), 6, 27),
    ([2, 1, 2, 3, 4, 3, 4, 4], (10, 3, 1, 2, 1, 5, 1), 6, 3),
]

# 10 nodes with 6 slots: proven by an integer program (Lazarus, figure 10b, and equal loads).
OPTIMA_OF_TEN = [
    ((7, 7, 7, 7, 8, 8, 8, 8), 5, 252),
    ((7, 7, 7, 7, 8, 8, 8, 8), 7, 118),
    ((7, 7, 7, 7, 8, 8, 8, 8), 8, 37),
    ((6, 6, 6, 6, 6, 6, 7, 17), 5, 252),
    ((6, 6, 6, 6, 6, 6, 7, 17), 6, 208),
    ((6, 6, 6, 6, 6, 6, 7, 17), 7, 111),
    ((6, 6, 6, 6, 6, 6, 7, 17), 8, 30),
]


def survived(placement: Placement, failures: int) -> int:
    """Failure sets of this size after which every expert has a holder, one by one."""
    return sum(map(placement.survives, combinations(range(placement.num_nodes), failures)))


def survival(placement: Placement, probability: float) -> float:
    nodes = placement.num_nodes
    good = recovery(placement).good
    assert good is not None
    return math.fsum(sets * probability**k * (1 - probability) ** (nodes - k) for k, sets in enumerate(good))


def fits(placement: Placement, replicas: Sequence[int], slots: Sequence[int]) -> bool:
    full = all(len(node) <= slot for node, slot in zip(placement.nodes, slots, strict=True))
    return full and placement.replicas == list(replicas)


def every_placement(replicas: Sequence[int], slots: Sequence[int]) -> Iterator[Placement]:
    """By the experts that each node holds, copies counted."""
    contents = [
        [node for size in range(slot + 1) for node in combinations_with_replacement(range(len(replicas)), size)]
        for slot in slots
    ]
    for nodes in product(*contents):
        placement = Placement(nodes, len(replicas))
        if placement.replicas == list(replicas):
            yield placement


@st.composite
def cases(draw: st.DrawFn, nodes: int, slots: int, experts: int) -> tuple[list[int], list[int]]:
    """Replicas and slots that `place` accepts."""
    slot_of = draw(st.lists(st.integers(1, slots), min_size=1, max_size=nodes))
    total = sum(slot_of) - draw(st.integers(0, len(slot_of) - 1))
    num_experts = draw(st.integers(1, min(experts, total)))
    cuts = draw(
        st.lists(st.integers(1, max(1, total - 1)), min_size=num_experts - 1, max_size=num_experts - 1, unique=True)
    )
    ends = [0, *sorted(cuts), total]
    return [end - start for start, end in pairwise(ends)], slot_of


@pytest.mark.parametrize(("slots", "replicas", "failures", "most"), OPTIMA)
def test_as_many_failure_sets_are_survived_as_by_any_placement(
    slots: list[int], replicas: tuple[int, ...], failures: int, most: int
) -> None:
    placement = place("best", replicas, slots, failures=failures)
    assert fits(placement, replicas, slots)
    assert survived(placement, failures) == most


@pytest.mark.parametrize(("replicas", "failures", "most"), OPTIMA_OF_TEN)
def test_exchanging_copies_reaches_the_optimum_of_ten_nodes(
    replicas: tuple[int, ...], failures: int, most: int
) -> None:
    assert survived(place("best", replicas, [6] * 10, failures=failures), failures) == most


@given(cases(nodes=4, slots=2, experts=4), st.sampled_from([0.1, 0.5]))
@settings(max_examples=40, deadline=None)
def test_no_placement_of_a_small_case_is_better(case: tuple[list[int], list[int]], probability: float) -> None:
    replicas, slots = case
    every = list(every_placement(replicas, slots))
    for failures in range(len(slots) + 1):
        most = max(survived(placement, failures) for placement in every)
        assert survived(place("best", replicas, slots, failures=failures), failures) == most
    likeliest = max(survival(placement, probability) for placement in every)
    best = place("best", replicas, slots, failure_probability=probability)
    assert survival(best, probability) == pytest.approx(likeliest, rel=1e-12)


@given(cases(nodes=12, slots=6, experts=14), st.data())
@settings(max_examples=25, deadline=None)
def test_no_other_method_is_better(case: tuple[list[int], list[int]], data: st.DataObject) -> None:
    replicas, slots = case
    failures = data.draw(st.none() | st.integers(0, len(slots)))
    seed = data.draw(st.integers(0, 3))
    best = place("best", replicas, slots, failures=failures, seed=seed)
    assert fits(best, replicas, slots)
    for method in METHODS:
        other = place(method, replicas, slots, failures=failures, seed=seed)
        if failures is None:
            assert survival(best, 0.1) >= survival(other, 0.1) * (1 - 1e-12)
        else:
            assert survived(best, failures) >= survived(other, failures)


@given(cases(nodes=7, slots=5, experts=7), st.data())
@settings(max_examples=40, deadline=None)
def test_what_is_optimal_can_also_survive_fewer_failures_than_the_fewest_replicas(
    case: tuple[list[int], list[int]], data: st.DataObject
) -> None:
    replicas, slots = case
    slots = [max(slots)] * len(slots)
    replicas[-1] += sum(slots) - sum(replicas)
    failures = data.draw(st.none() | st.integers(0, len(slots)))
    fewest = min(*replicas, len(slots))
    assert survived(place("best", replicas, slots, failures=failures), fewest - 1) == math.comb(len(slots), fewest - 1)


def test_one_failure_that_is_fatal_under_mro_is_survived() -> None:
    replicas, slots = (3,) * 8, [6] * 4
    assert survived(place("mro", replicas, slots), 1) == 3
    assert survived(place("best", replicas, slots), 1) == 4


def test_mro_is_returned_where_its_groups_are_whole() -> None:
    replicas, slots = (2, 2, 3, 3, 4, 4, 5, 5, 2, 2, 4, 4), [4] * 10
    for failures in (None, 1, 3, 5):
        assert place("best", replicas, slots, failures=failures) == place("mro", replicas, slots)
    good = recovery(place("mro", replicas, slots)).good
    assert good == upper_bound(replicas, 4, 10)


@pytest.mark.parametrize("failures", [None, 16])
def test_with_many_nodes_more_is_survived_than_by_any_other_method_where_a_group_is_cut_short(
    failures: int | None,
) -> None:
    replicas, slots = (13, 14, 14, 14, 15, 15, 15), [4] * 25
    best = place("best", replicas, slots, failures=failures, failure_probability=0.4)
    assert fits(best, replicas, slots)

    def value(placement: Placement) -> float:
        return survival(placement, 0.4) if failures is None else recovery(placement).probability[failures]

    assert value(best) > max(value(place(method, replicas, slots)) for method in METHODS if method != "best")


def test_a_placement_that_cannot_be_counted_is_taken_only_if_it_survives_no_less() -> None:
    replicas, slots, failures = (13, 14, *[15] * 13, 16, *[17] * 16), [5] * 102, 40
    best = place("best", replicas, slots, failures=failures)
    assert fits(best, replicas, slots)
    result = recovery(best)
    most = max(
        recovery(place(method, replicas, slots)).probability[failures] for method in ("mro", "spread", "compact")
    )
    assert result.probability[failures] >= most - result.half_width[failures]


def test_an_estimate_wins_only_by_three_standard_errors() -> None:
    problem = SearchProblem((2, 2), (1, 1, 1, 1), None, 0.1, 0)
    counted, tried = Placement(((0,), (0,), (1,), (1,)), 2), Placement(((0,), (1,), (0,), (1,)), 2)
    known = Candidate(counted, 0.10, 0.0)
    for loss, error, wins in ((0.09, 0.005, False), (0.084, 0.005, True), (0.0999, 0.0, True)):
        estimate = Candidate(tried, loss, error)
        assert problem.best([known, estimate]).placement == (tried if wins else counted)
        assert problem.best([estimate, known]).placement == (tried if wins else counted)
    # Both estimated: the errors add up as independent ones, 0.0042 and 0.0042 to 0.006.
    first, second = Candidate(counted, 0.10, 0.0042), Candidate(tried, 0.085, 0.0042)
    assert problem.best([first, second]) == first
    assert problem.best([first, Candidate(tried, 0.081, 0.0042)]).placement == tried


@pytest.mark.parametrize("failure_probability", [0.3, 1e-6])
def test_on_27_nodes_a_loss_is_estimated_with_an_error_that_covers_it(failure_probability: float) -> None:
    replicas, slots = (7,) * 12 + (8,) * 3, [4] * 27
    problem = SearchProblem(replicas, tuple(slots), None, failure_probability, 0)
    placement = place("random", replicas, slots, seed=5)
    found = problem.judged(placement)
    # Also where every drawn failure set loses one expert, and the estimates do not differ: it is not taken for counted.
    assert 0 < found.standard_error < found.loss / 50
    good = recovery(placement).good
    assert good is not None
    assert abs(found.loss - problem.loss_of(good)) < DOUBT * found.standard_error


@pytest.mark.parametrize("failures", [None, 4, 7])
def test_equal_seeds_give_equal_placements(failures: int | None) -> None:
    replicas, slots = (5, 5, 5, 6, 6, 6, 7, 7, 7), [6, 6, 5, 5, 5, 5, 6, 6, 5, 5]
    assert place("best", replicas, slots, failures=failures, seed=3) == place(
        "best", replicas, slots, failures=failures, seed=3
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"failures": 6}, r"failures must be in \[0, 5\], the number of nodes, got 6"),
        ({"failures": -1}, "got -1"),
        ({"failure_probability": 1.5}, r"failure_probability must be in \[0, 1\], got 1.5"),
        ({"replicas": (9, 9, 9)}, "27"),
        ({"replicas": (2, 2)}, "4 replicas"),
        ({"slots": []}, "node"),
    ],
)
def test_what_cannot_be_placed_is_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        place("best", **{"replicas": (2, 2, 3, 4, 5), "slots": [4] * 5} | arguments)
