"""The compiled cache equals the plain transcription of the published simulator, request by request."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from reference import BlockTree, Cost, Tree

from artifact.prefix_cache.index.block_cache import BlockCache
from artifact.prefix_cache.index.cache import PrefixCache
from artifact.prefix_cache.index.eviction import NONE, NOW, FlopAware, Lru, Tuned, least_useful
from artifact.prefix_cache.index.fidelity import CORRECTED, CORRECTIONS, PUBLISHED, Fidelity
from artifact.prefix_cache.index.radix_tree import DEAD, ROOT
from artifact.prefix_cache.spec import MARCONI_7B, HybridSpec

SMALL = HybridSpec("small", 3, 2, 3, d_model=8, d_state=2)
SMALL_COST = Cost(ssm=3, attention=2, mlp=3, d=8, n=2)
CAPACITIES = (1500, 4000, 9000, 20000)
REFERENCE_FIXES = ("leaf_bytes", "mlp_saving", "freed_memory", "true_prefix")


def serve(cache, requests):
    hits = []
    for inp, out in requests:
        hits.append(cache.lookup(inp))
        cache.insert(inp + out)
    return hits


def test_costs_of_the_two_agree():
    assert SMALL.checkpoint_bytes == SMALL_COST.checkpoint
    assert SMALL.kv_bytes(7) == SMALL_COST.kv(7)
    assert SMALL.flops_saved([3, 5]) == SMALL_COST.saved([3, 5])


@pytest.mark.parametrize("capacity", CAPACITIES)
@pytest.mark.parametrize("alpha", [None, 0.0, 0.3, 2.0])
def test_every_hit_and_every_byte_equals_the_published_simulator(random_requests, capacity, alpha):
    for seed in range(40):
        requests = random_requests(seed)
        oracle = Tree(capacity, SMALL_COST, alpha=alpha)
        eviction = Lru() if alpha is None else FlopAware(alpha)
        cache = PrefixCache(SMALL, capacity_bytes=capacity, eviction=eviction, fidelity=PUBLISHED)
        for inp, out in requests:
            assert cache.lookup(inp) == oracle.request(inp, out)
            cache.insert(inp + out)
            assert cache.used_bytes == oracle.bytes()
        assert cache.first_eviction_request == oracle.first_eviction
        assert cache.peak_bytes >= oracle.peak


@pytest.mark.parametrize("fix", REFERENCE_FIXES)
def test_each_correction_alone_equals_the_reference_with_it(random_requests, fix):
    fidelity = Fidelity(**{name: name == fix for name in CORRECTIONS.values()})
    for seed in range(20):
        requests = random_requests(seed)
        oracle = Tree(4000, SMALL_COST, alpha=0.7, fixes=[fix])
        cache = PrefixCache(SMALL, capacity_bytes=4000, eviction=FlopAware(0.7), fidelity=fidelity)
        assert serve(cache, requests) == [oracle.request(inp, out) for inp, out in requests]


def test_the_published_tuner_is_followed(random_requests):
    chosen = []
    for seed in range(12):
        requests = random_requests(seed, count=150)
        oracle = Tree(20000, SMALL_COST, alpha=0.0, bootstrap=5)
        cache = PrefixCache(SMALL, capacity_bytes=20000, eviction=Tuned(5), fidelity=PUBLISHED)
        assert serve(cache, requests) == [oracle.request(inp, out) for inp, out in requests]
        assert cache.tuned == (oracle.tuned is not None)
        assert cache.alpha == oracle.alpha
        chosen.append(cache.alpha)
    assert len(set(chosen)) > 1


@pytest.mark.parametrize("block", [1, 3, 4, 8])
def test_blocks_equal_the_published_baseline(random_requests, block):
    for seed in range(30):
        requests = random_requests(seed)
        oracle = BlockTree(9000, block, SMALL_COST)
        cache = BlockCache(SMALL, capacity_bytes=9000, block_size=block, fidelity=PUBLISHED)
        for inp, out in requests:
            assert cache.lookup(inp) == oracle.request(inp, out)
            cache.insert(inp + out)
            assert cache.used_bytes == oracle.bytes()


def brute_force(cache, alpha):
    """The victim by a scan of all nodes, from the tree's rows alone."""
    nodes, order = cache.contents.tree.nodes, cache.contents.order
    stack, preorder = [ROOT], []
    while stack:
        node = stack.pop()
        preorder.append(node)
        child = nodes[node]["last_child"]
        while child != NONE:
            stack.append(child)
            child = nodes[child]["previous"]
    candidates = [n for n in preorder[1:] if nodes[n]["num_children"] <= 1]
    if not candidates:
        return NONE
    spec = cache.spec

    def efficiency(node):
        depth, edge = int(nodes[node]["depth"]), int(nodes[node]["length"])
        freed = spec.checkpoint_bytes + (0 if nodes[node]["num_children"] else spec.kv_bytes(edge))
        return (spec.prefill_flops(depth) - spec.prefill_flops(depth - edge)) / freed

    def normalised(values):
        low, high = min(values), max(values)
        return [1.0 if low == high else (v - low) / (high - low) for v in values]

    efficiencies = normalised([efficiency(n) for n in candidates])
    recencies = normalised([1 / (int(order.clock[NOW]) - int(order.last_access[n])) for n in candidates])
    utilities = [alpha * e + r for e, r in zip(efficiencies, recencies, strict=True)]
    return candidates[utilities.index(min(utilities))]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0.0, 0.1, 1.0, 3.0]), st.sampled_from([3000, 12000, 10**6]))
def test_the_search_finds_the_victim_of_a_scan_of_all_nodes(seed, alpha, capacity):
    rng = np.random.default_rng(seed)
    cache = PrefixCache(SMALL, capacity_bytes=capacity, eviction=FlopAware(alpha), fidelity=CORRECTED)
    known = [[]]
    for _ in range(80):
        base = known[rng.integers(len(known))]
        sequence = [*base[: rng.integers(len(base) + 1)], *rng.integers(3, size=rng.integers(1, 9)).tolist()]
        known.append(sequence)
        cache.lookup(sequence[: rng.integers(1, len(sequence) + 1)])
        cache.insert(sequence)
        cache.contents.order.clock[NOW] += 1
        assert least_useful(*cache.contents, alpha) == brute_force(cache, alpha)
        live = [n for n in range(1, cache.contents.tree.counts[0]) if cache.contents.tree.nodes[n]["parent"] != DEAD]
        assert len(live) == cache.num_checkpoints


def test_the_default_model_is_the_papers():
    assert MARCONI_7B.checkpoint_bytes == Cost().checkpoint == 26_787_840
    assert MARCONI_7B.kv_bytes_per_token == 65_536
