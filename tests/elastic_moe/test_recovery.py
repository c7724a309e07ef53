"""Recovery: every way of counting against enumeration, the closed form, the published cases, the samples."""

import itertools
import math
import random

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from artifact.elastic_moe import (
    Placement,
    domain_recovery,
    mro_closed_form,
    mro_group_sizes,
    place,
    recovery,
    survival,
    upper_bound,
)
from artifact.elastic_moe.placement import probability as module


def enumerated(placements, num_nodes):
    """Good sets of k failed nodes, by asking for each set."""
    return [
        sum(
            all(placement.survives(failed) for placement in placements)
            for failed in itertools.combinations(range(num_nodes), k)
        )
        for k in range(num_nodes + 1)
    ]


def good(method, replicas, num_nodes, slots):
    return recovery(place(method, replicas, [slots] * num_nodes)).good


@st.composite
def placements(draw, num_nodes=None):
    """Any placement: empty nodes, and experts without a node, among them."""
    num_nodes = num_nodes or draw(st.integers(1, 8))
    num_experts = draw(st.integers(1, 9))
    experts = st.lists(st.integers(0, num_experts - 1), max_size=5)
    return Placement(tuple(tuple(sorted(draw(experts))) for _ in range(num_nodes)), num_experts)


def drawn(num_nodes, holders_of, size, seed):
    """A placement of experts on random sets of nodes of one size."""
    rng = random.Random(seed)
    nodes = [[] for _ in range(num_nodes)]
    for expert in range(holders_of):
        for node in rng.sample(range(num_nodes), size):
            nodes[node].append(expert)
    return Placement(tuple(map(tuple, nodes)), holders_of)


def only(monkeypatch, *, by_steps=False, by_subsets=False):
    """Allow one way of counting, or none: then orders of failure are sampled."""
    monkeypatch.setattr(module, "CHEAP_WORDS", 1 << 30 if by_subsets else 0)
    monkeypatch.setattr(module, "SUBSET_WORDS", 1 << 30 if by_subsets else 0)
    monkeypatch.setattr(module, "MAX_STATES", 1 << 30 if by_steps else -1)


@given(placements())
@settings(max_examples=300, deadline=None)
def test_counts_are_those_of_enumeration(placement):
    result = recovery(placement)
    assert result.exact
    assert result.good == enumerated([placement], placement.num_nodes)
    assert result.half_width == [0.0] * (placement.num_nodes + 1)
    every = [math.comb(placement.num_nodes, k) for k in range(placement.num_nodes + 1)]
    assert result.probability == [part / whole for part, whole in zip(result.good, every, strict=True)]


@given(st.integers(1, 7).flatmap(lambda num_nodes: st.lists(placements(num_nodes), min_size=1, max_size=4)))
@settings(max_examples=100, deadline=None)
def test_joint_recovery_asks_every_layer_to_survive(layers):
    assert recovery(layers).good == enumerated(layers, layers[0].num_nodes)


@given(placements())
@settings(max_examples=150, deadline=None)
def test_counting_node_by_node_gives_the_same(placement):
    with pytest.MonkeyPatch.context() as monkeypatch:
        only(monkeypatch, by_steps=True)
        assert recovery(placement).good == enumerated([placement], placement.num_nodes)


@pytest.mark.parametrize(
    ("num_nodes", "experts", "size"),
    [(16, 40, 4), (16, 10, 9), (20, 6, 7), (24, 12, 5), (70, 9, 12), (130, 8, 40), (64, 13, 6)],
)
def test_all_ways_of_counting_agree_where_nobody_can_enumerate_sets_by_hand(monkeypatch, num_nodes, experts, size):
    placement = drawn(num_nodes, experts, size, seed=num_nodes)
    only(monkeypatch, by_steps=True)
    by_steps = recovery(placement).good
    only(monkeypatch, by_subsets=True)
    assert recovery(placement).good == by_steps


