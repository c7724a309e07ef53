"""Layouts of all layers' experts on the nodes: the slowest node of a step, and what nodes fetch for a new layout.

A layout depends only on the number of nodes and the loads, so that it can serve many events. Expert states are bits:
bit l * E + e of a node's row stands for expert e of layer l, packed in words of 64.

Shape legend: L = layers, N = nodes of a layout, C = current nodes, E = experts, W = words
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from artifact.elastic_moe.placement.allocation import allocate
from artifact.elastic_moe.placement.methods import mro_group_sizes


@dataclass(frozen=True, eq=False)
class ReplicatedLayout:
    """Lazarus: replicas by load, tokens in equal parts to the replicas, local replicas first, without padding.

    counts_LNE: [L, N, E], copies of each expert on each node
    """

    counts_LNE: NDArray[np.int16]

    @property
    def num_nodes(self) -> int:
        return self.counts_LNE.shape[1]

    @property
    def num_layers(self) -> int:
        return len(self.counts_LNE)

    @cached_property
    def held_NW(self) -> NDArray[np.uint64]:
        """[N, W], expert states of each node, as bits."""
        return pack_holdings((self.counts_LNE > 0).transpose(1, 0, 2).reshape(self.num_nodes, -1))

    @cached_property
    def shared_experts(self) -> float:
        """Traffic of the busiest node's all-reduces: sum over its experts of 2 (h - 1) / h for h holders."""
        held_LNE = self.counts_LNE > 0
        holders_L1E = held_LNE.sum(axis=1, keepdims=True)
        traffic_LNE = held_LNE * (2 - 2 / np.maximum(holders_L1E, 1))
        return float(traffic_LNE.sum(axis=(0, 2)).max())

    @cached_property
    def _part_LNE(self) -> NDArray[np.float32]:
        """Tokens of an expert that a node computes, per token that a node routes to it on average."""
        copies_L1E = self.counts_LNE.sum(axis=1, keepdims=True)
        return self.num_nodes * self.counts_LNE / copies_L1E.astype(np.float32)

    @cached_property
    def _received_LNE(self) -> NDArray[np.float32]:
        """The part that comes from other nodes: all nodes route alike, and keep as many of their tokens as they can."""
        return np.maximum(self._part_LNE - 1, 0)

    def slowest_L(self, share_LE: NDArray) -> tuple[NDArray, NDArray]:
        """Tokens that the slowest node computes, and exchanges one way: [L] each, in tokens of a node's batch.

        share_LE: [L, E], each expert's share of its layer's tokens
        """
        share_LE1 = share_LE[:, :, None]
        computed_LN, received_LN = (self._part_LNE @ share_LE1)[..., 0], (self._received_LNE @ share_LE1)[..., 0]
        sent_LN = received_LN - computed_LN + 1  # a node's own tokens are one: those kept, and those sent
        return computed_LN.max(axis=1), np.maximum(received_LN, sent_LN).max(axis=1)


