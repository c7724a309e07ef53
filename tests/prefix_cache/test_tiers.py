"""Checkpoint policies, the stores that follow an index, and the second tier: no tensors, every decision."""

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from artifact.prefix_cache.index.admission import (
    EVERY_STATE,
    AtBranch,
    ChunkAligned,
    EndOnly,
    EveryBlocks,
    checkpoint_depths,
    parse_checkpoint_policy,
)
from artifact.prefix_cache.index.base import INSERT, LOOKUP, Operations
from artifact.prefix_cache.index.block_cache import BlockCache
from artifact.prefix_cache.index.cache import PrefixCache
from artifact.prefix_cache.index.eviction import NONE, NOW, FlopAware, Lru, Tuned, least_recent, least_useful
from artifact.prefix_cache.index.fidelity import PUBLISHED
from artifact.prefix_cache.index.radix_tree import ROOT
from artifact.prefix_cache.index.tiers import TieredCache
from artifact.prefix_cache.simulation import GB, MARCONI, SGLANG, VLLM, operations, replay
from artifact.prefix_cache.spec import MARCONI_7B, HybridSpec
from artifact.prefix_cache.workloads import generators

SMALL = HybridSpec("small", 3, 2, 3, d_model=8, d_state=2)
CAPACITY = 8000
CHECKPOINT_POLICIES = (AtBranch(), EndOnly(), ChunkAligned(4), EveryBlocks(2, 2))
POLICIES = (Lru(), FlopAware(0.0), FlopAware(0.7), Tuned())
ROOM = 10**9


def index(eviction=FlopAware(0.7), checkpoints=AtBranch(), capacity=CAPACITY):  # noqa: B008 (frozen)
    return PrefixCache(SMALL, capacity_bytes=capacity, eviction=eviction, checkpoints=checkpoints)


def serve(cache, requests):
    """Hits of each request, by a plain index or a tiered cache."""
    hits = []
    for inp, out in requests:
        hit = cache.lookup(inp)
        hits.append(hit if isinstance(hit, int) else hit.reused)
        if not isinstance(hit, int):
            cache.release(hit)
        cache.insert(inp + out)
    return hits


def mirrored(tier):
    """The store's entries say of every node what the index says."""
    live = {each.node: each for each in tier.index.live_nodes()}
    assert live.keys() == tier.store.node_to_entry.keys()
    for node, entry in tier.store.node_to_entry.items():
        expected = live[node]
        assert (entry.parent, entry.depth) == (expected.parent, expected.depth)
        assert entry.tokens.tolist() == expected.tokens.tolist()
        assert (entry.checkpoint is not None) == expected.has_state
    return live


def states_held(tier):
    """Every prefix with a state, from the store alone."""
    paths = {node: tuple(tier.store.path(node).tokens.tolist()) for node in tier.store.node_to_entry}
    return {path for node, path in paths.items() if tier.store.node_to_entry[node].checkpoint is not None}


# checkpoint policies ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("checkpoints", "depths"),
    [
        (AtBranch(), {80, 100, 90}),
        (EndOnly(), {100, 90}),
        (ChunkAligned(32), {64, 100, 90}),  # the paper's 64 for 80
        (ChunkAligned(100), {100, 90}),
        (EveryBlocks(32, 1), {32, 64, 96, 100, 90}),
        (EveryBlocks(32, 2), {64, 100, 90}),
    ],
    ids=str,
)
def test_a_second_sequence_that_leaves_the_first_after_80_tokens_leaves_these_checkpoints(checkpoints, depths):
    first = list(range(100))
    second = [*range(80), *range(200, 210)]
    cache = TieredCache(index(checkpoints=checkpoints, capacity=ROOM), debug=True)
    serve(cache, [(first, []), (second, [])])
    mirrored(cache.device)
    assert {len(path) for path in states_held(cache.device)} == depths
    expected = max((depth for depth in depths if depth <= 80), default=0)
    assert cache.index.find(np.array([*range(80), 300], np.int32)).resumable_tokens == expected
    tokens = 110
    assert cache.index.used_bytes == len(depths) * SMALL.checkpoint_bytes + SMALL.kv_bytes(tokens)


