"""Schemes in which one server sums each part of the tensor: parameter servers, OmniReduce, Zen.

All are the same exchange. They differ in the partition (`artifact.sparse_sync.tensors.partitions`) and in the formats
of units on the way to the server (push) and back (pull).
"""

from __future__ import annotations

import torch

from artifact.sparse_sync.schemes.base import Exchange, RankContext, Steps
from artifact.sparse_sync.tensors.formats import Format
from artifact.sparse_sync.tensors.partitions import partition
from artifact.sparse_sync.tensors.sparse_tensor import SparseTensor, in_order, sum_in_rank_order


def parallelism(context: RankContext, tensor: SparseTensor, kind: str, push: type[Format], pull: type[Format]) -> Steps:
    """Send every server its part of this rank's tensor; sum the own part in rank order; send the sum to every rank.

    kind: of partition, a name of `artifact.sparse_sync.tensors.partitions.PARTITIONS`
    """
    parts = partition(kind, tensor.num_units, context.num_workers, context.seed)
    known = [(parts.part_size(part), tensor.width, tensor.value_ND.dtype) for part in range(context.num_workers)]
    units = [
        (parts.position(part, tensor.index_N[here]), tensor.value_ND[here])
        for part, here in enumerate(parts.split(tensor.index_N))
    ]
    to_servers = {server: push(*known[server]).encode(*units[server]) for server in context.others}
    received = yield Exchange(to_servers, context.others)

    own = push(*known[context.rank])
    contributions = [
        units[rank] if rank == context.rank else own.decode(received[rank]) for rank in range(context.num_workers)
    ]
    total = sum_in_rank_order(contributions, parts.part_size(context.rank))
    answer = pull(*known[context.rank]).encode(*total)
    answers = yield Exchange(dict.fromkeys(context.others, answer), context.others)
    answers[context.rank] = answer  # decoded like the others: a format may add zeros, and all ranks list the same units

    def result() -> SparseTensor:
        sums = [pull(*known[part]).decode(answers[part]) for part in range(context.num_workers)]
        index_N = torch.cat([parts.index(part, position_N) for part, (position_N, _) in enumerate(sums)])
        return in_order(index_N, torch.cat([value_ND for _, value_ND in sums]), tensor.num_units)

    return result
