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
from figures.marconi.replays import BY_SYSTEM, Options, compare_all, compare_by, grid, rate_lines, trace_of
from figures.reducers import NAN
from figures.style import Picture, subplots

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
    options: Options = {"sessions_per_s": sessions_per_s, "response_time_s": response_time_s, "seed": seed}
    configurations = grid(source=source, capacity_gb=capacities_gb, limit_sessions=limit_sessions, **options)
    return sweep.table(_requests, configurations, description="capacities")


def _requests(*, source: str, capacity_gb: float, **options: float) -> pd.DataFrame:
    trace, model, tables = trace_of(source, **options), preset("marconi-7b"), []
    for system in (SGLANG, MARCONI):
        result = replay(trace, model, system=system, capacity_bytes=round(capacity_gb * GB))
        table = request_table(result, trace).assign(trace=trace.name, capacity_gb=float(capacity_gb))
        table = table.assign(fidelity="corrected", ttft_ms=ttft_ms(trace.input_length - result.hit_tokens))
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
    common: Options = {"systems": tuple(systems), "sessions_per_s": 5}
    agent: Options = {"source": agent_source, "limit_sessions": limit_sessions, "seed": seed, "response_time_s": 10}
    chat = grid(source="sharegpt", **common, capacity_gb=chat_capacities_gb)
    return compare_all(grid(**agent, **common, capacity_gb=scaled) + chat)


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
    common: Options = {"source": agent_source, "systems": tuple(systems), "limit_sessions": limit_sessions}
    common |= {"seed": seed, "capacity_gb": limit_sessions / 100 * capacity_gb}
    rates = grid(**common, sessions_per_s=sessions_per_s, response_time_s=7.5)
    times = grid(**common, sessions_per_s=1, response_time_s=response_times_s)
    return compare_by(sessions_per_s=rates, response_time_s=times)


def plot_hit_rate_by_length(table: pd.DataFrame) -> Figure:
    """Left: token hit rate by input length. Right: share of the requests within a time to first token (Marconi, figure
    10; the paper's is of SWE-bench).
    """
    capacities = list(table["capacity_gb"].unique())
    figure, axes = subplots(len(capacities), 2, height_in=2.2 * len(capacities), squeeze=False)
    for (by_length, by_time), (capacity, rows) in zip(axes, table.groupby("capacity_gb", sort=False), strict=True):
        middle = (rows["input_tokens"] // 1000) * 1000 + 500
        sums = rows.groupby(["system", middle], sort=False)[["hit_tokens", "input_tokens"]].sum()
        rates = (100 * sums["hit_tokens"] / sums["input_tokens"]).rename("rate_pct").reset_index()
        sns.lineplot(rates, x="input_tokens", y="rate_pct", **BY_SYSTEM, legend=by_length is axes[0, 0], ax=by_length)
        sns.ecdfplot(rows, x="ttft_ms", **BY_SYSTEM, legend=False, ax=by_time)
        title = f"{rows['trace'].iloc[0]}, {capacity:g} GB"
        by_length.set(xlabel="Input length (tokens, bins of 1,000)", ylabel="Token hit rate (%)", ylim=(0, 101))
        by_length.set(title=title)
        by_time.set(xlabel="Time to first token (ms)", ylabel="Share of requests", title=title)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=table["system"].nunique())
    axes[0, 0].get_legend().remove()
    return figure


def plot_contention(table: pd.DataFrame) -> Figure:
    """Token hit rate against capacity (Marconi, figure 11; the paper's is of SWE-bench)."""
    return rate_lines(table, "{col_name}", col="trace", facet_kws={"sharex": False, "sharey": False}).figure


def plot_arrival(table: pd.DataFrame) -> Figure:
    """Token hit rate against the rate of sessions and against the response time of tools (Marconi, figure 13; the
    paper's is of SWE-bench).
    """
    rows = table.assign(value=table["sessions_per_s"].where(table["varied"] == "sessions_per_s"))
    rows["value"] = rows["value"].fillna(rows["response_time_s"])
    options: Options = {"col": "varied", "row": "trace", "facet_kws": {"sharex": "col"}}
    height_in = 0.4 + 2.1 * rows["trace"].nunique()
    drawn = rate_lines(rows, "{row_name}", x="value", height_in=height_in, **options)
    for (_, varied), ax in drawn.axes_dict.items():
        ax.set_xlabel(ARRIVAL[varied])
    return drawn.figure


def place_of_greatest_win(table: pd.DataFrame) -> float:
    """Where between the least (0) and the greatest (1) capacity the agent's win over SGLang+ is greatest."""
    rates = table[table["trace"] == AGENT].pivot(index="capacity_gb", columns="system", values="token_hit_rate_pct")
    wins = (rates[MARCONI] / rates[SGLANG]).to_numpy()
    return float(np.argmax(wins) / (len(wins) - 1)) if len(wins) > 1 else NAN


FIGURES = {
    "marconi-fig10": Picture("14_fine_grained", plot_hit_rate_by_length),
    "marconi-fig11": Picture("15_contention", plot_contention),
    "marconi-fig13": Picture("15_arrival", plot_arrival),
}
