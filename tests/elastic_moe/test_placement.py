"""Placements: MRO to the letter against the published steps, and the methods that it is compared with."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from artifact.elastic_moe import METHODS, Placement, allocate, mro_group_sizes, place

OTHERS = [method for method in METHODS if method != "best"]  # `best` is tested with the search


@st.composite
def cases(draw, equal=False):
    """Replicas and slots that `place` accepts: at most one slot a node is vacant."""
    num_nodes = draw(st.integers(1, 9))
    width = draw(st.integers(1, 6))
    slots = [width] * num_nodes if equal else draw(st.lists(st.integers(1, 6), min_size=num_nodes, max_size=num_nodes))
    total = draw(st.integers(max(1, sum(slots) - num_nodes + 1), sum(slots)))
    cuts = sorted(draw(st.sets(st.integers(1, total - 1), max_size=11))) if total > 1 else []
    replicas = [end - start for start, end in zip([0, *cuts], [*cuts, total], strict=True)]
    return draw(st.permutations(replicas)), slots


def published_mro(replicas, slots):
    """The steps of the paper one by one, copy by copy."""
    order = sorted(range(len(replicas)), key=lambda expert: (replicas[expert], expert))
    width, num_nodes = min(slots), len(slots)
    nodes, left = [[] for _ in slots], list(replicas)
    groups = [order[start : start + width] for start in range(0, len(order), width)]
    used = 0
    for group in groups:
        size = min(replicas[group[0]], num_nodes - used)
        for expert in group:
            for node in range(used, used + (min(replicas[expert], num_nodes) if len(groups) == 1 else size)):
                nodes[node].append(expert)
                left[expert] -= 1
        used += size
    for expert in sorted(range(len(replicas)), key=lambda expert: (-left[expert], expert)):
        while left[expert]:
            free = [node for node in range(num_nodes) if len(nodes[node]) < slots[node]]
            node = min(free, key=lambda node: (expert in nodes[node], len(nodes[node]) - slots[node], node))
            nodes[node].append(expert)
            left[expert] -= 1
    return tuple(tuple(sorted(node)) for node in nodes)


@pytest.mark.parametrize("method", OTHERS)
@given(case=cases(), seed=st.integers(0, 5))
@settings(max_examples=60, deadline=None)
def test_every_replica_is_placed_once_and_no_node_has_more_than_its_slots(method, case, seed):
    replicas, slots = case
    placement = place(method, replicas, slots, seed=seed)
    assert placement.replicas == replicas
    assert all(len(node) <= slot for node, slot in zip(placement.nodes, slots, strict=True))
    assert placement == place(method, replicas, slots, seed=seed)


@given(cases())
@settings(max_examples=300, deadline=None)
def test_mro_is_what_the_published_steps_give(case):
    replicas, slots = case
    assert place("mro", replicas, slots).nodes == published_mro(replicas, slots)


@given(cases(equal=True))
@settings(max_examples=200, deadline=None)
def test_every_node_of_a_group_of_mro_has_every_expert_of_the_group(case):
    replicas, slots = case
    placement = place("mro", replicas, slots)
    order = sorted(range(len(replicas)), key=lambda expert: (replicas[expert], expert))
    start = 0
    for group, size in enumerate(mro_group_sizes(replicas, slots)):
        assert size >= 1
        experts = order[group * slots[0] : (group + 1) * slots[0]]
        assert all(set(experts) <= set(placement.nodes[node]) for node in range(start, start + size))
        start += size
    assert start <= len(slots)


@given(cases(equal=True))
@settings(max_examples=100, deadline=None)
def test_experts_that_fit_on_one_node_have_nested_prefixes_of_the_nodes_under_mro(case):
    replicas, slots = case
    if len(replicas) <= slots[0]:
        placement = place("mro", replicas, slots)
        assert placement.holders == [tuple(range(min(len(slots), count))) for count in replicas]


def test_mro_worked_by_hand():
    # Groups {0, 1, 2, 3} on nodes 0 and 1, {4} on the others. Left: two of 3, two of 4, one of 2. Expert 3 goes to
    # nodes 2 and 3. No node with room lacks 4: it goes to the emptiest, 4, then to 2, the lowest of equals; 2 to 3.
    placement = place("mro", [2, 2, 3, 4, 5], [4] * 5)
    assert placement.nodes == ((0, 1, 2, 3), (0, 1, 2, 3), (3, 4, 4), (2, 3, 4), (4, 4))
    assert mro_group_sizes([2, 2, 3, 4, 5], [4] * 5) == [2, 3]


def test_unequal_slots_group_by_the_smallest_and_groups_may_run_out_of_nodes():
    assert mro_group_sizes([5, 5], [1, 9]) == [2, 0]
    assert place("mro", [5, 5], [1, 9]).nodes == ((0,), (0, 0, 0, 0, 1, 1, 1, 1, 1))


@given(cases(equal=True))
@settings(max_examples=100, deadline=None)
def test_spread_gives_successive_replicas_to_successive_nodes(case):
    replicas, slots = case
    nodes = [[] for _ in slots]
    for at, expert in enumerate(np.repeat(np.arange(len(replicas)), replicas).tolist()):
        nodes[at % len(slots)].append(expert)
    placement = place("spread", replicas, slots)
    assert placement.nodes == tuple(map(tuple, nodes))
    assert [len(nodes) for nodes in placement.holders] == [min(count, len(slots)) for count in replicas]


def test_spread_passes_over_full_nodes_and_nodes_that_have_the_expert():
    assert place("spread", [2, 2, 2], [1, 3, 2]).nodes == ((0,), (0, 1, 2), (1, 2))
    assert place("spread", [1, 3], [1, 3]).nodes == ((0,), (1, 1, 1))


@given(cases(equal=True))
@settings(max_examples=100, deadline=None)
def test_compact_has_each_expert_on_consecutive_nodes_all_full_between(case):
    replicas, slots = case
    for nodes, count in zip(place("compact", replicas, slots).holders, replicas, strict=True):
        assert nodes == tuple(range(nodes[0], nodes[-1] + 1))
        assert len(nodes) <= (count - 2) // slots[0] + 2


def test_compact_fills_node_by_node():
    assert place("compact", [3, 1, 4], [2, 4, 3]).nodes == ((0, 0), (0, 1, 2, 2), (2, 2))


def test_random_depends_on_the_seed_only():
    placements = {place("random", [5, 5, 5, 5], [4] * 5, seed=seed) for seed in range(10)}
    assert len(placements) == 10


def test_random_reaches_every_arrangement_alike():
    counts = {}
    for seed in range(600):
        nodes = place("random", [2, 2], [2, 2], seed=seed).nodes
        counts[nodes] = counts.get(nodes, 0) + 1
    # Of the six arrangements in four slots, one each has both replicas of an expert on a node, four have one of each.
    assert set(counts) == {((0, 0), (1, 1)), ((1, 1), (0, 0)), ((0, 1), (0, 1))}
    assert 340 < counts[((0, 1), (0, 1))] < 460


def test_eplb_packs_by_falling_load_of_a_replica_onto_the_least_loaded_node():
    # Per replica: 6, 6, 5, 4. Node 0: 6, node 1: 6, then 5 to node 0 (11), 4 to node 1 (10).
    placement = place("eplb", [2, 1, 1], [2, 2], loads=[12, 5, 4])
    assert placement.nodes == ((0, 1), (0, 2))
    assert placement.max_load_ratio([12, 5, 4]) == pytest.approx(11 / 10.5)


@given(cases(), st.data())
@settings(max_examples=100, deadline=None)
def test_eplb_is_the_greedy_rule(case, data):
    replicas, slots = case
    loads = data.draw(st.lists(st.integers(0, 20), min_size=len(replicas), max_size=len(replicas)))
    nodes, carried = [[] for _ in slots], [0.0] * len(slots)
    items = [(load / count, expert) for expert, (load, count) in enumerate(zip(loads, replicas, strict=True))]
    for load, expert in sorted(items, key=lambda item: (-item[0], item[1])):
        for _ in range(replicas[expert]):
            free = [node for node in range(len(slots)) if len(nodes[node]) < slots[node]]
            node = min(free, key=lambda node: (carried[node], node))
            nodes[node].append(expert)
            carried[node] += load
    assert place("eplb", replicas, slots, loads=loads).nodes == tuple(tuple(sorted(node)) for node in nodes)


ZIPF = [1 / (rank + 1) for rank in range(8)]
TWO_HOT = [0.435] * 2 + [0.13 / 14] * 14


@pytest.mark.parametrize(
    ("method", "loads", "replicas", "ratio"),
    [
        ("eplb", ZIPF, [21, 11, 7, 6, 5, 4, 3, 3], 1.007),
        ("eplb", TWO_HOT, [23, 23] + [1] * 14, 1.039),
        ("mro", ZIPF, allocate(ZIPF, 60, 2), 1.153),
        ("mro", TWO_HOT, allocate(TWO_HOT, 60, 2), 1.631),
    ],
)
def test_eplb_balances_better_than_mro_on_skewed_loads(method, loads, replicas, ratio):
    placement = place(method, replicas, [6] * 10, loads=loads)
    assert placement.max_load_ratio(loads) == pytest.approx(ratio, abs=6e-4)


def test_a_placement_knows_its_replicas_counts_and_holders():
    placement = Placement(((0, 0, 1), (1, 2), ()), 4)
    assert placement.num_nodes == 3
    assert placement.replicas == [2, 2, 1, 0]
    assert placement.counts_NE.tolist() == [[2, 1, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0]]
    assert placement.counts_NE.dtype == np.int64
    assert placement.holders == [(0,), (0, 1), (1,), ()]


def test_a_placement_survives_while_every_expert_has_a_live_node():
    placement = Placement(((0, 1), (1, 2), (0, 2)), 3)
    assert placement.survives([])
    assert all(placement.survives({node}) for node in range(3))
    assert not placement.survives([0, 2])
    assert not Placement(((0,),), 2).survives([])


def test_load_ratio_is_of_the_heaviest_node_over_the_mean():
    placement = Placement(((0, 0), (0, 1)), 2)
    assert placement.max_load_ratio() == 1.0
    assert placement.max_load_ratio([3, 1]) == 1.0  # 1 + 1 and 1 + 1
    assert placement.max_load_ratio([6, 0]) == pytest.approx(4 / 3)
    assert placement.max_load_ratio([0, 0]) == 1.0
    assert Placement(((0, 0), (0,)), 1).max_load_ratio() == pytest.approx(4 / 3)


@pytest.mark.parametrize(
    ("nodes", "num_experts", "message"),
    [
        ((), 1, "got 0 and 1"),
        (((0,),), 0, "got 1 and 0"),
        (((1, 0),), 2, "sorted, got \\(1, 0\\) on node 0"),
        (((0,), (2,)), 2, "in \\[0, 2\\), got \\(2,\\) on node 1"),
        (((-1, 0),), 2, "in \\[0, 2\\)"),
    ],
)
def test_a_placement_that_cannot_be_is_refused(nodes, num_experts, message):
    with pytest.raises(ValueError, match=message):
        Placement(nodes, num_experts)


@pytest.mark.parametrize(
    ("loads", "message"),
    [([1.0], "each of 2 experts, got 1"), ([1, -1], "got -1"), ([1, float("nan")], "finite")],
)
def test_wrong_loads_are_refused(loads, message):
    with pytest.raises(ValueError, match=message):
        Placement(((0, 1),), 2).max_load_ratio(loads)
    with pytest.raises(ValueError, match=message):
        place("eplb", [1, 1], [2], loads=loads)


def test_load_on_an_expert_without_a_replica_is_refused():
    with pytest.raises(ValueError, match="must have a replica"):
        Placement(((0,),), 2).max_load_ratio([1, 1])
    assert Placement(((0,),), 2).max_load_ratio([1, 0]) == 1.0


@pytest.mark.parametrize(
    ("method", "replicas", "slots", "message"),
    [
        ("greedy", [1], [1], "one of mro, best, spread, compact, random, eplb, got 'greedy'"),
        ("mro", [1], [], "at least one node"),
        ("mro", [1, 1], [2, 0], "at least 1 slot, got 0"),
        ("mro", [], [1], "at least one expert"),
        ("mro", [2, 0], [2], "at least 1 replica, got 0"),
        ("mro", [3, 2], [2, 2], "must not exceed the slots, got 5 replicas for 4 slots"),
        ("mro", [1, 1], [2, 2], r"2 replicas leave 2 of 4 slots empty, on 2 nodes \(at most one per node may be\)"),
        ("mro", [2, 2, 3, 4, 4], [4] * 5, "15 replicas leave 5 of 20 slots empty"),
    ],
)
def test_what_cannot_be_placed_is_refused_with_the_rule(method, replicas, slots, message):
    with pytest.raises(ValueError, match=message):
        place(method, replicas, slots)


def test_up_to_one_slot_a_node_may_stay_vacant():
    for method in OTHERS:
        assert place(method, [2, 2, 3, 4, 5], [4] * 5).replicas == [2, 2, 3, 4, 5]
        assert place(method, [1], [1, 1, 1]).replicas == [1]
