"""The prefix cache that a serving engine calls: `lookup` before a prefill, `insert` after the last decoded token.

One request moves the logical clock as the published simulator does (one step for the lookup, two before the
insertion, one more before an eviction), so that ages, and with them utilities, are the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numba import njit

from artifact.prefix_cache.admission import bytes_needed
from artifact.prefix_cache.eviction import (
    NOW,
    FlopAware,
    Lru,
    Order,
    Tuned,
    empty_order,
    forget,
    heap_pop,
    heap_push,
    inherit,
    leaf_heap,
    least_recent,
    least_useful,
    refresh,
    touch,
    with_capacity,
)
from artifact.prefix_cache.fidelity import CORRECTED, Fidelity, Fixes
from artifact.prefix_cache.radix_tree import (
    LIVE_NODES,
    LIVE_TOKENS,
    NONE,
    ROOT,
    Tree,
    add_leaf,
    empty_tree,
    last_in_preorder,
    match,
    merge_into_child,
    num_stale,
    remove_leaf,
    split,
    with_room_for_nodes,
    with_room_for_tokens,
)
from artifact.prefix_cache.spec import Costs, HybridSpec
from artifact.prefix_cache.traces import Tokens, checked_tokens
from artifact.prefix_cache.tuning import Tuner

LOOKUP, INSERT = 0, 1


class State(NamedTuple):
    """A cache's contents."""

    tree: Tree
    order: Order


class Rules(NamedTuple):
    """What decides: costs, corrections, policy and capacity."""

    costs: Costs
    fixes: Fixes
    lru: bool
    alpha: float
    capacity_bytes: int


@njit(cache=True)
def used_bytes(tree, costs):
    """Bytes of all KV and checkpoints held."""
    return tree.counts[LIVE_NODES] * costs.checkpoint_bytes + tree.counts[LIVE_TOKENS] * costs.token_bytes


@njit(cache=True)
def _touch_match(state, rules, found):
    tree, order = state
    if not rules.lru:
        if found.deepest != ROOT:
            touch(order, found.deepest)
            refresh(tree, order, found.deepest, rules.costs, rules.fixes, False)
        return
    _touch_path(state, rules, found.last)


@njit(cache=True)
def _touch_path(state, rules, node):
    tree, order = state
    while node != NONE:
        touch(order, node)
        refresh(tree, order, node, rules.costs, rules.fixes, rules.lru)
        node = tree.nodes[node].parent


@njit(cache=True)
def look_up(state, rules, tokens):
    """Tokens that can be reused of `tokens`; refreshes what the policy refreshes."""
    state.order.clock[NOW] += 1
    found = match(state.tree, tokens, rules.fixes.true_prefix)
    _touch_match(state, rules, found)
    return found.reused


@njit(cache=True)
def remove(state, rules, victim):
    """Evict one node. Returns the state and the bytes freed."""
    tree, order = state
    costs, fixes = rules.costs, rules.fixes
    if tree.nodes[victim].num_children == 0:
        freed = costs.checkpoint_bytes + costs.token_bytes * tree.nodes[victim].length
        parent = remove_leaf(tree, victim)
        forget(order, victim)
        refresh(tree, order, parent, costs, fixes, rules.lru)
    else:
        freed = costs.checkpoint_bytes
        tree, child = merge_into_child(tree, victim, not fixes.no_stale_states)
        inherit(order, child, victim)
        refresh(tree, order, child, costs, fixes, rules.lru)
    return State(tree, order), freed


@njit(cache=True)
def _evict_bytes(state, rules, wanted):
    """Evict until the bytes counted as freed reach `wanted`, or nothing is left (the published procedure)."""
    costs = rules.costs
    freed = 0
    if rules.lru:
        heap, size = leaf_heap(state.tree, state.order)
        while freed < wanted and size > 0:
            victim = heap_pop(heap, size, state.order)
            size -= 1
            parent = state.tree.nodes[victim].parent
            state, gained = remove(state, rules, victim)
            freed += gained
            if parent != ROOT and state.tree.nodes[parent].num_children == 0:
                heap_push(heap, size, state.order, parent)
                size += 1
        return state
    while freed < wanted:
        victim = least_useful(state.tree, state.order, rules.alpha)
        if victim == NONE:
            return state
        if rules.fixes.leaf_bytes or state.tree.nodes[victim].num_children:
            state, gained = remove(state, rules, victim)
        else:
            counted = state.tree.nodes[last_in_preorder(state.tree)].length
            gained = costs.checkpoint_bytes + costs.token_bytes * counted
            state, _ = remove(state, rules, victim)
        freed += gained
    return state


