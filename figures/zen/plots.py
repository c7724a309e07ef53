"""Figures of Zen's evaluation: a table in, a figure out. No result is computed or held here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from figures.style import BLACK, BLUE, COLUMN_WIDTH_IN, CYCLE, GREY, RED, SYSTEM_COLORS, paper_mark, subplots

COLORS = (*CYCLE, GREY, BLACK)
"""Of workloads, which have no colour of their own."""


def _color(system: object) -> str:
    return SYSTEM_COLORS.get(str(system), GREY)


def _legend(figure: Figure, ax: Axes, columns: int = 6) -> None:
    handles, labels = ax.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=min(len(labels), columns))


def _bars(ax: Axes, table: pd.DataFrame, groups: str, bars: str, value: str) -> None:
    """Grouped bars, in the order of the table."""
    names, kinds = list(dict.fromkeys(table[groups])), list(dict.fromkeys(table[bars]))
    width = 0.8 / len(kinds)
    for i, kind in enumerate(kinds):
        rows = table[table[bars] == kind].set_index(groups)[value]
        places = np.arange(len(names)) + (i - (len(kinds) - 1) / 2) * width
        ax.bar(places, [rows.get(name, np.nan) for name in names], width, label=str(kind), color=_color(kind))
    ax.set_xticks(range(len(names)), [str(name) for name in names])


def plot_overlap(table: pd.DataFrame) -> Figure:
    """Overlap of pairs of workers (Zen, figure 2a) and densification against workers (figure 2b)."""
    figure, (left, right) = subplots(1, 2, height_in=2.3)
    names = list(dict.fromkeys(table["workload"]))
    pairs = [table[(table["workload"] == name) & (table["quantity"] == "overlap")]["value"] for name in names]
    parts = left.violinplot(pairs, showmedians=True, widths=0.8)
    for body, color in zip(parts["bodies"], COLORS, strict=False):
        body.set_facecolor(color)
    left.set_xticks(range(1, len(names) + 1), names, rotation=25, ha="right")
    paper_mark(left, y=0.05, label="paper: none below")
    left.set_ylabel("Overlap of two workers")
    left.set_ylim(bottom=0)
    left.legend()
    for name, color in zip(names, COLORS, strict=False):
        rows = table[(table["workload"] == name) & (table["quantity"] == "densification")]
        right.plot(rows["x"], rows["value"], marker="o", label=name, color=color)
    most = float(table.loc[table["quantity"] == "densification", "x"].max())
    right.plot([1, most], [1, most], color=GREY, linestyle=":", label="no overlap")
    right.set_xscale("log", base=2)
    right.set_xlabel("Workers")
    right.set_ylabel("Densification ratio")
    right.legend()
    return figure


def plot_skewness(table: pd.DataFrame) -> Figure:
    """Share of the non-zeros in each of eight parts (Zen, figure 3a) and skewness against parts (figure 3b)."""
    figure, (left, right) = subplots(1, 2, height_in=2.3)
    shares = table[table["quantity"] == "share_in_eight"].pivot(index="workload", columns="x", values="value")
    shares = shares.loc[list(dict.fromkeys(table["workload"]))]
    image = left.imshow(100 * shares, cmap="Blues", vmin=0, vmax=100, aspect="auto")
    for (row, column), value in np.ndenumerate(shares.to_numpy()):
        left.text(column, row, f"{100 * value:.0f}", ha="center", va="center", fontsize=6, color="black")
    left.set_yticks(range(len(shares)), list(shares.index))
    left.set_xticks(range(8), [str(part + 1) for part in range(8)])
    left.grid(False)
    left.set_xlabel("Part of the tensor")
    figure.colorbar(image, ax=left, label="Non-zeros (%)")
    for name, color in zip(shares.index, COLORS, strict=False):
        rows = table[(table["workload"] == name) & (table["quantity"] == "skewness")]
        right.plot(rows["x"], rows["value"], marker="o", label=name, color=color)
    right.set_xscale("log", base=2)
    right.set_xlabel("Parts")
    right.set_ylabel("Skewness ratio")
    right.set_ylim(bottom=0)
    right.legend()
    return figure


def plot_design_space(table: pd.DataFrame) -> Figure:
    """Cost over AllReduce's against workers (Zen, figure 8)."""
    figure, ax = subplots(width_in=COLUMN_WIDTH_IN, height_in=2.4)
    for system, rows in table.groupby("system", sort=False):
        ax.plot(rows["workers"], rows["cost_over_ring"], marker="o", label=system, color=_color(system))
    ax.set_xscale("log", base=2)
    ax.set_ylim(0, 2)
    ax.set_xlabel("Workers")
    ax.set_ylabel("Cost over AllReduce's")
    ax.legend()
    return figure


