"""A heuristic that sees the future: what better eviction could still gain.

Choosing what to keep among states of different sizes that depend on one another is NP-hard, so this is no bound. At
each eviction the node goes that saves the fewest tokens for each byte it holds and each request until its next use;
nodes that are never used again go first. It is labelled a heuristic wherever it is shown.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from artifact.prefix_cache.admission import bytes_needed
from artifact.prefix_cache.cache import PrefixCache, Rules, State, look_up, remove, store, used_bytes
from artifact.prefix_cache.eviction import FlopAware
from artifact.prefix_cache.fidelity import CORRECTED
from artifact.prefix_cache.radix_tree import ALLOCATED, DEAD, match
from artifact.prefix_cache.spec import HybridSpec
from artifact.prefix_cache.traces import Tokens, Trace

NEVER = np.iinfo(np.int64).max


class Future:
    """When a prefix is looked up next: all inputs in lexicographic order, so that a prefix is a range of them."""

    def __init__(self, trace: Trace) -> None:
        self.keys = [trace.input(i).astype(">u4").tobytes() for i in range(len(trace))]
        self.order: NDArray[np.int64] = np.array(sorted(range(len(trace)), key=self.keys.__getitem__), np.int64)
        self.sorted_keys = [self.keys[i] for i in self.order]

    def next_use(self, prefix: Tokens, now: int) -> int:
        """Number of the next request after `now` whose input starts with `prefix`; NEVER if there is none."""
        from bisect import bisect_left

        key = prefix.astype(">u4").tobytes()
        first = bisect_left(self.sorted_keys, key)
        last = bisect_left(self.sorted_keys, key + b"\xff\xff\xff\xff", lo=first)
        later = self.order[first:last]
        later = later[later > now]
        return int(later.min()) if later.size else NEVER


def replay_clairvoyant(trace: Trace, spec: HybridSpec, *, capacity_bytes: int) -> NDArray[np.int64]:
    """Reused tokens of each request under the heuristic. [requests]"""
    cache = PrefixCache(spec, capacity_bytes=capacity_bytes, eviction=FlopAware(0.0), fidelity=CORRECTED)
    rules, future = cache.rules(), Future(trace)
    hits = np.zeros(len(trace), np.int64)
    next_use: dict[int, int] = {}
    for now in range(len(trace)):
        sequence = trace.sequence(now)
        hits[now] = look_up(cache.state, rules, trace.input(now))
        if spec.sequence_bytes(len(sequence)) <= capacity_bytes:
            _make_room(cache, rules, sequence, future, next_use, now)
        cache.state, _ = store(cache.state, rules, sequence)
    return hits


def _make_room(cache: PrefixCache, rules: Rules, sequence: Tokens, future: Future, known: dict, now: int) -> None:
    while True:
        tree = cache.state.tree
        found = match(tree, sequence, True)
        if (
            used_bytes(tree, rules.costs) + bytes_needed(rules.costs, len(sequence), found, True)
            <= cache.capacity_bytes
        ):
            return
        nodes = tree.nodes[: tree.counts[ALLOCATED]]
        may_go = (nodes["parent"] >= 0) & (nodes["parent"] != DEAD) & (nodes["num_children"] <= 1)
        if cache.spec.checkpoint_bytes == 0:
            may_go &= nodes["num_children"] == 0
        may_go[[found.deepest, found.last]] = False
        candidates = np.flatnonzero(may_go)
        if candidates.size == 0:
            return
        scores = [_worth(cache, int(node), future, known, now) for node in candidates]
        victim = int(candidates[int(np.argmin(scores))])
        known.pop(victim, None)
        state, _ = remove(cache.state, rules, victim)
        cache.state = State(*state)


def _worth(cache: PrefixCache, node: int, future: Future, known: dict, now: int) -> float:
    tree = cache.state.tree
    row = tree.nodes[node]
    use = known.get(node)
    if use is None or use <= now:
        use = future.next_use(_prefix(cache, node), now)
        known[node] = use
    if use == NEVER:
        return 0.0
    leaf = row["num_children"] == 0
    freed = cache.spec.checkpoint_bytes + (cache.spec.kv_bytes(int(row["length"])) if leaf else 0)
    return float(row["length"]) / (freed * (use - now))


def _prefix(cache: PrefixCache, node: int) -> Tokens:
    tree, pieces = cache.state.tree, []
    while node > 0:
        row = tree.nodes[node]
        pieces.append(tree.tokens[row["start"] : row["start"] + row["length"]])
        node = int(row["parent"])
    return np.concatenate(pieces[::-1])
