"""Synchronisation schemes by name: Zen and what it is compared with (Zen, table 3 and section 5)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

from artifact.sparse_sync.schemes.balanced import parallelism
from artifact.sparse_sync.schemes.base import Exchange, RankContext, Steps
from artifact.sparse_sync.schemes.centralized import agsparse, sparcml
from artifact.sparse_sync.schemes.dense import ring
from artifact.sparse_sync.tensors.formats import Bitmap, Blocks, Coo
from artifact.sparse_sync.tensors.sparse_tensor import SparseTensor

__all__ = ["COMPARED", "SCHEMES", "Exchange", "RankContext", "Scheme", "scheme"]


Function: TypeAlias = Callable[[RankContext, SparseTensor], Steps]
"""A scheme for one rank (see `artifact.sparse_sync.schemes.base`)."""


@dataclass(frozen=True)
class Scheme:
    """A way to synchronise, and the units that it sends.

    label:         name in figures
    partition:     kind of partition of a parallelism scheme, None for others
    rows:          whole rows are sent; otherwise every element of a row has its own index
    in_rank_order: sums are (((first + second) + third) + ...), otherwise in the order of the scheme's stages
    """

    name: str
    label: str
    function: Function
    partition: str | None = None
    rows: bool = False
    in_rank_order: bool = True

    def steps(self, context: RankContext, tensor: SparseTensor) -> Steps:
        """The generator of one rank. tensor: in any granularity"""
        return self.function(context, self.units(tensor))

    def units(self, tensor: SparseTensor) -> SparseTensor:
        """`tensor` in the granularity of this scheme."""
        return tensor if self.rows else tensor.elements()


def _served(kind: str, push: type, pull: type) -> Function:
    return partial(parallelism, kind=kind, push=push, pull=pull)


def _both(
    name: str, label: str, function: Function, partition: str | None = None, ordered: bool = True
) -> list[Scheme]:
    """The scheme on elements, as in the paper's costs, and on rows."""
    return [
        Scheme(name, label, function, partition, in_rank_order=ordered),
        Scheme(f"{name}-row", f"{label} (rows)", function, partition, rows=True, in_rank_order=ordered),
    ]


SCHEMES: dict[str, Scheme] = {
    entry.name: entry
    for entry in [
        Scheme("ring", "AllReduce", ring, in_rank_order=False),
        *_both("agsparse", "AGsparse", agsparse),
        *_both("sparcml", "SparCML", sparcml, ordered=False),
        Scheme("omnireduce", "OmniReduce", _served("contiguous", Blocks, Blocks), "contiguous"),
        Scheme("omnireduce-cyclic", "OmniReduce (cyclic)", _served("block-cyclic", Blocks, Blocks), "block-cyclic"),
        *_both("ps", "Sparse PS", _served("contiguous", Coo, Coo), "contiguous"),
        *_both("balanced-coo", "Balanced Parallelism", _served("hashed", Coo, Coo), "hashed"),
        *_both("zen", "Zen", _served("hashed", Coo, Bitmap), "hashed"),
        *_both("zen-bijection", "Zen, table-free", _served("bijection", Coo, Bitmap), "bijection"),
        *_both("zen-modulo", "Modulo", _served("modulo", Coo, Bitmap), "modulo"),
    ]
}
"""Every scheme by name; a `-row` scheme sends rows of a table instead of their elements."""

COMPARED = ("ring", "agsparse", "sparcml", "omnireduce", "omnireduce-cyclic", "ps", "balanced-coo", "zen", "zen-row")
"""What `--scheme all` runs."""


def scheme(name: str) -> Scheme:
    """The scheme of that name. Raises: ValueError if there is none"""
    if name not in SCHEMES:
        raise ValueError(f"a scheme must be one of {', '.join(SCHEMES)}, got {name!r}")
    return SCHEMES[name]
