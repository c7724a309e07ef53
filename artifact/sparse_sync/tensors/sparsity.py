"""What a sparse gradient looks like: density, overlap, densification, skewness, imbalance (Zen, sections 2.1, 3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import torch
from torch import Tensor

from artifact.sparse_sync.tensors.partitions import Contiguous, Partition
from artifact.sparse_sync.tensors.sparse_tensor import SparseTensor


def density(tensor: SparseTensor) -> float:
    """Share of the units that are listed, d."""
    return tensor.num_indices / tensor.num_units


def union(tensors: Sequence[SparseTensor]) -> Tensor:
    """Units that any of the tensors lists. [U], int64, sorted"""
    num_units = tensors[0].num_units
    if sum(tensor.num_indices for tensor in tensors) * 8 < num_units:
        return torch.unique(torch.cat([tensor.index_N for tensor in tensors]))
    listed = torch.zeros(num_units, dtype=torch.bool, device=tensors[0].index_N.device)
    for tensor in tensors:
        listed[tensor.index_N] = True
    return listed.nonzero().reshape(-1)


def overlap_ratio(first: SparseTensor, second: SparseTensor) -> float:
    """Units in both over the units of the smaller (Zen, definition 3); 0 where one is empty."""
    smaller = min(first.num_indices, second.num_indices)
    shared = first.num_indices + second.num_indices - union([first, second]).numel()
    return shared / smaller if smaller else 0.0


def overlap_ratios(tensors: Sequence[SparseTensor]) -> list[float]:
    """The overlap of every pair of workers."""
    return [overlap_ratio(first, second) for first, second in combinations(tensors, 2)]


def densification_ratio(tensors: Sequence[SparseTensor]) -> float:
    """Density of the sum over the mean density, gamma^n (Zen, definition 4); 1 where all are empty."""
    listed = sum(tensor.num_indices for tensor in tensors)
    return union(tensors).numel() * len(tensors) / listed if listed else 1.0


def part_shares(tensor: SparseTensor, num_parts: int) -> np.ndarray:
    """Share of the listed units in each of `num_parts` even stretches. [P], sums to 1 (0 where the tensor is empty)"""
    counts = Contiguous(tensor.num_units, num_parts).count(tensor.index_N)
    return counts / max(1, counts.sum())


def skewness_ratio(tensor: SparseTensor, num_parts: int) -> float:
    """Density of the densest of `num_parts` even stretches over the density (Zen, definition 5); 1 where empty."""
    return float(part_shares(tensor, num_parts).max() * num_parts) if tensor.num_indices else 1.0


def push_imbalance(tensors: Sequence[SparseTensor], parts: Partition) -> float:
    """max over workers i and servers j of n |I_i^j| / |I_i| (Zen, definition 8); 1 where all are empty."""
    ratios = [
        parts.count(tensor.index_N).max() * parts.num_parts / tensor.num_indices
        for tensor in tensors
        if tensor.num_indices
    ]
    return float(max(ratios, default=1.0))


def pull_imbalance(tensors: Sequence[SparseTensor], parts: Partition) -> float:
    """max over servers j of n |I^j| / |I|, I the union of all workers' units (Zen, definition 8); 1 where empty."""
    together = union(tensors)
    return float(parts.count(together).max() * parts.num_parts / together.numel()) if together.numel() else 1.0
