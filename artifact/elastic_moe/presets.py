"""The models and how they are trained: those of Lazarus's evaluation, and small ones for CPUs. No tensors here."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Preset:
    """A GPT with a mixture of experts in every layer, top-1, and how it is trained.

    hidden:       width of an expert's inner layer
    slots:        experts of a layer that a node holds; min_replicas: f of the allocation
    global_batch: sequences of a step over all nodes together
    group_nodes:  nodes of a group that holds every expert once, in expert parallelism without replication (DS)
    """

    name: str
    num_layers: int
    dim: int
    num_heads: int
    num_experts: int
    hidden: int
    vocabulary: int
    sequence_tokens: int
    global_batch: int
    slots: int
    min_replicas: int
    group_nodes: int
    learning_rate: float = 1e-3

    @property
    def expert_parameters(self) -> int:
        """Parameters of one expert of one layer: two matrices and their biases."""
        return 2 * self.dim * self.hidden + self.hidden + self.dim

    @property
    def dense_parameters(self) -> int:
        """All parameters but the experts', which every node holds; input and output embedding are shared."""
        attention, norms = 4 * (self.dim * self.dim + self.dim), 4 * self.dim
        embeddings = (self.vocabulary + self.sequence_tokens) * self.dim
        return self.num_layers * (attention + norms + self.dim * self.num_experts) + embeddings + 2 * self.dim

    @property
    def parameters(self) -> int:
        return self.dense_parameters + self.num_layers * self.num_experts * self.expert_parameters

    @property
    def expert_bytes(self) -> int:
        """Bytes of an expert's state: its weights and both moments of the optimizer, fp32."""
        return 3 * 4 * self.expert_parameters

    @property
    def step_tokens(self) -> int:
        return self.global_batch * self.sequence_tokens


PRESETS = {
    preset.name: preset
    for preset in (
        Preset("tiny", 2, 64, 4, 8, 256, 256, 64, 32, slots=4, min_replicas=2, group_nodes=2),
        Preset("small", 4, 128, 4, 8, 512, 256, 128, 32, slots=4, min_replicas=2, group_nodes=2),
        Preset("GPT-S", 12, 768, 12, 8, 3072, 50257, 1024, 40, slots=6, min_replicas=2, group_nodes=2),
        Preset("GPT-M", 12, 1024, 16, 12, 4096, 50257, 1024, 40, slots=6, min_replicas=2, group_nodes=2),
        Preset("GPT-L", 12, 1024, 16, 16, 4096, 50257, 1024, 40, slots=6, min_replicas=2, group_nodes=4),
    )
}
"""Presets by name: GPT-S, GPT-M and GPT-L (Lazarus, table 1), and tiny and small for CPUs."""
