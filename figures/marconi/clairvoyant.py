"""A heuristic that sees the future: what better eviction could still gain.

Choosing what to keep among states of different sizes that depend on one another is NP-hard, so this is no bound. At
each eviction the node goes that saves the fewest tokens for each byte it frees and each request until they are saved.
Two uses of a node count, the better one: the next request that takes it whole, and the next that enters its edge and
leaves within, where a branch point will be kept. It is labelled a heuristic wherever it is shown.
"""

from __future__ import annotations

from bisect import bisect_left

import numpy as np
from numpy.typing import NDArray

from artifact.prefix_cache.index.admission import bytes_needed
from artifact.prefix_cache.index.base import CacheContents
from artifact.prefix_cache.index.cache import PrefixCache
from artifact.prefix_cache.index.eviction import FlopAware
from artifact.prefix_cache.index.fidelity import CORRECTED
from artifact.prefix_cache.index.prefix_kernels import remove
from artifact.prefix_cache.index.radix_tree import ALLOCATED
from artifact.prefix_cache.spec import HybridSpec
from artifact.prefix_cache.workloads.traces import RequestTrace, Tokens

NEVER = np.iinfo(np.int64).max


class Future:
    """When a prefix is looked up next: all inputs in lexicographic order, so that a prefix is a range of them.

    What a node is worth is looked up again once its next use has passed or its edge has changed. It grows as the use
    comes nearer; between two looks it is taken as it was at the first.
    """

    def __init__(self, trace: RequestTrace) -> None:
        self._inputs = [trace.input(i) for i in range(len(trace))]
        keys = [tokens.astype(">u4").tobytes() for tokens in self._inputs]
        self._order: NDArray[np.int64] = np.array(sorted(range(len(trace)), key=keys.__getitem__), np.int64)
        self._sorted_keys = [keys[i] for i in self._order]
        self._seen = np.zeros(0, [("value", float), ("until", np.int64), ("length", np.int64)])

    def next_use(self, prefix: Tokens, now: int) -> int:
        """Number of the next request after `now` whose input starts with `prefix`; NEVER if there is none."""
        key = prefix.astype(">u4").tobytes()
        first = bisect_left(self._sorted_keys, key)
        uses = self._order[first : bisect_left(self._sorted_keys, key + b"\xff\xff\xff\xff", lo=first)]
        return int(uses[uses > now].min(initial=NEVER))

    def _value(self, prefix: Tokens, parent_depth: int, now: int) -> tuple[float, int]:
        """Tokens saved for each request until then, of the better use, and the request at which to look again."""
        whole, entered = self.next_use(prefix, now), self.next_use(prefix[: parent_depth + 1], now)
        best = 0.0 if whole == NEVER else (len(prefix) - parent_depth) / (whole - now)
        if entered != NEVER:
            tokens = self._inputs[entered][: len(prefix)]
            overlap = int(np.logical_and.accumulate(tokens == prefix[: len(tokens)]).sum())
            best = max(best, (overlap - parent_depth) / (entered - now))
        return best, min(whole, entered)

    def values(self, cache: PrefixCache, candidates: NDArray[np.intp], now: int) -> NDArray[np.float64]:
        """Tokens saved per request until they are saved, for each candidate."""
        nodes = cache.contents.tree.nodes
        self._seen = np.concatenate([self._seen, np.zeros(len(nodes) - len(self._seen), self._seen.dtype)])
        seen = self._seen[candidates]
        for node in candidates[(seen["until"] <= now) | (seen["length"] != nodes["length"][candidates])]:
            row = nodes[node]
            value, until = self._value(_prefix(cache, int(node)), int(row["depth"] - row["length"]), now)
            self._seen[node] = (value, until, row["length"])
        return self._seen["value"][candidates]

    def forget(self, node: int) -> None:
        """The node is gone; its number may come back."""
        self._seen["length"][node] = 0


def replay_clairvoyant(trace: RequestTrace, spec: HybridSpec, *, capacity_bytes: int) -> NDArray[np.int64]:
    """Reused tokens of each request under the heuristic. [requests]"""
    cache = PrefixCache(spec, capacity_bytes=capacity_bytes, eviction=FlopAware(0.0), fidelity=CORRECTED)
    future, hits = Future(trace), np.zeros(len(trace), np.int64)
    for now in range(len(trace)):
        hits[now] = cache.lookup(trace.input(now))
        if spec.sequence_bytes(len(trace.sequence(now))) <= capacity_bytes:
            _make_room(cache, trace.sequence(now), future, now)
        cache.insert(trace.sequence(now))
    return hits


def _make_room(cache: PrefixCache, sequence: Tokens, future: Future, now: int) -> None:
    """Evict until `sequence` fits, or nothing may go."""
    spec, rules = cache.spec, cache.rules
    while True:
        tree, found = cache.contents.tree, cache.find(sequence)
        states = len(cache.checkpoint_depths(found.resumable_tokens, found.matched_tokens, len(sequence)))
        need = bytes_needed(rules.costs, states, len(sequence), found.matched_tokens)
        nodes = tree.nodes[: tree.counts[ALLOCATED]]
        leaf = nodes["num_children"] == 0
        may_go = (nodes["parent"] >= 0) & (leaf | ((nodes["num_children"] == 1) & (spec.checkpoint_bytes > 0)))
        may_go[[found.deepest, found.last_visited]] = False
        candidates = np.flatnonzero(may_go)
        if cache.used_bytes + need <= cache.capacity_bytes or candidates.size == 0:
            return
        kv_bytes = np.where(leaf[candidates], nodes["length"][candidates] * spec.kv_bytes_per_token, 0)
        worth = future.values(cache, candidates, now) / (spec.checkpoint_bytes + kv_bytes)
        victim = int(candidates[np.argmin(worth)])
        future.forget(victim)
        state, _ = remove(cache.contents, rules, victim)
        cache.contents = CacheContents(*state)


def _prefix(cache: PrefixCache, node: int) -> Tokens:
    tree, pieces = cache.contents.tree, []
    while node > 0:
        row = tree.nodes[node]
        pieces.append(tree.tokens[row["start"] : row["start"] + row["length"]])
        node = int(row["parent"])
    return np.concatenate(pieces[::-1])
