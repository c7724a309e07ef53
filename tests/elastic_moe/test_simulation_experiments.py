"""Experiments of the simulator: their tables are whole and tidy, claims read them, every figure can be drawn."""

import math

import pandas as pd
import pytest

from artifact.elastic_moe import PHASES, periodic_failures, simulate, spot_failures
from figures import claims
from figures.lazarus import simulated

MODELS = ["GPT-S", "GPT-L"]
GAINS = {6: ("s-ds", "l-ds", "s-dsft", "l-dsft"), 7: ("s-ds", "l-ds")}
DIMENSIONS = {"model", "interval_min", "seed", "minutes", "stride", "system", "minute", "ratio", "gpus", "p", "trial"}


def value(claim_id, table):
    return claims.get(claim_id).metric()(table)


@pytest.fixture(scope="module")
def tables():
    """Every table that a figure is drawn from, small."""
    return {
        "25_controlled_failures": simulated.controlled_failures(models=MODELS, intervals_min=[5, 40], seeds=2),
        "25_timeline": simulated.timeline(models=["GPT-S"], interval_min=5),
        "25_load_ratio": simulated.load_ratio(ratios=[1, 4]),
        "25_idle_first": simulated.controlled_failures(models=MODELS, intervals_min=[5], seeds=1, idle_first=True),
        "26_spot_traces": simulated.spot_trace(models=MODELS, minutes=[80], strides=[1, 2]),
        "26_timeline": simulated.spot_timeline(models=["GPT-S"], minutes=40, stride=2),
        "27_sixteen_nodes": simulated.sixteen_nodes(models=MODELS, seeds=1),
        "27_deepseek_v3": simulated.deepseek_v3(cases=[(512, 0.15), (256, 0.05)], trials=1, samples=200_000),
    }


def test_every_table_has_one_row_a_trial(tables):
    for name, table in tables.items():
        dimensions = [column for column in table if column in DIMENSIONS]
        assert len(table) and not table.duplicated(dimensions).any(), name
        if "training_s" in table and "minutes" in table:
            spent = table[[f"{state}_s" for state in PHASES]].sum(axis=1)
            assert spent.to_numpy() == pytest.approx(60 * table["minutes"].to_numpy())


def test_every_figure_is_drawn(tables):
    for picture in simulated.FIGURES.values():
        assert picture.plot(tables[picture.table]).axes


def test_the_papers_gains_are_marked_where_the_claims_state_them(tables):
    table = tables["25_controlled_failures"].assign(loads="smartmoe")
    figure = simulated.plot_controlled(table)
    marked = [[line.get_ydata()[0] for line in ax.lines if line.get_marker() == "D"] for ax in figure.axes]
    stated = {number: [claims.paper(f"lazarus-fig{number}-{rest}") for rest in of] for number, of in GAINS.items()}
    assert [sorted(values) for values in marked] == [sorted(stated[6]), sorted(stated[7])]
    none = simulated.plot_controlled(table.assign(loads="synthetic-smartmoe"))
    assert not [line for ax in none.axes for line in ax.lines if line.get_marker() == "D"]


def test_a_time_line_counts_the_nodes_lost_in_each_window(tables):
    trace = spot_failures(cap=10, minutes=40, stride=2)
    lost = sum(len(event.nodes) for event in trace.events if event.kind == "fail")
    for system, rows in tables["26_timeline"].groupby("system"):
        assert rows["lost_nodes"].sum() == lost > 0, system


def test_a_timeline_holds_the_samples_of_its_run(tables):
    table = tables["25_timeline"].query("system == 'DS'")
    result = simulate("GPT-S", "ds", periodic_failures(5, 10), "paper-gpu", 30, checkpoint_steps=50)
    assert 10 * table["samples_per_s"].sum() == pytest.approx(result.samples + result.lost_samples)
    assert table["nodes"].iloc[0] == 10 and table["nodes"].iloc[-1] == 5


def test_lazarus_is_ahead_under_failures(tables):
    controlled, idle = (
        tables[name].assign(loads="of any kind") for name in ("25_controlled_failures", "25_idle_first")
    )
    for name in ("fig6-s-ds", "fig6-l-ds", "fig7-l-ds", "fig6-l-dsft"):
        assert value(f"lazarus-{name}", controlled) > 1, name
    assert value("lazarus-fig14-l", idle) > 1
    v3 = tables["27_deepseek_v3"]
    assert value("lazarus-fig13-512-p15-ds", v3) > value("lazarus-fig13-256-p05-ds", v3) > 1
    assert math.isnan(value("lazarus-fig13-1024-p05-ds", v3))


def test_claims_worked_by_hand():
    spent = {f"{state}_s": 0.0 for state in PHASES}
    rows = [
        {"model": "GPT-L", "minutes": 80, "stride": 1, "system": "Lazarus", "samples": 30, "trace": "p3", **spent},
        {"model": "GPT-L", "minutes": 80, "stride": 1, "system": "DS", "samples": 10, "trace": "p3", **spent},
        {"model": "GPT-L", "minutes": 80, "stride": 2, "system": "DS", "samples": 99, "trace": "p3", **spent},
    ]
    table = pd.DataFrame(rows)
    table.loc[1, ["training_s", "checkpointing_s", "restarting_s"]] = 60.0, 10.0, 30.0
    assert value("lazarus-fig9-l-ds", table) == 3
    assert value("lazarus-fig11-ds", table) == 40
    for name in ("s-ds", "l-dsft"):
        assert math.isnan(value(f"lazarus-fig9-{name}", table)), name
    made = table.assign(trace="synthetic-p3")
    assert math.isnan(value("lazarus-fig9-l-ds", made)) and math.isnan(value("lazarus-fig11-ds", made))
    clusters = pd.DataFrame({"nodes": [1000, 1000, 100], "hours": [24, 24, 24], "seconds": [5.0, 14.0, 99.0]})
    assert value("lazarus-scale", clusters) == 14
    assert math.isnan(value("lazarus-fig10a-flat", pd.DataFrame({"system": [], "ratio": [], "samples_per_s": []})))


def test_a_probability_alone_is_drawn_in_the_one_panel_that_it_belongs_to(tables):
    table = tables["27_deepseek_v3"].query("gpus == 512")
    (ax,) = simulated.plot_deepseek_v3(table.assign(p=0.3)).axes
    assert "512 GPUs" in ax.get_title()
