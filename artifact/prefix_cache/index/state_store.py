"""What a tier holds for each node of a cache's index: its tokens, the KV of its segment, the checkpoint at its end.

The index decides and writes a journal; the store follows it, event by event, so that tensors are split, joined and
freed exactly as the tree says. In a simulation the memory holds nothing and the store keeps the tokens alone, which
the second tier needs to know what was evicted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from artifact.prefix_cache.index.block_kernels import FILL
from artifact.prefix_cache.index.radix_tree import LEAF, MERGE, REMOVE, ROOT, SPLIT, STATE
from artifact.prefix_cache.workloads.traces import Tokens

Tensors = list[Any]
"""KV of a segment, keys and values of each attention layer, [heads, tokens, width]; or a checkpoint's states."""


class Memory(Protocol):
    """Where a tier's tensors lie."""

    @property
    def used_bytes(self) -> int:
        """Bytes of the tensors held."""
        ...

    def copy(self, tensors: Tensors) -> Tensors:
        """Copies in this memory."""
        ...

    def split(self, kv: Tensors, tokens: int) -> tuple[Tensors, Tensors]:
        """The KV of a segment's first tokens and of the rest; what is passed in is freed."""
        ...

    def join(self, upper: Tensors, lower: Tensors) -> Tensors:
        """The KV of two segments, one after the other; what is passed in is freed."""
        ...

    def free(self, tensors: Tensors) -> None:
        """The tensors are no longer held."""
        ...


class Source(Protocol):
    """Where the states of a sequence come from. What it gives is read at once and not kept."""

    def kv(self, start: int, stop: int) -> Tensors:
        """KV of tokens [start, stop)."""
        ...

    def checkpoint(self, depth: int) -> Tensors:
        """The checkpoint after `depth` tokens."""
        ...


class NoTensors:
    """The memory and the source of a simulation: every list of tensors is empty."""

    used_bytes = 0

    def copy(self, tensors: Tensors) -> Tensors:
        """No tensor."""
        return []

    def split(self, kv: Tensors, tokens: int) -> tuple[Tensors, Tensors]:
        """No tensor."""
        return [], []

    def join(self, upper: Tensors, lower: Tensors) -> Tensors:
        """No tensor."""
        return []

    def free(self, tensors: Tensors) -> None:
        """Nothing is held."""

    def kv(self, start: int, stop: int) -> Tensors:
        """No tensor."""
        return []

    def checkpoint(self, depth: int) -> Tensors:
        """No tensor."""
        return []


@dataclass(eq=False)
class Entry:
    """What is held for one node."""

    parent: int
    depth: int
    tokens: Tokens = field(repr=False)
    kv: Tensors = field(repr=False)
    checkpoint: Tensors | None = field(repr=False, default=None)
    """None if the node has no state."""


class StateStore:
    """The entries of one index's nodes, in one memory."""

    def __init__(self, memory: Memory) -> None:
        self.memory = memory
        self.node_to_entry: dict[int, Entry] = {}

    def follow(self, event: Sequence[int], tokens: Tokens, source: Source) -> None:
        """Do what one event of the index's journal says; `tokens` are those that were inserted, from `source`."""
        kind, node, other, number = event
        entries, memory = self.node_to_entry, self.memory
        if kind == LEAF:
            start = self.depth(other)
            stop = start + number
            entries[node] = Entry(other, stop, tokens[start:stop].copy(), memory.copy(source.kv(start, stop)))
        elif kind == STATE:
            entry = entries[node]
            memory.free(entry.checkpoint or [])
            entry.checkpoint = memory.copy(source.checkpoint(entry.depth))
        elif kind == SPLIT:
            lower = entries[other]
            upper_kv, lower.kv = memory.split(lower.kv, number)
            depth = lower.depth - len(lower.tokens) + number
            entries[node] = Entry(lower.parent, depth, lower.tokens[:number].copy(), upper_kv)
            lower.parent, lower.tokens = node, lower.tokens[number:].copy()
        elif kind == REMOVE:
            entry = entries.pop(node)
            memory.free(entry.kv + (entry.checkpoint or []))
        elif kind == MERGE:
            entry, child = entries.pop(node), entries[other]
            memory.free(entry.checkpoint or [])
            child.kv = memory.join(entry.kv, child.kv)
            child.parent, child.tokens = entry.parent, np.concatenate((entry.tokens, child.tokens))
        elif kind == FILL:
            entry = entries[node]
            start = entry.depth
            entry.depth += number - len(entry.tokens)
            entry.kv = memory.join(entry.kv, memory.copy(source.kv(start, entry.depth)))
            entry.tokens = np.concatenate((entry.tokens, tokens[start : entry.depth]))

    def clear(self) -> None:
        """Free everything."""
        for entry in self.node_to_entry.values():
            self.memory.free(entry.kv + (entry.checkpoint or []))
        self.node_to_entry.clear()

    def depth(self, node: int) -> int:
        """Tokens from the root to the node's end."""
        return 0 if node == ROOT else self.node_to_entry[node].depth

    def path(self, node: int) -> Path:
        """The states of the sequence that ends at `node`."""
        return Path(self, node)


@dataclass(frozen=True)
class Path:
    """A sequence in a store: a source of states, and what a request resumes from. Always as the store is now."""

    store: StateStore
    node: int

    @property
    def entries(self) -> list[Entry]:
        """From the root's child down."""
        entries, node = [], self.node
        while node != ROOT:
            entries.append(self.store.node_to_entry[node])
            node = entries[-1].parent
        return entries[::-1]

    @property
    def tokens(self) -> Tokens:
        """[depth], the sequence."""
        return np.concatenate([entry.tokens for entry in self.entries])

    def kv(self, start: int, stop: int) -> Tensors:
        """KV of tokens [start, stop); views if they lie in one segment."""
        parts = []
        for entry in self.entries:
            first = entry.depth - len(entry.tokens)
            low, high = max(start, first), min(stop, entry.depth)
            if low < high and entry.kv:
                parts.append([tensor[:, low - first : high - first] for tensor in entry.kv])
        if len(parts) <= 1:
            return parts[0] if parts else []
        from torch import cat

        return [cat(pieces, dim=1) for pieces in zip(*parts, strict=True)]

    def checkpoint(self, depth: int) -> Tensors:
        """The checkpoint after `depth` tokens. Raises: KeyError if the path has none there."""
        for entry in self.entries:
            if entry.depth == depth and entry.checkpoint is not None:
                return entry.checkpoint
        raise KeyError(f"the path has no checkpoint after {depth} tokens")
