"""The block-granular baseline (vLLM+): a trie of token blocks with one checkpoint a block (Marconi, section 5.1).

The last block of a sequence may be partial: it is matched when the request contains it whole, filled in place when
a longer sequence continues it, and gets a sibling when one diverges from it. Eviction is least recently used, leaves
only; a lookup refreshes every block it enters. Which blocks a serving engine would really keep differs (it never
caches a partial block), so this favours the baseline, as in the paper.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from artifact.prefix_cache.index.base import CacheContents, Index, LiveNode, Operations
from artifact.prefix_cache.index.block_kernels import (
    ADMITTED,
    BLOCK,
    STATE_REUSED,
    BlockRules,
    empty_block_tree,
    find_blocks,
    refresh_block,
    run_blocks,
)
from artifact.prefix_cache.index.eviction import empty_order
from artifact.prefix_cache.index.fidelity import CORRECTED, Fidelity
from artifact.prefix_cache.index.radix_tree import LIVE_NODES, ROOT, Match
from artifact.prefix_cache.spec import HybridSpec
from artifact.prefix_cache.workloads.traces import Tokens

LARGEST_BLOCK = 2**20
"""Tokens. Each block takes the memory of a full one, however few tokens it holds."""


class BlockCache(Index):
    """Prefix cache with one checkpoint for each block of `block_size` tokens (vLLM+).

    Raises: ValueError for a capacity that is not positive, a block size out of range
    """

    row_dtype = BLOCK

    def __init__(
        self, spec: HybridSpec, *, capacity_bytes: int, block_size: int = 32, fidelity: Fidelity = CORRECTED
    ) -> None:
        if not 1 <= block_size <= LARGEST_BLOCK:
            raise ValueError(f"block_size must be positive and at most {LARGEST_BLOCK}, got {block_size}")
        contents = CacheContents(empty_block_tree(block_size), empty_order())
        super().__init__(spec, capacity_bytes, fidelity, contents, block_size)
        self.block_size = block_size
        costs, fixes = (spec.checkpoint_bytes, spec.kv_bytes_per_token), (fidelity.pin_path, fidelity.refuse_oversized)
        self._rules = BlockRules(*costs, *fixes, self.capacity_bytes)

    def find(self, tokens: Tokens) -> Match:
        """How far `tokens` are in the tree, without refreshing anything."""
        path, reused = find_blocks(self.contents.tree, tokens)
        node = int(path[-1]) if len(path) else ROOT
        return Match(node, int(reused), int(reused), node, node)

    def checkpoint_depths(self, resumable_tokens: int, matched_tokens: int, num_tokens: int) -> list[int]:
        """Depths at which a sequence leaves a checkpoint, given its match: the end of every new block."""
        size = self.block_size
        depths = [*range((resumable_tokens // size + 1) * size, num_tokens, size)]
        return [*depths, num_tokens] if num_tokens > resumable_tokens else depths

    @property
    def num_checkpoints(self) -> int:
        """Checkpoints held now: one for each block."""
        return int(self.contents.tree.counts[LIVE_NODES])

    @property
    def block_reuse(self) -> tuple[int, int, int]:
        """Blocks ever admitted, those whose KV was reused since, and those whose state was (figure 3a)."""
        admitted, kv, state = self.contents.tree.counts[ADMITTED : STATE_REUSED + 1]
        return int(admitted), int(kv), int(state)

    def _advance(
        self, operations: Operations, first: int, available: Any, reused: np.ndarray, used: np.ndarray
    ) -> tuple[int, bool]:
        no_eviction_yet = self.first_eviction_request is None
        tree, order, end, evicted = run_blocks(
            *self.contents, self._rules, *operations, first, no_eviction_yet, reused, used
        )
        self.contents = CacheContents(tree, order)
        return end, evicted

    def _refresh(self, node: int) -> None:
        refresh_block(*self.contents, node)

    def _live_node(self, node: int, parent: int) -> LiveNode:
        tree = self.contents.tree
        depth, above = int(tree.nodes[node]["length"]), parent
        while above != ROOT:
            depth, above = depth + int(tree.nodes[above]["length"]), int(tree.nodes[above]["parent"])
        return LiveNode(node, parent, depth, tree.tokens[node, : tree.nodes[node]["length"]].copy(), True)
