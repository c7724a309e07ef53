"""Agents under contention: input lengths, capacities, arrivals (notebooks 14 and 15; Marconi, figures 10, 11, 13)."""

from __future__ import annotations

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from artifact import sweep
from artifact.prefix_cache import preset, replay, request_table
from artifact.prefix_cache.simulation import GB, MARCONI, SGLANG
from figures.marconi.latency import ttft_ms
from figures.marconi.replays import Options, compare_all, rate_lines, rates_by, trace_of
from figures.reducers import NAN
from figures.style import SYSTEM_COLORS, Picture, subplots

AGENT = "swe-agent-collapsed"
"""Stands in for the paper's SWE-bench trace, which is not public: its agent drops old observations too."""
ARRIVAL = {"sessions_per_s": "Sessions per second", "response_time_s": "Mean response time (s)"}


def fine_grained(
    *,
    source: str,
    capacities_gb: list[float],
    sessions_per_s: float,
    response_time_s: float,
    limit_sessions: int,
    seed: int = 42,
) -> pd.DataFrame:
    """SGLang+ and Marconi request by request, with each time to first token (figure 10).

    One row per (capacity_gb, system, request). seed: of the response times
    """
    options: Options = {"sessions_per_s": [sessions_per_s], "response_time_s": [response_time_s], "seed": [seed]}
    grid = sweep.grid(source=[source], capacity_gb=capacities_gb, limit_sessions=[limit_sessions], **options)
    return sweep.table(_requests, grid, description="capacities")


def _requests(*, source: str, capacity_gb: float, **options: float) -> pd.DataFrame:
    trace, model = trace_of(source, **options), preset("marconi-7b")
    tables = []
    for system in (SGLANG, MARCONI):
        result = replay(trace, model, system=system, capacity_bytes=round(capacity_gb * GB))
        table = request_table(result, trace)
        table.insert(0, "trace", trace.name)
        table.insert(1, "capacity_gb", float(capacity_gb))
        table["fidelity"] = "corrected"
        table["ttft_ms"] = ttft_ms(table["input_tokens"].to_numpy() - table["hit_tokens"].to_numpy())
        table["flops_saved"] = [float(model.prefill_flops(int(hit))) for hit in result.hit_tokens]
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def contention(
    *,
    agent_source: str,
    systems: list[str],
    capacities_gb: list[float],
    chat_capacities_gb: list[float],
    limit_sessions: int,
    seed: int = 42,
) -> pd.DataFrame:
    """The systems by capacity (figure 11), on an agent's trace and on ShareGPT. One row per (trace, capacity, system).

    capacities_gb: for 100 sessions of the agent; fewer sessions get less in proportion
    seed:          of the agent's response times
    """
    scaled = [limit_sessions / 100 * capacity for capacity in capacities_gb]
    agent: Options = {"source": [agent_source], "limit_sessions": [limit_sessions], "seed": [seed]}
    common: Options = {"systems": [systems], "sessions_per_s": [5]}
    grid = sweep.grid(**agent, **common, capacity_gb=scaled, response_time_s=[10])
    return compare_all(grid + sweep.grid(source=["sharegpt"], **common, capacity_gb=chat_capacities_gb))


def arrival(
    *,
    agent_source: str,
    systems: list[str],
    capacity_gb: float,
    sessions_per_s: list[float],
    response_times_s: list[float],
    limit_sessions: int,
    seed: int = 42,
) -> pd.DataFrame:
    """The systems by rate of sessions and by response time (figure 13). One row per (varied, its value, system).

    capacity_gb: for 100 sessions; fewer get less in proportion
    seed:        of the response times
    """
    common: Options = {"source": [agent_source], "systems": [systems], "limit_sessions": [limit_sessions]}
    common |= {"seed": [seed], "capacity_gb": [limit_sessions / 100 * capacity_gb]}
    rate = compare_all(sweep.grid(**common, sessions_per_s=sessions_per_s, response_time_s=[7.5]))
    response = compare_all(sweep.grid(**common, sessions_per_s=[1], response_time_s=response_times_s))
    tables = [rate.assign(varied="sessions_per_s"), response.assign(varied="response_time_s")]
    return pd.concat(tables, ignore_index=True)


