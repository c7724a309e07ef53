"""Zen's Algorithm 1 (hierarchical hashing, section 3.3) as a GPU kernel in Triton.

Partitions are those of `hashing.partition_of`, whatever the device: the same h0 and the same second-level hashes as
`hashing.hierarchical`. Differs from the published code, which loses gradients:

- A slot is taken by compare-and-swap, so of two indices that meet in a slot exactly one stays.
- An empty slot holds -1, so index 0 is an index like any other.
- The serial region is bounds-checked. What does not fit is counted, the host makes the region larger and runs the
  kernel again: nothing is lost.

Without a GPU the kernel runs in Triton's interpreter, one program after another: slow, for correctness only. The
environment variable TRITON_INTERPRET=1 has to be set before Triton is imported.

Shape legend: N = indices, P = partitions, S = slots of a partition, parallel before serial, K = hashes, h0 first
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from artifact.sparse_sync.tensors.hashing import MULTIPLIERS, mixed_seed

BLOCK = 1024
"""Indices of a program."""
INTERPRETED: bool = triton.knobs.runtime.interpret
"""Whether the kernel below is run by Triton's interpreter, which is settled at import."""

_M1, _M2, _GOLDEN = (tl.constexpr(each) for each in MULTIPLIERS)
_EMPTY = tl.constexpr(-1)


@dataclass(frozen=True)
class GroupedIndices:
    """Indices by partition.

    index_N:  [N], int64, the indices that were given, partition after partition, in no order inside one
    count_P:  [P], int64, indices in each partition
    serial:   indices that went to the serial region
    grown:    how often the serial region had to grow to keep every index, and the kernel to run again
    """

    index_N: Tensor
    count_P: Tensor
    serial: int
    grown: int


def hierarchical(
    index_N: Tensor,
    num_partitions: int,
    seed: int = 0,
    *,
    num_hashes: int = 3,
    slots_per_index: float = 2.0,
    serial_share: float = 0.1,
) -> GroupedIndices:
    """Group by Zen's Algorithm 1 on the device of the indices: the partitions of `hashing.partition_of`, nothing lost.

    How many indices go to the serial region depends on the order in which programs run. At three hashes and two slots
    an index it is 3.0 % one index at a time, as in `hashing.hierarchical`, and 4.2 % if every index makes an attempt
    before any makes its next.

    index_N:         [N], int64, unique, not negative, in any order
    num_hashes:      k, second-level hashes
    slots_per_index: r1 / |I|, parallel slots of all partitions together
    serial_share:    r2 / r1, serial slots before growing
    Raises:          ValueError for values that break these rules, a num_partitions outside [1, 65536] included;
                     RuntimeError for indices on a CPU unless Triton's interpreter is on
    """
    if not 1 <= num_partitions <= 1 << 16:
        raise ValueError(f"num_partitions must be in [1, 65536], got {num_partitions}")
    if num_hashes < 1 or slots_per_index <= 0 or serial_share < 0:
        raise ValueError(
            "num_hashes must be at least 1, slots_per_index positive and serial_share not negative, got "
            f"{num_hashes}, {slots_per_index}, {serial_share}"
        )
    if index_N.dtype != torch.int64 or index_N.dim() != 1:
        raise ValueError(f"indices must be int64 [N], got {index_N.dtype} {list(index_N.shape)}")
    if not (index_N.is_cuda or INTERPRETED):
        raise RuntimeError(
            f"indices on {index_N.device} need Triton's interpreter: set the environment variable TRITON_INTERPRET=1 "
            "before Python starts, move the indices to a CUDA device, or use artifact.sparse_sync.tensors.hashing"
        )
    seeds = [mixed_seed(seed, level) for level in range(num_hashes + 1)]
    if index_N.numel() == 0:
        return GroupedIndices(index_N.clone(), index_N.new_zeros(num_partitions), serial=0, grown=0)

    index_N, seed_K = index_N.contiguous(), index_N.new_tensor(seeds)
    slots = max(1, round(slots_per_index * index_N.numel() / num_partitions))
    serial_slots = max(1, round(serial_share * slots))
    grown = 0
    while True:
        memory_PS, serial_P = _placed(index_N, seed_K, num_partitions, slots, serial_slots)
        largest = int(serial_P.max())
        if largest <= serial_slots:
            break
        # Another run may place other indices, so exactly what this one lacked might not do: double at least.
        serial_slots = max(2 * serial_slots, largest)
        grown += 1

    taken_PS = memory_PS >= 0
    grouped_N = memory_PS[taken_PS]
    if grouped_N.numel() != index_N.numel():
        raise ValueError(f"indices must not be negative, got {int(index_N.min())}")
    return GroupedIndices(grouped_N, taken_PS.sum(1), serial=int(serial_P.sum()), grown=grown)


