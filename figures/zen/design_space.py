"""The design space, and when which scheme is cheapest (Zen, section 3.1; theorem 1, figure 8)."""

from __future__ import annotations

from typing import Any

import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from artifact import sparse_sync, sweep
from figures import claims, style
from figures.style import COLUMN_WIDTH_IN, SYSTEM_COLORS, Picture
from figures.zen import closed_forms
from figures.zen.panels import heatmaps, lines, powers_of_two


def scheme_costs(*, workers: list[int], rows: int, tokens_per_worker: int, seed: int = 0) -> pd.DataFrame:
    """Cost over the dense ring's against the number of workers, up to more than can be run (Zen, figure 8).

    Supports are a Zipf embedding's (rows of the width of NMT's table), the costs are the paper's formulas on measured
    density and densification. One row per (workers, system).
    """
    zipf = {"rows": rows, "width": 1, "tokens_per_worker": tokens_per_worker, "num_workers": max(workers), "seed": seed}
    everyone = sparse_sync.zipf_embedding(**zipf)
    tables = []
    for n in workers:
        tensors = everyone[:n]
        d, gamma = closed_forms.mean_density(tensors), closed_forms.densification_ratio(tensors)
        gammas = [closed_forms.densification_ratio(everyone[: 1 << i]) for i in range((n - 1).bit_length())]
        # A block of 256 elements is half of a row of 512 columns: blocks are as dense as rows.
        costs = pd.Series(closed_forms.costs(n, d, gamma, gammas), name="cost_over_ring")
        costs["OmniReduce"] *= closed_forms.skewness_ratio(tensors[0], n)
        table = (costs / costs["AllReduce"]).rename_axis("system").reset_index()
        tables.append(table.assign(workers=n, density=d, densification=gamma))
    return pd.concat(tables, ignore_index=True)


def break_even(*, workers: list[int]) -> pd.DataFrame:
    """Overlap above which Balanced Parallelism beats Hierarchical Centralization, by equations 1 and 2 (theorem 1)."""
    return pd.DataFrame([{"workers": n, "overlap": closed_forms.break_even_overlap(n)} for n in workers])


def selector_map(
    *,
    workers: list[int],
    overlaps: list[float],
    densities: list[float],
    size: int,
    candidates: list[str],
    seed: int = 0,
) -> pd.DataFrame:
    """Every candidate counted over a grid of supports, against what the selector and the published rule choose.

    One row per (workers, overlap, density), overlap >= density: names, and costs over the cheapest's.
    """
    shared = {"size": size, "seed": seed, "candidates": candidates}
    grid = sweep.grid(workers=workers, overlap=overlaps, density=densities)
    possible = [{"case": case, **shared} for case in grid if case["overlap"] >= case["density"]]
    return sweep.table(_selected, possible, description="selector")


def _selected(case: dict[str, Any], size: int, seed: int, candidates: list[str]) -> pd.DataFrame:
    from artifact.sparse_sync.workloads import uniform

    n, overlap, density = case.values()
    tensors = uniform(size=size, density=density, overlap=overlap, num_workers=n, seed=seed)
    bytes_of = {name: sparse_sync.traffic_of(name, tensors, seed).busiest_bytes for name in candidates}
    statistics = sparse_sync.measure_statistics(tensors, seed)
    cheapest = min(bytes_of, key=lambda name: bytes_of[name])
    chosen = sparse_sync.choose_scheme(statistics, candidates=candidates)
    published = closed_forms.published_choice(statistics)
    row = {**case, "cheapest": cheapest, "chosen": chosen, "published": published}
    row["chosen_over_cheapest"] = bytes_of[chosen] / bytes_of[cheapest]
    row["published_over_cheapest"] = bytes_of[published] / bytes_of[cheapest]
    return pd.DataFrame([{**row, "zen_over_sparcml": bytes_of["zen"] / bytes_of["sparcml"]}])


def plot_design_space(table: pd.DataFrame) -> Figure:
    """Cost over AllReduce's by the paper's formulas, on supports that Zipf's law gives (Zen, figure 8)."""
    grid = lines(table, "workers", "cost_over_ring", height_in=2.6)
    grid.set(title="Zipf supports", xlabel="Workers", ylabel="Cost over AllReduce's", ylim=(0, 2))
    return grid.figure


def plot_break_even(table: pd.DataFrame) -> Figure:
    """Overlap above which Balanced Parallelism is cheaper than Hierarchical Centralization (Zen, theorem 1)."""
    figure, ax = style.subplots(width_in=COLUMN_WIDTH_IN, height_in=2.3)
    color = SYSTEM_COLORS["Balanced Parallelism"]
    sns.lineplot(table, x="workers", y="overlap", marker="o", markeredgewidth=0, color=color, ax=ax)
    style.paper_mark(ax, y=claims.paper("zen-fig2a"), label="least overlap seen in the paper")
    powers_of_two(ax, table["workers"])
    ax.set(title="Independent supports", xlabel="Workers", ylabel="Break-even overlap", yscale="log")
    ax.legend()
    return figure


def plot_selector(table: pd.DataFrame) -> Figure:
    """Bytes of the chosen scheme over those of the cheapest, at the overlap where this is most. Generated supports."""
    columns = {"Published rule": "published_over_cheapest", "Selector on true bytes": "chosen_over_cheapest"}
    worst = table.groupby(["density", "workers"])[[*columns.values()]].max()
    panels = {title: worst[column].unstack() for title, column in columns.items()}
    title = "Generated supports: cost over the cheapest scheme's, at the worst overlap"
    figure = heatmaps(panels, title, height_in=2.5, fmt=".2f", vmin=1, vmax=worst.max(axis=None))
    for ax, label in zip(figure.axes, ("Density", ""), strict=True):
        ax.set(xlabel="Workers", ylabel=label)
    return figure


def published_rule_right_pct(table: pd.DataFrame) -> float:
    """Cases, in %, in which equations 1 and 2 pick the cheaper of Zen as built and SparCML."""
    return float(100 * ((table["published"] == "zen") == (table["zen_over_sparcml"] < 1)).mean())


FIGURES = {
    "zen-fig8": Picture("32_design_space", plot_design_space),
    "zen-break-even": Picture("32_break_even", plot_break_even),
    "zen-selector": Picture("32_selector", plot_selector),
}
