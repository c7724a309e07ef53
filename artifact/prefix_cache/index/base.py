"""What every index does: requests one by one or many at once, counters, the journal, contents in and out.

An index decides which states are kept and counts their bytes; it holds no tensors. A cache's contents are arrays that
compiled functions change: see `prefix_kernels` and `block_kernels`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np

from artifact.prefix_cache.index.admission import EVERY_STATE
from artifact.prefix_cache.index.eviction import Order
from artifact.prefix_cache.index.fidelity import Fidelity
from artifact.prefix_cache.index.radix_tree import ALLOCATED, DEAD, EVENTS, LIVE_NODES, LIVE_TOKENS, Match
from artifact.prefix_cache.spec import HybridSpec
from artifact.prefix_cache.workloads.traces import Tokens, checked_tokens

LOOKUP, INSERT = 0, 1


class CacheContents(NamedTuple):
    """The tree of cached prefixes, and the order in which its nodes may be evicted."""

    tree: Any
    order: Order


class Operations(NamedTuple):
    """Lookups and insertions over one pool of tokens, in order.

    pool: the tokens, int32; start, length: [operations]; kind: [operations], LOOKUP or INSERT
    """

    pool: Any
    start: Any
    length: Any
    kind: Any


class LiveNode(NamedTuple):
    """A node of an index, as the holder of its states needs it."""

    node: int
    parent: int
    depth: int
    tokens: Tokens
    has_state: bool


class Index(ABC):
    """Prefixes by what they reuse: `PrefixCache` and `BlockCache`."""

    row_dtype: ClassVar[np.dtype]
    """Type of the rows of the tree's nodes."""

    def __init__(
        self, spec: HybridSpec, capacity_bytes: int, fidelity: Fidelity, contents: CacheContents, stride: int
    ) -> None:
        """stride: tokens of a sequence for each checkpoint that it may leave, beside two"""
        if not capacity_bytes > 0:
            raise ValueError(f"capacity_bytes must be positive, got {capacity_bytes}")
        self.spec, self.fidelity, self.contents, self._stride = spec, fidelity, contents, stride
        self.capacity_bytes = int(capacity_bytes)
        self.requests = 0
        self.first_eviction_request: int | None = None
        self.peak_bytes = 0

    # requests ----------------------------------------------------------------------------------------------------
    def lookup(self, tokens: Sequence[int] | Tokens) -> int:
        """Tokens of the longest prefix that a stored state can resume; 0 if there is none. Refreshes it."""
        return self._one(LOOKUP, tokens)

    def insert(self, tokens: Sequence[int] | Tokens, *, available: Sequence[int] = ()) -> None:
        """Keep the states of a served sequence: its KV, and its checkpoints (see `checkpoint_depths`).

        available: depths at which the caller has a checkpoint, the last token's among them; all if empty.
                   A BlockCache takes every depth as available
        """
        self._one(INSERT, tokens, np.array(available, np.int64) if len(available) else EVERY_STATE)

    def run(self, operations: Operations, available: Any = EVERY_STATE) -> tuple[np.ndarray, np.ndarray]:
        """Do many operations at once. Returns [operations] reused tokens (0 for insertions) and bytes held."""
        count, done = len(operations.kind), 0
        reused, used = np.zeros(count, np.int64), np.zeros(count, np.int64)
        while done < count:
            end, evicted = self._advance(operations, done, available, reused, used)
            self.requests += int(np.count_nonzero(operations.kind[done:end] == LOOKUP))
            if evicted and self.first_eviction_request is None:
                self.first_eviction_request = self.requests
                self._first_evicted()
            done = end
        self.peak_bytes = max(self.peak_bytes, int(used.max(initial=0)))
        return reused, used

    def _one(self, kind: int, tokens: Sequence[int] | Tokens, available: Any = EVERY_STATE) -> int:
        pool = checked_tokens(tokens, "tokens")
        if len(pool) == 0:
            raise ValueError("tokens must hold at least one token, got none")
        one = np.ones(1, np.int64)
        reused, _ = self.run(Operations(pool, 0 * one, len(pool) * one, kind * one), available)
        return int(reused[0])

    @abstractmethod
    def _advance(
        self, operations: Operations, first: int, available: Any, reused: np.ndarray, used: np.ndarray
    ) -> tuple[int, bool]:
        """Do operations from `first` on, up to the first one that evicts at most, if none has so far.

        Returns: the operation after the last one done, and whether that one evicted
        """

    def _first_evicted(self) -> None:  # noqa: B027 (not every index has something to do)
        """The index has just evicted for the first time."""

    @abstractmethod
    def find(self, tokens: Tokens) -> Match:
        """How far `tokens` are in the tree, without refreshing anything."""

    @abstractmethod
    def checkpoint_depths(self, resumable_tokens: int, matched_tokens: int, num_tokens: int) -> list[int]:
        """Depths at which a sequence of `num_tokens` tokens leaves a checkpoint, given its match; ascending."""

    def pin(self, node: int, change: int = 1) -> None:
        """Keep a node from being evicted (-1 takes one pin back)."""
        self.contents.order.pins[node] += change
        self._refresh(node)

    @abstractmethod
    def _refresh(self, node: int) -> None:
        """Work out again whether a node may be evicted."""

    # counters ----------------------------------------------------------------------------------------------------
    @property
    def used_bytes(self) -> int:
        """Bytes of KV and checkpoints held now."""
        return self.num_checkpoints * self.spec.checkpoint_bytes + self.spec.kv_bytes(self.cached_tokens)

    @property
    @abstractmethod
    def num_checkpoints(self) -> int:
        """Checkpoints held now."""

    @property
    def num_stale_states(self) -> int:
        """Checkpoints of nodes merged away that would stay reachable (without correction B8)."""
        return 0

    @property
    def cached_tokens(self) -> int:
        """Tokens whose KV is held now."""
        return int(self.contents.tree.counts[LIVE_TOKENS])

    @property
    def index_bytes(self) -> int:
        """Memory of the index itself: tokens, nodes, table and order, with the room to grow."""
        return sum(array.nbytes for part in self.contents for array in part)

    @property
    def alpha(self) -> float | None:
        """Weight of the FLOP efficiency now; None if the index has no such weight."""
        return None

    @property
    def tuned(self) -> bool:
        """Whether the tuner has chosen alpha."""
        return False

    # the journal, and contents in and out --------------------------------------------------------------------------
    def start_journal(self, num_tokens: int) -> None:
        """Have the next insertion, of a sequence of `num_tokens`, write down how it changes the tree."""
        tree = self.contents.tree
        # a node goes with one event and may merge another; a state that is added takes a cut or a leaf, and itself
        room = 2 * int(tree.counts[LIVE_NODES]) + 2 * (num_tokens // self._stride + 3)
        tree.counts[EVENTS] = 0
        self.contents = self.contents._replace(tree=tree._replace(events=np.zeros((room, 4), np.int64)))

    def take_journal(self) -> list[list[int]]:
        """The changes since `start_journal`, in order (see `radix_tree.Tree`); nothing is written any more."""
        tree = self.contents.tree
        written = tree.events[: tree.counts[EVENTS]].tolist()
        tree.counts[EVENTS] = 0
        self.contents = self.contents._replace(tree=tree._replace(events=tree.events[:0].copy()))
        return written

    def live_nodes(self) -> list[LiveNode]:
        """Every node but the root, with what it stands for."""
        tree = self.contents.tree
        parents = tree.nodes["parent"][: tree.counts[ALLOCATED]].tolist()
        return [self._live_node(node, parents[node]) for node in range(1, len(parents)) if parents[node] != DEAD]

    @abstractmethod
    def _live_node(self, node: int, parent: int) -> LiveNode:
        """What a node stands for."""

    def to_arrays(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """The contents as arrays, and the rest as plain values; nothing of it is shared."""
        parts = {"tree": self.contents.tree, "order": self.contents.order}
        arrays = {
            f"{name}.{field}": array.copy()
            for name, part in parts.items()
            for field, array in part._asdict().items()
            if field != "events"
        }
        names = ("alpha", "requests", "first_eviction_request", "peak_bytes", "tuned")
        return arrays, {name: getattr(self, name) for name in names}

    def take_arrays(self, arrays: dict[str, np.ndarray], values: dict[str, Any]) -> None:
        """Contents as `to_arrays` gave them, of a cache with the same rules. Nothing is pinned; what was is free."""
        tree, no_events = self.contents.tree, np.zeros((0, 4), np.int64)
        columns = {field: arrays[f"tree.{field}"] for field in tree._fields if field != "events"}
        order = Order(*(arrays[f"order.{field}"] for field in Order._fields))
        self.contents = CacheContents(type(tree)(**columns, events=no_events), order)
        self.requests, self.peak_bytes = values["requests"], values["peak_bytes"]
        self.first_eviction_request = values["first_eviction_request"]
        order.pins[:] = 0
        for live in self.live_nodes():
            self._refresh(live.node)
