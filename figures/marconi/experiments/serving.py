"""Real models served from cached states: exactness, time, tiers and placements, measured."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from transformers import PreTrainedModel

from artifact.prefix_cache.index.admission import parse_checkpoint_policy
from artifact.prefix_cache.serving.engine import HybridEngine
from artifact.prefix_cache.serving.hybrid_models import build_model
from artifact.prefix_cache.serving.model_states import ModelStates
from artifact.prefix_cache.serving.resume_cases import conformance as conformance_cases
from artifact.prefix_cache.serving.resume_cases import summary as conformance_summary
from artifact.prefix_cache.serving.trace_server import MB, System, serve, summary
from artifact.prefix_cache.simulation import MARCONI, SGLANG, VLLM
from artifact.prefix_cache.workloads.traces import RequestTrace
from figures.marconi.experiments.simulation import trace_of


@cache
def model_of(name: str, device: str | None = None) -> PreTrainedModel:
    """The model with random weights of seed 0, built once; one thread on a CPU, as sums depend on their number."""
    torch.set_num_threads(1)
    return build_model(name, device=device)


def conformance(*, models: Sequence[str], device: str | None = None) -> pd.DataFrame:
    """The conformance suite's verdict. One row per model."""
    rows = []
    for name in models:
        model = model_of(name, device)
        states = ModelStates(model)
        rows.append({"model": name, **conformance_summary(conformance_cases(model, states=states), model, states)})
    return pd.DataFrame(rows)


def exactness(
    *, models: Sequence[str], cases: int, longest: int = 120, seed: int = 0, device: str | None = None
) -> pd.DataFrame:
    """Resumed prefills against cold ones, at random prefixes, suffixes and boundaries of segments.

    One row per (model, case): the largest difference of logits from a cold prefill, and with the recurrent states put
    back as zeros; whether the logits are bit for bit those of the same split computed cold.
    """
    rows = []
    for name in models:
        states, rng = ModelStates(model_of(name, device)), np.random.default_rng(seed)
        for case in range(cases):
            tokens = rng.integers(states.config.vocab_size, size=rng.integers(8, longest + 1))
            prefix = int(rng.integers(1, len(tokens)))
            cold = states.run(states.start(), tokens, all_logits=True)[prefix:]
            split = states.start()
            states.run(split, tokens[:prefix])
            edges = sorted({0, prefix, *rng.integers(1, prefix + 1, size=2).tolist()})
            segments = [states.kv(split, start, stop) for start, stop in pairwise(edges)]
            checkpoint = states.checkpoint(split)
            lost = [torch.zeros_like(state) for state in checkpoint[:-1]] + checkpoint[-1:]
            found, control = (
                states.run(states.restore(segments, each, prefix), tokens[prefix:], all_logits=True)
                for each in (checkpoint, lost)
            )
            same_split = states.run(split, tokens[prefix:], all_logits=True)
            rows.append(
                {
                    "model": name,
                    "case": case,
                    "prefix_tokens": prefix,
                    "suffix_tokens": len(tokens) - prefix,
                    "segments": len(segments),
                    "difference": states.tolerance.difference(found, cold),
                    "difference_of_control": states.tolerance.difference(control, cold),
                    "bit_equal": torch.equal(found, same_split),
                    "tolerance": states.tolerance.limit,
                    "resumed": states.resume,
                }
            )
    return pd.DataFrame(rows)


def resume(
    *, models: Sequence[str], prefix_tokens: int, suffix_tokens: int, repeats: int, seed: int = 0
) -> pd.DataFrame:
    """A prefill of prefix and suffix, cold and from the prefix's states, in turn. One row per (model, repeat)."""
    rows = []
    for name in models:
        model, rng = model_of(name), np.random.default_rng(seed)
        vocabulary = model.config.get_text_config(decoder=True).vocab_size
        engine = System(SGLANG, capacity_bytes=10**10).engine(model)
        prefix = rng.integers(vocabulary, size=prefix_tokens, dtype=np.int32)
        engine.finish(engine.prefill(prefix))
        for repeat in range(-1, repeats):  # the first is not counted
            tokens = np.concatenate((prefix, rng.integers(vocabulary, size=suffix_tokens, dtype=np.int32)))
            cold_s, logits = engine.cold(tokens)
            request = engine.prefill(tokens)
            engine.abort(request)
            row = {"model": name, "repeat": repeat, "hit_tokens": request.hit_tokens, "cold_ms": 1e3 * cold_s}
            row |= {"resumed_ms": 1e3 * request.ttft_s, "restore_ms": 1e3 * request.restore_s}
            row |= {"logit_difference": engine.states.tolerance.difference(request.logits, logits)}
            rows += [row] if repeat >= 0 else []
    return pd.DataFrame(rows)


