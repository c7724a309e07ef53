"""Experiments of placement theory: the papers' and the shared notes' numbers, whole tables, every figure drawn."""

import math

import pytest

from artifact.elastic_moe import recovery
from figures import claims
from figures.lazarus import model_recovery, placements
from figures.lazarus.planners import loads_of

FIGURES = placements.FIGURES | model_recovery.FIGURES
TESTBED = ["GPT-S", "GPT-L"]


def value(claim_id, table):
    return claims.get(claim_id).metric()(table)


@pytest.fixture(scope="module")
def tables():
    """Every table of this part, small."""
    return {
        "20_load_skew": placements.load_skew(traces=["smartmoe", "olmoe"]),
        "20_worked_examples": placements.worked_examples(),
        "21_counterexamples": placements.counterexamples(),
        "21_small_cases": placements.small_cases(sizes=[(4, 2), (4, 3), (5, 2)], max_experts=8, most=40),
        "21_hot_expert": placements.hot_expert(ratios=[1, 4], seeds=3),
        "21_balance": placements.balance_and_survival(seeds=3),
        "21_placement_time": placements.placement_time(sizes=[(10, 6, 16), (128, 8, 256)], repeats=1),
        "22_recovery": model_recovery.model_recovery(models=TESTBED, iterations=[201]),
        "22_node_orders": model_recovery.node_orders(models=["GPT-L"], iterations=[201], seeds=2),
        "22_transferred": model_recovery.transferred(cases=[("GPT-S", 201, 2)], most=4),
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
    for picture in FIGURES.values():
        assert picture.plot(tables[picture.table]).axes


def test_the_worked_examples_are_the_published_ones(tables):
    table = tables["20_worked_examples"]
    found = {
        name: value(f"lazarus-fig{name}", table) for name in ("4-plan-a", "4-survivors", "4-plan-b", "5-mro", "5-other")
    }
    assert found == {"4-plan-a": 5, "4-survivors": 5, "4-plan-b": 7, "5-mro": 4, "5-other": 7}
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
    assert value("lazarus-theorem-whole", table) == value("lazarus-theorem-bound", table) == 100
    assert value("lazarus-theorem-cut", table) < 100
    assert value("lazarus-promise-best", table) == 100 > value("lazarus-promise-mro", table)
    for method in ("mro", "spread", "best_on_average"):
        assert (table[method] <= table["best"]).all()
    assert (table["best"] <= table["bound"]).all() and (table["bound"] <= table["sets"]).all()


def test_partitions_are_all_rising_sequences():
    found = list(placements._partitions(8, 3))
    assert len(found) == len(set(found)) == 5  # 116, 125, 134, 224, 233
    assert all(sum(each) == 8 and list(each) == sorted(each) for each in found)


def test_at_the_papers_size_mro_is_behind_spread_at_even_load_and_ahead_at_four_to_one(tables):
    found = tables["21_hot_expert"].query("of == 'mean'").set_index(["ratio", "system", "failures"])["probability"]
    assert found[1, "MRO", 7] == pytest.approx(84 / 120)
    assert found[1, "spread", 7] == pytest.approx(116 / 120)
    assert found[1, "best", 7] == pytest.approx(118 / 120)
    assert found[4, "MRO", 6] == found[4, "best", 6] == pytest.approx(180 / 210)
    assert found[4, "spread", 6] == pytest.approx(140 / 210)
    assert value("lazarus-fig10b-4to1", tables["21_hot_expert"]) > 5
    assert math.isnan(value("lazarus-fig10b-2to1", tables["21_hot_expert"]))


def test_numbers_of_stand_in_loads_settle_no_claim(tables):
    made = tables["22_recovery"].assign(loads="synthetic-smartmoe")
    assert math.isnan(value("lazarus-fig8-l-lazarus", made))
    assert math.isnan(value("lazarus-fig8-order", made))


def test_aligned_layers_survive_as_often_as_the_worst_of_them_alone(tables):
    table = tables["22_node_orders"].assign(loads="of any kind")
    assert value("lazarus-fig8-aligned", table) == pytest.approx(100)
    assert value("lazarus-fig8-independent", table) < 30


def test_no_failure_set_that_loses_an_expert_is_recovered_from():
    layers = model_recovery._layers("mro", loads_of("GPT-S")[1], 10)
    assert len(model_recovery._recoverable(layers, 2, 1000)) == recovery(layers).good[2]
    assert len(model_recovery._recoverable(layers, 2, 5)) == 5


def test_the_optimal_assignment_never_sends_more_than_the_greedy_one(tables):
    sent = tables["22_transferred"].pivot(index=["numbering", "failed"], columns="method", values="experts")
    assert (sent["optimal"] <= sent["greedy"]).all()
    assert value("lazarus-table2-bytes-s", tables["22_transferred"]) == pytest.approx(63.05, abs=0.01)


def test_times_of_both_sizes_are_found(tables):
    table = tables["21_placement_time"]
    assert value("lazarus-placement-time-testbed", table) > 0 and value("lazarus-placement-time-1k", table) > 0