def plot_hit_rate_by_length(table: pd.DataFrame) -> Figure:
    """Hit rate by input length, and the distribution of the time to first token, by capacity (figure 10)."""
    capacities = list(table["capacity_gb"].unique())
    figure, axes = subplots(len(capacities), 2, height_in=2.2 * len(capacities), squeeze=False)
    hue = {"hue": "system", "palette": SYSTEM_COLORS}
    for (by_length, by_time), capacity in zip(axes, capacities, strict=True):
        rows = table[table["capacity_gb"] == capacity]
        middle = (rows["input_tokens"] // 1000) * 1000 + 500
        sums = rows.groupby(["system", middle], sort=False)[["hit_tokens", "input_tokens"]].sum()
        rates = (100 * sums["hit_tokens"] / sums["input_tokens"]).rename("rate_pct").reset_index()
        first = capacity == capacities[0]
        sns.lineplot(rates, x="input_tokens", y="rate_pct", **hue, legend=first, ax=by_length)
        sns.ecdfplot(rows, x="ttft_ms", **hue, legend=False, ax=by_time)
        title = f"{rows['trace'].iloc[0]}, {capacity:g} GB"
        by_length.set(xlabel="Input length (tokens, bins of 1,000)", ylabel="Token hit rate (%)", ylim=(0, 101))
        by_length.set(title=title)
        by_time.set(xlabel="Time to first token (ms)", ylabel="Share of requests", title=title)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    axes[0, 0].get_legend().remove()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels))
    return figure


def plot_contention(table: pd.DataFrame) -> Figure:
    """Token hit rate against the cache's capacity (figure 11)."""
    grid = rate_lines(table, "capacity_gb", col="trace", facet_kws={"sharex": False, "sharey": False})
    grid.set_titles("{col_name}")
    return grid.figure


def plot_arrival(table: pd.DataFrame) -> Figure:
    """Token hit rate against the rate of sessions and the response time (figure 13)."""
    rows = table.assign(value=table["sessions_per_s"].where(table["varied"] == "sessions_per_s"))
    rows["value"] = rows["value"].fillna(rows["response_time_s"])
    panels = {"col": "varied", "row": "trace", "facet_kws": {"sharex": "col"}}
    grid = rate_lines(rows, "value", height_in=0.4 + 2.1 * rows["trace"].nunique(), **panels)
    grid.set_titles("{row_name}")
    for (_, varied), ax in grid.axes_dict.items():
        ax.set_xlabel(ARRIVAL[varied])
    return grid.figure


def _wins_pct(table: pd.DataFrame, index: str) -> pd.Series:
    """Marconi's win over SGLang+ on the agent's trace, in %, by `index`."""
    rates = rates_by(table[table["trace"] == AGENT], index).sort_index()
    return 100 * (rates[MARCONI] / rates[SGLANG] - 1)


def place_of_greatest_win(table: pd.DataFrame) -> float:
    """Where between the least (0) and the greatest (1) capacity the win over SGLang+ is greatest."""
    wins = _wins_pct(table, "capacity_gb")
    return float(np.argmax(wins.to_numpy()) / (len(wins) - 1)) if len(wins) > 1 else NAN


def win_growth_with_rate(table: pd.DataFrame) -> float:
    """The hit rate over SGLang+'s at the highest session rate, relative to that at the lowest."""
    wins = _wins_pct(table[table["varied"] == "sessions_per_s"], "sessions_per_s")
    return float((100 + wins.iloc[-1]) / (100 + wins.iloc[0])) if len(wins) else NAN


FIGURES = {
    "marconi-fig10": Picture(
        "14_fine_grained",
        plot_hit_rate_by_length,
        "Left: token hit rate by input length. Right: share of the requests within a time to first token "
        "(Marconi, figure 10; the paper's is of SWE-bench).",
    ),
    "marconi-fig11": Picture(
        "15_contention",
        plot_contention,
        "Token hit rate against capacity (Marconi, figure 11; the paper's is of SWE-bench).",
    ),
    "marconi-fig13": Picture(
        "15_arrival",
        plot_arrival,
        "Token hit rate against the rate of sessions and against the response time of tools (Marconi, figure 13; the "
        "paper's is of SWE-bench).",
    ),
}
