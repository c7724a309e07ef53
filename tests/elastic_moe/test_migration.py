"""Migration: nodes end up with what the plan asks, nothing more is sent, and the assignment is the cheapest."""

from collections import Counter
from itertools import permutations

import numpy as np
import pytest
from hypothesis import assume, given, settings, strategies as st

from artifact.elastic_moe import Placement, Transfer, Unrecoverable, assign_nodes, holdings_of, transfers


def placement(*nodes):
    return Placement(tuple(tuple(sorted(node)) for node in nodes), 1 + max(max(node) for node in nodes))


def random_placement(rng, num_nodes, num_experts, slots):
    """Slots filled at random, each expert at least once."""
    while True:
        experts = np.concatenate([np.arange(num_experts), rng.integers(num_experts, size=num_nodes * slots)])
        experts = rng.permutation(experts[: num_nodes * slots])
        if len(set(experts.tolist())) == num_experts:
            return Placement(tuple(tuple(sorted(node)) for node in experts.reshape(-1, slots).tolist()), num_experts)


@st.composite
def cases(draw):
    """Holdings of survivors and joining nodes, and placements for them, over a few layers."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    layers, before, experts, slots = (draw(st.integers(1, most)) for most in (3, 6, 6, 3))
    slots = max(slots, -(-experts // before))
    old = [random_placement(rng, before, experts, slots) for _ in range(layers)]
    alive = sorted(rng.permutation(before)[: draw(st.integers(1, before))].tolist())
    current = [*alive, *[None] * draw(st.integers(0, 3))]
    slots = max(slots, -(-experts // len(current)))
    return holdings_of(old, current), [random_placement(rng, len(current), experts, slots) for _ in range(layers)]


def new_states(holdings, placements, assignment):
    """States to send, counted set by set."""
    count = 0
    for held, node in zip(holdings, assignment, strict=True):
        asked = {(layer, expert) for layer, each in enumerate(placements) for expert in each.nodes[node]}
        count += len(asked - held)
    return count


def test_worked_example():
    # Of nodes 0 to 2, node 1 is lost; a node that joins takes the part of the plan that shares least with what is held.
    old = [placement([0, 1], [1, 2], [2, 3]), placement([0, 1], [0, 2], [1, 2])]
    holdings = holdings_of(old, [0, 2, None])
    assert holdings[0] == {(0, 0), (0, 1), (1, 0), (1, 1)} and holdings[2] == set()
    new = [placement([2, 3], [0, 3], [0, 1]), placement([1, 2], [0, 1], [0, 1])]
    assignment = assign_nodes(holdings, new)
    assert assignment == [2, 0, 1]
    assert transfers(holdings, new, assignment, 7) == [
        Transfer(0, 0, source=0, target=2, num_bytes=7),
        Transfer(0, 3, source=1, target=2, num_bytes=7),
        Transfer(1, 0, source=0, target=2, num_bytes=7),
        Transfer(1, 1, source=1, target=2, num_bytes=7),
    ]


def test_greedy_takes_what_is_best_for_the_first_node_and_can_be_worse():
    holdings = [{(0, 0), (0, 1)}, {(0, 0), (0, 1), (0, 2), (0, 3)}]
    new = [placement([0, 1], [2, 3])]
    assert assign_nodes(holdings, new, "greedy") == assign_nodes(holdings, new) == [0, 1]
    holdings.reverse()
    assert assign_nodes(holdings, new, "greedy") == [0, 1]  # the first of two that cost it nothing
    assert assign_nodes(holdings, new) == [1, 0]
    assert len(transfers(holdings, new, [0, 1], 1)) == 2 and transfers(holdings, new, [1, 0], 1) == []


@settings(max_examples=200, deadline=None)
@given(cases(), st.sampled_from(["optimal", "greedy"]))
def test_after_the_transfers_every_node_holds_what_its_placement_says(case, method):
    holdings, new = case
    assignment = assign_nodes(holdings, new, method)
    assert sorted(assignment) == list(range(len(holdings)))
    held_by_any = set().union(*holdings)
    lost = sorted(
        {(layer, expert) for layer, each in enumerate(new) for expert in range(each.num_experts)} - held_by_any
    )
    if lost:
        with pytest.raises(Unrecoverable) as raised:
            transfers(holdings, new, assignment, 1)
        assert raised.value.lost == tuple(lost) and all(str(state) in str(raised.value) for state in lost)
        return
    after = [set(held) for held in holdings]
    for each in transfers(holdings, new, assignment, 1):
        assert (each.layer, each.expert) in holdings[each.source]  # held before anything moves
        assert (each.layer, each.expert) not in after[each.target]  # and sent once
        after[each.target].add((each.layer, each.expert))
    for target, node in enumerate(assignment):
        asked = {(layer, expert) for layer, each in enumerate(new) for expert in each.nodes[node]}
        assert asked <= after[target] and after[target] - holdings[target] <= asked


@settings(max_examples=200, deadline=None)
@given(cases())
def test_the_optimal_assignment_sends_least_of_all_and_greedy_no_less(case):
    holdings, new = case
    assume(len(holdings) <= 6)
    optimal, greedy = (
        new_states(holdings, new, assign_nodes(holdings, new, method)) for method in ("optimal", "greedy")
    )
    assert optimal <= greedy
    assert optimal == min(new_states(holdings, new, order) for order in permutations(range(len(holdings))))


@pytest.mark.parametrize("method", ["optimal", "greedy"])
def test_nothing_is_sent_when_nodes_are_only_renumbered(method):
    rng = np.random.default_rng(0)
    order = rng.permutation(8)
    old = [random_placement(rng, 8, 12, 4) for _ in range(3)]
    new = [Placement(tuple(each.nodes[node] for node in order), each.num_experts) for each in old]
    holdings = holdings_of(old, list(range(8)))
    assert transfers(holdings, old, assign_nodes(holdings, old, method), 1) == []
    assert transfers(holdings, new, assign_nodes(holdings, new, method), 1) == []


def test_layers_are_assigned_together():
    # Layer 0 alone would keep the nodes' numbers, layers 1 and 2 swap them: two against one.
    old = [placement([0], [1])] * 3
    new = [placement([0], [1]), placement([1], [0]), placement([1], [0])]
    holdings = holdings_of(old, [0, 1])
    for method in ("optimal", "greedy"):
        assert assign_nodes(holdings, new, method) == [1, 0]
    assert {each.layer for each in transfers(holdings, new, [1, 0], 1)} == {0}


def test_sources_share_what_is_sent():
    # Three nodes hold all of seven experts; two that join need all: 14 states, 5 + 5 + 4.
    full = list(range(7))
    new = [placement(full, full, full, full, full)]
    holdings = [{(0, expert) for expert in full}] * 3 + [set(), set()]
    planned = transfers(holdings, new, assign_nodes(holdings, new), 10)
    assert sorted(Counter(each.source for each in planned).values()) == [4, 5, 5]
    assert {each.target for each in planned} == {3, 4}


def test_a_source_that_alone_holds_an_expert_is_spared_the_others():
    holdings = [{(0, 0), (0, 1)}, {(0, 1)}, set()]
    planned = transfers(holdings, [placement([0], [1], [0, 1])], [0, 1, 2], 1)
    assert [(each.expert, each.source) for each in planned] == [(0, 0), (1, 1)]


def test_copies_of_an_expert_on_one_node_are_one_state():
    holdings = [{(0, 0), (0, 1)}, set()]
    planned = transfers(holdings, [Placement(((0, 1), (0, 0, 1)), 2)], [0, 1], 1)
    assert [(each.expert, each.target) for each in planned] == [(0, 1), (1, 1)]


def test_an_expert_that_no_node_holds_is_named_with_its_layer():
    with pytest.raises(Unrecoverable, match=r"lost experts.*: \(0, 2\), \(1, 0\)") as raised:
        transfers([{(0, 0), (0, 1), (1, 1)}], [placement([0, 1, 2]), placement([0, 1])], [0], 1)
    assert raised.value.lost == ((0, 2), (1, 0)) and isinstance(raised.value, ValueError)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: assign_nodes([set()], [placement([0])], "best"), "method must be one of optimal, greedy, got 'best'"),
        (lambda: assign_nodes([set()], [placement([0], [0])]), "layer 0 must have 1 nodes, .* got 2"),
        (lambda: assign_nodes([set()], []), "at least one layer, got none"),
        (lambda: transfers([{(0, 0)}], [placement([0])], [1], 1), r"permutation of 1 nodes, got \[1\]"),
        (lambda: transfers([{(0, 0)}], [placement([0], [0])], [0], 1), "layer 0 must have 1 nodes, .* got 2"),
        (lambda: transfers([{(0, 0)}], [placement([0]), placement([0], [0])], [0], 1), "layer 1 must have 1 nodes"),
        (lambda: transfers([{(0, 0)}], [], [0], 1), "at least one layer, got none"),
        (lambda: transfers([{(0, 0)}, {(0, 0)}], [placement([0], [0])], [0, 0], 1), r"got \[0, 0\]"),
        (lambda: transfers([{(0, 0)}, {(0, 0)}], [placement([0], [0])], [0], 1), r"got \[0\]"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(call, message):
    with pytest.raises(ValueError, match=message):
        call()
