"""Wire formats of sparse values: units to the exact bytes of a message, and back.

A message is a flat uint8 tensor, so its length is its cost. Positions count in a known range (a tensor, or one server's
part of it, see `artifact.sparse_sync.tensors.partitions`); both ends know the range, the width and the value type.

Shape legend: N = units sent, D = width of a unit, B = bytes, K = blocks
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from artifact.sparse_sync.tensors.sparse_tensor import Units

BLOCK_ELEMENTS = 256
"""Elements of OmniReduce's block."""
HEADER_BYTES = 4
"""Bytes of a block's number, sent before it."""
VALUE_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@dataclass(frozen=True)
class Format(ABC):
    """A format, with what both ends of a message know.

    length: units in the range of positions
    width:  elements of a unit
    dtype:  type of the values

    Raises: ValueError for a negative length, a width less than 1, or values that are not floats
    """

    length: int
    width: int
    dtype: torch.dtype

    def __post_init__(self) -> None:
        if self.length < 0 or self.width < 1:
            raise ValueError(f"length must not be negative and width at least 1, got {self.length} and {self.width}")
        if self.dtype not in VALUE_DTYPES:
            raise ValueError(f"values must be one of {VALUE_DTYPES}, got {self.dtype}")

    @property
    def unit_bytes(self) -> int:
        """Bytes of one unit's values."""
        return self.width * self.dtype.itemsize

    @abstractmethod
    def encode(self, position_N: Tensor, value_ND: Tensor) -> Tensor:
        """The message. position_N: [N], int64, sorted, unique, in [0, length); value_ND: [N, D] -> [B], uint8"""

    @abstractmethod
    def decode(self, message_B: Tensor) -> Units:
        """Units of a message: the inverse of `encode`. Raises: ValueError if its length cannot be of this format"""

    @abstractmethod
    def num_bytes(self, num_units: int) -> int:
        """Bytes of a message of that many units."""


@dataclass(frozen=True)
class Coo(Format):
    """The index and values of each unit; an index has 4 bytes, or 8 if the range has 2**31 units or more."""

    @property
    def index_dtype(self) -> torch.dtype:
        return torch.int32 if self.length < 1 << 31 else torch.int64

    def encode(self, position_N: Tensor, value_ND: Tensor) -> Tensor:
        return torch.cat([as_bytes(position_N.to(self.index_dtype)), as_bytes(value_ND)])

    def decode(self, message_B: Tensor) -> Units:
        num_units, rest = divmod(message_B.numel(), self.index_dtype.itemsize + self.unit_bytes)
        if rest:
            raise ValueError(f"a COO message must be whole units, got {message_B.numel()} bytes")
        index_bytes = num_units * self.index_dtype.itemsize
        position_N = from_bytes(message_B[:index_bytes], self.index_dtype).to(torch.int64)
        return position_N, from_bytes(message_B[index_bytes:], self.dtype).reshape(num_units, self.width)

    def num_bytes(self, num_units: int) -> int:
        return num_units * (self.index_dtype.itemsize + self.unit_bytes)


