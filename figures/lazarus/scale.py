"""Larger clusters, simulated (notebook 27): figures 12 and 13, and how long the simulator itself takes."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from artifact import elastic_moe as moe
from figures.lazarus.drawing import data_of, picture, plot_gains
from figures.lazarus.simulated import ORDERS, SYSTEMS, run_row
from figures.style import COLUMN_WIDTH_IN

GPUS_A_NODE = 8


def sixteen_nodes(*, models: Sequence[str], seeds: int, micro_batches: int = 20, seed: int = 0) -> pd.DataFrame:
    """16 g5.2xlarge, gradients accumulated, a node fails each 5 minutes until half are left, 45 minutes (figure 12).

    seeds: orders in which nodes fail, from `seed` on
    Checkpoints and rebalances come after as many micro-batches as elsewhere, so that their steps are divided.
    One row per (model, system, seed).
    """
    rows = []
    rebalance = math.ceil(200 / micro_batches)
    for model in models:
        work = moe.gpt_workload(moe.PRESETS[model], micro_batches=micro_batches)
        layouts = moe.LayoutCache(work, moe.default_loads(work))
        for order in range(seed, seed + seeds):
            trace = moe.periodic_failures(5, 16, seed=order)
            for system, steps in {"lazarus": None, "tutel": 50, "tutel-ft": 250}.items():
                steps = steps and math.ceil(steps / micro_batches)
                result = moe.simulate(
                    work, system, trace, "a10g", 45, loads=layouts, checkpoint_steps=steps, rebalance_steps=rebalance
                )
                rows.append(run_row(result, loads=layouts.loads.name, model=model, seed=order))
    return pd.DataFrame(rows)


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
    rows = []
    for gpus, chance in cases:
        nodes = gpus // GPUS_A_NODE
        rate = -math.log1p(-chance)
        pays_s = math.sqrt(2 * testbed.checkpoint_s(work, nodes) * 3600 / (nodes * rate))
        for trial in range(seed, seed + trials):
            trace = moe.poisson_failures(rate, nodes, most_hours, repair_hours=1, seed=trial)
            for system, factor in zip(SYSTEMS, (5, 1, 5), strict=True):
                layout = layouts.of(moe.SIMULATED_SYSTEMS[system], nodes, 0)
                assert layout is not None
                step_s = testbed.step_s(work, system, layout, layouts.share_LE(0))
                steps = max(1, round(factor * pays_s / step_s))
                options: dict[str, Any] = {"loads": layouts, "checkpoint_steps": steps, "until_samples": samples}
                result = moe.simulate(work, system, trace, testbed, 60 * most_hours, **options)
                hours = samples / result.samples_per_s / 3600 if result.samples else math.inf
                rows.append(run_row(result, gpus=gpus, p=chance, trial=trial) | {"hours": hours})
    return pd.DataFrame(rows)


def large_cluster(*, cases: Sequence[tuple[int, float]], rate_per_hour: float, seed: int = 0) -> pd.DataFrame:
    """How long the simulator itself takes: GPT-L, nodes that fail at a rate and come back after an hour.

    A store for checkpoints grows with the cluster: 1 Gb/s a node. cases: (nodes, hours)
    One row per (nodes, hours, system), `seconds` being wall time.
    """
    rows = []
    for nodes, hours in cases:
        testbed = replace(moe.TESTBEDS["paper-gpu"], storage_gbps=nodes)
        trace = moe.poisson_failures(rate_per_hour, nodes, hours, repair_hours=1, seed=seed)
        for system in SYSTEMS:
            start = time.perf_counter()
            result = moe.simulate("GPT-L", system, trace, testbed, 60 * hours)
            seconds = time.perf_counter() - start
            rows.append(run_row(result, nodes=nodes, hours=hours, events=len(trace.events)) | {"seconds": seconds})
    return pd.DataFrame(rows)


def plot_sixteen_nodes(table: pd.DataFrame) -> Figure:
    """Samples that Lazarus trains over those of Tutel and Tutel(FT), simulated, on 16 nodes with links of 10 Gb/s, of
    which one fails each 5 minutes (Lazarus, figure 12)."""
    rows = table.assign(cluster="16 nodes")
    figure = plot_gains(
        rows, "27_sixteen_nodes", ["cluster", "model", "seed"], panel="cluster", width_in=COLUMN_WIDTH_IN
    )
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
    figure = plot_gains(rows, "27_deepseek_v3", ["panel", "at", "gpus", "p", "trial"], **axes, col_order=order)
    for ax, panel in zip(figure.axes, order, strict=True):
        ax.set(title=f"DeepSeek-V3, generated loads, {panel}", xlabel=panels[panel][2])
        ax.set_xticks(*zip(*enumerate(f"{at:g}" for at in rows["at"][rows["panel"] == panel].unique()), strict=True))
        ax.set_yscale("log", base=2)
        ax.set_yticks([1, 2, 4, 8, 16], ["1", "2", "4", "8", "16"])
    return figure


FIGURES = {
    "lazarus-fig12": picture("27_sixteen_nodes", plot_sixteen_nodes, ORDERS),
    "lazarus-fig13": picture(
        "27_deepseek_v3", plot_deepseek_v3, ORDERS.replace("orders in which nodes fail", "trials")
    ),
}
