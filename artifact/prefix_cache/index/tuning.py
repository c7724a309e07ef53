"""Choosing alpha from the cache's own requests (Marconi, section 4.2).

Corrected, the tuner does what the paper says: it copies the tree at the first eviction, lets a window of requests
pass, replays the window from the copy with each alpha and takes the one with the most reused tokens, the smallest
on a tie. As alpha 0 is among them, none is taken that is worse than 0 on the window.

The published simulator replays all requests so far from an empty tree and compares the FLOPs saved over the last
500; it fires only when the number of requests equals the window.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from artifact.prefix_cache.index.admission import EVERY_STATE
from artifact.prefix_cache.index.eviction import Tuned, copy_order, empty_order
from artifact.prefix_cache.index.fidelity import Fidelity
from artifact.prefix_cache.index.radix_tree import copy_tree, empty_tree

if TYPE_CHECKING:
    from artifact.prefix_cache.index.cache import CacheContents, Operations, PrefixCache

LAST_REQUESTS = 500


class Tuner:
    """Watches one cache and sets its alpha once."""

    def __init__(self, eviction: Tuned, fidelity: Fidelity) -> None:
        self.eviction, self.robust = eviction, fidelity.robust_tuner
        self.done = False
        self.scores: dict[float, float] = {}
        self._snapshot: CacheContents | None = None
        self._due: int | None = None
        self._window: list[Operations] = []

    def start(self, cache: PrefixCache) -> None:
        """The cache has just evicted for the first time."""
        from artifact.prefix_cache.index.cache import CacheContents, release_all

        seen = cache.requests
        self._due = self.eviction.bootstrap_multiplier * seen + (seen if self.robust else 0)
        if self.robust:
            self._snapshot = CacheContents(copy_tree(cache.state.tree), copy_order(cache.state.order))
            release_all(self._snapshot, cache.rules())
            self._window.clear()

    def next_stop(self, cache: PrefixCache, operations: Operations, done: int) -> int:
        """Where the cache must stop for the tuner; tunes first when it is time to."""
        from artifact.prefix_cache.index.cache import INSERT, LOOKUP

        count = len(operations.kind)
        if self.done or self._due is None:
            return count
        missing, kinds = self._due - cache.requests, operations.kind[done:]
        if missing > 0:
            lookups = np.flatnonzero(kinds == LOOKUP)
            return count if missing > len(lookups) else done + int(lookups[missing - 1]) + 1
        if kinds[0] == INSERT and (self.robust or missing == 0):
            self._tune(cache)
            return count
        insertions = np.flatnonzero(kinds == INSERT)  # with several requests in flight lookups may come first
        return done + int(insertions[0]) if self.robust and len(insertions) else count

    def record(self, operations: Operations, first: int, last: int) -> None:
        """Operations that the cache has done: they may have to be replayed."""
        from artifact.prefix_cache.index.cache import Operations

        if not self.done and not (self.robust and self._due is None):  # its window begins with the first eviction
            pool, *rest = operations
            self._window.append(Operations(pool, *(column[first:last] for column in rest)))

    def _tune(self, cache: PrefixCache) -> None:
        best = -1.0
        for alpha in self.eviction.grid:
            score = self._score(cache, alpha)
            self.scores[alpha] = score
            if score > best:
                best, cache.alpha = score, alpha
        self.done = True
        self._window.clear()
        self._snapshot = None

    def _score(self, cache: PrefixCache, alpha: float) -> float:
        from artifact.prefix_cache.index.cache import LOOKUP, CacheContents, run

        if self._snapshot is None:
            state = CacheContents(empty_tree(), empty_order())
        else:
            state = CacheContents(copy_tree(self._snapshot.tree), copy_order(self._snapshot.order))
        hits: list[Any] = []
        for operations in self._window:
            count = len(operations.kind)
            reused, used = np.zeros(count, np.int64), np.zeros(count, np.int64)
            state, _, _ = run(state, cache.rules(alpha), *operations, 0, count, False, EVERY_STATE, reused, used)
            hits.append(reused[operations.kind == LOOKUP])
        lengths = np.concatenate(hits)
        return float(lengths.sum() if self.robust else cache.spec.flops_saved(lengths[-LAST_REQUESTS:]))
