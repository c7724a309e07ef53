"""Gradients summed over the ranks that hold a weight: all of them, or the holders of an expert.

Shape legend: R = ranks
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from artifact.elastic_moe.placement.migration import ExpertKey
from artifact.elastic_moe.training.collectives import Group


class Synchroniser:
    """Sums gradients in one generation. held: [layers][R], the experts that each rank holds

    Each holder of an expert sums one piece of the expert's gradient, in the order of ranks, and sends the sum to the
    other holders: an all-reduce of every expert among its holders, for all experts in two exchanges and one group.
    """

    def __init__(self, group: Group, held: Sequence[Sequence[Collection[int]]]) -> None:
        self.group = group
        self._holders: dict[ExpertKey, list[int]] = {}
        for layer, ranks in enumerate(held):
            for expert in sorted(set().union(*ranks)):
                holders = [rank for rank, experts in enumerate(ranks) if expert in experts]
                if group.rank in holders and len(holders) > 1:
                    self._holders[layer, expert] = holders

    def dense(self, parameters: Sequence[nn.Parameter], numbers: Tensor) -> Tensor:
        """Sum the gradients of weights that all ranks hold, in place. Returns: the sum of `numbers` over the ranks"""
        gradients = [_gradient(parameter).reshape(-1) for parameter in parameters]
        flat = torch.cat([*gradients, numbers])
        self.group.all_reduce(flat)
        *summed, total = flat.split([part.numel() for part in (*gradients, numbers)])
        for parameter, gradient in zip(parameters, summed, strict=True):
            parameter.grad = gradient.view_as(parameter)
        return total

    def experts(self, parameters: Mapping[ExpertKey, nn.Parameter]) -> None:
        """Sum each expert's gradient over its holders, in place, bit for bit the same on all of them."""
        for parameter in parameters.values():
            parameter.grad = _gradient(parameter)
        rank = self.group.rank
        pieces = {
            key: dict(zip(holders, _pieces(parameters[key].grad, len(holders)), strict=True))
            for key, holders in self._holders.items()
        }
        others = [
            [piece for piece in pieces.values() if other in piece and other != rank] for other in range(self.group.size)
        ]
        nothing = torch.empty(0, device=self.group.device)
        parts = self.group.exchange(
            [torch.cat([nothing, *(piece[other] for piece in theirs)]) for other, theirs in enumerate(others)],
            [sum(piece[rank].numel() for piece in theirs) for theirs in others],
        )
        arrived = [
            iter(part.split([piece[rank].numel() for piece in theirs]))
            for part, theirs in zip(parts, others, strict=True)
        ]
        for piece in pieces.values():
            terms = [piece[rank] if holder == rank else next(arrived[holder]) for holder in piece]
            total = terms[0].clone()
            for term in terms[1:]:
                total += term
            piece[rank].copy_(total)
        parts = self.group.exchange(
            [torch.cat([nothing, *(piece[rank] for piece in theirs)]) for theirs in others],
            [sum(piece[other].numel() for piece in theirs) for other, theirs in enumerate(others)],
        )
        for other, (part, theirs) in enumerate(zip(parts, others, strict=True)):
            for piece, values in zip(theirs, part.split([piece[other].numel() for piece in theirs]), strict=True):
                piece[other].copy_(values)


def _pieces(gradient: Tensor | None, parts: int) -> list[Tensor]:
    """Views of a flat tensor, in order."""
    assert gradient is not None
    bounds = [gradient.numel() * part // parts for part in range(parts + 1)]
    return [gradient[start:stop] for start, stop in pairwise(bounds)]


def _gradient(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter.data) if parameter.grad is None else parameter.grad