def plot_break_even(table: pd.DataFrame) -> Figure:
    """Overlap above which Balanced Parallelism beats Hierarchical Centralization (Zen, theorem 1)."""
    figure, ax = subplots(width_in=COLUMN_WIDTH_IN, height_in=2.2)
    ax.plot(table["workers"], table["overlap"], marker="o", color=_color("Zen"))
    paper_mark(ax, y=0.05, label="least overlap seen in the paper")
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    ax.set_xlabel("Workers")
    ax.set_ylabel("Break-even overlap")
    ax.legend()
    return figure


def plot_selector(table: pd.DataFrame) -> Figure:
    """What a wrong choice costs: the published rule and the selector, over the grid of supports."""
    figure, axes = subplots(1, 2, height_in=2.3, sharey=True)
    columns = {"published_over_cheapest": "Published rule", "chosen_over_cheapest": "Selector on true bytes"}
    for ax, (column, title) in zip(axes, columns.items(), strict=True):
        for (density, rows), color in zip(table.groupby("density"), COLORS, strict=False):
            ax.scatter(rows["workers"], rows[column], s=8, color=color, label=f"density {density:g}")
        ax.set_xscale("log", base=2)
        ax.set_title(title)
        ax.set_yscale("log", base=2)
        ax.set_xlabel("Workers")
    axes[0].set_ylabel("Cost over the cheapest's")
    _legend(figure, axes[0], 4)
    return figure


def plot_serial(table: pd.DataFrame) -> Figure:
    """Share of Algorithm 1's serial region against hashes and memory, with the expectation (Zen, figure 16)."""
    figure, ax = subplots(width_in=COLUMN_WIDTH_IN, height_in=2.4)
    for (slots, rows), color in zip(table.groupby("slots_per_index"), CYCLE, strict=False):
        ax.plot(rows["hashes"], rows["serial_pct"], "o", color=color, label=f"$r_1$ = {slots:g} |I|")
        ax.plot(rows["hashes"], rows["expected_pct"], color=color, linewidth=0.8)
        paper_mark(ax, y=10 * float(str(slots)), label=None)
    ax.set_xticks(sorted(table["hashes"].unique()))
    ax.set_xlabel("Second-level hashes k")
    ax.set_ylabel("Serial region (% of indices)\ngrey: room as published")
    ax.set_ylim(0, 45)
    ax.legend()
    return figure


def plot_methods(table: pd.DataFrame) -> Figure:
    """Speed of every way to partition, on one core."""
    figure, ax = subplots(width_in=COLUMN_WIDTH_IN, height_in=2.0)
    ax.barh(table["method"], table["million_elements_per_s"], color=BLUE)
    ax.invert_yaxis()
    ax.set_xlabel("Million elements a second, one core")
    return figure


def plot_imbalance(table: pd.DataFrame) -> Figure:
    """Worst push imbalance of each partition: random and strided supports, against theorem 2's bound."""
    most = table[table["indices"] == table["indices"].max()]
    supports = sorted(most["stride"].unique())
    figure, axes = subplots(1, len(supports), height_in=2.2, sharey=True, squeeze=False)
    for ax, stride in zip(axes.flat, supports, strict=True):
        for (method, rows), color in zip(most[most["stride"] == stride].groupby("method"), CYCLE, strict=False):
            ax.plot(rows["partitions"], rows["imbalance"], marker="o", label=str(method), color=color)
        bound = most[most["stride"] == stride].drop_duplicates("partitions")
        ax.plot(bound["partitions"], bound["bound"], color=GREY, linestyle="--", label="bound")
        ax.set_title("random" if stride == 0 else f"stride {stride}")
        ax.set_xscale("log", base=2)
        ax.set_yscale("log", base=2)
        ax.set_xlabel("Partitions")
    axes.flat[0].set_ylabel("Push imbalance")
    _legend(figure, axes.flat[0])
    return figure


