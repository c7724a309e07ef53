"""One trace, model and capacity through several systems: the rows that notebooks 13 to 19 sweep, and their panels."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns

from artifact import sweep
from artifact.prefix_cache import Fidelity, Replay, RequestTrace, load_trace, preset, replay
from artifact.prefix_cache.index.fidelity import fidelity_label
from artifact.prefix_cache.simulation import GB, INFINITE, MARCONI, SGLANG, VLLM
from figures.marconi.clairvoyant import replay_clairvoyant
from figures.marconi.latency import p95_ms
from figures.style import SYSTEM_COLORS, facets

Options = dict[str, Any]

PAPER_TRACE = "sharegpt"
"""The one trace of the paper that is at hand."""
COMPARED = (VLLM, SGLANG, MARCONI)
BEST_STATIC, CLAIRVOYANT = "Best static alpha", "Clairvoyant heuristic"
ALPHAS = [step / 10 for step in range(21)]
BY_SYSTEM: Options = {"hue": "system", "palette": SYSTEM_COLORS}
STACKED: Options = {"multiple": "stack", "discrete": True, "alpha": 1, "linewidth": 0}

# Lines that coincide stay visible: Marconi's is wide and lies below the others, which are dashed.
DASHES = {MARCONI: "", SGLANG: (4, 1.5), VLLM: (1, 1), BEST_STATIC: (2, 1), CLAIRVOYANT: (5, 1, 1, 1), INFINITE: (1, 2)}
WIDTHS = dict.fromkeys(DASHES, 1.1) | {MARCONI: 2.6}


@cache
def trace_of(source: str, **options: Any) -> RequestTrace:
    """The trace by its registry name; the project's own synthetic one, named so, where the data is not at hand."""
    return load_trace(source, fallback=True, **options)


def limit(source: str, sessions: int) -> dict[str, int]:
    """The importer's option that makes a trace shorter: Mooncake's requests carry no session, so 20 for each."""
    return {"limit_requests": 20 * sessions} if source.startswith("mooncake") else {"limit_sessions": sessions}


def measures(result: Replay) -> Options:
    """What a row keeps of a replay."""
    return {
        "token_hit_rate_pct": 100 * result.token_hit_rate,
        "request_hit_rate_pct": 100 * result.request_hit_rate,
        "flops_saved": float(result.flops_saved),
        "ttft_p95_ms": p95_ms(result.input_length - result.hit_tokens),
        "peak_gb": result.peak_bytes / GB,
        "alpha": np.nan if result.alpha is None else result.alpha,
        "tuned": result.tuned,
        "stale_states": result.num_stale_states,
        "requests": len(result.input_length),
        "input_tokens": int(result.input_length.sum()),
    }


def compare(
    *,
    source: str,
    capacity_gb: float,
    systems: Sequence[str],
    fidelity: str = "corrected",
    spec: str = "marconi-7b",
    layers: list[int] | None = None,
    d_state: int | None = None,
    block_size: int = 32,
    alpha: float | None = None,
    **trace_options: Any,
) -> pd.DataFrame:
    """One configuration: a row for each system on one trace, model and capacity.

    systems:       the paper's, and the bounds: Infinite cache, Best static alpha, Clairvoyant heuristic
    alpha:         of Marconi, in place of the tuner's
    layers:        (SSM, attention, MLP) layers in place of the model's
    trace_options: of the importer (sessions_per_s, response_time_s, limit_sessions ...)
    """
    trace, model, capacity = trace_of(source, **trace_options), preset(spec), round(capacity_gb * GB)
    model = model if layers is None else model.with_layers(*layers)
    model = model if d_state is None else model.with_state_dim(d_state)
    options: Options = {"capacity_bytes": capacity, "fidelity": Fidelity.parse(fidelity)}
    row = {"trace": trace.name, **{name: value for name, value in trace_options.items() if name != "seed"}}
    row |= {"spec": spec, "layers": f"({model.num_ssm_layers}, {model.num_attention_layers})", "d_state": model.d_state}
    row |= {"capacity_gb": float(capacity_gb), "fidelity": fidelity_label(fidelity), "block_size": block_size}
    rows = []
    for system in systems:
        if system == BEST_STATIC:
            static = [replay(trace, model, system=MARCONI, alpha=alpha, **options) for alpha in ALPHAS]
            result = max(static, key=lambda run: int(run.hit_tokens.sum()))
        elif system == CLAIRVOYANT:
            hits = replay_clairvoyant(trace, model, capacity_bytes=capacity)
            saved = model.flops_saved(hits)
            result = Replay(system, hits, 0 * hits, trace.input_length, saved, capacity, None, False, None, 0, 0, 0.0)
        else:
            result = replay(trace, model, system=system, block_size=block_size, alpha=alpha, **options)
        rows.append({**row, "system": system, **measures(result)})
    return pd.DataFrame(rows)


def grid(**values: Any) -> list[Options]:
    """Every combination of the values that are lists, the last varying fastest; other values are the same in all."""
    return sweep.grid(**{name: value if isinstance(value, list) else [value] for name, value in values.items()})


def compare_all(configurations: list[Options]) -> pd.DataFrame:
    """`compare` for each configuration, in parallel: one row per configuration and system."""
    return sweep.table(compare, configurations, description="configurations")


def compare_by(**grids: list[Options]) -> pd.DataFrame:
    """`compare_all` of several grids, one below the other, each under its name in the column `varied`."""
    return pd.concat([compare_all(part).assign(varied=name) for name, part in grids.items()], ignore_index=True)


def panels(plot: Any, table: pd.DataFrame, titles: str, *labels: str, **options: Any) -> sns.FacetGrid:
    """`style.facets` with the panels' titles and the labels of both axes."""
    return facets(plot, table, **options).set_titles(titles).set_axis_labels(*labels)


def rate_lines(table: pd.DataFrame, titles: str, *, x: str = "capacity_gb", **options: Any) -> sns.FacetGrid:
    """Token hit rate against `x`, a line per system that stays visible under the others."""
    systems = sorted(table["system"].unique(), key=lambda system: system != MARCONI)
    options |= {"x": x, "y": "token_hit_rate_pct", "kind": "line", "errorbar": None, "marker": "o"}
    options |= {"hue_order": systems, "style_order": systems, "dashes": DASHES, "sizes": WIDTHS, "markersize": 3}
    options |= {"markeredgewidth": 0, **dict.fromkeys(("hue", "style", "size"), "system")}
    return panels(sns.relplot, table, titles, "Capacity (GB)", "Token hit rate (%)", **options).set(ylim=(0, None))
