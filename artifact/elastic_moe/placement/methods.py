"""Placement methods: which nodes hold which experts, by Lazarus's MRO, the baselines, and a search for the best.

Replica counts are given by expert and slot counts by node. Nodes and experts are numbered from 0.

Shape legend: N = nodes, E = experts
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Container, Sequence

import numpy as np

from artifact.elastic_moe.placement.placements import Placement, check_loads, load_of_replica

METHODS = ("mro", "best", "spread", "compact", "random", "eplb")
"""Ways to place replicas, see `place`: Lazarus's own, a search for the best, and baselines."""


def place(
    method: str,
    replicas: Sequence[int],
    slots: Sequence[int],
    *,
    loads: Sequence[float] | None = None,
    failures: int | None = None,
    failure_probability: float = 0.1,
    seed: int = 0,
) -> Placement:
    """Place the replicas of one layer's experts on nodes, by one of METHODS.

    replicas: [E], copies of each expert; slots: [N], copies that each node can hold, may be unequal
    loads:    [E], used by `eplb` only; seed: of `random` and `best`
    failures, failure_probability: the objective of `best`: the number of sets of `failures` failed nodes after which
              every expert is alive; without `failures`, the probability of that when each node fails with
              `failure_probability`, independently
    At most one slot per node may stay vacant.

    `best` is never worse in its objective than the other methods with the same seed. It is the optimum where the groups
    of MRO are whole, where `upper_bound` is reached, and where the exhaustive search ends, as it does up to 8 nodes x 4
    slots and 8 experts. Among equals it prefers a placement that survives any min(replicas) - 1 failures, then MRO. Its
    amount of work is fixed, so that the result depends on the arguments only. On more than 24 nodes the losses of
    random and of searched placements are estimates: one wins only if it is smaller by three standard errors.

    Raises: ValueError for an unknown method, no nodes, no experts, a slot or replica count < 1, replicas that exceed
            the slots or leave more of them vacant, loads that are not one for each expert, none negative, and for
            `best` failures outside [0, N] or a failure probability outside [0, 1]
    """
    if method not in METHODS:
        raise ValueError(f"a method must be one of {', '.join(METHODS)}, got {method!r}")
    if not slots:
        raise ValueError("slots must name at least one node, got none")
    if min(slots) < 1:
        raise ValueError(f"a node must have at least 1 slot, got {min(slots)}")
    if not replicas:
        raise ValueError("replicas must name at least one expert, got none")
    if min(replicas) < 1:
        raise ValueError(f"an expert must have at least 1 replica, got {min(replicas)}")
    total = sum(replicas)
    if total > sum(slots):
        raise ValueError(f"replicas must not exceed the slots, got {total} replicas for {sum(slots)} slots")
    if total <= sum(slots) - len(slots):
        raise ValueError(
            f"{total} replicas leave {sum(slots) - total} of {sum(slots)} slots empty, on {len(slots)} nodes (at most "
            "one per node may be): lower the slots or add replicas"
        )
    if loads is not None:
        check_loads(loads, len(replicas))
    if method == "best":
        return _best(replicas, slots, failures, failure_probability, seed)
    if method == "random":
        return _random(replicas, slots, seed)
    if method == "eplb":
        return _eplb(replicas, slots, loads)
    by_method: dict[str, Callable[[Sequence[int], Sequence[int]], Placement]] = {
        "mro": _mro,
        "spread": _spread,
        "compact": _compact,
    }
    return by_method[method](replicas, slots)


def _best(
    replicas: Sequence[int], slots: Sequence[int], failures: int | None, failure_probability: float, seed: int
) -> Placement:
    """MRO where that is optimal, otherwise what the search finds from the placements of all other methods."""
    if failures is not None and not 0 <= failures <= len(slots):
        raise ValueError(f"failures must be in [0, {len(slots)}], the number of nodes, got {failures}")
    if not 0 <= failure_probability <= 1:
        raise ValueError(f"failure_probability must be in [0, 1], got {failure_probability}")
    first = sorted(replicas)[:: max(slots)]
    if min(slots) == max(slots) and (len(first) == 1 or sum(first) <= len(slots)):  # no group of MRO is cut short
        return _mro(replicas, slots)
    from artifact.elastic_moe.placement.search import SearchProblem, best_placement  # compiled code, slow to import

    starts = {method: place(method, replicas, slots, seed=seed) for method in METHODS if method != "best"}
    problem = SearchProblem(tuple(replicas), tuple(slots), failures, failure_probability, seed)
    return best_placement(problem, starts)


def mro_group_sizes(replicas: Sequence[int], slots: Sequence[int]) -> list[int]:
    """Number of nodes of each group of MRO: s_1 .. s_G (Lazarus, section 4.2).

    A group is c consecutive experts by ascending replicas, on as many nodes as its first expert has replicas; the last
    group takes at most the remaining nodes. If the slots are unequal, c is the smallest slot count. Only then can nodes
    run out before the last group; groups without nodes have size 0.
    """
    sizes: list[int] = []
    for first in sorted(replicas)[:: min(slots)]:
        sizes.append(min(first, len(slots) - sum(sizes)))
    return sizes


