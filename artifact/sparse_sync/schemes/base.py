"""What schemes are made of: a scheme is a generator that runs on one rank, yields messages and receives those for it.

The transport (`artifact.sparse_sync.links.transport`) runs the generators: those of all ranks in one process, to count
their bytes, or one rank's over torch.distributed.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor

from artifact.sparse_sync.tensors.sparse_tensor import SparseTensor

Message: TypeAlias = Tensor
"""[B], uint8."""
Received: TypeAlias = dict[int, Message]
"""Source -> message."""


@dataclass(frozen=True)
class Exchange:
    """One phase of one rank: a message to each destination, and the ranks that send one to it."""

    send: dict[int, Message]
    sources: tuple[int, ...]


@dataclass(frozen=True)
class RankContext:
    """One rank's view of a run: its number, the number of workers, and the hash's seed, which all ranks share."""

    rank: int
    num_workers: int
    seed: int = 0

    @property
    def others(self) -> tuple[int, ...]:
        """The other ranks in the order of the ring, from the next one on."""
        return tuple((self.rank + step) % self.num_workers for step in range(1, self.num_workers))


Result: TypeAlias = Callable[[], SparseTensor]
"""The sum over all ranks, decoded when called: to count bytes, not every rank's needs to be decoded."""
Steps: TypeAlias = Generator[Exchange, Received, Result]
