"""Experiments of the simulator: their tables are whole and tidy, metrics read them, every figure can be drawn."""

import math

import pandas as pd
import pytest

from artifact.elastic_moe import PHASES, periodic_failures, simulate
from figures.lazarus import experiments, metrics
from figures.lazarus.metrics import simulation as simulation_metrics
from figures.lazarus.plots.simulation import FIGURES

MODELS = ["GPT-S", "GPT-L"]
DIMENSIONS = {"model", "interval_min", "seed", "minutes", "stride", "system", "minute", "ratio", "gpus", "p", "trial"}


@pytest.fixture(scope="module")
def tables():
    """Every table that a figure is drawn from, small."""
    return {
        "25_controlled_failures": experiments.controlled_failures(models=MODELS, intervals_min=[5, 40], seeds=2),
        "25_timeline": experiments.timeline(models=["GPT-S"], interval_min=5),
        "25_load_ratio": experiments.load_ratio(ratios=[1, 4]),
        "25_idle_first": experiments.controlled_failures(models=MODELS, intervals_min=[5], seeds=1, idle_first=True),
        "26_spot_traces": experiments.spot_trace(models=MODELS, minutes=[80], strides=[1, 2]),
        "26_timeline": experiments.timeline(models=["GPT-S"], interval_min=None, minutes=20, window_s=60),
        "27_sixteen_nodes": experiments.sixteen_nodes(models=MODELS, seeds=1),
        "27_deepseek_v3": experiments.deepseek_v3(cases=[(512, 0.15), (256, 0.05)], trials=1, samples=200_000),
    }


def test_every_table_has_one_row_a_trial(tables):
    for name, table in tables.items():
        dimensions = [column for column in table if column in DIMENSIONS]
        assert len(table) and not table.duplicated(dimensions).any(), name
        if "training_s" in table and "minutes" in table:
            spent = table[[f"{state}_s" for state in PHASES]].sum(axis=1)
            assert spent.to_numpy() == pytest.approx(60 * table["minutes"].to_numpy())


def test_every_figure_is_drawn(tables):
    for table, plot in FIGURES.values():
        assert plot(tables[table]).axes


def test_a_timeline_holds_the_samples_of_its_run(tables):
    table = tables["25_timeline"].query("system == 'DS'")
    result = simulate("GPT-S", "ds", periodic_failures(5, 10), "paper-gpu", 30, checkpoint_steps=50)
    assert 10 * table["samples_per_s"].sum() == pytest.approx(result.samples + result.lost_samples)
    assert table["nodes"].iloc[0] == 10 and table["nodes"].iloc[-1] == 5


def test_lazarus_is_ahead_under_failures(tables):
    controlled, idle = (
        tables[name].assign(loads="of any kind") for name in ("25_controlled_failures", "25_idle_first")
    )
    for name in ("gain_5min_s_ds", "gain_5min_l_ds", "gain_40min_l_ds", "gain_5min_l_dsft"):
        assert getattr(metrics, name)(controlled) > 1, name
    assert metrics.gain_5min_l_ds(idle) > 1
    assert metrics.gain_v3_512_15_ds(tables["27_deepseek_v3"]) > metrics.gain_v3_256_05_ds(tables["27_deepseek_v3"]) > 1
    assert math.isnan(metrics.gain_v3_1024_05_ds(tables["27_deepseek_v3"]))


def test_metrics_worked_by_hand():
    spent = {f"{state}_s": 0.0 for state in PHASES}
    rows = [
        {"model": "GPT-L", "minutes": 80, "stride": 1, "system": "Lazarus", "samples": 30, "trace": "p3", **spent},
        {"model": "GPT-L", "minutes": 80, "stride": 1, "system": "DS", "samples": 10, "trace": "p3", **spent},
        {"model": "GPT-L", "minutes": 80, "stride": 2, "system": "DS", "samples": 99, "trace": "p3", **spent},
    ]
    table = pd.DataFrame(rows)
    table.loc[1, ["training_s", "checkpointing_s", "restarting_s"]] = 60.0, 10.0, 30.0
    assert metrics.gain_spot_l_ds(table) == 3
    assert metrics.ds_overhead_pct_l(table) == 40
    assert math.isnan(metrics.gain_spot_s_ds(table)) and math.isnan(metrics.gain_spot_l_dsft(table))
    assert math.isnan(metrics.gain_spot_l_ds(table.assign(trace="synthetic-p3")))
    clusters = pd.DataFrame({"nodes": [1000, 1000, 100], "hours": [24, 24, 24], "seconds": [5.0, 14.0, 99.0]})
    assert metrics.seconds_1000_nodes_24h(clusters) == 14
    assert math.isnan(simulation_metrics.lazarus_4_to_1(pd.DataFrame({"system": [], "ratio": [], "samples_per_s": []})))
