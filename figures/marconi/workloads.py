"""Lengths of requests, and how little of a block-granular cache is reused (notebook 12; Marconi, figures 3a and 6)."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from artifact import sweep
from artifact.prefix_cache import BlockCache, Fidelity, preset
from artifact.prefix_cache.simulation import GB, operations
from figures.marconi.replays import Options, grid, panels, trace_of
from figures.style import BLUE, RED, Picture


def request_lengths(*, sources: Iterable[str], limit_sessions: int) -> pd.DataFrame:
    """Lengths of every request (figure 6). One row per (trace, request)."""
    tables = []
    for trace in (trace_of(source, limit_sessions=limit_sessions) for source in sources):
        columns = {"input_tokens": trace.input_length, "output_tokens": trace.output_length}
        tables.append(pd.DataFrame({"trace": trace.name, **columns}))
    return pd.concat(tables, ignore_index=True)


def block_reuse(
    *, capacities_gb: dict[str, float], block_sizes: list[int], limit_sessions: int, fidelity: str = "published"
) -> pd.DataFrame:
    """Share of the blocks admitted by vLLM+ whose KV, and whose state, is reused at all (figure 3a).

    One row per (trace, block_size).
    capacities_gb: of the cache of each trace
    """
    common: Options = {"block_size": block_sizes, "limit_sessions": limit_sessions, "fidelity": fidelity}
    caches = capacities_gb.items()
    configurations = [row for source, gb in caches for row in grid(source=source, capacity_gb=gb, **common)]
    return sweep.table(_block_reuse, configurations, description="block reuse")


def _block_reuse(
    *, source: str, capacity_gb: float, block_size: int, limit_sessions: int, fidelity: str
) -> pd.DataFrame:
    trace, capacity_bytes = trace_of(source, limit_sessions=limit_sessions), round(capacity_gb * GB)
    options: Options = {"block_size": block_size, "fidelity": Fidelity.parse(fidelity)}
    cache = BlockCache(preset("marconi-7b"), capacity_bytes=capacity_bytes, **options)
    cache.run(operations(trace))
    admitted, kv, state = cache.block_reuse
    row = {"trace": trace.name, "capacity_gb": float(capacity_gb), "block_size": block_size, "fidelity": fidelity}
    row |= {"blocks": admitted, "kv_reused_pct": 100 * kv / admitted, "state_reused_pct": 100 * state / admitted}
    return pd.DataFrame([row])


def plot_request_lengths(table: pd.DataFrame) -> Figure:
    """Lengths of inputs and outputs (Marconi, figure 6)."""
    lengths = table.melt("trace", var_name="part", value_name="tokens")
    lengths["part"] = lengths["part"].map({"input_tokens": "Input length", "output_tokens": "Output length"})
    options: Options = {"kind": "hist", "bins": 30, "common_bins": False, "alpha": 1, "linewidth": 0, "legend": False}
    options |= {"x": "tokens", "hue": "part", "palette": [BLUE, RED], "height_in": 3.4}
    options |= {"row": "part", "col": "trace", "facet_kws": {"sharex": False, "sharey": False}}
    drawn = panels(sns.displot, lengths, "{col_name}", "", "Requests", **options)
    for (part, _), ax in drawn.axes_dict.items():
        ax.set_xlabel(f"{part} (tokens)")
    return drawn.figure


def plot_block_reuse(table: pd.DataFrame) -> Figure:
    """Share of the blocks that vLLM+ admits whose KV, and whose state, is used at least once (Marconi, figure 3a; the
    paper's bars are of LMSys).
    """
    parts = {"kv_reused_pct": "KV", "state_reused_pct": "SSM state"}
    shares = table.melt(["trace", "block_size"], list(parts), var_name="part", value_name="reused_pct")
    shares["part"] = shares["part"].map(parts)
    options: Options = {"x": "block_size", "y": "reused_pct", "hue": "part", "palette": {"KV": RED, "SSM state": BLUE}}
    options |= {"col": "trace", "col_wrap": min(2, shares["trace"].nunique()), "sharex": False, "sharey": False}
    options |= {"kind": "bar", "saturation": 1, "height_in": 2.1 * -(-shares["trace"].nunique() // 2) + 0.3}
    drawn = panels(sns.catplot, shares, "{col_name}", "Block size (tokens)", "Blocks reused (%)", **options)
    for ax in drawn.axes.flat:
        for bars in ax.containers:
            ax.bar_label(bars, fmt="%.2g", fontsize=6)
    return drawn.figure


FIGURES = {
    "marconi-fig6": Picture("12_request_lengths", plot_request_lengths),
    "marconi-fig3a": Picture("12_block_reuse", plot_block_reuse),
}
