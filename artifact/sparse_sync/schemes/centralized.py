"""Schemes in which whole tensors travel: AGsparse (one shot) and SparCML (a hierarchy, incremental)."""

from __future__ import annotations

from artifact.sparse_sync.schemes.base import Exchange, Message, RankContext, Steps
from artifact.sparse_sync.tensors.formats import Coo, Dense, Format
from artifact.sparse_sync.tensors.sparse_tensor import SparseTensor, sum_in_rank_order


def agsparse(context: RankContext, tensor: SparseTensor) -> Steps:
    """Every rank sends its COO tensor to every other, and sums them in rank order.

    Source: PyTorch's sparse all_reduce over gloo and Horovod's allgather; AGsparse in Zen, section 5
    """
    coo = Coo(tensor.num_units, tensor.width, tensor.value_ND.dtype)
    message = coo.encode(tensor.index_N, tensor.value_ND)
    received = yield Exchange(dict.fromkeys(context.others, message), context.others)

    def result() -> SparseTensor:
        units = [
            (tensor.index_N, tensor.value_ND) if rank == context.rank else coo.decode(received[rank])
            for rank in range(context.num_workers)
        ]
        return SparseTensor(*sum_in_rank_order(units, tensor.num_units), tensor.num_units)

    return result


def sparcml(context: RankContext, tensor: SparseTensor) -> Steps:
    """Recursive doubling: in log2(n) stages, pairs of ranks exchange and add what they have so far.

    A message is dense if that is no longer than COO. If n is not a power of two, the ranks from the largest power p on
    first send their tensor to rank - p and receive the sum at the end. Sums follow the tree of the stages, lower ranks
    first: the same on every rank, but not in rank order.

    Source: SparCML's SSAR_Recursive_double; "Hierarchical Centralization" in Zen, section 2
    """
    n, rank = context.num_workers, context.rank
    power = 1 << (n.bit_length() - 1)
    if rank >= power:
        yield Exchange({rank - power: _encode(tensor)}, ())
        for _ in range(power.bit_length() - 1):
            yield Exchange({}, ())
        received = yield Exchange({}, (rank - power,))
        message = received[rank - power]
        return lambda: _decode(message, tensor)
    helped = rank + power < n
    if power < n:
        received = yield Exchange({}, (rank + power,) if helped else ())
        if helped:
            tensor = _add(tensor, _decode(received[rank + power], tensor))
    for stage in range(power.bit_length() - 1):
        peer = rank ^ (1 << stage)
        message = _encode(tensor)
        received = yield Exchange({peer: message}, (peer,))
        # Both ranks add what was sent: a dense message lists every unit, and all ranks must list the same.
        mine, theirs = _decode(message, tensor), _decode(received[peer], tensor)
        tensor = _add(mine, theirs) if rank < peer else _add(theirs, mine)
    if power == n:
        return lambda: tensor
    message = _encode(tensor)
    yield Exchange({rank + power: message} if helped else {}, ())
    return lambda: _decode(message, tensor)


def _formats(tensor: SparseTensor) -> tuple[Format, Format]:
    known = (tensor.num_units, tensor.width, tensor.value_ND.dtype)
    return Coo(*known), Dense(*known)


def _encode(tensor: SparseTensor) -> Message:
    coo, dense = _formats(tensor)
    shorter = dense if dense.num_bytes(tensor.num_indices) <= coo.num_bytes(tensor.num_indices) else coo
    return shorter.encode(tensor.index_N, tensor.value_ND)


def _decode(message: Message, like: SparseTensor) -> SparseTensor:
    coo, dense = _formats(like)
    found = dense if message.numel() == dense.num_bytes(0) else coo  # COO is only sent if it is shorter
    return SparseTensor(*found.decode(message), like.num_units)


def _add(lower: SparseTensor, upper: SparseTensor) -> SparseTensor:
    units = [(tensor.index_N, tensor.value_ND) for tensor in (lower, upper)]
    return SparseTensor(*sum_in_rank_order(units, lower.num_units), lower.num_units)
