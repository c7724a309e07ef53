"""The prefix cache that a serving engine calls: `lookup` before a prefill, `insert` after the last decoded token."""

from __future__ import annotations

from typing import Any

import numpy as np

from artifact.prefix_cache.index.admission import EVERY_STATE, AtBranch, CheckpointPolicy, checkpoint_depths
from artifact.prefix_cache.index.base import CacheContents, Index, LiveNode, Operations
from artifact.prefix_cache.index.eviction import FlopAware, Lru, Tuned, empty_order, refresh
from artifact.prefix_cache.index.fidelity import CORRECTED, Fidelity
from artifact.prefix_cache.index.prefix_kernels import Rules, run
from artifact.prefix_cache.index.radix_tree import LIVE_STATES, NODE, Match, empty_tree, match, num_stale
from artifact.prefix_cache.index.tuning import Tuner
from artifact.prefix_cache.spec import HybridSpec
from artifact.prefix_cache.workloads.traces import Tokens


class PrefixCache(Index):
    """Prefix cache of a hybrid model: which states are kept, in how many bytes.

    spec:           the model's byte and FLOP costs
    capacity_bytes: KV and checkpoints together never take more (fidelity `corrected`)
    eviction:       Lru() is SGLang+, FlopAware(alpha) is Marconi with a fixed alpha, Tuned() is Marconi
    fidelity:       CORRECTED, or PUBLISHED for the published simulator's behaviour
    checkpoints:    which checkpoints a request leaves; AtBranch() is Marconi's (and that of SGLang+ in the paper)
    Raises:         ValueError for a capacity that is not positive, or for other checkpoints than AtBranch() together
                    with a defect of the published simulator
    """

    row_dtype = NODE

    def __init__(
        self,
        spec: HybridSpec,
        *,
        capacity_bytes: int,
        eviction: Lru | FlopAware | Tuned = Tuned(),  # noqa: B008 (frozen)
        fidelity: Fidelity = CORRECTED,
        checkpoints: CheckpointPolicy = AtBranch(),  # noqa: B008 (frozen)
    ) -> None:
        rule, fixes = checkpoints.rule(), fidelity.fixes()
        super().__init__(spec, capacity_bytes, fidelity, CacheContents(empty_tree(), empty_order()), rule.stride)
        if checkpoints != AtBranch() and not all(fixes):
            raise ValueError(f"checkpoints must be AtBranch() with a published defect, got {checkpoints}")
        self.eviction, self.checkpoints = eviction, checkpoints
        alpha = eviction.alpha if isinstance(eviction, FlopAware) else 0.0
        self._rules = Rules(spec.costs(), fixes, isinstance(eviction, Lru), float(alpha), self.capacity_bytes, rule)
        self._tuner = Tuner(eviction, fidelity, spec) if isinstance(eviction, Tuned) else None

    @property
    def alpha(self) -> float:
        """Weight of the FLOP efficiency now: the tuner's, once it has chosen one."""
        return self._rules.alpha if self._tuner is None else self._tuner.alpha

    @property
    def tuned(self) -> bool:
        """Whether the tuner has chosen alpha."""
        return self._tuner is not None and self._tuner.done

    @property
    def tuner_scores(self) -> dict[float, float]:
        """What each alpha reached on the tuner's window; empty before it has run."""
        return {} if self._tuner is None else dict(self._tuner.scores)

    @property
    def rules(self) -> Rules:
        """What the compiled cache decides by, with the present alpha."""
        return self._rules if self._tuner is None else self._rules._replace(alpha=self._tuner.alpha)

    def find(self, tokens: Tokens) -> Match:
        """How far `tokens` are in the tree, without refreshing anything."""
        return match(self.contents.tree, tokens, self.fidelity.true_prefix)

    def checkpoint_depths(self, resumable_tokens: int, matched_tokens: int, num_tokens: int) -> list[int]:
        """Depths at which a sequence of `num_tokens` tokens leaves a checkpoint, given its match; ascending."""
        rule, start = self._rules.checkpoints, resumable_tokens
        return checkpoint_depths(rule, start, matched_tokens, num_tokens, start, EVERY_STATE).tolist()

    @property
    def num_checkpoints(self) -> int:
        """Checkpoints held now."""
        return int(self.contents.tree.counts[LIVE_STATES])

    @property
    def num_stale_states(self) -> int:
        """Checkpoints of nodes merged away that would stay reachable (without correction B8)."""
        return num_stale(self.contents.tree)

    def take_arrays(self, arrays: dict[str, np.ndarray], values: dict[str, Any]) -> None:
        """Contents as `to_arrays` gave them, of a cache with the same rules. Nothing is pinned; what was is free."""
        super().take_arrays(arrays, values)
        if self._tuner is not None:
            self._tuner.alpha, self._tuner.done = values["alpha"], values["tuned"]
            if not self._tuner.done:  # its window is not kept: the next eviction begins another
                self.first_eviction_request = None

    def _advance(
        self, operations: Operations, first: int, available: Any, reused: np.ndarray, used: np.ndarray
    ) -> tuple[int, bool]:
        last, no_eviction_yet = len(operations.kind), self.first_eviction_request is None
        if self._tuner is not None:
            last = self._tuner.next_stop(operations, first, self.requests, self._rules)
        self.contents, end, evicted = run(
            self.contents, self.rules, *operations, first, last, no_eviction_yet, available, reused, used
        )
        if self._tuner is not None:
            self._tuner.record(operations, first, end)
        return end, evicted

    def _first_evicted(self) -> None:
        if self._tuner is not None:
            self._tuner.start(self.contents, self.requests, self.rules)

    def _refresh(self, node: int) -> None:
        refresh(*self.contents, node, self._rules.costs, self._rules.fixes, self._rules.lru)

    def _live_node(self, node: int, parent: int) -> LiveNode:
        tree, row = self.contents.tree, self.contents.tree.nodes[node]
        tokens = tree.tokens[row["start"] : row["start"] + row["length"]].copy()
        return LiveNode(node, parent, int(row["depth"]), tokens, bool(row["state"]))