def _placed(
    index_N: Tensor, seed_K: Tensor, num_partitions: int, slots: int, serial_slots: int
) -> tuple[Tensor, Tensor]:
    """One run of the kernel: (memory_PS with -1 in empty slots, serial_P: what the serial regions were asked to hold).

    Indices are missing from the memory where serial_P exceeds serial_slots.
    """
    num_indices, width = index_N.numel(), slots + serial_slots
    memory = index_N.new_full((num_partitions * width + 1,), _EMPTY.value)
    memory[-1] = 0  # beyond all partitions, never empty: where lanes without an index point
    serial_P = index_N.new_zeros(num_partitions)
    grid = (triton.cdiv(num_indices, BLOCK),)
    with torch.cuda.device_of(index_N):
        _place[grid](
            index_N,
            seed_K,
            memory,
            serial_P,
            num_indices,
            num_partitions,
            slots,
            width,
            NUM_HASHES=seed_K.numel() - 1,
            BLOCK=BLOCK,
        )
    return memory[:-1].view(num_partitions, width), serial_P


@triton.jit
def _finalise(value):
    value = (value ^ (value >> 16)) * _M1
    value = (value ^ (value >> 13)) * _M2
    return value ^ (value >> 16)


@triton.jit
def _hash_below(index, seed_ptr, bound):
    """Hash of an index with the seed at a pointer, in [0, bound): the upper 32 bits of hash times bound."""
    low, high = index.to(tl.uint32), (index >> 32).to(tl.uint32)
    hashed = _finalise(low ^ _finalise(high * _GOLDEN) ^ tl.load(seed_ptr).to(tl.uint32))
    return ((hashed.to(tl.uint64) * bound) >> 32).to(tl.int64)


@triton.jit(do_not_specialize=["num_indices", "num_partitions", "slots", "width"])  # they differ from call to call
def _place(
    index_ptr,
    seed_ptr,
    memory_ptr,
    serial_ptr,
    num_indices,
    num_partitions,
    slots,
    width,
    NUM_HASHES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    lane = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    waiting = lane < num_indices
    index = tl.load(index_ptr + lane, mask=waiting, other=0)
    part = _hash_below(index, seed_ptr, num_partitions)
    start = part * width
    empty = tl.full([BLOCK], _EMPTY, tl.int64)
    # A compare-and-swap takes no mask. A lane that is done points at a slot that is not empty, and never will be again:
    # the one it took, or the one beyond all partitions. Its swaps fail.
    at = tl.zeros([BLOCK], tl.int64) + num_partitions.to(tl.int64) * width
    for level in tl.static_range(1, NUM_HASHES + 1):
        at = tl.where(waiting, start + _hash_below(index, seed_ptr + level, slots), at)
        found = tl.atomic_cas(memory_ptr + at, empty, index, sem="relaxed")
        waiting = waiting & (found != _EMPTY)
    # A count beyond the serial region tells the host that indices were left out.
    place = slots + tl.atomic_add(serial_ptr + part, 1, mask=waiting, sem="relaxed")
    tl.store(memory_ptr + start + place, index, mask=waiting & (place < width))