@dataclass(frozen=True)
class Bitmap(Format):
    """A bit for each unit of the range, then the values of the units whose bit is set.

    Over one server's part of a hashed partition this is Zen's hash bitmap (Algorithm 2): the bitmaps of all servers
    together cost an eighth of a byte a unit, for any number of servers.
    """

    def encode(self, position_N: Tensor, value_ND: Tensor) -> Tensor:
        return torch.cat([pack_bits(position_N, self.length), as_bytes(value_ND)])

    def decode(self, message_B: Tensor) -> Units:
        bitmap_bytes = -(-self.length // 8)
        if message_B.numel() < bitmap_bytes:
            raise ValueError(f"a bitmap of {self.length} units has {bitmap_bytes} bytes, got {message_B.numel()}")
        position_N = unpack_bits(message_B[:bitmap_bytes], self.length)
        value_N = from_bytes(message_B[bitmap_bytes:], self.dtype)
        if value_N.numel() != position_N.numel() * self.width:
            raise ValueError(
                f"a message must hold a value for each of {position_N.numel()} bits, got {value_N.numel()}"
            )
        return position_N, value_N.reshape(-1, self.width)

    def num_bytes(self, num_units: int) -> int:
        return -(-self.length // 8) + num_units * self.unit_bytes


@dataclass(frozen=True)
class Blocks(Format):
    """Blocks of 256 elements, those with a listed element, after a header of 4 bytes each (OmniReduce).

    Elements only. The last block is padded to its full size. Decoding gives all elements of the blocks, zeros included.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width != 1:
            raise ValueError(f"blocks are of elements: width must be 1, got {self.width}")

    def encode(self, position_N: Tensor, value_ND: Tensor) -> Tensor:
        block_K, inverse_N = torch.unique_consecutive(position_N // BLOCK_ELEMENTS, return_inverse=True)
        values = torch.zeros(block_K.numel() * BLOCK_ELEMENTS, dtype=self.dtype, device=value_ND.device)
        values[inverse_N * BLOCK_ELEMENTS + position_N % BLOCK_ELEMENTS] = value_ND.reshape(-1)
        return torch.cat([as_bytes(block_K.to(torch.int32)), as_bytes(values)])

    def decode(self, message_B: Tensor) -> Units:
        num_blocks, rest = divmod(message_B.numel(), self.block_bytes)
        if rest:
            raise ValueError(f"a message must be whole blocks, got {message_B.numel()} bytes")
        block_K = from_bytes(message_B[: num_blocks * HEADER_BYTES], torch.int32).to(torch.int64)
        within = torch.arange(BLOCK_ELEMENTS, device=message_B.device)
        position_N = (block_K[:, None] * BLOCK_ELEMENTS + within).flatten()
        value_N = from_bytes(message_B[num_blocks * HEADER_BYTES :], self.dtype)
        inside = position_N < self.length
        return position_N[inside], value_N[inside].reshape(-1, 1)

    @property
    def block_bytes(self) -> int:
        return HEADER_BYTES + BLOCK_ELEMENTS * self.dtype.itemsize

    def num_bytes(self, num_units: int) -> int:
        """Bytes of a message of `num_units` blocks, not units."""
        return num_units * self.block_bytes


@dataclass(frozen=True)
class Dense(Format):
    """Every unit's values."""

    def encode(self, position_N: Tensor, value_ND: Tensor) -> Tensor:
        dense = torch.zeros(self.length, self.width, dtype=self.dtype, device=value_ND.device)
        dense[position_N] = value_ND
        return as_bytes(dense)

    def decode(self, message_B: Tensor) -> Units:
        if message_B.numel() != self.num_bytes(0):
            raise ValueError(f"a dense message has {self.num_bytes(0)} bytes, got {message_B.numel()}")
        value_ND = from_bytes(message_B, self.dtype).reshape(self.length, self.width)
        return torch.arange(self.length, device=message_B.device), value_ND

    def num_bytes(self, num_units: int) -> int:
        return self.length * self.unit_bytes


def as_bytes(tensor: Tensor) -> Tensor:
    """The bytes of a tensor, [B], uint8."""
    flat = tensor.reshape(-1)
    if flat.stride(0) != 1:  # a single element may have any stride, and torch calls it contiguous
        flat = flat.new_empty(flat.numel()).copy_(flat)
    return flat.view(torch.uint8)


def from_bytes(message_B: Tensor, dtype: torch.dtype) -> Tensor:
    """The inverse of `as_bytes`, flat: a copy, because a part of a message need not be aligned."""
    return message_B.clone().view(dtype)


def pack_bits(position_N: Tensor, length: int) -> Tensor:
    """A bitmap of `length` bits, the lowest bit of a byte first. -> [ceil(length / 8)], uint8"""
    bits = torch.zeros(-(-length // 8) * 8, dtype=torch.uint8, device=position_N.device)
    bits.index_fill_(0, position_N, 1)
    if bits.device.type == "cpu":
        return torch.from_numpy(np.packbits(bits.numpy(), bitorder="little"))
    return (bits.reshape(-1, 8) << _shifts(bits.device)).sum(dim=1, dtype=torch.uint8)


def unpack_bits(bitmap_B: Tensor, length: int) -> Tensor:
    """Positions of the set bits, sorted. [B], uint8 -> [N], int64"""
    if bitmap_B.device.type == "cpu":
        bits = np.unpackbits(bitmap_B.numpy(), count=length, bitorder="little")
        return torch.from_numpy(np.flatnonzero(bits.view(np.bool_)))
    bits_B8 = (bitmap_B[:, None] >> _shifts(bitmap_B.device)) & 1
    return bits_B8.reshape(-1)[:length].nonzero().reshape(-1)


def _shifts(device: torch.device) -> Tensor:
    return torch.arange(8, dtype=torch.uint8, device=device)
