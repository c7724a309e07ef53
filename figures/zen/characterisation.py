"""What sparse gradients look like: density, overlap, densification, skewness (Zen, section 2.1; figures 1 to 3)."""

from __future__ import annotations

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from artifact import sparse_sync, sweep
from figures import claims, style
from figures.reducers import NAN, selected
from figures.style import Picture
from figures.zen import closed_forms
from figures.zen.panels import Options, powers_of_two, slanted, workload_colors


def gradient_statistics(
    *, names: list[str], num_workers: int, parts: list[int], steps: int, seed: int = 0
) -> pd.DataFrame:
    """Statistics of the gradients of each workload.

    One row per (workload, quantity, x): x is a number of workers for densification, of parts for skewness, a part for
    share_in_eight (the mean over workers), a pair for overlap, nothing for density and the two imbalances.
    """
    shared = {"num_workers": num_workers, "parts": parts, "steps": steps, "seed": seed}
    return sweep.table(_statistics, [{"name": name, **shared} for name in names], description="workloads")


def _statistics(name: str, num_workers: int, parts: list[int], steps: int, seed: int) -> pd.DataFrame:
    label, tensors = sparse_sync.workload_tensors(name, num_workers, steps, seed)
    counts = [1 << i for i in range(num_workers.bit_length())]
    shares = np.mean([closed_forms.part_shares(tensor, 8) for tensor in tensors], axis=0)
    hashed = sparse_sync.partition("hashed", tensors[0].size, num_workers, seed)
    elements = [tensor.elements() for tensor in tensors]
    rows = [
        ("density", 0, closed_forms.mean_density(tensors)),
        *(("overlap", pair, value) for pair, value in enumerate(closed_forms.overlap_ratios(tensors))),
        *(("densification", k, closed_forms.densification_ratio(tensors[:k])) for k in counts),
        *(("skewness", count, closed_forms.skewness_ratio(tensors[0], count)) for count in parts),
        *(("share_in_eight", part, float(share)) for part, share in enumerate(shares)),
        ("push_imbalance", num_workers, sparse_sync.push_imbalance(elements, hashed)),
        ("pull_imbalance", num_workers, sparse_sync.pull_imbalance(elements, hashed)),
    ]
    table = pd.DataFrame(rows, columns=["quantity", "x", "value"])
    table.insert(0, "workload", label)
    return table.assign(units=tensors[0].num_units, width=tensors[0].width, workers=num_workers)


def plot_overlap(table: pd.DataFrame) -> Figure:
    """Left: overlap of two workers' non-zeros (Zen, figure 2a). Right: density of the sum over one worker's (2b)."""
    figure, (left, right) = style.subplots(1, 2, height_in=2.7)
    shared = {"y": "value", "hue": "workload", "palette": workload_colors(table)}
    overlaps, curves = (table[table["quantity"] == quantity] for quantity in ("overlap", "densification"))
    violins: Options = {"cut": 0, "inner": "quart", "density_norm": "width", "linewidth": 0.7}
    sns.violinplot(overlaps, x="workload", **shared, **violins, ax=left)
    style.paper_mark(left, y=claims.paper("zen-fig2a"), label="paper: never below")
    left.set(title="Every pair of workers", xlabel="", ylabel="Overlap of two workers", ylim=(0, None))
    slanted(left, overlaps["workload"].unique())
    sns.lineplot(curves, x="x", **shared, marker="o", markeredgewidth=0, ax=right)
    most = curves["x"].max()
    right.plot([1, most], [1, most], color=style.PAPER_COLOR, linestyle=":", label="no overlap")
    powers_of_two(right, curves["x"])
    right.set(title="The sum over workers", xlabel="Workers", ylabel="Densification ratio")
    right.get_legend().remove()
    handles = [*right.get_legend_handles_labels()[0], *left.get_legend_handles_labels()[0]]
    figure.legend(handles=handles, loc="outside upper center", ncols=5)
    return figure


def plot_skewness(table: pd.DataFrame) -> Figure:
    """Left: non-zeros in each of eight parts, mean of the workers (Zen, figure 3a). Right: density of the densest part
    over the density, one worker (3b)."""
    figure, (left, right) = style.subplots(1, 2, height_in=2.5)
    colors = workload_colors(table)
    shares = table[table["quantity"] == "share_in_eight"].pivot(index="workload", columns="x", values="value")
    shares = 100 * shares.loc[list(colors)].rename(columns=lambda part: part + 1)
    sns.heatmap(shares, annot=True, fmt=".0f", cmap="Blues", vmin=0, vmax=100, annot_kws={"size": 6}, ax=left)
    left.collections[0].colorbar.set_label("Non-zeros (%)")
    left.set(title="Eight parts of the tensor", xlabel="Part of the tensor", ylabel="")
    curves = table[table["quantity"] == "skewness"]
    markers: Options = {"marker": "o", "markeredgewidth": 0, "legend": "full"}
    sns.lineplot(curves, x="x", y="value", hue="workload", palette=colors, **markers, ax=right)
    powers_of_two(right, curves["x"])
    right.set(title="The densest of more parts", xlabel="Parts", ylabel="Skewness ratio", ylim=(0, None))
    right.legend()
    return figure


def densification_within_bounds_pct(table: pd.DataFrame) -> float:
    """Share, in %, of doublings of the workers at which gamma^n grows and stays between 1 and n."""
    rows = selected(table, {"quantity": "densification"})
    curves = rows.pivot(index="x", columns="workload", values="value").sort_index()
    inside = curves.gt(1) & curves.lt(curves.index.to_numpy()[:, None])
    return float(100 * (inside & curves.diff().gt(0)).iloc[1:].to_numpy().mean()) if len(curves) > 1 else NAN


def least_heaviest_eighth_pct(table: pd.DataFrame) -> float:
    """Share of the heaviest of eight parts, in %, on the workload where it is smallest."""
    rows = selected(table, {"quantity": "share_in_eight"})
    return float(100 * rows.groupby("workload")["value"].max().min())


FIGURES = {
    "zen-fig2": Picture("31_characterisation", plot_overlap, interval="violins of all pairs, with quartiles"),
    "zen-fig3": Picture("31_characterisation", plot_skewness),
}
