"""Traces served by a real model from its cache: time, tiers, checkpoint placement, measured (notebooks 41 to 43)."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from artifact.prefix_cache.simulation import MARCONI, SGLANG, VANILLA, VLLM
from figures.marconi.policies import largest_reduction_pct
from figures.marconi.real_states import model_of
from figures.marconi.replays import limit, trace_of
from figures.style import SYSTEM_COLORS, YELLOW, Picture, subplots

if TYPE_CHECKING:
    from artifact.prefix_cache import RequestTrace
    from artifact.prefix_cache.serving.trace_server import System

MB = 10**6


def ttft(
    *,
    source: str,
    model: str,
    requests: int,
    capacities_mb: list[float],
    limit_sessions: int,
    systems: list[str] | tuple[str, ...] = (VLLM, SGLANG, MARCONI),
    seed: int = 0,
) -> pd.DataFrame:
    """A trace served by every system in turn, request by request, on one model (the real counterpart of figure 9).

    One row per (capacity_mb, system, request), Vanilla among the systems; `simulated_hit_tokens` is what the simulator
    says of the same trace at the same costs. seed: of the model's weights
    """
    from artifact.prefix_cache.serving.trace_server import System, serve

    trace, real = _trace(source, requests, limit_sessions), model_of(model, seed=seed)
    tables = []
    for capacity_mb in capacities_mb:
        chosen = {label: System(label, round(capacity_mb * MB)) for label in systems}
        table = serve(trace, {label: system.engine(real) for label, system in chosen.items()})
        table["simulated_hit_tokens"] = 0
        for label, system in chosen.items():
            table.loc[table["system"] == label, "simulated_hit_tokens"] = system.simulated_hits(trace, real)
        table.insert(1, "model", model)
        table.insert(2, "capacity_mb", float(capacity_mb))
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def _trace(source: str, requests: int, limit_sessions: int) -> RequestTrace:
    """The first requests of a trace; synthetic ones are taken whole."""
    return trace_of(source, **({} if source.startswith("synthetic") else limit(source, limit_sessions))).head(requests)


def _served(trace: RequestTrace, model: str, seed: int, system: System, **dimensions: Any) -> dict[str, Any]:
    """One run: the row of its sums."""
    from artifact.prefix_cache.serving.trace_server import serve, summary

    real = model_of(model, seed=seed)
    engine = system.engine(real)
    table = serve(trace, {system.label: engine})
    sums = summary(table, system.label, engine, system.simulated_hits(trace, real))
    row = {"trace": trace.name, "model": model, "capacity_mb": system.capacity_bytes / MB, **dimensions}
    row |= {name: value for name, value in sums.items() if name not in ("scan", "resumed", "held_bytes")}
    del row["logit_tolerance"]
    return {**row, "checkpoints": engine.cache.index.num_checkpoints}


def tiers(
    *,
    source: str,
    model: str,
    requests: int,
    capacity_mb: float,
    host_capacities_mb: list[float],
    limit_sessions: int,
    seed: int = 0,
) -> pd.DataFrame:
    """A trace served with second tiers of several capacities (0: none). One row per (system, host_capacity_mb)."""
    from artifact.prefix_cache.serving.trace_server import System

    trace, rows = _trace(source, requests, limit_sessions), []
    for label in (SGLANG, MARCONI):
        for host_mb in host_capacities_mb:
            system = System(label, round(capacity_mb * MB), round(host_mb * MB) or None)
            rows.append(_served(trace, model, seed, system, host_capacity_mb=float(host_mb)))
    return pd.DataFrame(rows).drop(columns="checkpoints")


def restart(
    *,
    source: str,
    model: str,
    requests: int,
    capacity_mb: float,
    host_capacity_mb: float,
    limit_sessions: int,
    seed: int = 0,
) -> pd.DataFrame:
    """The second half of a trace after a restart in its middle: none, with a saved cache, with an empty one.

    One row each: hits of the second half, seconds to save and to load, bytes of the file.
    """
    from artifact.prefix_cache.serving.trace_server import System, serve

    trace, real = _trace(source, requests, limit_sessions), model_of(model, seed=seed)
    half = len(trace) // 2
    first, second = trace.head(half), trace.select(np.arange(half, len(trace)))
    system = System(MARCONI, round(capacity_mb * MB), round(host_capacity_mb * MB))
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "cache.safetensors"
        engine, loaded = system.engine(real), system.engine(real)
        serve(first, {system.label: engine})
        engine.save(file)
        loaded.load(file)
        for name, cache in (("no restart", engine), ("saved cache", loaded), ("empty cache", system.engine(real))):
            table = serve(second, {system.label: cache})
            served = table[table["system"] == system.label]
            rows.append(
                {
                    "trace": trace.name,
                    "restart": name,
                    "requests": len(second),
                    "hit_tokens": int(served["hit_tokens"].sum()),
                    "first_hit_tokens": int(served["hit_tokens"].head(10).sum()),
                    "ttft_ms_p50": float(served["ttft_ms"].median()),
                    "logit_difference": float(served["logit_difference"].max()),
                    "file_mb": file.stat().st_size / MB,
                }
            )
    return pd.DataFrame(rows)


def placements(
    *,
    workloads: dict[str, list[float]],
    model: str,
    requests: int,
    placements: list[str],
    limit_sessions: int,
    seed: int = 0,
) -> pd.DataFrame:
    """Traces served with checkpoints in several placements. One row per (trace, capacity_mb, placement).

    workloads: capacities in MB of each trace
    """
    from artifact.prefix_cache import parse_checkpoint_policy
    from artifact.prefix_cache.serving.trace_server import System

    rows = []
    for source, capacities_mb in workloads.items():
        trace = _trace(source, requests, limit_sessions)
        for capacity_mb in capacities_mb:
            for placement in placements:
                policy = parse_checkpoint_policy(placement)
                system = System(MARCONI, round(capacity_mb * MB), checkpoints=policy)
                rows.append(_served(trace, model, seed, system, placement=placement))
    return pd.DataFrame(rows)


def plot_served_ttft(table: pd.DataFrame) -> Figure:
    """Left, the share of requests within a time to first token at the middle capacity; right, P95 by capacity."""
    capacities = sorted(table["capacity_mb"].unique())
    shown = capacities[len(capacities) // 2]
    trace, model = table["trace"].iloc[0], table["model"].iloc[0]
    figure, (left, right) = subplots(1, 2, height_in=2.5)
    hue = {"hue": "system", "palette": SYSTEM_COLORS}
    sns.ecdfplot(table[table["capacity_mb"] == shown], x="ttft_ms", **hue, ax=left)
    left.set(xscale="log", xlabel="TTFT (ms)", ylabel="Share of requests", title=f"{trace}, {model}, {shown:g} MB")
    p95 = _p95_ms(table)
    ratio = 100 * p95.div(p95[VANILLA], axis=0)
    rows = ratio.melt(ignore_index=False, var_name="system", value_name="ratio_pct").reset_index()
    sns.lineplot(rows, x="capacity_mb", y="ratio_pct", **hue, marker="o", markeredgewidth=0, legend=False, ax=right)
    right.set(xlabel="Capacity (MB)", ylabel="P95 TTFT over that\nwithout a cache (%)", ylim=(0, None))
    right.set(title=f"{trace}, {model}")
    sns.move_legend(left, "lower right", title=None)
    return figure


def plot_tiers(table: pd.DataFrame) -> Figure:
    """Hit rate by tier, and median time to first token, against the second tier's capacity."""
    systems = list(table["system"].unique())
    figure, axes = subplots(1, len(systems) + 1, height_in=2.5)
    rows = table.assign(host_mb=table["host_capacity_mb"].map("{:g}".format))
    rows["second"] = 100 * rows["from_host_tokens"] / rows["input_tokens"]
    rows["first"] = 100 * rows["token_hit_rate"] - rows["second"]
    shares = rows.melt(["system", "host_mb"], ["second", "first"], var_name="tier", value_name="rate_pct")
    stacked = {"multiple": "stack", "discrete": True, "shrink": 0.6, "alpha": 1, "linewidth": 0}
    for ax, system in zip(axes, systems, strict=False):
        colors = {"first": SYSTEM_COLORS[system], "second": YELLOW}
        bars = {"x": "host_mb", "weights": "rate_pct", "hue": "tier", "hue_order": ["second", "first"]}
        sns.histplot(shares[shares["system"] == system], **bars, **stacked, palette=colors, ax=ax)
        ax.set(ylabel="Token hit rate (%)", ylim=(0, 100))
        sns.move_legend(ax, "upper center", bbox_to_anchor=(0.5, -0.22), title="tier", ncols=2)
    options = {"hue": "system", "palette": SYSTEM_COLORS, "marker": "o", "markeredgewidth": 0}
    sns.lineplot(rows, x="host_mb", y="ttft_ms_p50", **options, ax=axes[-1])
    axes[-1].set(ylabel="Median TTFT (ms)", ylim=(0, None))
    axes[-1].legend(title=None)
    for ax, name in zip(axes, [*systems, None], strict=True):
        ax.set(xlabel="Second tier (MB)", title=", ".join(filter(None, (table["trace"].iloc[0], name))))
    return figure


