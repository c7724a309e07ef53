"""Aligned node orders: against all orders of small models, never worse, nodes change places and nothing else."""

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from artifact.elastic_moe import PRESETS, Placement, place, recovery, survival
from artifact.elastic_moe.training.planning import next_generation
from figures.lazarus.alignment import align


def shuffled(layers, seed):
    rng = np.random.default_rng(seed)
    return [
        Placement(tuple(layer.nodes[i] for i in rng.permutation(layer.num_nodes)), layer.num_experts)
        for layer in layers
    ]


def drawn(num_nodes, num_layers, seed):
    """Layers of random placements, three experts on two nodes or more each."""
    rng = np.random.default_rng(seed)
    layers = []
    for _ in range(num_layers):
        nodes = [[] for _ in range(num_nodes)]
        for expert in range(3):
            for node in rng.choice(num_nodes, size=rng.integers(2, num_nodes), replace=False):
                nodes[node].append(expert)
        layers.append(Placement(tuple(map(tuple, nodes)), 3))
    return layers


def best_by_trying_all(layers, objective):
    """The largest objective over all orders of all layers but the first, whose order makes no difference."""
    orders = list(itertools.permutations(range(layers[0].num_nodes)))
    others = [
        {Placement(tuple(layer.nodes[i] for i in order), layer.num_experts) for order in orders} for layer in layers[1:]
    ]
    return max(objective([layers[0], *rest]) for rest in itertools.product(*others))


@pytest.mark.parametrize(("num_nodes", "num_layers"), [(3, 4), (4, 2), (4, 3), (5, 2)])
@pytest.mark.parametrize("seed", range(4))
def test_no_orders_of_small_models_are_better(num_nodes, num_layers, seed):
    layers = drawn(num_nodes, num_layers, seed)
    best = best_by_trying_all(layers, lambda each: survival(each, 0.1))
    assert survival(align(layers), 0.1) == pytest.approx(best, abs=1e-12)


@pytest.mark.parametrize("failures", [1, 2, 3])
def test_the_objective_can_be_a_number_of_failures(failures):
    layers = drawn(5, 2, seed=9)
    best = best_by_trying_all(layers, lambda each: recovery(each).good[failures])
    assert recovery(align(layers, failures=failures)).good[failures] == best


@st.composite
def models(draw):
    num_nodes, num_layers = draw(st.integers(1, 7)), draw(st.integers(1, 4))
    experts = st.lists(st.integers(0, 4), max_size=4)
    return [Placement(tuple(tuple(sorted(draw(experts))) for _ in range(num_nodes)), 5) for _ in range(num_layers)]


@given(models(), st.none() | st.integers(0, 7), st.integers(0, 2))
@settings(max_examples=30, deadline=None)
def test_nodes_change_places_and_the_model_survives_no_less(layers, failures, seed):
    num_nodes = layers[0].num_nodes
    failures = None if failures is None else min(failures, num_nodes)
    aligned = align(layers, failures=failures, seed=seed)
    for before, after in zip(layers, aligned, strict=True):
        assert after.num_experts == before.num_experts
        assert Counter(after.nodes) == Counter(before.nodes)
    if failures is None:
        assert survival(aligned, 0.1) >= survival(layers, 0.1) - 1e-12
    else:
        assert recovery(aligned).good[failures] >= recovery(layers).good[failures]


def test_layers_placed_by_mro_survive_together_what_the_worst_of_them_survives():
    layers = [place("mro", each, [6] * 10) for each in ([2] * 12 + [7, 9, 9, 11], [2] * 11 + [3, 4, 7, 12, 12])]
    worst = [min(each) for each in zip(*(recovery(layer).good for layer in layers), strict=True)]
    mixed = shuffled(layers, seed=0)
    assert recovery(mixed).good[4] < worst[4]
    assert recovery(align(mixed)).good == recovery(layers).good == worst


def test_groups_of_different_sizes_can_be_better_off_than_in_the_order_of_mro():
    layers = [place("mro", each, [6] * 10) for each in ([2] * 11 + [3, 4, 7, 12, 12], [3] * 8 + [4] * 4 + [5] * 4)]
    assert survival(align(shuffled(layers, seed=0)), 0.1) >= survival(align(layers), 0.1) > survival(layers, 0.1)


def test_orders_that_cannot_be_improved_stay_as_given():
    layers = [place("mro", [2, 2, 3, 3], [2] * 5)] * 3
    assert align(layers) == layers


def test_the_result_depends_on_the_arguments_only():
    layers = shuffled([place("spread", [3] * 10, [5] * 6)] * 4, seed=1)
    assert align(layers, seed=3) == align(layers, seed=3)


def test_many_nodes_are_guided_by_a_sample_of_failures():
    layers = shuffled([place("mro", [2] * 20 + [4] * 10, [2] * 40)] * 3, seed=2)
    aligned = align(layers, failures=6)
    assert recovery(aligned).good[6] > recovery(layers).good[6]


def test_wrong_arguments_are_refused():
    layers = [place("mro", [2, 2], [2, 2])]
    with pytest.raises(ValueError, match="same nodes"):
        align([*layers, place("mro", [3, 3], [2] * 3)])
    with pytest.raises(ValueError, match="same nodes"):
        align([])
    with pytest.raises(ValueError, match=r"failures must be in \[0, 2\], the number of nodes, got 3"):
        align(layers, failures=3)
    with pytest.raises(ValueError, match=r"failure_probability must be in \[0, 1\], got 2"):
        align(layers, failure_probability=2)


@pytest.mark.parametrize(("preset", "nodes"), [("tiny", 4), ("tiny", 8), ("small", 6), ("GPT-S", 10), ("GPT-L", 10)])
def test_the_layers_of_a_trained_model_survive_together_what_the_worst_does_alone(preset, nodes):
    chosen, rng = PRESETS[preset], np.random.default_rng(0)
    for _ in range(3):
        loads = rng.dirichlet(np.full(chosen.num_experts, 0.6), chosen.num_layers) * 10_000
        held = {node: {(layer, 0) for layer in range(chosen.num_layers)} for node in range(nodes)}
        layers = next_generation("lazarus", chosen, held, loads.astype(int).tolist(), restored=True).placements
        together = recovery(layers).good
        assert together is not None
        assert list(together) == [min(counts) for counts in zip(*(recovery(x).good for x in layers), strict=True)]
