"""Figures of what is traded: racks, f, balance against survival, rebalancing against migration."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter

from figures.style import BLACK, CYCLE, GREY, SYSTEM_COLORS, subplots

TRACE_MARKERS = {"p3": "s", "infinitehbd": "D"}
MAPPINGS = {"none": 0.35, "greedy": 0.7, "optimal": 1.0}  # opacity of its bars


def _legend(figure: Figure, *axes: Axes, columns: int | None = None) -> None:
    found = {label: handle for ax in axes for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    figure.legend(list(found.values()), list(found), loc="outside upper center", ncols=columns or len(found))


def _color(system: object) -> str:
    return SYSTEM_COLORS.get(str(system), GREY)


def plot_racks(table: pd.DataFrame) -> Figure:
    """Recovery against racks that fail; a panel per cluster, of all layers, a column per place of a rack's nodes."""
    rows = table[table["layers"] > 1]
    clusters = list(dict.fromkeys(zip(rows["model"], rows["nodes"], strict=True)))
    figure, axes = subplots(1, 2 * len(clusters), height_in=2.2, sharey=True, squeeze=False)
    for number, (model, nodes) in enumerate(clusters):
        here = rows[(rows["model"] == model) & (rows["nodes"] == nodes)]
        for ax, racks in zip(axes[0, 2 * number : 2 * number + 2], ("adjacent", "strided"), strict=True):
            for turn, (system, each) in enumerate(here[here["racks"] == racks].groupby("system", sort=False)):
                mean = each.groupby("failed_racks")[["recovery", "scattered"]].mean()
                ax.plot(
                    mean.index, mean["recovery"], marker="o", label=system, color=_color(system), zorder=3 - turn / 10
                )
                if system == "MRO":
                    label = "MRO, as many nodes anywhere"
                    ax.plot(mean.index, mean["scattered"], color=BLACK, linestyle=":", linewidth=0.9, label=label)
            ax.set_title(f"{model}\n{here['failed_racks'].max()} racks, {racks}")
            ax.set_xlabel("Racks that fail")
    axes[0, 0].set_ylabel("Recovery probability")
    _legend(figure, axes[0, 0])
    return figure


def plot_losses_at_once(table: pd.DataFrame) -> Figure:
    """Minutes in which so many nodes are lost, and how many independent losses would give."""
    labels = list(dict.fromkeys(table["label"]))
    figure, axes = subplots(1, len(labels), height_in=2.1, sharey=True)
    for ax, label in zip(axes, labels, strict=True):
        rows = table[table["label"] == label]
        ax.bar(rows["nodes_lost"], rows["instants"], color=CYCLE[0], label="trace")
        expected = rows[rows["independent"] > 0.05]
        mark = {"marker": "_", "markersize": 9, "markeredgewidth": 1.5, "linestyle": "none"}
        ax.plot(expected["nodes_lost"], expected["independent"], color=CYCLE[1], label="if independent", **mark)
        ax.set_yscale("log")
        ax.set_ylim(0.05, 1000)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.set_title(label)
        ax.set_xlabel("Nodes lost in one minute")
    axes[0].set_ylabel("Minutes of the trace")
    _legend(figure, axes[0])
    return figure


def plot_choosing_f(table: pd.DataFrame) -> Figure:
    """Mean time to a lost expert against balance; a point for each f, a line per system (one rate of failures)."""
    rows = table[table["process"] == "independent"]
    rows = rows[rows["rate_per_hour"] == rows["rate_per_hour"].median()]
    models = list(dict.fromkeys(rows["model"]))
    figure, axes = subplots(1, len(models), height_in=2.6, sharey=True, squeeze=False)
    for ax, model in zip(axes[0], models, strict=True):
        for system, each in rows[rows["model"] == model].groupby("system", sort=False):
            ax.plot(each["max_load_ratio"], each["hours"], marker="o", color=_color(system), label=system)
            for point in each.itertuples():
                where = {"textcoords": "offset points", "xytext": (3, 2), "fontsize": 6, "color": _color(system)}
                ax.annotate(str(point.min_replicas), (point.max_load_ratio, point.hours), **where)
        ax.set_yscale("log")
        ax.set_title(f"{model}, {rows[rows['model'] == model]['nodes'].iloc[0]} nodes")
        ax.set_xlabel("Largest over mean load")
    axes[0, 0].set_ylabel(f"Hours to a lost expert\n({rows['rate_per_hour'].iloc[0]:g} failures a node and hour)")
    _legend(figure, axes[0, 0])
    return figure


def plot_time_to_loss(table: pd.DataFrame) -> Figure:
    """Mean time to a lost expert against the rate of failures, a line for each f; marks: losses as in the traces."""
    systems = [system for system in ("Lazarus", "best") if system in set(table["system"])]
    rows = table[table["system"] == systems[-1]]
    models = list(dict.fromkeys(rows["model"]))
    figure, axes = subplots(1, len(models), height_in=2.5, sharey=True, squeeze=False)
    for ax, model in zip(axes[0], models, strict=True):
        for turn, (floor, each) in enumerate(rows[rows["model"] == model].groupby("min_replicas")):
            color = CYCLE[turn % len(CYCLE)]
            alone = each[each["process"] == "independent"]
            ax.plot(alone["rate_per_hour"], alone["hours"], color=color, label=f"f = {floor}")
            for process, marker in TRACE_MARKERS.items():
                point = each[(each["process"] == process) & np.isfinite(each["hours"])]
                style = {"marker": marker, "linestyle": "none", "markeredgecolor": color, "markerfacecolor": "none"}
                label = f"as in {process}" if turn == 0 else None
                ax.plot(point["rate_per_hour"], point["hours"], **style, label=label)
        ax.set_xscale("log")
        ax.set_yscale("log")
        ax.set_ylim(0.1, 1e12)
        ax.yaxis.set_minor_formatter(NullFormatter())
        ax.set_title(model)
        ax.set_xlabel("Failures a node and hour")
    axes[0, 0].set_ylabel("Hours to a lost expert")
    _legend(figure, *axes[0])
    return figure


