"""Figures of real models served from cached states."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from figures.style import BLUE, CYCLE, GREY, RED, SYSTEM_COLORS, YELLOW, subplots

VANILLA = "Vanilla"


def plot_exactness(table: pd.DataFrame) -> Figure:
    """Every case's largest difference of logits, and that of its control, by model; the tolerance as a line."""
    models = list(table["model"].unique())
    figure, ax = subplots(height_in=2.6)
    rng = np.random.default_rng(0)
    tiny = 1e-9  # where a difference of exactly 0 is drawn
    for column, color, label in (
        ("difference", BLUE, "resumed (at the bottom: no difference at all)"),
        ("difference_of_control", RED, "control: recurrent states lost"),
    ):
        for place, model in enumerate(models):
            values = table.loc[table["model"] == model, column].to_numpy().clip(tiny)
            spread = place + rng.uniform(-0.25, 0.25, len(values))
            ax.plot(spread, values, ".", color=color, markersize=2, alpha=0.6, label=label if place == 0 else None)
    ax.axhline(float(table["tolerance"].iloc[0]), color=GREY, linestyle="--", label="tolerance")
    ax.set(yscale="log", ylabel="Largest difference of logits\nfrom a cold prefill")
    ax.set_xticks(range(len(models)), [model.removesuffix("-tiny") for model in models], rotation=20)
    figure.legend(loc="outside upper center", ncols=3)
    return figure


def plot_resume(table: pd.DataFrame) -> Figure:
    """Time of a prefill, cold and resumed: the median of the repeats, with all of them as dots."""
    models = list(table["model"].unique())
    figure, axes = subplots(1, len(models), width_in=2.4 * len(models), height_in=2.2, squeeze=False)
    for ax, model in zip(axes[0], models, strict=True):
        rows = table[table["model"] == model]
        for place, (column, color) in enumerate((("cold_ms", GREY), ("resumed_ms", BLUE), ("restore_ms", YELLOW))):
            ax.bar(place, rows[column].median(), 0.6, color=color)
            ax.plot(np.full(len(rows), place), rows[column], ".", color="black", markersize=2)
        ax.set_xticks(range(3), ["cold", "resumed", "of it lookup\nand restore"])
        ax.set(title=model, ylabel="Prefill (ms)")
    return figure


def plot_served_ttft(table: pd.DataFrame) -> Figure:
    """Left, the share of requests within a time to first token at the middle capacity; right, percentiles by capacity.

    On the right P95 over that without a cache, as in figure 9.
    """
    capacities = sorted(table["capacity_mb"].unique())
    shown = capacities[len(capacities) // 2]
    figure, (left, right) = subplots(1, 2, height_in=2.4)
    for system, rows in table[table["capacity_mb"] == shown].groupby("system", sort=False):
        times = np.sort(rows["ttft_ms"])
        left.step(times, np.arange(1, len(times) + 1) / len(times), color=SYSTEM_COLORS[str(system)], label=str(system))
    left.set(xscale="log", xlabel=f"TTFT (ms), {shown:g} MB", ylabel="Share of requests", ylim=(0, 1))
    p95 = table.groupby(["system", "capacity_mb"])["ttft_ms"].quantile(0.95).unstack()
    for system in table["system"].unique():
        if system == VANILLA:
            continue
        ratio = 100 * p95.loc[system] / p95.loc[VANILLA]
        right.plot(ratio.index, ratio, marker="o", color=SYSTEM_COLORS[system], label=system)
    right.axhline(100, color=SYSTEM_COLORS[VANILLA])
    right.set(xlabel="Capacity (MB)", ylabel="P95 TTFT over that\nwithout a cache (%)", ylim=(0, None))
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels))
    return figure


def plot_tiers(table: pd.DataFrame) -> Figure:
    """Hit rate by tier, and median time to first token, against the second tier's capacity."""
    systems = list(table["system"].unique())
    figure, axes = subplots(1, len(systems) + 1, height_in=2.4)
    ticks = [f"{mb:g}" for mb in table["host_capacity_mb"].unique()]
    for ax, system in zip(axes, systems, strict=False):
        rows = table[table["system"] == system]
        places = np.arange(len(rows))
        host = 100 * (rows["from_host_tokens"] / rows["input_tokens"]).to_numpy()
        own = 100 * rows["token_hit_rate"].to_numpy() - host
        ax.bar(places, own, color=SYSTEM_COLORS[system], label=f"{system}, first tier")
        ax.bar(places, host, bottom=own, color=YELLOW, label="second tier")
        ax.set_xticks(places, ticks)
        ax.set(xlabel="Second tier (MB)", ylabel="Token hit rate (%)", ylim=(0, 100))
        axes[-1].plot(places, rows["ttft_ms_p50"], marker="o", color=SYSTEM_COLORS[system])
    axes[-1].set_xticks(range(len(ticks)), ticks)
    axes[-1].set(xlabel="Second tier (MB)", ylabel="Median TTFT (ms)", ylim=(0, None))
    found: dict[str, Any] = {}
    for ax in axes[:-1]:
        handles, labels = ax.get_legend_handles_labels()
        found |= dict(zip(labels, handles, strict=True))
    figure.legend(list(found.values()), list(found), loc="outside upper center", ncols=len(found))
    return figure


def plot_placements(table: pd.DataFrame) -> Figure:
    """Hit rate, checkpoints held and median time to first token of each placement; a row of panels per trace."""
    traces, placements = list(table["trace"].unique()), list(table["placement"].unique())
    figure, axes = subplots(len(traces), 3, height_in=0.4 + 1.9 * len(traces), squeeze=False, sharex=True)
    columns = {
        "token_hit_rate": "Token hit rate (%)",
        "checkpoints": "Checkpoints at the end",
        "ttft_ms_p50": "Median TTFT (ms)",
    }
    for trace, panels in zip(traces, axes, strict=True):
        of_trace = table[table["trace"] == trace]
        capacities = list(of_trace["capacity_mb"].unique())
        width = 0.8 / len(capacities)
        for ax, (column, label) in zip(panels, columns.items(), strict=True):
            for number, capacity in enumerate(capacities):
                rows = of_trace[of_trace["capacity_mb"] == capacity].set_index("placement").loc[placements]
                values = rows[column] * (100 if column == "token_hit_rate" else 1)
                places = np.arange(len(placements)) + (number - (len(capacities) - 1) / 2) * width
                ax.bar(places, values, width, color=CYCLE[number], label=f"{capacity:g} MB")
            ax.set_xticks(range(len(placements)), placements, rotation=30)
            ax.set_ylabel(label)
        panels[1].set_title(trace)
        panels[-1].legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


FIGURES: dict[str, tuple[str, Callable[[pd.DataFrame], Figure]]] = {
    "marconi-exactness": ("40_exactness", plot_exactness),
    "marconi-resume": ("40_resume", plot_resume),
    "marconi-served-ttft": ("41_ttft", plot_served_ttft),
    "marconi-tiers": ("42_tiers", plot_tiers),
    "marconi-placements": ("43_placements", plot_placements),
}
