"""Traces served by a real model from its cache: time, tiers, checkpoint placement, measured (notebooks 41 to 43)."""

from __future__ import annotations

import tempfile
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from artifact.prefix_cache import parse_checkpoint_policy
from artifact.prefix_cache.simulation import MARCONI, SGLANG, VANILLA, VLLM
from figures.marconi.real_states import MB, model_of, system_of
from figures.marconi.replays import BY_SYSTEM, STACKED, Options, limit, panels, trace_of
from figures.style import SYSTEM_COLORS, YELLOW, Picture, subplots

if TYPE_CHECKING:
    from artifact.prefix_cache import RequestTrace
    from artifact.prefix_cache.serving.trace_server import System

MARKED: Options = {"marker": "o", "markeredgewidth": 0}
MEASURES = {"token_hit_rate": "Token hit rate (%)", "checkpoints": "Checkpoints at the end"}
MEASURES |= {"ttft_ms_p50": "Median TTFT (ms)"}


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
    from artifact.prefix_cache.serving.trace_server import serve

    trace, real, tables = _trace(source, requests, limit_sessions), model_of(model, seed=seed), []
    for capacity_mb in capacities_mb:
        chosen = {label: system_of(label, capacity_mb) for label in systems}
        table = serve(trace, {label: system.engine(real) for label, system in chosen.items()})
        table = table.assign(model=model, capacity_mb=float(capacity_mb), simulated_hit_tokens=0)
        for label, system in chosen.items():
            table.loc[table["system"] == label, "simulated_hit_tokens"] = system.simulated_hits(trace, real)
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
    sums = summary(serve(trace, {system.label: engine}), system.label, engine, system.simulated_hits(trace, real))
    row = {"trace": trace.name, "model": model, "capacity_mb": system.capacity_bytes / MB, **dimensions}
    left_out = ("scan", "resumed", "held_bytes", "logit_tolerance")
    row |= {name: value for name, value in sums.items() if name not in left_out}
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
    trace, rows = _trace(source, requests, limit_sessions), []
    for label, host_mb in product((SGLANG, MARCONI), host_capacities_mb):
        system = system_of(label, capacity_mb, host_mb)
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

    One row each: hits, median time and largest difference of the second half, and the size of the file.
    """
    from artifact.prefix_cache.serving.trace_server import serve

    trace, real = _trace(source, requests, limit_sessions), model_of(model, seed=seed)
    half, rows = len(trace) // 2, []
    first, second = trace.head(half), trace.select(np.arange(half, len(trace)))
    system = system_of(MARCONI, capacity_mb, host_capacity_mb)
    engines = {name: system.engine(real) for name in ("no restart", "saved cache", "empty cache")}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "cache.safetensors"
        serve(first, {MARCONI: engines["no restart"]})
        engines["no restart"].save(file)
        engines["saved cache"].load(file)
        file_mb = file.stat().st_size / MB
    for name, engine in engines.items():
        table = serve(second, {MARCONI: engine})
        served = table[table["system"] == MARCONI]
        row = {"trace": trace.name, "restart": name, "requests": len(second), "file_mb": file_mb}
        row |= {"hit_tokens": served["hit_tokens"].sum(), "first_hit_tokens": served["hit_tokens"].head(10).sum()}
        row |= {"ttft_ms_p50": served["ttft_ms"].median(), "logit_difference": served["logit_difference"].max()}
        rows.append(row)
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
    rows = []
    for source, capacities_mb in workloads.items():
        trace = _trace(source, requests, limit_sessions)
        for capacity_mb, placement in product(capacities_mb, placements):
            system = system_of(MARCONI, capacity_mb, checkpoints=parse_checkpoint_policy(placement))
            rows.append(_served(trace, model, seed, system, placement=placement))
    return pd.DataFrame(rows)


def plot_served_ttft(table: pd.DataFrame) -> Figure:
    """Measured time to first token. Left: share of the requests within a time, at the middle capacity. Right: P95
    against capacity, over that without a cache (the measured counterpart of Marconi, figure 9).
    """
    capacities = sorted(table["capacity_mb"].unique())
    shown = capacities[len(capacities) // 2]
    title = f"{table['trace'].iloc[0]}, {table['model'].iloc[0]}"
    figure, (left, right) = subplots(1, 2, height_in=2.5)
    sns.ecdfplot(table[table["capacity_mb"] == shown], x="ttft_ms", **BY_SYSTEM, ax=left)
    left.set(xscale="log", xlabel="TTFT (ms)", ylabel="Share of requests", title=f"{title}, {shown:g} MB")
    p95 = table.groupby(["system", "capacity_mb"], sort=False)["ttft_ms"].quantile(0.95).unstack("system")
    ratio = 100 * p95.div(p95[VANILLA], axis=0)
    rows = ratio.melt(ignore_index=False, var_name="system", value_name="ratio_pct").reset_index()
    sns.lineplot(rows, x="capacity_mb", y="ratio_pct", **BY_SYSTEM, **MARKED, legend=False, ax=right)
    right.set(xlabel="Capacity (MB)", ylabel="P95 TTFT over that\nwithout a cache (%)", ylim=(0, None), title=title)
    sns.move_legend(left, "lower right", title=None)
    return figure


def plot_tiers(table: pd.DataFrame) -> Figure:
    """Token hit rate by the tier that held the tokens, and the median time to first token, against the second tier's
    capacity.
    """
    systems = list(table["system"].unique())
    figure, axes = subplots(1, len(systems) + 1, height_in=2.5)
    rows = table.assign(host_mb=table["host_capacity_mb"].map("{:g}".format))
    rows["second"] = 100 * rows["from_host_tokens"] / rows["input_tokens"]
    rows["first"] = 100 * rows["token_hit_rate"] - rows["second"]
    shares = rows.melt(["system", "host_mb"], ["second", "first"], var_name="tier", value_name="rate_pct")
    for ax, system in zip(axes, systems, strict=False):
        bars: Options = {"x": "host_mb", "weights": "rate_pct", "hue": "tier", "hue_order": ["second", "first"]}
        bars |= {"palette": {"first": SYSTEM_COLORS[system], "second": YELLOW}, **STACKED, "shrink": 0.6}
        sns.histplot(shares[shares["system"] == system], **bars, ax=ax)
        ax.set(ylabel="Token hit rate (%)", ylim=(0, 100))
        sns.move_legend(ax, "upper center", bbox_to_anchor=(0.5, -0.22), title="tier", ncols=2)
    sns.lineplot(rows, x="host_mb", y="ttft_ms_p50", **BY_SYSTEM, **MARKED, ax=axes[-1])
    axes[-1].set(ylabel="Median TTFT (ms)", ylim=(0, None))
    axes[-1].legend(title=None)
    for ax, name in zip(axes, [*systems, None], strict=True):
        ax.set(xlabel="Second tier (MB)", title=", ".join(filter(None, (table["trace"].iloc[0], name))))
    return figure


def plot_placements(table: pd.DataFrame) -> Figure:
    """Checkpoints at ends alone, at branch points too, at chunk ends, and after every N tokens: hit rate, checkpoints
    held at the end, and measured time to first token.
    """
    rows = table.assign(token_hit_rate=100 * table["token_hit_rate"], capacity=table["capacity_mb"].map("{:g}".format))
    rows = rows.melt(["trace", "capacity", "placement"], list(MEASURES), var_name="measure")
    palette = sns.color_palette("light:#555555", rows["placement"].nunique() + 1)[1:]  # no system's colour
    options: Options = {"x": "capacity", "y": "value", "hue": "placement", "palette": palette, "saturation": 1}
    options |= {"row": "trace", "col": "measure", "sharex": False, "sharey": False, "kind": "bar"}
    height_in = 0.4 + 2.0 * rows["trace"].nunique()
    drawn = panels(sns.catplot, rows, "{row_name}", "Capacity (MB)", "", height_in=height_in, **options)
    for (_, measure), ax in drawn.axes_dict.items():
        ax.set_ylabel(MEASURES[measure])
    return drawn.figure


def hits_unlike_simulated(table: pd.DataFrame) -> float:
    """Requests, of all systems and capacities, whose served hits are not the simulated ones."""
    cached = table[table["system"] != VANILLA]
    return float((cached["hit_tokens"] != cached["simulated_hit_tokens"]).sum())


def end_share_of_branch_pct(table: pd.DataFrame) -> float:
    """Hit tokens with checkpoints at ends alone, in % of those at branch points too; least of traces and capacities.

    Without a hit, one token counts.
    """
    hits = table.pivot(index=["trace", "capacity_mb"], columns="placement", values="hit_tokens").clip(lower=1)
    return float((100 * hits["end"] / hits["branch"]).min())


FIGURES = {
    "marconi-served-ttft": Picture("41_ttft", plot_served_ttft),
    "marconi-tiers": Picture("42_tiers", plot_tiers),
    "marconi-placements": Picture("43_placements", plot_placements),
}
