"""What each scheme sends for real gradients (Zen, section 5.3; figure 15)."""

from __future__ import annotations

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from artifact import sparse_sync, sweep
from figures import style
from figures.style import Picture, facets
from figures.zen.panels import Options, lines, numbered_log, slanted


def scheme_traffic(
    *, names: list[str], workers: list[int], schemes: list[str], bandwidth_gbps: float, steps: int, seed: int = 0
) -> pd.DataFrame:
    """Every scheme on each workload's gradients, counted, checked for exactness, and predicted by the closed form.

    One row per (workload, workers, scheme). Zen, figures 8 and 15 and table 3.
    """
    shared = {"workers": workers, "schemes": schemes, "bandwidth_gbps": bandwidth_gbps, "steps": steps, "seed": seed}
    return sweep.table(_traffic, [{"name": name, **shared} for name in names], description="workloads")


def _traffic(
    *, name: str, workers: list[int], schemes: list[str], bandwidth_gbps: float, steps: int, seed: int
) -> pd.DataFrame:
    label, tensors = sparse_sync.workload_tensors(name, max(workers), steps, seed)
    rows = []
    for n in workers:
        statistics = sparse_sync.measure_statistics(tensors[:n], seed)
        predicted = sparse_sync.predict_bytes(statistics)
        chosen = sparse_sync.choose_scheme(statistics, bandwidth_gbps=bandwidth_gbps)
        for scheme in schemes:
            seen = sparse_sync.synchronise(scheme, tensors[:n], bandwidth_gbps=bandwidth_gbps, seed=seed).as_dict()
            rows.append(
                {
                    "workload": label,
                    "system": seen.pop("label"),
                    **seen,
                    "busiest_bytes": sparse_sync.traffic_of(scheme, tensors[:n], seed).busiest_bytes,
                    "predicted_bytes": predicted.get(scheme, np.nan),
                    "chosen": chosen,
                }
            )
    return pd.DataFrame(rows)


def plot_speedup(table: pd.DataFrame) -> Figure:
    """Communication speed-up over AllReduce on the most workers (Zen, figure 15)."""
    most = _most_workers(table)
    bars: Options = {"kind": "bar", "x": "workload", "y": "speedup_over_ring", "hue": "system", "saturation": 1}
    grid = facets(sns.catplot, most, height_in=2.8, **bars)
    grid.ax.axhline(1, color=style.GREY, linestyle="--", linewidth=1)
    grid.set_axis_labels("", f"Speed-up over AllReduce\n{most['workers'].max()} workers")
    return grid.figure


def plot_scaling(table: pd.DataFrame) -> Figure:
    """Communication speed-up over AllReduce against workers, a panel per workload."""
    others = table[table["scheme"] != "ring"]
    grid = lines(others, "workers", "speedup_over_ring", col="workload", col_wrap=4, height_in=4.2)
    for ax in grid.axes.flat:
        ax.axhline(1, color=style.GREY, linestyle="--", linewidth=1)
        numbered_log(ax)
    grid.set_titles("{col_name}").set_axis_labels("Workers", "Speed-up over AllReduce")
    return grid.figure


def plot_baselines(table: pd.DataFrame) -> Figure:
    """Communication speed-up over AllReduce on the most workers, by elements and by rows."""
    most = _most_workers(table)
    most = most.assign(rows=most["scheme"].str.endswith("-row"), family=most["system"].str.removesuffix(" (rows)"))
    families, names = most["family"].unique(), most["workload"].unique()
    figure, axes = style.subplots(1, 2, height_in=2.6, sharey=True)
    shared = {"fmt": ".1f", "cmap": "Blues", "vmin": 0, "vmax": most["speedup_over_ring"].max(), "cbar": False}
    for rows, ax, title in zip((False, True), axes, ("One index per element", "One index per row"), strict=True):
        shown = most[most["rows"] == rows].pivot(index="family", columns="workload", values="speedup_over_ring")
        sns.heatmap(shown.reindex(index=families, columns=names), annot=True, **shared, ax=ax)
        ax.set(title=title, xlabel="", ylabel="")
        ax.grid(False)
        slanted(ax, names)
    figure.suptitle(f"Speed-up over AllReduce, {most['workers'].max()} workers", fontsize=8)
    return figure


def _most_workers(table: pd.DataFrame) -> pd.DataFrame:
    return table[(table["workers"] == table["workers"].max()) & (table["scheme"] != "ring")]


def largest_prediction_error_pct(table: pd.DataFrame) -> float:
    """Largest difference, in %, of a closed form from the bytes that were counted; generated gradients count."""
    error = (table["predicted_bytes"] / table["busiest_bytes"] - 1).abs()
    return float(100 * error[table["busiest_bytes"] > 0].max())


def exact_pct(table: pd.DataFrame) -> float:
    """Runs, in %, whose sum was exact and the same on every rank; generated gradients count."""
    return float(100 * table["exact"].mean())


FIGURES = {
    "zen-fig15": Picture(
        "35_counted",
        plot_speedup,
        "Bytes of AllReduce's busiest link over each scheme's, most workers (Zen, figure 15).",
    ),
    "zen-scaling": Picture(
        "35_counted", plot_scaling, "Bytes of AllReduce's busiest link over each scheme's; dashed: one index per row."
    ),
    "zen-baselines": Picture(
        "39_baselines",
        plot_baselines,
        "Bytes of AllReduce's busiest link over each scheme's: one index per element, as the paper charges its "
        "baselines, and one per row, as PyTorch sends embeddings.",
    ),
}