def served_trace(source: str, requests: int, **trace_options: Any) -> RequestTrace:
    """The first requests of a trace."""
    return trace_of(source, **trace_options).head(requests)


def ttft(
    *,
    source: str,
    model: str,
    requests: int,
    capacities_mb: Sequence[float],
    systems: Sequence[str] = (VLLM, SGLANG, MARCONI),
    block_size: int = 32,
    **trace_options: Any,
) -> pd.DataFrame:
    """A trace served by every system in turn, request by request, on one model (the real counterpart of figure 9).

    One row per (capacity_mb, system, request), Vanilla among the systems; `simulated_hit_tokens` is what the simulator
    says of the same trace at the same costs.
    """
    trace, real = served_trace(source, requests, **trace_options), model_of(model)
    tables = []
    for capacity_mb in capacities_mb:
        chosen = {label: System(label, round(capacity_mb * MB), block_size=block_size) for label in systems}
        table = serve(trace, {label: system.engine(real) for label, system in chosen.items()})
        table["simulated_hit_tokens"] = 0
        for label, system in chosen.items():
            table.loc[table["system"] == label, "simulated_hit_tokens"] = system.simulated_hits(trace, real)
        table.insert(1, "model", model)
        table.insert(2, "capacity_mb", float(capacity_mb))
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def _served(trace: RequestTrace, real: PreTrainedModel, system: System, engine: HybridEngine) -> dict[str, Any]:
    table = serve(trace, {system.label: engine})
    sums = summary(table, system.label, engine, system.simulated_hits(trace, real))
    dropped = ("scan", "resumed", "held_bytes", "logit_tolerance")
    return {name: value for name, value in sums.items() if name not in dropped}


def tiers(
    *,
    source: str,
    model: str,
    requests: int,
    capacity_mb: float,
    host_capacities_mb: Sequence[float],
    systems: Sequence[str] = (SGLANG, MARCONI),
    **trace_options: Any,
) -> pd.DataFrame:
    """A trace served with second tiers of several capacities (0: none). One row per (system, host_capacity_mb)."""
    trace, real = served_trace(source, requests, **trace_options), model_of(model)
    rows = []
    for label in systems:
        for host_mb in host_capacities_mb:
            system = System(label, round(capacity_mb * MB), round(host_mb * MB) or None)
            row = {"trace": trace.name, "model": model, "capacity_mb": float(capacity_mb)}
            sums = _served(trace, real, system, system.engine(real))
            rows.append({**row, "host_capacity_mb": float(host_mb), **sums})
    return pd.DataFrame(rows)


def restart(
    *, source: str, model: str, requests: int, capacity_mb: float, host_capacity_mb: float, **trace_options: Any
) -> pd.DataFrame:
    """The second half of a trace after a restart in its middle: none, with a saved cache, with an empty one.

    One row each: hits of the second half, seconds to save and to load, bytes of the file.
    """
    trace, real = served_trace(source, requests, **trace_options), model_of(model)
    half = len(trace) // 2
    first, second = trace.head(half), trace.select(np.arange(half, len(trace)))
    system = System(MARCONI, round(capacity_mb * MB), round(host_capacity_mb * MB))
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "cache.safetensors"
        engine = system.engine(real)
        serve(first, {system.label: engine})
        engine.save(file)
        loaded = system.engine(real)
        loaded.load(file)
        for name, each in (("no restart", engine), ("saved cache", loaded), ("empty cache", system.engine(real))):
            table = serve(second, {system.label: each})
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
    source: str,
    model: str,
    requests: int,
    capacities_mb: Sequence[float],
    placements: Sequence[str],
    alpha: float | None = None,
    **trace_options: Any,
) -> pd.DataFrame:
    """A trace served with checkpoints in several placements. One row per (capacity_mb, placement)."""
    trace, real = served_trace(source, requests, **trace_options), model_of(model)
    rows = []
    for capacity_mb in capacities_mb:
        for placement in placements:
            system = System(
                MARCONI, round(capacity_mb * MB), alpha=alpha, checkpoints=parse_checkpoint_policy(placement)
            )
            engine = system.engine(real)
            row = {"trace": trace.name, "model": model, "capacity_mb": float(capacity_mb), "placement": placement}
            sums = _served(trace, real, system, engine)
            rows.append({**row, **sums, "checkpoints": engine.cache.index.num_checkpoints})
    return pd.DataFrame(rows)
