"""Experiments of placement theory: the papers' and the shared notes' numbers, whole tables, every figure drawn."""

import math

import pytest

from artifact.elastic_moe import recovery
from figures.lazarus import experiments, metrics
from figures.lazarus.experiments import theory
from figures.lazarus.plots.theory import FIGURES

TESTBED = ["GPT-S", "GPT-L"]


@pytest.fixture(scope="module")
def tables():
    """Every table of this part, small."""
    return {
        "20_load_skew": experiments.load_skew(traces=["smartmoe", "olmoe"]),
        "20_worked_examples": experiments.worked_examples(),
        "21_counterexamples": experiments.counterexamples(),
        "21_small_cases": experiments.small_cases(sizes=[(4, 2), (4, 3), (5, 2)], max_experts=8, most=40),
        "21_hot_expert": experiments.hot_expert(ratios=[1, 4], seeds=3),
        "21_balance": experiments.balance_and_survival(seeds=3),
        "21_placement_time": experiments.placement_time(sizes=[(10, 6, 16), (128, 8, 256)], repeats=1),
        "22_recovery": experiments.model_recovery(models=TESTBED, iterations=[201]),
        "22_node_orders": experiments.node_orders(models=["GPT-L"], iterations=[201], seeds=2),
        "22_transferred": experiments.transferred(cases=theory.TABLE_2[:1], most=4),
    }


DIMENSIONS = {
    "20_load_skew": ["trace", "iteration", "layer"],
    "20_worked_examples": ["case", "plan", "node", "slot"],
    "21_counterexamples": ["case", "plan", "node", "slot"],
    "21_small_cases": ["nodes", "slots", "replicas", "failures"],
    "21_hot_expert": ["ratio", "of", "system", "failures"],
    "21_balance": ["loads", "system", "failures"],
    "21_placement_time": ["nodes", "slots", "experts", "loads", "system", "repeat"],
    "22_recovery": ["model", "iteration", "system", "failures"],
    "22_node_orders": ["model", "iteration", "system", "orders", "seed", "failures"],
    "22_transferred": ["model", "iteration", "lost", "numbering", "failed", "method"],
}


@pytest.mark.parametrize("name", DIMENSIONS)
def test_every_table_has_one_row_a_trial_and_no_gaps(tables, name):
    assert not tables[name].duplicated(DIMENSIONS[name]).any()
    assert not tables[name].isna().any().any()


def test_every_figure_is_drawn(tables):
    for table, plot in FIGURES.values():
        assert plot(tables[table]).axes


def test_the_worked_examples_are_the_published_ones(tables):
    table = tables["20_worked_examples"]
    assert (metrics.fig4_plan_a(table), metrics.fig4_survivors(table), metrics.fig4_plan_b(table)) == (5, 5, 7)
    assert (metrics.fig5_mro_failed(table), metrics.fig5_apart_failed(table)) == (4, 7)
    plans = table[table["case"] == "figure 4"].groupby("plan")["replicas"].first()
    assert plans["A"] == plans["B"]


@pytest.mark.parametrize(
    ("case", "mro", "best", "sets"),
    [
        ("the smallest", 4, 5, 6),
        ("one failure is fatal", 3, 4, 4),
        ("half as often", 12, 25, 28),
        ("seven nodes", 30, 32, 35),
    ],
)
def test_counterexamples_are_those_of_the_notes(tables, case, mro, best, sets):
    rows = tables["21_counterexamples"].query("case == @case").groupby("plan")[["good", "sets"]].first()
    assert rows.loc["MRO"].tolist() == [mro, sets]
    assert rows.loc["best"].tolist() == [best, sets]


def test_mro_is_optimal_where_its_groups_are_whole_and_nothing_is_above_the_bound(tables):
    table = tables["21_small_cases"]
    assert metrics.optimal_whole_pct(table) == metrics.bound_reached_whole_pct(table) == 100
    assert metrics.optimal_cut_pct(table) < 100
    assert metrics.promise_best_pct(table) == 100 > metrics.promise_mro_pct(table)
    for method in ("mro", "spread", "best_on_average"):
        assert (table[method] <= table["best"]).all()
    assert (table["best"] <= table["bound"]).all() and (table["bound"] <= table["sets"]).all()


def test_partitions_are_all_rising_sequences():
    found = list(theory._partitions(8, 3))
    assert len(found) == len(set(found)) == 5  # 116, 125, 134, 224, 233
    assert all(sum(each) == 8 and list(each) == sorted(each) for each in found)


def test_at_the_papers_size_mro_is_behind_spread_at_even_load_and_ahead_at_four_to_one(tables):
    found = tables["21_hot_expert"].query("of == 'mean'").set_index(["ratio", "system", "failures"])["probability"]
    assert found[1, "MRO", 7] == pytest.approx(84 / 120)
    assert found[1, "spread", 7] == pytest.approx(116 / 120)
    assert found[1, "best", 7] == pytest.approx(118 / 120)
    assert found[4, "MRO", 6] == found[4, "best", 6] == pytest.approx(180 / 210)
    assert found[4, "spread", 6] == pytest.approx(140 / 210)
    assert metrics.mro_over_spread_4_to_1(tables["21_hot_expert"]) > 5
    assert math.isnan(metrics.mro_over_spread_2_to_1(tables["21_hot_expert"]))


def test_numbers_of_stand_in_loads_settle_no_claim(tables):
    made = tables["22_recovery"].assign(loads="synthetic-smartmoe")
    assert math.isnan(metrics.recovered_l_lazarus_4(made))
    assert math.isnan(metrics.recovery_order_pct(made))


def test_aligned_layers_survive_as_often_as_the_worst_of_them_alone(tables):
    table = tables["22_node_orders"].assign(loads="of any kind")
    assert metrics.aligned_share_pct(table) == pytest.approx(100)
    assert metrics.independent_pct(table) < 30


def test_no_failure_set_that_loses_an_expert_is_recovered_from():
    layers = theory._layers("MRO", theory._loads("GPT-S", 201).at(201), 10)
    assert len(theory._recoverable(layers, 2, 1000)) == recovery(layers).good[2]
    assert len(theory._recoverable(layers, 2, 5)) == 5


def test_the_optimal_assignment_never_sends_more_than_the_greedy_one(tables):
    sent = tables["22_transferred"].pivot(index=["numbering", "failed"], columns="method", values="experts")
    assert (sent["optimal"] <= sent["greedy"]).all()
    assert metrics.expert_state_mib_s(tables["22_transferred"]) == pytest.approx(63.05, abs=0.01)


def test_times_of_both_sizes_are_found(tables):
    table = tables["21_placement_time"]
    assert metrics.placement_ms_10_nodes(table) > 0 and metrics.placement_ms_1024_gpus(table) > 0
