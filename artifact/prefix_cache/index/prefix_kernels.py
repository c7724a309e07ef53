"""The compiled prefix cache: lookups and insertions that match, evict and graft (Marconi, sections 4.1 to 4.3).

One request moves the logical clock as the published simulator does (one step for the lookup, two before the
insertion, one more before an eviction), so that ages, and with them utilities, are the same.
"""

from __future__ import annotations

from typing import NamedTuple

from numba import njit

from artifact.prefix_cache.index import eviction, radix_tree
from artifact.prefix_cache.index.admission import CheckpointRule, bytes_needed, checkpoint_depths, num_states_published
from artifact.prefix_cache.index.base import LOOKUP, CacheContents
from artifact.prefix_cache.index.eviction import NOW
from artifact.prefix_cache.index.fidelity import Fixes
from artifact.prefix_cache.index.radix_tree import LIVE_NODES, LIVE_STATES, LIVE_TOKENS, NONE, ROOT, Match
from artifact.prefix_cache.spec import Costs


class Rules(NamedTuple):
    """What decides: costs, corrections, policies of eviction and admission, and capacity."""

    costs: Costs
    fixes: Fixes
    lru: bool
    alpha: float
    capacity_bytes: int
    checkpoints: CheckpointRule


@njit(cache=True)
def run(contents, rules, pool, start, length, kind, first, last, stop_at_eviction, available, reused, used):
    """Do the operations [first, last) of a sequence of lookups and insertions over one pool of tokens.

    Fills reused[i] for lookups and used[i], the bytes held after each. With `stop_at_eviction` it ends after the
    first operation that evicts. Returns the contents, the operation after the last one done, and whether that one
    evicted.
    """
    for i in range(first, last):
        tokens = pool[start[i] : start[i] + length[i]]
        evicted = False
        if kind[i] == LOOKUP:
            reused[i] = look_up(contents, rules, tokens)
        else:
            contents, evicted = store(contents, rules, tokens, available)
        used[i] = used_bytes(contents.tree, rules.costs)
        if evicted and stop_at_eviction:
            return contents, i + 1, True
    return contents, last, False


@njit(cache=True)
def look_up(contents, rules, tokens):
    """Tokens that can be reused of `tokens`; refreshes what the policy refreshes."""
    contents.order.clock[NOW] += 1
    found = radix_tree.match(contents.tree, tokens, rules.fixes.true_prefix)
    _touch_match(contents, rules, found)
    return found.resumable_tokens


@njit(cache=True)
def store(contents, rules, tokens, available):
    """Cache `tokens`, evicting as needed. Returns the contents and whether anything had to be evicted."""
    contents.order.clock[NOW] += 2
    found = radix_tree.match(contents.tree, tokens, rules.fixes.true_prefix)
    _touch_match(contents, rules, found)
    costs, fixes, capacity = rules.costs, rules.fixes, rules.capacity_bytes
    computed_from = found.resumable_tokens if fixes.true_prefix else 0
    if fixes.refuse_oversized:
        nothing = Match(ROOT, 0, 0, ROOT, ROOT)
        if _bytes_needed(contents, rules, len(tokens), nothing, computed_from, available) > capacity:
            return contents, False
    need = _bytes_needed(contents, rules, len(tokens), found, computed_from, available)
    excess = used_bytes(contents.tree, costs) + need - capacity
    if excess > 0:
        contents.order.clock[NOW] += 1
        if fixes.pin_path:
            contents, fits = _evict_until_room(contents, rules, tokens, found, available)
            if not fits:
                return contents, True
        else:
            contents = _evict_bytes(contents, rules, excess)
    return _graft(contents, rules, tokens, computed_from, available), excess > 0


@njit(cache=True)
def _bytes_needed(contents, rules, num_tokens, found, computed_from, available):
    """Bytes that caching a sequence adds, given its match."""
    if not rules.fixes.pin_path:
        return bytes_needed(rules.costs, num_states_published(found), num_tokens, found.matched_tokens)
    wanted = checkpoint_depths(
        rules.checkpoints, found.resumable_tokens, found.matched_tokens, num_tokens, computed_from, available
    )
    return bytes_needed(rules.costs, len(wanted), num_tokens, found.matched_tokens)


