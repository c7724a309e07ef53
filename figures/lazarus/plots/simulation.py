"""Figures of the simulated runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from figures.style import BLUE, COLUMN_WIDTH_IN, CYAN, GREEN, GREY, RED, SYSTEM_COLORS, YELLOW, paper_mark, subplots

STATE_COLORS = {
    "training": BLUE,
    "checkpointing": YELLOW,
    "rebalancing": CYAN,
    "reconfiguring": GREEN,
    "restarting": RED,
    "stalled": GREY,
}
GAINS_5_MIN = {("GPT-S", "DS"): 2.8, ("GPT-L", "DS"): 5.7, ("GPT-S", "DS(FT)"): 1.4, ("GPT-L", "DS(FT)"): 2.8}
GAINS_40_MIN = {("GPT-S", "DS"): 1.6, ("GPT-L", "DS"): 2.3}
GAINS_SPOT = {("GPT-S", "DS"): 2.3, ("GPT-L", "DS"): 3.4, ("GPT-S", "DS(FT)"): 1.2, ("GPT-L", "DS(FT)"): 1.8}
GAINS_A10G = {
    ("GPT-S", "Tutel"): 2.1,
    ("GPT-L", "Tutel"): 4.0,
    ("GPT-S", "Tutel(FT)"): 1.8,
    ("GPT-L", "Tutel(FT)"): 3.9,
}
GAINS_IDLE = {("GPT-S", "DS"): 1.4, ("GPT-L", "DS"): 2.6}
GAINS_V3 = {
    (512, 0.01, "DS"): 3.9,
    (512, 0.01, "DS(FT)"): 2.9,
    (512, 0.15, "DS"): 14.5,
    (512, 0.15, "DS(FT)"): 3.6,
    (256, 0.05, "DS"): 4.5,
    (256, 0.05, "DS(FT)"): 2.9,
    (1024, 0.05, "DS"): 10.6,
    (1024, 0.05, "DS(FT)"): 3.5,
}
"""What the paper reports: samples of Lazarus over those of the other system."""


def _legend(figure: Figure, ax: Axes) -> None:
    handles, labels = ax.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels))


def _gains(ax: Axes, table: pd.DataFrame, paper: dict[tuple[str, str], float]) -> None:
    """Bars of Lazarus's samples over each other system's, by model, with the least and the largest of all seeds."""
    models = list(dict.fromkeys(table["model"]))
    others = [system for system in dict.fromkeys(table["system"]) if system != "Lazarus"]
    runs = ["seed"] if "seed" in table else []
    samples = table.set_index(["model", *runs, "system"])["samples"].unstack()
    width = 0.8 / len(others)
    for turn, other in enumerate(others):
        gains = (samples["Lazarus"] / samples[other]).groupby("model")
        middle = gains.mean().loc[models]
        reach = np.abs([gains.min().loc[models] - middle, gains.max().loc[models] - middle])
        places = np.arange(len(models)) + (turn - (len(others) - 1) / 2) * width
        color = SYSTEM_COLORS.get(other, GREY)
        ax.bar(places, middle, width, label=f"over {other}", color=color)
        if runs and samples.index.get_level_values("seed").nunique() > 1:
            ax.errorbar(places, middle, reach, fmt="none", ecolor="black", elinewidth=0.7, capsize=2)
        for place, model in zip(places, models, strict=True):
            if (model, other) in paper:
                first = "paper" not in ax.get_legend_handles_labels()[1]
                paper_mark(ax, x=float(place), y=paper[model, other], label="paper" if first else None)
    ax.axhline(1, color="black", linewidth=0.6)
    ax.set_xticks(range(len(models)), models)


def plot_controlled(table: pd.DataFrame) -> Figure:
    """Samples of Lazarus over those of DS and DS(FT): a failure each 5 (Lazarus, figure 6) or 40 minutes (figure 7)."""
    figure, axes = subplots(1, 2, height_in=2.2)
    for ax, interval, paper in zip(axes, (5, 40), (GAINS_5_MIN, GAINS_40_MIN), strict=True):
        _gains(ax, table[table["interval_min"] == interval], paper)
        ax.set_title(f"A failure each {interval} minutes")
        ax.set_ylabel("Samples of Lazarus\nover the other's")
    _legend(figure, axes[0])
    return figure


def plot_idle(table: pd.DataFrame) -> Figure:
    """The same where failures hit idle nodes first, each 5 minutes (Lazarus, figure 14)."""
    figure, ax = subplots(width_in=COLUMN_WIDTH_IN, height_in=2.2)
    _gains(ax, table[table["interval_min"] == 5], GAINS_IDLE)
    ax.set_ylabel("Samples of Lazarus\nover the other's")
    _legend(figure, ax)
    return figure


def plot_timeline(table: pd.DataFrame) -> Figure:
    """Throughput over time (Lazarus, figures 6 and 9), with the nodes that are there."""
    models = list(dict.fromkeys(table["model"]))
    figure, axes = subplots(len(models), 1, height_in=0.4 + 1.25 * len(models), sharex=True, squeeze=False)
    for ax, model in zip(axes[:, 0], models, strict=True):
        rows = table[table["model"] == model]
        for system, each in rows.groupby("system", sort=False):
            color = SYSTEM_COLORS.get(str(system), GREY)
            ax.plot(each["minute"], each["samples_per_s"], label=system, color=color, linewidth=0.9)
        nodes = ax.twinx()
        one = rows[rows["system"] == rows["system"].iloc[0]]
        nodes.step(one["minute"], one["nodes"], where="post", color="black", linewidth=0.6, linestyle=":")
        nodes.set_ylim(0, 1.2 * one["nodes"].max())
        nodes.spines["right"].set_visible(True)
        nodes.grid(False)
        nodes.set_ylabel("Nodes (dotted)")
        ax.set_ylim(bottom=0)
        ax.set_ylabel(f"{model}\n(samples/s)")
    axes[-1, 0].set_xlabel("Time (min)")
    _legend(figure, axes[0, 0])
    return figure


def plot_load_ratio(table: pd.DataFrame) -> Figure:
    """One layer against how hot its hottest expert is (Lazarus, figure 10a): a step, and its two passes alone."""
    figure, axes = subplots(1, 2, height_in=2.2)
    columns = {"samples_per_s": "Throughput (samples/s)", "layer_ms": "Passes of the layer (ms)"}
    for ax, (column, label) in zip(axes, columns.items(), strict=True):
        for system, rows in table.groupby("system", sort=False):
            ax.plot(rows["ratio"], rows[column], marker="o", label=system, color=SYSTEM_COLORS.get(str(system), GREY))
        ax.set_xticks(sorted(table["ratio"].unique()))
        ax.set_ylim(bottom=0)
        ax.set_xlabel("Load of one expert over the others'")
        ax.set_ylabel(label)
    _legend(figure, axes[0])
    return figure


def plot_spot(table: pd.DataFrame) -> Figure:
    """Samples of Lazarus over those of DS and DS(FT) on the spot trace (Lazarus, figure 9)."""
    cases: Any = list(table.groupby(["minutes", "stride"], sort=False))
    figure, axes = subplots(1, len(cases), height_in=2.3, sharey=True, squeeze=False)
    for ax, ((minutes, stride), rows) in zip(axes[0], cases, strict=True):
        _gains(ax, rows, GAINS_SPOT if minutes == 80 else {})
        kept = "as recorded" if stride == 1 else f"machines 0, {stride}, {2 * stride} ..."
        ax.set_title(f"{minutes:g} min\n{kept}")
    _legend(figure, axes[0, 0])
    axes[0, 0].set_ylabel("Samples of Lazarus\nover the other's")
    return figure


def plot_breakdown(table: pd.DataFrame) -> Figure:
    """Time by state on the spot trace, 80 minutes (Lazarus, figure 11)."""
    rows = table[(table["minutes"] == 80) & (table["stride"] == 1)]
    figure, ax = subplots(height_in=0.7 + 0.2 * len(rows))
    left = np.zeros(len(rows))
    for state, color in STATE_COLORS.items():
        share = 100 * rows[f"{state}_s"].to_numpy() / (60 * rows["minutes"].to_numpy())
        ax.barh(np.arange(len(rows)), share, left=left, color=color, label=state)
        left += share
    ax.set_yticks(range(len(rows)), [f"{each.model}, {each.system}" for each in rows.itertuples()])
    ax.invert_yaxis()
    ax.set_xlim(0, 100)
    ax.set_xlabel("Time (%)")
    _legend(figure, ax)
    return figure


def plot_a10g(table: pd.DataFrame) -> Figure:
    """Samples of Lazarus over Tutel's on 16 nodes with slow links (Lazarus, figure 12)."""
    figure, ax = subplots(width_in=COLUMN_WIDTH_IN, height_in=2.2)
    _gains(ax, table, GAINS_A10G)
    ax.set_ylabel("Samples of Lazarus\nover the other's")
    _legend(figure, ax)
    return figure


