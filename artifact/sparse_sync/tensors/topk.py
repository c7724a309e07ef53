"""Top-k sparsification with error feedback."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from artifact.sparse_sync.tensors.sparse_tensor import SparseTensor


@dataclass
class TopK:
    """Selects the largest elements of one worker's gradient; the others are added to its next gradient.

    Source: DGC, as in Zen, section 3.5, but exact instead of by a sampled threshold, and without momentum correction
    Raises: ValueError if density is not in (0, 1]
    """

    density: float
    residual: Tensor | None = None
    """[size], sum of the elements that have not been sent."""

    def __post_init__(self) -> None:
        if not 0 < self.density <= 1:
            raise ValueError(f"density must be in (0, 1], got {self.density}")

    def select(self, flat_gradient: Tensor) -> SparseTensor:
        """The k = max(1, round(density * size)) elements of largest magnitude of gradient [size] plus residual."""
        total = flat_gradient.detach() + (0 if self.residual is None else self.residual)
        k = max(1, round(self.density * total.numel()))
        index_N = torch.topk(total.abs(), k, sorted=False).indices.sort().values
        self.residual = total.index_fill(0, index_N, 0)
        return SparseTensor(index_N, total[index_N, None], total.numel())
