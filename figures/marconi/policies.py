"""Marconi against the other systems, as published and corrected (notebooks 13 and 17; Marconi, figures 7 to 9)."""

from __future__ import annotations

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from artifact.prefix_cache.index.fidelity import CORRECTIONS
from artifact.prefix_cache.simulation import MARCONI, SGLANG, VANILLA, VLLM
from figures import claims
from figures.marconi.replays import COMPARED, PAPER_TRACE, Options, compare_all, grid, panels
from figures.style import BLUE, COLUMN_WIDTH_IN, SYSTEM_COLORS, Picture, paper_mark, subplots

FIDELITIES = ["published", "corrected"]
CONFIGURATION = ["sessions_per_s", "capacity_gb"]
MEANINGS = {
    "B1": "eviction counts the victim's bytes",
    "B2": "an MLP's saving is the MLP's",
    "B3": "efficiency is per byte freed",
    "B4": "the matched path is pinned",
    "B5": "oversized sequences are not cached",
    "B6": "a hit is a prefix",
    "B7": "the tuner is guarded",
    "B8": "merged nodes are dropped",
}
"""What is right after each correction."""
PANELS = {"change": "Token hit rate against none (points)", "over_gb": "Peak bytes over capacity (GB)"}


def all_configurations(*, source: str, sessions_per_s: list[float], capacities_gb: list[float]) -> pd.DataFrame:
    """Every arrival rate with every capacity, as published and corrected. One row per configuration and system."""
    varied: Options = {"sessions_per_s": sessions_per_s, "capacity_gb": capacities_gb, "fidelity": FIDELITIES}
    return compare_all(grid(source=source, **varied, systems=(VANILLA, *COMPARED)))


def labels() -> dict[str, str]:
    """The fidelities of the ablation with what each stands for: none, each alone, all but each, all."""
    alone = {f"published+{name}": f"{name} alone" for name in CORRECTIONS}
    without = {f"corrected-{name}": f"all but {name}" for name in CORRECTIONS}
    return {"published": "none (as published)", **alone, **without, "corrected": "all"}


def corrections(*, source: str, sessions_per_s: list[float], capacities_gb: list[float]) -> pd.DataFrame:
    """The systems with each correction alone and all but each. One row per (correction, configuration, system)."""
    varied: Options = {"sessions_per_s": sessions_per_s, "capacity_gb": capacities_gb, "fidelity": list(labels())}
    table = compare_all(grid(source=source, **varied, systems=COMPARED))
    return table.assign(correction=table["fidelity"].map(labels()))


def static_alphas(*, source: str, capacity_gb: float, alphas: list[float], fidelities: list[str]) -> pd.DataFrame:
    """Marconi with fixed alphas. One row per (fidelity, alpha)."""
    varied: Options = {"fidelity": fidelities, "alpha": alphas}
    return compare_all(grid(source=source, capacity_gb=capacity_gb, systems=(MARCONI,), **varied))


def _by_system(table: pd.DataFrame, value: str) -> pd.DataFrame:
    return table.pivot(index=["fidelity", *CONFIGURATION], columns="system", values=value)


def _mark_paper(ax: Axes, table: pd.DataFrame, value: float, label: str, axis: str = "y") -> None:
    """The paper's value, where the trace is the paper's."""
    if (table["trace"] == PAPER_TRACE).all():
        paper_mark(ax, **{axis: value}, label=label)
        ax.legend()


def _spread(ax: Axes, groups: dict[str, pd.Series], colors: list[str]) -> None:
    """Box of 25 to 75 %, whiskers at 5 and 95 %, mean as a dot, as in the paper (percentiles interpolated)."""
    stats = []
    for label, values in groups.items():
        low, first, median, third, high = np.percentile(values, [5, 25, 50, 75, 95])
        box = {"label": label, "whislo": low, "q1": first, "med": median, "q3": third, "whishi": high}
        stats.append({**box, "mean": values.mean(), "fliers": []})
    mean = {"marker": "o", "markerfacecolor": "white", "markeredgecolor": "black", "markersize": 3}
    options: Options = {"meanprops": mean, "medianprops": {"color": "black"}, "widths": 0.5}
    boxes = ax.bxp(stats, showfliers=False, showmeans=True, patch_artist=True, **options)
    for patch, color in zip(boxes["boxes"], colors, strict=True):
        patch.set(facecolor=color, alpha=0.6)


