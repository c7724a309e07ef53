"""Routing: recorded loads as recorded, generated ones as asked for, and the paper's models and replica counts."""

import numpy as np
import pytest

from artifact import datasets
from artifact.elastic_moe import (
    PRESETS,
    WORKLOADS,
    LoadTrace,
    drifting_loads,
    esft_loads,
    olmoe_loads,
    smartmoe_loads,
    top_experts,
)


@pytest.fixture
def no_data(monkeypatch):
    monkeypatch.setattr(datasets, "path_or_none", lambda name: None)


def real(name):
    if not datasets.available(name):
        pytest.skip(f"data set {name} is not at hand")


def imbalance(trace):
    """[I], the largest load over the mean load, mean over layers."""
    return (trace.counts_ILE.max(axis=2) / trace.counts_ILE.mean(axis=2)).mean(axis=1)


@pytest.mark.parametrize(
    ("name", "millions", "state_mib"), [("GPT-S", 521, 63.05), ("GPT-M", 1312, 112.07), ("GPT-L", 1715, 112.07)]
)
def test_models_have_the_papers_parameters_and_expert_states(name, millions, state_mib):
    # Table 1: 521 M, 1.3 B, 1.7 B; the states of section 5: 63 MB and 112 MB.
    assert round(PRESETS[name].parameters / 1e6) == millions
    assert round(WORKLOADS[name].expert_state_bytes / 2**20, 2) == state_mib


@pytest.mark.parametrize(
    ("model", "layer", "expected"),
    [
        ("GPT-L", 0, [2] * 11 + [3, 3, 7, 9, 16]),
        ("GPT-L", 2, [2] * 13 + [5, 8, 21]),
        ("GPT-S", 0, [2, 2, 3, 4, 5, 10, 13, 21]),
    ],
)
def test_replicas_of_the_real_trace_at_step_200(model, layer, expected):
    from artifact.elastic_moe import allocate

    real("smartmoe")
    spec = PRESETS[model]
    loads = top_experts(smartmoe_loads(), spec.num_layers, spec.num_experts, iteration=201).at(201)
    assert loads.shape == (12, spec.num_experts)
    assert sorted(allocate(loads[layer].tolist(), 60, 2)) == expected


def test_smartmoe_is_as_described():
    real("smartmoe")
    found = smartmoe_loads()
    assert found.counts_ILE.shape == (501, 24, 32) and found.iterations[:2] == (1, 11) and found.iterations[-1] == 5001
    assert (found.counts_ILE.sum(axis=2) == 262_144).all()  # 131,072 tokens, 2 experts each
    assert imbalance(found)[[0, 1, 50, 500]] == pytest.approx([1.5, 14, 9.1, 12.6], abs=0.05)


def test_esft_counts_every_choice_and_shifts_between_tasks():
    real("esft")
    found, law = esft_loads(), esft_loads("law")
    assert found.counts_ILE.shape == (32, 26, 64) and (found.counts_ILE.sum(axis=2) == 6 * 1024).all()
    assert np.array_equal(found.counts_ILE[8:16], law.counts_ILE) and law.name == "esft-law"
    with np.load(datasets.path("esft")) as data:
        assert law.counts_ILE[0, 3, 5] == (data["law_ids"][3, :1024] == 5).sum()
    share = found.counts_ILE / found.counts_ILE.sum(axis=2, keepdims=True)
    moved = np.abs(np.diff(share, axis=0)).sum(axis=2).mean(axis=1)  # between iterations
    assert moved[[7, 15, 23]].min() > 1.5 * np.delete(moved, [7, 15, 23]).max()


def test_olmoe_has_an_iteration_for_each_corpus():
    real("olmoe")
    assert olmoe_loads().counts_ILE.shape == (6, 3, 64) and olmoe_loads("mistral").counts_ILE.shape == (5, 3, 8)
    assert olmoe_loads("olmoe-sft").counts_ILE.shape == (1, 3, 64)