@njit(cache=True)
def _set_pins(state, rules, found, change):
    tree, order = state
    order.pins[found.deepest] += change
    refresh(tree, order, found.deepest, rules.costs, rules.fixes, rules.lru)
    if found.last != found.deepest:
        order.pins[found.last] += change
        refresh(tree, order, found.last, rules.costs, rules.fixes, rules.lru)


@njit(cache=True)
def _evict_until_room(state, rules, tokens, found):
    """Evict until `tokens` fit, the matched path last of all. Returns the state and the match as it is then.

    The node to resume from and the child whose edge is left within are pinned; checkpoints above them may go, as
    their tokens pass down the path. Only if nothing else is left are the pins given up.
    """
    while True:
        need = bytes_needed(rules.costs, len(tokens), found, True)
        if used_bytes(state.tree, rules.costs) + need <= rules.capacity_bytes:
            return state, found
        _set_pins(state, rules, found, 1)
        victim = least_recent(state.order) if rules.lru else least_useful(state.tree, state.order, rules.alpha)
        _set_pins(state, rules, found, -1)
        if victim == NONE:
            victim = least_recent(state.order) if rules.lru else least_useful(state.tree, state.order, rules.alpha)
            if victim == NONE:
                return state, found
            state, _ = remove(state, rules, victim)
            found = match(state.tree, tokens, rules.fixes.true_prefix)
        else:
            state, _ = remove(state, rules, victim)


@njit(cache=True)
def _graft(state, rules, tokens):
    """Put `tokens` into the tree: a split where an edge diverges, a leaf for what is new."""
    tree, order = state
    costs, fixes, lru = rules.costs, rules.fixes, rules.lru
    tree = with_room_for_nodes(tree, 2)
    tree = with_room_for_tokens(tree, len(tokens))
    order = with_capacity(order, len(tree.nodes))
    state = State(tree, order)
    found = match(tree, tokens, True)
    parent = found.deepest
    if found.last != found.deepest:
        child = found.last
        parent = split(tree, child, found.raw - found.reused)
        touch(order, parent)
        refresh(tree, order, child, costs, fixes, lru)
    if found.raw < len(tokens):
        leaf = add_leaf(tree, parent, tokens[found.raw :])
        touch(order, leaf)
        refresh(tree, order, leaf, costs, fixes, lru)
    refresh(tree, order, parent, costs, fixes, lru)
    if lru:
        _touch_path(state, rules, parent)
    return state


@njit(cache=True)
def store(state, rules, tokens):
    """Cache `tokens`, evicting as needed. Returns the state and whether anything had to be evicted."""
    state.order.clock[NOW] += 2
    found = match(state.tree, tokens, rules.fixes.true_prefix)
    _touch_match(state, rules, found)
    costs, fixes, capacity = rules.costs, rules.fixes, rules.capacity_bytes
    if fixes.refuse_oversized and costs.checkpoint_bytes + costs.token_bytes * len(tokens) > capacity:
        return state, False
    need = bytes_needed(costs, len(tokens), found, fixes.pin_path)
    excess = used_bytes(state.tree, costs) + need - capacity
    if excess > 0:
        state.order.clock[NOW] += 1
        if fixes.pin_path:
            state, found = _evict_until_room(state, rules, tokens, found)
        else:
            state = _evict_bytes(state, rules, excess)
    return _graft(state, rules, tokens), excess > 0


@njit(cache=True)
def run(state, rules, pool, start, length, kind, first, last, stop_at_eviction, reused, used):
    """Do the operations [first, last) of a sequence of lookups and insertions over one pool of tokens.

    Fills reused[i] for lookups and used[i], the bytes held after each. With `stop_at_eviction` it ends after the
    first operation that evicts. Returns the state, the operation after the last one done, and whether that one
    evicted.
    """
    for i in range(first, last):
        tokens = pool[start[i] : start[i] + length[i]]
        evicted = False
        if kind[i] == LOOKUP:
            reused[i] = look_up(state, rules, tokens)
        else:
            state, evicted = store(state, rules, tokens)
        used[i] = used_bytes(state.tree, rules.costs)
        if evicted and stop_at_eviction:
            return state, i + 1, True
    return state, last, False


class Operations(NamedTuple):
    """Lookups and insertions over one pool of tokens, in order.

    pool: the tokens, int32; start, length: [operations]; kind: [operations], LOOKUP or INSERT
    """

    pool: Any
    start: Any
    length: Any
    kind: Any