def _mro(replicas: Sequence[int], slots: Sequence[int]) -> Placement:
    """Maximum rank overlap, as published: groups of experts share groups of nodes; then the remaining replicas.

    The remaining replicas are placed expert by expert, most of them first, on nodes with a free slot: first nodes
    that lack the expert, then the one with most free slots, then the lowest number. If all experts fit on one
    node, their nodes are nested prefixes.
    """
    order = sorted(range(len(replicas)), key=lambda expert: (replicas[expert], expert))
    width, num_nodes = min(slots), len(slots)
    nodes: list[list[int]] = [[] for _ in slots]
    first_nodes = [range(0)] * len(order)
    start = 0
    for group, size in enumerate(mro_group_sizes(replicas, slots)):
        for expert in order[group * width : (group + 1) * width]:
            copies = min(replicas[expert], num_nodes) if len(order) <= width else size
            first_nodes[expert] = range(start, start + copies)
            for node in first_nodes[expert]:
                nodes[node].append(expert)
        start += size

    left = [copies - len(first) for copies, first in zip(replicas, first_nodes, strict=True)]
    free = [slot - len(node) for slot, node in zip(slots, nodes, strict=True)]
    for expert in sorted(order, key=lambda expert: (-left[expert], expert)):
        for node in _leftover_nodes(left[expert], free, first_nodes[expert]):
            nodes[node].append(expert)
            free[node] -= 1
    return _placement(nodes, len(replicas))


def _leftover_nodes(copies: int, free: Sequence[int], holders: Container[int]) -> list[int]:
    """Nodes for copies of an expert: first those that lack it, one copy each, then any; the emptiest, then lowest."""
    if not copies:
        return []
    room = sorted((node for node, slots in enumerate(free) if slots), key=lambda node: (-free[node], node))
    chosen = [node for node in room if node not in holders][:copies]
    if len(chosen) < copies:
        taken = set(chosen)
        emptiest = [((node in taken) - free[node], node) for node in room if free[node] > (node in taken)]
        heapq.heapify(emptiest)
        while len(chosen) < copies:
            vacant, node = heapq.heappop(emptiest)
            chosen.append(node)
            if vacant < -1:
                heapq.heappush(emptiest, (vacant + 1, node))
    return chosen


def _spread(replicas: Sequence[int], slots: Sequence[int]) -> Placement:
    """Round robin: the experts in turn, each replica on the next node with a free slot that lacks the expert.

    If every node with a free slot has the expert, the next one takes another copy.
    """
    nodes: list[list[int]] = [[] for _ in slots]
    num_nodes, next_node = len(slots), 0
    for expert, copies in enumerate(replicas):
        having: set[int] = set()
        for _ in range(copies):
            turn = (node % num_nodes for node in range(next_node, next_node + num_nodes))
            with_room = (node for node in turn if len(nodes[node]) < slots[node])
            first = next(with_room)
            chosen = first
            if first in having:
                chosen = next((node for node in with_room if node not in having), first)
            nodes[chosen].append(expert)
            having.add(chosen)
            next_node = (chosen + 1) % num_nodes
    return _placement(nodes, len(replicas))


def _compact(replicas: Sequence[int], slots: Sequence[int]) -> Placement:
    """Node by node, the experts in turn: the replicas of an expert fill consecutive slots."""
    line = _labels(replicas)
    ends = np.cumsum(slots).tolist()
    return _placement([line[end - slot : end] for end, slot in zip(ends, slots, strict=True)], len(replicas))


def _random(replicas: Sequence[int], slots: Sequence[int], seed: int) -> Placement:
    """Replicas on slots uniformly at random; several copies on a node are not avoided."""
    line = np.random.default_rng(seed).permutation(np.arange(sum(slots)))
    labels = _labels(replicas)
    parts = np.split(line, np.cumsum(slots)[:-1])
    return _placement([[labels[slot] for slot in part.tolist() if slot < len(labels)] for part in parts], len(replicas))


def _eplb(replicas: Sequence[int], slots: Sequence[int], loads: Sequence[float] | None) -> Placement:
    """Greedy balanced packing: replicas by descending load, each on the least loaded node with a free slot.

    The packing step of DeepSeek's expert parallelism load balancer (EPLB) as described; EPLB also chooses the replica
    counts, which are given here. Ties go to the lower number.
    """
    load_E = load_of_replica(replicas, loads)
    nodes: list[list[int]] = [[] for _ in slots]
    lightest = [(0.0, node) for node in range(len(slots))]
    for expert in sorted(range(len(replicas)), key=lambda expert: (-load_E[expert], expert)):
        for _ in range(replicas[expert]):
            load, node = heapq.heappop(lightest)
            nodes[node].append(expert)
            if len(nodes[node]) < slots[node]:
                heapq.heappush(lightest, (load + load_E[expert], node))
    return _placement(nodes, len(replicas))


def _placement(nodes: Sequence[Sequence[int]], num_experts: int) -> Placement:
    return Placement(tuple(tuple(sorted(node)) for node in nodes), num_experts)


def _labels(replicas: Sequence[int]) -> list[int]:
    """The expert of each replica."""
    return [expert for expert, copies in enumerate(replicas) for _ in range(copies)]