def test_without_data_loads_say_that_they_are_synthetic_and_have_the_shapes(no_data):
    found = smartmoe_loads()
    assert (found.name, found.counts_ILE.shape, found.iterations[-1]) == ("synthetic-smartmoe", (501, 24, 32), 5001)
    assert 8 < imbalance(found).mean() < 14
    assert (esft_loads().name, esft_loads().counts_ILE.shape) == ("synthetic-esft", (32, 26, 64))
    assert (esft_loads("law").name, esft_loads("law").counts_ILE.shape) == ("synthetic-esft-law", (8, 26, 64))
    assert (olmoe_loads("mistral").name, olmoe_loads("mistral").counts_ILE.shape) == ("synthetic-mistral", (6, 3, 8))


def test_generated_loads_follow_zipfs_law():
    found = drifting_loads(2, 8, 3, skew=1.0, drift=0.5, seed=0, tokens=10**6)
    shares = np.sort(found.counts_ILE, axis=2)[..., ::-1] / 1e6
    assert (found.counts_ILE.sum(axis=2) == 10**6).all()
    expected = 1 / np.arange(1, 9) / sum(1 / k for k in range(1, 9))
    assert shares == pytest.approx(np.broadcast_to(expected, shares.shape), abs=0.003)
    assert imbalance(drifting_loads(2, 8, 3, skew=0, drift=0, seed=0)).max() < 1.02


def test_hot_experts_stay_without_drift_and_move_with_it():
    def kept(drift):
        hottest_IL = drifting_loads(20, 16, 30, skew=1.5, drift=drift, seed=1).counts_ILE.argmax(axis=2)
        return (hottest_IL[1:] == hottest_IL[:-1]).mean()

    assert kept(0.0) == 1 and kept(0.0) > kept(0.1) > kept(0.5) > kept(1.0)
    assert kept(1.0) == pytest.approx(1 / 16, abs=0.05)


def test_generated_loads_repeat_by_seed():
    first, again, other = (drifting_loads(2, 4, 5, skew=1, drift=0.3, seed=seed).counts_ILE for seed in (7, 7, 8))
    assert np.array_equal(first, again) and not np.array_equal(first, other)


COUNTS = np.array([[[5, 0, 9, 1], [1, 2, 3, 4]], [[5, 8, 0, 2], [4, 3, 2, 1]]])
"""Two iterations, two layers, four experts."""


def test_top_experts_are_the_same_in_all_iterations_and_keep_their_order():
    found = top_experts(LoadTrace("x", COUNTS, (0, 10)), 1, 2)  # totals 10, 8, 9, 3
    assert found.counts_ILE.tolist() == [[[5, 9]], [[5, 0]]] and found.iterations == (0, 10)
    at = top_experts(LoadTrace("x", COUNTS, (0, 10)), 1, 2, iteration=10)
    assert at.counts_ILE.tolist() == [[[5, 0]], [[5, 8]]]


def test_loads_between_recorded_iterations_are_the_last_recorded():
    trace = LoadTrace("x", COUNTS, (0, 10))
    assert trace.at(9).tolist() == COUNTS[0].tolist() and trace.at(10).tolist() == COUNTS[1].tolist()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: LoadTrace("x", COUNTS, (0,)), r"\[1 iterations, layers, experts\], got shape \(2, 2, 4\)"),
        (lambda: LoadTrace("x", -COUNTS, (0, 1)), "must not be negative, got -9"),
        (lambda: LoadTrace("x", COUNTS, (5, 6)).at(4), "iteration must be at least 5, got 4"),
        (lambda: top_experts(LoadTrace("x", COUNTS, (0, 1)), 3, 2), r"num_layers must be in \[1, 2\] for x, got 3"),
        (lambda: top_experts(LoadTrace("x", COUNTS, (0, 1)), 2, 5), r"num_experts must be in \[1, 4\] for x, got 5"),
        (lambda: esft_loads("poetry"), "one of intent, law, summary, translation, got 'poetry'"),
        (lambda: esft_loads(tokens_per_iteration=0), "at least 1, got 0"),
        (lambda: olmoe_loads("gpt"), "model must be one of .*, got 'gpt'"),
        (lambda: drifting_loads(1, 0, 1, skew=1, drift=0, seed=0), "num_experts must be at least 1, got 0"),
        (lambda: drifting_loads(1, 1, 1, skew=-1, drift=0, seed=0), "skew must not be negative, got -1"),
        (lambda: drifting_loads(1, 1, 1, skew=1, drift=2, seed=0), r"drift must be in \[0, 1\], got 2"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(call, message):
    with pytest.raises(ValueError, match=message):
        call()
