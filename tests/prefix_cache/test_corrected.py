"""What the corrected cache promises, on random requests."""

import numpy as np
import pytest

from artifact.prefix_cache.index.block_cache import BlockCache
from artifact.prefix_cache.index.cache import PrefixCache
from artifact.prefix_cache.index.eviction import FlopAware, Lru, Tuned
from artifact.prefix_cache.index.fidelity import CORRECTED, CORRECTIONS, PUBLISHED, Fidelity, fidelity_label
from artifact.prefix_cache.index.radix_tree import DEAD, LIVE_TOKENS, NONE, ROOT, child_of
from artifact.prefix_cache.spec import HybridSpec

SMALL = HybridSpec("small", 3, 2, 3, d_model=8, d_state=2)
TRANSFORMER = HybridSpec("small-transformer", 0, 2, 3, d_model=8, d_state=2)
EVICTIONS = (Lru(), FlopAware(0.0), FlopAware(0.5), Tuned(2))
CAPACITIES = (900, 2000, 5000, 14000)


def make(eviction, capacity, spec=SMALL, fidelity=CORRECTED):
    if eviction == "blocks":
        return BlockCache(spec, capacity_bytes=capacity, block_size=4, fidelity=fidelity)
    return PrefixCache(spec, capacity_bytes=capacity, eviction=eviction, fidelity=fidelity)


@pytest.mark.parametrize("spec", [SMALL, TRANSFORMER], ids=lambda spec: spec.name)
@pytest.mark.parametrize("eviction", [*EVICTIONS, "blocks"], ids=str)
def test_the_bytes_held_never_exceed_the_capacity(random_requests, eviction, spec):
    for seed in range(15):
        for capacity in CAPACITIES:
            cache = make(eviction, capacity, spec)
            for inp, out in random_requests(seed):
                cache.lookup(inp)
                assert cache.used_bytes <= capacity
                cache.insert(inp + out)
                assert cache.used_bytes <= capacity
            assert cache.peak_bytes <= capacity


@pytest.mark.parametrize("eviction", EVICTIONS, ids=str)
def test_a_hit_is_a_prefix_of_what_was_served(random_requests, eviction):
    for seed in range(15):
        cache, served = make(eviction, 5000), set()
        for inp, out in random_requests(seed):
            hit = cache.lookup(inp)
            assert hit == 0 or tuple(inp[:hit]) in served
            cache.insert(inp + out)
            whole = tuple(inp + out)
            served.update(whole[:end] for end in range(1, len(whole) + 1))