def plot_strawman(table: pd.DataFrame) -> Figure:
    """What the strawman loses against its memory (Zen, section 3.2)."""
    figure, ax = subplots(width_in=COLUMN_WIDTH_IN, height_in=2.2)
    ax.plot(table["slots_per_index"], table["lost_pct"], "o", color=RED, label="measured")
    ax.plot(table["slots_per_index"], table["expected_pct"], color=RED, linewidth=0.8, label="1 - (1 - exp(-a)) / a")
    paper_mark(ax, x=10, y=17.5, label="paper")
    ax.set_xscale("log")
    ax.set_xlabel("Slots per index")
    ax.set_ylabel("Gradients lost (%)")
    ax.legend()
    return figure


def plot_formats(table: pd.DataFrame) -> Figure:
    """Size over the dense tensor's against density (Zen, figure 17a)."""
    figure, ax = subplots(width_in=COLUMN_WIDTH_IN, height_in=2.4)
    for (system, rows), color in zip(table.groupby("system", sort=False), CYCLE, strict=False):
        ax.plot(100 * rows["density"], rows["over_dense"], marker="o", label=system, color=color)
    ax.axhline(1, color=GREY, linestyle="--", linewidth=1)
    ax.set_xscale("log")
    ax.set_ylim(0, 2)
    ax.set_xlabel("Density (%)")
    ax.set_ylabel("Bytes over dense")
    ax.legend()
    return figure


def plot_speedup(table: pd.DataFrame) -> Figure:
    """Communication speed-up over AllReduce on the most workers (Zen, figure 15)."""
    most = table[(table["workers"] == table["workers"].max()) & (table["scheme"] != "ring")]
    figure, ax = subplots(height_in=2.6)
    _bars(ax, most, "workload", "system", "speedup_over_ring")
    ax.axhline(1, color=GREY, linestyle="--", linewidth=1)
    ax.set_ylabel(f"Speed-up over AllReduce\n{most['workers'].max()} workers")
    _legend(figure, ax, 5)
    return figure


