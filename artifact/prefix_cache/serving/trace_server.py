"""A trace served for real: requests through an engine and its cache, timed, each next to a prefill without a cache.

The cache sees the trace's own tokens; the model sees them modulo its vocabulary, since a small model has fewer. What
follows from a prefix is then still a function of its tokens, and hits are those of the simulator.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor
from transformers import PreTrainedModel

from artifact.prefix_cache.index.admission import AtBranch, CheckpointPolicy, EveryBlocks
from artifact.prefix_cache.serving.engine import HybridEngine
from artifact.prefix_cache.serving.hybrid_models import spec_of
from artifact.prefix_cache.simulation import MARCONI, VANILLA, VLLM, index_for, replay, tiered
from artifact.prefix_cache.workloads.traces import RequestTrace

MB = 10**6


@dataclass(frozen=True)
class System:
    """A system of the paper as it is served; fields as the arguments of `replay`."""

    label: str = MARCONI
    capacity_bytes: int = 0
    host_capacity_bytes: int | None = None
    alpha: float | None = None
    block_size: int = 32
    checkpoints: CheckpointPolicy = AtBranch()  # noqa: RUF009 (frozen)

    def engine(self, model: PreTrainedModel, *, debug: bool = False) -> HybridEngine:
        """The model behind an empty cache of this system."""
        index = index_for(self.label, spec_of(model), **self._rules)
        vocabulary = model.config.get_text_config(decoder=True).vocab_size
        return HybridEngine(
            model,
            tiered(index, self.host_capacity_bytes),
            after_first_token=self.label == VLLM or isinstance(self.checkpoints, EveryBlocks),
            to_model=lambda tokens: tokens % vocabulary,
            debug=debug,
        )

    def simulated_hits(self, trace: RequestTrace, model: PreTrainedModel) -> np.ndarray:
        """[requests], hit tokens of the same trace at the same costs in the simulator."""
        host = self.host_capacity_bytes
        return replay(trace, spec_of(model), system=self.label, host_capacity_bytes=host, **self._rules).hit_tokens

    @property
    def _rules(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("capacity_bytes", "alpha", "block_size", "checkpoints")}


def serve(trace: RequestTrace, engines: dict[str, HybridEngine]) -> pd.DataFrame:
    """Serve every request by every engine in turn, and prefill it once without a cache.

    Who goes first changes from request to request, so that a machine that drifts favours none. One prefill that is not
    counted goes ahead of all.

    Returns: one row per (system, request), Vanilla among the systems. `ttft_ms` is the time to the logits of the first
             token, `prefill_ms` until the checkpoints are taken too, `restore_ms` the part of lookup, promotion and
             restore; `logit_difference` is the largest difference of these logits from those without a cache, as the
             tolerance of their dtype measures it
    Raises:  ValueError for an empty trace
    """
    if len(trace) == 0:
        raise ValueError(f"a trace must hold a request, {trace.name} has none")
    plain = next(iter(engines.values()))
    plain.cold(trace.input(0))
    rows, names = [], [VANILLA, *engines]
    for number in range(len(trace)):
        found: dict[str, tuple[dict[str, Any], Tensor]] = {}
        for turn in range(len(names)):
            name = names[(turn + number) % len(names)]
            found[name] = _one(trace, number, engines.get(name), plain)
        cold_logits = found[VANILLA][1]
        for name in names:
            row, logits = found[name]
            difference = plain.states.tolerance.difference(logits, cold_logits)
            rows.append({"system": name, **row, "logit_difference": difference})
    table = pd.DataFrame(rows).sort_values(["system", "request"], kind="stable", ignore_index=True)
    table.insert(0, "trace", trace.name)
    return table


def _one(
    trace: RequestTrace, number: int, engine: HybridEngine | None, plain: HybridEngine
) -> tuple[dict[str, Any], Tensor]:
    """One request's row and first logits, by an engine or without a cache."""
    tokens, output = trace.input(number), trace.output(number)
    row = {"request": number, "input_tokens": len(tokens), "output_tokens": len(output), "hit_tokens": 0}
    row |= {"from_host_tokens": 0, "computed_tokens": len(tokens)}
    if engine is None:
        seconds, logits = plain.cold(tokens)
        return {**row, "ttft_ms": 1e3 * seconds, "prefill_ms": 1e3 * seconds, "restore_ms": 0.0}, logits
    with engine.prefill(tokens) as request:
        row |= {"hit_tokens": request.hit_tokens, "from_host_tokens": request.from_host_tokens}
        row |= {"computed_tokens": request.computed_tokens}
        times = {"ttft_ms": 1e3 * request.ttft_s, "prefill_ms": 1e3 * request.prefill_s}
        times["restore_ms"] = 1e3 * request.restore_s
        logits = request.logits.clone()
        if len(output):
            engine.append(request, output)
    return {**row, **times}, logits


def summary(
    table: pd.DataFrame, system: str, engine: HybridEngine, simulated: np.ndarray | None = None
) -> dict[str, Any]:
    """The sums of one system's requests, as the command line prints them; `simulated` hits are compared if given."""
    rows, cold = table[table["system"] == system], table[table["system"] == VANILLA]
    hits = rows["hit_tokens"].to_numpy()
    percentiles = {
        f"{prefix}ttft_ms_p{q}": float(np.percentile(part["ttft_ms"], q))
        for prefix, part in (("", rows), ("no_cache_", cold))
        for q in (50, 95)
    }
    memories = [tier.store.memory for tier in engine.cache.tiers]
    return {
        "system": system,
        "requests": len(rows),
        "input_tokens": int(rows["input_tokens"].sum()),
        "hit_tokens": int(hits.sum()),
        "from_host_tokens": int(rows["from_host_tokens"].sum()),
        "computed_tokens": int(rows["computed_tokens"].sum()),
        "token_hit_rate": float(hits.sum() / rows["input_tokens"].sum()),
        "simulated_hit_tokens": None if simulated is None else int(simulated.sum()),
        "hits_equal_simulated": None if simulated is None else bool(np.array_equal(hits, simulated)),
        **percentiles,
        "prefill_ms_p50": float(rows["prefill_ms"].median()),
        "restore_ms_p50": float(rows["restore_ms"].median()),
        "peak_bytes": engine.cache.index.peak_bytes,
        "host_peak_bytes": engine.cache.host.index.peak_bytes if engine.cache.host else 0,
        "held_bytes": [memory.used_bytes for memory in memories],
        "demoted_bytes": engine.cache.demoted_bytes,
        "promoted_bytes": engine.cache.promoted_bytes,
        "largest_logit_difference": float(rows["logit_difference"].max()),
        "logit_tolerance": engine.states.tolerance.limit,
        "resumed": engine.states.resume,
        "scan": engine.states.scan,
    }


def per_request(table: pd.DataFrame, system: str) -> list[dict[str, Any]]:
    """One system's requests in order, each with the time that it takes without a cache."""
    rows = table[table["system"] == system].drop(columns=["trace", "system"]).reset_index(drop=True)
    cold = table[table["system"] == VANILLA]["ttft_ms"].to_numpy()
    records = rows.assign(no_cache_ttft_ms=cold).to_dict("records")
    return [{str(key): value for key, value in row.items()} for row in records]
