"""Traces through simulated caches: nothing here holds a tensor."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pandas as pd

from artifact import sweep
from artifact.prefix_cache.index.block_cache import BlockCache
from artifact.prefix_cache.index.cache import PrefixCache
from artifact.prefix_cache.index.eviction import NOW, FlopAware, Lru
from artifact.prefix_cache.index.fidelity import CORRECTED, CORRECTIONS, Fidelity, fidelity_label
from artifact.prefix_cache.index.radix_tree import DEAD, ROOT
from artifact.prefix_cache.presets import PRESETS, preset
from artifact.prefix_cache.simulation import (
    GB,
    MARCONI,
    Replay,
    operations,
    replay,
    request_table,
)
from artifact.prefix_cache.spec import MAMBA_7B, MARCONI_7B, TRANSFORMER_7B, HybridSpec
from artifact.prefix_cache.workloads.importers import load_trace
from artifact.prefix_cache.workloads.traces import RequestTrace
from figures.marconi.clairvoyant import replay_clairvoyant
from figures.marconi.latency import p95_ms, ttft_ms

BEST_STATIC, CLAIRVOYANT = "Best static alpha", "Clairvoyant heuristic"
ALPHAS = [step / 10 for step in range(21)]


@cache
def _trace(source: str, options: tuple[tuple[str, Any], ...]) -> RequestTrace:
    return load_trace(source, fallback=True, **dict(options))


def trace_of(source: str, **options: Any) -> RequestTrace:
    """The trace by its registry name; the project's own synthetic one, named so, where the data is not at hand."""
    return _trace(source, tuple(sorted(options.items())))


def _spec(name: str, layers: list[int] | None, d_state: int | None) -> HybridSpec:
    spec = preset(name)
    if layers is not None:
        spec = spec.with_layers(*layers)
    return spec if d_state is None else spec.with_state_dim(d_state)


def _row(result: Replay) -> dict[str, Any]:
    computed = result.input_length - result.hit_tokens
    return {
        "token_hit_rate_pct": 100 * result.token_hit_rate,
        "request_hit_rate_pct": 100 * result.request_hit_rate,
        "flops_saved": float(result.flops_saved),
        "ttft_p95_ms": p95_ms(computed),
        "peak_gb": result.peak_bytes / GB,
        "alpha": np.nan if result.alpha is None else result.alpha,
        "tuned": result.tuned,
        "stale_states": result.num_stale_states,
        "requests": len(result.input_length),
        "input_tokens": int(result.input_length.sum()),
    }


def policies(
    *,
    source: str,
    capacity_gb: float,
    systems: list[str],
    fidelity: str = "corrected",
    spec: str = "marconi-7b",
    layers: list[int] | None = None,
    d_state: int | None = None,
    block_size: int = 32,
    bootstrap_multiplier: int = 5,
    **trace_options: Any,
) -> pd.DataFrame:
    """One configuration: a row for each system on one trace, model and capacity.

    `trace_options` go to the importer (sessions_per_s, response_time_s, limit_sessions ...). Besides the paper's
    systems, `systems` may name the bounds: Infinite cache, Best static alpha, Clairvoyant heuristic.
    """
    trace = trace_of(source, **trace_options)
    model = _spec(spec, layers, d_state)
    capacity = round(capacity_gb * GB)
    corrections = Fidelity.parse(fidelity)
    dimensions = {
        "trace": trace.name,
        **{name: value for name, value in trace_options.items() if np.isscalar(value)},
        "spec": spec,
        "layers": f"({model.num_ssm_layers}, {model.num_attention_layers})",
        "d_state": model.d_state,
        "capacity_gb": float(capacity_gb),
        "fidelity": fidelity_label(fidelity),
        "block_size": block_size,
    }
    rows = []
    for system in systems:
        if system == BEST_STATIC:
            results = [
                replay(trace, model, system=MARCONI, capacity_bytes=capacity, alpha=alpha, fidelity=corrections)
                for alpha in ALPHAS
            ]
            result = max(results, key=lambda each: int(each.hit_tokens.sum()))
        elif system == CLAIRVOYANT:
            hits = replay_clairvoyant(trace, model, capacity_bytes=capacity)
            saved = model.flops_saved(hits)
            result = Replay(system, hits, 0 * hits, trace.input_length, saved, capacity, None, False, None, 0, 0, 0.0)
        else:
            result = replay(
                trace,
                model,
                system=system,
                capacity_bytes=capacity,
                block_size=block_size,
                bootstrap_multiplier=bootstrap_multiplier,
                fidelity=corrections,
            )
        rows.append({**dimensions, "system": system, **_row(result)})
    return pd.DataFrame(rows)


