"""The paper's formulas, and the properties of gradients that go into them (Zen, sections 2 and 3).

Costs are bytes of the busiest rank, for fp32 values and 4-byte indices: n workers, dense tensor of M bytes, density d,
densification gamma^n (density of the sum over d).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:  # torch stays out of what only draws
    from artifact.sparse_sync.schemes.cost_model import Statistics
    from artifact.sparse_sync.tensors.sparse_tensor import SparseTensor

# Properties of gradients


def density(tensor: SparseTensor) -> float:
    """Listed units over all units, d."""
    return tensor.num_indices / tensor.num_units


def overlap_ratios(tensors: Sequence[SparseTensor]) -> list[float]:
    """For every pair of workers: units in both over the units of the smaller (Zen, definition 3); 0 if one is empty."""
    from artifact.sparse_sync.tensors.sparse_tensor import union

    ratios = []
    for first, second in combinations(tensors, 2):
        smaller = min(first.num_indices, second.num_indices)
        shared = first.num_indices + second.num_indices - union([first, second]).numel()
        ratios.append(shared / smaller if smaller else 0.0)
    return ratios


def densification_ratio(tensors: Sequence[SparseTensor]) -> float:
    """Density of the sum over the mean density, gamma^n (Zen, definition 4); 1 if all are empty."""
    from artifact.sparse_sync.tensors.sparse_tensor import union

    listed = sum(tensor.num_indices for tensor in tensors)
    return union(tensors).numel() * len(tensors) / listed if listed else 1.0


def part_shares(tensor: SparseTensor, num_parts: int) -> np.ndarray:
    """Share of the listed units in each of `num_parts` even stretches. [P], sums to 1 (0 if the tensor is empty)"""
    from artifact.sparse_sync.tensors.partitions import Contiguous

    counts = Contiguous(tensor.num_units, num_parts).count(tensor.index_N)
    return counts / max(1, counts.sum())


def skewness_ratio(tensor: SparseTensor, num_parts: int) -> float:
    """Density of the densest of `num_parts` even stretches over the density (Zen, definition 5); 1 if empty."""
    return float(part_shares(tensor, num_parts).max() * num_parts) if tensor.num_indices else 1.0


# Costs of the design space


def dense_ring(dense_bytes: float, num_workers: int) -> float:
    """2 (n-1)/n M."""
    return 2 * (num_workers - 1) / num_workers * dense_bytes


def all_gather(dense_bytes: float, density: float, num_workers: int) -> float:
    """2 (n-1) d M: AGsparse."""
    return 2 * (num_workers - 1) * density * dense_bytes


def balanced_parallelism(dense_bytes: float, density: float, gamma: float, num_workers: int) -> float:
    """Equation 1: (n-1)/n (gamma^n + 1) 2 M d, COO both ways."""
    return (num_workers - 1) / num_workers * (gamma + 1) * 2 * dense_bytes * density


def hierarchical_centralization(dense_bytes: float, density: float, gammas: Sequence[float]) -> float:
    """Equation 2: the sum of gamma^k 2 M d over the stages k = 1, 2, 4, ..., n/2."""
    return sum(gammas) * 2 * dense_bytes * density


def omnireduce(dense_bytes: float, block_density: float, block_gamma: float, num_workers: int) -> float:
    """(n-1)/n (d_b + d_b^n) M (1 + 1/256): blocks, in the balanced best case."""
    blocks = block_density * (1 + block_gamma) * (1 + 1 / 256)
    return (num_workers - 1) / num_workers * blocks * dense_bytes


def zen(dense_bytes: float, density: float, gamma: float, num_workers: int) -> float:
    """(n-1)/n (2 d + d^n + 1/32) M: COO push, hash bitmap pull, both balanced."""
    return (num_workers - 1) / num_workers * (2 * density + density * gamma + 1 / 32) * dense_bytes


def independent_densification(density: float, num_workers: int) -> float:
    """gamma^k of supports that are drawn independently and evenly: (1 - (1 - d)^k) / d."""
    return (1 - (1 - density) ** num_workers) / density


def break_even_overlap(num_workers: int, density: float = 0.01) -> float:
    """Pairwise overlap above which equation 1 is cheaper than equation 2, for independent even supports inside a common
    pool: overlap p means a pool of N / p units. Section 3.1's theorem 1 without its assumption on overlap.
    """
    from scipy.optimize import brentq

    def difference(pool_density: float) -> float:
        gammas = [independent_densification(pool_density, 1 << i) for i in range(num_workers.bit_length() - 1)]
        last = independent_densification(pool_density, num_workers)
        return hierarchical_centralization(1, density, gammas) - balanced_parallelism(1, density, last, num_workers)

    return float(brentq(difference, 1e-7, 1 - 1e-9))


def published_choice(statistics: Statistics) -> str:
    """Zen's own rule: equation 1 against equation 2, both of COO. `zen` or `sparcml`."""
    gammas = [stage / statistics.rows.mean if statistics.rows.mean else 1.0 for stage in statistics.rows.stages]
    one = balanced_parallelism(1, statistics.density, statistics.densification, statistics.num_workers)
    two = hierarchical_centralization(1, statistics.density, gammas)
    return "zen" if one < two else "sparcml"


# Expectations of hashing


def imbalance_bound(num_indices: int, num_partitions: int) -> float:
    """1 + sqrt(2 n ln n / |I|): what balls thrown into bins give (Zen, theorem 2, with its constant)."""
    if num_indices == 0 or num_partitions == 1:
        return 1.0
    return 1 + float(np.sqrt(2 * num_partitions * np.log(num_partitions) / num_indices))


def expected_serial_share(num_hashes: int, slots_per_index: float) -> float:
    """Share of the indices that Algorithm 1 puts in its serial region: 1 - x(1) r1/|I| where dx/dt = 1 - x^k."""
    from scipy.integrate import solve_ivp

    load = 1 / slots_per_index
    solved = solve_ivp(lambda _, x: 1 - x**num_hashes, (0, load), [0.0], rtol=1e-10, atol=1e-12)
    return float(1 - solved.y[0, -1] / load)


def expected_strawman_loss(slots_per_index: float) -> float:
    """Share of the indices that the strawman loses: 1 - (1 - exp(-a)) / a with a = |I| / slots."""
    a = 1 / slots_per_index
    return float(1 + np.expm1(-a) / a)
