"""A trace through a cache: what each request reuses, and the sums."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from artifact.prefix_cache.index.admission import AtBranch, CheckpointPolicy
from artifact.prefix_cache.index.base import INSERT, LOOKUP, Index, Operations
from artifact.prefix_cache.index.block_cache import BlockCache
from artifact.prefix_cache.index.cache import PrefixCache
from artifact.prefix_cache.index.eviction import FlopAware, Lru, Tuned
from artifact.prefix_cache.index.fidelity import CORRECTED, Fidelity
from artifact.prefix_cache.index.tiers import TieredCache
from artifact.prefix_cache.spec import HybridSpec
from artifact.prefix_cache.workloads.traces import RequestTrace

GB = 10**9
MARCONI, SGLANG, VLLM, VANILLA, INFINITE = "Marconi", "SGLang+", "vLLM+", "Vanilla", "Infinite cache"
SIMULATED_SYSTEMS = {"marconi": MARCONI, "sglang+": SGLANG, "vllm+": VLLM, "none": VANILLA, "infinite": INFINITE}
"""Labels of the systems by their names on the command line."""


@dataclass(frozen=True)
class Replay:
    """What a trace gave on one system. Hits are tokens that need not be computed; bytes are KV and checkpoints."""

    system: str
    hit_tokens: NDArray[np.int64] = field(repr=False)
    """[requests]"""
    used_bytes: NDArray[np.int64] = field(repr=False)
    """[requests], after each request"""
    input_length: NDArray[np.int64] = field(repr=False)
    """[requests]"""
    flops_saved: int
    peak_bytes: int
    alpha: float | None
    """The alpha at the end; None if the system has none."""
    tuned: bool
    """Whether the tuner has run."""
    first_eviction_request: int | None
    """Number of the first request that caused an eviction, from 1; None if none did."""
    num_checkpoints: int
    num_stale_states: int
    """Checkpoints that stay reachable after their node is gone (0 with correction B8)."""
    seconds: float
    from_host_tokens: int = 0
    """Those of the hit tokens that only the second tier had."""

    @property
    def token_hit_rate(self) -> float:
        """Reused tokens over input tokens, in [0, 1]."""
        return float(self.hit_tokens.sum() / self.input_length.sum())

    @property
    def request_hit_rate(self) -> float:
        """Requests that reuse any token, in [0, 1]. Nearly 1 if all sessions share a first token."""
        return float(np.mean(self.hit_tokens > 0))

    def summary(self) -> dict[str, object]:
        """The sums, as the command line prints them."""
        names = ("flops_saved", "peak_bytes", "alpha", "tuned", "first_eviction_request", "num_checkpoints")
        return {
            "system": self.system,
            "requests": len(self.input_length),
            "input_tokens": int(self.input_length.sum()),
            "hit_tokens": int(self.hit_tokens.sum()),
            "from_host_tokens": self.from_host_tokens,
            "token_hit_rate": self.token_hit_rate,
            "request_hit_rate": self.request_hit_rate,
            **{name: getattr(self, name) for name in names},
            "stale_states": self.num_stale_states,
            "seconds": self.seconds,
        }


def operations(trace: RequestTrace) -> Operations:
    """A lookup of the input and an insertion of input and output for each request."""
    length = np.stack([trace.input_length, trace.input_length + trace.output_length], axis=1).ravel()
    kind = np.tile(np.array([LOOKUP, INSERT]), len(trace))
    return Operations(trace.tokens, np.repeat(trace.start, 2), length, kind)


def index_for(
    system: str,
    spec: HybridSpec,
    *,
    capacity_bytes: int,
    alpha: float | None = None,
    block_size: int = 32,
    bootstrap_multiplier: int = 5,
    fidelity: Fidelity = CORRECTED,
    checkpoints: CheckpointPolicy = AtBranch(),  # noqa: B008 (frozen)
) -> Index:
    """The cache of a system (Marconi, SGLang+, vLLM+ or Infinite cache), empty; arguments as those of `replay`."""
    if system == VLLM:
        if checkpoints != AtBranch():
            raise ValueError(f"{VLLM} has a checkpoint after every block, got {checkpoints}")
        return BlockCache(spec, capacity_bytes=capacity_bytes, block_size=block_size, fidelity=fidelity)
    eviction: Lru | FlopAware | Tuned = Lru()
    if system == MARCONI:
        eviction = Tuned(bootstrap_multiplier) if alpha is None else FlopAware(alpha)
    return PrefixCache(
        spec, capacity_bytes=capacity_bytes, eviction=eviction, fidelity=fidelity, checkpoints=checkpoints
    )


def tiered(index: Index, host_capacity_bytes: int | None, *, debug: bool = False) -> TieredCache:
    """The index with a second tier of that capacity behind it (none without one), which evicts least recently used."""
    host = None
    if host_capacity_bytes is not None:
        host = PrefixCache(index.spec, capacity_bytes=host_capacity_bytes, eviction=Lru())
    return TieredCache(index, host, debug=debug)


def replay(
    trace: RequestTrace,
    spec: HybridSpec,
    *,
    system: str,
    capacity_bytes: int | None = None,
    host_capacity_bytes: int | None = None,
    alpha: float | None = None,
    block_size: int = 32,
    bootstrap_multiplier: int = 5,
    fidelity: Fidelity = CORRECTED,
    checkpoints: CheckpointPolicy = AtBranch(),  # noqa: B008 (frozen)
) -> Replay:
    """Run `trace` through one system (a label of SIMULATED_SYSTEMS).

    host_capacity_bytes: of a second tier, which takes what the first evicts
    alpha:               fixes alpha for Marconi; without it the tuner runs
    block_size:          of vLLM+
    checkpoints:         which checkpoints a request leaves, for all but vLLM+
    Raises:              ValueError for an unknown system, a capacity that is missing or not positive, an empty trace,
                         a second tier behind vLLM+
    """
    if len(trace) == 0:
        raise ValueError(f"a trace must hold a request, {trace.name} has none")
    if system not in SIMULATED_SYSTEMS.values():
        raise ValueError(f"system must be one of {', '.join(SIMULATED_SYSTEMS.values())}, got {system!r}")
    if system == VANILLA:
        nothing = np.zeros(len(trace), np.int64)
        return Replay(system, nothing, nothing, trace.input_length, 0, 0, None, False, None, 0, 0, 0.0)
    if system == INFINITE:
        capacity_bytes = 2**62
    if capacity_bytes is None:
        raise ValueError(f"{system} needs a capacity, got none")
    cache = index_for(
        system,
        spec,
        capacity_bytes=capacity_bytes,
        alpha=alpha,
        block_size=block_size,
        bootstrap_multiplier=bootstrap_multiplier,
        fidelity=fidelity,
        checkpoints=checkpoints,
    )
    began = time.perf_counter()
    from_host = np.zeros(0, np.int64)
    if host_capacity_bytes is None:
        reused, used = cache.run(operations(trace))
    else:
        reused, from_host, used = tiered(cache, host_capacity_bytes).run(operations(trace))
    seconds = time.perf_counter() - began
    hits = reused[::2]
    return Replay(
        system=system,
        hit_tokens=hits,
        used_bytes=used[1::2],
        input_length=trace.input_length,
        flops_saved=spec.flops_saved(hits),
        peak_bytes=cache.peak_bytes,
        alpha=cache.alpha if system == MARCONI else None,
        tuned=cache.tuned,
        first_eviction_request=cache.first_eviction_request,
        num_checkpoints=cache.num_checkpoints,
        num_stale_states=cache.num_stale_states,
        seconds=seconds,
        from_host_tokens=int(from_host.sum()),
    )


def request_table(result: Replay, trace: RequestTrace) -> pd.DataFrame:
    """One row a request, in order: session, turn, input, output and hit tokens."""
    return pd.DataFrame(
        {
            "request": np.arange(len(trace)),
            "session": trace.session,
            "turn": trace.turn,
            "system": result.system,
            "input_tokens": trace.input_length,
            "output_tokens": trace.output_length,
            "hit_tokens": result.hit_tokens,
        }
    )
