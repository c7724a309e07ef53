"""Marconi against vLLM+, SGLang+ and no cache on the paper's ShareGPT trace (notebook 13; Marconi, figures 7 to 9)."""

from __future__ import annotations

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from artifact.prefix_cache.simulation import MARCONI, SGLANG, VANILLA, VLLM
from figures import claims
from figures.marconi.replays import COMPARED, PAPER_TRACE, Options, compare_all, grid, panels, rates_by
from figures.style import BLUE, COLUMN_WIDTH_IN, SYSTEM_COLORS, Picture, paper_mark, subplots

FIDELITIES = ["published", "corrected"]
CONFIGURATION = ["sessions_per_s", "capacity_gb"]


def all_configurations(*, source: str, sessions_per_s: list[float], capacities_gb: list[float]) -> pd.DataFrame:
    """Every arrival rate with every capacity, as published and corrected. One row per configuration and system."""
    varied: Options = {"sessions_per_s": sessions_per_s, "capacity_gb": capacities_gb, "fidelity": FIDELITIES}
    return compare_all(grid(source=source, **varied, systems=(VANILLA, *COMPARED)))


def _by_fidelity(table: pd.DataFrame, value: str = "token_hit_rate_pct") -> dict[str, pd.DataFrame]:
    return {fidelity: rates_by(table[table["fidelity"] == fidelity], CONFIGURATION, value) for fidelity in FIDELITIES}


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
    trace, rates = table["trace"].iloc[0], _by_fidelity(table)
    for ax, fidelity in zip(axes, FIDELITIES, strict=True):
        _spread(ax, {system: rates[fidelity][system] for system in COMPARED}, [SYSTEM_COLORS[s] for s in COMPARED])
        ax.set(title=f"{trace}, {fidelity}", ylabel="Token hit rate (%)", ylim=(0, 100))
    _spread(last, {name: rate[MARCONI] / rate[VLLM] for name, rate in rates.items()}, [BLUE, BLUE])
    _mark_paper(last, table, claims.paper("marconi-fig7-sharegpt"), "paper's mean, published")
    last.set(title=trace, ylabel="Marconi over vLLM+ (x)", ylim=(0, None))
    return figure


def plot_win_over_sglang(table: pd.DataFrame) -> Figure:
    """Marconi's token hit rate over SGLang+'s in each configuration (Marconi, figure 8)."""
    figure, ax = subplots(width_in=COLUMN_WIDTH_IN, height_in=2.5)
    wins = {name: 100 * (rate[MARCONI] / rate[SGLANG] - 1) for name, rate in _by_fidelity(table).items()}
    _spread(ax, wins, [BLUE, BLUE])
    _mark_paper(ax, table, claims.paper("marconi-fig8-sharegpt"), "paper's P95, published")
    ax.set(title=table["trace"].iloc[0], ylabel="Marconi's win over SGLang+ (%)")
    return figure


def plot_ttft(table: pd.DataFrame) -> Figure:
    """Distribution over the configurations of the P95 time to first token (Marconi, figure 9). The mark is the paper's
    largest reduction against no cache, reached by one configuration.
    """
    times = pd.concat(_by_fidelity(table, "ttft_p95_ms"), names=["fidelity"])
    relative = 100 * times[list(COMPARED)].div(times[VANILLA], axis=0)
    rows = relative.reset_index().melt(["fidelity", *CONFIGURATION], var_name="system", value_name="relative_pct")
    titles, label = f"{table['trace'].iloc[0]}, {{col_name}}", "P95 time to first token, % of that without a cache"
    options: Options = {"kind": "ecdf", "x": "relative_pct", "hue": "system", "col": "fidelity", "height_in": 2.5}
    drawn = panels(sns.displot, rows, titles, label, "Share of configurations", **options).set(xlim=(0, None))
    best = 100 - claims.paper("marconi-fig9-vanilla")
    _mark_paper(drawn.axes_dict["published"], table, best, "paper: Marconi's best", axis="x")
    return drawn.figure


INTERVAL = "box 25 to 75 %, whiskers 5 to 95 % of the configurations, the dot is their mean"
FIGURES = {
    "marconi-fig7": Picture("13_policies", plot_token_hit_rate, interval=INTERVAL),
    "marconi-fig8": Picture("13_policies", plot_win_over_sglang, interval=INTERVAL),
    "marconi-fig9": Picture("13_policies", plot_ttft),
}
