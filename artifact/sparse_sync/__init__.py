"""Zen (OSDI 2025): near-optimal synchronisation of sparse gradients.

One gradient's way: `SparseTensor` -> a scheme of `SCHEMES`, or the one that `choose_scheme` picks from `Statistics` ->
`partition` among servers -> a `Format` on the wire -> `run_counted` in this process or a `Link` between processes.
`synchronise` does so once and reports; `register_sparse_sync` does so inside DistributedDataParallel.
"""

from typing import TYPE_CHECKING

from artifact.doors import lazy

if TYPE_CHECKING:
    from artifact.sparse_sync.links.accounting import (
        SyncReport as SyncReport,
        synchronise as synchronise,
        traffic_of as traffic_of,
    )
    from artifact.sparse_sync.links.ddp_hook import (
        SparseSync as SparseSync,
        register_sparse_sync as register_sparse_sync,
    )
    from artifact.sparse_sync.links.testbed import Testbed as Testbed, measure_links as measure_links
    from artifact.sparse_sync.links.transport import Link as Link, Traffic as Traffic, run_counted as run_counted
    from artifact.sparse_sync.schemes import COMPARED as COMPARED, SCHEMES as SCHEMES, Scheme as Scheme
    from artifact.sparse_sync.schemes.base import Exchange as Exchange, RankContext as RankContext
    from artifact.sparse_sync.schemes.cost_model import (
        Statistics as Statistics,
        choose_scheme as choose_scheme,
        measure_statistics as measure_statistics,
        predict_bytes as predict_bytes,
    )
    from artifact.sparse_sync.tensors.formats import (
        Bitmap as Bitmap,
        Blocks as Blocks,
        Coo as Coo,
        Dense as Dense,
        Format as Format,
    )
    from artifact.sparse_sync.tensors.grouping import (
        group_indices as group_indices,
        measure_grouping as measure_grouping,
    )
    from artifact.sparse_sync.tensors.hashing import (
        Grouping as Grouping,
        imbalance as imbalance,
        partition_of as partition_of,
    )
    from artifact.sparse_sync.tensors.input_file import read_gradients as read_gradients
    from artifact.sparse_sync.tensors.partitions import (
        PARTITIONS as PARTITIONS,
        Partition as Partition,
        partition as partition,
        pull_imbalance as pull_imbalance,
        push_imbalance as push_imbalance,
    )
    from artifact.sparse_sync.tensors.sparse_tensor import (
        SparseTensor as SparseTensor,
        as_sparse as as_sparse,
        union as union,
    )
    from artifact.sparse_sync.tensors.topk import TopK as TopK
    from artifact.sparse_sync.workloads import workload_tensors as workload_tensors, zipf_embedding as zipf_embedding

__getattr__, __dir__, __all__ = lazy(__name__, __file__)
