"""Which node to evict: least recently used, or lowest recency + alpha * FLOP efficiency (Marconi, section 4.3).

Policies are small named things; `Lru` and `FlopAware` say which nodes may go and how they are ranked. Finding the
victim is compiled. All nodes lie in an array by last access; over it stands a segment tree that knows, for each
range, the oldest access and the least and greatest efficiency among the nodes that may go. The least recently used
is its leftmost entry. For `FlopAware` the utility of a range is bounded below by its least efficiency with its
oldest access: a search that opens the better range first and drops every range whose bound is above the best
victim so far finds the exact minimum, ties by depth-first order, without looking at most nodes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numba import njit

from artifact.prefix_cache.index.radix_tree import (
    LIVE_NODES,
    NONE,
    ROOT,
    comes_before,
    next_in_preorder,
    resumable_depth,
)


@dataclass(frozen=True)
class Lru:
    """Evict the least recently used leaf; a lookup refreshes every node it visits (SGLang+)."""


@dataclass(frozen=True)
class FlopAware:
    """Evict the node of lowest recency + alpha * FLOP efficiency (Marconi, section 4.3).

    Nodes with at most one child may go: a leaf with its KV, an inner node with its checkpoint alone, its tokens
    passing to its child. A lookup refreshes only the node it resumes from.
    """

    alpha: float

    def __post_init__(self) -> None:
        if not 0 <= self.alpha < math.inf:
            raise ValueError(f"alpha must be finite and not negative, got {self.alpha}")


@dataclass(frozen=True)
class Tuned:
    """FLOP-aware with an alpha chosen from the cache's own requests (Marconi, section 4.2).

    Starts with alpha 0; `bootstrap_multiplier` times the number of requests before the first eviction is the
    window on which the alphas of `grid` are replayed.
    """

    bootstrap_multiplier: int = 5
    grid: tuple[float, ...] = tuple(step / 10 for step in range(21))

    def __post_init__(self) -> None:
        if self.bootstrap_multiplier < 1:
            raise ValueError(f"bootstrap_multiplier must be positive, got {self.bootstrap_multiplier}")
        if not self.grid or min(self.grid) != 0 or not max(self.grid) < math.inf:
            raise ValueError(f"grid must hold alpha 0 and no negative or infinite alpha, got {self.grid}")


class Order(NamedTuple):
    """Nodes by last access, and what eviction knows of each.

    last_access, position, pins: [node capacity]; position: the node's place in `owner`
    owner:    [size], the node at a place, or NONE; places ascend with last access
    low, high, oldest: [2 * size], segment tree over the places of nodes that may go: least and greatest
              efficiency, oldest access; a range without such a node holds (inf, -inf, LATEST)
    clock:    [2], the logical clock and the next free place
    """

    last_access: Any
    position: Any
    pins: Any
    owner: Any
    low: Any
    high: Any
    oldest: Any
    clock: Any


NOW, NEXT_PLACE = 0, 1
LATEST = np.iinfo(np.int64).max


def copy_order(order: Order) -> Order:
    """An independent copy."""
    return Order(*(array.copy() for array in order))


@njit(cache=True)
def empty_order(nodes=64):
    """The order of a tree that holds only the root."""
    size = 2 * nodes
    return Order(
        np.zeros(nodes, np.int64),
        np.full(nodes, NONE, np.int64),
        np.zeros(nodes, np.int32),
        np.full(size, NONE, np.int32),
        np.full(2 * size, np.inf),
        np.full(2 * size, -np.inf),
        np.full(2 * size, LATEST, np.int64),
        np.zeros(2, np.int64),
    )


@njit(cache=True)
def with_capacity(order, nodes):
    """The order for a tree with room for `nodes` nodes."""
    if nodes <= len(order.position):
        return order
    grown = empty_order(nodes)
    known = len(order.position)
    grown.last_access[:known] = order.last_access
    grown.position[:known] = order.position
    grown.pins[:known] = order.pins
    grown.clock[NOW] = order.clock[NOW]
    _repack(order, grown)
    return grown


@njit(cache=True)
def _repack(order, packed):
    """Move all nodes to the first places of `packed` (which may be `order` itself), in the same order."""
    size, old_size = len(packed.owner), len(order.owner)
    place = 0
    for old in range(order.clock[NEXT_PLACE]):
        node = order.owner[old]
        if node == NONE:
            continue
        leaf = old_size + old
        low, high, oldest = order.low[leaf], order.high[leaf], order.oldest[leaf]
        order.owner[old] = NONE
        packed.owner[place] = node
        packed.position[node] = place
        packed.low[size + place], packed.high[size + place], packed.oldest[size + place] = low, high, oldest
        place += 1
    packed.clock[NEXT_PLACE] = place
    packed.low[size + place :] = np.inf
    packed.high[size + place :] = -np.inf
    packed.oldest[size + place :] = LATEST
    for i in range(size - 1, 0, -1):
        _combine(packed, i)


@njit(cache=True, inline="always")
def _combine(order, i):
    left, right = 2 * i, 2 * i + 1
    order.low[i] = min(order.low[left], order.low[right])
    order.high[i] = max(order.high[left], order.high[right])
    order.oldest[i] = min(order.oldest[left], order.oldest[right])


@njit(cache=True)
def _set(order, place, low, high, oldest):
    i = len(order.owner) + place
    if order.low[i] == low and order.high[i] == high and order.oldest[i] == oldest:
        return
    order.low[i], order.high[i], order.oldest[i] = low, high, oldest
    i >>= 1
    while i:
        _combine(order, i)
        i >>= 1


@njit(cache=True)
def admit(order, node, efficiency):
    """The node may be evicted, with this efficiency, at its last access."""
    _set(order, order.position[node], efficiency, efficiency, order.last_access[node])


@njit(cache=True)
def exclude(order, node):
    """The node may not be evicted."""
    _set(order, order.position[node], np.inf, -np.inf, LATEST)


@njit(cache=True)
def forget(order, node):
    """Take a node out of the order."""
    exclude(order, node)
    order.owner[order.position[node]] = NONE
    order.position[node] = NONE


@njit(cache=True)
def touch(order, node):
    """Make `node` the latest, at the clock's time. `refresh` it afterwards: it may not go until then."""
    order.last_access[node] = order.clock[NOW]
    if node == ROOT:
        return
    place = order.position[node]
    if place != NONE:
        if place == order.clock[NEXT_PLACE] - 1:
            return
        forget(order, node)
    if order.clock[NEXT_PLACE] == len(order.owner):
        _repack(order, order)
    place = order.clock[NEXT_PLACE]
    order.clock[NEXT_PLACE] += 1
    order.owner[place] = node
    order.position[node] = place


