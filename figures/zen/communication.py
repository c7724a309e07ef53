"""What each scheme sends for real gradients (Zen, section 5.3; figure 15)."""

from __future__ import annotations

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from artifact import sparse_sync, sweep
from figures import style
from figures.style import Picture, facets
from figures.zen.panels import Options, heatmaps, lines, numbered_log, slanted


def scheme_traffic(
    *, names: list[str], workers: list[int], schemes: list[str], bandwidth_gbps: float, steps: int, seed: int = 0
) -> pd.DataFrame:
    """Every scheme on each workload's gradients, counted, checked for exactness, and predicted by the closed form.

    One row per (workload, workers, scheme). Zen, figures 8 and 15 and table 3.
    """
    shared = {"workers": workers, "schemes": schemes, "gbps": bandwidth_gbps, "steps": steps, "seed": seed}
    return sweep.table(_traffic, [{"name": name, **shared} for name in names], description="workloads")


def _traffic(name: str, workers: list[int], schemes: list[str], gbps: float, steps: int, seed: int) -> pd.DataFrame:
    label, everyone = sparse_sync.workload_tensors(name, max(workers), steps, seed)
    rows = []
    for n in workers:
        tensors = everyone[:n]
        statistics = sparse_sync.measure_statistics(tensors, seed)
        predicted, chosen = (
            sparse_sync.predict_bytes(statistics),
            sparse_sync.choose_scheme(statistics, bandwidth_gbps=gbps),
        )
        for scheme in schemes:
            seen = sparse_sync.synchronise(scheme, tensors, bandwidth_gbps=gbps, seed=seed).as_dict()
            row = {"workload": label, "system": seen.pop("label"), **seen, "chosen": chosen}
            row["busiest_bytes"] = sparse_sync.traffic_of(scheme, tensors, seed).busiest_bytes
            rows.append({**row, "predicted_bytes": predicted.get(scheme, np.nan)})
    return pd.DataFrame(rows)


def plot_speedup(table: pd.DataFrame) -> Figure:
    """Bytes of AllReduce's busiest link over each scheme's, most workers (Zen, figure 15)."""
    most = table[(table["workers"] == table["workers"].max()) & (table["scheme"] != "ring")]
    bars: Options = {"kind": "bar", "x": "workload", "y": "speedup_over_ring", "hue": "system", "saturation": 1}
    grid = facets(sns.catplot, most, height_in=2.8, **bars)
    grid.ax.axhline(1, color=style.GREY, linestyle="--", linewidth=1)
    grid.set_axis_labels("", f"Speed-up over AllReduce\n{most['workers'].max()} workers")
    return grid.figure


def plot_scaling(table: pd.DataFrame) -> Figure:
    """Bytes of AllReduce's busiest link over each scheme's; dashed: one index per row."""
    others = table[table["scheme"] != "ring"]
    grid = lines(others, "workers", "speedup_over_ring", col="workload", col_wrap=4, height_in=4.2)
    for ax in grid.axes.flat:
        ax.axhline(1, color=style.GREY, linestyle="--", linewidth=1)
        numbered_log(ax)
    grid.set_titles("{col_name}").set_axis_labels("Workers", "Speed-up over AllReduce")
    return grid.figure


def plot_baselines(table: pd.DataFrame) -> Figure:
    """Bytes of AllReduce's busiest link over each scheme's: one index per element, as the paper charges its baselines,
    and one per row, as PyTorch sends embeddings."""
    most = table[(table["workers"] == table["workers"].max()) & (table["scheme"] != "ring")]
    most = most.assign(rows=most["scheme"].str.endswith("-row"), family=most["system"].str.removesuffix(" (rows)"))
    families, names = most["family"].unique(), most["workload"].unique()
    pivoted = most.pivot(index=["rows", "family"], columns="workload", values="speedup_over_ring")[[*names]]
    titles = {"One index per element": False, "One index per row": True}
    panels: Options = {title: pivoted.loc[rows].reindex(families) for title, rows in titles.items()}
    title = f"Speed-up over AllReduce, {most['workers'].max()} workers"
    figure = heatmaps(panels, title, height_in=2.6, fmt=".1f", vmin=0, vmax=pivoted.max(axis=None))
    for ax in figure.axes:
        ax.set_xlabel("")
        slanted(ax, names)
    return figure


FIGURES = {
    "zen-fig15": Picture("35_counted", plot_speedup),
    "zen-scaling": Picture("35_counted", plot_scaling),
    "zen-baselines": Picture("39_baselines", plot_baselines),
}
