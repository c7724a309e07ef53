"""What the nodes hold: the copies of one layer's experts on each node.

Shape legend: N = nodes, E = experts
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain

import numpy as np


@dataclass(frozen=True)
class Placement:
    """Experts of each node: sorted, with a number repeated for several copies on one node.

    An expert may be on no node, for instance after failures.
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
        """[E], copies of each expert over all nodes."""
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
        """[E], the nodes of each expert, ascending."""
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
        """Largest over mean load of the nodes, if the replicas of an expert share its load equally.

        loads: [E]; without them every replica carries 1
        Raises: ValueError unless there is one load for each expert, none negative, and each expert with load is held
        """
        replicas = self.replicas
        if loads is not None:
            check_loads(loads, self.num_experts)
            if any(load and not count for load, count in zip(loads, replicas, strict=True)):
                raise ValueError(f"an expert with load must have a replica, got loads {loads} and replicas {replicas}")
        load_E = load_of_replica(replicas, loads)
        load_N = [math.fsum(load_E[expert] for expert in node) for node in self.nodes]
        total = math.fsum(load_N)
        return max(load_N) * len(load_N) / total if total else 1.0


def load_of_replica(replicas: Sequence[int], loads: Sequence[float] | None) -> list[float]:
    if loads is None:
        return [1.0] * len(replicas)
    return [load / max(copies, 1) for load, copies in zip(loads, replicas, strict=True)]


def check_loads(loads: Sequence[float], num_experts: int) -> None:
    if len(loads) != num_experts:
        raise ValueError(f"there must be one load for each of {num_experts} experts, got {len(loads)}")
    for load in loads:
        if not math.isfinite(load) or load < 0:
            raise ValueError(f"a load must be finite and not negative, got {load}")
