"""Figures of training on real processes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from figures.style import BLUE, CYCLE, GREY, SYSTEM_COLORS, subplots


def plot_recoveries(table: pd.DataFrame) -> Figure:
    """A time line for each point at which a node is killed, from its death to the first step without it."""
    points, phases = list(dict.fromkeys(table["point"])), list(dict.fromkeys(table["phase"]))
    figure, ax = subplots(height_in=0.9 + 0.25 * len(points))
    for phase, color in zip(phases, CYCLE, strict=False):
        rows = table[table["phase"] == phase].set_index("point").loc[points]
        ax.barh(points, rows["end_ms"] - rows["start_ms"], left=rows["start_ms"], color=color, label=phase, height=0.6)
    ax.invert_yaxis()
    ax.set_xlabel("ms since a node was killed")
    ax.set_ylabel("killed during")
    figure.legend(loc="outside upper center", ncols=len(phases))
    return figure


def plot_equal_losses(table: pd.DataFrame) -> Figure:
    """The losses over one another, and the number of nodes below."""
    figure, (top, below) = subplots(2, 1, height_in=3.0, sharex=True, gridspec_kw={"height_ratios": [2.2, 1]})
    top.plot(table["step"], table["loss_in_one_process"], color=GREY, linewidth=3, label="one process")
    top.plot(table["step"], table["loss"], color=BLUE, label="processes that are killed and join")
    top.set_ylabel("Loss (nats)")
    top.legend()
    below.step(table["step"], table["nodes"], where="mid", color=BLUE)
    below.set_ylim(0, table["nodes"].max() + 1)
    below.set_ylabel("Nodes")
    below.set_xlabel("Step")
    return figure


def plot_systems(table: pd.DataFrame) -> Figure:
    """Tokens a second on one schedule of kills, measured and simulated."""
    figure, ax = subplots(height_in=2.3)
    places = np.arange(len(table))
    colors = [SYSTEM_COLORS.get(system, GREY) for system in table["system"]]
    ax.bar(places - 0.2, table["tokens_per_s"], 0.38, color=colors, label="measured")
    hatched = {"color": "white", "edgecolor": colors, "hatch": "///", "label": "simulated"}
    ax.bar(places + 0.2, table["simulated_tokens_per_s"], 0.38, **hatched)
    ax.set_xticks(places, [f"{row.system}\n{row.restarts} restarts" for row in table.itertuples()])
    ax.set_ylabel("Tokens a second\nwith outages")
    ax.legend()
    return figure


FIGURES: dict[str, tuple[str, Callable[[pd.DataFrame], Figure]]] = {
    "lazarus-recoveries": ("28_recoveries", plot_recoveries),
    "lazarus-equal-losses": ("28_equal_losses", plot_equal_losses),
    "lazarus-real-systems": ("28_systems", plot_systems),
}