class PrefixCache:
    """Prefix cache of a hybrid model: which states are kept, in how many bytes.

    spec:           the model's byte and FLOP costs
    capacity_bytes: KV and checkpoints together never take more (fidelity `corrected`)
    eviction:       Lru() is SGLang+, FlopAware(alpha) is Marconi with a fixed alpha, Tuned() is Marconi
    fidelity:       CORRECTED, or ARTIFACT for the published simulator's behaviour
    Raises:         ValueError for a capacity that is not positive
    """

    def __init__(
        self,
        spec: HybridSpec,
        *,
        capacity_bytes: int,
        eviction: Lru | FlopAware | Tuned = Tuned(),  # noqa: B008 (frozen)
        fidelity: Fidelity = CORRECTED,
    ) -> None:
        if not capacity_bytes > 0:
            raise ValueError(f"capacity_bytes must be positive, got {capacity_bytes}")
        self.spec, self.eviction, self.fidelity = spec, eviction, fidelity
        self.capacity_bytes = int(capacity_bytes)
        self.alpha = eviction.alpha if isinstance(eviction, FlopAware) else 0.0
        self.state = State(empty_tree(), empty_order())
        self.requests = 0
        self.first_eviction_request: int | None = None
        self.peak_bytes = 0
        self._tuner = Tuner(eviction, fidelity) if isinstance(eviction, Tuned) else None

    def lookup(self, tokens: Sequence[int] | Tokens) -> int:
        """Tokens of the longest prefix that a stored state can resume; 0 if there is none. Refreshes it."""
        return int(self._one(LOOKUP, tokens))

    def insert(self, tokens: Sequence[int] | Tokens) -> None:
        """Keep the states of a served sequence: its KV, the last token's checkpoint and the branch point's."""
        self._one(INSERT, tokens)

    @property
    def used_bytes(self) -> int:
        """Bytes of KV and checkpoints held now."""
        return int(used_bytes(self.state.tree, self.spec.costs()))

    @property
    def num_checkpoints(self) -> int:
        """Checkpoints held now: one for each node of the tree."""
        return int(self.state.tree.counts[LIVE_NODES])

    @property
    def num_stale_states(self) -> int:
        """Checkpoints of nodes merged away that would stay reachable (without correction B8)."""
        return num_stale(self.state.tree)

    @property
    def cached_tokens(self) -> int:
        """Tokens whose KV is held now."""
        return int(self.state.tree.counts[LIVE_TOKENS])

    @property
    def index_bytes(self) -> int:
        """Memory of the index itself: tokens, nodes, table and order, with the room to grow."""
        return sum(array.nbytes for part in self.state for array in part)

    @property
    def tuned(self) -> bool:
        """Whether the tuner has chosen alpha."""
        return self._tuner is not None and self._tuner.done

    @property
    def tuner_scores(self) -> dict[float, float]:
        """What each alpha reached on the tuner's window; empty before it has run."""
        return {} if self._tuner is None else dict(self._tuner.scores)

    def rules(self, alpha: float | None = None) -> Rules:
        """What the compiled cache decides by, with the present alpha or another."""
        chosen = self.alpha if alpha is None else alpha
        lru = isinstance(self.eviction, Lru)
        return Rules(self.spec.costs(), self.fidelity.fixes(), lru, float(chosen), self.capacity_bytes)

    def run(self, operations: Operations) -> tuple[np.ndarray, np.ndarray]:
        """Do many operations at once. Returns [operations] reused tokens (0 for insertions) and bytes held."""
        count = len(operations.kind)
        reused, used = np.zeros(count, np.int64), np.zeros(count, np.int64)
        done = 0
        while done < count:
            stop = count
            if self._tuner is not None:
                stop = self._tuner.next_stop(self, operations, done)
            if self.first_eviction_request is None:
                self.state, end, evicted = run(self.state, self.rules(), *operations, done, stop, True, reused, used)
            else:
                self.state, end, evicted = run(self.state, self.rules(), *operations, done, stop, False, reused, used)
            self.requests += int(np.count_nonzero(operations.kind[done:end] == LOOKUP))
            if self._tuner is not None:
                self._tuner.record(operations, done, end)
            if evicted and self.first_eviction_request is None:
                self.first_eviction_request = self.requests
                if self._tuner is not None:
                    self._tuner.start(self)
            done = end
        self.peak_bytes = max(self.peak_bytes, int(used.max(initial=0)))
        return reused, used

    def _one(self, kind: int, tokens: Sequence[int] | Tokens) -> int:
        pool = checked_tokens(tokens, "tokens")
        if len(pool) == 0:
            raise ValueError("tokens must hold at least one token, got none")
        one = np.ones(1, np.int64)
        reused, _ = self.run(Operations(pool, 0 * one, len(pool) * one, kind * one))
        return int(reused[0])
