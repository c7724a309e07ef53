"""Which nodes hold which experts: the published placement (MRO) and those that it is compared with.

Every function takes replica counts by expert and slot counts by node. Nodes and experts are numbered from 0.

Shape legend: N = nodes, E = experts
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Callable, Collection, Container, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain

import numpy as np

METHODS = ("mro", "best", "spread", "compact", "random", "eplb")
"""Ways to place replicas, see `place`: Lazarus's own, a search for the best, and baselines."""


@dataclass(frozen=True)
class Placement:
    """Experts of each node: sorted, a number repeated for several copies on one node.

    An expert may have no node at all, as after failures.
    Raises: ValueError for no nodes, no experts, an expert number out of range, or a node that is not sorted
    """

    nodes: tuple[tuple[int, ...], ...]
    num_experts: int

    def __post_init__(self) -> None:
        if not self.nodes or self.num_experts < 1:
            raise ValueError(f"a placement has nodes and experts, got {len(self.nodes)} and {self.num_experts}")
        for number, node in enumerate(self.nodes):
            if list(node) != sorted(node):
                raise ValueError(f"the experts of a node must be sorted, got {node} on node {number}")
            if node and not 0 <= node[0] <= node[-1] < self.num_experts:
                raise ValueError(f"experts must be in [0, {self.num_experts}), got {node} on node {number}")

    @property
    def num_nodes(self) -> int:
        return len(self.nodes)

    @property
    def replicas(self) -> list[int]:
        """Copies of each expert, several on one node counted each."""
        counts = Counter(chain.from_iterable(self.nodes))
        return [counts[expert] for expert in range(self.num_experts)]

    @property
    def counts_NE(self) -> np.ndarray:
        """[N, E], int64: copies of each expert on each node."""
        counts_NE = np.zeros((self.num_nodes, self.num_experts), dtype=np.int64)
        for number, node in enumerate(self.nodes):
            np.add.at(counts_NE[number], list(node), 1)
        return counts_NE

    @cached_property
    def holders(self) -> list[tuple[int, ...]]:
        """For each expert, its nodes, sorted."""
        holders: list[list[int]] = [[] for _ in range(self.num_experts)]
        for number, node in enumerate(self.nodes):
            for expert in dict.fromkeys(node):
                holders[expert].append(number)
        return [tuple(nodes) for nodes in holders]

    def survives(self, failed: Collection[int]) -> bool:
        """Whether every expert has a node that is not in `failed`."""
        gone = frozenset(failed)
        return not any(gone.issuperset(nodes) for nodes in self.holders)

    def max_load_ratio(self, loads: Sequence[float] | None = None) -> float:
        """Largest over mean load of the nodes, each replica of an expert carrying an equal part of the expert's load.

        loads: [E]; without them every replica carries 1
        Raises: ValueError unless there is one load for each expert, none negative, and each expert with load is held
        """
        replicas = self.replicas
        if loads is not None:
            _check_loads(loads, self.num_experts)
            if any(load and not count for load, count in zip(loads, replicas, strict=True)):
                raise ValueError(f"an expert with load must have a replica, got loads {loads} and replicas {replicas}")
        each = _load_of_replica(replicas, loads)
        of_nodes = [math.fsum(each[expert] for expert in node) for node in self.nodes]
        total = math.fsum(of_nodes)
        return max(of_nodes) * len(of_nodes) / total if total else 1.0


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
    """The placement of so many replicas on nodes with so many slots, by one of METHODS.

    replicas: [E], per expert in the order given; slots: [N], per node, may be unequal
    loads: used by `eplb` only; failures, failure_probability: the objective of `best` (see `search`)
    seed: of `random` and `best`
    Up to one slot a node may stay vacant: more, and one slot fewer a node would do.
    Raises: ValueError for an unknown method, no nodes, no experts, a slot or replica count < 1, replicas that exceed
            the slots or leave more of them vacant, and loads that are not one for each expert, none negative
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
            f"replicas must fill the slots, got {total} replicas for {sum(slots)} slots on {len(slots)} nodes: "
            "one slot fewer a node would do"
        )
    if loads is not None:
        _check_loads(loads, len(replicas))
    if method == "best":
        from artifact.elastic_moe.placement.search import best_placement  # it imports this module

        return best_placement(replicas, slots, failures=failures, failure_probability=failure_probability, seed=seed)
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


def mro_group_sizes(replicas: Sequence[int], slots: Sequence[int]) -> list[int]:
    """Nodes of each group of MRO: s_1 .. s_G (Lazarus, section 4.2).

    Groups are of c consecutive experts by rising replicas, and have as many nodes as the first of them has replicas,
    the last group at most those left. Where the slots are unequal, c is the smallest slot count. Then, and then only,
    nodes can run out before the last group; the groups without nodes have size 0.
    """
    sizes: list[int] = []
    for first in sorted(replicas)[:: min(slots)]:
        sizes.append(min(first, len(slots) - sum(sizes)))
    return sizes


def _mro(replicas: Sequence[int], slots: Sequence[int]) -> Placement:
    """Maximum rank overlap, as published: groups of experts share groups of nodes; then the replicas left over.

    Those go, expert by expert, most left first, to nodes with a free slot: those that lack the expert before others,
    then the one with most free slots, then the lowest number. Where the experts fit on one node, their nodes are nested
    prefixes.
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
    """Nodes for copies of an expert: those that lack it first, one copy each, then any; the emptiest, then lowest."""
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
    """Round robin: the experts in turn, each replica to the next node with a free slot that lacks the expert.

    Where every node with a free slot has the expert, the next one takes another copy.
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
    """Node by node, the experts in turn: an expert is on as few consecutive nodes as where it starts allows."""
    line = _labels(replicas)
    ends = np.cumsum(slots).tolist()
    return _placement([line[end - slot : end] for end, slot in zip(ends, slots, strict=True)], len(replicas))


def _random(replicas: Sequence[int], slots: Sequence[int], seed: int) -> Placement:
    """Every assignment of the replicas to the slots alike; several copies on a node are not avoided."""
    line = np.random.default_rng(seed).permutation(np.arange(sum(slots)))
    labels = _labels(replicas)
    parts = np.split(line, np.cumsum(slots)[:-1])
    return _placement([[labels[slot] for slot in part.tolist() if slot < len(labels)] for part in parts], len(replicas))


def _eplb(replicas: Sequence[int], slots: Sequence[int], loads: Sequence[float] | None) -> Placement:
    """Greedy balanced packing: replicas by falling load, each to the least loaded node with a free slot.

    It follows the description of the packing step of DeepSeek's expert parallelism load balancer (EPLB), which chooses
    the replica counts too; here they are given. Ties go to the lower number.
    """
    each = _load_of_replica(replicas, loads)
    nodes: list[list[int]] = [[] for _ in slots]
    lightest = [(0.0, node) for node in range(len(slots))]
    for expert in sorted(range(len(replicas)), key=lambda expert: (-each[expert], expert)):
        for _ in range(replicas[expert]):
            load, node = heapq.heappop(lightest)
            nodes[node].append(expert)
            if len(nodes[node]) < slots[node]:
                heapq.heappush(lightest, (load + each[expert], node))
    return _placement(nodes, len(replicas))


def _placement(nodes: Sequence[Sequence[int]], num_experts: int) -> Placement:
    return Placement(tuple(tuple(sorted(node)) for node in nodes), num_experts)


def _labels(replicas: Sequence[int]) -> list[int]:
    """The expert of each replica."""
    return [expert for expert, copies in enumerate(replicas) for _ in range(copies)]


def _load_of_replica(replicas: Sequence[int], loads: Sequence[float] | None) -> list[float]:
    if loads is None:
        return [1.0] * len(replicas)
    return [load / max(copies, 1) for load, copies in zip(loads, replicas, strict=True)]


def _check_loads(loads: Sequence[float], num_experts: int) -> None:
    if len(loads) != num_experts:
        raise ValueError(f"there must be one load for each of {num_experts} experts, got {len(loads)}")
    for load in loads:
        if not math.isfinite(load) or load < 0:
            raise ValueError(f"a load must be finite and not negative, got {load}")
