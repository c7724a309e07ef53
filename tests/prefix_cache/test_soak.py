"""Ten thousand random operations on real tensors: bytes do not drift, nothing leaks, logits stay right."""

import gc

import numpy as np
import pytest
import torch

from artifact.prefix_cache.index.cache import PrefixCache
from artifact.prefix_cache.index.eviction import FlopAware, Lru
from artifact.prefix_cache.index.tiers import TieredCache
from artifact.prefix_cache.serving.engine import HybridEngine
from artifact.prefix_cache.serving.hybrid_models import build_model, spec_of

torch.set_num_threads(1)
OPERATIONS = 10_000
IN_FLIGHT = 4


def make(model):
    spec = spec_of(model)
    index = PrefixCache(spec, capacity_bytes=8 * spec.checkpoint_bytes + spec.kv_bytes(300), eviction=FlopAware(0.3))
    host = PrefixCache(spec, capacity_bytes=20 * spec.checkpoint_bytes + spec.kv_bytes(900), eviction=Lru())
    return HybridEngine(model, TieredCache(index, host), debug=True)


@pytest.mark.slow
def test_ten_thousand_random_operations(tmp_path):
    """Lookups, insertions, evictions, demotions, promotions, saves, loads and pins of several requests, in any order.

    The debug mode compares index, stores and living tensors after every operation.
    """
    model = build_model("granite-tiny", device="cpu")
    engine, rng = make(model), np.random.default_rng(0)
    known, in_flight = [np.empty(0, np.int64)], []
    counts = dict.fromkeys(("lookup", "insert", "abort", "decode", "save and load", "checked"), 0)
    demoted = promoted = done = 0
    while done < OPERATIONS:
        done += 1
        choice = rng.random()
        if (choice < 0.42 and len(in_flight) < IN_FLIGHT) or not in_flight:
            base = known[rng.integers(len(known))]
            new = rng.integers(1024, size=rng.integers(1, 16))
            request = engine.prefill(np.concatenate((base[: rng.integers(len(base) + 1)][:60], new)))
            in_flight.append(request)
            counts["lookup"] += 1
            if rng.random() < 0.1:
                cold = engine.cold(request.tokens)[1]
                assert engine.states.tolerance.difference(request.logits, cold) <= 1e-5
                counts["checked"] += 1
        elif choice < 0.84:
            request = in_flight.pop(rng.integers(len(in_flight)))
            known = [*known[-200:], request.tokens]
            engine.finish(request)
            counts["insert"] += 1
        elif choice < 0.9:
            engine.abort(in_flight.pop(rng.integers(len(in_flight))))
            counts["abort"] += 1
        elif choice < 0.996:
            engine.decode(in_flight[rng.integers(len(in_flight))], 1)
            counts["decode"] += 1
        else:  # requests in flight do not survive a restart
            engine.save(tmp_path / "cache")
            demoted, promoted = demoted + engine.cache.demoted_bytes, promoted + engine.cache.promoted_bytes
            engine, in_flight = make(model), []
            engine.load(tmp_path / "cache")
            counts["save and load"] += 1
    assert min(counts.values()) > 20, counts
    assert demoted > 1000 * spec_of(model).checkpoint_bytes and promoted > 100 * spec_of(model).checkpoint_bytes
    for request in in_flight:
        engine.abort(request)
    memories = [tier.store.memory for tier in engine.cache.tiers]
    for tier in engine.cache.tiers:
        tier.check()
        assert not tier.index.contents.order.pins.any()
    del engine, request, in_flight, tier
    gc.collect()
    assert [memory.held_bytes for memory in memories] == [0, 0]
