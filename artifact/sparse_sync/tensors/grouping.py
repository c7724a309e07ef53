"""Every way of grouping a worker's indices by partition, by name, and how fast and even it is."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from artifact import hardware
from artifact.sparse_sync.tensors import hashing
from artifact.sparse_sync.tensors.hashing import Grouping, Integers
from artifact.sparse_sync.tensors.partitions import partition
from artifact.sparse_sync.tensors.sparse_tensor import SparseTensor

METHODS = ("hierarchical", "counting", "bijection", "modulo", "contiguous", "strawman")


def group_indices(
    index_N: Integers | Tensor,
    method: str,
    num_partitions: int,
    num_units: int,
    *,
    seed: int = 0,
    num_hashes: int = 3,
    slots_per_index: float = 2.0,
) -> Grouping:
    """Group indices by `method`: hierarchical, counting, strawman, bijection, modulo or contiguous.

    index_N: [N], int64, in [0, num_units). The indices of a tensor on a CUDA device are grouped there if the method is
             hierarchical (`artifact.sparse_sync.tensors.triton_hashing`), on the CPU otherwise
    num_hashes, slots_per_index: of Algorithm 1 and the strawman (see `artifact.sparse_sync.tensors.hashing`)
    Raises:  ValueError for another method
    """
    if isinstance(index_N, Tensor):
        if index_N.is_cuda and method == "hierarchical":
            from artifact.sparse_sync.tensors import triton_hashing

            return triton_hashing.hierarchical(
                index_N, num_partitions, seed, num_hashes=num_hashes, slots_per_index=slots_per_index
            )
        index_N = index_N.cpu().numpy()
    if method == "hierarchical":
        return hashing.hierarchical(
            index_N, num_partitions, seed, num_hashes=num_hashes, slots_per_index=slots_per_index
        )
    if method == "counting":
        return hashing.counting_sort(index_N, num_partitions, seed)
    if method == "strawman":
        return hashing.strawman(index_N, num_partitions, seed, slots_per_index=slots_per_index)
    if method not in METHODS:
        raise ValueError(f"a method must be one of {', '.join(METHODS)}, got {method!r}")
    parts = partition(method, num_units, num_partitions, seed)
    return hashing.group_by(parts.part_of(torch.from_numpy(index_N)).numpy(), num_partitions)


def measure_grouping(
    tensors: Sequence[SparseTensor], method: str, num_partitions: int, **options: Any
) -> dict[str, Any]:
    """Group the indices of every worker and measure how evenly and how fast. `options` as of `group_indices`.

    Returns: the arguments; device (`cuda` for hierarchical if there is one); counts, of all workers, by partition;
             imbalance, of the worst worker; serial_fraction; lost; million_elements_per_s, after one warm run
    """
    machine = hardware.detect()
    device = machine.device if method == "hierarchical" and machine.triton else "cpu"
    groupings, seconds = [], 0.0
    for worker, tensor in enumerate(tensors):
        arguments = (tensor.index_N.to(device), method, num_partitions, tensor.num_units)
        if worker == 0:
            group_indices(*arguments, **options)  # compiled here, not in the measurement
        start = time.perf_counter()
        groupings.append(group_indices(*arguments, **options))
        seconds += time.perf_counter() - start
    indices = sum(tensor.num_indices for tensor in tensors)
    return {
        "method": method,
        "device": device,
        "partitions": num_partitions,
        "workers": len(tensors),
        "indices": indices,
        "counts": np.sum([grouping.count_P for grouping in groupings], axis=0).tolist(),
        "imbalance": max(hashing.imbalance(grouping.count_P) for grouping in groupings),
        "serial_fraction": sum(grouping.serial for grouping in groupings) / max(1, indices),
        "lost": sum(grouping.lost for grouping in groupings),
        "million_elements_per_s": indices / 1e6 / seconds,
    }