def test_a_state_is_added_where_paths_part_without_one():
    cache = TieredCache(index(checkpoints=EndOnly(), capacity=ROOM), debug=True)
    serve(cache, [([1, 2, 3, 4], []), ([1, 2, 5], [])])  # parts after 2, without a state
    assert states_held(cache.device) == {(1, 2, 3, 4), (1, 2, 5)}
    serve(cache, [([1, 2], [])])
    assert states_held(cache.device) == {(1, 2, 3, 4), (1, 2, 5), (1, 2)}
    mirrored(cache.device)


def test_only_states_that_the_caller_has_are_kept():
    cache = index(capacity=ROOM)
    cache.insert([1, 2, 3, 4])
    cache.insert([1, 2, 9], available=[3])
    assert cache.num_checkpoints == 2 and cache.find(np.array([1, 2, 7], np.int32)).resumable_tokens == 0
    cache.insert([1, 2, 8], available=[2, 3])
    assert cache.num_checkpoints == 4 and cache.find(np.array([1, 2, 7], np.int32)).resumable_tokens == 2


@settings(deadline=None)
@given(st.integers(0, 40), st.integers(0, 40), st.integers(1, 40), st.sampled_from(CHECKPOINT_POLICIES))
def test_checkpoint_depths_ascend_beyond_the_resumed_tokens_to_the_end(resumable, matched, length, policy):
    resumable, matched = min(resumable, matched, length), min(matched, length)
    depths = checkpoint_depths(policy.rule(), resumable, matched, length, resumable, EVERY_STATE).tolist()
    assert depths == sorted(set(depths))
    assert all(resumable < depth <= length for depth in depths)
    assert (depths[-1:] == [length]) == (length > resumable)


def test_checkpoint_policies_by_name():
    assert [parse_checkpoint_policy(text) for text in ("branch", "end", "chunk:32", "every:64")] == [
        AtBranch(),
        EndOnly(),
        ChunkAligned(32),
        EveryBlocks(64),
    ]
    for text in ("", "branches", "branch:3", "chunk", "every:x", "every:-1", "end:"):
        with pytest.raises(ValueError, match="checkpoints must be branch, end, chunk:TOKENS or every:TOKENS, got"):
            parse_checkpoint_policy(text)
    for made, name in ((ChunkAligned, "chunk"), (EveryBlocks, "block_size")):
        with pytest.raises(ValueError, match=f"{name} must be positive and below 2\\*\\*31, got 0"):
            made(0)
        with pytest.raises(ValueError, match=f"{name} must be positive and below "):
            made(2**31)
    with pytest.raises(ValueError, match="checkpoints must be AtBranch"):
        PrefixCache(SMALL, capacity_bytes=1, fidelity=PUBLISHED, checkpoints=EndOnly())


# the stores follow ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("checkpoints", CHECKPOINT_POLICIES, ids=str)
@pytest.mark.parametrize("eviction", POLICIES, ids=str)
def test_a_store_mirrors_its_index_after_every_operation(random_requests, eviction, checkpoints):
    """And decisions do not depend on being followed; what is found is the longest prefix with a state."""
    for seed in range(6):
        requests = random_requests(seed)
        plain, cache = index(eviction, checkpoints), TieredCache(index(eviction, checkpoints), debug=True)
        for inp, out in requests:
            held = states_held(cache.device)
            longest = max((len(path) for path in held if tuple(inp[: len(path)]) == path), default=0)
            assert serve(plain, [(inp, out)]) == serve(cache, [(inp, out)]) == [longest]
            mirrored(cache.device)
            assert plain.used_bytes == cache.index.used_bytes <= CAPACITY


def test_a_store_mirrors_a_cache_of_blocks(random_requests):
    for block in (1, 3, 8):
        requests = random_requests(block)
        caches = [BlockCache(SMALL, capacity_bytes=3 * CAPACITY, block_size=block) for _ in range(2)]
        cache = TieredCache(caches[1], debug=True)
        for request in requests:
            assert serve(caches[0], [request]) == serve(cache, [request])
            mirrored(cache.device)