@njit(cache=True)
def inherit(order, heir, node):
    """`node` leaves the order and `heir` keeps the later access of the two."""
    if order.last_access[node] > order.last_access[heir]:
        place = order.position[node]
        forget(order, heir)
        forget(order, node)
        order.owner[place] = heir
        order.position[heir] = place
        order.last_access[heir] = order.last_access[node]
    else:
        forget(order, node)


@njit(cache=True)
def flop_efficiency(tree, node, costs, fixes):
    """FLOPs that a hit on the node saves over a hit on its parent, for each byte (Marconi, section 4.3).

    If the parent has no state: over a hit on the nearest node above that has one.
    """
    row = tree.nodes[node]
    total, prefix = row.depth, resumable_depth(tree, node)
    attention_prefix = costs.attention_flops * prefix + costs.attention_flops_squared * prefix * prefix
    attention = costs.attention_flops * total + costs.attention_flops_squared * total * total - attention_prefix
    mlp_prefix = costs.mlp_flops * prefix if fixes.mlp_saving else attention_prefix
    flops = (
        costs.num_ssm_layers * costs.ssm_flops * (total - prefix)
        + costs.num_attention_layers * attention
        + costs.num_mlp_layers * (costs.mlp_flops * total - mlp_prefix)
    )
    if fixes.freed_memory:
        size = costs.checkpoint_bytes + (costs.token_bytes * row.length if row.num_children == 0 else 0)
    else:
        size = costs.checkpoint_bytes + costs.token_bytes * total
    return flops / size


@njit(cache=True)
def refresh(tree, order, node, costs, fixes, lru):
    """Enter or leave the nodes that may go, after a change of the node's children, edge, access or pins."""
    if node == ROOT:
        return
    children = tree.nodes[node].num_children
    frees_nothing = children == 1 and costs.checkpoint_bytes == 0 and fixes.freed_memory
    if order.pins[node] > 0 or children > (0 if lru else 1) or frees_nothing or not tree.nodes[node].state:
        exclude(order, node)
    else:
        admit(order, node, 0.0 if lru else flop_efficiency(tree, node, costs, fixes))


@njit(cache=True)
def refresh_below(tree, order, node, costs, fixes, lru):
    """Refresh the nodes that `node` is the nearest to resume from, after a change of its state."""
    if lru:
        return
    stack = np.empty(tree.counts[LIVE_NODES], np.int32)
    stack[0], size = node, 1
    while size:
        size -= 1
        child = tree.nodes[stack[size]].first_child
        while child != NONE:
            if tree.nodes[child].state:
                refresh(tree, order, child, costs, fixes, lru)
            else:
                stack[size] = child
                size += 1
            child = tree.nodes[child].next