def policy_sweep(*, configurations: list[dict[str, Any]], description: str = "configurations") -> pd.DataFrame:
    """`policies` for each configuration, in parallel: one row per configuration and system."""
    return sweep.table(policies, configurations, description=description)


def static_alphas(
    *,
    source: str,
    capacity_gb: float,
    alphas: list[float],
    fidelities: list[str],
    spec: str = "marconi-7b",
    **options: Any,
) -> pd.DataFrame:
    """Marconi with fixed alphas. One row per (fidelity, alpha)."""
    trace, model = trace_of(source, **options), preset(spec)
    rows = []
    for fidelity in fidelities:
        for alpha in alphas:
            result = replay(
                trace,
                model,
                system=MARCONI,
                capacity_bytes=round(capacity_gb * GB),
                alpha=alpha,
                fidelity=Fidelity.parse(fidelity),
            )
            rows.append(
                {
                    "trace": trace.name,
                    "capacity_gb": float(capacity_gb),
                    "fidelity": fidelity_label(fidelity),
                    **_row(result),
                }
            )
    return pd.DataFrame(rows)


def limit(source: str, sessions: int) -> dict[str, int]:
    """The importer's option that makes a trace shorter: Mooncake's requests carry no session, so 20 for each."""
    return {"limit_requests": 20 * sessions} if source.startswith("mooncake") else {"limit_sessions": sessions}


def state_sizes(*, lengths: list[int], block_sizes: list[int]) -> pd.DataFrame:
    """Bytes and FLOPs of one cached sequence (figures 1c, 3b and 5). One row per (spec, length, block_size).

    `block_size` 0 stands for one checkpoint at the end.
    """
    rows = []
    for spec in (MAMBA_7B, MARCONI_7B, TRANSFORMER_7B):
        for length in lengths:
            for block in [0, *block_sizes] if spec is MARCONI_7B else [0]:
                size = spec.sequence_bytes(length, block_size=block or None)
                rows.append(
                    {
                        "spec": spec.name,
                        "length_tokens": length,
                        "block_size": block,
                        "kv_gb": spec.kv_bytes(length) / GB,
                        "checkpoint_gb": (size - spec.kv_bytes(length)) / GB,
                        "total_gb": size / GB,
                        "prefill_flops": float(spec.prefill_flops(length)),
                        "flops_per_byte": spec.prefill_flops(length) / size,
                    }
                )
    return pd.DataFrame(rows)


def layer_costs(*, specs: list[str], lengths: list[int]) -> pd.DataFrame:
    """FLOPs and state bytes by kind of layer (table 1, figure 14). One row per (spec, length, layer)."""
    rows = []
    for spec in (PRESETS[name] for name in specs):
        for length in lengths:
            parts = {
                "attention": (
                    spec.num_attention_layers,
                    spec.attention_layer_flops(length),
                    spec.kv_bytes(length),
                ),
                "SSM": (spec.num_ssm_layers, spec.ssm_layer_flops(length), spec.checkpoint_bytes),
                "MLP": (spec.num_mlp_layers, spec.mlp_layer_flops(length), 0),
            }
            for layer, (count, flops, state_bytes) in parts.items():
                rows.append(
                    {
                        "spec": spec.name,
                        "length_tokens": length,
                        "layer": layer,
                        "layers": count,
                        "flops": float(count * flops),
                        "state_bytes": state_bytes,
                    }
                )
    return pd.DataFrame(rows)


def request_lengths(*, sources: list[str], **trace_options: Any) -> pd.DataFrame:
    """Lengths of every request (figure 6). One row per (trace, request)."""
    tables = []
    for source in sources:
        trace = trace_of(source, **trace_options)
        columns = {"input_tokens": trace.input_length, "output_tokens": trace.output_length}
        tables.append(pd.DataFrame({"trace": trace.name, **columns}))
    return pd.concat(tables, ignore_index=True)


