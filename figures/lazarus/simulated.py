"""Failures in simulation: on schedule (notebook 25: figures 6, 7, 10a, 14), on spot instances (26: figures 9 and 11),
on larger clusters (27: figures 12 and 13), and how long the simulator itself takes."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from artifact import elastic_moe as moe
from artifact.elastic_moe.simulation.layouts import GroupLayout, replicated_layout
from figures.lazarus.drawing import curves, data_of, named, plot_gains, stacked_bars
from figures.lazarus.planners import NODES
from figures.style import BLUE, COLUMN_WIDTH_IN, CYAN, GREEN, GREY, RED, SYSTEM_COLORS, YELLOW, Picture, subplots

Steps = Mapping[str, Any]
SYSTEMS = ("lazarus", "ds", "ds-ft")
OWN: Steps = dict.fromkeys(SYSTEMS, "own")
CHECKPOINT_STEPS: Mapping[int, Steps] = {
    5: {"lazarus": None, "ds": 50, "ds-ft": 250},
    40: {"lazarus": None, "ds": 200, "ds-ft": 1000},
}
"""Steps between checkpoints, by the interval of the failures in minutes (Lazarus, section 6.2)."""

Case = tuple[dict[str, Any], moe.FailureTrace, float, Steps]
"""Dimensions of a run, its failures, its minutes, and steps between checkpoints by system."""

PHASE_COLORS: dict[str, str] = dict(zip(moe.PHASES, (BLUE, YELLOW, CYAN, GREEN, RED, GREY), strict=True))
GPUS_A_NODE = 8


def controlled_failures(
    *, models: Sequence[str], intervals_min: Sequence[int], seeds: int, idle_first: bool = False, seed: int = 0
) -> pd.DataFrame:
    """Ten nodes, of which one fails at each interval until half are left; six intervals in all (figures 6, 7).

    seeds:      orders in which nodes fail, from `seed` on
    idle_first: the node of the highest number fails, which is one that DS leaves idle where there is one (figure 14)
    One row per (model, interval_min, system, seed).
    """
    failing = _last_first if idle_first else moe.periodic_failures
    cases = [
        ({"interval_min": each, "seed": order}, failing(each, NODES, seed=order), 6 * each, CHECKPOINT_STEPS[each])
        for each, order in product(intervals_min, range(seed, seed + seeds))
    ]
    return _table(_workloads(models), cases)


def without_failures(*, models: Sequence[str], minutes: float) -> pd.DataFrame:
    """The same systems while nothing fails and nothing is saved. One row per (model, system)."""
    calm = moe.FailureTrace("none", tuple(range(NODES)), ())
    rows = []
    for case, result in _runs(_workloads(models), [({}, calm, minutes, {"lazarus": None, "ds": None})]):
        training = sum(segment.samples for segment in result.segments) / result.seconds["training"]
        rows.append(_row(case, result) | {"training_samples_per_s": training})
    return pd.DataFrame(rows)


def spot_trace(*, models: Sequence[str], minutes: Sequence[float], strides: Sequence[int]) -> pd.DataFrame:
    """The trace p3 at a cap of ten nodes, each system with its checkpoints of section 6.3 (figures 9 and 11).

    strides: see `spot_failures`; 1 is the trace as it is
    One row per (trace, model, minutes, stride, system).
    """
    cases: list[Case] = []
    for length, stride in product(minutes, strides):
        trace = moe.spot_failures(cap=NODES, minutes=length, stride=stride)
        lost = [len(event.nodes) for event in trace.events if event.kind == "fail"]
        case = {"trace": trace.name, "minutes": length, "stride": stride, "losses": len(lost)}
        cases.append((case | {"most_lost": max(lost, default=0)}, trace, length, OWN))
    return _table(_workloads(models), cases)


def timeline(*, models: Sequence[str], interval_min: int, window_s: float = 10.0, seed: int = 0) -> pd.DataFrame:
    """One run of each system with a failure at each interval (figure 6), as `_windows`."""
    trace = moe.periodic_failures(interval_min, NODES, seed=seed)
    return _windows(models, trace, 6 * interval_min, CHECKPOINT_STEPS[interval_min], window_s)


def spot_timeline(*, models: Sequence[str], minutes: float, stride: int, window_s: float = 60.0) -> pd.DataFrame:
    """One run of each system on the trace p3 (figure 9), as `_windows`; stride: as in `spot_trace`."""
    return _windows(models, moe.spot_failures(cap=NODES, minutes=minutes, stride=stride), minutes, OWN, window_s)


def load_ratio(*, ratios: Sequence[float], num_nodes: int = NODES) -> pd.DataFrame:
    """A step of one layer of 8 experts, dim 1024, one of which is `ratio` times as hot as the others (figure 10a).

    The embedding is left out. Groups of 2 nodes. layer_ms leaves out the gradients' reduction.
    One row per (ratio, system).
    """
    layer = replace(moe.PRESETS["GPT-M"], name="one layer", num_layers=1, num_experts=8, vocabulary=0)
    work, testbed = moe.gpt_workload(layer), moe.TESTBEDS["paper-gpu"]
    rows = []
    for ratio in ratios:
        loads_LE = np.array([[round(1000 * ratio)] + 7 * [1000]])
        lazarus = replicated_layout(loads_LE, num_nodes, work.slots, work.min_replicas)
        for system, layout in (("Lazarus", lazarus), ("DS", GroupLayout(num_nodes // 2, 2, 1, 8))):
            parts = testbed.parts(work, layout, loads_LE / loads_LE.sum())
            row = {"ratio": ratio, "system": system, "samples_per_s": work.batch(num_nodes) / parts.total_s}
            rows.append(row | {"layer_ms": 1000 * (parts.compute_s + parts.exchange_s)})
    return pd.DataFrame(rows)


def sixteen_nodes(*, models: Sequence[str], seeds: int, micro_batches: int = 20, seed: int = 0) -> pd.DataFrame:
    """16 g5.2xlarge, gradients accumulated, a node fails each 5 minutes until half are left, 45 minutes (figure 12).

    seeds: orders in which nodes fail, from `seed` on
    Checkpoints and rebalances come after as many micro-batches as elsewhere, so that their steps are divided.
    One row per (model, system, seed).
    """
    works = [moe.gpt_workload(moe.PRESETS[model], micro_batches=micro_batches) for model in models]
    steps = {"lazarus": None, "tutel": math.ceil(50 / micro_batches), "tutel-ft": math.ceil(250 / micro_batches)}
    orders = range(seed, seed + seeds)
    cases = [({"seed": order}, moe.periodic_failures(5, 16, seed=order), 45, steps) for order in orders]
    return _table(works, cases, "a10g", rebalance_steps=math.ceil(200 / micro_batches))


def deepseek_v3(
    *, cases: Sequence[tuple[int, float]], trials: int, samples: int, most_hours: float = 400, seed: int = 0
) -> pd.DataFrame:
    """DeepSeek-V3 on nodes of 8 H200, each of which fails within an hour with probability p (figure 13).

    A node that fails comes back an hour later. DS checkpoints as often as pays (Young: the square root of twice the
    time of a checkpoint times the time between failures), the others, as in the smaller runs, a fifth as often.
    cases: (GPUs, p); a run ends after `samples` samples, or at most_hours; trials: from `seed` on
    One row per (gpus, p, trial, system); hours are the time that `samples` samples take at the run's mean throughput.
    """
    work, testbed = moe.WORKLOADS["DeepSeek-V3"], moe.TESTBEDS["h200-deepseek-v3"]
    layouts = moe.LayoutCache(work, moe.default_loads(work))
    runs: list[Case] = []
    for gpus, chance in cases:
        nodes, rate = gpus // GPUS_A_NODE, -math.log1p(-chance)
        pays_s = math.sqrt(2 * testbed.checkpoint_s(work, nodes) * 3600 / (nodes * rate))
        steps = {}
        for system, factor in zip(SYSTEMS, (5, 1, 5), strict=True):
            layout = layouts.of(moe.SIMULATED_SYSTEMS[system], nodes, 0)
            assert layout is not None
            steps[system] = max(1, round(factor * pays_s / testbed.step_s(work, system, layout, layouts.share_LE(0))))
        for trial in range(seed, seed + trials):
            trace = moe.poisson_failures(rate, nodes, most_hours, repair_hours=1, seed=trial)
            runs.append(({"gpus": gpus, "p": chance, "trial": trial}, trace, 60 * most_hours, steps))
    table = _table([work], runs, testbed, until_samples=samples).drop(columns=["loads", "model"])
    return table.assign(hours=samples / table["samples_per_s"] / 3600)


def large_cluster(*, cases: Sequence[tuple[int, float]], rate_per_hour: float, seed: int = 0) -> pd.DataFrame:
    """How long the simulator itself takes: GPT-L, nodes that fail at a rate and come back after an hour.

    A store for checkpoints grows with the cluster: 1 Gb/s a node. cases: (nodes, hours)
    One row per (nodes, hours, system), `seconds` being wall time.
    """
    rows = []
    for (nodes, hours), system in product(cases, SYSTEMS):
        testbed = replace(moe.TESTBEDS["paper-gpu"], storage_gbps=nodes)
        trace = moe.poisson_failures(rate_per_hour, nodes, hours, repair_hours=1, seed=seed)
        start = time.perf_counter()
        result = moe.simulate("GPT-L", system, trace, testbed, 60 * hours)
        case = {"nodes": nodes, "hours": hours, "events": len(trace.events), "seconds": time.perf_counter() - start}
        rows.append(_row(case, result))
    return pd.DataFrame(rows)


def _workloads(models: Sequence[str]) -> list[moe.Workload]:
    return [moe.WORKLOADS[model] for model in models]


def _runs(
    works: Iterable[moe.Workload], cases: Iterable[Case], testbed: str | moe.TimeModel = "paper-gpu", **options: Any
) -> Iterator[tuple[dict[str, Any], moe.SimulationResult]]:
    """Each model and system in each case, with the names of its loads and of the model."""
    for work in works:
        layouts = moe.LayoutCache(work, moe.default_loads(work))
        for case, trace, minutes, steps in cases:
            for system, each in steps.items():
                settings: dict[str, Any] = {"loads": layouts, "checkpoint_steps": each, **options}
                result = moe.simulate(work, system, trace, testbed, minutes, **settings)
                yield {"loads": layouts.loads.name, "model": work.name, **case}, result


def _row(case: dict[str, Any], result: moe.SimulationResult) -> dict[str, Any]:
    """The row of a run in a table."""
    columns = ("samples", "samples_per_s", "steps", "lost_steps", "restarts", "reconfigurations")
    row = {**case, "system": moe.SIMULATED_SYSTEMS[result.system].label}
    row |= {column: getattr(result, column) for column in columns}
    return row | {f"{phase}_s": result.seconds[phase] for phase in moe.PHASES}


def _table(works: Iterable[moe.Workload], cases: Iterable[Case], *testbed: Any, **options: Any) -> pd.DataFrame:
    return pd.DataFrame(_row(*run) for run in _runs(works, cases, *testbed, **options))


def _windows(
    models: Sequence[str], trace: moe.FailureTrace, minutes: float, steps: Steps, window_s: float
) -> pd.DataFrame:
    """Samples a second over time. One row per (model, system, minute), the middle of a window.

    `nodes` are those at the window's start, `lost_nodes` those lost in it; samples of a segment are spread over it.
    """
    losses = [(event.time_s, len(event.nodes)) for event in trace.events if event.kind == "fail"]
    rows = []
    for case, result in _runs(_workloads(models), [({"trace": trace.name}, trace, minutes, steps)]):
        edges = [0.0] + [segment.end_s for segment in result.segments]
        done = np.cumsum([0] + [segment.samples for segment in result.segments])
        starts = np.arange(0, result.total_s - window_s + 1e-6, window_s)
        samples = np.diff(np.interp([*starts, starts[-1] + window_s], edges, done))
        run = {"trace": case["trace"], "model": case["model"], "system": moe.SIMULATED_SYSTEMS[result.system].label}
        for start, count in zip(starts.tolist(), samples, strict=True):
            row = {"minute": (start + window_s / 2) / 60, "samples_per_s": count / window_s}
            lost = sum(lost for time_s, lost in losses if start <= time_s < start + window_s)
            rows.append({**run, **row, "nodes": len(trace.nodes_at(start)), "lost_nodes": lost})
    return pd.DataFrame(rows)


def _last_first(interval_min: float, num_nodes: int, seed: int) -> moe.FailureTrace:
    """Nodes fail from the highest number down: groups are formed of the lowest ones, so that idle nodes fail first."""
    fallen = enumerate(range(num_nodes - 1, (num_nodes + 1) // 2 - 1, -1), start=1)
    events = tuple(moe.FailureEvent(60 * interval_min * turn, "fail", (node,)) for turn, node in fallen)
    return moe.FailureTrace("idle first", tuple(range(num_nodes)), events)


def plot_controlled(table: pd.DataFrame) -> Figure:
    """Samples that Lazarus trains over those of DS and DS(FT), simulated, on ten nodes of which one fails at a time
    until half are left (Lazarus, figures 6 and 7)."""
    figure = plot_gains(table, "25_controlled_failures", panel="interval_min", sharey=False)
    for ax, interval in zip(figure.axes, table["interval_min"].unique(), strict=True):
        ax.set_title(f"A failure each {interval} minutes ({data_of(table)} loads)")
    return figure


def plot_idle(table: pd.DataFrame) -> Figure:
    """Samples that Lazarus trains over those of DS and DS(FT), simulated, while failures hit the nodes that DS leaves
    idle (Lazarus, figure 14)."""
    figure = plot_gains(table, "25_idle_first", panel="interval_min", width_in=COLUMN_WIDTH_IN)
    figure.axes[0].set_title(f"Idle nodes fail first, one each 5 minutes\n({data_of(table)} loads)")
    return figure


def plot_spot(table: pd.DataFrame) -> Figure:
    """Samples that Lazarus trains over those of DS and DS(FT), simulated, on the spot trace at a cap of ten nodes
    (Lazarus, figure 9): as recorded, and with every second machine of the file, a what-if."""
    rows = table.assign(machines=[f"machines 0, {n}, {2 * n} ..." if n > 1 else "as recorded" for n in table["stride"]])
    names = named(rows, "{trace}, {minutes:g} min,\n{machines}")
    order = list(dict.fromkeys(names))
    figure = plot_gains(table.assign(case=names), "26_spot_traces", panel="case", col_order=order)
    for ax, name in zip(figure.axes, order, strict=True):
        ax.set_title(name)
    return figure


def plot_timeline(table: pd.DataFrame) -> Figure:
    """Throughput over time in one run of each system, simulated, ten nodes (Lazarus, figures 6 and 9). Below, the nodes
    in use; dotted lines and numbers: nodes that are lost, though others may take their place at once."""
    systems, models = table["system"].unique(), table["model"].unique()
    heights: dict[str, Any] = {"height_in": 4.2, "height_ratios": [*[1.0] * len(systems), 0.7]}
    figure, axes = subplots(len(systems) + 1, len(models), sharex=True, squeeze=False, **heights)
    for column, model in enumerate(models):
        here = table[table["model"] == model]
        rows = here[here["system"] == systems[0]]
        for ax, system in zip(axes[:, column], systems, strict=False):
            run = here[here["system"] == system]
            ax.fill_between(run["minute"], run["samples_per_s"], color=SYSTEM_COLORS[system], linewidth=0)
            ax.set(ylim=(0, 1.05 * here["samples_per_s"].max()), ylabel="" if column else f"{system}\n(samples/s)")
        nodes = axes[-1, column]
        sns.lineplot(rows, x="minute", y="nodes", drawstyle="steps-post", color="black", ax=nodes)
        for turn, (minute, lost) in enumerate(rows.loc[rows["lost_nodes"] > 0, ["minute", "lost_nodes"]].to_numpy()):
            for ax in axes[:, column]:
                ax.axvline(minute, color="black", linestyle=":", linewidth=0.7)
            nodes.text(minute, 0.3 + turn % 3 * 2, f" -{lost:.0f}", fontsize=6)
        nodes.set(xlabel="Time (min)", ylabel="" if column else "Nodes", ylim=(0, 1.2 * rows["nodes"].max()))
        axes[0, column].set_title(f"{model}, {data_of(rows)}")
    return figure


def plot_load_ratio(table: pd.DataFrame) -> Figure:
    """One layer of 8 experts on 10 nodes while one expert gets hotter (Lazarus, figure 10a), simulated: a whole step,
    and its passes without the reduction of gradients."""
    labels = {"samples_per_s": "Throughput (samples/s)", "layer_ms": "Passes of the layer (ms)"}
    rows = table.melt(["ratio", "system"], list(labels), var_name="measure")
    label = "Load of one expert over the others'"
    grid = curves(rows, "ratio", "value", "measure", label, facet_kws={"sharey": False})
    for measure, ax in grid.axes_dict.items():
        ax.set(title="One layer of 8 experts, generated loads", ylabel=labels[measure], ylim=(0, None))
    return grid.set(xticks=sorted(table["ratio"].unique())).figure


def plot_breakdown(table: pd.DataFrame) -> Figure:
    """What the time of the spot trace goes to, simulated, at the first length of the table (Lazarus, figure 11)."""
    minutes = table["minutes"].iloc[0]
    rows = table[(table["minutes"] == minutes) & (table["stride"] == table["stride"].min())]
    rows = rows.assign(run=rows["model"] + ", " + rows["system"])
    spent = rows.melt(["run", "minutes"], [f"{phase}_s" for phase in PHASE_COLORS], var_name="phase", value_name="s")
    spent = spent.assign(phase=spent["phase"].str.removesuffix("_s"), share=spent["s"] / (0.6 * spent["minutes"]))
    figure = stacked_bars(spent, y="run", length="share", hue="phase", palette=PHASE_COLORS)
    figure.axes[0].set(title=f"{minutes:g} minutes of {data_of(rows)}", xlabel="Time (%)", ylabel="", xlim=(0, 100))
    return figure


def plot_sixteen_nodes(table: pd.DataFrame) -> Figure:
    """Samples that Lazarus trains over those of Tutel and Tutel(FT), simulated, on 16 nodes with links of 10 Gb/s, of
    which one fails each 5 minutes (Lazarus, figure 12)."""
    rows = table.assign(cluster="16 nodes")
    figure = plot_gains(rows, "27_sixteen_nodes", panel="cluster", width_in=COLUMN_WIDTH_IN)
    figure.axes[0].set_title(f"16 nodes, 10 Gb/s ({data_of(table)} loads)")
    return figure


def plot_deepseek_v3(table: pd.DataFrame) -> Figure:
    """Throughput of Lazarus over that of DS and DS(FT) on DeepSeek-V3, simulated (Lazarus, figure 13). A diamond is the
    paper's gain over the system that has the colour of its edge."""
    panels = {
        "512 GPUs": ("p", table["gpus"] == 512, "Probability p of a node's failure in an hour"),
        "p = 0.05": ("gpus", table["p"] == 0.05, "GPUs"),
    }
    rows = pd.concat(table[kept].assign(panel=panel, at=table[x][kept]) for panel, (x, kept, _) in panels.items())
    rows = rows.sort_values("at", kind="stable")
    axes: dict[str, Any] = {"x": "at", "panel": "panel", "kind": "point", "value": "samples_per_s", "sharex": False}
    order = [panel for panel in panels if panel in set(rows["panel"])]
    figure = plot_gains(rows, "27_deepseek_v3", **axes, col_order=order)
    for ax, panel in zip(figure.axes, order, strict=True):
        ax.set(title=f"DeepSeek-V3, generated loads, {panel}", xlabel=panels[panel][2])
        ax.set_xticks(*zip(*enumerate(f"{at:g}" for at in rows["at"][rows["panel"] == panel].unique()), strict=True))
        ax.set_yscale("log", base=2)
        ax.set_yticks([1, 2, 4, 8, 16], ["1", "2", "4", "8", "16"])
    return figure


ORDERS = "whiskers reach from the least to the largest gain of all orders in which nodes fail"
TRIALS = "whiskers reach from the least to the largest gain of all trials"
FIGURES = {
    "lazarus-fig6-7": Picture("25_controlled_failures", plot_controlled, interval=ORDERS),
    "lazarus-fig6-timeline": Picture("25_timeline", plot_timeline),
    "lazarus-fig10a": Picture("25_load_ratio", plot_load_ratio),
    "lazarus-fig14": Picture("25_idle_first", plot_idle),
    "lazarus-fig9": Picture("26_spot_traces", plot_spot),
    "lazarus-fig9-timeline": Picture("26_timeline", plot_timeline),
    "lazarus-fig11": Picture("26_spot_traces", plot_breakdown),
    "lazarus-fig12": Picture("27_sixteen_nodes", plot_sixteen_nodes, interval=ORDERS),
    "lazarus-fig13": Picture("27_deepseek_v3", plot_deepseek_v3, interval=TRIALS),
}