@dataclass(frozen=True, eq=False)
class GroupLayout:
    """DeepSpeed's expert parallelism: groups of nodes that hold each expert once, consecutive experts together.

    As it drops no tokens, its buffers have the room of the most loaded expert for every expert: all nodes compute and
    send as if all experts were as hot as the hottest. The properties are those of `ReplicatedLayout`.
    """

    num_groups: int
    group_nodes: int
    num_layers: int
    num_experts: int

    @property
    def num_nodes(self) -> int:
        return self.num_groups * self.group_nodes

    @cached_property
    def held_NW(self) -> NDArray[np.uint64]:
        part_E = np.arange(self.num_experts) * self.group_nodes // self.num_experts
        held_NE = part_E == np.arange(self.num_nodes)[:, None] % self.group_nodes
        return pack_holdings(np.tile(held_NE, self.num_layers))

    @property
    def shared_experts(self) -> float:
        experts = -(-self.num_experts // self.group_nodes)
        return self.num_layers * experts * 2 * (self.num_groups - 1) / self.num_groups

    def slowest_L(self, share_LE: NDArray) -> tuple[NDArray, NDArray]:
        padded_L = self.num_experts * share_LE.max(axis=1)
        return padded_L, padded_L * (self.group_nodes - 1) / self.group_nodes


Layout = ReplicatedLayout | GroupLayout


def replicated_layout(loads_LE: NDArray[np.int64], num_nodes: int, slots: int, min_replicas: int) -> ReplicatedLayout:
    """Allocation by these loads, then MRO, in each layer. All layers have the same order of nodes.

    Raises: ValueError if the slots do not hold every expert once
    """
    layers = [
        mro_counts(allocate(load_E, num_nodes * slots, min_replicas), num_nodes, slots) for load_E in loads_LE.tolist()
    ]
    return ReplicatedLayout(np.stack(layers))


def mro_counts(replicas: list[int], num_nodes: int, slots: int) -> NDArray[np.int16]:
    """[N, E], copies of each expert on each node: `place("mro", ...)` for thousands of nodes with equal slots.

    replicas: [E], which fill all slots
    """
    counts_NE = np.zeros((num_nodes, len(replicas)), dtype=np.int16)
    left_E = np.array(replicas)
    order = np.argsort(left_E, kind="stable")
    start = 0
    for group, size in enumerate(mro_group_sizes(replicas, [slots] * num_nodes)):
        for expert in order[group * slots : (group + 1) * slots]:
            copies = min(replicas[expert], num_nodes) if len(replicas) <= slots else size
            counts_NE[start : start + copies, expert] = 1
            left_E[expert] -= copies
        start += size
    free_N = slots - counts_NE.sum(axis=1)
    for expert in np.argsort(-left_E, kind="stable"):
        room = np.argsort(-free_N, kind="stable")
        lacking = room[(free_N[room] > 0) & (counts_NE[room, expert] == 0)][: left_E[expert]]
        counts_NE[lacking, expert] += 1
        free_N[lacking] -= 1
        if more := int(left_E[expert]) - len(lacking):
            # the free slots in the order in which the then emptiest node offers them
            node = np.flatnonzero(np.arange(slots)[::-1, None] < free_N) % num_nodes
            taken = node[:more]
            np.add.at(counts_NE[:, expert], taken, 1)
            np.subtract.at(free_N, taken, 1)
    return counts_NE


def pack_holdings(held_NX: NDArray[np.bool_]) -> NDArray[np.uint64]:
    """Rows of booleans as words of 64 bits, the last one filled with zeros."""
    rows, bits = held_NX.shape
    filled = np.zeros((rows, -(-bits // 64) * 64), dtype=np.bool_)
    filled[:, :bits] = held_NX
    return np.packbits(filled, axis=1).view(np.uint64)


def has_lost_experts(held_CW: NDArray[np.uint64], layout: Layout) -> bool:
    """Whether none of these nodes holds some expert of the layout."""
    return bool((np.bitwise_or.reduce(layout.held_NW, axis=0) & ~np.bitwise_or.reduce(held_CW, axis=0)).any())


def assign_rows(held_CW: NDArray[np.uint64], layout: Layout) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The current node that becomes each node of the layout, greedily, and the number of states that it must fetch.

    C = N: the current nodes choose in turn, as in `migration.assign_nodes` (Lazarus, section 4.4). C > N: the nodes of
    the layout choose, and the remaining current nodes stay idle. Many nodes hold the same experts, so that costs are
    computed once for each kind.
    held_CW: [C, W] with C >= N
    Returns: [N], rows of held_CW; [N], counts
    """
    held_VW, kind_C = np.unique(held_CW, axis=0, return_inverse=True)
    asked_UW, kind_N = np.unique(layout.held_NW, axis=0, return_inverse=True)
    new_VU = np.bitwise_count(~held_VW[:, None] & asked_UW).sum(axis=2, dtype=np.int64)
    if len(held_CW) > layout.num_nodes:
        chosen = _in_turn(new_VU.T, kind_N, kind_C)
    else:
        chosen = np.argsort(_in_turn(new_VU, kind_C, kind_N))
    return chosen, new_VU[kind_C[chosen], kind_N]


def _in_turn(cost_VU: NDArray[np.int64], kind_A: NDArray[np.int64], kind_B: NDArray[np.int64]) -> NDArray[np.int64]:
    """[A], the cheapest free column of each row in turn, the first of equal ones. Rows and columns come in kinds."""
    columns, none_left = len(kind_B), 1 << 62
    of_kind: list[list[int]] = [[] for _ in range(cost_VU.shape[1])]
    for column, kind in enumerate(kind_B.tolist()):
        of_kind[kind].append(column)
    for free in of_kind:
        free.append(none_left)
    used_U = [0] * len(of_kind)
    first_U = np.array([free[0] for free in of_kind])
    weighed_VU = cost_VU * columns
    chosen = []
    for kind in kind_A.tolist():
        best = int((weighed_VU[kind] + first_U).argmin())
        chosen.append(of_kind[best][used_U[best]])
        used_U[best] += 1
        first_U[best] = of_kind[best][used_U[best]]
    return np.array(chosen)
