"""The mechanism: a compressed trie of token sequences. It knows no bytes and no policy.

Every node but the root holds an edge of tokens, directly after its parent's; a node's depth is the number of
tokens from the root to its end. A node has a state to resume from at its end, or none if paths merely diverge there.
Nodes are rows of one array and tokens lie in one arena, so that the compiled functions below touch no Python object;
children are found through one open-addressing table. Siblings keep their order of insertion: a split's new node takes
its child's place, a merge's child takes its parent's.

Functions that may grow an array return the tree; all others change it in place. Each change is written into the
tree's journal if it has room, so that the holder of the nodes' tensors can follow.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit

ROOT = 0
NONE = -1
DEAD = -2

NODE = np.dtype(
    [
        ("parent", np.int32),
        ("first_child", np.int32),
        ("last_child", np.int32),
        ("previous", np.int32),
        ("next", np.int32),
        ("num_children", np.int32),
        ("start", np.int64),
        ("length", np.int64),
        ("depth", np.int64),
        ("stale", np.int64),
        ("state", np.bool_),
    ]
)

# Rows of `counts`
ALLOCATED, FREE, LIVE_NODES, LIVE_TOKENS, ARENA_USED, MERGES, LIVE_STATES, EVENTS = range(8)

# Kinds of events, with their node, other node and number
LEAF, SPLIT, STATE, REMOVE, MERGE = range(5)


class Tree(NamedTuple):
    """nodes: [capacity] of NODE; tokens: the arena, int32; keys, values: (parent, first token) -> child.

    events: [room, 4], the journal, `counts[EVENTS]` of them; without room nothing is written. Each is a kind and
            LEAF (node, parent, its edge's tokens), SPLIT (new upper node, lower node, the upper edge's tokens),
            STATE (node, 0, 0: it has a state from now on), REMOVE (leaf, parent, its edge's tokens) or
            MERGE (node, the child that takes over its edge, 1 if the node had a state)
    """

    nodes: Any
    tokens: Any
    keys: Any
    values: Any
    counts: Any
    events: Any


class Match(NamedTuple):
    """How far a sequence is in the tree.

    deepest:          the deepest node with a state whose edge is matched to its end, to resume from; ROOT if none
    resumable_tokens: tokens of the edges matched to their end, down to `deepest`
    matched_tokens:   tokens matched in all
    last_full:        the deepest node whose edge is matched to its end, with a state or not
    last_visited:     the last node visited: `last_full`, or the child whose edge is left within
    """

    deepest: int
    resumable_tokens: int
    matched_tokens: int
    last_full: int
    last_visited: int


def empty_tree(nodes: int = 64, tokens: int = 4096) -> Tree:
    """A tree that holds only the root."""
    rows = np.zeros(nodes, NODE)
    rows[ROOT] = (NONE, NONE, NONE, NONE, NONE, 0, 0, 0, 0, 0, False)
    counts = np.zeros(8, np.int64)
    counts[ALLOCATED], counts[FREE] = 1, NONE
    return Tree(
        rows,
        np.zeros(tokens, np.int32),
        np.full(2 * nodes, NONE, np.int64),
        np.zeros(2 * nodes, np.int32),
        counts,
        np.zeros((0, 4), np.int64),
    )


def copy_tree(tree: Tree) -> Tree:
    """An independent copy, without a journal."""
    copied = Tree(*(array.copy() for array in tree))
    copied.counts[EVENTS] = 0
    return copied._replace(events=tree.events[:0].copy())


@njit(cache=True)
def write_event(events, counts, counter, kind, node, other, number):
    """Append to a journal, whose events are counted in `counts[counter]`, if it has room."""
    at = counts[counter]
    if at < len(events):
        events[at, 0], events[at, 1], events[at, 2], events[at, 3] = kind, node, other, number
        counts[counter] = at + 1


@njit(cache=True)
def _write(tree, kind, node, other, number):
    write_event(tree.events, tree.counts, EVENTS, kind, node, other, number)


@njit(cache=True, inline="always")
def _slot(keys, key):
    mixed = np.uint64(key) * np.uint64(0x9E3779B97F4A7C15)
    return np.int64(mixed >> np.uint64(20)) & (len(keys) - 1)


@njit(cache=True, inline="always")
def _key(parent, token):
    return (np.int64(parent) << 32) | np.int64(token)


@njit(cache=True)
def child_of(tree, parent, token):
    """The child of `parent` whose edge starts with `token`, or NONE."""
    key = _key(parent, token)
    slot = _slot(tree.keys, key)
    while tree.keys[slot] != NONE:
        if tree.keys[slot] == key:
            return tree.values[slot]
        slot = (slot + 1) & (len(tree.keys) - 1)
    return np.int32(NONE)


@njit(cache=True)
def _bind(keys, values, key, child):
    slot = _slot(keys, key)
    while keys[slot] != NONE and keys[slot] != key:
        slot = (slot + 1) & (len(keys) - 1)
    keys[slot] = key
    values[slot] = child


@njit(cache=True)
def _unbind(tree, key):
    mask = len(tree.keys) - 1
    hole = _slot(tree.keys, key)
    while tree.keys[hole] != key:
        hole = (hole + 1) & mask
    probe = hole
    while True:  # close the hole, so that no chain of probes is cut
        probe = (probe + 1) & mask
        if tree.keys[probe] == NONE:
            break
        home = _slot(tree.keys, tree.keys[probe])
        if ((probe - home) & mask) >= ((probe - hole) & mask):
            tree.keys[hole] = tree.keys[probe]
            tree.values[hole] = tree.values[probe]
            hole = probe
    tree.keys[hole] = NONE


@njit(cache=True)
def _bind_node(tree, node):
    row = tree.nodes[node]
    _bind(tree.keys, tree.values, _key(row.parent, tree.tokens[row.start]), node)


@njit(cache=True)
def with_room_for_nodes(tree, extra):
    """The tree with room for `extra` more nodes; capacity doubles, so that the cost is constant a node."""
    nodes = tree.nodes
    if tree.counts[LIVE_NODES] + 1 + extra <= len(nodes):
        return tree
    capacity = 2 * len(nodes)
    while tree.counts[LIVE_NODES] + 1 + extra > capacity:
        capacity *= 2
    rows = np.zeros(capacity, nodes.dtype)
    rows[: len(nodes)] = nodes
    grown = Tree(
        rows,
        tree.tokens,
        np.full(2 * capacity, NONE, np.int64),
        np.zeros(2 * capacity, np.int32),
        tree.counts,
        tree.events,
    )
    for node in range(1, tree.counts[ALLOCATED]):
        if rows[node].parent != DEAD:
            _bind_node(grown, node)
    return grown


@njit(cache=True)
def with_room_for_tokens(tree, extra):
    """The tree with room for `extra` more tokens; drops the tokens of removed edges when it has to move."""
    counts = tree.counts
    if counts[ARENA_USED] + extra <= len(tree.tokens):
        return tree
    needed = counts[LIVE_TOKENS] + extra
    arena = np.empty(max(needed + needed // 2, 4096), np.int32)
    used = 0
    for node in range(1, counts[ALLOCATED]):
        row = tree.nodes[node]
        if row.parent != DEAD:
            arena[used : used + row.length] = tree.tokens[row.start : row.start + row.length]
            tree.nodes[node].start = used
            used += row.length
    counts[ARENA_USED] = used
    return Tree(tree.nodes, arena, tree.keys, tree.values, counts, tree.events)


@njit(cache=True)
def _allocate(tree):
    counts = tree.counts
    node = counts[FREE]
    if node == NONE:
        node = counts[ALLOCATED]
        counts[ALLOCATED] += 1
    else:
        counts[FREE] = tree.nodes[node].next
    row = tree.nodes[node]
    row.first_child = NONE
    row.last_child = NONE
    row.previous = NONE
    row.next = NONE
    row.num_children = 0
    row.stale = 0
    row.state = False
    counts[LIVE_NODES] += 1
    return node


@njit(cache=True)
def _release(tree, node):
    if tree.nodes[node].state:
        tree.nodes[node].state = False
        tree.counts[LIVE_STATES] -= 1
    tree.nodes[node].parent = DEAD
    tree.nodes[node].next = tree.counts[FREE]
    tree.counts[FREE] = node
    tree.counts[LIVE_NODES] -= 1


@njit(cache=True)
def _replace_among_siblings(tree, old, new):
    nodes = tree.nodes
    parent = nodes[old].parent
    nodes[new].parent = parent
    nodes[new].previous = nodes[old].previous
    nodes[new].next = nodes[old].next
    if nodes[old].previous == NONE:
        nodes[parent].first_child = new
    else:
        nodes[nodes[old].previous].next = new
    if nodes[old].next == NONE:
        nodes[parent].last_child = new
    else:
        nodes[nodes[old].next].previous = new


@njit(cache=True)
def match(tree, sequence, true_prefix):
    """Follow `sequence` from the root.

    Without `true_prefix` the walk continues into the children of an edge that diverged, as the published
    simulator's does: what it then reports need not be a prefix of the sequence (correction B6).
    """
    nodes, tokens = tree.nodes, tree.tokens
    node, deepest, resumable, matched = ROOT, ROOT, 0, 0
    last_full, complete = ROOT, 0
    while matched < len(sequence):
        child = child_of(tree, node, sequence[matched])
        if child == NONE:
            break
        start, length = nodes[child].start, nodes[child].length
        limit = min(length, len(sequence) - matched)
        same = 1
        while same < limit and tokens[start + same] == sequence[matched + same]:
            same += 1
        matched += same
        node = child
        if same == length:
            last_full = child
            complete += length
            if nodes[child].state:
                deepest, resumable = child, complete
        elif true_prefix:
            break
    return Match(deepest, resumable, matched, last_full, node)


@njit(cache=True)
def give_state(tree, node):
    """The node has a state to resume from, from now on."""
    if not tree.nodes[node].state:
        tree.nodes[node].state = True
        tree.counts[LIVE_STATES] += 1
        _write(tree, STATE, node, 0, 0)


@njit(cache=True)
def resumable_depth(tree, node):
    """Tokens that can be resumed above `node`: the depth of its nearest ancestor with a state, or 0."""
    nodes = tree.nodes
    node = nodes[node].parent
    while node != ROOT and not nodes[node].state:
        node = nodes[node].parent
    return nodes[node].depth


@njit(cache=True)
def add_leaf(tree, parent, edge):
    """Append `edge` below `parent`, which has no child with that first token, without a state. There must be room."""
    counts, nodes = tree.counts, tree.nodes
    node = _allocate(tree)
    start = counts[ARENA_USED]
    tree.tokens[start : start + len(edge)] = edge
    counts[ARENA_USED] += len(edge)
    counts[LIVE_TOKENS] += len(edge)
    nodes[node].parent = parent
    nodes[node].start = start
    nodes[node].length = len(edge)
    nodes[node].depth = nodes[parent].depth + len(edge)
    last = nodes[parent].last_child
    nodes[node].previous = last
    if last == NONE:
        nodes[parent].first_child = node
    else:
        nodes[last].next = node
    nodes[parent].last_child = node
    nodes[parent].num_children += 1
    _bind_node(tree, node)
    _write(tree, LEAF, node, parent, len(edge))
    return node


@njit(cache=True)
def split(tree, child, length):
    """Cut `child`'s edge after `length` tokens; returns the new node above it, without a state. There must be room."""
    nodes = tree.nodes
    middle = _allocate(tree)
    _replace_among_siblings(tree, child, middle)
    row, below = nodes[middle], nodes[child]
    row.start = below.start
    row.length = length
    row.depth = below.depth - below.length + length
    row.first_child = child
    row.last_child = child
    row.num_children = 1
    row.stale = below.stale
    below.stale = 0
    below.start += length
    below.length -= length
    below.parent = middle
    below.previous = NONE
    below.next = NONE
    _bind_node(tree, middle)
    _bind_node(tree, child)
    _write(tree, SPLIT, middle, child, length)
    return middle


@njit(cache=True)
def remove_leaf(tree, leaf):
    """Remove a node without children; returns its parent."""
    nodes = tree.nodes
    row = nodes[leaf]
    parent, previous, following = row.parent, row.previous, row.next
    _unbind(tree, _key(parent, tree.tokens[row.start]))
    if previous == NONE:
        nodes[parent].first_child = following
    else:
        nodes[previous].next = following
    if following == NONE:
        nodes[parent].last_child = previous
    else:
        nodes[following].previous = previous
    nodes[parent].num_children -= 1
    tree.counts[LIVE_TOKENS] -= row.length
    _write(tree, REMOVE, leaf, parent, row.length)
    _release(tree, leaf)
    return parent


@njit(cache=True)
def merge_into_child(tree, node, keep_stale):
    """Remove a node with one child, which takes over its tokens and its place. Returns the tree and the child.

    With `keep_stale` the children of that child are marked as still pointing at the node merged away, as they do
    in the published simulator (correction B8); nothing else depends on the mark.
    """
    child = tree.nodes[node].first_child
    upper, lower = tree.nodes[node].length, tree.nodes[child].length
    if tree.nodes[node].start + upper != tree.nodes[child].start:
        tree = with_room_for_tokens(tree, upper + lower)
    nodes, tokens = tree.nodes, tree.tokens
    _unbind(tree, _key(node, tokens[nodes[child].start]))
    start = nodes[node].start
    if start + upper != nodes[child].start:
        start = tree.counts[ARENA_USED]
        tokens[start : start + upper] = tokens[nodes[node].start : nodes[node].start + upper]
        tokens[start + upper : start + upper + lower] = tokens[nodes[child].start : nodes[child].start + lower]
        tree.counts[ARENA_USED] += upper + lower
    if keep_stale:
        tree.counts[MERGES] += 1
        grandchild = nodes[child].first_child
        while grandchild != NONE:
            if nodes[grandchild].stale == 0:
                nodes[grandchild].stale = tree.counts[MERGES]
            grandchild = nodes[grandchild].next
    nodes[child].stale = nodes[node].stale
    _replace_among_siblings(tree, node, child)
    nodes[child].start = start
    nodes[child].length = upper + lower
    _bind_node(tree, child)
    _write(tree, MERGE, node, child, 1 if nodes[node].state else 0)
    _release(tree, node)
    return tree, child


@njit(cache=True)
def next_in_preorder(tree, node):
    """The node after `node` in a depth-first walk, siblings in order of insertion; NONE after the last."""
    nodes = tree.nodes
    if nodes[node].first_child != NONE:
        return nodes[node].first_child
    while node != ROOT and nodes[node].next == NONE:
        node = nodes[node].parent
    return np.int32(NONE) if node == ROOT else nodes[node].next


@njit(cache=True)
def last_in_preorder(tree):
    """The last node of a depth-first walk: always a leaf (ROOT if the tree is empty)."""
    node = ROOT
    while tree.nodes[node].last_child != NONE:
        node = tree.nodes[node].last_child
    return node


@njit(cache=True)
def comes_before(tree, a, b):
    """Whether `a` comes before `b` in a depth-first walk. O(depth + siblings)."""
    nodes = tree.nodes
    level_a, level_b, node = 0, 0, a
    while node != ROOT:
        node, level_a = nodes[node].parent, level_a + 1
    node = b
    while node != ROOT:
        node, level_b = nodes[node].parent, level_b + 1
    on_same_path = level_a < level_b
    while level_a > level_b:
        a, level_a = nodes[a].parent, level_a - 1
    while level_b > level_a:
        b, level_b = nodes[b].parent, level_b - 1
    if a == b:
        return on_same_path
    while nodes[a].parent != nodes[b].parent:
        a, b = nodes[a].parent, nodes[b].parent
    while a != NONE and a != b:
        a = nodes[a].next
    return a == b


def num_stale(tree: Tree) -> int:
    """Nodes merged away that live nodes still point at."""
    rows = tree.nodes[1 : tree.counts[ALLOCATED]]
    marks = rows["stale"][rows["parent"] != DEAD]
    return len(np.unique(marks[marks > 0]))