@njit(cache=True)
def _evict_until_room(contents, rules, tokens, found, available):
    """Evict until `tokens` fit, the matched path last of all. Returns the contents and whether they fit.

    The node to resume from and the child whose edge is left within are pinned; checkpoints above them may go, as
    their tokens pass down the path. Only if nothing else is left are the pins given up. What others have pinned
    stays: then there may be no room.
    """
    computed_from = found.resumable_tokens if rules.fixes.true_prefix else 0
    while True:
        need = _bytes_needed(contents, rules, len(tokens), found, computed_from, available)
        if used_bytes(contents.tree, rules.costs) + need <= rules.capacity_bytes:
            return contents, True
        _set_pins(contents, rules, found, 1)
        victim = _victim(contents, rules)
        _set_pins(contents, rules, found, -1)
        on_path = victim == NONE
        if on_path:
            victim = _victim(contents, rules)
            if victim == NONE:
                return contents, not rules.fixes.refuse_oversized
        counts = contents.tree.counts
        stateless_nodes = counts[LIVE_NODES] != counts[LIVE_STATES]  # a removal may merge one that is on the path
        contents, _ = remove(contents, rules, victim)
        if on_path or stateless_nodes:
            found = radix_tree.match(contents.tree, tokens, rules.fixes.true_prefix)


@njit(cache=True)
def _victim(contents, rules):
    """The node to evict next, or NONE."""
    tree, order = contents
    return eviction.least_recent(order) if rules.lru else eviction.least_useful(tree, order, rules.alpha)


@njit(cache=True)
def _set_pins(contents, rules, found, change):
    tree, order = contents
    order.pins[found.deepest] += change
    eviction.refresh(tree, order, found.deepest, rules.costs, rules.fixes, rules.lru)
    if found.last_visited != found.deepest:
        order.pins[found.last_visited] += change
        eviction.refresh(tree, order, found.last_visited, rules.costs, rules.fixes, rules.lru)


@njit(cache=True)
def _evict_bytes(contents, rules, wanted):
    """Evict until the bytes counted as freed reach `wanted`, or nothing is left (the published procedure)."""
    costs = rules.costs
    freed = 0
    if rules.lru:
        heap, size = eviction.leaf_heap(contents.tree, contents.order)
        while freed < wanted and size > 0:
            victim = eviction.heap_pop(heap, size, contents.order)
            size -= 1
            parent = contents.tree.nodes[victim].parent
            contents, gained = remove(contents, rules, victim)
            freed += gained
            if parent != ROOT and contents.tree.nodes[parent].num_children == 0:
                eviction.heap_push(heap, size, contents.order, parent)
                size += 1
        return contents
    while freed < wanted:
        victim = eviction.least_useful(contents.tree, contents.order, rules.alpha)
        if victim == NONE:
            return contents
        if rules.fixes.leaf_bytes or contents.tree.nodes[victim].num_children:
            contents, gained = remove(contents, rules, victim)
        else:
            counted = contents.tree.nodes[radix_tree.last_in_preorder(contents.tree)].length
            gained = costs.checkpoint_bytes + costs.token_bytes * counted
            contents, _ = remove(contents, rules, victim)
        freed += gained
    return contents


