"""A GPT of mixtures of experts; a process holds all dense weights and some of the experts.

Every weight has its own seed, so that any process can initialise it alike. An expert is one flat tensor, which can be
sent in one piece.

Shape legend: B = sequences, T = tokens, D = model dimension, L = layers, E = experts, R = S = ranks,
N = tokens that a rank receives
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from artifact.elastic_moe.presets import Preset
from artifact.elastic_moe.training.collectives import AllToAll, Group
from artifact.elastic_moe.training.dispatch import plan_dispatch


class Dispatch(Protocol):
    """Runs a layer's experts on its tokens, and counts the tokens.

    loads_LE: [L, E], tokens that this process has routed to each expert since it was last cleared
    """

    loads_LE: Tensor

    def __call__(self, x_TD: Tensor, expert_T: Tensor, layer: int, experts: Mapping[int, Tensor]) -> Tensor: ...


class DistributedDispatch:
    """Sends tokens to ranks that hold a replica of their expert, and returns the outputs (Lazarus, algorithm 1).

    replicas_LRE: [L, R, E], copies of each expert on each rank
    at:           called with the name of each point that is passed, see `run.POINTS`
    """

    def __init__(self, group: Group, replicas_LRE: Tensor, at: Callable[[str], None] = lambda point: None) -> None:
        self.group, self.replicas_LRE, self.at = group, replicas_LRE, at
        self.loads_LE = torch.zeros_like(replicas_LRE[:, 0])

    def __call__(self, x_TD: Tensor, expert_T: Tensor, layer: int, experts: Mapping[int, Tensor]) -> Tensor:
        own_E = torch.bincount(expert_T, minlength=self.loads_LE.shape[1])
        self.loads_LE[layer] += own_E
        way = plan_dispatch(expert_T, self.replicas_LRE[layer], self.group.all_gather(own_E), self.group.rank)
        received_ND = AllToAll.apply(x_TD.index_select(0, way.order_T), self.group, way.send_counts, way.recv_counts)
        by_expert_ND = torch.empty_like(received_ND).index_copy(0, way.place_N, received_ND)
        outputs_ND = run_experts(by_expert_ND, way.expert_counts, experts)
        if layer == len(self.replicas_LRE) - 1:
            self.at("forward")
            outputs_ND.register_hook(lambda gradient: self.at("backward"))
        sent_ND = outputs_ND.index_select(0, way.place_N)
        returned_TD = AllToAll.apply(sent_ND, self.group, way.recv_counts, way.send_counts)
        return torch.empty_like(returned_TD).index_copy(0, way.order_T, returned_TD)


def run_experts(x_ND: Tensor, counts: Sequence[int], experts: Mapping[int, Tensor]) -> Tensor:
    """Run each expert on its tokens. x_ND: [N, D], sorted by expert; counts: [E], tokens of each"""
    parts = [_feed_forward(part, experts[e]) for e, part in enumerate(x_ND.split(list(counts))) if len(part)]
    return torch.cat(parts) if parts else x_ND


def _feed_forward(x_ND: Tensor, weights: Tensor) -> Tensor:
    dim = x_ND.shape[1]
    hidden = (weights.numel() - dim) // (2 * dim + 1)
    first, first_bias, second, second_bias = weights.split([dim * hidden, hidden, hidden * dim, dim])
    middle = functional.gelu(functional.linear(x_ND, first.view(hidden, dim), first_bias))
    return functional.linear(middle, second.view(dim, hidden), second_bias)


class Block(nn.Module):
    """Causal attention and a mixture of experts, top-1, each after a layer norm. The experts are passed in."""

    def __init__(self, preset: Preset, layer: int) -> None:
        super().__init__()
        self.layer, self.heads = layer, preset.num_heads
        self.before_attention, self.before_experts = nn.LayerNorm(preset.dim), nn.LayerNorm(preset.dim)
        self.qkv, self.out = nn.Linear(preset.dim, 3 * preset.dim), nn.Linear(preset.dim, preset.dim)
        self.gate = nn.Linear(preset.dim, preset.num_experts, bias=False)

    def forward(self, x_BTD: Tensor, experts: Mapping[int, Tensor], dispatch: Dispatch) -> Tensor:
        batch, length, dim = x_BTD.shape
        heads = self.qkv(self.before_attention(x_BTD)).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(heads[0], heads[1], heads[2], is_causal=True)
        x_BTD = x_BTD + self.out(attended.transpose(1, 2).reshape(batch, length, dim))
        x_TD = self.before_experts(x_BTD).reshape(-1, dim)
        weight_T, expert_T = self.gate(x_TD).softmax(-1).max(-1)
        y_TD = dispatch(x_TD, expert_T, self.layer, experts) * weight_T[:, None]
        return x_BTD + y_TD.view_as(x_BTD)


class MoeGpt(nn.Module):
    """The dense part of the model. The experts are held outside and passed in."""

    def __init__(self, preset: Preset, seed: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(preset.vocabulary, preset.dim)
        self.positions = nn.Embedding(preset.sequence_tokens, preset.dim)
        self.blocks = nn.ModuleList(Block(preset, layer) for layer in range(preset.num_layers))
        self.last = nn.LayerNorm(preset.dim)
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if parameter.dim() > 1:
                    parameter.copy_(_normal(parameter.shape, seed, name))
                elif name.endswith("bias"):
                    parameter.zero_()

    def forward(self, tokens_BT: Tensor, experts: Sequence[Mapping[int, Tensor]], dispatch: Dispatch) -> Tensor:
        """Scores of the next token, [B, T, vocabulary]. experts: [L], those held here, by number"""
        x_BTD = self.tokens(tokens_BT) + self.positions.weight[: tokens_BT.shape[1]]
        for block, held in zip(self.blocks, experts, strict=True):
            x_BTD = block(x_BTD, held, dispatch)
        return functional.linear(self.last(x_BTD), self.tokens.weight)

    def loss_sum(self, sample_BT: Tensor, experts: Sequence[Mapping[int, Tensor]], dispatch: Dispatch) -> Tensor:
        """Sum over tokens of the negative log-likelihood of the next token, in nats. sample_BT: [B, T + 1]"""
        scores = self(sample_BT[:, :-1], experts, dispatch)
        return functional.cross_entropy(scores.flatten(0, 1), sample_BT[:, 1:].flatten(), reduction="sum")


def new_expert(preset: Preset, seed: int, layer: int, expert: int) -> Tensor:
    """[parameters], initial weights of an expert, the same in every process."""
    weights = _normal((preset.expert_parameters,), seed, f"expert {layer} {expert}")
    inner = preset.dim * preset.hidden
    weights[inner : inner + preset.hidden] = 0
    weights[-preset.dim :] = 0
    return weights


def batch(preset: Preset, seed: int, step: int) -> Tensor:
    """[sequences, tokens + 1], the global batch of a step: noisy arithmetic progressions, which can be learned."""
    generator = torch.Generator().manual_seed(_seed(seed, f"batch {step}"))
    shape = (preset.global_batch, preset.sequence_tokens + 1)
    start = torch.randint(0, preset.vocabulary, (shape[0], 1), generator=generator)
    stride = torch.randint(1, 8, (shape[0], 1), generator=generator)
    tokens = (start + stride * torch.arange(shape[1])) % preset.vocabulary
    noise = torch.randint(0, preset.vocabulary, shape, generator=generator)
    return torch.where(torch.rand(shape, generator=generator) < 0.1, noise, tokens)


def _normal(shape: Sequence[int], seed: int, name: str) -> Tensor:
    return torch.randn(tuple(shape), generator=torch.Generator().manual_seed(_seed(seed, name))) * 0.02


def _seed(seed: int, name: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:7], "little")