def brute_force(cache, alpha):
    """The victim by a scan of all nodes; efficiency over the nearest node above with a state."""
    live = {each.node: each for each in cache.live_nodes()}
    children = {node: [each for each in live.values() if each.parent == node] for node in (ROOT, *live)}
    rows, order = cache.contents.tree.nodes, cache.contents.order
    preorder, stack = [], [ROOT]
    while stack:
        node = stack.pop()
        preorder.append(node)
        child = rows[node]["last_child"]
        while child != NONE:
            stack.append(child)
            child = rows[child]["previous"]
    candidates = [n for n in preorder[1:] if len(children[n]) <= 1 and live[n].has_state]

    def efficiency(node):
        above = live[node].parent
        while above != ROOT and not live[above].has_state:
            above = live[above].parent
        depth = 0 if above == ROOT else live[above].depth
        freed = SMALL.checkpoint_bytes + (0 if children[node] else SMALL.kv_bytes(len(live[node].tokens)))
        return (SMALL.prefill_flops(live[node].depth) - SMALL.prefill_flops(depth)) / freed

    def normalised(values):
        low, high = min(values), max(values)
        return [1.0 if low == high else (v - low) / (high - low) for v in values]

    if not candidates:
        return NONE
    efficiencies = normalised([efficiency(n) for n in candidates])
    recencies = normalised([1 / (int(order.clock[NOW]) - int(order.last_access[n])) for n in candidates])
    utilities = [alpha * e + r for e, r in zip(efficiencies, recencies, strict=True)]
    return candidates[utilities.index(min(utilities))]


@pytest.mark.parametrize("checkpoints", CHECKPOINT_POLICIES[1:], ids=str)
def test_the_victim_is_that_of_a_scan_where_nodes_have_no_state(random_requests, checkpoints):
    for seed in range(8):
        cache = index(FlopAware(0.7), checkpoints)
        for inp, out in random_requests(seed):
            cache.lookup(inp)
            cache.insert(inp + out)
            cache.contents.order.clock[NOW] += 1
            assert least_useful(*cache.contents, 0.7) == brute_force(cache, 0.7)


@pytest.mark.parametrize("checkpoints", CHECKPOINT_POLICIES, ids=str)
@pytest.mark.parametrize("eviction", (Lru(), FlopAware(0.7)), ids=str)
def test_no_insertion_leaves_more_bytes_than_the_capacity(random_requests, eviction, checkpoints):
    """Also if an eviction merges a node of the matched path, as in these requests: the match must be made anew."""
    shapes = [(12, 2, 12), (17, 2, 12), (36, 2, 12), (47, 3, 60), (55, 2, 40), (86, 2, 40)]
    for seed, vocabulary, longest in shapes:
        for capacity in (CAPACITY, 12000):
            cache = index(eviction, checkpoints, capacity=capacity)
            for inp, out in random_requests(seed, vocabulary=vocabulary, longest=longest):
                cache.insert(inp + out)
                assert cache.used_bytes <= capacity


# pins -----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("eviction", (Lru(), FlopAware(1.0)), ids=str)
def test_what_a_request_holds_is_not_evicted_until_it_is_released(eviction):
    one = SMALL.checkpoint_bytes + SMALL.kv_bytes(4)
    cache = TieredCache(index(eviction, capacity=2 * one), debug=True)
    serve(cache, [([1, 1, 1, 1], []), ([2, 2, 2, 2], [])])
    holding = [cache.lookup([1, 1, 1, 1]), cache.lookup([1, 1, 1, 1]), cache.lookup([2, 2, 2, 2])]
    cache.insert([3, 3, 3, 3])  # no room but what is held
    assert states_held(cache.device) == {(1, 1, 1, 1), (2, 2, 2, 2)}
    cache.release(holding[0])
    cache.insert([3, 3, 3, 3])  # the other still holds it
    assert states_held(cache.device) == {(1, 1, 1, 1), (2, 2, 2, 2)}
    cache.release(holding[1])
    cache.release(holding[1])  # twice is once
    cache.insert([3, 3, 3, 3])
    assert states_held(cache.device) == {(2, 2, 2, 2), (3, 3, 3, 3)}
    cache.release(holding[2])
    cache.insert([4, 4, 4, 4, 4, 4])
    assert (4, 4, 4, 4, 4, 4) in states_held(cache.device) and cache.index.used_bytes <= 2 * one


