"""Which partition an index belongs to: balanced for any skew, and the same on every worker.

`partition_of` is the shared first-level hash, h0 of Zen's Algorithm 1. Two ways of grouping a worker's indices by it
give the same partition:

- `counting_sort`: one pass of the hash and a counting sort. Stable, without collisions. The best way on a CPU.
- `hierarchical`: Algorithm 1 itself, k second-level hashes into slots of a memory, and a serial region for indices that
  collide k times. It is a GPU's algorithm (`tensors.triton_hashing`); here it is run one index at a time.

`strawman` is the paper's Algorithm 3, one hash and no collision handling, which loses gradients.

Shape legend: N = indices, P = partitions, S = slots of a partition
"""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

MASK = 0xFFFFFFFF
MULTIPLIERS = (0x85EBCA6B, 0xC2B2AE35, 0x9E3779B1)
"""Two of MurmurHash3's 32-bit finaliser, and 2**32 over the golden ratio."""

_M1, _M2, _GOLDEN = (np.uint64(multiplier) for multiplier in MULTIPLIERS)
_MASK64 = np.uint64(MASK)

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Grouping:
    """Indices by partition.

    order_N:  [N - lost], int64, positions in the indices that were given, partition after partition
    count_P:  [P], int64, indices in each partition
    serial:   indices that went to the serial region (Algorithm 1 only)
    lost:     indices that are in no partition (the strawman only)
    grown:    how often the memory had to grow to keep every index (Algorithm 1 only)
    """

    order_N: Integers
    count_P: Integers
    serial: int = 0
    lost: int = 0
    grown: int = 0


def imbalance(count_P: Integers) -> float:
    """Largest partition over the mean, in [1, P]; 1 if all are empty. Zen, definition 8, for one worker."""
    total = int(np.sum(count_P))
    return float(np.max(count_P)) * len(count_P) / total if total else 1.0


def partition_of(index_N: Tensor, num_partitions: int, seed: int = 0) -> Tensor:
    """Partition of each index by h0, on the device of the indices.

    index_N: [N], int64, not negative
    Returns: [N], int64, in [0, num_partitions)
    Source:  Zen, Algorithm 1, line 3
    Raises:  ValueError unless num_partitions is in [1, 65536]
    """
    if index_N.device.type == "cpu":
        return torch.from_numpy(_parts(index_N.contiguous().numpy(), num_partitions, seed).astype(np.int64))
    _check(num_partitions)
    hashed = finalise((index_N & MASK) ^ finalise((index_N >> 32) * MULTIPLIERS[2] & MASK) ^ mixed_seed(seed))
    return (hashed * num_partitions) >> 32


def finalise(value: Tensor) -> Tensor:
    """MurmurHash3's 32-bit finaliser on int64 tensors that hold 32 bits: 0 stays 0, every other bit avalanches."""
    value = (value ^ (value >> 16)) * MULTIPLIERS[0] & MASK
    value = (value ^ (value >> 13)) * MULTIPLIERS[1] & MASK
    return value ^ (value >> 16)


def mixed_seed(seed: int, level: int = 0) -> int:
    """32 bits from a seed and a level of Algorithm 1: h0 is level 0, its second-level hashes are 1 to k."""
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}")
    state = np.random.SeedSequence([seed, level]).generate_state(1, dtype=np.uint32)
    return int(state[0])


def counting_sort(index_N: Integers, num_partitions: int, seed: int = 0) -> Grouping:
    """Group by h0 with one pass and a counting sort. Stable: sorted indices stay sorted in each partition.

    index_N: [N], int64, not negative
    Raises:  ValueError unless num_partitions is in [1, 65536]
    """
    return Grouping(*_group(_parts(index_N, num_partitions, seed), num_partitions))


