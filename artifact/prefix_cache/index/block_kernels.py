"""The compiled trie of token blocks under `BlockCache`: matching, filling, eviction of the least recent leaf."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit

from artifact.prefix_cache.index import eviction
from artifact.prefix_cache.index.base import LOOKUP
from artifact.prefix_cache.index.eviction import NOW
from artifact.prefix_cache.index.radix_tree import (
    ALLOCATED,
    DEAD,
    EVENTS,
    FREE,
    LEAF,
    LIVE_NODES,
    LIVE_TOKENS,
    NONE,
    REMOVE,
    ROOT,
    STATE,
    write_event,
)

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
ADMITTED, KV_REUSED, STATE_REUSED = 4, 5, 6
"""Rows of `counts`; the others are those of a radix tree."""

FILL = 5
"""Kind of event beside those of a radix tree: (block, 0, its tokens now). A STATE follows, after the last of them."""


class BlockTree(NamedTuple):
    """The blocks of all cached sequences.

    nodes:  [capacity] of BLOCK
    tokens: [capacity, block size], int32
    slots:  [2 * capacity], hash table of the full blocks: node or NONE
    counts: [8], see `radix_tree` and ADMITTED
    events: [room, 4], the journal, as in `radix_tree.Tree`
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
def run_blocks(tree, order, rules, pool, start, length, kind, first, stop_at_eviction, reused, used):
    """Do the operations from `first` on, of a sequence of lookups and insertions over one pool of tokens.

    Fills reused[i] for lookups and used[i], the bytes held after each. With `stop_at_eviction` it ends after the
    first operation that evicts. Returns the tree, the order, the operation after the last one done, and whether
    that one evicted.
    """
    for i in range(first, len(kind)):
        evicted = False
        tokens = pool[start[i] : start[i] + length[i]]
        if kind[i] == LOOKUP:
            order.clock[NOW] += 1
            node, _, reused[i] = _match(tree, order, tokens)
            _note_reuse(tree, node)
        else:
            tree, order, evicted = _store(tree, order, rules, tokens)
        used[i] = _used(tree, rules)
        if evicted and stop_at_eviction:
            return tree, order, i + 1, True
    return tree, order, len(kind), False


@njit(cache=True)
def _store(tree, order, rules, tokens):
    """Cache `tokens`, evicting as needed. Returns the tree, the order and whether anything had to be evicted."""
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
        refresh_block(tree, order, node)
        freed = 0
        while freed < excess:
            victim = eviction.least_recent(order)
            if victim == NONE:
                break
            freed += rules.checkpoint_bytes + rules.token_bytes * tree.nodes[victim].length
            _remove(tree, order, victim)
        order.pins[node] -= 1 if rules.pin_path else 0
        if tree.nodes[node].parent != DEAD:
            refresh_block(tree, order, node)
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
            refresh_block(tree, order, node)
        eviction.touch(order, child)
        refresh_block(tree, order, child)
        node = child
        done += len(block)
    return tree, order, excess > 0


@njit(cache=True)
def _used(tree, rules):
    return tree.counts[LIVE_NODES] * rules.checkpoint_bytes + tree.counts[LIVE_TOKENS] * rules.token_bytes


@njit(cache=True)
def _match(tree, order, tokens):
    """Enter the blocks of `tokens`, refreshing each. Returns the last one, their number and their tokens."""
    path, reused = find_blocks(tree, tokens)
    for node in path:
        eviction.touch(order, node)
        refresh_block(tree, order, node)
    return path[-1] if len(path) else np.int32(ROOT), len(path), reused


@njit(cache=True)
def find_blocks(tree, tokens):
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
def _with_room(tree, order, extra):
    needed = tree.counts[LIVE_NODES] + 1 + extra
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
    return tree, eviction.with_capacity(order, capacity)


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
    counts[LIVE_NODES] += 1
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
    tree.counts[LIVE_NODES] -= 1
    tree.counts[LIVE_TOKENS] -= row.length
    _write(tree, REMOVE, node, parent, row.length)
    row.parent = DEAD
    row.next_partial = tree.counts[FREE]
    tree.counts[FREE] = node
    eviction.forget(order, node)
    refresh_block(tree, order, parent)


@njit(cache=True)
def refresh_block(tree, order, node):
    if node == ROOT:
        return
    if order.pins[node] > 0 or tree.nodes[node].num_children > 0:
        eviction.exclude(order, node)
    else:
        eviction.admit(order, node, 0.0)


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
def _same(tokens, block):
    for i in range(len(block)):  # noqa: SIM110 (compiled)
        if tokens[i] != block[i]:
            return False
    return True


@njit(cache=True)
def _hash(parent, block):
    value = np.uint64(parent + 1) * np.uint64(0x9E3779B97F4A7C15)
    for token in block:
        value = (value ^ np.uint64(token + 1)) * np.uint64(0xD6E8FEB86659FD93)
        value ^= value >> np.uint64(32)
    return np.int64(value >> np.uint64(1))


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
def _write(tree, kind, node, other, number):
    write_event(tree.events, tree.counts, EVENTS, kind, node, other, number)