def plot_deepseek_v3(table: pd.DataFrame) -> Figure:
    """Throughput of Lazarus over DS's and DS(FT)'s, DeepSeek-V3 (Lazarus, figure 13); whiskers: all trials."""
    figure, axes = subplots(1, 2, height_in=2.3)
    by_run = table.set_index(["gpus", "p", "trial", "system"])["samples_per_s"].unstack()
    panels = (("p", table[table["gpus"] == 512]), ("gpus", table[table["p"] == 0.05]))
    titles = ("512 GPUs", "p = 0.05 an hour")
    for ax, (axis, rows), title in zip(axes, panels, titles, strict=True):
        values = sorted(rows[axis].unique())
        kept = by_run.loc[pd.MultiIndex.from_frame(rows[["gpus", "p", "trial"]].drop_duplicates())]
        for other in ("DS", "DS(FT)"):
            gains = (kept["Lazarus"] / kept[other]).groupby(axis)
            middle = gains.mean()
            reach = np.abs([gains.min() - middle, gains.max() - middle])
            places = np.arange(len(values)) + (-0.05 if other == "DS" else 0.05)
            color = SYSTEM_COLORS.get(other, GREY)
            ax.errorbar(places, middle, reach, marker="o", capsize=2, color=color, label=f"over {other}")
            for (gpus, chance, system), gain in GAINS_V3.items():
                value = chance if axis == "p" else gpus
                if system == other and value in values and (gpus == 512 if axis == "p" else chance == 0.05):
                    first = "paper" not in ax.get_legend_handles_labels()[1]
                    paper_mark(ax, x=places[values.index(value)], y=gain, label="paper" if first else None)
        ax.set_xticks(range(len(values)), [f"{value:g}" for value in values])
        ax.set_yscale("log", base=2)
        ax.set_yticks([2, 4, 8, 16], ["2", "4", "8", "16"])
        ax.set_title(title)
        ax.set_xlabel("Probability p of a node's failure in an hour" if axis == "p" else "GPUs")
    axes[0].set_ylabel("Throughput of Lazarus\nover the other's")
    _legend(figure, axes[0])
    return figure


FIGURES: dict[str, tuple[str, Callable[[pd.DataFrame], Figure]]] = {
    "lazarus-fig6-7": ("25_controlled_failures", plot_controlled),
    "lazarus-fig6-timeline": ("25_timeline", plot_timeline),
    "lazarus-fig10a": ("25_load_ratio", plot_load_ratio),
    "lazarus-fig14": ("25_idle_first", plot_idle),
    "lazarus-fig9": ("26_spot_traces", plot_spot),
    "lazarus-fig9-timeline": ("26_timeline", plot_timeline),
    "lazarus-fig11": ("26_spot_traces", plot_breakdown),
    "lazarus-fig12": ("27_sixteen_nodes", plot_a10g),
    "lazarus-fig13": ("27_deepseek_v3", plot_deepseek_v3),
}