def tables(num_units: int, num_partitions: int, seed: int = 0) -> tuple[NDArray, Integers]:
    """The sorted indices of every partition, one partition after the other, and their number (Zen, Algorithm 2).

    Returns: [num_units], int32 (int64 from 2**31 units on), and [P], int64
    """
    _check(num_partitions)
    order = np.empty(num_units, dtype=np.int32 if num_units < 1 << 31 else np.int64)
    return order, _tables(order, num_partitions, np.uint64(mixed_seed(seed)))


def group_by(part_N: Integers, num_partitions: int) -> Grouping:
    """Group by given partitions, stable. part_N: [N], in [0, num_partitions)"""
    _check(num_partitions)
    return Grouping(*_group(part_N.astype(np.uint16), num_partitions))


def hierarchical(
    index_N: Integers,
    num_partitions: int,
    seed: int = 0,
    *,
    num_hashes: int = 3,
    slots_per_index: float = 2.0,
    serial_share: float = 0.1,
) -> Grouping:
    """Group by Zen's Algorithm 1: the partitions of `counting_sort`, with the indices of a partition in slot order.

    The published memory overflows in the paper's own sweep (one hash at two slots an index, any at one). Here the
    serial region grows, `grown` counts how often, and nothing is lost.

    num_hashes:      k, second-level hashes
    slots_per_index: r1 / |I|, parallel slots of all partitions together
    serial_share:    r2 / r1, serial slots before growing
    Raises:          ValueError as `memory_plan`
    """
    plan = memory_plan(len(index_N), num_partitions, seed, num_hashes, slots_per_index, serial_share)
    memory_PS, serial, grown = _hierarchical(index_N, num_partitions, np.array(plan[0], np.uint64), *plan[1:])
    taken_PS = memory_PS != -1
    return Grouping(memory_PS[taken_PS], taken_PS.sum(axis=1), serial=int(serial), grown=int(grown))


def memory_plan(
    num_indices: int, num_partitions: int, seed: int, num_hashes: int, slots_per_index: float, serial_share: float
) -> tuple[list[int], int, int]:
    """Algorithm 1's seeds, h0 first, and the parallel and serial slots of each partition.

    Raises: ValueError unless num_partitions is in [1, 65536], num_hashes >= 1, slots_per_index > 0, serial_share >= 0
    """
    _check(num_partitions)
    if num_hashes < 1 or slots_per_index <= 0 or serial_share < 0:
        raise ValueError(
            "num_hashes must be at least 1, slots_per_index positive and serial_share not negative, got "
            f"{num_hashes}, {slots_per_index}, {serial_share}"
        )
    slots = max(1, round(slots_per_index * num_indices / num_partitions))
    seeds = [mixed_seed(seed, level) for level in range(num_hashes + 1)]
    return seeds, slots, max(1, round(serial_share * slots))


def strawman(index_N: Integers, num_partitions: int, seed: int = 0, *, slots_per_index: float = 2.0) -> Grouping:
    """Group by Zen's Algorithm 3: one hash, the last write to a slot wins, the others are lost.

    slots_per_index: slots of all partitions together over |I|. With a = 1 / slots_per_index, 1 - (1 - exp(-a)) / a of
                     the indices are lost
    """
    _check(num_partitions)
    slots = max(1, round(slots_per_index * len(index_N) / num_partitions))
    memory_PS = _strawman(index_N, num_partitions, np.uint64(mixed_seed(seed)), slots).reshape(num_partitions, slots)
    taken_PS = memory_PS != -1
    return Grouping(memory_PS[taken_PS], taken_PS.sum(axis=1), lost=len(index_N) - int(taken_PS.sum()))


def _parts(index_N: Integers, num_partitions: int, seed: int) -> NDArray[np.uint16]:
    _check(num_partitions)
    part_N = np.empty(len(index_N), dtype=np.uint16)
    _partitions(index_N, num_partitions, np.uint64(mixed_seed(seed)), part_N)
    return part_N


def _check(num_partitions: int) -> None:
    if not 1 <= num_partitions <= 1 << 16:
        raise ValueError(f"num_partitions must be in [1, 65536], got {num_partitions}")


