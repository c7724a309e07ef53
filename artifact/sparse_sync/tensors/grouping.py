"""Every way of grouping a worker's indices by partition, under one name each, measured."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from artifact.sparse_sync.tensors import hashing
from artifact.sparse_sync.tensors.hashing import Grouping, Integers
from artifact.sparse_sync.tensors.partitions import partition
from artifact.sparse_sync.tensors.sparse_tensor import SparseTensor


def group_indices(
    index_N: Integers,
    method: str,
    num_partitions: int,
    num_units: int,
    *,
    seed: int = 0,
    num_hashes: int = 3,
    slots_per_index: float = 2.0,
) -> Grouping:
    """Group indices in [0, num_units) by `method`: hierarchical, counting, strawman, bijection, modulo or contiguous.

    num_hashes, slots_per_index: of Algorithm 1 and the strawman (see `artifact.sparse_sync.tensors.hashing`)
    Raises: ValueError for another method
    """
    hashed: dict[str, Callable[[], Grouping]] = {
        "hierarchical": lambda: hashing.hierarchical(
            index_N, num_partitions, seed, num_hashes=num_hashes, slots_per_index=slots_per_index
        ),
        "counting": lambda: hashing.counting_sort(index_N, num_partitions, seed),
        "strawman": lambda: hashing.strawman(index_N, num_partitions, seed, slots_per_index=slots_per_index),
    }
    if method in hashed:
        return hashed[method]()
    if method not in ("bijection", "modulo", "contiguous"):
        raise ValueError(
            f"a method must be one of {', '.join([*hashed, 'bijection, modulo, contiguous'])}, got {method!r}"
        )
    parts = partition(method, num_units, num_partitions, seed)
    return hashing.group_by(parts.part_of(torch.from_numpy(index_N)).numpy(), num_partitions)


def measure_grouping(
    tensors: Sequence[SparseTensor], method: str, num_partitions: int, **options: Any
) -> dict[str, Any]:
    """Group the indices of every worker and say how evenly and how fast. `options` as of `group_indices`.

    Returns: counts (of all workers together, by partition), imbalance (of the worst worker), serial_fraction, lost,
             million_elements_per_s (after one warm run) and what was asked for
    """
    groupings, seconds = [], 0.0
    for worker, tensor in enumerate(tensors):
        arguments = (tensor.index_N.numpy(), method, num_partitions, tensor.num_units)
        if worker == 0:
            group_indices(*arguments, **options)  # compiled here, not in the measurement
        start = time.perf_counter()
        groupings.append(group_indices(*arguments, **options))
        seconds += time.perf_counter() - start
    indices = sum(tensor.num_indices for tensor in tensors)
    return {
        "method": method,
        "partitions": num_partitions,
        "workers": len(tensors),
        "indices": indices,
        "counts": np.sum([each.count_P for each in groupings], axis=0).tolist(),
        "imbalance": max(hashing.imbalance(each.count_P) for each in groupings),
        "serial_fraction": sum(each.serial for each in groupings) / max(1, indices),
        "lost": sum(each.lost for each in groupings),
        "million_elements_per_s": indices / 1e6 / seconds,
    }
