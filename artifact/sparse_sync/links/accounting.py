"""One scheme on one input, every rank in this process: what it sends, how evenly, and whether its sum is exact."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from artifact.sparse_sync.links.transport import Traffic, run_counted
from artifact.sparse_sync.schemes import Scheme, scheme
from artifact.sparse_sync.schemes.base import Result
from artifact.sparse_sync.tensors.partitions import partition, pull_imbalance, push_imbalance
from artifact.sparse_sync.tensors.sparse_tensor import SparseTensor

STRETCH = 1 << 24
"""Units that are compared at a time: bounds the memory for a tensor of the paper's size."""


@dataclass(frozen=True)
class SyncReport:
    """A scheme on one input. Bytes are payload only; `seconds` and the speed-up are of the busiest rank's link.

    push_imbalance, pull_imbalance: Zen, definition 8, in the units of the scheme; None if it has no partition
    exact: every rank holds the same bits, and they are the sum: bit for bit the one in rank order, or, if the scheme
           adds in the order of its stages, within the rounding of one addition per worker
    """

    scheme: str
    label: str
    workers: int
    max_sent_bytes: int
    max_received_bytes: int
    total_bytes: int
    seconds: float
    push_imbalance: float | None
    pull_imbalance: float | None
    speedup_over_ring: float
    exact: bool

    def as_dict(self) -> dict[str, Any]:
        """Field names to plain values."""
        return asdict(self)


def synchronise(name: str, tensors: Sequence[SparseTensor], *, bandwidth_gbps: float, seed: int = 0) -> SyncReport:
    """Run a scheme over one tensor per worker, count its bytes and check its sum on every rank.

    bandwidth_gbps: of a link, in 10^9 bits a second
    seed:           of the hash
    Raises:         ValueError for an unknown scheme, a bandwidth that is not positive, tensors that differ in size or
                    that break the rules of `SparseTensor`
    """
    chosen = scheme(name)
    results, traffic = run_counted(chosen, [tensor.validate() for tensor in tensors], seed)
    units = [chosen.units(tensor) for tensor in tensors]
    push = pull = None
    if chosen.partition is not None:
        parts = partition(chosen.partition, units[0].num_units, len(units), seed)
        push, pull = push_imbalance(units, parts), pull_imbalance(units, parts)
    seconds = traffic.seconds(bandwidth_gbps)
    ring = ring_bytes(tensors[0], len(tensors)) * 8 / (bandwidth_gbps * 1e9)
    return SyncReport(
        scheme=name,
        label=chosen.label,
        workers=len(tensors),
        max_sent_bytes=traffic.max_sent_bytes,
        max_received_bytes=traffic.max_received_bytes,
        total_bytes=traffic.total_bytes,
        seconds=seconds,
        push_imbalance=push,
        pull_imbalance=pull,
        speedup_over_ring=ring / seconds if seconds else 1.0,
        exact=is_exact(chosen, units, results),
    )


def traffic_of(name: str, tensors: Sequence[SparseTensor], seed: int = 0) -> Traffic:
    """Bytes that a scheme sends, without a check of its sum."""
    return run_counted(scheme(name), tensors, seed)[1]


def ring_bytes(tensor: SparseTensor, num_workers: int) -> int:
    """Bytes of the busiest rank of the dense ring: 2 (n - 1) parts of ceil(|G| / n) elements."""
    return 2 * (num_workers - 1) * -(-tensor.size // num_workers) * tensor.value_ND.dtype.itemsize


def is_exact(chosen: Scheme, units: Sequence[SparseTensor], results: Sequence[Result]) -> bool:
    """Whether every rank has the same bits, and they are the sum (see `SyncReport.exact`)."""
    first = results[0]()
    for result in results[1:]:
        other = result()
        if not (torch.equal(first.index_N, other.index_N) and torch.equal(first.value_ND, other.value_ND)):
            return False
    rounding = 0.0 if chosen.in_rank_order else len(units) * torch.finfo(first.value_ND.dtype).eps
    stretches = [(start, min(start + STRETCH, first.num_units)) for start in range(0, first.num_units, STRETCH)]
    return all(
        _is_sum([tensor.slice(*stretch) for tensor in units], first.slice(*stretch).to_dense(), rounding)
        for stretch in stretches
    )


def _is_sum(units: Sequence[SparseTensor], found: Tensor, rounding: float) -> bool:
    """Whether `found` is the rank-ordered sum, or, with a `rounding`, within that share of the sum of magnitudes."""
    dtype = torch.float64 if rounding else found.dtype
    expected, magnitude = torch.zeros_like(found, dtype=dtype), torch.zeros_like(found, dtype=dtype)
    for tensor in units:
        value_ND = tensor.value_ND.to(dtype)
        expected.index_add_(0, tensor.index_N, value_ND)
        if rounding:
            magnitude.index_add_(0, tensor.index_N, value_ND.abs())
    if not rounding:
        return torch.equal(found, expected)
    return bool(((found.to(dtype) - expected).abs() <= rounding * magnitude).all())