@pytest.mark.parametrize("spec", [SMALL, TRANSFORMER], ids=lambda spec: spec.name)
@pytest.mark.parametrize("eviction", [*EVICTIONS, "blocks"], ids=str)
def test_a_sequence_that_fits_is_cached_whole_and_one_that_cannot_is_refused(random_requests, eviction, spec):
    cached = refused = 0
    for seed in range(15):
        for capacity in CAPACITIES:
            cache = make(eviction, capacity, spec)
            for inp, out in random_requests(seed):
                cache.lookup(inp)
                before = cache.used_bytes
                cache.insert(inp + out)
                checkpoints = -(-len(inp + out) // 4) if eviction == "blocks" else 1
                if checkpoints * spec.checkpoint_bytes + spec.kv_bytes(len(inp + out)) <= capacity:
                    cached += 1
                    assert cache.lookup(inp + out) == len(inp + out)
                else:
                    refused += 1
                    assert cache.used_bytes == before
    assert cached and refused


@pytest.mark.parametrize("eviction", EVICTIONS, ids=str)
@pytest.mark.parametrize("fidelity", [PUBLISHED, CORRECTED], ids=["published", "corrected"])
def test_counters_and_links_agree_with_the_tree(random_requests, eviction, fidelity):
    for seed in range(10):
        cache = make(eviction, 5000, fidelity=fidelity)
        for inp, out in random_requests(seed):
            cache.lookup(inp)
            cache.insert(inp + out)
            tree, order = cache.contents
            live = [n for n in range(1, tree.counts[0]) if tree.nodes[n]["parent"] != DEAD]
            assert len(live) == cache.num_checkpoints
            assert sum(int(tree.nodes[n]["length"]) for n in live) == tree.counts[LIVE_TOKENS]
            for n in live:
                row = tree.nodes[n]
                assert child_of(tree, row["parent"], tree.tokens[row["start"]]) == n
                assert row["depth"] == tree.nodes[row["parent"]]["depth"] + row["length"]
                assert order.owner[order.position[n]] == n
            places = sorted(live, key=lambda n: order.position[n])
            assert all(np.diff([order.last_access[n] for n in places]) >= 0)
            for n in [ROOT, *live]:
                child, count, before = tree.nodes[n]["first_child"], 0, NONE
                while child != NONE:
                    assert tree.nodes[child]["parent"] == n and tree.nodes[child]["previous"] == before
                    child, before, count = tree.nodes[child]["next"], child, count + 1
                assert count == tree.nodes[n]["num_children"] and tree.nodes[n]["last_child"] == before


def test_the_published_walk_reports_a_hit_that_is_no_prefix_and_the_corrected_one_does_not():
    for fidelity, expected in ((PUBLISHED, 2), (CORRECTED, 0)):
        cache = make(Lru(), 10**6, fidelity=fidelity)
        cache.insert([1, 2, 3])
        cache.insert([1, 2, 3, 4, 5])
        assert cache.lookup([1, 2, 4, 5, 9]) == expected


def test_flop_aware_keeps_the_long_prefix_that_lru_evicts():
    long, short = list(range(100, 160)), [[i, i + 1] for i in range(1, 9, 2)]
    capacity = 3 * SMALL.checkpoint_bytes + SMALL.kv_bytes(70)
    hits = {}
    for eviction in (Lru(), FlopAware(2.0)):
        cache = make(eviction, capacity)
        for sequence in [long, *short]:
            cache.insert(sequence)
        hits[eviction] = cache.lookup(long)
    assert hits == {Lru(): 0, FlopAware(2.0): len(long)}


def test_a_shared_input_is_reused_from_its_third_occurrence_on():
    cache, shared = make(Lru(), 10**6), [7, 7, 7, 7]
    hits = []
    for question in ([1, 2], [3, 4], [5, 6], [8, 9]):
        hits.append(cache.lookup(shared + question))
        cache.insert([*shared, *question, 0])
    assert hits == [0, 0, 4, 4]


def test_a_request_leaves_at_most_two_checkpoints(random_requests):
    for seed in range(10):
        cache = make(Lru(), 10**9)
        for inp, out in random_requests(seed):
            before = cache.num_checkpoints
            cache.lookup(inp)
            cache.insert(inp + out)
            assert cache.num_checkpoints - before <= 2


def test_the_tuner_is_deterministic_and_never_worse_than_alpha_zero_on_its_window(random_requests):
    for seed in range(8):
        runs = []
        for _ in range(2):
            cache = make(Tuned(3), 20000)
            for inp, out in random_requests(seed, count=150):
                cache.lookup(inp)
                cache.insert(inp + out)
            assert cache.tuned
            scores = cache.tuner_scores
            assert scores[cache.alpha] == max(scores.values()) >= scores[0.0]
            assert cache.alpha == min(alpha for alpha, score in scores.items() if score == max(scores.values()))
            runs.append((cache.alpha, scores))
        assert runs[0] == runs[1]


def test_without_the_last_correction_merged_states_stay_reachable(random_requests):
    stale = {}
    for text in ("corrected", "corrected-B8"):
        cache = make(FlopAware(0.2), 20000, fidelity=Fidelity.parse(text))
        hits = []
        stale[text] = 0
        for inp, out in random_requests(3, count=200):
            hits.append(cache.lookup(inp))
            cache.insert(inp + out)
            stale[text] = max(stale[text], cache.num_stale_states)
        stale[text, "hits"] = hits
    assert stale["corrected"] == 0 < stale["corrected-B8"]
    assert stale["corrected", "hits"] == stale["corrected-B8", "hits"]


def test_fidelity_is_parsed_and_its_mistakes_are_named():
    assert Fidelity.parse("published") == Fidelity.parse("artifact") == PUBLISHED
    assert Fidelity.parse("corrected") == CORRECTED
    assert Fidelity.parse("artifact+B2") == Fidelity.parse("published+B2")
    assert [fidelity_label(text) for text in ("artifact+B2", "corrected-B7")] == ["published+B2", "corrected-B7"]
    assert Fidelity.parse("published+B1+B8") == Fidelity(
        **{name: name in ("leaf_bytes", "no_stale_states") for name in CORRECTIONS.values()}
    )
    assert not Fidelity.parse("corrected-B3").freed_memory
    for wrong in ("exact", "published+B9", "corrected-", ""):
        with pytest.raises(ValueError, match="fidelity"):
            Fidelity.parse(wrong)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: make(Lru(), 0), "capacity_bytes must be positive, got 0"),
        (lambda: make("blocks", -1), "capacity_bytes must be positive, got -1"),
        (lambda: BlockCache(SMALL, capacity_bytes=1, block_size=0), "block_size must be positive and at most"),
        (lambda: BlockCache(SMALL, capacity_bytes=1, block_size=10**12), "block_size must be positive and at most"),
        (lambda: FlopAware(-0.1), "alpha must be finite and not negative, got -0.1"),
        (lambda: FlopAware(float("inf")), "alpha must be finite and not negative, got inf"),
        (lambda: Tuned(grid=(0.0, float("inf"))), "grid must hold alpha 0 and no negative or infinite alpha"),
        (lambda: Tuned(0), "bootstrap_multiplier must be positive, got 0"),
        (lambda: make(Lru(), 100).lookup([]), "at least one token"),
        (lambda: make(Lru(), 100).insert([1, -2]), r"got -2 at position 1"),
        (lambda: make(Lru(), 100).lookup([2**31]), r"got 2147483648 at position 0"),
    ],
)
def test_bad_input_is_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()