@njit(cache=True)
def least_recent(order):
    """The least recently used of the nodes that may go, or NONE."""
    if order.oldest[1] == LATEST:
        return np.int32(NONE)
    i, size = 1, len(order.owner)
    while i < size:
        i = 2 * i if order.oldest[2 * i] != LATEST else 2 * i + 1
    return order.owner[i - size]


@njit(cache=True, inline="always")
def _normalised(value, low, high):
    return 1.0 if high == low else (value - low) / (high - low)


@njit(cache=True)
def _least_utility(order, i, alpha, stalest, freshest):
    """A lower bound of the utility in a range: its least efficiency with its oldest access; infinite if it is empty."""
    if order.oldest[i] == LATEST:
        return np.inf
    recency = _normalised(1.0 / (order.clock[NOW] - order.oldest[i]), stalest, freshest)
    return alpha * _normalised(order.low[i], order.low[1], order.high[1]) + recency


@njit(cache=True)
def least_useful(tree, order, alpha):
    """The node of lowest utility among those that may go, or NONE: the first in depth-first order on a tie.

    Utility is alpha * efficiency + recency, each scaled to [0, 1] over the nodes that may go (1 if all are
    equal); recency is one over the age. Scaling, sum and product are monotone under rounding, so a range's bound
    never exceeds the utility of a node in it and the result equals a scan of all nodes bit for bit.
    """
    if order.oldest[1] == LATEST:
        return np.int32(NONE)
    now, size = order.clock[NOW], len(order.owner)
    i = 1
    while i < size:
        i = 2 * i + 1 if order.oldest[2 * i + 1] != LATEST else 2 * i
    stalest, freshest = 1.0 / (now - order.oldest[1]), 1.0 / (now - order.oldest[i])
    best_utility, best = np.inf, np.int32(NONE)
    stack = np.empty(128, np.int64)
    bounds = np.empty(128, np.float64)
    stack[0], bounds[0], depth = 1, -np.inf, 1
    while depth:
        depth -= 1
        i = stack[depth]
        if bounds[depth] > best_utility:
            continue
        if i >= size:
            node = order.owner[i - size]
            if bounds[depth] < best_utility or comes_before(tree, node, best):
                best_utility, best = bounds[depth], node
            continue
        better, worse = 2 * i, 2 * i + 1
        bound_better = _least_utility(order, better, alpha, stalest, freshest)
        bound_worse = _least_utility(order, worse, alpha, stalest, freshest)
        if bound_worse < bound_better:
            better, worse, bound_better, bound_worse = worse, better, bound_worse, bound_better
        if bound_worse <= best_utility and bound_worse != np.inf:
            stack[depth], bounds[depth] = worse, bound_worse
            depth += 1
        if bound_better <= best_utility and bound_better != np.inf:
            stack[depth], bounds[depth] = better, bound_better
            depth += 1
    return best


# The published LRU: a heap of the leaves, built anew for each request. Which of two leaves of equal age goes
# first is decided by the heap's inner order, so it is followed to the letter (Python's `heapq`).


@njit(cache=True)
def _rise(heap, age, start, at):
    item = heap[at]
    while at > start:
        parent = (at - 1) >> 1
        if age[item] >= age[heap[parent]]:
            break
        heap[at] = heap[parent]
        at = parent
    heap[at] = item


@njit(cache=True)
def _sink(heap, age, size, at):
    start, item = at, heap[at]
    child = 2 * at + 1
    while child < size:
        if child + 1 < size and age[heap[child]] >= age[heap[child + 1]]:
            child += 1
        heap[at] = heap[child]
        at = child
        child = 2 * at + 1
    heap[at] = item
    _rise(heap, age, start, at)


@njit(cache=True)
def leaf_heap(tree, order):
    """All leaves in depth-first order, as `heapq.heapify` by last access leaves them; and their number."""
    heap = np.empty(len(tree.nodes), np.int64)
    size, node = 0, next_in_preorder(tree, ROOT)
    while node != NONE:
        if tree.nodes[node].num_children == 0:
            heap[size] = node
            size += 1
        node = next_in_preorder(tree, node)
    for at in range(size // 2 - 1, -1, -1):
        _sink(heap, order.last_access, size, at)
    return heap, size


@njit(cache=True)
def heap_pop(heap, size, order):
    """The oldest leaf; the heap is one shorter."""
    top = heap[0]
    heap[0] = heap[size - 1]
    if size > 1:
        _sink(heap, order.last_access, size - 1, 0)
    return top


@njit(cache=True)
def heap_push(heap, size, order, node):
    """Add a node; the heap is one longer."""
    heap[size] = node
    _rise(heap, order.last_access, 0, size)
