"""What a scheme costs: the bytes that it sends, predicted from statistics of the indices, and the scheme to choose.

A cost is in bytes of the busiest rank, summed over the phases; over the bandwidth it is the time (Zen, section 3.1).

Shape legend: n = workers, N = units a worker lists, U = units of the sum
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from artifact.sparse_sync.schemes import SCHEMES, Scheme
from artifact.sparse_sync.tensors.formats import BLOCK_ELEMENTS, HEADER_BYTES
from artifact.sparse_sync.tensors.partitions import partition
from artifact.sparse_sync.tensors.sparse_tensor import SparseTensor, union

CANDIDATES = ("ring", "agsparse-row", "sparcml-row", "omnireduce-cyclic", "balanced-coo-row", "zen-row", "zen")
"""Default candidates of `choose_scheme`; the other schemes are never cheaper by more than their imbalance."""


@dataclass(frozen=True)
class Load:
    """Load of the busiest rank under one kind of partition, over an even load.

    push: units that it sends or receives (the larger) on the way to the servers, over (n-1)/n of a worker's mean units
    pull: units that it sends on the way back, over (n-1)/n of the units of the sum
    """

    push: float
    pull: float


@dataclass(frozen=True)
class Granularity:
    """Statistics for one size of unit.

    num_units:     units of the dense tensor
    mean, largest: units that a worker lists
    stages:        units of the largest message in each phase of recursive doubling
    union:         units of the sum
    loads:         by kind of partition
    """

    num_units: int
    mean: float
    largest: int
    stages: tuple[int, ...]
    union: int
    loads: Mapping[str, Load]


@dataclass(frozen=True)
class Statistics:
    """What the cost model knows of the workers' tensors. `measure_statistics` makes it.

    width:       elements of a row
    value_bytes: bytes of one value
    """

    num_workers: int
    width: int
    value_bytes: int
    rows: Granularity
    elements: Granularity
    blocks: Granularity

    @property
    def density(self) -> float:
        """Mean density of the workers' tensors."""
        return self.rows.mean / self.rows.num_units

    @property
    def densification(self) -> float:
        """Density of the sum over the mean density, gamma^n."""
        return self.rows.union / self.rows.mean if self.rows.mean else 1.0


