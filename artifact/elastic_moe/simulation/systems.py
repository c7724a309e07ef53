"""The simulated systems: how they use the nodes that are present, and the layouts that follow from that."""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np
from numpy.typing import NDArray

from artifact.elastic_moe.routing import LoadTrace, drifting_loads, smartmoe_loads, top_experts
from artifact.elastic_moe.simulation.layouts import GroupLayout, Layout, replicated_layout
from artifact.elastic_moe.simulation.step_time import Workload


@dataclass(frozen=True)
class SimulatedSystem:
    """How a system trains, and how it recovers from the failure of a node in use.

    replicates_experts: by load, on all nodes (Lazarus); else nodes form groups that hold every expert once, and only
                        whole groups train
    recovers_in_place:  survivors that hold every expert fetch from one another what they lack; otherwise all restart
                        from the last checkpoint
    """

    label: str
    replicates_experts: bool
    recovers_in_place: bool
    checkpoint_steps: int


SIMULATED_SYSTEMS = {
    "lazarus": SimulatedSystem("Lazarus", replicates_experts=True, recovers_in_place=True, checkpoint_steps=250),
    "ds": SimulatedSystem("DS", replicates_experts=False, recovers_in_place=False, checkpoint_steps=50),
    "ds-ft": SimulatedSystem("DS(FT)", replicates_experts=False, recovers_in_place=True, checkpoint_steps=250),
    "tutel": SimulatedSystem("Tutel", replicates_experts=False, recovers_in_place=False, checkpoint_steps=50),
    "tutel-ft": SimulatedSystem("Tutel(FT)", replicates_experts=False, recovers_in_place=True, checkpoint_steps=250),
}
"""Systems by name, with the checkpoint intervals of Lazarus's evaluation. Tutel is modelled as DeepSpeed: it too gives
every expert the room of the most loaded one, and checkpoints and groups are those of the framework around it."""


def default_loads(work: Workload) -> LoadTrace:
    """The loads that Lazarus replays: those of the hottest experts of SmartMoE's first layers.

    SmartMoE's trace has 32 experts. For more, loads are generated, as Lazarus's loads of DeepSeek-V3 are not published:
    eight layers that stand for all, by Zipf's law with exponent 0.3, which gives the hottest of 256 experts 3.7 times
    the mean, as on the task that DeepSeek-V2-Lite routes most evenly. They drift every 100 steps.
    """
    if work.num_experts <= 32:
        return top_experts(smartmoe_loads(), work.num_layers, work.num_experts)
    made = drifting_loads(8, work.num_experts, 20, skew=0.3, drift=0.2, seed=0)
    return LoadTrace("synthetic-zipf", made.counts_ILE, tuple(range(1, 2001, 100)))


class LayoutCache:
    """The layouts of one workload under one load trace, of which the last `kept` are stored; runs may share a cache."""

    def __init__(self, work: Workload, loads: LoadTrace, kept: int = 128) -> None:
        self.work, self.loads = work, loads
        self._layout = lru_cache(kept)(self._new_layout)
        self.share_LE = cache(self._share_LE)

    def record(self, step: int) -> int:
        """Index of the load record in force at the next step: the latest at or before it; the last holds to the end."""
        return max(0, bisect_right(self.loads.iterations, step + 1) - 1)

    def next_change(self, step: int) -> float:
        """Steps done when the next load record comes into force; infinite after the last one."""
        following = self.record(step) + 1
        return self.loads.iterations[following] - 1 if following < len(self.loads.iterations) else math.inf

    def of(self, system: SimulatedSystem, num_nodes: int, record: int) -> Layout | None:
        """The layout for as many of the nodes as the system can use; None if they cannot hold every expert."""
        work = self.work
        if system.replicates_experts:
            return self._layout(True, num_nodes, record) if num_nodes * work.slots >= work.num_experts else None
        groups = num_nodes // work.group_nodes
        return self._layout(False, groups, 0) if groups else None

    def _new_layout(self, replicated: bool, size: int, record: int) -> Layout:
        work, loads_LE = self.work, self.loads.counts_ILE[record]
        if replicated:
            return replicated_layout(loads_LE, size, work.slots, work.min_replicas)
        return GroupLayout(size, work.group_nodes, *loads_LE.shape)

    def _share_LE(self, record: int) -> NDArray[np.float64]:
        """[L, E], each expert's share of its layer's tokens."""
        loads_LE = np.maximum(self.loads.counts_ILE[record], 1e-9)
        return loads_LE / loads_LE.sum(axis=1, keepdims=True)
