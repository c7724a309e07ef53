"""The prefix cache that a serving engine calls: `lookup` before a prefill, `insert` after the last decoded token.

One request moves the logical clock as the published simulator does (one step for the lookup, two before the
insertion, one more before an eviction), so that ages, and with them utilities, are the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numba import njit

from artifact.prefix_cache.index.admission import (
    EVERY_STATE,
    AtBranch,
    CheckpointPolicy,
    CheckpointRule,
    bytes_needed,
    checkpoint_depths,
    num_states_published,
)
from artifact.prefix_cache.index.eviction import (
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
    refresh_below,
    touch,
    with_capacity,
)
from artifact.prefix_cache.index.fidelity import CORRECTED, Fidelity, Fixes
from artifact.prefix_cache.index.radix_tree import (
    ALLOCATED,
    DEAD,
    EVENTS,
    LIVE_NODES,
    LIVE_STATES,
    LIVE_TOKENS,
    NODE,
    NONE,
    ROOT,
    Match,
    Tree,
    add_leaf,
    empty_tree,
    give_state,
    last_in_preorder,
    match,
    merge_into_child,
    num_stale,
    remove_leaf,
    split,
    with_room_for_nodes,
    with_room_for_tokens,
)
from artifact.prefix_cache.index.tuning import Tuner
from artifact.prefix_cache.spec import Costs, HybridSpec
from artifact.prefix_cache.workloads.traces import Tokens, checked_tokens

LOOKUP, INSERT = 0, 1


class CacheContents(NamedTuple):
    """The tree of cached prefixes and the order in which its nodes may be evicted."""

    tree: Tree
    order: Order


class Rules(NamedTuple):
    """What decides: costs, corrections, policies of eviction and admission, and capacity."""

    costs: Costs
    fixes: Fixes
    lru: bool
    alpha: float
    capacity_bytes: int
    checkpoints: CheckpointRule


def release_all(state: CacheContents, rules: Rules) -> None:
    """Take back every pin: nobody holds a node of these contents."""
    state.order.pins[:] = 0
    for node in range(1, int(state.tree.counts[ALLOCATED])):
        if state.tree.nodes[node]["parent"] != DEAD:
            refresh(*state, node, rules.costs, rules.fixes, rules.lru)


@njit(cache=True)
def used_bytes(tree, costs):
    """Bytes of all KV and checkpoints held."""
    return tree.counts[LIVE_STATES] * costs.checkpoint_bytes + tree.counts[LIVE_TOKENS] * costs.token_bytes


@njit(cache=True)
def _touch_match(state, rules, found):
    tree, order = state
    if not rules.lru:
        if found.deepest != ROOT:
            touch(order, found.deepest)
            refresh(tree, order, found.deepest, rules.costs, rules.fixes, False)
        return
    _touch_path(state, rules, found.last_visited)


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
    return found.resumable_tokens


@njit(cache=True)
def remove(state, rules, victim):
    """Evict one node. Returns the state and the bytes freed."""
    tree, order = state
    costs, fixes = rules.costs, rules.fixes
    if tree.nodes[victim].num_children == 0:
        freed = costs.checkpoint_bytes + costs.token_bytes * tree.nodes[victim].length
        parent = remove_leaf(tree, victim)
        forget(order, victim)
        if parent != ROOT and not tree.nodes[parent].state and tree.nodes[parent].num_children == 1:
            tree = _merge(tree, order, rules, parent)  # paths no longer part there
        else:
            refresh(tree, order, parent, costs, fixes, rules.lru)
    else:
        freed = costs.checkpoint_bytes
        tree = _merge(tree, order, rules, victim)
    return CacheContents(tree, order), freed


@njit(cache=True)
def _merge(tree, order, rules, node):
    """A node with one child gives up its state, if it has one, and its tokens pass to the child."""
    tree, child = merge_into_child(tree, node, not rules.fixes.no_stale_states)
    inherit(order, child, node)
    refresh(tree, order, child, rules.costs, rules.fixes, rules.lru)
    if not tree.nodes[child].state:
        refresh_below(tree, order, child, rules.costs, rules.fixes, rules.lru)
    return tree


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
    if found.last_visited != found.deepest:
        order.pins[found.last_visited] += change
        refresh(tree, order, found.last_visited, rules.costs, rules.fixes, rules.lru)


@njit(cache=True)
def _bytes_needed(state, rules, num_tokens, found, computed_from, available):
    """Bytes that caching a sequence adds, given its match."""
    if not rules.fixes.pin_path:
        return bytes_needed(rules.costs, num_states_published(found), num_tokens, found.matched_tokens)
    wanted = checkpoint_depths(
        rules.checkpoints, found.resumable_tokens, found.matched_tokens, num_tokens, computed_from, available
    )
    return bytes_needed(rules.costs, len(wanted), num_tokens, found.matched_tokens)


@njit(cache=True)
def _evict_until_room(state, rules, tokens, found, available):
    """Evict until `tokens` fit, the matched path last of all. Returns the state and whether they fit.

    The node to resume from and the child whose edge is left within are pinned; checkpoints above them may go, as
    their tokens pass down the path. Only if nothing else is left are the pins given up. What others have pinned
    stays: then there may be no room.
    """
    computed_from = found.resumable_tokens if rules.fixes.true_prefix else 0
    while True:
        need = _bytes_needed(state, rules, len(tokens), found, computed_from, available)
        if used_bytes(state.tree, rules.costs) + need <= rules.capacity_bytes:
            return state, True
        _set_pins(state, rules, found, 1)
        victim = least_recent(state.order) if rules.lru else least_useful(state.tree, state.order, rules.alpha)
        _set_pins(state, rules, found, -1)
        on_path = victim == NONE
        if on_path:
            victim = least_recent(state.order) if rules.lru else least_useful(state.tree, state.order, rules.alpha)
            if victim == NONE:
                return state, not rules.fixes.refuse_oversized
        parts = state.tree.counts[LIVE_NODES] != state.tree.counts[LIVE_STATES]  # paths part at nodes without a state
        state, _ = remove(state, rules, victim)
        if on_path or parts:
            found = match(state.tree, tokens, rules.fixes.true_prefix)


@njit(cache=True)
def _cut(state, rules, node, depth):
    """The node on the path to `node` that ends after `depth` tokens: cut off its edge where there is none."""
    tree, order = state
    while tree.nodes[node].depth - tree.nodes[node].length >= depth:
        node = tree.nodes[node].parent
    if tree.nodes[node].depth == depth:
        return node
    upper = split(tree, node, depth - (tree.nodes[node].depth - tree.nodes[node].length))
    touch(order, upper)
    refresh(tree, order, node, rules.costs, rules.fixes, rules.lru)
    return upper


@njit(cache=True)
def _graft(state, rules, tokens, computed_from, available):
    """Put `tokens` into the tree: a cut where an edge diverges, leaves for what is new, states where wanted."""
    tree, order = state
    costs, fixes, lru = rules.costs, rules.fixes, rules.lru
    found = match(tree, tokens, True)
    wanted = checkpoint_depths(
        rules.checkpoints, found.resumable_tokens, found.matched_tokens, len(tokens), computed_from, available
    )
    tree = with_room_for_nodes(tree, 1 + len(wanted))
    tree = with_room_for_tokens(tree, len(tokens))
    order = with_capacity(order, len(tree.nodes))
    state = CacheContents(tree, order)
    parent, done = found.last_full, found.matched_tokens
    if found.last_visited != found.last_full:
        parent = _cut(state, rules, found.last_visited, found.matched_tokens)
    path_end = parent
    for depth in wanted:
        if depth <= found.matched_tokens:
            node = _cut(state, rules, path_end, depth)
            give_state(tree, node)
            refresh(tree, order, node, costs, fixes, lru)
            refresh_below(tree, order, node, costs, fixes, lru)
            continue
        leaf = add_leaf(tree, parent, tokens[done:depth])
        give_state(tree, leaf)
        touch(order, leaf)
        refresh(tree, order, leaf, costs, fixes, lru)
        refresh(tree, order, parent, costs, fixes, lru)
        parent, done = leaf, depth
    refresh(tree, order, parent, costs, fixes, lru)
    if lru:
        _touch_path(state, rules, path_end)
    return state


@njit(cache=True)
def store(state, rules, tokens, available):
    """Cache `tokens`, evicting as needed. Returns the state and whether anything had to be evicted."""
    state.order.clock[NOW] += 2
    found = match(state.tree, tokens, rules.fixes.true_prefix)
    _touch_match(state, rules, found)
    costs, fixes, capacity = rules.costs, rules.fixes, rules.capacity_bytes
    computed_from = found.resumable_tokens if fixes.true_prefix else 0
    if fixes.refuse_oversized:
        nothing = Match(ROOT, 0, 0, ROOT, ROOT)
        if _bytes_needed(state, rules, len(tokens), nothing, computed_from, available) > capacity:
            return state, False
    need = _bytes_needed(state, rules, len(tokens), found, computed_from, available)
    excess = used_bytes(state.tree, costs) + need - capacity
    if excess > 0:
        state.order.clock[NOW] += 1
        if fixes.pin_path:
            state, fits = _evict_until_room(state, rules, tokens, found, available)
            if not fits:
                return state, True
        else:
            state = _evict_bytes(state, rules, excess)
    return _graft(state, rules, tokens, computed_from, available), excess > 0


@njit(cache=True)
def run(state, rules, pool, start, length, kind, first, last, stop_at_eviction, available, reused, used):
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
            state, evicted = store(state, rules, tokens, available)
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


class LiveNode(NamedTuple):
    """A node of an index, as whoever holds its states needs it."""

    node: int
    parent: int
    depth: int
    tokens: Tokens
    has_state: bool


class PrefixCache:
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
        if not capacity_bytes > 0:
            raise ValueError(f"capacity_bytes must be positive, got {capacity_bytes}")
        if checkpoints != AtBranch() and not all(fidelity.fixes()):
            raise ValueError(f"checkpoints must be AtBranch() with a published defect, got {checkpoints}")
        self.spec, self.eviction, self.fidelity, self.checkpoints = spec, eviction, fidelity, checkpoints
        self.capacity_bytes = int(capacity_bytes)
        self.alpha = eviction.alpha if isinstance(eviction, FlopAware) else 0.0
        self.state = CacheContents(empty_tree(), empty_order())
        self.requests = 0
        self.first_eviction_request: int | None = None
        self.peak_bytes = 0
        self._tuner = Tuner(eviction, fidelity) if isinstance(eviction, Tuned) else None

    def lookup(self, tokens: Sequence[int] | Tokens) -> int:
        """Tokens of the longest prefix that a stored state can resume; 0 if there is none. Refreshes it."""
        return int(self._one(LOOKUP, tokens))

    def insert(self, tokens: Sequence[int] | Tokens, *, available: Sequence[int] = ()) -> None:
        """Keep the states of a served sequence: its KV, and the checkpoints that the policy names.

        available: depths at which the caller has a checkpoint, the last token's among them; all if empty
        """
        self._one(INSERT, tokens, available)

    def find(self, tokens: Tokens) -> Match:
        """How far `tokens` are in the tree, without refreshing anything."""
        return match(self.state.tree, tokens, self.fidelity.true_prefix)

    def checkpoint_depths(self, resumable_tokens: int, matched_tokens: int, num_tokens: int) -> list[int]:
        """Depths at which a sequence leaves a checkpoint, given its match."""
        return checkpoint_depths(
            self.checkpoints.rule(), resumable_tokens, matched_tokens, num_tokens, resumable_tokens, EVERY_STATE
        ).tolist()

    def pin(self, node: int, change: int = 1) -> None:
        """Keep a node from being evicted (-1 takes one pin back)."""
        rules = self.rules()
        self.state.order.pins[node] += change
        refresh(*self.state, node, rules.costs, rules.fixes, rules.lru)

    @property
    def used_bytes(self) -> int:
        """Bytes of KV and checkpoints held now."""
        return int(used_bytes(self.state.tree, self.spec.costs()))

    @property
    def num_checkpoints(self) -> int:
        """Checkpoints held now."""
        return int(self.state.tree.counts[LIVE_STATES])

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
        fixes, rule = self.fidelity.fixes(), self.checkpoints.rule()
        return Rules(self.spec.costs(), fixes, lru, float(chosen), self.capacity_bytes, rule)

    def run(self, operations: Operations, available: Any = EVERY_STATE) -> tuple[np.ndarray, np.ndarray]:
        """Do many operations at once. Returns [operations] reused tokens (0 for insertions) and bytes held."""
        count = len(operations.kind)
        reused, used = np.zeros(count, np.int64), np.zeros(count, np.int64)
        done = 0
        while done < count:
            stop = count
            if self._tuner is not None:
                stop = self._tuner.next_stop(self, operations, done)
            first = self.first_eviction_request is None
            self.state, end, evicted = run(
                self.state, self.rules(), *operations, done, stop, first, available, reused, used
            )
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

    def start_journal(self, num_tokens: int) -> None:
        """Have the next insertion, of a sequence of `num_tokens`, write down how it changes the tree."""
        tree = self.state.tree
        # a node goes with one event and may merge another; a state that is added takes a cut or a leaf, and itself
        room = 2 * int(tree.counts[LIVE_NODES]) + 2 * (num_tokens // self.checkpoints.rule().stride + 3)
        tree.counts[EVENTS] = 0
        self.state = self.state._replace(tree=tree._replace(events=np.zeros((room, 4), np.int64)))

    def take_journal(self) -> list[list[int]]:
        """The changes since `start_journal`, in order (see `radix_tree.Tree`); nothing is written any more."""
        tree = self.state.tree
        written = tree.events[: tree.counts[EVENTS]].tolist()
        tree.counts[EVENTS] = 0
        self.state = self.state._replace(tree=tree._replace(events=tree.events[:0].copy()))
        return written

    def live_nodes(self) -> list[LiveNode]:
        """Every node but the root, with what it stands for."""
        tree = self.state.tree
        nodes = []
        for node in range(1, int(tree.counts[ALLOCATED])):
            row = tree.nodes[node]
            if row["parent"] != DEAD:
                tokens = tree.tokens[row["start"] : row["start"] + row["length"]].copy()
                nodes.append(LiveNode(node, int(row["parent"]), int(row["depth"]), tokens, bool(row["state"])))
        return nodes

    def to_arrays(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """The contents as arrays, and the rest as plain values; nothing of it is shared."""
        arrays = {f"tree.{name}": getattr(self.state.tree, name).copy() for name in Tree._fields if name != "events"}
        arrays |= {f"order.{name}": getattr(self.state.order, name).copy() for name in Order._fields}
        names = ("alpha", "requests", "first_eviction_request", "peak_bytes", "tuned")
        return arrays, {name: getattr(self, name) for name in names}

    def take_arrays(self, arrays: dict[str, np.ndarray], values: dict[str, Any]) -> None:
        """Contents as `to_arrays` gave them, of a cache with the same rules. Nothing is pinned; what was is free."""
        columns = {name: arrays[f"tree.{name}"] for name in Tree._fields if name != "events"}
        tree = Tree(**columns, events=np.zeros((0, 4), np.int64))
        self.state = CacheContents(tree, Order(*(arrays[f"order.{name}"] for name in Order._fields)))
        self.requests, self.peak_bytes = values["requests"], values["peak_bytes"]
        self.first_eviction_request = values["first_eviction_request"]
        if self._tuner is not None:
            self.alpha, self._tuner.done = values["alpha"], values["tuned"]
            if not self._tuner.done:  # its window is not kept: the next eviction begins another
                self.first_eviction_request = None
        release_all(self.state, self.rules())

    def _one(self, kind: int, tokens: Sequence[int] | Tokens, available: Sequence[int] = ()) -> int:
        pool = checked_tokens(tokens, "tokens")
        if len(pool) == 0:
            raise ValueError("tokens must hold at least one token, got none")
        one = np.ones(1, np.int64)
        depths = np.array(available, np.int64) if len(available) else EVERY_STATE
        reused, _ = self.run(Operations(pool, 0 * one, len(pool) * one, kind * one), depths)
        return int(reused[0])