@pytest.mark.parametrize("num_nodes", [1, 5, 6, 7, 12])
def test_enumeration_of_nodes_and_of_holder_sets_agree_with_asking_each_set(num_nodes):
    placement = drawn(num_nodes, 7, max(1, num_nodes // 3), seed=3)
    holders = [sum(1 << node for node in nodes) for nodes in placement.holders]
    by_live = enumerated([placement], num_nodes)[::-1]
    assert module._by_failures(num_nodes, holders) == by_live
    assert module._by_unions(num_nodes, holders) == by_live


@st.composite
def mro_cases(draw):
    num_nodes, slots = draw(st.integers(1, 12)), draw(st.integers(1, 5))
    total = draw(st.integers(num_nodes * (slots - 1) + 1, num_nodes * slots))
    cuts = sorted(draw(st.sets(st.integers(1, total - 1), max_size=11))) if total > 1 else []
    return [end - start for start, end in zip([0, *cuts], [*cuts, total], strict=True)], num_nodes, slots


@given(mro_cases())
@settings(max_examples=200, deadline=None)
def test_mro_has_its_closed_form_and_stays_within_the_upper_bound(case):
    replicas, num_nodes, slots = case
    groups = mro_group_sizes(replicas, [slots] * num_nodes)
    closed, bound = mro_closed_form(groups, num_nodes), upper_bound(replicas, slots, num_nodes)
    assert good("mro", replicas, num_nodes, slots) == closed
    assert all(reached <= most for reached, most in zip(closed, bound, strict=True))
    if len(replicas) <= slots or sum(sorted(replicas)[::slots]) <= num_nodes:
        assert closed == bound


@given(mro_cases(), st.sampled_from(["spread", "compact", "random", "eplb"]))
@settings(max_examples=150, deadline=None)
def test_no_method_exceeds_the_upper_bound(case, method):
    replicas, num_nodes, slots = case
    bound = upper_bound(replicas, slots, num_nodes)
    assert all(map(int.__le__, good(method, replicas, num_nodes, slots), bound))


def test_upper_bound_is_its_recursion_term_by_term():
    def term(firsts, nodes, live):
        if not firsts:
            return math.comb(nodes, live) if live >= 0 else 0
        return sum(term(firsts[1:], nodes - t, live - 1) for t in range(1, min(firsts[0], nodes) + 1))

    for replicas, slots, num_nodes in [
        ([2, 3, 3], 2, 4),
        ([6, 6, 6, 7, 7], 4, 8),
        ([2, 2, 4, 4, 4], 2, 8),
        ([9], 3, 3),
    ]:
        firsts = sorted(replicas)[::slots]
        assert upper_bound(replicas, slots, num_nodes) == [
            term(firsts, num_nodes, num_nodes - k) for k in range(num_nodes + 1)
        ]


def test_closed_form_worked_by_hand():
    # Groups of 2 and 3 of 5 nodes, 3 failures: one live node in each of them, 2 x 3 ways (Lazarus, figure 5).
    assert mro_closed_form([2, 3], 5) == [1, 5, 9, 6, 0, 0]
    assert mro_closed_form([2], 3) == [1, 3, 2, 0]


PUBLISHED = [
    # nodes, slots, replicas, failures, good sets of MRO, of spread; shared notes on the paper, section 1.3
    (4, 2, [2, 3, 3], [2], [4], [5]),
    (4, 3, [3] * 4, [1, 2], [3, 3], [4, 6]),
    (4, 6, [3] * 8, [1], [3], [4]),
    (5, 4, [4] * 5, [1, 2, 3], [4, 6, 4], [5, 10, 10]),
    (8, 3, [3] * 8, [2, 3, 4], [27, 48, 45], [28, 48, 38]),
    (8, 2, [2, 2, 4, 4, 4], [3, 4, 5], [44, 40, 16], [44, 40, 16]),
    (8, 3, [6] * 4, [4, 5, 6], [55, 36, 12], [70, 56, 24]),
    (10, 6, [7, 7, 7, 7, 8, 8, 8, 8], [5, 7, 8], [231, 84, 21], [252, 116, 32]),
    (10, 6, [6] * 6 + [7, 17], [5, 6, 7, 8], [246, 194, 96, 24], [252, 205, 100, 20]),
    (10, 6, [4] * 7 + [32], [4, 5, 6, 7, 8], [208, 240, 180, 80, 16], [205, 222, 140, 40, 0]),
]


@pytest.mark.parametrize(("num_nodes", "slots", "replicas", "failures", "mro", "spread"), PUBLISHED)
def test_mro_and_spread_recover_as_often_as_recomputed(num_nodes, slots, replicas, failures, mro, spread):
    assert [good("mro", replicas, num_nodes, slots)[k] for k in failures] == mro
    assert [good("spread", replicas, num_nodes, slots)[k] for k in failures] == spread


def test_mro_is_not_optimal_where_its_last_group_is_cut_short():
    assert good("mro", [6, 6, 6, 7, 7], 8, 4)[6] == 12
    assert good("mro", [4, 4, 4, 4, 5], 7, 3)[4] == 30
    assert recovery(place("mro", [7, 7, 7, 7, 8, 8, 8, 8], [6] * 10)).probability[7] == 0.7


def best_by_trying_all(replicas, num_nodes, slots):
    """For each k the most good sets of any placement: all holder sets of r nodes that fit the slots."""
    best = [0] * (num_nodes + 1)
    choices = [list(itertools.combinations(range(num_nodes), min(count, num_nodes))) for count in replicas]
    for chosen in itertools.product(*choices):
        nodes = [tuple(expert for expert, on in enumerate(chosen) if node in on) for node in range(num_nodes)]
        if max(map(len, nodes)) <= slots:
            best = list(map(max, best, recovery(Placement(tuple(nodes), len(replicas))).good))
    return best


def test_every_placement_stays_within_the_upper_bound_and_some_beat_mro():
    best = best_by_trying_all([2, 3, 3], 4, 2)
    assert best == [1, 4, 5, 0, 0]
    assert upper_bound([2, 3, 3], 2, 4) == [1, 4, 5, 0, 0]
    assert good("mro", [2, 3, 3], 4, 2) == [1, 4, 4, 0, 0]
    assert best_by_trying_all([2, 2, 3, 3], 5, 2) == upper_bound([2, 2, 3, 3], 2, 5) == mro_closed_form([2, 3], 5)


def test_figure_4_has_a_plan_that_recovers_in_5_of_10_and_one_in_7():
    """4 experts, 5 nodes (1 to 5), 3 of them fail."""
    nodes = {1: (0, 2, 2, 3), 2: (0, 1, 3), 3: (1, 1, 3, 3), 4: (1, 2, 3, 3), 5: (2, 2, 3)}
    plan = Placement(tuple(nodes[node] for node in range(1, 6)), 4)
    survivors = [
        pair
        for pair in itertools.combinations(range(1, 6), 2)
        if plan.survives([node - 1 for node in nodes if node not in pair])
    ]
    assert survivors == [(1, 2), (1, 3), (1, 4), (2, 4), (2, 5)]
    assert recovery(plan).good[3] == 5
    assert good("mro", plan.replicas, 5, 4)[3] == 7
    assert upper_bound(plan.replicas, 4, 5)[3] == 7


def test_figure_5_recovers_in_6_of_10():
    assert good("mro", [2, 2, 3, 3], 5, 2)[3] == 6


def test_fewer_failures_than_f_can_be_fatal_under_mro_and_not_under_spread():
    """4 nodes x 6 slots, 8 experts with 3 replicas each: the second group of MRO is one node."""
    assert recovery(place("mro", [3] * 8, [6] * 4)).probability[1] == 0.75
    assert recovery(place("spread", [3] * 8, [6] * 4)).probability[:3] == [1.0, 1.0, 1.0]


@given(placements())
@settings(max_examples=100, deadline=None)
def test_no_failure_is_survived_all_failures_are_not_and_more_are_never_better(placement):
    probability = recovery(placement).probability
    rarest = min(map(len, placement.holders))
    assert probability[-1] == 0.0
    assert all(probability[k] == 1.0 for k in range(rarest))
    assert probability[rarest] < 1.0
    assert sorted(probability, reverse=True) == probability


def test_aligned_layers_survive_together_and_layers_in_orders_of_their_own_do_not():
    layer = place("mro", [2, 2, 2, 2, 3, 3, 3, 3], [4] * 5)
    rng = random.Random(0)
    shuffled = [Placement(tuple(rng.sample(layer.nodes, 5)), 8) for _ in range(6)]
    assert recovery([layer] * 6) == recovery(layer)
    assert recovery(shuffled).probability[2] < recovery(layer).probability[2] / 2


def test_large_placements_of_regular_methods_are_counted_exactly():
    replicas = [3] * 176 + [4] * 124
    slots = [8] * 128
    groups = mro_group_sizes(replicas, slots)
    assert recovery(place("mro", replicas, slots)).good == mro_closed_form(groups, 128)
    assert all(recovery(place(method, replicas, slots)).exact for method in ("spread", "compact", "eplb"))


def test_a_ring_of_overlapping_pairs_has_the_count_of_circular_binary_words():
    """Node i holds experts i and i + 1: no two neighbours on the ring may both fail."""
    num_nodes = 90
    ring = Placement(tuple(tuple(sorted((i, (i + 1) % num_nodes))) for i in range(num_nodes)), num_nodes)
    assert recovery(ring).good == [
        num_nodes * math.comb(num_nodes - k, k) // (num_nodes - k) if 2 * k <= num_nodes else 0
        for k in range(num_nodes + 1)
    ]


def test_sampled_intervals_hold_the_exact_values(monkeypatch):
    placement = drawn(30, 20, 5, seed=1)
    exact = recovery(placement)
    assert exact.exact
    only(monkeypatch)
    held = total = 0
    for seed in range(20):
        sampled = recovery(placement, samples=2000, seed=seed)
        assert not sampled.exact
        assert sampled.good is None
        for truth, found, width in zip(exact.probability, sampled.probability, sampled.half_width, strict=True):
            if width:
                held += abs(truth - found) <= width
                total += 1
            else:
                assert truth == found
    assert held / total > 0.93


def test_half_widths_are_those_of_wilson(monkeypatch):
    scipy_stats = pytest.importorskip("scipy.stats")
    only(monkeypatch)
    result = recovery(drawn(12, 6, 4, seed=0), samples=500)
    for share, width in zip(result.probability, result.half_width, strict=True):
        if width:
            interval = scipy_stats.binomtest(round(share * 500), 500).proportion_ci(method="wilson")
            assert width == pytest.approx(max(interval.high - share, share - interval.low), rel=1e-9)


def test_samples_depend_on_the_seed_only_and_more_of_them_narrow_the_interval(monkeypatch):
    placement = drawn(30, 20, 5, seed=2)
    only(monkeypatch)
    assert recovery(placement, seed=4) == recovery(placement, seed=4)
    assert recovery(placement, seed=4) != recovery(placement, seed=5)
    few, many = recovery(placement, samples=1000), recovery(placement, samples=30_000)
    assert max(many.half_width) < max(few.half_width) / 4


def test_placements_without_structure_are_sampled_when_large():
    result = recovery(drawn(128, 256, 4, seed=0), samples=3000)
    assert not result.exact
    assert result.half_width[:4] == [0.0] * 4
    assert result.probability[:4] == [1.0] * 4
    assert 0.0 < result.half_width[10] < 0.02


@given(placements(), st.floats(0, 1))
@settings(max_examples=100, deadline=None)
def test_survival_is_the_sum_over_all_sets_of_failed_nodes(placement, chance):
    num_nodes = placement.num_nodes
    total = sum(
        chance ** len(failed) * (1 - chance) ** (num_nodes - len(failed))
        for k in range(num_nodes + 1)
        for failed in itertools.combinations(range(num_nodes), k)
        if placement.survives(failed)
    )
    assert survival(placement, chance) == pytest.approx(total, abs=1e-12)


def test_survival_under_mro_is_a_product_over_its_groups():
    placement = place("mro", [3] * 176 + [4] * 124, [8] * 128)
    groups = mro_group_sizes([3] * 176 + [4] * 124, [8] * 128)
    assert survival(placement, 0.1) == pytest.approx(math.prod(1 - 0.1**size for size in groups), rel=1e-12)


@given(
    st.integers(2, 7).flatmap(lambda n: st.tuples(placements(n), st.lists(st.integers(-1, 3), min_size=n, max_size=n)))
)
@settings(max_examples=150, deadline=None)
def test_domain_recovery_is_that_of_all_nodes_of_the_failed_domains(case):
    placement, domain_of = case
    domains = [[node for node, number in enumerate(domain_of) if number == domain] for domain in range(4)]
    found = domain_recovery(placement, domains)
    for k in range(5):
        choices = list(itertools.combinations(domains, k))
        survived = sum(placement.survives([node for domain in failed for node in domain]) for failed in choices)
        assert found[k] == survived / len(choices)


def test_domains_of_one_node_each_are_single_nodes():
    placement = place("spread", [3, 4, 5, 4], [2] * 8)
    assert domain_recovery(placement, [[node] for node in range(8)]) == recovery(placement).probability


def test_racks_of_neighbours_take_a_whole_group_of_mro_and_strided_racks_do_not():
    placement = place("mro", [2] * 8 + [4] * 6, [4] * 10)
    assert mro_group_sizes([2] * 8 + [4] * 6, [4] * 10) == [2, 2, 4, 2]
    neighbours = domain_recovery(placement, [[2 * rack, 2 * rack + 1] for rack in range(5)])
    strided = domain_recovery(placement, [[rack, rack + 5] for rack in range(5)])
    assert neighbours[1] == 2 / 5
    assert strided[1] == 1.0


def test_expected_recovery_weights_the_numbers_of_failures():
    result = recovery(place("mro", [2, 2, 3, 3], [2] * 5))
    assert result.probability == [1.0, 1.0, 0.9, 0.6, 0.0, 0.0]
    assert result.expected([1.0]) == 1.0
    assert result.expected([0.5, 0, 0.25, 0.25]) == pytest.approx(0.875)
    binomial = [math.comb(5, k) * 0.1**k * 0.9 ** (5 - k) for k in range(6)]
    assert result.expected(binomial) == pytest.approx(survival(place("mro", [2, 2, 3, 3], [2] * 5), 0.1))
    assert result.expected(np.array([0.0, 1.0]).tolist() + [0.0] * 9) == 1.0


@pytest.mark.parametrize(
    ("distribution", "message"),
    [
        ([0.5, 0.6, -0.1], "got -0.1"),
        ([0.5, 0.4], "sum to 1, got 0.9"),
        ([0, 0, 0, 1], "at most 2 nodes can fail, got 3"),
    ],
)
def test_a_wrong_distribution_is_refused(distribution, message):
    with pytest.raises(ValueError, match=message):
        recovery(Placement(((0,), (0,)), 1)).expected(distribution)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda placement: recovery([]), "at least one placement"),
        (lambda placement: recovery([placement, Placement(((0,),), 1)]), "placements on \\[1, 2\\] nodes"),
        (lambda placement: recovery(placement, samples=0), "samples must be at least 1, got 0"),
        (lambda placement: survival(placement, 1.5), "in \\[0, 1\\], got 1.5"),
        (lambda placement: survival(placement, float("nan")), "got nan"),
        (lambda placement: domain_recovery(placement, []), "at least one domain"),
        (lambda placement: domain_recovery(placement, [[0], [2]]), "in \\[0, 2\\), got 2"),
        (lambda placement: domain_recovery(placement, [[0], [1, 0]]), "got 0 in 0 and 1"),
        (lambda placement: mro_closed_form([3, 3], 5), "of 5 nodes, got \\[3, 3\\]"),
        (lambda placement: mro_closed_form([-1], 5), "got \\[-1\\]"),
        (lambda placement: upper_bound([], 2, 3), "at least 1, got \\[\\], 2 and 3"),
        (lambda placement: upper_bound([1, 0], 2, 3), "got \\[1, 0\\]"),
        (lambda placement: upper_bound([1], 0, 3), "at least 1"),
    ],
)
def test_wrong_input_is_refused_with_its_value(call, message):
    with pytest.raises(ValueError, match=message):
        call(Placement(((0,), (0,)), 1))
