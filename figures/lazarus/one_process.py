"""The training of `artifact.elastic_moe` in one process that holds every expert: what elastic training must equal."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from artifact.elastic_moe import Preset
from artifact.elastic_moe.training.model import batch, run_experts
from artifact.elastic_moe.training.shard import ModelShard


class LocalDispatch:
    """A dispatch without other ranks."""

    def __init__(self, preset: Preset) -> None:
        self.loads_LE = torch.zeros(preset.num_layers, preset.num_experts, dtype=torch.int64)

    def __call__(self, x_TD: Tensor, expert_T: Tensor, layer: int, experts: Mapping[int, Tensor]) -> Tensor:
        counts_E = torch.bincount(expert_T, minlength=self.loads_LE.shape[1])
        self.loads_LE[layer] += counts_E.cpu()
        order_T = expert_T.argsort(stable=True)
        outputs_TD = run_experts(x_TD.index_select(0, order_T), counts_E.tolist(), experts)
        return torch.empty_like(x_TD).index_copy(0, order_T, outputs_TD)


def losses_in_one_process(preset: Preset, seed: int, steps: int) -> list[float]:
    """Loss of each step."""
    every = [(layer, expert) for layer in range(preset.num_layers) for expert in range(preset.num_experts)]
    state, dispatch, losses = ModelShard(preset, seed, every, torch.device("cpu")), LocalDispatch(preset), []
    for step in range(steps):
        sample_BT = batch(preset, seed, step)
        loss = state.model.loss_sum(sample_BT, state.layers, dispatch) / sample_BT[:, 1:].numel()
        loss.backward()
        for parameter in state.parameters:  # an expert without tokens takes its step too
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        state.apply()
        losses.append(loss.item())
    return losses
