"""The block-granular baseline (vLLM+): a trie of token blocks with one checkpoint a block (Marconi, section 5.1).

The last block of a sequence may be partial: it is matched when the request contains it whole, filled in place when
a longer sequence continues it, and gets a sibling when one diverges from it. Eviction is least recently used, leaves
only; a lookup refreshes every block it enters. Which blocks a serving engine would really keep differs (it never
caches a partial block), so this favours the baseline, as in the paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numba import njit

from artifact.prefix_cache.index.cache import LOOKUP, LiveNode, Operations
from artifact.prefix_cache.index.eviction import (
    LATEST,
    NOW,
    Order,
    _set,
    empty_order,
    forget,
    least_recent,
    touch,
    with_capacity,
)
from artifact.prefix_cache.index.fidelity import CORRECTED, Fidelity
from artifact.prefix_cache.index.radix_tree import DEAD, LEAF, NONE, REMOVE, ROOT, STATE, Match, write_event
from artifact.prefix_cache.spec import HybridSpec
from artifact.prefix_cache.workloads.traces import Tokens, checked_tokens

BLOCK = np.dtype(
    [
        ("parent", np.int32),
        ("num_children", np.int32),
        ("length", np.int32),
        ("next_partial", np.int32),
        ("first_partial", np.int32),
        ("hash", np.int64),
        ("kv_reused", np.bool_),
        ("state_reused", np.bool_),
    ]
)
ALLOCATED, FREE, LIVE_BLOCKS, LIVE_TOKENS, ADMITTED, KV_REUSED, STATE_REUSED, EVENTS = range(8)

LARGEST_BLOCK = 2**20
"""Tokens: each block has room for as many, whatever it holds."""

FILL = 5
"""Kind of an event that a radix tree has not: (block, 0, its tokens now). A STATE follows, after the last of them."""


class BlockTree(NamedTuple):
    """nodes: [capacity] of BLOCK; tokens: [capacity, block size]; slots: hash table of full blocks, node or NONE.

    events: [room, 4], the journal, as that of `radix_tree.Tree`
    """

    nodes: Any
    tokens: Any
    slots: Any
    counts: Any
    events: Any


class BlockRules(NamedTuple):
    """Costs and corrections as the compiled cache reads them."""

    checkpoint_bytes: int
    token_bytes: int
    pin_path: bool
    refuse_oversized: bool
    capacity_bytes: int


def empty_block_tree(block_size: int, nodes: int = 64) -> BlockTree:
    """A tree that holds only the root."""
    rows = np.zeros(nodes, BLOCK)
    rows[ROOT] = (NONE, 0, 0, NONE, NONE, 0, False, False)
    counts = np.array([1, NONE, 0, 0, 0, 0, 0, 0], np.int64)
    blocks, slots = np.zeros((nodes, block_size), np.int32), np.full(2 * nodes, NONE, np.int32)
    return BlockTree(rows, blocks, slots, counts, np.zeros((0, 4), np.int64))


@njit(cache=True)
def _write(tree, kind, node, other, number):
    write_event(tree.events, tree.counts, EVENTS, kind, node, other, number)


@njit(cache=True)
def _hash(parent, block):
    value = np.uint64(parent + 1) * np.uint64(0x9E3779B97F4A7C15)
    for token in block:
        value = (value ^ np.uint64(token + 1)) * np.uint64(0xD6E8FEB86659FD93)
        value ^= value >> np.uint64(32)
    return np.int64(value >> np.uint64(1))


@njit(cache=True)
def _same(tokens, block):
    for i in range(len(block)):  # noqa: SIM110 (compiled)
        if tokens[i] != block[i]:
            return False
    return True


@njit(cache=True)
def _full_child(tree, parent, block):
    mask = len(tree.slots) - 1
    key = _hash(parent, block)
    slot = key & mask
    while tree.slots[slot] != NONE:
        node = tree.slots[slot]
        row = tree.nodes[node]
        if row.hash == key and row.parent == parent and _same(tree.tokens[node], block):
            return node
        slot = (slot + 1) & mask
    return np.int32(NONE)


@njit(cache=True)
def _partial_child(tree, parent, rest):
    """A partial child whose tokens all stand at the start of `rest`: the first one added, or NONE."""
    node, found = tree.nodes[parent].first_partial, np.int32(NONE)
    while node != NONE:
        length = tree.nodes[node].length
        if length <= len(rest) and _same(tree.tokens[node], rest[:length]):
            found = node
        node = tree.nodes[node].next_partial
    return found


@njit(cache=True)
def _bind(tree, node):
    mask = len(tree.slots) - 1
    slot = tree.nodes[node].hash & mask
    while tree.slots[slot] != NONE:
        slot = (slot + 1) & mask
    tree.slots[slot] = node


@njit(cache=True)
def _unbind(tree, node):
    mask = len(tree.slots) - 1
    hole = tree.nodes[node].hash & mask
    while tree.slots[hole] != node:
        hole = (hole + 1) & mask
    probe = hole
    while True:
        probe = (probe + 1) & mask
        if tree.slots[probe] == NONE:
            break
        home = tree.nodes[tree.slots[probe]].hash & mask
        if ((probe - home) & mask) >= ((probe - hole) & mask):
            tree.slots[hole] = tree.slots[probe]
            hole = probe
    tree.slots[hole] = NONE


@njit(cache=True)
def _unlink_partial(tree, node):
    nodes = tree.nodes
    parent = nodes[node].parent
    if nodes[parent].first_partial == node:
        nodes[parent].first_partial = nodes[node].next_partial
        return
    before = nodes[parent].first_partial
    while nodes[before].next_partial != node:
        before = nodes[before].next_partial
    nodes[before].next_partial = nodes[node].next_partial


@njit(cache=True)
def _with_room(tree, order, extra):
    needed = tree.counts[LIVE_BLOCKS] + 1 + extra
    capacity = len(tree.nodes)
    if needed > capacity:
        while capacity < needed:
            capacity *= 2
        rows = np.zeros(capacity, tree.nodes.dtype)
        rows[: len(tree.nodes)] = tree.nodes
        tokens = np.zeros((capacity, tree.tokens.shape[1]), np.int32)
        tokens[: len(tree.nodes)] = tree.tokens
        old, count = tree.nodes, tree.counts[ALLOCATED]
        tree = BlockTree(rows, tokens, np.full(2 * capacity, NONE, np.int32), tree.counts, tree.events)
        for node in range(1, count):
            if old[node].parent != DEAD and old[node].length == tokens.shape[1]:
                _bind(tree, node)
    return tree, with_capacity(order, capacity)


@njit(cache=True)
def _add(tree, parent, block):
    nodes, counts = tree.nodes, tree.counts
    node = counts[FREE]
    if node == NONE:
        node = counts[ALLOCATED]
        counts[ALLOCATED] += 1
    else:
        counts[FREE] = nodes[node].next_partial
    row = nodes[node]
    row.parent = parent
    row.num_children = 0
    row.length = len(block)
    row.first_partial = NONE
    row.next_partial = NONE
    row.kv_reused = False
    row.state_reused = False
    counts[ADMITTED] += 1
    tree.tokens[node, : len(block)] = block
    if len(block) == tree.tokens.shape[1]:
        row.hash = _hash(parent, block)
        _bind(tree, node)
    else:
        row.next_partial = nodes[parent].first_partial
        nodes[parent].first_partial = node
    nodes[parent].num_children += 1
    counts[LIVE_BLOCKS] += 1
    counts[LIVE_TOKENS] += len(block)
    _write(tree, LEAF, node, parent, len(block))
    _write(tree, STATE, node, 0, 0)
    return node


@njit(cache=True)
def _fill(tree, node, block):
    """Continue a partial block in place; `block` starts with the tokens it holds."""
    row = tree.nodes[node]
    tree.counts[LIVE_TOKENS] += len(block) - row.length
    tree.tokens[node, : len(block)] = block
    row.length = len(block)
    _write(tree, FILL, node, 0, len(block))
    _write(tree, STATE, node, 0, 0)
    if len(block) == tree.tokens.shape[1]:
        _unlink_partial(tree, node)
        row.next_partial = NONE
        row.hash = _hash(row.parent, block)
        _bind(tree, node)


@njit(cache=True)
def _remove(tree, order, node):
    row = tree.nodes[node]
    parent = row.parent
    if row.length == tree.tokens.shape[1]:
        _unbind(tree, node)
    else:
        _unlink_partial(tree, node)
    tree.nodes[parent].num_children -= 1
    tree.counts[LIVE_BLOCKS] -= 1
    tree.counts[LIVE_TOKENS] -= row.length
    _write(tree, REMOVE, node, parent, row.length)
    row.parent = DEAD
    row.next_partial = tree.counts[FREE]
    tree.counts[FREE] = node
    forget(order, node)
    _refresh(tree, order, parent)


@njit(cache=True)
def _refresh(tree, order, node):
    if node == ROOT:
        return
    if order.pins[node] > 0 or tree.nodes[node].num_children > 0:
        _set(order, order.position[node], np.inf, -np.inf, LATEST)
    else:
        _set(order, order.position[node], 0.0, 0.0, order.last_access[node])


@njit(cache=True)
def _find(tree, tokens):
    """The blocks of `tokens` that are there, from the first on, and their number of tokens."""
    size = tree.tokens.shape[1]
    path = np.empty(len(tokens) // size + 1, np.int32)
    node, count, reused = ROOT, 0, 0
    while reused < len(tokens):
        child = np.int32(NONE)
        if reused + size <= len(tokens):
            child = _full_child(tree, node, tokens[reused : reused + size])
        partial = child == NONE
        if partial:
            child = _partial_child(tree, node, tokens[reused:])
        if child == NONE:
            break
        node = child
        path[count] = child
        count += 1
        reused += tree.nodes[child].length
        if partial:
            break
    return path[:count], reused


@njit(cache=True)
def _match(tree, order, tokens):
    """Enter the blocks of `tokens`, refreshing each. Returns the last one, their number and their tokens."""
    path, reused = _find(tree, tokens)
    for node in path:
        touch(order, node)
        _refresh(tree, order, node)
    return path[-1] if len(path) else np.int32(ROOT), len(path), reused


@njit(cache=True)
def _note_reuse(tree, node):
    """A lookup reuses the KV of every block on the path to `node`, and the state of `node` alone."""
    nodes, counts = tree.nodes, tree.counts
    if node != ROOT and not nodes[node].state_reused:
        nodes[node].state_reused = True
        counts[STATE_REUSED] += 1
    while node != ROOT and not nodes[node].kv_reused:
        nodes[node].kv_reused = True
        counts[KV_REUSED] += 1
        node = nodes[node].parent


@njit(cache=True)
def _used(tree, rules):
    return tree.counts[LIVE_BLOCKS] * rules.checkpoint_bytes + tree.counts[LIVE_TOKENS] * rules.token_bytes


@njit(cache=True)
def _store(tree, order, rules, tokens):
    size = tree.tokens.shape[1]
    order.clock[NOW] += 2
    node, count, reused = _match(tree, order, tokens)
    blocks = (len(tokens) + size - 1) // size
    if (
        rules.refuse_oversized
        and blocks * rules.checkpoint_bytes + len(tokens) * rules.token_bytes > rules.capacity_bytes
    ):
        return tree, order, False
    if rules.pin_path:  # the bytes that will be added
        need = float((blocks - count) * rules.checkpoint_bytes + (len(tokens) - reused) * rules.token_bytes)
    else:  # the published estimate, which counts the root as a block
        missing = len(tokens) - size * (1 + count)
        need = missing / size * rules.checkpoint_bytes + missing * rules.token_bytes
    excess = _used(tree, rules) + need - rules.capacity_bytes
    if excess > 0:
        order.clock[NOW] += 1
        order.pins[node] += 1 if rules.pin_path else 0
        _refresh(tree, order, node)
        freed = 0
        while freed < excess:
            victim = least_recent(order)
            if victim == NONE:
                break
            freed += rules.checkpoint_bytes + rules.token_bytes * tree.nodes[victim].length
            _remove(tree, order, victim)
        order.pins[node] -= 1 if rules.pin_path else 0
        if tree.nodes[node].parent != DEAD:
            _refresh(tree, order, node)
        if rules.refuse_oversized and freed < excess:  # the rest is pinned by others
            return tree, order, True
    tree, order = _with_room(tree, order, blocks)
    node, done = ROOT, 0
    while done < len(tokens):
        block = tokens[done : done + size]
        child = np.int32(NONE)
        if len(block) == size:
            child = _full_child(tree, node, block)
        if child == NONE:
            child = _partial_child(tree, node, block)
            if child != NONE and tree.nodes[child].length < len(block):
                _fill(tree, child, block)
        if child == NONE:
            child = _add(tree, node, block)
            _refresh(tree, order, node)
        touch(order, child)
        _refresh(tree, order, child)
        node = child
        done += len(block)
    return tree, order, excess > 0


@njit(cache=True)
def _run(tree, order, rules, pool, start, length, kind, reused, used):
    first_eviction = -1
    for i in range(len(kind)):
        tokens = pool[start[i] : start[i] + length[i]]
        if kind[i] == LOOKUP:
            order.clock[NOW] += 1
            node, _, reused[i] = _match(tree, order, tokens)
            _note_reuse(tree, node)
        else:
            tree, order, evicted = _store(tree, order, rules, tokens)
            if evicted and first_eviction < 0:
                first_eviction = i
        used[i] = _used(tree, rules)
    return tree, order, first_eviction


class BlockCache:
    """Prefix cache with one checkpoint for each block of `block_size` tokens (vLLM+).

    The same calls as `PrefixCache`. Raises: ValueError for a capacity that is not positive, a block size out of range.
    """

    alpha = None
    tuned = False
    num_stale_states = 0
    row_dtype = BLOCK

    def __init__(
        self, spec: HybridSpec, *, capacity_bytes: int, block_size: int = 32, fidelity: Fidelity = CORRECTED
    ) -> None:
        if not capacity_bytes > 0:
            raise ValueError(f"capacity_bytes must be positive, got {capacity_bytes}")
        if not 1 <= block_size <= LARGEST_BLOCK:
            raise ValueError(f"block_size must be positive and at most {LARGEST_BLOCK}, got {block_size}")
        self.spec, self.block_size, self.fidelity = spec, block_size, fidelity
        self.capacity_bytes = int(capacity_bytes)
        self._tree, self._order = empty_block_tree(block_size), empty_order()
        self.requests = 0
        self.first_eviction_request: int | None = None
        self.peak_bytes = 0

    def lookup(self, tokens: Sequence[int] | Tokens) -> int:
        """Tokens in the blocks that a stored state can resume."""
        return int(self._one(LOOKUP, tokens))

    def insert(self, tokens: Sequence[int] | Tokens, *, available: Sequence[int] = ()) -> None:
        """Keep every block of a served sequence; the caller has the checkpoint of each (`checkpoint_depths`)."""
        self._one(1 - LOOKUP, tokens)

    def find(self, tokens: Tokens) -> Match:
        """How far `tokens` are in the tree, without refreshing anything."""
        path, reused = _find(self._tree, tokens)
        node = int(path[-1]) if len(path) else ROOT
        return Match(node, int(reused), int(reused), node, node)

    def checkpoint_depths(self, resumable_tokens: int, matched_tokens: int, num_tokens: int) -> list[int]:
        """Depths at which a sequence leaves a checkpoint, given its match: every block's end and its own."""
        size = self.block_size
        depths = [*range((resumable_tokens // size + 1) * size, num_tokens, size)]
        return [*depths, num_tokens] if num_tokens > resumable_tokens else depths

    def pin(self, node: int, change: int = 1) -> None:
        """Keep a block from being evicted (-1 takes one pin back)."""
        self._order.pins[node] += change
        _refresh(self._tree, self._order, node)

    def start_journal(self, num_tokens: int) -> None:
        """Have the next insertion, of a sequence of `num_tokens`, write down how it changes the tree."""
        room = int(self._tree.counts[LIVE_BLOCKS]) + 2 * (num_tokens // self.block_size + 2)
        self._tree.counts[EVENTS] = 0
        self._tree = self._tree._replace(events=np.zeros((room, 4), np.int64))

    def take_journal(self) -> list[list[int]]:
        """The changes since `start_journal`, in order; nothing is written any more."""
        written = self._tree.events[: self._tree.counts[EVENTS]].tolist()
        self._tree.counts[EVENTS] = 0
        self._tree = self._tree._replace(events=self._tree.events[:0].copy())
        return written

    @property
    def used_bytes(self) -> int:
        """Bytes of KV and checkpoints held now."""
        return int(_used(self._tree, self._rules()))

    @property
    def num_checkpoints(self) -> int:
        """Checkpoints held now: one for each block."""
        return int(self._tree.counts[LIVE_BLOCKS])

    @property
    def cached_tokens(self) -> int:
        """Tokens whose KV is held now."""
        return int(self._tree.counts[LIVE_TOKENS])

    @property
    def block_reuse(self) -> tuple[int, int, int]:
        """Blocks ever admitted, those whose KV was reused since, and those whose state was (figure 3a)."""
        admitted, kv, state = self._tree.counts[ADMITTED : STATE_REUSED + 1]
        return int(admitted), int(kv), int(state)

    def live_nodes(self) -> list[LiveNode]:
        """Every block, with what it stands for."""
        rows, nodes = self._tree.nodes, []
        for node in range(1, int(self._tree.counts[ALLOCATED])):
            if rows[node]["parent"] == DEAD:
                continue
            depth, above = int(rows[node]["length"]), int(rows[node]["parent"])
            while above != ROOT:
                depth, above = depth + int(rows[above]["length"]), int(rows[above]["parent"])
            tokens = self._tree.tokens[node, : rows[node]["length"]].copy()
            nodes.append(LiveNode(node, int(rows[node]["parent"]), depth, tokens, True))
        return nodes

    def to_arrays(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """The contents as arrays, and the rest as plain values; nothing of it is shared."""
        arrays = {f"tree.{name}": getattr(self._tree, name).copy() for name in BlockTree._fields if name != "events"}
        arrays |= {f"order.{name}": getattr(self._order, name).copy() for name in Order._fields}
        return arrays, {name: getattr(self, name) for name in ("requests", "first_eviction_request", "peak_bytes")}

    def take_arrays(self, arrays: dict[str, np.ndarray], values: dict[str, Any]) -> None:
        """Contents as `to_arrays` gave them, of a cache with the same rules. Nothing is pinned; what was is free."""
        columns = {name: arrays[f"tree.{name}"] for name in BlockTree._fields if name != "events"}
        self._tree = BlockTree(**columns, events=np.zeros((0, 4), np.int64))
        self._order = Order(*(arrays[f"order.{name}"] for name in Order._fields))
        self.requests, self.peak_bytes = values["requests"], values["peak_bytes"]
        self.first_eviction_request = values["first_eviction_request"]
        self._order.pins[:] = 0
        for live in self.live_nodes():
            self.pin(live.node, 0)

    def _rules(self) -> BlockRules:
        return BlockRules(
            self.spec.checkpoint_bytes,
            self.spec.kv_bytes_per_token,
            self.fidelity.pin_path,
            self.fidelity.refuse_oversized,
            self.capacity_bytes,
        )

    def run(self, operations: Operations) -> tuple[np.ndarray, np.ndarray]:
        """Do many operations at once. Returns [operations] reused tokens (0 for insertions) and bytes held."""
        count = len(operations.kind)
        reused, used = np.zeros(count, np.int64), np.zeros(count, np.int64)
        self._tree, self._order, evicted = _run(self._tree, self._order, self._rules(), *operations, reused, used)
        lookups = np.cumsum(operations.kind == LOOKUP)
        if evicted >= 0 and self.first_eviction_request is None:
            self.first_eviction_request = self.requests + int(lookups[evicted])
        self.requests += int(lookups[-1]) if count else 0
        self.peak_bytes = max(self.peak_bytes, int(used.max(initial=0)))
        return reused, used

    def _one(self, kind: int, tokens: Sequence[int] | Tokens) -> int:
        pool = checked_tokens(tokens, "tokens")
        if len(pool) == 0:
            raise ValueError("tokens must hold at least one token, got none")
        one = np.ones(1, np.int64)
        reused, _ = self.run(Operations(pool, 0 * one, len(pool) * one, kind * one))
        return int(reused[0])
