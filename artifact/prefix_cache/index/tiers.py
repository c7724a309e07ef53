"""A cache with what it caches: an index, the states of its nodes, and a second tier in host memory.

What the first tier evicts is demoted: it goes into the second, a separate cache over whole prefixes, with
its own index, capacity and policy. A request is served from the tier with the longer prefix; what only the second has
is promoted first, its checkpoint at its end, and stays in the second. Without memories no tensor is held and the same
code is the simulator of two tiers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from artifact.prefix_cache.index.base import LOOKUP, Index, Operations
from artifact.prefix_cache.index.cache import PrefixCache
from artifact.prefix_cache.index.fidelity import CORRECTED
from artifact.prefix_cache.index.radix_tree import LEAF, MERGE, REMOVE, ROOT, STATE
from artifact.prefix_cache.index.state_store import Memory, NoTensors, Path, Source, StateStore
from artifact.prefix_cache.workloads.traces import Tokens, checked_tokens


class Tier:
    """An index and the store that follows it."""

    def __init__(self, index: Index, memory: Memory) -> None:
        self.index, self.store = index, StateStore(memory)

    def check(self) -> None:
        """The store holds what the index says, and its tensors take the bytes that the index counts.

        Raises: AssertionError saying what differs
        """
        held, memory = self.store.node_to_entry, self.store.memory
        states = sum(entry.checkpoint is not None for entry in held.values())
        tokens = sum(len(entry.tokens) for entry in held.values())
        assert states == self.index.num_checkpoints, f"{states} checkpoints held, {self.index.num_checkpoints} counted"
        assert tokens == self.index.cached_tokens, f"KV of {tokens} tokens held, {self.index.cached_tokens} counted"
        if isinstance(memory, NoTensors):
            return
        counted = self.index.used_bytes
        assert counted <= self.index.capacity_bytes, f"{counted} bytes held, {self.index.capacity_bytes} allowed"
        assert memory.used_bytes == counted, f"{memory.used_bytes} bytes held, {counted} counted"
        real = sum(t.nbytes for entry in held.values() for t in (*entry.kv, *(entry.checkpoint or ())))
        assert real == counted, f"tensors of {real} bytes held, {counted} counted"
        alive = getattr(memory, "held_bytes", counted)
        assert not getattr(memory, "watch", False) or alive == counted, f"{alive} bytes alive, {counted} counted"


@dataclass
class Hit:
    """The result of a lookup. What it found stays pinned until it is released."""

    reused: int
    """Tokens that a stored state resumes."""
    from_host: int
    """Those of them that only the second tier had."""
    tier: Tier | None
    node: int

    @property
    def path(self) -> Path:
        """The states to resume from. Raises: ValueError without a hit"""
        if self.tier is None:
            raise ValueError("a hit must reuse a token to have states, got none")
        return self.tier.store.path(self.node)


class TieredCache:
    """The states of one or two tiers, and their indices.

    index:      of the tier on the model's device
    host_index: of the second tier; None without one
    debug:      `Tier.check` after every operation
    Raises:     ValueError for an index with the published simulator's defects, which holds no sound states, for one
                that has been used already, and for a second tier of blocks
    """

    def __init__(self, index: Index, host_index: PrefixCache | None = None, *, debug: bool = False) -> None:
        for given in [index] if host_index is None else [index, host_index]:
            if given.fidelity != CORRECTED:
                raise ValueError(f"an index must be of fidelity corrected to hold states, got {given.fidelity}")
            if given.used_bytes:
                raise ValueError(f"an index must be empty to hold states, got one with {given.used_bytes} bytes")
        if host_index is not None and not isinstance(index, PrefixCache):
            raise ValueError(f"a second tier needs a PrefixCache before it, got a {type(index).__name__}")
        self.debug = debug
        self.device = Tier(index, NoTensors())
        self.host = None if host_index is None else Tier(host_index, NoTensors())
        self.demoted_bytes, self.promoted_bytes = 0, 0

    @property
    def index(self) -> Index:
        """The first tier's index."""
        return self.device.index

    @property
    def tiers(self) -> list[Tier]:
        """The tiers there are, the device's first."""
        return [self.device] if self.host is None else [self.device, self.host]

    def use(self, memory: Memory, host_memory: Memory) -> None:
        """Hold tensors in these memories from now on. Raises: ValueError if the cache is not empty."""
        for tier, given in zip(self.tiers, (memory, host_memory), strict=False):
            if tier.store.node_to_entry:
                raise ValueError("a cache must be empty to be given memories, got one that is not")
            tier.store.memory = given

    def lookup(self, tokens: Sequence[int] | Tokens) -> Hit:
        """The longest prefix that a stored state resumes, promoted if need be, and pinned until `release`."""
        checked = checked_tokens(tokens, "tokens")
        reused = self.device.index.lookup(checked)
        hit = self._pinned(self.device, checked)
        if self.host is not None and self.host.index.find(checked).resumable_tokens > reused:
            self.release(hit)
            self.host.index.lookup(checked)
            hit = self._promoted(self._pinned(self.host, checked), checked)
            hit.from_host = hit.reused - reused
        self._check()
        return hit

    def release(self, hit: Hit) -> None:
        """What the hit pinned may be evicted again."""
        if hit.tier is not None:
            hit.tier.index.pin(hit.node, -1)
        hit.tier = None

    def insert(
        self, tokens: Sequence[int] | Tokens, source: Source | None = None, *, available: Sequence[int] = ()
    ) -> None:
        """Keep the states of a served sequence, which `source` has; see `PrefixCache.insert`."""
        self._insert(self.device, checked_tokens(tokens, "tokens"), source or NoTensors(), available)
        self._check()

    def run(self, operations: Operations) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Simulate many operations.

        Returns: [operations] reused tokens, those that came from the second tier, bytes held in the first
        """
        reused, from_host, used = np.zeros((3, len(operations.kind)), np.int64)
        pool, *columns = operations
        for i, (start, length, kind) in enumerate(zip(*columns, strict=True)):
            tokens = pool[start : start + length]
            if kind == LOOKUP:
                hit = self.lookup(tokens)
                reused[i], from_host[i] = hit.reused, hit.from_host
                self.release(hit)
            else:
                self.insert(tokens)
            used[i] = self.index.used_bytes
        return reused, from_host, used

    def _pinned(self, tier: Tier, tokens: Tokens) -> Hit:
        found = tier.index.find(tokens)
        if found.deepest == ROOT:
            return Hit(0, 0, None, ROOT)
        tier.index.pin(found.deepest)
        return Hit(int(found.resumable_tokens), 0, tier, int(found.deepest))

    def _promoted(self, hit: Hit, tokens: Tokens) -> Hit:
        """The hit in the first tier; as it is if there is no room for it."""
        prefix = tokens[: hit.reused]
        added_bytes = self._insert(self.device, prefix, hit.path, (hit.reused,))
        promoted = self._pinned(self.device, prefix)
        if promoted.reused < hit.reused:
            self.release(promoted)
            return hit
        self.promoted_bytes += added_bytes
        self.release(hit)
        return promoted

    def _insert(self, tier: Tier, tokens: Tokens, source: Source, available: Sequence[int]) -> int:
        """Returns the bytes that were added."""
        spec, added_bytes = tier.index.spec, 0
        tier.index.start_journal(len(tokens))
        tier.index.insert(tokens, available=available)
        for event in tier.index.take_journal():
            if tier is self.device and self.host is not None and event[0] in (REMOVE, MERGE):
                self._demote(event[1])
            tier.store.follow(event, tokens, source)
            if event[0] == LEAF:
                added_bytes += spec.kv_bytes(event[3])
            elif event[0] == STATE:
                added_bytes += spec.checkpoint_bytes
        return added_bytes

    def _demote(self, node: int) -> None:
        """Copy an evicted state, and the KV before it, to the second tier, unless it already holds them."""
        assert self.host is not None
        if self.device.store.node_to_entry[node].checkpoint is None:
            return
        path = self.device.store.path(node)
        tokens = path.tokens
        self.demoted_bytes += self._insert(self.host, tokens, path, (len(tokens),))

    def _check(self) -> None:
        if self.debug:
            for tier in self.tiers:
                tier.check()
