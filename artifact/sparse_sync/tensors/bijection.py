"""A keyed permutation of [0, size) that needs no table: balanced parts whose positions can be decoded by arithmetic.

Zen's hash bitmap needs, for every partition, the sorted list of its indices: one integer per parameter on every node.
A permutation whose inverse is computed needs none: partition j is the j-th stretch of the permuted order,
its size is known exactly, and a position in it decodes to an index.

The permutation is four rounds of (add a key, multiply by an odd number, xor the upper half into the lower), each of
which can be undone modulo a power of two; values at or above `size` are sent through again (cycle walking).

Shape legend: N = indices
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numba
import numpy as np
import torch
from torch import Tensor

ROUNDS = 4


@dataclass(frozen=True)
class Bijection:
    """A permutation of [0, size) chosen by `seed`. Raises: ValueError unless size is in [1, 2**62] and seed >= 0."""

    size: int
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.size <= 1 << 62:
            raise ValueError(f"size must be in [1, 2**62], got {self.size}")
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, got {self.seed}")

    def forward(self, index_N: Tensor) -> Tensor:
        """Position of each index in the permuted order. [N], int64, in [0, size) -> the same"""
        return self._apply(index_N, inverse=False)

    def inverse(self, position_N: Tensor) -> Tensor:
        """Index at each position: the inverse of `forward`. [N], int64, in [0, size) -> the same"""
        return self._apply(position_N, inverse=True)

    def _apply(self, value_N: Tensor, *, inverse: bool) -> Tensor:
        out_N = np.empty(value_N.numel(), dtype=np.int64)
        given_N = value_N.cpu().contiguous().numpy()
        _walk(given_N, np.uint64(self.size), np.uint64(self._bits), self._keys, inverse, out_N)
        return torch.from_numpy(out_N).to(value_N.device)

    @cached_property
    def _bits(self) -> int:
        return max(1, (self.size - 1).bit_length())

    @cached_property
    def _keys(self) -> np.ndarray:
        """[rounds, 3]: what is added, the odd multiplier, and its inverse modulo 2**bits."""
        drawn = np.random.SeedSequence([self.seed, self.size]).generate_state(2 * ROUNDS, dtype=np.uint64)
        modulus = 1 << self._bits
        odd = [int(number) % modulus | 1 for number in drawn[ROUNDS:]]
        added = [int(number) % modulus for number in drawn[:ROUNDS]]
        return np.array([[a, m, pow(m, -1, modulus)] for a, m in zip(added, odd, strict=True)], dtype=np.uint64)


@numba.njit(inline="always", cache=True)
def _once(value, mask, shift, keys):
    for i in range(keys.shape[0]):
        value = ((value + keys[i, 0]) * keys[i, 1]) & mask
        value ^= value >> shift
    return value


@numba.njit(inline="always", cache=True)
def _once_back(value, mask, shift, keys):
    for i in range(keys.shape[0] - 1, -1, -1):
        value ^= value >> shift  # twice the shift is at least all bits, so this undoes itself
        value = ((value * keys[i, 2]) - keys[i, 0]) & mask
    return value


@numba.njit(nogil=True, cache=True)
def _walk(value_N, size, bits, keys, inverse, out_N):
    mask, shift = (np.uint64(1) << bits) - np.uint64(1), (bits + np.uint64(1)) // np.uint64(2)
    for i in range(len(value_N)):
        value = np.uint64(value_N[i])
        while True:
            value = _once_back(value, mask, shift, keys) if inverse else _once(value, mask, shift, keys)
            if value < size:
                break
        out_N[i] = np.int64(value)