def plot_placements(table: pd.DataFrame) -> Figure:
    """Hit rate, checkpoints held and median time to first token of each placement; a row of panels per trace."""
    measures = {"token_hit_rate": "Token hit rate (%)", "checkpoints": "Checkpoints at the end"}
    measures |= {"ttft_ms_p50": "Median TTFT (ms)"}
    rows = table.assign(token_hit_rate=100 * table["token_hit_rate"], capacity=table["capacity_mb"].map("{:g}".format))
    rows = rows.melt(["trace", "capacity", "placement"], list(measures), var_name="measure", value_name="value")
    traces = list(rows["trace"].unique())
    palette = sns.color_palette("light:#555555", rows["placement"].nunique() + 1)[1:]  # no system's colour
    figure, axes = subplots(len(traces), len(measures), height_in=0.4 + 2.0 * len(traces), squeeze=False)
    for trace, panels in zip(traces, axes, strict=True):
        for ax, (measure, label) in zip(panels, measures.items(), strict=True):
            shown = rows[(rows["trace"] == trace) & (rows["measure"] == measure)]
            options = {"hue": "placement", "palette": palette, "saturation": 1, "legend": ax is axes[0, 0]}
            sns.barplot(shown, x="capacity", y="value", **options, ax=ax)
            ax.set(title=trace, xlabel="Capacity (MB)", ylabel=label)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    axes[0, 0].get_legend().remove()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels))
    return figure


