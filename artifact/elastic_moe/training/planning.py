"""Plans the next generation: its members, the experts that each holds, and the transfers between them.

Lazarus replicates by load and uses every node. DS is expert parallelism in groups of nodes that together hold each
expert once; it uses whole groups only.

All layers have the same order of nodes, and a member becomes the same node of the plan in all of them. With MRO no
other orders are better: the layers' groups lie on the same nodes, so that all layers together survive what the worst
of them survives.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from artifact.elastic_moe.placement.allocation import allocate
from artifact.elastic_moe.placement.methods import place
from artifact.elastic_moe.placement.migration import ExpertKey, Transfer, assign_nodes, transfers
from artifact.elastic_moe.placement.placements import Placement
from artifact.elastic_moe.presets import Preset

TRAINED_SYSTEMS = ("lazarus", "ds", "ds-ft")
"""Systems that `train` runs on processes: Lazarus, and DeepSpeed without and with recovery in place."""


class TooFewNodes(ValueError):
    """The present nodes have too few slots to hold every expert."""


@dataclass(frozen=True)
class Generation:
    """A planned generation. members: nodes by rank; idle: nodes that are not used; transfers: between ranks"""

    members: list[int]
    idle: list[int]
    placements: list[Placement]  # [layers], of ranks
    transfers: list[Transfer]

    @property
    def moved_bytes(self) -> int:
        return sum(transfer.num_bytes for transfer in self.transfers)


def next_generation(
    system: str,
    preset: Preset,
    held: Mapping[int, Collection[ExpertKey]],
    loads: Sequence[Sequence[int]],
    *,
    method: str = "mro",
    restored: bool = False,
) -> Generation:
    """The next generation of these nodes.

    held:     by node, the experts that it holds; empty for a node that joins
    loads:    [layers][experts], recent tokens
    restored: states are initial or from a checkpoint, so that none is sent
    Raises: Unrecoverable if no node holds an expert; TooFewNodes
    """
    nodes, slots = sorted(held), preset.slots
    if system != "lazarus":
        slots = -(-preset.num_experts // preset.group_nodes)
        nodes = _whole_groups(nodes, held, preset.group_nodes)
    if len(nodes) * slots < preset.num_experts:
        raise TooFewNodes(
            f"nodes must hold each of {preset.num_experts} experts of a layer, got {len(held)} nodes with {slots} slots"
        )
    members = sorted(nodes)
    placements = [_placement(system, preset, len(members), load, method) for load in loads]
    moves: list[Transfer] = []
    if not restored:
        holdings = [set(held[node]) for node in members]
        order = assign_nodes(holdings, placements)
        moves = transfers(holdings, placements, order, preset.expert_bytes)
        placements = [
            Placement(tuple(placement.nodes[node] for node in order), placement.num_experts) for placement in placements
        ]
    return Generation(members, sorted(held.keys() - set(members)), placements, moves)


def _whole_groups(nodes: Sequence[int], held: Mapping[int, Collection[ExpertKey]], group_nodes: int) -> list[int]:
    """The nodes that form whole groups. Nodes whose experts others hold are left out, first those that hold none."""
    kept = list(nodes)
    for node in sorted(nodes, key=lambda node: (bool(held[node]), -node)):
        others = set().union(*(held[other] for other in kept if other != node))
        if len(kept) % group_nodes and others.issuperset(held[node]):
            kept.remove(node)
    return kept[: len(kept) - len(kept) % group_nodes]


def _placement(system: str, preset: Preset, num_nodes: int, load: Sequence[int], method: str) -> Placement:
    if system == "lazarus":
        replicas = allocate(load, num_nodes * preset.slots, preset.min_replicas)
        return place(method, replicas, [preset.slots] * num_nodes, loads=load)
    every, apart = range(preset.num_experts), preset.group_nodes
    return Placement(tuple(tuple(every[rank % apart :: apart]) for rank in range(num_nodes)), preset.num_experts)
