"""A sparse gradient: the units of a dense tensor that are not zero, with their values.

A unit is one element, or one row of a table (a gradient of an embedding is sparse by row). Everything below works on
units, so that element and row granularity are one code.

Shape legend: N = non-zero units, D = width of a unit (1 for elements)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

Units: TypeAlias = tuple[Tensor, Tensor]
"""(position_N, value_ND)"""

SORT_COST = 32
"""Sorting an index costs about as much as passing over this many places."""
DENSE_COST = 4
"""From a listed unit in this many places on, adding into all places is the cheapest."""


@dataclass(frozen=True)
class SparseTensor:
    """Units of a dense tensor of `num_units * width` elements; a unit that is listed may hold zeros.

    index_N:   [N], int64, sorted, unique, in [0, num_units)
    value_ND:  [N, D], any floating type
    num_units: units of the dense tensor
    """

    index_N: Tensor
    value_ND: Tensor
    num_units: int

    @property
    def width(self) -> int:
        """Elements of a unit."""
        return self.value_ND.shape[1]

    @property
    def size(self) -> int:
        """Elements of the dense tensor, |G|."""
        return self.num_units * self.width

    @property
    def num_indices(self) -> int:
        """Units listed."""
        return self.index_N.numel()

    def validate(self) -> SparseTensor:
        """Itself, checked. Raises: ValueError naming the rule and the position that breaks it."""
        index_N, value_ND = self.index_N, self.value_ND
        if index_N.dtype != torch.int64 or index_N.dim() != 1:
            raise ValueError(f"indices must be int64 [N], got {index_N.dtype} {list(index_N.shape)}")
        if value_ND.dim() != 2 or len(value_ND) != len(index_N) or not value_ND.is_floating_point():
            raise ValueError(
                f"values must be floating [N, D] with N = {len(index_N)}, got {value_ND.dtype} {list(value_ND.shape)}"
            )
        if problem := index_problem(index_N, self.num_units):
            raise ValueError(problem)
        return self

    def to_dense(self) -> Tensor:
        """[num_units, D], zeros where no unit is listed."""
        dense = torch.zeros(self.num_units, self.width, dtype=self.value_ND.dtype, device=self.value_ND.device)
        dense[self.index_N] = self.value_ND
        return dense

    def elements(self) -> SparseTensor:
        """The same tensor with elements for units."""
        if self.width == 1:
            return self
        offset_D = torch.arange(self.width, device=self.index_N.device)
        index_N = (self.index_N[:, None] * self.width + offset_D).flatten()
        return SparseTensor(index_N, self.value_ND.reshape(-1, 1), self.size)

    def slice(self, start: int, stop: int) -> SparseTensor:
        """Units from `start` up to `stop`, counted from `start`."""
        first, last = torch.searchsorted(self.index_N, torch.tensor([start, stop], device=self.index_N.device)).tolist()
        return SparseTensor(self.index_N[first:last] - start, self.value_ND[first:last], stop - start)


def union(tensors: Sequence[SparseTensor]) -> Tensor:
    """Units that at least one of the tensors lists. [U], int64, sorted"""
    num_units = tensors[0].num_units
    if sum(tensor.num_indices for tensor in tensors) * 8 < num_units:
        return torch.unique(torch.cat([tensor.index_N for tensor in tensors]))
    listed = torch.zeros(num_units, dtype=torch.bool, device=tensors[0].index_N.device)
    for tensor in tensors:
        listed[tensor.index_N] = True
    return listed.nonzero().reshape(-1)


def sum_in_rank_order(parts: Sequence[Units], length: int) -> Units:
    """Sum of units that may be in several parts: ((first + second) + third) + ..., the same bits on every rank.

    parts:   (position_N, value_ND) of each rank; positions unique within one, in [0, length)
    Returns: (position_U, value_UD), sorted
    """
    total = sum(position_N.numel() for position_N, _ in parts)
    if total * SORT_COST < length:
        union_U = torch.unique(torch.cat([position_N for position_N, _ in parts]))
        places = [torch.searchsorted(union_U, position_N) for position_N, _ in parts]
        return union_U, _accumulated(places, parts, union_U.numel())
    listed = torch.zeros(length, dtype=torch.uint8, device=parts[0][0].device)
    for position_N, _ in parts:
        listed.index_fill_(0, position_N, 1)
    union_U = listed.nonzero().reshape(-1)
    if total * DENSE_COST > length:
        everywhere = _accumulated([position_N for position_N, _ in parts], parts, length)
        return union_U, everywhere.index_select(0, union_U)
    place = listed.cumsum(0, dtype=torch.int64).sub_(1)
    places = [place.index_select(0, position_N) for position_N, _ in parts]
    return union_U, _accumulated(places, parts, union_U.numel())


def _accumulated(places: Sequence[Tensor], parts: Sequence[Units], length: int) -> Tensor:
    """Every part's values added at its places, [length, D]; places are unique in a part, so nothing collides and every
    device gives the same bits."""
    first = parts[0][1]
    sums = torch.zeros(length, first.shape[1], dtype=first.dtype, device=first.device)
    for place_N, (_, value_ND) in zip(places, parts, strict=True):
        sums.index_add_(0, place_N, value_ND)
    return sums


def in_order(index_N: Tensor, value_ND: Tensor, num_units: int) -> SparseTensor:
    """A sparse tensor from unique indices in any order."""
    if bool((index_N[1:] > index_N[:-1]).all()):
        return SparseTensor(index_N, value_ND, num_units)
    if index_N.numel() * SORT_COST < num_units:
        index_N, order_N = torch.sort(index_N)
        return SparseTensor(index_N, value_ND[order_N], num_units)
    place = torch.full((num_units,), -1, dtype=torch.int64, device=index_N.device)
    place[index_N] = torch.arange(index_N.numel(), device=index_N.device)
    order_N = place[place >= 0]
    return SparseTensor(index_N[order_N], value_ND[order_N], num_units)


def from_coo(gradient: Tensor) -> SparseTensor:
    """Rows of a `torch.sparse_coo` gradient with one sparse dimension, such as that of an embedding.

    Rows listed more than once are summed in the order in which they are listed; rows of explicit zeros are kept.

    gradient: [rows, ...] with one sparse dimension
    Raises:   ValueError for more sparse dimensions than one
    """
    if gradient.layout != torch.sparse_coo or gradient.sparse_dim() != 1:
        raise ValueError(f"a gradient must have one sparse dimension, got {gradient.layout} {list(gradient.shape)}")
    gradient = gradient.coalesce()
    width = gradient.shape[1:].numel()
    return SparseTensor(gradient.indices()[0], gradient.values().reshape(-1, width), gradient.shape[0])


def as_sparse(gradient: Tensor) -> SparseTensor:
    """Any gradient: the rows of a sparse one, or the non-zero elements of a dense one of any shape, flattened."""
    if gradient.layout == torch.sparse_coo:
        return from_coo(gradient)
    flat = gradient.reshape(-1)
    index_N = flat.nonzero().reshape(-1)
    return SparseTensor(index_N, flat[index_N].reshape(-1, 1), flat.numel())


def index_problem(index_N: Tensor, num_units: int) -> str | None:
    """What is wrong with a list of indices, naming the first position; None if nothing is."""
    if index_N.numel() == 0:
        return None
    outside = (index_N < 0) | (index_N >= num_units)
    if bool(outside.any()):
        at = int(outside.nonzero()[0])
        return f"an index must be in [0, {num_units}), got {int(index_N[at])} at position {at}"
    step = index_N[1:] - index_N[:-1]
    if bool((step <= 0).any()):
        at = int((step <= 0).nonzero()[0]) + 1
        rule = "unique" if int(step[at - 1]) == 0 else "sorted"
        return f"indices must be {rule}, got {int(index_N[at])} after {int(index_N[at - 1])} at position {at}"
    return None