def test_the_tuner_runs_whatever_is_in_flight_when_its_window_ends(random_requests):
    """Several lookups, then their insertions: the number of requests passes the window's end between two lookups."""
    made = [np.array(inp + out, np.int32) for inp, out in random_requests(0, count=96)]
    pool, length = np.concatenate(made), np.array([len(tokens) for tokens in made])
    groups = [range(5), *(range(i, i + 7) for i in range(5, 96, 7))]
    order = np.array([number for group in groups for number in (*group, *group)])
    kind = np.array([kind for group in groups for kind in (LOOKUP, INSERT) for _ in group])
    starts = np.cumsum(length) - length
    at_once, one_by_one = index(Tuned(2)), TieredCache(index(Tuned(2)), debug=True)
    together = Operations(pool, starts[order], length[order], kind)
    hits, _ = at_once.run(together)
    assert hits.tolist() == one_by_one.run(together)[0].tolist()
    assert at_once._tuner._due == 15 and at_once.tuned and at_once.tuner_scores == one_by_one.index.tuner_scores


def test_the_tuner_replays_as_if_nobody_held_anything():
    one = SMALL.checkpoint_bytes + SMALL.kv_bytes(4)
    cache = TieredCache(index(Tuned(5), capacity=2 * one), debug=True)
    serve(cache, [([1, 1, 1, 1], []), ([2, 2, 2, 2], [])])
    hit = cache.lookup([1, 1, 1, 1])
    cache.insert([3, 3, 3, 3])  # the first eviction: the tuner's copy is taken
    copy = cache.index._tuner._snapshot
    assert not copy.order.pins.any() and least_recent(copy.order) == hit.node
    assert cache.index.contents.order.pins[hit.node] == 1 and least_recent(cache.index.contents.order) != hit.node


def test_pinned_blocks_stay_too():
    block = SMALL.checkpoint_bytes + SMALL.kv_bytes(2)
    cache = TieredCache(BlockCache(SMALL, capacity_bytes=2 * block, block_size=2), debug=True)
    serve(cache, [([1, 1, 2, 2], [])])
    hit = cache.lookup([1, 1, 2, 2])
    cache.insert([3, 3])
    assert states_held(cache.device) == {(1, 1), (1, 1, 2, 2)}
    cache.release(hit)
    cache.insert([3, 3])
    assert states_held(cache.device) == {(1, 1), (3, 3)}


# the second tier ------------------------------------------------------------------------------------------------------
def test_what_is_evicted_is_found_in_the_second_tier_and_comes_back_with_its_checkpoint():
    one = SMALL.checkpoint_bytes + SMALL.kv_bytes(4)
    cache = TieredCache(index(Lru(), capacity=one), index(Lru(), capacity=10 * one), debug=True)
    serve(cache, [([1, 1, 1, 1], []), ([2, 2, 2, 2], [])])
    assert states_held(cache.device) == {(2, 2, 2, 2)} and states_held(cache.host) == {(1, 1, 1, 1)}
    assert cache.demoted_bytes == one
    hit = cache.lookup([1, 1, 1, 1, 5])
    assert (hit.reused, hit.from_host, hit.tier) == (4, 4, cache.device)
    assert states_held(cache.device) == {(1, 1, 1, 1)}
    assert states_held(cache.host) == {(1, 1, 1, 1), (2, 2, 2, 2)}  # kept there, and what made room for it
    assert (cache.promoted_bytes, cache.demoted_bytes) == (one, 2 * one)
    cache.release(hit)
    serve(cache, [([2, 2, 2, 2], [])])
    assert cache.demoted_bytes == 2 * one  # it was there already


def test_a_promoted_prefix_brings_no_state_where_it_leaves_a_path():
    one = SMALL.checkpoint_bytes + SMALL.kv_bytes(4)
    cache = TieredCache(index(Lru(), capacity=2 * one), index(Lru(), capacity=ROOM), debug=True)
    serve(cache, [([1, 2, 3, 4], []), ([7, 7, 7, 7], []), ([7, 7, 7, 8], []), ([1, 2, 9, 9], [])])
    assert (1, 2, 3, 4) not in states_held(cache.device) and (1, 2, 9, 9) in states_held(cache.device)
    hit = cache.lookup([1, 2, 3, 4])
    assert hit.from_host == 4 and (1, 2, 3, 4) in states_held(cache.device)
    assert (1, 2) not in states_held(cache.device)
    mirrored(cache.device)


