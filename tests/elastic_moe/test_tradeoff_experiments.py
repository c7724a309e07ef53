"""Experiments of what is traded: worked numbers, tables that are whole and tidy, every figure drawn."""

import math

import numpy as np
import pandas as pd
import pytest

from artifact.elastic_moe import LoadTrace
from figures import claims
from figures.lazarus import drift, racks_and_f

DIMENSIONS = {"model", "nodes", "layers", "system", "seed", "racks", "failed_racks", "label", "nodes_lost", "process"}
DIMENSIONS |= {"min_replicas", "rate_per_hour", "name", "interval", "iteration", "mapping"}


def value(claim_id, table):
    return claims.get(claim_id).metric()(table)


@pytest.fixture(scope="module")
def tables():
    """Every table that a figure is drawn from, small."""
    return {
        "23_losses_at_once": racks_and_f.losses_at_once(caps=[10]),
        "23_racks": racks_and_f.rack_failures(clusters=[("GPT-L", 10, 6, 2)], methods=["mro", "random"], seeds=2),
        "23_choosing_f": racks_and_f.choosing_f(
            clusters=[("GPT-L", 10, 6)],
            systems=["Lazarus", "best", "EPLB"],
            min_replicas=[1, 3, 4],
            rates_per_hour=[0.01],
        ),
        "24_drift": drift.drift(traces=[], intervals=[], task_intervals=[8]),
        "24_rebalances": drift.rebalances(traces=[], intervals=[], task_intervals=[16], systems=["Lazarus"]),
    }


def test_every_table_has_one_row_a_trial(tables):
    for name, table in tables.items():
        dimensions = [column for column in table if column in DIMENSIONS]
        assert len(table) and not table.duplicated(dimensions).any(), name


def test_every_figure_is_drawn(tables):
    for picture in (racks_and_f.FIGURES | drift.FIGURES).values():
        assert picture.plot(tables[picture.table]).axes


def test_racks_of_one_node_are_nodes():
    table = racks_and_f.rack_failures(clusters=[("GPT-S", 10, 6, 1)], methods=["mro"])
    assert table["recovery"].to_numpy() == pytest.approx(table["scattered"].to_numpy())


def test_losses_of_the_traces_are_counted(tables):
    table = tables["23_losses_at_once"]
    for label, rows in table.groupby("label"):
        # independent losses would be as many, but for the minutes beyond the largest that was seen
        lost = (rows["instants"] * rows["nodes_lost"]).sum()
        assert (rows["independent"] * rows["nodes_lost"]).sum() == pytest.approx(lost, rel=0.01), label


def test_chances_of_failures_sum_to_one_and_have_their_rate():
    for name, rate, per_hour, chance_K in racks_and_f._processes(10, [0.01, 0.1], 60):
        assert chance_K.sum() == pytest.approx(1), name
        assert per_hour * (chance_K @ np.arange(11)) / 10 == pytest.approx(rate, rel=0.001), name


def test_an_f_that_does_not_fit_is_left_out_and_a_larger_one_costs_balance(tables):
    table = tables["23_choosing_f"]
    assert set(table["min_replicas"]) == {1, 3}
    by_f = table[(table["system"] == "Lazarus") & (table["process"] == "independent")].set_index("min_replicas")
    assert by_f["hours"][3] > by_f["hours"][1] and by_f["max_load_ratio"][3] > by_f["max_load_ratio"][1]


def test_a_placement_is_in_force_until_the_next_rebalance():
    trace = LoadTrace("made", np.ones((6, 1, 2), dtype=np.int64), (1, 11, 21, 31, 41, 51))
    job = drift.Job(trace, 2, 2, 1)
    assert [job.placed_at(index, 20) for index in range(6)] == [0, 0, 2, 2, 4, 4]
    assert [job.placed_at(index, 10) for index in range(6)] == list(range(6))
    assert [job.placed_at(index, math.inf) for index in range(6)] == [0] * 6


def test_balance_of_a_plan_is_the_mean_of_its_layers():
    job = drift.job_of("DeepSeek-V2-Lite")
    plan, loads_LE = job.planned("Lazarus", 0), job.loads.counts_ILE[9]
    each = [layer.max_load_ratio(load) for layer, load in zip(plan.layers, loads_LE.tolist(), strict=True)]
    assert plan.ratio(loads_LE) == pytest.approx(np.mean(each))


def test_rebalances_move_least_with_the_optimal_mapping(tables):
    moved = tables["24_rebalances"].pivot(index="iteration", columns="mapping", values="moved_states")
    assert len(moved) == 1 and moved["optimal"].iloc[0] <= min(moved["none"].iloc[0], moved["greedy"].iloc[0])


def test_claims_worked_by_hand():
    racks = pd.DataFrame({"model": "GPT-L", "layers": 1, "system": "MRO", "racks": ["adjacent", "strided"]})
    racks = racks.assign(failed_racks=1, recovery=[0.6, 1.0], loads="smartmoe")
    assert [value(f"lazarus-racks-{name}-one", racks) for name in ("adjacent", "strided")] == [0.6, 1]
    assert math.isnan(value("lazarus-racks-strided-one", racks.assign(loads="synthetic-smartmoe")))
    lost = pd.DataFrame({"trace": "infinitehbd", "nodes_lost": [1, 2, 5], "instants": [90, 6, 4]})
    assert value("lazarus-several-at-once", lost) == pytest.approx(10)
    choice = pd.DataFrame(
        {"loads": "esft", "system": "Lazarus", "min_replicas": [1, 2, 3], "survives_one": [0, 1, 0.9]}
    )
    assert value("lazarus-promise-real-loads", choice) == 0.9
    drifted = pd.DataFrame({"name": "SmartMoE", "system": "Lazarus", "interval": [200, 200, math.inf]})
    drifted = drifted.assign(trace="smartmoe", max_load_ratio=[1.2, 1.4, 3.0], own_ratio=[1, 1, 1.5])
    assert value("lazarus-rebalance-200", drifted) == pytest.approx(1.3)
    assert value("lazarus-rebalance-never", drifted) == 2