@njit(cache=True)
def _graft(contents, rules, tokens, computed_from, available):
    """Put `tokens` into the tree: a cut where an edge diverges, leaves for what is new, states at their depths."""
    tree, order = contents
    costs, fixes, lru = rules.costs, rules.fixes, rules.lru
    found = radix_tree.match(tree, tokens, True)
    wanted = checkpoint_depths(
        rules.checkpoints, found.resumable_tokens, found.matched_tokens, len(tokens), computed_from, available
    )
    tree = radix_tree.with_room_for_nodes(tree, 1 + len(wanted))
    tree = radix_tree.with_room_for_tokens(tree, len(tokens))
    order = eviction.with_capacity(order, len(tree.nodes))
    contents = CacheContents(tree, order)
    parent, done = found.last_full, found.matched_tokens
    if found.last_visited != found.last_full:
        parent = _cut(contents, rules, found.last_visited, found.matched_tokens)
    path_end = parent
    for depth in wanted:
        if depth <= found.matched_tokens:
            node = _cut(contents, rules, path_end, depth)
            radix_tree.give_state(tree, node)
            eviction.refresh(tree, order, node, costs, fixes, lru)
            eviction.refresh_below(tree, order, node, costs, fixes, lru)
            continue
        leaf = radix_tree.add_leaf(tree, parent, tokens[done:depth])
        radix_tree.give_state(tree, leaf)
        eviction.touch(order, leaf)
        eviction.refresh(tree, order, leaf, costs, fixes, lru)
        eviction.refresh(tree, order, parent, costs, fixes, lru)
        parent, done = leaf, depth
    eviction.refresh(tree, order, parent, costs, fixes, lru)
    if lru:
        _touch_path(contents, rules, path_end)
    return contents


@njit(cache=True)
def _cut(contents, rules, node, depth):
    """The node on the path to `node` that ends after `depth` tokens: cut off its edge if there is none."""
    tree, order = contents
    while tree.nodes[node].depth - tree.nodes[node].length >= depth:
        node = tree.nodes[node].parent
    if tree.nodes[node].depth == depth:
        return node
    upper = radix_tree.split(tree, node, depth - (tree.nodes[node].depth - tree.nodes[node].length))
    eviction.touch(order, upper)
    eviction.refresh(tree, order, node, rules.costs, rules.fixes, rules.lru)
    return upper


@njit(cache=True)
def remove(contents, rules, victim):
    """Evict one node. Returns the contents and the bytes freed."""
    tree, order = contents
    costs, fixes = rules.costs, rules.fixes
    if tree.nodes[victim].num_children == 0:
        freed = costs.checkpoint_bytes + costs.token_bytes * tree.nodes[victim].length
        parent = radix_tree.remove_leaf(tree, victim)
        eviction.forget(order, victim)
        if parent != ROOT and not tree.nodes[parent].state and tree.nodes[parent].num_children == 1:
            tree = _merge(tree, order, rules, parent)  # paths no longer part there
        else:
            eviction.refresh(tree, order, parent, costs, fixes, rules.lru)
    else:
        freed = costs.checkpoint_bytes
        tree = _merge(tree, order, rules, victim)
    return CacheContents(tree, order), freed


@njit(cache=True)
def _merge(tree, order, rules, node):
    """A node with one child gives up its state, if it has one, and its tokens pass to the child."""
    tree, child = radix_tree.merge_into_child(tree, node, not rules.fixes.no_stale_states)
    eviction.inherit(order, child, node)
    eviction.refresh(tree, order, child, rules.costs, rules.fixes, rules.lru)
    if not tree.nodes[child].state:
        eviction.refresh_below(tree, order, child, rules.costs, rules.fixes, rules.lru)
    return tree


@njit(cache=True)
def _touch_match(contents, rules, found):
    tree, order = contents
    if not rules.lru:
        if found.deepest != ROOT:
            eviction.touch(order, found.deepest)
            eviction.refresh(tree, order, found.deepest, rules.costs, rules.fixes, False)
        return
    _touch_path(contents, rules, found.last_visited)


@njit(cache=True)
def _touch_path(contents, rules, node):
    tree, order = contents
    while node != NONE:
        eviction.touch(order, node)
        eviction.refresh(tree, order, node, rules.costs, rules.fixes, rules.lru)
        node = tree.nodes[node].parent


@njit(cache=True)
def used_bytes(tree, costs):
    """Bytes of all KV and checkpoints held."""
    return tree.counts[LIVE_STATES] * costs.checkpoint_bytes + tree.counts[LIVE_TOKENS] * costs.token_bytes