@numba.njit(inline="always", cache=True)
def _finalise(value):
    # Masks keep 32 bits: numba computes uint32 products in 64.
    value = ((value ^ (value >> np.uint64(16))) * _M1) & _MASK64
    value = ((value ^ (value >> np.uint64(13))) * _M2) & _MASK64
    return value ^ (value >> np.uint64(16))


@numba.njit(inline="always", cache=True)
def _hash(index, seed):
    low = np.uint64(index) & _MASK64
    high = np.uint64(index) >> np.uint64(32)
    return _finalise(low ^ _finalise((high * _GOLDEN) & _MASK64) ^ seed)


@numba.njit(nogil=True, cache=True)
def _partitions(index_N, num_partitions, seed, part_N):
    parts = np.uint64(num_partitions)
    if len(index_N) and index_N.max() <= _MASK64:  # the upper half hashes to 0: leave it out of the loop
        for i in range(len(index_N)):
            part_N[i] = np.uint16((_finalise(np.uint64(index_N[i]) ^ seed) * parts) >> np.uint64(32))
    else:
        for i in range(len(index_N)):
            part_N[i] = np.uint16((_hash(index_N[i], seed) * parts) >> np.uint64(32))


@numba.njit(nogil=True, cache=True)
def _group(part_N, num_partitions):
    count_P = np.zeros(num_partitions, dtype=np.int64)
    for part in part_N:
        count_P[part] += 1
    start_P = np.cumsum(count_P) - count_P
    order_N = np.empty(len(part_N), dtype=np.int64)
    for i in range(len(part_N)):
        part = part_N[i]
        order_N[start_P[part]] = i
        start_P[part] += 1
    return order_N, count_P


@numba.njit(nogil=True, cache=True)
def _tables(order, num_partitions, seed):
    parts = np.uint64(num_partitions)
    count_P = np.zeros(num_partitions, dtype=np.int64)
    for i in range(len(order)):
        count_P[np.int64((_hash(i, seed) * parts) >> np.uint64(32))] += 1
    start_P = np.cumsum(count_P) - count_P
    for i in range(len(order)):
        part = np.int64((_hash(i, seed) * parts) >> np.uint64(32))
        order[start_P[part]] = i
        start_P[part] += 1
    return count_P


@numba.njit(nogil=True, cache=True)
def _hierarchical(index_N, num_partitions, seeds, slots, serial_slots):
    memory = np.full((num_partitions, slots + serial_slots), -1, dtype=np.int64)  # parallel slots, then serial ones
    serial_count_P = np.zeros(num_partitions, dtype=np.int64)
    grown = 0
    for i in range(len(index_N)):
        part = np.int64((_hash(index_N[i], seeds[0]) * np.uint64(num_partitions)) >> np.uint64(32))
        placed = False
        for level in range(1, len(seeds)):
            slot = np.int64((_hash(index_N[i], seeds[level]) * np.uint64(slots)) >> np.uint64(32))
            if memory[part, slot] == -1:
                memory[part, slot] = i
                placed = True
                break
        if not placed:
            if slots + serial_count_P[part] == memory.shape[1]:
                larger = np.full((num_partitions, 2 * memory.shape[1] - slots), -1, dtype=np.int64)
                larger[:, : memory.shape[1]] = memory
                memory = larger
                grown += 1
            memory[part, slots + serial_count_P[part]] = i
            serial_count_P[part] += 1
    return memory, serial_count_P.sum(), grown


@numba.njit(nogil=True, cache=True)
def _strawman(index_N, num_partitions, seed, slots):
    memory = np.full(num_partitions * slots, -1, dtype=np.int64)
    for i in range(len(index_N)):
        memory[np.int64((_hash(index_N[i], seed) * np.uint64(num_partitions * slots)) >> np.uint64(32))] = i
    return memory