def plot_scaling(table: pd.DataFrame) -> Figure:
    """Communication speed-up over AllReduce against workers, a panel per workload."""
    names = list(dict.fromkeys(table["workload"]))
    columns = min(4, len(names))
    rows_of = -(-len(names) // columns)
    figure, axes = subplots(rows_of, columns, height_in=1.8 * rows_of, squeeze=False, sharex=True)
    for ax in axes.flat[len(names) :]:
        ax.axis("off")
    for ax, name in zip(axes.flat, names, strict=False):
        for system, rows in table[table["workload"] == name].groupby("system", sort=False):
            ax.plot(rows["workers"], rows["speedup_over_ring"], marker="o", label=system, color=_color(system))
        ax.set_title(name)
        ax.set_xscale("log", base=2)
        ax.set_ylim(bottom=0)
        ax.set_xlabel("Workers")
    axes.flat[0].set_ylabel("Speed-up over AllReduce")
    _legend(figure, axes.flat[0], 5)
    return figure


def plot_throughput(table: pd.DataFrame) -> Figure:
    """Samples a second against workers, a panel per workload and bandwidth (Zen, figures 11 to 14)."""
    names, speeds = list(dict.fromkeys(table["workload"])), sorted(table["bandwidth_gbps"].unique())
    figure, axes = subplots(len(speeds), len(names), height_in=1.6 * len(speeds), squeeze=False, sharex=True)
    for i, speed in enumerate(speeds):
        for j, name in enumerate(names):
            chosen = table[(table["workload"] == name) & (table["bandwidth_gbps"] == speed)]
            for system, rows in chosen.groupby("system", sort=False):
                axes[i, j].plot(rows["workers"], rows["samples_per_s"], marker="o", label=system, color=_color(system))
            if i == 0:
                axes[i, j].set_title(name)
            axes[i, j].set_ylim(bottom=0)
            axes[i, j].set_xscale("log", base=2)
        axes[i, 0].set_ylabel(f"Samples a second\n{speed:g} Gb/s")
    for ax in axes[-1]:
        ax.set_xlabel("Workers")
    _legend(figure, axes[0, 0], 5)
    return figure


def plot_full_size(table: pd.DataFrame) -> Figure:
    """Time of a step of the paper's LSTM on 16 machines: computing and communicating."""
    table = table.dropna(subset=["compute_s"])
    speeds = sorted(table["bandwidth_gbps"].unique())
    figure, axes = subplots(1, len(speeds), height_in=2.4, squeeze=False)
    for ax, speed in zip(axes.flat, speeds, strict=True):
        rows = table[table["bandwidth_gbps"] == speed]
        ax.barh(rows["system"], rows["compute_s"], color=GREY, label="computing")
        ax.barh(rows["system"], rows["communication_s"], left=rows["compute_s"], color=BLUE, label="communicating")
        ax.set_title(f"{speed:g} Gb/s")
        ax.set_xlabel("Seconds a step")
        ax.invert_yaxis()
    for ax in axes.flat[1:]:
        ax.set_yticklabels([])
    _legend(figure, axes.flat[0])
    return figure


def plot_accuracy(table: pd.DataFrame) -> Figure:
    """Training loss by step and system (Zen, figure 18)."""
    names = list(dict.fromkeys(table["workload"]))
    figure, axes = subplots(1, len(names), height_in=2.3, squeeze=False)
    for ax, name in zip(axes.flat, names, strict=True):
        for i, (system, rows) in enumerate(table[table["workload"] == name].groupby("system", sort=False)):
            style: dict[str, Any] = {"linestyle": ("-", "--", ":", "-.")[i % 4]}
            ax.plot(rows["step"], rows["loss"], label=system, color=_color(system), **style)
        ax.set_title(name)
        ax.set_xlabel("Step")
    axes.flat[0].set_ylabel("Training loss (nats)")
    _legend(figure, axes.flat[0])
    return figure


def plot_links(table: pd.DataFrame) -> Figure:
    """Seconds of one synchronisation on rate-limited links: bars the median, marks every repeat."""
    cases = list(dict.fromkeys(zip(table["workload"], table["workers"], table["rate_mbps"], strict=True)))
    columns = min(4, len(cases))
    lines = -(-len(cases) // columns)
    figure, axes = subplots(lines, columns, height_in=2.1 * lines, squeeze=False)
    for ax in axes.flat[len(cases) :]:
        ax.axis("off")
    for ax, (workload, workers, rate) in zip(axes.flat, cases, strict=False):
        keys = (table["workload"] == workload) & (table["workers"] == workers) & (table["rate_mbps"] == rate)
        chosen = table[keys]
        order = list(dict.fromkeys(chosen["label"]))
        medians = chosen.groupby("label")["seconds"].median().reindex(order)
        ax.barh(order, medians, color=[_color(label) for label in order])
        ax.plot(chosen["seconds"], chosen["label"], "|", color="black", markersize=6)
        ax.invert_yaxis()
        ax.set_title(f"{workload}, n = {workers}, {rate:g} Mb/s")
        ax.set_xlabel("Seconds")
    for ax in axes.flat:
        if ax not in axes[:, 0]:
            ax.set_yticklabels([])
    return figure


def plot_links_training(table: pd.DataFrame) -> Figure:
    """Loss against time on rate-limited links: stock DDP and the hook."""
    cases = list(table.groupby(["workload", "workers", "rate_mbps"], sort=False))
    figure, axes = subplots(1, len(cases), height_in=2.3, sharey=True, squeeze=False)
    for ax, ((workload, workers, rate), case) in zip(axes.flat, cases, strict=True):
        for system, rows in case.groupby("system", sort=False):
            ax.plot(rows["elapsed_s"], rows["loss"], label=system, color=_color(system))
        ax.set_title(f"{workload}, n = {workers}, {rate:g} Mb/s")
        ax.set_xlabel("Time (s)")
    axes.flat[0].set_ylabel("Training loss (nats)")
    axes.flat[0].legend()
    return figure


FIGURES: dict[str, tuple[str, Callable[[pd.DataFrame], Figure]]] = {
    "zen-fig2": ("31_characterisation", plot_overlap),
    "zen-fig3": ("31_characterisation", plot_skewness),
    "zen-fig8": ("32_design_space", plot_design_space),
    "zen-break-even": ("32_break_even", plot_break_even),
    "zen-selector": ("32_selector", plot_selector),
    "zen-fig16": ("33_serial", plot_serial),
    "zen-partition-speed": ("33_methods", plot_methods),
    "zen-imbalance": ("33_imbalance", plot_imbalance),
    "zen-strawman": ("33_strawman", plot_strawman),
    "zen-fig17": ("34_formats", plot_formats),
    "zen-fig15": ("35_counted", plot_speedup),
    "zen-scaling": ("35_counted", plot_scaling),
    "zen-fig11-14": ("36_throughput", plot_throughput),
    "zen-fig11-full-size": ("36_full_size", plot_full_size),
    "zen-fig18": ("37_accuracy", plot_accuracy),
    "zen-links": ("38_links", plot_links),
    "zen-links-training": ("38_training", plot_links_training),
    "zen-baselines": ("39_baselines", plot_speedup),
}
