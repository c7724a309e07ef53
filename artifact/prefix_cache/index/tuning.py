"""Choosing alpha from the cache's own requests (Marconi, section 4.2).

Corrected, the tuner does what the paper says: it copies the tree at the first eviction, lets a window of requests
pass, replays the window from the copy with each alpha and takes the one with the most reused tokens, the smallest
on a tie. As alpha 0 is among them, none is taken that is worse than 0 on the window.

The published simulator replays all requests so far from an empty tree and compares the FLOPs saved over the last
500; it fires only when the number of requests equals the window.
"""

from __future__ import annotations

import numpy as np

from artifact.prefix_cache.index.admission import EVERY_STATE
from artifact.prefix_cache.index.base import INSERT, LOOKUP, CacheContents, Operations
from artifact.prefix_cache.index.eviction import Tuned, copy_order, empty_order, refresh
from artifact.prefix_cache.index.fidelity import Fidelity
from artifact.prefix_cache.index.prefix_kernels import Rules, run
from artifact.prefix_cache.index.radix_tree import ALLOCATED, DEAD, copy_tree, empty_tree
from artifact.prefix_cache.spec import HybridSpec

LAST_REQUESTS = 500


class Tuner:
    """Watches the operations of one cache and chooses its alpha once."""

    def __init__(self, eviction: Tuned, fidelity: Fidelity, spec: HybridSpec) -> None:
        self.eviction, self.robust, self.spec = eviction, fidelity.robust_tuner, spec
        self.alpha = 0.0
        self.done = False
        self.scores: dict[float, float] = {}
        self._snapshot: CacheContents | None = None
        self._due: int | None = None
        self._window: list[Operations] = []

    def start(self, contents: CacheContents, requests: int, rules: Rules) -> None:
        """The cache has just evicted for the first time, in its request number `requests`."""
        self._due = self.eviction.bootstrap_multiplier * requests + (requests if self.robust else 0)
        if self.robust:
            self._snapshot = _copied(contents)
            self._snapshot.order.pins[:] = 0  # a replay holds nothing of what is in flight now
            for node in range(1, int(contents.tree.counts[ALLOCATED])):
                if contents.tree.nodes[node]["parent"] != DEAD:
                    refresh(*self._snapshot, node, rules.costs, rules.fixes, rules.lru)
            self._window.clear()

    def next_stop(self, operations: Operations, done: int, requests: int, rules: Rules) -> int:
        """The operation at which the cache must stop for the tuner; tunes first when it is time to.

        done: operations that the cache has done, in `requests` requests; its next ones are those from `done` on
        """
        count = len(operations.kind)
        if self.done or self._due is None:
            return count
        missing, kinds = self._due - requests, operations.kind[done:]
        if missing > 0:
            lookups = np.flatnonzero(kinds == LOOKUP)
            return count if missing > len(lookups) else done + int(lookups[missing - 1]) + 1
        if kinds[0] == INSERT and (self.robust or missing == 0):
            self._tune(rules)
            return count
        insertions = np.flatnonzero(kinds == INSERT)  # with several requests in flight lookups may come first
        return done + int(insertions[0]) if self.robust and len(insertions) else count

    def record(self, operations: Operations, first: int, last: int) -> None:
        """Operations that the cache has done: they may have to be replayed."""
        if not self.done and not (self.robust and self._due is None):  # its window begins with the first eviction
            pool, *rest = operations
            self._window.append(Operations(pool, *(column[first:last] for column in rest)))

    def _tune(self, rules: Rules) -> None:
        self.scores = {alpha: self._score(rules._replace(alpha=alpha)) for alpha in self.eviction.grid}
        self.alpha = max(self.scores, key=self.scores.__getitem__)  # the first of the best
        self.done = True
        self._window.clear()
        self._snapshot = None

    def _score(self, rules: Rules) -> float:
        """What the window reuses with these rules: tokens, or FLOPs saved in the published simulator."""
        fresh = CacheContents(empty_tree(), empty_order())
        contents = fresh if self._snapshot is None else _copied(self._snapshot)
        hits = []
        for operations in self._window:
            count = len(operations.kind)
            reused, used = np.zeros(count, np.int64), np.zeros(count, np.int64)
            contents, _, _ = run(contents, rules, *operations, 0, count, False, EVERY_STATE, reused, used)
            hits.append(reused[operations.kind == LOOKUP])
        lengths = np.concatenate(hits)
        return float(lengths.sum() if self.robust else self.spec.flops_saved(lengths[-LAST_REQUESTS:]))


def _copied(contents: CacheContents) -> CacheContents:
    return CacheContents(copy_tree(contents.tree), copy_order(contents.order))
