"""Seconds of a training step, a checkpoint, a restart and a reconfiguration. All constants are in TESTBEDS.

There are two kinds of `TimeModel`: a `Testbed` computes times from rates of hardware, a `MeasuredTestbed` looks them up
in measurements of real runs. Gb is 10^9 bits.

Shape legend: L = layers of the loads, E = experts
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from artifact.elastic_moe.presets import PRESETS, Preset
from artifact.elastic_moe.simulation.layouts import Layout

GBPS = 1e9 / 8
"""Bytes per second of 1 Gb/s."""


@dataclass(frozen=True)
class Workload:
    """Sizes and FLOPs of a model's training step. FLOPs count the forward and the backward pass.

    num_layers:       mixture-of-experts layers; loads of fewer layers stand for all of them
    expert_flops:     per token and expert; dense_flops: per token, of everything that is not an expert
    token_bytes:      activations of one token, as sent between nodes
    state_bytes:      per parameter, weights and optimizer; gradient_bytes: per parameter, as reduced
    slots:            experts of a layer that a node holds in Lazarus; min_replicas: its f
    group_nodes:      nodes of an expert-parallel group in DeepSpeed
    node_samples:     samples per step and node; or else step_samples: per step, for any number of nodes
    micro_batches:    in which a node processes its samples; gradients are reduced once
    Raises:           ValueError unless exactly one of node_samples and step_samples is given
    """

    name: str
    num_layers: int
    num_experts: int
    experts_per_token: int
    expert_parameters: float
    dense_parameters: float
    expert_flops: float
    dense_flops: float
    token_bytes: int
    sample_tokens: int
    slots: int
    group_nodes: int
    min_replicas: int = 2
    node_samples: int | None = None
    step_samples: int | None = None
    micro_batches: int = 1
    state_bytes: int = 14
    gradient_bytes: int = 2

    def __post_init__(self) -> None:
        if (self.node_samples is None) == (self.step_samples is None):
            raise ValueError("give either node_samples or step_samples, got both or neither")

    def batch(self, num_nodes: int) -> int:
        """Samples of one step."""
        return self.step_samples if self.node_samples is None else self.node_samples * num_nodes  # type: ignore[return-value]

    def per_layer(self, layout: Layout) -> float:
        """Layers of the model for which one layer of the layout stands."""
        return self.num_layers / layout.num_layers

    @property
    def expert_state_bytes(self) -> float:
        return self.state_bytes * self.expert_parameters

    @property
    def dense_state_bytes(self) -> float:
        return self.state_bytes * self.dense_parameters

    @property
    def all_state_bytes(self) -> float:
        return self.dense_state_bytes + self.num_layers * self.num_experts * self.expert_state_bytes


def preset_workload(preset: Preset) -> Workload:
    """A preset as `train` runs it: a fixed global batch, fp32."""
    dense = 2 * preset.vocabulary * preset.dim + preset.num_layers * 4 * preset.dim**2
    return Workload(
        preset.name,
        num_layers=preset.num_layers,
        num_experts=preset.num_experts,
        experts_per_token=1,
        expert_parameters=preset.expert_parameters,
        dense_parameters=dense,
        expert_flops=6 * preset.expert_parameters,
        dense_flops=6 * dense + 12 * preset.sequence_tokens * preset.dim * preset.num_layers,
        token_bytes=4 * preset.dim,
        sample_tokens=preset.sequence_tokens,
        slots=preset.slots,
        min_replicas=preset.min_replicas,
        group_nodes=preset.group_nodes,
        step_samples=preset.global_batch,
        state_bytes=12,
        gradient_bytes=4,
    )


def gpt_workload(preset: Preset, *, micro_batches: int = 1) -> Workload:
    """A preset as in Lazarus's evaluation: 4 samples of 1,024 tokens per micro-batch and GPU, fp16 (section 6.1).

    6 FLOPs per parameter and token, and 12 s d per layer for attention over s tokens. The state of a parameter is an
    fp16 weight, an fp32 weight and both moments: 14 bytes.
    """
    attention = preset.num_layers * (4 * preset.dim * preset.dim) + preset.vocabulary * preset.dim
    return replace(
        preset_workload(preset),
        dense_parameters=preset.dense_parameters,
        dense_flops=6 * attention + 12 * preset.sequence_tokens * preset.dim * preset.num_layers,
        token_bytes=2 * preset.dim,
        node_samples=4 * micro_batches,
        step_samples=None,
        micro_batches=micro_batches,
        state_bytes=14,
        gradient_bytes=2,
    )


_EXPERT_V3 = 3 * 7168 * 2048
WORKLOADS = {
    "GPT-S": gpt_workload(PRESETS["GPT-S"]),
    "GPT-M": gpt_workload(PRESETS["GPT-M"]),
    "GPT-L": gpt_workload(PRESETS["GPT-L"]),
    "DeepSeek-V3": Workload(
        "DeepSeek-V3",
        num_layers=58,
        num_experts=256,
        experts_per_token=8,
        expert_parameters=_EXPERT_V3,
        dense_parameters=671e9 - 58 * 256 * _EXPERT_V3,
        expert_flops=6 * _EXPERT_V3,
        dense_flops=6 * (37e9 - 58 * 8 * _EXPERT_V3),
        token_bytes=2 * 7168,
        sample_tokens=4096,
        slots=32,
        group_nodes=8,
        node_samples=32,
    ),
    "tiny": preset_workload(PRESETS["tiny"]),
    "small": preset_workload(PRESETS["small"]),
}
"""Workloads by name. DeepSeek-V3: 671 B parameters, 37 B of them active (its report), nodes of 8 GPUs with 4 replicas
each (Lazarus, section 6.5), so that a group has 64 GPUs; 4 samples of 4,096 tokens per GPU are assumed."""


class TimeModel(Protocol):
    """What the simulator needs to know of a testbed. Times are in s."""

    @property
    def name(self) -> str: ...

    @property
    def detection_s(self) -> float:
        """From a failure until it is detected."""
        ...

    @property
    def join_wait_s(self) -> float:
        """From the first join until all nodes that have joined since are admitted."""
        ...

    def step_s(self, work: Workload, system: str, layout: Layout, share_LE: NDArray) -> float:
        """One step. system: name in SIMULATED_SYSTEMS; share_LE: [L, E], each expert's share of its layer's tokens"""
        ...

    def checkpoint_s(self, work: Workload, num_nodes: int) -> float: ...

    def restart_s(self, work: Workload, layout: Layout) -> float:
        """Restart from a checkpoint, after the failure is detected."""
        ...

    def reconfigure_s(self, work: Workload, states: float) -> float:
        """New groups and transfers after a failure is detected. states: that the busiest node fetches"""
        ...

    def join_s(self, work: Workload, states: float) -> float:
        """The same for nodes that join."""
        ...

    def rebalance_s(self, work: Workload, states: float) -> float: ...


@dataclass(frozen=True)
class StepTime:
    """Parts of a step, one after the other."""

    compute_s: float
    exchange_s: float
    gradients_s: float

    @property
    def total_s(self) -> float:
        return self.compute_s + self.exchange_s + self.gradients_s


@dataclass(frozen=True)
class Testbed:
    """Hardware by its rates. A node fails as a whole.

    flops:             per second that a node reaches in training, not its peak
    link_gbps:         of a node, each way, as reached by collectives
    transfer_gbps:     of a node that fetches expert states, after transfer_start_s
    storage_gbps:      of the checkpoint store, shared by all nodes; storage_node_gbps: limit for one node
    regroup_s:         to form new process groups after a failure or a join; rebalance_regroup_s: at a rebalance
    restart_start_s:   to restart all processes, without reading the checkpoint
    """

    name: str
    flops: float
    link_gbps: float
    transfer_gbps: float
    storage_gbps: float
    storage_node_gbps: float
    detection_s: float = 15
    regroup_s: float = 10
    rebalance_regroup_s: float = 5
    transfer_start_s: float = 2
    restart_start_s: float = 155
    join_wait_s: float = 120

    def parts(self, work: Workload, layout: Layout, share_LE: NDArray) -> StepTime:
        """A step of this layout: the slowest node of each layer decides, and nothing overlaps.

        A node computes its share of the batch and the tokens of its experts. A layer exchanges tokens four times: to
        the experts and back, forward and backward. Gradients are reduced by rings: dense ones over all nodes, those of
        an expert over its holders. This is the simplest model that agrees with Lazarus's evaluation; TESTBEDS says
        which constants are fitted.
        """
        num_nodes = layout.num_nodes
        tokens = work.batch(num_nodes) / num_nodes * work.sample_tokens
        computed_L, exchanged_L = layout.slowest_L(share_LE)
        routed = tokens * work.experts_per_token * work.num_layers
        gradients = 2 * (num_nodes - 1) / num_nodes * work.dense_parameters
        gradients += work.per_layer(layout) * layout.shared_experts * work.expert_parameters
        link = self.link_gbps * GBPS
        return StepTime(
            float(tokens * work.dense_flops + routed * computed_L.mean() * work.expert_flops) / self.flops,
            float(4 * routed * exchanged_L.mean() * work.token_bytes) / link,
            gradients * work.gradient_bytes / link,
        )

    def step_s(self, work: Workload, system: str, layout: Layout, share_LE: NDArray) -> float:
        return self.parts(work, layout, share_LE).total_s

    def checkpoint_s(self, work: Workload, num_nodes: int) -> float:
        """Every state is written once while training waits."""
        return work.all_state_bytes / self._storage(num_nodes)

    def restart_s(self, work: Workload, layout: Layout) -> float:
        """Processes start, and every node reads the states that it holds."""
        held = float(np.bitwise_count(layout.held_NW).sum()) * work.per_layer(layout)
        read = layout.num_nodes * work.dense_state_bytes + held * work.expert_state_bytes
        return self.restart_start_s + read / self._storage(layout.num_nodes)

    def reconfigure_s(self, work: Workload, states: float) -> float:
        return self.regroup_s + self._transfer_s(work, states)

    def join_s(self, work: Workload, states: float) -> float:
        return self.reconfigure_s(work, states)

    def rebalance_s(self, work: Workload, states: float) -> float:
        return self.rebalance_regroup_s + self._transfer_s(work, states)

    def _transfer_s(self, work: Workload, states: float) -> float:
        seconds = states * work.expert_state_bytes / (self.transfer_gbps * GBPS)
        return self.transfer_start_s + seconds if states else 0.0

    def _storage(self, num_nodes: int) -> float:
        return min(self.storage_gbps, num_nodes * self.storage_node_gbps) * GBPS


@dataclass(frozen=True)
class MeasuredTestbed:
    """Seconds that real runs took, see `calibrated_testbed`."""

    name: str
    steps: Mapping[str, Sequence[tuple[int, float]]]  # by system, (nodes in use, seconds of a step), nodes rising
    seconds: Mapping[str, float]
    join_wait_s: float
    detection_s: float = 0.0  # the measured times contain it

    def step_s(self, work: Workload, system: str, layout: Layout, share_LE: NDArray) -> float:
        if system not in self.steps:
            raise ValueError(f"steps of {self.name} must be measured for {system}, got {', '.join(self.steps)}")
        nodes, seconds = zip(*self.steps[system], strict=True)
        return float(np.interp(layout.num_nodes, nodes, seconds))

    def checkpoint_s(self, work: Workload, num_nodes: int) -> float:
        return self.seconds["checkpoint_s"]

    def restart_s(self, work: Workload, layout: Layout) -> float:
        return self.seconds["restart_s"]

    def reconfigure_s(self, work: Workload, states: float) -> float:
        return self.seconds["outage_s"]

    def join_s(self, work: Workload, states: float) -> float:
        return self.seconds["join_s"]

    def rebalance_s(self, work: Workload, states: float) -> float:
        return self.seconds["rebalance_s"]


def calibrated_testbed(
    name: str,
    *,
    step_s: Mapping[str, Mapping[int, float]] | Mapping[str, Mapping[str, float]],
    outage_s: float,
    restart_s: float,
    checkpoint_s: float,
    join_s: float = 0.0,
    rebalance_s: float = 0.0,
    join_wait_s: float = 0.0,
) -> MeasuredTestbed:
    """A testbed from measured seconds, as of the trainer's runs; also straight from JSON, whose keys are texts.

    step_s:    by system and number of nodes in use, {"lazarus": {"4": 0.18, "3": 0.16}}; interpolated between them,
               and beyond them that of the nearest
    outage_s:  from a failure to the next step, recovered in place; restart_s: the same from a checkpoint
    checkpoint_s, join_s, rebalance_s: during which training waits for each
    Raises: ValueError if there is no step of a system, one of 0 s or less, or another time is negative
    """
    steps = {}
    for system, by_nodes in step_s.items():
        steps[system] = sorted((int(nodes), float(seconds)) for nodes, seconds in by_nodes.items())
        if not steps[system] or min(seconds for _, seconds in steps[system]) <= 0:
            raise ValueError(f"step_s must have positive seconds for {system}, got {dict(by_nodes)}")
    times = {"outage_s": outage_s, "restart_s": restart_s, "checkpoint_s": checkpoint_s, "join_s": join_s}
    times |= {"rebalance_s": rebalance_s, "join_wait_s": join_wait_s}
    for key, seconds in times.items():
        if seconds < 0:
            raise ValueError(f"{key} must not be negative, got {seconds}")
    return MeasuredTestbed(name, steps, times, join_wait_s)


TESTBEDS = {
    testbed.name: testbed
    for testbed in (
        Testbed("paper-gpu", 115e12, 24.4, 4.5, storage_gbps=10, storage_node_gbps=10),
        Testbed("a10g", 28e12, 10, 4.5, storage_gbps=10, storage_node_gbps=10, restart_start_s=30),
        Testbed("h200-deepseek-v3", 3.2e15, 3200, 3200, storage_gbps=1e9, storage_node_gbps=100),
    )
}
"""Testbeds by name, and the sources of their constants.

From the paper: detection of 10 to 20 s and new groups of 5 to 15 s, here the middle of each, and the lower end at a
rebalance, which no failure precedes; joins wait 2 minutes; the checkpoint store has 10 Gb/s; a10g's links have
10 Gb/s; an H200 node has 8 GPUs and 8 links of 400 Gb/s.
Fitted, each to one published number: flops and link_gbps of paper-gpu to 34 samples/s of DS and 45 of Lazarus (GPT-M,
10 nodes without a failure, figure 7), with the mean loads of iterations 201 to 1,991; transfer_start_s to 2.3 s (GPT-S,
11 states, table 2), transfer_gbps to 7.6 s (GPT-L, 160 states to 6 nodes, table 2), restart_start_s to Lazarus's 2.8
times the samples of DS (GPT-S, figure 6): it contains everything that makes a restart of DeepSpeed slow.
Derived from hardware: a10g reaches 40 % of an A10G's 70 TFLOP/s, an H200 node 40 % of 8 times 989 TFLOP/s.
Assumed, as nothing is published: 30 s to start a program without DeepSpeed on a10g, whose other baseline is Tutel;
100 Gb/s to storage for each H200 node, and no limit of its store.
"""