def measure_statistics(tensors: Sequence[SparseTensor], seed: int = 0) -> Statistics:
    """Statistics of one tensor a worker; only the indices are looked at. seed: of the hash"""
    first = tensors[0]
    num_blocks = -(-first.size // BLOCK_ELEMENTS)
    rows = [_support(tensor.index_N.cpu(), first.num_units) for tensor in tensors]
    elements = [_support(tensor.elements().index_N.cpu(), first.size) for tensor in tensors]
    blocks = [_support((tensor.index_N // BLOCK_ELEMENTS).unique_consecutive(), num_blocks) for tensor in elements]
    return Statistics(
        len(tensors),
        first.width,
        first.value_ND.dtype.itemsize,
        rows=_granularity(rows, ("hashed", "contiguous"), seed),
        elements=_granularity(elements, ("hashed", "contiguous"), seed),
        blocks=_granularity(blocks, ("contiguous", "modulo"), seed),
    )


def predict_bytes(statistics: Statistics, num_workers: int | None = None) -> dict[str, float]:
    """Bytes of the busiest rank for every scheme whose kind of partition has measured loads.

    num_workers: predict for this many workers; if it is not the measured number, unions are extrapolated
    """
    n = num_workers or statistics.num_workers
    if n != statistics.num_workers:
        statistics = _scaled(statistics, n)
    measured = (None, "contiguous", "block-cyclic", "hashed")
    return {name: _cost(scheme, statistics) for name, scheme in SCHEMES.items() if scheme.partition in measured}


def choose_scheme(
    statistics: Statistics,
    num_workers: int | None = None,
    bandwidth_gbps: float = 1.0,
    *,
    candidates: Sequence[str] = CANDIDATES,
    latency_s: float = 0.0,
    current: str | None = None,
    hysteresis: float = 0.0,
) -> str:
    """The candidate with the shortest predicted time.

    num_workers:    as in `predict_bytes`
    bandwidth_gbps: of a link, in 10^9 bits a second
    latency_s:      seconds that a phase adds; with 0 the choice does not depend on the bandwidth
    current:        scheme in use, kept unless another is faster by more than the fraction `hysteresis`
    Raises:         ValueError unless num_workers and bandwidth_gbps are positive, and hysteresis is in [0, 1)
    """
    n = statistics.num_workers if num_workers is None else num_workers
    if n < 1 or not bandwidth_gbps > 0 or not 0 <= hysteresis < 1:
        raise ValueError(
            "num_workers must be at least 1, bandwidth_gbps positive and hysteresis in [0, 1), got "
            f"{n}, {bandwidth_gbps}, {hysteresis}"
        )
    costs = predict_bytes(statistics, n)
    times = {name: costs[name] * 8 / (bandwidth_gbps * 1e9) + _phases(name, n) * latency_s for name in candidates}
    best = min(times, key=lambda name: times[name])
    if current in times and times[best] >= (1 - hysteresis) * times[current]:
        return current
    return best


def _cost(scheme: Scheme, statistics: Statistics) -> float:
    n, value_bytes = statistics.num_workers, statistics.value_bytes
    units = statistics.rows if scheme.rows else statistics.elements
    unit_bytes = value_bytes * (statistics.width if scheme.rows else 1)
    coo_bytes = unit_bytes + (4 if units.num_units < 1 << 31 else 8)
    family = scheme.name.removesuffix("-row")
    if family == "ring":
        return 2 * (n - 1) * -(-statistics.elements.num_units // n) * value_bytes
    if family == "agsparse":
        return (n - 1) * units.largest * coo_bytes
    if family == "sparcml":
        return sum(min(stage * coo_bytes, units.num_units * unit_bytes) for stage in units.stages)
    share = (n - 1) / n
    if family.startswith("omnireduce"):
        load = statistics.blocks.loads["modulo" if scheme.partition == "block-cyclic" else "contiguous"]
        block_bytes = HEADER_BYTES + BLOCK_ELEMENTS * value_bytes
        return share * block_bytes * (load.push * statistics.blocks.mean + load.pull * statistics.blocks.union)
    load = units.loads[str(scheme.partition)]
    push = share * load.push * units.mean * coo_bytes
    if family == "zen":
        return push + share * (load.pull * units.union * unit_bytes + units.num_units / 8)
    return push + share * load.pull * units.union * coo_bytes


def _phases(name: str, num_workers: int) -> int:
    """Number of phases of a scheme; a phase starts when the one before has ended."""
    if name == "ring":
        return 2 * (num_workers - 1)
    if name.startswith("sparcml"):
        return num_workers.bit_length() - 1 + (2 if num_workers & (num_workers - 1) else 0)
    return 1 if name.startswith("agsparse") else 2


def _support(index_N: Tensor, num_units: int) -> SparseTensor:
    """A tensor without values."""
    return SparseTensor(index_N, torch.empty(index_N.numel(), 0), num_units)


def _granularity(supports: Sequence[SparseTensor], kinds: Sequence[str], seed: int) -> Granularity:
    listed, together = [support.num_indices for support in supports], union(supports)
    return Granularity(
        num_units=supports[0].num_units,
        mean=float(np.mean(listed)),
        largest=max(listed),
        stages=_stages(supports),
        union=together.numel(),
        loads={kind: _load(supports, together, kind, seed) for kind in kinds},
    )


def _stages(supports: Sequence[SparseTensor]) -> tuple[int, ...]:
    """Largest message of each phase of `artifact.sparse_sync.schemes.centralized.sparcml`, in units."""
    n = len(supports)
    power = 1 << (n.bit_length() - 1)
    groups, stages = list(supports[:power]), []

    def merged(*group: SparseTensor) -> SparseTensor:
        return _support(union(group), group[0].num_units)

    if power < n:
        stages.append(max(support.num_indices for support in supports[power:]))
        groups[: n - power] = map(merged, groups, supports[power:])
    while len(groups) > 1:
        stages.append(max(group.num_indices for group in groups))
        groups = list(map(merged, groups[::2], groups[1::2]))
    return tuple([*stages, groups[0].num_indices] if power < n else stages)


def _load(supports: Sequence[SparseTensor], together: Tensor, kind: str, seed: int) -> Load:
    n = len(supports)
    if n == 1:
        return Load(1.0, 1.0)
    parts = partition(kind, supports[0].num_units, n, seed)
    sent_WP = np.stack([parts.count(support.index_N) for support in supports])
    np.fill_diagonal(sent_WP, 0)
    push = max(sent_WP.sum(axis=0).max(), sent_WP.sum(axis=1).max())
    pull = (n - 1) * parts.count(together).max()
    mean, share = float(np.mean([support.num_indices for support in supports])), (n - 1) / n
    return Load(push / (share * mean) if mean else 1.0, pull / (share * together.numel()) if together.numel() else 1.0)


def _scaled(statistics: Statistics, num_workers: int) -> Statistics:
    """The statistics of another number of workers: unions keep growing at their last rate."""

    def scale(units: Granularity) -> Granularity:
        curve = [units.mean, *units.stages[1:], float(units.union)]
        sizes = [float(1 << i) for i in range(len(curve) - 1)] + [float(statistics.num_workers)]
        if len(curve) < 2 or curve[-1] == 0:
            return units
        growth = np.log(curve[-1] / curve[-2]) / np.log(sizes[-1] / sizes[-2])

        def at(k: float) -> float:
            if k <= sizes[-1]:
                return float(np.exp(np.interp(np.log(k), np.log(sizes), np.log(np.maximum(curve, 1)))))
            return float(min(units.num_units, curve[-1] * (k / sizes[-1]) ** growth))

        stages = [round(at(1 << i)) for i in range((num_workers - 1).bit_length())]
        return replace(units, stages=tuple(stages), union=round(at(num_workers)))

    scaled: dict[str, Any] = {name: scale(getattr(statistics, name)) for name in ("rows", "elements", "blocks")}
    return replace(statistics, num_workers=num_workers, **scaled)