def test_a_prefix_without_room_in_the_first_tier_is_resumed_from_the_second():
    one = SMALL.checkpoint_bytes + SMALL.kv_bytes(4)
    cache = TieredCache(index(Lru(), capacity=one), index(Lru(), capacity=10 * one), debug=True)
    serve(cache, [([1, 1, 1, 1], []), ([2, 2, 2, 2], [])])
    holding = cache.lookup([2, 2, 2, 2])
    hit = cache.lookup([1, 1, 1, 1])
    assert (hit.reused, hit.from_host, hit.tier) == (4, 4, cache.host)
    assert hit.path.tokens.tolist() == [1, 1, 1, 1]
    cache.release(hit)
    cache.release(holding)


@pytest.mark.parametrize("checkpoints", CHECKPOINT_POLICIES, ids=str)
@pytest.mark.parametrize("eviction", POLICIES, ids=str)
def test_two_tiers_hold_what_they_count_and_lose_nothing_while_the_second_has_room(
    random_requests, eviction, checkpoints
):
    for seed in range(4):
        requests = random_requests(seed)
        small = TieredCache(index(eviction, checkpoints), index(Lru(), capacity=2 * CAPACITY), debug=True)
        large = TieredCache(index(eviction, checkpoints), index(Lru(), capacity=ROOM), debug=True)
        endless, ever = index(eviction, checkpoints, capacity=ROOM), set()
        for request in requests:
            serve(small, [request])
            (hit,), (most,) = serve(large, [request]), serve(endless, [request])
            assert hit <= most
            assert small.host.index.used_bytes <= 2 * CAPACITY
            for tier in (*small.tiers, *large.tiers):
                mirrored(tier)
            ever |= states_held(large.device)
            assert ever == states_held(large.device) | states_held(large.host)


def test_a_simulation_of_one_tier_is_the_compiled_one_and_a_second_tier_adds_hits():
    trace = generators.chat(num_sessions=20)
    for system in (MARCONI, SGLANG):
        plain = replay(trace, MARCONI_7B, system=system, capacity_bytes=GB)
        two = replay(trace, MARCONI_7B, system=system, capacity_bytes=GB, host_capacity_bytes=4 * GB)
        none = replay(trace, MARCONI_7B, system=system, capacity_bytes=GB, host_capacity_bytes=1)
        assert np.array_equal(plain.hit_tokens, none.hit_tokens) and none.from_host_tokens == 0
        assert two.hit_tokens.sum() > plain.hit_tokens.sum() and two.from_host_tokens > 0
        assert two.summary()["from_host_tokens"] == two.from_host_tokens
    cache = TieredCache(PrefixCache(MARCONI_7B, capacity_bytes=GB, eviction=Lru()))
    reused, from_host, used = cache.run(operations(trace))
    assert np.array_equal(reused[::2], plain.hit_tokens) and from_host.sum() == 0
    assert np.array_equal(used[1::2], plain.used_bytes)


def test_what_cannot_hold_states_is_refused():
    defective = PrefixCache(SMALL, capacity_bytes=CAPACITY, fidelity=PUBLISHED)
    with pytest.raises(ValueError, match="an index must be of fidelity corrected to hold states"):
        TieredCache(defective)
    used = index()
    used.insert([1])
    with pytest.raises(ValueError, match="an index must be empty to hold states, got one with"):
        TieredCache(index(), used)
    with pytest.raises(ValueError, match="a second tier needs a PrefixCache before it, got a BlockCache"):
        TieredCache(BlockCache(SMALL, capacity_bytes=CAPACITY), index())
    trace = generators.chat(num_sessions=1)
    with pytest.raises(ValueError, match="a second tier needs a PrefixCache"):
        replay(trace, MARCONI_7B, system=VLLM, capacity_bytes=GB, host_capacity_bytes=GB)
    with pytest.raises(ValueError, match=r"vLLM\+ has a checkpoint after every block, got EndOnly"):
        replay(trace, MARCONI_7B, system=VLLM, capacity_bytes=GB, checkpoints=EndOnly())
    with pytest.raises(ValueError, match="a hit must reuse a token to have states"):
        _ = TieredCache(index()).lookup([1]).path
