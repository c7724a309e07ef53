"""The dense ring all-reduce: ring, incremental aggregation, parallelism (Zen, table 3)."""

from __future__ import annotations

import torch

from artifact.sparse_sync.formats import as_bytes, from_bytes
from artifact.sparse_sync.schemes.base import Exchange, Place, Result, Steps
from artifact.sparse_sync.tensor import SparseTensor


def ring(place: Place, tensor: SparseTensor) -> Steps:
    """Reduce-scatter and all-gather around a ring in n parts of ceil(|G| / n) elements.

    Part p is summed in the order p, p + 1, ..., p - 1 of the ranks: the same on every rank, but not rank order.
    """
    n, rank, dtype = place.num_workers, place.rank, tensor.value_ND.dtype
    dense = tensor.to_dense().reshape(-1)
    parts = list(dense.split(-(-dense.numel() // n)))
    parts += [dense[:0]] * (n - len(parts))
    following, previous = (rank + 1) % n, (rank - 1) % n
    for phase in range(2 * (n - 1)):
        message = as_bytes(parts[(rank - phase) % n])
        received = yield Exchange({following: message}, (previous,))
        part = (rank - phase - 1) % n
        arrived = from_bytes(received[previous], dtype)
        parts[part] = arrived + parts[part] if phase < n - 1 else arrived
    return _everything(parts, tensor)


def _everything(parts: list[torch.Tensor], tensor: SparseTensor) -> Result:
    def result() -> SparseTensor:
        value_ND = torch.cat(parts).reshape(tensor.num_units, tensor.width)
        return SparseTensor(torch.arange(tensor.num_units, device=value_ND.device), value_ND, tensor.num_units)

    return result
