"""The dense ring all-reduce: ring, incremental aggregation, parallelism (Zen, table 3)."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from artifact.sparse_sync.schemes.base import Exchange, Message, RankContext, Steps
from artifact.sparse_sync.tensors.formats import as_bytes, from_bytes
from artifact.sparse_sync.tensors.sparse_tensor import SparseTensor


def ring(context: RankContext, tensor: SparseTensor) -> Steps:
    """Reduce-scatter and all-gather around a ring in n parts of ceil(|G| / n) units.

    Part p is summed in the order p, p + 1, ..., p - 1 of the ranks: the same on every rank, but not rank order. A rank
    holds one part at a time until the sums arrive, which it forwards unchanged.
    """
    n, rank = context.num_workers, context.rank
    following, previous = (rank + 1) % n, (rank - 1) % n
    carried = as_bytes(_part(tensor, rank, n))
    for phase in range(n - 1):
        received = yield Exchange({following: carried}, (previous,))
        own = _part(tensor, (rank - phase - 1) % n, n)
        carried = as_bytes(from_bytes(received[previous], own.dtype).reshape(own.shape) + own)
    parts: dict[int, Message] = {following: carried}
    for phase in range(n - 1):
        received = yield Exchange({following: carried}, (previous,))
        carried = parts[(rank - phase) % n] = received[previous]

    def result() -> SparseTensor:
        values = torch.cat([parts[part] for part in range(n)]).view(tensor.value_ND.dtype)
        everything = _everything(tensor.num_units, tensor.value_ND.device)
        return SparseTensor(everything, values.reshape(-1, tensor.width), tensor.num_units)

    return result


@lru_cache(maxsize=1)
def _everything(num_units: int, device: torch.device) -> Tensor:
    """Every index, one copy for all ranks: it has twice the size of the tensor."""
    return torch.arange(num_units, device=device)


def _part(tensor: SparseTensor, part: int, n: int) -> Tensor:
    """A part of the dense tensor, [units, D]."""
    stride = -(-tensor.num_units // n)
    start, stop = min(part * stride, tensor.num_units), min((part + 1) * stride, tensor.num_units)
    return tensor.slice(start, stop).to_dense()
