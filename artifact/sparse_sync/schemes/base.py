"""A scheme is written once, for one rank, as a generator: it yields what it sends and is sent what it received.

Whoever runs the generators is the transport (`artifact.sparse_sync.links.transport`): in one process, which counts the
bytes of every rank, or over torch.distributed, which sends them.
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
    """Where a scheme runs: `rank` of `num_workers`, and the seed of its hash, which all ranks share."""

    rank: int
    num_workers: int
    seed: int = 0

    @property
    def others(self) -> tuple[int, ...]:
        """The other ranks, each rank starting with its next one."""
        return tuple((self.rank + step) % self.num_workers for step in range(1, self.num_workers))


Result: TypeAlias = Callable[[], SparseTensor]
"""The sum over all ranks, decoded when called: whoever counts bytes need not pay for every rank's."""
Steps: TypeAlias = Generator[Exchange, Received, Result]