def _p95_ms(table: pd.DataFrame) -> pd.DataFrame:
    """P95 of the time to first token, a row per capacity and a column per system; NaN for absent systems."""
    p95 = table.groupby(["system", "capacity_mb"], sort=False)["ttft_ms"].quantile(0.95).unstack("system")
    return p95.reindex(columns=list(dict.fromkeys((*p95.columns, VANILLA, VLLM, SGLANG, MARCONI))))


def served_reduction_vanilla(table: pd.DataFrame) -> float:
    """Largest reduction of P95 TTFT against no cache over the capacities, in points of that without a cache."""
    return largest_reduction_pct(_p95_ms(table), VANILLA)


def served_reduction_vllm(table: pd.DataFrame) -> float:
    """Largest reduction against vLLM+."""
    return largest_reduction_pct(_p95_ms(table), VLLM)


def served_reduction_sglang(table: pd.DataFrame) -> float:
    """Largest reduction against SGLang+."""
    return largest_reduction_pct(_p95_ms(table), SGLANG)


def hits_unlike_simulated(table: pd.DataFrame) -> float:
    """Requests, of all systems and capacities, whose served hits are not the simulated ones."""
    cached = table[table["system"] != VANILLA]
    return float((cached["hit_tokens"] != cached["simulated_hit_tokens"]).sum())


def tier_gain(table: pd.DataFrame) -> float:
    """Marconi's hit tokens with the largest second tier over those without one."""
    rows = table[table["system"] == MARCONI].sort_values("host_capacity_mb")
    return float(rows["hit_tokens"].iloc[-1] / rows["hit_tokens"].iloc[0])


def end_share_of_branch_pct(table: pd.DataFrame) -> float:
    """Hit tokens with checkpoints at ends alone, in % of those at branch points too; least of traces and capacities.

    Without a hit, one token counts.
    """
    hits = table.pivot(index=["trace", "capacity_mb"], columns="placement", values="hit_tokens").clip(lower=1)
    return float((100 * hits["end"] / hits["branch"]).min())


FIGURES = {
    "marconi-served-ttft": Picture(
        "41_ttft",
        plot_served_ttft,
        "Measured time to first token. Left: share of the requests within a time, at the middle capacity. Right: P95 "
        "against capacity, over that without a cache (the measured counterpart of Marconi, figure 9).",
    ),
    "marconi-tiers": Picture(
        "42_tiers",
        plot_tiers,
        "Token hit rate by the tier that held the tokens, and the median time to first token, against the second "
        "tier's capacity.",
    ),
    "marconi-placements": Picture(
        "43_placements",
        plot_placements,
        "Checkpoints at ends alone, at branch points too, at chunk ends, and after every N tokens: hit rate, "
        "checkpoints held at the end, and measured time to first token.",
    ),
}
