"""Which server sums which unit: a map from the units of a tensor to n parts, with positions inside each part.

Every scheme of the parallelism kind (Zen, section 2) is the same exchange over one of these maps. The position of a
unit in its part is the number of its bit in a bitmap over the part.

Shape legend: N = units, P = partitions
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from artifact.sparse_sync.tensors import hashing
from artifact.sparse_sync.tensors.bijection import Bijection
from artifact.sparse_sync.tensors.formats import BLOCK_ELEMENTS
from artifact.sparse_sync.tensors.sparse_tensor import SparseTensor, union


@dataclass(frozen=True)
class Partition(ABC):
    """A map of `num_units` units to `num_parts` parts. Raises: ValueError if either is less than 1"""

    num_units: int
    num_parts: int
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_units < 1 or self.num_parts < 1:
            raise ValueError(f"num_units and num_parts must be at least 1, got {self.num_units} and {self.num_parts}")

    @abstractmethod
    def part_of(self, index_N: Tensor) -> Tensor:
        """Part of each unit. [N], int64 -> [N], int64"""

    @abstractmethod
    def part_size(self, part: int) -> int:
        """Units of a part."""

    @abstractmethod
    def position(self, part: int, index_N: Tensor) -> Tensor:
        """Place in the part of units that belong to it. [N], int64 -> [N], int64, in [0, part_size)"""

    @abstractmethod
    def index(self, part: int, position_N: Tensor) -> Tensor:
        """Unit at each place of a part: the inverse of `position`."""

    def split(self, index_N: Tensor) -> list[Tensor]:
        """For each part, the places in `index_N` of the units that belong to it, in order. P tensors, int64."""
        if index_N.device.type == "cpu":
            grouping = hashing.group_by(self.part_of(index_N).numpy(), self.num_parts)
            order_N, counts = torch.from_numpy(grouping.order_N), grouping.count_P.tolist()
        else:
            part_N = self.part_of(index_N)
            order_N = torch.argsort(part_N, stable=True)
            counts = torch.bincount(part_N, minlength=self.num_parts).tolist()
        return list(order_N.split(counts))

    def count(self, index_N: Tensor) -> np.ndarray:
        """[P], int64: units of each part."""
        return torch.bincount(self.part_of(index_N), minlength=self.num_parts).cpu().numpy()


@dataclass(frozen=True)
class Contiguous(Partition):
    """Stretches of ceil(num_units / n) units, as in a sharded parameter server: as skewed as the indices."""

    @cached_property
    def _stride(self) -> int:
        return -(-self.num_units // self.num_parts)

    def part_of(self, index_N: Tensor) -> Tensor:
        return index_N // self._stride

    def part_size(self, part: int) -> int:
        return max(0, min(self._stride, self.num_units - part * self._stride))

    def position(self, part: int, index_N: Tensor) -> Tensor:
        return index_N - part * self._stride

    def index(self, part: int, position_N: Tensor) -> Tensor:
        return position_N + part * self._stride


@dataclass(frozen=True)
class BlockCyclic(Partition):
    """Blocks of 256 units, block b to part b mod n: how OmniReduce's public code stripes them over its aggregators."""

    block: ClassVar[int] = BLOCK_ELEMENTS

    def part_of(self, index_N: Tensor) -> Tensor:
        return index_N // self.block % self.num_parts

    def part_size(self, part: int) -> int:
        blocks, rest = divmod(self.num_units, self.block)
        last = rest if blocks % self.num_parts == part else 0
        return (blocks - part + self.num_parts - 1) // self.num_parts * self.block + last

    def position(self, part: int, index_N: Tensor) -> Tensor:
        return index_N // (self.block * self.num_parts) * self.block + index_N % self.block

    def index(self, part: int, position_N: Tensor) -> Tensor:
        block_N = position_N // self.block * self.num_parts + part
        return block_N * self.block + position_N % self.block


@dataclass(frozen=True)
class Modulo(BlockCyclic):
    """Unit i to part i mod n: even on most supports, n-fold uneven on one with a stride of n."""

    block: ClassVar[int] = 1

    def part_of(self, index_N: Tensor) -> Tensor:
        return index_N % self.num_parts  # without the division by 1


@dataclass(frozen=True)
class Hashed(Partition):
    """Parts by the hash h0 (Zen, Algorithm 1), with the sorted list of every part's units (Algorithm 2).

    All lists together hold each unit once: 4 bytes a unit, or 8 from 2**31 units on.
    """

    def part_of(self, index_N: Tensor) -> Tensor:
        return hashing.partition_of(index_N, self.num_parts, self.seed)

    def part_size(self, part: int) -> int:
        return self._tables[part].numel()

    def position(self, part: int, index_N: Tensor) -> Tensor:
        table = self._on(part, index_N.device)
        return torch.searchsorted(table, index_N.to(table.dtype))

    def index(self, part: int, position_N: Tensor) -> Tensor:
        return self._on(part, position_N.device)[position_N].to(torch.int64)

    @property
    def table_bytes(self) -> int:
        """Bytes of all lists together, on every node."""
        return sum(table.numel() * table.element_size() for table in self._tables)

    @cached_property
    def _tables(self) -> list[Tensor]:
        order, counts = hashing.tables(self.num_units, self.num_parts, self.seed)
        return list(torch.from_numpy(order).split(counts.tolist()))

    def _on(self, part: int, device: torch.device) -> Tensor:
        if self._tables[part].device != device:
            self._tables[part] = self._tables[part].to(device)
        return self._tables[part]


@dataclass(frozen=True)
class Bijective(Contiguous):
    """Stretches of a keyed permutation (`tensors.bijection`): as balanced as a hash, and without tables."""

    @cached_property
    def _bijection(self) -> Bijection:
        return Bijection(self.num_units, self.seed)

    def part_of(self, index_N: Tensor) -> Tensor:
        return super().part_of(self._bijection.forward(index_N))

    def position(self, part: int, index_N: Tensor) -> Tensor:
        return super().position(part, self._bijection.forward(index_N))

    def index(self, part: int, position_N: Tensor) -> Tensor:
        return self._bijection.inverse(super().index(part, position_N))


PARTITIONS: dict[str, Callable[..., Partition]] = {
    "contiguous": Contiguous,
    "modulo": Modulo,
    "block-cyclic": BlockCyclic,
    "hashed": Hashed,
    "bijection": Bijective,
}
"""Kinds of partition by name."""


@lru_cache(maxsize=32)
def partition(kind: str, num_units: int, num_parts: int, seed: int = 0) -> Partition:
    """The partition of that kind. Equal arguments give the same object, so that its tables are made once.

    Raises: ValueError unless `kind` is one of PARTITIONS and both numbers are at least 1
    """
    if kind not in PARTITIONS:
        raise ValueError(f"a partition must be one of {', '.join(PARTITIONS)}, got {kind!r}")
    return PARTITIONS[kind](num_units, num_parts, seed)


def push_imbalance(tensors: Sequence[SparseTensor], parts: Partition) -> float:
    """max over workers i and servers j of n |I_i^j| / |I_i| (Zen, definition 8); 1 if all are empty."""
    return max(hashing.imbalance(parts.count(tensor.index_N)) for tensor in tensors)


def pull_imbalance(tensors: Sequence[SparseTensor], parts: Partition) -> float:
    """max over servers j of n |I^j| / |I|, I the union of all workers' units (Zen, definition 8); 1 if it is empty."""
    return hashing.imbalance(parts.count(union(tensors)))