def block_reuse(
    *,
    source: str,
    capacity_gb: float,
    block_size: int,
    spec: str = "marconi-7b",
    fidelity: str = "published",
    **options: Any,
) -> pd.DataFrame:
    """Share of the blocks admitted by vLLM+ whose KV, and whose state, is reused at all (figure 3a). One row."""
    trace, model = trace_of(source, **options), preset(spec)
    cache = BlockCache(
        model,
        capacity_bytes=round(capacity_gb * GB),
        block_size=block_size,
        fidelity=Fidelity.parse(fidelity),
    )
    cache.run(operations(trace))
    admitted, kv, state = cache.block_reuse
    return pd.DataFrame(
        [
            {
                "trace": trace.name,
                "capacity_gb": float(capacity_gb),
                "block_size": block_size,
                "fidelity": fidelity_label(fidelity),
                "blocks": admitted,
                "kv_reused_pct": 100 * kv / admitted,
                "state_reused_pct": 100 * state / admitted,
            }
        ]
    )


def requests(
    *,
    source: str,
    capacity_gb: float,
    systems: list[str],
    fidelity: str = "corrected",
    spec: str = "marconi-7b",
    **options: Any,
) -> pd.DataFrame:
    """One row per (system, request) of one configuration, with its time to first token (figure 10)."""
    trace, model = trace_of(source, **options), preset(spec)
    tables = []
    for system in systems:
        result = replay(
            trace,
            model,
            system=system,
            capacity_bytes=round(capacity_gb * GB),
            fidelity=Fidelity.parse(fidelity),
        )
        table = request_table(result, trace)
        table.insert(0, "trace", trace.name)
        table.insert(1, "capacity_gb", float(capacity_gb))
        table["fidelity"] = fidelity_label(fidelity)
        table["ttft_ms"] = ttft_ms(table["input_tokens"].to_numpy() - table["hit_tokens"].to_numpy())
        table["flops_saved"] = [float(model.prefill_flops(int(hit))) for hit in result.hit_tokens]
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def correction_labels() -> dict[str, str]:
    """The fidelities of the ablation with what each stands for: none, each alone, all but each, all."""
    alone = {f"published+{name}": f"{name} alone" for name in CORRECTIONS}
    without = {f"corrected-{name}": f"all but {name}" for name in CORRECTIONS}
    return {"published": "none (as published)", **alone, **without, "corrected": "all"}


def nodes(
    *,
    operations: list[tuple[str, list[int]]],
    capacity_bytes: int,
    alpha: float | None,
    spec: HybridSpec = MARCONI_7B,
) -> pd.DataFrame:
    """The tree after each of a few operations, node by node: what a drawing of it needs.

    operations: ("lookup" | "insert", tokens), in order
    Columns:    step, operation, reused_tokens, node, parent, edge (tokens), depth, last_access, size_bytes
    """
    eviction = Lru() if alpha is None else FlopAware(alpha)
    cache = PrefixCache(spec, capacity_bytes=capacity_bytes, eviction=eviction, fidelity=CORRECTED)
    rows = []
    for step, (operation, tokens) in enumerate(operations):
        reused = 0
        if operation == "lookup":
            reused = cache.lookup(tokens)
        else:
            cache.insert(tokens)
        tree, order = cache.contents
        for node in range(tree.counts[0]):
            row = tree.nodes[node]
            if row["parent"] == DEAD:
                continue
            edge = tree.tokens[row["start"] : row["start"] + row["length"]]
            own = 0 if node == ROOT else spec.checkpoint_bytes + spec.kv_bytes(int(row["length"]))
            rows.append(
                {
                    "step": step,
                    "operation": f"{operation} {' '.join(map(str, tokens))}",
                    "reused_tokens": reused,
                    "node": node,
                    "parent": int(row["parent"]),
                    "edge": " ".join(map(str, edge)),
                    "depth": int(row["depth"]),
                    "age": int(order.clock[NOW] - order.last_access[node]),
                    "size_bytes": own,
                    "used_bytes": cache.used_bytes,
                }
            )
    return pd.DataFrame(rows)
