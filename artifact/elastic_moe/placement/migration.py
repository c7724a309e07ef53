"""Migration to a new placement: which node of the plan each current node becomes, and which experts are sent.

Shape legend: C = current nodes, P = nodes of the plan (P = C), X = experts of all layers
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.optimize import linear_sum_assignment

from artifact.elastic_moe.placement.placements import Placement

ASSIGNMENT_METHODS = ("optimal", "greedy")
"""Ways to map current nodes to nodes of the plan, see `assign_nodes`."""
ExpertKey = tuple[int, int]
"""(layer, expert): identifies the unit that is sent, weights and optimizer state together."""


@dataclass(frozen=True)
class Transfer:
    """One expert sent from one current node to another."""

    layer: int
    expert: int
    source: int
    target: int
    num_bytes: int


class Unrecoverable(ValueError):
    """Some experts are held by no node: training can only continue from a checkpoint."""

    def __init__(self, lost: Sequence[ExpertKey]) -> None:
        listed = ", ".join(f"({layer}, {expert})" for layer, expert in lost)
        super().__init__(f"lost experts, as (layer, expert) that no node holds: {listed}")
        self.lost = tuple(lost)


def holdings_of(placements: Sequence[Placement], nodes: Sequence[int | None]) -> list[set[ExpertKey]]:
    """[C], what the current nodes hold.

    placements: [L], by layer; nodes: [C], the node of the placements that each one was, None for a node that joins
    """
    return [set() if node is None else _asked(placements, node) for node in nodes]


def assign_nodes(
    holdings: Sequence[Collection[ExpertKey]],
    placements: Sequence[Placement],
    method: Literal["optimal", "greedy"] = "optimal",
) -> list[int]:
    """[C], the node of the plan that each current node becomes, in all layers.

    optimal: fewest experts to send, by a linear assignment
    greedy:  current nodes in turn take the free node of the plan with the fewest experts that they lack, the first of
             equal ones (as Lazarus does)
    Raises: ValueError if the method is unknown, or a placement does not have one node for each current node
    """
    _check(holdings, placements)
    if method not in ASSIGNMENT_METHODS:
        raise ValueError(f"method must be one of {', '.join(ASSIGNMENT_METHODS)}, got {method!r}")
    new_CP = _new_states(holdings, placements)
    if method == "optimal":
        return linear_sum_assignment(new_CP)[1].tolist()
    chosen, taken = [], np.iinfo(np.int64).max
    for new_P in new_CP:
        chosen.append(int(new_P.argmin()))
        new_CP[:, chosen[-1]] = taken
    return chosen


def transfers(
    holdings: Sequence[Collection[ExpertKey]],
    placements: Sequence[Placement],
    assignment: Sequence[int],
    expert_bytes: int,
) -> list[Transfer]:
    """The fewest transfers after which each current node holds the experts of its node of the plan.

    An expert is sent by the holder with the fewest experts to send so far, the first of equal ones; experts with the
    fewest holders are planned first, as they leave the least choice. Sorted by target, layer and expert.

    assignment: [C], see `assign_nodes`; expert_bytes: bytes of one expert's state
    Raises: Unrecoverable if no current node holds an expert of the plan
            ValueError if the assignment is no permutation of the plan's nodes, or as in `assign_nodes`
    """
    _check(holdings, placements)
    if sorted(assignment) != list(range(len(holdings))):
        raise ValueError(f"assignment must be a permutation of {len(holdings)} nodes, got {list(assignment)}")
    owners: dict[ExpertKey, list[int]] = {}
    for node, held in enumerate(holdings):
        for state in held:
            owners.setdefault(state, []).append(node)
    asked = [_asked(placements, node) for node in assignment]
    if lost := sorted(set().union(*asked) - owners.keys()):
        raise Unrecoverable(lost)
    missing = [(*state, target) for target, states in enumerate(asked) for state in states - set(holdings[target])]
    to_send_C = np.zeros(len(holdings), dtype=np.int64)  # states, as all have the same size
    planned = []
    for layer, expert, target in sorted(missing, key=lambda wanted: (len(owners[wanted[:2]]), wanted)):
        candidates = owners[layer, expert]
        source = candidates[int(to_send_C[candidates].argmin())]
        to_send_C[source] += 1
        planned.append(Transfer(layer, expert, source, target, expert_bytes))
    return sorted(planned, key=lambda transfer: (transfer.target, transfer.layer, transfer.expert))


def _asked(placements: Sequence[Placement], node: int) -> set[ExpertKey]:
    return {(layer, expert) for layer, placement in enumerate(placements) for expert in placement.nodes[node]}


def _new_states(holdings: Sequence[Collection[ExpertKey]], placements: Sequence[Placement]) -> np.ndarray:
    """[C, P], number of experts that a current node lacks to become that node of the plan."""
    offsets = np.cumsum([0] + [placement.num_experts for placement in placements])
    held_CX, asked_PX = (np.zeros((len(holdings), offsets[-1]), dtype=np.float32) for _ in range(2))
    for node, held in enumerate(holdings):
        kept = [offsets[layer] + expert for layer, expert in held if layer < len(placements)]
        held_CX[node, kept] = 1
        asked_PX[node, [offsets[layer] + expert for layer, expert in _asked(placements, node)]] = 1
    return (asked_PX.sum(axis=1) - held_CX @ asked_PX.T).astype(np.int64)


def _check(holdings: Sequence[Collection[ExpertKey]], placements: Sequence[Placement]) -> None:
    if not placements:
        raise ValueError("placements must have at least one layer, got none")
    for layer, placement in enumerate(placements):
        if len(placement.nodes) != len(holdings):
            rule = f"placement of layer {layer} must have {len(holdings)} nodes, one for each current node"
            raise ValueError(f"{rule}, got {len(placement.nodes)}")
