"""Marconi against vLLM+, SGLang+ and no cache on the paper's ShareGPT trace (notebook 13; Marconi, figures 7 to 9)."""

from __future__ import annotations

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from artifact import sweep
from artifact.prefix_cache.simulation import MARCONI, SGLANG, VANILLA, VLLM
from figures import claims
from figures.marconi.replays import COMPARED, PAPER_TRACE, Options, compare_all, rates_by
from figures.style import BLUE, COLUMN_WIDTH_IN, SYSTEM_COLORS, Picture, facets, paper_mark, subplots

FIDELITIES = ["published", "corrected"]
CONFIGURATION = ["sessions_per_s", "capacity_gb"]


def all_configurations(*, source: str, sessions_per_s: list[float], capacities_gb: list[float]) -> pd.DataFrame:
    """Every arrival rate with every capacity, as published and corrected. One row per configuration and system."""
    systems = [[VANILLA, *COMPARED]]
    grid: Options = {"source": [source], "sessions_per_s": sessions_per_s, "capacity_gb": capacities_gb}
    return compare_all(sweep.grid(**grid, fidelity=FIDELITIES, systems=systems))


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
    """Token hit rate over all configurations, as published and corrected, and Marconi's over vLLM+'s (figure 7)."""
    figure, (*panels, last) = subplots(1, 3, height_in=2.5)
    trace, rates = table["trace"].iloc[0], _by_fidelity(table)
    for ax, fidelity in zip(panels, FIDELITIES, strict=True):
        systems = list(COMPARED)
        _spread(ax, {system: rates[fidelity][system] for system in systems}, [SYSTEM_COLORS[s] for s in systems])
        ax.set(title=f"{trace}, {fidelity}", ylabel="Token hit rate (%)", ylim=(0, 100))
    _spread(last, {name: rate[MARCONI] / rate[VLLM] for name, rate in rates.items()}, [BLUE, BLUE])
    _mark_paper(last, table, claims.paper("marconi-fig7-sharegpt"), "paper's mean, published")
    last.set(title=trace, ylabel="Marconi over vLLM+ (x)", ylim=(0, None))
    return figure


def plot_win_over_sglang(table: pd.DataFrame) -> Figure:
    """Marconi's token hit rate over SGLang+'s, all configurations (figure 8)."""
    figure, ax = subplots(width_in=COLUMN_WIDTH_IN, height_in=2.5)
    wins = {name: 100 * (rate[MARCONI] / rate[SGLANG] - 1) for name, rate in _by_fidelity(table).items()}
    _spread(ax, wins, [BLUE, BLUE])
    _mark_paper(ax, table, claims.paper("marconi-fig8-sharegpt"), "paper's P95, published")
    ax.set(title=table["trace"].iloc[0], ylabel="Marconi's win over SGLang+ (%)")
    return figure


def plot_ttft(table: pd.DataFrame) -> Figure:
    """Distribution over configurations of the P95 time to first token, relative to no cache (figure 9)."""
    times = pd.concat(_by_fidelity(table, "ttft_p95_ms"), names=["fidelity"])
    relative = 100 * times[list(COMPARED)].div(times[VANILLA], axis=0)
    rows = relative.reset_index().melt(["fidelity", *CONFIGURATION], var_name="system", value_name="relative_pct")
    grid = facets(sns.displot, rows, kind="ecdf", x="relative_pct", hue="system", col="fidelity", height_in=2.5)
    grid.set_titles(f"{table['trace'].iloc[0]}, {{col_name}}")
    grid.set_axis_labels("P95 time to first token, % of that without a cache", "Share of configurations")
    grid.set(xlim=(0, None))
    best = 100 - claims.paper("marconi-fig9-vanilla")
    _mark_paper(grid.axes_dict["published"], table, best, "paper: Marconi's best", axis="x")
    return grid.figure


def _p95_ms(table: pd.DataFrame) -> pd.DataFrame:
    rows = table[(table["trace"] == PAPER_TRACE) & (table["fidelity"] == "published")]
    return rates_by(rows, CONFIGURATION, "ttft_p95_ms")


def largest_reduction_pct(p95_ms: pd.DataFrame, against: str) -> float:
    """Largest reduction of the P95 time to first token by Marconi, in points of that without a cache (figure 9).

    p95_ms: a column per system
    """
    return float((100 * (p95_ms[against] - p95_ms[MARCONI]) / p95_ms[VANILLA]).max())


def ttft_reduction_vanilla_ms(table: pd.DataFrame) -> float:
    """Largest reduction of the P95 time to first token against no cache, in ms."""
    times = _p95_ms(table)
    return float((times[VANILLA] - times[MARCONI]).max())


def ttft_reduction_vllm(table: pd.DataFrame) -> float:
    """Largest reduction against vLLM+, in points of the time with no cache."""
    return largest_reduction_pct(_p95_ms(table), VLLM)


def ttft_reduction_sglang(table: pd.DataFrame) -> float:
    """Largest reduction against SGLang+, in points of the time with no cache."""
    return largest_reduction_pct(_p95_ms(table), SGLANG)


FIGURES = {
    "marconi-fig7": Picture(
        "13_policies",
        plot_token_hit_rate,
        "Token hit rate over all configurations of capacity and arrival rate; right, Marconi's over vLLM+'s in each "
        "configuration (Marconi, figure 7).",
        interval="box 25 to 75 %, whiskers 5 to 95 % of the configurations, the dot is their mean",
    ),
    "marconi-fig8": Picture(
        "13_policies",
        plot_win_over_sglang,
        "Marconi's token hit rate over SGLang+'s in each configuration (Marconi, figure 8).",
        interval="box 25 to 75 %, whiskers 5 to 95 % of the configurations, the dot is their mean",
    ),
    "marconi-fig9": Picture(
        "13_policies",
        plot_ttft,
        "Distribution over the configurations of the P95 time to first token (Marconi, figure 9). The mark is the "
        "paper's largest reduction against no cache, reached by one configuration.",
    ),
}
