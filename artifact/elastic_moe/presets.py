"""Models that the trainer knows, and how they are trained. No tensors here."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Preset:
    """A GPT whose every layer is a mixture of experts, top-1, and how it is trained.

    slots:        experts of a layer that a node holds; min_replicas: f of the allocation
    global_batch: sequences of a step over all nodes, whatever their number
    group_nodes:  nodes that hold every expert once in expert parallelism without replication (DS's groups)
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
        """Two matrices and their biases."""
        return 2 * self.dim * self.hidden + self.hidden + self.dim

    @property
    def dense_parameters(self) -> int:
        """All but the experts; input and output embedding are one."""
        attention, norms = 4 * (self.dim * self.dim + self.dim), 4 * self.dim
        embeddings = (self.vocabulary + self.sequence_tokens) * self.dim
        return self.num_layers * (attention + norms + self.dim * self.num_experts) + embeddings + 2 * self.dim

    @property
    def parameters(self) -> int:
        return self.dense_parameters + self.num_layers * self.num_experts * self.expert_parameters

    @property
    def expert_bytes(self) -> int:
        """What moves with an expert: its weights and both moments of the optimizer, fp32."""
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
"""The GPTs are those of the paper (Lazarus, table 1); tiny and small are for processors."""
