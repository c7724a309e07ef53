"""The design space, and when which scheme is cheapest (Zen, section 3.1; theorem 1, figure 8)."""

from __future__ import annotations

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from artifact import sparse_sync, sweep
from figures import claims, style
from figures.reducers import NAN
from figures.style import COLUMN_WIDTH_IN, SYSTEM_COLORS, Picture
from figures.zen import closed_forms
from figures.zen.panels import lines, powers_of_two


def scheme_costs(*, workers: list[int], rows: int, tokens_per_worker: int, seed: int = 0) -> pd.DataFrame:
    """Cost over the dense ring's against the number of workers, up to more than can be run (Zen, figure 8).

    Supports are a Zipf embedding's (rows of the width of NMT's table), the costs are the paper's formulas on measured
    density and densification. One row per (workers, system).
    """
    everyone = sparse_sync.zipf_embedding(
        rows=rows, width=1, tokens_per_worker=tokens_per_worker, num_workers=max(workers), seed=seed
    )
    table = []
    for n in workers:
        tensors = everyone[:n]
        d = float(np.mean([closed_forms.density(tensor) for tensor in tensors]))
        gammas = [closed_forms.densification_ratio(everyone[: 1 << i]) for i in range((n - 1).bit_length())]
        gamma = closed_forms.densification_ratio(tensors)
        # A block of 256 elements is half of a row of 512 columns: blocks are as dense as rows.
        costs = {
            "AllReduce": closed_forms.dense_ring(1, n),
            "AGsparse": closed_forms.all_gather(1, d, n),
            "SparCML": closed_forms.hierarchical_centralization(1, d, gammas),
            "OmniReduce": closed_forms.omnireduce(1, d, gamma, n) * closed_forms.skewness_ratio(tensors[0], n),
            "Balanced Parallelism": closed_forms.balanced_parallelism(1, d, gamma, n),
            "Zen": closed_forms.zen(1, d, gamma, n),
        }
        shared = {"workers": n, "density": d, "densification": gamma}
        table += [
            {**shared, "system": system, "cost_over_ring": cost / costs["AllReduce"]} for system, cost in costs.items()
        ]
    return pd.DataFrame(table)


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

    One row per (workers, overlap, density), overlap >= density: cheapest, chosen, published, and how much more than the
    cheapest they cost.
    """
    grid = sweep.grid(
        num_workers=workers, overlap=overlaps, density=densities, size=[size], seed=[seed], candidates=[candidates]
    )
    possible = [case for case in grid if case["overlap"] >= case["density"]]
    return sweep.table(_selected, possible, description="selector")


def _selected(
    *, num_workers: int, overlap: float, density: float, size: int, seed: int, candidates: list[str]
) -> pd.DataFrame:
    from artifact.sparse_sync.workloads import uniform

    tensors = uniform(size=size, density=density, overlap=overlap, num_workers=num_workers, seed=seed)
    bytes_of = {name: sparse_sync.traffic_of(name, tensors, seed).busiest_bytes for name in candidates}
    statistics = sparse_sync.measure_statistics(tensors, seed)
    cheapest = min(bytes_of, key=lambda name: bytes_of[name])
    chosen = sparse_sync.choose_scheme(statistics, candidates=candidates)
    published = closed_forms.published_choice(statistics)
    row = {
        "workers": num_workers,
        "overlap": overlap,
        "density": density,
        "cheapest": cheapest,
        "chosen": chosen,
        "published": published,
        "chosen_over_cheapest": bytes_of[chosen] / bytes_of[cheapest],
        "published_over_cheapest": bytes_of[published] / bytes_of[cheapest],
        "zen_over_sparcml": bytes_of["zen"] / bytes_of["sparcml"],
    }
    return pd.DataFrame([row])


def plot_design_space(table: pd.DataFrame) -> Figure:
    """Cost over AllReduce's against workers (Zen, figure 8)."""
    grid = lines(table, "workers", "cost_over_ring", height_in=2.6)
    grid.set(title="Zipf supports", xlabel="Workers", ylabel="Cost over AllReduce's", ylim=(0, 2))
    return grid.figure


def plot_break_even(table: pd.DataFrame) -> Figure:
    """Overlap above which Balanced Parallelism beats Hierarchical Centralization (Zen, theorem 1)."""
    figure, ax = style.subplots(width_in=COLUMN_WIDTH_IN, height_in=2.3)
    sns.lineplot(
        table,
        x="workers",
        y="overlap",
        marker="o",
        markeredgewidth=0,
        color=SYSTEM_COLORS["Balanced Parallelism"],
        ax=ax,
    )
    style.paper_mark(ax, y=claims.paper("zen-fig2a"), label="least overlap seen in the paper")
    powers_of_two(ax, table["workers"])
    ax.set(title="Independent supports", xlabel="Workers", ylabel="Break-even overlap", yscale="log")
    ax.legend()
    return figure


def plot_selector(table: pd.DataFrame) -> Figure:
    """What a wrong choice costs at worst: the published rule and the selector, over workers and density."""
    figure, axes = style.subplots(1, 2, height_in=2.5, sharey=True)
    columns = {"published_over_cheapest": "Published rule", "chosen_over_cheapest": "Selector on true bytes"}
    most = table[list(columns)].max().max()
    for ax, (column, title) in zip(axes, columns.items(), strict=True):
        worst = table.pivot_table(index="density", columns="workers", values=column, aggfunc="max")
        sns.heatmap(worst, annot=True, fmt=".2f", cmap="Blues", vmin=1, vmax=most, cbar=False, ax=ax)
        ax.set(title=title, xlabel="Workers", ylabel="")
    axes[0].set_ylabel("Density")
    figure.suptitle("Generated supports: cost over the cheapest scheme's, at the worst overlap", fontsize=8)
    return figure


def cheaper_than_ring_at_128(table: pd.DataFrame) -> float:
    """How many of the earlier sparse schemes beat AllReduce on 128 workers."""
    rows = table[(table["workers"] == 128) & table["system"].isin(["AGsparse", "SparCML", "OmniReduce"])]
    return float((rows["cost_over_ring"] < 1).sum()) if len(rows) else NAN


def selector_right_pct(table: pd.DataFrame) -> float:
    """Cases, in %, in which the selector picks the cheapest by counting."""
    return float(100 * (table["chosen"] == table["cheapest"]).mean())


def published_rule_right_pct(table: pd.DataFrame) -> float:
    """Cases, in %, in which equations 1 and 2 pick the cheaper of Zen as built and SparCML."""
    return float(100 * ((table["published"] == "zen") == (table["zen_over_sparcml"] < 1)).mean())


FIGURES = {
    "zen-fig8": Picture(
        "32_design_space",
        plot_design_space,
        "Cost over AllReduce's by the paper's formulas, on supports that Zipf's law gives (Zen, figure 8).",
    ),
    "zen-break-even": Picture(
        "32_break_even",
        plot_break_even,
        "Overlap above which Balanced Parallelism is cheaper than Hierarchical Centralization (Zen, theorem 1).",
    ),
    "zen-selector": Picture(
        "32_selector",
        plot_selector,
        "Bytes of the chosen scheme over those of the cheapest, at the overlap where this is most. Generated supports.",
    ),
}