def plot_token_hit_rate(table: pd.DataFrame) -> Figure:
    """Token hit rate over all configurations of capacity and arrival rate; right, Marconi's over vLLM+'s in each
    configuration (Marconi, figure 7).
    """
    figure, (*axes, last) = subplots(1, 3, height_in=2.5)
    trace, rates = table["trace"].iloc[0], _by_system(table, "token_hit_rate_pct")
    for ax, fidelity in zip(axes, FIDELITIES, strict=True):
        _spread(ax, {system: rates[system][fidelity] for system in COMPARED}, [SYSTEM_COLORS[s] for s in COMPARED])
        ax.set(title=f"{trace}, {fidelity}", ylabel="Token hit rate (%)", ylim=(0, 100))
    gains = rates[MARCONI] / rates[VLLM]
    _spread(last, {name: gains[name] for name in FIDELITIES}, [BLUE, BLUE])
    _mark_paper(last, table, claims.paper("marconi-fig7-sharegpt"), "paper's mean, published")
    last.set(title=trace, ylabel="Marconi over vLLM+ (x)", ylim=(0, None))
    return figure


def plot_win_over_sglang(table: pd.DataFrame) -> Figure:
    """Marconi's token hit rate over SGLang+'s in each configuration (Marconi, figure 8)."""
    figure, ax = subplots(width_in=COLUMN_WIDTH_IN, height_in=2.5)
    rates = _by_system(table, "token_hit_rate_pct")
    wins = 100 * (rates[MARCONI] / rates[SGLANG] - 1)
    _spread(ax, {name: wins[name] for name in FIDELITIES}, [BLUE, BLUE])
    _mark_paper(ax, table, claims.paper("marconi-fig8-sharegpt"), "paper's P95, published")
    ax.set(title=table["trace"].iloc[0], ylabel="Marconi's win over SGLang+ (%)")
    return figure


def plot_ttft(table: pd.DataFrame) -> Figure:
    """Distribution over the configurations of the P95 time to first token (Marconi, figure 9). The mark is the paper's
    largest reduction against no cache, reached by one configuration.
    """
    times = _by_system(table, "ttft_p95_ms")
    relative = 100 * times[list(COMPARED)].div(times[VANILLA], axis=0).loc[FIDELITIES]
    rows = relative.reset_index().melt(["fidelity", *CONFIGURATION], var_name="system", value_name="relative_pct")
    titles, label = f"{table['trace'].iloc[0]}, {{col_name}}", "P95 time to first token, % of that without a cache"
    options: Options = {"kind": "ecdf", "x": "relative_pct", "hue": "system", "col": "fidelity", "height_in": 2.5}
    drawn = panels(sns.displot, rows, titles, label, "Share of configurations", **options).set(xlim=(0, None))
    best = 100 - claims.paper("marconi-fig9-vanilla")
    _mark_paper(drawn.axes_dict["published"], table, best, "paper: Marconi's best", axis="x")
    return drawn.figure


def plot_corrections(table: pd.DataFrame) -> Figure:
    """What each correction of the published simulator changes, alone and by its absence."""
    index = ["system", *CONFIGURATION]
    published = table[table["fidelity"] == "published"].set_index(index)["token_hit_rate_pct"]
    values = table.join(published.rename("published_pct"), on=index)
    values["change"] = values["token_hit_rate_pct"] - values["published_pct"]
    values["over_gb"] = (values["peak_gb"] - values["capacity_gb"]).clip(lower=0)
    meanings = {f"{name} alone": f"{name} alone: {meaning}" for name, meaning in MEANINGS.items()}
    values["correction"] = values["correction"].replace(meanings)
    rows = values.melt(["system", "correction"], list(PANELS), var_name="panel")
    options: Options = {"x": "value", "y": "correction", "hue": "system", "col": "panel", "sharex": False}
    options |= {"kind": "point", "dodge": 0.45, "linestyle": "none", "markersize": 3.5, "height_in": 4.2}
    options |= {"errorbar": ("pi", 100), "err_kws": {"linewidth": 0.9}}
    drawn = panels(sns.catplot, rows, table["trace"].iloc[0], "", "", **options)
    for panel, ax in drawn.axes_dict.items():
        ax.set_xlabel(PANELS[panel])
    return drawn.figure


INTERVAL = "box 25 to 75 %, whiskers 5 to 95 % of the configurations, the dot is their mean"
RANGE = "dots are means over the configurations, lines their full range"
FIGURES = {
    "marconi-fig7": Picture("13_policies", plot_token_hit_rate, interval=INTERVAL),
    "marconi-fig8": Picture("13_policies", plot_win_over_sglang, interval=INTERVAL),
    "marconi-fig9": Picture("13_policies", plot_ttft),
    "marconi-corrections": Picture("17_corrections", plot_corrections, interval=RANGE),
}
