"""Zen's Algorithm 1 (hierarchical hashing, section 3.3) as a GPU kernel in Triton.

Partitions are those of `hashing.partition_of`, whatever the device: the same h0 and the same second-level hashes as
`hashing.hierarchical`. Differs from the published code, which loses gradients:

- A slot holds an index's position and is taken by compare-and-swap: of two indices that meet there exactly one stays.
- An empty slot holds -1, so index 0 is an index like any other.
- The serial region is bounds-checked. What does not fit is counted, the host makes the region larger and runs the
  kernel again: nothing is lost.

`grouping.group_indices` chooses it for indices on a CUDA device. Without one it runs in Triton's interpreter, one
program after another: slow, for correctness only. TRITON_INTERPRET=1 must be set before Triton is imported.

Shape legend: N = indices, P = partitions, S = slots of a partition, parallel before serial, K = hashes, h0 first
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from artifact.sparse_sync.tensors.hashing import MULTIPLIERS, Grouping, memory_plan

BLOCK = 1024
"""Indices of a program."""
INTERPRETED: bool = triton.knobs.runtime.interpret
"""Whether Triton's interpreter runs the kernel below; fixed when Triton is imported."""

_M1, _M2, _GOLDEN = (tl.constexpr(multiplier) for multiplier in MULTIPLIERS)
_EMPTY = tl.constexpr(-1)


def hierarchical(
    index_N: Tensor,
    num_partitions: int,
    seed: int = 0,
    *,
    num_hashes: int = 3,
    slots_per_index: float = 2.0,
    serial_share: float = 0.1,
) -> Grouping:
    """Group by Zen's Algorithm 1 on the device of the indices: the partitions of `hashing.partition_of`, nothing lost.

    How many indices go to the serial region depends on the order in which programs run. At three hashes and two slots
    an index it is 3.0 % one index at a time, as in `hashing.hierarchical`, and 4.2 % if every index makes an attempt
    before any makes its next.

    index_N: [N], int64, not negative, in any order; the other arguments as of `hashing.hierarchical`
    Returns: a Grouping whose order_N is a tensor on that device
    Raises:  ValueError for negative indices or another type, and as `hashing.memory_plan`; RuntimeError for indices on
             a CPU unless Triton's interpreter is on
    """
    seeds, slots, serial_slots = memory_plan(
        index_N.numel(), num_partitions, seed, num_hashes, slots_per_index, serial_share
    )
    if index_N.dtype != torch.int64 or index_N.dim() != 1:
        raise ValueError(f"indices must be int64 [N], got {index_N.dtype} {list(index_N.shape)}")
    if not (index_N.is_cuda or INTERPRETED):
        raise RuntimeError(
            f"indices on {index_N.device} need Triton's interpreter: set the environment variable TRITON_INTERPRET=1 "
            "before Python starts, move the indices to a CUDA device, or use artifact.sparse_sync.tensors.hashing"
        )
    if index_N.numel() == 0:
        return Grouping(index_N.clone(), index_N.new_zeros(num_partitions).cpu().numpy())
    if (lowest := int(index_N.min())) < 0:
        raise ValueError(f"indices must not be negative, got {lowest}")

    index_N, seed_K = index_N.contiguous(), index_N.new_tensor(seeds)
    grown = 0
    while True:
        memory_PS, serial_P = _placed(index_N, seed_K, num_partitions, slots, serial_slots)
        largest = int(serial_P.max())
        if largest <= serial_slots:
            break
        # Another run may place other indices, so exactly what this one lacked might not do: double at least.
        serial_slots = max(2 * serial_slots, largest)
        grown += 1
    taken_PS = memory_PS != _EMPTY.value
    return Grouping(memory_PS[taken_PS], taken_PS.sum(1).cpu().numpy(), serial=int(serial_P.sum()), grown=grown)


def _placed(
    index_N: Tensor, seed_K: Tensor, num_partitions: int, slots: int, serial_slots: int
) -> tuple[Tensor, Tensor]:
    """One run of the kernel: positions in index_N by slot, memory_PS, -1 in empty slots; serial_P, wanted serial slots.

    Indices are missing from the memory of a partition whose serial_P exceeds serial_slots.
    """
    width = slots + serial_slots
    memory = index_N.new_full((num_partitions * width + 1,), _EMPTY.value)
    memory[-1] = 0  # beyond all partitions, never empty: lanes without an index point here
    serial_P = index_N.new_zeros(num_partitions)
    grid = (triton.cdiv(index_N.numel(), BLOCK),)
    sizes = (index_N.numel(), num_partitions, slots, width)
    with torch.cuda.device_of(index_N):
        _place[grid](index_N, seed_K, memory, serial_P, *sizes, NUM_HASHES=seed_K.numel() - 1, BLOCK=BLOCK)
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
        found = tl.atomic_cas(memory_ptr + at, empty, lane, sem="relaxed")
        waiting = waiting & (found != _EMPTY)
    # A count beyond the serial region tells the host that indices were left out.
    place = slots + tl.atomic_add(serial_ptr + part, 1, mask=waiting, sem="relaxed")
    tl.store(memory_ptr + start + place, lane, mask=waiting & (place < width))