def plot_drift(table: pd.DataFrame) -> Figure:
    """Largest over mean load against the interval between rebalances; bands hold 80 % of the iterations."""
    names = list(dict.fromkeys(table["name"]))
    figure, axes = subplots(1, len(names), height_in=2.2, sharey=True, squeeze=False)
    for ax, name in zip(axes[0], names, strict=True):
        here = table[table["name"] == name]
        intervals = sorted(here["interval"].unique())
        for system, rows in here.groupby("system", sort=False):
            ratio = rows.groupby("interval")["max_load_ratio"]
            places = range(len(intervals))
            ax.plot(places, ratio.median(), marker="o", color=_color(system), label=system)
            ax.fill_between(
                places, ratio.quantile(0.1), ratio.quantile(0.9), color=_color(system), alpha=0.2, linewidth=0
            )
            ax.axhline(rows["own_ratio"].median(), color=_color(system), linestyle=":", linewidth=0.9)
        ax.set_xticks(range(len(intervals)), [f"{each:g}" if np.isfinite(each) else "never" for each in intervals])
        ax.tick_params(axis="x", rotation=45)
        ax.set_title(name)
        ax.set_xlabel("Iterations between rebalances")
    axes[0, 0].set_ylabel("Largest over mean load")
    axes[0, 0].set_ylim(bottom=1)
    _legend(figure, axes[0, 0])
    return figure


def plot_drift_over_time(table: pd.DataFrame) -> Figure:
    """Largest over mean load at each iteration of SmartMoE's trace, Lazarus, for some intervals."""
    rows = table[(table["name"] == table["name"].iloc[0]) & (table["system"] == "Lazarus")]
    figure, ax = subplots(height_in=2.1)
    chosen = [each for each in sorted(rows["interval"].unique(), reverse=True) if each >= 200]
    for color, interval in zip((CYCLE[1], CYCLE[3], CYCLE[2], CYCLE[0]), chosen, strict=False):
        each = rows[rows["interval"] == interval]
        label = f"every {interval:g}" if np.isfinite(interval) else "never again"
        ax.plot(each["iteration"], each["max_load_ratio"], color=color, label=label, linewidth=0.9)
    own = rows[rows["interval"] == rows["interval"].max()]
    ax.plot(own["iteration"], own["own_ratio"], color=BLACK, label="at each iteration", linewidth=0.9)
    ax.set_ylim(bottom=1)
    ax.set_xlabel("Iteration")
    ax.set_ylabel("Largest over mean load")
    _legend(figure, ax)
    return figure


def plot_rebalances(table: pd.DataFrame) -> Figure:
    """What a rebalance moves, of all that nodes hold, by the interval and the mapping; means over all rebalances."""
    names = list(dict.fromkeys(table["name"]))
    figure, axes = subplots(1, len(names), height_in=2.2, sharey=True, squeeze=False)
    for ax, name in zip(axes[0], names, strict=True):
        here = table[table["name"] == name]
        intervals = sorted(here["interval"].unique())
        systems = list(dict.fromkeys(table["system"]))
        for turn, (system, mapping) in enumerate((system, mapping) for system in systems for mapping in MAPPINGS):
            rows = (
                here[(here["system"] == system) & (here["mapping"] == mapping)]
                .groupby("interval")
                .sum(numeric_only=True)
            )
            places = np.arange(len(intervals)) + (turn - (len(systems) * len(MAPPINGS) - 1) / 2) * 0.13
            height = 100 * rows["moved_states"] / rows["held_states"]
            style = {"color": _color(system), "alpha": MAPPINGS[mapping]}
            ax.bar(places, height, 0.13, label=f"{system}, {mapping}", **style)
        ax.set_xticks(range(len(intervals)), [f"{each:g}" for each in intervals])
        ax.set_title(name)
        ax.set_xlabel("Iterations between rebalances")
    axes[0, 0].set_ylabel("Expert states moved (%)")
    _legend(figure, axes[0, 0])
    return figure


FIGURES: dict[str, tuple[str, Callable[[pd.DataFrame], Figure]]] = {
    "lazarus-racks": ("23_racks", plot_racks),
    "lazarus-losses-at-once": ("23_losses_at_once", plot_losses_at_once),
    "lazarus-choosing-f": ("23_choosing_f", plot_choosing_f),
    "lazarus-time-to-loss": ("23_choosing_f", plot_time_to_loss),
    "lazarus-drift": ("24_drift", plot_drift),
    "lazarus-drift-over-time": ("24_drift", plot_drift_over_time),
    "lazarus-rebalances": ("24_rebalances", plot_rebalances),
}
