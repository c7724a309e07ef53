"""The paper's formulas, and the properties of gradients that go into them (Zen, sections 2 and 3)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np

from artifact import sparse_sync


def mean_density(tensors: Sequence[sparse_sync.SparseTensor]) -> float:
    """Listed units over all units, d: the mean of the workers."""
    return float(np.mean([tensor.num_indices / tensor.num_units for tensor in tensors]))


def overlap_ratios(tensors: Sequence[sparse_sync.SparseTensor]) -> list[float]:
    """For every pair of workers: units in both over the units of the smaller (Zen, definition 3); 0 if one is empty."""
    ratios = []
    for pair in combinations(tensors, 2):
        counts = [tensor.num_indices for tensor in pair]
        ratios.append((sum(counts) - sparse_sync.union(pair).numel()) / min(counts) if min(counts) else 0.0)
    return ratios


def densification_ratio(tensors: Sequence[sparse_sync.SparseTensor]) -> float:
    """Density of the sum over the mean density, gamma^n (Zen, definition 4); 1 if all are empty."""
    listed = sum(tensor.num_indices for tensor in tensors)
    return sparse_sync.union(tensors).numel() * len(tensors) / listed if listed else 1.0


def part_shares(tensor: sparse_sync.SparseTensor, num_parts: int) -> np.ndarray:
    """Share of the listed units in each of `num_parts` even stretches. [P], sums to 1 (0 if the tensor is empty)"""
    counts = sparse_sync.partition("contiguous", tensor.num_units, num_parts).count(tensor.index_N)
    return counts / max(1, counts.sum())


def skewness_ratio(tensor: sparse_sync.SparseTensor, num_parts: int) -> float:
    """Density of the densest of `num_parts` even stretches over the density (Zen, definition 5); 1 if empty."""
    return float(part_shares(tensor, num_parts).max() * num_parts) if tensor.num_indices else 1.0


def costs(n: int, d: float, gamma: float, gammas: Sequence[float] = ()) -> dict[str, float]:
    """Bytes of the busiest of n ranks over the dense tensor's, by scheme: fp32 values, 4-byte indices, even servers.

    d:      density
    gamma:  densification gamma^n, the density of the sum over d
    gammas: gamma^k of the stages k = 1, 2, 4, ..., n/2
    """
    share = (n - 1) / n
    return {
        "AllReduce": 2 * share,
        "AGsparse": 2 * (n - 1) * d,
        "SparCML": sum(gammas) * 2 * d,  # equation 2
        "OmniReduce": share * (d * (1 + gamma) * (1 + 1 / 256)),  # d and gamma of blocks of 256 elements
        "Balanced Parallelism": share * (gamma + 1) * 2 * d,  # equation 1: COO both ways
        "Zen": share * (2 * d + d * gamma + 1 / 32),  # COO push, hash bitmap pull
    }


def break_even_overlap(num_workers: int, density: float = 0.01) -> float:
    """Pairwise overlap above which equation 1 is cheaper than equation 2, for independent even supports inside a common
    pool: overlap p means a pool of N / p units. Section 3.1's theorem 1 without its assumption on overlap.
    """
    from scipy.optimize import brentq

    stages = [1 << i for i in range(num_workers.bit_length() - 1)]

    def difference(pool_density: float) -> float:
        *gammas, gamma = ((1 - (1 - pool_density) ** k) / pool_density for k in (*stages, num_workers))
        cost = costs(num_workers, density, gamma, gammas)
        return cost["SparCML"] - cost["Balanced Parallelism"]

    return float(brentq(difference, 1e-7, 1 - 1e-9))


def published_choice(statistics: sparse_sync.Statistics) -> str:
    """Zen's own rule: equation 1 against equation 2, both of COO. `zen` or `sparcml`."""
    gammas = [stage / statistics.rows.mean if statistics.rows.mean else 1.0 for stage in statistics.rows.stages]
    cost = costs(statistics.num_workers, statistics.density, statistics.densification, gammas)
    return "zen" if cost["Balanced Parallelism"] < cost["SparCML"] else "sparcml"


def imbalance_bound(num_indices: int, num_partitions: int) -> float:
    """1 + sqrt(2 n ln n / |I|): what balls thrown into bins give (Zen, theorem 2, with its constant)."""
    return 1 + float(np.sqrt(2 * num_partitions * np.log(num_partitions) / num_indices)) if num_indices else 1.0


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
